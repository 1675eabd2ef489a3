//! Gate 2, put together: the token's identity, the tenant that is asked about, and as what the caller may ask.
//!
//! An identity that belongs to an agent is that agent and nothing else, whatever its RBAC says. Everybody else is a gateway
//! where verb `check` on `agents` is theirs, and nobody where it is not.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::http::{Extensions, HeaderMap, header};

use super::authn::{Audience, Authenticated, AuthnError, Identity};
use super::authz::Ask;
use super::error::HttpError;
use super::{AppState, Server};
use crate::gate::{Caller, IdentityOwner, Snapshot};
use crate::policy::CallerKind;

/// Remote address of a connection; the accept loop puts it beside each request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// A caller who may ask, or whose asking is refused and recorded.
pub struct Call {
    /// The set in which the caller was looked up. Each check is decided in the newest one.
    pub snapshot: Arc<Snapshot>,
    /// The tenant that is asked about.
    pub tenant: String,
    /// Who.
    pub caller: Caller,
    /// Why it may not ask.
    pub refusal: Option<Refusal>,
    /// Under which an Agent claims the caller's identity.
    key: String,
}

impl Call {
    /// A gateway's, for tests.
    #[cfg(test)]
    pub fn of_tests(tenant: &str, snapshot: Arc<Snapshot>) -> Self {
        let caller = Caller { username: "gateway".into(), kind: CallerKind::Gateway, agent: None, stale: false };
        Self { snapshot, tenant: tenant.into(), caller, refusal: None, key: String::new() }
    }

    /// Whose lane long work waits in: the agent's own tenant waits, also when it asks about another one.
    pub fn lane(&self) -> &str {
        self.caller.agent.as_ref().map_or(self.tenant.as_str(), |(own, _)| own)
    }

    /// Whether a newer set says the same of the caller's identity. What it may do is asked of RBAC only for no agent's identity.
    pub fn holds_in(&self, newer: &Snapshot) -> bool {
        match (newer.identities.get(&self.key), &self.caller.agent) {
            (None, None) => self.caller.kind == CallerKind::Gateway,
            (Some(IdentityOwner::Agent { tenant, name }), Some((own, agent))) => tenant == own && name == agent,
            _ => false,
        }
    }
}

/// Why an authenticated caller may not ask.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Stable code.
    pub code: &'static str,
    /// For people.
    pub reason: String,
    /// In whose journal it is kept: never in that of a tenant that the caller has nothing to do with.
    pub kept_by: String,
}

impl Refusal {
    /// As an answer.
    pub fn error(&self) -> HttpError {
        HttpError::forbidden(self.code, self.reason.clone())
    }
}

/// Authenticates, and finds out as what the caller asks. `tenant` is the one in the path.
pub async fn call(
    state: &AppState,
    headers: &HeaderMap,
    extensions: &Extensions,
    tenant: Option<String>,
) -> Result<Call, HttpError> {
    let snapshot = state.current()?;
    let Authenticated { identity, stale } = authenticate(state, headers, extensions, Audience::Checks).await?;
    let tenant = tenant.map(named).transpose()?;
    let owner = owner(&snapshot, &identity, tenant.as_deref());
    let tenant = match (tenant, &owner) {
        (Some(tenant), _) => tenant,
        (None, Some(IdentityOwner::Agent { tenant, .. })) => tenant.clone(),
        (None, _) => {
            identity.namespace().or(state.settings.only_tenant.as_deref()).map(str::to_owned).ok_or_else(|| {
                HttpError::bad_request(
                    "tenant_needed",
                    "The caller is no ServiceAccount: name the tenant, as in /tenants/NAME/…",
                )
            })?
        }
    };
    let kind = if owner.is_some() { CallerKind::Agent } else { CallerKind::Gateway };
    let mut caller = Caller { username: identity.username.clone(), kind, agent: None, stale };
    // A user without a namespace must not fill the journal of a tenant that they only name.
    let own = || identity.namespace().unwrap_or(&state.settings.operator_namespace).to_owned();
    let refusal = match owner {
        _ if !identity.counts_in(&tenant) => Some(Refusal {
            code: "not_allowed",
            reason: format!("The issuer of {:?} may not speak for namespace {tenant:?}.", identity.username),
            kept_by: own(),
        }),
        Some(IdentityOwner::Agent { tenant, name }) => {
            caller.agent = Some((tenant, name));
            None
        }
        Some(IdentityOwner::Conflict) => Some(Refusal {
            code: "identity_conflict",
            reason: format!(
                "Several Agents claim the identity {:?}: until one of them is left, it may not ask.",
                identity.username
            ),
            kept_by: own(),
        }),
        None if may(state, &identity, "check", "agents", &tenant).await? => None,
        None => Some(Refusal {
            code: "not_allowed",
            reason: format!(
                "{:?} is no Agent, and may not `check` `agents.remit.dev` in namespace {tenant:?}.",
                identity.username
            ),
            kept_by: own(),
        }),
    };
    let key = identity.key(&tenant);
    Ok(Call { snapshot, tenant, caller, refusal, key })
}

/// The agent whose identity it is. Another issuer's identity is looked up in the tenant that is asked about, and where none is
/// named in those that the issuer may speak for: it must be clear which is meant.
fn owner(snapshot: &Snapshot, identity: &Identity, tenant: Option<&str>) -> Option<IdentityOwner> {
    let get = |tenant: &str| snapshot.identities.get(&identity.key(tenant)).cloned();
    match (&identity.tenants, tenant) {
        (None, _) => get(""),
        (Some(_), Some(tenant)) => get(tenant).filter(|_| identity.counts_in(tenant)),
        (Some(tenants), None) => {
            let mut owners = tenants.iter().filter_map(|tenant| get(tenant));
            owners.next().filter(|_| owners.next().is_none())
        }
    }
}

/// The identity behind the request's bearer token.
pub async fn authenticate(
    state: &Server,
    headers: &HeaderMap,
    extensions: &Extensions,
    audience: Audience,
) -> Result<Authenticated, HttpError> {
    let from = extensions.get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
    let asked = match bearer(headers) {
        Some(token) => state.authenticator.authenticate(token, audience, from).await,
        None => Err(AuthnError::Missing),
    };
    asked.map_err(|error| {
        tracing::debug!(code = error.code(), %from, "not authenticated");
        match error {
            AuthnError::Unavailable | AuthnError::KeysUnavailable => {
                HttpError::unavailable(error.code(), error.to_string())
            }
            AuthnError::Throttled => {
                let mut http = HttpError::unavailable(error.code(), error.to_string());
                http.status = axum::http::StatusCode::TOO_MANY_REQUESTS;
                http
            }
            _ => HttpError::unauthorized(error.code(), error.to_string()),
        }
    })
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Whether RBAC gives this identity the verb; 503 when nobody can say.
pub async fn may(
    state: &Server,
    who: &Identity,
    verb: &'static str,
    resource: &'static str,
    namespace: &str,
) -> Result<bool, HttpError> {
    let ask = Ask { verb, resource, namespace: namespace.to_owned() };
    state.authorizer.allowed(who, ask).await.map_err(|_| {
        HttpError::unavailable(
            "authorization_unavailable",
            "The API server can't be asked about the caller's rights now.",
        )
    })
}

/// A namespace's name as it stands in a path.
pub fn named(tenant: String) -> Result<String, HttpError> {
    let bytes = tenant.as_bytes();
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    let edge = |b: Option<&u8>| b.is_some_and(|b| *b != b'-');
    if bytes.len() <= 63 && bytes.iter().all(plain) && edge(bytes.first()) && edge(bytes.last()) {
        return Ok(tenant);
    }
    Err(HttpError::field("invalid_request", "tenant", "is not the name of a namespace"))
}
