//! `remit test`: compiles a package and runs its tests, with the operator's own code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::output::{CommandError, FAIL, Format, PASS, RefusalJson, finish, print, print_json};
use crate::api::PolicyPackageSpec;
use crate::package::{TestReport, TestResult, run_tests};
use crate::policy::{CompiledPackage, Refusal, Side, VerifyContext, base_platform, digest, verify_first};
use crate::source::folder::{Packages, SourceError, read};

/// Compiles a package and runs its tests.
#[derive(Debug, Args)]
pub struct Test {
    /// Folder of the package, or a file with PolicyPackage objects.
    #[arg(value_name = "DIR|FILE")]
    path: PathBuf,
    /// The package is for the operator's own namespace.
    #[arg(long)]
    platform: bool,
    /// Lines for people, or JSON.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// How one package did.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PackageReport {
    package: String,
    version: String,
    digest: String,
    passed: bool,
    tests: Vec<TestResult>,
    refusals: Vec<RefusalJson>,
}

/// Runs the command.
pub fn run(args: &Test) -> ExitCode {
    finish(test(args))
}

fn test(args: &Test) -> Result<u8, CommandError> {
    let specs = match read(&args.path) {
        Ok(Packages::Folder(spec)) => vec![*spec],
        Ok(Packages::Objects(objects)) => objects.into_iter().map(|o| o.spec).collect(),
        Err(SourceError::Refused(refusal)) if args.output == Format::Json => {
            print_json(
                &serde_json::json!({"passed": false, "packages": [], "refusals": [RefusalJson::from(&refusal)]}),
            )?;
            return Ok(FAIL);
        }
        Err(error) => return Err(error.into()),
    };
    let mut reports = Vec::with_capacity(specs.len());
    for spec in &specs {
        let (tests, refusals) = examine(spec, args.platform);
        if args.output == Format::Text {
            print_lines(spec, &tests, &refusals);
        }
        reports.push(PackageReport {
            package: spec.package.clone(),
            version: spec.version.clone(),
            digest: digest(spec),
            passed: refusals.is_empty() && tests.passed(),
            refusals: refusals.iter().chain(&tests.refusals()).map(RefusalJson::from).collect(),
            tests: tests.results,
        });
    }
    let passed = reports.iter().all(|r| r.passed);
    if args.output == Format::Json {
        print_json(&serde_json::json!({"passed": passed, "packages": reports, "refusals": []}))?;
    }
    Ok(if passed { PASS } else { FAIL })
}

/// Compiles and tests a package, whoever signed it; what keeps the tests from running comes as refusals.
pub(super) fn examine(spec: &PolicyPackageSpec, is_platform: bool) -> (TestReport, Vec<Refusal>) {
    let refused = |refusals| (TestReport::default(), refusals);
    let content = PolicyPackageSpec { signature: None, ..spec.clone() };
    let ctx = VerifyContext {
        tenant: "",
        is_platform,
        installation: "",
        signers: &[],
        signature_needed: false,
        now: jiff::Timestamp::UNIX_EPOCH,
        high_water: None,
    };
    let verified = match verify_first(&content, &ctx) {
        Ok(verified) => verified,
        Err(refusal) => return refused(vec![refusal]),
    };
    let side = if is_platform { Side::Platform } else { Side::Tenant };
    match CompiledPackage::compile(&content, &verified.digest, side) {
        Ok(compiled) => (run_tests(&content, &compiled, &[base_platform()]), Vec::new()),
        Err(refusals) => refused(refusals),
    }
}

fn print_lines(spec: &PolicyPackageSpec, tests: &TestReport, refusals: &[Refusal]) {
    let mut text = String::new();
    for test in &tests.results {
        text += &match test.passed {
            true => format!("ok    {}\n", test.name),
            false => format!("FAIL  {}\n      {test}\n", test.name),
        };
    }
    print(&text);
    for refusal in refusals.iter().chain(&tests.unreadable) {
        eprintln!("error: {refusal}");
    }
    let failed = tests.results.iter().filter(|t| !t.passed).count();
    let passed = tests.results.len() - failed;
    let verdict = if refusals.is_empty() && tests.passed() { "passed" } else { "FAILED" };
    print(&format!("{} {}: {verdict}: {passed} of {} tests passed\n", spec.package, spec.version, tests.results.len()));
}
