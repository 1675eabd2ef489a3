//! The open ports. They are taken before anything else, so that a second operator stops before it touches anything.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::OperatorError;
use super::options::Options;

/// The open ports.
pub struct Listeners {
    pub checks: TcpListener,
    pub webhook: TcpListener,
    pub metrics: TcpListener,
}

impl Listeners {
    pub async fn bind(args: &Options) -> Result<Self, OperatorError> {
        let bind = async |flag: &'static str, address: SocketAddr| {
            let listener = TcpListener::bind(address).await;
            listener.map_err(|source| OperatorError::Listen { flag, address: address.to_string(), source })
        };
        Ok(Self {
            checks: bind("--listen", args.listen).await?,
            webhook: bind("--webhook-listen", args.webhook_listen).await?,
            metrics: bind("--metrics-listen", args.metrics_listen).await?,
        })
    }
}

/// Names of the serving certificate.
pub fn names(args: &Options) -> Vec<String> {
    let mut names: Vec<String> = vec!["localhost".into(), "127.0.0.1".into()];
    for service in ["remit", "remit-webhook"] {
        let namespace = &args.namespace;
        names.push(format!("{service}.{namespace}"));
        names.push(format!("{service}.{namespace}.svc"));
        names.push(format!("{service}.{namespace}.svc.cluster.local"));
    }
    names.extend(args.dns_names.iter().map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()));
    names.sort();
    names.dedup();
    names
}
