//! The commands of `remit` / `kubectl remit`. Exit codes: 0 pass, 1 verdict fail, 2 usage or error.
//!
//! One file a command: its arguments and `run`. A new command is a module, a line in `Command` and a line in `main`.

mod audit;
mod check;
pub mod client;
mod decisions;
mod diff;
mod generate;
mod hook;
mod init;
mod keygen;
mod mcp_http;
mod mcp_proxy;
pub mod operator;
mod output;
mod package;
pub mod pdp;
mod policy;
mod postgres;
mod prospects;
mod prove;
mod replay;
mod rollout;
mod serve;
mod suggest;
mod terminal;
mod test;
mod tools;
mod why;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Says what each AI agent may do, for whom, right now.
#[derive(Debug, Parser)]
#[command(name = "remit", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Init),
    #[command(subcommand)]
    Tools(tools::Tools),
    Test(test::Test),
    #[command(subcommand)]
    Package(package::Package),
    Policy(policy::PolicyArgs),
    Rollout(rollout::RolloutArgs),
    Keygen(keygen::Keygen),
    Operator(Box<crate::operator::options::Options>),
    #[command(subcommand)]
    Postgres(postgres::Postgres),
    #[command(subcommand)]
    Hook(hook::Hook),
    Serve(serve::Serve),
    McpProxy(Box<mcp_proxy::McpProxy>),
    Check(Box<check::Check>),
    Audit(audit::AuditArgs),
    Decisions(decisions::DecisionsArgs),
    Why(why::WhyArgs),
    WhoCan(prospects::WhoCan),
    WhatCan(prospects::WhatCan),
    Suggest(Box<suggest::Suggest>),
    Diff(Box<diff::DiffArgs>),
    Prove(Box<prove::Prove>),
    Replay(Box<replay::ReplayArgs>),
    /// Proves one question from standard input; for Remit's own use
    #[command(hide = true, name = crate::proof::worker::COMMAND)]
    ProveWorker,
    #[command(hide = true)]
    Generate(generate::Generate),
}

/// Parses the arguments and runs the command.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Init(args) => init::run(&args),
        Command::Tools(args) => block_on(tools::run(args)),
        Command::Test(args) => test::run(&args),
        Command::Package(args) => package::run(&args),
        Command::Policy(args) => block_on(policy::run(args)),
        Command::Rollout(args) => block_on(rollout::run(args)),
        Command::Keygen(args) => keygen::run(&args),
        Command::Operator(args) => operator::run(*args),
        Command::Postgres(command) => block_on(postgres::run(command)),
        Command::Hook(command) => hook::run(&command),
        Command::Serve(args) => block_on(serve::run(args)),
        Command::McpProxy(args) => mcp_proxy::run(*args),
        Command::Check(args) => block_on(check::run(*args)),
        Command::Audit(args) => block_on(audit::run(args)),
        Command::Decisions(args) => block_on(decisions::run(args)),
        Command::Why(args) => block_on(why::run(args)),
        Command::WhoCan(args) => block_on(prospects::who_can(args)),
        Command::WhatCan(args) => block_on(prospects::what_can(args)),
        Command::Suggest(args) => block_on(suggest::run(*args)),
        Command::Diff(args) => block_on(diff::run(*args)),
        Command::Prove(args) => block_on(prove::run(*args)),
        Command::Replay(args) => block_on(replay::run(*args)),
        Command::ProveWorker => prove::worker(),
        Command::Generate(args) => generate::run(&args),
    }
}

/// Runs a command that talks to somebody, and may have to lead a folder meanwhile.
fn block_on(command: impl Future<Output = ExitCode>) -> ExitCode {
    match crate::laptop::runtime() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => terminal::failed(&error),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    /// What clap finds out about arguments only when the command runs: names that are used twice, say.
    #[test]
    fn every_command_can_be_parsed() {
        super::Cli::command().debug_assert();
    }
}
