//! Sessions that other replicas open, prolong and end too: what they did is taken over every half second, and an id that nobody here has
//! heard of is looked up once before it is called unknown.
//!
//! A session that has ended never lives again here, whatever is read late. Only a session that nobody anywhere has seen is expired: the
//! store decides that. Only ids of the shape that Remit issues are looked up, a bounded number at a time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::Sessions;
use crate::gate::Snapshot;
use crate::store::{SessionRow, Store, StoreError};

/// How often the other replicas' changes are taken over.
pub(super) const SYNC: Duration = Duration::from_millis(500);
/// For how long an id that the store does not know is not asked for again.
const ABSENT: Duration = Duration::from_secs(1);
/// Ids that are remembered as absent at most.
const ABSENT_IDS: usize = 10_000;
/// Lookups at once; who comes when all are taken is told that the session is unknown.
const LOOKUPS: usize = 16;
/// How long a lookup may take.
const LOOKUP: Duration = Duration::from_millis(800);
/// How often sessions that have ended are forgotten, and after what time, seconds: a read is never that late.
const FORGET: i64 = 900;

/// What is needed besides the table.
pub(super) struct Others {
    /// Mark of the last takeover; None before the first.
    mark: tokio::sync::Mutex<Option<String>>,
    absent: Mutex<HashMap<String, Instant>>,
    lookups: Semaphore,
}

impl Default for Others {
    fn default() -> Self {
        Self { mark: tokio::sync::Mutex::default(), absent: Mutex::default(), lookups: Semaphore::new(LOOKUPS) }
    }
}

/// As `open` issues it.
fn issued_shape(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl Sessions {
    /// Takes over what others have changed since the last time; the first time all live sessions.
    pub async fn sync(&self, store: &dyn Store, now: Timestamp) -> Result<(), StoreError> {
        let mut mark = self.others.mark.lock().await;
        let (rows, next) = store.changed_sessions(mark.as_deref()).await?;
        {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            for row in rows {
                table.adopt(row, now);
            }
            table.forget_ended(now, FORGET);
        }
        *mark = Some(next);
        Ok(())
    }

    /// Looks an id up that the table does not have, so that `state` and `owner` know it.
    pub async fn find(&self, store: &dyn Store, id: &str, now: Timestamp) {
        if !store.shared() || !issued_shape(id) || self.knows(id) {
            return;
        }
        {
            let mut absent = self.absent();
            if absent.get(id).is_some_and(|since| since.elapsed() < ABSENT) {
                return;
            }
            if absent.len() >= ABSENT_IDS {
                absent.retain(|_, since| since.elapsed() < ABSENT);
            }
        }
        let Ok(_turn) = self.others.lookups.try_acquire() else { return };
        match tokio::time::timeout(LOOKUP, store.session(id)).await {
            Ok(Ok(Some(row))) => self.table.write().unwrap_or_else(PoisonError::into_inner).adopt(row, now),
            Ok(Ok(None)) => {
                let mut absent = self.absent();
                if absent.len() < ABSENT_IDS {
                    absent.insert(id.to_owned(), Instant::now());
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "a session could not be looked up"),
            Err(_) => tracing::warn!("a session could not be looked up in time"),
        }
    }

    /// Ends what nobody anywhere has seen for longer than its tenant's profile allows.
    pub async fn expire_shared(
        &self,
        store: &dyn Store,
        snapshot: &Snapshot,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if snapshot.generation == 0 {
            return Ok(());
        }
        let silent: Vec<(SessionRow, Timestamp)> = {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            table.silent(now, |row| super::timeout(snapshot, row))
        };
        if silent.is_empty() {
            return Ok(());
        }
        let now_are = store.end_silent(&silent, now).await?;
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        for row in now_are {
            if row.ended.as_ref().is_some_and(|(at, why)| *at == now && why == "expired") {
                tracing::info!(
                    session = row.id,
                    tenant = row.tenant,
                    agent = row.agent,
                    "a session ended: no heartbeat"
                );
            }
            table.adopt(row, now);
        }
        Ok(())
    }

    fn knows(&self, id: &str) -> bool {
        self.table.read().unwrap_or_else(PoisonError::into_inner).knows(id)
    }

    fn absent(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.others.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
