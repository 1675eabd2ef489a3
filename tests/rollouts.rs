//! The life of a change on a real control plane: a good candidate reaches everybody over its stages, a bad one is taken back by itself,
//! and what people and Git do meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use remit::policy::digest;
use serde_json::{Value, json};

use crate::operator::{READS, WRITES, package, spec};
use crate::support::{Cluster, call, cluster, eventually_blocking};

/// Stages by percent, each of a second, with nothing to be sure of but the budgets.
fn rollout(percents: &[i64], more: Value) -> String {
    let stages: Vec<Value> =
        percents.iter().map(|p| json!({"percent": p, "minSeconds": 1, "minDecisions": 0})).collect();
    let mut spec = json!({"stages": stages, "onInconclusive": "Proceed"});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"}, "spec": spec})
        .to_string()
}

fn gated(percent: i64) -> Value {
    let stage = json!({"percent": percent, "minSeconds": 0, "minDecisions": 0, "gate": "Manual"});
    json!({"stages": [stage, {"percent": 100, "minSeconds": 0, "minDecisions": 0}]})
}

impl Cluster {
    fn until(&self, tenant: &str, what: &str, right: impl Fn(&Value) -> bool) -> Value {
        eventually_blocking(what, || {
            let status = self.rollout(tenant)["status"].clone();
            if right(&status) { Ok(status) } else { Err(status.to_string()) }
        })
    }

    fn events(&self, tenant: &str, reason: &str) -> Vec<String> {
        let text = self.kubectl(&["get", "events.events.k8s.io", "-n", tenant, "-o", "json"]).unwrap();
        let all: Value = serde_json::from_str(&text).unwrap();
        let mine = all["items"].as_array().unwrap().iter().filter(|e| e["reason"] == reason);
        mine.map(|e| e["note"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

fn condition<'a>(status: &'a Value, type_: &str) -> &'a Value {
    let all = status["conditions"].as_array().unwrap();
    all.iter().find(|c| c["type"] == type_).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn a_good_candidate_goes_over_its_stages_to_everybody_while_checks_go_on() {
    let c = cluster();
    let tenant = c.namespace("good").await;
    c.apply(&tenant, &rollout(&[5, 50, 100], json!({}))).unwrap();
    let token = c.coder(&tenant).await;
    // Another package that changes no answer.
    let (one, two) = (spec("1.0.0", &[READS]), spec("1.1.0", &["// The same, said anew.", READS]));
    c.put(&tenant, &one);
    c.expect(&token, &tenant, "files/read", "allowed").await;
    let stop = Arc::new(AtomicBool::new(false));
    let (http, body, path) = (c.http(), call("coder", "files/read", json!({})), tenant.clone());
    let (ended, bearer) = (stop.clone(), token.clone());
    let asking = tokio::spawn(async move {
        let mut bad = Vec::new();
        let mut n = 0;
        while !ended.load(Ordering::Relaxed) {
            match http.check(&bearer, &path, &body).await {
                Ok(answer) if answer.json()["decision"] == true => n += 1,
                Ok(answer) => bad.push(answer.text),
                Err(error) => bad.push(error),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        (n, bad)
    });
    c.apply(&tenant, &package(&two).1).unwrap();
    let (c2, t2, d2) = (c, tenant.clone(), digest(&two));
    let status = tokio::task::spawn_blocking(move || {
        c2.until(&t2, "the candidate is in force", |s| s["stable"]["digest"] == d2.as_str() && s["candidate"].is_null())
    })
    .await
    .unwrap();
    stop.store(true, Ordering::Relaxed);
    let (answered, bad) = asking.await.unwrap();
    assert!(answered > 20 && bad.is_empty(), "{answered} {bad:?}");
    assert_eq!((&status["phase"], &status["progress"]), (&json!("Healthy"), &json!("completed")));
    assert_eq!(
        (&status["history"][0]["phase"], &status["history"][0]["cause"]),
        (&json!("completed"), &json!("NewVersion"))
    );
    let stages = c.events(&tenant, "StageReached");
    for words in
        ["decides for 5 % of sessions, stage 1 of 3", "50 % of sessions, stage 2 of 3", "all sessions, stage 3 of 3"]
    {
        assert!(stages.iter().any(|e| e.contains(words)), "{words}: {stages:?}");
    }
    let checks = status["verdict"]["checks"].as_array().unwrap();
    for name in ["replay", "proof", "criticalDrift", "denialGrowth", "errors"] {
        assert!(checks.iter().any(|k| k["name"] == name), "{name}: {checks:?}");
    }
    // Every stage raised the epoch: three, queued to none, and force.
    assert!(status["epoch"].as_i64().unwrap() >= 5, "{status}");
}

#[tokio::test]
async fn a_bad_candidate_is_taken_back_by_itself_and_says_by_what() {
    let c = cluster();
    let tenant = c.namespace("bad").await;
    c.apply(&tenant, &rollout(&[], gated(50))).unwrap();
    let (one, two) = (spec("1.0.0", &[READS]), spec("1.1.0", &[READS, WRITES]));
    c.put(&tenant, &one);
    let token = c.coder(&tenant).await;
    c.expect(&token, &tenant, "files/read", "allowed").await;
    let objects = package(&two).1;
    c.apply(&tenant, &objects).unwrap();
    c.until(&tenant, "half of the sessions are the candidate's", |s| s["percent"] == 50);
    let begun = Instant::now();
    let metric = |name: &str| c.operator.metric(name).unwrap_or_default();
    let (taken, timed) = ("remit_rollout_taken_back_total", "remit_rollout_rollback_seconds_count");
    let before = (metric(taken), metric(timed));
    // Whichever arm answers: the other one says in shadow that a write is newly allowed.
    let (status, body) = c.check(&token, &tenant, &call("coder", "files/write", json!({}))).await;
    assert_eq!(status, 200, "{body}");
    let id = body["context"]["decision_id"].as_str().unwrap().to_owned();
    let status =
        c.until(&tenant, "stable is back for everybody", |s| s["candidate"].is_null() && s["phase"] == "Degraded");
    eprintln!("from the bad decision to the status: {:?}", begun.elapsed());
    assert_eq!((&status["percent"], &status["stable"]["version"]), (&Value::Null, &json!("1.0.0")));
    let ready = condition(&status, "Ready");
    assert_eq!(ready["reason"], "BudgetExceeded");
    // Other tests may take something back meanwhile, and none puts it back.
    eventually_blocking("the metrics moved", || match (metric(taken), metric(timed)) {
        now if now.0 > before.0 && now.1 > before.1 => Ok(()),
        now => Err(format!("{before:?} {now:?}")),
    });
    let told = c.events(&tenant, "RolledBack").join("\n");
    for words in [id.as_str(), "tenant/core/writes", "criticalDrift is 1, budget at most 0"] {
        assert!(told.contains(words), "{words} in {told}");
        assert!(status["history"][0]["message"].as_str().unwrap().contains(words), "{words} in {status}");
    }
    assert!(ready["message"].as_str().unwrap().contains("criticalDrift is 1"), "{ready}");
    c.expect(&token, &tenant, "files/write", "no_permit").await;
    // It does not start again: not for a tool that applies it over and over, nor after everything was deleted and applied again.
    let revision = status["history"][0]["revision"].clone();
    for turn in 0..3 {
        if turn == 1 {
            c.kubectl(&["delete", "-n", &tenant, &package(&two).0]).unwrap();
            c.kubectl(&["delete", "tenantrollout", "default", "-n", &tenant]).unwrap();
        }
        c.apply(&tenant, &rollout(&[], gated(50))).unwrap();
        c.apply(&tenant, &objects).unwrap();
        let now = format!("reconcile.remit.dev/requestedAt={turn}");
        c.kubectl(&["annotate", "--overwrite", "tenantrollout/default", "-n", &tenant, &now]).unwrap();
        tokio::time::sleep(Duration::from_millis(700)).await;
        let status = c.until(&tenant, "it stays back", |s| s["phase"] == "Degraded");
        assert_eq!((&status["candidate"], &status["history"][0]["revision"]), (&Value::Null, &revision), "{status}");
        assert_eq!(condition(&status, "Ready")["reason"], "BudgetExceeded");
    }
    // Another spec may: a person has looked and means it.
    let mut meant = gated(50);
    meant["budgets"] = json!({"criticalDrift": 1000});
    c.apply(&tenant, &rollout(&[], meant)).unwrap();
    c.until(&tenant, "it starts under another spec", |s| s["percent"] == 50);
}

/// Entries of a crowd do not keep a person's from being handled; and nobody's entry is lost by Remit's own writes.
#[tokio::test]
async fn action_list_filled_to_block_rollback() {
    let c = cluster();
    let tenant = c.namespace("crowd").await;
    c.rolls_out_at_once(&tenant);
    let (one, two) = (spec("1.0.0", &[READS]), spec("1.1.0", &[READS, WRITES]));
    c.put(&tenant, &one);
    c.put(&tenant, &two);
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "crowd"},
        "rules": [
            {"apiGroups": ["remit.dev"], "resources": ["tenantrollouts", "tenantrollouts/status"], "verbs": ["get", "patch"]},
            {"apiGroups": ["remit.dev"], "resources": ["tenantrollouts"], "verbs": ["pause", "promote", "abort", "rollback"]},
        ],
    });
    c.apply(&tenant, &role.to_string()).unwrap();
    let users: Vec<String> = (0..4).map(|i| format!("mob-{i}-{tenant}")).collect();
    let mut binding = vec!["create", "rolebinding", "crowd", "-n", &tenant, "--role=crowd"];
    let flags: Vec<String> = users.iter().map(|u| format!("--user={u}")).collect();
    binding.extend(flags.iter().map(String::as_str));
    c.kubectl(&binding).unwrap();
    let ask = |user: &str, id: &str, action: &str, digest: Option<&str>| {
        let mut entry = json!({"id": id, "actor": user, "action": action, "reason": "because"});
        if let Some(digest) = digest {
            entry["digest"] = digest.into();
        }
        let body = json!({
            "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"},
            "status": {"actions": [entry]},
        });
        let (as_user, manager) = (format!("--as={user}"), format!("--field-manager={id}"));
        c.apply_with(&tenant, &body.to_string(), &["--server-side", "--subresource=status", &as_user, &manager])
            .unwrap();
    };
    let elsewhere = format!("sha256:{}", "0".repeat(64));
    for i in 0..12 {
        let action = ["promote", "abort", "rollback"][i % 3];
        ask(&users[i % 3], &format!("junk-{i}"), action, Some(&elsewhere));
    }
    ask(&users[3], "real", "rollback", Some(&digest(&two)));
    let status = c.until(&tenant, "everything is handled", |s| {
        s["handled"].as_array().is_some_and(|h| h.len() == 13) && s["actions"].as_array().is_none_or(Vec::is_empty)
    });
    assert_eq!(status["stable"]["version"], "1.0.0");
    for handled in status["handled"].as_array().unwrap() {
        let result = handled["result"].as_str().unwrap();
        let expected = if handled["id"] == "real" { "done: core 1.0.0 is in force" } else { "refused: " };
        assert!(result.starts_with(expected), "{handled}");
    }
    assert_eq!(condition(&status, "Ready")["reason"], "RolledBack");
}

/// A definition that is older than the operator drops a budget without a word: the operator says so and starts nothing.
#[tokio::test]
async fn budget_dropped_by_an_old_crd() {
    let c = Cluster::start_own();
    let tenant = c.namespace("old").await;
    c.put(&tenant, &spec("1.0.0", &[READS]));
    let name = "tenantrollouts.remit.dev";
    let newer = c.kubectl(&["get", "crd", name, "-o", "json"]).unwrap();
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/budgets/properties/criticalDrift";
    let older = json!([{"op": "remove", "path": path}]).to_string();
    c.kubectl(&["patch", "crd", name, "--type=json", "-p", &older]).unwrap();
    c.apply(&tenant, &package(&spec("1.1.0", &[READS, WRITES])).1).unwrap();
    c.stalled_for(&tenant, "OutdatedDefinition");
    let status = c.rollout(&tenant)["status"].clone();
    let message = condition(&status, "Ready")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("spec.budgets.criticalDrift"), "{message}");
    assert_eq!((&status["candidate"], &status["stable"]["version"]), (&Value::Null, &json!("1.0.0")));
    // With the definition that belongs to it the rollout starts.
    let newer: Value = serde_json::from_str(&newer).unwrap();
    let schema = json!({"spec": {"versions": newer["spec"]["versions"]}}).to_string();
    c.kubectl(&["patch", "crd", name, "--type=merge", "-p", &schema]).unwrap();
    c.until(&tenant, "it starts", |s| s["candidate"]["version"] == "1.1.0");
}

/// What stands in a status that somebody wrote over moves nobody for longer than the next pass.
#[tokio::test]
async fn forged_stage_in_status() {
    let c = cluster();
    let tenant = c.namespace("forged").await;
    c.apply(&tenant, &rollout(&[], gated(50))).unwrap();
    c.put(&tenant, &spec("1.0.0", &[READS]));
    c.apply(&tenant, &package(&spec("1.1.0", &[READS])).1).unwrap();
    let before = c.until(&tenant, "half of the sessions are the candidate's", |s| s["percent"] == 50);
    // Only Remit's own account may write these fields: a backup that is restored in its name, say.
    let remit = format!("--as=system:serviceaccount:{}:remit", crate::support::PLATFORM);
    let forged = json!({"status": {"percent": 100, "stage": 1, "epoch": 500}}).to_string();
    let patch = [
        "patch",
        "tenantrollout",
        "default",
        "-n",
        &tenant,
        "--subresource=status",
        "--type=merge",
        "-p",
        &forged,
        &remit,
    ];
    c.kubectl(&patch).unwrap();
    let after = c.until(&tenant, "it is put right", |s| s["percent"] == 50 && s["stage"] == 0);
    assert!(after["epoch"].as_i64().unwrap() > 500, "replicas that took it must take what is right: {after}");
    assert_eq!(after["candidate"], before["candidate"]);
}

/// Deleting the rollout, with the package's object gone before, loses neither what is in force nor what could be gone back to.
#[tokio::test]
async fn deleting_the_rollout_loses_no_bytes() {
    let c = cluster();
    let tenant = c.namespace("deleted").await;
    c.rolls_out_at_once(&tenant);
    let token = c.coder(&tenant).await;
    let (one, two) = (spec("1.0.0", &[READS]), spec("1.1.0", &[READS, WRITES]));
    for spec in [&one, &two] {
        c.put(&tenant, spec);
        // What an earlier release made belongs to the rollout.
        let uid =
            c.kubectl(&["get", "tenantrollout", "default", "-n", &tenant, "-o", "jsonpath={.metadata.uid}"]).unwrap();
        let kept = c.kubectl(&["get", "controllerrevisions", "-n", &tenant, "-o", "name"]).unwrap();
        let owner = json!({"metadata": {"ownerReferences": [{"apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout",
            "name": "default", "uid": uid}]}});
        let remit = format!("--as=system:serviceaccount:{}:remit", crate::support::PLATFORM);
        for name in kept.lines() {
            c.kubectl(&["patch", name, "-n", &tenant, "--type=merge", "-p", &owner.to_string(), &remit]).unwrap();
        }
    }
    for spec in [&one, &two] {
        c.kubectl(&["delete", "-n", &tenant, &package(spec).0]).unwrap();
    }
    // No garbage collector runs here: that nothing has an owner is what keeps it from taking anything.
    let kept = || {
        let text = c.kubectl(&["get", "controllerrevisions", "-n", &tenant, "-o", "json"]).unwrap();
        let all: Value = serde_json::from_str(&text).unwrap();
        all["items"].as_array().unwrap().clone()
    };
    eventually_blocking("nothing kept has an owner", || {
        let owned: Vec<Value> = kept().iter().map(|r| r["metadata"]["ownerReferences"].clone()).collect();
        if owned.len() == 2 && owned.iter().all(Value::is_null) { Ok(()) } else { Err(format!("{owned:?}")) }
    });
    let before = c.rollout(&tenant);
    c.kubectl(&["delete", "tenantrollout", "default", "-n", &tenant]).unwrap();
    let status = c.until(&tenant, "it is made anew", |s| s["stable"]["version"] == "1.1.0");
    assert_ne!(c.rollout(&tenant)["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(status["history"], before["status"]["history"]);
    c.expect(&token, &tenant, "files/write", "allowed").await;
    assert_eq!(kept().len(), 2);
    // By hand, and without the digest that is looked at it is refused by name.
    let undo = |digest: Option<&str>| {
        let mut entry =
            json!({"id": "undo", "actor": "kubernetes-admin", "action": "rollback", "reason": "writes are wrong"});
        entry["actor"] = c.kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).unwrap().into();
        if let Some(digest) = digest {
            entry["digest"] = digest.into();
        }
        let patch = json!([{"op": "add", "path": "/status/actions", "value": [entry]}]).to_string();
        c.kubectl(&[
            "patch",
            "tenantrollout",
            "default",
            "-n",
            &tenant,
            "--subresource=status",
            "--type=json",
            "-p",
            &patch,
        ])
    };
    let why = undo(None).unwrap_err();
    assert!(why.contains("digest is missing"), "{why}");
    undo(Some(&digest(&two))).unwrap();
    c.until(&tenant, "it is rolled back", |s| s["stable"]["version"] == "1.0.0");
    c.expect(&token, &tenant, "files/write", "no_permit").await;
}

/// What callers report of their calls is in the records and in no budget.
#[tokio::test]
async fn caller_supplied_error_rate() {
    let c = cluster();
    let tenant = c.namespace("outcomes").await;
    let stage = json!({"percent": 100, "minSeconds": 0, "minDecisions": 20, "gate": "Manual"});
    c.apply(&tenant, &rollout(&[], json!({"stages": [stage]}))).unwrap();
    c.put(&tenant, &spec("1.0.0", &[READS]));
    let token = c.coder(&tenant).await;
    c.expect(&token, &tenant, "files/read", "allowed").await;
    c.apply(&tenant, &package(&spec("1.1.0", &["// Said anew.", READS])).1).unwrap();
    c.until(&tenant, "all sessions are the candidate's", |s| s["percent"] == 100);
    for _ in 0..30 {
        let (status, body) = c.check(&token, &tenant, &call("coder", "files/read", json!({}))).await;
        assert_eq!((status, &body["decision"]), (200, &json!(true)), "{body}");
        let path = format!("/tenants/{tenant}/decisions/{}/outcome", body["context"]["decision_id"].as_str().unwrap());
        let said =
            c.http().post(&path, &token, &json!({"outcome": "tool_error", "duration_ms": 3_600_000})).await.unwrap();
        assert!(said.status < 300, "{} {}", said.status, said.text);
    }
    // They are counted, and what was said of them is not: it waits at its gate with nothing failed.
    let status = c.until(&tenant, "all are counted", |s| {
        let checks = s["verdict"]["checks"].as_array();
        let samples = checks.and_then(|all| all.iter().find(|k| k["name"] == "samples"));
        samples.is_some_and(|k| k["result"] == "Pass") && s["hold"]["reason"] == "Gate"
    });
    assert_eq!((&status["percent"], &status["candidate"]["version"]), (&json!(100), &json!("1.1.0")), "{status}");
    let failed = |k: &&Value| k["result"] == "Fail";
    let failed: Vec<&Value> = status["verdict"]["checks"].as_array().unwrap().iter().filter(failed).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

/// Packages whose tests take very long keep nobody from taking a candidate back: not the records, and not a person.
#[tokio::test]
async fn slow_packages_hold_up_no_rollback() {
    let c = cluster();
    let tenant = c.namespace("slow").await;
    c.apply(&tenant, &rollout(&[], gated(50))).unwrap();
    let token = c.coder(&tenant).await;
    let half =
        |version: &str| c.until(&tenant, version, |s| s["percent"] == 50 && s["candidate"]["version"] == version);
    c.put(&tenant, &spec("1.0.0", &[READS]));
    c.apply(&tenant, &package(&spec("1.1.0", &[READS, WRITES])).1).unwrap();
    half("1.1.0");
    // Admission looks at one package of a namespace at a time.
    let put_slow = |n| {
        let object = package(&slow(n)).1;
        eventually_blocking("a slow package is stored", || c.apply_with(&tenant, &object, &["--server-side"]));
    };
    for n in 0..7 {
        put_slow(n);
    }
    let (status, body) = c.check(&token, &tenant, &call("coder", "files/write", json!({}))).await;
    assert_eq!(status, 200, "{body}");
    let begun = Instant::now();
    c.until(&tenant, "a breach takes it back", |s| {
        s["candidate"].is_null() && s["history"][0]["cause"] == "BudgetExceeded"
    });
    eprintln!("from the bad decision to the status, beside slow packages: {:?}", begun.elapsed());
    // Another one starts beside them, and a person takes it back.
    c.apply(&tenant, &package(&spec("1.2.0", &["// The same, said anew.", READS])).1).unwrap();
    half("1.2.0");
    put_slow(8);
    let user = format!("ann-{tenant}");
    let rule = |resources: &[&str], verbs: &[&str]| json!({"apiGroups": ["remit.dev"], "resources": resources, "verbs": verbs});
    let rules =
        [rule(&["tenantrollouts", "tenantrollouts/status"], &["get", "patch"]), rule(&["tenantrollouts"], &["abort"])];
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "aborts"}, "rules": rules});
    c.apply(&tenant, &role.to_string()).unwrap();
    c.kubectl(&["create", "rolebinding", "aborts", "-n", &tenant, "--role=aborts", &format!("--user={user}")]).unwrap();
    let entry = json!({"id": "one", "actor": user, "action": "abort", "reason": "because"});
    let body = json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"},
        "status": {"actions": [entry]},
    });
    let (as_user, flags) = (format!("--as={user}"), ["--server-side", "--subresource=status", "--field-manager=ann"]);
    c.apply_with(&tenant, &body.to_string(), &[&flags[..], &[as_user.as_str()]].concat()).unwrap();
    let status = c.until(&tenant, "it is aborted", |s| s["candidate"].is_null() && s["handled"][0]["id"] == "one");
    assert_eq!((&status["stable"]["version"], &status["history"][0]["cause"]), (&json!("1.0.0"), &json!("Aborted")));
}

/// Below what is in force, with tests that each cost a quarter of what an evaluation may, so that all of them get no end in time.
fn slow(n: usize) -> remit::api::PolicyPackageSpec {
    let (pattern, text) = ("a".repeat(1_000), "a".repeat(4_000));
    let likes: Vec<String> =
        (0..8).map(|n| format!("context.arguments.getTag(\"x\") like \"*{pattern}{n}\"")).collect();
    let forbid = format!(
        "@id(\"slow\") forbid(principal, action, resource) when {{ context.arguments.hasTag(\"x\") && ({}) }};",
        likes.join(" || ")
    );
    let tests: Vec<String> = (0..200)
        .map(|n| format!("- {{name: t{n}, agent: x, call: {{tool: files/read, arguments: {{x: {text}}}}}, expect: {{decision: allow}}}}"))
        .collect();
    let mut spec = spec(&format!("0.1.{n}"), &[READS, &forbid]);
    spec.tests = vec![remit::api::SourceFile { name: "tests/a.yaml".into(), text: tests.join("\n") }];
    spec
}
