//! The whole way of a package, and what admission says of it.

use ed25519_dalek::SigningKey;

use super::*;
use crate::api::{RevokedReason, SourceFile, Tier, Tool};
use crate::policy::{FORMAT_VERSION, PublicKey, RefusalCode, Signer, Statement, sign};

const POLICIES: &str = r#"
@id("reads") permit (principal, action == Action::"call_tool", resource in ToolGroup::"read");
"#;
const TESTS: &str =
    "- name: reads\n  agent: coder\n  call: {tool: git/log}\n  expect: {decision: allow, policies: [reads]}\n";

fn spec() -> PolicyPackageSpec {
    let file = |name: &str, text: &str| SourceFile { name: name.into(), text: text.into() };
    PolicyPackageSpec {
        package: "tools".into(),
        version: "1.0.0".into(),
        tools: vec![Tool {
            name: "git/log".into(),
            tier: Tier::Read,
            sensitivity: Default::default(),
            groups: vec![],
            description: None,
            schema_digest: None,
        }],
        policies: vec![file("main.cedar", POLICIES)],
        tests: vec![file("tests/main.yaml", TESTS)],
        ..Default::default()
    }
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn signer(tenant: &str) -> Signer {
    Signer {
        name: "alice".into(),
        key: PublicKey::from_key(key().verifying_key()).unwrap(),
        tenants: vec![tenant.into()],
        not_before: None,
        not_after: None,
        revoked: None,
    }
}

fn signed(mut spec: PolicyPackageSpec) -> PolicyPackageSpec {
    let statement = Statement {
        format_version: FORMAT_VERSION.into(),
        installation: "any".into(),
        tenant: "acme".into(),
        package: spec.package.clone(),
        version: spec.version.clone(),
        digest: digest(&spec),
        key_fingerprint: signer("acme").key.fingerprint().into(),
        author: None,
        signed_at: "2026-01-01T00:00:00Z".parse().unwrap(),
    };
    spec.signature = Some(sign(&statement, &key()).unwrap());
    spec
}

fn context(signers: &[Signer]) -> VerifyContext<'_> {
    VerifyContext {
        tenant: "acme",
        is_platform: false,
        installation: "here",
        signers,
        signature_needed: !signers.is_empty(),
        now: "2026-06-01T00:00:00Z".parse().unwrap(),
        high_water: None,
    }
}

fn with_policy(text: &str) -> PolicyPackageSpec {
    let mut spec = spec();
    spec.policies[0].text = text.into();
    spec
}

fn codes(refusals: &[Refusal]) -> Vec<RefusalCode> {
    refusals.iter().map(|r| r.code).collect()
}

fn refused(spec: &PolicyPackageSpec, ctx: &VerifyContext<'_>) -> Vec<RefusalCode> {
    codes(&accept(spec, ctx, &[base_platform()]).unwrap_err())
}

#[test]
fn a_good_package_is_accepted_with_all_that_the_operator_needs() {
    let signers = [signer("acme")];
    let accepted = accept(&signed(spec()), &context(&signers), &[base_platform()]).unwrap();
    assert_eq!(accepted.verified.signer.as_deref(), Some("alice"));
    assert_eq!(accepted.compiled.digest(), digest(&spec()));
    assert_eq!(accepted.compiled.policy_count(), 1);
    assert_eq!(accepted.tests.results.len(), 1);
    assert_eq!(prove(&signed(spec()), &context(&signers)), (vec![], vec![]));
}

#[test]
fn the_order_of_the_whole_way() {
    // Signature before syntax, syntax before tests, tests before history.
    let signers = [signer("acme")];
    let high = || Some((semver::Version::new(2, 0, 0), "sha256:0".to_string()));
    let mut bad = with_policy("this is not Cedar");
    bad.tests[0].text = TESTS.replace("allow", "deny");
    let ctx = VerifyContext { high_water: high(), ..context(&signers) };
    assert_eq!(refused(&bad, &ctx), [RefusalCode::Unsigned]);
    assert_eq!(refused(&signed(bad.clone()), &ctx), [RefusalCode::CedarSyntax]);
    bad.policies[0].text = POLICIES.into();
    assert_eq!(refused(&signed(bad.clone()), &ctx), [RefusalCode::TestFailed]);
    assert_eq!(refused(&signed(spec()), &ctx), [RefusalCode::Downgrade]);
}

#[test]
fn admission_refuses_what_the_bytes_prove() {
    let signers = [signer("acme")];
    let ctx = context(&signers);
    let proven = |spec: &PolicyPackageSpec| codes(&prove(spec, &ctx).0);
    assert_eq!(proven(&signed(with_policy("this is not Cedar"))), [RefusalCode::CedarSyntax]);
    let mut tampered = signed(spec());
    tampered.policies[0].text.push(' ');
    assert_eq!(proven(&tampered), [RefusalCode::DigestMismatch]);
    let mut forged = signed(spec());
    let other = signed(PolicyPackageSpec { version: "1.0.1".into(), ..spec() });
    forged.signature.as_mut().unwrap().signatures[0].sig = other.signature.unwrap().signatures[0].sig.clone();
    assert_eq!(proven(&forged), [RefusalCode::SignatureMismatch]);
    assert_eq!(proven(&PolicyPackageSpec { version: "one".into(), ..spec() }), [RefusalCode::NotSemver]);
    let mut tests = spec();
    tests.tests[0].text = "- nam: x".into();
    let (refusals, warnings) = prove(&tests, &context(&[]));
    assert_eq!((codes(&refusals), warnings), (vec![RefusalCode::TestSyntax], vec![]));
    assert!(refusals[0].message.contains("tests/main.yaml:1:"), "{}", refusals[0]);
}

#[test]
fn admission_only_warns_of_what_other_objects_decide() {
    let warned = |spec: &PolicyPackageSpec, ctx: &VerifyContext<'_>| {
        let (refusals, warnings) = prove(spec, ctx);
        assert_eq!(refusals, []);
        codes(&warnings)
    };
    // The signer may come later in the same `kubectl apply -f dir/`.
    assert_eq!(warned(&signed(spec()), &context(&[])), [RefusalCode::UnknownSigner]);
    assert_eq!(warned(&signed(spec()), &context(&[signer("other")])), [RefusalCode::ForeignSigner]);
    let revoked = [Signer { revoked: Some(RevokedReason::Superseded), ..signer("acme") }];
    assert_eq!(warned(&signed(spec()), &context(&revoked)), [RefusalCode::RevokedSigner]);
    let expired = [Signer { not_after: Some("2026-01-01T00:00:00Z".parse().unwrap()), ..signer("acme") }];
    assert_eq!(warned(&signed(spec()), &context(&expired)), [RefusalCode::SignerExpired]);
    assert_eq!(warned(&spec(), &context(&[signer("acme")])), [RefusalCode::Unsigned]);
    let mut failing = spec();
    failing.tests[0].text = TESTS.replace("allow", "deny");
    assert_eq!(warned(&failing, &context(&[])), [RefusalCode::TestFailed]);
    let violation = with_policy(
        r#"@id("x") permit (principal, action == Action::"call_tool", resource) when { resource.nothing == 1 };"#,
    );
    assert_eq!(warned(&violation, &context(&[])), [RefusalCode::SchemaViolation]);
    let high = Some((semver::Version::new(2, 0, 0), "sha256:0".to_string()));
    assert_eq!(warned(&spec(), &VerifyContext { high_water: high, ..context(&[]) }), [RefusalCode::Downgrade]);
}

#[test]
fn nothing_provable_hides_behind_a_warning() {
    // An unknown signer, and a digest that is wrong, and a syntax error.
    let mut tampered = signed(spec());
    tampered.policies[0].text.push(' ');
    let (refusals, warnings) = prove(&tampered, &context(&[]));
    assert_eq!(
        (codes(&refusals), codes(&warnings)),
        (vec![RefusalCode::DigestMismatch], vec![RefusalCode::UnknownSigner])
    );
    let (refusals, warnings) = prove(&signed(with_policy("this is not Cedar")), &context(&[]));
    assert_eq!(
        (codes(&refusals), codes(&warnings)),
        (vec![RefusalCode::CedarSyntax], vec![RefusalCode::UnknownSigner])
    );
    // A bad signature under a key that is known but may not sign.
    let mut forged = signed(spec());
    let other = signed(PolicyPackageSpec { version: "1.0.1".into(), ..spec() });
    forged.signature.as_mut().unwrap().signatures[0].sig = other.signature.unwrap().signatures[0].sig.clone();
    let (refusals, warnings) = prove(&forged, &context(&[signer("other")]));
    assert_eq!(codes(&refusals), [RefusalCode::SignatureMismatch]);
    assert_eq!(codes(&warnings), [RefusalCode::ForeignSigner]);
}

/// 150 nested parentheses in 360 bytes ended the process once. Also as what a test, a schema or the entities hold.
#[test]
fn paren_bomb_unsigned() {
    let parens = format!(
        r#"@id("x") permit (principal, action, resource) when {{ {}true{} }};"#,
        "(".repeat(150),
        ")".repeat(150)
    );
    let (refusals, _) = prove(&with_policy(&parens), &context(&[]));
    assert_eq!(codes(&refusals), [RefusalCode::TooDeep]);
    // Where a signer covers the tenant, it is refused for the missing signature first, and admission still sees the bomb.
    let signers = [signer("acme")];
    assert_eq!(refused(&with_policy(&parens), &context(&signers)), [RefusalCode::Unsigned]);
    assert_eq!(codes(&prove(&with_policy(&parens), &context(&signers)).0), [RefusalCode::TooDeep]);

    for deep in ["[".repeat(100_000), "{a: ".repeat(100_000), format!("- name: {}", "[".repeat(100_000))] {
        let mut spec = spec();
        spec.tests[0].text = deep;
        assert_eq!(codes(&prove(&spec, &context(&[])).0), [RefusalCode::TestSyntax]);
    }
    let deep_schema = format!("entity X {{ a: {}Long{} }};", "Set<".repeat(5_000), ">".repeat(5_000));
    let schema = PolicyPackageSpec { schema: Some(deep_schema), ..spec() };
    assert_eq!(codes(&prove(&schema, &context(&[])).0), [RefusalCode::TooDeep]);
    let entities = PolicyPackageSpec { entities: Some("[".repeat(100_000)), ..spec() };
    let (refusals, _) = prove(&entities, &context(&[]));
    assert!(!refusals.is_empty(), "entities");
}

#[test]
fn a_platform_package_is_compiled_for_the_platform() {
    let grants = with_policy(
        r#"@id("g") @grants_tenants permit (principal, action == Action::"call_tool", resource in ToolGroup::"read")
           when { context.tenant == "test" };"#,
    );
    let grants = PolicyPackageSpec { tests: vec![], ..grants };
    assert_eq!(refused(&grants, &context(&[]))[0], RefusalCode::InvalidAnnotation);
    let platform = VerifyContext { tenant: "remit-system", is_platform: true, ..context(&[]) };
    assert!(accept(&grants, &platform, &[base_platform()]).is_ok());

    // Its tests are asked of a tenant that permits everything: what it forbids shows.
    let mut forbids = with_policy(
        r#"@id("f") forbid (principal, action == Action::"call_tool", resource) when { principal.trust < 2 };"#,
    );
    forbids.tests[0].text = "- name: little trust\n  agent: coder\n  call: {tool: git/log}\n  \
        expect: {decision: deny, policies: [f]}\n- name: more\n  agent: {trust: 2}\n  call: {tool: git/log}\n  \
        expect: {decision: allow, policies: [tenant/test/everything]}\n"
        .into();
    let accepted = accept(&forbids, &platform, &[base_platform()]).map_err(|r| format!("{r:?}")).unwrap();
    assert_eq!(accepted.tests.results.len(), 2);
}
