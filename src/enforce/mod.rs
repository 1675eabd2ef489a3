//! Enforcement points: they ask before an agent's call is made, and make it only after an allow.
//!
//! Nothing here decides: every answer comes from the same server, over the same bytes, as everybody else's. Whatever goes wrong
//! on the way to the answer is a refusal.

<<<<<<< HEAD
pub mod http;
pub mod listing;
=======
pub mod authzen;
pub mod hook;
pub mod local;
>>>>>>> a5aa2a170194a82e108de5394aa2b3f16c527b53
pub mod mcp;
mod pdp;

pub use pdp::*;
