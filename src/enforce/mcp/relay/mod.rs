//! What passes between a client and its MCP server, and what becomes of every `tools/call`. Pure: no I/O, no clock, no tasks.
//!
//! A transport feeds it whole messages and answers of the decision point, and does what it returns, in that order:
//!
//! - [`Relay::from_client`], [`Relay::from_server`]: the bytes of one message (one line of stdio, one body of an HTTP request, the
//!   data of one server-sent event).
//! - [`Relay::decided`], [`Relay::listed`]: the answers to [`Action::Check`] and [`Action::Tools`]. Each ticket is answered once,
//!   also when nobody waits any more: an allow that comes too late is reported as not sent.
//! - [`Relay::cancel`]: the client has gone away from one request (HTTP: it closed the response). [`Relay::client_ended`],
//!   [`Relay::server_ended`]: one side has gone for good.
//!
//! One relay serves one connection: a stdio process, an `Mcp-Session-Id`, or whatever else shares ids and a list of tools. An
//! [`Action::ToClient`] with `answers` belongs to the response of that request; without, it goes where the message that caused it
//! came from. An [`Action::ToServer`] names its id and method, for transports that need headers.
//!
//! Must never let a `tools/call` out that was not allowed, nor other bytes than the ones that were checked; must never pass a
//! method that is not listed in [`super::methods`], nor an answer that nobody asked for.

mod calls;
mod client;
mod server;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::answer;
use super::message::Id;
use super::methods::{Capabilities, Era};
use super::tools::{Catalogue, Page};
use crate::api::Delegator;
use crate::enforce::{CallOutcome, ListedTool, PdpError, Question};

/// Requests of one side that may wait for their answer at once.
const MAX_PENDING: usize = 1024;
/// Calls that may wait for Remit at once, and their bytes.
const MAX_HELD: usize = 256;
const MAX_HELD_BYTES: usize = 32 << 20;
/// Running tasks whose outcome is still to be reported.
const MAX_TASKS: usize = 4096;
/// Ids of the relay's own requests begin with this; a client's may not.
const OWN: &str = "remit:";

/// How a connection is judged.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Name of the server in the names of its tools. Local configuration, never what the server says.
    pub server: String,
    /// Agent that the client is.
    pub agent: String,
    /// Session that Remit issued.
    pub session: Option<String>,
    /// For whom the agent acts.
    pub on_behalf_of: Option<Delegator>,
    /// The server may not ask the client's model, even where the client offers it.
    pub no_sampling: bool,
    /// The server may not ask the client's user, even where the client offers it.
    pub no_elicitation: bool,
}

/// What the transport is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send this message to the client.
    ToClient {
        /// The message, without a line end.
        line: Vec<u8>,
        /// The client's request that it answers.
        answers: Option<Id>,
    },
    /// Send this message to the server.
    ToServer {
        /// The message, without a line end: the client's own bytes, or the relay's own request.
        line: Vec<u8>,
        /// The request's id, if it is one.
        id: Option<Id>,
        /// Its method, if it is a request or notification.
        method: Option<String>,
    },
    /// Ask the decision point, and give the answer to [`Relay::decided`].
    Check {
        /// For the answer.
        ticket: u64,
        /// What to ask.
        question: Box<Question>,
    },
    /// Ask the decision point for the agent's tools, and give them to [`Relay::listed`].
    Tools {
        /// For the answer.
        ticket: u64,
    },
    /// Tell the decision point what became of a call.
    Report {
        /// The decision that allowed it.
        decision_id: String,
        /// What became of it.
        outcome: CallOutcome,
        /// From sending the call to its answer.
        took: Duration,
    },
    /// Something was refused or dropped: for the log.
    Note(String),
}

/// A call that is held until Remit has answered.
#[derive(Clone, Debug)]
struct Call {
    line: Vec<u8>,
    era: Era,
    offers: Capabilities,
    name: String,
    arguments: Map<String, Value>,
    /// `_meta` of the request, for the relay's own request of the same era.
    meta: Option<Value>,
    /// Digest of the definition that was asked about.
    digest: String,
}

/// A call that Remit allowed and the server has.
#[derive(Clone, Debug)]
struct Allowed {
    decision_id: String,
    sent: Instant,
}

/// What a request that was passed on is, as far as its answer is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Passed {
    Initialize,
    List {
        cursor: Option<String>,
        epoch: u64,
    },
    /// Asks for a task's state, or its result.
    Task {
        id: Option<String>,
        result: bool,
    },
    Other,
}

/// A client's request that is not answered yet.
#[derive(Clone, Debug)]
enum Pending {
    /// The server has it.
    Passed { what: Passed, offers: Capabilities },
    /// A call that waits for the list of tools.
    Waiting(Box<Call>),
    /// A call that waits for Remit.
    Checking { ticket: u64, call: Box<Call> },
    /// A call that the server has.
    Sent { allowed: Allowed, offers: Capabilities },
    /// A list of tools that waits for Remit.
    Filtering { ticket: u64, page: Box<Page> },
}

/// The relay's own walk through `tools/list`.
#[derive(Debug)]
struct Walk {
    number: u64,
    cursor: Option<String>,
    pages: usize,
    epoch: u64,
    meta: Option<Value>,
}

/// State of one connection.
#[derive(Debug)]
pub struct Relay {
    settings: Settings,
    pending: HashMap<Id, Pending>,
    /// Answers of the decision point on their way, and who waits for them.
    tickets: HashMap<u64, Option<Id>>,
    next_ticket: u64,
    held_bytes: usize,
    /// The server's requests that the client has not answered.
    asked: HashSet<Id>,
    catalogue: Catalogue,
    /// How often the server said that its list of tools changed.
    epoch: u64,
    walk: Option<Walk>,
    next_own: u64,
    /// Calls that wait for the walk, in their order.
    waiting: Vec<Id>,
    /// What the client offered in `initialize`.
    announced: Option<Capabilities>,
    initialized: bool,
    /// What the client offered in its newest modern request.
    modern: Capabilities,
    tasks: HashMap<String, Allowed>,
    ended: bool,
}

impl Relay {
    /// A new connection.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            pending: HashMap::new(),
            tickets: HashMap::new(),
            next_ticket: 0,
            held_bytes: 0,
            asked: HashSet::new(),
            catalogue: Catalogue::default(),
            epoch: 0,
            walk: None,
            next_own: 0,
            waiting: Vec::new(),
            announced: None,
            initialized: false,
            modern: Capabilities::default(),
            tasks: HashMap::new(),
            ended: false,
        }
    }

    /// Whether this is the id of a request of the relay's own: no client's begins like it.
    pub fn is_own(id: &Id) -> bool {
        matches!(id, Id::Text(text) if text.starts_with(OWN))
    }

    /// Whether answers of the decision point are still on their way.
    pub fn undecided(&self) -> bool {
        !self.tickets.is_empty()
    }

    /// Somebody else has seen another list of tools: the next call is judged by a new one.
    pub fn outdated(&mut self) {
        self.epoch += 1;
    }

    /// The client has gone away from this request. True if the server has it, and is to be told.
    pub fn cancel(&mut self, id: &Id, now: Instant) -> (bool, Vec<Action>) {
        let mut out = Vec::new();
        let told = match self.forget(id) {
            // `initialize` can't be taken back, so its answer is still wanted.
            Some(kept @ Pending::Passed { what: Passed::Initialize, .. }) => {
                self.pending.insert(id.clone(), kept);
                false
            }
            Some(Pending::Sent { allowed, .. }) => {
                out.push(report(&allowed, CallOutcome::Cancelled, now));
                true
            }
            Some(Pending::Passed { .. }) => true,
            Some(Pending::Waiting(_) | Pending::Checking { .. } | Pending::Filtering { .. }) | None => false,
        };
        (told, out)
    }

    /// The client has gone: what was not sent is never sent. What the server still answers may be passed on.
    pub fn client_ended(&mut self) {
        let held: Vec<Id> = self
            .pending
            .iter()
            .filter(|(_, p)| !matches!(p, Pending::Passed { .. } | Pending::Sent { .. }))
            .map(|(id, _)| id.clone())
            .collect();
        for id in held {
            self.forget(&id);
        }
        self.ended = true;
    }

    /// The server has gone: everything that waits for it gets an error. `unsent` are the requests that never reached it.
    pub fn server_ended(&mut self, unsent: &[Id], now: Instant) -> Vec<Action> {
        self.ended = true;
        self.walk = None;
        let mut out = Vec::new();
        let mut ids: Vec<Id> = self.pending.keys().cloned().collect();
        ids.sort();
        for id in ids {
            if let Some(Pending::Sent { allowed, .. }) = self.forget(&id) {
                let outcome = if unsent.contains(&id) { CallOutcome::NotSent } else { CallOutcome::Failed };
                out.push(report(&allowed, outcome, now));
            }
            out.push(failed(&id, "the MCP server has ended"));
        }
        self.asked.clear();
        out
    }

    /// Takes a request out of the table, together with what is held for it. Its ticket stays, for the answer that still comes.
    fn forget(&mut self, id: &Id) -> Option<Pending> {
        let pending = self.pending.remove(id)?;
        match &pending {
            Pending::Waiting(call) => {
                self.held_bytes -= call.line.len();
                self.waiting.retain(|w| w != id);
            }
            Pending::Checking { ticket, call } => {
                self.held_bytes -= call.line.len();
                self.tickets.entry(*ticket).and_modify(|who| *who = None);
            }
            Pending::Filtering { ticket, .. } => {
                self.tickets.entry(*ticket).and_modify(|who| *who = None);
            }
            Pending::Passed { .. } | Pending::Sent { .. } => {}
        }
        Some(pending)
    }

    fn ticket(&mut self, id: &Id) -> u64 {
        self.next_ticket += 1;
        self.tickets.insert(self.next_ticket, Some(id.clone()));
        self.next_ticket
    }

    /// The agent's tools, for a list that waits for them.
    pub fn listed(&mut self, ticket: u64, tools: Result<Vec<ListedTool>, PdpError>) -> Vec<Action> {
        let Some(id) = self.tickets.remove(&ticket).flatten() else { return Vec::new() };
        let Some(Pending::Filtering { page, .. }) = self.pending.remove(&id) else { return Vec::new() };
        match tools {
            Ok(tools) => {
                let result = page.only(&self.settings.server, &tools, &self.catalogue);
                vec![Action::ToClient { line: answer::result(&id, &result), answers: Some(id) }]
            }
            Err(error) => vec![
                Action::Note(format!("tools/list {id}: {error}")),
                failed(&id, "Remit does not answer, so it can't be told which tools may be used"),
            ],
        }
    }
}

fn report(allowed: &Allowed, outcome: CallOutcome, now: Instant) -> Action {
    let took = now.saturating_duration_since(allowed.sent);
    Action::Report { decision_id: allowed.decision_id.clone(), outcome, took }
}

/// The server or Remit failed this request.
fn failed(id: &Id, why: &str) -> Action {
    error(id, answer::INTERNAL_ERROR, why)
}

/// An error that answers this request of the client.
fn error(id: &Id, code: i64, why: &str) -> Action {
    Action::ToClient { line: answer::error(Some(id), code, why), answers: Some(id.clone()) }
}
