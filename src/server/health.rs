//! `/livez`, `/readyz` and `/metrics`: plain HTTP on a port of their own.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;

use super::AppState;

/// The routes of the metrics port. Not ready any more once `leaving` says so, while calls are still answered.
pub fn router(state: AppState, leaving: watch::Receiver<bool>) -> Router {
    let ready = move |state: State<AppState>| {
        let leaving = *leaving.borrow();
        async move {
            match leaving {
                true => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
                false => ready(state).await,
            }
        }
    };
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(state)
}

/// The same, beside the routes of the checks: `note` is what people should know although Remit is ready.
pub fn note_router(state: AppState, note: Note) -> Router {
    let ready = async move |State(state): State<AppState>| {
        let (status, body) = ready(State(state)).await;
        (status, note().map_or_else(|| body.to_owned(), |note| format!("{body}{note}\n")))
    };
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(state)
}

/// What people should know.
pub type Note = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Ready once the caches are synced. A stale snapshot is not unreadiness: the answer is then a 503 that says why, and
/// taking every replica out of the Service would only hide it. The store's health is a metric.
async fn ready(State(state): State<AppState>) -> (StatusCode, &'static str) {
    match state.freshness.age(state.clock.instant()) {
        Some(_) => (StatusCode::OK, "ok\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "not synced\n"),
    }
}

async fn metrics(State(state): State<AppState>) -> Response {
    let (snapshot, now) = (state.snapshot.load(), state.clock.now());
    let observing = snapshot.tenants.values().filter(|t| t.profile.observes(now).is_some()).count();
    state.metrics.snapshot(state.freshness.age(state.clock.instant()), snapshot.generation, observing);
    state.metrics.keep_tenants(|tenant| snapshot.tenants.contains_key(tenant));
    match state.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
