//! How much of a journal waits to be shipped, and when that is too much: at the cap allows are refused, a little later everything.
//!
//! A namespace that writes much is refused before the others: none may have more waiting than three times what is left. So one has at most
//! three quarters of the cap, and two at most three sevenths each; however many there are, something is left for the next.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;

use crate::store::StoreError;

/// What a row takes besides its body, about.
pub(in crate::store) const ROW: u64 = 512;

/// How many times what is left one namespace may have.
const TIMES: u64 = 3;

/// Bytes by namespace; those of rows that retention took are nobody's.
pub(in crate::store) type Weights = BTreeMap<String, u64>;

/// Bytes that were committed here and are not known to be elsewhere.
#[derive(Debug, Default)]
pub(in crate::store) struct Backlog {
    /// None: nothing is shipped, the journal is the store.
    cap: Option<u64>,
    entered: AtomicU64,
    left: AtomicU64,
    waiting: Mutex<Weights>,
    held: ArcSwapOption<String>,
}

impl Backlog {
    pub fn new(cap: Option<u64>, there: &Weights) -> Self {
        let backlog = Self { cap, ..Self::default() };
        backlog.enter(there);
        backlog
    }

    fn waiting(&self) -> MutexGuard<'_, Weights> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn cap(&self) -> Option<u64> {
        self.cap
    }

    pub fn bytes(&self) -> u64 {
        self.entered.load(Ordering::Relaxed).saturating_sub(self.left.load(Ordering::Relaxed))
    }

    pub fn enter(&self, bytes: &Weights) {
        if self.cap.is_none() {
            return;
        }
        self.entered.fetch_add(bytes.values().sum(), Ordering::Relaxed);
        let mut waiting = self.waiting();
        for (tenant, bytes) in bytes {
            match waiting.get_mut(tenant) {
                Some(there) => *there += bytes,
                None => drop(waiting.insert(tenant.clone(), *bytes)),
            }
        }
    }

    pub fn leave(&self, bytes: &Weights) {
        self.left.fetch_add(bytes.values().sum(), Ordering::Relaxed);
        let mut waiting = self.waiting();
        for (tenant, bytes) in bytes {
            let Some(there) = waiting.get_mut(tenant) else { continue };
            *there = there.saturating_sub(*bytes);
            if *there == 0 {
                waiting.remove(tenant);
            }
        }
    }

    /// PostgreSQL says other things than the journal: allows are refused until it does no more (None).
    pub fn hold(&self, why: Option<String>) {
        self.held.store(why.map(Arc::new));
    }

    /// Whether a record of a namespace may be appended. Denies have room left when allows have none: that somebody tried is worth keeping.
    pub fn admits(&self, tenant: &str, allow: bool) -> Result<(), StoreError> {
        let Some(cap) = self.cap else { return Ok(()) };
        if let Some(why) = self.held.load().as_ref().filter(|_| allow) {
            return Err(StoreError::Behind(why.to_string()));
        }
        let most = if allow { cap } else { cap + cap / 8 };
        let bytes = self.bytes();
        if bytes >= most {
            return Err(StoreError::Behind(format!(
                "{bytes} bytes wait to be shipped to PostgreSQL, the cap is {cap} (--journal-cap-bytes)"
            )));
        }
        // Far from the cap nobody's share matters, and no lock is taken.
        if bytes < most / 2 {
            return Ok(());
        }
        let own = self.waiting().get(tenant).copied().unwrap_or(0);
        if own > (most - bytes).saturating_mul(TIMES) {
            return Err(StoreError::Behind(format!(
                "{own} bytes of this namespace wait to be shipped to PostgreSQL: more than its share of the cap {cap} \
                 (--journal-cap-bytes)"
            )));
        }
        Ok(())
    }
}
