//! The commands of `remit` / `kubectl remit`. Exit codes: 0 pass, 1 verdict fail, 2 usage or error.

mod generate;

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
    #[command(hide = true)]
    Generate(generate::Generate),
}

/// Parses the arguments and runs the command.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Generate(args) => generate::run(&args),
    }
}
