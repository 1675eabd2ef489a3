//! Which package answers whom in a tenant: one pass from what is seen to the next status and what has to be done for it.
//!
//! Pure. It never puts a package in force, or on its way, whose verdict is a refusal; never goes below a version that was in force
//! except away from a compromised key, or because a person or the spec names a revision of this tenant's history; never takes a stage
//! on evidence of another question; and says the same thing again when nothing changed. It must never fall back to "something" when
//! it is in doubt: what was in force stays, or nothing is.

mod actions;
#[cfg(test)]
mod attack_tests;
mod budgets;
#[cfg(test)]
mod edge_tests;
mod history;
mod rates;
#[cfg(test)]
mod restore_tests;
mod selection;
#[cfg(test)]
mod stage_tests;
mod stages;
mod state;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod urgent_tests;
mod verdict;
#[cfg(test)]
mod weighing_tests;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use semver::Version;

use super::evidence::{Progress, ProofSummary, Question, ReplaySummary, Window};
use crate::api::{HumanAction, RevisionStatus, TenantRolloutSpec, TenantRolloutStatus};
use crate::policy::{Refusal, sha256_text};
use crate::store::{InForceRow, RolloutCommit, RolloutFailure, RolloutRecord, RolloutState};

pub use budgets::{Limits, stage_minimum, stages};
pub use history::{DEFAULT_HISTORY, left_compromised, revision, revision_name, whole_seconds};
pub use rates::{capped, decisions_of_candidate, replayed_that_count};
pub use selection::is_exact;
pub use state::resume;
pub use verdict::preflight;
pub use words::clip;

/// How long to wait for the next look at a candidate in one of its stages: a bad decision must be seen soon.
const WATCH: Duration = Duration::from_millis(250);
/// The same while replay and proof are made.
const QUEUED: Duration = Duration::from_millis(500);

/// A PolicyPackage of the namespace, with what verification says of it now.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Name of the object.
    pub object: String,
    /// Name of the package.
    pub package: String,
    /// Its version; None where it is not a semantic version (the verdict says so too).
    pub version: Option<Version>,
    /// Digest that Remit computed.
    pub digest: String,
    /// Fingerprint of the key of its signature (None: unsigned), or why it may not come into force.
    pub verdict: Result<Option<String>, Refusal>,
}

/// Keys of the PolicySigners that cover the tenant, by fingerprint.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// Held by a signer that is not compromised.
    pub good: BTreeSet<String>,
    /// Held by a signer that is, or by one that was when this namespace was looked at.
    pub compromised: BTreeSet<String>,
    /// Whether what comes into force must be signed.
    pub required: bool,
}

/// What replay and proof say, and of which change.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// What was asked.
    pub question: &'a Question,
    /// The replay.
    pub replay: &'a Progress<ReplaySummary>,
    /// The proof.
    pub proof: &'a Progress<ProofSummary>,
}

/// Everything that a pass looks at.
#[derive(Clone, Copy)]
pub struct Observation<'a> {
    /// What the user asks for.
    pub spec: &'a TenantRolloutSpec,
    /// What the object says, with the actions of people; the default where there was no pass yet. Where it contradicts the store it
    /// is wrong.
    pub status: &'a TenantRolloutStatus,
    /// Where the rollout stands as the store has it; None: it never took a step.
    pub stored: Option<&'a RolloutState>,
    /// Generation of the spec.
    pub generation: i64,
    /// Namespace.
    pub tenant: &'a str,
    /// Its UID: facts of another one are not facts.
    pub tenant_uid: &'a str,
    /// The packages of the namespace.
    pub candidates: &'a [Candidate],
    /// What the store says was in force here, newest first. A row with an empty digest says that nothing was, from then on.
    pub recorded: &'a [InForceRow],
    /// What has failed under this spec.
    pub failed: &'a [RolloutFailure],
    /// Keys of the tenant's signers.
    pub keys: &'a Keys,
    /// Digests whose bytes are at hand.
    pub kept: &'a BTreeSet<String>,
    /// Former revisions that were looked at because something goes back to them, by digest: why they can't come into force today.
    pub obstacles: &'a BTreeMap<String, String>,
    /// The epoch that this replica acts by; 0: by none.
    pub epoch_in_use: i64,
    /// Why what is in force can't be loaded, if it can't.
    pub load_error: Option<&'a str>,
    /// Why the candidate can't be loaded, if it can't: its sessions are denied meanwhile.
    pub candidate_error: Option<&'a str>,
    /// Digests of the platform's packages, base first; empty where they can't be loaded.
    pub platform: &'a [String],
    /// What replay and proof say, if anything was asked.
    pub evidence: Option<Evidence<'a>>,
    /// What the records of both arms say, while a candidate is in a stage.
    pub window: Option<&'a Window>,
    /// Decisions that the candidate made in this stage, answered or in shadow, of several agents none for more than half of what the
    /// stage needs.
    pub stage_decisions: u64,
    /// Fields that the installed definition of TenantRollout does not have: a budget may have vanished.
    pub schema_gap: Option<&'a str>,
    /// Remit's clock.
    pub now: Timestamp,
}

/// What a pass wants done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Keep the package's bytes as a ControllerRevision.
    KeepBytes { digest: String },
    /// Take the step in the store. Where somebody else took one first the pass ends here.
    Commit(Box<RolloutCommit>),
    /// Write the status. What is not urgent (a number in a text) may wait some seconds.
    WriteStatus { urgent: bool },
    /// Take these actions from the list; they are in `handled`.
    RemoveActions(Vec<HumanAction>),
    /// Tell people, once, what happened.
    Event { warning: bool, reason: &'static str, note: String },
}

/// The outcome of a pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Next {
    /// Status to write, `actions` as they were.
    pub status: TenantRolloutStatus,
    /// What to do.
    pub effects: Vec<Effect>,
    /// When to look again without a change.
    pub again: Option<Duration>,
    /// Whether a candidate was taken back in this pass for what it did.
    pub taken_back: bool,
}

/// One pass.
pub fn step(o: &Observation<'_>) -> Next {
    let (mut pass, base) = opened(o);
    pass.go_on();
    pass.trim_history();
    pass.finish(&base)
}

/// A pass as far as it goes without any package, and what it started from.
fn opened<'a>(o: &'a Observation<'a>) -> (Pass<'a>, TenantRolloutStatus) {
    let base = resume(o);
    let mut pass = Pass::new(o, base.clone());
    pass.recover();
    pass.last_revision = pass.highest_revision();
    pass.store_put_back();
    pass.leave_compromised();
    pass.follow_the_spec();
    pass.breach();
    pass.act();
    (pass, base)
}

/// What waits for no package to be judged: a compromised key, another spec, a breach, and what people ask for. None: there is nothing of
/// it. A pass that carries it out ends with it; the next one goes on.
pub fn urgent(o: &Observation<'_>) -> Option<Next> {
    let (mut pass, base) = opened(o);
    let steps = !(pass.records.is_empty() && pass.failures.is_empty() && pass.in_force.is_empty());
    if !steps && pass.status.handled == base.handled {
        return None;
    }
    pass.tell_meanwhile();
    pass.trim_history();
    Some(pass.finish(&base))
}

/// SHA-256 over the RFC 8785 form of the spec without `paused`, `sha256:` and 64 hex digits.
pub fn spec_hash(spec: &TenantRolloutSpec) -> String {
    let spec = TenantRolloutSpec { paused: false, ..spec.clone() };
    // Texts, whole numbers and lists under fixed keys: RFC 8785 refuses none of it.
    let bytes = serde_json_canonicalizer::to_vec(&spec).unwrap_or_else(|e| format!("not canonical: {e}").into_bytes());
    sha256_text(&bytes)
}

/// Which replay and proof the rollout needs next; None: none.
pub fn question(base: &TenantRolloutStatus, tenant: &str, tenant_uid: &str, platform: &[String]) -> Option<Question> {
    let (stable, candidate) = (base.stable.as_ref()?, base.candidate.as_ref()?);
    if platform.is_empty() || base.stage.is_some() && base.evidence_platform == platform {
        return None;
    }
    Some(Question {
        tenant: tenant.to_owned(),
        tenant_uid: tenant_uid.to_owned(),
        baseline: stable.digest.clone(),
        candidate: candidate.digest.clone(),
        platform: platform.to_vec(),
    })
}

struct Pass<'a> {
    o: &'a Observation<'a>,
    spec_hash: String,
    now: Timestamp,
    last_revision: i64,
    status: TenantRolloutStatus,
    keep: Vec<String>,
    in_force: Vec<InForceRow>,
    failures: Vec<RolloutFailure>,
    records: Vec<RolloutRecord>,
    events: Vec<Effect>,
    handled: Vec<HumanAction>,
    /// A failure of this pass has told people already.
    failed_now: bool,
    taken_back: bool,
}

impl<'a> Pass<'a> {
    fn new(o: &'a Observation<'a>, status: TenantRolloutStatus) -> Self {
        Self {
            o,
            spec_hash: spec_hash(o.spec),
            now: whole_seconds(o.now),
            last_revision: 0,
            status,
            keep: Vec::new(),
            in_force: Vec::new(),
            failures: Vec::new(),
            records: Vec::new(),
            events: Vec::new(),
            handled: Vec::new(),
            failed_now: false,
            taken_back: false,
        }
    }
}

impl Pass<'_> {
    fn event(&mut self, warning: bool, reason: &'static str, note: String) {
        self.events.push(Effect::Event { warning, reason, note });
    }

    fn time(&self) -> Option<Time> {
        Some(Time(self.now))
    }

    /// A step for the record, of the candidate or what is in force.
    fn record(&mut self, of: &RevisionStatus, phase: &str, cause: &str, by: Option<&str>, message: Option<String>) {
        self.records.push(RolloutRecord {
            revision: of.revision,
            at: self.o.now,
            phase: phase.into(),
            cause: cause.into(),
            package: of.package.clone(),
            version: of.version.clone(),
            digest: of.digest.clone(),
            baseline: self.status.stable.as_ref().map(|s| s.digest.clone()).filter(|d| *d != of.digest),
            spec_hash: Some(self.spec_hash.clone()),
            stage: self.status.stage,
            percent: self.status.percent,
            epoch: 0,
            by: by.map(str::to_owned),
            message,
            verdict: self.status.verdict.clone(),
        });
    }
}
