//! The history of policies as people read it: versions, one version, and the difference of two. Audience `remit-admin`, verb `get` on
//! `policypackages`: whoever may read the packages may read what was in them.
//!
//! A tenant that the caller may not read is not there: 404, as for one that does not exist.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::admin::{failed, number, parameters, uid, unknown};
use super::authn::{Audience, Identity};
use super::caller::{authenticate, may, named};
use super::error::HttpError;
use super::text_diff::unified;
use super::{AppState, Server};
use crate::store::{MAX_VERSIONS, PolicyVersion};

const WRONG: &str = "invalid_filter";
/// Versions of one page, if not said otherwise.
const PAGE: u32 = 100;

/// Names in the path.
pub(super) type Params = Path<HashMap<String, String>>;

/// Whose history, read by whom.
pub(super) struct Reader {
    /// Who.
    pub identity: Arc<Identity>,
    /// The tenant: the one in the path, else the caller's own.
    pub tenant: String,
    /// UID of the namespace.
    pub uid: String,
}

/// The caller, who must have verb `get` on `resource` in the tenant.
pub(super) async fn reader(
    state: &Server,
    parts: &Parts,
    params: &Params,
    resource: &'static str,
) -> Result<Reader, HttpError> {
    let identity = authenticate(state, &parts.headers, &parts.extensions, Audience::Admin).await?.identity;
    let tenant = match params.get("tenant") {
        Some(tenant) => named(tenant.clone())?,
        None => identity.namespace().or(state.settings.only_tenant.as_deref()).map(str::to_owned).ok_or_else(|| {
            HttpError::bad_request(
                "tenant_needed",
                "The caller is no ServiceAccount: name the tenant, as in /admin/tenants/NAME/…",
            )
        })?,
    };
    if !identity.counts_in(&tenant) || !may(state, &identity, "get", resource, &tenant).await? {
        return Err(not_there(&tenant));
    }
    let uid = uid(state, &tenant)?;
    if uid.is_empty() {
        return Err(not_there(&tenant));
    }
    Ok(Reader { identity, tenant, uid })
}

fn not_there(tenant: &str) -> HttpError {
    HttpError::not_found("unknown_tenant", format!("There is no tenant {tenant:?} that is yours to look at."))
}

/// A policy by its package and its id there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PolicyName {
    pub package: String,
    pub policy: String,
}

impl std::fmt::Display for PolicyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tenant/{}/{}", self.package, self.policy)
    }
}

/// The policy that the path names: `ID`, `PACKAGE/ID` or `tenant/PACKAGE/ID`, the slashes as `%2F`. An id alone is that of the package in
/// force, or of the one package that ever had it.
pub(super) async fn policy(state: &Server, reader: &Reader, params: &Params) -> Result<PolicyName, HttpError> {
    let name = params.get("name").cloned().unwrap_or_default();
    let heads = state.store.policies(&reader.uid, None).await.map_err(failed)?;
    let in_force = state.snapshot.load().tenants.get(&reader.tenant).and_then(|t| t.package.clone());
    resolve(&heads, &name, in_force.as_ref().map(|p| p.package()))
}

pub(super) fn resolve(heads: &[PolicyVersion], name: &str, in_force: Option<&str>) -> Result<PolicyName, HttpError> {
    let unknown = || {
        let name = name.escape_debug().take(200).collect::<String>();
        HttpError::not_found("unknown_policy", format!("This tenant never had a policy `{name}`."))
    };
    let (package, id) = match name.strip_prefix("tenant/").unwrap_or(name).rsplit_once('/') {
        Some((package, id)) => (Some(package), id),
        None => (None, name),
    };
    let found: Vec<&PolicyVersion> =
        heads.iter().filter(|h| h.policy == id && package.is_none_or(|p| p == h.package)).collect();
    let best = match found[..] {
        [] => return Err(unknown()),
        [one] => one,
        _ => found.iter().find(|h| Some(h.package.as_str()) == in_force).copied().ok_or_else(|| {
            let names = found.iter().map(|h| format!("{}/{}", h.package, h.policy)).collect::<Vec<_>>().join(", ");
            HttpError::field(
                "ambiguous_policy",
                "name",
                format!("several packages had it, and none is in force: {names}"),
            )
        })?,
    };
    Ok(PolicyName { package: best.package.clone(), policy: best.policy.clone() })
}

/// One version, or 404.
pub(super) async fn version(
    state: &Server,
    reader: &Reader,
    policy: &PolicyName,
    number: u64,
) -> Result<PolicyVersion, HttpError> {
    let found = state.store.version(&reader.uid, &policy.package, &policy.policy, number).await.map_err(failed)?;
    found.ok_or_else(|| HttpError::not_found("unknown_version", format!("{policy} has no version {number}.")))
}

/// `GET …/policies`: the newest version of every policy, deleted ones too.
pub async fn list(State(state): State<AppState>, params: Option<Params>, parts: Parts) -> Result<Response, HttpError> {
    // The short form has no names in its path.
    let params = params.unwrap_or_else(|| Path(HashMap::new()));
    let reader = reader(&state, &parts, &params, "policypackages").await?;
    let items = state.store.policies(&reader.uid, None).await.map_err(failed)?;
    Ok(Json(json!({"items": items})).into_response())
}

/// `GET …/policies/{name}/versions?limit=&before=`: newest first, deletions too.
pub async fn versions(
    State(state): State<AppState>,
    params: Params,
    RawQuery(query): RawQuery,
    parts: Parts,
) -> Result<Response, HttpError> {
    let (mut limit, mut before) = (PAGE, None);
    for (name, value) in parameters(&query.unwrap_or_default())? {
        match name.as_str() {
            "limit" => limit = number("limit", &value, MAX_VERSIONS)?,
            "before" => before = Some(version_number("before", &value)?),
            _ => return Err(unknown(&name, "limit, before")),
        }
    }
    let reader = reader(&state, &parts, &params, "policypackages").await?;
    let policy = policy(&state, &reader, &params).await?;
    let found = state.store.versions(&reader.uid, &policy.package, &policy.policy, before, limit).await;
    let items = found.map_err(failed)?;
    let next = items.last().map(|v| v.version).filter(|oldest| *oldest > 1);
    Ok(Json(json!({"policy": policy.to_string(), "items": items, "next": next})).into_response())
}

/// `GET …/policies/{name}/versions/{version}`: with its text.
pub async fn one(State(state): State<AppState>, params: Params, parts: Parts) -> Result<Response, HttpError> {
    let reader = reader(&state, &parts, &params, "policypackages").await?;
    let policy = policy(&state, &reader, &params).await?;
    let number = version_number("version", params.get("version").map_or("", String::as_str))?;
    Ok(Json(version(&state, &reader, &policy, number).await?).into_response())
}

/// `GET …/policies/{name}/diff?from=&to=`: a unified diff as text; `to` is the newest version where it is not given.
pub async fn diff(
    State(state): State<AppState>,
    params: Params,
    RawQuery(query): RawQuery,
    parts: Parts,
) -> Result<Response, HttpError> {
    let (mut from, mut to) = (None, None);
    for (name, value) in parameters(&query.unwrap_or_default())? {
        match name.as_str() {
            "from" => from = Some(version_number("from", &value)?),
            "to" => to = Some(version_number("to", &value)?),
            _ => return Err(unknown(&name, "from, to")),
        }
    }
    let from = from.ok_or_else(|| HttpError::field(WRONG, "from", "is missing: the version to start from"))?;
    let reader = reader(&state, &parts, &params, "policypackages").await?;
    let policy = policy(&state, &reader, &params).await?;
    let to = match to {
        Some(to) => to,
        None => {
            let newest = state.store.versions(&reader.uid, &policy.package, &policy.policy, None, 1).await;
            newest.map_err(failed)?.first().map_or(from, |v| v.version)
        }
    };
    let old = version(&state, &reader, &policy, from).await?;
    let new = version(&state, &reader, &policy, to).await?;
    let text = |v: &PolicyVersion| v.text.as_ref().map(|t| format!("{}\n", t.trim_end())).unwrap_or_default();
    let name =
        |v: &PolicyVersion| format!("{policy}\tversion {} {}", v.version, if v.deleted { "(deleted)" } else { "" });
    let body = unified(&text(&old), &text(&new), name(&old).trim_end(), name(&new).trim_end());
    Ok(([(header::CONTENT_TYPE, "text/x-diff; charset=utf-8")], body).into_response())
}

pub(super) fn version_number(name: &'static str, value: &str) -> Result<u64, HttpError> {
    let number = value.parse().ok().filter(|n| *n >= 1);
    number.ok_or_else(|| HttpError::field(WRONG, name, "must be a number of a version, from 1"))
}
