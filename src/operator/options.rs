//! What the operator is told: flags, and environment.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::policy::SigningMode;
use crate::store::PostgresUrl;

/// Serves checks and reconciles the custom resources of a cluster.
///
/// Kubernetes is found by the ServiceAccount of the pod, or by KUBECONFIG.
#[derive(Debug, Args)]
pub struct Options {
    /// Namespace of the operator: the platform tenant
    #[arg(long, env = "REMIT_NAMESPACE", default_value = "remit-system")]
    pub namespace: String,
    /// Address of the checks (HTTPS)
    #[arg(long, env = "REMIT_LISTEN", default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,
    /// Address of the admission webhook (HTTPS)
    #[arg(long, env = "REMIT_WEBHOOK_LISTEN", default_value = "0.0.0.0:9443")]
    pub webhook_listen: SocketAddr,
    /// Address of /livez, /readyz and /metrics (HTTP)
    #[arg(long, env = "REMIT_METRICS_LISTEN", default_value = "0.0.0.0:8080")]
    pub metrics_listen: SocketAddr,
    /// Directory of the journal
    #[arg(long, env = "REMIT_DATA_DIR", default_value = "/var/lib/remit")]
    pub data_dir: PathBuf,
    /// Whether packages must be signed: WhenSignerExists or Required
    #[arg(long, env = "REMIT_SIGNATURES", default_value = "WhenSignerExists")]
    pub signatures: SigningMode,
    /// Further platform package, NAME@sha256:…, in the operator's namespace
    #[arg(long, env = "REMIT_PLATFORM_PACKAGE", value_parser = platform_package)]
    pub platform_package: Option<(String, String)>,
    /// Further names of the serving certificate: DNS names or IP addresses, separated by commas
    #[arg(long, env = "REMIT_DNS_NAMES", value_delimiter = ',')]
    pub dns_names: Vec<String>,
    /// Seconds after which a snapshot that hears nothing of the API server answers nothing
    #[arg(long, env = "REMIT_MAX_STALENESS", default_value = "300", value_parser = seconds)]
    pub max_staleness: Duration,
    /// ServiceAccount of the operator; messages name it
    #[arg(long, env = "REMIT_SERVICE_ACCOUNT", default_value = "remit")]
    pub service_account: String,
    /// Name of the installation that signatures may be bound to; the UID of kube-system if not set
    #[arg(long, env = "REMIT_INSTALLATION")]
    pub installation: Option<String>,
    /// YAML file of the issuers, besides the cluster's own, whose tokens may speak for Agents: docs/identities.md
    #[arg(long, env = "REMIT_ISSUERS", value_name = "FILE")]
    pub issuers: Option<PathBuf>,
    /// Seconds that a serving certificate lives; it is replaced after two thirds
    #[arg(long, env = "REMIT_CERTIFICATE_LIFE", default_value = "2592000", value_parser = seconds, hide = true)]
    pub certificate_life: Duration,
    /// Seconds to go on answering at stop, not ready any more, until no new calls are sent here; those under way finish after it
    #[arg(long, env = "REMIT_DRAIN", default_value = "0", value_parser = some_seconds)]
    pub drain_seconds: Duration,
    /// Seconds, about, after which each kind is listed anew although nothing seems wrong
    #[arg(long, env = "REMIT_RELIST", default_value = "1800", value_parser = seconds, hide = true)]
    pub relist_seconds: Duration,
    /// Seconds after which another replica takes the lease of one that is silent
    #[arg(long, env = "REMIT_LEASE", default_value = "15", value_parser = seconds, hide = true)]
    pub lease_seconds: Duration,
    /// Seconds without a renewal after which the holder stops reconciling
    #[arg(long, env = "REMIT_LEASE_RENEW", default_value = "10", value_parser = seconds, hide = true)]
    pub lease_renew_seconds: Duration,
    /// Seconds between two tries to get or renew the lease
    #[arg(long, env = "REMIT_LEASE_RETRY", default_value = "2", value_parser = seconds, hide = true)]
    pub lease_retry_seconds: Duration,
    /// PostgreSQL, for more than one replica: postgres://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full. Without it everything is kept
    /// in --data-dir, by one replica only
    #[arg(long, env = "REMIT_POSTGRES_URL", hide_env_values = true, value_name = "URL")]
    pub postgres_url: Option<PostgresText>,
    /// File that holds the URL of PostgreSQL
    #[arg(long, env = "REMIT_POSTGRES_URL_FILE", value_name = "FILE", conflicts_with = "postgres_url")]
    pub postgres_url_file: Option<PathBuf>,
    /// Bytes of records that may wait in --data-dir for PostgreSQL; beyond it allows are refused
    #[arg(long, env = "REMIT_JOURNAL_CAP_BYTES", default_value = "1073741824", value_name = "BYTES",
        value_parser = clap::value_parser!(u64).range(1_048_576..))]
    pub journal_cap_bytes: u64,
    /// Seconds that records stay in --data-dir after PostgreSQL has them: what a backup of that age lacks is shipped again
    #[arg(long, env = "REMIT_JOURNAL_KEEP", default_value = "3600", value_name = "SECONDS", value_parser = seconds)]
    pub journal_keep: Duration,
    /// Format of the log
    #[arg(long, env = "REMIT_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,
}

/// Format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// The text of a URL with a password in it: no message and no debug output shows it.
#[derive(Clone)]
pub struct PostgresText(String);

impl std::str::FromStr for PostgresText {
    type Err = std::convert::Infallible;

    /// Takes any text: what is wrong with it is said later, by a message that does not repeat it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Debug for PostgresText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PostgresText(…)")
    }
}

impl PostgresText {
    /// The URL of the flag or in the file; None where neither is given.
    pub fn url(text: Option<&Self>, file: Option<&Path>) -> Result<Option<PostgresUrl>, String> {
        let (flag, text) = match (text, file) {
            (Some(text), _) => ("--postgres-url", text.0.clone()),
            (None, Some(file)) => {
                let read = std::fs::read_to_string(file);
                ("--postgres-url-file", read.map_err(|e| format!("--postgres-url-file {}: {e}", file.display()))?)
            }
            (None, None) => return Ok(None),
        };
        text.parse().map(Some).map_err(|error| format!("{flag}: {error}"))
    }
}

impl Options {
    /// Where PostgreSQL is, if it is used.
    pub fn postgres_url(&self) -> Result<Option<PostgresUrl>, String> {
        PostgresText::url(self.postgres_url.as_ref(), self.postgres_url_file.as_deref())
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err("expected a number of seconds, at least 1".into()),
    }
}

fn some_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds) if seconds <= 3600 => Ok(Duration::from_secs(seconds)),
        _ => Err("expected a number of seconds, 0 to 3600".into()),
    }
}

/// `NAME@sha256:<64 hex digits>`. Empty, as a chart renders what is not set, is refused: the chart leaves the flag out.
fn platform_package(text: &str) -> Result<(String, String), String> {
    let parsed = text.split_once('@').filter(|(name, digest)| {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        !name.is_empty() && hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    });
    match parsed {
        Some((name, digest)) => Ok((name.into(), digest.into())),
        None => Err("expected NAME@sha256: and 64 hex digits, lower case".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platform_package_is_name_and_whole_digest() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(platform_package(&format!("org@{digest}")), Ok(("org".into(), digest.clone())));
        for wrong in ["org", "@sha256:00", "org@sha256:00", &digest, &format!("org@{}", digest.to_uppercase())] {
            platform_package(wrong).unwrap_err();
        }
    }
}
