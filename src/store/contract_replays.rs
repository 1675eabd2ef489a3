//! What every store of replays must do, as functions over the traits.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::testing::record;
use super::{MAX_OPEN_RUNS, Place, ReplayRun, Replays, RunSpec, RunStep, SUPERSEDED, Selected, StoreError};
use crate::api::{RecordedOutcome, ReplaySelection, ReplayState};
use crate::gate::{DecisionRecord, Outcome};
use crate::replay::selects;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn run(id: &str, tenant_uid: &str, key: &str, created: i64) -> ReplayRun {
    let spec = RunSpec {
        baseline: "sha256:a".into(),
        candidate: "sha256:b".into(),
        platform: vec!["sha256:p".into()],
        selection: ReplaySelection { until: Some(Time(at(7))), ..Default::default() },
        invariants: vec![crate::api::Invariant::named("unknown_tools_denied")],
    };
    ReplayRun::queued(id.into(), "acme", tenant_uid, key.into(), spec, at(created))
}

/// The attack: a run whose id is there already replaces or changes it.
pub async fn run_id_overwrite<S: Replays>(store: &S) {
    let mine = run("r1", "u1", "k", 1);
    store.add_run(&mine).await.unwrap();
    assert_eq!(store.run("u1", "r1").await.unwrap(), Some(mine.clone()));
    for other in [run("r1", "u2", "other", 2), mine.clone()] {
        let error = store.add_run(&other).await.unwrap_err();
        assert!(matches!(error, StoreError::Invalid { field: "id", .. }), "{error}");
    }
    assert_eq!(store.run("u1", "r1").await.unwrap(), Some(mine));
    // A finished one takes no other result, progress or failure, whoever still works on it.
    let done = |report: &str| RunStep::Completed {
        done: 3,
        report: report.into(),
        input_fingerprint: "sha256:i".into(),
        result_fingerprint: "sha256:r".into(),
        at: at(9),
    };
    assert!(store.step_run("r1", &RunStep::Begun { total: 3, at: at(8) }).await.unwrap());
    assert!(store.step_run("r1", &done("{\"first\":1}")).await.unwrap());
    let kept = store.run("u1", "r1").await.unwrap().unwrap();
    assert_eq!((kept.state, kept.report.as_deref()), (ReplayState::Completed, Some("{\"first\":1}")));
    for late in [
        done("{\"second\":1}"),
        RunStep::Failed { error: "x".into(), at: at(10) },
        RunStep::Begun { total: 9, at: at(10) },
        RunStep::Progress { done: 9, checkpoint: "{}".into() },
    ] {
        assert!(!store.step_run("r1", &late).await.unwrap());
    }
    assert_eq!(store.run("u1", "r1").await.unwrap(), Some(kept));
}

/// The attack: reading, by its id, what another namespace, or a former one of the same name, has replayed.
pub async fn run_of_another_tenant<S: Replays>(store: &S) {
    store.add_run(&run("r1", "u1", "k", 1)).await.unwrap();
    assert_eq!(store.run("u2", "r1").await.unwrap(), None);
    assert_eq!(store.run("", "r1").await.unwrap(), None);
    assert_eq!(store.newest_run("u2", "k", None).await.unwrap(), None);
    assert!(store.run("u1", "r1").await.unwrap().is_some());
}

/// The attack: a tenant asks for more runs than it may have, all at once, or makes so many that nobody else's are listed. And what is left
/// over of a rollout whose question has changed.
pub async fn open_runs_of_one_tenant_are_few_and_hide_nobodys<S: Replays>(store: &S) {
    let many: Vec<ReplayRun> = (0..40).map(|n| run(&format!("a{n:02}"), "u1", &format!("http:{n}"), n)).collect();
    let added = futures::future::join_all(many.iter().map(|run| store.add_run(run))).await;
    let added = added.into_iter().filter(|added| *added.as_ref().unwrap()).count();
    assert_eq!(added as i64, MAX_OPEN_RUNS, "however many ask at once");
    // Its rollout's are counted apart, and another tenant's too.
    assert!(store.add_run(&run("b1", "u1", "rollout:1", 100)).await.unwrap());
    assert!(store.add_run(&run("c1", "u2", "http:1", 101)).await.unwrap());
    assert!(store.add_run(&run("d1", "u3", "rollout:1", 102)).await.unwrap());
    let open = |runs: Vec<ReplayRun>| runs.into_iter().map(|r| (r.tenant_uid, r.id)).collect::<Vec<_>>();
    let first: Vec<_> = open(store.open_runs().await.unwrap()).into_iter().take(3).map(|(uid, _)| uid).collect();
    assert_eq!(first, ["u1", "u2", "u3"], "the oldest of each comes first");
    // One that ends makes room for one.
    let ended = open(store.open_runs().await.unwrap()).swap_remove(0).1;
    assert!(store.step_run(&ended, &RunStep::Failed { error: "x".into(), at: at(200) }).await.unwrap());
    assert!(store.add_run(&run("e1", "u1", "http:e1", 103)).await.unwrap());
    assert!(!store.add_run(&run("e2", "u1", "http:e2", 104)).await.unwrap());
    assert_eq!(store.run("u1", "e2").await.unwrap(), None);
    // Another question of the same rollout: the old one's run ends, and no other.
    assert!(store.add_run(&run("b2", "u1", "rollout:2", 105)).await.unwrap());
    assert_eq!(store.supersede_runs("u1", "rollout:2", at(201)).await.unwrap(), 1);
    let old = store.run("u1", "b1").await.unwrap().unwrap();
    assert_eq!((old.state, old.error.as_deref(), old.finished), (ReplayState::Failed, Some(SUPERSEDED), Some(at(201))));
    let open = open(store.open_runs().await.unwrap());
    assert!(["b2", "c1", "d1", "e1"].iter().all(|id| open.iter().any(|(_, there)| there == id)), "{open:?}");
    assert_eq!(store.supersede_runs("u1", "rollout:2", at(202)).await.unwrap(), 0);
}

pub async fn runs_go_on_where_they_stopped<S: Replays>(store: &S) {
    store.add_run(&run("r2", "u1", "k", 2)).await.unwrap();
    store.add_run(&run("r1", "u1", "k", 1)).await.unwrap();
    let open = |runs: Vec<ReplayRun>| runs.into_iter().map(|r| r.id).collect::<Vec<_>>();
    assert_eq!(open(store.open_runs().await.unwrap()), ["r1", "r2"], "the oldest first");
    assert!(!store.step_run("r1", &RunStep::Progress { done: 1, checkpoint: "{}".into() }).await.unwrap());
    assert!(store.step_run("r1", &RunStep::Begun { total: 30, at: at(5) }).await.unwrap());
    assert!(store.step_run("r1", &RunStep::Progress { done: 20, checkpoint: "{\"n\":20}".into() }).await.unwrap());
    let behind = RunStep::Progress { done: 10, checkpoint: "{\"n\":10}".into() };
    assert!(!store.step_run("r1", &behind).await.unwrap(), "a leader that lags takes nothing back");
    assert!(
        store.step_run("r1", &RunStep::Begun { total: 30, at: at(6) }).await.unwrap(),
        "begun again after a restart"
    );
    let kept = store.run("u1", "r1").await.unwrap().unwrap();
    assert_eq!((kept.state, kept.done, kept.total), (ReplayState::Running, 20, 30));
    assert_eq!((kept.checkpoint.as_deref(), kept.started), (Some("{\"n\":20}"), Some(at(5))));
    assert!(store.step_run("r2", &RunStep::Failed { error: "no package".into(), at: at(8) }).await.unwrap());
    let newest = store.newest_run("u1", "k", None).await.unwrap().unwrap();
    assert_eq!((newest.id.as_str(), newest.error.as_deref()), ("r2", Some("no package")));
    assert_eq!(store.newest_run("u1", "k", Some(ReplayState::Running)).await.unwrap().unwrap().id, "r1");
    assert_eq!(store.newest_run("u1", "k", Some(ReplayState::Completed)).await.unwrap(), None);
    assert_eq!(store.forget_runs(at(8)).await.unwrap(), 0);
    assert_eq!(store.forget_runs(at(9)).await.unwrap(), 1);
    assert_eq!(open(store.open_runs().await.unwrap()), ["r1"], "what is open is not forgotten");
}

/// Records that differ in all that can be selected; several of one instant. Not in the order of time: journals of several replicas
/// arrive as they come. And one of another tenant.
pub fn disordered() -> Vec<DecisionRecord> {
    records().into_iter().rev().chain([record("beta", 99)]).collect()
}

fn records() -> Vec<DecisionRecord> {
    (1..=30)
        .map(|n| {
            let mut r = record("acme", n);
            r.time = at(1000 + i64::try_from(n / 5).unwrap());
            // One writes much, one little, and one twice.
            r.agent =
                if n == 5 || n == 6 { "rare" } else { ["coder", "coder", "writer", "coder"][n as usize % 4] }.into();
            r.request.session = (n % 3 == 0).then(|| format!("s-{}", n % 2));
            r.delegated_from = (n % 7 == 0).then(|| "user:alice".into());
            r.request.resource.id = if n % 4 == 0 { "git/push\u{0}".into() } else { format!("git/{}", n % 3) };
            r.request.arguments.insert("note".into(), "\"id\":\"git/1\" \u{0}".into());
            r.outcome = [Outcome::Allow, Outcome::Deny, Outcome::ApprovalRequired][n as usize % 3];
            r
        })
        .collect()
}

/// SQL takes what `replay::selects` takes of the disordered records, in one order, whatever the size of the pages.
pub async fn selections_are_read_in_one_order<S: Replays>(store: &S) {
    let mut all = records();
    all.sort_by_key(|r| (r.time, r.id.clone()));
    let text = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    let none = ReplaySelection::default;
    for selection in [
        none(),
        ReplaySelection { since: Some(Time(at(1002))), until: Some(Time(at(1004))), ..none() },
        ReplaySelection { sessions: text(&["s-1", "s-7"]), ..none() },
        ReplaySelection { agents: text(&["writer"]), outcomes: vec![RecordedOutcome::Deny], ..none() },
        ReplaySelection { delegators: text(&["alice"]), ..none() },
        ReplaySelection { delegators: text(&["user:alice", "bob"]), ..none() },
        ReplaySelection { tools: text(&["git/1", "git/nothing"]), ..none() },
        ReplaySelection { agents: text(&["nobody"]), ..none() },
    ] {
        let expected: Vec<String> = all.iter().filter(|r| selects(&selection, r)).map(|r| r.id.clone()).collect();
        let found = store.selected("acme", &selection).await.unwrap();
        let total = expected.len() as u64;
        assert_eq!(found, Selected { total, ..Selected::default() }, "{selection:?}");
        for size in [1, 4, 1000] {
            assert_eq!(pages(store, &selection, &Selected::default(), size).await, expected, "{selection:?} by {size}");
        }
        for limit in [1, 2, 3, 8, 17, 29] {
            let newest = ReplaySelection { limit: Some(limit), ..selection.clone() };
            let found = store.selected("acme", &newest).await.unwrap();
            let limit = usize::try_from(limit).unwrap();
            assert_eq!(found.total, total.min(limit as u64));
            let (taken, left_out) = dealt(all.iter().filter(|r| selects(&selection, r)), limit);
            assert_eq!(pages(store, &newest, &found, 2).await, taken, "the newest {limit} of {selection:?}, dealt out");
            let cuts: BTreeMap<_, _> = found.cuts.into_iter().map(|cut| (cut.agent, cut.left_out)).collect();
            assert_eq!(cuts, left_out);
        }
    }
    let error = store.replay_page("acme", &none(), &[], None, 0).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { field: "limit", .. }));
}

/// The slow, obviously right twin: round by round each agent, in the order of names, gets its newest record that it has not got yet, until
/// there are enough. The ids in their order, and how many each agent did not get.
fn dealt<'a>(selected: impl Iterator<Item = &'a DecisionRecord>, limit: usize) -> (Vec<String>, BTreeMap<String, u64>) {
    let mut agents: BTreeMap<&str, Vec<&DecisionRecord>> = BTreeMap::new();
    selected.for_each(|r| agents.entry(&r.agent).or_default().push(r));
    let mut taken = Vec::new();
    while taken.len() < limit && agents.values().any(|rest| !rest.is_empty()) {
        for rest in agents.values_mut() {
            if taken.len() < limit {
                taken.extend(rest.pop());
            }
        }
    }
    taken.sort_by_key(|r| (r.time, r.id.clone()));
    let left_out = agents.into_iter().filter(|(_, rest)| !rest.is_empty());
    let left_out = left_out.map(|(agent, rest)| (agent.to_owned(), rest.len() as u64)).collect();
    (taken.into_iter().map(|r| r.id.clone()).collect(), left_out)
}

async fn pages<S: Replays>(store: &S, selection: &ReplaySelection, of: &Selected, size: u32) -> Vec<String> {
    let (mut ids, mut after) = (Vec::new(), of.after.clone());
    loop {
        let rows = store.replay_page("acme", selection, &of.cuts, after.as_ref(), size).await.unwrap();
        let Some(last) = rows.last() else { return ids };
        after = Some(last.place.clone());
        for row in rows {
            let record: DecisionRecord = serde_json::from_str(&row.body).unwrap();
            assert_eq!((Place::of(&record), row.hash.len()), (row.place, 64));
            ids.push(record.id);
        }
    }
}
