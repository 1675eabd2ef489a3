//! AuthZEN Authorization API 1.0, Search: of which tools some call could be allowed, to which agents, and by which actions.
//!
//! A search is no decision: nothing is recorded, and what it finds must be asked again with the call itself. It must never leave out
//! what a check would allow, and an agent hears only of itself.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::caller::{self, Call};
use super::error::HttpError;
use super::{AppState, body, check, wire};
use crate::api::Tool;
use crate::gate::{CheckInput, CheckRequest, Could, Decision, Depends, MAX_PATTERN_COST, Prospects, Unit, could_allow};
use crate::policy::{CallerKind, CompiledPackage, sha256_text};

/// Results of one page, at most.
const MAX_PAGE: usize = 1000;
/// What one page may cost, about microseconds: a tenant's checks that wait behind it wait no longer than this.
const MAX_WORK: u64 = 500_000;
/// Stands where the entity that is searched for would be named.
const ANY: &str = "*";
const WRONG: &str = "invalid_request";

/// What is searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Resource,
    Subject,
    Action,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Resource => "resource",
            Kind::Subject => "subject",
            Kind::Action => "action",
        }
    }
}

/// A page of what was found. `page` first, as the specification recommends.
#[derive(Serialize)]
pub struct Found {
    page: PageInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Said>,
    results: Vec<Value>,
}

#[derive(Serialize)]
struct PageInfo {
    next_token: String,
    count: usize,
}

/// What else a reader of the results should know.
#[derive(Serialize)]
struct Said {
    /// Until when the tenant only observes: what the package does not list, tools included, could be allowed too.
    #[serde(skip_serializing_if = "Option::is_none")]
    observed_until: Option<Timestamp>,
    /// How far each result is settled, and on what it depends. Only gateways hear it, and only when they ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Vec<Detail>>,
}

#[derive(Serialize)]
struct Detail {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<&'static str>,
    allowed: &'static str,
    approval: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    depends: Vec<Depends>,
}

/// Where a page ended, and of which question.
#[derive(Serialize, Deserialize)]
struct Token {
    after: String,
    question: String,
}

/// One search, read.
struct Search {
    kind: Kind,
    request: CheckRequest,
    limit: usize,
    after: Option<String>,
    /// Digest of the question, for the token.
    question: String,
    details: bool,
}

/// `POST …/access/v1/search/resource`.
pub async fn resource(
    state: State<AppState>,
    tenant: Option<Path<String>>,
    request: Request,
) -> Result<Json<Found>, HttpError> {
    search(state, Kind::Resource, tenant, request).await
}

/// `POST …/access/v1/search/subject`.
pub async fn subject(
    state: State<AppState>,
    tenant: Option<Path<String>>,
    request: Request,
) -> Result<Json<Found>, HttpError> {
    search(state, Kind::Subject, tenant, request).await
}

/// `POST …/access/v1/search/action`.
pub async fn action(
    state: State<AppState>,
    tenant: Option<Path<String>>,
    request: Request,
) -> Result<Json<Found>, HttpError> {
    search(state, Kind::Action, tenant, request).await
}

async fn search(
    State(state): State<AppState>,
    kind: Kind,
    tenant: Option<Path<String>>,
    request: Request,
) -> Result<Json<Found>, HttpError> {
    let (parts, sent) = request.into_parts();
    let call = caller::call(&state, &parts.headers, &parts.extensions, tenant.map(|Path(t)| t)).await?;
    if let Some(refusal) = &call.refusal {
        return Err(refusal.error());
    }
    let search = read(kind, &call.tenant, body::object(&parts.headers, sent, body::MAX_BODY).await?)?;
    let (state2, lane) = (state.clone(), call.lane().to_owned());
    let found = state.lanes.run(&lane, move || run(&state2, &call, &search)).await??;
    state.metrics.searched(kind.as_str());
    Ok(Json(found))
}

fn read(kind: Kind, tenant: &str, mut body: Map<String, Value>) -> Result<Search, HttpError> {
    let page = body.swap_remove("page");
    let options = body.swap_remove("options");
    // The entity that is searched for needs no id, and one that is there is ignored.
    match kind {
        Kind::Resource | Kind::Subject => {
            if let Some(Value::Object(entity)) = body.get_mut(kind.as_str()) {
                entity.insert("id".into(), json!(ANY));
            }
        }
        Kind::Action => drop(body.insert("action".into(), json!({"name": ANY}))),
    }
    let request = wire::question(body)?;
    if !request.arguments.is_empty() {
        let what = "are not known to a search; ask `evaluation` about a call with its arguments";
        return Err(HttpError::field(WRONG, "context.arguments", what));
    }
    let searched = match kind {
        Kind::Resource if request.resource.type_ != "tool" => Some(("resource.type", "tool")),
        Kind::Subject if request.subject.type_ != "agent" => Some(("subject.type", "agent")),
        _ => None,
    };
    if let Some((field, only)) = searched {
        return Err(HttpError::field(WRONG, field, format!("must be `{only}`: nothing else can be searched for")));
    }
    let question = json!([kind.as_str(), tenant, request]);
    let question = sha256_text(question.to_string().as_bytes());
    let (limit, after) = paging(page, &question)?;
    let details = matches!(options, Some(Value::Object(o)) if o.get("details") == Some(&Value::Bool(true)));
    Ok(Search { kind, request, limit, after, question, details })
}

/// Most results of the page, and after what it begins.
fn paging(page: Option<Value>, question: &str) -> Result<(usize, Option<String>), HttpError> {
    let page = match page {
        None => return Ok((MAX_PAGE, None)),
        Some(Value::Object(page)) => page,
        Some(_) => return Err(HttpError::field(WRONG, "page", "must be an object")),
    };
    let limit = match page.get("limit") {
        None => MAX_PAGE,
        Some(limit) => {
            let limit =
                limit.as_u64().ok_or_else(|| HttpError::field(WRONG, "page.limit", "must be a number from 0 on"))?;
            usize::try_from(limit).unwrap_or(MAX_PAGE).min(MAX_PAGE)
        }
    };
    let wrong = || HttpError::field(WRONG, "page.token", "is not the `next_token` of a page of this search");
    let after = match page.get("token") {
        None => None,
        Some(Value::String(token)) if token.is_empty() => None,
        Some(Value::String(token)) => {
            let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
            let token: Token = serde_json::from_slice(&bytes).map_err(|_| wrong())?;
            Some(token).filter(|t| t.question == question).ok_or_else(wrong)?.after.into()
        }
        Some(_) => return Err(wrong()),
    };
    Ok((limit, after))
}

fn run(state: &AppState, call: &Call, search: &Search) -> Result<Found, HttpError> {
    let snapshot = check::snapshot(state, call)?;
    let tenant = snapshot
        .tenants
        .get(&call.tenant)
        .ok_or_else(|| HttpError::not_found("unknown_tenant", format!("Remit knows no tenant {:?}.", call.tenant)))?;
    let asked = &search.request.subject;
    if let Some((own, name)) = &call.caller.agent
        && (*own != call.tenant || (search.kind != Kind::Subject && (asked.type_ != "agent" || asked.id != *name)))
    {
        return Err(HttpError::forbidden("not_your_identity", "An agent asks only for itself, in its own tenant."));
    }
    // As a check of the same question would be answered. Of other agents than the one that asks, each has its own.
    let package_of = |request: &CheckRequest| {
        let session = check::session(state, &snapshot, &call.tenant, request);
        tenant.decides(Unit::of(request, session)).1.map(AsRef::as_ref)
    };
    let package: Option<&CompiledPackage> = package_of(&search.request);
    let mut names: Vec<&str> = match (search.kind, &call.caller.agent) {
        (Kind::Resource, _) => package.into_iter().flat_map(|p| p.tools()).map(|t| t.name.as_str()).collect(),
        (Kind::Subject, None) => tenant.agents.keys().map(String::as_str).collect(),
        (Kind::Subject, Some((_, own))) => {
            tenant.agents.get_key_value(own).map(|(k, _)| k.as_str()).into_iter().collect()
        }
        (Kind::Action, _) => package.into_iter().flat_map(|p| p.actions()).collect(),
    };
    names.sort_unstable();
    let first = search.after.as_deref().map_or(0, |after| names.partition_point(|name| *name <= after));
    let observed_until = tenant.profile.observes(state.clock.now());
    let details = search.details && call.caller.kind == CallerKind::Gateway;
    let mut found = Found {
        page: PageInfo { next_token: String::new(), count: 0 },
        context: (details || observed_until.is_some())
            .then(|| Said { observed_until, details: details.then(Vec::new) }),
        results: Vec::new(),
    };
    let (mut last, mut work) = (search.after.clone().unwrap_or_default(), 0_u64);
    for name in &names[first..] {
        if found.results.len() >= search.limit || work >= MAX_WORK {
            let token = Token { after: last, question: search.question.clone() };
            let text = serde_json::to_vec(&token).map_err(|_| HttpError::internal())?;
            found.page.next_token = URL_SAFE_NO_PAD.encode(text);
            break;
        }
        let mut request = search.request.clone();
        match search.kind {
            Kind::Resource => request.resource.id = (*name).to_owned(),
            Kind::Subject => request.subject.id = (*name).to_owned(),
            Kind::Action => request.action.name = (*name).to_owned(),
        }
        let input = CheckInput {
            snapshot: &snapshot,
            tenant: &call.tenant,
            caller: &call.caller,
            request: &request,
            session: check::session(state, &snapshot, &call.tenant, &request),
            now: state.clock.now(),
            id: "",
            request_id: None,
            redaction_key: &state.redaction_key,
            pattern_budget: MAX_PATTERN_COST,
        };
        last = (*name).to_owned();
        let Some(prospects) = asked_of(search.kind, could_allow(&input))? else { continue };
        work += prospects.work;
        if prospects.allowed == Could::No {
            continue;
        }
        found.results.push(match search.kind {
            Kind::Resource => tool(&request.resource.type_, name, package.and_then(|p| p.tool(name))),
            Kind::Subject => json!({"type": request.subject.type_, "id": name}),
            Kind::Action => json!({"name": name}),
        });
        if let Some(details) = found.context.as_mut().and_then(|c| c.details.as_mut()) {
            let tool = Some(request.resource.id.as_str()).filter(|_| request.resource.type_ == "tool");
            let package = package_of(&request);
            details.push(Detail {
                id: (*name).to_owned(),
                tier: tool.and_then(|t| package?.tool(t)).map(|t| t.tier.as_str()),
                allowed: prospects.allowed.as_str(),
                approval: prospects.approval.as_str(),
                depends: prospects.depends,
            });
        }
    }
    found.page.count = found.results.len();
    Ok(found)
}

/// A tool that was found, with the digest of the definition that was reviewed: what its server defines otherwise is not that tool.
fn tool(type_: &str, name: &str, known: Option<&Tool>) -> Value {
    let mut found = json!({"type": type_, "id": name});
    if let Some(digest) = known.and_then(|tool| tool.schema_digest.as_ref()) {
        found["properties"] = json!({"schema_digest": digest});
    }
    found
}

/// A question that makes no sense for one candidate only is no error of the search.
fn asked_of(kind: Kind, asked: Result<Prospects, Decision>) -> Result<Option<Prospects>, HttpError> {
    let refused = match asked {
        Ok(prospects) => return Ok(Some(prospects)),
        Err(refused) => refused,
    };
    let of_the_candidate = match kind {
        // Another agent may have this delegator.
        Kind::Subject => refused.status == 403,
        // Another action may take this subject and resource.
        Kind::Action => refused.status == 400,
        Kind::Resource => false,
    };
    if of_the_candidate {
        return Ok(None);
    }
    let status = StatusCode::from_u16(refused.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut error = HttpError::new(status, refused.code, refused.reason);
    error.retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
    Err(error)
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod unit;
