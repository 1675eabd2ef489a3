//! Enforcement points: they ask before an agent's call is made, and make it only after an allow.
//!
//! Nothing here decides: every answer comes from the same server, over the same bytes, as everybody else's. Whatever goes wrong
//! on the way to the answer is a refusal.

pub mod authzen;
pub mod hook;
pub mod http;
pub mod listing;
pub mod local;
pub mod mcp;
mod pdp;

pub use pdp::*;
