//! Packages whose tests take long: nobody waits for them longer than they want, and they are not run over and over.

use super::*;
use crate::api::{SourceFile, Tier, Tool};
use crate::policy::base_platform;
use crate::store::{SqliteOptions, SqliteStore};

struct Judge {
    _dir: tempfile::TempDir,
    compiler: Arc<Compiler>,
    results: TestResults,
}

impl Judge {
    async fn new(times: [Option<Duration>; 2]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path(), SqliteOptions::default()).await.unwrap();
        Self { _dir: dir, compiler: Arc::new(Compiler::new(store)), results: TestResults::with_times(times) }
    }

    async fn judge(&self, spec: &PolicyPackageSpec, patience: Duration) -> Said {
        let verify = VerifyContext {
            tenant: "acme",
            is_platform: false,
            installation: "uid",
            signers: &[],
            signature_needed: false,
            now: jiff::Timestamp::UNIX_EPOCH,
            high_water: None,
        };
        judge(&self.compiler, &self.results, spec, &verify, vec![base_platform()], patience).await.unwrap()
    }
}

fn package(name: &str) -> PolicyPackageSpec {
    let policy = "@id(\"all\") permit(principal, action == Action::\"call_tool\", resource);";
    PolicyPackageSpec {
        package: name.into(),
        version: "1.0.0".into(),
        tools: vec![Tool {
            name: "git/log".into(),
            tier: Tier::Read,
            sensitivity: Default::default(),
            groups: vec![],
            description: None,
            schema_digest: None,
        }],
        policies: vec![SourceFile { name: "main.cedar".into(), text: policy.into() }],
        tests: vec![SourceFile {
            name: "a.yaml".into(),
            text: "[{name: reads, agent: x, call: {tool: git/log}, expect: {decision: allow}}]".into(),
        }],
        ..PolicyPackageSpec::default()
    }
}

#[tokio::test]
async fn who_has_no_patience_is_told_that_tests_are_running() {
    let j = Judge::new([Some(QUICK), None]).await;
    // As if tests of others were running.
    let turns = j.results.0.quick.acquire_many(QUICK_AT_ONCE as u32).await.unwrap();
    let first = j.judge(&package("one"), Duration::ZERO).await;
    let refusal = first.verdict.overall().unwrap_err();
    assert!(refusal.message.contains("still running"), "{refusal}");
    assert!(first.again.is_some(), "there will be another verdict without a change");
    // Another one does not wait for it either; and what is under way is not begun twice.
    assert!(j.judge(&package("two"), Duration::ZERO).await.verdict.overall().is_err());
    assert!(j.judge(&package("one"), Duration::ZERO).await.verdict.overall().is_err());
    assert_eq!(lock(&j.results.0.under_way).len(), 2);
    drop(turns);
    let said = j.judge(&package("one"), PATIENT).await;
    assert_eq!((said.verdict.overall(), said.again), (Ok(None), None));
    let said = j.judge(&package("one"), Duration::ZERO).await;
    assert_eq!((said.verdict.overall(), said.again), (Ok(None), None), "what is known needs no patience");
}

#[tokio::test]
async fn tests_that_were_cut_short_are_not_run_again_at_once() {
    let j = Judge::new([Some(Duration::ZERO), Some(Duration::ZERO)]).await;
    let said = j.judge(&package("one"), PATIENT).await;
    let refusal = said.verdict.overall().unwrap_err();
    assert!(refusal.message.contains("took too long: 0 of 1 were run"), "{refusal}");
    assert!(refusal.message.contains("run again after 5 minutes"), "{refusal}");
    assert!(said.again.is_some_and(|again| again > CUT_SHORT / 2), "{:?}", said.again);
    let again = j.judge(&package("one"), Duration::ZERO).await;
    assert_eq!(again.verdict.overall().unwrap_err(), refusal, "remembered, and not run again");
    // Once that is over they are.
    let key = lock(&j.results.0.known).keys().next().unwrap().clone();
    j.results.remember(&key, Known { refusal: Some(refusal), until: Some(Instant::now()) });
    let anew = j.judge(&package("one"), PATIENT).await;
    assert!(anew.again.is_some_and(|again| again > CUT_SHORT / 2), "{:?}", anew.again);
}

/// What takes long waits for its turn among what takes long: the others do not.
#[tokio::test]
async fn slow_tests_hold_up_no_quick_ones() {
    let j = Judge::new([Some(QUICK), None]).await;
    // As if somebody's tests were running in the slow turn, for as long as they like.
    let _slow = j.results.0.slow.acquire().await.unwrap();
    assert_eq!(j.judge(&package("quick"), PATIENT).await.verdict.overall(), Ok(None));
}
