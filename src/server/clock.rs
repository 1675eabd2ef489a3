//! Where the server's time comes from: a trait, so that tests own it.

use std::time::Instant;

use jiff::Timestamp;

/// Wall clock and monotonic clock.
pub trait Clock: Send + Sync {
    /// Wall clock, for records and expiry dates.
    fn now(&self) -> Timestamp;
    /// Monotonic clock, for ages and latencies.
    fn instant(&self) -> Instant;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }
}
