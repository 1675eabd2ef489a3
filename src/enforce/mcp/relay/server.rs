//! The server's messages.

use std::time::Instant;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::client::to_server;
use super::{Action, Allowed, MAX_PENDING, MAX_TASKS, Passed, Pending, Relay, failed, report};
use crate::enforce::CallOutcome;
use crate::enforce::mcp::answer::{self, INVALID_REQUEST, METHOD_NOT_FOUND};
use crate::enforce::mcp::frame;
use crate::enforce::mcp::message::{Id, Kind, Members, Message, brief, readable_id};
use crate::enforce::mcp::methods::{self, Capabilities, LEGACY};
use crate::enforce::mcp::tools::Page;

/// Members of results that are looked at.
const RESULT: &[&str] =
    &["resultType", "inputRequests", "isError", "task", "taskId", "status", "result", "error", "protocolVersion"];

/// "URL elicitation required" (2025-11-25).
const VISIT: f64 = -32042.0;

impl Relay {
    /// One message of the server.
    pub fn from_server(&mut self, line: &[u8], now: Instant) -> Vec<Action> {
        let text = match frame::text(line) {
            Ok(Some(text)) => text,
            Ok(None) => return Vec::new(),
            Err(why) => return self.unreadable(std::str::from_utf8(line).ok(), why, now),
        };
        let message = match Message::read(text) {
            Ok(message) => message,
            Err(why) => return self.unreadable(Some(text), &why, now),
        };
        match &message.kind {
            Kind::Request { id, method } => self.server_request(id, method, text),
            Kind::Notification { method } => self.server_notification(method, message.params, text),
            Kind::Response { id, .. } => self.response(id.clone(), &message, text, now),
        }
    }

    /// One message of the server was longer than may be. Whose answer it was can't be told.
    pub fn server_too_long(&self) -> Vec<Action> {
        vec![Action::Note("dropped a server's message that is longer than Remit takes".into())]
    }

    /// An answer that can't be read is an error to whoever waits for it.
    fn unreadable(&mut self, text: Option<&str>, why: &str, now: Instant) -> Vec<Action> {
        let mut out = vec![Action::Note(format!("dropped a server's message: {why}"))];
        if let Some(id) = text.and_then(readable_id) {
            if let Some(more) = self.walked(&id, Err(why.to_owned())) {
                out.extend(more);
            } else if matches!(self.pending.get(&id), Some(Pending::Passed { .. } | Pending::Sent { .. })) {
                out.extend(self.broken(&id, why, now));
            }
        }
        out
    }

    /// The server's answer to this request does not pass.
    fn broken(&mut self, id: &Id, why: &str, now: Instant) -> Vec<Action> {
        let mut out = vec![Action::Note(format!("refused the server's answer to {id}: {why}"))];
        if let Some(Pending::Sent { allowed, .. }) = self.forget(id) {
            out.push(report(&allowed, CallOutcome::Failed, now));
        }
        out.push(failed(id, &format!("refused by Remit: the server's answer does not pass: {why}")));
        out
    }

    fn server_request(&mut self, id: &Id, method: &str, text: &str) -> Vec<Action> {
        let refuse = |code, why: &str| {
            let line = answer::error(Some(id), code, why);
            let note = Action::Note(format!("refused a server's request {}: {why}", brief(method)));
            vec![note, Action::ToServer { line, id: None, method: None }]
        };
        // Only the handshake's era has requests of servers; the modern one asks within results.
        let offers = self.permitted(self.announced.unwrap_or_default());
        if self.announced.is_none() || !offers.answer(method) {
            return refuse(METHOD_NOT_FOUND, "Method not found: the client does not offer it");
        }
        if self.asked.len() >= MAX_PENDING || !self.asked.insert(id.clone()) {
            return refuse(INVALID_REQUEST, "id: too many requests, or this one is not answered yet");
        }
        vec![Action::ToClient { line: text.as_bytes().to_vec(), answers: None }]
    }

    /// What the client offers and the user has not forbidden.
    fn permitted(&self, offers: Capabilities) -> Capabilities {
        Capabilities {
            sampling: offers.sampling && !self.settings.no_sampling,
            elicitation: offers.elicitation && !self.settings.no_elicitation,
            ..offers
        }
    }

    fn server_notification(&mut self, method: &str, params: Option<&RawValue>, text: &str) -> Vec<Action> {
        let drop = |why: &str| vec![Action::Note(format!("dropped a server's notification {}: {why}", brief(method)))];
        if !methods::server_notification(method) {
            return drop("no such method passes");
        }
        match method {
            "notifications/tools/list_changed" => self.epoch += 1,
            // A server takes back a request of its own, or ends a subscription; it never ends a call.
            "notifications/cancelled" => match params.and_then(|p| cancelled_id(p.get())) {
                Some(id) if self.asked.remove(&id) => {}
                Some(id) if matches!(self.pending.get(&id), Some(Pending::Passed { what: Passed::Other, .. })) => {
                    self.forget(&id);
                }
                _ => return drop("it names no request that it may take back"),
            },
            "notifications/tasks" | "notifications/tasks/status" => {
                let read = params.map(|p| Members::read(p.get(), RESULT, false));
                match read {
                    Some(Err(why)) => return drop(&why),
                    Some(Ok(members)) => {
                        if let Err(why) = inputs_pass(&members, self.permitted(self.modern)) {
                            return drop(&why);
                        }
                    }
                    None => {}
                }
            }
            _ => {}
        }
        vec![Action::ToClient { line: text.as_bytes().to_vec(), answers: None }]
    }

    fn response(&mut self, id: Id, message: &Message<'_>, text: &str, now: Instant) -> Vec<Action> {
        let page = || message.result.ok_or_else(|| "the server answered with an error".to_owned()).and_then(Page::read);
        if let Some(out) = self.walked(&id, page()) {
            return out;
        }
        let pass = Action::ToClient { line: text.as_bytes().to_vec(), answers: Some(id.clone()) };
        let (what, offers) = match self.pending.get(&id) {
            Some(Pending::Passed { what, offers }) => (Some(what.clone()), *offers),
            Some(Pending::Sent { offers, .. }) => (None, *offers),
            // Also for a call that Remit still thinks about: the server can't have it.
            Some(_) | None => {
                return vec![Action::Note(format!(
                    "dropped a server's answer to {id}, which nobody asked or which was answered"
                ))];
            }
        };
        let Some(result) = message.result else {
            if !self.permitted(offers).elicitation && message.error.is_some_and(asks_for_a_visit) {
                return self.broken(&id, "it asks the user, which the client does not offer", now);
            }
            return match self.pending.remove(&id) {
                Some(Pending::Sent { allowed, .. }) => vec![report(&allowed, CallOutcome::Failed, now), pass],
                _ => vec![pass],
            };
        };
        let members = Members::read(result.get(), RESULT, false)
            .and_then(|members| inputs_pass(&members, self.permitted(offers)).map(|()| members));
        let members = match members {
            Ok(members) => members,
            Err(why) => return self.broken(&id, &why, now),
        };
        match what {
            None => {
                let Some(Pending::Sent { allowed, .. }) = self.pending.remove(&id) else { return vec![pass] };
                match task_of(&members) {
                    Some(task) if self.tasks.len() < MAX_TASKS => {
                        self.tasks.insert(task, allowed);
                        vec![pass]
                    }
                    _ => vec![report(&allowed, outcome(&members), now), pass],
                }
            }
            Some(Passed::Initialize) => {
                let version = members.text("protocolVersion").unwrap_or_default();
                if !LEGACY.contains(&version.as_str()) {
                    return self.broken(&id, &format!("protocol revision {} is not known", brief(&version)), now);
                }
                self.initialized = true;
                self.pending.remove(&id);
                vec![pass]
            }
            Some(Passed::List { cursor, epoch }) => match Page::read(result) {
                Ok(page) => {
                    self.catalogue.absorb(&page, cursor.as_deref(), epoch);
                    let mut out: Vec<Action> = page.left_out.iter().cloned().map(Action::Note).collect();
                    let ticket = self.ticket(&id);
                    self.pending.insert(id, Pending::Filtering { ticket, page: Box::new(page) });
                    out.push(Action::Tools { ticket });
                    out
                }
                Err(why) => self.broken(&id, &why, now),
            },
            Some(Passed::Task { id: task, result }) => {
                self.pending.remove(&id);
                let ended = if result { Some(outcome(&members)) } else { task_ended(&members) };
                let allowed: Option<Allowed> = match (task, ended) {
                    (Some(task), Some(_)) => self.tasks.remove(&task),
                    _ => None,
                };
                match (allowed, ended) {
                    (Some(allowed), Some(outcome)) => vec![report(&allowed, outcome, now), pass],
                    _ => vec![pass],
                }
            }
            Some(Passed::Other) => {
                self.pending.remove(&id);
                vec![pass]
            }
        }
    }

    /// Tells the server that the client has gone away from a request, in the client's name.
    pub fn cancellation(id: &Id) -> Action {
        let text = serde_json::json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id.json()}});
        to_server(&text.to_string(), None, Some("notifications/cancelled"))
    }
}

fn cancelled_id(params: &str) -> Option<Id> {
    let members = Members::read(params, &["requestId"], false).ok()?;
    // The members of an object with an `id` are what reads ids exactly.
    readable_id(&format!(r#"{{"id":{}}}"#, members.get("requestId")?.get()))
}

fn outcome(members: &Members<'_>) -> CallOutcome {
    match members.get("isError").map(RawValue::get) {
        Some("true") => CallOutcome::ToolError,
        _ => CallOutcome::Success,
    }
}

/// Id of the task that a call was made into: `task.taskId` (2025-11-25), or `taskId` with result type `task`.
fn task_of(members: &Members<'_>) -> Option<String> {
    if members.text("resultType").as_deref() == Some("task") {
        return members.text("taskId");
    }
    Members::read(members.get("task")?.get(), &["taskId"], false).ok()?.text("taskId")
}

/// What a task's state says of the call that it was.
fn task_ended(members: &Members<'_>) -> Option<CallOutcome> {
    match members.text("status")?.as_str() {
        "completed" => {
            let result = members.get("result").and_then(|raw| Members::read(raw.get(), RESULT, false).ok());
            Some(result.as_ref().map_or(CallOutcome::Success, outcome))
        }
        "failed" => Some(CallOutcome::Failed),
        "cancelled" => Some(CallOutcome::Cancelled),
        _ => None,
    }
}

/// Whether an error asks the client to send its user to an address (2025-11-25).
fn asks_for_a_visit(error: &RawValue) -> bool {
    let code = Members::read(error.get(), &["code"], false).map(|members| members.get("code").map(RawValue::get));
    match code {
        // However it is written.
        Ok(Some(code)) => code.parse::<f64>().is_ok_and(|code| code == VISIT),
        Ok(None) => false,
        Err(_) => true,
    }
}

/// Whether the client offers everything that a server asks for within a result (2026-07-28).
fn inputs_pass(members: &Members<'_>, offers: Capabilities) -> Result<(), String> {
    let Some(raw) = members.get("inputRequests") else { return Ok(()) };
    let requests = match crate::server::parse_json(raw.get().as_bytes()) {
        Ok(Value::Object(requests)) => requests,
        Ok(_) => return Err("inputRequests: must be an object".into()),
        Err(e) => return Err(format!("inputRequests: {e}")),
    };
    let asks = |request: &Map<String, Value>| request.get("method").and_then(Value::as_str).map(str::to_owned);
    for request in requests.values() {
        let method = request.as_object().and_then(asks).unwrap_or_default();
        if method == "ping" || method.starts_with("tasks/") || !offers.answer(&method) {
            return Err(format!("it asks for {:?}, which the client does not offer", brief(&method)));
        }
    }
    Ok(())
}
