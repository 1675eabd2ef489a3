//! The one writer: everything that waits goes into one transaction, its sequence has no gap, its hash chain goes on after
//! a restart. No other connection writes, so nothing here waits for a lock.
//!
//! It never answers `committed` before the commit has returned, and never goes on from a head that it has not read back
//! after a failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteConnection};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Connection, Row};
use tokio::sync::{Notify, oneshot};

use super::backlog::{ROW, Weights};
use super::ledger::{self, Write};
use super::outbox;
use super::queue::{Batch, Job, Pending, Queue};
use crate::api::Envelope;
use crate::store::chain::{self, Hash};
use crate::store::{Anchor, Committed, StoreError, statement};

/// Rows of one INSERT. Each length up to it is a prepared statement of its own.
const ROWS: usize = 32;
/// Columns that an INSERT binds.
const COLUMNS: usize = 17;
/// Between two attempts to open a database that failed.
const REOPEN_AFTER: Duration = Duration::from_millis(200);

/// Numbers about the writer, for `/metrics`.
#[derive(Debug, Default)]
pub struct JournalCounters {
    /// Records committed since the start.
    pub committed: AtomicU64,
    /// Transactions since the start.
    pub commits: AtomicU64,
    /// Transactions that failed since the start.
    pub failures: AtomicU64,
    /// Time that commits took since the start, microseconds.
    pub commit_micros: AtomicU64,
    /// Sequence number of the last record.
    pub head_seq: AtomicU64,
    /// Sequence number that the last anchor covers.
    pub anchored_seq: AtomicU64,
    /// 1 once a sink held an anchor that this chain does not contain: the database was cut, rewritten or put back.
    pub anchors_disagree: AtomicU64,
    /// 1 while the last commit succeeded, else 0.
    pub healthy: AtomicI64,
}

/// Where the chain stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub seq: u64,
    pub hash: Hash,
}

/// Reads where the chain stands.
pub(super) async fn read_head(conn: &mut SqliteConnection, writer: &str) -> Result<Head, StoreError> {
    let row = sqlx::query("SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1").fetch_optional(&mut *conn).await?;
    let Some(row) = row else {
        let taken_away = outbox::begins_after(conn).await?;
        let (seq, hash) = taken_away.unwrap_or_else(|| (0, chain::genesis(writer)));
        return Ok(Head { seq, hash });
    };
    let bytes: Vec<u8> = row.try_get(1)?;
    let hash = Hash::try_from(bytes.as_slice()).map_err(|_| StoreError::Corrupt {
        what: "hash of the last record",
        why: format!("{} bytes, not 32", bytes.len()),
    })?;
    Ok(Head { seq: ledger::unsigned("seq of the last record", row.try_get(0)?)?, hash })
}

pub(super) struct Writer {
    pub connect: SqliteConnectOptions,
    pub writer: Arc<str>,
    pub queue: Arc<Queue>,
    pub counters: Arc<JournalCounters>,
    pub signing_key: Option<SigningKey>,
    /// Set by the checkpointer: start the WAL anew between two transactions.
    pub restart_wal: Arc<AtomicBool>,
    /// Bytes written since the last checkpoint, about.
    pub written: Arc<AtomicU64>,
    /// Told of each commit.
    pub news: Arc<Notify>,
    /// Held as long as anything may be written.
    pub lock: Arc<std::fs::File>,
}

struct Open {
    conn: SqliteConnection,
    head: Head,
}

impl Writer {
    /// Runs until the queue is closed and empty.
    pub async fn run(self, conn: SqliteConnection, head: Head) {
        let inserts: Vec<Arc<String>> = (1..=ROWS).map(|rows| Arc::new(insert(rows))).collect();
        let mut open = Some(Open { conn, head });
        let mut tried = Instant::now();
        self.counters.healthy.store(1, Ordering::Relaxed);
        while let Some(batch) = self.queue.take().await {
            if open.is_none() && tried.elapsed() >= REOPEN_AFTER {
                tried = Instant::now();
                open = self.reopen().await;
            }
            let Some(state) = open.as_mut() else {
                fail(batch, "the database can't be opened, and the next attempt is not due");
                continue;
            };
            if let Err(error) = self.commit(state, batch, &inserts).await {
                tracing::error!(%error, "a commit of the journal failed");
                self.counters.failures.fetch_add(1, Ordering::Relaxed);
                self.counters.healthy.store(0, Ordering::Relaxed);
                // Whether the commit took place is unknown: only the database can say where the chain stands.
                open = None;
                tried = Instant::now().checked_sub(REOPEN_AFTER).unwrap_or(tried);
            }
        }
        if let Some(Open { mut conn, .. }) = open {
            if let Err(error) = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut conn).await {
                tracing::warn!(%error, "the last checkpoint failed; the next start takes it up");
            }
            if let Err(error) = conn.close().await {
                tracing::warn!(%error, "the journal's connection was not closed well");
            }
        }
        drop(self.lock);
    }

    async fn reopen(&self) -> Option<Open> {
        let opened = async {
            let mut conn = self.connect.connect().await?;
            let head = read_head(&mut conn, &self.writer).await?;
            Ok::<_, StoreError>(Open { conn, head })
        };
        match opened.await {
            Ok(open) => {
                tracing::info!(seq = open.head.seq, "the journal is open again");
                Some(open)
            }
            Err(error) => {
                tracing::error!(%error, "the journal can't be opened");
                None
            }
        }
    }

    /// One transaction. Every waiting caller is answered, whatever happens.
    async fn commit(&self, open: &mut Open, batch: Batch, inserts: &[Arc<String>]) -> Result<(), StoreError> {
        let begun = Instant::now();
        let Batch { records, jobs } = batch;
        let first = open.head.seq + 1;
        let mut head = open.head;
        let mut waiting = Vec::with_capacity(records.len());
        let mut chunks: Vec<SqliteArguments> = Vec::with_capacity(records.len().div_ceil(ROWS));
        let mut lengths = Vec::with_capacity(chunks.capacity());
        // At least a page each of the table and its indexes, whatever the record's size.
        let mut bytes = 4 * 4096;
        let mut entered = Weights::new();
        let mut failed = None;
        for (i, record) in records.into_iter().enumerate() {
            if i % ROWS == 0 {
                let mut arguments = SqliteArguments::default();
                arguments.reserve(ROWS * COLUMNS, 0);
                chunks.push(arguments);
                lengths.push(0);
            }
            let Pending { columns: c, body, body_hash, reply, allow: _ } = record;
            waiting.push(reply);
            head.seq += 1;
            head.hash = chain::link(&head.hash, head.seq, &body_hash);
            bytes += body.len() + 256;
            let weight = body.len() as u64 + ROW;
            match entered.get_mut(&c.tenant) {
                Some(entered) => *entered += weight,
                None => drop(entered.insert(c.tenant.clone(), weight)),
            }
            if let (Some(arguments), Some(length)) = (chunks.last_mut(), lengths.last_mut()) {
                *length += 1;
                let bound = ledger::signed("seq", head.seq).and_then(|seq| {
                    bind(arguments, seq, c, head.hash, body).map_err(|e| StoreError::Database(sqlx::Error::Encode(e)))
                });
                if let Err(error) = bound {
                    failed = Some(error);
                }
            }
        }
        let (result, answers) = match failed {
            Some(error) => (Err(error), jobs.into_iter().map(|job| (job.reply, None)).collect()),
            None => self.write(&mut open.conn, head, chunks, &lengths, jobs, inserts).await,
        };
        if let Err(error) = &result {
            let why = error.to_string();
            for reply in waiting {
                let _ = reply.send(Err(StoreError::Closed(why.clone())));
            }
            for (reply, _) in answers {
                let _ = reply.send(Err(StoreError::Closed(why.clone())));
            }
            return result;
        }
        open.head = head;
        self.queue.backlog().enter(&entered);
        // Before anybody hears of it: who has the answer and reads the records waits for the journal up to here to be shipped.
        self.counters.head_seq.store(head.seq, Ordering::Release);
        for (seq, reply) in (first..).zip(waiting) {
            let _ = reply.send(Ok(Committed { seq }));
        }
        for (reply, answer) in answers {
            let _ = reply.send(answer.unwrap_or_else(|| Err(StoreError::Closed("it was not written".into()))));
        }
        let counters = &self.counters;
        counters.healthy.store(1, Ordering::Relaxed);
        self.news.notify_one();
        counters.committed.fetch_add(head.seq + 1 - first, Ordering::Relaxed);
        counters.commits.fetch_add(1, Ordering::Relaxed);
        counters
            .commit_micros
            .fetch_add(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.restart_wal.swap(false, Ordering::Relaxed) {
            // The checkpointer has just copied all but the last pages, so this is short; a reader may keep it from
            // happening, and then it is tried another time.
            sqlx::raw_sql("PRAGMA busy_timeout = 20; PRAGMA wal_checkpoint(RESTART); PRAGMA busy_timeout = 5000")
                .execute(&mut open.conn)
                .await?;
        }
        Ok(())
    }

    async fn write(
        &self,
        conn: &mut SqliteConnection,
        head: Head,
        mut chunks: Vec<SqliteArguments>,
        lengths: &[usize],
        jobs: Vec<Job>,
        inserts: &[Arc<String>],
    ) -> (Result<(), StoreError>, Vec<Answer>) {
        // One INSERT is a transaction by itself, and saves two thread changes.
        if jobs.is_empty() && chunks.len() == 1 {
            let result = match (chunks.pop(), lengths.first().and_then(|rows| inserts.get(rows - 1))) {
                (Some(arguments), Some(sql)) => {
                    sqlx::query_with(AssertSqlSafe(sql.clone()), arguments).execute(conn).await.map(drop)
                }
                _ => Ok(()),
            };
            return (result.map_err(StoreError::from), Vec::new());
        }
        let mut answers = Vec::with_capacity(jobs.len());
        let mut unanswered = jobs.into_iter();
        let result = async {
            let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
            for (arguments, rows) in chunks.into_iter().zip(lengths) {
                if let Some(sql) = inserts.get(rows - 1) {
                    sqlx::query_with(AssertSqlSafe(sql.clone()), arguments).execute(&mut *tx).await?;
                }
            }
            for Job { write, reply } in unanswered.by_ref() {
                // A job that fails takes back only itself.
                let mut step = tx.begin().await?;
                let outcome = match write {
                    Write::Anchor { now } => self.anchor(&mut step, head, now).await,
                    write => ledger::apply(&mut step, write, &self.writer, self.signing_key.as_ref()).await,
                };
                match outcome {
                    Ok(_) => step.commit().await?,
                    Err(_) => step.rollback().await?,
                }
                answers.push((reply, Some(outcome)));
            }
            tx.commit().await?;
            Ok(())
        }
        .await;
        answers.extend(unanswered.map(|job| (job.reply, None)));
        (result, answers)
    }

    /// Signs where the chain stands after this transaction, unless the last anchor says the same.
    async fn anchor(&self, conn: &mut SqliteConnection, head: Head, now: Timestamp) -> Result<u64, StoreError> {
        let Some(key) = &self.signing_key else { return Ok(0) };
        let counts =
            sqlx::query("SELECT coalesce(sum(rows), 0), count(*) FROM tombstones").fetch_one(&mut *conn).await?;
        let taken = ledger::unsigned("count of records", counts.try_get(0)?)?;
        let tombstones = ledger::unsigned("count of tombstones", counts.try_get(1)?)?;
        let anchor = Anchor::new(&self.writer, head.seq, &head.hash, head.seq - taken.min(head.seq), tombstones, now);
        if let Some(last) = ledger::last_anchor(&mut *conn).await? {
            let said = statement::open::<Anchor>(&last, None).ok();
            if said.is_some_and(|said| (said.seq, said.tombstones) == (anchor.seq, anchor.tombstones)) {
                return Ok(0);
            }
        }
        let envelope: Envelope =
            statement::sign(&anchor, key).map_err(|e| StoreError::Corrupt { what: "anchor", why: e.to_string() })?;
        ledger::insert_anchor(conn, head.seq, &envelope).await?;
        self.counters.anchored_seq.store(head.seq, Ordering::Relaxed);
        Ok(1)
    }
}

/// A caller that waits for a job, and what to tell it.
type Answer = (oneshot::Sender<Result<u64, StoreError>>, Option<Result<u64, StoreError>>);

fn fail(batch: Batch, why: &str) {
    for record in batch.records {
        let _ = record.reply.send(Err(StoreError::Closed(why.into())));
    }
    for job in batch.jobs {
        let _ = job.reply.send(Err(StoreError::Closed(why.into())));
    }
}

fn insert(rows: usize) -> String {
    let mut sql = String::from(
        "INSERT INTO records (seq, id, time, tenant, agent, delegator, session, action, outcome, hash, body, \
         rollout_uid, revision, arm, subject, result, latency) VALUES ",
    );
    for i in 0..rows {
        sql.push_str(if i == 0 { "" } else { "," });
        sql.push_str("(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)");
    }
    sql
}

fn bind(
    arguments: &mut SqliteArguments,
    seq: i64,
    c: chain::Columns,
    hash: Hash,
    body: String,
) -> Result<(), sqlx::error::BoxDynError> {
    arguments.add(seq)?;
    arguments.add(c.id)?;
    arguments.add(c.time)?;
    arguments.add(c.tenant)?;
    arguments.add(c.agent)?;
    arguments.add(c.delegator)?;
    arguments.add(c.session)?;
    arguments.add(c.action)?;
    arguments.add(c.outcome)?;
    arguments.add(hash.to_vec())?;
    arguments.add(body)?;
    match c.rollout {
        Some(r) => {
            arguments.add(r.tenant_uid)?;
            arguments.add(r.revision)?;
            arguments.add(r.arm)?;
            arguments.add(r.subject)?;
            arguments.add(r.result)?;
            arguments.add(r.latency)
        }
        None => (0..6).try_for_each(|_| arguments.add(None::<String>)),
    }
}
