//! The server's process: started without Remit's secrets, ended with everything that it started.

use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// How long a server may take to end by itself, and again after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts it in a process group of its own, so that a terminal's Ctrl-C reaches Remit, which ends it in order. Its environment
    /// lacks `REMIT_*`: a server that knows the token could ask, and report, in the agent's name.
    pub fn start(command: &[OsString]) -> io::Result<(Self, ChildStdin, ChildStdout)> {
        let (program, args) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"REMIT_")) {
            command.env_remove(name);
        }
        let mut child = command.process_group(0).kill_on_drop(true).spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => Ok((Self { child }, stdin, stdout)),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits until it has ended. Safe to drop and call again.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Its input is closed: gives it time to end by itself, then ends its whole process group.
    pub async fn end(&mut self) -> io::Result<ExitStatus> {
        for signal in [Signal::TERM, Signal::KILL] {
            if let Ok(status) = tokio::time::timeout(GRACE, self.child.wait()).await {
                return status;
            }
            self.signal(signal);
        }
        self.child.wait().await
    }

    /// Only while it has not been waited for: until then nobody else can have its id.
    fn signal(&self, signal: Signal) {
        let Some(group) = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) else { return };
        if let Err(error) = kill_process_group(group, signal) {
            tracing::warn!(%error, "the MCP server's processes can't be signalled");
        }
    }
}
