//! How much of a journal waits to be shipped, and when that is too much: at the cap allows are refused, a little later everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;

use crate::store::StoreError;

/// What a row takes besides its body, about.
pub(in crate::store) const ROW: u64 = 512;

/// Bytes that were committed here and are not known to be elsewhere.
#[derive(Debug, Default)]
pub(in crate::store) struct Backlog {
    /// None: nothing is shipped, the journal is the store.
    cap: Option<u64>,
    entered: AtomicU64,
    left: AtomicU64,
    held: ArcSwapOption<String>,
}

impl Backlog {
    pub fn new(cap: Option<u64>, there: u64) -> Self {
        Self { cap, entered: AtomicU64::new(there), ..Self::default() }
    }

    pub fn cap(&self) -> Option<u64> {
        self.cap
    }

    pub fn bytes(&self) -> u64 {
        self.entered.load(Ordering::Relaxed).saturating_sub(self.left.load(Ordering::Relaxed))
    }

    pub fn enter(&self, bytes: u64) {
        self.entered.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn leave(&self, bytes: u64) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }

    /// PostgreSQL says other things than the journal: allows are refused until it does no more (None).
    pub fn hold(&self, why: Option<String>) {
        self.held.store(why.map(Arc::new));
    }

    /// Whether a record may be appended. Denies have room left when allows have none: that somebody tried is worth keeping.
    pub fn admits(&self, allow: bool) -> Result<(), StoreError> {
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
        Ok(())
    }
}
