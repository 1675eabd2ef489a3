//! Signs anchors while records come in and at stop, and gives the newest to every sink.
//!
//! It never replaces an anchor in a sink that the chain does not contain: that anchor is the only witness that the
//! database was cut, rewritten or put back from a backup.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ed25519_dalek::VerifyingKey;
use jiff::Timestamp;
use sqlx::sqlite::SqlitePool;

use super::journal::JournalCounters;
use super::ledger::{self, Write};
use super::queue::Queue;
use crate::store::chain::hex;
use crate::store::{Anchor, AnchorSink, StoreError, statement};

/// How long a sink may take; a stop waits for it.
const WITHIN: Duration = Duration::from_secs(5);

struct Sink {
    sink: Arc<dyn AnchorSink>,
    /// Whether what it held at the start was found in the chain: from then on it only gets what this writer signed.
    agrees: AtomicBool,
    /// Record that the anchor goes up to which it was given last by this process.
    holds: AtomicU64,
}

pub(super) struct Anchoring {
    pub queue: Arc<Queue>,
    pub readers: SqlitePool,
    pub writer: Arc<str>,
    pub counters: Arc<JournalCounters>,
    key: Option<VerifyingKey>,
    sinks: Vec<Sink>,
}

impl Anchoring {
    pub fn new(
        queue: Arc<Queue>,
        readers: SqlitePool,
        writer: Arc<str>,
        counters: Arc<JournalCounters>,
        key: Option<VerifyingKey>,
        sinks: Vec<Arc<dyn AnchorSink>>,
    ) -> Self {
        let sinks = sinks
            .into_iter()
            .map(|sink| Sink { sink, agrees: AtomicBool::new(false), holds: AtomicU64::new(0) })
            .collect();
        Self { queue, readers, writer, counters, key, sinks }
    }

    /// Every so often, while records come in.
    pub async fn run(self: Arc<Self>, every: Duration) {
        if self.key.is_none() {
            return;
        }
        let mut published = true;
        loop {
            tokio::time::sleep(every).await;
            let result = match super::job(&self.queue, Write::Anchor { now: Timestamp::now() }).await {
                Ok(0) if published => continue,
                Ok(_) => self.publish().await,
                Err(error) => Err(error),
            };
            published = result.is_ok();
            if let Err(error) = result {
                tracing::warn!(%error, "an anchor could not be signed and published; it is tried again");
            }
        }
    }

    /// Signs where the chain stands and publishes it.
    pub async fn once(&self) -> Result<(), StoreError> {
        super::job(&self.queue, Write::Anchor { now: Timestamp::now() }).await?;
        self.publish().await
    }

    /// Gives the newest anchor to every sink; one that fails does not keep it from the others.
    async fn publish(&self) -> Result<(), StoreError> {
        let mut conn = self.readers.acquire().await?;
        let Some(newest) = ledger::last_anchor(&mut conn).await? else { return Ok(()) };
        drop(conn);
        let upto = statement::open::<Anchor>(&newest, None).map_or(0, |anchor| anchor.seq);
        let mut result = Ok(());
        for sink in &self.sinks {
            let publish = async {
                if !sink.agrees.load(Ordering::Relaxed) {
                    self.agrees(&*sink.sink).await?;
                    sink.agrees.store(true, Ordering::Relaxed);
                }
                sink.sink.publish(&self.writer, &newest).await?;
                sink.holds.store(upto, Ordering::Relaxed);
                Ok(())
            };
            let late = |_| Err(StoreError::Closed("an anchor's sink did not answer in time".into()));
            if let Err(error) = tokio::time::timeout(WITHIN, publish).await.unwrap_or_else(late) {
                result = Err(error);
            }
        }
        result
    }

    /// The lowest record that a sink's anchor may go up to: it and what follows must stay, for the sink is asked again at the next
    /// start whether the chain contains what it holds.
    pub fn witnessed(&self) -> u64 {
        if self.key.is_none() {
            return u64::MAX;
        }
        self.sinks.iter().map(|sink| sink.holds.load(Ordering::Relaxed)).min().unwrap_or(u64::MAX)
    }

    /// Whether the chain contains what the sink holds.
    async fn agrees(&self, sink: &dyn AnchorSink) -> Result<(), StoreError> {
        let Some(held) = sink.latest(&self.writer).await? else { return Ok(()) };
        // What this installation did not sign for this writer says nothing about its chain.
        let Ok(held) = statement::open::<Anchor>(&held, self.key.as_ref()) else { return Ok(()) };
        if held.writer != *self.writer || held.seq == 0 {
            return Ok(());
        }
        let hash: Option<Vec<u8>> = sqlx::query_scalar("SELECT hash FROM records WHERE seq = ?")
            .bind(ledger::signed("seq", held.seq)?)
            .fetch_optional(&self.readers)
            .await?;
        if hash.is_some_and(|hash| hex(&hash) == held.head) {
            return Ok(());
        }
        self.counters.anchors_disagree.store(1, Ordering::Relaxed);
        Err(StoreError::Corrupt {
            what: "chain",
            why: format!(
                "the anchor of {} covers record {}, which this database does not have: it was cut, rewritten or put back. \
                 The anchor is left where it is; keep a copy, then remove it to go on",
                held.time, held.seq
            ),
        })
    }
}
