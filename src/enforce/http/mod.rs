//! Streamable HTTP on both sides of the relay: an agent's client here, its MCP server behind a URL.
//!
//! ```text
//! sse         a stream of bytes to events, strictly
//! headers     headers that repeat what a message says: compared on one side, derived from the body on the other
//! upstream    the server's client: credentials, TLS, limits
//! connection  one relay and the requests that wait at it
//! sessions    which connection a request belongs to
//! guard       who may speak with the proxy at all
//! listen      the endpoint
//! ```
//!
//! In the older era one `initialize` makes a session, and a session is one connection. Requests of the newer era (2026-07-28) stand
//! for themselves and share one.

mod connection;
mod guard;
mod headers;
mod listen;
mod sessions;
mod sse;
mod upstream;

pub use guard::{Guard, ListenArgs};
pub use headers::Repeated;
pub use listen::{PATH, serve, url};
pub use upstream::{Reply, Route, Upstream, UpstreamArgs, UpstreamError};
