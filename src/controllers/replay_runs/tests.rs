use std::collections::HashMap;

use super::*;
use crate::api::{PackageSelector, PolicyPackageSpec, SourceFile};
use crate::policy::digest;
use crate::source::past::FoundPackage;
use crate::store::{SqliteOptions, SqliteStore};

/// What is kept of packages.
#[derive(Default)]
struct Kept(HashMap<String, Arc<CompiledPackage>>);

impl Kept {
    /// Keeps a package with this policy; its digest.
    fn keep(&mut self, text: &str) -> String {
        let policies = vec![SourceFile { name: "a.cedar".into(), text: text.into() }];
        let spec = PolicyPackageSpec {
            package: "p".into(),
            version: "1.0.0".into(),
            policies,
            ..PolicyPackageSpec::default()
        };
        let digest = digest(&spec);
        self.0.insert(digest.clone(), CompiledPackage::compile(&spec, &digest, Side::Tenant).unwrap());
        digest
    }
}

impl PastPackages for Kept {
    fn find<'a>(&'a self, _tenant: &'a str, digest: &'a str, _side: Side) -> FoundPackage<'a> {
        let found = self.0.get(digest).cloned();
        Box::pin(async move { found })
    }

    fn digest_of(&self, _tenant: &str, selector: &PackageSelector) -> Result<String, String> {
        Err(format!("{selector:?} is not asked for"))
    }
}

struct World {
    _dir: tempfile::TempDir,
    store: Arc<SqliteStore>,
    runner: Arc<ReplayRunner>,
    stop: watch::Sender<bool>,
}

impl World {
    async fn over(past: Kept) -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path(), SqliteOptions::default()).await.unwrap();
        let runner = Arc::new(ReplayRunner::new(store.clone(), Arc::new(past), None, "remit-system".into()));
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(runner.clone().run(stopped));
        World { _dir: dir, store, runner, stop }
    }

    /// Asks as a rollout does, until the run has ended.
    async fn ended(&self, question: &Question) -> Progress<ReplaySummary> {
        loop {
            match self.runner.answer(question).await {
                Progress::Running { .. } => tokio::time::sleep(Duration::from_millis(20)).await,
                ended => return ended,
            }
        }
    }

    async fn at(&self, question: &Question, now: Timestamp) -> Progress<ReplaySummary> {
        self.runner.poll(question, &RolloutReplay::default(), now).await.unwrap()
    }
}

fn question(baseline: &str, candidate: &str) -> Question {
    Question {
        tenant: "acme".into(),
        tenant_uid: "uid-acme".into(),
        baseline: baseline.into(),
        candidate: candidate.into(),
        platform: vec![base_platform().digest().to_owned()],
    }
}

const READS: &str = r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");"#;
const ALL: &str = r#"@id("all") permit(principal, action == Action::"call_tool", resource);"#;

/// The run behind `failed_run_counts` of the rollout: one that can't be carried out ends as failed, is never a result, and is tried
/// again only after a while.
#[tokio::test]
async fn failed_run_counts() {
    let mut past = Kept::default();
    let candidate = past.keep(ALL);
    let world = World::over(past).await;
    let asked = question("sha256:gone", &candidate);
    let failed = world.ended(&asked).await;
    assert!(matches!(&failed, Progress::Failed(why) if why.contains("sha256:gone")), "{failed:?}");
    let now = Timestamp::now();
    assert_eq!(world.at(&asked, now).await, failed, "it is not begun again at once");
    let again = world.at(&asked, now + RETRY_FAILED + SignedDuration::from_secs(1)).await;
    assert_eq!(again, Progress::Running { done: 0, total: 0 });
    world.stop.send_replace(true);
}

#[tokio::test]
async fn a_result_is_one_of_exactly_the_question() {
    let mut past = Kept::default();
    let (baseline, candidate) = (past.keep(READS), past.keep(ALL));
    let world = World::over(past).await;
    let asked = question(&baseline, &candidate);
    let Progress::Done(summary) = world.ended(&asked).await else { panic!("it can be carried out") };
    let key = key_of(&asked, &RolloutReplay::default());
    let run = world.store.newest_run("uid-acme", &key, None).await.unwrap().unwrap();
    assert_eq!((summary.run.as_str(), summary.replayed), (run.id.as_str(), 0));
    // The same report under the key of other questions: as if somebody had put it there.
    let (other, platform) = (question(&baseline, "sha256:other"), Question { platform: vec![], ..asked.clone() });
    for (n, wrong) in [other, platform].into_iter().enumerate() {
        let (id, key) = (format!("forged-{n}"), key_of(&wrong, &RolloutReplay::default()));
        let now = Timestamp::now();
        world
            .store
            .add_run(&ReplayRun::queued(id.clone(), "acme", "uid-acme", key, run.spec.clone(), now))
            .await
            .unwrap();
        let completed = RunStep::Completed {
            done: 0,
            report: run.report.clone().unwrap(),
            input_fingerprint: run.input_fingerprint.clone().unwrap(),
            result_fingerprint: run.result_fingerprint.clone().unwrap(),
            at: now,
        };
        assert!(world.store.step_run(&id, &completed).await.unwrap());
        assert_eq!(world.at(&wrong, now).await, Progress::Running { done: 0, total: 0 }, "one of its own is begun");
    }
    // With nothing replayed it is renewed before long; until the new one has ended, the old one stands.
    let later = Timestamp::now() + RENEW_SHORT + SignedDuration::from_secs(1);
    assert_eq!(world.at(&asked, later).await, Progress::Done(summary));
    let newest = world.store.newest_run("uid-acme", &key, None).await.unwrap().unwrap();
    assert_ne!(newest.id, run.id);
    world.stop.send_replace(true);
}

/// The attack: each change of `spec.replay` asks for another replay. What was asked before ends, and is begun again at once if it is
/// asked again.
#[tokio::test]
async fn a_rollouts_superseded_runs_end() {
    let mut past = Kept::default();
    let (baseline, candidate) = (past.keep(READS), past.keep(ALL));
    let world = World::over(past).await;
    // Nobody carries them out.
    world.stop.send_replace(true);
    let (asked, now) = (question(&baseline, &candidate), Timestamp::now());
    let wanted = |limit| RolloutReplay { limit: Some(limit), ..RolloutReplay::default() };
    for limit in 1..50 {
        let begun = world.runner.poll(&asked, &wanted(limit), now).await.unwrap();
        assert_eq!(begun, Progress::Running { done: 0, total: 0 });
        assert_eq!(world.store.open_runs().await.unwrap().len(), 1, "one rollout, one replay");
    }
    let old = world.store.newest_run("uid-acme", &key_of(&asked, &wanted(7)), None).await.unwrap().unwrap();
    assert_eq!((old.state, old.error.as_deref()), (ReplayState::Failed, Some(SUPERSEDED)));
    let again = world.runner.poll(&asked, &wanted(7), now).await.unwrap();
    assert_eq!(again, Progress::Running { done: 0, total: 0 }, "that it was superseded is no failure");
    let new = world.store.newest_run("uid-acme", &key_of(&asked, &wanted(7)), None).await.unwrap().unwrap();
    assert_ne!(new.id, old.id);
}

#[test]
fn namespaces_take_turns_however_many_runs_one_has() {
    let spec = RunSpec {
        baseline: String::new(),
        candidate: String::new(),
        platform: vec![],
        selection: ReplaySelection::default(),
        invariants: vec![],
    };
    let run = |uid: &str, id: &str| {
        ReplayRun::queued(id.into(), "acme", uid, format!("http:{id}"), spec.clone(), Timestamp::UNIX_EPOCH)
    };
    let mut open: Vec<_> = (0..16).map(|n| run("u-a", &format!("a{n:02}"))).collect();
    open.extend([run("u-b", "b00"), run("u-c", "c00"), run("u-c", "c01")]);
    let mut turns = Turns::default();
    let mut served = || turns.next(open.clone()).unwrap().id;
    let first: Vec<String> = (0..9).map(|_| served()).collect();
    assert_eq!(first, ["a00", "b00", "c00", "a01", "b00", "c01", "a02", "b00", "c00"]);
    assert_eq!(turns.next(vec![run("u-c", "c00")]).unwrap().id, "c00", "others have finished");
    assert!(turns.next(vec![]).is_none());
}

/// A result of long ago says nothing of what was decided since: it is made anew, and waited for.
#[tokio::test]
async fn an_old_replay_counts_for_a_rollout() {
    let mut past = Kept::default();
    let (baseline, candidate) = (past.keep(READS), past.keep(ALL));
    let world = World::over(past).await;
    let asked = question(&baseline, &candidate);
    let Progress::Done(old) = world.ended(&asked).await else { panic!("it can be carried out") };
    world.stop.send_replace(true);
    let key = key_of(&asked, &RolloutReplay::default());
    let finished = world.store.newest_run("uid-acme", &key, None).await.unwrap().unwrap().finished.unwrap();
    assert_eq!(world.at(&asked, finished + RENEW).await, Progress::Done(old.clone()), "of the last day");
    let day_after = finished + RENEW + SignedDuration::from_secs(1);
    assert_eq!(world.at(&asked, day_after).await, Progress::Running { done: 0, total: 0 });
    assert_eq!(world.at(&asked, day_after).await, Progress::Running { done: 0, total: 0 }, "one is enough");
    let new = world.store.newest_run("uid-acme", &key, None).await.unwrap().unwrap();
    assert!(new.id != old.run && !new.state.finished());
    let until = new.spec.selection.until.unwrap().0;
    assert!(until >= finished + RENEW, "over what was decided until now: {until}");
}

/// The attack: an agent whose newest decisions are as many as are replayed at most, so that nothing is replayed of what others did.
#[tokio::test]
async fn an_agent_that_writes_much_pushes_out_nobodys_decisions() {
    use crate::store::Journal as _;
    let mut past = Kept::default();
    let (baseline, candidate) = (past.keep(READS), past.keep(ALL));
    let world = World::over(past).await;
    // In whole seconds: stores keep microseconds.
    let begun = Timestamp::from_second(Timestamp::now().as_second() - 3600).unwrap();
    for n in 1..=52 {
        let mut record = crate::store::testing::record("acme", n);
        record.time = begun + SignedDuration::from_secs(i64::try_from(n).unwrap());
        record.agent = if n < 3 { "rare" } else { "flood" }.into();
        world.store.append(record).unwrap().await.unwrap();
    }
    let (asked, wanted) = (question(&baseline, &candidate), RolloutReplay { limit: Some(10), ..Default::default() });
    while !matches!(world.runner.poll(&asked, &wanted, Timestamp::now()).await.unwrap(), Progress::Done(_)) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let run = world.store.newest_run("uid-acme", &key_of(&asked, &wanted), None).await.unwrap().unwrap();
    let report: Report = serde_json::from_str(run.report.as_deref().unwrap()).unwrap();
    assert_eq!((report.counts.selected, run.total), (10, 10));
    let left_out: Vec<_> = report.left_out.iter().map(|l| (l.agent.as_str(), l.decisions)).collect();
    assert_eq!(left_out, [("flood", 42)], "both of the other's are replayed");
    assert_eq!(report.from, Some(begun + SignedDuration::from_secs(1)));
    world.stop.send_replace(true);
}
