//! The client's messages.

use std::time::Instant;

use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::{Action, MAX_PENDING, Passed, Pending, Relay, error};
use crate::enforce::mcp::answer::{
    self, INTERNAL_ERROR, INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, PARSE_ERROR,
};
use crate::enforce::mcp::frame;
use crate::enforce::mcp::message::{Id, Kind, Message, brief, readable_id};
use crate::enforce::mcp::methods::{self, Capabilities, Era, MODERN};
use crate::server::parse_json;

/// A client's request, strictly read.
pub(super) struct Request<'a> {
    pub id: Id,
    pub era: Era,
    pub offers: Capabilities,
    pub params: Map<String, Value>,
    /// The whole message.
    pub text: &'a str,
}

impl Relay {
    /// One message of the client.
    pub fn from_client(&mut self, line: &[u8], now: Instant) -> Vec<Action> {
        let text = match frame::text(line) {
            Ok(Some(text)) => text,
            Ok(None) => return Vec::new(),
            Err(why) => return self.malformed(std::str::from_utf8(line).ok(), PARSE_ERROR, why),
        };
        // The whole message strictly, so that no two readers of it can see different calls.
        let mut members = match parse_json(text.as_bytes()) {
            Ok(Value::Object(members)) => members,
            Ok(_) => Map::new(),
            Err(e) => {
                let code = if serde_json::from_str::<IgnoredAny>(text).is_ok() { INVALID_REQUEST } else { PARSE_ERROR };
                let why = if e.field.is_empty() { e.message } else { format!("{}: {}", e.field, e.message) };
                return self.malformed(Some(text), code, &why);
            }
        };
        let message = match Message::read(text) {
            Ok(message) => message,
            Err(why) => return self.malformed(Some(text), INVALID_REQUEST, &why),
        };
        let params = match members.remove("params") {
            Some(Value::Object(params)) => params,
            _ => Map::new(),
        };
        match message.kind {
            Kind::Request { id, method } => self.request(id, &method, params, text),
            Kind::Notification { method } => self.notification(&method, &params, text, now),
            Kind::Response { id, .. } => {
                if self.asked.remove(&id) {
                    return vec![to_server(text, None, None)];
                }
                vec![Action::Note(format!("dropped a client's answer to {id}, which nobody asked"))]
            }
        }
    }

    /// One message of the client was longer than may be.
    pub fn client_too_long(&self) -> Vec<Action> {
        self.malformed(None, INVALID_REQUEST, "the message is longer than Remit takes")
    }

    /// What can't be read is answered, so that nobody waits in vain; but never in place of the answer to another request.
    fn malformed(&self, text: Option<&str>, code: i64, why: &str) -> Vec<Action> {
        let id = text.and_then(readable_id).filter(|id| !self.pending.contains_key(id));
        let line = answer::error(id.as_ref(), code, &format!("refused by Remit: {why}"));
        vec![Action::Note(format!("refused a client's message: {why}")), Action::ToClient { line, answers: id }]
    }

    fn request(&mut self, id: Id, method: &str, params: Map<String, Value>, text: &str) -> Vec<Action> {
        if self.pending.contains_key(&id) {
            // Under its own id this error would be taken for the answer to the first request.
            let line = answer::error(None, INVALID_REQUEST, "id: a request with this id is not answered yet");
            return vec![Action::ToClient { line, answers: None }];
        }
        if Self::is_own(&id) {
            return vec![error(&id, INVALID_REQUEST, "id: what begins with `remit:` is the proxy's own")];
        }
        if self.ended {
            return vec![error(&id, INTERNAL_ERROR, "the MCP server has ended")];
        }
        if self.pending.len() >= MAX_PENDING {
            return vec![error(&id, INTERNAL_ERROR, "too many requests wait for their answer")];
        }
        let (era, offers) = match self.era(&params) {
            Ok(found) => found,
            Err(Era::Legacy) => {
                return vec![error(&id, INVALID_PARAMS, "params._meta: the protocol version is no text")];
            }
            Err(Era::Modern) => {
                let requested = version(&params).and_then(Value::as_str).unwrap_or_default();
                let line = answer::unsupported_version(&id, requested);
                return vec![Action::ToClient { line, answers: Some(id) }];
            }
        };
        if !methods::client_request(method, era) {
            let why = format!("Method not found: Remit passes no {} in this revision of MCP", brief(method));
            return vec![
                Action::Note(format!("refused a client's request {}", brief(method))),
                error(&id, METHOD_NOT_FOUND, &why),
            ];
        }
        let text_of = |name: &str| params.get(name).and_then(Value::as_str).map(str::to_owned);
        let what = match method {
            "tools/call" => return self.call(Request { id, era, offers, params, text }),
            "initialize" => {
                if self.initialized {
                    return vec![error(&id, INVALID_REQUEST, "this connection is initialized already")];
                }
                self.announced = Some(Capabilities::of(params.get("capabilities").and_then(Value::as_object)));
                Passed::Initialize
            }
            "tools/list" => match params.get("cursor") {
                None | Some(Value::Null | Value::String(_)) => {
                    Passed::List { cursor: text_of("cursor"), epoch: self.epoch }
                }
                Some(_) => return vec![error(&id, INVALID_PARAMS, "cursor: must be a string")],
            },
            "tasks/get" | "tasks/result" => Passed::Task { id: text_of("taskId"), result: method == "tasks/result" },
            _ => Passed::Other,
        };
        self.pending.insert(id.clone(), Pending::Passed { what, offers });
        vec![to_server(text, Some(id), Some(method))]
    }

    /// The request's era and what its client offers. The error is the era whose word for its revision was wrong.
    fn era(&mut self, params: &Map<String, Value>) -> Result<(Era, Capabilities), Era> {
        match version(params) {
            None => Ok((Era::Legacy, self.announced.unwrap_or_default())),
            Some(Value::String(version)) if MODERN.contains(&version.as_str()) => {
                let announced = params.get("_meta").and_then(|m| m.get(methods::META_CAPABILITIES));
                self.modern = Capabilities::of(announced.and_then(Value::as_object));
                Ok((Era::Modern, self.modern))
            }
            Some(Value::String(_)) => Err(Era::Modern),
            Some(_) => Err(Era::Legacy),
        }
    }

    fn notification(&mut self, method: &str, params: &Map<String, Value>, text: &str, now: Instant) -> Vec<Action> {
        if !methods::client_notification(method) {
            return vec![Action::Note(format!("dropped a client's notification {}", brief(method)))];
        }
        if method != "notifications/cancelled" {
            return vec![to_server(text, None, Some(method))];
        }
        let id = match params.get("requestId") {
            Some(Value::String(text)) => Id::Text(text.clone()),
            Some(Value::Number(number)) if number.is_i64() => Id::Number(number.as_i64().unwrap_or_default()),
            _ => return vec![Action::Note("dropped a cancellation without the id of a request".into())],
        };
        let (told, mut out) = self.cancel(&id, now);
        if told {
            out.push(to_server(text, None, Some(method)));
        }
        out
    }
}

fn version(params: &Map<String, Value>) -> Option<&Value> {
    params.get("_meta").and_then(|m| m.get(methods::META_VERSION))
}

pub(super) fn to_server(text: &str, id: Option<Id>, method: Option<&str>) -> Action {
    Action::ToServer { line: text.as_bytes().to_vec(), id, method: method.map(Into::into) }
}
