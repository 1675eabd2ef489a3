//! Proofs in the background, one at a time, for rollouts: the second half of `preflight`.
//!
//! The leader's work, in a process of its own, so that no proof is in the way of a check. What was found is remembered by the question
//! and the declared invariants; a new leader proves anew. A package that can't be found is no proof, and is looked for again; what is
//! unknown only because time or memory ran out is proved again after a while, and stands until then.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::{Invariant, PolicyPackageSpec, RevisionStatus};
use crate::lifecycle::evidence::{Progress, ProofSummary, Question};
use crate::policy::{base_platform, digest};
use crate::proof::worker::Prover;
use crate::proof::{Input, Limits, Proof};
use crate::source::index::find_bytes;
use crate::source::kubernetes::Objects;

/// Proofs that are remembered.
const MAX_KEPT: usize = 256;
/// For how long one that was given up is: the machine may have been busy.
const GAVE_UP: Duration = Duration::from_secs(600);

/// Where the texts of packages are, and what a tenant has declared.
pub trait Texts: Send + Sync {
    /// The package of exactly this digest; None where nothing keeps it.
    fn package(&self, tenant: &str, digest: &str) -> Option<PolicyPackageSpec>;
    /// The platform's package of exactly this digest.
    fn platform(&self, digest: &str) -> Option<PolicyPackageSpec>;
    /// What must hold of the tenant's candidates.
    fn invariants(&self, tenant: &str) -> Vec<Invariant>;
}

/// Looks among the objects that are watched.
pub struct WatchedTexts {
    /// What is there.
    pub objects: Objects,
    /// The operator's namespace.
    pub namespace: String,
}

impl Texts for WatchedTexts {
    fn package(&self, tenant: &str, wanted: &str) -> Option<PolicyPackageSpec> {
        let recorded = RevisionStatus { digest: wanted.to_owned(), ..RevisionStatus::default() };
        let spec = find_bytes(&self.objects, tenant, &recorded, &[]).ok()?.spec;
        // What lies there is not trusted for lying there.
        (digest(&spec) == wanted).then_some(spec)
    }

    fn platform(&self, wanted: &str) -> Option<PolicyPackageSpec> {
        self.package(&self.namespace, wanted)
    }

    fn invariants(&self, tenant: &str) -> Vec<Invariant> {
        let rollout = self.objects.rollout_of(tenant);
        let spec = rollout.as_ref().and_then(|r| r.0.as_ref().ok()).map(|r| &r.spec);
        spec.and_then(|s| s.replay.as_ref()).map(|r| r.invariants.clone()).unwrap_or_default()
    }
}

/// A proof, when it is done.
pub type Proving<'a> = Pin<Box<dyn Future<Output = Result<Proof, String>> + Send + 'a>>;

/// What proves: the worker, but in tests.
pub trait Proves: Send + Sync {
    /// Proves. Err: a package does not compile.
    fn proof(&self, input: Input) -> Proving<'_>;
}

impl Proves for Prover {
    fn proof(&self, input: Input) -> Proving<'_> {
        Box::pin(self.prove(input))
    }
}

/// What a proof is about.
type Key = (Question, Vec<Invariant>);

/// A proof that was made.
struct Made {
    of: Key,
    at: Instant,
    result: Result<Arc<Proof>, String>,
}

#[derive(Default)]
struct State {
    /// Under way.
    current: Option<Key>,
    /// The newest last.
    done: VecDeque<Made>,
}

/// Proofs in the background.
#[derive(Clone)]
pub struct Proofs {
    texts: Arc<dyn Texts>,
    prover: Arc<dyn Proves>,
    state: Arc<Mutex<State>>,
}

/// What a proof may cost beside the operator: its pod has a limit on memory, and checks come first.
const BESIDE: Limits = Limits { time: Duration::from_secs(60), query: Duration::from_secs(20), memory: 384 << 20 };

impl Proofs {
    /// As the operator proves: what is watched, in a worker of this very program.
    pub fn of_operator(objects: Objects, namespace: String) -> std::io::Result<Self> {
        let prover = Prover { limits: BESIDE, ..Prover::new(None)? };
        Ok(Self::new(Arc::new(WatchedTexts { objects, namespace }), Arc::new(prover)))
    }

    /// Proves with this prover what these texts say.
    pub fn new(texts: Arc<dyn Texts>, prover: Arc<dyn Proves>) -> Self {
        Self { texts, prover, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The proof over all calls: begun, under way or done. Must be called within the runtime.
    pub fn prove(&self, question: &Question) -> Progress<ProofSummary> {
        match self.poll(question) {
            Progress::Done(proof) => Progress::Done(proof.summary()),
            Progress::Running { done, total } => Progress::Running { done, total },
            Progress::Failed(why) => Progress::Failed(why),
        }
    }

    /// The same, whole.
    pub fn poll(&self, question: &Question) -> Progress<Arc<Proof>> {
        self.poll_at(question, Instant::now())
    }

    fn poll_at(&self, question: &Question, now: Instant) -> Progress<Arc<Proof>> {
        let key = (question.clone(), self.texts.invariants(&question.tenant));
        // What is known until the next one is made.
        let mut known = Progress::Running { done: 0, total: 1 };
        {
            let mut state = self.state();
            if let Some(at) = state.done.iter().position(|made| made.of == key) {
                match &state.done[at] {
                    Made { result: Ok(proof), at, .. } => {
                        known = Progress::Done(proof.clone());
                        if !proof.gave_up || now.saturating_duration_since(*at) < GAVE_UP {
                            return known;
                        }
                    }
                    // Tried again when it is asked for again.
                    Made { result: Err(why), .. } => {
                        let failed = Progress::Failed(why.clone());
                        state.done.remove(at);
                        return failed;
                    }
                }
            }
            // One at a time; whoever waits asks again.
            if state.current.is_some() {
                return known;
            }
            state.current = Some(key.clone());
        }
        match self.input(&key) {
            Ok(input) => {
                let (this, mut running) = (self.clone(), Running { state: self.state.clone(), key: Some(key) });
                tokio::spawn(async move {
                    let result = this.prover.proof(input).await.map(Arc::new);
                    running.finish(result);
                });
                known
            }
            Err(why) => {
                self.state().current = None;
                Progress::Failed(why)
            }
        }
    }

    fn input(&self, (question, invariants): &Key) -> Result<Input, String> {
        let package = |digest: &str| {
            let found = self.texts.package(&question.tenant, digest);
            found.ok_or_else(|| format!("nothing keeps the text of package {digest}"))
        };
        let (base, further) = question.platform.split_first().ok_or("the platform's packages are not loaded")?;
        if base != base_platform().digest() {
            return Err("the question is about another version of Remit's own package".into());
        }
        let platform = further.iter().map(|digest| {
            self.texts
                .platform(digest)
                .ok_or_else(|| format!("nothing keeps the text of the platform's package {digest}"))
        });
        Ok(Input {
            tenant: question.tenant.clone(),
            baseline: package(&question.baseline)?,
            candidate: package(&question.candidate)?,
            platform: platform.collect::<Result<_, _>>()?,
            invariants: invariants.clone(),
        })
    }
}

/// Gives the place free, also where a proof is given up.
struct Running {
    state: Arc<Mutex<State>>,
    key: Option<Key>,
}

impl Running {
    fn finish(&mut self, result: Result<Arc<Proof>, String>) {
        let Some(key) = self.key.take() else { return };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.current = None;
        state.done.retain(|made| made.of != key);
        if state.done.len() >= MAX_KEPT {
            state.done.pop_front();
        }
        state.done.push_back(Made { of: key, at: Instant::now(), result });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.finish(Err("the proof was given up".into()));
    }
}

#[cfg(test)]
#[path = "proofs_tests.rs"]
mod tests;
