//! The validating admission webhook: `POST /validate`.
//!
//! Refuses only what the bytes alone prove wrong. What depends on other objects is a warning here and a condition later, and the load path
//! enforces it: Flux dry-runs a whole set before it applies the first object. Must never let the bytes of one tenant stop the admissions of
//! others, and never answer "allowed" for what it could not read or had no time to read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use kube::core::DynamicObject;
use kube::core::admission::{
    AdmissionRequest, AdmissionResponse, AdmissionReview, META_API_VERSION_V1, META_KIND, Operation,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::{
    DEFAULT_NAME, EffectiveProfile, Enforcement, GROUP, MAX_OBSERVE, PackageSelector, PolicyPackageSpec, Stage,
    TenantProfileSpec, TenantRolloutSpec, too_far,
};
use crate::policy::Refusal;

/// Largest review: the API server sends the old and the new object, each up to its own limit of 1.5 MiB.
pub const MAX_BODY: usize = 3 << 20;
/// Packages that are checked at the same time, over all tenants.
const PACKAGES_AT_ONCE: usize = 4;
/// How long a review may take; the API server gives up after 5 s.
const TIME: Duration = Duration::from_secs(4);
/// The API server cuts or drops longer warnings, and many of them.
const MAX_WARNING: usize = 256;
const MAX_WARNINGS: usize = 5;
/// Refusals that one answer names.
const MAX_REFUSALS: usize = 5;

/// What admission knows besides the object in the request.
pub trait AdmissionContext: Send + Sync + 'static {
    /// What the bytes of the package prove wrong, and what else stands in the way of its coming into force (`policy::prove`).
    fn prove(&self, spec: &PolicyPackageSpec, tenant: &str) -> (Vec<Refusal>, Vec<Refusal>);
    /// Notes who applied a package that is admitted, for the history.
    fn applied(&self, spec: &PolicyPackageSpec, tenant: &str, username: &str);
    /// The operator's own namespace.
    fn platform_tenant(&self) -> &str;
    /// The platform's profile: the floor of every tenant's.
    fn platform_profile(&self) -> Option<TenantProfileSpec>;
}

/// The verdict on one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Why it is refused; empty: admitted.
    refused: Vec<String>,
    /// What its author should know.
    warnings: Vec<String>,
}

impl Verdict {
    fn refuse(message: impl Into<String>) -> Self {
        Self { refused: vec![message.into()], warnings: Vec::new() }
    }
}

/// Judges one request. Pure, and as slow as the package in it: the router bounds time and concurrency.
pub fn review(request: &AdmissionRequest<DynamicObject>, context: &dyn AdmissionContext) -> AdmissionResponse {
    let response = AdmissionResponse::from(request);
    if !matches!(request.operation, Operation::Create | Operation::Update) || request.sub_resource.is_some() {
        return response;
    }
    let Some(object) = &request.object else {
        return refused(response, vec!["object: missing in the review".into()]);
    };
    // Taking a finalizer off, or changing a label, must work whatever Remit thinks of the spec by now.
    let unchanged = request.old_object.as_ref().is_some_and(|old| old.data.get("spec") == object.data.get("spec"));
    if unchanged || object.metadata.deletion_timestamp.is_some() || request.resource.group != GROUP {
        return response;
    }
    let tenant = request.namespace.as_deref().unwrap_or_default();
    let verdict = match request.resource.resource.as_str() {
        "policypackages" => spec_of(object).map(|spec| {
            let verdict = package(&spec, tenant, context);
            if verdict.refused.is_empty() && !request.dry_run {
                context.applied(&spec, tenant, request.user_info.username.as_deref().unwrap_or_default());
            }
            verdict
        }),
        "tenantrollouts" => spec_of(object).map(|spec| rollout(&request.name, &spec)),
        "tenantprofiles" => spec_of(object).map(|spec| profile(&request.name, &spec, tenant, context)),
        _ => return response,
    };
    match verdict {
        Err(message) => refused(response, vec![message]),
        Ok(verdict) if !verdict.refused.is_empty() => refused(response, verdict.refused),
        Ok(verdict) => {
            let mut response = response;
            if !verdict.warnings.is_empty() {
                response.warnings = Some(few_and_short(verdict.warnings));
            }
            response
        }
    }
}

fn package(spec: &PolicyPackageSpec, tenant: &str, context: &dyn AdmissionContext) -> Verdict {
    let (refusals, warnings) = context.prove(spec, tenant);
    Verdict {
        refused: refusals.iter().map(Refusal::to_string).collect(),
        warnings: warnings.iter().map(|r| format!("will not come into force as it is: {r}")).collect(),
    }
}

fn rollout(name: &str, spec: &TenantRolloutSpec) -> Verdict {
    let mut out = named_default("TenantRollout", name);
    if let Some(limit) = spec.revision_history_limit.filter(|n| !(1..=100).contains(n)) {
        out.refused.push(format!("spec.revisionHistoryLimit: {limit} is not between 1 and 100"));
    }
    stages(spec.stages.as_deref(), &mut out);
    let Some(PackageSelector { name, version, digest }) = &spec.package else { return out };
    if let Some(digest) = digest {
        if !is_digest(digest) {
            out.refused.push("spec.package.digest: must be `sha256:` and 64 lower-case hex digits".into());
        }
        if name.is_some() || version.is_some() {
            out.refused.push("spec.package: digest names exactly one package; leave out name and version".into());
        }
    }
    if let Some(range) = version {
        match semver::VersionReq::parse(range) {
            Err(error) => out.refused.push(format!(
                "spec.package.version: {range:?} is not a range of versions ({error}); examples: ^1.2, \">=1, <2\", =1.4.0"
            )),
            Ok(_) if semver::Version::parse(range.trim()).is_ok() => out.warnings.push(format!(
                "spec.package.version: {range} means ^{range}, later compatible versions too; write ={range} for exactly this one"
            )),
            Ok(_) => {}
        }
    }
    out
}

/// The definition's schema says the same to whoever gets past this.
fn stages(stages: Option<&[Stage]>, out: &mut Verdict) {
    let Some(stages) = stages else { return };
    if stages.is_empty() {
        out.refused.push("spec.stages: must have at least one stage, or be left out".into());
    }
    let mut before = 0;
    for (i, stage) in stages.iter().enumerate() {
        let percent = stage.percent;
        if !(1..=100).contains(&percent) {
            out.refused.push(format!("spec.stages[{i}].percent: {percent} is not between 1 and 100"));
        } else if percent <= before {
            out.refused
                .push(format!("spec.stages[{i}].percent: {percent} must be more than in the stage before, {before}"));
        }
        before = percent;
    }
    if !stages.is_empty() && before != 100 {
        let i = stages.len() - 1;
        out.refused.push(format!("spec.stages[{i}].percent: {before} must be 100 in the last stage"));
    }
}

fn profile(name: &str, spec: &TenantProfileSpec, tenant: &str, context: &dyn AdmissionContext) -> Verdict {
    let mut out = named_default("TenantProfile", name);
    if let Some(n) = spec.session_timeout_seconds.filter(|n| !(10..=86_400).contains(n)) {
        out.refused.push(format!("spec.sessionTimeoutSeconds: {n} is not between 10 and 86400"));
    }
    if let Some(n) = spec.retention_days.filter(|n| !(1..=3650).contains(n)) {
        out.refused.push(format!("spec.retentionDays: {n} is not between 1 and 3650"));
    }
    observing(spec, context, tenant, &mut out);
    if tenant != context.platform_tenant() {
        let floor = EffectiveProfile::of(context.platform_profile().as_ref(), None);
        if let Some(n) = spec.session_timeout_seconds.filter(|n| *n > floor.session_timeout_seconds) {
            let floor = floor.session_timeout_seconds;
            out.warnings
                .push(format!("spec.sessionTimeoutSeconds: {n} is looser than the platform's {floor}, which holds"));
        }
        if let Some(n) = spec.retention_days.filter(|n| *n < floor.retention_days) {
            let floor = floor.retention_days;
            out.warnings.push(format!("spec.retentionDays: {n} is looser than the platform's {floor}, which holds"));
        }
    }
    out
}

/// What depends on the clock or on the platform's profile is warned of; the status says it too.
fn observing(spec: &TenantProfileSpec, context: &dyn AdmissionContext, tenant: &str, out: &mut Verdict) {
    if (spec.enforcement == Some(Enforcement::Observe)) != spec.observe_until.is_some() {
        out.refused.push("spec.observeUntil: stands with enforcement Observe, and only with it".into());
    }
    let Some(until) = spec.asks_to_observe() else { return };
    let now = jiff::Timestamp::now();
    if until <= now {
        out.warnings.push(format!("spec.observeUntil: {until} is over, so policy is enforced"));
    } else if too_far(until, now) {
        let days = MAX_OBSERVE.as_secs() / 86_400;
        out.warnings.push(format!("spec.observeUntil: {until} is more than {days} days ahead, so policy is enforced"));
    }
    let platform = context.platform_profile().and_then(|p| p.enforcement);
    if tenant != context.platform_tenant() && platform == Some(Enforcement::Enforce) {
        out.warnings.push("spec.enforcement: the platform's profile says Enforce, which holds".into());
    }
}

fn named_default(kind: &str, name: &str) -> Verdict {
    if name == DEFAULT_NAME {
        return Verdict::default();
    }
    Verdict::refuse(format!("metadata.name: must be {DEFAULT_NAME:?}, a namespace has one {kind}"))
}

fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The typed spec, or what is wrong with it and where.
fn spec_of<T: DeserializeOwned>(object: &DynamicObject) -> Result<T, String> {
    let spec = object.data.get("spec").unwrap_or(&Value::Null);
    serde_path_to_error::deserialize(spec).map_err(|error| match error.path().to_string().as_str() {
        "." => format!("spec: {}", error.inner()),
        path => format!("spec.{path}: {}", error.inner()),
    })
}

fn refused(mut response: AdmissionResponse, mut reasons: Vec<String>) -> AdmissionResponse {
    let more = reasons.len().saturating_sub(MAX_REFUSALS);
    reasons.truncate(MAX_REFUSALS);
    let mut message = reasons.join("; ");
    if more > 0 {
        message = format!("{message}; and {more} more");
    }
    response = response.deny(message);
    response.result.code = StatusCode::UNPROCESSABLE_ENTITY.as_u16();
    response.result.reason = "Invalid".into();
    response
}

fn few_and_short(warnings: Vec<String>) -> Vec<String> {
    let more = warnings.len().saturating_sub(MAX_WARNINGS);
    let keep = if more == 0 { MAX_WARNINGS } else { MAX_WARNINGS - 1 };
    let mut out: Vec<_> = warnings.into_iter().take(keep).map(|w| cut(&w)).collect();
    if more > 0 {
        out.push(format!("and {} more warnings", more + 1));
    }
    out
}

/// One line of at most `MAX_WARNING` characters: a newline would end the HTTP header that carries it.
fn cut(warning: &str) -> String {
    let line = warning.split(char::is_control).collect::<Vec<_>>().join(" ");
    if line.chars().count() <= MAX_WARNING {
        return line;
    }
    line.chars().take(MAX_WARNING - 1).chain(['…']).collect()
}

/// The webhook over what the operator knows.
pub fn router(context: Arc<dyn AdmissionContext>) -> Router {
    let state = Arc::new(Webhook { context, lanes: Lanes::default() });
    Router::new().route("/validate", post(validate)).with_state(state)
}

struct Webhook {
    context: Arc<dyn AdmissionContext>,
    lanes: Lanes,
}

async fn validate(State(webhook): State<Arc<Webhook>>, body: Body) -> Response {
    let body = match bytes(body).await {
        Ok(body) => body,
        Err(refused) => return refused.into_response(),
    };
    let request = match read(&body) {
        Ok(request) => request,
        Err(message) => return (StatusCode::BAD_REQUEST, message).into_response(),
    };
    drop(body);
    let late = AdmissionResponse::from(&request);
    let response = match tokio::time::timeout(TIME, judge(&webhook, request)).await {
        Ok(Some(response)) => response,
        Ok(None) => {
            tracing::error!("an admission review ended without an answer");
            return (StatusCode::INTERNAL_SERVER_ERROR, "the review ended without an answer").into_response();
        }
        Err(_) => {
            let mut response = late.deny(format!(
                "the object could not be checked within {} s and was not stored: other packages of this namespace are being checked, or \
                 this one takes too long; try again",
                TIME.as_secs()
            ));
            response.result.code = StatusCode::TOO_MANY_REQUESTS.as_u16();
            response.result.reason = "TooManyRequests".into();
            response
        }
    };
    Json(response.into_review()).into_response()
}

/// The whole body, within its limits of size and time: anybody who reaches the port may send one.
async fn bytes(body: Body) -> Result<Bytes, (StatusCode, String)> {
    match tokio::time::timeout(TIME, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err((StatusCode::PAYLOAD_TOO_LARGE, format!("the review is larger than {MAX_BODY} bytes")))
        }
        Ok(Err(_)) => Err((StatusCode::BAD_REQUEST, "the review ended before its end".into())),
        Err(_) => Err((StatusCode::REQUEST_TIMEOUT, "the review did not arrive in time".into())),
    }
}

fn read(body: &[u8]) -> Result<AdmissionRequest<DynamicObject>, String> {
    // serde_json refuses nesting over 128 by itself, so that no later walk over the value runs out of stack.
    let review: AdmissionReview<DynamicObject> =
        serde_json::from_slice(body).map_err(|error| format!("not an AdmissionReview: {error}"))?;
    if review.types.api_version != META_API_VERSION_V1 || review.types.kind != META_KIND {
        return Err(format!("not an AdmissionReview of {META_API_VERSION_V1}"));
    }
    review.try_into().map_err(|_| "the AdmissionReview has no request".to_owned())
}

/// Light kinds are judged here; packages elsewhere and a few at a time, because Cedar works on them as long as they make it.
async fn judge(webhook: &Arc<Webhook>, request: AdmissionRequest<DynamicObject>) -> Option<AdmissionResponse> {
    if request.resource.resource != "policypackages" {
        return Some(review(&request, webhook.context.as_ref()));
    }
    let turn = webhook.lanes.turn(request.namespace.as_deref().unwrap_or_default()).await?;
    let context = Arc::clone(&webhook.context);
    let judged = tokio::task::spawn_blocking(move || {
        // Held until the work really ends, also when the API server has given up: the work goes on.
        let _turn = turn;
        review(&request, context.as_ref())
    });
    judged.await.ok()
}

/// One package of a tenant at a time, and a few over all: a bomb holds up its own tenant only.
struct Lanes {
    all: Arc<Semaphore>,
    tenants: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(PACKAGES_AT_ONCE)), tenants: Mutex::default() }
    }
}

/// The right to check one package now.
struct Turn {
    _all: OwnedSemaphorePermit,
    _tenant: OwnedSemaphorePermit,
    // The tenant's lane lives as long as somebody is in it.
    _lane: Arc<Semaphore>,
}

impl Lanes {
    async fn turn(&self, tenant: &str) -> Option<Turn> {
        let lane = {
            let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
            match tenants.get(tenant).and_then(Weak::upgrade) {
                Some(lane) => lane,
                None => {
                    tenants.retain(|_, lane| lane.strong_count() > 0);
                    let lane = Arc::new(Semaphore::new(1));
                    tenants.insert(tenant.to_owned(), Arc::downgrade(&lane));
                    lane
                }
            }
        };
        // The tenant's own turn first: waiting for it must not hold one of the few places that all share.
        let own = Arc::clone(&lane).acquire_owned().await.ok()?;
        let all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Turn { _all: all, _tenant: own, _lane: lane })
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
