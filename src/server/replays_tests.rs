//! Who may ask for a replay, and who may read one.

use serde_json::json;

use super::*;
use crate::server::testing::{World, with_packages};
use crate::store::{Replays as _, RunSpec, RunStep};

const RIGHTS: [&str; 3] =
    ["alice create policyreplays acme", "alice get policyreplays acme", "alice get decisions acme"];

async fn world(rights: &[&str]) -> World {
    let w = World::with(crate::gate::check, with_packages()).await;
    w.rights.0.lock().unwrap().extend(rights.iter().map(|r| (*r).to_owned()));
    w
}

/// The attack: who may read no decisions has them replayed under policies of their own making, and reads from the report which matched.
#[tokio::test]
async fn a_replay_needs_the_right_to_read_decisions() {
    let uid = uid(&world(&[]).await.state, "acme").unwrap();
    let body = json!({"tenant": "acme", "candidate": {"version": "=9.9.9"}});
    for (missing, without) in RIGHTS.into_iter().enumerate() {
        let rights: Vec<&str> = RIGHTS.into_iter().enumerate().filter(|(n, _)| *n != missing).map(|(_, r)| r).collect();
        let w = world(&rights).await;
        let spec = RunSpec {
            baseline: "sha256:a".into(),
            candidate: "sha256:b".into(),
            platform: vec![],
            selection: Default::default(),
            invariants: vec![],
        };
        let now = w.state.clock.now();
        assert!(w.store.add_run(&ReplayRun::queued("r1".into(), "acme", &uid, "k".into(), spec, now)).await.unwrap());
        let failed = RunStep::Failed { error: "it names agent coder".into(), at: now };
        assert!(w.store.step_run("r1", &failed).await.unwrap());
        let begun = w.post("admin", "/admin/replay/runs", &body).await;
        let one = w.get("admin", "/admin/replay/runs/r1?tenant=acme").await;
        let report = w.get("admin", "/admin/replay/runs/r1/report?tenant=acme").await;
        // With both rights it is heard; that the package or the report is not there comes after.
        let may = |right: usize| right != missing && missing != 2;
        assert_eq!(begun.status, if may(0) { 400 } else { 403 }, "without {}: {}", without, begun.text);
        assert_eq!(one.status, if may(1) { 200 } else { 403 }, "without {}: {}", without, one.text);
        assert_eq!(report.status, if may(1) { 409 } else { 403 }, "without {}: {}", without, report.text);
        if missing == 2 {
            for refused in [begun, one, report] {
                assert!(
                    refused.text.contains("decisions.remit.dev") && !refused.text.contains("coder"),
                    "{}",
                    refused.text
                );
            }
        }
    }
}

/// The cap holds where it is asked for over HTTP as well.
#[tokio::test]
async fn more_runs_than_a_namespace_may_have_are_refused() {
    struct Anything;
    impl crate::source::past::PastPackages for Anything {
        fn find<'a>(&'a self, _: &'a str, _: &'a str, _: crate::policy::Side) -> crate::source::past::FoundPackage<'a> {
            Box::pin(async { None })
        }

        fn digest_of(&self, _: &str, _: &crate::api::PackageSelector) -> Result<String, String> {
            Ok("sha256:b".into())
        }
    }
    let w = world(&RIGHTS).await.remembering(Arc::new(Anything));
    let body = json!({"tenant": "acme", "candidate": {}});
    let asked = (0..MAX_OPEN_RUNS + 8).map(|_| w.post("admin", "/admin/replay/runs", &body));
    let statuses: Vec<u16> = futures::future::join_all(asked).await.into_iter().map(|reply| reply.status).collect();
    let taken = statuses.iter().filter(|s| **s == 202).count();
    assert_eq!((taken as i64, statuses.iter().filter(|s| **s == 429).count()), (MAX_OPEN_RUNS, 8), "{statuses:?}");
}
