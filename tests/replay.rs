//! Replays on a real API server: the object, the routes and the command, over decisions that agents really asked for.

use hyper::Method;
use serde_json::{Value, json};

use crate::support::folder::{Folder, remit};
use crate::support::{Cluster, call, cluster, eventually};

const POLICIES: &str = r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
@id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write") when { principal.trust >= 3 };
@id("admins") permit(principal, action == Action::"call_tool", resource in ToolGroup::"admin");
@id("ask-admin") @require_approval("leads") forbid(principal, action == Action::"call_tool", resource in ToolGroup::"admin");
"#;

fn package(version: &str, policies: &str) -> String {
    let tools = json!([{"name": "git/log", "tier": "read"}, {"name": "git/push", "tier": "write"}, {"name": "git/gc", "tier": "admin"}]);
    let spec = json!({"package": "first", "version": version, "tools": tools,
        "policies": [{"name": "main.cedar", "text": policies}]});
    object("PolicyPackage", &format!("first-{version}"), spec)
}

fn object(kind: &str, name: &str, spec: Value) -> String {
    json!({"apiVersion": "remit.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}).to_string()
}

/// Looser in two ways: writes at trust 2, and nobody is asked about admin tools.
fn looser() -> String {
    let loose = POLICIES.replace("principal.trust >= 3", "principal.trust >= 2");
    loose.split("@id(\"ask-admin\")").next().unwrap().to_owned()
}

/// A tenant whose agent has made four calls under 1.0.0, and a candidate 2.0.0 that does not come into force.
async fn tenant(c: &Cluster) -> String {
    let tenant = c.namespace("replay").await;
    let spec = json!({"identities": [{"serviceAccount": "coder"}], "trustLevel": 2});
    c.apply(&tenant, &object("Agent", "coder", spec)).unwrap();
    c.apply(&tenant, &object("TenantRollout", "default", json!({"package": {"name": "first", "version": "=1.0.0"}})))
        .unwrap();
    c.apply(&tenant, &package("1.0.0", POLICIES)).unwrap();
    let token = c.token_for(&tenant, "coder", "remit").await;
    c.answered(&token, &tenant, &call("coder", "git/log", json!({})), "allowed").await;
    c.call(&token, &tenant, "coder", "git/push", json!({"branch": "main-secret"})).await;
    c.call(&token, &tenant, "coder", "git/gc", json!({})).await;
    c.call(&token, &tenant, "coder", "git/unlisted", json!({})).await;
    c.apply(&tenant, &package("2.0.0", &looser())).unwrap();
    tenant
}

fn status(c: &Cluster, tenant: &str, name: &str) -> Value {
    let text = c.kubectl(&["get", "policyreplay", name, "-n", tenant, "-o", "json"]).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["status"].clone()
}

#[tokio::test]
async fn a_policy_replay_says_what_a_candidate_would_have_done() {
    let c = cluster();
    let tenant = tenant(c).await;
    let spec = json!({
        "candidate": {"name": "first", "version": "=2.0.0"},
        "selection": {"tools": ["git/log", "git/push", "git/gc"]},
        "invariants": [{"name": "no_write_privilege_escalation"}, {"name": "unknown_tools_denied"},
            {"name": "juniors-no-admin", "agentTrustBelow": 3, "tier": "admin", "expect": "neverAllowAlone"}],
    });
    c.apply(&tenant, &object("PolicyReplay", "looser", spec.clone())).unwrap();
    c.wait_for(&tenant, "policyreplay/looser", "Ready");
    let s = status(c, &tenant, "looser");
    let counts = &s["counts"];
    assert!(counts["replayed"].as_i64().unwrap() >= 3, "{s}");
    assert_eq!(counts["critical"], 2, "{s}");
    // Asked before Remit knew the agent.
    let because = counts["notReplayableBecause"].as_object().cloned().unwrap_or_default();
    assert!(because.keys().all(|why| why == "refused"), "{s}");
    assert_eq!((&s["state"], &s["verdict"]), (&json!("completed"), &json!("fail")), "{s}");
    assert_eq!(counts["causes"], json!({"access_expanded": 1, "approval_removed": 1}), "{s}");
    // Whoever may read the object need not be one who may read decisions: no row, no agent and no tool stands in it.
    assert_eq!(s["invariantsFailed"], json!(["no_write_privilege_escalation", "juniors-no-admin"]), "{s}");
    for row in ["coder", "git/", "tenant/first/", "main-secret"] {
        assert!(!s.to_string().contains(row), "{row} is in {s}");
    }
    // The report has them.
    let reader = c.token_for(&tenant, "reader", "remit-admin").await;
    c.bind(&tenant, "remit-viewer", "reader");
    c.bind(&tenant, "remit-auditor", "reader");
    let path = format!("/admin/replay/runs/{}/report?tenant={tenant}", s["run"].as_str().unwrap());
    let report = eventually("the reader's rights count", || async {
        let answer = c.http().get(&path, &reader).await?;
        if answer.status == 200 { Ok(answer.json()) } else { Err(answer.text) }
    })
    .await;
    let worst = report["worst"].to_string();
    for part in
        ["git/push", "(write): denied (no_permit) before, allowed by tenant/first/writes now", "tenant/first/ask-admin"]
    {
        assert!(worst.contains(part), "{part} is missing in {worst}");
    }
    assert!(!report.to_string().contains("main-secret"), "an argument's value: {report}");
    for n in [0, 2] {
        let broken = report["invariants"][n]["counterExample"].as_str().unwrap();
        assert!(broken.starts_with("Decision "), "{broken}");
    }

    // The same again comes to the same; against itself nothing differs; and what nothing was recorded of says nothing.
    for (name, spec, verdict) in [
        ("itself", json!({"candidate": {"name": "first", "version": "=1.0.0"}}), "pass"),
        ("nothing", json!({"candidate": {"version": "=2.0.0"}, "selection": {"agents": ["nobody"]}}), "inconclusive"),
    ] {
        c.apply(&tenant, &object("PolicyReplay", name, spec)).unwrap();
        c.wait_for(&tenant, &format!("policyreplay/{name}"), "Ready");
        assert_eq!(status(c, &tenant, name)["verdict"], verdict, "{}", status(c, &tenant, name));
    }

    // What is asked for does not change, and must mean something.
    let changed = json!({"candidate": {"version": "=1.0.0"}});
    let refused = c.apply(&tenant, &object("PolicyReplay", "looser", changed)).unwrap_err();
    assert!(refused.contains("spec cannot be changed"), "{refused}");
    for (invariant, why) in [
        (json!({"name": "no_escalation"}), "unknown invariant"),
        (json!({"name": "unknown_tools_denied", "expect": "neverAllow"}), "unknown invariant"),
        (json!({"name": "unknown_tools_denied", "tier": "admin"}), "stand only beside expect"),
    ] {
        let spec = json!({"candidate": {}, "invariants": [invariant]});
        let refused = c.apply(&tenant, &object("PolicyReplay", "wrong", spec)).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    // A package that is not there yet may come: it says so, and goes on by itself.
    c.apply(&tenant, &object("PolicyReplay", "early", json!({"candidate": {"version": "=3.0.0"}}))).unwrap();
    c.wait_for(&tenant, "policyreplay/early", "Stalled");
    // Nor is one replayed that was not accepted: a policy that anybody writes would read what was recorded.
    c.apply(&tenant, &package("0.9.0", &looser())).unwrap();
    let spec = json!({"candidate": {"version": "=0.9.0"}});
    c.apply(&tenant, &object("PolicyReplay", "refused", spec)).unwrap();
    eventually("it says that the package is not accepted", || async {
        let s = status(c, &tenant, "refused").to_string();
        if s.contains("package first-0.9.0 is not accepted: Downgrade") { Ok(()) } else { Err(s) }
    })
    .await;
    c.apply(&tenant, &package("3.0.0", POLICIES)).unwrap();
    c.wait_for(&tenant, "policyreplay/early", "Ready");
}

#[tokio::test]
async fn run_of_another_tenant() {
    let c = cluster();
    let (mine, other) = (tenant(c).await, c.namespace("replay-other").await);
    c.apply(&other, &object("Agent", "thief", json!({"trustLevel": 1}))).unwrap();
    let http = c.http();
    let owner = c.token_for(&mine, "owner", "remit-admin").await;
    let thief = c.token_for(&other, "thief", "remit-admin").await;
    let body = |tenant: &str| json!({"tenant": tenant, "candidate": {"version": "=2.0.0"}, "invariants": [{"name": "write_tools_need_approval"}]});
    assert_eq!(
        http.post("/admin/replay/runs", &owner, &body(&mine)).await.unwrap().status,
        403,
        "nobody gave it the right"
    );
    c.bind(&mine, "remit-tenant-editor", "owner");
    c.bind(&other, "remit-tenant-editor", "thief");
    c.bind(&other, "remit-auditor", "thief");
    // Who may write packages and ask for replays learns by them what was recorded, and must be one who may read it.
    let refused = eventually("the editor's own right counts", || async {
        let answer = http.post("/admin/replay/runs", &owner, &body(&mine)).await?;
        if answer.text.contains("decisions.remit.dev") { Ok(answer.status) } else { Err(answer.text) }
    })
    .await;
    assert_eq!(refused, 403);
    c.bind(&mine, "remit-auditor", "owner");
    let begun = eventually("the run is taken", || async {
        let answer = http.post("/admin/replay/runs", &owner, &body(&mine)).await?;
        if answer.status == 202 { Ok(answer) } else { Err(format!("{} {}", answer.status, answer.text)) }
    })
    .await;
    let run = begun.json();
    let id = run["id"].as_str().unwrap().to_owned();
    let place = format!("/admin/replay/runs/{id}?tenant={mine}");
    assert_eq!(begun.headers["location"], place.as_str());
    let done = eventually("the run is completed", || async {
        let answer = http.get(&place, &owner).await?;
        if answer.json()["state"] == "completed" { Ok(answer.json()) } else { Err(answer.text) }
    })
    .await;
    assert_eq!(done["progress"]["done"], done["progress"]["total"], "{done}");
    let report = http.get(&format!("/admin/replay/runs/{id}/report?tenant={mine}"), &owner).await.unwrap();
    let json = report.json();
    assert_eq!((&json["verdict"], &json["inputFingerprint"]), (&json!("fail"), &done["inputFingerprint"]), "{json}");
    assert!(json["counts"]["selected"].as_i64().unwrap() >= 4 && !report.text.contains("main-secret"), "{json}");
    assert!(json["invariants"][0]["counterExample"].as_str().unwrap().contains("git/"), "{json}");

    let path = format!("/admin/replay/runs/{id}/report?tenant={mine}");
    let page = http.send(Method::GET, &path, Some(&owner), &[("accept", "text/html")], "").await.unwrap();
    assert_eq!(page.status, 200);
    assert!(page.headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    assert!(page.text.contains("tenant/first/ask-admin") && !page.text.contains("<script"), "{}", page.text);

    // The attack: another tenant's admin has the id. In their own namespace there is no such run; in this one they may not ask.
    for path in [format!("/admin/replay/runs/{id}"), format!("/admin/replay/runs/{id}/report")] {
        eventually("the thief's own right counts", || async {
            let answer = http.get(&format!("{path}?tenant={other}"), &thief).await?;
            if answer.status == 404 && answer.json()["code"] == "unknown_run" { Ok(()) } else { Err(answer.text) }
        })
        .await;
        assert_eq!(http.get(&format!("{path}?tenant={mine}"), &thief).await.unwrap().status, 403);
        assert_eq!(http.get(&path, &owner).await.unwrap().status, 400, "no tenant is named");
    }
    for (wrong, field) in [
        (json!({"tenant": mine, "candidate": {"version": "=9.9.9"}}), "candidate"),
        (json!({"tenant": mine, "candidate": {"version": "=2.0.0"}, "id": id}), "id"),
        (json!({"tenant": mine, "candidate": {"version": "=2.0.0"}, "selection": {"limit": 0}}), "selection.limit"),
        (
            json!({"tenant": mine, "candidate": {"version": "=2.0.0"}, "invariants": [{"name": "nonsense"}]}),
            "invariants",
        ),
        (json!({"candidate": {"version": "=2.0.0"}}), "tenant"),
    ] {
        let answer = http.post("/admin/replay/runs", &owner, &wrong).await.unwrap();
        assert_eq!(answer.status, 400, "{wrong}: {}", answer.text);
        assert!(answer.json()["message"].as_str().unwrap().contains(field), "{wrong}: {}", answer.text);
    }
}

#[tokio::test]
async fn the_command_replays_a_file_and_a_server_alike() {
    let c = cluster();
    let tenant = tenant(c).await;
    let kept = crate::checks::list(c, &tenant, "limit=1000").await;
    let token = c.token_for(&tenant, "auditor", "remit-admin").await;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, text) in [
        ("1.json", package("1.0.0", POLICIES)),
        ("2.json", package("2.0.0", &looser())),
        ("decisions.json", json!({"items": kept}).to_string()),
        ("lines.json", kept.iter().map(|d| format!("{d}\n")).collect()),
        ("none.json", String::new()),
        ("token", token),
        ("ca.pem", c.ca().to_owned()),
    ] {
        std::fs::write(at(name), text).unwrap();
    }
    let replay = |decisions: &str, more: &[&str]| {
        let out = remit()
            .args(["replay", "--baseline"])
            .arg(at("1.json"))
            .arg("--candidate")
            .arg(at("2.json"))
            .args(["--decisions", decisions, "-n", &tenant])
            .args(more)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        (out.status.code(), text, String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let path = |name: &str| at(name).display().to_string();
    let (code, text, error) = replay(&path("decisions.json"), &["-o", "json", "--invariant", "unknown_tools_denied"]);
    assert_eq!(code, Some(1), "{error}");
    let one: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&one["verdict"], &one["counts"]["critical"]), (&json!("fail"), &json!(2)), "{one}");
    assert_eq!(one["invariants"][0]["holds"], true, "{one}");
    let (token, ca) = (path("token"), path("ca.pem"));
    let from = |decisions: &str| {
        let args = ["-o", "json", "--threads", "3", "--token-file", &token, "--ca-file", &ca];
        let (_, text, error) = replay(decisions, &args);
        serde_json::from_str::<Value>(&text).unwrap_or_else(|e| panic!("{e}: {error}"))
    };
    let (lines, server) = (from(&path("lines.json")), from(&c.url()));
    assert_eq!(lines["resultFingerprint"], server["resultFingerprint"], "{lines}\n{server}");
    let (code, page, _) = replay(&path("lines.json"), &["-o", "html"]);
    assert!(code == Some(1) && page.starts_with("<!doctype html>") && !page.contains("<script"), "{page}");
    let (code, text, _) = replay(&path("none.json"), &[]);
    assert!(code == Some(1) && text.contains("inconclusive"), "an empty replay is no pass: {text}");
    let (code, _, error) = replay(&path("lines.json"), &["--invariant", "no_escalation"]);
    assert!(code == Some(2) && error.contains("no_escalation"), "{error}");
    let (code, text, _) = replay(&path("lines.json"), &["--tool", "git/log"]);
    assert!(code == Some(0) && text.contains("pass") && text.contains("critical 0"), "{text}");
}

/// A folder's server has the routes too.
#[tokio::test]
async fn a_served_folder_replays_its_own_decisions() {
    let folder = Folder::new(&[
        ("main.cedar", POLICIES),
        (
            "agents.yaml",
            "apiVersion: remit.dev/v1alpha1\nkind: Agent\nmetadata: {name: coder}\nspec: {trustLevel: 2}\n",
        ),
    ]);
    let serve = folder.serve();
    let run = |args: &[&str]| remit().args(args).arg("--policy").arg(folder.path()).output().unwrap();
    assert_eq!(run(&["check", "--agent", "coder", "--tool", "git/log"]).status.code(), Some(0));
    let (http, token) = (serve.http(), folder.token("admin-token"));
    let shown: Value = {
        let out = run(&["decisions", "list", "-o", "json"]);
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let record = &shown["items"][0]["record"];
    let digest = &record["digests"]["tenant"][0];
    let body = json!({"tenant": record["tenant"], "candidate": {"digest": digest}});
    let (status, run) = crate::support::folder::ask(&http, &token, "/admin/replay/runs", Some(&body)).await.unwrap();
    assert_eq!(status, 202, "{run}");
    let path = run["status"].as_str().unwrap().to_owned();
    let done = eventually("the replay is completed", || async {
        let (_, run) = crate::support::folder::ask(&http, &token, &path, None).await?;
        if run["state"] == "completed" { Ok(run) } else { Err(run.to_string()) }
    })
    .await;
    let (_, report) = crate::support::folder::ask(&http, &token, done["report"].as_str().unwrap(), None).await.unwrap();
    assert_eq!((&report["verdict"], &report["counts"]["same"]), (&json!("pass"), &json!(1)), "{report}");
}
