//! From a bad decision to the old package for everyone: a candidate at 99 % answers a call that it should not, and the same call is
//! asked until it is denied again. Each time in a tenant of its own, on a real control plane. Reports; asserts only that it is taken
//! back, and by itself.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use support::{Cluster, call, eventually};

const READS: &str = r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");"#;
const WRITES: &str =
    r#"@id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write");"#;

fn object(kind: &str, name: &str, spec: Value) -> String {
    json!({"apiVersion": "remit.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}).to_string()
}

fn package(version: &str, policies: &str) -> String {
    let spec = json!({
        "package": "core", "version": version,
        "tools": [{"name": "files/read", "tier": "read"}, {"name": "files/write", "tier": "write"}],
        "policies": [{"name": "a.cedar", "text": policies}],
    });
    object("PolicyPackage", &format!("core-{version}"), spec)
}

/// One tenant, one bad candidate: until the answer is the old one again, and until the status says so.
async fn one(c: &Cluster) -> Option<(Duration, Duration)> {
    let tenant = c.namespace("rollback").await;
    let spec = json!({"identities": [{"serviceAccount": "coder"}], "trustLevel": 2});
    c.apply(&tenant, &object("Agent", "coder", spec)).unwrap();
    let rollout = json!({
        "package": {"name": "core", "version": "^1"},
        "stages": [
            {"percent": 99, "minSeconds": 0, "minDecisions": 0, "gate": "Manual"},
            {"percent": 100, "minSeconds": 0, "minDecisions": 0},
        ],
        "onInconclusive": "Proceed",
    });
    c.apply(&tenant, &object("TenantRollout", "default", rollout)).unwrap();
    c.apply(&tenant, &package("1.0.0", READS)).unwrap();
    let token = c.token_for(&tenant, "coder", "remit").await;
    c.answered(&token, &tenant, &call("coder", "files/read", json!({})), "allowed").await;
    let status = || -> Value {
        let text = c.kubectl(&["get", "tenantrollout", "default", "-n", &tenant, "-o", "json"]).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["status"].clone()
    };
    c.apply(&tenant, &package("1.1.0", &format!("{READS}\n{WRITES}"))).unwrap();
    eventually("the candidate has 99 %", || async {
        let found = status();
        if found["percent"] == 99 { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
    // Its status is out; every replica routes by it a moment later.
    tokio::time::sleep(Duration::from_millis(500)).await;

    let http = c.http();
    let body = call("coder", "files/write", json!({}));
    let ask = async || http.check(&token, &tenant, &body).await.expect("an answer").json();
    // One agent in a hundred is not among the 99 %: there is no bad answer to count from.
    if ask().await["decision"] != true {
        return None;
    }
    let begun = Instant::now();
    let denied = loop {
        let answer = ask().await;
        if answer["decision"] == false {
            break begun.elapsed();
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it is not taken back: {}", status());
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let told = eventually("the rollout is Degraded", || async {
        let found = status();
        if found["phase"] == "Degraded" { Ok(begun.elapsed()) } else { Err(found.to_string()) }
    })
    .await;
    assert_eq!(ask().await["decision"], false);
    Some((denied, told))
}

fn print(what: &str, mut took: Vec<Duration>) {
    took.sort();
    let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)].as_secs_f64() * 1e3;
    println!("{what:<56} p50 {:>7.0} ms   p99 {:>7.0} ms   max {:>7.0} ms", at(50), at(99), at(100));
}

#[tokio::main]
async fn main() {
    let times = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(20usize);
    println!(
        "\nFrom a bad decision of a candidate to the old package for everyone, {times} tenants one after another.\n"
    );
    let c = Cluster::start_own();
    let (mut denied, mut told) = (Vec::new(), Vec::new());
    for _ in 0..times {
        let Some(took) = one(&c).await else { continue };
        denied.push(took.0);
        told.push(took.1);
    }
    assert!(!denied.is_empty(), "no agent was under the candidate");
    print("to the first answer of the old package", denied);
    print("until kubectl shows Degraded", told);
}
