//! The custom resources and the admission policies, as a user meets them: kubectl against the real API server.
//!
//! Each test has a namespace of its own. `author` is a user with every ordinary verb on Remit's kinds and their status, and without Remit's
//! own verbs; `kubectl` runs as the cluster's administrator unless it says `--as`.

use serde_json::{Value, json};

use crate::support::{self, ControlPlane, PLATFORM};

/// kubectl on the shared cluster.
struct Kube {
    plane: &'static ControlPlane,
}

/// What kubectl said.
struct Said {
    ok: bool,
    out: String,
    err: String,
}

impl Kube {
    fn shared() -> Self {
        Self { plane: &support::cluster().plane }
    }

    fn run(&self, args: &[&str], stdin: &str) -> Said {
        match self.plane.kubectl_heard(args, stdin) {
            Ok((out, err)) => Said { ok: true, out, err },
            Err(err) => Said { ok: false, out: String::new(), err },
        }
    }

    /// Accepted; what it printed, without warnings.
    fn must(&self, args: &[&str], stdin: &str) -> String {
        let said = self.run(args, stdin);
        assert!(said.ok, "kubectl {args:?} failed: {}\n{stdin}", said.err);
        said.out
    }

    /// Refused, and the message contains all of `reasons`.
    fn refused(&self, args: &[&str], stdin: &str, reasons: &[&str]) {
        let said = self.run(args, stdin);
        assert!(!said.ok, "kubectl {args:?} was not refused: {}{}\n{stdin}", said.out, said.err);
        for reason in reasons {
            assert!(said.err.contains(reason), "kubectl {args:?} should say {reason:?}: {}\n{stdin}", said.err);
        }
    }
}

/// A namespace in which `author` may do what an ordinary tenant administrator may.
struct Space<'a> {
    kube: &'a Kube,
    name: String,
}

impl<'a> Space<'a> {
    fn new(kube: &'a Kube, purpose: &str) -> Self {
        let name = format!("api-{purpose}-{}", support::unique());
        let verbs = json!(["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"]);
        let role = |kind: &str, name: &str, rules: Value| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "rules": rules});
        let kinds = ["agents", "policypackages", "policyreplays", "tenantrollouts", "tenantprofiles"];
        let resources: Vec<_> = kinds.iter().flat_map(|k| [(*k).to_owned(), format!("{k}/status")]).collect();
        kube.must(&["create", "namespace", &name], "");
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            role("Role", "author", json!([
                {"apiGroups": ["remit.dev"], "resources": resources, "verbs": verbs},
                {"apiGroups": ["apps"], "resources": ["controllerrevisions"], "verbs": verbs},
            ])),
            role("Role", "elevator", json!([{"apiGroups": ["remit.dev"], "resources": ["agents"], "verbs": ["elevate"]}])),
        ]});
        kube.must(&["-n", &name, "apply", "-f", "-"], &list.to_string());
        let space = Self { kube, name };
        space.bind("author", "author");
        space.bind("author", "elevator");
        space.bind("elevator", "elevator");
        space
    }

    fn bind(&self, role: &str, user: &str) {
        let name = format!("{role}-{user}");
        let (role, user) = (format!("--role={role}"), format!("--user={user}"));
        self.kube.must(&["-n", &self.name, "create", "rolebinding", &name, &role, &user], "");
    }

    fn args<'b>(&'b self, args: &[&'b str]) -> Vec<&'b str> {
        [&["-n", self.name.as_str()], args].concat()
    }

    fn must(&self, args: &[&str], stdin: &str) -> String {
        self.kube.must(&self.args(args), stdin)
    }

    fn refused(&self, args: &[&str], stdin: &str, reasons: &[&str]) {
        self.kube.refused(&self.args(args), stdin, reasons);
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        self.kube.run(&["delete", "namespace", &self.name, "--wait=false"], "");
    }
}

fn object(kind: &str, name: &str, spec: &Value) -> String {
    json!({"apiVersion": "remit.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}).to_string()
}

fn agent(name: &str, spec: &Value) -> String {
    object("Agent", name, spec)
}

const READS: &str = r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");"#;

fn package_spec(version: &str) -> Value {
    json!({
        "package": "demo", "version": version, "author": "ann",
        "tools": [{"name": "git/status", "tier": "read"}],
        "policies": [{"name": "reads.cedar", "text": READS}],
    })
}

#[test]
fn agent_schema_refuses_by_field() {
    let kube = Kube::shared();
    let space = Space::new(&kube, "agent");
    let fixed = json!({"kind": "User", "name": "ann@example.com"});
    let oidc = json!({"issuer": "https://idp.example", "subject": "repo:a"});
    for (spec, reasons) in [
        (json!({"trustLevel": 5}), vec!["spec.trustLevel"]),
        (json!({"trustLevel": -1}), vec!["spec.trustLevel"]),
        (
            json!({"identities": [{"serviceAccount": "a"}, {"serviceAccount": "a"}]}),
            vec!["spec.identities", "only once"],
        ),
        (json!({"identities": [{"serviceAccount": "A b"}]}), vec!["spec.identities[0].serviceAccount"]),
        (json!({"identities": [{}]}), vec!["spec.identities[0]", "exactly one of"]),
        (json!({"identities": [{"serviceAccount": "a", "spiffe": "spiffe://a/b"}]}), vec!["exactly one of"]),
        (
            json!({"identities": [{"serviceAccount": "a"}, {"oidc": oidc, "spiffe": "spiffe://a/b"}]}),
            vec!["exactly one of"],
        ),
        (json!({"identities": [{"oidc": oidc}, {"oidc": oidc}]}), vec!["spec.identities", "only once"]),
        (json!({"identities": [{"oidc": {"issuer": "https://a"}}]}), vec!["spec.identities[0].oidc.subject"]),
        (
            json!({"identities": [{"oidc": {"issuer": "https://a#b", "subject": "c"}}]}),
            vec!["spec.identities[0].oidc.issuer"],
        ),
        (json!({"identities": [{"oidc": {"issuer": "a", "subject": "c"}}]}), vec!["spec.identities[0].oidc.issuer"]),
        (
            json!({"identities": [{"oidc": {"issuer": "https://a", "subject": "c\nd"}}]}),
            vec!["spec.identities[0].oidc.subject"],
        ),
        (json!({"identities": [{"spiffe": "spiffe://A/b"}]}), vec!["spec.identities[0].spiffe"]),
        (json!({"identities": [{"spiffe": "https://a/b"}]}), vec!["spec.identities[0].spiffe"]),
        (
            json!({"identities": (0..17).map(|n| json!({"serviceAccount": format!("a{n}")})).collect::<Vec<_>>()}),
            vec!["spec.identities"],
        ),
        (json!({"type": "Not A Name"}), vec!["spec.type"]),
        (json!({"teams": ["a", "a"]}), vec!["spec.teams", "Duplicate"]),
        (json!({"teams": ["a/b"]}), vec!["spec.teams[0]"]),
        (json!({"session": "Sometimes"}), vec!["spec.session", "Optional", "Required"]),
        (json!({"delegation": {"fixed": fixed}}), vec!["spec.delegation", "mode None acts for nobody"]),
        (json!({"delegation": {"mode": "None", "fixed": fixed}}), vec!["mode None acts for nobody"]),
        (json!({"delegation": {"mode": "Required"}}), vec!["spec.delegation", "mode Required needs fixed"]),
        (
            json!({"delegation": {"mode": "Required", "fixed": {"kind": "Agent", "name": "x y"}}}),
            vec!["spec.delegation.fixed"],
        ),
        (
            json!({"delegation": {"mode": "Required", "fixed": {"kind": "Agent", "name": "me"}}}),
            vec!["on behalf of itself"],
        ),
        (json!({"attributes": {"": "x"}}), vec!["spec.attributes", "1 to 63 characters"]),
        (json!({"attributes": {"a": "x".repeat(1025)}}), vec!["spec.attributes.a"]),
        (json!({"trust": 1}), vec!["unknown field", "spec.trust"]),
    ] {
        space.refused(&["create", "-f", "-"], &agent("me", &spec), &reasons);
    }
    for spec in [
        json!({}),
        json!({"trustLevel": 4, "type": "coder", "teams": ["a", "b"], "session": "Required", "attributes": {"region": "eu"}}),
        json!({"delegation": {"mode": "Required", "fixed": fixed}}),
        json!({"delegation": {"mode": "Optional"}}),
    ] {
        space.must(&["create", "--dry-run=server", "-f", "-"], &agent("me", &spec));
    }
    // kstatus reads -1 as "in progress": it is there before the first visit.
    let stored = space.must(&["create", "--dry-run=server", "-o", "json", "-f", "-"], &agent("me", &json!({})));
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored["status"], json!({"observedGeneration": -1}));
}

#[test]
fn package_is_immutable_also_by_adding_or_removing_a_field() {
    let kube = Kube::shared();
    let space = Space::new(&kube, "immutable");
    let original = object("PolicyPackage", "demo", &package_spec("1.0.0"));
    space.must(&["apply", "-f", "-"], &original);
    let said = ["spec cannot be changed"];
    for (kind, patch) in [
        ("merge", json!({"spec": {"version": "1.0.1"}})),
        ("merge", json!({"spec": {"schema": "entity X;"}})),
        ("merge", json!({"spec": {"author": null}})),
        ("merge", json!({"spec": {"policies": null}})),
        ("merge", json!({"spec": {"tools": []}})),
        ("json", json!([{"op": "remove", "path": "/spec/tools"}])),
        ("json", json!([{"op": "add", "path": "/spec/entities", "value": "[]"}])),
        ("json", json!([{"op": "add", "path": "/spec/tools/0/groups", "value": ["x"]}])),
        (
            "json",
            json!([{"op": "replace", "path": "/spec/policies/0/text", "value": "permit(principal, action, resource);"}]),
        ),
    ] {
        space.refused(&["patch", "policypackage", "demo", "--type", kind, "-p", &patch.to_string()], "", &said);
    }
    let mut other = package_spec("1.0.0");
    other["author"] = json!("eve");
    space.refused(&["apply", "-f", "-"], &object("PolicyPackage", "demo", &other), &said);
    space.refused(&["replace", "-f", "-"], &object("PolicyPackage", "demo", &other), &said);
    space.refused(
        &["apply", "--server-side", "--force-conflicts", "--field-manager=eve", "-f", "-"],
        &object("PolicyPackage", "demo", &other),
        &said,
    );
    // The spec through the status subresource changes nothing, whoever asks.
    kube.run(
        &[
            "-n",
            &space.name,
            "patch",
            "policypackage",
            "demo",
            "--subresource=status",
            "--type=merge",
            "-p",
            r#"{"spec":{"author":"eve"}}"#,
        ],
        "",
    );
    assert_eq!(space.must(&["get", "policypackage", "demo", "-o", "jsonpath={.spec.author}"], ""), "ann");

    space.must(&["label", "policypackage", "demo", "team=a"], "");
    space.must(&["apply", "-f", "-"], &original);
    space.must(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &original);
}

#[test]
fn package_schema_takes_900_kib_and_no_numbers() {
    let kube = Kube::shared();
    let space = Space::new(&kube, "size");
    let mut spec = package_spec("1.0.0");
    spec["tools"] =
        (0..225).map(|n| json!({"name": format!("s/t{n}"), "tier": "read", "description": "d".repeat(4050)})).collect();
    let text = object("PolicyPackage", "large", &spec);
    assert!(text.len() > 900 * 1024);
    space.must(&["apply", "--server-side", "-f", "-"], &text);

    for (field, value) in [("version", json!(1.0)), ("author", json!(7)), ("schema", json!(true))] {
        let mut spec = package_spec("1.0.0");
        spec[field] = value;
        space.refused(
            &["create", "-f", "-"],
            &object("PolicyPackage", "p", &spec),
            &[&format!("spec.{field}"), "string"],
        );
    }
    let mut spec = package_spec("1.0.0");
    spec["digest"] = json!("sha256:12");
    space.refused(&["create", "-f", "-"], &object("PolicyPackage", "p", &spec), &["spec.digest"]);
    // Nothing is added to what was signed.
    space.must(&["apply", "-f", "-"], &object("PolicyPackage", "small", &package_spec("1.0.0")));
    let stored: Value =
        serde_json::from_str(&space.must(&["get", "policypackage", "small", "-o", "json"], "")).unwrap();
    assert_eq!(stored["spec"], package_spec("1.0.0"));
}

#[test]
fn signer_key_is_fixed_and_revocation_is_final() {
    // RFC 8032, test 1.
    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
    const OTHER: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAPUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=\n-----END PUBLIC KEY-----\n";
    let kube = Kube::shared();
    let name = format!("api-signer-{}", support::unique());
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z");
    // Covers a namespace that does not exist: on a shared cluster nobody else is to need a signature.
    let tenants = json!([format!("{name}-nobody")]);
    let signer = |spec: Value| object("PolicySigner", &name, &spec);
    for (spec, reasons) in [
        (json!({"publicKey": KEY, "tenants": []}), vec!["spec.tenants"]),
        (json!({"publicKey": KEY}), vec!["spec.tenants"]),
        (json!({"publicKey": KEY, "tenants": ["a*"]}), vec!["spec.tenants[0]"]),
        (json!({"publicKey": KEY, "tenants": ["a", "a"]}), vec!["spec.tenants", "Duplicate"]),
        (
            json!({"publicKey": "-----BEGIN PRIVATE KEY-----", "tenants": tenants}),
            vec!["spec.publicKey", "BEGIN PUBLIC KEY"],
        ),
        (
            json!({"publicKey": KEY, "tenants": tenants, "notBefore": late, "notAfter": early}),
            vec!["notAfter must be later"],
        ),
        (
            json!({"publicKey": KEY, "tenants": tenants, "notBefore": early, "notAfter": early}),
            vec!["notAfter must be later"],
        ),
        (json!({"publicKey": KEY, "tenants": tenants, "notAfter": "tomorrow"}), vec!["spec.notAfter", "date-time"]),
        (json!({"publicKey": KEY, "tenants": tenants, "revoked": {}}), vec!["spec.revoked.reason"]),
    ] {
        kube.refused(&["create", "-f", "-"], &signer(spec), &reasons);
    }
    kube.must(
        &["create", "-f", "-"],
        &signer(json!({"publicKey": KEY, "tenants": tenants, "notBefore": early, "notAfter": late})),
    );
    let patch = |patch: Value| {
        let patch = patch.to_string();
        kube.run(&["patch", "policysigner", &name, "--type=merge", "-p", &patch], "")
    };
    let refused = |spec: Value, reason: &str| {
        let said = patch(json!({"spec": spec}));
        assert!(!said.ok && said.err.contains(reason), "{spec} should be refused with {reason:?}: {}", said.err);
    };
    let taken = |spec: Value| {
        let said = patch(json!({"spec": spec}));
        assert!(said.ok, "{spec}: {}", said.err);
    };
    refused(json!({"publicKey": OTHER}), "publicKey cannot be changed");
    refused(json!({"publicKey": null}), "spec.publicKey");
    taken(json!({"notAfter": "2027-01-01T00:00:00Z"}));
    taken(json!({"revoked": {"reason": "Superseded"}}));
    refused(json!({"revoked": null}), "revoked cannot be taken back");
    taken(json!({"revoked": {"reason": "Compromised"}}));
    refused(json!({"revoked": {"reason": "Superseded"}}), "cannot go back from Compromised");
    refused(json!({"revoked": null}), "revoked cannot be taken back");
    let without = signer(json!({"publicKey": KEY, "tenants": tenants}));
    kube.refused(&["replace", "-f", "-"], &without, &["revoked cannot be taken back"]);
    kube.must(&["delete", "policysigner", &name], "");
}

#[test]
fn rollout_and_profile_are_named_default_and_in_range() {
    let kube = Kube::shared();
    let space = Space::new(&kube, "default");
    let digest = format!("sha256:{}", "a".repeat(64));
    let stages = |percents: Value| {
        let each = percents.as_array().unwrap().iter().map(|p| json!({"percent": p}));
        json!({"stages": each.collect::<Vec<_>>()})
    };
    for (kind, name, spec, reasons) in [
        ("TenantRollout", "other", json!({}), vec!["metadata.name must be 'default'"]),
        ("TenantProfile", "other", json!({}), vec!["metadata.name must be 'default'"]),
        ("TenantRollout", "default", json!({"revisionHistoryLimit": 0}), vec!["spec.revisionHistoryLimit"]),
        ("TenantRollout", "default", json!({"revisionHistoryLimit": 101}), vec!["spec.revisionHistoryLimit"]),
        ("TenantRollout", "default", json!({"package": {"digest": "sha256:1"}}), vec!["spec.package.digest"]),
        (
            "TenantRollout",
            "default",
            json!({"package": {"digest": digest, "name": "p"}}),
            vec!["spec.package", "exactly one package"],
        ),
        (
            "TenantRollout",
            "default",
            json!({"package": {"digest": digest, "version": "1"}}),
            vec!["exactly one package"],
        ),
        ("TenantRollout", "default", json!({"package": {"name": "P_"}}), vec!["spec.package.name"]),
        ("TenantRollout", "default", stages(json!([])), vec!["spec.stages", "at least 1"]),
        (
            "TenantRollout",
            "default",
            stages(json!([5, 0, 100])),
            vec!["spec.stages[1].percent", "greater than or equal to 1"],
        ),
        (
            "TenantRollout",
            "default",
            stages(json!([-5, 100])),
            vec!["spec.stages[0].percent", "greater than or equal to 1"],
        ),
        (
            "TenantRollout",
            "default",
            stages(json!([5, 101])),
            vec!["spec.stages[1].percent", "less than or equal to 100"],
        ),
        ("TenantRollout", "default", stages(json!([5, 25, 25, 100])), vec!["stages[2].percent: must be more than"]),
        ("TenantRollout", "default", stages(json!([25, 5, 100])), vec!["stages[1].percent: must be more than"]),
        ("TenantRollout", "default", stages(json!([5, 25])), vec!["stages[1].percent: must be 100 in the last stage"]),
        ("TenantRollout", "default", stages(json!([5.5, 100])), vec!["spec.stages[0].percent", "must be of type int"]),
        ("TenantRollout", "default", stages(json!([true, 100])), vec!["spec.stages[0].percent", "must be of type int"]),
        ("TenantRollout", "default", stages(json!(["5", 100])), vec!["spec.stages[0].percent", "must be of type int"]),
        ("TenantRollout", "default", json!({"stages": [{"minSeconds": 1}]}), vec!["spec.stages[0].percent"]),
        ("TenantRollout", "default", json!({"budgets": {"errorPercent": 101}}), vec!["spec.budgets.errorPercent"]),
        ("TenantRollout", "default", json!({"onInconclusive": "Hope"}), vec!["spec.onInconclusive"]),
        ("TenantProfile", "default", json!({"sessionTimeoutSeconds": 9}), vec!["spec.sessionTimeoutSeconds"]),
        ("TenantProfile", "default", json!({"sessionTimeoutSeconds": 86_401}), vec!["spec.sessionTimeoutSeconds"]),
        ("TenantProfile", "default", json!({"retentionDays": 0}), vec!["spec.retentionDays"]),
        ("TenantProfile", "default", json!({"retentionDays": 3651}), vec!["spec.retentionDays"]),
        ("TenantProfile", "default", json!({"enforcement": "Observe"}), vec!["spec.observeUntil is missing"]),
        ("TenantProfile", "default", json!({"enforcement": "Ignore"}), vec!["spec.enforcement"]),
        (
            "TenantProfile",
            "default",
            json!({"enforcement": "Enforce", "observeUntil": "2026-01-31T12:00:00Z"}),
            vec!["only with enforcement Observe"],
        ),
        (
            "TenantProfile",
            "default",
            json!({"observeUntil": "2026-01-31T12:00:00Z"}),
            vec!["only with enforcement Observe"],
        ),
        (
            "TenantProfile",
            "default",
            json!({"enforcement": "Observe", "observeUntil": "tomorrow"}),
            vec!["spec.observeUntil"],
        ),
    ] {
        space.refused(&["create", "-f", "-"], &object(kind, name, &spec), &reasons);
    }
    for (kind, spec) in [
        ("TenantRollout", json!({})),
        ("TenantRollout", json!({"package": {"name": "p", "version": "^1"}, "revisionHistoryLimit": 100})),
        ("TenantRollout", json!({"package": {"digest": digest}})),
        ("TenantRollout", stages(json!([100]))),
        ("TenantRollout", stages(json!([1, 2, 99, 100]))),
        ("TenantProfile", json!({"sessionTimeoutSeconds": 10, "retentionDays": 3650})),
        ("TenantProfile", json!({"enforcement": "Enforce"})),
        ("TenantProfile", json!({"enforcement": "Observe", "observeUntil": "2026-01-31T12:00:00Z"})),
    ] {
        space.must(&["create", "--dry-run=server", "-f", "-"], &object(kind, "default", &spec));
    }
}

#[test]
fn explain_and_columns_read_well() {
    let kube = Kube::shared();
    for (kind, words) in [
        ("agent", "An AI agent of this namespace"),
        ("agent.spec.trustLevel", "How far the agent is trusted"),
        ("agent.spec.delegation.mode", "(a call that names a"),
        ("agent.spec.delegation", "enum: None, Optional, Required"),
        ("policypackage", "An immutable version of a tenant's policies"),
        ("policypackage.spec.tools", "`server/name`, as agents call it."),
        ("policysigner.spec.revoked", "Superseded"),
        ("policyreplay", "evaluated again under two of its"),
        ("policyreplay.spec.invariants", "one of Remit's own, by its name"),
        ("tenantrollout", "Which package is in force in this namespace."),
        ("tenantprofile.spec", "Seconds without heartbeat"),
    ] {
        let said = kube.must(&["explain", kind], "");
        assert!(said.contains(words), "kubectl explain {kind} lacks {words:?}: {said}");
        assert!(!said.contains("Auto-generated") && !said.contains("<no description>"), "{said}");
    }

    let space = Space::new(&kube, "columns");
    let signer = format!("api-columns-{}", support::unique());
    space.must(&["create", "-f", "-"], &agent("me", &json!({"type": "coder", "trustLevel": 2})));
    space.must(&["create", "-f", "-"], &object("PolicyPackage", "demo", &package_spec("1.0.0")));
    space.must(&["create", "-f", "-"], &object("PolicyReplay", "demo", &json!({"candidate": {}})));
    space.must(&["create", "-f", "-"], &object("TenantProfile", "default", &json!({})));
    space.must(&["apply", "-f", "-"], &object("TenantRollout", "default", &json!({})));
    let key = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA/FHNjmIYoaONpH7QAjDwWAgW7RO6MwOsXeuRFUiQgCU=\n-----END PUBLIC KEY-----\n";
    kube.must(
        &["create", "-f", "-"],
        &object("PolicySigner", &signer, &json!({"publicKey": key, "tenants": [signer]})),
    );
    for (resource, columns) in [
        ("ag", "NAME TYPE TRUST SUSPENDED READY REASON AGE"),
        ("pp", "NAME PACKAGE VERSION SIGNED POLICIES READY REASON AGE"),
        ("prep", "NAME STATE VERDICT REPLAYED CRITICAL HIGH READY REASON AGE"),
        ("tro", "NAME PHASE PACKAGE VERSION CANDIDATE STAGE PERCENT READY REASON AGE"),
        ("tprof", "NAME SESSION-TIMEOUT RETENTION-DAYS OBSERVING READY REASON AGE"),
        ("psign", "NAME TENANTS PACKAGES REVOKED READY REASON AGE"),
    ] {
        let said = space.must(&["get", resource], "");
        let head: Vec<_> = said.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(head.join(" "), columns, "{resource}");
    }
    let all = space.must(&["get", "remit", "-o", "name"], "");
    for name in [
        "agent.remit.dev/me",
        "policypackage.remit.dev/demo",
        "tenantrollout.remit.dev/default",
        "tenantprofile.remit.dev/default",
    ] {
        assert!(all.contains(name), "kubectl get remit lacks {name}: {all}");
    }
    let coders =
        |t: &str| space.must(&["get", "agents", "--field-selector", &format!("spec.type={t}"), "-o", "name"], "");
    assert!(coders("coder").contains("agent.remit.dev/me"));
    assert!(!coders("tester").contains("agent.remit.dev/me"));
    kube.must(&["delete", "policysigner", &signer], "");
}

/// The attack: an ordinary administrator of a tenant, who may read no decisions, has them replayed under policies of their own making.
#[test]
fn replay_without_the_right_to_read_decisions() {
    let kube = Kube::shared();
    let space = Space::new(&kube, "replays");
    let replay = |name: &str| object("PolicyReplay", name, &json!({"candidate": {}}));
    let author = ["create", "-f", "-", "--as", "author"];
    space.refused(&author, &replay("mine"), &["remit-replays", "needs verb get on decisions.remit.dev"]);
    // Where else the right is held it does not count.
    let elsewhere = Space::new(&kube, "replays-elsewhere");
    for (space, user) in [(&elsewhere, "author"), (&space, "auditor")] {
        let rules = json!([{"apiGroups": ["remit.dev"], "resources": ["decisions"], "verbs": ["get"]}]);
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "auditor"}, "rules": rules});
        space.must(&["apply", "-f", "-"], &role.to_string());
        space.bind("auditor", user);
    }
    space.refused(&author, &replay("mine"), &["remit-replays"]);
    space.bind("auditor", "author");
    support::eventually_blocking("the author's own right counts", || {
        let said = space.kube.run(&space.args(&author), &replay("mine"));
        if said.ok { Ok(()) } else { Err(said.err) }
    });
}

#[test]
fn forged_status_without_verb() {
    let kube = Kube::shared();
    let space = Space::new(&kube, "status");
    space.must(&["create", "-f", "-"], &agent("me", &json!({})));
    space.must(&["create", "-f", "-"], &object("PolicyPackage", "demo", &package_spec("1.0.0")));
    space.must(&["create", "-f", "-"], &object("PolicyReplay", "demo", &json!({"candidate": {}})));
    space.must(&["create", "-f", "-"], &object("TenantProfile", "default", &json!({})));
    space.must(&["apply", "-f", "-"], &object("TenantRollout", "default", &json!({})));
    let said = |resource: &str| match resource {
        "tenantrollout" => ["remit-rollout-actions", "only Remit writes it"],
        _ => ["remit-status", "only Remit writes it"],
    };
    let forged = json!({
        "tenantUid": "x", "package": "demo", "version": "9.9.9", "digest": format!("sha256:{}", "b".repeat(64)), "revision": 1
    });
    for (resource, name, status) in [
        ("agent", "me", json!({"riskBand": "low"})),
        ("policypackage", "demo", json!({"policies": 1})),
        ("policyreplay", "demo", json!({"state": "completed", "verdict": "pass"})),
        ("tenantprofile", "default", json!({"effective": {"sessionTimeoutSeconds": 1, "retentionDays": 1}})),
        ("tenantrollout", "default", json!({"phase": "Healthy", "stable": forged})),
    ] {
        let patch = json!({"status": status}).to_string();
        // The author's role allows it, and so does the administrator's; only Remit's ServiceAccount may.
        for who in [&["--as", "author"][..], &[]] {
            let args = [&["patch", resource, name, "--subresource=status", "--type=merge", "-p", &patch], who].concat();
            space.refused(&args, "", &said(resource));
        }
    }
    let apply = json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"}, "status": {"stable": forged}
    });
    space.refused(
        &[
            "apply",
            "--server-side",
            "--force-conflicts",
            "--field-manager=remit",
            "--subresource=status",
            "--as",
            "author",
            "-f",
            "-",
        ],
        &apply.to_string(),
        &said("tenantrollout"),
    );
    // Through the object itself a status is ignored: what was forged does not get in by that door.
    let mut whole = apply;
    whole["spec"] = json!({});
    space.must(&["apply", "--server-side", "--force-conflicts", "--as", "author", "-f", "-"], &whole.to_string());
    let version = space.must(&["get", "tenantrollout", "default", "-o", "jsonpath={.status.stable.version}"], "");
    assert_ne!(version, "9.9.9");
}

#[test]
fn forged_package_bytes_are_refused() {
    let kube = Kube::shared();
    let space = Space::new(&kube, "bytes");
    let remit = format!("system:serviceaccount:{PLATFORM}:remit");
    let revision = |name: &str, label: Option<&str>| {
        let labels = label.map_or(json!({}), |v| json!({"remit.dev/package-bytes": v}));
        json!({
            "apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": name, "labels": labels},
            "revision": 1, "data": {"spec": {}}
        })
        .to_string()
    };
    let said = ["remit-package-bytes", "only Remit writes them"];
    space.refused(&["create", "--as", "author", "-f", "-"], &revision("forged", Some("true")), &said);
    space.refused(
        &["create", "--as", "author", "-f", "-"],
        &revision(&format!("remit-{}", "0".repeat(20)), None),
        &said,
    );
    // As the controller of a StatefulSet named remit makes them.
    space.must(&["create", "--as", "author", "-f", "-"], &revision("remit-7f8d9c6b54", None));
    space.must(&["create", "--as", "author", "-f", "-"], &revision("own", None));
    space.refused(&["label", "controllerrevision", "own", "remit.dev/package-bytes=true", "--as", "author"], "", &said);
    space.must(&["label", "controllerrevision", "own", "other=true", "--as", "author"], "");
    space.must(&["delete", "controllerrevision", "own", "--as", "author"], "");

    let writer = format!("--user={remit}");
    space.must(&["create", "rolebinding", "remit-test", "--role=author", &writer], "");
    space.must(&["create", "--as", &remit, "-f", "-"], &revision("kept", Some("true")));
    space.refused(&["label", "controllerrevision", "kept", "remit.dev/package-bytes-", "--as", "author"], "", &said);
    space.refused(&["annotate", "controllerrevision", "kept", "a=b", "--as", "author"], "", &said);
    space.refused(&["delete", "controllerrevision", "kept", "--as", "author"], "", &said);
    space.refused(&["delete", "controllerrevisions", "--all", "--as", "author"], "", &said);
    let collection = format!("/apis/apps/v1/namespaces/{}/controllerrevisions", space.name);
    kube.refused(&["delete", "--raw", &collection, "--as", "author"], "", &said);
    assert!(space.must(&["get", "controllerrevisions", "-o", "name"], "").contains("kept"));
    // A namespace with kept bytes can still be deleted: whoever empties it, it ends.
    kube.must(&["delete", "namespace", &space.name, "--timeout=60s"], "");
}

#[test]
fn elevate_is_needed_for_more_privilege_whichever_way_it_is_asked_for() {
    let kube = Kube::shared();
    let space = Space::new(&kube, "elevate");
    let start = json!({
        "trustLevel": 2, "type": "coder", "teams": ["a", "b"], "session": "Required", "suspend": true,
        "identities": [{"serviceAccount": "one"}], "attributes": {"region": "eu"},
        "delegation": {"mode": "Required", "fixed": {"kind": "User", "name": "ann"}},
    });
    space.must(&["create", "--as", "elevator", "-f", "-"], &agent("me", &start));
    for (patch, field) in [
        (json!({"trustLevel": 3}), "spec.trustLevel"),
        (json!({"suspend": false}), "spec.suspend"),
        (json!({"suspend": null}), "spec.suspend"),
        (json!({"identities": [{"serviceAccount": "two"}]}), "spec.identities"),
        (json!({"identities": [{"serviceAccount": "one"}, {"serviceAccount": "two"}]}), "spec.identities"),
        (json!({"identities": null}), "spec.identities"),
        (json!({"delegation": {"fixed": {"name": "eve"}}}), "spec.delegation"),
        (json!({"delegation": {"mode": "Optional"}}), "spec.delegation"),
        (json!({"delegation": null}), "spec.delegation"),
        (json!({"session": "Optional"}), "spec.session"),
        (json!({"session": null}), "spec.session"),
        (json!({"type": "boss"}), "spec.type"),
        (json!({"type": null}), "spec.type"),
        (json!({"teams": ["a"]}), "spec.teams"),
        (json!({"teams": null}), "spec.teams"),
        (json!({"attributes": {"region": "us"}}), "spec.attributes"),
        (json!({"attributes": null}), "spec.attributes"),
        // Less trust does not pay for another team.
        (json!({"trustLevel": 0, "teams": ["c"]}), "spec.teams"),
    ] {
        let whole = json!({"spec": patch}).to_string();
        space.refused(
            &["patch", "agent", "me", "--type=merge", "-p", &whole, "--as", "author"],
            "",
            &["remit-elevate", field, "needs verb elevate on agents.remit.dev"],
        );
    }
    let mut more = start.clone();
    more["trustLevel"] = json!(4);
    let manifest = agent("me", &more);
    let said = ["spec.trustLevel: raising it from 2 to 4 needs verb elevate"];
    space.refused(&["apply", "--as", "author", "-f", "-"], &manifest, &said);
    space.refused(&["apply", "--server-side", "--force-conflicts", "--as", "author", "-f", "-"], &manifest, &said);
    space.refused(&["replace", "--as", "author", "-f", "-"], &manifest, &said);
    space.refused(&["apply", "--dry-run=server", "--as", "author", "-f", "-"], &manifest, &said);
    let status = json!({"spec": {"trustLevel": 4}}).to_string();
    kube.run(
        &[
            "-n",
            &space.name,
            "patch",
            "agent",
            "me",
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
            "--as",
            "author",
        ],
        "",
    );
    let spec: Value = serde_json::from_str(&space.must(&["get", "agent", "me", "-o", "jsonpath={.spec}"], "")).unwrap();
    assert_eq!(spec, start, "nothing of the above got in");

    // What takes privilege away, or changes none, needs no verb.
    for patch in
        [json!({"teams": ["b", "a"]}), json!({"trustLevel": 1}), json!({"trustLevel": null}), json!({"suspend": true})]
    {
        space.must(
            &["patch", "agent", "me", "--type=merge", "-p", &json!({"spec": patch}).to_string(), "--as", "author"],
            "",
        );
    }
    space.must(&["label", "agent", "me", "a=b", "--as", "author"], "");
    // And who has it may.
    space.must(
        &[
            "patch",
            "agent",
            "me",
            "--type=merge",
            "-p",
            r#"{"spec":{"trustLevel":4,"suspend":false}}"#,
            "--as",
            "elevator",
        ],
        "",
    );
}

#[test]
fn delete_and_recreate_agent_with_more_trust() {
    let kube = Kube::shared();
    let space = Space::new(&kube, "recreate");
    let one = json!([{"serviceAccount": "one"}]);
    let two = json!([{"serviceAccount": "one"}, {"serviceAccount": "two"}]);
    space.must(&["create", "--as", "author", "-f", "-"], &agent("me", &json!({"identities": one})));
    space.must(&["delete", "agent", "me", "--as", "author"], "");
    let said = ["remit-elevate", "needs verb elevate on agents.remit.dev"];
    let oidc = json!([{"oidc": {"issuer": "https://idp.example", "subject": "x"}}]);
    let spiffe = json!([{"spiffe": "spiffe://prod.example/x"}]);
    for spec in [
        json!({"identities": one, "trustLevel": 1}),
        json!({"identities": two}),
        json!({"identities": oidc}),
        json!({"identities": spiffe}),
        json!({"trustLevel": 4}),
    ] {
        space.refused(&["create", "--as", "author", "-f", "-"], &agent("me", &spec), &said);
        space.refused(&["apply", "--server-side", "--as", "author", "-f", "-"], &agent("me", &spec), &said);
    }
    // A name made by the server is no way round.
    let generated = json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "Agent", "metadata": {"generateName": "me-"}, "spec": {"trustLevel": 1}
    });
    space.refused(&["create", "--as", "author", "-f", "-"], &generated.to_string(), &said);
    space.must(&["create", "--as", "elevator", "-f", "-"], &agent("me", &json!({"identities": two, "trustLevel": 4})));
}

#[test]
fn whole_folder_passes_a_server_side_dry_run_in_any_order() {
    let kube = Kube::shared();
    let space = Space::new(&kube, "folder");
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in [
        // The rollout before the package that it names, the package before its signer.
        ("1-rollout.json", object("TenantRollout", "default", &json!({"package": {"name": "demo", "version": "^1"}}))),
        ("2-package.json", object("PolicyPackage", "demo-1.0.0", &package_spec("1.0.0"))),
        ("3-agent.json", agent("me", &json!({"identities": [{"serviceAccount": "me"}], "trustLevel": 2}))),
        ("4-profile.json", object("TenantProfile", "default", &json!({"retentionDays": 400}))),
    ] {
        std::fs::write(folder.path().join(file), text).unwrap();
    }
    let path = folder.path().to_str().unwrap();
    space.must(&["apply", "--dry-run=server", "-f", path], "");
    space.must(&["apply", "--dry-run=server", "--server-side", "-f", path], "");
    assert!(
        !space.must(&["get", "remit", "-o", "name"], "").contains("agent.remit.dev/me"),
        "a dry run stored something"
    );
    space.must(&["apply", "-f", path], "");
    space.must(&["apply", "--server-side", "--force-conflicts", "-f", path], "");
}
