//! Every integration test, in one binary. `support` starts a real control plane and the operator.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod actions;
mod admission;
mod api;
mod arms;
mod attacks;
mod chart;
mod check_command;
mod checks;
mod control_plane;
mod gitops;
mod hook;
mod issuers;
mod laptop;
mod manifests;
mod mcp_attacks;
mod mcp_peers;
mod observe;
mod operator;
mod packages;
mod records;
mod sources;
mod support;
mod tools_import;
mod why;
