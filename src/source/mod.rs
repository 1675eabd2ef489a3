//! Where objects come from, and the snapshot that is built of them. Both sources, Kubernetes and a folder, feed the same snapshot.
//!
//! Nothing here decides a check or writes an object.

pub mod compile;
pub mod index;
pub mod kubernetes;
pub mod recorded;
pub mod snapshot;
