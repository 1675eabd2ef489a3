//! What every store must do with rollouts.

use jiff::Timestamp;

use super::{Arrival, InForceRow, Rollback, RolloutCommit, RolloutFailure, RolloutRecord, Rollouts, Store};
use crate::api::TenantRolloutStatus;
use crate::policy::PolicyText;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn row(revision: i64) -> InForceRow {
    InForceRow {
        tenant_uid: "u".into(),
        tenant: "acme".into(),
        package: "base".into(),
        version: format!("1.{revision}.0"),
        digest: format!("d{revision}"),
        key_fingerprint: None,
        first_verified: at(revision),
        revision,
    }
}

fn record(revision: i64) -> RolloutRecord {
    RolloutRecord {
        revision,
        at: at(revision),
        phase: "completed".into(),
        cause: "NewVersion".into(),
        package: "base".into(),
        version: format!("1.{revision}.0"),
        digest: format!("d{revision}"),
        baseline: None,
        spec_hash: Some("h".into()),
        stage: Some(2),
        percent: Some(100),
        epoch: 7,
        by: None,
        message: Some("words".into()),
        verdict: None,
    }
}

fn failure(digest: &str, cause: &str) -> RolloutFailure {
    RolloutFailure {
        spec_hash: "h".into(),
        digest: digest.into(),
        cause: cause.into(),
        message: "criticalDrift is 1".into(),
        at: at(5),
    }
}

fn step(expected: i64) -> RolloutCommit {
    RolloutCommit {
        tenant_uid: "u".into(),
        tenant: "acme".into(),
        expected,
        state: TenantRolloutStatus { epoch: expected + 1, percent: Some(25), ..TenantRolloutStatus::default() },
        in_force: vec![row(expected + 1)],
        failures: vec![failure(&format!("f{expected}"), "BudgetExceeded")],
        records: vec![record(expected + 1), record(expected + 1)],
    }
}

/// A step is taken over the version that was read or not at all, whole or not at all.
pub async fn steps_are_whole_and_in_order<S: Rollouts + Store>(store: &S) {
    let arrivals = [Arrival::empty(at(1))];
    assert_eq!(store.rollout_state("u").await.unwrap(), None);
    assert!(!store.commit_rollout(&step(3), &arrivals).await.unwrap(), "there is no version 3");
    assert!(store.commit_rollout(&step(0), &arrivals).await.unwrap());
    assert!(!store.commit_rollout(&step(0), &arrivals).await.unwrap(), "a second leader that read the same");
    assert!(store.commit_rollout(&step(1), &arrivals).await.unwrap());
    let stored = store.rollout_state("u").await.unwrap().unwrap();
    assert_eq!((stored.version, &stored.state), (2, &step(1).state));
    assert_eq!(store.in_force("u").await.unwrap(), [row(2), row(1)]);
    assert_eq!(store.high_water("u", "base").await.unwrap(), Some(("1.2.0".into(), "d2".into())));
    assert_eq!(store.rollout_records("u", 3).await.unwrap(), [record(2), record(2), record(1)]);

    // The first cause of a failure stays; another spec, tenant or digest has none.
    let again = RolloutCommit {
        in_force: Vec::new(),
        failures: vec![failure("f0", "RolledBack"), failure("f9", "Aborted")],
        records: Vec::new(),
        ..step(2)
    };
    assert!(store.commit_rollout(&again, &[]).await.unwrap());
    let failures = store.rollout_failures("u", "h").await.unwrap();
    let expected = [failure("f0", "BudgetExceeded"), failure("f1", "BudgetExceeded"), failure("f9", "Aborted")];
    assert_eq!(failures, expected);
    assert!(store.rollout_failures("u", "other").await.unwrap().is_empty());
    assert!(store.rollout_failures("v", "h").await.unwrap().is_empty());
    assert!(store.rollout_records("v", 10).await.unwrap().is_empty());
    assert_eq!(store.rollout_state("v").await.unwrap(), None);

    // What can't come into force takes the whole step with it.
    let mut broken = step(3);
    broken.in_force[0].version = "one".into();
    broken.failures = vec![failure("f3", "BudgetExceeded")];
    store.commit_rollout(&broken, &arrivals).await.unwrap_err();
    store.commit_rollout(&step(3), &[]).await.unwrap_err();
    assert_eq!(store.rollout_state("u").await.unwrap().unwrap().version, 3);
    assert_eq!(store.rollout_failures("u", "h").await.unwrap(), expected);
    assert_eq!(store.rollout_records("u", 100).await.unwrap().len(), 4);
    assert_eq!(store.in_force("u").await.unwrap().len(), 2);
}

/// What has slipped in though no database can be relied on to keep it holds up no step, and nothing that is kept with it.
pub async fn texts_with_nul_hold_up_nothing<S: Rollouts + Store>(store: &S) {
    let text = "permit (principal, action, resource); // \0".to_owned();
    let arrival = Arrival {
        policies: vec![PolicyText { id: "a".into(), sha256: "s".into(), text }],
        author: Some("a\0b".into()),
        applied_by: Some("ann\0".into()),
        rollback: Some(Rollback { by: "bob\0".into(), reason: "why\0".into() }),
        ..Arrival::empty(at(1))
    };
    let mut failed = failure("f", "Abor\0ted");
    failed.message = "taken back: \0".into();
    let step = RolloutCommit { failures: vec![failed], ..step(0) };
    assert!(store.commit_rollout(&step, std::slice::from_ref(&arrival)).await.unwrap());
    assert_eq!(store.rollout_failures("u", "h").await.unwrap().len(), 1);
    let kept = store.version("u", "base", "a", 1).await.unwrap().unwrap();
    assert!(kept.text.unwrap().starts_with("permit") && kept.reason.unwrap().starts_with("why"));
    store.note_applied("acme\0", "d\0", "ann\0", at(1)).await.unwrap();
    assert_eq!(store.versions("u", "base\0", "a", None, 10).await.unwrap(), []);
}
