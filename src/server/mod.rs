//! axum routers. Thin: they read, ask the pure rooms, and answer; nothing here decides.

pub mod admission;
