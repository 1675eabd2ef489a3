//! Tools of an MCP server, proposed for a package: what a reviewer is shown, and what is written into `package.yaml`.
//!
//! A server's words decide nothing. They become proposals that a person reviews; a tier that is there is never changed, and a tool
//! that the server no longer offers is never deleted. Pure: nothing here reads a file or speaks with a server.

mod compare;
mod manifest;
mod tier;

pub use compare::{Added, Changed, Difference, Offered, Refused, compare};
pub use manifest::{EditError, Manifest};
pub use tier::{Proposal, propose};
