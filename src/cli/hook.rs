//! `remit hook`: answers a coding agent before it uses a tool, and installs itself into the agent's settings.
//!
//! Only exit code 2 blocks; every other failure of a hook lets the call through. So whatever happens here, a panic and a hang
//! included, ends in 2 with a reason on stderr, and stdout has one whole answer or nothing.

mod install;

use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::pdp::PdpArgs;
use crate::enforce::hook::{self, BLOCKED, CodingAgent, HookOptions, MAX_INPUT, Reply};

/// Beyond `--timeout`, for everything that is not the question.
const GRACE: Duration = Duration::from_millis(500);
/// For what is left to do once the answer is out.
const CLOSING: Duration = Duration::from_millis(300);

/// Answers a coding agent before it uses one of its tools, and installs itself into the agent's settings.
#[derive(Debug, Subcommand)]
pub enum Hook {
    /// Answers Claude Code (event PreToolUse, on stdin)
    ClaudeCode(Answer),
    /// Answers Gemini CLI (event BeforeTool, on stdin)
    GeminiCli(Answer),
    Install(install::Install),
}

/// Where to ask, and what an allow means.
#[derive(Debug, Args)]
pub struct Answer {
    #[command(flatten)]
    pdp: PdpArgs,
    /// Leave what the policy allows to the agent's own permission prompts, instead of answering them
    #[arg(long)]
    defer: bool,
}

/// Runs the command.
pub fn run(command: &Hook) -> ExitCode {
    match command {
        Hook::ClaudeCode(args) => answer(CodingAgent::ClaudeCode, args),
        Hook::GeminiCli(args) => answer(CodingAgent::GeminiCli, args),
        Hook::Install(args) => install::run(args),
    }
}

fn answer(agent: CodingAgent, args: &Answer) -> ExitCode {
    let begun = Instant::now();
    // A panic's own exit code, 101, would let the call through.
    std::panic::set_hook(Box::new(|_| block("Remit failed (a panic)")));
    watch(args.pdp.timeout + GRACE);
    let mut input = Vec::new();
    let read = std::io::stdin().lock().take(MAX_INPUT as u64 + 1).read_to_end(&mut input);
    if let Err(error) = read {
        return send(&Reply::blocked(&format_args!("stdin can't be read: {error}")));
    }
    let runtime = match crate::laptop::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return send(&Reply::blocked(&error)),
    };
    runtime.block_on(async {
        let (pdp, name) = match args.pdp.open().await {
            Ok(open) => open,
            Err(error) => return send(&Reply::blocked(&error)),
        };
        let options = HookOptions {
            agent: name,
            session: args.pdp.session.clone(),
            on_behalf_of: args.pdp.on_behalf_of.clone(),
            defer: args.defer,
        };
        let left = args.pdp.timeout.saturating_sub(begun.elapsed());
        let code = send(&hook::answer(agent, &input, pdp.as_ref(), &options, left).await);
        // The answer is out, and what it says is recorded: whoever leads the folder next can do without this.
        let _ = tokio::time::timeout(CLOSING, pdp.close()).await;
        code
    })
}

/// Prints the reply. An answer that could not be written whole is none.
fn send(reply: &Reply) -> ExitCode {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(reply.stdout.as_bytes()).and_then(|()| out.flush());
    let mut err = std::io::stderr().lock();
    let _ = err.write_all(reply.stderr.as_bytes());
    match written {
        Ok(()) => ExitCode::from(reply.exit),
        Err(_) => ExitCode::from(BLOCKED),
    }
}

/// Ends the process when nothing else did: a hang would last until the agent's own limit, and then let the call through.
fn watch(limit: Duration) {
    let watching = std::thread::Builder::new().spawn(move || {
        std::thread::sleep(limit);
        block("no answer in time");
    });
    if watching.is_err() {
        block("no thread can be started");
    }
}

fn block(why: &str) -> ! {
    let _ = std::io::stderr().write_all(Reply::blocked(&why).stderr.as_bytes());
    std::process::exit(i32::from(BLOCKED))
}
