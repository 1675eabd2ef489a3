//! `remit package build | sign | verify`: what the operator does with a package, offline; and `rollback`, a former one as a folder.

mod rollback;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;

use super::keygen::read_private_key;
use super::output::{
    CommandError, FAIL, Format, ObjectFormat, PASS, RefusalJson, finish, objects_text, print, print_json, write_out,
};
use super::terminal::printable_lines;
use super::test::examine;
use crate::api::{PolicyPackage, PolicyPackageSpec};
use crate::package::{Accepted, accept};
use crate::policy::{
    ANY_INSTALLATION, FORMAT_VERSION, PublicKey, Refusal, Signer, SigningMode, Statement, VerifyContext, base_platform,
    digest, object_name, peek_statement, sign as sign_statement, signature_needed,
};
use crate::source::folder::{Packages, packages_of, read, read_signers, read_small};

/// Builds, signs and verifies packages, offline; brings a former one back as a folder.
#[derive(Debug, Subcommand)]
pub enum Package {
    Build(Build),
    Sign(Sign),
    Verify(Verify),
    Rollback(Box<rollback::Rollback>),
}

/// Prints the PolicyPackage object of a folder, with its digest, unsigned.
#[derive(Debug, Args)]
pub struct Build {
    /// Folder of the package, or a file with PolicyPackage objects.
    #[arg(value_name = "DIR|FILE")]
    path: PathBuf,
    /// Namespace of the object.
    #[arg(short, long)]
    namespace: Option<String>,
    /// File to write instead of stdout.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// YAML or JSON.
    #[arg(short, long, value_enum, default_value_t)]
    output: ObjectFormat,
}

/// Tests a package, signs it for one tenant and prints the object.
#[derive(Debug, Args)]
pub struct Sign {
    /// Folder of the package, or a file with PolicyPackage objects.
    #[arg(value_name = "DIR|FILE")]
    path: PathBuf,
    /// Private key, as `remit keygen` writes it.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Namespace that the package is for; also of the object.
    #[arg(long, value_name = "NAMESPACE")]
    tenant: String,
    /// UID of the namespace `kube-system` where the package may be used, or `any`.
    #[arg(long, value_name = "UID", default_value = ANY_INSTALLATION)]
    installation: String,
    /// Name of the PolicySigner that holds the key: a hint for people.
    #[arg(long, value_name = "NAME")]
    signer: Option<String>,
    /// Who wrote this version; instead of the package's own `author`.
    #[arg(long, value_name = "TEXT")]
    author: Option<String>,
    /// The tenant is the operator's own namespace.
    #[arg(long)]
    platform: bool,
    /// File to write instead of stdout.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// YAML or JSON.
    #[arg(short, long, value_enum, default_value_t)]
    output: ObjectFormat,
}

/// Says whether a package could come into force in a tenant, as the operator would.
#[derive(Debug, Args)]
pub struct Verify {
    /// Folder of the package (never signed), or a file with PolicyPackage objects.
    #[arg(value_name = "DIR|FILE")]
    path: PathBuf,
    /// Public key in PEM, counting for this tenant, or a file with PolicySigner objects. May be given more than once; without
    /// any, an unsigned package passes.
    #[arg(long, value_name = "FILE")]
    signer: Vec<PathBuf>,
    /// Namespace.
    #[arg(long, value_name = "NAMESPACE")]
    tenant: String,
    /// UID of the namespace `kube-system`; without it, any that was signed for is taken.
    #[arg(long, value_name = "UID")]
    installation: Option<String>,
    /// The tenant is the operator's own namespace.
    #[arg(long)]
    platform: bool,
    /// Lines for people, or JSON.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Runs the command.
pub fn run(command: &Package) -> ExitCode {
    finish(match command {
        Package::Build(args) => build(args),
        Package::Sign(args) => sign(args),
        Package::Verify(args) => verify(args, Timestamp::now()),
        Package::Rollback(args) => match crate::laptop::runtime() {
            Ok(runtime) => runtime.block_on(rollback::run(args)),
            Err(error) => Err(CommandError::Usage(error.to_string())),
        },
    })
}

fn build(args: &Build) -> Result<u8, CommandError> {
    let mut objects = read_packages(&args.path)?;
    for object in &mut objects {
        finish_object(object, args.namespace.as_deref());
    }
    write_objects(&objects, args.output, args.out.as_ref())
}

fn sign(args: &Sign) -> Result<u8, CommandError> {
    let key = read_private_key(&args.key)?;
    let public = PublicKey::from_key(key.verifying_key())
        .map_err(|e| CommandError::Usage(format!("{}: {e}", args.key.display())))?;
    let mut objects = read_packages(&args.path)?;
    for object in &mut objects {
        if args.author.is_some() {
            object.spec.author = args.author.clone();
        }
        object.spec.signer = args.signer.clone();
        finish_object(object, Some(&args.tenant));
        let spec = &object.spec;
        // What nobody could put in force is not signed.
        let (tests, mut refused) = examine(spec, args.platform);
        refused.extend(tests.refusals());
        if !refused.is_empty() {
            return Err(CommandError::Refused(refused));
        }
        let statement = Statement {
            format_version: FORMAT_VERSION.into(),
            installation: args.installation.clone(),
            tenant: args.tenant.clone(),
            package: spec.package.clone(),
            version: spec.version.clone(),
            digest: digest(spec),
            key_fingerprint: public.fingerprint().into(),
            author: spec.author.clone(),
            signed_at: now_in_seconds(),
        };
        let envelope = sign_statement(&statement, &key).map_err(|e| CommandError::Usage(e.to_string()))?;
        object.spec.signature = Some(envelope);
    }
    write_objects(&objects, args.output, args.out.as_ref())
}

/// Nobody needs the nanoseconds in a signature.
fn now_in_seconds() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// How one package did.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    name: String,
    package: String,
    version: String,
    digest: String,
    passed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    signer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_fingerprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    author: Option<String>,
    policies: usize,
    tests: usize,
    refusals: Vec<RefusalJson>,
}

fn verify(args: &Verify, now: Timestamp) -> Result<u8, CommandError> {
    let mut signers = Vec::new();
    for path in &args.signer {
        signers.extend(signers_of(path, &args.tenant)?);
    }
    let objects = read_packages(&args.path)?;
    let mut verdicts = Vec::with_capacity(objects.len());
    for object in &objects {
        let spec = &object.spec;
        // Without a word about the installation, the one that was signed for counts as this one.
        let signed_for = spec.signature.as_ref().and_then(|e| peek_statement(e).ok()).map(|s| s.installation);
        let installation = args.installation.clone().or(signed_for).unwrap_or_default();
        let ctx = VerifyContext {
            tenant: &args.tenant,
            is_platform: args.platform,
            installation: &installation,
            signers: &signers,
            signature_needed: signature_needed(
                SigningMode::WhenSignerExists,
                &args.tenant,
                args.platform,
                &signers,
                !signers.is_empty(),
            ),
            now,
            high_water: None,
        };
        let result = accept(spec, &ctx, &[base_platform()]);
        if args.output == Format::Text {
            print_verdict(spec, &result);
        }
        verdicts.push(verdict(object, &result));
    }
    let passed = verdicts.iter().all(|v| v.passed);
    if args.output == Format::Json {
        print_json(&serde_json::json!({"passed": passed, "packages": verdicts}))?;
    }
    Ok(if passed { PASS } else { FAIL })
}

fn verdict(object: &PolicyPackage, result: &Result<Accepted, Vec<Refusal>>) -> Verdict {
    let spec = &object.spec;
    let accepted = result.as_ref().ok();
    Verdict {
        name: object.name_any(),
        package: spec.package.clone(),
        version: spec.version.clone(),
        digest: digest(spec),
        passed: accepted.is_some(),
        signer: accepted.and_then(|a| a.verified.signer.clone()),
        key_fingerprint: accepted.and_then(|a| a.verified.key_fingerprint.clone()),
        author: accepted.and_then(|a| a.verified.author.clone()),
        policies: accepted.map_or(0, |a| a.compiled.policy_count()),
        tests: accepted.map_or(0, |a| a.tests.results.len()),
        refusals: result.as_ref().err().into_iter().flatten().map(RefusalJson::from).collect(),
    }
}

fn print_verdict(spec: &PolicyPackageSpec, result: &Result<Accepted, Vec<Refusal>>) {
    let (package, version) = (&spec.package, &spec.version);
    match result {
        Ok(accepted) => {
            let verified = &accepted.verified;
            let by = match (&verified.signer, &verified.key_fingerprint) {
                (Some(signer), Some(key)) => format!("signed by {signer} (key {key})"),
                _ => "unsigned".into(),
            };
            let author = verified.author.as_ref().map(|a| format!(", author {a:?}")).unwrap_or_default();
            print(&format!(
                "ok    {package} {version} {}\n      {by}{author}; {} policies, {} tests passed\n",
                verified.digest,
                accepted.compiled.policy_count(),
                accepted.tests.results.len()
            ));
        }
        Err(refusals) => {
            print(&format!("FAIL  {package} {version} {}\n", digest(spec)));
            for refusal in refusals {
                eprintln!("error: {}", printable_lines(&format!("{package} {version}: {refusal}")));
            }
        }
    }
}

/// A PEM key counts as a signer for the tenant that is asked about; PolicySigner objects say for themselves.
fn signers_of(path: &Path, tenant: &str) -> Result<Vec<Signer>, CommandError> {
    let file = path.display().to_string();
    let in_file = |e: &dyn std::fmt::Display| CommandError::Usage(format!("{file}: {e}"));
    let text = read_small(path)?;
    if text.trim_start().starts_with("-----BEGIN") {
        let key = PublicKey::from_pem(&text).map_err(|e| in_file(&e))?;
        let tenants = vec![tenant.to_string()];
        return Ok(vec![Signer { name: file, key, tenants, not_before: None, not_after: None, revoked: None }]);
    }
    let objects = read_signers(path)?;
    if objects.is_empty() {
        return Err(in_file(&"holds neither a public key in PEM nor a PolicySigner of remit.dev/v1alpha1"));
    }
    objects.iter().map(|object| Signer::try_from(object).map_err(|e| in_file(&e))).collect()
}

/// The objects of a file, or the one that a folder makes; its name comes later.
fn read_packages(path: &Path) -> Result<Vec<PolicyPackage>, CommandError> {
    Ok(match read(path)? {
        Packages::Folder(spec) => vec![PolicyPackage::new("", *spec)],
        Packages::Objects(objects) => objects,
    })
}

/// Name, namespace and digest, as they follow from the content; a signature of before no longer fits.
fn finish_object(object: &mut PolicyPackage, namespace: Option<&str>) {
    let digest = digest(&object.spec);
    object.metadata.name = Some(object_name(&object.spec, &digest));
    if namespace.is_some() {
        object.metadata.namespace = namespace.map(Into::into);
    }
    object.spec.digest = Some(digest);
    object.spec.signature = None;
    object.status = None;
}

/// Prints objects, and makes sure that whoever reads them finds the same digests.
fn write_objects(objects: &[PolicyPackage], format: ObjectFormat, out: Option<&PathBuf>) -> Result<u8, CommandError> {
    let text = objects_text(objects, format)?;
    if format == ObjectFormat::Yaml {
        let digests = |objects: &[PolicyPackage]| objects.iter().map(|o| digest(&o.spec)).collect::<Vec<_>>();
        if digests(&packages_of("output", &text)?) != digests(objects) {
            return Err(CommandError::Usage(
                "a text of the package can't be written as YAML without changing it; use -o json".into(),
            ));
        }
    }
    write_out(&text, out)?;
    Ok(PASS)
}
