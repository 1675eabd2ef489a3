//! `remit mcp-proxy`: stands between an MCP client and its server, and checks every call of a tool.
//!
//! Must never print anything but the protocol on standard output.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::mcp_http::{HttpArgs, HttpError};
use super::pdp::{OpenError, PdpArgs};
use super::terminal::failed;
use crate::enforce::mcp::child::Server;
use crate::enforce::mcp::courier::Courier;
use crate::enforce::mcp::server_name::{is_server_name, of_command};
use crate::enforce::mcp::stdio::{Connection, Ended};
use crate::enforce::mcp::{Relay, Settings};

/// What a decision point may take beyond its own timeout before it counts as none.
const MARGIN: Duration = Duration::from_secs(1);

/// Checks every tool call between an MCP client and its server: put it before the server's command, or before its URL.
#[derive(Debug, Args)]
pub struct McpProxy {
    #[command(flatten)]
    pdp: PdpArgs,
    /// Name of the server, the first half of its tools' names [default: from COMMAND: `…/server-filesystem` is `filesystem`]
    #[arg(long, value_name = "NAME", value_parser = server_name)]
    server: Option<String>,
    /// The server may not ask the client's model, even where the client offers it
    #[arg(long)]
    no_sampling: bool,
    /// The server may not ask the client's user, even where the client offers it
    #[arg(long)]
    no_elicitation: bool,
    #[command(flatten)]
    http: HttpArgs,
    /// Command that starts the server and its arguments; `--` before it is optional
    #[arg(
        trailing_var_arg = true,
        required_unless_present = "upstream",
        conflicts_with = "upstream",
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

fn server_name(text: &str) -> Result<String, String> {
    let wrong = "expected at most 63 of a-z, 0-9, `.`, `_` and `-`, with a letter or digit first";
    if is_server_name(text) { Ok(text.to_owned()) } else { Err(wrong.into()) }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("--server NAME is needed: the command or URL does not say what the server is called")]
    Unnamed,
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{}: {error}", command.display())]
    Start { command: OsString, error: std::io::Error },
    #[error("the MCP server ended: {0}")]
    Ended(std::process::ExitStatus),
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Runs until the client or the server ends, or SIGTERM, SIGINT or SIGHUP.
pub fn run(args: McpProxy) -> ExitCode {
    let filter = EnvFilter::try_from_env("REMIT_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = match crate::laptop::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let done = runtime.block_on(proxy(args));
    // A thread may still wait for a line of standard input.
    runtime.shutdown_timeout(Duration::from_millis(100));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// A standard stream as it is, without the buffer and lock of the library's.
fn stream(of: BorrowedFd<'_>) -> std::io::Result<tokio::fs::File> {
    Ok(tokio::fs::File::from_std(of.try_clone_to_owned()?.into()))
}

async fn proxy(args: McpProxy) -> Result<(), Error> {
    // What is wrong with addresses and files is said before anything is opened.
    let http = args.http.prepare().await?;
    let named = || http.as_ref().map_or_else(|| of_command(&args.command), |http| http.server_name());
    let server = args.server.clone().or_else(named).ok_or(Error::Unnamed)?;
    let mut signals = Vec::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        signals.push(signal(kind)?);
    }
    let stop = async move {
        let waiting = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
        futures::future::select_all(waiting).await;
    };
    let (pdp, agent) = args.pdp.open().await?;
    let settings = Settings {
        server,
        agent: agent.clone(),
        session: args.pdp.session.clone(),
        on_behalf_of: args.pdp.on_behalf_of.clone(),
        no_sampling: args.no_sampling,
        no_elicitation: args.no_elicitation,
    };
    if let Some(http) = http {
        http.serve(settings, pdp.clone(), args.pdp.timeout + MARGIN, stop).await;
        pdp.close().await;
        return Ok(());
    }
    let (courier, answers) = Courier::new(pdp.clone(), agent, args.pdp.timeout + MARGIN);
    let courier = courier.in_session(settings.session.clone());
    let connection = Connection::new(Relay::new(settings), courier, answers);
    let done = match Server::start(&args.command) {
        Ok(server) => connection
            .run((stream(std::io::stdin().as_fd())?, stream(std::io::stdout().as_fd())?), server, stop)
            .await
            .map_err(Error::System),
        Err(error) => Err(Error::Start { command: args.command.first().cloned().unwrap_or_default(), error }),
    };
    pdp.close().await;
    match done? {
        Ended::ByClient => Ok(()),
        Ended::ByServer(status) => Err(Error::Ended(status)),
    }
}
