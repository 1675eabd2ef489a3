//! Sessions over HTTP, and their keeping: new and ended ones before the answer, heartbeats in batches.
//!
//! Must never tell somebody else's session from one that does not exist.

mod shared;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use rand_core::{OsRng, RngCore as _};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::caller::{self, Call};
use super::error::HttpError;
use super::{AppState, body, ijson};
use crate::api::EffectiveProfile;
use crate::gate::{SessionState, Snapshot, Tenant};
use crate::lifecycle::session::{Owner, SessionError, SessionTable};
use crate::store::{SessionRow, Store, StoreError};

/// How often silence is looked for, and heartbeats are kept.
const SWEEP: Duration = Duration::from_secs(2);

/// The table, and what of it is not kept yet.
#[derive(Default)]
pub struct Sessions {
    table: RwLock<SessionTable>,
    /// Changed rows by id. Locked while the table is: the newest state of a row is the one that is kept.
    unkept: Mutex<HashMap<String, SessionRow>>,
    /// One writer at a time, so that a heartbeat can't overtake an end.
    keeping: tokio::sync::Mutex<()>,
    /// What other replicas do.
    others: shared::Others,
}

impl Sessions {
    /// The sessions that lived when the server stopped.
    pub async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        // Where others write too, the first takeover brings them: a replica starts also while the database is away.
        let rows = if store.shared() { Vec::new() } else { store.live_sessions().await? };
        let table = SessionTable::load(rows);
        Ok(Self { table: RwLock::new(table), ..Self::default() })
    }

    /// What a check is told.
    pub fn state(&self, id: &str, owner: &Owner, now: Timestamp, timeout_seconds: i64) -> SessionState {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.state(Some(id), owner, now, timeout_seconds)
    }

    /// How many are live.
    pub fn len(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none is live.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends silent sessions and keeps what changed, until `stop`; then once more.
    pub async fn run(self: Arc<Self>, state: AppState, mut stop: watch::Receiver<bool>) {
        let store = state.store.as_ref();
        let mut swept = Instant::now();
        let (mut stopped, mut first) = (false, true);
        while !stopped {
            let wait = if store.shared() { shared::SYNC } else { SWEEP };
            stopped = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => true,
                () = tokio::time::sleep(wait), if !first => false,
                () = std::future::ready(()), if first => false,
            };
            first = false;
            if store.shared()
                && let Err(error) = self.sync(store, state.clock.now()).await
            {
                tracing::warn!(%error, "the other replicas' sessions could not be read; it is tried again");
            }
            if !stopped && swept.elapsed() < SWEEP {
                continue;
            }
            swept = Instant::now();
            if !store.shared() {
                self.expire(&state.snapshot.load(), state.clock.now());
            }
            let kept = self.keep(store).await;
            let expired = match (&kept, store.shared()) {
                // Own heartbeats first: they count.
                (Ok(()), true) => self.expire_shared(store, &state.snapshot.load(), state.clock.now()).await,
                _ => Ok(()),
            };
            if let Err(error) = kept.and(expired) {
                tracing::warn!(%error, "sessions could not be kept; they will be tried again");
            }
            state.metrics.sessions.set(i64::try_from(self.len()).unwrap_or(i64::MAX));
        }
    }

    /// Ends what has been silent for longer than its tenant's profile allows.
    pub fn expire(&self, snapshot: &Snapshot, now: Timestamp) {
        // Before the first set is built nobody's profile is known: a restart must not end what a longer timeout lets live.
        if snapshot.generation == 0 {
            return;
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let ended = table.expire(now, |row| timeout(snapshot, row));
        let mut unkept = self.unkept();
        for row in ended {
            tracing::info!(session = row.id, tenant = row.tenant, agent = row.agent, "a session ended: no heartbeat");
            unkept.insert(row.id.clone(), row);
        }
    }

    /// Writes what has changed. What could not be written stays to be written.
    pub async fn keep(&self, store: &dyn Store) -> Result<(), StoreError> {
        let _writer = self.keeping.lock().await;
        let rows: Vec<SessionRow> = self.unkept().values().cloned().collect();
        if rows.is_empty() {
            return Ok(());
        }
        store.save_sessions(&rows).await?;
        let mut unkept = self.unkept();
        for row in rows {
            if unkept.get(&row.id) == Some(&row) {
                unkept.remove(&row.id);
            }
        }
        Ok(())
    }

    async fn open(&self, store: &dyn Store, owner: Owner, now: Timestamp) -> Result<SessionRow, HttpError> {
        let mut random = [0; 16];
        OsRng.try_fill_bytes(&mut random).map_err(|_| HttpError::internal())?;
        let id = random.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let row = {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            table.issue(id, owner, now).map_err(not_done)?
        };
        // Kept before anybody hears of it: a restart must not lose it.
        let kept = store.save_sessions(std::slice::from_ref(&row)).await;
        kept.map_err(|error| {
            self.table.write().unwrap_or_else(PoisonError::into_inner).forget(&row.id);
            not_kept(&error)
        })?;
        Ok(row)
    }

    fn heartbeat(&self, id: &str, owner: &Owner, now: Timestamp, timeout_seconds: i64) -> Result<(), HttpError> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let row = table.heartbeat(id, owner, now, timeout_seconds).map_err(not_done)?;
        self.unkept().insert(row.id.clone(), row);
        Ok(())
    }

    async fn end(&self, store: &dyn Store, id: &str, owner: &Owner, now: Timestamp) -> Result<(), HttpError> {
        {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            let row = table.end(id, owner, now).map_err(not_done)?;
            self.unkept().insert(row.id.clone(), row);
        }
        // It has ended here whatever the store says, and will be kept as ended as soon as that works.
        self.keep(store).await.map_err(|error| not_kept(&error))
    }

    fn owner(&self, id: &str, tenant: &Tenant) -> Option<Owner> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).owner(id, &tenant.name, &tenant.uid)
    }

    fn unkept(&self) -> MutexGuard<'_, HashMap<String, SessionRow>> {
        self.unkept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds of silence that a session's tenant allows.
fn timeout(snapshot: &Snapshot, row: &SessionRow) -> i64 {
    let tenant = snapshot.tenants.get(&row.tenant).filter(|tenant| tenant.uid == row.tenant_uid);
    tenant.map(|t| t.profile).unwrap_or_default().session_timeout_seconds
}

fn not_done(error: SessionError) -> HttpError {
    match error {
        SessionError::Unknown => HttpError::not_found("session_unknown", "No live session of this agent has this id."),
        SessionError::TooMany => HttpError {
            status: StatusCode::TOO_MANY_REQUESTS,
            ..HttpError::bad_request("too_many_sessions", error.to_string())
        },
    }
}

fn not_kept(error: &StoreError) -> HttpError {
    tracing::error!(%error, "a session could not be kept");
    HttpError::unavailable("store_unavailable", "The session can't be kept now.")
}

#[derive(Serialize)]
struct SessionAnswer {
    session: String,
    agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_after_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<bool>,
}

/// `POST …/sessions`.
pub async fn open(
    State(state): State<AppState>,
    params: Option<Path<HashMap<String, String>>>,
    request: Request,
) -> Result<Response, HttpError> {
    let (parts, sent) = request.into_parts();
    let call = caller::call(&state, &parts.headers, &parts.extensions, param(params.as_ref(), "tenant")).await?;
    let body = body::optional_object(&parts.headers, sent).await?;
    let named = named_agent(&body)?;
    let tenant = tenant(&call)?;
    let name = match (&call.caller.agent, named) {
        (Some((_, own)), None) => own.clone(),
        (Some((_, own)), Some(named)) if *own == named => named,
        (Some(_), Some(_)) => return Err(foreign()),
        (None, Some(named)) => named,
        (None, None) => {
            return Err(HttpError::field("invalid_request", "agent", "is required: a gateway names the agent"));
        }
    };
    let agent = tenant.agents.get(&name).ok_or_else(|| {
        HttpError::not_found("unknown_agent", format!("Tenant {:?} has no Agent {name:?}.", tenant.name))
    })?;
    let owner = Owner {
        tenant: tenant.name.clone(),
        tenant_uid: tenant.uid.clone(),
        agent: agent.facts.name.clone(),
        agent_uid: agent.facts.uid.clone(),
    };
    let row = state.sessions.open(state.store.as_ref(), owner, state.clock.now()).await?;
    let expires_after_seconds = Some(tenant.profile.session_timeout_seconds);
    tracing::info!(session = row.id, tenant = row.tenant, agent = row.agent, "a session began");
    let answer = SessionAnswer { session: row.id, agent: row.agent, expires_after_seconds, ended: None };
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// `POST …/sessions/{id}/heartbeat`.
pub async fn heartbeat(
    State(state): State<AppState>,
    params: Option<Path<HashMap<String, String>>>,
    request: Request,
) -> Result<Response, HttpError> {
    let (id, owner, profile) = of(&state, params.as_ref(), request).await?;
    state.sessions.heartbeat(&id, &owner, state.clock.now(), profile.session_timeout_seconds)?;
    let expires_after_seconds = Some(profile.session_timeout_seconds);
    Ok(Json(SessionAnswer { session: id, agent: owner.agent, expires_after_seconds, ended: None }).into_response())
}

/// `POST …/sessions/{id}/end` and `DELETE …/sessions/{id}`.
pub async fn end(
    State(state): State<AppState>,
    params: Option<Path<HashMap<String, String>>>,
    request: Request,
) -> Result<Response, HttpError> {
    let (id, owner, _) = of(&state, params.as_ref(), request).await?;
    state.sessions.end(state.store.as_ref(), &id, &owner, state.clock.now()).await?;
    tracing::info!(session = id, tenant = owner.tenant, agent = owner.agent, "a session ended");
    Ok(Json(SessionAnswer { session: id, agent: owner.agent, expires_after_seconds: None, ended: Some(true) })
        .into_response())
}

/// The session in the path, as far as the caller may touch it.
async fn of(
    state: &AppState,
    params: Option<&Path<HashMap<String, String>>>,
    request: Request,
) -> Result<(String, Owner, EffectiveProfile), HttpError> {
    let (parts, sent) = request.into_parts();
    let call = caller::call(state, &parts.headers, &parts.extensions, param(params, "tenant")).await?;
    body::optional_object(&parts.headers, sent).await?;
    let tenant = tenant(&call)?;
    let id = param(params, "id").unwrap_or_default();
    state.sessions.find(state.store.as_ref(), &id, state.clock.now()).await;
    let owner = state.sessions.owner(&id, tenant).ok_or(SessionError::Unknown).map_err(not_done)?;
    let alive = tenant.agents.get(&owner.agent).is_some_and(|agent| agent.facts.uid == owner.agent_uid);
    let own = call.caller.agent.as_ref().is_none_or(|(_, name)| *name == owner.agent);
    if alive && own { Ok((id, owner, tenant.profile)) } else { Err(not_done(SessionError::Unknown)) }
}

/// The tenant, once it is clear that the caller may ask about it.
fn tenant(call: &Call) -> Result<&Tenant, HttpError> {
    if let Some(refusal) = &call.refusal {
        return Err(refusal.error());
    }
    if call.caller.agent.as_ref().is_some_and(|(own, _)| *own != call.tenant) {
        return Err(foreign());
    }
    call.snapshot
        .tenants
        .get(&call.tenant)
        .map(AsRef::as_ref)
        .ok_or_else(|| HttpError::not_found("unknown_tenant", format!("Remit knows no tenant {:?}.", call.tenant)))
}

fn foreign() -> HttpError {
    HttpError::forbidden("not_your_identity", "An agent has sessions only for itself, in its own tenant.")
}

fn named_agent(body: &Map<String, Value>) -> Result<Option<String>, HttpError> {
    if let Some(other) = body.keys().find(|key| *key != "agent") {
        let field = other.escape_debug().take(64).collect::<String>();
        return Err(HttpError::field("invalid_request", field, "is not known: the one member is `agent`"));
    }
    match body.get("agent") {
        None => Ok(None),
        Some(Value::String(name)) => Ok(Some(name.clone())),
        Some(other) => {
            Err(HttpError::field("invalid_request", "agent", format!("must be a string, not {}", ijson::kind(other))))
        }
    }
}

fn param(params: Option<&Path<HashMap<String, String>>>, name: &str) -> Option<String> {
    params.and_then(|Path(params)| params.get(name).cloned())
}
