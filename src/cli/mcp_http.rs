//! `remit mcp-proxy --upstream URL --listen ADDRESS`: the proxy before a server that speaks streamable HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::enforce::Pdp;
use crate::enforce::http::{Guard, ListenArgs, Upstream, UpstreamArgs, UpstreamError, serve, url};
use crate::enforce::mcp::Settings;
use crate::enforce::mcp::server_name::of_url;

/// The server's URL and where to listen for agents.
#[derive(Clone, Debug, Args)]
pub struct HttpArgs {
    /// URL of the MCP server (streamable HTTP), instead of a command; https, or http to this machine
    #[arg(long, value_name = "URL", requires = "listen", help_heading = "MCP server over HTTP")]
    upstream: Option<String>,
    #[command(flatten)]
    server: UpstreamArgs,
    /// Address to listen on for agents, at path /mcp; port 0 takes a free one, which the log names
    #[arg(long, value_name = "ADDRESS:PORT", requires = "upstream", help_heading = "Listening")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    clients: ListenArgs,
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The server's address, or a file for it.
    #[error("{0}")]
    Upstream(#[from] UpstreamError),
    /// Who may speak with the proxy.
    #[error("{0}")]
    Guard(String),
    /// The address is taken, or not ours.
    #[error("--listen {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        error: std::io::Error,
    },
}

/// Bound, and ready to serve.
pub struct Http {
    name: Option<String>,
    upstream: Upstream,
    guard: Guard,
    listener: TcpListener,
    address: SocketAddr,
}

impl HttpArgs {
    /// Reads the files and binds the address. None: the server is a command.
    pub async fn prepare(&self) -> Result<Option<Http>, HttpError> {
        let (Some(server), Some(address)) = (&self.upstream, self.listen) else { return Ok(None) };
        let upstream = Upstream::new(server, &self.server)?;
        let guard = Guard::new(address, &self.clients).map_err(HttpError::Guard)?;
        let failed = |error| HttpError::Listen { address, error };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Some(Http { name: of_url(server), upstream, guard, listener, address }))
    }
}

impl Http {
    /// What the URL calls the server.
    pub fn server_name(&self) -> Option<String> {
        self.name.clone()
    }

    /// Serves until `stop` is done, and the requests under way are answered.
    pub async fn serve(self, settings: Settings, pdp: Arc<dyn Pdp>, limit: Duration, stop: impl Future<Output = ()>) {
        let (stopped, stopping) = watch::channel(false);
        eprintln!("remit mcp-proxy: agents reach {} at {}", settings.server, url(self.address));
        let serving = serve(self.listener, self.guard, self.upstream, settings, pdp, limit, stopping);
        let ending = async {
            stop.await;
            // An error: nobody serves any more.
            let _ = stopped.send(true);
        };
        tokio::join!(serving, ending);
    }
}
