//! What every store must count of a rollout's arms.

use jiff::Timestamp;

use super::testing::record;
use super::{Arms, Journal, ShadowBatch, ShadowDropped, ShadowRow, Store, contract};
use crate::gate::{Arm, DecisionRecord, Outcome};
use crate::lifecycle::drift::{Cause, Severity};
use crate::lifecycle::evidence::{AgentCounts, AgentDrift, Window};

const EPOCH: Timestamp = Timestamp::UNIX_EPOCH;

/// Record `n` of revision 3 of acme.
fn counted(n: u64, arm: Arm, outcome: Outcome, code: &str, latency: u64) -> DecisionRecord {
    DecisionRecord {
        revision: Some(3),
        arm: arm.as_str().into(),
        outcome,
        code: code.into(),
        latency_micros: latency,
        ..record("acme", n)
    }
}

fn shadow(n: u64, severity: Severity, cause: Option<Cause>) -> ShadowRow {
    let record = record("acme", n);
    ShadowRow {
        decision: record.id,
        tenant: "acme".into(),
        tenant_uid: "uid-acme".into(),
        revision: 3,
        agent: "coder".into(),
        answered: if n.is_multiple_of(2) { Arm::Stable } else { Arm::Canary },
        severity,
        cause,
        sentence: format!("sentence {n}"),
        stable_policies: vec![],
        candidate_policies: vec!["tenant/base/p".into()],
        erred: false,
        time: record.time,
    }
}

async fn append<S: Journal>(store: &S, record: DecisionRecord) {
    store.append(record).unwrap().await.unwrap();
}

async fn window<S: Arms>(store: &S) -> Window {
    store.window("uid-acme", 3, EPOCH, 0).await.unwrap()
}

/// Decisions, denied, errors, and the microseconds of all.
fn of(agent: &str, [decisions, denied, errors, latency_micros]: [u64; 4]) -> AgentCounts {
    AgentCounts { agent: agent.into(), decisions, denied, errors, latency_micros, ..AgentCounts::default() }
}

fn batch(id: &str, rows: &[ShadowRow]) -> ShadowBatch {
    ShadowBatch { id: id.into(), rows: rows.to_vec(), dropped: vec![] }
}

pub async fn arms_are_counted_by_agent<S: Journal + Store + Arms>(store: &S) {
    use Arm::{Canary, Stable};
    assert_eq!(window(store).await, Window::default());
    append(store, counted(1, Stable, Outcome::Allow, "allowed", 10)).await;
    append(store, counted(2, Stable, Outcome::Deny, "no_permit", 20)).await;
    append(store, counted(3, Canary, Outcome::Deny, "evaluation_error", 30)).await;
    let erred = |policy: &str| crate::policy::PolicyError { policy: policy.into(), message: "overflow".into() };
    let errors = vec![erred("platform/base/p"), erred("tenant/base/q")];
    append(store, DecisionRecord { errors, ..counted(4, Canary, Outcome::Deny, "evaluation_error", 40) }).await;
    append(store, counted(5, Canary, Outcome::Refused, "invalid_request", 50)).await;
    append(store, counted(6, Canary, Outcome::ApprovalRequired, "approval_required", 60)).await;
    let mut other = counted(7, Canary, Outcome::Allow, "allowed", 70);
    other.agent = "writer".into();
    append(store, other).await;
    let mut user = counted(8, Stable, Outcome::Allow, "allowed", 80);
    (user.agent, user.request.subject.type_, user.request.subject.id) = (String::new(), "user".into(), "alice".into());
    append(store, user).await;
    // None of these is of this revision of this namespace.
    append(store, record("acme", 9)).await;
    append(store, DecisionRecord { revision: Some(4), ..counted(10, Canary, Outcome::Deny, "no_permit", 9000) }).await;
    append(store, DecisionRecord { tenant_uid: "re-created".into(), ..counted(11, Canary, Outcome::Deny, "x", 9000) })
        .await;
    append(
        store,
        DecisionRecord {
            tenant: "beta".into(),
            tenant_uid: "uid-beta".into(),
            ..counted(12, Stable, Outcome::Deny, "x", 1)
        },
    )
    .await;

    let all = window(store).await;
    assert_eq!(all.stable, [of("coder", [2, 1, 0, 30]), of("user:alice", [1, 0, 0, 80])]);
    let coder = AgentCounts {
        error_example: Some(record("acme", 4).id),
        error_policies: vec!["platform/base/p".into(), "tenant/base/q".into()],
        ..of("coder", [4, 3, 2, 180])
    };
    assert_eq!(all.canary, [coder, of("writer", [1, 0, 0, 70])]);
    assert_eq!(all.newest, Some(record("acme", 8).time));
    assert!(all.shadow.is_empty() && all.worst.is_empty());

    let late = store.window("uid-acme", 3, record("acme", 7).time, 0).await.unwrap();
    assert_eq!((late.stable.len(), late.canary.len()), (1, 1), "since is in, what was before is not");
    assert_eq!(store.window("uid-beta", 3, EPOCH, 0).await.unwrap().stable, [of("coder", [1, 1, 0, 1])]);
    let report = contract::verify(store, None).await;
    assert!(report.ok, "{:?}", report.findings);
}

pub async fn what_was_observed_counts_as_what_it_would_be<S: Journal + Arms>(store: &S) {
    let would_be = crate::gate::RecordedWouldBe {
        outcome: Outcome::Deny,
        code: "evaluation_error".into(),
        reason: String::new(),
        policies: vec![],
    };
    let observed = counted(1, Arm::Canary, Outcome::Allow, "observed", 1);
    append(store, DecisionRecord { observed: true, would_be: Some(would_be), ..observed.clone() }).await;
    assert_eq!(
        window(store).await.canary,
        [AgentCounts { error_example: Some(observed.id), ..of("coder", [1, 1, 1, 1]) }]
    );
}

pub async fn shadows_are_counted_and_the_worst_named<S: Arms>(store: &S) {
    use Severity::{Critical, High, Low, Medium};
    let mut rows: Vec<ShadowRow> = (1..=20).map(|n| shadow(n, Severity::None, None)).collect();
    rows.extend((21..=32).map(|n| shadow(n, Low, Some(Cause::RuleChanged))));
    rows.push(shadow(33, High, Some(Cause::AccessRestricted)));
    rows.push(shadow(34, High, Some(Cause::ApprovalRemoved)));
    rows.push(shadow(35, Critical, Some(Cause::AccessExpanded)));
    rows.push(ShadowRow { agent: "writer".into(), ..shadow(36, Medium, Some(Cause::ApprovalAdded)) });
    rows.push(ShadowRow { revision: 4, ..shadow(37, Critical, Some(Cause::AccessExpanded)) });
    rows.push(ShadowRow { tenant_uid: "re-created".into(), ..shadow(38, Critical, Some(Cause::AccessExpanded)) });
    let (first, second) = rows.split_at(30);
    store.save_shadows(&batch("one", first)).await.unwrap();
    store.save_shadows(&batch("two", second)).await.unwrap();
    store.save_shadows(&ShadowBatch::default()).await.unwrap();
    // Nobody knows whether it was kept, so it is handed in again.
    store.save_shadows(&batch("two", second)).await.unwrap();
    let all = window(store).await;
    let coder = AgentDrift {
        agent: "coder".into(),
        compared: 35,
        critical: 1,
        high: 2,
        medium: 0,
        low: 12,
        high_restrictions: 1,
        expansions: 2,
        restrictions: 1,
        errors: 0,
    };
    let writer =
        AgentDrift { agent: "writer".into(), compared: 1, medium: 1, restrictions: 1, ..AgentDrift::default() };
    assert_eq!(all.shadow, [coder, writer]);
    assert_eq!(all.worst.len(), 10);
    let worst: Vec<_> = all.worst.iter().map(|w| (w.severity, w.sentence.as_str())).take(5).collect();
    let expected = [
        (Critical, "sentence 35"),
        (High, "sentence 34"),
        (High, "sentence 33"),
        (Medium, "sentence 36"),
        (Low, "sentence 32"),
    ];
    assert_eq!(worst, expected, "the worst first, the newest of equal ones");
    assert_eq!(all.worst[0].candidate_policies, ["tenant/base/p"]);
    assert_eq!(
        (all.worst[0].decision.as_str(), all.worst[0].cause),
        (record("acme", 35).id.as_str(), Cause::AccessExpanded)
    );
    // The clock of whoever answered may be behind the one of whoever judges: drift has no since.
    let late = store.window("uid-acme", 3, record("acme", 1000).time, 0).await.unwrap();
    assert_eq!((late.shadow, late.worst.len()), (all.shadow, 10));
}

/// Calls that were to be compared and were not, and errors of the candidate alone.
pub async fn what_was_not_compared_is_in_the_window<S: Arms>(store: &S) {
    let dropped = |uid: &str, revision, calls| ShadowDropped {
        tenant: "acme".into(),
        tenant_uid: uid.into(),
        revision,
        calls,
        time: record("acme", 1).time,
    };
    // Before anything was compared, too.
    let first = ShadowBatch { id: "one".into(), rows: vec![], dropped: vec![dropped("uid-acme", 3, 40)] };
    store.save_shadows(&first).await.unwrap();
    store.save_shadows(&first).await.unwrap();
    let all = window(store).await;
    assert_eq!((all.dropped, all.shadow), (40, vec![]));
    let rows: Vec<ShadowRow> = (1..=4).map(|n| ShadowRow { erred: n < 3, ..shadow(n, Severity::None, None) }).collect();
    let others = vec![dropped("uid-acme", 3, 2), dropped("uid-acme", 4, 100), dropped("re-created", 3, 100)];
    store.save_shadows(&ShadowBatch { id: "two".into(), rows, dropped: others }).await.unwrap();
    let all = window(store).await;
    assert_eq!(all.dropped, 42, "of this revision of this namespace");
    assert_eq!(all.shadow, [AgentDrift { agent: "coder".into(), compared: 4, errors: 2, ..AgentDrift::default() }]);
}

/// Whoever names very many subjects does not make a window larger; what they did is in it all the same.
pub async fn very_many_subjects_are_few_in_a_window<S: Journal + Arms>(store: &S) {
    let mut rows = Vec::new();
    for n in 1..=300 {
        let mut user = counted(n, Arm::Canary, Outcome::Deny, "no_permit", 2);
        (user.agent, user.request.subject.type_, user.request.subject.id) =
            (String::new(), "user".into(), format!("u{n:03}"));
        append(store, user).await;
        let high =
            ShadowRow { agent: format!("user:u{n:03}"), ..shadow(n, Severity::High, Some(Cause::AccessRestricted)) };
        rows.push(high);
    }
    for n in 301..=303 {
        append(store, counted(n, Arm::Canary, Outcome::Allow, "allowed", 5)).await;
        rows.push(shadow(n, Severity::None, None));
    }
    store.save_shadows(&batch("one", &rows)).await.unwrap();
    let all = window(store).await;
    assert_eq!((all.canary.len(), all.shadow.len()), (257, 257));
    let others = of("(others)", [45, 45, 0, 90]);
    assert_eq!((&all.canary[0], &all.canary[1]), (&others, &of("coder", [3, 0, 0, 15])));
    let sum = |of: fn(&AgentDrift) -> u64| all.shadow.iter().map(of).sum::<u64>();
    assert_eq!((sum(|a| a.compared), sum(|a| a.high), sum(|a| a.high_restrictions)), (303, 300, 300));
    let coder = all.shadow.iter().find(|a| a.agent == "coder").unwrap();
    assert_eq!(coder.compared, 3, "the ones with the most calls are told apart");
}

/// What a stage has is counted from its beginning on, as far as is needed.
pub async fn a_stage_counts_its_own_decisions<S: Journal + Arms>(store: &S) {
    for n in 1..=6 {
        let arm = if n % 2 == 0 { Arm::Canary } else { Arm::Stable };
        append(store, counted(n, arm, Outcome::Allow, "allowed", n)).await;
    }
    let rows: Vec<ShadowRow> = (1..=6).map(|n| shadow(n, Severity::None, None)).collect();
    store.save_shadows(&batch("one", &rows[..3])).await.unwrap();
    store.save_shadows(&batch("two", &rows[3..])).await.unwrap();
    // A look at the window waits for what this replica has answered.
    window(store).await;
    let stage = store.stage("uid-acme", 3, record("acme", 4).time, 1).await.unwrap();
    assert_eq!(stage.stable, [of("coder", [1, 0, 0, 5])]);
    assert_eq!(stage.canary, [of("coder", [2, 0, 0, 10])]);
    assert_eq!(stage.shadow, [AgentDrift { agent: "coder".into(), compared: 3, ..AgentDrift::default() }]);
    assert_eq!(store.stage("uid-acme", 4, EPOCH, 1).await.unwrap(), Window::default());
}

/// Retention takes the shadows with their records. Needs a store with the installation's key.
pub async fn shadows_go_with_their_records<S: Journal + Store + Arms>(store: &S) {
    for n in 1..=3 {
        append(store, counted(n, Arm::Canary, Outcome::Allow, "allowed", n)).await;
    }
    let rows: Vec<ShadowRow> = (1..=3).map(|n| shadow(n, Severity::High, Some(Cause::AccessRestricted))).collect();
    for row in &rows {
        store.save_shadows(&batch(&row.decision, std::slice::from_ref(row))).await.unwrap();
    }
    assert_eq!(store.retain("acme", record("acme", 3).time, 10).await.unwrap(), 2);
    let left = window(store).await;
    assert_eq!((left.canary, left.shadow[0].compared, left.shadow[0].high), (vec![of("coder", [1, 0, 0, 3])], 1, 1));
    let report = contract::verify(store, None).await;
    assert!(report.ok, "{:?}", report.findings);
}
