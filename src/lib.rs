//! Remit says what each AI agent may do, for whom, right now. docs/concepts.md has the words.
#![forbid(unsafe_code)]

pub mod api;
pub mod cli;
pub mod controllers;
pub mod enforce;
pub mod fault;
pub mod gate;
pub mod laptop;
pub mod lifecycle;
pub mod operator;
pub mod package;
pub mod policy;
pub mod proof;
pub mod replay;
pub mod server;
pub mod source;
pub mod store;
pub mod suggest;
pub mod transport;
