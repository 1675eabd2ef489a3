//! The chart: accepted by a real API server, and no more privilege than it says.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::{ControlPlane, PLATFORM};

const DEV: &[&str] = &["--set", "deploy=false", "--set", "webhook.url=https://127.0.0.1:9443"];

/// The objects of rendered YAML.
pub fn objects(yaml: &str) -> Vec<Value> {
    let documents =
        yaml.split("\n---").filter(|d| d.lines().any(|l| !l.starts_with('#') && !l.trim().is_empty() && l != "---"));
    let parsed =
        documents.map(|d| serde_saphyr::from_str(d.trim_start_matches("---")).unwrap_or_else(|e| panic!("{e}\n{d}")));
    parsed.filter(|v: &Value| !v.is_null()).collect()
}

fn texts(rule: &Value, key: &str) -> Vec<String> {
    rule[key].as_array().into_iter().flatten().map(|v| v.as_str().unwrap_or_default().to_owned()).collect()
}

fn rules<'a>(objects: &'a [Value], kind: &str) -> Vec<(String, &'a Value)> {
    let roles = objects.iter().filter(|o| o["kind"] == kind);
    let each = roles.flat_map(|r| {
        r["rules"].as_array().into_iter().flatten().map(|rule| (r["metadata"]["name"].to_string(), rule))
    });
    each.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn chart_is_accepted_and_least_privilege() {
    let plane = ControlPlane::start();
    let default = plane.render_chart(&[]).unwrap();
    let dev = plane.render_chart(DEV).unwrap();

    for (name, yaml) in [("default", &default), ("dev", &dev)] {
        let objects = objects(yaml);
        let cluster = rules(&objects, "ClusterRole");
        let all = [cluster.clone(), rules(&objects, "Role")].concat();
        assert!(all.len() > 10, "{name}: {} rules", all.len());
        for (role, rule) in &all {
            for key in ["apiGroups", "resources", "verbs"] {
                assert!(!texts(rule, key).iter().any(|t| t.contains('*')), "{name}: {role}: {rule}");
            }
            let verbs = texts(rule, "verbs");
            for verb in ["escalate", "bind", "impersonate"] {
                assert!(!verbs.iter().any(|v| v == verb), "{name}: {role}: {rule}");
            }
        }
        for (role, rule) in &cluster {
            let resources = texts(rule, "resources");
            assert!(
                !resources.iter().any(|r| r == "secrets" || r == "serviceaccounts/token"),
                "{name}: {role}: {rule}"
            );
        }
        // The operator itself never gets the right to check, elevate, read records or write a spec.
        let own: BTreeSet<String> =
            cluster.iter().filter(|(role, _)| role == "\"remit\"").flat_map(|(_, r)| texts(r, "verbs")).collect();
        let expected = ["create", "delete", "get", "list", "patch", "watch"].map(str::to_owned);
        assert_eq!(own, BTreeSet::from(expected), "{name}");
        let deployed = objects.iter().any(|o| o["kind"] == "StatefulSet");
        assert_eq!(deployed, name == "default");
    }

    // Default values, applied for real, with warnings as errors.
    plane.kubectl(&["create", "namespace", PLATFORM]).unwrap();
    let apply = ["--warnings-as-errors", "apply", "--server-side", "-f", "-"];
    plane.kubectl_with(&apply, &default).unwrap();
    // Applying it again changes nothing that is owned by others and is accepted too; then the values of a bare machine.
    plane.kubectl_with(&apply, &default).unwrap();
    plane.kubectl_with(&apply, &dev).unwrap();
    plane.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]).unwrap();

    // The API server agrees on what the operator may and may not do.
    let account = format!("--as=system:serviceaccount:{PLATFORM}:remit");
    for (allowed, question) in [
        (true, &["list", "policypackages.remit.dev", "-A"][..]),
        (true, &["patch", "tenantrollouts.remit.dev", "--subresource=status", "-n", "default"]),
        (true, &["patch", "tenantrollouts.remit.dev", "-n", "default"]),
        (false, &["update", "tenantrollouts.remit.dev", "-n", "default"]),
        (false, &["delete", "tenantrollouts.remit.dev", "-n", "default"]),
        (false, &["rollback", "tenantrollouts.remit.dev", "-n", "default"]),
        (true, &["get", "secret/remit-ca", "-n", PLATFORM]),
        (true, &["create", "tokenreviews.authentication.k8s.io"]),
        (false, &["patch", "policypackages.remit.dev", "-n", "default"]),
        (false, &["update", "agents.remit.dev", "-n", "default"]),
        (false, &["delete", "policypackages.remit.dev", "-n", "default"]),
        (false, &["get", "secrets", "-n", "default"]),
        (false, &["get", "secret/other", "-n", PLATFORM]),
        (false, &["create", "serviceaccounts", "--subresource=token", "-n", "default"]),
        (false, &["patch", "configmap/other", "-n", "default"]),
        (false, &["check", "agents.remit.dev", "-n", "default"]),
        (false, &["elevate", "agents.remit.dev", "-n", "default"]),
    ] {
        let answer = plane.kubectl(&[&["auth", "can-i", &account][..], question].concat());
        let said = answer.as_ref().map_or_else(|e| e.clone(), Clone::clone);
        // `can-i` says "no" with exit code 1.
        assert_eq!(answer.is_ok(), allowed, "{question:?}: {said}");
    }

    // The CA's ConfigMap goes into any namespace by server-side apply, and no other does.
    let map = |name: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: default}}\ndata: {{ca.crt: x}}\n"
        )
    };
    let apply = ["apply", "--server-side", "--validate=false", &account, "-f", "-"];
    plane.kubectl_with(&apply, &map("remit-ca")).unwrap();
    plane.kubectl_with(&apply, &map("other")).unwrap_err();
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    // helm is only on machines with the control plane: its folder is in the state of one.
    let plane = ControlPlane::start();
    for (value, named) in [
        ("signatures=Sometimes", "signatures"),
        ("webhook.url=http://127.0.0.1:1", "url"),
        ("maxStaleness=1", "maxStaleness"),
        ("platformPackage=base", "platformPackage"),
        ("replicas=3", "replicas"),
    ] {
        let why = plane.render_chart(&["--set", value]).unwrap_err();
        assert!(why.contains(named), "{value}: {why}");
    }
    plane.render_chart(&["--set", "signatures=Required"]).unwrap();
}
