//! `remit why`, `who-can`, `what-can` and the runner of `remit test`: against a folder, against a running `remit serve`, and against a
//! cluster with its routes for admins.

use std::process::Output;

use serde_json::{Value, json};

use crate::support::folder::{Folder, remit};
use crate::support::{Cluster, PLATFORM, call, cluster, eventually};

const POLICIES: &str = r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
@id("writes")
permit(principal, action == Action::"call_tool", resource in ToolGroup::"write") when { principal.trust >= 3 };
@id("no-force") @code("no-force-here") @reason("Open a pull request instead.") @sensitive("password")
forbid(principal, action == Action::"call_tool", resource)
when { context.arguments.hasTag("command") && context.arguments.getTag("command") like "*--force*" }
unless { context.arguments.hasTag("password") && context.arguments.getTag("password") == "let-me" };
"#;
const AGENTS: &str = "apiVersion: remit.dev/v1alpha1\nkind: Agent\nmetadata: {name: coder}\nspec: {trustLevel: 2}\n---\n\
    apiVersion: remit.dev/v1alpha1\nkind: Agent\nmetadata: {name: chief}\nspec: {trustLevel: 3}\n---\n\
    apiVersion: remit.dev/v1alpha1\nkind: Agent\nmetadata: {name: fresh}\nspec: {trustLevel: 0}\n";

fn folder() -> Folder {
    Folder::new(&[("main.cedar", POLICIES), ("agents.yaml", AGENTS)])
}

fn said(out: &Output) -> (Option<i32>, String) {
    let text = [&out.stdout[..], &out.stderr[..]].map(String::from_utf8_lossy).concat();
    (out.status.code(), text)
}

/// A command with more words after the folder.
fn run(folder: &Folder, command: &str, more: &[&str]) -> (Option<i32>, String) {
    said(&remit().arg(command).args(more).arg("--policy").arg(folder.path()).output().unwrap())
}

/// Asks, and gives the decision's id.
fn decided(folder: &Folder, agent: &str, tool: &str, arguments: &[&str]) -> String {
    let arguments = arguments.iter().flat_map(|a| ["--arg", a]);
    let args: Vec<&str> = ["--agent", agent, "--tool", tool, "-o", "json"].into_iter().chain(arguments).collect();
    let (_, text) = run(folder, "check", &args);
    let document: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    document["id"].as_str().unwrap().to_owned()
}

#[test]
fn why_of_a_folder_shows_the_place_and_the_values() {
    let folder = folder();
    // Once by itself, and once with a Remit that serves the folder.
    let mut serve = None;
    for _ in 0..2 {
        decided(&folder, "coder", "git/push", &[]);
        let (code, text) = run(&folder, "why", &[]);
        assert_eq!(code, Some(0), "{text}");
        for part in [
            "deny (no_permit)",
            "1. tenant/tools/writes  main.cedar:3:1",
            "when { principal.trust >= 3 };",
            "^^^^^^^^^^^^^^^^^^^^",
            "principal.trust = 2",
            "2. tenant/tools/reads",
            "resource is in [ToolGroup::\"write\"]",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        let id = decided(&folder, "chief", "git/push", &["command=git push --force", "password=hunter2"]);
        let (code, text) = run(&folder, "why", &[&id]);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("forbid tenant/tools/no-force  main.cedar:5:1"), "{text}");
        assert!(text.contains("\"Open a pull request instead.\"") && text.contains("= \"git push --force\""), "{text}");
        assert!(text.contains("not kept") && !text.contains("hunter2"), "{text}");
        serve.get_or_insert_with(|| folder.serve());
    }
    let unknown = decided(&folder, "coder", "git/psuh", &[]);
    let (_, text) = run(&folder, "why", &[&unknown, "-o", "json"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["code"], "unknown_tool");
    assert!(document["advice"][0].as_str().unwrap().contains("Perhaps git/push is meant."), "{text}");
    let (code, text) = run(&folder, "why", &["01900000-0000-7000-8000-000000000000"]);
    assert!(code == Some(2) && text.contains("no decision with this id"), "{text}");
}

/// What an agent is told to take to a person is what that person asks about.
#[test]
fn why_without_an_id_takes_what_needs_an_approval_too() {
    let asks = r#"@id("all") permit(principal, action == Action::"call_tool", resource);
@id("ask") @require_approval("leads") forbid(principal, action == Action::"call_tool", resource in ToolGroup::"write");
"#;
    let folder = Folder::new(&[("main.cedar", asks), ("agents.yaml", AGENTS)]);
    decided(&folder, "coder", "git/psuh", &[]);
    let id = decided(&folder, "coder", "git/push", &[]);
    let (code, text) = run(&folder, "why", &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(&id) && text.starts_with("approval_required"), "{text}");
}

#[test]
fn why_says_so_when_nothing_was_denied_or_the_text_is_gone() {
    let folder = folder();
    decided(&folder, "coder", "git/log", &[]);
    let (code, text) = run(&folder, "why", &[]);
    assert!(code == Some(1) && text.contains("No decision of tenant"), "{text}");
    let id = decided(&folder, "coder", "git/push", &[]);
    folder.write("main.cedar", &POLICIES.replace("trust >= 3", "trust >= 4"));
    let (code, text) = run(&folder, "why", &[&id]);
    assert!(code == Some(0) && text.contains("is gone") && !text.contains("trust >= 4"), "{text}");
    // The very text again is the very digest.
    folder.write("main.cedar", POLICIES);
    let (_, text) = run(&folder, "why", &[&id]);
    assert!(text.contains("principal.trust = 2"), "{text}");
}

#[test]
fn who_can_and_what_can_say_on_what_it_depends() {
    let folder = folder();
    let (code, text) = run(&folder, "who-can", &["git/push"]);
    assert_eq!(code, Some(0), "{text}");
    let line = text.lines().find(|l| l.starts_with("chief ")).unwrap_or_else(|| panic!("{text}"));
    assert!(
        line.contains("maybe") && line.contains("forbid no-force: ") && line.contains("like \"*--force*\""),
        "{line}"
    );
    assert!(!text.contains("coder") && !text.contains("fresh"), "{text}");
    let (code, text) = run(&folder, "what-can", &["coder", "-o", "json"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &document["results"]), (Some(0), &json!([{"type": "tool", "id": "git/log"}])), "{text}");
    assert_eq!(document["details"][0]["tier"], "read");
    let (code, text) = run(&folder, "what-can", &["fresh"]);
    assert!(code == Some(1) && text.contains("no tool"), "{text}");
    let (code, text) = run(&folder, "what-can", &[]);
    assert!(code == Some(2) && text.contains("several Agents"), "{text}");
    let (code, text) = said(&remit().args(["who-can", "git/push"]).output().unwrap());
    assert!(code == Some(2) && text.contains("--policy DIR, or --remit URL"), "{text}");
}

#[test]
fn test_runner_has_lines_a_diff_coverage_and_junit() {
    let folder = folder();
    let test = |more: &[&str]| said(&remit().arg("test").arg(folder.path()).args(more).output().unwrap());
    folder.write("tests/a.yaml", "- {name: reads, agent: x, call: {tool: git/log}, expect: {decision: allow}}\n");
    let (code, text) = test(&[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("ok    reads  tests/a.yaml:1\n"), "{text}");
    assert!(text.contains("1 of 1 tests passed; 1 of 3 policies decided one"), "{text}");
    assert!(text.contains("No test is decided by: writes (main.cedar:3:1), no-force (main.cedar:5:1)"), "{text}");
    folder
        .write("tests/b.yaml", "- {name: 'is <wrong>', agent: x, call: {tool: git/push}, expect: {decision: allow}}\n");
    let junit = folder.path().join("junit.xml");
    let (code, text) = test(&["--junit", junit.to_str().unwrap(), "--coverage"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("FAIL  is <wrong>  tests/b.yaml:1\n      - decision: allow\n      + decision: deny\n"),
        "{text}"
    );
    assert!(text.contains("     0  tenant/tools/no-force"), "{text}");
    let xml = std::fs::read_to_string(&junit).unwrap();
    assert!(xml.contains("failures=\"1\"") && xml.contains("name=\"is &lt;wrong&gt;\""), "{xml}");
    std::fs::remove_file(&junit).unwrap();
    let (code, text) = test(&["--filter", "reads"]);
    assert!(code == Some(0) && !text.contains("wrong"), "{text}");
    let (code, text) = test(&["--filter", "nothing-is-called-so"]);
    assert!(code == Some(2) && text.contains("--filter"), "{text}");
    let (_, text) = test(&["-o", "json"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    let first = &document["packages"][0];
    assert_eq!((&document["passed"], first["tests"].as_array().map(Vec::len)), (&json!(false), Some(2)), "{text}");
    assert_eq!(first["coverage"]["neverDecisive"], json!(["tenant/tools/writes", "tenant/tools/no-force"]));
}

fn object(kind: &str, name: &str, spec: Value) -> String {
    json!({"apiVersion": "remit.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}).to_string()
}

fn package(version: &str, policies: &str) -> String {
    let spec = json!({
        "package": "first", "version": version,
        "tools": [{"name": "git/log", "tier": "read"}, {"name": "git/push", "tier": "write"}],
        "policies": [{"name": "main.cedar", "text": policies}],
    });
    object("PolicyPackage", &format!("first-{version}"), spec)
}

/// A tenant with `coder` (trust 2), `fresh` (trust 0) and the package; the tokens of both.
async fn tenant(c: &Cluster) -> (String, String, String) {
    let tenant = c.namespace("why").await;
    for (name, trust) in [("coder", 2), ("fresh", 0)] {
        let spec = json!({"identities": [{"serviceAccount": name}], "trustLevel": trust});
        c.apply(&tenant, &object("Agent", name, spec)).unwrap();
    }
    c.apply(&tenant, &package("1.0.0", POLICIES)).unwrap();
    c.wait_for(&tenant, "tenantrollout/default", "Ready");
    let (coder, fresh) = (c.token_for(&tenant, "coder", "remit").await, c.token_for(&tenant, "fresh", "remit").await);
    c.answered(&coder, &tenant, &call("coder", "git/log", json!({})), "allowed").await;
    (tenant, coder, fresh)
}

/// Why, for a reader; polled until the record and the reader's rights are there.
async fn explained(c: &Cluster, tenant: &str, reader: &str, id: &str) -> Value {
    let path = format!("/admin/tenants/{tenant}/decisions/{id}/why");
    let http = c.http();
    eventually("the decision is explained", || async {
        let answer = http.get(&path, reader).await?;
        if answer.status == 200 { Ok(answer.json()) } else { Err(format!("{} {}", answer.status, answer.text)) }
    })
    .await
}

#[tokio::test]
async fn why_in_a_cluster_is_for_readers_and_the_platforms_text_for_the_platforms() {
    let c = cluster();
    let (tenant, coder, fresh) = tenant(c).await;
    let id = |answer: &Value| answer["context"]["decision_id"].as_str().unwrap().to_owned();
    let denied = id(&c.call(&coder, &tenant, "coder", "git/push", json!({})).await);
    let platforms = id(&c.answered(&fresh, &tenant, &call("fresh", "git/log", json!({})), "denied_by_policy").await);

    let reader = c.token_for(&tenant, "reader", "remit-admin").await;
    let path = format!("/admin/tenants/{tenant}/decisions/{denied}/why");
    assert_eq!(c.http().get(&path, &reader).await.unwrap().status, 403, "nobody gave it the right");
    assert_eq!(c.http().get(&path, &coder).await.unwrap().status, 401, "the agent has its reason, code and id");
    c.bind(&tenant, "remit-auditor", "reader");
    let why = explained(c, &tenant, &reader, &denied).await;
    assert_eq!(why["nearest"][0]["policy"], "tenant/first/writes", "{why}");
    assert_eq!(why["nearest"][0]["failed"]["facts"][0], json!({"path": "principal.trust", "value": "2"}), "{why}");
    assert_eq!(why["nearest"][0]["failed"]["source"]["line"], 3, "{why}");

    let why = explained(c, &tenant, &reader, &platforms).await;
    assert_eq!(why["determining"][0]["policy"], "platform/base/trust-zero", "{why}");
    assert!(why["determining"][0]["reason"].as_str().is_some_and(|r| r.contains("trust level 0")), "{why}");
    assert!(!why.to_string().contains("base.cedar") && !why.to_string().contains("principal.trust"), "{why}");
    // Who reads the platform's decisions, too, sees the platform's text.
    c.bind(PLATFORM, "remit-auditor", &format!("{tenant}:reader"));
    let path = format!("/admin/tenants/{tenant}/decisions/{platforms}/why");
    let http = c.http();
    let why = eventually("the right in the operator's namespace counts", || async {
        let answer = http.get(&path, &reader).await?;
        if answer.text.contains("base.cedar") { Ok(answer.json()) } else { Err(answer.text) }
    })
    .await;
    assert_eq!(why["determining"][0]["facts"][0], json!({"path": "principal.trust", "value": "0"}), "{why}");
}

/// The package that decided has left force, and its object is gone: a ControllerRevision still has the text.
#[tokio::test]
async fn why_in_a_cluster_explains_by_the_package_that_decided() {
    let c = cluster();
    let (tenant, coder, _) = tenant(c).await;
    let denied = c.call(&coder, &tenant, "coder", "git/push", json!({})).await;
    let id = denied["context"]["decision_id"].as_str().unwrap().to_owned();
    c.rolls_out_at_once(&tenant);
    c.apply(&tenant, &package("1.1.0", &POLICIES.replace("principal.trust >= 3", "principal.trust >= 2"))).unwrap();
    c.answered(&coder, &tenant, &call("coder", "git/push", json!({})), "allowed").await;
    c.kubectl(&["delete", "policypackage", "first-1.0.0", "-n", &tenant]).unwrap();
    let reader = c.token_for(&tenant, "reader", "remit-admin").await;
    c.bind(&tenant, "remit-auditor", "reader");
    let why = explained(c, &tenant, &reader, &id).await;
    assert_eq!(why["nearest"][0]["failed"]["text"], "principal.trust >= 3", "{why}");
}

#[tokio::test]
async fn search_in_a_cluster_finds_what_a_check_would_allow() {
    let c = cluster();
    let (tenant, coder, fresh) = tenant(c).await;
    let tools = |agent: &str| json!({"subject": {"type": "agent", "id": agent}, "action": {"name": "call_tool"}, "resource": {"type": "tool"}});
    let http = c.http();
    let found = http.post("/access/v1/search/resource", &coder, &tools("coder")).await.unwrap();
    assert_eq!(found.json()["results"], json!([{"type": "tool", "id": "git/log"}]), "{}", found.text);
    let none = http.post("/access/v1/search/resource", &fresh, &tools("fresh")).await.unwrap();
    assert_eq!((none.status, &none.json()["results"]), (200, &json!([])), "{}", none.text);
    let path = format!("/tenants/{tenant}/access/v1/search/resource");
    assert_eq!(http.post(&path, &coder, &tools("fresh")).await.unwrap().status, 403, "an agent asks only about itself");
    let patch = r#"{"spec":{"trustLevel":3}}"#;
    c.kubectl(&["patch", "agent", "coder", "-n", &tenant, "--type=merge", "-p", patch]).unwrap();
    eventually("the raised trust opens the other tool", || async {
        let found = http.post(&path, &coder, &tools("coder")).await?;
        if found.text.contains("git/push") { Ok(()) } else { Err(found.text) }
    })
    .await;
}
