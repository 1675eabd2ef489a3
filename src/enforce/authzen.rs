//! The decision point over AuthZEN's bytes, whatever carries them: `POST …/access/v1/evaluation` and `…/search/resource`.
//!
//! An allow is `"decision": true` in a whole, well-formed answer that names its record. Everything else is a refusal of the call.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::local::Local;
use super::pdp::{ANY_TOOL, CallOutcome, ListedTool, Pdp, PdpError, PdpFuture, Question, Ruling, Verdict};
use crate::api::DelegatorKind;
use crate::server::parse_json;
use crate::transport::{Bounds, SendError, Transport, encode};

/// Largest answer to one question, bytes.
const MAX_ANSWER: usize = 1 << 20;
/// Largest page of a search, bytes.
const MAX_PAGE: usize = 8 << 20;
/// Pages of one search.
const MAX_PAGES: usize = 100;
/// Largest token, bytes.
const MAX_TOKEN: u64 = 64 * 1024;
/// How much of an error's message is shown.
const MAX_MESSAGE: usize = 500;

/// A token in a file, read again when the file changes: projected tokens rotate.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    read: Mutex<Option<(Stamp, HeaderValue)>>,
}

/// Time and size of a file.
type Stamp = (Option<std::time::SystemTime>, u64);

impl TokenFile {
    /// A file. It is read at each use, if it has changed.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), read: Mutex::default() }
    }

    /// `Bearer …`.
    pub fn bearer(&self) -> Result<HeaderValue, String> {
        let wrong = |why: &str| format!("token file {}: {why}", self.path.display());
        // What a link leads to counts: kubelet swaps a link.
        let meta = std::fs::metadata(&self.path).map_err(|e| wrong(&e.to_string()))?;
        let stamp = (meta.modified().ok(), meta.len());
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, token)) = read.as_ref()
            && *seen == stamp
        {
            return Ok(token.clone());
        }
        if !meta.is_file() || meta.len() > MAX_TOKEN {
            return Err(wrong("not a file with a token"));
        }
        let text = std::fs::read_to_string(&self.path).map_err(|e| wrong(&e.to_string()))?;
        if text.trim().is_empty() {
            return Err(wrong("no token in it"));
        }
        let token = HeaderValue::try_from(format!("Bearer {}", text.trim()));
        let mut token = token.map_err(|_| wrong("not a token"))?;
        token.set_sensitive(true);
        *read = Some((stamp, token.clone()));
        Ok(token)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// As whom to ask.
#[derive(Debug)]
pub enum Token {
    /// What a file holds now.
    File(TokenFile),
    /// `Bearer …`, for as long as this process lives.
    Held(HeaderValue),
}

impl Token {
    /// A token that lies in no file. None: it is no token.
    pub fn held(token: &str) -> Option<Self> {
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim())).ok()?;
        value.set_sensitive(true);
        Some(Self::Held(value))
    }

    /// `Bearer …`.
    pub fn bearer(&self) -> Result<HeaderValue, String> {
        match self {
            Token::File(file) => file.bearer(),
            Token::Held(value) => Ok(value.clone()),
        }
    }
}

/// A decision point that speaks AuthZEN.
pub struct AuthZen {
    transport: Box<dyn Transport>,
    token: Token,
    /// `/tenants/NAME`, or nothing where the caller's own is meant.
    prefix: String,
    timeout: Duration,
    /// Closed at the end, where this process may lead a folder.
    local: Option<Arc<Local>>,
}

impl AuthZen {
    /// Over this transport. `timeout`: for one question, attempts and all.
    pub fn new(transport: Box<dyn Transport>, token: Token, tenant: Option<&str>, timeout: Duration) -> Self {
        let prefix = tenant.map(|tenant| format!("/tenants/{tenant}")).unwrap_or_default();
        Self { transport, token, prefix, timeout, local: None }
    }

    /// The same for a folder, which this process may lead.
    pub fn of(local: Arc<Local>, timeout: Duration) -> Self {
        let token = Token::File(TokenFile::new(local.state().token_file()));
        let transport = Box::new(super::local::LocalTransport(local.clone()));
        Self { local: Some(local), ..Self::new(transport, token, None, timeout) }
    }

    async fn post(
        &self,
        path: &str,
        body: &Value,
        request_id: Option<&str>,
        limit: usize,
    ) -> Result<Response<Bytes>, PdpError> {
        let malformed = |e: &dyn std::fmt::Display| PdpError::Malformed(format!("the question: {e}"));
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}{path}", self.prefix))
            .header(AUTHORIZATION, self.token.bearer().map_err(PdpError::Unreachable)?)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("remit/", env!("CARGO_PKG_VERSION")));
        if let Some(id) = request_id {
            request = request.header("x-request-id", id);
        }
        let body = serde_json::to_vec(body).map_err(|e| malformed(&e))?;
        let request = request.body(Bytes::from(body)).map_err(|e| malformed(&e))?;
        let bounds = Bounds { within: self.timeout, answer: limit };
        let answer = self.transport.send(request, bounds).await.map_err(|error| match error {
            SendError::Timeout(_) => PdpError::Timeout(self.timeout),
            SendError::Unreachable(why) => PdpError::Unreachable(why),
            SendError::TooLarge(_) => PdpError::Malformed(error.to_string()),
        })?;
        if answer.status().is_success() { Ok(answer) } else { Err(refused(&answer)) }
    }

    /// Decides one call; gives what else the answer says, for people.
    pub async fn evaluate(&self, question: &Question) -> Result<(Verdict, Map<String, Value>), PdpError> {
        let body = evaluation(question);
        let id = question.request_id.as_deref();
        verdict(&self.post("/access/v1/evaluation", &body, id, MAX_ANSWER).await?)
    }

    /// Every page of a search: `resource`, `subject` or `action`. `question` is its body, without `page`.
    pub async fn search(&self, kind: &str, question: &Value) -> Result<Found, PdpError> {
        let path = format!("/access/v1/search/{kind}");
        let (mut all, mut page) = (Found::default(), Value::Null);
        for _ in 0..MAX_PAGES {
            let mut body = question.clone();
            if !page.is_null() {
                body["page"] = json!({"token": page});
            }
            let answer = self.post(&path, &body, None, MAX_PAGE).await?;
            let mut found = object(&answer)?;
            let Some(Value::Array(results)) = found.swap_remove("results") else {
                return Err(PdpError::Malformed("results: must be an array".into()));
            };
            all.results.extend(results);
            if let Some(context) = found.get("context") {
                all.details.extend(context.get("details").and_then(Value::as_array).into_iter().flatten().cloned());
                all.observed_until = context.get("observed_until").and_then(Value::as_str).map(str::to_owned);
            }
            page = match found.get("page").and_then(|p| p.get("next_token")) {
                None | Some(Value::Null) => Value::Null,
                Some(Value::String(token)) if token.is_empty() => Value::Null,
                Some(token @ Value::String(_)) => token.clone(),
                Some(_) => return Err(PdpError::Malformed("page.next_token: must be a string".into())),
            };
            if page.is_null() {
                return Ok(all);
            }
        }
        Err(PdpError::Malformed(format!("over {MAX_PAGES} pages")))
    }

    async fn tools_of(&self, agent: &str, session: Option<&str>) -> Result<Vec<ListedTool>, PdpError> {
        let mut question = json!({
            "subject": {"type": "agent", "id": agent}, "action": {"name": "call_tool"}, "resource": {"type": "tool"},
        });
        // While a rollout runs, a session may be answered under another package than its agent's other calls.
        if let Some(session) = session {
            question["context"] = json!({"session": session});
        }
        let found = self.search("resource", &question).await?;
        let mut tools = Vec::new();
        if found.observed_until.is_some() {
            tools.push(ListedTool { name: ANY_TOOL.to_owned(), schema_digest: None });
        }
        for result in found.results {
            match (result.get("type").and_then(Value::as_str), result.get("id").and_then(Value::as_str)) {
                (Some("tool"), Some(id)) => {
                    let digest = match result.get("properties").and_then(|p| p.get("schema_digest")) {
                        None | Some(Value::Null) => None,
                        Some(Value::String(digest)) => Some(digest.clone()),
                        Some(_) => return Err(PdpError::Malformed("schema_digest: must be a string".into())),
                    };
                    tools.push(ListedTool { name: id.to_owned(), schema_digest: digest });
                }
                _ => return Err(PdpError::Malformed("results: a result is no tool".into())),
            }
        }
        tools.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        tools.dedup_by(|a, b| a.name == b.name);
        Ok(tools)
    }
}

/// What a search found, all pages together.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Entities, as AuthZEN writes them.
    pub results: Vec<Value>,
    /// `context.details`, where the question asks for them: one for each result.
    pub details: Vec<Value>,
    /// Until when the tenant only observes.
    pub observed_until: Option<String>,
}

impl Pdp for AuthZen {
    fn check<'a>(&'a self, question: &'a Question) -> PdpFuture<'a, Result<Verdict, PdpError>> {
        Box::pin(async move {
            let (verdict, _) = self.evaluate(question).await?;
            Ok(verdict)
        })
    }

    fn tools<'a>(&'a self, agent: &'a str) -> PdpFuture<'a, Result<Vec<String>, PdpError>> {
        Box::pin(async move {
            Ok(self
                .tools_of(agent, None)
                .await?
                .into_iter()
                .map(|tool| tool.name)
                .filter(|name| name != ANY_TOOL)
                .collect())
        })
    }

    fn listed<'a>(
        &'a self,
        agent: &'a str,
        session: Option<&'a str>,
    ) -> PdpFuture<'a, Result<Vec<ListedTool>, PdpError>> {
        Box::pin(self.tools_of(agent, session))
    }

    fn report<'a>(
        &'a self,
        decision_id: &'a str,
        outcome: CallOutcome,
        took: Duration,
    ) -> PdpFuture<'a, Result<(), PdpError>> {
        Box::pin(async move {
            let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            let body = json!({"outcome": outcome, "duration_ms": millis});
            let path = format!("/decisions/{}/outcome", encode(decision_id));
            self.post(&path, &body, None, MAX_ANSWER).await.map(drop)
        })
    }

    fn close(&self) -> PdpFuture<'_, ()> {
        Box::pin(async move {
            if let Some(local) = &self.local {
                local.close().await;
            }
        })
    }
}

/// The question as AuthZEN writes it.
pub fn evaluation(question: &Question) -> Value {
    let mut context = Map::new();
    context.insert("arguments".into(), Value::Object(question.arguments.clone()));
    if let Some(session) = &question.session {
        context.insert("session".into(), json!(session));
    }
    if let Some(digest) = &question.schema_digest {
        context.insert("schema_digest".into(), json!(digest));
    }
    if let Some(delegator) = &question.on_behalf_of {
        let kind = match delegator.kind {
            DelegatorKind::User => "user",
            DelegatorKind::Agent => "agent",
        };
        context.insert("on_behalf_of".into(), json!({"type": kind, "id": delegator.name}));
    }
    json!({
        "subject": {"type": "agent", "id": question.agent},
        "action": {"name": "call_tool"},
        "resource": {"type": "tool", "id": question.tool},
        "context": context,
    })
}

/// The body of a good answer: one JSON object, read as strictly as a question is, so that nothing in it is there twice.
fn object(answer: &Response<Bytes>) -> Result<Map<String, Value>, PdpError> {
    let kind = answer.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        return Err(PdpError::Malformed("it is not application/json".into()));
    }
    match parse_json(answer.body()) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(PdpError::Malformed("it is not a JSON object".into())),
        Err(error) => Err(PdpError::Malformed(error.to_string())),
    }
}

/// What an answer with a good status says, and its context.
fn verdict(answer: &Response<Bytes>) -> Result<(Verdict, Map<String, Value>), PdpError> {
    if answer.status() != StatusCode::OK {
        return Err(PdpError::Malformed(format!("status {}, expected 200", answer.status().as_u16())));
    }
    let body = object(answer)?;
    let decision = match body.get("decision") {
        Some(Value::Bool(decision)) => *decision,
        Some(_) => return Err(PdpError::Malformed("decision: must be true or false".into())),
        None => return Err(PdpError::Malformed("decision: is missing".into())),
    };
    let context = match body.get("context") {
        Some(Value::Object(context)) => context.clone(),
        None => Map::new(),
        Some(_) => return Err(PdpError::Malformed("context: must be an object".into())),
    };
    let text = |name: &str| match context.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(PdpError::Malformed(format!("context.{name}: must be a string"))),
    };
    let code = text("code")?.unwrap_or_default();
    let decision_id = text("decision_id")?.unwrap_or_default();
    let ruling = match (decision, code.as_str()) {
        (true, _) if decision_id.is_empty() => {
            return Err(PdpError::Malformed("context.decision_id: an allow without its record is none".into()));
        }
        (true, _) => Ruling::Allow,
        (false, "approval_required") => Ruling::ApprovalRequired,
        (false, _) => Ruling::Deny,
    };
    let reason = text("reason")?.unwrap_or_default();
    let asks = asks(&context)?;
    Ok((Verdict { ruling, code, rule: text("rule")?, reason, decision_id, asks }, context))
}

/// Groups that must agree. One that can't be read must not be overlooked.
fn asks(context: &Map<String, Value>) -> Result<Vec<String>, PdpError> {
    let unreadable = || PdpError::Malformed("context.asks: must be a list of {group, …}".into());
    let Some(asks) = context.get("asks") else { return Ok(Vec::new()) };
    let group = |ask: &Value| ask.get("group").and_then(Value::as_str).map(str::to_owned).ok_or_else(unreadable);
    asks.as_array().ok_or_else(unreadable)?.iter().map(group).collect()
}

/// What an answer with another status says.
fn refused(answer: &Response<Bytes>) -> PdpError {
    let said = parse_json(answer.body()).ok();
    let text = |name: &str| {
        let text = said.as_ref().and_then(|v| v.get(name)).and_then(Value::as_str);
        text.map(|text| text.chars().take(MAX_MESSAGE).collect::<String>())
    };
    PdpError::Refused {
        status: answer.status().as_u16(),
        code: text("code").unwrap_or_else(|| "unknown".into()),
        message: text("message").unwrap_or_else(|| "no message".into()),
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::HeaderMap;
    use axum::routing::post;

    use super::*;
    use crate::api::Delegator;
    use crate::transport::InProcess;

    fn answer(status: u16, body: &str) -> Response<Bytes> {
        let answer = Response::builder().status(status).header(CONTENT_TYPE, "application/json; charset=utf-8");
        answer.body(Bytes::copy_from_slice(body.as_bytes())).unwrap()
    }

    #[test]
    fn only_a_plain_true_with_its_record_is_an_allow() {
        let allow = r#"{"decision":true,"context":{"code":"allowed","reason":"yes","decision_id":"d"}}"#;
        assert_eq!(verdict(&answer(200, allow)).unwrap().0.ruling, Ruling::Allow);
        for (status, body) in [
            (200, r#"{"decision":"true","context":{"decision_id":"d"}}"#),
            (200, r#"{"decision":1,"context":{"decision_id":"d"}}"#),
            (200, r#"{"decision":null}"#),
            (200, r#"{"context":{"decision_id":"d"}}"#),
            (200, r#"{"decision":false,"decision":true,"context":{"decision_id":"d"}}"#),
            (200, r#"{"decision":true,"context":{"decision_id":"d"}} trailing"#),
            (200, r#"{"decision":true,"context":{"decision_id":"d"}"#),
            (200, r#"{"decision":true}"#),
            (200, r#"{"decision":true,"context":[]}"#),
            (200, r#"{"decision":true,"context":{"decision_id":7}}"#),
            (200, r#"[true]"#),
            (200, "true"),
            (200, ""),
            (201, allow),
        ] {
            assert!(matches!(verdict(&answer(status, body)), Err(PdpError::Malformed(_))), "{status} {body}");
        }
        let mut html = answer(200, allow);
        html.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
        assert!(verdict(&html).is_err());
    }

    #[test]
    fn denies_and_asks_carry_the_authors_words() {
        let deny = r#"{"decision":false,"context":{"code":"denied_by_policy","rule":"no-writes","reason":"Ask.","decision_id":"d"}}"#;
        let (read, _) = verdict(&answer(200, deny)).unwrap();
        assert_eq!(
            (read.ruling, read.rule.as_deref(), read.reason.as_str()),
            (Ruling::Deny, Some("no-writes"), "Ask.")
        );
        let ask = r#"{"decision":false,"context":{"code":"approval_required"}}"#;
        assert_eq!(verdict(&answer(200, ask)).unwrap().0.ruling, Ruling::ApprovalRequired);
        assert_eq!(verdict(&answer(200, r#"{"decision":false}"#)).unwrap().0.ruling, Ruling::Deny);
        let refusal = refused(&answer(503, r#"{"code":"not_synced","message":"wait"}"#));
        assert_eq!(refusal, PdpError::Refused { status: 503, code: "not_synced".into(), message: "wait".into() });
    }

    #[tokio::test]
    async fn the_question_goes_out_whole_and_the_token_is_read_again() {
        let (seen, sent) = std::sync::mpsc::channel::<(String, Value)>();
        let route = post(move |headers: HeaderMap, axum::Json(body): axum::Json<Value>| async move {
            let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
            seen.send((format!("{} {}", header("authorization"), header("x-request-id")), body)).unwrap();
            axum::Json(json!({"decision": true, "context": {"decision_id": "d"}}))
        });
        let router = Router::new().route("/tenants/acme/access/v1/evaluation", route);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "one\n").unwrap();
        let transport = Box::new(InProcess(router));
        let pdp = AuthZen::new(transport, Token::File(TokenFile::new(&path)), Some("acme"), Duration::from_secs(10));
        let question = Question {
            agent: "coder".into(),
            tool: "git/push".into(),
            arguments: json!({"z": 1, "a": [{"b": null}]}).as_object().unwrap().clone(),
            session: Some("s".into()),
            on_behalf_of: Some(Delegator { kind: DelegatorKind::User, name: "alice".into() }),
            schema_digest: Some("sha256:x".into()),
            request_id: Some("r-1".into()),
        };
        assert_eq!(pdp.check(&question).await.unwrap().decision_id, "d");
        let (headers, body) = sent.recv().unwrap();
        assert_eq!(headers, "Bearer one r-1");
        assert_eq!(body["context"]["arguments"], json!({"z": 1, "a": [{"b": null}]}));
        assert_eq!(body["context"]["on_behalf_of"], json!({"type": "user", "id": "alice"}));
        assert_eq!((&body["context"]["session"], &body["context"]["schema_digest"]), (&json!("s"), &json!("sha256:x")));
        std::fs::write(&path, "second\n").unwrap();
        pdp.check(&question).await.unwrap();
        assert_eq!(sent.recv().unwrap().0, "Bearer second r-1");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(pdp.check(&question).await, Err(PdpError::Unreachable(_))));
    }

    #[tokio::test]
    async fn tools_are_gathered_over_all_pages() {
        let route = post(|axum::Json(body): axum::Json<Value>| async move {
            axum::Json(match body["page"]["token"].as_str() {
                None => json!({"results": [{"type": "tool", "id": "b/x"}], "page": {"next_token": "2"},
                    "context": {"observed_until": "2026-11-22T14:00:00Z"}}),
                Some("2") => json!({"results": [{"type": "tool", "id": "a/y"}], "page": {"next_token": ""}}),
                Some(_) => json!({"results": "no"}),
            })
        });
        let router = Router::new().route("/access/v1/search/resource", route);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "t").unwrap();
        let token = Token::File(TokenFile::new(dir.path().join("token")));
        let pdp = AuthZen::new(Box::new(InProcess(router)), token, None, Duration::from_secs(10));
        assert_eq!(pdp.tools("coder").await.unwrap(), ["a/y", "b/x"]);
        let listed: Vec<String> = pdp.listed("coder", None).await.unwrap().into_iter().map(|t| t.name).collect();
        assert_eq!(listed, [ANY_TOOL, "a/y", "b/x"], "while the tenant observes, so is what nobody lists");
    }
}
