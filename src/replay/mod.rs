//! Replay: recorded decisions put through the gates again under two effective sets (the platform's packages and one of the tenant's,
//! each), with the facts of their own time.
//!
//! Pure: no clock, no client, no store. It must never guess: a record that does not hold what the gates need, or whose answer depends on
//! a value that was not kept, is counted as not replayable, with the reason. The same input gives the same fingerprint, whatever the
//! number of threads, the size of the pages or the restarts in between.

mod asked;
mod event;
mod html;
mod invariants;
mod probe;
mod report;
mod selection;
mod tally;
mod world;

use std::sync::{Arc, Mutex, PoisonError};

pub use asked::{Asked, AskedError, end_of_second};
pub use event::{Event, SideOf, Unreplayable};
pub use html::{CONTENT_SECURITY_POLICY, page as html};
pub use invariants::InvariantResult;
pub use report::{LeftOut, MatrixCell, Named, Report};
pub use selection::selects;
pub use tally::Tally;
pub use world::{ask, enforced};

use crate::api::{Invariant, InvariantError, ReplaySelection};
use crate::gate::DecisionRecord;
use crate::policy::CompiledPackage;
use crate::store::{Place, ReplayRow, StoredDecision};
use event::Row;
use invariants::Judge;
use world::Worlds;

/// Everything that decides on one side.
#[derive(Clone, Debug)]
pub struct EffectiveSet {
    /// The platform's packages, base first.
    pub platform: Vec<Arc<CompiledPackage>>,
    /// The tenant's.
    pub package: Arc<CompiledPackage>,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Task {
    /// Namespace; records of others are not replayable.
    pub tenant: String,
    /// Its UID; records of a namespace of the same name that is gone are not replayable. None: not known, offline.
    pub tenant_uid: Option<String>,
    /// What is compared with.
    pub baseline: EffectiveSet,
    /// What is tried.
    pub candidate: EffectiveSet,
    /// What must hold of the candidate.
    pub invariants: Vec<Invariant>,
    /// Which decisions are replayed. Its limit is for who reads the records.
    pub selection: ReplaySelection,
}

/// One recorded decision, with the hash that stands for its bytes.
#[derive(Clone, Debug)]
pub struct Recorded {
    place: Place,
    hash: String,
    body: Body,
}

/// A record, parsed or not yet.
#[derive(Clone, Debug)]
enum Body {
    Record(Box<DecisionRecord>),
    Text(String),
}

impl Recorded {
    /// A record whose chain has this hash, hex, up to and including it.
    pub fn new(record: DecisionRecord, hash: String) -> Self {
        Self { place: Place::of(&record), hash, body: Body::Record(Box::new(record)) }
    }

    /// Where it stands.
    pub fn place(&self) -> &Place {
        &self.place
    }
}

impl From<StoredDecision> for Recorded {
    fn from(stored: StoredDecision) -> Self {
        Self::new(stored.record, stored.hash)
    }
}

impl From<ReplayRow> for Recorded {
    fn from(row: ReplayRow) -> Self {
        Self { place: row.place, hash: row.hash, body: Body::Text(row.body) }
    }
}

/// Of no chain: the hash of its own bytes stands for it.
impl From<DecisionRecord> for Recorded {
    fn from(record: DecisionRecord) -> Self {
        let bytes = serde_json::to_vec(&record).unwrap_or_default();
        Self::new(record, crate::policy::sha256_text(&bytes))
    }
}

/// Whether every invariant can be judged.
pub fn judged(invariants: &[Invariant]) -> Result<(), InvariantError> {
    Judge::new(invariants).map(drop)
}

/// Replays a whole set of records at once, in the order of time and id; the records may come in any order.
pub fn run(
    baseline: &EffectiveSet,
    candidate: &EffectiveSet,
    invariants: &[Invariant],
    records: &mut [Recorded],
) -> Result<Report, InvariantError> {
    order(records);
    let (tenant, tenant_uid) = newest_tenant(records);
    let task = Task {
        tenant,
        tenant_uid,
        baseline: baseline.clone(),
        candidate: candidate.clone(),
        invariants: invariants.to_vec(),
        selection: ReplaySelection::default(),
    };
    run_task(task, records, std::thread::available_parallelism().map_or(1, usize::from))
}

/// Puts records in the order of a replay.
pub fn order(records: &mut [Recorded]) {
    records.sort_by(|a, b| (&a.place, &a.hash).cmp(&(&b.place, &b.hash)));
}

/// The namespace of the newest record, and its UID: offline, nobody else knows.
pub fn newest_tenant(ordered: &[Recorded]) -> (String, Option<String>) {
    let newest = ordered.iter().rev().find_map(|r| match &r.body {
        Body::Record(record) => Some(record),
        Body::Text(_) => None,
    });
    newest.map_or_else(Default::default, |r| (r.tenant.clone(), Some(r.tenant_uid.clone())))
}

/// Replays records that are in the order of time and id, on so many threads.
pub fn run_task(task: Task, records: &[Recorded], threads: usize) -> Result<Report, InvariantError> {
    let replay = Replay::new(task)?;
    let mut tally = replay.begin();
    for page in records.chunks(PAGE) {
        replay.page(&mut tally, page, threads);
    }
    Ok(replay.finish(&tally))
}

/// Records that are given to the threads at once.
const PAGE: usize = 4096;

/// A replay under way. What it has found so far is in a [`Tally`], which can be kept and gone on from.
pub struct Replay {
    task: Task,
    judge: Judge,
    worlds: Vec<Mutex<Worlds>>,
}

/// Threads of one replay at most.
const MAX_THREADS: usize = 64;

impl Replay {
    /// Over this task. Err: an invariant that nobody can judge.
    pub fn new(task: Task) -> Result<Self, InvariantError> {
        let judge = Judge::new(&task.invariants)?;
        Ok(Self { task, judge, worlds: (0..MAX_THREADS).map(|_| Mutex::default()).collect() })
    }

    /// Nothing is replayed yet.
    pub fn begin(&self) -> Tally {
        Tally::begin(&self.task)
    }

    /// Whether a tally that was kept is one of this task.
    pub fn goes_on(&self, tally: &Tally) -> bool {
        tally.is_of(&self.task)
    }

    /// Replays the next records, in the order of time and id, on so many threads.
    pub fn page(&self, tally: &mut Tally, records: &[Recorded], threads: usize) {
        let threads = threads.clamp(1, MAX_THREADS).min(records.len().max(1));
        if threads == 1 {
            self.rows(0, records).into_iter().for_each(|row| tally.add(row));
            return;
        }
        let each = records.len().div_ceil(threads);
        let done: Vec<_> = std::thread::scope(|scope| {
            let tasks: Vec<_> =
                records.chunks(each).enumerate().map(|(n, chunk)| scope.spawn(move || self.rows(n, chunk))).collect();
            tasks.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        for rows in done {
            match rows {
                Ok(rows) => rows.into_iter().for_each(|row| tally.add(row)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    }

    /// Replays the next records until it is `enough`, and at least one; says how many of them. What comes of all of them does not depend
    /// on where it stops.
    pub fn some(&self, tally: &mut Tally, records: &[Recorded], enough: &dyn Fn() -> bool) -> usize {
        let mut worlds = self.worlds[0].lock().unwrap_or_else(PoisonError::into_inner);
        for (n, recorded) in records.iter().enumerate() {
            if let Some(row) = event::row(&self.task, &self.judge, &mut worlds, recorded) {
                tally.add(row);
            }
            // Also of one that is not of the selection: it is never looked at again.
            tally.last = Some(recorded.place.clone());
            if enough() {
                return n + 1;
            }
        }
        records.len()
    }

    /// Asks further made-up calls, once all records are replayed, until it is `enough`, and at least one; false while there are more.
    /// [`Replay::finish`] asks those that are left.
    pub fn make_up(&self, tally: &mut Tally, enough: &dyn Fn() -> bool) -> bool {
        tally.made_up.go_on(&self.task, &self.judge, enough);
        tally.made_up.done
    }

    fn rows(&self, thread: usize, records: &[Recorded]) -> Vec<Row> {
        let mut worlds = self.worlds[thread % MAX_THREADS].lock().unwrap_or_else(PoisonError::into_inner);
        records.iter().filter_map(|recorded| event::row(&self.task, &self.judge, &mut worlds, recorded)).collect()
    }

    /// The report of what was replayed.
    pub fn finish(&self, tally: &Tally) -> Report {
        report::report(&self.task, &self.judge, tally)
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
