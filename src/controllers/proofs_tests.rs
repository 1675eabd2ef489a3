//! Which proofs are made when, without a solver.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::*;
use crate::lifecycle::evidence::ProofVerdict;

#[derive(Default)]
struct Fixed {
    packages: Mutex<HashMap<String, PolicyPackageSpec>>,
    invariants: Mutex<Vec<Invariant>>,
}

impl Texts for Fixed {
    fn package(&self, _: &str, digest: &str) -> Option<PolicyPackageSpec> {
        self.packages.lock().unwrap().get(digest).cloned()
    }

    fn platform(&self, digest: &str) -> Option<PolicyPackageSpec> {
        self.package("remit-system", digest)
    }

    fn invariants(&self, _: &str) -> Vec<Invariant> {
        self.invariants.lock().unwrap().clone()
    }
}

/// Proves nothing, when it is let.
struct Gated {
    gate: Semaphore,
    started: AtomicU32,
}

impl Proves for Gated {
    fn proof(&self, input: Input) -> Proving<'_> {
        self.started.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            self.gate.acquire().await.unwrap().forget();
            match input.candidate.package.as_str() {
                "slow" => Ok(Proof { gave_up: true, ..Proof::unknown(&input, "the time for the proof is used up") }),
                "broken" => Err("candidate: it does not compile".into()),
                _ => Ok(Proof::unknown(&input, "the test says so")),
            }
        })
    }
}

fn named(name: &str) -> (String, PolicyPackageSpec) {
    (name.to_owned(), PolicyPackageSpec { package: name.into(), ..PolicyPackageSpec::default() })
}

fn question(candidate: &str) -> Question {
    Question {
        tenant: "acme".into(),
        tenant_uid: "1".into(),
        baseline: "old".into(),
        candidate: candidate.into(),
        platform: vec![base_platform().digest().to_owned()],
    }
}

fn proofs() -> (Proofs, Arc<Fixed>, Arc<Gated>) {
    let texts = Arc::new(Fixed::default());
    texts.packages.lock().unwrap().extend([named("old"), named("new"), named("other"), named("slow"), named("broken")]);
    let prover = Arc::new(Gated { gate: Semaphore::new(0), started: AtomicU32::new(0) });
    (Proofs::new(texts.clone(), prover.clone()), texts, prover)
}

async fn done(proofs: &Proofs, question: &Question) -> Progress<ProofSummary> {
    for _ in 0..1000 {
        match proofs.prove(question) {
            Progress::Running { .. } => tokio::time::sleep(Duration::from_millis(5)).await,
            done => return done,
        }
    }
    panic!("still running")
}

#[tokio::test]
async fn one_at_a_time_each_once_and_remembered_by_question_and_invariants() {
    let (proofs, texts, prover) = proofs();
    let waiting = Progress::Running { done: 0, total: 1 };
    assert_eq!(proofs.prove(&question("new")), waiting);
    assert_eq!(proofs.prove(&question("other")), waiting);
    assert_eq!(proofs.prove(&question("new")), waiting);
    tokio::task::yield_now().await;
    assert_eq!(prover.started.load(Ordering::SeqCst), 1, "the other one waits");
    prover.gate.add_permits(100);
    for candidate in ["new", "other", "new"] {
        let Progress::Done(summary) = done(&proofs, &question(candidate)).await else { panic!("{candidate}") };
        assert_eq!(summary.alone, ProofVerdict::Unknown);
    }
    assert_eq!(prover.started.load(Ordering::SeqCst), 2);
    // Another platform, and other invariants, void what was found.
    let (further, spec) = named("further");
    let voided = Question { platform: vec![base_platform().digest().to_owned(), further.clone()], ..question("new") };
    assert!(matches!(proofs.prove(&voided), Progress::Failed(why) if why.contains("further")));
    texts.packages.lock().unwrap().insert(further, spec);
    assert!(matches!(done(&proofs, &voided).await, Progress::Done(_)));
    texts.invariants.lock().unwrap().push(Invariant::named("unknown_tools_denied"));
    assert!(matches!(done(&proofs, &question("new")).await, Progress::Done(_)));
    assert_eq!(prover.started.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn what_can_not_be_carried_out_fails_and_is_tried_again() {
    let (proofs, texts, prover) = proofs();
    prover.gate.add_permits(100);
    assert!(matches!(proofs.prove(&question("gone")), Progress::Failed(why) if why.contains("gone")));
    texts.packages.lock().unwrap().extend([named("gone")]);
    assert!(matches!(done(&proofs, &question("gone")).await, Progress::Done(_)));
    for tried in 1..3 {
        assert!(matches!(done(&proofs, &question("broken")).await, Progress::Failed(why) if why.contains("compile")));
        assert_eq!(prover.started.load(Ordering::SeqCst), 1 + tried);
    }
    let other = Question { platform: vec!["sha256:other".into()], ..question("new") };
    assert!(matches!(proofs.prove(&other), Progress::Failed(_)));
    assert!(matches!(proofs.prove(&Question { platform: vec![], ..question("new") }), Progress::Failed(_)));
}

#[tokio::test]
async fn a_proof_that_is_given_up_gives_its_place_free() {
    let (proofs, _, prover) = proofs();
    let mut running = Running { state: proofs.state.clone(), key: Some((question("new"), vec![])) };
    proofs.state().current = running.key.clone();
    assert!(matches!(proofs.prove(&question("other")), Progress::Running { .. }));
    assert_eq!(prover.started.load(Ordering::SeqCst), 0);
    running.finish(Err("gone".into()));
    drop(running);
    prover.gate.add_permits(1);
    assert!(matches!(done(&proofs, &question("other")).await, Progress::Done(_)));
    assert!(matches!(proofs.prove(&question("new")), Progress::Failed(why) if why == "gone"));
}

/// A machine that was busy for a minute does not keep a rollout from its proof for as long as the leader lives.
#[tokio::test]
async fn what_was_given_up_for_lack_of_time_is_proved_again() {
    let (proofs, _, prover) = proofs();
    prover.gate.add_permits(100);
    for (tried, candidate) in ["new", "slow"].into_iter().enumerate() {
        assert!(matches!(done(&proofs, &question(candidate)).await, Progress::Done(_)));
        assert_eq!(prover.started.load(Ordering::SeqCst), 1 + tried as u32);
    }
    let (soon, later) = (Instant::now() + GAVE_UP / 2, Instant::now() + GAVE_UP * 2);
    assert!(matches!(proofs.poll_at(&question("slow"), soon), Progress::Done(_)));
    assert!(matches!(proofs.poll_at(&question("new"), later), Progress::Done(_)));
    tokio::task::yield_now().await;
    assert_eq!(prover.started.load(Ordering::SeqCst), 2, "what is unknown for another reason stays so");
    assert!(matches!(proofs.poll_at(&question("slow"), later), Progress::Done(_)), "the old one stands meanwhile");
    while prover.started.load(Ordering::SeqCst) < 3 || proofs.state().current.is_some() {
        tokio::task::yield_now().await;
    }
    assert_eq!(proofs.state().done.len(), 2, "the new one has taken its place");
}
