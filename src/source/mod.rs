//! Where objects come from. What comes out is the same whatever it came from.

pub mod folder;
