//! What people change by hand, over HTTP and by `remit`, on a real control plane: each time the next answer of a check is another one, and
//! the history says who did it.

use std::process::{Command, Output};

use hyper::Method;
use remit::api::PolicyPackageSpec;
use remit::policy::digest;
use serde_json::{Value, json};

use crate::operator::{READS, WRITES, package, spec};
use crate::support::{Cluster, Http, cluster, eventually, eventually_blocking, token_kubeconfig};

/// Lets writes through only from trust 3 on.
const STRICT: &str = r#"@id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write")
  when { principal.trust >= 3 };"#;

/// A tenant with an agent `coder` (trust 2), its token, and a person with roles of the chart.
struct World<'a> {
    c: &'a Cluster,
    tenant: String,
    coder: String,
    /// Of ServiceAccount `person`, audience `remit-admin`.
    person: String,
    http: Http,
}

impl<'a> World<'a> {
    async fn new(c: &'a Cluster, roles: &[&str]) -> World<'a> {
        let tenant = c.namespace("by-hand").await;
        c.rolls_out_at_once(&tenant);
        let coder = c.coder(&tenant).await;
        let person = c.token_for(&tenant, "person", "remit-admin").await;
        for role in roles {
            c.bind(&tenant, role, "person");
        }
        World { c, tenant, coder, person, http: c.http() }
    }

    fn path(&self, rest: &str) -> String {
        format!("/admin/tenants/{}{rest}", self.tenant)
    }

    async fn get(&self, rest: &str) -> (u16, Value) {
        let answer = self.http.get(&self.path(rest), &self.person).await.unwrap();
        (answer.status, answer.json())
    }

    async fn post(&self, rest: &str, body: Value) -> (u16, Value) {
        let answer = self.http.post(&self.path(rest), &self.person, &body).await.unwrap();
        (answer.status, answer.json())
    }

    async fn expect(&self, tool: &str, code: &str) {
        self.c.expect(&self.coder, &self.tenant, tool, code).await;
    }

    /// The versions of a policy once there are so many.
    async fn versions(&self, policy: &str, count: usize) -> Vec<Value> {
        let rest = format!("/policies/{policy}/versions");
        eventually(&format!("{policy} has {count} versions"), || async {
            let (status, body) = self.get(&rest).await;
            match body["items"].as_array() {
                Some(items) if items.len() == count => Ok(items.clone()),
                _ => Err(format!("{status} {body}")),
            }
        })
        .await
    }

    fn remit(&self, args: &[&str]) -> Output {
        let folder = self.c.plane.attached(&self.tenant);
        let (ca, token) = (folder.join("ca.crt"), folder.join("token"));
        std::fs::write(&ca, self.c.ca()).unwrap();
        std::fs::write(&token, &self.person).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        command.env("REMIT_URL", self.c.url()).env("REMIT_CA_FILE", ca).env("REMIT_ADMIN_TOKEN_FILE", token);
        command.env("KUBECONFIG", folder.join("kubeconfig")).env("REMIT_TENANT", &self.tenant).args(args);
        command.output().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn named(package_version: &str, policies: &[&str], tier: &str) -> PolicyPackageSpec {
    let mut spec = spec(package_version, policies);
    spec.tools[1] = serde_json::from_value(json!({"name": "files/write", "tier": tier})).unwrap();
    spec
}

const ROLES: &[&str] = &["remit-viewer", "remit-rollout-operator"];

#[tokio::test]
async fn a_deleted_policy_comes_back_and_the_next_call_goes_through() {
    let c = cluster();
    let w = World::new(c, ROLES).await;
    let (one, two, three) =
        (spec("1.0.0", &[READS, WRITES]), spec("1.1.0", &[READS, STRICT]), named("1.2.0", &[READS], "admin"));
    for spec in [&one, &two, &three] {
        c.put(&w.tenant, spec);
    }
    w.expect("files/write", "no_permit").await;
    let versions = w.versions("writes", 3).await;
    let of = |field: &str| versions.iter().map(|v| v[field].clone()).collect::<Vec<_>>();
    assert_eq!(of("change"), ["delete", "update", "create"]);
    assert_eq!(of("version"), [3, 2, 1]);
    assert_eq!(of("after"), [digest(&three), digest(&two), digest(&one)].map(Value::from));
    // Who applied it is known from admission: kubectl as administrator.
    let applied_by = versions[2]["applied_by"].as_str().unwrap();
    assert!(!applied_by.is_empty() && !applied_by.starts_with("field manager"), "{applied_by}");
    let diff = w.http.get(&w.path("/policies/writes/diff?from=1&to=2"), &w.person).await.unwrap();
    assert!(diff.text.contains("+  when { principal.trust >= 3 };"), "{}", diff.text);

    // Revision 1 has version 1, with another tier of the tool besides.
    let ask = |acknowledge: Value| json!({"version": 1, "reason": "writes stopped", "acknowledge": acknowledge});
    let (status, body) = w.post("/policies/writes/rollback", ask(json!([]))).await;
    assert_eq!((status, &body["code"]), (409, &json!("other_changes")), "{body}");
    assert_eq!(body["changes"], json!([{"acknowledge": "tool:files/write", "change": "tier admin becomes write"}]));
    assert_eq!(w.versions("writes", 3).await.len(), 3, "nothing has changed");
    let (status, body) = w.post("/policies/writes/rollback", ask(body["acknowledge"].clone())).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!((&body["before"], &body["after"]), (&json!(digest(&three)), &json!(digest(&one))));
    w.expect("files/write", "allowed").await;
    let newest = w.versions("writes", 4).await[0].clone();
    let person = format!("system:serviceaccount:{}:person", w.tenant);
    assert_eq!((&newest["change"], &newest["rolled_back_by"]), (&json!("rollback"), &json!(person)));
    assert!(newest["reason"].as_str().unwrap().contains("writes stopped"), "{newest}");
    assert_eq!((&newest["before"], &newest["after"]), (&json!(digest(&three)), &json!(digest(&one))));
    assert_eq!(newest["sha256"], versions[2]["sha256"]);

    // The rollout says who, and a tool that applies the same manifests again changes nothing.
    let (_, rollouts) = w.get("/rollouts").await;
    assert_eq!((&rollouts["items"][0]["in_force"], &rollouts["items"][0]["version"]), (&json!(true), &json!("1.0.0")));
    c.apply(&w.tenant, &package(&three).1).unwrap();
    let handled = &c.rollout(&w.tenant)["status"]["handled"][0];
    assert_eq!((&handled["actor"], &handled["via"]), (&json!(person), &json!("http")), "{handled}");
    w.expect("files/write", "allowed").await;

    assert_eq!(w.post("/policies/writes/rollback", json!({"version": 9, "reason": "r"})).await.0, 404);
    assert_eq!(w.post("/policies/none/rollback", json!({"version": 1, "reason": "r"})).await.0, 404);
}

#[tokio::test]
async fn wrong_tenant_rollback() {
    let c = cluster();
    let (mine, other) = (World::new(c, ROLES).await, World::new(c, ROLES).await);
    for w in [&mine, &other] {
        c.put(&w.tenant, &spec("1.0.0", &[READS, WRITES]));
        c.put(&w.tenant, &spec("1.1.0", &[READS]));
        w.versions("writes", 2).await;
    }
    let before = c.rollout(&other.tenant)["status"].clone();
    let body = json!({"reason": "not mine", "version": 1}).to_string();
    let json = [("content-type", "application/json")];
    for rest in ["/rollouts/2/rollback", "/rollouts/2/abort", "/policies/writes/rollback", "/rollouts"] {
        let answer =
            mine.http.send(Method::POST, &other.path(rest), Some(&mine.person), &json, body.clone()).await.unwrap();
        assert_eq!((answer.status, &answer.json()["code"]), (404, &json!("unknown_tenant")), "{rest}: {}", answer.text);
    }
    for rest in [
        "/rollouts",
        "/rollouts/2",
        "/rollouts/2/package",
        "/rollouts/observability",
        "/policies",
        "/policies/writes/versions",
    ] {
        let answer = mine.http.get(&other.path(rest), &mine.person).await.unwrap();
        assert_eq!(answer.status, 404, "{rest}: {}", answer.text);
    }
    let after = c.rollout(&other.tenant)["status"].clone();
    assert_eq!(
        (&after["stable"], &after["handled"], &after["epoch"]),
        (&before["stable"], &before["handled"], &before["epoch"])
    );
    other.expect("files/write", "no_permit").await;
}

#[tokio::test]
async fn a_rollout_is_asked_for_and_undone_by_http() {
    let c = cluster();
    let w = World::new(c, ROLES).await;
    c.put(&w.tenant, &spec("1.0.0", &[READS]));
    let next = spec("1.1.0", &[READS, WRITES]);
    let pin = |version: &str| {
        let patch = json!({"spec": {"package": {"name": "core", "version": version}}}).to_string();
        c.kubectl(&["patch", "tenantrollout", "default", "-n", &w.tenant, "--type=merge", "-p", &patch]).unwrap();
    };
    pin("=1.0.0");
    c.apply(&w.tenant, &package(&next).1).unwrap();
    w.expect("files/write", "no_permit").await;
    // Whoever may steer a rollout may not choose its package by that.
    let ask = json!({"package": {"name": "core", "version": "=1.1.0"}});
    let (status, body) = w.post("/rollouts", ask.clone()).await;
    assert_eq!((status, &body["code"]), (403, &json!("not_allowed")), "{body}");
    c.bind(&w.tenant, "remit-tenant-editor", "person");
    let created = eventually("the right is known", || async {
        let (status, body) = w.post("/rollouts", ask.clone()).await;
        if status == 202 { Ok(body) } else { Err(format!("{status} {body}")) }
    });
    created.await;
    w.expect("files/write", "allowed").await;
    let rollout =
        c.kubectl(&["get", "tenantrollout", "default", "-n", &w.tenant, "-o", "json", "--show-managed-fields"]);
    let rollout: Value = serde_json::from_str(&rollout.unwrap()).unwrap();
    assert_eq!(rollout["spec"]["package"], ask["package"]);
    let managers = rollout["metadata"]["managedFields"].as_array().unwrap();
    assert!(managers.iter().any(|m| m["manager"] == "remit-http"), "{managers:?}");
    let (_, body) = w.get("/rollouts").await;
    let id = body["items"].as_array().unwrap().iter().find(|r| r["in_force"] == true).unwrap()["id"].as_i64().unwrap();
    let (status, body) = w.get(&format!("/rollouts/{id}")).await;
    assert_eq!((status, &body["progress"], &body["version"]), (200, &json!("completed"), &json!("1.1.0")), "{body}");
    assert!(body["steps"].as_array().is_some_and(|s| !s.is_empty()), "{body}");
    let (status, body) = w.get(&format!("/rollouts/{id}/package")).await;
    assert_eq!((status, body["policies"].clone()), (200, serde_json::to_value(&next.policies).unwrap()));
    assert_eq!(w.get("/rollouts/observability").await.0, 200);

    assert_eq!(w.post(&format!("/rollouts/{id}/rollback"), json!({})).await.0, 400, "a reason is needed");
    assert_eq!(w.post(&format!("/rollouts/{}/rollback", id + 7), json!({"reason": "r"})).await.0, 404);
    let (status, body) = w.post(&format!("/rollouts/{id}/rollback"), json!({"reason": "writes are wrong"})).await;
    assert_eq!(status, 200, "{body}");
    w.expect("files/write", "no_permit").await;
    // The manifest that Git still has names the version that was left: it does not come back by being applied again.
    pin("=1.1.0");
    assert_eq!(
        w.post(&format!("/rollouts/{id}/rollback"), json!({"reason": "again"})).await.0,
        409,
        "it is not in force any more"
    );
    w.expect("files/write", "no_permit").await;
}

#[tokio::test]
async fn kubectl_remit_steers_a_rollout() {
    let c = cluster();
    let w = World::new(c, &["remit-viewer"]).await;
    c.put(&w.tenant, &spec("1.0.0", &[READS]));
    c.put(&w.tenant, &spec("1.1.0", &[READS, WRITES]));
    w.expect("files/write", "allowed").await;
    let person = c.kubectl(&["create", "token", "person", "-n", &w.tenant]).unwrap();
    let kubeconfig = c.plane.attached(&w.tenant).join("kubeconfig");
    std::fs::write(&kubeconfig, token_kubeconfig(&c.plane, &person)).unwrap();
    let status = w.remit(&["rollout", "status", "-n", &w.tenant]);
    assert_eq!(status.status.code(), Some(0), "{}", text(&status.stderr));
    assert!(text(&status.stdout).contains("in force:   core 1.1.0"), "{}", text(&status.stdout));
    // Without the role the command says what is missing, and changes nothing.
    let undo = ["rollout", "rollback", "-n", &w.tenant, "--reason", "writes are wrong"];
    let refused = w.remit(&undo);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stdout));
    assert!(text(&refused.stderr).contains("remit-rollout-operator"), "{}", text(&refused.stderr));
    let writes = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "status"}, "rules": [
        {"apiGroups": ["remit.dev"], "resources": ["tenantrollouts/status"], "verbs": ["get", "patch"]}]});
    c.apply(&w.tenant, &writes.to_string()).unwrap();
    let account = format!("--serviceaccount={}:person", w.tenant);
    c.kubectl(&["create", "rolebinding", "status", "-n", &w.tenant, "--role=status", &account]).unwrap();
    eventually_blocking("the verb is named", || {
        let refused = w.remit(&undo);
        match text(&refused.stderr) {
            why if why.contains("rollback needs verb rollback on tenantrollouts.remit.dev") => Ok(()),
            why => Err(why),
        }
    });
    w.expect("files/write", "allowed").await;
    c.bind(&w.tenant, "remit-rollout-operator", "person");
    eventually_blocking("it is rolled back", || {
        let done = w.remit(&undo);
        if done.status.code() == Some(0) {
            Ok(())
        } else {
            Err(format!("{}{}", text(&done.stdout), text(&done.stderr)))
        }
    });
    w.expect("files/write", "no_permit").await;
    let nothing = w.remit(&["rollout", "promote", "-n", &w.tenant]);
    assert!(text(&nothing.stderr).contains("no rollout is under way"), "{}", text(&nothing.stderr));

    // The twins over HTTP: versions, difference, the former package as a folder.
    let versions = w.remit(&["policy", "versions", "writes", "-o", "json"]);
    let versions: Value =
        serde_json::from_slice(&versions.stdout).unwrap_or_else(|_| panic!("{}", text(&versions.stderr)));
    assert_eq!(versions["items"][0]["change"], "rollback", "{versions}");
    assert_eq!(versions["items"][0]["deleted"], true, "{versions}");
    let diff = w.remit(&["policy", "diff", "writes", "1", "2"]);
    assert!(text(&diff.stdout).contains("-@id(\"writes\")"), "{}{}", text(&diff.stdout), text(&diff.stderr));
    let folder = c.plane.attached(&w.tenant).join("again");
    let written = w.remit(&["package", "rollback", "--to", "2", folder.to_str().unwrap()]);
    assert_eq!(written.status.code(), Some(0), "{}", text(&written.stderr));
    let main = std::fs::read_to_string(folder.join("a.cedar")).unwrap();
    assert!(main.contains("@id(\"writes\")"), "{main}");
    let back = w.remit(&["policy", "rollback", "writes", "1", "--reason", "they were right"]);
    assert_eq!(back.status.code(), Some(0), "{}{}", text(&back.stdout), text(&back.stderr));
    w.expect("files/write", "allowed").await;
}

/// What was right when it came into force, and fails its tests under the platform's package of today, does not come back: not over HTTP, not
/// by an entry.
#[tokio::test]
async fn a_revision_that_fails_its_tests_today_does_not_come_back() {
    let forbid =
        r#"@id("no-writes") forbid(principal, action == Action::"call_tool", resource in ToolGroup::"write");"#;
    let mut platform = spec("1.0.0", &[forbid]);
    platform.tools.clear();
    let declared = format!("--platform-package=core@{}", digest(&platform));
    let c = Cluster::start_own_with(&[&declared]);
    let w = World::new(&c, ROLES).await;
    // As long as the declared package is not there, tests run under the base package alone.
    let mut one = spec("1.0.0", &[READS, WRITES]);
    let test = "- name: coder writes\n  agent: {name: coder, trust: 2}\n  call: {tool: files/write}\n  expect: {decision: allow}\n";
    one.tests = serde_json::from_value(json!([{"name": "tests/a.yaml", "text": test}])).unwrap();
    c.put(&w.tenant, &one);
    c.apply(crate::support::PLATFORM, &package(&platform).1).unwrap();
    w.expect("files/write", "denied_by_policy").await;
    c.put(&w.tenant, &spec("1.1.0", &[READS]));
    c.put(&w.tenant, &spec("1.2.0", &[&format!("// Said anew.\n{READS}")]));
    w.versions("writes", 2).await;
    let revisions = |body: &Value| {
        body["items"].as_array().unwrap().iter().filter(|r| r["progress"] == "completed").cloned().collect::<Vec<_>>()
    };
    let (_, before) = w.get("/rollouts").await;
    let before = revisions(&before);
    let (newest, oldest) = (before[0]["id"].clone(), before[before.len() - 1]["id"].clone());
    let (status, body) = w.post("/policies/writes/rollback", json!({"version": 1, "reason": "writes stopped"})).await;
    assert_eq!((status, &body["code"]), (422, &json!("package_refused")), "{body}");
    assert!(body["message"].as_str().unwrap().contains("coder writes"), "{body}");
    let back = format!("/rollouts/{newest}/rollback");
    let (status, body) = w.post(&back, json!({"to": oldest, "reason": "writes stopped"})).await;
    assert_eq!((status, &body["code"]), (409, &json!("action_refused")), "{body}");
    assert!(body["message"].as_str().unwrap().contains("can't come into force as things are today"), "{body}");
    let (_, after) = w.get("/rollouts").await;
    assert_eq!(revisions(&after), before, "nothing has changed");
    // What passes goes back as ever.
    let (status, body) = w.post(&back, json!({"reason": "to the one before"})).await;
    assert_eq!(status, 200, "{body}");
}

/// A rollout with a gate in each stage, held, moved on and ended by CLI and over HTTP.
#[tokio::test]
async fn a_rollout_is_held_moved_on_and_ended_by_cli_and_http() {
    let c = cluster();
    let w = World::new(c, &["remit-viewer", "remit-rollout-operator", "remit-rollout-overrider"]).await;
    let person = c.kubectl(&["create", "token", "person", "-n", &w.tenant]).unwrap();
    std::fs::write(c.plane.attached(&w.tenant).join("kubeconfig"), token_kubeconfig(&c.plane, &person)).unwrap();
    let stage = |percent| json!({"percent": percent, "minSeconds": 0, "minDecisions": 0, "gate": "Manual"});
    let stages = json!({"spec": {"stages": [stage(5), stage(50), stage(100)]}}).to_string();
    c.kubectl(&["patch", "tenantrollout", "default", "-n", &w.tenant, "--type=merge", "-p", &stages]).unwrap();
    c.put(&w.tenant, &spec("1.0.0", &[READS]));
    let status = || c.rollout(&w.tenant)["status"].clone();
    let until = |what: &str, right: &dyn Fn(&Value) -> bool| {
        eventually_blocking(what, || match status() {
            s if right(&s) => Ok(s),
            s => Err(s.to_string()),
        })
    };
    let cli = |args: &[&str]| {
        let done = w.remit(&[&["rollout"], args, &["-n", &w.tenant]].concat());
        (done.status.code(), format!("{}{}", text(&done.stdout), text(&done.stderr)))
    };
    let waits = |percent: i64| {
        until(&format!("it waits at {percent} %"), &|s| s["percent"] == percent && s["hold"]["reason"] == "Gate")
    };
    let next =
        |version: &str| c.apply(&w.tenant, &package(&spec(version, &[&format!("// {version}"), READS])).1).unwrap();

    // By CLI: on, held, not on while held, let go, and ended.
    next("1.1.0");
    waits(5);
    let (code, said) = cli(&["promote"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(waits(50)["handled"][0]["stage"], 1, "the stage that was looked at");
    assert_eq!(cli(&["pause"]).0, Some(0));
    let (code, said) = cli(&["promote"]);
    assert!(code == Some(1) && said.contains("resume it first"), "{said}");
    assert_eq!(cli(&["resume"]).0, Some(0));
    assert_eq!(cli(&["abort", "--reason", "not this one"]).0, Some(0));
    let ended = until("it is ended", &|s| s["candidate"].is_null() && s["phase"] == "Degraded");
    assert_eq!((&ended["stable"]["version"], &ended["percent"]), (&json!("1.0.0"), &Value::Null));
    // `promote --full` needs a reason, and then nothing else.
    next("1.2.0");
    waits(5);
    assert_eq!(cli(&["promote", "--full"]).0, Some(2));
    let (code, said) = cli(&["promote", "--full", "--reason", "known good"]);
    assert_eq!(code, Some(0), "{said}");
    let full = until("it is in force", &|s| s["stable"]["version"] == "1.2.0" && s["candidate"].is_null());
    assert_eq!(full["history"][0]["cause"], "PromotedUnchecked");

    // The same over HTTP.
    next("1.3.0");
    let id = waits(5)["candidate"]["revision"].as_i64().unwrap();
    let act = |action: &str| format!("/rollouts/{id}/{action}");
    for (action, body, wanted, percent) in [
        ("promote", json!({}), 200, 50),
        ("pause", json!({}), 200, 50),
        ("promote", json!({}), 409, 50),
        ("resume", json!({}), 200, 50),
        ("abort", json!({}), 400, 50),
        ("promote", json!({"full": true}), 400, 50),
        ("promote", json!({}), 200, 100),
    ] {
        let (status, said) = w.post(&act(action), body).await;
        assert_eq!(status, wanted, "{action}: {said}");
        until(action, &|s| s["percent"] == percent);
    }
    let (code, said) = w.post(&act("abort"), json!({"reason": "at the last moment"})).await;
    assert_eq!(code, 200, "{said}");
    let ended = until("it is ended", &|s| s["candidate"].is_null());
    assert_eq!(ended["stable"]["version"], "1.2.0");
    next("1.4.0");
    let id = waits(5)["candidate"]["revision"].as_i64().unwrap();
    let (code, said) = w.post(&format!("/rollouts/{id}/promote"), json!({"full": true, "reason": "known good"})).await;
    assert_eq!(code, 200, "{said}");
    until("it is in force", &|s| s["stable"]["version"] == "1.4.0");
}
