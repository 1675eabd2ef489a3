//! Whether a package's bytes may come into force, and whether bytes that are in force may stay.
//!
//! Order: size, tenant, signer, digest, signature; only then does anything parse Cedar. A clock comes in as argument. The first
//! verification asks everything; a later one only whether the bytes are still those that were recorded, under the recorded key,
//! and whether that key was compromised: restarting never changes an answer.

use jiff::Timestamp;
use semver::Version;
use serde_json::Value;

use super::digest::{canonical, sha256_text};
use super::dsse::{ANY_INSTALLATION, Ed25519Dsse, Opened, SignatureVerifier, clip};
use super::refusal::{Refusal, RefusalCode};
use super::signer::{PublicKey, Signer};
use crate::api::{PolicyPackageSpec, RevokedReason};

/// The largest package, in bytes of its canonical form: what fits beside its history into one object of the API server.
pub const MAX_PACKAGE_BYTES: usize = 1024 * 1024;
/// The longest package name: it becomes part of object names.
pub const MAX_NAME_BYTES: usize = 63;
/// The longest version: it becomes part of object names.
pub const MAX_VERSION_BYTES: usize = 128;

/// The one format of signatures for now; another is another implementation beside it.
const VERIFIER: &dyn SignatureVerifier = &Ed25519Dsse;

/// Chart value `signatures`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SigningMode {
    /// Unsigned packages are Ready until a PolicySigner covers the tenant, or ever has.
    #[default]
    WhenSignerExists,
    /// Every package must be signed.
    Required,
}

impl std::str::FromStr for SigningMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "WhenSignerExists" => Ok(Self::WhenSignerExists),
            "Required" => Ok(Self::Required),
            _ => Err(format!("{text:?} is not a signing mode, expected WhenSignerExists or Required")),
        }
    }
}

/// Whether a new package of the tenant must be signed. `signer_seen`: a signer covered the tenant before; deleting it takes
/// nothing back. A revoked signer covers, too.
pub fn signature_needed(
    mode: SigningMode,
    tenant: &str,
    is_platform: bool,
    signers: &[Signer],
    signer_seen: bool,
) -> bool {
    match mode {
        SigningMode::Required => true,
        SigningMode::WhenSignerExists => signer_seen || signers.iter().any(|s| s.covers(tenant, is_platform)),
    }
}

/// What a first verification needs to know besides the bytes.
#[derive(Clone, Debug)]
pub struct VerifyContext<'a> {
    /// Namespace of the package.
    pub tenant: &'a str,
    /// Whether that is the operator's own.
    pub is_platform: bool,
    /// UID of the installation's `kube-system`.
    pub installation: &'a str,
    /// Every PolicySigner that can be read, whatever it covers.
    pub signers: &'a [Signer],
    /// What `signature_needed` says.
    pub signature_needed: bool,
    /// Remit's clock.
    pub now: Timestamp,
    /// The highest version that was in force in the tenant under this package's name, and its digest.
    pub high_water: Option<(Version, String)>,
}

/// A package whose bytes may come into force, as far as signature and version go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Digest that was computed.
    pub digest: String,
    /// Fingerprint of the key whose signature counted; None: unsigned.
    pub key_fingerprint: Option<String>,
    /// Name of the PolicySigner that holds it.
    pub signer: Option<String>,
    /// Author, as signed; unsigned, as the package says.
    pub author: Option<String>,
    /// The key itself, to be recorded with the bytes; None: unsigned.
    pub public_key: Option<PublicKey>,
}

/// For coming into force: everything that can be said without parsing Cedar. The first refusal, in the order above.
pub fn verify_first(spec: &PolicyPackageSpec, ctx: &VerifyContext<'_>) -> Result<Verified, Refusal> {
    let verified = verify_bytes(spec, ctx)?;
    check_high_water(spec, &verified.digest, ctx.high_water.as_ref())?;
    Ok(verified)
}

/// As `verify_first`, without the tenant's history.
pub(crate) fn verify_bytes(spec: &PolicyPackageSpec, ctx: &VerifyContext<'_>) -> Result<Verified, Refusal> {
    let mut found = Vec::new();
    match (examine(spec, ctx, &mut found), found.into_iter().next()) {
        (_, Some(refusal)) => Err(refusal),
        (Some(verified), None) => Ok(verified),
        // `examine` gives nothing only together with a refusal.
        (None, None) => Err(Refusal::new(RefusalCode::Malformed, "spec can't be verified")),
    }
}

/// Goes on after a refusal wherever the next question still has an answer, so that admission, which only warns of an unknown
/// signer, sees the tampered digest behind it. Nothing here parses Cedar.
pub(crate) fn examine(spec: &PolicyPackageSpec, ctx: &VerifyContext<'_>, found: &mut Vec<Refusal>) -> Option<Verified> {
    let digest = keep(check_shape(spec), found)?;
    keep(check_texts(spec), found);
    let Some(envelope) = &spec.signature else {
        if ctx.signature_needed {
            found.push(Refusal::new(
                RefusalCode::Unsigned,
                format!(
                    "spec.signature is missing: packages of tenant {:?} must be signed; sign with \
                     `remit package sign --tenant {}`",
                    ctx.tenant, ctx.tenant
                ),
            ));
        }
        keep(check_spec_digest(spec, &digest), found);
        let author = spec.author.clone();
        return Some(Verified { digest, key_fingerprint: None, signer: None, author, public_key: None });
    };
    let opened = keep(Opened::open(envelope), found)?;
    if opened.statement.author.as_ref().is_some_and(|author| author.contains('\0')) {
        found.push(nul("author of spec.signature"));
    }
    keep(check_statement(&opened, spec, ctx.tenant, ctx.installation), found);
    let signer = keep(find_signer(&opened, ctx), found);
    keep(check_spec_digest(spec, &digest), found);
    keep(check_signed_digest(&opened, &digest), found);
    // One good signature is enough, but a bad one under any key that is known is an attempt, not an addition.
    for keyid in opened.keyids() {
        if let Some(known) = ctx.signers.iter().find(|s| s.key.fingerprint() == keyid) {
            keep(VERIFIER.verify(envelope, &known.key), found);
        }
    }
    let signer = signer?;
    let statement = keep(VERIFIER.verify(envelope, &signer.key), found)?;
    Some(Verified {
        digest,
        key_fingerprint: Some(signer.key.fingerprint().into()),
        signer: Some(signer.name.clone()),
        author: statement.author,
        public_key: Some(signer.key.clone()),
    })
}

/// Puts a refusal, each once, where `examine` collects them.
fn keep<T>(result: Result<T, Refusal>, found: &mut Vec<Refusal>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(refusal) => {
            if !found.contains(&refusal) {
                found.push(refusal);
            }
            None
        }
    }
}

/// At each load of what is in force: the bytes are the recorded ones, the recorded key signed them, and nobody has declared that
/// key compromised. Everything else that may have changed since (expiry, signers, versions, tests) does not count.
pub fn verify_recorded(
    spec: &PolicyPackageSpec,
    recorded_key: Option<&PublicKey>,
    digest: &str,
    key_fingerprint: Option<&str>,
    tenant: &str,
    installation: &str,
    signers: &[Signer],
) -> Result<(), Refusal> {
    let computed = check_shape(spec)?;
    if let Some(fingerprint) = key_fingerprint {
        check_compromised(fingerprint, signers)?;
    }
    if computed != digest {
        return Err(Refusal::new(
            RefusalCode::DigestMismatch,
            format!("the digest of the stored content is {computed}, but {} was recorded as in force", clip(digest)),
        ));
    }
    check_spec_digest(spec, &computed)?;
    let Some(fingerprint) = key_fingerprint else { return Ok(()) };
    let Some(key) = recorded_key.filter(|key| key.fingerprint() == fingerprint) else {
        return Err(Refusal::new(
            RefusalCode::SignatureMismatch,
            format!("the stored publicKey is not the recorded key {}", clip(fingerprint)),
        ));
    };
    let Some(envelope) = &spec.signature else {
        return Err(Refusal::new(
            RefusalCode::SignatureMismatch,
            format!("spec.signature is missing, but {fingerprint} was recorded as the key that signed"),
        ));
    };
    let opened = Opened::open(envelope)?;
    check_statement(&opened, spec, tenant, installation)?;
    check_signed_digest(&opened, &computed)?;
    VERIFIER.verify(envelope, key).map(|_| ())
}

/// Size and the shape of name and version; gives the digest.
fn check_shape(spec: &PolicyPackageSpec) -> Result<String, Refusal> {
    let bytes = canonical(spec);
    if bytes.len() > MAX_PACKAGE_BYTES {
        let of = |files: &[crate::api::SourceFile]| files.iter().map(|f| f.text.len()).sum::<usize>();
        return Err(Refusal::new(
            RefusalCode::TooLarge,
            format!(
                "the package has {} bytes, at most {MAX_PACKAGE_BYTES} (policies {}, tests {}, entities {}, schema {})",
                bytes.len(),
                of(&spec.policies),
                of(&spec.tests),
                spec.entities.as_deref().map_or(0, str::len),
                spec.schema.as_deref().map_or(0, str::len),
            ),
        ));
    }
    check_name(&spec.package)?;
    parse_version(&spec.version)?;
    Ok(sha256_text(&bytes))
}

/// No text of what may come into force holds U+0000: not every database can keep it. What is in force already is not asked.
fn check_texts(spec: &PolicyPackageSpec) -> Result<(), Refusal> {
    let content = serde_json::to_value(spec)
        .map_err(|e| Refusal::new(RefusalCode::Malformed, format!("spec can't be read: {e}")))?;
    nul_in(&content, "spec").map_or(Ok(()), |field| Err(nul(&field)))
}

fn nul(field: &str) -> Refusal {
    Refusal::new(RefusalCode::Malformed, format!("{field} holds the character U+0000, which no text may"))
}

/// The first field below `at` whose text, or whose name, holds U+0000.
fn nul_in(value: &Value, at: &str) -> Option<String> {
    match value {
        Value::String(text) => text.contains('\0').then(|| at.to_owned()),
        Value::Array(items) => items.iter().enumerate().find_map(|(n, item)| nul_in(item, &format!("{at}[{n}]"))),
        Value::Object(fields) => fields.iter().find_map(|(name, field)| match name.contains('\0') {
            true => Some(format!("a name in {at}")),
            false => nul_in(field, &format!("{at}.{name}")),
        }),
        _ => None,
    }
}

/// A package's name becomes part of object names and policy ids: a DNS label.
fn check_name(name: &str) -> Result<(), Refusal> {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let bytes = name.as_bytes();
    if bytes.len() > MAX_NAME_BYTES || !inner || !edge(bytes.first()) || !edge(bytes.last()) {
        return Err(Refusal::new(
            RefusalCode::Malformed,
            format!(
                "spec.package is {:?}, expected 1 to {MAX_NAME_BYTES} of a-z, 0-9 and '-', beginning and ending with a letter \
                 or digit",
                clip(name)
            ),
        ));
    }
    Ok(())
}

/// Semantic version (semver.org 2.0.0) without build metadata: two versions that differ only there have no order.
pub fn parse_version(text: &str) -> Result<Version, Refusal> {
    let refuse = |why: String| {
        Refusal::new(
            RefusalCode::NotSemver,
            format!("spec.version is {:?}, expected a semantic version such as 1.2.3 or 1.3.0-rc.1: {why}", clip(text)),
        )
    };
    if text.len() > MAX_VERSION_BYTES {
        return Err(refuse(format!("{} bytes, at most {MAX_VERSION_BYTES}", text.len())));
    }
    let version = Version::parse(text).map_err(|e| refuse(e.to_string()))?;
    if !version.build.is_empty() {
        return Err(refuse(format!("leave out \"+{}\"", version.build)));
    }
    Ok(version)
}

/// A tenant never goes below its high-water mark, and a version never means two contents.
pub(crate) fn check_high_water(
    spec: &PolicyPackageSpec,
    digest: &str,
    high_water: Option<&(Version, String)>,
) -> Result<(), Refusal> {
    let Some((highest, highest_digest)) = high_water else { return Ok(()) };
    let version = parse_version(&spec.version)?;
    if version < *highest {
        return Err(Refusal::new(
            RefusalCode::Downgrade,
            format!(
                "spec.version is {version}, below {highest}, the highest of package {:?} that was in force; \
                 give it a higher version, or roll back",
                spec.package
            ),
        ));
    }
    if version == *highest && digest != highest_digest {
        return Err(Refusal::new(
            RefusalCode::VersionReused,
            format!(
                "spec.version {version} of package {:?} was in force with digest {highest_digest}, this content has {digest}; \
                 give it a new version",
                spec.package
            ),
        ));
    }
    Ok(())
}

/// `spec.digest`, where it is given, is the digest of the content.
fn check_spec_digest(spec: &PolicyPackageSpec, computed: &str) -> Result<(), Refusal> {
    match spec.digest.as_deref() {
        Some(given) if given != computed => Err(Refusal::new(
            RefusalCode::DigestMismatch,
            format!("spec.digest is {:?}, but the content's digest is {computed}", clip(given)),
        )),
        _ => Ok(()),
    }
}

fn check_signed_digest(opened: &Opened, computed: &str) -> Result<(), Refusal> {
    let signed = &opened.statement.digest;
    if signed != computed {
        return Err(Refusal::new(
            RefusalCode::DigestMismatch,
            format!(
                "the signed digest is {:?}, but the content's is {computed}: it was changed after it was signed",
                clip(signed)
            ),
        ));
    }
    Ok(())
}

/// The statement speaks of this tenant, installation, package and version.
fn check_statement(opened: &Opened, spec: &PolicyPackageSpec, tenant: &str, installation: &str) -> Result<(), Refusal> {
    let statement = &opened.statement;
    let differs = |code, what: &str, signed: &str, here: &str| {
        let (signed, here) = (clip(signed), clip(here));
        Err(Refusal::new(code, format!("signed for {what} {signed:?}, but this is {what} {here:?}")))
    };
    if statement.tenant != tenant {
        return differs(RefusalCode::TenantMismatch, "tenant", &statement.tenant, tenant);
    }
    if statement.installation != ANY_INSTALLATION && statement.installation != installation {
        return differs(RefusalCode::InstallationMismatch, "installation", &statement.installation, installation);
    }
    if statement.package != spec.package {
        return differs(RefusalCode::NameMismatch, "package", &statement.package, &spec.package);
    }
    if statement.version != spec.version {
        return differs(RefusalCode::VersionMismatch, "version", &statement.version, &spec.version);
    }
    Ok(())
}

/// The first signer whose key the envelope names and who may sign this now; otherwise why the first known one may not.
fn find_signer<'a>(opened: &Opened, ctx: &VerifyContext<'a>) -> Result<&'a Signer, Refusal> {
    let mut refused = None;
    for keyid in opened.keyids() {
        let holders: Vec<&Signer> = ctx.signers.iter().filter(|s| s.key.fingerprint() == keyid).collect();
        if holders.is_empty() {
            continue;
        }
        match may_sign(&holders, keyid, ctx) {
            Ok(signer) => return Ok(signer),
            Err(refusal) => refused = refused.or(Some(refusal)),
        }
    }
    Err(refused.unwrap_or_else(|| {
        let keyids: Vec<&str> = opened.keyids().collect();
        Refusal::new(
            RefusalCode::UnknownSigner,
            format!(
                "no PolicySigner holds the key {} of spec.signature; apply the PolicySigner, or sign with a key of one",
                keyids.join(" or ")
            ),
        )
    }))
}

/// Several PolicySigners may hold one key: withdrawn by one is withdrawn; what they cover, and when, adds up.
fn may_sign<'a>(holders: &[&'a Signer], keyid: &str, ctx: &VerifyContext<'_>) -> Result<&'a Signer, Refusal> {
    check_compromised_among(holders.iter().copied(), keyid)?;
    if let Some(signer) = holders.iter().find(|s| s.revoked.is_some()) {
        return Err(Refusal::new(
            RefusalCode::RevokedSigner,
            format!(
                "PolicySigner {:?} is superseded and signs nothing new: sign with its successor's key",
                signer.name
            ),
        ));
    }
    let covering: Vec<&'a Signer> = holders.iter().copied().filter(|s| s.covers(ctx.tenant, ctx.is_platform)).collect();
    let Some(first) = covering.first() else {
        let names: Vec<&str> = holders.iter().map(|s| s.name.as_str()).collect();
        let star = ctx.is_platform && holders.iter().any(|s| s.tenants.iter().any(|t| t == "*"));
        return Err(Refusal::new(
            RefusalCode::ForeignSigner,
            format!(
                "PolicySigner {:?} does not cover tenant {:?}{}: sign with a key that does, or add it to spec.tenants",
                names.join(", "),
                ctx.tenant,
                if star { " (\"*\" never includes the platform)" } else { "" }
            ),
        ));
    };
    let valid = |s: &&&Signer| s.not_before.is_none_or(|t| t <= ctx.now) && s.not_after.is_none_or(|t| ctx.now <= t);
    if let Some(signer) = covering.iter().find(valid) {
        return Ok(signer);
    }
    Err(match (first.not_before, first.not_after) {
        (Some(not_before), _) if not_before > ctx.now => Refusal::new(
            RefusalCode::SignerNotYetValid,
            format!("PolicySigner {:?} is not valid before {not_before} (spec.notBefore); now {}", first.name, ctx.now),
        ),
        (_, not_after) => Refusal::new(
            RefusalCode::SignerExpired,
            format!(
                "PolicySigner {:?} expired at {} (spec.notAfter); now {}",
                first.name,
                not_after.map_or_else(String::new, |t| t.to_string()),
                ctx.now
            ),
        ),
    })
}

fn check_compromised(fingerprint: &str, signers: &[Signer]) -> Result<(), Refusal> {
    check_compromised_among(signers.iter().filter(|s| s.key.fingerprint() == fingerprint), fingerprint)
}

fn check_compromised_among<'a>(
    mut holders: impl Iterator<Item = &'a Signer>,
    fingerprint: &str,
) -> Result<(), Refusal> {
    match holders.find(|s| s.revoked == Some(RevokedReason::Compromised)) {
        None => Ok(()),
        Some(signer) => Err(Refusal::new(
            RefusalCode::RevokedSigner,
            format!(
                "PolicySigner {:?} is compromised (key {fingerprint}): nothing that it signed may be in force",
                signer.name
            ),
        )),
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
