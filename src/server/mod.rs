//! The HTTP surface: AuthZEN, sessions, admin, health. Thin: bytes to request, request to gates, decision to record and answer.
//!
//! Must never decide anything itself, and never let an allow leave before its record is committed.

mod admin;
pub mod admission;
mod authn;
mod authz;
mod body;
mod caller;
mod check;
mod clock;
mod control;
mod discovery;
mod error;
mod evaluation;
mod freshness;
mod going_back;
mod health;
mod ijson;
pub mod issuers;
mod journal;
mod lanes;
mod metrics;
mod observability;
pub mod openapi;
mod outcome;
mod policies;
mod replays;
mod request_id;
mod retention;
mod review_api;
mod reviews;
mod rollouts;
mod search;
mod sessions;
mod shadow;
mod shipping;
mod text_diff;
pub mod tls;
mod why;
mod wire;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};

pub use authn::{
    Audience, Authenticated, Authenticator, AuthnError, BoxFuture, Identity, ReviewedTokens, TokenReviewer, accept,
    prefilter,
};
pub use authz::{AccessReviewer, Ask, Authorizer, ReviewedAccess};
pub use clock::{Clock, SystemClock};
pub use control::{ControlError, RolloutControl};
pub use error::HttpError;
pub use freshness::Freshness;
pub use health::{note_router, router as health_router};
pub use ijson::{JsonError, MAX_DEPTH, parse as parse_json};
pub use journal::JournalNumbers;
pub use metrics::Metrics;
pub use retention::retain;
pub use review_api::KubeReviews;
pub use reviews::NoVerdict;
pub use sessions::Sessions;
pub use shadow::Shadow;
pub use shipping::ShippingNumbers;

use crate::gate::{CheckInput, Checked, Snapshot};
use crate::source::past::PastPackages;
use crate::store::{Journal, Replays, Store};

/// The gates as the server calls them: `gate::check`, or a stand-in in tests of the server itself.
pub type Gate = fn(&CheckInput<'_>) -> Checked;

/// What a deployment chooses.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Older snapshots answer nothing.
    pub max_staleness: Duration,
    /// The platform tenant: `/admin/audit` is authorized there.
    pub operator_namespace: String,
    /// How long an allow waits for its record.
    pub commit_timeout: Duration,
    /// The tenant of a caller who names none and has none: a folder has only one.
    pub only_tenant: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_staleness: Duration::from_secs(300),
            operator_namespace: "remit-system".into(),
            commit_timeout: Duration::from_secs(5),
            only_tenant: None,
        }
    }
}

/// Everything that a request needs.
pub struct Server {
    /// The set that checks see.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// When the feed last showed life.
    pub freshness: Arc<Freshness>,
    /// Commit point of every allow.
    pub journal: Arc<dyn Journal>,
    /// Everything but the hot path.
    pub store: Arc<dyn Store>,
    /// Runs of replays.
    pub replays: Arc<dyn Replays>,
    /// Who calls.
    pub authenticator: Arc<dyn Authenticator>,
    /// What they may.
    pub authorizer: Arc<dyn Authorizer>,
    /// Live sessions.
    pub sessions: Arc<Sessions>,
    /// What Prometheus reads.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Key of the digests that stand for `@sensitive` values.
    pub redaction_key: Vec<u8>,
    /// What the deployment chose.
    pub settings: Settings,
    /// `gate::check`.
    pub gate: Gate,
    /// Where long evaluations wait, by tenant.
    pub lanes: Lanes,
    /// Packages that were in force before, for explaining.
    pub past: Arc<dyn PastPackages>,
    /// Compares the packages of a rollout, off the answers' path.
    pub shadow: Arc<Shadow>,
    /// Rollouts of the cluster; None in a folder.
    pub control: Option<Arc<dyn RolloutControl>>,
}

pub use lanes::Lanes;

/// Shared by all handlers.
pub type AppState = Arc<Server>;

impl Server {
    /// The snapshot to answer from, unless there is none yet or it is too old.
    fn current(&self) -> Result<Arc<Snapshot>, HttpError> {
        match self.freshness.age(self.clock.instant()) {
            None => Err(HttpError::unavailable("not_synced", "Remit has not read its objects yet.")),
            Some(age) if age > self.settings.max_staleness => Err(HttpError::unavailable(
                "snapshot_stale",
                format!(
                    "Remit last heard from the API server {} s ago, and answers nothing for that long.",
                    age.as_secs()
                ),
            )),
            Some(_) => Ok(self.snapshot.load_full()),
        }
    }
}

/// Every route of the TLS port.
pub fn router(state: AppState) -> Router {
    let sessions = |router: Router<AppState>, prefix: &str| {
        router
            .route(&format!("{prefix}/access/v1/evaluation"), post(evaluation::one))
            .route(&format!("{prefix}/access/v1/evaluations"), post(evaluation::many))
            .route(&format!("{prefix}/access/v1/search/resource"), post(search::resource))
            .route(&format!("{prefix}/access/v1/search/subject"), post(search::subject))
            .route(&format!("{prefix}/access/v1/search/action"), post(search::action))
            .route(&format!("{prefix}/decisions/{{id}}/outcome"), post(outcome::report))
            .route(&format!("{prefix}/sessions"), post(sessions::open))
            .route(&format!("{prefix}/sessions/{{id}}"), delete(sessions::end))
            .route(&format!("{prefix}/sessions/{{id}}/heartbeat"), post(sessions::heartbeat))
            .route(&format!("{prefix}/sessions/{{id}}/end"), post(sessions::end))
    };
    let by_hand = |router: Router<AppState>, prefix: &str| {
        router
            .route(&format!("{prefix}/policies"), get(policies::list))
            .route(&format!("{prefix}/policies/{{name}}/versions"), get(policies::versions))
            .route(&format!("{prefix}/policies/{{name}}/versions/{{version}}"), get(policies::one))
            .route(&format!("{prefix}/policies/{{name}}/diff"), get(policies::diff))
            .route(&format!("{prefix}/policies/{{name}}/rollback"), post(going_back::rollback))
    };
    let router = sessions(sessions(Router::new(), ""), "/tenants/{tenant}");
    let router = by_hand(by_hand(router, ""), "/admin/tenants/{tenant}");
    router
        .route("/.well-known/authzen-configuration", get(discovery::plain))
        .route("/.well-known/authzen-configuration/tenants/{tenant}", get(discovery::tenant))
        .route("/openapi.json", get(discovery::openapi))
        .route("/admin/tenants/{tenant}/decisions", get(admin::list))
        .route("/admin/tenants/{tenant}/decisions/{id}", get(admin::one))
        .route("/admin/tenants/{tenant}/decisions/{id}/why", get(why::explain))
        .route("/admin/replay/runs", post(replays::begin))
        .route("/admin/replay/runs/{id}", get(replays::one))
        .route("/admin/replay/runs/{id}/report", get(replays::report))
        .route("/admin/tenants/{tenant}/rollouts", get(rollouts::list).post(rollouts::create))
        .route("/admin/tenants/{tenant}/rollouts/observability", get(observability::observability))
        .route("/admin/tenants/{tenant}/rollouts/{id}", get(rollouts::one))
        .route("/admin/tenants/{tenant}/rollouts/{id}/package", get(rollouts::package))
        .route("/admin/tenants/{tenant}/rollouts/{id}/{action}", post(rollouts::act))
        .route("/admin/audit/records", get(admin::audit_records))
        .route("/admin/audit/anchors", get(admin::audit_anchors))
        .route("/admin/audit/tombstones", get(admin::audit_tombstones))
        .route("/admin/audit/writers", get(admin::audit_writers))
        .fallback(async || HttpError::not_found("unknown_route", "There is nothing at this address."))
        .method_not_allowed_fallback(async || {
            HttpError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "This address takes another method.")
        })
        .layer(axum::middleware::from_fn_with_state(state.clone(), request_id::echo))
        .with_state(state)
}
