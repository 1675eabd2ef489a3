//! The decision point as an enforcement point sees it: a question, a verdict, and every way in which there is none.
//!
//! Must never turn a missing, late or unreadable answer into an allow.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::api::Delegator;
pub use crate::gate::CallOutcome;

/// Boxed, so that the trait stays object safe.
pub type PdpFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One call of a tool that waits for its answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Question {
    /// Name of the Agent.
    pub agent: String,
    /// `server/name`.
    pub tool: String,
    /// The call's arguments, as they will be sent.
    pub arguments: Map<String, Value>,
    /// Session that Remit issued.
    pub session: Option<String>,
    /// For whom the agent acts.
    pub on_behalf_of: Option<Delegator>,
    /// Digest of the tool's definition as its server gave it.
    pub schema_digest: Option<String>,
    /// `X-Request-ID`.
    pub request_id: Option<String>,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// The call may be made.
    Allow,
    /// It may not.
    Deny,
    /// A human must say so first.
    ApprovalRequired,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What was decided.
    pub ruling: Ruling,
    /// Stable reason code: `denied_by_policy`, `no_permit`, …
    pub code: String,
    /// The author's own word for the reason (`@code`).
    pub rule: Option<String>,
    /// For people and models: the author's `@reason`, or Remit's own sentence.
    pub reason: String,
    /// Id of the decision's record.
    pub decision_id: String,
    /// Groups that must agree, where the ruling is `ApprovalRequired`: `asks[].group` of the answer.
    pub asks: Vec<String>,
}

/// Name that stands for every tool that no package lists: while a tenant observes, calls of those are let through.
pub const ANY_TOOL: &str = "*";

/// A tool of which some call could be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedTool {
    /// `server/name`, or [`ANY_TOOL`].
    pub name: String,
    /// Digest of the definition that was reviewed. One that the server defines otherwise now is not to be shown to a model.
    pub schema_digest: Option<String>,
}

/// Why there is no answer. Every one of these is a refusal of the call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PdpError {
    /// Nobody answers at the address.
    #[error("Remit can't be reached: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("Remit gave no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The question was refused: wrong token, wrong question, not ready.
    #[error("Remit refused the question: {status} {code}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Stable code.
        code: String,
        /// For people.
        message: String,
    },
    /// An answer that is none.
    #[error("Remit's answer can't be read: {0}")]
    Malformed(String),
}

/// Answers questions. Implementations differ only in how the bytes travel.
pub trait Pdp: Send + Sync {
    /// Decides one call.
    fn check<'a>(&'a self, question: &'a Question) -> PdpFuture<'a, Result<Verdict, PdpError>>;
    /// Tools (`server/name`) of which some call by this agent could be allowed, sorted.
    fn tools<'a>(&'a self, agent: &'a str) -> PdpFuture<'a, Result<Vec<String>, PdpError>>;
    /// The same for calls in this session, with what the package knows of each; and [`ANY_TOOL`] while the tenant observes.
    fn listed<'a>(
        &'a self,
        agent: &'a str,
        _session: Option<&'a str>,
    ) -> PdpFuture<'a, Result<Vec<ListedTool>, PdpError>> {
        let listed = |name| ListedTool { name, schema_digest: None };
        Box::pin(async move { Ok(self.tools(agent).await?.into_iter().map(listed).collect()) })
    }
    /// Reports what became of an allowed call. A report that is lost changes no decision.
    fn report<'a>(
        &'a self,
        decision_id: &'a str,
        outcome: CallOutcome,
        took: Duration,
    ) -> PdpFuture<'a, Result<(), PdpError>>;
    /// Called once, before the process ends: whatever was decided in this process is kept. Others have nothing to do.
    fn close(&self) -> PdpFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
