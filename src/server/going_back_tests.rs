//! History and rollback of single policies, and rollouts by HTTP, over a cluster that is scripted.

use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use serde_json::Value;

use super::*;
use crate::api::{DEFAULT_NAME, HandledAction, HistoryEntry, PackageSelector, SourceFile, TenantRolloutStatus, Tier};
use crate::lifecycle::evidence::{AgentCounts, AgentDrift, Window};
use crate::policy::{Refusal, RefusalCode};
use crate::server::authn::BoxFuture;
use crate::server::control::{ControlError, RolloutControl};
use crate::server::testing::World;
use crate::store::{Arrival, Rollback, RolloutRecord, Store as _, StoreError};

/// One tenant's rollout; handles what is appended at once, where `handles`.
#[derive(Default)]
struct Scripted {
    rollout: Mutex<Option<TenantRollout>>,
    packages: Mutex<Vec<(String, PolicyPackageSpec)>>,
    obstacle: Mutex<Option<Refusal>>,
    appended: Mutex<Vec<HumanAction>>,
    selected: Mutex<Vec<PackageSelector>>,
    answer: Mutex<String>,
}

impl Scripted {
    fn status(&self, change: impl FnOnce(&mut TenantRolloutStatus)) {
        change(self.rollout.lock().unwrap().as_mut().unwrap().status.as_mut().unwrap());
    }
}

impl RolloutControl for Scripted {
    fn rollout<'a>(&'a self, tenant: &'a str) -> BoxFuture<'a, Result<Option<TenantRollout>, ControlError>> {
        assert_eq!(tenant, "acme", "nothing of another tenant is looked at");
        Box::pin(async { Ok(self.rollout.lock().unwrap().clone()) })
    }
    fn select<'a>(
        &'a self,
        _: &'a str,
        package: &'a PackageSelector,
    ) -> BoxFuture<'a, Result<TenantRollout, ControlError>> {
        Box::pin(async {
            self.selected.lock().unwrap().push(package.clone());
            Ok(self.rollout.lock().unwrap().clone().unwrap())
        })
    }
    fn append<'a>(&'a self, _: &'a str, action: &'a HumanAction) -> BoxFuture<'a, Result<(), ControlError>> {
        Box::pin(async {
            self.appended.lock().unwrap().push(action.clone());
            let result = self.answer.lock().unwrap().clone();
            let handled = HandledAction { action: action.clone(), result, at: None };
            self.status(|s| s.handled.insert(0, handled));
            Ok(())
        })
    }
    fn package(&self, _: &str, revision: &RevisionStatus) -> Result<PolicyPackageSpec, String> {
        let packages = self.packages.lock().unwrap();
        let found = packages.iter().find(|(digest, _)| *digest == revision.digest);
        found.map(|(_, spec)| spec.clone()).ok_or("its bytes are gone".into())
    }
    fn obstacle<'a>(
        &'a self,
        _: &'a PolicyPackageSpec,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Option<Refusal>, StoreError>> {
        Box::pin(async { Ok(self.obstacle.lock().unwrap().clone()) })
    }
    fn window<'a>(
        &'a self,
        tenant_uid: &'a str,
        revision: i64,
        _: Timestamp,
        _: u64,
    ) -> BoxFuture<'a, Result<Window, StoreError>> {
        assert_eq!((tenant_uid, revision), ("uid-acme", 4));
        let counts =
            |decisions, denied| AgentCounts { agent: "coder".into(), decisions, denied, ..AgentCounts::default() };
        let shadow = AgentDrift { agent: "coder".into(), compared: 9, critical: 1, ..AgentDrift::default() };
        let window = Window {
            stable: vec![counts(90, 3)],
            canary: vec![counts(5, 2), counts(5, 0)],
            shadow: vec![shadow],
            ..Window::default()
        };
        Box::pin(async { Ok(window) })
    }
    fn records<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<RolloutRecord>, StoreError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

fn policy_text(id: &str, text: &str) -> String {
    format!("@id(\"{id}\") permit(principal, action, resource) when {{ context.hour > {text} }};")
}

/// World with `alice`, who may read and roll back in acme, and a history: revision n has package version 1.n.0 and digest dn.
async fn world(packages: &[(&[(&str, &str)], Tier)]) -> (World, Arc<Scripted>) {
    let mut world = World::new().await;
    let control = Arc::new(Scripted::default());
    *control.answer.lock().unwrap() = "done: it is in force".into();
    let mut status = TenantRolloutStatus { observed_generation: 1, ..TenantRolloutStatus::default() };
    for (n, (policies, tier)) in packages.iter().enumerate() {
        let n = i64::try_from(n).unwrap() + 1;
        let (digest, version) = (format!("d{n}"), format!("1.{n}.0"));
        let text: String = policies.iter().map(|(id, text)| policy_text(id, text)).collect();
        let spec = PolicyPackageSpec {
            package: "base".into(),
            version: version.clone(),
            policies: vec![SourceFile { name: "main.cedar".into(), text }],
            tools: vec![serde_json::from_value(json!({"name": "git/log", "tier": tier.as_str()})).unwrap()],
            ..PolicyPackageSpec::default()
        };
        let row = InForceRow {
            tenant_uid: "uid-acme".into(),
            tenant: "acme".into(),
            package: "base".into(),
            version: version.clone(),
            digest: digest.clone(),
            key_fingerprint: None,
            first_verified: Timestamp::from_second(n).unwrap(),
            revision: n,
        };
        let arrival = Arrival { policies: texts(&spec).unwrap(), ..Arrival::empty(Timestamp::from_second(n).unwrap()) };
        world.store.put_in_force(&row, &arrival).await.unwrap();
        let revision = crate::lifecycle::rollout::revision(&row);
        let entry = HistoryEntry { revision: revision.clone(), phase: "completed".into(), ..HistoryEntry::default() };
        status.history.insert(0, entry);
        status.stable = Some(revision);
        control.packages.lock().unwrap().push((digest, spec));
    }
    let mut rollout = TenantRollout::new(DEFAULT_NAME, Default::default());
    rollout.metadata.generation = Some(1);
    rollout.status = Some(status);
    *control.rollout.lock().unwrap() = Some(rollout);
    drop(world.router);
    let server = Arc::into_inner(world.state).map(|s| crate::server::Server { control: Some(control.clone()), ..s });
    let state = Arc::new(server.expect("nobody else has it"));
    world.router = crate::server::router(state.clone());
    world.state = state;
    for right in ["get policypackages", "get tenantrollouts", "rollback tenantrollouts"] {
        world.rights.0.lock().unwrap().insert(format!("alice {right} acme"));
    }
    (world, control)
}

const A: &[(&str, &str)] = &[("a", "1"), ("b", "1")];

async fn three() -> (World, Arc<Scripted>) {
    world(&[(A, Tier::Read), (&[("a", "2"), ("b", "2")], Tier::Write), (&[("b", "2")], Tier::Write)]).await
}

const POLICIES: &str = "/admin/tenants/acme/policies";

#[tokio::test]
async fn versions_are_listed_newest_first_with_what_was_deleted() {
    let (world, _) = three().await;
    let reply = world.get("admin", &format!("{POLICIES}/a/versions")).await;
    let versions = |body: &Value| {
        let items = body["items"].as_array().unwrap().iter();
        items.map(|v| (v["version"].as_u64().unwrap(), v["change"].as_str().unwrap().to_owned())).collect::<Vec<_>>()
    };
    let of = |n, change: &str| (n, change.to_owned());
    assert_eq!(versions(&reply.body), [of(3, "delete"), of(2, "update"), of(1, "create")], "{}", reply.text);
    assert_eq!((&reply.body["policy"], &reply.body["next"]), (&json!("tenant/base/a"), &Value::Null));
    let reply = world.get("admin", &format!("{POLICIES}/base%2Fa/versions?limit=1&before=3")).await;
    assert_eq!((versions(&reply.body), &reply.body["next"]), (vec![of(2, "update")], &json!(2)));
    let reply = world.get("admin", &format!("{POLICIES}/tenant%2Fbase%2Fa/versions/1")).await;
    assert_eq!(reply.body["text"], policy_text("a", "1"));
    let reply = world.get("admin", &format!("{POLICIES}/a/diff?from=1&to=2")).await;
    assert!(reply.text.contains("-@id(\"a\")") && reply.text.contains("+@id(\"a\")"), "{}", reply.text);
    assert!(reply.text.starts_with("--- tenant/base/a\tversion 1\n+++ tenant/base/a\tversion 2\n"), "{}", reply.text);
    let reply = world.get("admin", &format!("{POLICIES}/a/diff?from=2")).await;
    assert!(reply.text.contains("version 3 (deleted)"), "{}", reply.text);
    assert_eq!(world.get("admin", POLICIES).await.body["items"].as_array().unwrap().len(), 2);

    for (path, code) in [
        (format!("{POLICIES}/zzz/versions"), (404, "unknown_policy")),
        (format!("{POLICIES}/other%2Fa/versions"), (404, "unknown_policy")),
        (format!("{POLICIES}/a/versions/4"), (404, "unknown_version")),
        (format!("{POLICIES}/a/versions/0"), (400, "invalid_filter")),
        (format!("{POLICIES}/a/versions?limit=0"), (400, "invalid_filter")),
        (format!("{POLICIES}/a/diff"), (400, "invalid_filter")),
        (format!("{POLICIES}/a/diff?from=1&to=9"), (404, "unknown_version")),
        ("/admin/tenants/other/policies/a/versions".to_owned(), (404, "unknown_tenant")),
        ("/admin/tenants/nowhere/policies/a/versions".to_owned(), (404, "unknown_tenant")),
        ("/policies/a/versions".to_owned(), (400, "tenant_needed")),
        ("/policies".to_owned(), (400, "tenant_needed")),
    ] {
        let reply = world.get("admin", &path).await;
        assert_eq!(reply.code(), code, "{path}: {}", reply.text);
    }
    assert_eq!(world.get("acme:coder", &format!("{POLICIES}/a/versions")).await.status, 401, "humans only");
    world.rights.0.lock().unwrap().remove("alice get policypackages acme");
    assert_eq!(world.get("admin", &format!("{POLICIES}/a/versions")).await.code(), (404, "unknown_tenant"));
}

#[tokio::test]
async fn a_policy_goes_back_when_all_else_that_changes_is_acknowledged() {
    let (world, control) = three().await;
    let path = format!("{POLICIES}/a/rollback");
    let ask = |acknowledge: Value| json!({"version": 2, "reason": "it was fine", "acknowledge": acknowledge});
    // Revision 2 has it in version 2, and differs in nothing else.
    let reply = world.post("admin", &path, &ask(json!([]))).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!((&reply.body["before"], &reply.body["after"]), (&json!("d3"), &json!("d2")));
    let entry = control.appended.lock().unwrap().remove(0);
    assert_eq!(
        (entry.actor.as_str(), entry.via.as_deref(), entry.action.as_str()),
        ("alice", Some("http"), "rollback")
    );
    assert_eq!((entry.revision, entry.digest.as_deref()), (Some(2), Some("d3")));
    assert_eq!(entry.reason.as_deref(), Some("it was fine"));

    // Version 1 is in revision 1, which differs in more.
    let first = |acknowledge: Value| json!({"version": 1, "reason": "r", "acknowledge": acknowledge});
    let reply = world.post("admin", &path, &first(json!(["policy:a", "tool:git/log"]))).await;
    assert_eq!(reply.code(), (409, "other_changes"), "{}", reply.text);
    assert_eq!(
        reply.body["changes"],
        json!([
            {"acknowledge": "policy:b", "change": "update"},
            {"acknowledge": "tool:git/log", "change": "tier write becomes read"},
        ])
    );
    assert!(control.appended.lock().unwrap().is_empty());
    let reply = world.post("admin", &path, &first(reply.body["acknowledge"].clone())).await;
    assert_eq!((reply.status, &reply.body["revision"]), (200, &json!(1)), "{}", reply.text);
    assert_eq!(control.appended.lock().unwrap().remove(0).revision, Some(1));
}

#[tokio::test]
async fn a_policy_goes_back_to_nothing_that_can_not_come_into_force() {
    let (world, control) = three().await;
    let path = format!("{POLICIES}/a/rollback");
    let ask = json!({"version": 2, "reason": "r"});
    let code = async |path: &str, body: &Value| {
        let reply = world.post("admin", path, body).await;
        format!("{} {}", reply.status, reply.code().1)
    };
    for (body, wanted) in [
        (json!({"version": 9, "reason": "r"}), "404 unknown_version"),
        (json!({"version": 2, "reason": " "}), "400 invalid_request"),
        (json!({"version": 2, "reason": "r\u{0}"}), "400 invalid_request"),
        (json!({"version": 2}), "400 invalid_request"),
        (json!({"version": 2, "reason": "r", "force": true}), "400 invalid_request"),
        (json!({"version": 3, "reason": "r"}), "409 already_in_force"),
    ] {
        assert_eq!(code(&path, &body).await, wanted, "{body}");
    }
    assert_eq!(code(&format!("{POLICIES}/zzz/rollback"), &ask).await, "404 unknown_policy");
    *control.obstacle.lock().unwrap() = Some(Refusal::new(RefusalCode::TestFailed, "test `x`"));
    assert_eq!(code(&path, &ask).await, "422 package_refused");
    *control.obstacle.lock().unwrap() = None;
    control.status(|s| s.candidate = s.stable.clone());
    assert_eq!(code(&path, &ask).await, "409 rollout_under_way");
    control.status(|s| s.candidate = None);
    let gone = control.packages.lock().unwrap().remove(1);
    assert_eq!(code(&path, &ask).await, "409 not_kept");
    control.packages.lock().unwrap().push(gone);
    control.status(|s| s.history.retain(|h| h.revision.revision != 2));
    assert_eq!(code(&path, &ask).await, "409 not_kept");
    world.rights.0.lock().unwrap().remove("alice rollback tenantrollouts acme");
    assert_eq!(code(&path, &ask).await, "403 not_allowed");
    assert!(control.appended.lock().unwrap().is_empty(), "nothing was asked of the rollout");
}

/// What was signed with a key that was compromised since does not come back, also where nothing declares that key any more.
#[tokio::test]
async fn a_policy_goes_back_to_nothing_by_a_compromised_key() {
    let (world, control) = three().await;
    let path = format!("{POLICIES}/a/rollback");
    let ask = json!({"version": 2, "reason": "r"});
    let second = |s: &mut TenantRolloutStatus, change: &dyn Fn(&mut HistoryEntry)| {
        change(s.history.iter_mut().find(|h| h.revision.revision == 2).unwrap());
    };
    control.status(|s| second(s, &|h| h.revision.key_fingerprint = Some("k".into())));
    world.store.remember_compromised("uid-other", &["k".to_owned()]).await.unwrap();
    assert_eq!(world.post("admin", &path, &ask).await.status, 200, "of another namespace");
    control.appended.lock().unwrap().clear();
    control.status(|s| second(s, &|h| (h.phase, h.cause) = ("rolled_back".into(), "SignerCompromised".into())));
    assert_eq!(world.post("admin", &path, &ask).await.code(), (409, "compromised_key"));
    control.status(|s| second(s, &|h| (h.phase, h.cause) = ("completed".into(), "SignerCompromised".into())));
    assert_eq!(world.post("admin", &path, &ask).await.status, 200, "it came in the place of such a one");
    control.appended.lock().unwrap().clear();
    world.store.remember_compromised("uid-acme", &["k".to_owned()]).await.unwrap();
    let reply = world.post("admin", &path, &ask).await;
    assert_eq!(reply.code(), (409, "compromised_key"), "{}", reply.text);
    assert!(reply.body["message"].as_str().unwrap().contains("revision 2"), "{}", reply.text);
    assert!(control.appended.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_the_rollout_refuses_or_leaves_is_told() {
    let (world, control) = three().await;
    *control.answer.lock().unwrap() = "refused: 1.4.0 is in force by now".into();
    let ask = json!({"version": 2, "reason": "r"});
    let reply = world.post("admin", &format!("{POLICIES}/a/rollback"), &ask).await;
    assert_eq!(reply.code(), (409, "action_refused"));
    assert!(reply.body["message"].as_str().unwrap().contains("by now"), "{}", reply.text);
}

#[tokio::test]
async fn of_two_packages_with_a_policy_of_one_name_the_one_in_force_is_meant() {
    let head = |package: &str| PolicyVersion {
        package: package.into(),
        policy: "a".into(),
        version: 1,
        time: Timestamp::UNIX_EPOCH,
        change: crate::store::Change::Create,
        deleted: false,
        sha256: None,
        text: None,
        revision: 1,
        package_version: "1.0.0".into(),
        after: String::new(),
        before: String::new(),
        key_fingerprint: None,
        author: None,
        applied_by: None,
        rolled_back_by: None,
        reason: None,
    };
    let heads = [head("one"), head("two")];
    let resolve = crate::server::policies::resolve;
    assert_eq!(resolve(&heads, "a", Some("two")).unwrap().to_string(), "tenant/two/a");
    assert_eq!(resolve(&heads, "one/a", Some("two")).unwrap().to_string(), "tenant/one/a");
    assert_eq!(resolve(&heads, "a", None).unwrap_err().code, "ambiguous_policy");
    assert_eq!(resolve(&heads[..1], "a", None).unwrap().to_string(), "tenant/one/a");
}

/// An old version that came back is in the newest revision that has it, not in the first.
#[tokio::test]
async fn the_newest_revision_with_the_version_is_taken() {
    let (world, control) =
        world(&[(A, Tier::Read), (&[("a", "1"), ("b", "2")], Tier::Read), (&[("a", "3"), ("b", "2")], Tier::Read)])
            .await;
    let reply = world.post("admin", &format!("{POLICIES}/a/rollback"), &json!({"version": 1, "reason": "r"})).await;
    assert_eq!((reply.status, &reply.body["revision"]), (200, &json!(2)), "{}", reply.text);
    assert_eq!(control.appended.lock().unwrap().len(), 1);
    // After it came back, version 3 (a rollback) is in the revision that brought it.
    let row = InForceRow { revision: 4, ..world.store.in_force("uid-acme").await.unwrap()[1].clone() };
    let rollback = Some(Rollback { by: "alice".into(), reason: "r".into() });
    let policies = texts(&control.packages.lock().unwrap()[1].1).unwrap();
    let arrival = Arrival { policies, rollback, ..Arrival::empty(Timestamp::from_second(4).unwrap()) };
    world.store.put_in_force(&row, &arrival).await.unwrap();
    let reply = world.get("admin", &format!("{POLICIES}/a/versions/3")).await;
    assert_eq!((&reply.body["change"], &reply.body["rolled_back_by"]), (&json!("rollback"), &json!("alice")));
    assert_eq!((&reply.body["before"], &reply.body["after"]), (&json!("d3"), &json!("d2")));
}

const ROLLOUTS: &str = "/admin/tenants/acme/rollouts";

#[tokio::test]
async fn rollouts_are_seen_by_their_number() {
    let (world, control) = three().await;
    let reply = world.get("admin", ROLLOUTS).await;
    let ids: Vec<_> = reply.body["items"].as_array().unwrap().iter().map(|r| r["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, [3, 2, 1], "{}", reply.text);
    control.status(|s| {
        s.candidate = Some(RevisionStatus { revision: 4, version: "2.0.0".into(), ..s.stable.clone().unwrap() });
        (s.progress, s.percent) = (Some("canary".into()), Some(5));
    });
    let reply = world.get("admin", &format!("{ROLLOUTS}/4")).await;
    assert_eq!((&reply.body["progress"], &reply.body["under_way"]["percent"]), (&json!("canary"), &json!(5)));
    let seen = world.get("admin", &format!("{ROLLOUTS}/observability")).await.body;
    assert_eq!((&seen["rollout"]["id"], &seen["stable"]["decisions"]), (&json!(4), &json!(90)), "{seen}");
    assert_eq!((&seen["candidate"]["decisions"], &seen["candidate"]["denied"]), (&json!(10), &json!(2)), "{seen}");
    assert_eq!(seen["drift"]["critical"], 1, "{seen}");
    assert_eq!(world.get("admin", &format!("{ROLLOUTS}/3")).await.body["in_force"], true);
    let package = world.get("admin", &format!("{ROLLOUTS}/2/package")).await;
    assert_eq!(package.body["version"], "1.2.0", "{}", package.text);
    for path in [format!("{ROLLOUTS}/9"), format!("{ROLLOUTS}/x"), "/admin/tenants/other/rollouts/1".into()] {
        assert_eq!(world.get("admin", &path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn actions_are_entries_of_the_caller_with_the_verb() {
    let (world, control) = three().await;
    let act = async |id: i64, action: &str, body: Value| {
        let reply = world.post("admin", &format!("{ROLLOUTS}/{id}/{action}"), &body).await;
        (reply.status, reply.code().1.to_owned(), reply.text)
    };
    let why = json!({"reason": "because"});
    assert_eq!(act(3, "rollback", json!({})).await.0, 400, "a reason is needed");
    let said = act(3, "rollback", json!({"reason": "r\u{0}"})).await;
    assert!(said.0 == 400 && said.2.contains("reason") && said.2.contains("U+0000"), "{}", said.2);
    assert_eq!(act(3, "rollback", json!({"reason": "r", "to": 7})).await.0, 404);
    assert_eq!(act(2, "rollback", why.clone()).await.1, "not_current");
    assert_eq!(act(3, "pause", why.clone()).await.1, "not_allowed", "nobody but `pause` pauses");
    assert_eq!(act(3, "explode", why.clone()).await.0, 404);
    assert_eq!(act(3, "rollback", json!({"reason": "r", "full": true})).await.0, 400);
    assert!(control.appended.lock().unwrap().is_empty());
    assert_eq!(act(3, "rollback", json!({"reason": "r", "to": 1})).await.0, 200);
    let entry = control.appended.lock().unwrap().remove(0);
    assert_eq!((entry.action.as_str(), entry.revision, entry.digest.as_deref()), ("rollback", Some(1), Some("d3")));

    control.status(|s| {
        s.candidate = Some(RevisionStatus { revision: 4, digest: "d4".into(), ..s.stable.clone().unwrap() });
    });
    for (action, body, entry, verb) in [
        ("pause", json!({}), "pause", "pause"),
        ("resume", json!({}), "resume", "pause"),
        ("promote", json!({}), "promote", "promote"),
        ("promote", json!({"full": true, "reason": "r"}), "promote-full", "promote-unchecked"),
        ("abort", json!({"reason": "r"}), "abort", "abort"),
        // Of what is under way nothing is in force yet.
        ("rollback", json!({"reason": "r"}), "abort", "abort"),
    ] {
        let right = format!("alice {verb} tenantrollouts acme");
        assert_eq!(act(4, action, body.clone()).await.1, "not_allowed", "{action} {body}");
        world.rights.0.lock().unwrap().insert(right.clone());
        let said = act(4, action, body.clone()).await;
        assert_eq!(said.0, 200, "{action} {body}: {}", said.2);
        let appended = control.appended.lock().unwrap().remove(0);
        assert_eq!((appended.action.as_str(), appended.digest.as_deref()), (entry, Some("d4")));
        assert_eq!((appended.actor.as_str(), appended.via.as_deref()), ("alice", Some("http")));
        assert_eq!(act(3, action, body.clone()).await.0, if action == "rollback" { 200 } else { 409 }, "{action}");
        control.appended.lock().unwrap().clear();
        world.rights.0.lock().unwrap().remove(&right);
    }
}

#[tokio::test]
async fn wrong_tenant_rollback() {
    let (world, control) = three().await;
    world.rights.0.lock().unwrap().insert("alice rollback tenantrollouts other".into());
    let why = json!({"reason": "because", "version": 1});
    for path in ["rollouts/3/rollback", "rollouts/3/abort", "policies/a/rollback"] {
        let reply = world.post("admin", &format!("/admin/tenants/other/{path}"), &why).await;
        assert_eq!(reply.code(), (404, "unknown_tenant"), "{path}: {}", reply.text);
    }
    let create = json!({"package": {"name": "base"}});
    assert_eq!(world.post("admin", "/admin/tenants/other/rollouts", &create).await.status, 404);
    assert!(control.appended.lock().unwrap().is_empty() && control.selected.lock().unwrap().is_empty());
}

#[tokio::test]
async fn another_package_is_asked_for_with_the_verb_of_the_spec() {
    let (world, control) = three().await;
    let ask = json!({"package": {"name": "base", "version": "=1.2.0"}});
    assert_eq!(world.post("admin", ROLLOUTS, &ask).await.code(), (403, "not_allowed"));
    world.rights.0.lock().unwrap().insert("alice patch tenantrollouts acme".into());
    for (body, field) in [
        (json!({"package": {}}), "package.name"),
        (json!({"package": {"name": "base", "digest": "sha256:00"}}), "package.digest"),
        (json!({"package": {"name": "base", "version": "one"}}), "package.version"),
    ] {
        let reply = world.post("admin", ROLLOUTS, &body).await;
        assert_eq!((reply.status, &reply.body["field"]), (400, &json!(field)), "{}", reply.text);
    }
    assert!(control.selected.lock().unwrap().is_empty());
    let reply = world.post("admin", ROLLOUTS, &ask).await;
    assert_eq!(reply.status, 202, "{}", reply.text);
    assert_eq!(reply.headers["location"], format!("{ROLLOUTS}/3"));
    assert_eq!(control.selected.lock().unwrap()[0].version.as_deref(), Some("=1.2.0"));
}
