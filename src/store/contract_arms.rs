//! What every store must count of a rollout's arms.

use jiff::Timestamp;

use super::testing::record;
use super::{Arms, Journal, ShadowRow, Store, contract};
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
        time: record.time,
    }
}

async fn append<S: Journal>(store: &S, record: DecisionRecord) {
    store.append(record).unwrap().await.unwrap();
}

async fn window<S: Arms>(store: &S) -> Window {
    store.window("uid-acme", 3, EPOCH, EPOCH).await.unwrap()
}

fn of(agent: &str, decisions: u64, denied: u64, errors: u64, error_example: Option<String>) -> AgentCounts {
    AgentCounts { agent: agent.into(), decisions, denied, errors, error_example, ..AgentCounts::default() }
}

pub async fn arms_are_counted_by_agent<S: Journal + Store + Arms>(store: &S) {
    use Arm::{Canary, Stable};
    assert_eq!(window(store).await, Window::default());
    append(store, counted(1, Stable, Outcome::Allow, "allowed", 10)).await;
    append(store, counted(2, Stable, Outcome::Deny, "no_permit", 20)).await;
    append(store, counted(3, Canary, Outcome::Deny, "evaluation_error", 30)).await;
    append(store, counted(4, Canary, Outcome::Deny, "evaluation_error", 40)).await;
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
    assert_eq!(all.stable, [of("coder", 2, 1, 0, None), of("user:alice", 1, 0, 0, None)]);
    let newest_error = Some(record("acme", 4).id);
    assert_eq!(all.canary, [of("coder", 4, 3, 2, newest_error), of("writer", 1, 0, 0, None)]);
    assert_eq!(all.newest, Some(record("acme", 8).time));
    assert!(all.shadow.is_empty() && all.worst.is_empty());

    let late = store.window("uid-acme", 3, record("acme", 7).time, EPOCH).await.unwrap();
    assert_eq!((late.stable.len(), late.canary.len()), (1, 1), "since is in, what was before is not");
    assert_eq!(store.window("uid-beta", 3, EPOCH, EPOCH).await.unwrap().stable, [of("coder", 1, 1, 0, None)]);
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
    assert_eq!(window(store).await.canary, [of("coder", 1, 1, 1, Some(observed.id))]);
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
    store.save_shadows(first).await.unwrap();
    store.save_shadows(second).await.unwrap();
    store.save_shadows(&[]).await.unwrap();
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
    let late = store.window("uid-acme", 3, EPOCH, record("acme", 35).time).await.unwrap();
    assert_eq!(late.worst.len(), 2, "drift has its own since");
}

/// Retention takes the shadows with their records. Needs a store with the installation's key.
pub async fn shadows_go_with_their_records<S: Journal + Store + Arms>(store: &S) {
    for n in 1..=3 {
        append(store, counted(n, Arm::Canary, Outcome::Allow, "allowed", n)).await;
    }
    let rows: Vec<ShadowRow> = (1..=3).map(|n| shadow(n, Severity::High, Some(Cause::AccessRestricted))).collect();
    for row in &rows {
        store.save_shadows(std::slice::from_ref(row)).await.unwrap();
    }
    assert_eq!(store.retain("acme", record("acme", 3).time, 10).await.unwrap(), 2);
    let left = window(store).await;
    assert_eq!((left.canary, left.shadow[0].compared, left.shadow[0].high), (vec![of("coder", 1, 0, 0, None)], 1, 1));
    let report = contract::verify(store, None).await;
    assert!(report.ok, "{:?}", report.findings);
}
