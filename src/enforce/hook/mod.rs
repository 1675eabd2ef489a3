//! Hooks of coding agents: a program that the agent starts before it uses one of its own tools (shell, edit, web) or one of an
//! MCP server, with the call on stdin, and whose answer it obeys.
//!
//! The agents' contracts are open by default: a hook that crashes, is killed or prints nonsense lets the call through. So every
//! way of having no answer must end in the one code that blocks, with a reason on stderr and nothing on stdout; what this process
//! can't see to (its own absence, its own death) the installed command line does. docs/hooks.md has the contracts.

mod document;
mod file;
mod input;
mod install;
mod reply;

use std::time::Duration;

pub use document::DocumentError;
pub use file::{FileError, Written, read as read_settings, rewrite};
pub use input::{HookCall, InputError, MAX_INPUT, read};
pub use install::{InstallError, Installation, Outcome as InstallOutcome, install, uninstall};
pub use reply::{BLOCKED, Reply};

use super::{Pdp, Question};
use crate::api::Delegator;

/// Coding agents with a published contract for hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodingAgent {
    /// Claude Code: event `PreToolUse`.
    ClaudeCode,
    /// Gemini CLI: event `BeforeTool`.
    GeminiCli,
}

impl CodingAgent {
    /// Its name on the command line, and the server of its own tools: `claude-code/Bash`.
    pub fn name(self) -> &'static str {
        match self {
            CodingAgent::ClaudeCode => "claude-code",
            CodingAgent::GeminiCli => "gemini-cli",
        }
    }

    /// The event that is answered: the one before a tool is used.
    pub fn event(self) -> &'static str {
        match self {
            CodingAgent::ClaudeCode => "PreToolUse",
            CodingAgent::GeminiCli => "BeforeTool",
        }
    }
}

/// As whom to ask, and what an allow means.
#[derive(Clone, Debug, Default)]
pub struct HookOptions {
    /// Name of the Agent.
    pub agent: String,
    /// Session that Remit issued. The coding agent's own session id is none.
    pub session: Option<String>,
    /// For whom the agent acts.
    pub on_behalf_of: Option<Delegator>,
    /// An allow leaves the call to the coding agent's own permission prompts, instead of answering them.
    pub defer: bool,
}

/// Answers one event. `within` is for the question alone; the caller bounds the whole.
pub async fn answer(agent: CodingAgent, bytes: &[u8], pdp: &dyn Pdp, options: &HookOptions, within: Duration) -> Reply {
    let call = match read(agent, bytes) {
        Ok(call) => call,
        Err(error) => return Reply::blocked(&error),
    };
    let question = Question {
        agent: options.agent.clone(),
        tool: call.tool.clone(),
        arguments: call.arguments,
        session: options.session.clone(),
        on_behalf_of: options.on_behalf_of.clone(),
        schema_digest: None,
        request_id: call.id,
    };
    match tokio::time::timeout(within, pdp.check(&question)).await {
        Ok(Ok(verdict)) => Reply::to(agent, &verdict, call.prompts, options.defer),
        Ok(Err(error)) => Reply::blocked(&error),
        Err(_) => Reply::blocked(&super::PdpError::Timeout(within)),
    }
}

#[cfg(test)]
mod tests;
