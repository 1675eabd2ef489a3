//! Where an enforcement point asks, and as whom: the flags that every such command has.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::api::{Delegator, DelegatorKind};
use crate::enforce::authzen::{AuthZen, Token, TokenFile};
use crate::enforce::local::Local;
use crate::enforce::{Pdp, Question};
use crate::laptop::{LaptopError, Options};
use crate::source::directory::{Mistakes, read};
use crate::transport::{AddressError, Https, Transport, UnixSocket};

/// Where to ask, and as whom.
#[derive(Clone, Debug, Args)]
pub struct PdpArgs {
    /// Folder with the policy package and its objects; Remit runs in this process, or is found behind the folder's socket
    #[arg(long, value_name = "DIR")]
    pub policy: Option<PathBuf>,
    /// Address of a Remit: https://HOST:PORT, http:// of this machine, or unix:///path; --policy goes before it
    #[arg(long, alias = "url", env = "REMIT_URL", value_name = "URL")]
    pub remit: Option<String>,
    /// PEM file of the CA that signed Remit's certificate: `ca.crt` of ConfigMap remit-ca
    #[arg(long, env = "REMIT_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// File of a token with audience `remit`; read again when it changes
    #[arg(long, env = "REMIT_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Tenant to ask about [default: the namespace of the folder's objects, or of the token's ServiceAccount]
    #[arg(long, alias = "namespace", env = "REMIT_TENANT", value_name = "NAME")]
    pub tenant: Option<String>,
    /// Name of the Agent that acts [default: the folder's only one]
    #[arg(long, env = "REMIT_AGENT", value_name = "NAME")]
    pub agent: Option<String>,
    /// Session that Remit issued
    #[arg(long, env = "REMIT_SESSION", value_name = "ID")]
    pub session: Option<String>,
    /// For whom the agent acts: NAME, user:NAME or agent:NAME
    #[arg(long, value_name = "WHO", value_parser = delegator)]
    pub on_behalf_of: Option<Delegator>,
    /// Seconds for one question; then the call is refused
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub timeout: Duration,
}

/// Why nobody can be asked.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not told where.
    #[error("say where to ask: --policy DIR, or --remit URL (REMIT_URL)")]
    Nowhere,
    /// Not told what is needed.
    #[error("{flag} is missing: give it, or set {env}")]
    Missing {
        /// The flag.
        flag: &'static str,
        /// Its variable.
        env: &'static str,
    },
    /// The address.
    #[error("--remit or --ca-file: {0}")]
    Address(#[from] AddressError),
    /// The folder can't be led, and nobody else leads it.
    #[error("--policy: {0}")]
    Folder(#[from] LaptopError),
    /// The folder can't be read.
    #[error("--policy: {0}")]
    Mistakes(#[from] Mistakes),
    /// Which agent?
    #[error("--agent is missing: {dir} has {}", agents(.names))]
    Agent {
        /// The folder.
        dir: String,
        /// Its Agents.
        names: Vec<String>,
    },
    /// The token.
    #[error("--token-file: {0}")]
    Token(String),
}

fn agents(names: &[String]) -> String {
    match names {
        [] => "no Agent: write one, as in `remit init`".to_owned(),
        names => format!("several Agents: {}", names.join(", ")),
    }
}

impl PdpArgs {
    /// The decision point, and the name of the agent that acts. `Pdp::close` is to be called before the process ends.
    pub async fn open(&self) -> Result<(Arc<dyn Pdp>, String), OpenError> {
        let (pdp, agent) = self.authzen(None).await?;
        Ok((Arc::new(pdp), agent))
    }

    /// The same, with everything that AuthZEN's answers say; with another token than the file's, where there is one.
    pub async fn authzen(&self, token: Option<Token>) -> Result<(AuthZen, String), OpenError> {
        let pdp = self.connect(token).await?;
        match self.agent() {
            Ok(agent) => Ok((pdp, agent)),
            Err(error) => {
                pdp.close().await;
                Err(error)
            }
        }
    }

    /// The decision point alone. It is to be closed before the process ends.
    pub async fn connect(&self, token: Option<Token>) -> Result<AuthZen, OpenError> {
        if let Some(dir) = &self.policy {
            let options = Options { dir: dir.clone(), tenant: self.tenant.clone(), ..Options::default() };
            let local = Local::open(options, self.timeout).await?;
            return Ok(AuthZen::of(local, self.timeout));
        }
        let url = self.remit.as_deref().ok_or(OpenError::Nowhere)?;
        let token = match (token, &self.token_file) {
            (Some(token), _) => token,
            (None, Some(file)) => Token::File(TokenFile::new(file)),
            (None, None) => return Err(OpenError::Missing { flag: "--token-file", env: "REMIT_TOKEN_FILE" }),
        };
        token.bearer().map_err(OpenError::Token)?;
        let transport: Box<dyn Transport> = match url.strip_prefix("unix://") {
            Some(path) => Box::new(UnixSocket::new(path)),
            None => Box::new(Https::new(url, self.ca_file.as_deref())?),
        };
        Ok(AuthZen::new(transport, token, self.tenant.as_deref(), self.timeout))
    }

    /// Name of the agent that acts.
    pub fn agent(&self) -> Result<String, OpenError> {
        if let Some(agent) = &self.agent {
            return Ok(agent.clone());
        }
        let dir = self.policy.as_ref().ok_or(OpenError::Missing { flag: "--agent", env: "REMIT_AGENT" })?;
        let names: Vec<String> = read(dir)?.agents.into_iter().filter_map(|a| a.metadata.name).collect();
        match names.as_slice() {
            [only] => Ok(only.clone()),
            _ => Err(OpenError::Agent { dir: dir.display().to_string(), names }),
        }
    }

    /// A question of this agent, with the session and delegator that were given.
    pub fn question(&self, agent: &str) -> Question {
        Question {
            agent: agent.to_owned(),
            session: self.session.clone(),
            on_behalf_of: self.on_behalf_of.clone(),
            ..Question::default()
        }
    }
}

/// `NAME`, `user:NAME` or `agent:NAME`.
pub fn delegator(text: &str) -> Result<Delegator, String> {
    let (kind, name) = match text.split_once(':') {
        Some(("user", name)) => (DelegatorKind::User, name),
        Some(("agent", name)) => (DelegatorKind::Agent, name),
        _ => (DelegatorKind::User, text),
    };
    if name.is_empty() {
        return Err("expected NAME, user:NAME or agent:NAME".into());
    }
    Ok(Delegator { kind, name: name.to_owned() })
}

/// Seconds, at least a hundredth.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    let wrong = "expected a number of seconds, 0.01 to 600";
    seconds.filter(|s| (0.01..=600.0).contains(&s.as_secs_f64())).ok_or_else(|| wrong.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delegators_and_times_are_read() {
        assert_eq!(
            delegator("alice@acme").unwrap(),
            Delegator { kind: DelegatorKind::User, name: "alice@acme".into() }
        );
        assert_eq!(delegator("agent:planner").unwrap().kind, DelegatorKind::Agent);
        assert!(delegator("user:").is_err());
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "601", "x", "NaN"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
