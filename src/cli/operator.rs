//! `remit operator`: its log, its runtime and its exit code. What runs is in `crate::operator`.

use std::process::ExitCode;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::operator::options::{LogFormat, Options};

/// Stack of the runtime's threads: Cedar's evaluator recurses.
const STACK: usize = 8 * 1024 * 1024;

/// Runs until SIGTERM or SIGINT.
pub fn run(args: Options) -> ExitCode {
    let filter = EnvFilter::try_from_env("REMIT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Text => log.with_ansi(false).init(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(STACK).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("remit operator: the runtime can't start: {error}");
            return ExitCode::from(2);
        }
    };
    let done = runtime.block_on(crate::operator::run(args));
    // What still runs on a blocking thread has nobody left to answer to.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the operator stops");
            eprintln!("remit operator: {error}");
            ExitCode::from(2)
        }
    }
}
