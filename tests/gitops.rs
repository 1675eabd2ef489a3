//! Argo CD and Flux on the real API server: what they do over and over again must never change what is in force, and the files that the
//! chart hands them must be about Remit as it is. The scripts themselves are run in hack/gitops.

use std::collections::BTreeSet;

use regex::Regex;
use remit::api::{Agent, PolicyPackage, PolicyReplay, PolicySigner, TenantProfile, TenantRollout};
use remit::policy::digest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::operator::{READS, WRITES, agent, key, package, signed, signer, spec};
use crate::support::{Cluster, ControlPlane, call, cluster, eventually_blocking, file};

/// How the tools write: server-side, over whoever owned a field before.
const ARGO: &[&str] = &["--server-side", "--field-manager=argocd-controller", "--force-conflicts"];
const FLUX: &[&str] = &["--server-side", "--field-manager=kustomize-controller", "--force-conflicts"];

/// A rollout of package `core` in a range of versions that goes to everybody at once, also where there is nothing to judge by.
fn rollout(version: &str) -> String {
    staged(version, json!([{"percent": 100, "minSeconds": 0, "minDecisions": 0}]))
}

fn staged(version: &str, stages: Value) -> String {
    json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"},
        "spec": {
            "package": {"name": "core", "version": version}, "stages": stages, "onInconclusive": "Proceed",
            // What these packages permit is not what is looked at here.
            "budgets": {"criticalDrift": 1_000_000, "highDrift": 1_000_000, "denialGrowthPercent": 100},
        },
    })
    .to_string()
}

/// Several objects as one file of Git.
fn set(objects: &[&str]) -> String {
    let items: Vec<Value> = objects.iter().map(|o| serde_json::from_str(o).unwrap()).collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

impl Cluster {
    /// One sync of Flux: everything is dry-run before the first object is applied.
    fn flux(&self, tenant: &str, objects: &str) {
        self.apply_with(tenant, objects, &[FLUX, &["--dry-run=server"]].concat()).unwrap();
        self.apply_with(tenant, objects, FLUX).unwrap();
    }

    /// One sync of Argo CD with ServerSideApply=true.
    fn argo(&self, tenant: &str, objects: &str) {
        self.apply_with(tenant, objects, ARGO).unwrap();
    }

    /// Waits until this package is in force and nothing is on its way.
    fn settles_on(&self, tenant: &str, digest: &str) -> Value {
        eventually_blocking(&format!("{digest} is in force for everybody"), || {
            let rollout = self.rollout(tenant);
            let status = &rollout["status"];
            let seen = status["observedGeneration"] == rollout["metadata"]["generation"];
            match seen && status["stable"]["digest"] == digest && status["candidate"].is_null() {
                true => Ok(status.clone()),
                false => Err(rollout["status"].to_string()),
            }
        })
    }

    /// A person with the right to move rollouts of this tenant, and nothing else.
    fn release_manager(&self, tenant: &str) -> String {
        let user = format!("alice-{tenant}");
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "release-manager"},
            "rules": [
                {"apiGroups": ["remit.dev"], "resources": ["tenantrollouts", "tenantrollouts/status"], "verbs": ["get", "patch"]},
                {"apiGroups": ["remit.dev"], "resources": ["tenantrollouts"], "verbs": ["pause", "promote", "promote-unchecked", "abort", "rollback"]},
            ],
        });
        self.apply(tenant, &role.to_string()).unwrap();
        let user_flag = format!("--user={user}");
        let binding = ["create", "rolebinding", "release-manager", "-n", tenant, "--role=release-manager", &user_flag];
        self.kubectl(&binding).unwrap();
        user
    }

    /// An entry in the action list of the status, by server-side apply as kubectl does it.
    fn asks(&self, tenant: &str, user: &str, id: &str, action: &str) {
        let status = self.rollout(tenant)["status"].clone();
        let of = if action == "rollback" { "stable" } else { "candidate" };
        let mut asked = json!({"id": id, "actor": user, "action": action, "reason": "it looks wrong"});
        if let Some(digest) = status[of]["digest"].as_str() {
            asked["digest"] = digest.into();
        }
        let entry = json!({
            "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"},
            "status": {"actions": [asked]},
        });
        let (as_user, manager) = (format!("--as={user}"), format!("--field-manager={id}"));
        let args = ["--server-side", "--subresource=status", &as_user, &manager];
        self.apply_with(tenant, &entry.to_string(), &args).unwrap();
        eventually_blocking(&format!("{action} was handled"), || {
            let handled = self.rollout(tenant)["status"]["handled"].clone();
            let found = handled.as_array().into_iter().flatten().find(|h| h["id"] == id);
            match found.and_then(|h| h["result"].as_str()) {
                Some(result) if result.starts_with("done") => Ok(()),
                _ => Err(handled.to_string()),
            }
        });
    }
}

#[tokio::test]
async fn a_tool_that_keeps_applying_never_undoes_a_rollback() {
    let c = cluster();
    let tenant = c.namespace("gitops").await;
    let token = c.coder(&tenant).await;
    let user = c.release_manager(&tenant);
    let (one, two) = (spec("1.0.0", &[READS]), spec("1.1.0", &[READS, WRITES]));
    let rollout = rollout("^1");
    c.flux(&tenant, &set(&[&package(&one).1, &rollout]));
    c.settles_on(&tenant, &digest(&one));
    let git = set(&[&package(&one).1, &package(&two).1, &rollout, &agent("coder", "coder", 2)]);
    c.flux(&tenant, &git);
    c.settles_on(&tenant, &digest(&two));
    c.expect(&token, &tenant, "files/write", "allowed").await;

    c.asks(&tenant, &user, "back", "rollback");
    c.settles_on(&tenant, &digest(&one));
    c.expect(&token, &tenant, "files/write", "no_permit").await;
    let epoch = c.rollout(&tenant)["status"]["epoch"].clone();
    for _ in 0..4 {
        c.flux(&tenant, &git);
        c.argo(&tenant, &git);
        // What a person types when they think that it hangs.
        let now = format!("reconcile.remit.dev/requestedAt={}", crate::support::unique());
        c.kubectl(&["annotate", "--overwrite", "tenantrollout/default", "-n", &tenant, &now]).unwrap();
    }
    // Objects that are pruned and come back are not news either.
    c.kubectl(&["delete", "-n", &tenant, &package(&two).0]).unwrap();
    c.argo(&tenant, &git);
    c.kubectl(&["delete", "tenantrollout", "default", "-n", &tenant]).unwrap();
    c.argo(&tenant, &git);
    let status = c.settles_on(&tenant, &digest(&one));
    assert!(status["epoch"].as_i64() >= epoch.as_i64() || status["epoch"].is_null(), "{status}");
    for _ in 0..20 {
        assert_eq!(c.code(&token, &tenant, "files/write").await, "no_permit");
        let status = c.rollout(&tenant)["status"].clone();
        assert_eq!(status["stable"]["digest"], digest(&one), "{status}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    // The next version is another matter.
    let three = spec("1.2.0", &[READS, WRITES]);
    c.flux(&tenant, &set(&[&package(&three).1, &rollout]));
    c.settles_on(&tenant, &digest(&three));
    c.expect(&token, &tenant, "files/write", "allowed").await;
}

#[tokio::test]
async fn pruning_the_old_package_when_git_names_the_new_one_loses_nothing() {
    let c = cluster();
    let tenant = c.namespace("prune").await;
    let token = c.coder(&tenant).await;
    let user = c.release_manager(&tenant);
    let (one, two) = (spec("1.0.0", &[READS]), spec("1.1.0", &[READS, WRITES]));
    c.argo(&tenant, &set(&[&package(&one).1, &rollout("^1")]));
    c.settles_on(&tenant, &digest(&one));
    c.expect(&token, &tenant, "files/read", "allowed").await;

    // Git names the new one only; the tool prunes the old one while it still decides for most sessions.
    let held = json!([{"percent": 1, "minSeconds": 0, "minDecisions": 0, "gate": "Manual"}, {"percent": 100, "minSeconds": 0, "minDecisions": 0}]);
    c.argo(&tenant, &set(&[&package(&two).1, &staged("^1", held)]));
    eventually_blocking("the candidate has one percent", || match c.rollout(&tenant)["status"].clone() {
        s if s["percent"] == 1 && s["candidate"]["digest"] == digest(&two) => Ok(()),
        s => Err(s.to_string()),
    });
    c.kubectl(&["delete", "-n", &tenant, &package(&one).0]).unwrap();
    for _ in 0..10 {
        assert_eq!(c.code(&token, &tenant, "files/read").await, "allowed");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    c.asks(&tenant, &user, "on", "promote");
    c.settles_on(&tenant, &digest(&two));
    c.expect(&token, &tenant, "files/write", "allowed").await;
    // And back to what Git has no object of any more.
    c.asks(&tenant, &user, "back", "rollback");
    c.settles_on(&tenant, &digest(&one));
    c.expect(&token, &tenant, "files/write", "no_permit").await;
    assert_eq!(c.code(&token, &tenant, "files/read").await, "allowed");
}

#[tokio::test]
async fn one_set_with_signer_package_rollout_and_agent_syncs_from_empty_in_any_order() {
    let c = cluster();
    for turn in 0..4 {
        let tenant = c.namespace("empty").await;
        let key = key(40 + turn);
        let signed = signed(spec("1.0.0", &[READS]), &tenant, &key);
        let name = format!("release-{tenant}");
        let signer = signer(&name, &tenant, &key, None);
        let (package_name, package) = package(&signed);
        let (rollout, agent) = (rollout("^1"), agent("coder", "coder", 2));
        let mut objects = [signer.as_str(), &package, &rollout, &agent];
        objects.rotate_left(usize::from(turn));
        match turn % 2 {
            0 => c.flux(&tenant, &set(&objects)),
            // Waves: each object a sync of its own, the last one seconds after the first.
            _ => objects.iter().for_each(|object| c.argo(&tenant, object)),
        }
        for object in [&format!("policysigner/{name}"), &package_name, "tenantrollout/default", "agent/coder"] {
            c.wait_for(&tenant, object, "Ready");
        }
        c.settles_on(&tenant, &digest(&signed));
        let token = c.token_for(&tenant, "coder", "remit").await;
        c.expect(&token, &tenant, "files/read", "allowed").await;
        // In force under the signature, in whatever order they came.
        let stable = c.rollout(&tenant)["status"]["stable"].clone();
        assert!(stable["keyFingerprint"].is_string(), "turn {turn}: {stable}");
        c.kubectl(&["delete", "policysigner", &name]).unwrap();
    }
}

#[tokio::test]
async fn git_revert_is_a_rollout_to_what_it_names_and_only_to_what_was_in_force() {
    let c = cluster();
    let tenant = c.namespace("revert").await;
    let token = c.coder(&tenant).await;
    let (one, two) = (spec("1.0.0", &[READS]), spec("1.1.0", &[READS, WRITES]));
    let first = set(&[&package(&one).1, &rollout("=1.0.0")]);
    c.flux(&tenant, &first);
    c.settles_on(&tenant, &digest(&one));
    c.flux(&tenant, &set(&[&package(&two).1, &rollout("=1.1.0")]));
    c.settles_on(&tenant, &digest(&two));
    c.expect(&token, &tenant, "files/write", "allowed").await;
    let before = c.rollout(&tenant)["status"]["stable"]["revision"].as_i64().unwrap();

    c.flux(&tenant, &first);
    let status = c.settles_on(&tenant, &digest(&one));
    c.wait_for(&tenant, "tenantrollout/default", "Ready");
    c.expect(&token, &tenant, "files/write", "no_permit").await;
    assert!(status["stable"]["revision"].as_i64().unwrap() > before, "a revert is a revision of its own: {status}");

    // A lower version that never was in force is a downgrade, whatever names it.
    let lower = spec("0.9.0", &[READS, WRITES]);
    c.flux(&tenant, &set(&[&package(&lower).1, &rollout("=0.9.0")]));
    c.stalled_for(&tenant, "Downgrade");
    assert_eq!(c.code(&token, &tenant, "files/write").await, "no_permit");
    assert_eq!(c.rollout(&tenant)["status"]["stable"]["digest"], digest(&one));
}

/// Remit makes the empty rollout of a tenant that has none; Git may name the same object later, without force.
#[tokio::test]
async fn git_takes_the_rollout_over_and_remit_leaves_it_to_git() {
    let c = cluster();
    let tenant = c.namespace("takeover").await;
    let one = spec("1.0.0", &[READS]);
    c.argo(&tenant, &package(&one).1);
    c.in_force(&tenant, &digest(&one));
    let mine = ["--server-side", "--field-manager=argocd-controller"];
    c.apply_with(&tenant, &rollout("^1"), &mine).unwrap();
    c.settles_on(&tenant, &digest(&one));
    let generation = c.rollout(&tenant)["metadata"]["generation"].clone();
    let owners = || {
        let text =
            c.kubectl(&["get", "tenantrollout", "default", "-n", &tenant, "--show-managed-fields", "-o", "json"]);
        let object: Value = serde_json::from_str(&text.unwrap()).unwrap();
        let fields = object["metadata"]["managedFields"].as_array().cloned().unwrap();
        let spec = fields.iter().filter(|f| !f["fieldsV1"]["f:spec"]["f:package"].is_null());
        spec.map(|f| f["manager"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    assert_eq!(owners(), BTreeSet::from(["argocd-controller".to_owned()]));
    // Nothing to do for the tool, nothing to do for Remit: the next sync is no change.
    for _ in 0..3 {
        c.apply_with(&tenant, &rollout("^1"), &mine).unwrap();
    }
    assert_eq!(c.rollout(&tenant)["metadata"]["generation"], generation);
    assert_eq!(owners(), BTreeSet::from(["argocd-controller".to_owned()]));
}

/// Every field of a fixture is one of the API, with its name, type and words: what a strict client would take.
fn strictly<T: DeserializeOwned + Serialize>(name: &str, object: &Value) {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let again = serde_json::to_value(&typed).unwrap();
    let lost = missing(object, &again, String::new());
    assert!(lost.is_empty(), "{name}: the API does not know {lost:?}");
}

/// Paths of what is in `a` and not, or otherwise, in `b`.
fn missing(a: &Value, b: &Value, path: String) -> Vec<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.iter().flat_map(|(k, v)| missing(v, b.get(k).unwrap_or(&Value::Null), format!("{path}.{k}"))).collect()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().flat_map(|(i, (a, b))| missing(a, b, format!("{path}[{i}]"))).collect()
        }
        _ if a == b => Vec::new(),
        _ => vec![format!("{path}: {a}")],
    }
}

#[test]
fn fixtures_of_the_health_checks_are_objects_of_the_api() {
    let mut kinds = BTreeSet::new();
    for entry in std::fs::read_dir(file("hack/gitops/testdata")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let object: Value = serde_saphyr::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let kind = object["kind"].as_str().unwrap().to_owned();
        match kind.as_str() {
            "Agent" => strictly::<Agent>(&name, &object),
            "PolicyPackage" => strictly::<PolicyPackage>(&name, &object),
            "PolicySigner" => strictly::<PolicySigner>(&name, &object),
            "PolicyReplay" => strictly::<PolicyReplay>(&name, &object),
            "TenantProfile" => strictly::<TenantProfile>(&name, &object),
            "TenantRollout" => strictly::<TenantRollout>(&name, &object),
            other => panic!("{name}: {other}"),
        }
        kinds.insert(kind);
    }
    assert!(kinds.len() >= 6, "{kinds:?}");
}

/// The names of Remit's metrics that a text speaks of, without the suffixes that the form of a metric gives.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let pattern = Regex::new(r"\bremit_[a-z_]+").unwrap();
    let names = pattern.find_iter(text).map(|m| m.as_str());
    names
        .map(|n| {
            ["_total", "_bucket", "_sum", "_count"].iter().fold(n, |n, s| n.strip_suffix(s).unwrap_or(n)).to_owned()
        })
        .collect()
}

/// Names that the source registers. Families show nothing before they have a label, so that a running operator alone can't tell.
fn registered() -> BTreeSet<String> {
    let pattern =
        Regex::new(r#"register(?:_with_unit)?\(\s*"([a-z_]+)",[^;]*?(Unit::Seconds)?[^;]*?;|"(remit_[a-z_]+)""#)
            .unwrap();
    let mut found = BTreeSet::new();
    let mut folders = vec![file("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for hit in pattern.captures_iter(&text) {
                let unit = if hit[0].contains("Unit::Seconds") { "_seconds" } else { "" };
                match (hit.get(1), hit.get(3)) {
                    (Some(name), _) => found.insert(format!("remit_{}{unit}", name.as_str())),
                    (_, Some(name)) => found.insert(name.as_str().to_owned()),
                    _ => false,
                };
            }
        }
    }
    found
}

#[tokio::test]
async fn dashboard_and_alerts_ask_for_metrics_that_there_are() {
    let c = cluster();
    let tenant = c.namespace("metrics").await;
    let token = c.coder(&tenant).await;
    c.put(&tenant, &spec("1.0.0", &[READS]));
    c.expect(&token, &tenant, "files/read", "allowed").await;
    c.expect(&token, &tenant, "files/write", "no_permit").await;
    let refused = c.http().check("nonsense", &tenant, &call("coder", "files/read", json!({}))).await.unwrap();
    assert_eq!(refused.status, 401);

    let (_, live) = c.operator.get("/metrics").unwrap();
    let types = Regex::new(r"(?m)^# TYPE (remit_[a-z_]+) ").unwrap();
    let live: BTreeSet<String> = types.captures_iter(&live).map(|m| m[1].to_owned()).collect();
    let registered = registered();
    let strange: Vec<_> = live.iter().filter(|n| !registered.contains(*n)).collect();
    assert!(strange.is_empty(), "the pattern of this test does not see where these are registered: {strange:?}");

    for text in ["charts/remit/dashboards/remit.json", "charts/remit/dashboards/rules.yaml", "docs/operating.md"] {
        let asked = metrics_in(&std::fs::read_to_string(file(text)).unwrap());
        assert!(asked.len() > 10, "{text}: {asked:?}");
        let unknown: Vec<_> = asked.difference(&registered).collect();
        assert!(unknown.is_empty(), "{text} asks for metrics that Remit does not have: {unknown:?}");
    }
    // What is there from the start is really answered with, not only written somewhere.
    for name in ["remit_decisions", "remit_requests_refused", "remit_check_duration_seconds", "remit_journal_healthy"] {
        assert!(live.contains(name), "{name}: {live:?}");
    }
}

#[test]
fn chart_hands_out_health_checks_dashboard_and_rules_only_where_asked() {
    let plane = ControlPlane::start();
    let plain = plane.render_chart(&[]).unwrap();
    for absent in ["remit-gitops", "remit-dashboard", "monitoring.coreos.com"] {
        assert!(!plain.contains(absent), "{absent}");
    }
    let all = ["gitops.configMap", "metrics.dashboard", "metrics.rules", "metrics.podMonitor"];
    let args: Vec<String> = all.iter().flat_map(|v| ["--set".to_owned(), format!("{v}=true")]).collect();
    let args: Vec<&str> =
        args.iter().map(String::as_str).chain(["--set", "metrics.labels.release=prometheus"]).collect();
    let objects = crate::chart::objects(&plane.render_chart(&args).unwrap());
    let named = |kind: &str, name: &str| {
        let found = objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("{kind} {name}")).clone()
    };
    let read = |path: &str| std::fs::read_to_string(file(path)).unwrap();

    // The patch has the script under the key that Argo CD looks for, one a kind, and is what the API server merges.
    let gitops = named("ConfigMap", "remit-gitops");
    let patch: Value = serde_saphyr::from_str(gitops["data"]["argocd-cm.yaml"].as_str().unwrap()).unwrap();
    let keys: BTreeSet<String> = patch["data"].as_object().unwrap().keys().cloned().collect();
    for crd in std::fs::read_dir(file("crds")).unwrap() {
        let crd: Value = serde_saphyr::from_str(&std::fs::read_to_string(crd.unwrap().path()).unwrap()).unwrap();
        let key =
            format!("resource.customizations.health.remit.dev_{}", crd["spec"]["names"]["kind"].as_str().unwrap());
        assert!(keys.contains(&key), "{key}: {keys:?}");
        assert_eq!(patch["data"][&key].as_str().unwrap().trim_end(), read("charts/remit/gitops/health.lua").trim_end());
    }
    plane
        .kubectl(&["create", "configmap", "argocd-cm", "-n", "default", "--from-literal=url=https://argo.example"])
        .unwrap();
    let folder = plane.attached("gitops");
    std::fs::write(folder.join("patch.yaml"), gitops["data"]["argocd-cm.yaml"].as_str().unwrap()).unwrap();
    let path = folder.join("patch.yaml");
    plane
        .kubectl(&["patch", "configmap", "argocd-cm", "-n", "default", "--patch-file", path.to_str().unwrap()])
        .unwrap();
    let merged = plane.kubectl(&["get", "configmap", "argocd-cm", "-n", "default", "-o", "json"]).unwrap();
    let merged: Value = serde_json::from_str(&merged).unwrap();
    assert_eq!(merged["data"]["url"], "https://argo.example", "what was there stays");
    assert_eq!(merged["data"].as_object().unwrap().len(), keys.len() + 1);

    assert_eq!(
        gitops["data"]["flux.yaml"].as_str().unwrap().trim_end(),
        read("charts/remit/gitops/flux.yaml").trim_end()
    );
    let dashboard = named("ConfigMap", "remit-dashboard");
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
    let json: Value = serde_json::from_str(dashboard["data"]["remit.json"].as_str().unwrap()).unwrap();
    assert_eq!(json, serde_json::from_str::<Value>(&read("charts/remit/dashboards/remit.json")).unwrap());
    let rules = named("PrometheusRule", "remit");
    assert_eq!(rules["spec"], serde_saphyr::from_str::<Value>(&read("charts/remit/dashboards/rules.yaml")).unwrap());
    assert_eq!(rules["metadata"]["labels"]["release"], "prometheus");
    assert_eq!(named("PodMonitor", "remit")["spec"]["podMetricsEndpoints"][0]["port"], "metrics");
}
