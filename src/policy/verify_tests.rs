//! Every way in which signature and version can be wrong, each with its own code and the words that say what to mend.

use ed25519_dalek::SigningKey;

use super::super::dsse::{Statement, sign};
use super::*;
use crate::api::{EnvelopeSignature, SourceFile};

const INSTALLATION: &str = "7d1c1b52-0000-4000-8000-000000000001";

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(seed: u8) -> PublicKey {
    PublicKey::from_key(key(seed).verifying_key()).unwrap()
}

fn now() -> Timestamp {
    "2026-06-01T12:00:00Z".parse().unwrap()
}

fn signer(name: &str, seed: u8, tenants: &[&str]) -> Signer {
    Signer {
        name: name.into(),
        key: public(seed),
        tenants: tenants.iter().map(|t| t.to_string()).collect(),
        not_before: None,
        not_after: None,
        revoked: None,
    }
}

fn spec() -> PolicyPackageSpec {
    PolicyPackageSpec {
        package: "tools".into(),
        version: "1.2.0".into(),
        policies: vec![SourceFile {
            name: "a.cedar".into(),
            text: "@id(\"a\") permit(principal, action, resource);".into(),
        }],
        author: Some("Ann".into()),
        ..Default::default()
    }
}

fn statement(spec: &PolicyPackageSpec, seed: u8) -> Statement {
    Statement {
        format_version: "1".into(),
        installation: INSTALLATION.into(),
        tenant: "acme".into(),
        package: spec.package.clone(),
        version: spec.version.clone(),
        digest: super::super::digest::digest(spec),
        key_fingerprint: public(seed).fingerprint().into(),
        author: spec.author.clone(),
        signed_at: now(),
    }
}

fn signed_as(seed: u8, change: impl FnOnce(&mut Statement)) -> PolicyPackageSpec {
    let mut spec = spec();
    let mut statement = statement(&spec, seed);
    change(&mut statement);
    spec.digest = Some(super::super::digest::digest(&spec));
    spec.signature = Some(sign(&statement, &key(seed)).unwrap());
    spec
}

fn signed(seed: u8) -> PolicyPackageSpec {
    signed_as(seed, |_| {})
}

fn context(signers: &[Signer]) -> VerifyContext<'_> {
    VerifyContext {
        tenant: "acme",
        is_platform: false,
        installation: INSTALLATION,
        signers,
        signature_needed: signature_needed(SigningMode::WhenSignerExists, "acme", false, signers, false),
        now: now(),
        high_water: None,
    }
}

#[track_caller]
fn refused(result: Result<Verified, Refusal>, code: RefusalCode, words: &[&str]) {
    let refusal = result.unwrap_err();
    assert_eq!(refusal.code, code, "{refusal}");
    for word in words {
        assert!(refusal.message.contains(word), "{word:?} is not in {refusal}");
    }
    assert!(!refusal.message.contains('\n'), "{refusal}");
}

#[test]
fn a_good_package_verifies_and_says_who_signed() {
    let signers = [signer("other", 9, &["*"]), signer("alice", 1, &["acme"])];
    let verified = verify_first(&signed(1), &context(&signers)).unwrap();
    assert_eq!(verified.signer.as_deref(), Some("alice"));
    assert_eq!(verified.key_fingerprint.as_deref(), Some(public(1).fingerprint()));
    assert_eq!(verified.public_key, Some(public(1)));
    assert_eq!(verified.author.as_deref(), Some("Ann"));
    assert_eq!(verified.digest, super::super::digest::digest(&spec()));

    let anywhere = signed_as(1, |s| s.installation = "any".into());
    assert!(verify_first(&anywhere, &context(&signers)).is_ok());
}

#[test]
fn the_signing_default() {
    use SigningMode::{Required, WhenSignerExists};
    let acme = [signer("alice", 1, &["acme"])];
    let star = [signer("alice", 1, &["*"])];
    assert!(!signature_needed(WhenSignerExists, "acme", false, &[], false));
    assert!(signature_needed(WhenSignerExists, "acme", false, &acme, false));
    assert!(!signature_needed(WhenSignerExists, "other", false, &acme, false));
    assert!(signature_needed(WhenSignerExists, "other", false, &star, false));
    assert!(!signature_needed(WhenSignerExists, "remit-system", true, &star, false));
    // Deleting the signer takes nothing back, and revoking it even less.
    assert!(signature_needed(WhenSignerExists, "acme", false, &[], true));
    let revoked = [Signer { revoked: Some(RevokedReason::Superseded), ..signer("alice", 1, &["acme"]) }];
    assert!(signature_needed(WhenSignerExists, "acme", false, &revoked, false));
    assert!(signature_needed(Required, "acme", false, &[], false));
}

#[test]
fn unsigned_is_good_only_where_no_signature_is_needed() {
    let verified = verify_first(&spec(), &context(&[])).unwrap();
    assert_eq!((verified.signer, verified.key_fingerprint), (None, None));
    let signers = [signer("alice", 1, &["acme"])];
    refused(
        verify_first(&spec(), &context(&signers)),
        RefusalCode::Unsigned,
        &["spec.signature", "\"acme\"", "remit package sign"],
    );
}

#[test]
fn unknown_and_foreign_signers() {
    let fingerprint = public(1);
    let fingerprint = fingerprint.fingerprint();
    // Also where no signature is needed: what can't be verified does not pass as unsigned.
    for signers in [vec![], vec![signer("bob", 2, &["acme"])]] {
        refused(
            verify_first(&signed(1), &context(&signers)),
            RefusalCode::UnknownSigner,
            &[fingerprint, "PolicySigner"],
        );
    }
    refused(
        verify_first(&signed(1), &context(&[signer("alice", 1, &["other"])])),
        RefusalCode::ForeignSigner,
        &["\"alice\"", "\"acme\"", "spec.tenants"],
    );
    // A key that covers everything does not cover the platform.
    let signers = [signer("alice", 1, &["*"])];
    let platform = VerifyContext { tenant: "remit-system", is_platform: true, ..context(&signers) };
    let spec = signed_as(1, |s| s.tenant = "remit-system".into());
    refused(verify_first(&spec, &platform), RefusalCode::ForeignSigner, &["never includes the platform"]);
    let signers = [signer("alice", 1, &["*", "remit-system"])];
    assert!(verify_first(&spec, &VerifyContext { signers: &signers, ..platform }).is_ok());
}

#[test]
fn revoked_signers_sign_nothing_new() {
    for (reason, word) in [(RevokedReason::Superseded, "superseded"), (RevokedReason::Compromised, "compromised")] {
        let revoked = Signer { revoked: Some(reason), ..signer("alice", 1, &["acme"]) };
        refused(
            verify_first(&signed(1), &context(std::slice::from_ref(&revoked))),
            RefusalCode::RevokedSigner,
            &["\"alice\"", word],
        );
        // The same key under another name does not wash it; also when the revoked one covers another tenant.
        let again = [signer("again", 1, &["acme"]), Signer { tenants: vec!["other".into()], ..revoked }];
        refused(verify_first(&signed(1), &context(&again)), RefusalCode::RevokedSigner, &["\"alice\"", word]);
    }
}

#[test]
fn coverage_of_one_key_adds_up() {
    let two = [signer("a", 1, &["other"]), signer("b", 1, &["acme"])];
    assert_eq!(verify_first(&signed(1), &context(&two)).unwrap().signer.as_deref(), Some("b"));
    let expired = Signer { not_after: Some("2026-01-01T00:00:00Z".parse().unwrap()), ..signer("old", 1, &["acme"]) };
    let two = [expired, signer("b", 1, &["acme"])];
    assert_eq!(verify_first(&signed(1), &context(&two)).unwrap().signer.as_deref(), Some("b"));
}

#[test]
fn the_first_verification_keeps_to_the_signers_window() {
    let at = |t: &str| Some(t.parse::<Timestamp>().unwrap());
    let early = [Signer { not_before: at("2026-06-01T12:00:01Z"), ..signer("alice", 1, &["acme"]) }];
    refused(
        verify_first(&signed(1), &context(&early)),
        RefusalCode::SignerNotYetValid,
        &["alice", "2026-06-01T12:00:01Z", "notBefore"],
    );
    let late = [Signer { not_after: at("2026-06-01T11:59:59Z"), ..signer("alice", 1, &["acme"]) }];
    refused(
        verify_first(&signed(1), &context(&late)),
        RefusalCode::SignerExpired,
        &["alice", "2026-06-01T11:59:59Z", "notAfter"],
    );
    let edges = [Signer { not_before: Some(now()), not_after: Some(now()), ..signer("alice", 1, &["acme"]) }];
    assert!(verify_first(&signed(1), &context(&edges)).is_ok());
}

#[test]
fn what_was_signed_is_what_is_there() {
    let signers = [signer("alice", 1, &["*"])];
    let ctx = context(&signers);
    refused(
        verify_first(&signed_as(1, |s| s.tenant = "other".into()), &ctx),
        RefusalCode::TenantMismatch,
        &["signed for tenant \"other\"", "this is tenant \"acme\""],
    );
    refused(
        verify_first(&signed_as(1, |s| s.installation = "elsewhere".into()), &ctx),
        RefusalCode::InstallationMismatch,
        &["\"elsewhere\"", INSTALLATION],
    );
    refused(
        verify_first(&signed_as(1, |s| s.package = "gadgets".into()), &ctx),
        RefusalCode::NameMismatch,
        &["\"gadgets\"", "\"tools\""],
    );
    refused(
        verify_first(&signed_as(1, |s| s.version = "1.1.0".into()), &ctx),
        RefusalCode::VersionMismatch,
        &["\"1.1.0\"", "\"1.2.0\""],
    );
    // The same by changing the object, with its digest made to fit.
    let mut spec = signed(1);
    spec.version = "9.0.0".into();
    spec.digest = Some(super::super::digest::digest(&spec));
    refused(verify_first(&spec, &ctx), RefusalCode::VersionMismatch, &["\"1.2.0\"", "\"9.0.0\""]);
}

#[test]
fn a_tampered_byte_is_found_wherever_it_is() {
    let signers = [signer("alice", 1, &["acme"])];
    let ctx = context(&signers);
    let mut spec = signed(1);
    spec.policies[0].text = spec.policies[0].text.replace("permit", "forbid");
    refused(verify_first(&spec, &ctx), RefusalCode::DigestMismatch, &["spec.digest"]);
    spec.digest = Some(super::super::digest::digest(&spec));
    refused(verify_first(&spec, &ctx), RefusalCode::DigestMismatch, &["the signed digest", "after it was signed"]);
    spec.digest = None;
    refused(verify_first(&spec, &ctx), RefusalCode::DigestMismatch, &["the signed digest"]);

    let mut spec = signed(1);
    spec.digest = Some("sha256:0".into());
    refused(verify_first(&spec, &ctx), RefusalCode::DigestMismatch, &["spec.digest is \"sha256:0\""]);
    // Unsigned packages, too.
    let unsigned = PolicyPackageSpec { digest: Some("sha256:0".into()), ..super::tests::spec() };
    refused(verify_first(&unsigned, &context(&[])), RefusalCode::DigestMismatch, &["spec.digest"]);

    // Somebody else's signature under alice's key id.
    let mut spec = signed(1);
    let mut forged = statement(&spec, 1);
    forged.key_fingerprint = public(2).fingerprint().into();
    let mut envelope = sign(&forged, &key(2)).unwrap();
    envelope.payload = spec.signature.as_ref().unwrap().payload.clone();
    envelope.signatures[0].keyid = public(1).fingerprint().into();
    spec.signature = Some(envelope);
    refused(verify_first(&spec, &ctx), RefusalCode::SignatureMismatch, &["signatures[0].sig", public(1).fingerprint()]);

    let mut spec = signed(1);
    spec.signature.as_mut().unwrap().payload_type = "text/plain".into();
    refused(verify_first(&spec, &ctx), RefusalCode::EnvelopeMalformed, &["payloadType", "text/plain"]);
}

/// The second signature, of the same statement.
fn cosigned(bad: bool) -> PolicyPackageSpec {
    use base64::prelude::{BASE64_STANDARD, Engine};
    use ed25519_dalek::Signer as _;
    let mut spec = signed(1);
    let envelope = spec.signature.as_mut().unwrap();
    let payload = BASE64_STANDARD.decode(&envelope.payload).unwrap();
    let mut bytes = format!("DSSEv1 {} {} {} ", envelope.payload_type.len(), envelope.payload_type, payload.len());
    if bad {
        bytes.push(' ');
    }
    let mut bytes = bytes.into_bytes();
    bytes.extend_from_slice(&payload);
    let sig = BASE64_STANDARD.encode(key(2).sign(&bytes).to_bytes());
    envelope.signatures.push(EnvelopeSignature { keyid: public(2).fingerprint().into(), sig });
    spec
}

#[test]
fn one_known_good_signature_of_several_is_enough_and_a_bad_known_one_is_not() {
    let alice = signer("alice", 1, &["acme"]);
    let bob = signer("bob", 2, &["acme"]);
    let by = |spec: &PolicyPackageSpec, signers: &[Signer]| verify_first(spec, &context(signers)).map(|v| v.signer);
    assert_eq!(by(&cosigned(false), std::slice::from_ref(&alice)), Ok(Some("alice".into())));
    assert_eq!(by(&cosigned(false), std::slice::from_ref(&bob)), Ok(Some("bob".into())));
    // Alice may not; Bob may.
    let foreign = Signer { tenants: vec!["other".into()], ..alice.clone() };
    assert_eq!(by(&cosigned(false), &[foreign, bob.clone()]), Ok(Some("bob".into())));
    // A bad signature of a key that nobody knows says nothing; of one that is known it does.
    assert_eq!(by(&cosigned(true), std::slice::from_ref(&alice)), Ok(Some("alice".into())));
    refused(
        verify_first(&cosigned(true), &context(&[alice, bob])),
        RefusalCode::SignatureMismatch,
        &["signatures[1].sig", public(2).fingerprint()],
    );
}

#[test]
fn names_and_versions_have_one_shape() {
    for version in ["1", "1.2", "v1.2.3", "1.2.3 ", "01.2.3", "", "1.2.3+build.5", &"1".repeat(200)] {
        let spec = PolicyPackageSpec { version: version.into(), ..spec() };
        refused(verify_first(&spec, &context(&[])), RefusalCode::NotSemver, &["spec.version", "1.2.3"]);
    }
    let build = PolicyPackageSpec { version: "1.2.3+b5".into(), ..spec() };
    refused(verify_first(&build, &context(&[])), RefusalCode::NotSemver, &["leave out \"+b5\""]);
    for version in ["0.0.0", "1.2.3-rc.1", "10.20.30"] {
        assert!(verify_first(&PolicyPackageSpec { version: version.into(), ..spec() }, &context(&[])).is_ok());
    }
    for package in ["", "Tools", "to_ols", "a/b", "-a", "a-", "é", &"a".repeat(64)] {
        let spec = PolicyPackageSpec { package: package.into(), ..spec() };
        refused(verify_first(&spec, &context(&[])), RefusalCode::Malformed, &["spec.package"]);
    }
}

#[test]
fn too_large_comes_before_everything() {
    let mut spec = signed(1);
    spec.policies[0].text = "x".repeat(MAX_PACKAGE_BYTES);
    refused(verify_first(&spec, &context(&[])), RefusalCode::TooLarge, &["1048576", "policies 1048576"]);
    assert_eq!(
        verify_recorded(&spec, None, "sha256:0", None, "acme", INSTALLATION, &[]).unwrap_err().code,
        RefusalCode::TooLarge
    );
}

#[test]
fn the_order_of_the_checks() {
    // One thing after another is mended; each time the next shows.
    let mut signers = vec![Signer { revoked: Some(RevokedReason::Superseded), ..signer("alice", 1, &["acme"]) }];
    let mut spec = signed_as(1, |s| {
        s.tenant = "other".into();
        s.digest = "sha256:0".into();
    });
    spec.signature.as_mut().unwrap().signatures[0].sig = signed(1).signature.unwrap().signatures[0].sig.clone();
    assert_eq!(verify_first(&spec, &context(&signers)).unwrap_err().code, RefusalCode::TenantMismatch);
    let mut spec = signed_as(1, |s| s.digest = "sha256:0".into());
    spec.signature.as_mut().unwrap().signatures[0].sig = signed(1).signature.unwrap().signatures[0].sig.clone();
    assert_eq!(verify_first(&spec, &context(&signers)).unwrap_err().code, RefusalCode::RevokedSigner);
    signers[0].revoked = None;
    assert_eq!(verify_first(&spec, &context(&signers)).unwrap_err().code, RefusalCode::DigestMismatch);
    let mut spec = signed(1);
    spec.signature.as_mut().unwrap().signatures[0].sig =
        signed_as(1, |s| s.author = None).signature.unwrap().signatures[0].sig.clone();
    let high = VerifyContext { high_water: Some(("2.0.0".parse().unwrap(), "sha256:0".into())), ..context(&signers) };
    assert_eq!(verify_first(&spec, &high).unwrap_err().code, RefusalCode::SignatureMismatch);
    assert_eq!(verify_first(&signed(1), &high).unwrap_err().code, RefusalCode::Downgrade);
}

#[test]
fn never_below_the_high_water_mark() {
    let digest = super::super::digest::digest(&spec());
    let at = |version: &str, digest: &str| VerifyContext {
        high_water: Some((version.parse().unwrap(), digest.into())),
        ..context(&[])
    };
    refused(
        verify_first(&spec(), &at("1.2.1", "sha256:0")),
        RefusalCode::Downgrade,
        &["1.2.0", "1.2.1", "\"tools\"", "roll back"],
    );
    refused(
        verify_first(&spec(), &at("1.2.0", "sha256:0")),
        RefusalCode::VersionReused,
        &["1.2.0", "sha256:0", &digest, "new version"],
    );
    assert!(verify_first(&spec(), &at("1.2.0", &digest)).is_ok());
    // Precedence of semver: 1.10 is above 1.9, a pre-release below its release.
    assert!(verify_first(&spec(), &at("1.2.0-rc.1", "sha256:0")).is_ok());
    let ten = PolicyPackageSpec { version: "1.10.0".into(), ..spec() };
    assert!(verify_first(&ten, &at("1.9.0", "sha256:0")).is_ok());
    let rc = PolicyPackageSpec { version: "1.2.0-rc.1".into(), ..spec() };
    assert_eq!(verify_first(&rc, &at("1.2.0", "sha256:0")).unwrap_err().code, RefusalCode::Downgrade);
}

/// What is loaded, as it was recorded.
fn recorded(spec: &PolicyPackageSpec, signers: &[Signer]) -> Result<(), Refusal> {
    let digest = super::super::digest::digest(&super::tests::spec());
    let key = public(1);
    verify_recorded(spec, Some(&key), &digest, Some(key.fingerprint()), "acme", INSTALLATION, signers)
}

#[test]
fn what_is_in_force_is_removed_only_by_compromise() {
    let past = Some("2020-01-01T00:00:00Z".parse().unwrap());
    let stays = [
        vec![],
        vec![signer("alice", 1, &["acme"])],
        vec![signer("alice", 1, &["other"])],
        vec![Signer { not_after: past, ..signer("alice", 1, &["acme"]) }],
        vec![Signer { revoked: Some(RevokedReason::Superseded), ..signer("alice", 1, &["acme"]) }],
        vec![Signer { revoked: Some(RevokedReason::Compromised), ..signer("bob", 2, &["acme"]) }],
    ];
    for signers in stays {
        assert_eq!(recorded(&signed(1), &signers), Ok(()), "{signers:?}");
    }
    // By any PolicySigner that holds the key, whatever it covers.
    let compromised = Signer { revoked: Some(RevokedReason::Compromised), ..signer("other", 1, &["other"]) };
    let refusal = recorded(&signed(1), &[signer("alice", 1, &["acme"]), compromised]).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::RevokedSigner);
    assert!(refusal.message.contains("\"other\" is compromised"), "{refusal}");
}

#[test]
fn a_load_checks_digest_and_signature_again() {
    let code = |spec: &PolicyPackageSpec| recorded(spec, &[]).unwrap_err().code;
    let mut spec = signed(1);
    spec.policies[0].text.push(' ');
    assert_eq!(code(&spec), RefusalCode::DigestMismatch);
    let mut spec = signed(1);
    spec.signature = None;
    assert_eq!(code(&spec), RefusalCode::SignatureMismatch);
    // Signed by somebody else: neither under the recorded key nor with another key beside it.
    assert_eq!(code(&signed(2)), RefusalCode::SignatureMismatch);
    let digest = super::super::digest::digest(&super::tests::spec());
    let with = |key: Option<&PublicKey>| {
        verify_recorded(&signed(2), key, &digest, Some(public(1).fingerprint()), "acme", INSTALLATION, &[])
    };
    assert_eq!(with(Some(&public(2))).unwrap_err().code, RefusalCode::SignatureMismatch);
    assert_eq!(with(None).unwrap_err().code, RefusalCode::SignatureMismatch);
    assert_eq!(code(&signed_as(1, |s| s.tenant = "other".into())), RefusalCode::TenantMismatch);
    let mut spec = signed(1);
    spec.signature.as_mut().unwrap().signatures[0].sig =
        signed_as(1, |s| s.author = None).signature.unwrap().signatures[0].sig.clone();
    assert_eq!(code(&spec), RefusalCode::SignatureMismatch);
}

#[test]
fn what_was_in_force_unsigned_stays_when_a_signer_comes() {
    let digest = super::super::digest::digest(&spec());
    let load = |spec: &PolicyPackageSpec, digest: &str| {
        verify_recorded(spec, None, digest, None, "acme", INSTALLATION, &[signer("alice", 1, &["acme"])])
    };
    assert_eq!(load(&spec(), &digest), Ok(()));
    let refusal = load(&spec(), "sha256:0").unwrap_err();
    assert_eq!(refusal.code, RefusalCode::DigestMismatch);
    assert!(refusal.message.contains("recorded as in force"), "{refusal}");
}

/// Not every database can keep U+0000, and what can't be kept would stop a rollout at its last step.
#[test]
fn nul_is_refused_by_the_name_of_its_field() {
    type Change = fn(&mut PolicyPackageSpec);
    let changes: [(&str, Change); 5] = [
        ("spec.author", |s| s.author = Some("a\0b".into())),
        ("spec.policies[0].text", |s| s.policies[0].text.push_str(" // a comment \0")),
        ("spec.policies[0].name", |s| s.policies[0].name.push('\0')),
        ("spec.schema", |s| s.schema = Some("// \0".into())),
        ("spec.tests[0].text", |s| s.tests = vec![SourceFile { name: "t".into(), text: "\0".into() }]),
    ];
    for (field, change) in changes {
        let mut spec = spec();
        change(&mut spec);
        refused(verify_first(&spec, &context(&[])), RefusalCode::Malformed, &[field, "U+0000"]);
        // What came into force before stays what it is.
        let digest = super::super::digest::digest(&spec);
        verify_recorded(&spec, None, &digest, None, "acme", INSTALLATION, &[]).unwrap();
    }
    let signers = [signer("alice", 1, &["acme"])];
    let signed = signed_as(1, |s| s.author = Some("a\0b".into()));
    refused(verify_first(&signed, &context(&signers)), RefusalCode::Malformed, &["author of spec.signature", "U+0000"]);
}
