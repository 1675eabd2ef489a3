//! What people ask of a rollout by an entry in its status: every way around the admission policy, on a real API server. No operator
//! runs here, so that no entry is handled; "Remit" is the administrator in the role of its ServiceAccount.

use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::support::{ControlPlane, PLATFORM, unique};

/// Who may do all that a role can give: all of Remit's verbs on rollouts.
const OPERATOR: &str = "olga";
/// Who may write the status, and has none of Remit's verbs.
const WRITER: &str = "walter";

fn plane() -> &'static ControlPlane {
    static SHARED: OnceLock<ControlPlane> = OnceLock::new();
    SHARED.get_or_init(|| {
        let plane = ControlPlane::start();
        plane.kubectl(&["create", "namespace", PLATFORM]).unwrap();
        let url = "webhook.url=https://127.0.0.1:1";
        let chart = plane.render_chart(&["--set", "deploy=false", "--set", url]).unwrap();
        plane.kubectl_with(&["apply", "--server-side", "-f", "-"], &chart).unwrap();
        plane.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]).unwrap();
        // Nobody answers it here.
        plane.kubectl(&["delete", "validatingwebhookconfiguration", "remit"]).unwrap();
        plane
    })
}

/// A namespace with a rollout whose status Remit has written.
struct Space {
    name: String,
}

impl Space {
    fn new() -> Space {
        let plane = plane();
        let space = Space { name: format!("actions-{}", unique()) };
        plane.kubectl(&["create", "namespace", &space.name]).unwrap();
        for (role, user) in [
            ("remit-rollout-operator", OPERATOR),
            ("remit-rollout-overrider", OPERATOR),
            ("remit-tenant-editor", OPERATOR),
            ("remit-tenant-editor", WRITER),
        ] {
            space.bind(role, user);
        }
        let raw = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "status"}, "rules": [
            {"apiGroups": ["remit.dev"], "resources": ["tenantrollouts/status", "tenantrollouts/scale"], "verbs": ["get", "patch", "update"]},
        ]});
        space.apply(&["--server-side"], &raw).unwrap();
        for user in [OPERATOR, WRITER] {
            let binding = format!("status-{user}");
            let user = format!("--user={user}");
            plane.kubectl(&["create", "rolebinding", &binding, "-n", &space.name, "--role=status", &user]).unwrap();
        }
        let rollout = json!({
            "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"}, "spec": {}
        });
        space.apply(&["--server-side"], &rollout).unwrap();
        let mut status = rollout.clone();
        status.as_object_mut().unwrap().remove("spec");
        status["status"] = json!({
            "observedGeneration": 1, "phase": "Progressing", "epoch": 3, "percent": 5,
            "handled": [{"id": "old", "actor": "olga", "action": "pause", "result": "done"}],
            "conditions": [{"type": "Ready", "status": "False", "reason": "Canary", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        });
        // The policy takes effect a moment after the chart is applied; Remit may write from the start.
        let remit = format!("--as=system:serviceaccount:{PLATFORM}:remit");
        space
            .apply(&["--server-side", "--subresource=status", "--field-manager=remit", &remit], &status)
            .expect("Remit writes");
        crate::support::eventually_blocking("the policy is in effect", || {
            match space.patch(WRITER, "merge", &json!({"status": {"epoch": 4}})) {
                Err(why) if why.contains("remit-rollout-actions") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        space
    }

    fn bind(&self, role: &str, user: &str) {
        let name = format!("{role}-{user}");
        let (role, user) = (format!("--clusterrole={role}"), format!("--user={user}"));
        plane().kubectl(&["create", "rolebinding", &name, "-n", &self.name, &role, &user]).unwrap();
    }

    fn apply(&self, args: &[&str], object: &Value) -> Result<String, String> {
        plane().kubectl_with(&[&["apply", "-n", &self.name, "-f", "-"], args].concat(), &object.to_string())
    }

    fn patch(&self, user: &str, kind: &str, patch: &Value) -> Result<String, String> {
        let (user, kind, patch) = (format!("--as={user}"), format!("--type={kind}"), patch.to_string());
        let args =
            ["patch", "tenantrollout", "default", "-n", &self.name, "--subresource=status", &user, &kind, "-p", &patch];
        plane().kubectl(&args)
    }

    /// Appends an entry as `user`, by JSON patch.
    fn append(&self, user: &str, entry: &Value) -> Result<String, String> {
        let (path, value) = match self.rollout()["status"]["actions"].is_array() {
            true => ("/status/actions/-", entry.clone()),
            false => ("/status/actions", json!([entry])),
        };
        self.patch(user, "json", &json!([{"op": "add", "path": path, "value": value}]))
    }

    fn rollout(&self) -> Value {
        let text = plane().kubectl(&[
            "get",
            "tenantrollout",
            "default",
            "-n",
            &self.name,
            "-o",
            "json",
            "--show-managed-fields",
        ]);
        serde_json::from_str(&text.unwrap()).unwrap()
    }

    fn ids(&self) -> Vec<String> {
        let rollout = self.rollout();
        let actions = rollout["status"]["actions"].as_array().into_iter().flatten();
        actions.map(|a| a["id"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = plane().kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

fn entry(id: &str, actor: &str, action: &str) -> Value {
    json!({"id": id, "actor": actor, "action": action, "reason": "because", "digest": "sha256:00"})
}

/// Refused by the policy, and it says why.
fn refused(said: Result<String, String>, why: &str) {
    let error = said.expect_err(why);
    assert!(error.contains("remit-rollout-actions") && error.contains(why), "{why}: {error}");
}

#[test]
fn own_entries_are_appended_by_every_kind_of_patch() {
    let space = Space::new();
    let before = space.rollout();
    space.append(OPERATOR, &entry("one", OPERATOR, "pause")).unwrap();
    space.append(OPERATOR, &entry("two", OPERATOR, "promote-full")).unwrap();
    let applied = json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"},
        "status": {"actions": [entry("three", OPERATOR, "abort")]},
    });
    let by_olga = format!("--as={OPERATOR}");
    let args = ["--server-side", "--subresource=status", "--field-manager=olga-1", &by_olga];
    space.apply(&args, &applied).unwrap();
    let mut all = space.rollout()["status"]["actions"].clone();
    all.as_array_mut()
        .unwrap()
        .push(json!({"id": "four", "actor": OPERATOR, "action": "rollback", "reason": "r", "revision": 2, "digest": "sha256:00"}));
    space.patch(OPERATOR, "merge", &json!({"status": {"actions": all}})).unwrap();
    assert_eq!(space.ids(), ["one", "two", "three", "four"]);
    let mut after = space.rollout();
    after["status"].as_object_mut().unwrap().remove("actions");
    assert_eq!((&after["status"], &after["spec"]), (&before["status"], &before["spec"]), "and nothing else changed");
    // Remit's next apply still takes away what it no longer says, and leaves the entries.
    let remit = format!("--as=system:serviceaccount:{PLATFORM}:remit");
    let mut next =
        json!({"apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"}});
    next["status"] = before["status"].clone();
    next["status"].as_object_mut().unwrap().remove("percent");
    space.apply(&["--server-side", "--subresource=status", "--field-manager=remit", &remit], &next).unwrap();
    assert_eq!(space.rollout()["status"].get("percent"), None);
    assert_eq!(space.ids().len(), 4);
    // A fifth of the same person waits; another person's does not.
    refused(space.append(OPERATOR, &entry("five", OPERATOR, "rollback")), "may have no more");
    space.bind("remit-rollout-operator", "oscar");
    space.append("oscar", &entry("five", "oscar", "rollback")).unwrap();
}

#[test]
fn no_entry_is_anothers_and_none_is_taken_away() {
    let space = Space::new();
    let own = "an entry of yours has actor";
    refused(space.append(OPERATOR, &entry("x", WRITER, "pause")), own);
    refused(space.append(OPERATOR, &entry("x", "system:serviceaccount:remit-system:remit", "pause")), own);
    let mut via = entry("x", OPERATOR, "pause");
    via["via"] = "http".into();
    refused(space.append(OPERATOR, &via), own);
    space.append(OPERATOR, &entry("mine", OPERATOR, "pause")).unwrap();
    space.bind("remit-rollout-operator", "oscar");
    let stay = "stay as they are";
    for user in ["oscar", OPERATOR] {
        let remove = json!([{"op": "remove", "path": "/status/actions/0"}]);
        refused(space.patch(user, "json", &remove), stay);
        refused(space.patch(user, "merge", &json!({"status": {"actions": null}})), stay);
        refused(space.patch(user, "merge", &json!({"status": {"actions": [entry("new", user, "pause")]}})), stay);
        let change = json!([{"op": "replace", "path": "/status/actions/0/action", "value": "rollback"}]);
        refused(space.patch(user, "json", &change), stay);
        let reason = json!([{"op": "replace", "path": "/status/actions/0/reason", "value": "another"}]);
        refused(space.patch(user, "json", &reason), stay);
    }
    // Another's entry taken over by a forced apply; one's own that an apply would drop.
    let apply = |id: &str, user: &str, manager: &str| {
        let object = json!({
            "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"},
            "status": {"actions": [entry(id, user, "abort")]},
        });
        let (user, manager) = (format!("--as={user}"), format!("--field-manager={manager}"));
        space.apply(&["--server-side", "--force-conflicts", "--subresource=status", &user, &manager], &object)
    };
    refused(apply("mine", "oscar", "m"), stay);
    apply("first", "oscar", "m").unwrap();
    refused(apply("second", "oscar", "m"), stay);
    assert_eq!(space.ids(), ["mine", "first"]);
}

#[test]
fn no_other_field_is_written_with_an_entry_or_without() {
    let space = Space::new();
    let before = space.rollout();
    let only = "only Remit writes it";
    let good = [entry("a", OPERATOR, "promote")];
    for (field, value) in [
        ("percent", json!(100)),
        ("epoch", json!(9)),
        ("stage", json!(2)),
        ("stable", json!({"tenantUid": "u", "package": "p", "version": "1.0.0", "digest": "sha256:00", "revision": 1})),
        ("handled", json!([])),
        ("handled", json!(null)),
        ("conditions", json!([])),
        ("phase", json!("Healthy")),
        ("percent", json!(null)),
    ] {
        refused(space.patch(OPERATOR, "merge", &json!({"status": {field: value}})), only);
        refused(space.patch(OPERATOR, "merge", &json!({"status": {field: value, "actions": good}})), only);
    }
    refused(space.patch(OPERATOR, "json", &json!([{"op": "remove", "path": "/status/percent"}])), only);
    refused(
        space.patch(OPERATOR, "json", &json!([{"op": "replace", "path": "/status", "value": {"actions": good}}])),
        only,
    );
    refused(space.patch(OPERATOR, "json", &json!([{"op": "remove", "path": "/status"}])), only);
    // Whose the fields are: what another manager owns too, Remit's next apply would not take away. The same value changes nothing else.
    let olga = format!("--as={OPERATOR}");
    for (manager, status) in [
        ("olga", json!({"percent": 5})),
        ("olga", json!({"percent": 5, "actions": good})),
        ("remit", json!({"percent": 5})),
        ("remit", json!({"actions": good})),
    ] {
        let object = json!({
            "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"}, "status": status,
        });
        let manager = format!("--field-manager={manager}");
        let args = ["--server-side", "--force-conflicts", "--subresource=status", &manager, &olga];
        refused(space.apply(&args, &object), only);
    }
    let mut whole =
        json!({"apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"}});
    whole["status"] = before["status"].clone();
    whole["status"]["actions"] = json!(good);
    refused(space.apply(&["--server-side", "--subresource=status", "--field-manager=remit", &olga], &whole), only);
    let mut replaced = before.clone();
    replaced["status"]["percent"] = json!(100);
    let replace = ["replace", "-n", &space.name, "--subresource=status", &olga, "-f", "-"];
    refused(plane().kubectl_with(&replace, &replaced.to_string()), only);
    // Labels, managers and spec do not change through the status, and there is no scale.
    let more = json!({"metadata": {"labels": {"x": "y"}, "managedFields": [{}]}, "spec": {"paused": true}, "status": {"actions": good}});
    space.patch(OPERATOR, "merge", &more).unwrap();
    let after = space.rollout();
    assert_eq!((&after["metadata"]["labels"], &after["spec"]), (&Value::Null, &before["spec"]));
    let remits = |rollout: &Value| {
        let all = rollout["metadata"]["managedFields"].as_array().unwrap();
        all.iter().find(|m| m["manager"] == "remit").unwrap().clone()
    };
    assert_eq!(remits(&after), remits(&before));
    let scale = ["scale", "tenantrollout/default", "-n", &space.name, "--replicas=3", &olga];
    plane().kubectl(&scale).unwrap_err();
    let patch = [
        "patch",
        "tenantrollout",
        "default",
        "-n",
        &space.name,
        "--subresource=scale",
        &olga,
        "--type=merge",
        "-p",
        "{}",
    ];
    plane().kubectl(&patch).unwrap_err();
}

#[test]
fn each_action_needs_its_verb() {
    let space = Space::new();
    let actions = [
        ("pause", "pause"),
        ("resume", "pause"),
        ("promote", "promote"),
        ("promote-full", "promote-unchecked"),
        ("abort", "abort"),
        ("rollback", "rollback"),
    ];
    for (action, verb) in actions {
        // All rights that ordinary roles give, and `admin` of the namespace.
        refused(
            space.append(WRITER, &entry("w", WRITER, action)),
            &format!("{action} needs verb {verb} on tenantrollouts"),
        );
        // Every verb but that one.
        let user = format!("not-{action}");
        let verbs: Vec<&str> = actions.iter().map(|(_, v)| *v).filter(|v| *v != verb).collect();
        let all = [&verbs[..], &["get", "update", "patch"]].concat();
        let rules = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": user}, "rules": [
            {"apiGroups": ["remit.dev"], "resources": ["tenantrollouts"], "verbs": all},
            {"apiGroups": ["remit.dev"], "resources": ["tenantrollouts/status"], "verbs": ["get", "patch", "update"]},
        ]});
        space.apply(&["--server-side"], &rules).unwrap();
        let (role, binding) = (format!("--role={user}"), format!("--user={user}"));
        plane().kubectl(&["create", "rolebinding", &user, "-n", &space.name, &role, &binding]).unwrap();
        refused(space.append(&user, &entry("w", &user, action)), &format!("needs verb {verb}"));
        // One entry with the verb carries none without it.
        let other = if verb == "pause" { "promote" } else { "pause" };
        let both = json!([entry("ok", &user, other), entry("w", &user, action)]);
        refused(space.patch(&user, "merge", &json!({"status": {"actions": both}})), "only append one");
    }
    // The rollout operator has them all but one.
    space.bind("remit-rollout-operator", "oscar");
    for (action, verb) in actions {
        let said = space.append("oscar", &entry(&format!("o-{action}"), "oscar", action));
        match (verb, space.ids().len()) {
            ("promote-unchecked", _) => refused(said, "promote-unchecked"),
            (_, 4) if said.is_err() => refused(said, "may have no more"),
            _ => drop(said.unwrap()),
        }
    }
    for (role, allowed) in [("view", false), ("edit", false), ("admin", false), ("remit-rollout-operator", true)] {
        let user = format!("user-{role}");
        space.bind(role, &user);
        let user = format!("--as={user}");
        for verb in ["pause", "promote", "abort", "rollback"] {
            let can = plane().kubectl(&["auth", "can-i", verb, "tenantrollouts.remit.dev", "-n", &space.name, &user]);
            assert_eq!(can.is_ok(), allowed, "{role} {verb}");
        }
        let status =
            ["auth", "can-i", "patch", "tenantrollouts.remit.dev", "--subresource=status", "-n", &space.name, &user];
        assert_eq!(plane().kubectl(&status).is_ok(), allowed, "{role}");
    }
}

#[test]
fn an_entry_is_well_formed() {
    let space = Space::new();
    let with = |field: &str, value: Value| {
        let mut entry = entry("x", OPERATOR, "rollback");
        entry[field] = value;
        entry
    };
    refused(space.append(OPERATOR, &with("action", json!("explode"))), "action is pause");
    refused(space.append(OPERATOR, &with("reason", json!("  "))), "need a reason");
    refused(space.append(OPERATOR, &with("reason", json!(null))), "need a reason");
    refused(space.append(OPERATOR, &with("id", json!("old"))), "the id of an entry is new");
    refused(space.append(OPERATOR, &with("id", json!("Up\n"))), "the id of an entry is new");
    let mut pause = with("action", json!("pause"));
    pause["revision"] = json!(3);
    refused(space.append(OPERATOR, &pause), "revision stands with rollback only");
    for action in ["promote", "promote-full", "rollback"] {
        let mut entry = entry("x", OPERATOR, action);
        entry.as_object_mut().unwrap().remove("digest");
        refused(space.append(OPERATOR, &entry), "digest is missing");
    }
    refused(space.append(OPERATOR, &with("stage", json!(1))), "stage stands with promote only");
    let mut promote = entry("s", OPERATOR, "promote");
    promote["stage"] = json!(-1);
    let error = space.append(OPERATOR, &promote).unwrap_err();
    assert!(error.contains("status.actions[0].stage"), "{error}");
    let error = space.append(OPERATOR, &with("revision", json!(0))).unwrap_err();
    assert!(error.contains("status.actions[0].revision"), "{error}");
    space.append(OPERATOR, &json!({"id": "p", "actor": OPERATOR, "action": "pause"})).unwrap();
    let error = space.append(OPERATOR, &json!({"id": "p", "actor": OPERATOR, "action": "pause"})).unwrap_err();
    assert!(error.contains("Duplicate") || error.contains("stay as they are"), "{error}");
}

/// Many people with less than the verb `rollback` fill the list as far as they can: a rollback still gets in, and so does an abort.
#[test]
fn action_list_filled_to_block_rollback() {
    let space = Space::new();
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "most"}, "rules": [
        {"apiGroups": ["remit.dev"], "resources": ["tenantrollouts"], "verbs": ["get", "pause", "promote", "abort"]},
        {"apiGroups": ["remit.dev"], "resources": ["tenantrollouts/status"], "verbs": ["get", "patch"]},
    ]});
    space.apply(&["--server-side"], &role).unwrap();
    let groups = ["create", "rolebinding", "most", "-n", &space.name, "--role=most", "--group=crowd"];
    plane().kubectl(&groups).unwrap();
    let mut places = json!([]);
    let mut fill = |first: usize, people: usize, action: &str| {
        for n in 4 * first..4 * (first + people) {
            let user = format!("user-{}", n / 4);
            let new = entry(&format!("{user}-{n}"), &user, action);
            let list = places.as_array_mut().unwrap();
            list.push(new.clone());
            let patch = match list.len() {
                1 => json!([{"op": "add", "path": "/status/actions", "value": list}]),
                _ => json!([{"op": "add", "path": "/status/actions/-", "value": new}]),
            };
            let patch = patch.to_string();
            let (user, group) = (format!("--as={user}"), "--as-group=crowd");
            let args = [
                "patch",
                "tenantrollout",
                "default",
                "-n",
                &space.name,
                "--subresource=status",
                &user,
                group,
                "--type=json",
                "-p",
                &patch,
            ];
            plane().kubectl(&args)?;
        }
        Ok::<(), String>(())
    };
    fill(0, 8, "pause").unwrap();
    refused(fill(8, 1, "promote").map(|()| String::new()), "too many entries wait");
    fill(8, 4, "abort").unwrap();
    refused(fill(12, 1, "abort").map(|()| String::new()), "too many entries wait");
    assert_eq!(space.ids().len(), 48);
    refused(space.append(OPERATOR, &entry("p", OPERATOR, "promote")), "too many entries wait");
    for n in 0..4 {
        space.append(OPERATOR, &entry(&format!("back-{n}"), OPERATOR, "rollback")).unwrap();
    }
    assert_eq!(space.ids().len(), 52);
}

/// The policy that docs/rollouts.md gives for those who keep loosening to the verb: it is one, and does that.
#[test]
fn the_documented_policy_keeps_loosening_to_the_verb() {
    let space = Space::new();
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rollouts.md")).unwrap();
    let (_, rest) = docs.split_once("```yaml\napiVersion: admissionregistration.k8s.io/v1\n").unwrap();
    let (policy, _) = rest.split_once("```").unwrap();
    let policy = format!("apiVersion: admissionregistration.k8s.io/v1\n{policy}");
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "rollout-budgets"},
        "spec": {"policyName": "rollout-budgets", "validationActions": ["Deny"], "matchResources": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": &space.name}}}},
    });
    for object in [policy, binding.to_string()] {
        plane().kubectl_with(&["apply", "-f", "-"], &object).unwrap();
    }
    let patch = |user: &str, spec: Value| {
        let (user, patch) = (format!("--as={user}"), json!({"spec": spec}).to_string());
        plane().kubectl(&["patch", "tenantrollout", "default", "-n", &space.name, "--type=merge", &user, "-p", &patch])
    };
    let stages = |seconds: i64| json!({"stages": [{"percent": 100, "minSeconds": seconds, "minDecisions": 0}]});
    // Before the policy is in effect, or with the verb.
    patch(OPERATOR, stages(0)).unwrap();
    let mut seconds = 0;
    crate::support::eventually_blocking("the policy is in effect", || {
        seconds += 1;
        match patch(WRITER, stages(seconds)) {
            Err(why) if why.contains("needs verb promote-unchecked") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    for loose in
        [json!({"budgets": {"criticalDrift": 9}}), json!({"onInconclusive": "Proceed"}), json!({"stages": null})]
    {
        let why = patch(WRITER, loose.clone()).unwrap_err();
        assert!(why.contains("needs verb promote-unchecked"), "{loose}: {why}");
    }
    patch(WRITER, json!({"package": {"name": "core"}, "paused": true})).unwrap();
    patch(OPERATOR, json!({"budgets": {"criticalDrift": 9}, "stages": null})).unwrap();
    plane()
        .kubectl(&["delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", "rollout-budgets"])
        .unwrap();
}
