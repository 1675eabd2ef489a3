//! Folder to snapshot: the same judge, the same choice of package and the same building as in the cluster.
//!
//! A set comes into force as a whole or not at all: it must never take one file's change without the other's, and never let a broken
//! edit replace what is in force, nor make an older package come into force in the place of the broken one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;

use super::compile::Compiler;
use super::directory::{Directory, Fingerprint, Mistakes, fingerprint, read};
use super::judge::{PATIENT, Said, TestResults, judge};
use super::snapshot::{TenantInput, TenantState, assemble, identities, tenant};
use crate::api::{Agent, EffectiveProfile, RolloutPhase, STALLED, TenantRolloutSpec, TenantRolloutStatus, too_far};
use crate::gate::Snapshot;
use crate::lifecycle::rollout::{Candidate, Keys, Observation, step};
use crate::policy::{
    CompiledPackage, Signer, SigningMode, VerifyContext, base_platform, parse_version, signature_needed,
};
use crate::store::StoreError;

/// How often a folder is read again that is written to while it is read, at start.
const TRIES: u32 = 50;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(20);

/// Why a set did not come into force.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The files.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
    /// The files are good, their content is not.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// Not tried to the end; it will be tried again.
    #[error("the store is not available: {0}")]
    Store(#[from] StoreError),
    /// Somebody writes without end.
    #[error("{0}: is being written to")]
    Busy(String),
}

/// Whose folder it is.
#[derive(Clone, Debug)]
pub struct Whose {
    /// The folder.
    pub dir: PathBuf,
    /// Name of the tenant.
    pub tenant: String,
    /// Its UID.
    pub uid: String,
}

/// Builds snapshots of one folder.
pub struct Feed {
    whose: Whose,
    compiler: Arc<Compiler>,
    results: TestResults,
    snapshot: Arc<ArcSwap<Snapshot>>,
    generation: u64,
    state: Option<TenantState>,
    /// What is in force: digest and package.
    package: Option<Arc<CompiledPackage>>,
}

impl Feed {
    /// A feed that swaps `snapshot`.
    pub fn new(whose: Whose, compiler: Compiler, snapshot: Arc<ArcSwap<Snapshot>>) -> Self {
        let (compiler, results) = (Arc::new(compiler), TestResults::default());
        Self { whose, compiler, results, snapshot, generation: 0, state: None, package: None }
    }

    /// Puts a set in force, as a whole. Ok(Some): it is in force, and a package of it that should have been is refused.
    pub async fn take(&mut self, set: Directory) -> Result<Option<String>, FeedError> {
        let Whose { dir, tenant: name, uid } = self.whose.clone();
        if let Some(named) = set.namespace.as_ref().filter(|named| **named != name) {
            let why = format!("metadata.namespace: is {named:?}, but this folder is served as tenant {name:?}");
            return Err(FeedError::Refused(vec![format!("{}: {why}", dir.display())]));
        }
        let until = set.profile.as_ref().and_then(|p| p.spec.asks_to_observe());
        if until.is_some_and(|until| too_far(until, Timestamp::now())) {
            let why = "TenantProfile default: spec.observeUntil: is too far ahead: nobody observes for so long";
            return Err(FeedError::Refused(vec![format!("{}: {why}", dir.display())]));
        }
        // That they can be read was checked with the files.
        let signers: Vec<Signer> = set.signers.iter().filter_map(|s| Signer::try_from(s).ok()).collect();
        let verify = VerifyContext {
            tenant: &name,
            is_platform: false,
            installation: &uid,
            signers: &signers,
            // Whoever may edit the folder may delete the signer too: there is nothing to remember.
            signature_needed: signature_needed(SigningMode::WhenSignerExists, &name, false, &signers, false),
            now: Timestamp::now(),
            // A folder has no history: what lies in it is what its owner wants.
            high_water: None,
        };
        let (mut candidates, mut compiled, mut refused) = (Vec::new(), BTreeMap::new(), Vec::new());
        for (place, spec) in &set.packages {
            let platform = vec![base_platform()];
            let Said { verdict, .. } = judge(&self.compiler, &self.results, spec, &verify, platform, PATIENT).await?;
            let overall = verdict.overall();
            match (&overall, verdict.compiled) {
                (Ok(_), Some(Ok(package))) => drop(compiled.insert(verdict.digest.clone(), package)),
                (Err(refusal), _) => {
                    refused.push(format!("{place}: {} {} is refused: {refusal}", spec.package, spec.version));
                }
                _ => {}
            }
            candidates.push(Candidate {
                object: place.clone(),
                package: spec.package.clone(),
                version: parse_version(&spec.version).ok(),
                digest: verdict.digest,
                verdict: overall,
            });
        }
        let spec = set.rollout.as_ref().map(|r| r.spec.clone()).unwrap_or_default();
        let chosen = choose(&spec, &name, &uid, &candidates);
        let package = match &chosen.digest {
            Some(digest) => compiled.remove(digest),
            None if spec.paused => self.package.clone(),
            None => None,
        };
        let fault = chosen.fault.map(|why| if refused.is_empty() { vec![why] } else { refused });
        match (&package, &fault, &self.package) {
            (None, Some(fault), _) => return Err(FeedError::Refused(fault.clone())),
            (None, None, _) if !spec.paused => {
                let why = match set.packages.is_empty() {
                    true => "there is no policy package; `remit init` writes one to begin with",
                    false => "no package matches spec.package of TenantRollout default",
                };
                return Err(FeedError::Refused(vec![format!("{}: {why}", dir.display())]));
            }
            // A refused package never makes another one come into force.
            (Some(new), Some(fault), Some(old)) if new.digest() != old.digest() => {
                return Err(FeedError::Refused(fault.clone()));
            }
            _ => {}
        }
        self.swap(&set.agents, package, set.profile.as_ref().map(|p| &p.spec));
        Ok(fault.map(|fault| fault.join("\n")))
    }

    /// One swap of everything.
    fn swap(
        &mut self,
        agents: &[Agent],
        package: Option<Arc<CompiledPackage>>,
        profile: Option<&crate::api::TenantProfileSpec>,
    ) {
        let Whose { tenant: name, uid, .. } = &self.whose;
        let agents: Vec<&Agent> = agents.iter().collect();
        let profile = EffectiveProfile::of(None, profile);
        let previous = self.state.as_ref().map(|s| &s.tenant);
        let input = TenantInput { name, uid, agents: &agents, package: package.clone(), canary: None, profile };
        let state = TenantState { tenant: tenant(input, previous), identities: Arc::new(identities(name, &agents)) };
        self.package = package;
        self.state = Some(state.clone());
        self.generation += 1;
        let tenants = BTreeMap::from([(name.clone(), state)]);
        self.snapshot.store(Arc::new(assemble(self.generation, Some(Ok(vec![base_platform()])), &tenants)));
        let wanted = self.package.iter().map(|p| p.digest().to_owned()).collect();
        self.compiler.forget_but(&wanted);
    }

    /// What is in force, for people: `tools 1.0.0`.
    pub fn in_force(&self) -> Option<String> {
        self.package.as_ref().map(|p| format!("{} {}", p.package(), p.version()))
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.whose.dir
    }
}

/// What the tenant's rollout comes to, by the operator's own state machine.
struct Chosen {
    digest: Option<String>,
    fault: Option<String>,
}

fn choose(spec: &TenantRolloutSpec, tenant: &str, uid: &str, candidates: &[Candidate]) -> Chosen {
    let next = step(&Observation {
        spec,
        // Always the first pass: what is in force follows from the folder alone, whatever was before.
        status: &TenantRolloutStatus::default(),
        generation: 0,
        tenant,
        tenant_uid: uid,
        candidates,
        stored: None,
        recorded: &[],
        failed: &[],
        keys: &Keys::default(),
        kept: &BTreeSet::new(),
        obstacles: &BTreeMap::new(),
        epoch_in_use: 0,
        load_error: None,
        candidate_error: None,
        platform: &[],
        evidence: None,
        window: None,
        stage_decisions: 0,
        schema_gap: None,
        now: Timestamp::now(),
    });
    let stalled = next.status.conditions.iter().find(|c| c.type_ == STALLED);
    let fault = stalled.filter(|_| next.status.phase == RolloutPhase::Degraded).map(|c| c.message.clone());
    Chosen { digest: next.status.stable.map(|s| s.digest), fault }
}

/// Reads a folder that nobody writes to meanwhile: what is read twice, between equal fingerprints, is equal. None: somebody does.
pub fn read_still(dir: &Path) -> Option<(Fingerprint, Result<Directory, Mistakes>)> {
    let before = fingerprint(dir);
    let (first, second) = (read(dir), read(dir));
    (first == second && before == fingerprint(dir)).then_some((before, first))
}

/// The same at start, where there is nothing else to serve meanwhile.
pub async fn read_first(dir: &Path) -> Result<(Fingerprint, Directory), FeedError> {
    for _ in 0..TRIES {
        if let Some((seen, set)) = read_still(dir) {
            return Ok((seen, set?));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(FeedError::Busy(dir.display().to_string()))
}

/// Notices changes: says when a folder that has changed has been left alone for one look.
#[derive(Debug)]
pub struct Look {
    taken: Fingerprint,
    changing: Option<Fingerprint>,
}

impl Look {
    /// After this was taken.
    pub fn new(taken: Fingerprint) -> Self {
        Self { taken, changing: None }
    }

    /// Whether to read now. Two files that are saved one after the other are one change as long as no look sees the folder unchanged
    /// between them.
    pub fn again(&mut self, now: Fingerprint) -> bool {
        if now == self.taken {
            self.changing = None;
            return false;
        }
        let quiet = self.changing.as_ref() == Some(&now);
        self.changing = Some(now);
        quiet
    }

    /// What was read, well or not.
    pub fn took(&mut self, seen: Fingerprint) {
        *self = Self::new(seen);
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
