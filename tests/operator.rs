//! The operator on a real control plane: from what is applied to what is in force, and what a restart must never change.

use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use remit::api::{Envelope, PolicyPackageSpec};
use remit::policy::{ANY_INSTALLATION, FORMAT_VERSION, PublicKey, Statement, digest, object_name, sign};
use serde_json::{Value, json};

use crate::support::{Cluster, PLATFORM, call, cluster, eventually, eventually_blocking};

pub const READS: &str =
    r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");"#;
pub const WRITES: &str =
    r#"@id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write");"#;

/// A package with a tool to read (`files/read`) and one to write (`files/write`).
pub fn spec(version: &str, policies: &[&str]) -> PolicyPackageSpec {
    let value = json!({
        "package": "core",
        "version": version,
        "tools": [{"name": "files/read", "tier": "read"}, {"name": "files/write", "tier": "write"}],
        "policies": [{"name": "a.cedar", "text": policies.join("\n")}],
    });
    serde_json::from_value(value).unwrap()
}

pub fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub fn signed(mut spec: PolicyPackageSpec, tenant: &str, key: &SigningKey) -> PolicyPackageSpec {
    let statement = Statement {
        format_version: FORMAT_VERSION.into(),
        installation: ANY_INSTALLATION.into(),
        tenant: tenant.into(),
        package: spec.package.clone(),
        version: spec.version.clone(),
        digest: digest(&spec),
        key_fingerprint: PublicKey::from_key(key.verifying_key()).unwrap().fingerprint().into(),
        author: None,
        signed_at: jiff::Timestamp::now(),
    };
    let envelope: Envelope = sign(&statement, key).unwrap();
    spec.digest = Some(digest(&spec));
    spec.signature = Some(envelope);
    spec
}

/// The object, and its name.
pub fn package(spec: &PolicyPackageSpec) -> (String, String) {
    let name = object_name(spec, &digest(spec));
    let object = json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "PolicyPackage", "metadata": {"name": name}, "spec": spec,
    });
    (format!("policypackage/{name}"), object.to_string())
}

pub fn agent(name: &str, account: &str, trust: i64) -> String {
    let spec = json!({"identities": [{"serviceAccount": account}], "trustLevel": trust});
    json!({"apiVersion": "remit.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name}, "spec": spec}).to_string()
}

pub fn signer(name: &str, tenant: &str, key: &SigningKey, revoked: Option<&str>) -> String {
    let public = PublicKey::from_key(key.verifying_key()).unwrap();
    let mut spec = json!({"publicKey": public.to_pem(), "tenants": [tenant]});
    if let Some(reason) = revoked {
        spec["revoked"] = json!({"reason": reason});
    }
    json!({"apiVersion": "remit.dev/v1alpha1", "kind": "PolicySigner", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

impl Cluster {
    /// Applies a package and waits until it is in force.
    pub fn put(&self, tenant: &str, spec: &PolicyPackageSpec) {
        let (_, object) = package(spec);
        self.apply(tenant, &object).unwrap();
        self.in_force(tenant, &digest(spec));
    }

    pub fn rollout(&self, tenant: &str) -> Value {
        let text = self.kubectl(&["get", "tenantrollout", "default", "-n", tenant, "-o", "json"]);
        text.map_or(Value::Null, |t| serde_json::from_str(&t).unwrap())
    }

    pub fn in_force(&self, tenant: &str, digest: &str) {
        eventually_blocking(&format!("{digest} is in force"), || match self.rollout(tenant) {
            r if r["status"]["stable"]["digest"] == digest => Ok(()),
            r => Err(r["status"].to_string()),
        });
    }

    pub fn stalled_for(&self, tenant: &str, reason: &str) {
        eventually_blocking(&format!("the rollout is stalled: {reason}"), || {
            let status = self.rollout(tenant)["status"].clone();
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            let found = conditions.iter().any(|c| c["type"] == "Stalled" && c["reason"] == reason);
            if found { Ok(()) } else { Err(status.to_string()) }
        });
    }

    /// An agent `coder` at trust 2 with a token.
    pub async fn coder(&self, tenant: &str) -> String {
        self.apply(tenant, &agent("coder", "coder", 2)).unwrap();
        self.token_for(tenant, "coder", "remit").await
    }

    pub async fn code(&self, token: &str, tenant: &str, tool: &str) -> String {
        let (status, body) = self.check(token, tenant, &call("coder", tool, json!({}))).await;
        match body["context"]["code"].as_str() {
            Some(code) => code.to_owned(),
            None => format!("{status} {body}"),
        }
    }

    pub async fn expect(&self, token: &str, tenant: &str, tool: &str, code: &str) {
        eventually(&format!("{tool} is answered {code}"), || async {
            let got = self.code(token, tenant, tool).await;
            if got == code { Ok(()) } else { Err(got) }
        })
        .await;
    }
}

#[tokio::test]
async fn whole_tenant_in_one_apply_ends_ready_in_any_order() {
    let c = cluster();
    for (turn, server_side) in [(0, true), (1, false)] {
        let tenant = c.namespace("folder").await;
        let (package_name, package) = package(&spec("1.0.0", &[READS]));
        let profile = json!({
            "apiVersion": "remit.dev/v1alpha1", "kind": "TenantProfile", "metadata": {"name": "default"},
            "spec": {"sessionTimeoutSeconds": 600},
        });
        let rollout = json!({
            "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"},
            "spec": {"package": {"name": "core", "version": "^1"}},
        });
        let mut objects = [rollout.to_string(), agent("coder", "coder", 2), package, profile.to_string()];
        if turn == 1 {
            objects.reverse();
        }
        let folder = tempfile::tempdir().unwrap();
        for (i, object) in objects.iter().enumerate() {
            std::fs::write(folder.path().join(format!("{i}.json")), object).unwrap();
        }
        let folder = folder.path().to_str().unwrap();
        let mut dry = vec!["apply", "-n", &tenant, "-f", folder, "--dry-run=server"];
        let mut real = vec!["apply", "-n", &tenant, "-f", folder];
        if server_side {
            dry.push("--server-side");
            real.push("--server-side");
        }
        c.kubectl(&dry).unwrap();
        c.kubectl(&real).unwrap();
        for object in ["agent/coder", &package_name, "tenantprofile/default", "tenantrollout/default"] {
            c.wait_for(&tenant, object, "Ready");
        }
        let token = c.token_for(&tenant, "coder", "remit").await;
        c.expect(&token, &tenant, "files/read", "allowed").await;
        assert_eq!(c.code(&token, &tenant, "files/write").await, "no_permit");
        let ca =
            c.kubectl(&["get", "configmap", "remit-ca", "-n", &tenant, "-o", r"jsonpath={.data.ca\.crt}"]).unwrap();
        assert!(ca.contains("BEGIN CERTIFICATE"), "{ca}");
    }
}

/// Nobody waits for what never comes: the platform's package is declared where the operator is started.
#[test]
fn rollout_of_the_platform_says_that_it_has_no_effect() {
    let c = cluster();
    let rollout = json!({"apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"}, "spec": {}});
    c.apply(PLATFORM, &rollout.to_string()).unwrap();
    c.wait_for(PLATFORM, "tenantrollout/default", "Stalled");
    c.kubectl(&["delete", "tenantrollout", "default", "-n", PLATFORM]).unwrap();
}

#[tokio::test]
async fn a_settled_tenant_is_not_written_again() {
    let c = cluster();
    let tenant = c.namespace("quiet").await;
    let token = c.coder(&tenant).await;
    c.put(&tenant, &spec("1.0.0", &[READS]));
    c.expect(&token, &tenant, "files/read", "allowed").await;
    let versions = || {
        let kinds = "agents,policypackages,tenantrollouts,controllerrevisions,configmaps";
        let path = "jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.resourceVersion}{\"\\n\"}{end}";
        c.kubectl(&["get", kinds, "-n", &tenant, "-o", path]).unwrap()
    };
    c.wait_for(&tenant, "tenantrollout/default", "Ready");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = versions();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(versions(), before);
}

#[tokio::test]
async fn signer_becomes_ready_and_refuses_what_is_unsigned_from_then_on() {
    let c = cluster();
    let tenant = c.namespace("signed").await;
    let token = c.coder(&tenant).await;
    c.rolls_out_at_once(&tenant);
    c.put(&tenant, &spec("1.0.0", &[READS]));
    c.expect(&token, &tenant, "files/read", "allowed").await;
    let name = format!("signer-{tenant}");
    c.apply(&tenant, &signer(&name, &tenant, &key(1), None)).unwrap();
    c.wait_for(&tenant, &format!("policysigner/{name}"), "Ready");
    // A new unsigned one is refused by name, and what is in force stays.
    let (unsigned, object) = package(&spec("1.1.0", &[READS, WRITES]));
    c.apply(&tenant, &object).unwrap();
    c.stalled_for(&tenant, "Unsigned");
    let reason = "jsonpath={.status.conditions[?(@.type==\"Ready\")].reason}";
    eventually_blocking("the package says Unsigned", || {
        match c.kubectl(&["get", "-n", &tenant, &unsigned, "-o", reason])?.as_str() {
            "Unsigned" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    assert_eq!(c.code(&token, &tenant, "files/write").await, "no_permit");
    assert_eq!(c.code(&token, &tenant, "files/read").await, "allowed");
    // Deleting the signer takes nothing back.
    c.kubectl(&["delete", "policysigner", &name]).unwrap();
    let (_, object) = package(&spec("1.2.0", &[READS, WRITES]));
    c.apply(&tenant, &object).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    c.stalled_for(&tenant, "Unsigned");
    // A signed one comes into force, and the answer changes.
    c.apply(&tenant, &signer(&name, &tenant, &key(1), None)).unwrap();
    c.put(&tenant, &signed(spec("1.3.0", &[READS, WRITES]), &tenant, &key(1)));
    c.expect(&token, &tenant, "files/write", "allowed").await;
    c.kubectl(&["delete", "policysigner", &name]).unwrap();
}

#[tokio::test]
async fn pruned_package_and_deleted_bytes_keep_deciding() {
    let c = cluster();
    let tenant = c.namespace("pruned").await;
    let token = c.coder(&tenant).await;
    let one = spec("1.0.0", &[READS]);
    c.put(&tenant, &one);
    c.expect(&token, &tenant, "files/read", "allowed").await;
    c.kubectl(&["delete", "-n", &tenant, &package(&one).0]).unwrap();
    let revisions = ["get", "controllerrevisions", "-n", &tenant, "-o", "name"];
    let kept = c.kubectl(&revisions).unwrap();
    assert_eq!(kept.lines().count(), 1, "{kept}");
    assert_eq!(c.code(&token, &tenant, "files/read").await, "allowed");
    c.wait_for(&tenant, "tenantrollout/default", "Ready");
    // A rollout that is deleted is made again with what was in force; the bytes are no part of it, and stay what they are.
    let whole = || {
        let all = c.kubectl(&["get", "controllerrevisions", "-n", &tenant, "-o", "json"]).unwrap();
        let all: Value = serde_json::from_str(&all).unwrap();
        let of = |r: &Value| (r["metadata"]["uid"].clone(), r["metadata"]["ownerReferences"].clone());
        all["items"].as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    let before = whole();
    c.kubectl(&["delete", "tenantrollout", "default", "-n", &tenant]).unwrap();
    c.in_force(&tenant, &digest(&one));
    c.expect(&token, &tenant, "files/read", "allowed").await;
    assert_eq!(whole(), before);
    assert!(before.len() == 1 && before[0].1.is_null(), "{before:?}");
}

#[tokio::test]
async fn younger_claimant_of_an_identity_is_stalled_and_both_are_refused() {
    let c = cluster();
    let tenant = c.namespace("claims").await;
    let token = c.coder(&tenant).await;
    c.put(&tenant, &spec("1.0.0", &[READS]));
    c.expect(&token, &tenant, "files/read", "allowed").await;
    // Times of creation have whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    c.apply(&tenant, &agent("thief", "coder", 0)).unwrap();
    c.wait_for(&tenant, "agent/thief", "Stalled");
    eventually("the identity is refused", || async {
        let (status, body) = c.check(&token, &tenant, &call("coder", "files/read", json!({}))).await;
        if status == 403 { Ok(()) } else { Err(format!("{status} {body}")) }
    })
    .await;
    c.kubectl(&["delete", "agent", "thief", "-n", &tenant]).unwrap();
    c.expect(&token, &tenant, "files/read", "allowed").await;
}

#[tokio::test]
async fn delete_and_recreate_namespace() {
    let c = cluster();
    let tenant = c.namespace("again").await;
    let token = c.coder(&tenant).await;
    c.put(&tenant, &spec("2.0.0", &[READS, WRITES]));
    c.expect(&token, &tenant, "files/write", "allowed").await;
    let old = c.rollout(&tenant)["status"].clone();
    c.delete_namespace(&tenant);
    c.kubectl(&["create", "namespace", &tenant]).unwrap();
    let token = c.coder(&tenant).await;
    // Somebody restores the rollout with its status, as the operator itself would be allowed to write it.
    let rollout = json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"},
        "spec": {"package": {"name": "core"}},
    });
    c.apply(&tenant, &rollout.to_string()).unwrap();
    let remit = c.client_as(&format!("system:serviceaccount:{PLATFORM}:remit"), &[]).await;
    let api: kube::Api<remit::api::TenantRollout> = kube::Api::namespaced(remit, &tenant);
    let restored = kube::api::Patch::Merge(json!({"status": old}));
    api.patch_status("default", &kube::api::PatchParams::default(), &restored).await.unwrap();
    eventually_blocking("nothing is inherited", || match c.rollout(&tenant)["status"].clone() {
        s if s["stable"].is_null() && s["observedGeneration"] == 1 => Ok(()),
        s => Err(s.to_string()),
    });
    assert_eq!(c.code(&token, &tenant, "files/write").await, "no_package");
    // A lower version than before is a first one here: the mark is not inherited either.
    c.put(&tenant, &spec("1.0.0", &[READS]));
    c.expect(&token, &tenant, "files/read", "allowed").await;
    assert_eq!(c.code(&token, &tenant, "files/write").await, "no_permit");
}

#[tokio::test]
async fn restart_changes_no_answer() {
    let c = Cluster::start_own();
    let tenant = c.namespace("restart").await;
    let token = c.coder(&tenant).await;
    c.rolls_out_at_once(&tenant);
    c.put(&tenant, &spec("1.0.0", &[READS]));
    c.apply(&tenant, &signer("s", &tenant, &key(1), None)).unwrap();
    c.wait_for(&tenant, "policysigner/s", "Ready");
    // Refused: unsigned; tampered with; and what is in force has lost its object and would be refused today.
    c.apply(&tenant, &package(&spec("1.1.0", &[READS, WRITES])).1).unwrap();
    c.stalled_for(&tenant, "Unsigned");
    c.kubectl(&["delete", "-n", &tenant, &package(&spec("1.0.0", &[READS])).0]).unwrap();
    let mut answers = Vec::new();
    for restart in 0..3 {
        match restart {
            0 => {}
            1 => {
                assert_eq!(c.operator.stop(), Some(0), "{}", c.operator.log());
                c.operator.start();
            }
            _ => {
                c.operator.kill();
                c.operator.start();
            }
        }
        let read = c.code(&token, &tenant, "files/read").await;
        answers.push((read, c.code(&token, &tenant, "files/write").await));
    }
    assert_eq!(answers, vec![("allowed".to_owned(), "no_permit".to_owned()); 3]);
    // An expired or superseded key takes nothing out of force, a restart neither.
    c.put(&tenant, &signed(spec("1.2.0", &[READS, WRITES]), &tenant, &key(1)));
    c.expect(&token, &tenant, "files/write", "allowed").await;
    c.apply(&tenant, &signer("s", &tenant, &key(1), Some("Superseded"))).unwrap();
    c.operator.kill();
    c.operator.start();
    assert_eq!(c.code(&token, &tenant, "files/write").await, "allowed");
}

#[tokio::test]
async fn compromised_signer_leaves_force() {
    let c = Cluster::start_own();
    let (running, restarted) = (c.namespace("running").await, c.namespace("restarted").await);
    let mut tokens = Vec::new();
    for tenant in [&running, &restarted] {
        let token = c.coder(tenant).await;
        c.rolls_out_at_once(tenant);
        for (name, seed) in [("good", 1), ("bad", 2)] {
            c.apply(tenant, &signer(&format!("{name}-{tenant}"), tenant, &key(seed), None)).unwrap();
        }
        c.put(tenant, &signed(spec("1.0.0", &[READS]), tenant, &key(1)));
        c.put(tenant, &signed(spec("1.1.0", &[READS, WRITES]), tenant, &key(2)));
        c.expect(&token, tenant, "files/write", "allowed").await;
        tokens.push(token);
    }
    c.apply(&running, &signer(&format!("bad-{running}"), &running, &key(2), Some("Compromised"))).unwrap();
    c.expect(&tokens[0], &running, "files/write", "no_permit").await;
    c.expect(&tokens[0], &running, "files/read", "allowed").await;
    assert_eq!(c.rollout(&running)["status"]["history"][0]["cause"], "SignerCompromised");
    // With the signer's object gone, and made anew as if nothing had been, what it signed does not come back, by whichever way.
    c.kubectl(&["delete", "policysigner", &format!("bad-{running}")]).unwrap();
    let back = |id: &str| {
        let digest = c.rollout(&running)["status"]["stable"]["digest"].clone();
        let actor = c.kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).unwrap();
        let entry =
            json!({"id": id, "actor": actor, "action": "rollback", "revision": 2, "digest": digest, "reason": "r"});
        let status = json!({"apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"},
            "status": {"actions": [entry]}});
        let manager = format!("--field-manager={id}");
        c.apply_with(&running, &status.to_string(), &["--server-side", "--subresource=status", &manager]).unwrap();
        let handled = eventually_blocking("it is handled", || {
            let status = c.rollout(&running)["status"].clone();
            let done = status["handled"].as_array().and_then(|all| all.iter().find(|h| h["id"] == id).cloned());
            done.ok_or_else(|| status.to_string())
        });
        let result = handled["result"].as_str().unwrap();
        assert!(result.contains("compromised key"), "{result}");
    };
    back("gone");
    c.apply(&running, &signer(&format!("again-{running}"), &running, &key(2), None)).unwrap();
    c.apply(&running, &package(&signed(spec("1.2.0", &[READS, WRITES]), &running, &key(2))).1).unwrap();
    c.stalled_for(&running, "RevokedSigner");
    back("again");
    assert_eq!(c.code(&tokens[0], &running, "files/write").await, "no_permit");
    c.operator.kill();
    let webhook = ["delete", "validatingwebhookconfiguration", "remit"];
    c.kubectl(&webhook).unwrap();
    c.apply(&restarted, &signer(&format!("bad-{restarted}"), &restarted, &key(2), Some("Compromised"))).unwrap();
    c.operator.start();
    let first = c.code(&tokens[1], &restarted, "files/write").await;
    assert!(first == "no_permit" || first == "no_package", "{first}");
    c.expect(&tokens[1], &restarted, "files/read", "allowed").await;
    assert_eq!(c.code(&tokens[1], &restarted, "files/write").await, "no_permit");
    // Without a good one in the history nothing is left.
    c.apply(&running, &signer(&format!("good-{running}"), &running, &key(1), Some("Compromised"))).unwrap();
    c.expect(&tokens[0], &running, "files/read", "no_package").await;
    c.operator.kill();
    c.operator.start();
    assert_eq!(c.code(&tokens[0], &running, "files/read").await, "no_package");
    // And nothing comes by itself: a package by a good key waits for a person.
    c.apply(&running, &signer(&format!("new-{running}"), &running, &key(3), None)).unwrap();
    let next = signed(spec("1.3.0", &[READS]), &running, &key(3));
    c.apply(&running, &package(&next).1).unwrap();
    eventually_blocking("it waits for a person", || {
        let status = c.rollout(&running)["status"].clone();
        let ready = status["conditions"].as_array().and_then(|all| all.iter().find(|c| c["type"] == "Ready").cloned());
        let waits = status["candidate"]["version"] == "1.3.0" && status["phase"] == "Paused";
        match ready.filter(|r| r["reason"] == "NothingInForce" && waits && status["stable"].is_null()) {
            Some(_) => Ok(()),
            None => Err(status.to_string()),
        }
    });
    assert_eq!(c.code(&tokens[0], &running, "files/read").await, "no_package");
    let actor = c.kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).unwrap();
    let entry =
        json!({"id": "full", "actor": actor, "action": "promote-full", "digest": digest(&next), "reason": "looked at"});
    let status = json!({"apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"},
        "status": {"actions": [entry]}});
    c.apply_with(&running, &status.to_string(), &["--server-side", "--subresource=status", "--field-manager=full"])
        .unwrap();
    c.expect(&tokens[0], &running, "files/read", "allowed").await;
}

#[tokio::test]
async fn platform_package_unloadable_on_restart() {
    let forbid =
        r#"@id("no-writes") forbid(principal, action == Action::"call_tool", resource in ToolGroup::"write");"#;
    let mut platform = spec("1.0.0", &[forbid]);
    platform.tools.clear();
    let declared = format!("--platform-package=core@{}", digest(&platform));
    let c = Cluster::start_own_with(&[&declared]);
    let tenant = c.namespace("tenant").await;
    let token = c.coder(&tenant).await;
    c.put(&tenant, &spec("1.0.0", &[READS, WRITES]));
    let (status, body) = c.check(&token, &tenant, &call("coder", "files/read", json!({}))).await;
    assert_eq!((status, body["decision"].as_bool()), (503, None), "{body}");
    let (name, object) = package(&platform);
    c.apply(PLATFORM, &object).unwrap();
    c.expect(&token, &tenant, "files/read", "allowed").await;
    assert_eq!(c.code(&token, &tenant, "files/write").await, "denied_by_policy");
    // Pruned: its bytes are kept.
    eventually_blocking("the bytes are kept", || {
        match c.kubectl(&["get", "controllerrevisions", "-n", PLATFORM, "-o", "name"])? {
            none if none.is_empty() => Err(none),
            _ => Ok(()),
        }
    });
    c.kubectl(&["delete", "-n", PLATFORM, &name]).unwrap();
    c.operator.kill();
    c.operator.start();
    assert_eq!(c.code(&token, &tenant, "files/write").await, "denied_by_policy");
    // Gone: never a tenant-only allow.
    c.operator.kill();
    let remit = format!("--as=system:serviceaccount:{PLATFORM}:remit");
    c.kubectl(&["delete", "controllerrevisions", "--all", "-n", PLATFORM, &remit]).unwrap();
    c.operator.start();
    for tool in ["files/read", "files/write"] {
        let (status, body) = c.check(&token, &tenant, &call("coder", tool, json!({}))).await;
        assert_eq!((status, body["decision"].as_bool()), (503, None), "{body}");
    }
}

#[tokio::test]
async fn paren_bomb_already_in_etcd_at_start() {
    let c = Cluster::start_own();
    let tenant = c.namespace("bomb").await;
    let token = c.coder(&tenant).await;
    c.put(&tenant, &spec("1.0.0", &[READS]));
    c.operator.kill();
    // Without the webhook (it is down, and an older release may have let it in) the bytes lie in etcd.
    c.kubectl(&["delete", "validatingwebhookconfiguration", "remit"]).unwrap();
    let bomb = format!(
        r#"@id("b") permit(principal, action, resource) when {{ {}true{} }};"#,
        "(".repeat(150),
        ")".repeat(150)
    );
    let (name, object) = package(&spec("1.1.0", &[&bomb]));
    c.apply(&tenant, &object).unwrap();
    c.operator.start();
    c.stalled_for(&tenant, "TooDeep");
    c.wait_for(&tenant, &name, "Stalled");
    assert_eq!(c.code(&token, &tenant, "files/read").await, "allowed");
    assert_eq!(c.operator.stop(), Some(0));
}

#[tokio::test]
async fn a_new_version_changes_the_answer() {
    let c = cluster();
    let tenant = c.namespace("next").await;
    let token = c.coder(&tenant).await;
    c.rolls_out_at_once(&tenant);
    c.put(&tenant, &spec("1.0.0", &[READS]));
    c.expect(&token, &tenant, "files/write", "no_permit").await;
    c.apply(&tenant, &package(&spec("1.1.0", &[READS, WRITES])).1).unwrap();
    c.expect(&token, &tenant, "files/write", "allowed").await;
}

#[test]
fn second_operator_on_the_same_data_or_without_a_cluster_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_remit"))
        .args([
            "operator",
            "--listen=127.0.0.1:0",
            "--webhook-listen=127.0.0.1:0",
            "--metrics-listen=127.0.0.1:0",
            "--data-dir",
        ])
        .arg(folder.path())
        .env("KUBECONFIG", folder.path().join("none"))
        .env_remove("KUBERNETES_SERVICE_HOST")
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(2));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("KUBECONFIG"), "{said}");
    let c = cluster();
    let out = Command::new(env!("CARGO_BIN_EXE_remit"))
        .args(["operator", "--namespace", PLATFORM, "--listen=127.0.0.1:0", "--webhook-listen=127.0.0.1:0"])
        .args(["--metrics-listen=127.0.0.1:0", "--data-dir"])
        .arg(c.operator.data())
        .env("KUBECONFIG", c.plane.kubeconfig())
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(2));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("in use"), "{said}");
}

#[tokio::test]
async fn webhook_bundle_is_put_right_again() {
    // One of its own: the others need the webhook all the time.
    let c = Cluster::start_own();
    let path = "jsonpath={.webhooks[0].clientConfig.caBundle}";
    let get = || c.kubectl(&["get", "validatingwebhookconfiguration", "remit", "-o", path]);
    let right = get().unwrap();
    assert!(String::from_utf8(STANDARD.decode(&right).unwrap()).unwrap().contains("BEGIN CERTIFICATE"));
    let patch = r#"[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]"#;
    c.kubectl(&["patch", "validatingwebhookconfiguration", "remit", "--type=json", "-p", patch]).unwrap();
    eventually_blocking("the bundle is there again", || match get()? {
        found if found == right => Ok(()),
        other => Err(other),
    });
}

/// The certificate that the operator serves with, verified under its CA.
fn served(c: &Cluster) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls::pki_types::CertificateDer::pem_slice_iter(c.ca().as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tls = rustls::ClientConnection::new(config.into(), "127.0.0.1".try_into().unwrap()).unwrap();
    let mut tcp = std::net::TcpStream::connect(("127.0.0.1", c.operator.https)).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp).unwrap();
    }
    tls.peer_certificates().unwrap()[0].to_vec()
}

#[test]
fn the_certificate_is_replaced_early_and_without_a_restart() {
    let c = Cluster::start_own_with(&["--certificate-life=30"]);
    let first = served(&c);
    let next = eventually_blocking("another certificate is served", || match served(&c) {
        same if same == first => {
            std::thread::sleep(Duration::from_millis(500));
            Err("still the first".into())
        }
        next => Ok(next),
    });
    let (_, old) = x509_parser::parse_x509_certificate(&first).unwrap();
    let (_, read) = x509_parser::parse_x509_certificate(&next).unwrap();
    assert!(read.validity().not_before < old.validity().not_after, "it was replaced while it was valid");
    assert!(read.validity().is_valid());
}
