//! Rollouts as people see and steer them by HTTP. Audience `remit-admin`; reading needs verb `get` on `tenantrollouts`, and each action the
//! verb that the same entry by kubectl would need, asked for the caller by a SubjectAccessReview.
//!
//! Nothing is decided here: an action becomes an entry in the rollout's status, under the caller's name, and the state machine handles it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::body;
use super::caller::may;
use super::control::{ControlError, RolloutControl};
use super::error::HttpError;
use super::policies::{Params, Reader, reader};
use super::{AppState, Server};
use crate::api::{
    ActionKind, HandledAction, HumanAction, PackageSelector, RevisionStatus, RolloutHold, RolloutPhase, RolloutVerdict,
    TenantRollout, TenantRolloutStatus,
};

/// Largest body.
const MAX_BODY: usize = 16 * 1024;
/// How long an answer waits for the state machine.
const WAIT: Duration = Duration::from_secs(8);
/// How often is looked meanwhile.
const LOOK: Duration = Duration::from_millis(100);
/// Longest reason, characters.
const MAX_REASON: usize = 1024;

/// A revision.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Rollout {
    /// Number of the revision.
    pub id: i64,
    pub package: String,
    pub version: String,
    pub digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_fingerprint: Option<String>,
    /// `queued`, `canary`, `promoting`, `completed` or `rolled_back`.
    pub progress: String,
    /// Why it began, or how it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// More about the cause, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// Whether it answers everybody who is not answered by a candidate.
    pub in_force: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub under_way: Option<UnderWay>,
}

/// What is said of a candidate besides.
#[derive(Clone, Debug, Serialize)]
pub(super) struct UnderWay {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<RolloutVerdict>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
    /// Why it does not go on by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<RolloutHold>,
}

/// The revisions of the status, newest first.
pub(super) fn revisions(status: &TenantRolloutStatus) -> Vec<Rollout> {
    let in_force = status.stable.as_ref().map(|s| s.revision);
    let of = |r: &RevisionStatus, progress: &str| Rollout {
        id: r.revision,
        package: r.package.clone(),
        version: r.version.clone(),
        digest: r.digest.clone(),
        key_fingerprint: r.key_fingerprint.clone(),
        progress: progress.to_owned(),
        cause: None,
        message: None,
        at: None,
        in_force: Some(r.revision) == in_force,
        under_way: None,
    };
    let mut all: Vec<Rollout> = Vec::new();
    if let Some(candidate) = &status.candidate {
        let under_way = UnderWay {
            stage: status.stage,
            percent: status.percent,
            verdict: status.verdict.clone(),
            replay: status.replay.clone(),
            proof: status.proof.clone(),
            hold: status.hold.clone(),
        };
        let progress = status.progress.as_deref().unwrap_or("queued");
        all.push(Rollout { under_way: Some(under_way), ..of(candidate, progress) });
    }
    for entry in &status.history {
        // The newest word on a revision stands first.
        match all.iter_mut().find(|r| r.id == entry.revision.revision) {
            Some(known) if known.cause.is_none() => {
                (known.cause, known.at) = (Some(entry.cause.clone()), entry.at.clone());
                known.message = entry.message.clone();
            }
            Some(_) => {}
            None => all.push(Rollout {
                cause: Some(entry.cause.clone()),
                message: entry.message.clone(),
                at: entry.at.clone(),
                ..of(&entry.revision, &entry.phase)
            }),
        }
    }
    if let Some(stable) = status.stable.as_ref().filter(|s| all.iter().all(|r| r.id != s.revision)) {
        all.push(of(stable, "completed"));
    }
    all.sort_by_key(|r| std::cmp::Reverse(r.id));
    all
}

/// Where the tenant stands.
#[derive(Clone, Debug, Serialize)]
struct Rollouts {
    phase: RolloutPhase,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// Whether this describes the newest spec.
    current: bool,
    items: Vec<Rollout>,
}

fn overview(rollout: &TenantRollout) -> Rollouts {
    let status = rollout.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().find(|c| c.type_ == crate::api::READY);
    Rollouts {
        phase: status.phase,
        message: ready.map(|c| c.message.clone()),
        current: rollout.status.is_some() && Some(status.observed_generation) == rollout.metadata.generation,
        items: revisions(&status),
    }
}

/// The cluster's side, or 404 in a folder.
pub(super) fn control(state: &Server) -> Result<&dyn RolloutControl, HttpError> {
    state.control.as_deref().ok_or_else(|| {
        HttpError::not_found(
            "no_rollouts",
            "This Remit serves a folder: what is in the folder is in force, and nothing is rolled out.",
        )
    })
}

pub(super) fn refused(error: ControlError) -> HttpError {
    match error {
        ControlError::Missing => HttpError::not_found("no_rollout", "This tenant has no TenantRollout."),
        ControlError::Full(why) => HttpError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_actions", why),
        ControlError::Refused(why) => HttpError::new(StatusCode::UNPROCESSABLE_ENTITY, "refused_by_api_server", why),
        ControlError::Unavailable(why) => {
            tracing::warn!(error = %why, "a rollout could not be read or written");
            HttpError::unavailable("api_server_unavailable", "The API server gives no answer now.")
        }
    }
}

pub(super) async fn rollout(state: &Server, tenant: &str) -> Result<TenantRollout, HttpError> {
    let found = control(state)?.rollout(tenant).await.map_err(refused)?;
    found.ok_or_else(|| refused(ControlError::Missing))
}

/// The caller must have this verb on `tenantrollouts`.
pub(super) async fn needs(state: &Server, who: &Reader, verb: &'static str) -> Result<(), HttpError> {
    if may(state, &who.identity, verb, "tenantrollouts", &who.tenant).await? {
        return Ok(());
    }
    let message = format!(
        "{:?} may not `{verb}` `tenantrollouts.remit.dev` in namespace {:?}.",
        who.identity.username, who.tenant
    );
    Err(HttpError::forbidden("not_allowed", message))
}

/// A body whose members are all known.
pub(super) async fn read<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, HttpError> {
    let object = body::object(headers, body, MAX_BODY).await?;
    serde_path_to_error::deserialize(Value::Object(object)).map_err(|error| match error.path().to_string().as_str() {
        "." => HttpError::bad_request("invalid_request", error.inner().to_string()),
        path => HttpError::field("invalid_request", path, error.inner()),
    })
}

/// `GET …/rollouts`.
pub async fn list(State(state): State<AppState>, params: Params, parts: Parts) -> Result<Response, HttpError> {
    let who = reader(&state, &parts, &params, "tenantrollouts").await?;
    Ok(Json(overview(&rollout(&state, &who.tenant).await?)).into_response())
}

/// `GET …/rollouts/{id}`: with the steps that it took, newest first.
pub async fn one(State(state): State<AppState>, params: Params, parts: Parts) -> Result<Response, HttpError> {
    let who = reader(&state, &parts, &params, "tenantrollouts").await?;
    let rollout = rollout(&state, &who.tenant).await?;
    let found = find(&rollout, &params)?;
    let mut steps = control(&state)?.records(&who.uid).await.map_err(super::admin::failed)?;
    steps.retain(|step| step.revision == found.id);
    let mut body = serde_json::to_value(&found).map_err(|_| HttpError::internal())?;
    body["steps"] = serde_json::to_value(&steps).map_err(|_| HttpError::internal())?;
    Ok(Json(body).into_response())
}

/// `GET …/rollouts/{id}/package`: the package's spec with its signature, as it is kept. Reading it needs verb `get` on `policypackages`.
pub async fn package(State(state): State<AppState>, params: Params, parts: Parts) -> Result<Response, HttpError> {
    let who = reader(&state, &parts, &params, "policypackages").await?;
    let rollout = rollout(&state, &who.tenant).await?;
    let id = find(&rollout, &params)?.id;
    let spec = revision_of(&rollout, id).map(|r| control(&state)?.package(&who.tenant, &r).map_err(not_kept));
    match spec {
        Some(spec) => Ok(Json(spec?).into_response()),
        None => Err(unknown_rollout()),
    }
}

pub(super) fn not_kept(why: String) -> HttpError {
    HttpError::new(StatusCode::CONFLICT, "not_kept", why)
}

/// The revision of this number, as the status has it.
pub(super) fn revision_of(rollout: &TenantRollout, id: i64) -> Option<RevisionStatus> {
    let status = rollout.status.as_ref()?;
    let all = status.stable.iter().chain(&status.candidate).chain(status.history.iter().map(|h| &h.revision));
    all.into_iter().find(|r| r.revision == id).cloned()
}

fn unknown_rollout() -> HttpError {
    HttpError::not_found("unknown_rollout", "This tenant has no rollout with this id.")
}

fn find(rollout: &TenantRollout, params: &Params) -> Result<Rollout, HttpError> {
    let id: i64 = params.get("id").and_then(|id| id.parse().ok()).ok_or_else(unknown_rollout)?;
    let all = rollout.status.as_ref().map(revisions).unwrap_or_default();
    all.into_iter().find(|r| r.id == id).ok_or_else(unknown_rollout)
}

/// What `POST …/rollouts` brings.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewRollout {
    package: PackageSelector,
}

/// `POST …/rollouts`: asks for another package, as if the caller had changed `spec.package`.
pub async fn create(State(state): State<AppState>, params: Params, request: Request) -> Result<Response, HttpError> {
    let (parts, sent) = request.into_parts();
    let who = reader(&state, &parts, &params, "tenantrollouts").await?;
    let control = control(&state)?;
    let verb = if control.rollout(&who.tenant).await.map_err(refused)?.is_some() { "patch" } else { "create" };
    needs(&state, &who, verb).await?;
    let asked: NewRollout = read(&parts.headers, sent).await?;
    sensible(&asked.package)?;
    tracing::info!(tenant = %who.tenant, by = %who.identity.username, package = ?asked.package, "a rollout is asked for by HTTP");
    let changed = control.select(&who.tenant, &asked.package).await.map_err(refused)?;
    // The state machine names the revision as soon as it has seen the spec.
    let begun = Instant::now();
    let mut last = changed.clone();
    while begun.elapsed() < WAIT && !overview(&last).current {
        tokio::time::sleep(LOOK).await;
        last = rollout(&state, &who.tenant).await?;
    }
    let view = overview(&last);
    let location = format!("/admin/tenants/{}/rollouts", who.tenant);
    let location = match view.items.first().filter(|_| view.current) {
        Some(newest) => format!("{location}/{}", newest.id),
        None => location,
    };
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(view)).into_response())
}

/// What admission says of the same change by kubectl: it does not see what Remit writes.
fn sensible(package: &PackageSelector) -> Result<(), HttpError> {
    let wrong = |field: &str, what: String| Err(HttpError::field("invalid_request", format!("package.{field}"), what));
    match (package.name.is_some() || package.version.is_some(), &package.digest) {
        (false, None) => {
            return wrong("name", "name a package, with a range of versions or without, or its digest".into());
        }
        (true, Some(_)) => {
            return wrong(
                "digest",
                "names exactly one package: leave out name and version, or leave out digest".into(),
            );
        }
        _ => {}
    }
    match package.version.as_deref().map(semver::VersionReq::parse) {
        Some(Err(error)) => {
            wrong("version", format!("is not a range of versions ({error}); examples: ^1.2, \">=1, <2\", =1.4.0"))
        }
        _ => Ok(()),
    }
}

/// What an action brings.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionBody {
    #[serde(default)]
    reason: Option<String>,
    /// `promote`: for everyone, whatever is left to check.
    #[serde(default)]
    full: bool,
    /// `rollback`: the revision to go back to; the one before where it is not given.
    #[serde(default)]
    to: Option<i64>,
}

/// `POST …/rollouts/{id}/{action}`: pause, resume, promote, abort or rollback.
pub async fn act(State(state): State<AppState>, params: Params, request: Request) -> Result<Response, HttpError> {
    let (parts, sent) = request.into_parts();
    let who = reader(&state, &parts, &params, "tenantrollouts").await?;
    let word = params.get("action").map_or("", String::as_str);
    let mut kind = match word {
        "pause" => ActionKind::Pause,
        "resume" => ActionKind::Resume,
        "promote" => ActionKind::Promote,
        "abort" => ActionKind::Abort,
        "rollback" => ActionKind::Rollback,
        _ => return Err(HttpError::not_found("unknown_route", "There is nothing at this address.")),
    };
    let body: ActionBody = match parts.headers.contains_key(header::CONTENT_TYPE) {
        true => read(&parts.headers, sent).await?,
        false => ActionBody::default(),
    };
    let wrong = |field: &'static str, what: &'static str| Err(HttpError::field("invalid_request", field, what));
    if body.full && kind != ActionKind::Promote {
        return wrong("full", "stands with promote only");
    }
    if body.to.is_some() && kind != ActionKind::Rollback {
        return wrong("to", "stands with rollback only");
    }
    let there = rollout(&state, &who.tenant).await?;
    let of = find(&there, &params)?;
    let candidate = there.status.as_ref().and_then(|s| s.candidate.as_ref()).filter(|c| c.revision == of.id);
    if body.full {
        kind = ActionKind::PromoteFull;
    }
    if kind == ActionKind::Rollback && candidate.is_some() && body.to.is_none() {
        // What is under way has not replaced anything yet.
        kind = ActionKind::Abort;
    }
    needs(&state, &who, kind.verb()).await?;
    if kind.needs_reason() && body.reason.as_ref().is_none_or(|r| r.trim().is_empty()) {
        return wrong("reason", "is missing: say why, for the record");
    }
    body.reason.as_deref().map_or(Ok(()), check_reason)?;
    let idle = of.in_force && there.status.as_ref().is_some_and(|s| s.candidate.is_none());
    let right = match kind {
        ActionKind::Rollback => of.in_force,
        // A tenant can be paused before anything is under way.
        ActionKind::Pause | ActionKind::Resume => candidate.is_some() || idle,
        _ => candidate.is_some(),
    };
    if !right {
        let what = if kind == ActionKind::Rollback { "in force" } else { "under way" };
        return Err(HttpError::new(
            StatusCode::CONFLICT,
            "not_current",
            format!("Rollout {} is not {what} (any more).", of.id),
        ));
    }
    if let Some(to) = body.to.filter(|to| revision_of(&there, *to).is_none()) {
        return Err(HttpError::not_found("unknown_rollout", format!("to: this tenant has no rollout {to}.")));
    }
    let stage = there.status.as_ref().and_then(|s| s.stage).map_or(0, |stage| stage.saturating_add(1));
    let action = HumanAction {
        reason: body.reason,
        revision: body.to,
        digest: Some(of.digest.clone()),
        // Of two who ask for the next stage at once only one moves it.
        stage: (kind == ActionKind::Promote).then_some(stage),
        ..action(&who, kind)
    };
    let result = ask(&state, &who, action).await?;
    Ok(result.response(&who, json!({"id": of.id})))
}

/// An entry of the caller's, written by Remit.
pub(super) fn action(who: &Reader, kind: ActionKind) -> HumanAction {
    HumanAction {
        id: uuid::Uuid::now_v7().to_string(),
        actor: who.identity.username.clone(),
        action: kind.as_str().into(),
        via: Some("http".into()),
        ..HumanAction::default()
    }
}

/// What came of an action.
pub(super) struct Asked {
    action: HumanAction,
    /// None: not handled yet.
    pub handled: Option<HandledAction>,
    pub rollout: TenantRollout,
}

impl Asked {
    /// 200 where it is done, 202 where it waits, 409 where it was refused; `more` is laid over the body.
    pub fn response(self, who: &Reader, more: Value) -> Response {
        let view = overview(&self.rollout);
        let mut body = json!({"action": self.action, "rollouts": view});
        if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
            body.extend(more);
        }
        match self.handled {
            Some(handled) if handled.result.starts_with("done") => {
                body["result"] = handled.result.into();
                Json(body).into_response()
            }
            Some(handled) => {
                let mut error = HttpError::new(StatusCode::CONFLICT, "action_refused", handled.result);
                error.details = Some(Box::new(body));
                error.into_response()
            }
            None => {
                body["result"] = "waiting".into();
                let location = format!("/admin/tenants/{}/rollouts", who.tenant);
                (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(body)).into_response()
            }
        }
    }
}

/// A reason that can be kept.
pub(super) fn check_reason(reason: &str) -> Result<(), HttpError> {
    let wrong = |why: String| Err(HttpError::field("invalid_request", "reason", why));
    if reason.contains('\0') {
        return wrong("holds the character U+0000".into());
    }
    if reason.chars().count() > MAX_REASON {
        return wrong(format!("is longer than {MAX_REASON} characters"));
    }
    Ok(())
}

/// Writes the entry, and waits a while until it is handled.
pub(super) async fn ask(state: &Arc<Server>, who: &Reader, action: HumanAction) -> Result<Asked, HttpError> {
    tracing::info!(tenant = %who.tenant, actor = %action.actor, action = %action.action, id = %action.id, "an action is asked for by HTTP");
    control(state)?.append(&who.tenant, &action).await.map_err(refused)?;
    let begun = Instant::now();
    loop {
        let rollout = rollout(state, &who.tenant).await?;
        let handled = rollout.status.iter().flat_map(|s| &s.handled).find(|h| h.action.id == action.id).cloned();
        if handled.is_some() || begun.elapsed() > WAIT {
            return Ok(Asked { action, handled, rollout });
        }
        tokio::time::sleep(LOOK).await;
    }
}
