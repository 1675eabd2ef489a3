//! `remit serve DIR`: a decision point of its own for one folder, without a cluster.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use clap::Args;
use http_body_util::{BodyExt, Limited};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing_subscriber::EnvFilter;

use super::terminal::failed;
use crate::enforce::local::{Local, LocalTransport};
use crate::laptop::{LaptopError, Options};
use crate::server::issuers;
use crate::server::tls::{Limits, serve};
use crate::server::{HttpError, Metrics};
use crate::transport::{Bounds, SendError, Transport};

/// How long to look for a leader, or to become it.
const OPEN: Duration = Duration::from_secs(5);
/// How often a process that follows looks whether there is still a leader.
const LOOK: Duration = Duration::from_millis(250);
/// For one request.
const BOUNDS: Bounds = Bounds { within: Duration::from_secs(30), answer: 256 * 1024 * 1024 };
/// Largest body that is passed on: more than the server takes, so that it is the one who says so.
const MAX_BODY: usize = 2 << 20;
/// Requests under way at stop.
const DRAIN: Duration = Duration::from_secs(2);
/// What is logged where `REMIT_LOG` does not say otherwise.
const LOG: &str = "warn,remit::laptop=info,remit::decision=info";

/// Serves checks from a folder, without a cluster: a policy package and Agents beside it.
///
/// The folder is read again when it changes. Records, tokens and the socket are in DIR/.remit.
#[derive(Debug, Args)]
pub struct Serve {
    /// Folder with the policy package and its objects
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Loopback address for plain HTTP besides the socket, such as 127.0.0.1:8480
    #[arg(long, value_name = "ADDRESS", value_parser = loopback)]
    listen: Option<SocketAddr>,
    /// Name of the tenant [default: the namespace of the folder's objects, else `default`]
    #[arg(long, env = "REMIT_TENANT", value_name = "NAME")]
    tenant: Option<String>,
    /// YAML file of the issuers whose tokens may speak for Agents: docs/identities.md
    #[arg(long, env = "REMIT_ISSUERS", value_name = "FILE")]
    issuers: Option<PathBuf>,
}

/// An address that only this machine reaches.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "expected an address such as 127.0.0.1:8480".to_owned())?;
    if address.ip().is_loopback() {
        return Ok(address);
    }
    Err("tokens would be sent in plain text: only loopback addresses (127.0.0.1, [::1]) are served; for other machines run \
         `remit operator`, or put TLS before it"
        .into())
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Laptop(#[from] LaptopError),
    #[error("--listen {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("signals can't be waited for: {0}")]
    Signal(std::io::Error),
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: Serve) -> ExitCode {
    let filter = EnvFilter::try_from_env("REMIT_LOG").unwrap_or_else(|_| EnvFilter::new(LOG));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match until_stopped(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn until_stopped(args: Serve) -> Result<(), Error> {
    let (mut term, mut int) = (wait_for(SignalKind::terminate())?, wait_for(SignalKind::interrupt())?);
    let listener = match args.listen {
        Some(address) => {
            let bound = TcpListener::bind(address).await;
            Some(bound.map_err(|source| Error::Listen { address, source })?)
        }
        None => None,
    };
    let issuers = args.issuers.as_deref().map(issuers::read).transpose().map_err(LaptopError::from)?;
    let options = Options { dir: args.dir.clone(), tenant: args.tenant, issuers: issuers.unwrap_or_default() };
    let local = Local::open(options, OPEN).await?;
    let (stop, stopped) = watch::channel(false);
    let mut servers = JoinSet::new();
    let address = listener.as_ref().and_then(|l| l.local_addr().ok());
    if let Some(listener) = listener {
        let router = passing_on(local.clone());
        let limits = Limits { per_address: Limits::default().connections, drain: DRAIN, ..Limits::default() };
        servers.spawn(serve(listener, None, router, limits, Arc::new(Metrics::default()), stopped));
    }
    greet(&args.dir, &local, address).await;
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            () = tokio::time::sleep(LOOK) => local.keep().await,
        }
    }
    let _ = stop.send(true);
    while servers.join_next().await.is_some() {}
    local.close().await;
    Ok(())
}

fn wait_for(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Error> {
    signal(kind).map_err(Error::Signal)
}

/// What somebody who starts this for the first time needs next.
async fn greet(dir: &std::path::Path, local: &Arc<Local>, address: Option<SocketAddr>) {
    let state = local.state();
    let role = if local.leads().await { "serving" } else { "another process serves" };
    eprintln!("remit: {role} {}", dir.display());
    if let Some(address) = address {
        eprintln!("  http    http://{address}");
    }
    eprintln!("  socket  unix://{}", state.socket().display());
    eprintln!("  token   {}   for checks (Authorization: Bearer …)", state.token_file().display());
    eprintln!("  records remit decisions list --policy {}", dir.display());
}

/// The loopback listener: what is asked there is asked of whoever leads the folder.
fn passing_on(local: Arc<Local>) -> Router {
    let transport = Arc::new(LocalTransport(local));
    Router::new().fallback(pass_on).layer(middleware::from_fn(only_this_machine)).with_state(transport)
}

async fn pass_on(State(leader): State<Arc<LocalTransport>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            let what = format!("The body can't be read, or is larger than {MAX_BODY} bytes.");
            return HttpError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", what).into_response();
        }
    };
    match leader.send(Request::from_parts(parts, body), BOUNDS).await {
        Ok(answer) => answer.map(axum::body::Body::from),
        Err(SendError::TooLarge(_)) => HttpError::internal().into_response(),
        Err(error) => {
            tracing::warn!(%error, "the folder's leader gave no answer");
            HttpError::unavailable("no_leader", "The process that leads the folder gives no answer now.")
                .into_response()
        }
    }
}

/// A page of the web that has its own name resolved to this machine asks under that name: refused, so that no page gets answers here.
async fn only_this_machine(request: Request, next: Next) -> Response {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok(),
        _ => None,
    };
    let named = host.is_some_and(is_local_host) && request.uri().host().is_none_or(is_local_host);
    if named {
        return next.run(request).await;
    }
    let what = "is not localhost or a loopback address: nothing is answered under other names";
    let mut error = HttpError::field("host_not_local", "Host", what);
    error.status = StatusCode::FORBIDDEN;
    error.into_response()
}

fn is_local_host(host: &str) -> bool {
    let Ok(authority) = host.parse::<axum::http::uri::Authority>() else { return false };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    !host.contains('@')
        && (name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_listened_on_and_answered_to() {
        for good in ["127.0.0.1:0", "127.1.2.3:80", "[::1]:8480"] {
            loopback(good).unwrap();
        }
        for wrong in ["0.0.0.0:80", "[::]:80", "10.0.0.1:80", "localhost:80", "8480"] {
            assert!(loopback(wrong).is_err(), "{wrong}");
        }
        for good in ["localhost", "LOCALHOST:80", "127.0.0.1:8480", "[::1]:80", "[::1]"] {
            assert!(is_local_host(good), "{good}");
        }
        for wrong in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "a@127.0.0.1", "10.0.0.1", ""]
        {
            assert!(!is_local_host(wrong), "{wrong}");
        }
    }
}
