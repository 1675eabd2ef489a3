//! From a change to the new decision on the last of three replicas, on a real control plane of its own: from a write of a rollout's
//! status, and from the start of `kubectl apply` of a new package version. Reports; asserts only that the decisions change.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use futures::future::join_all;
use kube::api::{Api, Patch, PatchParams};
use remit::api::TenantRollout;
use serde_json::{Value, json};

use support::{Cluster, Http, Operator, PLATFORM, call, eventually_blocking};

const REPLICAS: usize = 3;

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

/// A client of each replica.
struct Asker {
    replicas: Vec<Http>,
    token: String,
    tenant: String,
}

impl Asker {
    /// Asks every replica again and again until the tool may (or may not) be called. When the last one says so.
    async fn until(&self, allowed: bool) -> Instant {
        let seen = join_all(self.replicas.iter().map(|replica| self.one(replica, allowed))).await;
        seen.into_iter().max().expect("replicas")
    }

    async fn one(&self, http: &Http, allowed: bool) -> Instant {
        let begun = Instant::now();
        let body = call("coder", "files/write", json!({}));
        loop {
            let answer = http.check(&self.token, &self.tenant, &body).await.expect("an answer").json();
            if answer["decision"] == allowed && answer["context"]["decision_id"].is_string() {
                return Instant::now();
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "the decision does not change: {answer}");
            // Three clients that never pause would measure themselves.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Takes the lease from the operators, so that nobody but this program writes the status.
fn take_lease(c: &Cluster, operators: &[&Operator]) {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.000000Z").to_string();
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "remit", "namespace": PLATFORM},
        "spec": {"holderIdentity": "bench", "leaseDurationSeconds": 3600, "acquireTime": now, "renewTime": now},
    });
    c.apply_with(PLATFORM, &lease.to_string(), &["--server-side", "--force-conflicts"]).unwrap();
    eventually_blocking("nobody leads", || {
        let leads = |o: &&&Operator| o.get("/metrics").is_ok_and(|(_, text)| text.contains("\nremit_leader 1"));
        match operators.iter().filter(leads).count() {
            0 => Ok(()),
            leaders => Err(format!("{leaders} leaders")),
        }
    });
}

fn print(what: &str, mut took: Vec<Duration>) {
    took.sort();
    let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)].as_secs_f64() * 1e3;
    println!("{what:<48} p50 {:>7.1} ms   p99 {:>7.1} ms   max {:>7.1} ms", at(50), at(99), at(100));
}

#[tokio::main]
async fn main() {
    let changes = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(100usize).max(2).next_multiple_of(2);
    println!("\nFrom a change to the new decision on the last of {REPLICAS} replicas, {changes} changes each.\n");
    let c = Cluster::start_own();
    let kubeconfig = c.plane.attached("operator").join("kubeconfig");
    let more: Vec<Operator> = (1..REPLICAS)
        .map(|n| Operator::prepare(c.plane.attached(&format!("replica-{n}")), kubeconfig.clone(), &[]))
        .collect();
    more.iter().for_each(Operator::start);
    let operators: Vec<&Operator> = std::iter::once(&c.operator).chain(&more).collect();
    let tenant = c.namespace("bench").await;
    let agent = json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "coder"},
        "spec": {"identities": [{"serviceAccount": "coder"}], "trustLevel": 2},
    });
    // One step to everybody, whatever the replay of this program's own questions says.
    let rollout = json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"},
        "spec": {
            "package": {"name": "core"}, "stages": [{"percent": 100, "minSeconds": 0, "minDecisions": 0}],
            "onInconclusive": "Proceed", "replay": {"sinceSeconds": 60, "limit": 1},
            "budgets": {"criticalDrift": 1_000_000, "highDrift": 1_000_000, "denialGrowthPercent": 100, "shadowPercent": 0},
        },
    });
    c.apply(&tenant, &agent.to_string()).unwrap();
    c.apply(&tenant, &rollout.to_string()).unwrap();
    let http = |o: &&Operator| Http::new(&format!("https://127.0.0.1:{}", o.https), c.ca());
    let asker = Asker {
        replicas: operators.iter().map(http).collect(),
        token: c.token_for(&tenant, "coder", "remit").await,
        tenant: tenant.clone(),
    };
    let api: Api<TenantRollout> = Api::namespaced(c.client().await, &tenant);
    let stable =
        async || serde_json::to_value(api.get_status("default").await.unwrap().status.unwrap().stable).unwrap();

    c.apply(&tenant, &package("1.0.0", true)).unwrap();
    asker.until(true).await;

    // What the last two were, of which the bytes are kept: the first of them denies.
    let mut revisions: Vec<Value> = Vec::new();
    let (mut took, mut kubectl) = (Vec::with_capacity(changes), Vec::with_capacity(changes));
    for n in 0..changes {
        let writes = n % 2 == 1;
        let version = format!("2.0.{n}");
        let object = package(&version, writes);
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
        while stable().await["version"] != version {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if n + 2 >= changes {
            revisions.push(stable().await);
        }
    }
    print("from the start of kubectl apply", took);
    print("  of which kubectl itself", kubectl);

    // Nobody leads any more: what the status says is what counts.
    take_lease(&c, &operators);
    let before = api.get_status("default").await.unwrap().status.unwrap();
    let remit = c.client_as(&format!("system:serviceaccount:{PLATFORM}:remit"), &[]).await;
    let remit: Api<TenantRollout> = Api::namespaced(remit, &tenant);
    let mut took = Vec::with_capacity(changes);
    for n in 0..changes {
        let writes = n % 2 == 1;
        let epoch = before.epoch + 1 + i64::try_from(n).unwrap();
        let body = Patch::Merge(json!({"status": {"stable": revisions[usize::from(writes)], "epoch": epoch}}));
        let begun = Instant::now();
        let (params, until) = (PatchParams::default(), asker.until(writes));
        let (written, seen) = tokio::join!(remit.patch_status("default", &params, &body), until);
        written.unwrap();
        took.push(seen - begun);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    print("from the start of a status write", took);
}
