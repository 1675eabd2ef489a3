//! Who may speak with the proxy: its own machine, or who has the token. A web page is neither, whatever name it made this address
//! answer to (DNS rebinding).

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use sha2::{Digest as _, Sha256};

use super::upstream::{UpstreamError, bearer, is_loopback};

/// How agents reach the proxy over HTTP.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ListenArgs {
    /// File of the bearer token that agents must send; read again for each request, so that it may rotate
    #[arg(long, value_name = "FILE", help_heading = "Listening")]
    pub client_token_file: Option<PathBuf>,
    /// A web origin, such as https://app.example, whose pages may speak with the proxy; none, if not set
    #[arg(long, value_name = "ORIGIN", help_heading = "Listening")]
    pub allow_origin: Vec<String>,
    /// Listen beyond this machine without a token: whoever reaches the port acts as the agent
    #[arg(long, help_heading = "Listening")]
    pub trust_network: bool,
}

/// Who sends a request, as far as it can be told: a digest of the credentials, so that nobody else's session is joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client([u8; 32]);

/// Why a request is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Barred {
    /// Its status.
    pub status: StatusCode,
    /// For the client.
    pub why: &'static str,
}

/// The rules of one listener.
#[derive(Clone, Debug)]
pub struct Guard {
    args: ListenArgs,
    loopback: bool,
}

impl Guard {
    /// The rules for this address. An address that others reach needs a token, or a user who says that it does not.
    pub fn new(address: SocketAddr, args: &ListenArgs) -> Result<Self, String> {
        let loopback = address.ip().is_loopback();
        if !loopback && args.client_token_file.is_none() && !args.trust_network {
            return Err(format!(
                "--listen {address}: others than this machine reach this address: give --client-token-file, or say --trust-network"
            ));
        }
        if let Some(path) = &args.client_token_file {
            bearer("--client-token-file", path).map_err(|e| e.to_string())?;
        }
        Ok(Self { args: args.clone(), loopback })
    }

    /// Who asks, or why nobody is answered.
    pub fn admit(&self, headers: &HeaderMap) -> Result<Client, Barred> {
        let barred = |status, why| Err(Barred { status, why });
        let text = |name| headers.get(&name).map(|v| v.to_str().unwrap_or("\u{0}"));
        if let Some(origin) = text(ORIGIN)
            && !self.args.allow_origin.iter().any(|allowed| allowed == origin)
        {
            return barred(StatusCode::FORBIDDEN, "Origin: no web page may speak with this proxy (--allow-origin)");
        }
        // With a name of its own, a page of another origin would be of this one.
        if self.loopback && !text(HOST).is_some_and(|host| is_loopback(without_port(host))) {
            return barred(StatusCode::FORBIDDEN, "Host: must be localhost or a loopback address");
        }
        let sent = headers.get(AUTHORIZATION).map(|v| v.as_bytes()).unwrap_or_default();
        if headers.get_all(AUTHORIZATION).iter().count() > 1 {
            return barred(StatusCode::UNAUTHORIZED, "Authorization: more than one");
        }
        let client = Client(Sha256::digest(sent).into());
        let Some(path) = &self.args.client_token_file else { return Ok(client) };
        match bearer("--client-token-file", path) {
            // Digests are compared, so the time tells nothing of the token.
            Ok(wanted) if Client(Sha256::digest(wanted.as_bytes()).into()) == client => Ok(client),
            Ok(_) => barred(StatusCode::UNAUTHORIZED, "Authorization: not the token of this proxy"),
            Err(error) => {
                log_unreadable(&error);
                barred(StatusCode::SERVICE_UNAVAILABLE, "the proxy can't read its own token")
            }
        }
    }
}

fn log_unreadable(error: &UpstreamError) {
    tracing::error!(%error, "requests are refused");
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (axum::http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn guard(address: &str, args: ListenArgs) -> Result<Guard, String> {
        Guard::new(address.parse().unwrap(), &args)
    }

    #[test]
    fn only_this_machine_by_its_own_names() {
        let guard = guard("127.0.0.1:80", ListenArgs::default()).unwrap();
        for good in ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:9", "[::1]", "127.0.0.2"] {
            assert!(guard.admit(&headers(&[("host", good)])).is_ok(), "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "::1:", ""] {
            assert!(guard.admit(&headers(&[("host", bad)])).is_err(), "{bad}");
        }
        assert!(guard.admit(&HeaderMap::new()).is_err());
    }

    #[test]
    fn no_web_page_that_is_not_named() {
        let local = ("host", "localhost");
        let strict = guard("127.0.0.1:80", ListenArgs::default()).unwrap();
        let open = ListenArgs { allow_origin: vec!["https://app.example".into()], ..Default::default() };
        let open = guard("127.0.0.1:80", open).unwrap();
        for origin in ["https://evil.example", "http://localhost", "null", "https://app.example.evil.example"] {
            assert!(strict.admit(&headers(&[local, ("origin", origin)])).is_err(), "{origin}");
            assert!(open.admit(&headers(&[local, ("origin", origin)])).is_err(), "{origin}");
        }
        assert!(open.admit(&headers(&[local, ("origin", "https://app.example")])).is_ok());
    }

    #[test]
    fn beyond_this_machine_only_with_a_token_or_by_the_users_word() {
        assert!(guard("0.0.0.0:80", ListenArgs::default()).unwrap_err().contains("--trust-network"));
        let trusting = ListenArgs { trust_network: true, ..Default::default() };
        assert!(guard("0.0.0.0:80", trusting).unwrap().admit(&headers(&[("host", "pod")])).is_ok());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "t0ken\n").unwrap();
        let args = ListenArgs { client_token_file: Some(file.path().into()), ..Default::default() };
        let guard = guard("0.0.0.0:80", args).unwrap();
        for bad in ["", "t0ken", "Bearer t0ke", "bearer t0ken", "Bearer t0ken2"] {
            let barred = guard.admit(&headers(&[("authorization", bad)])).unwrap_err();
            assert_eq!(barred.status, StatusCode::UNAUTHORIZED, "{bad}");
        }
        let good = headers(&[("authorization", "Bearer t0ken")]);
        assert!(guard.admit(&good).is_ok());
        std::fs::write(file.path(), "n3w").unwrap();
        assert!(guard.admit(&good).is_err(), "it rotates");
        std::fs::remove_file(file.path()).unwrap();
        assert_eq!(guard.admit(&good).unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn credentials_tell_clients_apart() {
        let guard = guard("127.0.0.1:80", ListenArgs::default()).unwrap();
        let with = |value| guard.admit(&headers(&[("host", "localhost"), ("authorization", value)])).unwrap();
        assert_eq!(with("Bearer a"), with("Bearer a"));
        assert_ne!(with("Bearer a"), with("Bearer b"));
        assert_ne!(with("Bearer a"), guard.admit(&headers(&[("host", "localhost")])).unwrap());
    }
}
