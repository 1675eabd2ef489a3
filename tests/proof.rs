//! `remit prove`, as a person and a pipeline run it: with the worker as a process of its own and the real solver.

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::operator::{READS, WRITES, package, spec};
use crate::support::folder::{Folder, remit};
use crate::support::{cluster, eventually_blocking};

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
    let (pid, nice, solver) = (dir.path().join("pid"), dir.path().join("nice"), dir.path().join("solver.sh"));
    let script =
        format!("#!/bin/sh\necho $$ > {}\n/usr/bin/nice > {}\nexec /bin/sleep 1000\n", pid.display(), nice.display());
    std::fs::write(&solver, script).unwrap();
    std::fs::set_permissions(&solver, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (code, text) = prove(old.path(), new.path(), &["--solver", solver.to_str().unwrap(), "--timeout", "2"]);
    assert!(code == Some(0) && text.contains("alone: unknown"), "{text}");
    let pid = std::fs::read_to_string(&pid).unwrap();
    assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists(), "it still runs");
    assert_eq!(std::fs::read_to_string(&nice).unwrap().trim(), "15", "checks come first");
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

/// Three recorded calls of a trust-2 agent: two reads, one push.
fn recorded(folder: &Folder) -> String {
    folder.write(
        "agents.yaml",
        "apiVersion: remit.dev/v1alpha1\nkind: Agent\nmetadata: {name: coder}\nspec: {trustLevel: 2}\n",
    );
    for tool in ["git/log", "git/log", "git/push"] {
        folder.remit(&["check", "--tool", tool, "--policy"]);
    }
    let (code, text) = said(&folder.remit(&["decisions", "list", "-o", "json", "--policy"]));
    assert_eq!(code, Some(0), "{text}");
    text
}

#[test]
fn diff_puts_tests_proof_and_replay_into_one_comment() {
    let (old, new) =
        folders(|text| text.replace(r#"resource in ToolGroup::"read""#, r#"resource in ToolGroup::"none""#));
    let dir = tempfile::tempdir().unwrap();
    let decisions = dir.path().join("decisions.json");
    std::fs::write(&decisions, recorded(&old)).unwrap();
    let diff = |args: &[&str]| {
        let out = remit()
            .arg("diff")
            .args([Path::new("--baseline"), old.path(), Path::new("--candidate"), new.path()])
            .args([Path::new("--decisions"), &decisions])
            .args(["--min-decisions", "3"])
            .args(args)
            .output()
            .unwrap();
        said(&out)
    };
    let (code, text) = diff(&[]);
    assert_eq!(code, Some(0), "reads are of severity medium: {text}");
    assert!(text.starts_with("## Remit: tools 1.0.0 → 1.0.0: within the budgets\n"), "{text}");
    assert!(text.contains("Permits no new call: that is proved over all calls."), "{text}");
    assert!(text.contains("Denies 2 of 3 recorded decisions"), "{text}");
    assert!(text.contains("calls git/log: before allowed by tenant/tools/reads"), "{text}");
    let (code, text) = diff(&["--format", "json", "--proof", "no-expansion"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &document["passed"], &document["proof"]["alone"]), (Some(0), &json!(true), &json!("restricts")));
    assert_eq!(document["replay"]["counts"]["replayed"], 3);
    // Invariants are judged over all calls, and over the recorded ones.
    let (code, text) = diff(&[
        "--invariant",
        "write_tools_need_approval",
        "--invariant",
        r#"{"name":"no-push","tool":"git/push","expect":"neverAllow"}"#,
    ]);
    assert!(code == Some(1) && text.contains("no-push: "), "{text}");
    // Of a rollout count its budgets, by the names that its status has, unless an option says otherwise.
    let rollout = dir.path().join("rollout.yaml");
    let with = |spec: &str| {
        std::fs::write(
            &rollout,
            format!("kind: TenantRollout\napiVersion: remit.dev/v1alpha1\nmetadata: {{name: default}}\nspec: {spec}\n"),
        )
        .unwrap()
    };
    let by_rollout = ["--rollout", rollout.to_str().unwrap()];
    with(r#"{replay: {invariants: [{name: no-push, tool: git/push, expect: neverAllow}]}}"#);
    let (code, text) = diff(&by_rollout);
    assert!(code == Some(1) && text.contains("| replayInvariants | 1 | at most 0 | **FAILED**: no-push"), "{text}");
    with("{replay: {minDecisions: 9}, budgets: {highDrift: 0}}");
    let (code, text) = diff(&[&by_rollout[..], &["--require"]].concat());
    assert!(code == Some(0) && text.contains("at least 3") && text.contains("at most 0"), "{text}");
    with("{budgets: {highDrif: 0}}");
    let (code, text) = diff(&by_rollout);
    assert!(code == Some(2) && text.contains("spec.budgets.highDrif: unknown field"), "{text}");
    let (code, text) = diff(&["--high-drift", "many"]);
    assert!(code == Some(2) && text.contains("--high-drift"), "{text}");
    std::fs::write(&decisions, "[1]").unwrap();
    let (code, text) = diff(&[]);
    assert!(code == Some(2) && text.contains("not a decision"), "{text}");
}

/// The steps of examples/ci, run as a runner would: in a checkout, with a branch that changes policy.
#[test]
fn the_ci_example_leaves_one_comment_and_fails_on_a_budget() {
    let workflow = std::fs::read_to_string(crate::support::root().join("examples/ci/policy.yaml")).unwrap();
    let workflow: Value = serde_saphyr::from_str(&workflow).unwrap();
    let steps = workflow["jobs"]["diff"]["steps"].as_array().unwrap();
    let runs: Vec<(&str, &str)> =
        steps.iter().filter_map(|s| Some((s["name"].as_str().unwrap_or("?"), s["run"].as_str()?))).collect();
    assert_eq!(runs.len(), 4);
    let dir = tempfile::tempdir().unwrap();
    let (bin, temp, checkout) = (dir.path().join("bin"), dir.path().join("temp"), dir.path().join("checkout"));
    for folder in [&bin, &temp, &checkout.join("policy")] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_remit"), bin.join("remit")).unwrap();
    let gh = bin.join("gh");
    std::fs::write(
        &gh,
        "#!/bin/sh\nwhile [ \"$1\" != --body-file ]; do shift; done\ncp \"$2\" \"$RUNNER_TEMP/commented\"\n",
    )
    .unwrap();
    std::fs::set_permissions(&gh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let shell = |script: &str| {
        let mut command = std::process::Command::new("bash");
        command.args(["-euo", "pipefail", "-c", script]).current_dir(&checkout).env("PATH", &path);
        command.env("RUNNER_TEMP", &temp).env("GITHUB_BASE_REF", "main").env_remove("REMIT_CVC5");
        said(&command.output().unwrap())
    };
    let policy = |text: &str| std::fs::write(checkout.join("policy/main.cedar"), text).unwrap();
    let tools =
        "package: tools\nversion: 1.0.0\ntools:\n  - {name: git/log, tier: read}\n  - {name: git/push, tier: write}\n";
    std::fs::write(checkout.join("policy/package.yaml"), tools).unwrap();
    policy(BASELINE);
    let (code, text) = shell(
        "git init -q . && git add policy && git -c user.name=a -c user.email=a@example.org commit -qm policy && \
         git update-ref refs/remotes/origin/main HEAD",
    );
    assert_eq!(code, Some(0), "{text}");
    let (old, _) = folders(str::to_owned);
    std::fs::write(checkout.join("decisions.json"), recorded(&old)).unwrap();
    // A push without anybody who is asked: it was recorded, and is critical.
    policy(
        &BASELINE
            .replace("@require_approval(\"leads\") forbid", "forbid")
            .replace("forbid(principal, action ==", "permit(principal, action =="),
    );
    let mut codes = Vec::new();
    for (name, run) in &runs {
        let run = run.replace("${{ github.event.number }}", "1");
        let (code, text) = shell(&run);
        codes.push(code);
        assert!(code == Some(0) || *name == "One comment", "{name}: {text}");
    }
    assert_eq!(codes[2], Some(1), "over the budget of critical drift");
    let comment = std::fs::read_to_string(temp.join("commented")).unwrap();
    assert!(
        comment.contains("over a budget")
            && comment.contains("| replayCriticalDrift | 1 | at most 0 | **FAILED**: decision "),
        "{comment}"
    );
    assert!(comment.contains("new call"), "{comment}");
}

/// On a real API server: the leader proves in the background what the candidate newly lets through, and the rollout ends there where its
/// budget says that nobody may do more.
#[tokio::test]
async fn a_rollout_shows_its_proof_and_is_held_to_it() {
    let c = cluster();
    let tenant = c.namespace("proof").await;
    let rollout = json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"},
        "spec": {
            "stages": [{"percent": 100, "minSeconds": 0, "minDecisions": 0}],
            "onInconclusive": "Proceed",
            "budgets": {"proof": "NoExpansion"},
        },
    });
    c.apply(&tenant, &rollout.to_string()).unwrap();
    let put = |version: &str, policies: &[&str]| c.apply(&tenant, &package(&spec(version, policies)).1).unwrap();
    let status = |what: &str, holds: &dyn Fn(&Value) -> bool| {
        eventually_blocking(what, || {
            let status = c.rollout(&tenant)["status"].clone();
            if holds(&status) { Ok(status) } else { Err(status.to_string()) }
        })
    };
    put("1.0.0", &[READS]);
    status("the first package is in force", &|s| s["stable"]["version"] == "1.0.0");
    put("1.1.0", &[READS, WRITES]);
    let refused = status("the expansion is found", &|s| s["phase"] == "Degraded");
    let proof = refused["proof"].as_str().unwrap_or_else(|| panic!("{refused}"));
    assert!(proof.starts_with("expands; with a human expands; "), "{proof}");
    assert!(proof.contains("an agent (trust 1) calls files/write"), "{proof}");
    assert_eq!(refused["stable"]["version"], "1.0.0");
    let failed =
        refused["verdict"]["checks"].as_array().unwrap().iter().find(|c| c["name"] == "proof").unwrap().clone();
    assert_eq!((&failed["result"], &failed["threshold"]), (&json!("Fail"), &json!("nobody may do more")), "{refused}");
    // What restricts goes through by itself.
    let narrowed = READS.replace(';', " when { principal.trust >= 2 };");
    put("1.2.0", &[&narrowed]);
    let now = status("the restriction is in force", &|s| s["stable"]["version"] == "1.2.0");
    assert_eq!(now["phase"], "Healthy", "{now}");
}
