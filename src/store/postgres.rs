//! PostgreSQL: what several replicas share. Their journals stay their own and are shipped here; everything else lives only here.
//!
//! A topic has a file of its own, with functions over a connection or pool. Every call ends within a bound: a server that has gone
//! away without a word must not hold a task. Nothing here decides anything, and nothing here is on a check's way.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use tokio::sync::Mutex;

mod arms;
mod chains;
mod decisions;
mod history;
pub(super) mod intake;
mod ledger;
mod migrations;
mod replays;
pub mod roles;
mod rollouts;
mod schema;
mod sessions;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;
mod url;

pub use url::PostgresUrl;

use super::{
    Arrival, AuditRow, CallReport, DecisionFilter, InForceRow, Page, SessionRow, Store, StoreError, StoreFuture,
    StoredDecision,
};
use crate::api::Envelope;

/// How long a call may take.
const WITHIN: Duration = Duration::from_secs(15);
/// How long a call waits for a connection.
const ACQUIRE: Duration = Duration::from_secs(5);

/// How to open the store.
pub struct PostgresOptions {
    /// Where it is.
    pub url: PostgresUrl,
    /// Who writes this process's chain.
    pub writer: String,
    /// The installation's key, for tombstones; without it retention does nothing.
    pub signing_key: Option<SigningKey>,
    /// Connections at once.
    pub connections: u32,
}

impl PostgresOptions {
    /// With what nobody has to choose.
    pub fn new(url: PostgresUrl, writer: impl Into<String>) -> Self {
        Self { url, writer: writer.into(), signing_key: None, connections: 8 }
    }
}

/// The store that all replicas share.
pub struct PostgresStore {
    pool: PgPool,
    connect: PgConnectOptions,
    writer: String,
    signing_key: Option<SigningKey>,
    /// Whether the tables are known to be there.
    prepared: AtomicBool,
    preparing: Mutex<()>,
}

impl PostgresStore {
    /// A store that connects when it is first asked. Needs a tokio runtime.
    pub fn lazy(options: PostgresOptions) -> Arc<Self> {
        let connect = options.url.connect_options();
        let pool = PgPoolOptions::new()
            .max_connections(options.connections)
            .acquire_timeout(ACQUIRE)
            .idle_timeout(Duration::from_secs(300))
            .max_lifetime(Duration::from_secs(1800))
            .connect_lazy_with(connect.clone());
        Arc::new(Self {
            pool,
            connect,
            writer: options.writer,
            signing_key: options.signing_key,
            prepared: AtomicBool::new(false),
            preparing: Mutex::new(()),
        })
    }

    /// Opens the store and makes its tables, where the login may and they are missing.
    pub async fn open(options: PostgresOptions) -> Result<Arc<Self>, StoreError> {
        let store = Self::lazy(options);
        store.prepare().await?;
        Ok(store)
    }

    /// Sees that the tables are as this version wants them: once, and at no cost later. See `migrations::prepare`.
    pub async fn prepare(&self) -> Result<(), StoreError> {
        if self.prepared.load(Ordering::Relaxed) {
            return Ok(());
        }
        let _one = self.preparing.lock().await;
        if self.prepared.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut conn = self.connection().await?;
        migrations::prepare(&mut conn).await?;
        self.prepared.store(true, Ordering::Relaxed);
        let _ = within(sqlx::Connection::close(conn)).await;
        Ok(())
    }

    /// The pool, for the topics that keep tables of their own here. Bound every call: `within`.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Whether this login could change records: it owns them, or nothing holds it back.
    pub async fn owns_records(&self) -> Result<bool, StoreError> {
        let sql = "SELECT pg_catalog.pg_has_role(c.relowner, 'USAGE'::text) FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass('records'::text)";
        within(sqlx::query_scalar(sql).fetch_one(&self.pool)).await
    }

    /// A connection of one's own, for what holds it for long.
    pub(super) async fn connection(&self) -> Result<PgConnection, StoreError> {
        within(self.connect.connect()).await
    }

    /// Lets go of the connections.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(Duration::from_secs(5), self.pool.close()).await;
    }

    /// The tables, then the call, within the bound.
    fn call<'a, T: 'a>(&'a self, what: impl Future<Output = Result<T, StoreError>> + Send + 'a) -> StoreFuture<'a, T> {
        Box::pin(async move {
            self.prepare().await?;
            within(what).await
        })
    }
}

/// A call's answer, or an error once it took too long.
pub async fn within<T, E: Into<StoreError>>(what: impl Future<Output = Result<T, E>>) -> Result<T, StoreError> {
    match tokio::time::timeout(WITHIN, what).await {
        Ok(done) => done.map_err(Into::into),
        Err(_) => Err(StoreError::Closed(format!("PostgreSQL did not answer within {} s", WITHIN.as_secs()))),
    }
}

impl Store for PostgresStore {
    fn decisions<'a>(&'a self, tenant: &'a str, filter: &'a DecisionFilter) -> StoreFuture<'a, Page<StoredDecision>> {
        self.call(decisions::list(&self.pool, tenant, filter))
    }

    fn decision<'a>(&'a self, tenant: &'a str, id: &'a str) -> StoreFuture<'a, Option<StoredDecision>> {
        self.call(decisions::get(&self.pool, tenant, id))
    }

    fn report_call<'a>(&'a self, decision: &'a str, report: &'a CallReport) -> StoreFuture<'a, bool> {
        self.call(decisions::report(&self.pool, decision, report))
    }

    fn live_sessions(&self) -> StoreFuture<'_, Vec<SessionRow>> {
        self.call(sessions::live(&self.pool))
    }

    fn save_sessions<'a>(&'a self, rows: &'a [SessionRow]) -> StoreFuture<'a, ()> {
        self.call(sessions::save(&self.pool, rows))
    }

    fn session<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Option<SessionRow>> {
        self.call(sessions::get(&self.pool, id))
    }

    fn end_silent<'a>(
        &'a self,
        silent: &'a [(SessionRow, Timestamp)],
        now: Timestamp,
    ) -> StoreFuture<'a, Vec<SessionRow>> {
        self.call(sessions::end_silent(&self.pool, silent, now))
    }

    fn shared(&self) -> bool {
        true
    }

    fn changed_sessions<'a>(&'a self, since: Option<&'a str>) -> StoreFuture<'a, (Vec<SessionRow>, String)> {
        self.call(sessions::changed(&self.pool, since))
    }

    fn put_in_force<'a>(&'a self, row: &'a InForceRow, arrival: &'a Arrival) -> StoreFuture<'a, ()> {
        self.call(ledger::put_in_force(&self.pool, row, arrival))
    }

    fn in_force<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, Vec<InForceRow>> {
        self.call(ledger::in_force(&self.pool, tenant_uid))
    }

    fn high_water<'a>(&'a self, tenant_uid: &'a str, package: &'a str) -> StoreFuture<'a, Option<(String, String)>> {
        self.call(ledger::high_water(&self.pool, tenant_uid, package))
    }

    fn signer_seen<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, bool> {
        self.call(ledger::signer_seen(&self.pool, tenant_uid))
    }

    fn remember_signer<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, ()> {
        self.call(ledger::remember_signer(&self.pool, tenant_uid))
    }

    fn compromised_keys<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, BTreeSet<String>> {
        self.call(ledger::compromised_keys(&self.pool, tenant_uid))
    }

    fn remember_compromised<'a>(&'a self, tenant_uid: &'a str, fingerprints: &'a [String]) -> StoreFuture<'a, ()> {
        self.call(ledger::remember_compromised(&self.pool, tenant_uid, fingerprints))
    }

    fn quarantined(&self) -> StoreFuture<'_, Vec<String>> {
        self.call(ledger::quarantined(&self.pool))
    }

    fn parse_begins<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()> {
        self.call(ledger::parse_begins(&self.pool, &self.writer, digest))
    }

    fn parse_ended<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()> {
        self.call(ledger::parse_ended(&self.pool, &self.writer, digest))
    }

    fn recorded_tenants(&self) -> StoreFuture<'_, Vec<String>> {
        self.call(decisions::tenants(&self.pool))
    }

    fn retain<'a>(&'a self, tenant: &'a str, before: Timestamp, batch: u32) -> StoreFuture<'a, u64> {
        self.call(chains::retain(&self.pool, self.signing_key.as_ref(), tenant, before, batch))
    }

    fn audit_rows<'a>(&'a self, writer: &'a str, after: u64, limit: u32) -> StoreFuture<'a, Vec<AuditRow>> {
        self.call(chains::rows(&self.pool, writer, after, limit))
    }

    fn audit_writer(&self) -> String {
        self.writer.clone()
    }

    fn audit_writers(&self) -> StoreFuture<'_, Vec<String>> {
        self.call(chains::writers(&self.pool))
    }

    fn audit_anchors<'a>(&'a self, writer: &'a str) -> StoreFuture<'a, Vec<Envelope>> {
        self.call(chains::anchors(&self.pool, writer))
    }

    fn audit_tombstones<'a>(&'a self, writer: &'a str) -> StoreFuture<'a, Vec<Envelope>> {
        self.call(chains::tombstones(&self.pool, writer))
    }
}
