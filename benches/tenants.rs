//! Many tenants at once, on a real control plane: 1,000 namespaces with ten objects each, from the first write until all of them are
//! Ready; then the same operator started anew. Writes per second are the API server's answers to Remit's and this program's writes
//! together: they share it. Reports; asserts only that everything becomes Ready.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ListParams, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use remit::api::{Agent, PolicyPackage, READY, TenantProfile, TenantRollout, is_true};
use serde_json::{Value, json};

use support::{Cluster, call};

/// Objects of a tenant: a package, a rollout, a profile, and agents for the rest.
const OBJECTS: usize = 10;
const AGENTS: usize = OBJECTS - 3;
const AT_ONCE: usize = 32;
const POLICIES: &str =
    r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");"#;

fn object<T: serde::de::DeserializeOwned>(kind: &str, name: &str, spec: Value) -> T {
    let object = json!({"apiVersion": "remit.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

async fn tenant(client: Client, name: String) {
    let params = PostParams::default();
    let namespace =
        Namespace { metadata: ObjectMeta { name: Some(name.clone()), ..Default::default() }, ..Default::default() };
    Api::all(client.clone()).create(&params, &namespace).await.expect("namespace");
    for n in 0..AGENTS {
        let agent = format!("agent-{n}");
        let spec = json!({"identities": [{"serviceAccount": agent}], "trustLevel": 2});
        let api: Api<Agent> = Api::namespaced(client.clone(), &name);
        api.create(&params, &object("Agent", &agent, spec)).await.expect("agent");
    }
    let spec = json!({
        "package": "core", "version": "1.0.0", "tools": [{"name": "files/read", "tier": "read"}],
        "policies": [{"name": "a.cedar", "text": POLICIES}],
    });
    let api: Api<PolicyPackage> = Api::namespaced(client.clone(), &name);
    api.create(&params, &object("PolicyPackage", "core-1.0.0", spec)).await.expect("package");
    let api: Api<TenantRollout> = Api::namespaced(client.clone(), &name);
    let spec = json!({"package": {"name": "core", "version": "^1"}});
    // Remit may have made the empty one by now, if this machine is slow.
    match api.create(&params, &object("TenantRollout", "default", spec)).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => panic!("rollout: {error}"),
    }
    let api: Api<TenantProfile> = Api::namespaced(client, &name);
    api.create(&params, &object("TenantProfile", "default", json!({"retentionDays": 30}))).await.expect("profile");
}

/// How many objects of the tenants are Ready.
async fn ready(client: &Client) -> usize {
    macro_rules! count {
        ($kind:ty) => {{
            let all = Api::<$kind>::all(client.clone()).list(&ListParams::default()).await.expect("list");
            all.iter()
                .filter(|o| o.namespace().is_some_and(|n| n.starts_with("many-")))
                .filter(|o| o.status.as_ref().is_some_and(|s| is_true(&s.conditions, READY)))
                .count()
        }};
    }
    count!(Agent) + count!(PolicyPackage) + count!(TenantRollout) + count!(TenantProfile)
}

/// Resident memory of the operator, MiB.
fn memory(c: &Cluster) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", c.operator.pid().unwrap())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Writes that the API server has answered since it started.
async fn writes(c: &Cluster) -> u64 {
    let text = c.kubectl(&["get", "--raw", "/metrics"]).expect("metrics of the API server");
    let counters = text.lines().filter(|l| l.starts_with("apiserver_request_total{"));
    let writes = counters.filter(|l| {
        ["CREATE", "APPLY", "PATCH", "PUT", "POST"].iter().any(|v| l.contains(&format!("verb=\"{v}\"")))
            && ["code=\"200\"", "code=\"201\""].iter().any(|c| l.contains(c))
    });
    writes.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

#[tokio::main]
async fn main() {
    let tenants = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(1_000usize);
    println!("\n{tenants} tenants with {OBJECTS} objects each, {AT_ONCE} tenants being written at once.\n");
    let c = Cluster::start_own();
    let client = c.client().await;
    let empty = memory(&c);
    let before = writes(&c).await;
    let begun = Instant::now();
    stream::iter(0..tenants).for_each_concurrent(AT_ONCE, |n| tenant(client.clone(), format!("many-{n}"))).await;
    let applied = begun.elapsed();
    until_ready(&client, tenants * OBJECTS).await;
    let took = begun.elapsed();
    let written = writes(&c).await - before;
    println!("{:<44} {:>8.1} s", "all objects written after", applied.as_secs_f64());
    println!("{:<44} {:>8.1} s", "all of them Ready after", took.as_secs_f64());
    println!("{:<44} {:>8.0} /s", "writes that the API server answered", written as f64 / took.as_secs_f64());
    println!("{:<44} {:>8.1}", "writes for one object", written as f64 / (tenants * OBJECTS) as f64);
    println!("{:<44} {:>8} MiB, {empty} before", "memory of the operator", memory(&c));

    let begun = Instant::now();
    c.operator.kill();
    c.operator.start();
    let last = format!("many-{}", tenants - 1);
    let token = c.token_for(&last, "agent-0", "remit").await;
    c.answered(&token, &last, &call("agent-0", "files/read", json!({})), "allowed").await;
    println!("{:<44} {:>8.1} s", "after a kill: the first allow", begun.elapsed().as_secs_f64());
    println!("{:<44} {:>8} MiB", "memory then", memory(&c));
}

async fn until_ready(client: &Client, all: usize) {
    let begun = Instant::now();
    loop {
        let now = ready(client).await;
        if now >= all {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(900), "{now} of {all} are Ready");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
