//! From a change to the new decision, on a real control plane: p50 and p99 over 100 changes of each kind. Reports.
//!
//! A client asks without a pause; a change is over when its answer changes. `rollout status` counts from the moment at which
//! a watch of this process shows the operator's status write, so it says how long the server needs after that.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use remit::api::{Agent, TenantRollout};
use serde_json::json;
use support::{Cluster, call};
use tokio::sync::watch;

const CHANGES: u32 = 100;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(report());
}

async fn report() {
    let c = Cluster::start_own();
    let tenant = c.namespace("propagation").await;
    let agent = json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "coder"},
        "spec": {"identities": [{"serviceAccount": "coder"}], "trustLevel": 1},
    });
    c.apply(&tenant, &agent.to_string()).unwrap();
    c.apply(&tenant, &package(0)).unwrap();
    c.wait_for(&tenant, "tenantrollout/default", "Ready");
    let token = c.token_for(&tenant, "coder", "remit").await;
    c.answered(&token, &tenant, &call("coder", "git/log", json!({})), "denied_by_policy").await;

    // The answer now: its reason.
    let (answers, mut answer) = watch::channel((String::new(), Instant::now()));
    let (http, asked, asker) = (c.http(), tenant.clone(), token.clone());
    let asking = tokio::spawn(async move {
        loop {
            let body = http.check(&asker, &asked, &call("coder", "git/log", json!({}))).await.unwrap().json();
            let said = body["context"]["reason"].as_str().unwrap_or_default().to_owned();
            answers.send_if_modified(|(before, at)| {
                let new = *before != said;
                (*before, *at) = (said, Instant::now());
                new
            });
        }
    });
    // The version in force now, as a watch shows it.
    let rollouts: Api<TenantRollout> = Api::namespaced(c.client().await, &tenant);
    let (versions, mut version) = watch::channel((String::new(), Instant::now()));
    let watching = tokio::spawn(async move {
        let changes = watcher(rollouts, watcher::Config::default()).default_backoff().applied_objects();
        changes
            .try_for_each(async |r| {
                let now = r.status.and_then(|s| s.stable).map(|s| s.version).unwrap_or_default();
                versions.send_if_modified(|(before, at)| {
                    let new = *before != now;
                    (*before, *at) = (now, Instant::now());
                    new
                });
                Ok(())
            })
            .await
            .ok();
    });

    let (mut from_apply, mut from_return, mut from_status) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 1..=CHANGES {
        let begun = Instant::now();
        c.apply(&tenant, &package(turn)).unwrap();
        let applied = Instant::now();
        let reason = format!("turn {turn}");
        let (_, at) = answer.wait_for(|(now, _)| *now == reason).await.unwrap().clone();
        from_apply.push(at - begun);
        from_return.push(at.saturating_duration_since(applied));
        let wanted = format!("1.0.{turn}");
        let (_, written) = version.wait_for(|(now, _)| *now == wanted).await.unwrap().clone();
        from_status.push(at.saturating_duration_since(written));
    }

    let mut from_agent = Vec::new();
    let agents: Api<Agent> = Api::namespaced(c.client().await, &tenant);
    for turn in 0..CHANGES {
        let suspend = turn % 2 == 0;
        let patch = Patch::Merge(json!({"spec": {"suspend": suspend}}));
        agents.patch("coder", &PatchParams::default(), &patch).await.unwrap();
        let written = Instant::now();
        let (_, at) = answer.wait_for(|(now, _)| now.contains("suspended") == suspend).await.unwrap().clone();
        from_agent.push(at.saturating_duration_since(written));
    }
    asking.abort();
    watching.abort();

    println!("\nFrom a change to the new decision, ms, over {CHANGES} changes each:\n");
    println!("{:<68} {:>7} {:>7}", "", "p50", "p99");
    line("package: start of `kubectl apply` to new decision", &mut from_apply);
    line("package: return of `kubectl apply` to new decision", &mut from_return);
    line("package: rollout's status write, as a watch shows it, to new decision", &mut from_status);
    line("agent: API write answered, to new decision", &mut from_agent);
}

fn line(name: &str, all: &mut [Duration]) {
    all.sort_unstable();
    let at = |p: f64| all[((all.len() as f64 * p) as usize).min(all.len() - 1)].as_secs_f64() * 1e3;
    println!("{name:<68} {:>7.1} {:>7.1}", at(0.5), at(0.99));
}

fn package(turn: u32) -> String {
    let policy = format!(r#"@id("no") @reason("turn {turn}") forbid(principal, action, resource);"#);
    json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "PolicyPackage", "metadata": {"name": format!("first-1.0.{turn}")},
        "spec": {
            "package": "first", "version": format!("1.0.{turn}"), "tools": [{"name": "git/log", "tier": "read"}],
            "policies": [{"name": "main.cedar", "text": policy}],
        },
    })
    .to_string()
}
