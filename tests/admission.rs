//! The admission webhook on the real API server: what the bytes prove wrong is refused, all else is taken with a warning.

use ed25519_dalek::SigningKey;
use remit::api::PolicyPackageSpec;
use remit::policy::{ANY_INSTALLATION, FORMAT_VERSION, PublicKey, Statement, digest, sign};
use serde_json::{Value, json};

use crate::support::{Cluster, cluster};

const READS: &str = r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");"#;

fn spec(policy: &str) -> PolicyPackageSpec {
    serde_json::from_value(json!({
        "package": "demo", "version": "1.0.0",
        "tools": [{"name": "git/status", "tier": "read"}],
        "policies": [{"name": "reads.cedar", "text": policy}],
    }))
    .unwrap()
}

fn object(kind: &str, name: &str, spec: impl serde::Serialize) -> String {
    let spec: Value = serde_json::to_value(spec).unwrap();
    json!({"apiVersion": "remit.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}).to_string()
}

/// The package signed by this key for a tenant; `change` edits the statement before it is signed.
fn signed(
    mut spec: PolicyPackageSpec,
    key: &SigningKey,
    tenant: &str,
    change: impl FnOnce(&mut Statement),
) -> PolicyPackageSpec {
    let digest = digest(&spec);
    let mut statement = Statement {
        format_version: FORMAT_VERSION.into(),
        installation: ANY_INSTALLATION.into(),
        tenant: tenant.into(),
        package: spec.package.clone(),
        version: spec.version.clone(),
        digest: digest.clone(),
        key_fingerprint: PublicKey::from_key(key.verifying_key()).unwrap().fingerprint().into(),
        author: None,
        signed_at: jiff::Timestamp::UNIX_EPOCH,
    };
    change(&mut statement);
    spec.signature = Some(sign(&statement, key).unwrap());
    spec.digest = Some(digest);
    spec
}

fn refused(cluster: &Cluster, namespace: &str, yaml: &str, reasons: &[&str]) {
    for args in [&[][..], &["--server-side"], &["--dry-run=server"]] {
        let said = cluster.apply_with(namespace, yaml, args).expect_err("it is refused");
        assert!(said.contains("validate.remit.dev"), "not by the webhook: {said}");
        for reason in reasons {
            assert!(said.contains(reason), "should say {reason:?}: {said}");
        }
    }
}

fn admitted(cluster: &Cluster, namespace: &str, yaml: &str) -> String {
    cluster.apply_with(namespace, yaml, &["--dry-run=server"]).unwrap_or_else(|e| panic!("refused: {e}\n{yaml}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn refuse_what_the_bytes_prove_wrong() {
    let cluster = cluster();
    let ns = cluster.namespace("admission").await;
    let key = SigningKey::from_bytes(&[7; 32]);
    let mut digested = spec(READS);
    digested.digest = Some(format!("sha256:{}", "0".repeat(64)));
    let mut version = spec(READS);
    version.version = "one".into();
    let mut doubled = spec(READS);
    doubled.tools.push(doubled.tools[0].clone());
    for (spec, reasons) in [
        (spec(&READS.replace("principal,", "principal")), &["CedarSyntax", "reads.cedar"][..]),
        (spec(&READS.replace("@id", "@idea")), &["UnknownAnnotation", "idea"]),
        (spec(&READS.replace(r#"@id("reads") "#, "")), &["MissingId"]),
        (version, &["NotSemver"]),
        (doubled, &["DuplicateId", "git/status"]),
        (digested, &["DigestMismatch", "spec.digest"]),
        (signed(spec(READS), &key, "other-tenant", |_| ()), &["TenantMismatch", "other-tenant"]),
        (signed(spec(READS), &key, &ns, |s| s.package = "other".into()), &["NameMismatch"]),
        (signed(spec(READS), &key, &ns, |s| s.version = "2.0.0".into()), &["VersionMismatch"]),
        (signed(spec(READS), &key, &ns, |s| s.installation = "another".into()), &["InstallationMismatch"]),
    ] {
        refused(cluster, &ns, &object("PolicyPackage", "demo", spec), reasons);
    }
    refused(
        cluster,
        &ns,
        &object("TenantRollout", "default", json!({"package": {"name": "demo", "version": "newest"}})),
        &["spec.package.version", "newest"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn warn_of_what_depends_on_other_objects() {
    let cluster = cluster();
    let ns = cluster.namespace("admission").await;
    let clean = admitted(cluster, &ns, &object("PolicyPackage", "demo", spec(READS)));
    assert!(!clean.contains("Warning"), "{clean}");

    let unknown = signed(spec(READS), &SigningKey::from_bytes(&[8; 32]), &ns, |_| ());
    let said = admitted(cluster, &ns, &object("PolicyPackage", "demo", unknown));
    assert!(said.contains("Warning: ") && said.contains("UnknownSigner"), "{said}");

    let ill_typed = spec(&READS.replace(';', " when { principal.no_such_attribute == 1 };"));
    let said = admitted(cluster, &ns, &object("PolicyPackage", "demo", ill_typed));
    assert!(said.contains("Warning: ") && said.contains("SchemaViolation"), "{said}");

    let said = admitted(cluster, &ns, &object("TenantProfile", "default", json!({"sessionTimeoutSeconds": 901})));
    assert!(said.contains("looser than the platform's"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn paren_bomb_unsigned_is_refused_and_others_go_on() {
    let cluster = cluster();
    let ns = cluster.namespace("admission").await;
    let bomb = format!(
        r#"@id("bomb") permit(principal, action, resource) when {{ {}true{} }};"#,
        "(".repeat(150),
        ")".repeat(150)
    );
    refused(cluster, &ns, &object("PolicyPackage", "bomb", spec(&bomb)), &["TooDeep", "reads.cedar"]);
    admitted(cluster, &ns, &object("PolicyPackage", "demo", spec(READS)));
}
