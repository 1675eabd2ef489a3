//! A `tools/call` on its way: held, looked up, asked about, and sent as it came, or answered here.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::client::Request;
use super::{Action, Allowed, Call, MAX_HELD, MAX_HELD_BYTES, OWN, Pending, Relay, Walk, error, failed, report};
use crate::enforce::mcp::answer::{self, INTERNAL_ERROR, INVALID_PARAMS};
use crate::enforce::mcp::message::{Id, brief, same_but_case};
use crate::enforce::mcp::methods::{META_CAPABILITIES, META_CLIENT, META_VERSION};
use crate::enforce::mcp::tools::{Definition, Page};
use crate::enforce::{CallOutcome, PdpError, Question, Ruling, Verdict};

/// What a call may carry. A member that Remit does not know could change what the call does.
const CALL: &[&str] = &["name", "arguments", "_meta", "task", "inputResponses", "requestState"];
/// Pages of a list that the relay reads itself.
const MAX_PAGES: usize = 1000;

impl Relay {
    pub(super) fn call(&mut self, request: Request<'_>) -> Vec<Action> {
        let Request { id, era, offers, mut params, text } = request;
        if let Some(other) = params.keys().find(|key| !CALL.contains(&key.as_str())) {
            return vec![error(
                &id,
                INVALID_PARAMS,
                &format!("params.{}: Remit knows no such member of a call", brief(other)),
            )];
        }
        let name = match params.remove("name") {
            Some(Value::String(name)) => name,
            _ => return vec![error(&id, INVALID_PARAMS, "params.name: must be a string")],
        };
        let arguments = match params.remove("arguments") {
            Some(Value::Object(arguments)) => arguments,
            None | Some(Value::Null) => Map::new(),
            Some(_) => return vec![error(&id, INVALID_PARAMS, "params.arguments: must be an object")],
        };
        let held =
            self.pending.values().filter(|p| matches!(p, Pending::Waiting(_) | Pending::Checking { .. })).count();
        if held >= MAX_HELD || self.held_bytes + text.len() > MAX_HELD_BYTES {
            return vec![error(&id, INTERNAL_ERROR, "too many calls wait for Remit: try again later")];
        }
        let meta = params.remove("_meta");
        let call = Call { line: text.as_bytes().to_vec(), era, offers, name, arguments, meta, digest: String::new() };
        self.held_bytes += call.line.len();
        match self.catalogue.get(&call.name).cloned() {
            Some(definition) if self.catalogue.fresh(self.epoch) => self.ask(id, call, definition),
            None if self.catalogue.current(self.epoch) => self.unknown(&id, &call),
            _ => self.wait(id, call),
        }
    }

    /// The call is answered here, and nothing of it is held any more.
    fn drop_call(&mut self, call: &Call) {
        self.held_bytes -= call.line.len();
    }

    fn unknown(&mut self, id: &Id, call: &Call) -> Vec<Action> {
        self.drop_call(call);
        vec![error(id, INVALID_PARAMS, &format!("Unknown tool: {}", brief(&call.name)))]
    }

    /// The server must list its tools before the call can be judged.
    fn wait(&mut self, id: Id, call: Call) -> Vec<Action> {
        let meta = call.meta.clone();
        self.pending.insert(id.clone(), Pending::Waiting(Box::new(call)));
        self.waiting.push(id);
        if self.walk.is_some() {
            return Vec::new();
        }
        let meta = meta.and_then(|meta| {
            let kept: Map<String, Value> = [META_VERSION, META_CLIENT, META_CAPABILITIES]
                .into_iter()
                .filter_map(|key| Some((key.to_owned(), meta.get(key)?.clone())))
                .collect();
            kept.contains_key(META_VERSION).then_some(Value::Object(kept))
        });
        vec![self.step(None, 0, self.epoch, meta)]
    }

    /// Asks the server for the next page of its tools.
    fn step(&mut self, cursor: Option<String>, pages: usize, epoch: u64, meta: Option<Value>) -> Action {
        self.next_own += 1;
        let mut params = Map::new();
        if let Some(cursor) = &cursor {
            params.insert("cursor".into(), cursor.as_str().into());
        }
        if let Some(meta) = &meta {
            params.insert("_meta".into(), meta.clone());
        }
        let id = format!("{OWN}{}", self.next_own);
        let line =
            json!({"jsonrpc": "2.0", "id": id, "method": "tools/list", "params": params}).to_string().into_bytes();
        self.walk = Some(Walk { number: self.next_own, cursor, pages, epoch, meta });
        Action::ToServer { line, id: Some(Id::Text(id)), method: Some("tools/list".into()) }
    }

    /// The server's answer to the relay's own request. None if it is none.
    pub(super) fn walked(&mut self, id: &Id, page: Result<Page, String>) -> Option<Vec<Action>> {
        let Id::Text(text) = id else { return None };
        let number: u64 = text.strip_prefix(OWN)?.parse().ok()?;
        if self.walk.as_ref().is_none_or(|walk| walk.number != number) {
            return None;
        }
        let Walk { cursor, pages, epoch, meta, .. } = self.walk.take()?;
        let mut out = Vec::new();
        let end = match page {
            Ok(page) => {
                out.extend(page.left_out.iter().cloned().map(Action::Note));
                self.catalogue.absorb(&page, cursor.as_deref(), epoch);
                match page.next {
                    Some(_) if pages >= MAX_PAGES => Err(format!("more than {MAX_PAGES} pages of tools")),
                    Some(next) => {
                        out.push(self.step(Some(next), pages + 1, epoch, meta));
                        return Some(out);
                    }
                    None => Ok(()),
                }
            }
            Err(why) => Err(why),
        };
        if let Err(why) = &end {
            out.push(Action::Note(format!("the server's tools can't be listed: {why}")));
        }
        for id in std::mem::take(&mut self.waiting) {
            let Some(Pending::Waiting(call)) = self.pending.remove(&id) else { continue };
            match (&end, self.catalogue.get(&call.name).cloned()) {
                (Ok(()), Some(definition)) => out.extend(self.ask(id, *call, definition)),
                (Ok(()), None) => out.extend(self.unknown(&id, &call)),
                (Err(_), _) => {
                    self.drop_call(&call);
                    out.push(failed(&id, "the server's tools can't be listed, so this call was not made"));
                }
            }
        }
        Some(out)
    }

    fn ask(&mut self, id: Id, mut call: Call, definition: Definition) -> Vec<Action> {
        // A server that ignores case would read it as the other, and the policies would not.
        let twin = call.arguments.keys().find_map(|key| {
            definition.arguments.iter().find(|known| same_but_case(known, key)).map(|known| (brief(key), brief(known)))
        });
        if let Some((key, known)) = twin {
            self.drop_call(&call);
            let why = format!("params.arguments.{key}: some servers would take it for `{known}`");
            return vec![error(&id, INVALID_PARAMS, &why)];
        }
        let ticket = self.ticket(&id);
        let question = Question {
            agent: self.settings.agent.clone(),
            tool: format!("{}/{}", self.settings.server, call.name),
            arguments: std::mem::take(&mut call.arguments),
            session: self.settings.session.clone(),
            on_behalf_of: self.settings.on_behalf_of.clone(),
            schema_digest: Some(definition.digest.clone()),
            request_id: None,
        };
        call.digest = definition.digest;
        self.pending.insert(id, Pending::Checking { ticket, call: Box::new(call) });
        vec![Action::Check { ticket, question: Box::new(question) }]
    }

    /// The answer to one question. Whatever is not an allow is a refusal.
    pub fn decided(&mut self, ticket: u64, answer: Result<Verdict, PdpError>, now: Instant) -> Vec<Action> {
        let waiting = self.tickets.remove(&ticket).flatten();
        let held = waiting.and_then(|id| match self.pending.remove(&id) {
            Some(Pending::Checking { call, .. }) => Some((id, *call)),
            _ => None,
        });
        let Some((id, call)) = held else {
            // Taken back while Remit thought about it.
            return match answer {
                Ok(Verdict { ruling: Ruling::Allow, decision_id, .. }) => vec![not_sent(decision_id, now)],
                Ok(_) | Err(_) => Vec::new(),
            };
        };
        self.drop_call(&call);
        let refuse =
            |text: &str| Action::ToClient { line: answer::refused(&id, call.era, text), answers: Some(id.clone()) };
        let verdict = match answer {
            Ok(verdict) => verdict,
            Err(why) => {
                return vec![Action::Note(format!("a call was refused: {why}")), refuse(&answer::undecided(&why))];
            }
        };
        if verdict.ruling != Ruling::Allow {
            return vec![refuse(&answer::denied(&verdict))];
        }
        // The server may have said something else while Remit thought about it.
        if self.catalogue.get(&call.name).is_none_or(|now| now.digest != call.digest) {
            let text = "denied (tool_changed): the tool has changed since the question, so this call was not made.";
            return vec![not_sent(verdict.decision_id, now), refuse(text)];
        }
        let allowed = Allowed { decision_id: verdict.decision_id, sent: now };
        self.pending.insert(id.clone(), Pending::Sent { allowed, offers: call.offers });
        vec![Action::ToServer { line: call.line, id: Some(id), method: Some("tools/call".into()) }]
    }
}

fn not_sent(decision_id: String, now: Instant) -> Action {
    report(&Allowed { decision_id, sent: now }, CallOutcome::NotSent, now)
}
