//! `remit check`: against a folder, against a running `remit serve`, and against a cluster.

use std::process::Output;

use serde_json::{Value, json};

use crate::support::folder::{Folder, remit};
use crate::support::{call, cluster};

const POLICIES: &str = r#"
@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
@id("pushes") permit(principal, action == Action::"call_tool", resource == Tool::"git/push");
@id("no-force") @code("no-force") @reason("Open a pull request instead.")
forbid(principal, action == Action::"call_tool", resource)
when { context.arguments.hasTag("force") && context.arguments.getTag("force") == "true" };
"#;
const AGENT: &str = "apiVersion: remit.dev/v1alpha1\nkind: Agent\nmetadata: {name: coder}\nspec: {trustLevel: 2}\n";

fn said(out: &Output) -> (Option<i32>, String) {
    let text = [&out.stdout[..], &out.stderr[..]].map(String::from_utf8_lossy).concat();
    (out.status.code(), text)
}

#[test]
fn check_of_a_folder_exits_by_the_decision() {
    let folder = Folder::new(&[("main.cedar", POLICIES), ("agents.yaml", AGENT)]);
    let check = |args: &[&str]| {
        let args = [&["check"], args, &["--policy"]].concat();
        said(&folder.remit(&args))
    };
    // Once by itself, and once with a Remit that serves the folder.
    let mut serve = None;
    for _ in 0..2 {
        let (code, text) = check(&["--tool", "git/log"]);
        assert!(
            code == Some(0) && text.contains("allow: coder calls git/log") && text.contains("tenant/tools/reads"),
            "{text}"
        );
        let (code, text) = check(&["--tool", "git/push", "--arg", "force:=true", "--agent", "coder"]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("Open a pull request instead.") && text.contains("Rule:       no-force"), "{text}");
        let (code, text) = check(&["--tool", "git/push", "--arg", "force:=false", "-o", "json"]);
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, &document["decision"], &document["code"]), (Some(0), &json!("allow"), &json!("allowed")));
        assert_eq!(document["id"].as_str().map(str::len), Some(36));
        let (code, text) = check(&["--tool", "git/log", "--on-behalf-of", "alice"]);
        assert_eq!(code, Some(2), "an agent that acts for nobody: the question is refused: {text}");
        let (code, text) = check(&["--tool", "git/log", "--arg", "a=1", "--arg", "a=2"]);
        assert!(code == Some(2) && text.contains("--arg a: is given twice"), "{text}");
        serve.get_or_insert_with(|| folder.serve());
    }
    let (code, text) = said(&remit().args(["check", "--tool", "git/log"]).output().unwrap());
    assert!(code == Some(2) && text.contains("--policy DIR, or --remit URL"), "{text}");
    folder.write("agents.yaml", "kind: Agent\n");
    let (code, text) = check(&["--tool", "git/log"]);
    assert!(code == Some(2) && text.contains("agents.yaml:1:"), "{text}");
}

#[tokio::test]
async fn check_in_a_cluster_makes_its_own_short_token() {
    let c = cluster();
    let tenant = c.namespace("check").await;
    let package = json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "PolicyPackage", "metadata": {"name": "tools-1"},
        "spec": {"package": "tools", "version": "1.0.0", "policies": [{"name": "main.cedar", "text": POLICIES}],
            "tools": [{"name": "git/log", "tier": "read"}, {"name": "git/push", "tier": "write"}]},
    });
    c.apply(&tenant, AGENT).unwrap();
    c.apply(&tenant, &package.to_string()).unwrap();
    c.wait_for(&tenant, "tenantrollout/default", "Ready");
    let gateway = c.token_for(&tenant, "gateway", "remit").await;
    c.bind(&tenant, "remit-gateway", "gateway");
    c.answered(&gateway, &tenant, &call("coder", "git/log", json!({})), "allowed").await;

    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), c.ca()).unwrap();
    let check = |account: &str, more: &[&str]| {
        let out = remit()
            .args(["check", "--agent", "coder", "--remit", &c.url(), "--as-serviceaccount", account, "--ca-file"])
            .arg(ca.path())
            .args(more)
            .env("KUBECONFIG", c.plane.kubeconfig())
            .output()
            .unwrap();
        said(&out)
    };
    let account = format!("{tenant}/gateway");
    let (code, text) = check(&account, &["--tool", "git/log"]);
    assert!(code == Some(0) && text.contains("tenant/tools/reads"), "{text}");
    let (code, text) = check(&account, &["--tool", "git/push", "--arg", "force:=true"]);
    assert!(code == Some(1) && text.contains("no-force"), "{text}");
    let (code, text) = check(&format!("{tenant}/nobody"), &["--tool", "git/log"]);
    assert!(code == Some(2) && text.contains("no token") && text.contains("nobody"), "{text}");
    assert!(!text.contains("eyJ"), "{text}");
}
