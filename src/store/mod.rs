//! Where records, sessions and what is in force are kept: traits here, SQLite and PostgreSQL behind them.
//!
//! Nothing here decides anything.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

mod arms;
pub mod audit;
mod chain;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod contract_arms;
#[cfg(test)]
mod contract_history;
#[cfg(test)]
mod contract_replays;
#[cfg(test)]
mod contract_rollouts;
mod filter;
mod history;
mod postgres;
mod replays;
mod replicated;
mod rollouts;
mod shipping;
mod sink;
mod sqlite;
pub mod statement;
#[cfg(test)]
pub(crate) mod testing;
mod values;

pub use arms::{Arms, ShadowBatch, ShadowDropped, ShadowRow};
pub use audit::{AuditRow, AuditStatements};
pub use chain::{Columns, RolloutColumns, hex};
pub use history::{Arrival, Change, History, MAX_VERSIONS, PolicyVersion, Rollback};
pub use postgres::roles::{Login, Owner};
pub use postgres::{PostgresOptions, PostgresStore, PostgresUrl};
pub use replays::{
    Cut, MAX_OPEN_RUNS, MAX_REPLAY_PAGE, OF_ROLLOUT, Place, ReplayRow, ReplayRun, Replays, RunSpec, RunStep,
    SUPERSEDED, Selected,
};
pub use replicated::{ReplicatedStore, Waiting};
pub use rollouts::{RolloutCommit, RolloutFailure, RolloutRecord, RolloutState, Rollouts};
use rollouts::{rollout_json, rollout_of_json};
pub use shipping::{Shipping, ShippingOptions};
pub use sink::{AnchorSink, FileSink};
pub use sqlite::{
    ChainReader, DATABASE_FILE, DirectoryLock, JournalCounters, QueueLimits, SqliteOptions, SqliteStore, Synchronous,
};
pub use statement::{Anchor, Statement, StatementError, Tombstone};

use self::sqlite::backlog::Weights;
use self::sqlite::outbox::{Numbered, Outgoing};
use crate::api::Envelope;
use crate::gate::{CallOutcome, DecisionRecord};

/// How many processes must end while a package is being parsed before its bytes are not tried again. One death may be
/// anybody's fault (a kill, a node that fails), and would take a healthy package out of force.
pub const QUARANTINE_AFTER: i64 = 2;

/// Future of a store call, boxed so that the traits stay object safe.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// What went wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The tenant's share of the queue, or the whole of it, is full. Allows are refused: `audit_unavailable`.
    #[error("the journal's queue is full")]
    Full,
    /// Too much waits to be shipped, or the place it is shipped to says other things. Allows are refused: `audit_unavailable`.
    #[error("the journal takes no allows: {0}")]
    Behind(String),
    /// The writer has stopped: disk full, file gone, or shutting down.
    #[error("the journal is closed: {0}")]
    Closed(String),
    /// The database said no.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// Another process has the data directory.
    #[error("{path} is in use by another remit{holder}: two writers would break the journal's chain")]
    Locked { path: String, holder: String },
    /// The data directory.
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
    /// What the caller asked for is wrong: 400.
    #[error("{field}: {why}")]
    Invalid { field: &'static str, why: String },
    /// A stored value can't be read.
    #[error("stored {what} can't be read: {why}")]
    Corrupt { what: &'static str, why: String },
}

/// A record's place in the chain, after it was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Gap-free sequence number of this writer, from 1.
    pub seq: u64,
}

/// The replica's own journal: the commit point of every allow.
pub trait Journal: Send + Sync {
    /// Queues the record at once (in order) and resolves when it is committed. Dropping the future does not take it back.
    fn append(&self, record: DecisionRecord) -> Result<StoreFuture<'static, Committed>, StoreError>;
}

/// Which decisions to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct DecisionFilter {
    /// UID of the namespace: a re-created one does not see its predecessor's. The server sets it, callers can't.
    #[serde(skip)]
    pub tenant_uid: Option<String>,
    /// Agent by name.
    pub agent: Option<String>,
    /// Delegator by name.
    pub delegator: Option<String>,
    /// Session id.
    pub session: Option<String>,
    /// Action name.
    pub action: Option<String>,
    /// `allow`, `deny`, `approval_required` or `refused`.
    pub outcome: Option<String>,
    /// What it would be if it were enforced, of those that were only observed: `deny` or `approval_required`.
    pub would_be: Option<String>,
    /// From this instant on.
    pub since: Option<Timestamp>,
    /// Before this instant.
    pub until: Option<Timestamp>,
    /// At most so many, 1 to 1000; 100 if not set.
    pub limit: Option<u32>,
    /// `next` of the former page.
    pub page: Option<String>,
}

/// A page, newest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Give it back as `page` to go on; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A record as it was kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredDecision {
    /// Sequence number of the writer.
    pub seq: u64,
    /// Hash of the chain up to and including this record, hex.
    pub hash: String,
    /// The record.
    pub record: DecisionRecord,
    /// What became of the call, as the caller said; only with a single decision, and only once it was reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<CallReport>,
}

/// What became of an allowed call, as the caller said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallReport {
    /// What became of it.
    pub outcome: CallOutcome,
    /// How long it took, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// When it was reported.
    pub time: Timestamp,
}

/// A session as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// Issued by Remit.
    pub id: String,
    /// Namespace.
    pub tenant: String,
    /// UID of the namespace.
    pub tenant_uid: String,
    /// Name of the agent.
    pub agent: String,
    /// UID of the agent: a session does not outlive its Agent object.
    pub agent_uid: String,
    /// When it began.
    pub started: Timestamp,
    /// Last sign of life.
    pub last_seen: Timestamp,
    /// When it ended, and why: `ended`, `expired`.
    pub ended: Option<(Timestamp, String)>,
}

/// What is in force for a tenant: a persisted fact, checked again at every load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForceRow {
    /// UID of the namespace.
    pub tenant_uid: String,
    /// Its name.
    pub tenant: String,
    /// Package name.
    pub package: String,
    /// Version.
    pub version: String,
    /// Digest.
    pub digest: String,
    /// Key that the signature was verified with; None where unsigned.
    pub key_fingerprint: Option<String>,
    /// When it was verified first.
    pub first_verified: Timestamp,
    /// Counted up for each change.
    pub revision: i64,
}

/// Everything but the hot path.
pub trait Store: History + Send + Sync {
    /// Decisions of a tenant, newest first; fewer than were asked for where they are large.
    fn decisions<'a>(&'a self, tenant: &'a str, filter: &'a DecisionFilter) -> StoreFuture<'a, Page<StoredDecision>>;
    /// One decision of a tenant.
    fn decision<'a>(&'a self, tenant: &'a str, id: &'a str) -> StoreFuture<'a, Option<StoredDecision>>;
    /// Keeps what became of the call of a decision: once. True also where the same was said before; false where something else was.
    fn report_call<'a>(&'a self, decision: &'a str, report: &'a CallReport) -> StoreFuture<'a, bool>;
    /// Sessions that have not ended, at start.
    fn live_sessions(&self) -> StoreFuture<'_, Vec<SessionRow>>;
    /// Writes sessions (new ones and changed ones) in one transaction.
    fn save_sessions<'a>(&'a self, sessions: &'a [SessionRow]) -> StoreFuture<'a, ()>;
    /// One session, live or not.
    fn session<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Option<SessionRow>>;
    /// Ends, as `expired`, those of these sessions that nobody has seen since the instant beside them, wherever their heartbeats
    /// went, and gives all of them back as they are then.
    fn end_silent<'a>(
        &'a self,
        silent: &'a [(SessionRow, Timestamp)],
        now: Timestamp,
    ) -> StoreFuture<'a, Vec<SessionRow>>;
    /// Whether other processes write to it too.
    fn shared(&self) -> bool;
    /// Sessions that anybody has changed since this mark was given, and the next mark; without a mark all live ones. A change may
    /// be given twice, and is never left out.
    fn changed_sessions<'a>(&'a self, since: Option<&'a str>) -> StoreFuture<'a, (Vec<SessionRow>, String)>;
    /// Records what came in force, and lifts the high-water mark of (tenant UID, package) to its version, in one transaction; the
    /// history of its policies comes with it. Of a revision that is recorded already nothing changes.
    fn put_in_force<'a>(&'a self, row: &'a InForceRow, arrival: &'a Arrival) -> StoreFuture<'a, ()>;
    /// All revisions that were in force in this namespace, newest first.
    fn in_force<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, Vec<InForceRow>>;
    /// Highest version of the package that was ever in force in this namespace, with its digest.
    fn high_water<'a>(&'a self, tenant_uid: &'a str, package: &'a str) -> StoreFuture<'a, Option<(String, String)>>;
    /// Whether a signer has ever covered this tenant (unsigned packages stay refused after the signer is deleted).
    fn signer_seen<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, bool>;
    /// Remembers that a signer covers this tenant.
    fn remember_signer<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, ()>;
    /// Fingerprints of keys that were ever declared compromised while this namespace was there.
    fn compromised_keys<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, BTreeSet<String>>;
    /// Remembers, for ever, that these keys are compromised for this namespace.
    fn remember_compromised<'a>(&'a self, tenant_uid: &'a str, fingerprints: &'a [String]) -> StoreFuture<'a, ()>;
    /// Digests whose parsing was begun and never ended in `QUARANTINE_AFTER` processes: their bytes kill the process.
    fn quarantined(&self) -> StoreFuture<'_, Vec<String>>;
    /// Notes, before parsing, that it begins.
    fn parse_begins<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()>;
    /// Notes that parsing ended, well or not.
    fn parse_ended<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()>;
    /// Names of all namespaces with records, those that are gone included.
    fn recorded_tenants(&self) -> StoreFuture<'_, Vec<String>>;
    /// Deletes records older than `before` of a tenant, at most `batch`, leaving a signed tombstone; says how many.
    /// Call it again until it says less than `batch` (1 to 1000).
    fn retain<'a>(&'a self, tenant: &'a str, before: Timestamp, batch: u32) -> StoreFuture<'a, u64>;
    /// Rows of a writer's chain after `after`, in order, at most `limit` (1 to 10,000) and fewer where they are large, for
    /// `remit audit verify`. None only at the end.
    fn audit_rows<'a>(&'a self, writer: &'a str, after: u64, limit: u32) -> StoreFuture<'a, Vec<AuditRow>>;
    /// Who writes this process's chain.
    fn audit_writer(&self) -> String;
    /// The manifest: everybody who has ever written a chain here.
    fn audit_writers(&self) -> StoreFuture<'_, Vec<String>>;
    /// The anchors of a writer that are kept, oldest first.
    fn audit_anchors<'a>(&'a self, writer: &'a str) -> StoreFuture<'a, Vec<Envelope>>;
    /// All tombstones of a writer, oldest first.
    fn audit_tombstones<'a>(&'a self, writer: &'a str) -> StoreFuture<'a, Vec<Envelope>>;
}
