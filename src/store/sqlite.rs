//! SQLite, the embedded default: journal and store in one file of the data directory, for one operator.
//!
//! WAL; one connection writes, a pool reads, one copies the WAL back in the background. Nothing here decides anything.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Row, SqlSafeStr};
use tokio::sync::{Mutex, Notify, oneshot};
use tokio::task::JoinHandle;

mod anchoring;
mod arms;
pub(in crate::store) mod backlog;
mod decisions;
mod durable;
mod history;
mod journal;
mod ledger;
pub(super) mod outbox;
mod queue;
mod reader;
mod replays;
mod rollouts;
#[cfg(test)]
mod tests;

pub use journal::JournalCounters;
pub use queue::QueueLimits;
pub use reader::ChainReader;

use self::anchoring::Anchoring;
use self::backlog::{Backlog, Weights};
use self::durable::Durable;
use self::ledger::Write;
use self::queue::{Job, Pending, Queue};
use super::chain::{Columns, body_hash};
use super::{
    AnchorSink, Arrival, AuditRow, CallReport, Committed, DecisionFilter, InForceRow, Journal, Page, SessionRow, Store,
    StoreError, StoreFuture, StoredDecision,
};
use crate::api::Envelope;
use crate::gate::{DecisionRecord, Outcome};

/// File of the database in the data directory.
pub const DATABASE_FILE: &str = "remit.db";
/// File whose lock says that the data directory is in use.
const LOCK_FILE: &str = "remit.lock";
/// Readers at once.
const READERS: u32 = 3;
/// How the WAL is copied back.
#[derive(Clone, Copy)]
struct Checkpoints {
    /// In the background, after about so many bytes.
    bytes: u64,
    /// How often that is looked at.
    every: Duration,
    /// Pages in the WAL (of 4 KiB) from which on the writer starts it anew.
    pages: i64,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { bytes: 4 * 1024 * 1024, every: Duration::from_millis(250), pages: 16 * 1024 }
    }
}

/// When a commit counts as done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// On the disk: it survives a power cut. For the journal that is the store.
    #[default]
    Full,
    /// With the kernel: it survives the process, not a power cut. For a journal that is shipped elsewhere.
    Normal,
}

/// How to open the store.
pub struct SqliteOptions {
    /// When a commit counts as done.
    pub synchronous: Synchronous,
    /// Limits of what waits for the writer.
    pub queue: QueueLimits,
    /// The installation's key, for anchors and tombstones; without it there are none.
    pub signing_key: Option<SigningKey>,
    /// Where anchors go besides the database.
    pub sinks: Vec<Arc<dyn AnchorSink>>,
    /// How often an anchor is signed, while records come in.
    pub anchor_every: Duration,
    /// Bytes that may wait to be shipped before allows are refused; None where nothing is shipped.
    pub cap: Option<u64>,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            synchronous: Synchronous::Full,
            queue: QueueLimits::default(),
            signing_key: None,
            sinks: Vec::new(),
            anchor_every: Duration::from_secs(10),
            cap: None,
        }
    }
}

/// Journal and store of one operator.
pub struct SqliteStore {
    queue: Arc<Queue>,
    readers: SqlitePool,
    writer: Arc<str>,
    counters: Arc<JournalCounters>,
    anchoring: Arc<Anchoring>,
    durable: Arc<Durable>,
    news: Arc<Notify>,
    tasks: Mutex<Option<Tasks>>,
}

struct Tasks {
    writer: JoinHandle<()>,
    checkpointer: JoinHandle<()>,
    /// Dropped to end the checkpointer.
    checkpoints_go_on: oneshot::Sender<()>,
    anchors: JoinHandle<()>,
}

impl SqliteStore {
    /// Opens (and makes, where it is missing) the store in this directory. Needs a tokio runtime.
    pub async fn open(data_dir: impl AsRef<Path>, options: SqliteOptions) -> Result<Arc<Self>, StoreError> {
        Self::open_with(data_dir.as_ref(), options, Checkpoints::default()).await
    }

    /// Opens the store of a directory that is locked already.
    pub async fn open_locked(lock: DirectoryLock, options: SqliteOptions) -> Result<Arc<Self>, StoreError> {
        Self::open_under(lock, options, Checkpoints::default()).await
    }

    async fn open_with(
        data_dir: &Path,
        options: SqliteOptions,
        checkpoints: Checkpoints,
    ) -> Result<Arc<Self>, StoreError> {
        std::fs::create_dir_all(data_dir).map_err(|source| io(data_dir, source))?;
        Self::open_under(DirectoryLock::take(data_dir)?, options, checkpoints).await
    }

    async fn open_under(
        lock: DirectoryLock,
        options: SqliteOptions,
        checkpoints: Checkpoints,
    ) -> Result<Arc<Self>, StoreError> {
        let DirectoryLock { data_dir, lock } = lock;
        let lock = Arc::new(lock);
        let synchronous = match options.synchronous {
            Synchronous::Full => SqliteSynchronous::Full,
            Synchronous::Normal => SqliteSynchronous::Normal,
        };
        let connect = SqliteConnectOptions::new()
            .filename(data_dir.join(DATABASE_FILE))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            .busy_timeout(Duration::from_secs(5))
            .pragma("wal_autocheckpoint", "0")
            .pragma("journal_size_limit", "67108864")
            .pragma("trusted_schema", "OFF")
            .disable_statement_logging();
        let mut conn = connect.connect().await?;
        // Not `run`: what it wants of the connection keeps this future from changing threads.
        let migrated = migrator().run_direct(None, &mut conn, false).await;
        migrated.map_err(|e| StoreError::Database(sqlx::Error::Migrate(Box::new(e))))?;
        let writer: Arc<str> = writer_id(&mut conn).await?.into();
        ledger::count_parser_deaths(&mut conn).await?;
        let head = journal::read_head(&mut conn, &writer).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .test_before_acquire(false)
            .acquire_timeout(Duration::from_secs(10))
            .connect_lazy_with(connect.clone().create_if_missing(false).pragma("query_only", "ON"));

        let there = if options.cap.is_some() { outbox::weight(&mut conn, 0, u64::MAX).await? } else { Weights::new() };
        let queue = Arc::new(Queue::new(options.queue, Arc::new(Backlog::new(options.cap, &there))));
        let news = Arc::new(Notify::new());
        let durable = Arc::new(Durable::new(&data_dir, options.synchronous));
        let counters = Arc::new(JournalCounters::default());
        counters.head_seq.store(head.seq, Ordering::Release);
        let restart_wal = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(0));
        let key = options.signing_key.as_ref().map(SigningKey::verifying_key);
        let anchoring = Arc::new(Anchoring::new(
            queue.clone(),
            readers.clone(),
            writer.clone(),
            counters.clone(),
            key,
            options.sinks,
        ));
        let journal = journal::Writer {
            connect: connect.clone().create_if_missing(false),
            writer: writer.clone(),
            queue: queue.clone(),
            counters: counters.clone(),
            signing_key: options.signing_key,
            restart_wal: restart_wal.clone(),
            written: written.clone(),
            news: news.clone(),
            lock,
        };
        let (checkpoints_go_on, stopped) = oneshot::channel();
        let tasks = Tasks {
            writer: tokio::spawn(journal.run(conn, head)),
            checkpointer: tokio::spawn(checkpoint(
                connect.create_if_missing(false),
                checkpoints,
                written,
                restart_wal,
                stopped,
            )),
            checkpoints_go_on,
            anchors: tokio::spawn(anchoring.clone().run(options.anchor_every)),
        };
        tracing::info!(writer = %writer, seq = head.seq, synchronous = ?options.synchronous, "the journal is open");
        Ok(Arc::new(Self {
            queue,
            readers,
            writer,
            counters,
            anchoring,
            durable,
            news,
            tasks: Mutex::new(Some(tasks)),
        }))
    }

    /// Id of the writer, made at the first open and kept in the database.
    pub fn writer(&self) -> &str {
        &self.writer
    }

    /// Numbers for `/metrics`.
    pub fn counters(&self) -> &JournalCounters {
        &self.counters
    }

    /// Records that wait for the writer.
    pub fn queue_depth(&self) -> usize {
        self.queue.depth()
    }

    /// Writes what waits, signs the last anchor, closes the database and lets go of the data directory. Later appends
    /// are refused.
    pub async fn close(&self) {
        let Some(tasks) = self.tasks.lock().await.take() else { return };
        tasks.anchors.abort();
        // Not aborted: its statement would go on in its own thread, and keep the last checkpoint from emptying the WAL.
        drop(tasks.checkpoints_go_on);
        let _ = tasks.checkpointer.await;
        if let Err(error) = self.write(Write::ParsesStopped).await {
            tracing::warn!(%error, "the parses under way could not be noted as stopped");
        }
        if let Err(error) = self.anchoring.once().await {
            tracing::warn!(%error, "the last anchor could not be signed and published");
        }
        self.readers.close().await;
        self.queue.close();
        if let Err(error) = tasks.writer.await {
            tracing::error!(%error, "the journal's writer did not end well");
        }
    }

    /// There is one chain here.
    fn own(&self, writer: &str) -> Result<(), StoreError> {
        if writer == &*self.writer {
            return Ok(());
        }
        let why = format!("`{}` has no chain here; there is {}", writer.escape_debug(), self.writer);
        Err(StoreError::Invalid { field: "writer", why })
    }

    async fn write(&self, write: Write) -> Result<u64, StoreError> {
        job(&self.queue, write).await
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // The writer still writes what waits.
        self.queue.close();
        if let Some(tasks) = self.tasks.get_mut().take() {
            tasks.anchors.abort();
            tasks.checkpointer.abort();
        }
    }
}

async fn job(queue: &Queue, write: Write) -> Result<u64, StoreError> {
    let (reply, answer) = oneshot::channel();
    queue.push_job(Job { write, reply })?;
    answer.await.unwrap_or_else(|_| Err(queue::closed()))
}

fn io(path: &Path, source: std::io::Error) -> StoreError {
    StoreError::Io { path: path.display().to_string(), source }
}

/// A data directory that no other process writes to, as long as this lives.
#[derive(Debug)]
pub struct DirectoryLock {
    data_dir: PathBuf,
    lock: File,
}

impl DirectoryLock {
    /// Locks a directory that is there. `Locked`: another process has it.
    pub fn take(data_dir: &Path) -> Result<Self, StoreError> {
        let lock = lock(&data_dir.join(LOCK_FILE))?;
        Ok(Self { data_dir: data_dir.to_owned(), lock })
    }
}

/// Takes the lock that lives as long as the file is open, and goes with it also at kill -9; the holder's process id is written in it,
/// for people.
fn lock(path: &PathBuf) -> Result<File, StoreError> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|source| io(path, source))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = Read::take(&file, 20).read_to_string(&mut holder);
            let holder = match holder.trim().parse::<u32>() {
                Ok(pid) => format!(" (process {pid})"),
                Err(_) => String::new(),
            };
            return Err(StoreError::Locked { path: path.display().to_string(), holder });
        }
        Err(std::fs::TryLockError::Error(source)) => return Err(io(path, source)),
    }
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    written.map_err(|source| io(path, source))?;
    Ok(file)
}

/// The migrations, compiled in.
fn migrator() -> Migrator {
    let of = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        of(1, "init", include_str!("../../migrations/sqlite/0001_init.sql")),
        of(2, "outcomes", include_str!("../../migrations/sqlite/0002_outcomes.sql")),
        of(3, "shipping", include_str!("../../migrations/sqlite/0003_shipping.sql")),
        of(4, "history", include_str!("../../migrations/sqlite/0004_history.sql")),
        of(5, "rollouts", include_str!("../../migrations/sqlite/0005_rollouts.sql")),
        of(6, "arms", include_str!("../../migrations/sqlite/0006_arms.sql")),
        of(7, "replays", include_str!("../../migrations/sqlite/0007_replays.sql")),
        of(8, "bounded", include_str!("../../migrations/sqlite/0008_bounded.sql")),
        of(9, "compromised", include_str!("../../migrations/sqlite/0009_compromised.sql")),
    ])
}

async fn writer_id(conn: &mut SqliteConnection) -> Result<String, StoreError> {
    let made = Timestamp::now().as_microsecond();
    sqlx::query("INSERT INTO writer (one, id, created) VALUES (1, ?, ?) ON CONFLICT DO NOTHING")
        .bind(uuid::Uuid::now_v7().to_string())
        .bind(made)
        .execute(&mut *conn)
        .await?;
    Ok(sqlx::query_scalar("SELECT id FROM writer").fetch_one(conn).await?)
}

/// Copies the WAL back beside the writer, so that no commit has to wait for it.
async fn checkpoint(
    connect: SqliteConnectOptions,
    checkpoints: Checkpoints,
    written: Arc<AtomicU64>,
    restart_wal: Arc<AtomicBool>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut conn: Option<SqliteConnection> = None;
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            () = tokio::time::sleep(checkpoints.every) => {}
        }
        if written.load(Ordering::Relaxed) < checkpoints.bytes {
            continue;
        }
        written.store(0, Ordering::Relaxed);
        let open = match conn.take() {
            Some(open) => Ok(open),
            None => connect.connect().await,
        };
        let result = async {
            let mut open = open?;
            let row = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(&mut open).await?;
            Ok::<_, sqlx::Error>((open, row.try_get::<i64, _>(1)?))
        };
        match result.await {
            Ok((open, pages)) => {
                conn = Some(open);
                if pages >= checkpoints.pages {
                    restart_wal.store(true, Ordering::Relaxed);
                }
            }
            Err(error) => tracing::warn!(%error, "the journal's WAL could not be copied back; it is tried again"),
        }
    }
    if let Some(conn) = conn {
        let _ = sqlx::Connection::close(conn).await;
    }
}

impl Journal for SqliteStore {
    fn append(&self, record: DecisionRecord) -> Result<StoreFuture<'static, Committed>, StoreError> {
        let body =
            serde_json::to_string(&record).map_err(|e| StoreError::Corrupt { what: "record", why: e.to_string() })?;
        let body_hash = body_hash(body.as_bytes());
        let allow = record.outcome == Outcome::Allow;
        let (reply, answer) = oneshot::channel();
        self.queue.push(Pending { columns: Columns::from(record), body, body_hash, allow, reply })?;
        Ok(Box::pin(async move { answer.await.unwrap_or_else(|_| Err(queue::closed())) }))
    }
}

impl Store for SqliteStore {
    fn decisions<'a>(&'a self, tenant: &'a str, filter: &'a DecisionFilter) -> StoreFuture<'a, Page<StoredDecision>> {
        Box::pin(decisions::list(&self.readers, tenant, filter))
    }

    fn decision<'a>(&'a self, tenant: &'a str, id: &'a str) -> StoreFuture<'a, Option<StoredDecision>> {
        Box::pin(decisions::get(&self.readers, tenant, id))
    }

    fn report_call<'a>(&'a self, decision: &'a str, report: &'a CallReport) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            self.write(Write::Call(decision.to_owned(), report.clone())).await?;
            let kept = decisions::call(&self.readers, decision).await?;
            Ok(kept.is_some_and(|k| (k.outcome, k.duration_ms) == (report.outcome, report.duration_ms)))
        })
    }

    fn live_sessions(&self) -> StoreFuture<'_, Vec<SessionRow>> {
        Box::pin(ledger::live_sessions(&self.readers))
    }

    fn save_sessions<'a>(&'a self, sessions: &'a [SessionRow]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            if !sessions.is_empty() {
                self.write(Write::Sessions(sessions.to_vec())).await?;
            }
            Ok(())
        })
    }

    fn session<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Option<SessionRow>> {
        Box::pin(ledger::session(&self.readers, id))
    }

    fn end_silent<'a>(
        &'a self,
        silent: &'a [(SessionRow, Timestamp)],
        now: Timestamp,
    ) -> StoreFuture<'a, Vec<SessionRow>> {
        Box::pin(async move {
            let ends = silent.iter().map(|(row, cutoff)| (row.id.clone(), *cutoff)).collect();
            self.write(Write::EndSilent(ends, now)).await?;
            let mut now_are = Vec::with_capacity(silent.len());
            for (row, _) in silent {
                now_are.extend(ledger::session(&self.readers, &row.id).await?);
            }
            Ok(now_are)
        })
    }

    /// One process has the directory.
    fn shared(&self) -> bool {
        false
    }

    fn changed_sessions<'a>(&'a self, since: Option<&'a str>) -> StoreFuture<'a, (Vec<SessionRow>, String)> {
        Box::pin(async move {
            let live = if since.is_none() { self.live_sessions().await? } else { Vec::new() };
            Ok((live, "all".to_owned()))
        })
    }

    fn put_in_force<'a>(&'a self, row: &'a InForceRow, arrival: &'a Arrival) -> StoreFuture<'a, ()> {
        let both = Box::new((row.clone(), arrival.clone()));
        Box::pin(async move { self.write(Write::InForce(both)).await.map(drop) })
    }

    fn in_force<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, Vec<InForceRow>> {
        Box::pin(ledger::in_force(&self.readers, tenant_uid))
    }

    fn high_water<'a>(&'a self, tenant_uid: &'a str, package: &'a str) -> StoreFuture<'a, Option<(String, String)>> {
        Box::pin(ledger::high_water(&self.readers, tenant_uid, package))
    }

    fn signer_seen<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(ledger::signer_seen(&self.readers, tenant_uid))
    }

    fn remember_signer<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.write(Write::Signer(tenant_uid.to_owned())).await.map(drop) })
    }

    fn compromised_keys<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, BTreeSet<String>> {
        Box::pin(ledger::compromised_keys(&self.readers, tenant_uid))
    }

    fn remember_compromised<'a>(&'a self, tenant_uid: &'a str, fingerprints: &'a [String]) -> StoreFuture<'a, ()> {
        let write = Write::Compromised(tenant_uid.to_owned(), fingerprints.to_vec());
        Box::pin(async move { self.write(write).await.map(drop) })
    }

    fn quarantined(&self) -> StoreFuture<'_, Vec<String>> {
        Box::pin(ledger::quarantined(&self.readers))
    }

    fn parse_begins<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.write(Write::ParseBegins(digest.to_owned())).await.map(drop) })
    }

    fn parse_ended<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.write(Write::ParseEnded(digest.to_owned())).await.map(drop) })
    }

    fn recorded_tenants(&self) -> StoreFuture<'_, Vec<String>> {
        Box::pin(decisions::tenants(&self.readers))
    }

    fn retain<'a>(&'a self, tenant: &'a str, before: Timestamp, batch: u32) -> StoreFuture<'a, u64> {
        Box::pin(async move {
            let rows = decisions::retirable(&self.readers, tenant, before, batch).await?;
            if rows.is_empty() {
                return Ok(0);
            }
            let now = Timestamp::now();
            self.write(Write::Retain { tenant: tenant.to_owned(), before, now, rows }).await
        })
    }

    fn audit_rows<'a>(&'a self, writer: &'a str, after: u64, limit: u32) -> StoreFuture<'a, Vec<AuditRow>> {
        Box::pin(async move {
            self.own(writer)?;
            decisions::audit_rows(&mut *self.readers.acquire().await?, after, limit).await
        })
    }

    fn audit_writer(&self) -> String {
        self.writer.to_string()
    }

    fn audit_writers(&self) -> StoreFuture<'_, Vec<String>> {
        Box::pin(async move { Ok(vec![self.writer.to_string()]) })
    }

    fn audit_anchors<'a>(&'a self, writer: &'a str) -> StoreFuture<'a, Vec<Envelope>> {
        Box::pin(async move {
            self.own(writer)?;
            ledger::anchors(&mut *self.readers.acquire().await?).await
        })
    }

    fn audit_tombstones<'a>(&'a self, writer: &'a str) -> StoreFuture<'a, Vec<Envelope>> {
        Box::pin(async move {
            self.own(writer)?;
            ledger::tombstones(&mut *self.readers.acquire().await?).await
        })
    }
}
