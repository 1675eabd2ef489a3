//! Where objects come from, and the snapshot that is built of them. What comes out is the same whatever it came from.
//!
//! Nothing here decides a check, or writes anything but the heartbeat.

pub mod compile;
pub mod directory;
pub mod feed;
pub mod folder;
mod follow;
mod heartbeat;
pub mod index;
pub mod judge;
pub mod kubernetes;
mod object;
pub mod past;
pub mod recorded;
pub mod routing;
pub mod snapshot;
