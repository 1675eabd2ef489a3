//! What the hook answers: exit code, stdout and stderr, in the words of each coding agent.
//!
//! Must never print an answer that the agent could take for "go on" where the verdict is another: what an agent has no word for
//! is a denial.

use serde_json::{Value, json};

use super::CodingAgent;
use crate::enforce::{Ruling, Verdict};
use crate::gate::OBSERVED;

/// The exit code that blocks in every contract. Any other but 0 lets the call through.
pub const BLOCKED: u8 = 2;
/// The ask that the human at the keyboard may answer.
const DELEGATOR: &str = "delegator";

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// One JSON object, or nothing.
    pub stdout: String,
    /// For the model and the log, where the code is [`BLOCKED`].
    pub stderr: String,
    /// 0 or [`BLOCKED`].
    pub exit: u8,
}

impl Reply {
    /// No answer could be had. The text begins with a word, so that no agent takes it for JSON.
    pub fn blocked(why: &dyn std::fmt::Display) -> Self {
        let why: String = why.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let stderr = format!("remit: this call is blocked: {why}\n");
        Self { stdout: String::new(), stderr, exit: BLOCKED }
    }

    /// The verdict. `prompts`: whether an `ask` would reach a human.
    pub fn to(agent: CodingAgent, verdict: &Verdict, prompts: bool, defer: bool) -> Self {
        match verdict.ruling {
            // Nobody permitted what is only observed: the agent's own prompts stay, as they were before there was a hook.
            Ruling::Allow if defer || verdict.code == OBSERVED => Self::quiet(),
            Ruling::Allow => Self::say(allow(agent, &verdict.decision_id)),
            Ruling::Deny => Self::say(deny(agent, &denied(verdict))),
            Ruling::ApprovalRequired if prompts && for_the_delegator(verdict) => Self::say(json!({
                "hookSpecificOutput": {
                    "hookEventName": agent.event(),
                    "permissionDecision": "ask",
                    "permissionDecisionReason": signed(&verdict.reason, verdict),
                }
            })),
            Ruling::ApprovalRequired => Self::say(deny(agent, &awaiting(verdict))),
        }
    }

    fn quiet() -> Self {
        Self { stdout: String::new(), stderr: String::new(), exit: 0 }
    }

    fn say(value: Value) -> Self {
        Self { stdout: format!("{value}\n"), stderr: String::new(), exit: 0 }
    }
}

/// Every ask is for the human on whose behalf the agent acts.
fn for_the_delegator(verdict: &Verdict) -> bool {
    !verdict.asks.is_empty() && verdict.asks.iter().all(|group| group == DELEGATOR)
}

fn allow(agent: CodingAgent, id: &str) -> Value {
    match agent {
        CodingAgent::ClaudeCode => json!({
            "hookSpecificOutput": {
                "hookEventName": agent.event(),
                "permissionDecision": "allow",
                "permissionDecisionReason": format!("allowed by policy [decision {id}]"),
            }
        }),
        CodingAgent::GeminiCli => json!({"decision": "allow"}),
    }
}

fn deny(agent: CodingAgent, reason: &str) -> Value {
    match agent {
        CodingAgent::ClaudeCode => json!({
            "hookSpecificOutput": {
                "hookEventName": agent.event(),
                "permissionDecision": "deny",
                "permissionDecisionReason": reason,
            }
        }),
        CodingAgent::GeminiCli => json!({"decision": "deny", "reason": reason}),
    }
}

fn denied(verdict: &Verdict) -> String {
    let word = verdict.rule.as_deref().unwrap_or(&verdict.code);
    signed(&format!("denied ({word}): {}", verdict.reason), verdict)
}

fn awaiting(verdict: &Verdict) -> String {
    let name = |group: &String| match group.as_str() {
        DELEGATOR => "the person for whom you act (whom this session can't ask)".to_owned(),
        group => format!("{group:?}"),
    };
    let groups: Vec<String> = verdict.asks.iter().map(name).collect();
    let whom = if groups.is_empty() { "somebody who may approve it".to_owned() } else { groups.join(" and ") };
    let word = verdict.rule.as_deref().unwrap_or(&verdict.code);
    let text = format!(
        "refused ({word}): {} The call was not made: it needs approval by {whom}. Don't try it in another way; say what you \
         wanted to do and why, and go on with something else.",
        ended(&verdict.reason)
    );
    signed(&text, verdict)
}

fn ended(text: &str) -> String {
    let text = text.trim_end();
    if text.ends_with(['.', '!', '?']) { text.to_owned() } else { format!("{text}.") }
}

fn signed(text: &str, verdict: &Verdict) -> String {
    format!("{text} [decision {}]", verdict.decision_id)
}
