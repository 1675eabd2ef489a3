//! `remit mcp-proxy`: between an MCP client and its server, checking every `tools/call`.
//!
//! ```text
//! frame     bytes to lines, and what a line may not hold
//! message   a line to a JSON-RPC message, by its exact members
//! methods   which methods pass in which direction and era
//! tools     what the server listed, and the digest of a definition
//! relay     the connection's state: what is passed, asked, answered (pure)
//! answer    what the proxy itself says to the client
//! courier   questions and reports to the decision point, and its answers
//! child     the server's process
//! stdio     the transport over a child process
//! ```
//!
//! The messages are framed here and not by an SDK: the bytes that were checked are the bytes that are sent. Whatever can't be
//! read in one way only, or is not known, does not pass.

mod answer;
pub mod child;
pub mod courier;
pub mod frame;
mod message;
pub mod methods;
mod relay;
pub mod server_name;
pub mod stdio;
mod tools;

pub use answer::error as error_line;
pub use message::{Id, Kind, Members, Message};
pub use relay::{Action, Relay, Settings};
pub use tools::{Page, definition_digest};
