//! `POST …/policies/{name}/rollback`: a former version of one policy comes back into force, by going back to the newest revision in history
//! that has it. Remit holds no key to sign another package with, so whatever else is different in that revision comes back too: it is
//! listed, and nothing happens until all of it is acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::AppState;
use super::admin::failed;
use super::error::HttpError;
use super::policies::{Params, PolicyName, policy, reader, version};
use super::rollouts::{action, ask, check_reason, control, needs, not_kept, read, rollout};
use crate::api::{ActionKind, HumanAction, PolicyPackageSpec, RevisionStatus, TenantRollout, Tool};
use crate::lifecycle::rollout::left_compromised;
use crate::policy::texts;
use crate::store::{InForceRow, PolicyVersion};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RollbackBody {
    version: u64,
    reason: String,
    #[serde(default)]
    acknowledge: BTreeSet<String>,
}

/// Something else that going back changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct OtherChange {
    /// As `acknowledge` names it: `policy:ID`, `tool:NAME`, `schema`, `entities`, `mapping` or `package`.
    acknowledge: String,
    /// What happens to it.
    change: String,
}

/// The route.
pub async fn rollback(State(state): State<AppState>, params: Params, request: Request) -> Result<Response, HttpError> {
    let (parts, sent) = request.into_parts();
    let who = reader(&state, &parts, &params, "policypackages").await?;
    needs(&state, &who, ActionKind::Rollback.verb()).await?;
    let body: RollbackBody = read(&parts.headers, sent).await?;
    if body.reason.trim().is_empty() {
        return Err(HttpError::field("invalid_request", "reason", "is missing: say why, for the record"));
    }
    check_reason(&body.reason)?;
    let name = policy(&state, &who, &params).await?;
    let wanted = version(&state, &who, &name, body.version).await?;
    let there = rollout(&state, &who.tenant).await?;
    let status = there.status.clone().unwrap_or_default();
    if let Some(candidate) = &status.candidate {
        return Err(conflict(
            "rollout_under_way",
            format!("{} {} is being rolled out: wait for it, or abort it first.", candidate.package, candidate.version),
        ));
    }
    let Some(stable) = &status.stable else {
        return Err(conflict("nothing_in_force", "Nothing is in force in this tenant.".into()));
    };
    let next = state.store.version(&who.uid, &name.package, &name.policy, wanted.version + 1).await.map_err(failed)?;
    let recorded = state.store.in_force(&who.uid).await.map_err(failed)?;
    let compromised = state.store.compromised_keys(&who.uid).await.map_err(failed)?;
    let (good, left) = targets(&recorded, &wanted, next.as_ref(), &there, &compromised);
    if let (None, Some(left)) = (&good, &left) {
        return Err(conflict(
            "compromised_key",
            format!(
                "{} {} (revision {}) was signed with a compromised key.",
                left.package, left.version, left.revision
            ),
        ));
    }
    let target = good.ok_or_else(|| {
        not_kept(format!(
            "No revision in the history (spec.revisionHistoryLimit) has {name} in version {}; `GET …/versions/{}` still has its text.",
            wanted.version, wanted.version
        ))
    })?;
    if target.digest == stable.digest {
        return Err(conflict("already_in_force", format!("{name} is in force in version {} already.", wanted.version)));
    }
    let control = control(&state)?;
    let after = control.package(&who.tenant, &target).map_err(not_kept)?;
    let before = control.package(&who.tenant, stable).map_err(not_kept)?;
    if let Some(refusal) = control.obstacle(&after, &target.digest).await.map_err(failed)? {
        let mut error = conflict("package_refused", format!("{} {}: {refusal}", target.package, target.version));
        error.status = StatusCode::UNPROCESSABLE_ENTITY;
        return Err(error);
    }
    let others = others(&before, &after, &name)?;
    if others.iter().any(|o| !body.acknowledge.contains(&o.acknowledge)) {
        let mut error = conflict(
            "other_changes",
            format!(
                "Going back to {} {} (revision {}) changes more than {name}: send `acknowledge` with each of them.",
                target.package, target.version, target.revision
            ),
        );
        error.details = Some(Box::new(json!({
            "changes": others,
            "acknowledge": others.iter().map(|o| &o.acknowledge).collect::<Vec<_>>(),
            "revision": target.revision,
        })));
        return Err(error);
    }
    let entry = HumanAction {
        reason: Some(body.reason),
        revision: Some(target.revision),
        // Whatever came into force meanwhile was not what the caller looked at.
        digest: Some(stable.digest.clone()),
        ..action(&who, ActionKind::Rollback)
    };
    let asked = ask(&state, &who, entry).await?;
    let more = json!({
        "policy": name.to_string(), "version": wanted.version, "revision": target.revision,
        "before": stable.digest, "after": target.digest, "changes": others,
    });
    Ok(asked.response(&who, more))
}

fn conflict(code: &'static str, message: String) -> HttpError {
    HttpError::new(StatusCode::CONFLICT, code, message)
}

/// The newest revisions that were in force and are in the history, in which the policy has this version: from the one that brought it up to
/// the one that brought the next. First one by a good key, or unsigned; then one by a key that is compromised, or that left for that.
fn targets(
    recorded: &[InForceRow],
    wanted: &PolicyVersion,
    next: Option<&PolicyVersion>,
    rollout: &TenantRollout,
    compromised: &BTreeSet<String>,
) -> (Option<RevisionStatus>, Option<RevisionStatus>) {
    let Some(status) = rollout.status.as_ref() else { return (None, None) };
    let left: BTreeSet<&str> = status
        .history
        .iter()
        .filter(|h| left_compromised(h))
        .filter_map(|h| h.revision.key_fingerprint.as_deref())
        .chain(compromised.iter().map(String::as_str))
        .collect();
    let bad = |r: &RevisionStatus| r.key_fingerprint.as_deref().is_some_and(|k| left.contains(k));
    let has = |row: &&InForceRow| {
        row.revision >= wanted.revision && next.is_none_or(|n| row.revision < n.revision) && !row.digest.is_empty()
    };
    let kept = |row: &InForceRow| {
        let all = status.stable.iter().chain(status.history.iter().map(|h| &h.revision));
        all.into_iter().find(|r| r.revision == row.revision && r.digest == row.digest).cloned()
    };
    let newest_first: Vec<RevisionStatus> = recorded.iter().filter(has).filter_map(kept).collect();
    let find = |wanted: bool| newest_first.iter().find(|r| bad(r) == wanted).cloned();
    (find(false), find(true))
}

/// What else becomes different.
fn others(
    before: &PolicyPackageSpec,
    after: &PolicyPackageSpec,
    name: &PolicyName,
) -> Result<Vec<OtherChange>, HttpError> {
    let mut found = Vec::new();
    let mut note = |acknowledge: String, change: String| found.push(OtherChange { acknowledge, change });
    if before.package != after.package {
        note("package".into(), format!("{} becomes {}", before.package, after.package));
    }
    let of = |spec: &PolicyPackageSpec| {
        let texts = texts(spec).map_err(|refusal| {
            tracing::error!(%refusal, "a kept package can't be read");
            HttpError::internal()
        })?;
        Ok::<_, HttpError>(texts.into_iter().map(|t| (t.id, t.sha256)).collect::<BTreeMap<_, _>>())
    };
    let (old, new) = (of(before)?, of(after)?);
    for (id, change) in compare(&old, &new, |_, _| "update".into()) {
        if !(id == name.policy && name.package == after.package) {
            note(format!("policy:{id}"), change);
        }
    }
    let tools = |spec: &PolicyPackageSpec| spec.tools.iter().map(|t| (t.name.clone(), t.clone())).collect();
    let (old, new): (BTreeMap<String, Tool>, BTreeMap<String, Tool>) = (tools(before), tools(after));
    let tiers = |old: &Tool, new: &Tool| match old.tier == new.tier {
        true => "update".into(),
        false => format!("tier {} becomes {}", old.tier.as_str(), new.tier.as_str()),
    };
    for (tool, change) in compare(&old, &new, tiers) {
        note(format!("tool:{tool}"), change);
    }
    for (what, same) in [
        ("schema", before.schema == after.schema),
        ("entities", before.entities == after.entities),
        ("mapping", before.mapping == after.mapping),
    ] {
        if !same {
            note(what.into(), "update".into());
        }
    }
    Ok(found)
}

fn compare<T: PartialEq>(
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
    changed: impl Fn(&T, &T) -> String,
) -> Vec<(String, String)> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let change = |name: &&String| match (old.get(*name), new.get(*name)) {
        (None, _) => Some("create".to_owned()),
        (_, None) => Some("delete".to_owned()),
        (Some(old), Some(new)) => (old != new).then(|| changed(old, new)),
    };
    names.into_iter().filter_map(|name| Some((name.clone(), change(&name)?))).collect()
}

#[cfg(test)]
#[path = "going_back_tests.rs"]
mod tests;
