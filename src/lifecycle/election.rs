//! Who leads, by a Lease, as client-go does it. Pure: what was read and when on the local monotonic clock in, what to write out.
//!
//! The times that stand in the Lease are for people: no clock is ever compared with another machine's. A lease is over when its
//! record has not changed for its whole duration *since it was observed here*; the holder stops some seconds before that, counted
//! from when its last good write *began*. Every write is guarded by the version that was read, so that of two only one succeeds.

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// The times of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// After this long without a change others take the lease. Whole seconds.
    pub lease: Duration,
    /// After this long without a good write the holder stops.
    pub renew: Duration,
    /// Between two tries.
    pub retry: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), renew: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

impl Terms {
    /// Whether they make sense together; why not.
    pub fn check(&self) -> Result<(), String> {
        if self.lease <= self.renew {
            return Err("--lease-seconds must be more than --lease-renew-seconds".into());
        }
        if self.renew < self.retry * 2 {
            return Err("--lease-renew-seconds must be at least twice --lease-retry-seconds".into());
        }
        Ok(())
    }

    /// Time for one call: two of them fit before the holder has to stop.
    pub fn call(&self) -> Duration {
        self.renew / 2
    }

    /// For how long work may go on that the loss of the lease has ended: less than until another one begins.
    pub fn grace(&self) -> Duration {
        (self.lease - self.renew) / 2
    }
}

/// What stands in the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty: it was released.
    pub holder: String,
    /// For how long it is held after each renewal, seconds.
    pub seconds: i32,
    /// How often it went from one to another.
    pub transitions: i32,
    /// When the holder got it, by the holder's clock.
    pub acquired: Option<Timestamp>,
    /// When the holder renewed it last, by the holder's clock.
    pub renewed: Option<Timestamp>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the Lease.
    Create(Record),
    /// Write it over the version that was read.
    Update(Record),
    /// Somebody else holds it.
    Wait,
}

/// One who would lead.
#[derive(Clone, Debug)]
pub struct Candidate {
    id: String,
    terms: Terms,
    /// The record as it was last seen to change, and when.
    observed: Option<(Record, Instant)>,
    /// When the last good write began.
    held: Option<Instant>,
}

impl Candidate {
    /// Nothing seen yet. `id` is this process's own: a restarted process is another candidate.
    pub fn new(id: String, terms: Terms) -> Self {
        Self { id, terms, observed: None, held: None }
    }

    /// Until when this one leads; None: it does not.
    pub fn until(&self) -> Option<Instant> {
        self.held.map(|at| at + self.terms.renew)
    }

    /// Whether this one leads.
    pub fn leads(&self, now: Instant) -> bool {
        self.until().is_some_and(|until| now < until)
    }

    /// Who holds the lease, as it was last seen.
    pub fn holder(&self) -> Option<&str> {
        self.observed.as_ref().map(|(record, _)| record.holder.as_str()).filter(|holder| !holder.is_empty())
    }

    /// The Lease was read, at `now` (None: there is none). `clock` is for people.
    pub fn read(&mut self, seen: Option<Record>, now: Instant, clock: Timestamp) -> Action {
        self.lapse(now);
        let Some(seen) = seen else {
            self.observed = None;
            self.held = None;
            return Action::Create(self.record(0, clock, clock));
        };
        if self.observed.as_ref().is_none_or(|(record, _)| *record != seen) {
            self.observed = Some((seen.clone(), now));
        }
        if seen.holder == self.id {
            let acquired = seen.acquired.unwrap_or(clock);
            return Action::Update(self.record(seen.transitions, acquired, clock));
        }
        // Whatever was thought before: it is somebody else's.
        self.held = None;
        let since = self.observed.as_ref().map_or(now, |(_, at)| *at);
        let seconds = u64::try_from(seen.seconds).ok().filter(|s| *s > 0).map(Duration::from_secs);
        let over = now.saturating_duration_since(since) >= seconds.unwrap_or(self.terms.lease);
        if seen.holder.is_empty() || over {
            return Action::Update(self.record(seen.transitions.saturating_add(1), clock, clock));
        }
        Action::Wait
    }

    /// `record` was written; the write began at `begun`.
    pub fn wrote(&mut self, record: Record, begun: Instant, now: Instant) {
        self.observed = Some((record, now));
        self.held = Some(begun);
        self.lapse(now);
    }

    /// Time has passed. Says whether this one no longer leads by that.
    pub fn lapse(&mut self, now: Instant) -> bool {
        let lapsed = self.held.is_some() && !self.leads(now);
        if lapsed {
            self.held = None;
        }
        lapsed
    }

    /// Gives the lease up; the record to write over the version that was read, if it is still this one's.
    pub fn release(&mut self, seen: &Record, clock: Timestamp) -> Option<Record> {
        self.held = None;
        let own = seen.holder == self.id;
        own.then(|| Record { holder: String::new(), seconds: 1, renewed: Some(clock), ..seen.clone() })
    }

    /// How long to wait until the next try. Who waits for the lease takes up to 1.2 times more, by `random`, so that not all come at once.
    pub fn pause(&self, random: u32) -> Duration {
        match self.held {
            Some(_) => self.terms.retry,
            None => self.terms.retry + self.terms.retry.mul_f64(1.2 * f64::from(random) / f64::from(u32::MAX)),
        }
    }

    fn record(&self, transitions: i32, acquired: Timestamp, clock: Timestamp) -> Record {
        Record {
            holder: self.id.clone(),
            seconds: i32::try_from(self.terms.lease.as_secs()).unwrap_or(i32::MAX),
            transitions,
            acquired: Some(acquired),
            renewed: Some(clock),
        }
    }
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
