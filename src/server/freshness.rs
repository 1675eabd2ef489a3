//! How old the snapshot is: the feed says when it last showed life.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Written by the feed, read by every check.
#[derive(Debug)]
pub struct Freshness {
    base: Instant,
    /// Milliseconds after `base`, plus one; 0: never.
    seen: AtomicU64,
}

impl Freshness {
    /// Nothing was heard yet. `base` is any instant before the first sign of life.
    pub fn new(base: Instant) -> Self {
        Self { base, seen: AtomicU64::new(0) }
    }

    /// The feed is complete and alive at this instant.
    pub fn alive(&self, at: Instant) {
        let millis = u64::try_from(at.saturating_duration_since(self.base).as_millis()).unwrap_or(u64::MAX - 1);
        self.seen.fetch_max(millis + 1, Ordering::Release);
    }

    /// How long ago that was; None before the caches were synced.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let millis = self.seen.load(Ordering::Acquire).checked_sub(1)?;
        Some(now.saturating_duration_since(self.base).saturating_sub(Duration::from_millis(millis)))
    }
}
