//! The chart: accepted by a real API server, and no more privilege than it says.

use std::collections::BTreeSet;

use serde_json::{Value, json};

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
        (true, &["update", "lease/remit", "-n", PLATFORM]),
        (true, &["create", "leases.coordination.k8s.io", "-n", PLATFORM]),
        (false, &["update", "lease/kube-scheduler", "-n", "kube-system"]),
        (false, &["update", "lease/other", "-n", PLATFORM]),
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

const POSTGRES: &[&str] = &["--set", "postgres.url=postgres://remit:secret@db.example:5432/remit?sslmode=verify-full"];

#[tokio::test(flavor = "multi_thread")]
async fn with_postgresql_there_are_several_replicas_and_without_there_is_one() {
    let plane = ControlPlane::start();
    let kinds = |yaml: &str| objects(yaml).iter().map(|o| o["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let one = plane.render_chart(&[]).unwrap();
    assert!(kinds(&one).iter().all(|k| k != "Deployment" && k != "PodDisruptionBudget"));
    let several = plane.render_chart(POSTGRES).unwrap();
    assert!(kinds(&several).iter().all(|k| k != "StatefulSet"));
    let all = objects(&several);
    let of = |kind: &str| all.iter().find(|o| o["kind"] == kind).unwrap_or_else(|| panic!("{kind}"));
    let deployment = of("Deployment");
    assert_eq!(deployment["spec"]["replicas"], 3);
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0);
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["topologySpreadConstraints"].as_array().unwrap().len(), 2);
    let container = &pod["containers"][0];
    // The address of the database is a secret: in the environment, never in the arguments.
    assert!(!container["args"].to_string().contains("secret@"), "{}", container["args"]);
    let variables = container["env"].as_array().unwrap();
    let url = variables.iter().find(|v| v["name"] == "REMIT_POSTGRES_URL").unwrap();
    assert_eq!(url["valueFrom"]["secretKeyRef"]["name"], "remit-postgres");
    assert!(of("Secret")["stringData"]["url"].as_str().unwrap().starts_with("postgres://remit:secret@"));
    // What a stop takes fits into the time that it is given.
    let seconds = |name: &str| {
        let args = texts(container, "args");
        args.iter().find_map(|a| a.strip_prefix(name)?.parse::<i64>().ok()).unwrap_or_else(|| panic!("{name}"))
    };
    let most = seconds("--drain-seconds=") + 20 + 10 + 10;
    assert!(pod["terminationGracePeriodSeconds"].as_i64().unwrap() > most);
    // A journal at its cap must not get the pod evicted.
    let volume = pod["volumes"].as_array().unwrap().iter().find(|v| v["name"] == "data").unwrap();
    assert_eq!(volume["emptyDir"]["sizeLimit"], "10Gi");
    assert!(seconds("--journal-cap-bytes=") * 9 / 8 < 9 << 30);
    // Every flag is one that the operator has.
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_remit")).args(["operator", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for flag in texts(container, "args").iter().filter_map(|a| a.split_once('=')).map(|(flag, _)| flag.to_owned()) {
        assert!(help.contains(&flag), "{flag}");
    }

    let existing = ["--set", "postgres.existingSecret.name=db,postgres.existingSecret.key=dsn,replicas=2"];
    let existing = objects(&plane.render_chart(&existing).unwrap());
    assert!(existing.iter().all(|o| o["kind"] != "Secret"));
    let two = existing.iter().find(|o| o["kind"] == "Deployment").unwrap();
    assert_eq!(two["spec"]["replicas"], 2);
    let text = two.to_string();
    let mut variables = two["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().iter();
    let url = variables.find(|v| v["name"] == "REMIT_POSTGRES_URL").unwrap();
    assert_eq!(url["valueFrom"]["secretKeyRef"], json!({"name": "db", "key": "dsn"}), "{text}");

    let why = plane.render_chart(&["--set", "replicas=3"]).unwrap_err();
    assert!(why.contains("replicas: 3") && why.contains("postgres.url"), "{why}");
    let why = plane.render_chart(&[POSTGRES, &["--set", "postgres.existingSecret.name=db"]].concat()).unwrap_err();
    assert!(why.contains("only one of them"), "{why}");

    plane.kubectl(&["create", "namespace", PLATFORM]).unwrap();
    plane.kubectl_with(&["--warnings-as-errors", "apply", "--server-side", "-f", "-"], &several).unwrap();
}
