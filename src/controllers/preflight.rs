//! What comes before stage one of a rollout: replay and proof of exactly the candidate's digest.
//!
//! Polling starts what is not yet there, and is cheap; the work itself is done in the background, and outlives a change of leader only
//! where its result was kept.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::proofs::Proofs;
use super::replay_runs::ReplayRunner;
use crate::lifecycle::evidence::{Progress, ProofSummary, Question, ReplaySummary};

/// A future of these.
pub type Polled<'a, T> = Pin<Box<dyn Future<Output = Progress<T>> + Send + 'a>>;

/// Makes evidence in the background.
pub trait Preflight: Send + Sync {
    /// The replay of the tenant's own recorded decisions: begun, under way or done.
    fn replay<'a>(&'a self, question: &'a Question) -> Polled<'a, ReplaySummary>;
    /// The proof over all calls: begun, under way or done.
    fn prove<'a>(&'a self, question: &'a Question) -> Polled<'a, ProofSummary>;
}

/// What a rollout asks: replays of the store's records, and proofs.
pub struct Evidence {
    replays: Arc<ReplayRunner>,
    proofs: Proofs,
}

impl Evidence {
    /// Of these two.
    pub fn new(replays: Arc<ReplayRunner>, proofs: Proofs) -> Self {
        Self { replays, proofs }
    }
}

impl Preflight for Evidence {
    fn replay<'a>(&'a self, question: &'a Question) -> Polled<'a, ReplaySummary> {
        Box::pin(self.replays.answer(question))
    }

    fn prove<'a>(&'a self, question: &'a Question) -> Polled<'a, ProofSummary> {
        Box::pin(async { self.proofs.prove(question) })
    }
}
