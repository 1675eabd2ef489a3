//! What a replay has found so far: counts, the worst differences, and two chains of hashes over every record in its order. Of bounded size,
//! whatever the number of records; it can be kept, and gone on from.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::event::{Canonical, Event, Row, Verdict};
use super::{EffectiveSet, Task};
use crate::api::ReplayCounts;
use crate::gate::Outcome;
use crate::lifecycle::drift::Severity;
use crate::lifecycle::evidence::{CALLER, Shares};
use crate::lifecycle::rollout::capped;
use crate::store::Place;

/// Differences that are kept.
const WORST: usize = 100;
/// Agents that are counted each by itself; those that come after are counted as one.
const AGENTS: usize = 1000;
/// Outcomes, in the order of the matrix.
pub(super) const OUTCOMES: [Outcome; 4] = [Outcome::Allow, Outcome::ApprovalRequired, Outcome::Deny, Outcome::Refused];

/// What has been found so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Stands for the task: what was found for another is no use.
    task: String,
    /// The last record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Place>,
    input: String,
    result: String,
    counts: ReplayCounts,
    /// By outcome before, outcome after, and whether it only reads.
    matrix: [[[u64; 2]; 4]; 4],
    worst: Vec<Event>,
    /// By agent, whose name is a hash here.
    agents: BTreeMap<String, OfAgent>,
    /// Of each invariant: the first counter-example, and how many.
    violations: Vec<(Option<String>, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<Timestamp>,
}

/// What one agent did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct OfAgent {
    replayed: u64,
    high_restrictions: u64,
}

impl Tally {
    pub(super) fn begin(task: &Task) -> Self {
        let header = header(task);
        Self {
            task: hex(&header),
            last: None,
            input: hex(&Canonical::new(b"remit.replay.input.v1\0").bytes(&header).finish()),
            result: hex(&Canonical::new(b"remit.replay.result.v1\0").bytes(&header).finish()),
            counts: ReplayCounts::default(),
            matrix: Default::default(),
            worst: Vec::new(),
            agents: BTreeMap::new(),
            violations: vec![(None, 0); task.invariants.len()],
            from: None,
            to: None,
        }
    }

    pub(super) fn is_of(&self, task: &Task) -> bool {
        self.task == hex(&header(task)) && self.violations.len() == task.invariants.len()
    }

    /// Records that were looked at.
    pub fn done(&self) -> u64 {
        u64::try_from(self.counts.selected).unwrap_or_default()
    }

    /// What was counted.
    pub fn counts(&self) -> &ReplayCounts {
        &self.counts
    }

    pub(super) fn matrix(&self) -> &[[[u64; 2]; 4]; 4] {
        &self.matrix
    }

    pub(super) fn worst(&self) -> &[Event] {
        &self.worst
    }

    pub(super) fn violation(&self, invariant: usize) -> (Option<&str>, u64) {
        self.violations.get(invariant).map_or((None, 0), |(first, n)| (first.as_deref(), *n))
    }

    pub(super) fn span(&self) -> (Option<Timestamp>, Option<Timestamp>) {
        (self.from, self.to)
    }

    /// Both chains, so far.
    pub(super) fn fingerprints(&self) -> (&str, &str) {
        (&self.input, &self.result)
    }

    /// What was counted, where one of several agents moves one agent's share only.
    pub(super) fn shares(&self) -> Shares {
        let agents = self.agents.values();
        let restricted: Vec<u64> = agents.clone().map(|a| a.high_restrictions).collect();
        Shares {
            callers: agents.clone().filter(|a| a.replayed >= CALLER).count() as u64,
            most: agents.map(|a| a.replayed).max().unwrap_or(0),
            high_restrictions: capped(restricted, self.agents.len() as u64),
        }
    }

    /// An agent's own counts, or those of all that came too late.
    fn of_agent(&mut self, name: &str) -> &mut OfAgent {
        let mut key = hex(&Canonical::new(b"agent\0").text(name).finish());
        key.truncate(16);
        if self.agents.len() >= AGENTS && !self.agents.contains_key(&key) {
            key.clear();
        }
        self.agents.entry(key).or_default()
    }

    /// Adds the next row.
    pub(super) fn add(&mut self, row: Row) {
        let counts = &mut self.counts;
        counts.selected += 1;
        self.input = chained(&self.input, &row.input);
        self.result = chained(&self.result, &row.result);
        self.from = self.from.or(Some(row.time));
        self.to = Some(row.time);
        self.last = Some(row.place);
        for (n, counter_example) in row.violations {
            if let Some((first, all)) = self.violations.get_mut(n) {
                first.get_or_insert(counter_example);
                *all += 1;
            }
        }
        match row.verdict {
            Verdict::Not(why) => {
                counts.not_replayable += 1;
                *counts.not_replayable_because.entry(why.as_str().to_owned()).or_default() += 1;
            }
            Verdict::Replayed { baseline, candidate, reads, agent, event } => {
                counts.replayed += 1;
                if event.is_none() {
                    counts.same += 1;
                }
                let place = |outcome| OUTCOMES.iter().position(|o| *o == outcome).unwrap_or_default();
                self.matrix[place(baseline)][place(candidate)][usize::from(reads)] += 1;
                let of = self.of_agent(&agent);
                of.replayed += 1;
                if let Some(event) = event {
                    of.high_restrictions += u64::from(event.severity == Severity::High && event.cause.restricts());
                    self.difference(*event);
                }
            }
        }
    }

    fn difference(&mut self, event: Event) {
        let counts = &mut self.counts;
        match event.severity {
            Severity::None => {}
            Severity::Low => counts.low += 1,
            Severity::Medium => counts.medium += 1,
            Severity::High => counts.high += 1,
            Severity::Critical => counts.critical += 1,
        }
        *counts.causes.entry(event.cause.as_str().to_owned()).or_default() += 1;
        if event.cause.expands() {
            counts.expansions += 1;
        }
        if event.cause.restricts() {
            counts.restrictions += 1;
            counts.high_restrictions += i64::from(event.severity == Severity::High);
        }
        // The worst first, then the earliest. Records come in their order, so a later one of the same severity stands behind.
        let place = self.worst.partition_point(|kept| kept.severity >= event.severity);
        if place < WORST {
            self.worst.insert(place, event);
            self.worst.truncate(WORST);
        }
    }
}

/// Everything that the answer depends on besides the records.
fn header(task: &Task) -> [u8; 32] {
    let set = |canonical: Canonical, set: &EffectiveSet| {
        let canonical = canonical.number(i64::try_from(set.platform.len()).unwrap_or(i64::MAX));
        let canonical = set.platform.iter().fold(canonical, |c, p| c.text(p.digest()));
        canonical.text(set.package.digest())
    };
    let canonical = Canonical::new(b"remit.replay.task.v1\0").text(&task.tenant);
    let canonical = canonical.text(task.tenant_uid.as_deref().unwrap_or_default());
    let canonical = set(set(canonical, &task.baseline), &task.candidate);
    let json = |value: Option<String>| value.unwrap_or_default();
    canonical
        .text(&json(serde_json_canonicalizer::to_string(&task.invariants).ok()))
        .text(&json(serde_json_canonicalizer::to_string(&task.selection).ok()))
        .finish()
}

fn chained(state: &str, row: &[u8; 32]) -> String {
    hex(&Canonical::new(b"row\0").text(state).bytes(row).finish())
}

pub(super) fn hex(bytes: &[u8; 32]) -> String {
    crate::store::hex(bytes)
}
