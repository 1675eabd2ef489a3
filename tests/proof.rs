//! `remit prove`, as a person and a pipeline run it: with the worker as a process of its own and the real solver.

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::support::folder::{Folder, remit};

const BASELINE: &str = r#"
@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
@id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write") when { principal.trust >= 2 };
@id("ask") @require_approval("leads") forbid(principal, action == Action::"call_tool", resource in ToolGroup::"write");
"#;

fn said(out: &Output) -> (Option<i32>, String) {
    let text = [&out.stdout[..], &out.stderr[..]].map(String::from_utf8_lossy).concat();
    (out.status.code(), text)
}

/// Two packages: the first as it is, the second as `change` leaves its policies.
fn folders(change: impl FnOnce(&str) -> String) -> (Folder, Folder) {
    let changed = change(BASELINE);
    (Folder::new(&[("main.cedar", BASELINE)]), Folder::new(&[("main.cedar", changed.as_str())]))
}

fn prove(baseline: &Path, candidate: &Path, args: &[&str]) -> (Option<i32>, String) {
    let out = remit()
        .arg("prove")
        .args([Path::new("--baseline"), baseline, Path::new("--candidate"), candidate])
        .args(args)
        .output()
        .unwrap();
    said(&out)
}

#[test]
fn prove_exits_by_the_verdict_and_shows_the_call() {
    let (old, new) = folders(|text| text.replace(">= 2", ">= 1"));
    let (code, text) = prove(old.path(), new.path(), &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("alone: equivalent\nwith approval: expands\n"), "asked either way: {text}");
    assert!(text.contains("an agent (trust 1) calls git/push: before denied, no policy permits it"), "{text}");
    // The other way round it restricts.
    let (code, text) = prove(new.path(), old.path(), &["-o", "json"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &document["passed"]), (Some(0), &json!(true)), "{text}");
    assert_eq!(document["proof"]["withApproval"], "restricts");
    let (code, text) = prove(old.path(), old.path(), &["--require"]);
    assert!(code == Some(0) && text.contains("alone: equivalent\nwith approval: equivalent\n"), "{text}");
}

#[test]
fn prove_holds_a_candidate_to_its_invariants() {
    let (old, _) = folders(str::to_owned);
    let kept = r#"{"name": "low", "agentTrustBelow": 2, "tier": "write", "expect": "neverAllow"}"#;
    let (code, text) = prove(old.path(), old.path(), &["--invariant", kept, "--invariant", "unknown_tools_denied"]);
    assert!(code == Some(0) && text.contains("low holds") && text.contains("unknown_tools_denied holds"), "{text}");
    let (code, text) = prove(old.path(), old.path(), &["--invariant", &kept.replace("2", "3")]);
    assert!(code == Some(1) && text.contains("low FAILS: an agent (trust 2) calls git/push"), "{text}");
    old.write("invariants.yaml", "- {name: alone, tool: git/push, expect: neverAllowAlone}\n");
    let file = old.path().join("invariants.yaml");
    let (new, _) = folders(str::to_owned);
    let (code, text) = prove(new.path(), new.path(), &["--invariant", file.to_str().unwrap()]);
    assert!(code == Some(0) && text.contains("alone holds"), "{text}");
    let (code, text) = prove(new.path(), new.path(), &["--invariant", "no_such_thing"]);
    assert!(code == Some(2) && text.contains("unknown invariant"), "{text}");
}

#[test]
fn what_is_not_proved_fails_only_where_a_proof_is_required() {
    let (old, new) = folders(|text| text.replace(">= 2", ">= 3"));
    let (code, text) = prove(old.path(), new.path(), &["--solver", "/nowhere/cvc5"]);
    assert!(code == Some(0) && text.contains("alone: unknown") && text.contains("/nowhere/cvc5"), "{text}");
    let (code, _) = prove(old.path(), new.path(), &["--solver", "/nowhere/cvc5", "--require"]);
    assert_eq!(code, Some(1));
    let missing = remit()
        .args(["prove", "--require", "--baseline"])
        .args([old.path(), Path::new("--candidate"), new.path()])
        .env("PATH", "/nowhere")
        .env_remove("REMIT_CVC5")
        .output()
        .unwrap();
    let (code, text) = said(&missing);
    assert!(code == Some(1) && text.contains("Debian: package cvc5"), "{text}");
    // A solver that never answers is ended within the time, and nothing is left behind.
    let dir = tempfile::tempdir().unwrap();
    let (pid, solver) = (dir.path().join("pid"), dir.path().join("solver.sh"));
    std::fs::write(&solver, format!("#!/bin/sh\necho $$ > {}\nexec /bin/sleep 1000\n", pid.display())).unwrap();
    std::fs::set_permissions(&solver, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (code, text) = prove(old.path(), new.path(), &["--solver", solver.to_str().unwrap(), "--timeout", "2"]);
    assert!(code == Some(0) && text.contains("alone: unknown"), "{text}");
    let pid = std::fs::read_to_string(&pid).unwrap();
    assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists(), "it still runs");
}

#[test]
fn prove_refuses_what_is_no_package() {
    let (old, new) = folders(|_| "this is not Cedar".into());
    let (code, text) = prove(old.path(), new.path(), &[]);
    assert!(code == Some(2) && text.contains("candidate: "), "{text}");
    let (code, text) = prove(old.path(), Path::new("/nowhere"), &[]);
    assert!(code == Some(2) && text.contains("/nowhere"), "{text}");
    let (code, text) = prove(old.path(), old.path(), &["--timeout", "0"]);
    assert!(code == Some(2) && text.contains("--timeout"), "{text}");
}
