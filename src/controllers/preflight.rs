//! What comes before stage one of a rollout: replay and proof of exactly the candidate's digest.
//!
//! Polling starts what is not yet there, and is cheap; the work itself is done in the background, and outlives a change of leader only
//! where its result was kept.

use std::future::Future;
use std::pin::Pin;

use crate::lifecycle::evidence::{Progress, ProofSummary, ProofVerdict, Question, ReplaySummary};

/// A future of these.
pub type Polled<'a, T> = Pin<Box<dyn Future<Output = Progress<T>> + Send + 'a>>;

/// Makes evidence in the background.
pub trait Preflight: Send + Sync {
    /// The replay of the tenant's own recorded decisions: begun, under way or done.
    fn replay<'a>(&'a self, question: &'a Question) -> Polled<'a, ReplaySummary>;
    /// The proof over all calls: begun, under way or done.
    fn prove<'a>(&'a self, question: &'a Question) -> Polled<'a, ProofSummary>;
}

/// Nothing makes evidence: nothing was replayed and nothing is proved. A rollout waits for a person by it, or goes on where its spec says
/// so; it never passes.
pub struct NoEvidence;

impl Preflight for NoEvidence {
    fn replay<'a>(&'a self, _: &'a Question) -> Polled<'a, ReplaySummary> {
        Box::pin(async { Progress::Done(ReplaySummary::default()) })
    }

    fn prove<'a>(&'a self, _: &'a Question) -> Polled<'a, ProofSummary> {
        let unknown = ProofSummary {
            alone: ProofVerdict::Unknown,
            with_approval: ProofVerdict::Unknown,
            counter_examples: Vec::new(),
            unknown_because: Some("there is no prover".into()),
            invariants_failed: Vec::new(),
            solver_millis: 0,
        };
        Box::pin(async { Progress::Done(unknown) })
    }
}
