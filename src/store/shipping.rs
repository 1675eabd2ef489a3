//! Ships a replica's journal to PostgreSQL: every row, in the order of the chain, exactly once, whatever dies in between.
//!
//! Where it stands is what PostgreSQL itself says, in the same transaction as the rows that follow; nothing here remembers it. What
//! PostgreSQL has must be what the journal has: if it is not, nothing is shipped, allows are refused, and the log says it until a person
//! has put it right. It never waits with an answer's commit, and never gives up.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand_core::{OsRng, RngCore as _};
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use tokio::sync::watch;

use super::postgres::{intake, within};
use super::{Numbered, PostgresStore, SqliteStore, StoreError, Weights, chain};
use crate::fault;

/// Rows of one transaction at most.
const ROWS: u32 = 1000;
/// Bytes of one transaction at most, about.
const BYTES: u64 = 8 * 1024 * 1024;
/// After so many transactions that went well a smaller one grows again.
const GROWS_AFTER: u32 = 8;
/// How often it looks for what no commit announces: reports of calls, anchors.
const TICK: Duration = Duration::from_secs(1);
/// Waits after failures: from, to.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Between two tries where PostgreSQL has another chain: a person has to do something first.
const DIVERGED: Duration = Duration::from_secs(15);
/// How often the bytes that end parsers are exchanged.
const DEATHS: Duration = Duration::from_secs(10);

/// What a deployment chooses.
#[derive(Clone, Copy, Debug)]
pub struct ShippingOptions {
    /// How long shipped rows stay in the journal: what a PostgreSQL that was put back from a backup of that age has lost is sent again.
    pub keep: Duration,
    /// Bytes of shipped rows that stay at most.
    pub keep_bytes: u64,
    /// How long whoever weighs a rollout waits for what this replica has not shipped yet.
    pub window_waits: Duration,
}

impl Default for ShippingOptions {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(3600),
            keep_bytes: 256 * 1024 * 1024,
            window_waits: Duration::from_millis(200),
        }
    }
}

/// Where shipping stands, for `/metrics` and for those who wait.
#[derive(Debug)]
pub struct Shipping {
    /// Last row that PostgreSQL is known to have.
    shipped: watch::Sender<u64>,
    /// Rows shipped since the start.
    pub total: AtomicU64,
    /// Attempts that failed since the start.
    pub failures: AtomicU64,
    /// Whether PostgreSQL answered last time; true before the first.
    pub reachable: AtomicBool,
    /// Whether PostgreSQL has other rows than the journal.
    pub diverged: AtomicBool,
    /// When everything was there, last.
    caught_up: Mutex<Instant>,
    /// Bytes that ended parsers of any replica too often.
    quarantined: Mutex<Vec<String>>,
}

impl Default for Shipping {
    fn default() -> Self {
        Self {
            shipped: watch::Sender::new(0),
            total: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            reachable: AtomicBool::new(true),
            diverged: AtomicBool::new(false),
            caught_up: Mutex::new(Instant::now()),
            quarantined: Mutex::default(),
        }
    }
}

impl Shipping {
    /// Last row that PostgreSQL is known to have.
    pub fn shipped(&self) -> u64 {
        *self.shipped.borrow()
    }

    /// For how long something has been waiting, where the journal ends at `head`.
    pub fn lag(&self, head: u64) -> Duration {
        if self.shipped() >= head { Duration::ZERO } else { self.caught_up().elapsed() }
    }

    /// Waits until PostgreSQL has this row; false where that takes longer.
    pub(super) async fn reaches(&self, seq: u64, time: Duration) -> bool {
        let mut shipped = self.shipped.subscribe();
        tokio::time::timeout(time, shipped.wait_for(|s| *s >= seq)).await.is_ok_and(|r| r.is_ok())
    }

    pub(super) fn quarantined(&self) -> Vec<String> {
        self.quarantined.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn caught_up(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.caught_up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why nothing was shipped.
#[derive(Debug, thiserror::Error)]
enum ShippingError {
    /// Try again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Two chains, or a hole: somebody has to decide.
    #[error("{0}")]
    Diverged(String),
}

impl From<sqlx::Error> for ShippingError {
    fn from(error: sqlx::Error) -> Self {
        // The primary key: a row of this number is there, which the mark did not show.
        if error.as_database_error().is_some_and(|e| e.is_unique_violation()) {
            return Self::Diverged(format!(
                "PostgreSQL has a row of this number already: another process ships this chain ({error})"
            ));
        }
        Self::Store(error.into())
    }
}

/// The background task.
pub(super) struct Shipper {
    journal: Arc<SqliteStore>,
    postgres: Arc<PostgresStore>,
    shipping: Arc<Shipping>,
    options: ShippingOptions,
    /// What was shipped and is still in the journal: up to which row, since when, how much.
    kept: VecDeque<(u64, Instant, u64)>,
    /// The mark at the last visit; None before the first.
    at: Option<u64>,
    batch: Batch,
}

/// How much one transaction takes. What PostgreSQL does not take in time is sent in halves, or it would never arrive.
#[derive(Debug)]
struct Batch {
    rows: u32,
    bytes: u64,
    /// What is under way.
    sent: Option<(u32, u64)>,
    good: u32,
}

impl Default for Batch {
    fn default() -> Self {
        Self { rows: ROWS, bytes: BYTES, sent: None, good: 0 }
    }
}

impl Batch {
    /// What is under way took too long.
    fn took_too_long(&mut self) {
        if let Some((rows, bytes)) = self.sent.take() {
            (self.rows, self.bytes, self.good) = ((rows / 2).max(1), (bytes / 2).max(1), 0);
        }
    }

    /// It arrived.
    fn arrived(&mut self) {
        if self.sent.take().is_none_or(|(rows, _)| rows == 0) {
            return;
        }
        self.good += 1;
        if self.good >= GROWS_AFTER {
            (self.rows, self.bytes, self.good) = ((self.rows * 2).min(ROWS), (self.bytes * 2).min(BYTES), 0);
        }
    }
}

/// What belongs to one connection.
struct Visit {
    conn: PgConnection,
    /// Number of the last anchor that is there.
    anchor: i64,
    deaths: Option<Instant>,
}

impl Shipper {
    pub fn new(
        journal: Arc<SqliteStore>,
        postgres: Arc<PostgresStore>,
        shipping: Arc<Shipping>,
        options: ShippingOptions,
    ) -> Self {
        Self { journal, postgres, shipping, options, kept: VecDeque::new(), at: None, batch: Batch::default() }
    }

    /// Ships until `stop`. What is under way then is not waited for: the next start finds out what became of it.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut wait = BACKOFF.0;
        loop {
            let before = self.at;
            let result = tokio::select! {
                _ = stop.wait_for(|s| *s) => return,
                result = self.visit() => result,
            };
            if self.at != before {
                wait = BACKOFF.0;
            }
            let Err(error) = result else { continue };
            self.shipping.reachable.store(false, Ordering::Relaxed);
            self.shipping.failures.fetch_add(1, Ordering::Relaxed);
            let pause = match &error {
                ShippingError::Diverged(why) => {
                    self.shipping.diverged.store(true, Ordering::Relaxed);
                    self.journal.backlog().hold(Some(why.clone()));
                    tracing::error!(
                        writer = self.journal.writer(),
                        why,
                        "the journal is not shipped, and allows are refused"
                    );
                    DIVERGED
                }
                ShippingError::Store(error) => {
                    if too_long(error) {
                        self.batch.took_too_long();
                    }
                    tracing::warn!(%error, retry_in_ms = wait.as_millis(), "the journal could not be shipped; it is tried again");
                    wait
                }
            };
            tokio::select! {
                _ = stop.wait_for(|s| *s) => return,
                () = tokio::time::sleep(jittered(pause)) => {}
            }
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    /// Ships over one connection until something goes wrong.
    async fn visit(&mut self) -> Result<(), ShippingError> {
        self.postgres.prepare().await?;
        let mut visit = Visit { conn: self.postgres.connection().await?, anchor: 0, deaths: None };
        within(self.greet(&mut visit)).await.map_err(ShippingError::from)??;
        loop {
            let more = match within(async { Ok::<_, StoreError>(self.ship(&mut visit).await) }).await {
                Ok(shipped) => shipped?,
                Err(error) => return Err(error.into()),
            };
            if !self.shipping.reachable.swap(true, Ordering::Relaxed) {
                tracing::info!(writer = self.journal.writer(), seq = self.at, "the journal is shipped");
            }
            if self.shipping.diverged.swap(false, Ordering::Relaxed) {
                self.journal.backlog().hold(None);
                tracing::info!(writer = self.journal.writer(), "PostgreSQL has this chain again: allows are answered");
            }
            self.take_away().await?;
            if !more {
                *self.shipping.caught_up() = Instant::now();
                let _ = tokio::time::timeout(TICK, self.journal.something_new()).await;
            }
        }
    }

    /// What is said once on a connection.
    async fn greet(&self, visit: &mut Visit) -> Result<Result<(), ShippingError>, StoreError> {
        let writer = self.journal.writer();
        intake::enter(&mut visit.conn, writer).await?;
        visit.anchor = intake::last_anchor(&mut visit.conn, writer).await?;
        let tombstones: Vec<Numbered> = self.journal.tombstones().await?;
        if intake::add_tombstones(&mut visit.conn, writer, &tombstones).await? {
            return Ok(Ok(()));
        }
        Ok(Err(ShippingError::Diverged("PostgreSQL has other tombstones of this writer than the journal".into())))
    }

    /// One transaction; says whether there may be more to ship.
    async fn ship(&mut self, visit: &mut Visit) -> Result<bool, ShippingError> {
        let writer = self.journal.writer().to_owned();
        self.batch.sent = None;
        // Only what no power cut takes away any more: PostgreSQL must never know more of this chain than the journal.
        self.journal.make_durable().await?;
        let mut tx = visit.conn.begin().await?;
        let mark = intake::mark(&mut tx, &writer).await?.unwrap_or_else(|| (0, chain::genesis(&writer)));
        self.agree(mark).await?;
        let rows = self.journal.outgoing(mark.0, self.batch.rows, self.batch.bytes).await?;
        let mut at = mark;
        for out in &rows {
            let (seq, hash) = (at.0 + 1, chain::link(&at.1, at.0 + 1, &out.body_hash));
            if (out.row.seq, out.hash) != (seq, hash) {
                return Err(ShippingError::Diverged(format!(
                    "the journal's record {} does not follow from the one before it: the file was changed",
                    out.row.seq
                )));
            }
            at = (seq, hash);
        }
        let mut bytes = Weights::new();
        for out in &rows {
            let tenant = out.row.columns.as_ref().map(|c| c.tenant.clone());
            *bytes.entry(tenant.unwrap_or_default()).or_default() += out.bytes;
        }
        self.batch.sent = Some((u32::try_from(rows.len()).unwrap_or(u32::MAX), bytes.values().sum()));
        if !rows.is_empty() {
            intake::add(&mut tx, &writer, &rows).await.map_err(unique)?;
        }
        fault::point("shipping.rows_sent");
        let reports = self.journal.call_reports(ROWS).await?;
        if !reports.is_empty() {
            intake::add_reports(&mut tx, &reports).await?;
        }
        let anchors = self.journal.anchors_after(visit.anchor, at.0).await?;
        if let Some((last, ..)) = anchors.last() {
            intake::add_anchors(&mut tx, &writer, &anchors).await.map_err(unique)?;
            visit.anchor = *last;
        }
        if visit.deaths.is_none_or(|then| then.elapsed() >= DEATHS) {
            intake::say_deaths(&mut tx, &writer, &self.journal.parser_deaths().await?).await?;
        }
        tx.commit().await?;
        fault::point("shipping.committed");
        self.batch.arrived();
        self.arrived(at.0, rows.len() as u64, &bytes);
        if !reports.is_empty() {
            let ids = reports.into_iter().map(|(id, _)| id).collect();
            self.journal.forget_reports(ids).await?;
        }
        if visit.deaths.is_none_or(|then| then.elapsed() >= DEATHS) {
            visit.deaths = Some(Instant::now());
            let everywhere = super::Store::quarantined(&*self.postgres).await?;
            *self.shipping.quarantined.lock().unwrap_or_else(PoisonError::into_inner) = everywhere;
        }
        Ok(at.0 < self.journal.head_seq())
    }

    /// Whether PostgreSQL's chain is a beginning of the journal's.
    async fn agree(&mut self, mark: (u64, chain::Hash)) -> Result<(), ShippingError> {
        let (seq, hash) = mark;
        let begins_after = self.journal.begins_after().await?;
        if seq < begins_after {
            return Err(ShippingError::Diverged(format!(
                "PostgreSQL ends at record {seq} of this chain and the journal begins after {begins_after}: PostgreSQL was put back \
                 from a backup that is older than what the journal keeps"
            )));
        }
        match self.journal.hash_at(seq).await? {
            Some(own) if own == hash => {}
            Some(_) => {
                return Err(ShippingError::Diverged(format!(
                    "PostgreSQL's record {seq} is another one than the journal's: one of the two was changed, or two processes wrote \
                     this chain"
                )));
            }
            None => {
                return Err(ShippingError::Diverged(format!(
                    "PostgreSQL has records up to {seq} of this chain, the journal ends at {}: the journal was put back from a copy",
                    self.journal.head_seq()
                )));
            }
        }
        if self.at == Some(seq) {
            return Ok(());
        }
        // The first visit, a transaction that had arrived after all, or a PostgreSQL that was put back.
        let before = self.at.unwrap_or(0);
        if seq >= before {
            let bytes = self.journal.weight(before, seq).await?;
            self.arrived(seq, 0, &bytes);
        } else {
            tracing::warn!(from = seq, to = before, "PostgreSQL has lost records: they are sent again");
            let bytes = self.journal.weight(seq, before).await?;
            self.journal.backlog().enter(&bytes);
            self.kept.retain(|(upto, ..)| *upto <= seq);
            self.at = Some(seq);
            self.shipping.shipped.send_replace(seq);
        }
        Ok(())
    }

    fn arrived(&mut self, upto: u64, rows: u64, bytes: &Weights) {
        self.journal.backlog().leave(bytes);
        let bytes = bytes.values().sum();
        self.shipping.total.fetch_add(rows, Ordering::Relaxed);
        if bytes > 0 {
            self.kept.push_back((upto, Instant::now(), bytes));
        }
        self.at = Some(upto);
        self.shipping.shipped.send_replace(upto);
    }

    /// Takes away what was shipped long enough ago, or is too much.
    async fn take_away(&mut self) -> Result<(), StoreError> {
        let mut bytes: u64 = self.kept.iter().map(|(.., bytes)| bytes).sum();
        let mut upto = None;
        while let Some((seq, since, part)) = self.kept.front() {
            if since.elapsed() < self.options.keep && bytes <= self.options.keep_bytes {
                break;
            }
            upto = Some(*seq);
            bytes -= part;
            self.kept.pop_front();
        }
        match upto {
            Some(upto) => self.journal.take_away(upto).await,
            None => Ok(()),
        }
    }
}

/// Whether PostgreSQL was not done in time, by its own clock or by ours.
fn too_long(error: &StoreError) -> bool {
    match error {
        StoreError::Closed(_) => true,
        StoreError::Database(sqlx::Error::Database(e)) => e.code().as_deref() == Some("57014"),
        _ => false,
    }
}

fn unique(error: StoreError) -> ShippingError {
    match error {
        StoreError::Database(error) => error.into(),
        other => other.into(),
    }
}

/// Half of it to one and a half, so that replicas don't come back all at once.
fn jittered(pause: Duration) -> Duration {
    let half = pause / 2;
    let spread = u32::try_from(pause.as_millis()).unwrap_or(u32::MAX).max(1);
    half + Duration::from_millis(u64::from(OsRng.next_u32() % spread))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_shrinks_by_what_was_sent_and_grows_again() {
        let mut batch = Batch::default();
        batch.took_too_long();
        assert_eq!((batch.rows, batch.bytes), (ROWS, BYTES), "nothing was under way");
        batch.sent = Some((100, 5_000_000));
        batch.took_too_long();
        assert_eq!((batch.rows, batch.bytes), (50, 2_500_000));
        for _ in 0..10 {
            batch.sent = Some((1, 1));
            batch.took_too_long();
        }
        assert_eq!((batch.rows, batch.bytes), (1, 1), "one row goes by itself");
        for _ in 0..GROWS_AFTER * 30 {
            batch.sent = Some((0, 0));
            batch.arrived();
        }
        assert_eq!(batch.rows, 1, "what carried nothing says nothing");
        for _ in 0..GROWS_AFTER * 30 {
            batch.sent = Some((1, 1));
            batch.arrived();
        }
        assert_eq!((batch.rows, batch.bytes), (ROWS, BYTES));
    }
}
