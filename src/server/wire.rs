//! AuthZEN's JSON and Remit's types, both ways.
//!
//! The specification wants unknown members ignored, and they are. But a caller who misspells `arguments`, `session` or
//! `on_behalf_of`, or puts them at the wrong place, would be judged without them, and a `forbid` that reads an argument would
//! not match: such near misses are refused by name. Must never let a typo widen an answer.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::error::HttpError;
use super::ijson;
use crate::api::{Delegator, DelegatorKind};
use crate::gate::spelling::distance;
use crate::gate::{ActionRef, CheckRequest, Decision, DecisionRecord, EntityRef, Outcome};
use crate::policy::{CallerKind, PolicyError};

/// Items that one request may carry.
pub const MAX_ITEMS: usize = 1000;
/// What the members that items leave out may take, written out for each of them, bytes: a body of 1 MiB must not become a GiB of
/// questions, nor of records.
const MAX_INHERITED: usize = 32 << 20;
/// Longest type, id, name or session, bytes.
const MAX_NAME: usize = 1024;
/// Members that one of the request's own objects may have, unknown ones included.
const MAX_MEMBERS: usize = 128;

/// How a batch goes on after an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Semantic {
    /// Every item.
    #[default]
    ExecuteAll,
    /// Up to the first that is not an allow.
    DenyOnFirstDeny,
    /// Up to the first allow.
    PermitOnFirstPermit,
}

/// A batch, or the one question that `evaluations` without items stands for.
#[derive(Debug)]
pub enum Questions {
    /// Answered by one decision.
    One(Box<CheckRequest>),
    /// Answered in order; an item that can't be read is answered by its error.
    Many(Vec<Result<CheckRequest, HttpError>>, Semantic),
}

const WRONG: &str = "invalid_request";
/// Members of `context` that Remit reads.
const CONTEXT: &[&str] = &["arguments", "session", "schema_digest", "on_behalf_of"];

/// One question.
pub fn question(mut body: Map<String, Value>) -> Result<CheckRequest, HttpError> {
    near_misses(&body, "", &["context"], CONTEXT)?;
    read(&mut body, &mut Map::new(), "")
}

/// A batch.
pub fn questions(mut body: Map<String, Value>) -> Result<Questions, HttpError> {
    near_misses(
        &body,
        "",
        &["context", "evaluations"],
        &["arguments", "session", "on_behalf_of", "evaluations_semantic"],
    )?;
    let items = match body.swap_remove("evaluations") {
        None => Vec::new(),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(expected("evaluations", "an array", &other)),
    };
    let semantic = semantic(body.get("options"))?;
    if items.is_empty() {
        return Ok(Questions::One(Box::new(read(&mut body, &mut Map::new(), "")?)));
    }
    if items.len() > MAX_ITEMS {
        let what = format!("{} items, at most {MAX_ITEMS} are taken; nothing was evaluated", items.len());
        return Err(HttpError::field("batch_too_large", "evaluations", what));
    }
    if inherited(&body, &items) > MAX_INHERITED {
        let what = "the members that its items leave out are too large to be repeated for each; nothing was evaluated";
        return Err(HttpError::field("batch_too_large", "evaluations", what));
    }
    let items = items.into_iter().enumerate().map(|(n, item)| {
        let prefix = format!("evaluations[{n}].");
        match item {
            Value::Object(mut item) => {
                near_misses(&item, &prefix, &["context"], CONTEXT)?;
                read(&mut item, &mut body, &prefix)
            }
            other => Err(expected(prefix.trim_end_matches('.'), "an object", &other)),
        }
    });
    Ok(Questions::Many(items.collect(), semantic))
}

fn semantic(options: Option<&Value>) -> Result<Semantic, HttpError> {
    let options = match options {
        None => return Ok(Semantic::default()),
        Some(Value::Object(options)) => options,
        Some(other) => return Err(expected("options", "an object", other)),
    };
    match options.get("evaluations_semantic") {
        None => Ok(Semantic::default()),
        Some(Value::String(s)) if s == "execute_all" => Ok(Semantic::ExecuteAll),
        Some(Value::String(s)) if s == "deny_on_first_deny" => Ok(Semantic::DenyOnFirstDeny),
        Some(Value::String(s)) if s == "permit_on_first_permit" => Ok(Semantic::PermitOnFirstPermit),
        Some(_) => Err(HttpError::field(
            WRONG,
            "options.evaluations_semantic",
            "must be one of `execute_all`, `deny_on_first_deny`, `permit_on_first_permit`",
        )),
    }
}

/// Bytes that the defaults take once every item that leaves them out has its own, about.
fn inherited(defaults: &Map<String, Value>, items: &[Value]) -> usize {
    let one = |name: &str| {
        let takers = items.iter().filter(|item| item.as_object().is_some_and(|item| !item.contains_key(name))).count();
        defaults.get(name).map_or(0, |value| footprint(value).saturating_mul(takers))
    };
    ["subject", "action", "resource", "context"].into_iter().map(one).fold(0, usize::saturating_add)
}

/// Bytes that a value takes in memory, about.
fn footprint(value: &Value) -> usize {
    let below = match value {
        Value::String(s) => s.len(),
        Value::Array(items) => items.iter().map(footprint).sum(),
        Value::Object(map) => map.iter().map(|(k, v)| k.len() + 32 + footprint(v)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    64 + below
}

/// Reads one question from `item`, with `defaults` for the members that it leaves out (whole members, never merged).
fn read(
    item: &mut Map<String, Value>,
    defaults: &mut Map<String, Value>,
    prefix: &str,
) -> Result<CheckRequest, HttpError> {
    // A default is named by its own path, an item's by the item's.
    let mut take = |name: &str| match item.swap_remove(name) {
        Some(value) => (format!("{prefix}{name}"), Some(value)),
        None => match defaults.get(name) {
            Some(value) => (name.to_owned(), Some(value.clone())),
            None => (format!("{prefix}{name}"), None),
        },
    };
    let (path, subject) = take("subject");
    let subject = entity(&path, subject)?;
    let (path, action) = take("action");
    let mut action = object(&path, action)?.ok_or_else(|| missing(&path))?;
    let action = ActionRef { name: text(&path, &mut action, "name")?, properties: properties(&path, &mut action)? };
    let (path, resource) = take("resource");
    let resource = entity(&path, resource)?;
    let (path, context) = take("context");
    let mut request = CheckRequest { subject, action, resource, ..CheckRequest::default() };
    if let Some(context) = object(&path, context)? {
        read_context(context, &path, &mut request)?;
    }
    Ok(request)
}

fn read_context(mut context: Map<String, Value>, path: &str, request: &mut CheckRequest) -> Result<(), HttpError> {
    near_misses(&context, &format!("{path}."), CONTEXT, &[])?;
    let arguments = format!("{path}.arguments");
    if let Some(value) = context.swap_remove("arguments") {
        request.arguments = object(&arguments, Some(value))?.unwrap_or_default();
    }
    if let Some(value) = context.swap_remove("session") {
        request.session = Some(name(&format!("{path}.session"), value)?);
    }
    if let Some(value) = context.swap_remove("schema_digest") {
        request.schema_digest = Some(name(&format!("{path}.schema_digest"), value)?);
    }
    if let Some(value) = context.swap_remove("on_behalf_of") {
        request.on_behalf_of = Some(delegator(&format!("{path}.on_behalf_of"), value)?);
    }
    Ok(())
}

/// A user's name, or `{type: "user"|"agent", id}`.
fn delegator(path: &str, value: Value) -> Result<Delegator, HttpError> {
    match value {
        Value::String(_) => Ok(Delegator { kind: DelegatorKind::User, name: name(path, value)? }),
        Value::Object(mut map) => {
            let kind = match text(path, &mut map, "type")?.as_str() {
                "user" => DelegatorKind::User,
                "agent" => DelegatorKind::Agent,
                _ => return Err(HttpError::field(WRONG, format!("{path}.type"), "must be `user` or `agent`")),
            };
            Ok(Delegator { kind, name: text(path, &mut map, "id")? })
        }
        other => Err(expected(path, "a user's name or {\"type\": \"user\"|\"agent\", \"id\": …}", &other)),
    }
}

fn entity(path: &str, value: Option<Value>) -> Result<EntityRef, HttpError> {
    let mut map = object(path, value)?.ok_or_else(|| missing(path))?;
    Ok(EntityRef {
        type_: text(path, &mut map, "type")?,
        id: text(path, &mut map, "id")?,
        properties: properties(path, &mut map)?,
    })
}

fn properties(path: &str, map: &mut Map<String, Value>) -> Result<Map<String, Value>, HttpError> {
    Ok(object(&format!("{path}.properties"), map.swap_remove("properties"))?.unwrap_or_default())
}

fn object(path: &str, value: Option<Value>) -> Result<Option<Map<String, Value>>, HttpError> {
    match value {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => Err(expected(path, "an object", &other)),
    }
}

fn text(path: &str, map: &mut Map<String, Value>, key: &str) -> Result<String, HttpError> {
    let path = format!("{path}.{key}");
    name(&path, map.swap_remove(key).ok_or_else(|| missing(&path))?)
}

fn name(path: &str, value: Value) -> Result<String, HttpError> {
    match value {
        Value::String(s) if s.is_empty() => Err(HttpError::field(WRONG, path, "must not be empty")),
        Value::String(s) if s.len() > MAX_NAME => {
            Err(HttpError::field(WRONG, path, format!("must not be longer than {MAX_NAME} bytes")))
        }
        Value::String(s) => Ok(s),
        other => Err(expected(path, "a string", &other)),
    }
}

fn missing(path: &str) -> HttpError {
    HttpError::field(WRONG, path, "is required")
}

fn expected(path: &str, what: &str, got: &Value) -> HttpError {
    HttpError::field(WRONG, path, format!("must be {what}, not {}", ijson::kind(got)))
}

/// Members of a question that AuthZEN names and that nothing else is mistaken for.
const AUTHZEN: [&str; 3] = ["subject", "action", "resource"];

/// Refuses members that look like a known one but are not, and known ones that lie one level too high.
fn near_misses(map: &Map<String, Value>, prefix: &str, known: &[&str], inner: &[&str]) -> Result<(), HttpError> {
    if map.len() > MAX_MEMBERS {
        let place = if prefix.is_empty() { "the body" } else { prefix.trim_end_matches('.') };
        return Err(HttpError::bad_request(
            WRONG,
            format!("{place}: has {} members, at most {MAX_MEMBERS} are taken", map.len()),
        ));
    }
    for key in map.keys() {
        // AuthZEN's own names first: every question has them, and they need no comparing letter by letter.
        if known.contains(&key.as_str()) || (known.contains(&"context") && AUTHZEN.contains(&key.as_str())) {
            continue;
        }
        let path = || format!("{prefix}{}", key.escape_debug().take(64).collect::<String>());
        if let Some(meant) = inner.iter().find(|k| *k == key) {
            let place = if *meant == "evaluations_semantic" { "options" } else { "context" };
            return Err(HttpError::field(WRONG, path(), format!("belongs in `{place}`, where it is read")));
        }
        if let Some(meant) = known.iter().chain(inner).find(|k| looks_like(key, k)) {
            return Err(HttpError::field(WRONG, path(), format!("is not known: `{meant}` is meant?")));
        }
    }
    Ok(())
}

/// The same but for case and separators, or (from eight letters on) one or two letters apart; one letter for shorter names.
fn looks_like(key: &str, known: &str) -> bool {
    if key.len() > known.len() + 4 {
        return false;
    }
    let plain =
        |s: &str| s.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect::<Vec<_>>();
    let (a, b) = (plain(key), plain(known));
    let most = if b.len() >= 8 { 2 } else { 1 };
    a.len().abs_diff(b.len()) <= most && distance(&a, &b) <= most
}

/// A decision as AuthZEN answers it.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// True only for an allow.
    pub decision: bool,
    /// Why.
    pub context: AnswerContext,
}

/// Why a decision fell as it did.
#[derive(Clone, Debug, Serialize)]
pub struct AnswerContext {
    /// Stable reason code.
    pub code: &'static str,
    /// For people.
    pub reason: String,
    /// The author's own word for the reason: `@code` of the policy that stopped the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    /// Id of the record.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub decision_id: String,
    /// What the decision would be if its tenant did not only observe.
    #[serde(skip_serializing_if = "Option::is_none")]
    would_be: Option<WouldBeAnswer>,
    /// Who must be asked, where the code is `approval_required`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    asks: Vec<AskedOf>,
    /// Determining policies. Only gateways hear them.
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<Vec<String>>,
    /// Packages that were evaluated. Only gateways hear them.
    #[serde(skip_serializing_if = "Option::is_none")]
    digests: Option<BTreeMap<String, Vec<String>>>,
    /// Policies that errored. Only gateways hear them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<PolicyError>,
    /// AuthZEN's shape for an item of a batch that could not be evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ItemError>,
    /// The field that was wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct WouldBeAnswer {
    outcome: Outcome,
    code: &'static str,
    reason: String,
    /// Only gateways hear them.
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<Vec<String>>,
}

#[derive(Clone, Debug, Serialize)]
struct AskedOf {
    group: String,
    count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct ItemError {
    status: u16,
    message: String,
}

/// `@code` of the policy whose `@reason` is answered, or of the first that has one. An allow needs no explanation.
fn rule(decision: &Decision) -> Option<String> {
    if decision.outcome == Outcome::Allow {
        return None;
    }
    let said = decision.policies.iter().find(|p| p.reason.is_some());
    said.and_then(|p| p.code.clone()).or_else(|| decision.policies.iter().find_map(|p| p.code.clone()))
}

impl Answer {
    /// The answer to a decision that has this record.
    pub fn new(decision: &Decision, record: &DecisionRecord, to: CallerKind) -> Self {
        let gateway = to == CallerKind::Gateway;
        let asks = decision.asks.iter().filter(|_| decision.outcome == Outcome::ApprovalRequired);
        let asks = asks.filter_map(|policy| {
            let ask = policy.ask.as_ref()?;
            let policy_id = gateway.then(|| policy.id.clone());
            Some(AskedOf {
                group: ask.group.clone(),
                count: ask.count,
                reason: policy.reason.clone(),
                policy: policy_id,
            })
        });
        Self {
            decision: decision.outcome == Outcome::Allow,
            context: AnswerContext {
                code: decision.code,
                reason: decision.reason.clone(),
                rule: rule(decision),
                decision_id: record.id.clone(),
                would_be: decision.would_be.as_ref().map(|w| WouldBeAnswer {
                    outcome: w.outcome,
                    code: w.code,
                    reason: w.reason.clone(),
                    policies: gateway.then(|| w.policies.iter().map(|p| p.id.clone()).collect()),
                }),
                asks: asks.collect(),
                policies: gateway.then(|| decision.policies.iter().map(|p| p.id.clone()).collect()),
                digests: gateway.then(|| record.digests.clone()),
                errors: if gateway { decision.errors.to_vec() } else { Vec::new() },
                error: None,
                field: None,
            },
        }
    }

    /// A deny that no policy has decided.
    pub fn denied(code: &'static str, reason: impl Into<String>, decision_id: String) -> Self {
        let context = AnswerContext {
            code,
            reason: reason.into(),
            rule: None,
            decision_id,
            would_be: None,
            asks: Vec::new(),
            policies: None,
            digests: None,
            errors: Vec::new(),
            error: None,
            field: None,
        };
        Self { decision: false, context }
    }

    /// An item of a batch that could not be evaluated: denied, with the error in its context.
    pub fn error(error: HttpError) -> Self {
        let mut answer = Self::denied(error.code, error.message.clone(), error.decision_id.unwrap_or_default());
        answer.context.error = Some(ItemError { status: error.status.as_u16(), message: error.message });
        answer.context.field = error.field;
        answer
    }
}

/// Bytes of text that an evaluation may have to look at.
pub fn weight(request: &CheckRequest) -> usize {
    fn of(value: &Value) -> usize {
        match value {
            Value::String(s) => s.len(),
            Value::Array(items) => items.iter().map(of).sum::<usize>() + items.len() * 8,
            Value::Object(map) => of_map(map),
            _ => 8,
        }
    }
    fn of_map(map: &Map<String, Value>) -> usize {
        map.iter().map(|(k, v)| k.len() + of(v)).sum()
    }
    of_map(&request.arguments) + of_map(&request.subject.properties) + of_map(&request.resource.properties)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other}"),
        }
    }

    fn plain() -> Map<String, Value> {
        map(json!({"subject": {"type": "agent", "id": "coder"}, "action": {"name": "call_tool"},
            "resource": {"type": "tool", "id": "git/status"}}))
    }

    fn with(key: &str, value: Value) -> Map<String, Value> {
        let mut body = plain();
        body.insert(key.into(), value);
        body
    }

    fn field(body: Map<String, Value>) -> String {
        question(body).unwrap_err().field.unwrap()
    }

    #[test]
    fn reads_what_remit_knows_and_ignores_what_it_does_not() {
        let context =
            json!({"arguments": {"a": 1}, "session": "s", "on_behalf_of": "alice", "time": "now", "ip": "::1"});
        let mut body = with("context", context);
        body.insert("foo".into(), json!("bar"));
        body.insert("futureField".into(), json!({"nested": true}));
        let request = question(body).unwrap();
        assert_eq!(request.arguments, map(json!({"a": 1})));
        assert_eq!(request.session.as_deref(), Some("s"));
        assert_eq!(request.on_behalf_of, Some(Delegator { kind: DelegatorKind::User, name: "alice".into() }));
        let agent = json!({"on_behalf_of": {"type": "agent", "id": "planner"}});
        let request = question(with("context", agent)).unwrap();
        assert_eq!(request.on_behalf_of, Some(Delegator { kind: DelegatorKind::Agent, name: "planner".into() }));
    }

    #[test]
    fn typo_property_never_widens() {
        for typo in [
            "argument",
            "Arguments",
            "arguements",
            "args_",
            "onBehalfOf",
            "on-behalf-of",
            "on_behalf_off",
            "sesion",
            "sessions",
        ] {
            let error = question(with("context", json!({typo: {}})));
            if typo == "args_" {
                assert!(error.is_ok(), "far from any known name");
            } else {
                assert_eq!(error.unwrap_err().field.unwrap(), format!("context.{typo}"));
            }
        }
        for high in ["arguments", "session", "on_behalf_of"] {
            let error = question(with(high, json!("x"))).unwrap_err();
            assert!(error.message.contains("belongs in `context`"), "{error}");
        }
        for typo in ["contxt", "Context", "contexts"] {
            assert_eq!(field(with(typo, json!({}))), typo);
        }
    }

    #[test]
    fn what_is_missing_or_of_the_wrong_shape_is_named() {
        for (key, sub) in
            [("subject", "type"), ("subject", "id"), ("action", "name"), ("resource", "type"), ("resource", "id")]
        {
            let mut body = plain();
            body.swap_remove(key);
            assert_eq!(field(body), key);
            let mut body = plain();
            body[key].as_object_mut().unwrap().swap_remove(sub);
            assert_eq!(field(body), format!("{key}.{sub}"));
            for bad in [json!(123), json!(null), json!(""), json!("x".repeat(1025))] {
                let mut body = plain();
                body[key][sub] = bad;
                assert_eq!(field(body), format!("{key}.{sub}"));
            }
            let mut body = plain();
            body[key]["properties"] = json!([]);
            assert_eq!(field(body), format!("{key}.properties"));
        }
        assert_eq!(field(with("context", json!(null))), "context");
        assert_eq!(field(with("context", json!({"arguments": null}))), "context.arguments");
        assert_eq!(field(with("context", json!({"session": 7}))), "context.session");
        assert_eq!(
            field(with("context", json!({"on_behalf_of": {"type": "robot", "id": "x"}}))),
            "context.on_behalf_of.type"
        );
    }

    #[test]
    fn defaults_are_inherited_whole_and_errors_stay_with_their_item() {
        let body = map(json!({
            "subject": {"type": "agent", "id": "coder"}, "action": {"name": "call_tool"},
            "context": {"arguments": {"a": 1, "b": 2}, "session": "s"},
            "evaluations": [
                {"resource": {"type": "tool", "id": "x/1"}},
                {"resource": {"type": "tool", "id": "x/2"}, "context": {"arguments": {"a": 3}}},
                {"context": {}},
                7
            ]
        }));
        let Questions::Many(items, Semantic::ExecuteAll) = questions(body).unwrap() else { panic!() };
        let first = items[0].as_ref().unwrap();
        assert_eq!(
            (first.resource.id.as_str(), first.arguments.len(), first.session.as_deref()),
            ("x/1", 2, Some("s"))
        );
        let second = items[1].as_ref().unwrap();
        assert_eq!((second.arguments.len(), second.session.as_deref()), (1, None), "a member overrides as a whole");
        assert_eq!(items[2].as_ref().unwrap_err().field.as_deref(), Some("evaluations[2].resource"));
        assert_eq!(items[3].as_ref().unwrap_err().field.as_deref(), Some("evaluations[3]"));
    }

    #[test]
    fn absent_or_empty_evaluations_are_one_question_and_a_thousand_are_enough() {
        assert!(matches!(questions(plain()), Ok(Questions::One(_))));
        assert!(matches!(questions(with("evaluations", json!([]))), Ok(Questions::One(_))));
        assert!(
            matches!(questions(with("evaluations", vec![json!({}); 1000].into())), Ok(Questions::Many(items, _)) if items.len() == 1000)
        );
        let error = questions(with("evaluations", vec![json!({}); 1001].into())).unwrap_err();
        assert_eq!((error.code, error.field.as_deref()), ("batch_too_large", Some("evaluations")));
        assert_eq!(questions(with("evaluations", json!({}))).unwrap_err().field.as_deref(), Some("evaluations"));
        // A large context once, or for few, is fine; for a thousand it is a bomb.
        let sharing = |items: Vec<Value>, context: Value| {
            let mut body = with("evaluations", items.into());
            body.insert("context".into(), context);
            questions(body)
        };
        let text = || json!({"arguments": {"text": "a".repeat(100_000)}});
        assert!(sharing(vec![json!({}); 100], text()).is_ok());
        for bomb in [text(), json!({"arguments": {"list": vec![0; 1000]}})] {
            let error = sharing(vec![json!({}); 1000], bomb.clone()).unwrap_err();
            assert_eq!((error.code, error.field.as_deref()), ("batch_too_large", Some("evaluations")));
            assert!(sharing(vec![json!({"context": {}}); 1000], bomb).is_ok(), "nobody inherits it");
        }
        let mut body = with("evaluations", json!([{}]));
        body.insert("options".into(), json!({"evaluations_semantic": "some"}));
        assert_eq!(questions(body).unwrap_err().field.as_deref(), Some("options.evaluations_semantic"));
    }
}
