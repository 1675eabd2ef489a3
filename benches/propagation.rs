//! From a change to the new decision, on a real control plane of its own: from a write of a rollout's status, and from the start of
//! `kubectl apply` of a new package version. Reports; asserts only that the decisions change.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use kube::api::{Api, Patch, PatchParams};
use remit::api::TenantRollout;
use serde_json::{Value, json};

use support::{Cluster, Http, PLATFORM, call};

const READS: &str = r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");"#;
const WRITES: &str =
    r#"@id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write");"#;

fn package(version: &str, writes: bool) -> String {
    let spec = json!({
        "package": "core", "version": version,
        "tools": [{"name": "files/read", "tier": "read"}, {"name": "files/write", "tier": "write"}],
        "policies": [{"name": "a.cedar", "text": if writes { format!("{READS}\n{WRITES}") } else { READS.to_owned() }}],
    });
    let name = format!("core-{version}");
    json!({"apiVersion": "remit.dev/v1alpha1", "kind": "PolicyPackage", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

struct Asker {
    http: Http,
    token: String,
    tenant: String,
}

impl Asker {
    /// Asks again and again until the tool may (or may not) be called.
    async fn until(&self, allowed: bool) -> Instant {
        let begun = Instant::now();
        let body = call("coder", "files/write", json!({}));
        loop {
            let answer = self.http.check(&self.token, &self.tenant, &body).await.expect("an answer").json();
            if answer["decision"] == allowed && answer["context"]["decision_id"].is_string() {
                return Instant::now();
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "the decision does not change: {answer}");
        }
    }
}

fn print(what: &str, mut took: Vec<Duration>) {
    took.sort();
    let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)].as_secs_f64() * 1e3;
    println!("{what:<48} p50 {:>7.1} ms   p99 {:>7.1} ms   max {:>7.1} ms", at(50), at(99), at(100));
}

#[tokio::main]
async fn main() {
    let changes = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(100usize);
    println!("\nFrom a change to the new decision, {changes} changes each; one client asks without a pause.\n");
    let c = Cluster::start_own();
    let tenant = c.namespace("bench").await;
    let agent = json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "coder"},
        "spec": {"identities": [{"serviceAccount": "coder"}], "trustLevel": 2},
    });
    c.apply(&tenant, &agent.to_string()).unwrap();
    let asker = Asker { http: c.http(), token: c.token_for(&tenant, "coder", "remit").await, tenant: tenant.clone() };
    let api: Api<TenantRollout> = Api::namespaced(c.client().await, &tenant);
    let stable =
        async || serde_json::to_value(api.get_status("default").await.unwrap().status.unwrap().stable).unwrap();

    // Both were in force, so the bytes of both are kept. Then the rollout is paused, and what the status says is what counts.
    let mut revisions: Vec<Value> = Vec::new();
    for (version, writes) in [("1.0.0", false), ("1.1.0", true)] {
        c.apply(&tenant, &package(version, writes)).unwrap();
        c.wait_for(&tenant, "tenantrollout/default", "Ready");
        asker.until(writes).await;
        while stable().await["version"] != version {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        revisions.push(stable().await);
    }
    c.kubectl(&[
        "patch",
        "tenantrollout",
        "default",
        "-n",
        &tenant,
        "--type=merge",
        "-p",
        r#"{"spec":{"paused":true}}"#,
    ])
    .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let remit = c.client_as(&format!("system:serviceaccount:{PLATFORM}:remit"), &[]).await;
    let remit: Api<TenantRollout> = Api::namespaced(remit, &tenant);
    let mut took = Vec::with_capacity(changes);
    for n in 0..changes {
        let writes = n % 2 == 1;
        let body = Patch::Merge(json!({"status": {"stable": revisions[usize::from(writes)]}}));
        let begun = Instant::now();
        let (params, until) = (PatchParams::default(), asker.until(writes));
        let (written, seen) = tokio::join!(remit.patch_status("default", &params, &body), until);
        written.unwrap();
        took.push(seen - begun);
        // The pass that this status causes is not to run into the next one.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    print("from the start of a status write", took);

    c.kubectl(&[
        "patch",
        "tenantrollout",
        "default",
        "-n",
        &tenant,
        "--type=merge",
        "-p",
        r#"{"spec":{"paused":false}}"#,
    ])
    .unwrap();
    asker.until(true).await;
    let (mut took, mut kubectl) = (Vec::with_capacity(changes), Vec::with_capacity(changes));
    for n in 0..changes {
        let writes = n % 2 == 1;
        let object = package(&format!("2.0.{n}"), writes);
        let begun = Instant::now();
        // kubectl is a process of its own, and this is its thread.
        let (cluster, tenant) = (&c, tenant.as_str());
        let ran = std::thread::scope(|scope| {
            let applied = scope.spawn(move || cluster.apply(tenant, &object).map(|_| begun.elapsed()));
            let seen = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(asker.until(writes)));
            (applied.join().expect("kubectl"), seen)
        });
        kubectl.push(ran.0.unwrap());
        took.push(ran.1 - begun);
    }
    print("from the start of kubectl apply", took);
    print("  of which kubectl itself", kubectl);
}
