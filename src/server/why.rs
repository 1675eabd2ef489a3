//! `GET /admin/tenants/{tenant}/decisions/{id}/why`: a decision explained from its record.
//!
//! The text of the platform's policies is for who may read the platform's decisions; a tenant's reader hears their ids and reasons.
//! The agent itself never comes here: it has the answer's reason, code and decision id.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::request::Parts;

use super::admin::{authorized, failed, uid};
use super::caller::{may, named};
use super::error::HttpError;
use super::{AppState, Server};
use crate::gate::{Arm, Snapshot, Texts, Why, why};
use crate::policy::{CompiledPackage, Side};
use crate::store::StoredDecision;

/// The route.
pub async fn explain(
    State(state): State<AppState>,
    Path((tenant, id)): Path<(String, String)>,
    parts: Parts,
) -> Result<Json<Why>, HttpError> {
    let tenant = named(tenant)?;
    let reader = authorized(&state, &parts, &tenant).await?;
    let uid = uid(&state, &tenant)?;
    let stored = state.store.decision(&tenant, &id).await.map_err(failed)?;
    let Some(stored) = stored.filter(|d| d.record.tenant_uid == uid) else {
        return Err(HttpError::not_found("unknown_decision", "This tenant has no decision with this id."));
    };
    let platform = &state.settings.operator_namespace;
    let all = *platform == tenant || may(&state, &reader, "get", "decisions", platform).await?;
    let texts = texts(&state, &stored, all).await;
    // Evaluation may take as long as the check did.
    let explained = state.lanes.run(&tenant, move || why(&stored.record, &texts)).await?;
    Ok(Json(explained))
}

/// The packages of a record: in force, or kept.
async fn texts(state: &Server, stored: &StoredDecision, all: bool) -> Vec<Texts> {
    let snapshot = state.snapshot.load_full();
    let record = &stored.record;
    let mut found = Vec::new();
    for (name, digests) in &record.digests {
        let side = if name == "platform" { Side::Platform } else { Side::Tenant };
        let visible = all || side == Side::Tenant;
        for digest in digests {
            let package = match in_force(&snapshot, &record.tenant, digest, side) {
                Some(package) => Some(package),
                // What may not be shown need not be looked for.
                None if !visible => None,
                None => {
                    let namespace =
                        if side == Side::Tenant { &record.tenant } else { &state.settings.operator_namespace };
                    state.past.find(namespace, digest, side).await
                }
            };
            found.push(Texts { side, digest: digest.clone(), package, visible });
        }
    }
    found
}

fn in_force(snapshot: &Snapshot, tenant: &str, digest: &str, side: Side) -> Option<Arc<CompiledPackage>> {
    match side {
        Side::Tenant => {
            let tenant = snapshot.tenants.get(tenant)?;
            let mut both = [Arm::Stable, Arm::Canary].into_iter().filter_map(|arm| tenant.package_of(arm));
            both.find(|p| p.digest() == digest).cloned()
        }
        Side::Platform => {
            let packages = snapshot.platform.as_ref()?.as_ref().ok()?;
            packages.iter().find(|p| p.digest() == digest).cloned()
        }
    }
}

#[cfg(test)]
#[path = "why_tests.rs"]
mod unit;
