//! `remit test`: compiles a package and runs its tests, with the operator's own code, and says which policies no test needed.

mod junit;
mod report;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use self::report::Look;
use super::output::{CommandError, FAIL, Format, PASS, RefusalJson, finish, print, print_json, write_out};
use super::terminal::printable_lines;
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
    /// Only tests whose file or name holds this text.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Lists every policy with the number of tests that it decided.
    #[arg(long)]
    coverage: bool,
    /// Writes a JUnit report besides.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
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
    /// Absent where the package does not compile.
    #[serde(skip_serializing_if = "Option::is_none")]
    coverage: Option<Coverage>,
    /// What can't be read, or keeps the tests from running.
    #[serde(skip)]
    errors: Vec<Refusal>,
    #[serde(skip)]
    seconds: f64,
}

/// Which policies decided a test.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Coverage {
    policies: Vec<Covered>,
    /// Ids of those that decided none.
    never_decisive: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Covered {
    id: String,
    /// `file:line:column`.
    place: String,
    /// Tests that it decided.
    tests: usize,
}

impl Coverage {
    fn of(package: &CompiledPackage, tests: &TestReport) -> Self {
        let mut decided: BTreeMap<&str, usize> = BTreeMap::new();
        for id in tests.results.iter().flat_map(|t| &t.got.policies) {
            *decided.entry(id).or_default() += 1;
        }
        let policies: Vec<Covered> = package
            .policies()
            .map(|(policy, source)| Covered {
                id: policy.id.clone(),
                place: source.map_or_else(String::new, |s| format!("{}:{}:{}", s.file, s.line, s.column)),
                tests: decided.get(policy.id.as_str()).copied().unwrap_or_default(),
            })
            .collect();
        let never = policies.iter().filter(|p| p.tests == 0).map(|p| p.id.clone());
        Self { never_decisive: never.collect(), policies }
    }
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
    let look = Look { fine: std::io::stdout().is_terminal(), coverage: args.coverage, filtered: args.filter.is_some() };
    let mut reports = Vec::with_capacity(specs.len());
    for spec in &specs {
        let report = of(spec, args);
        if args.output == Format::Text {
            print(&report::text(&report, look));
            report.errors.iter().for_each(|r| eprintln!("error: {}", printable_lines(&r.to_string())));
            print(&report::summary(&report, look));
        }
        reports.push(report);
    }
    if let Some(path) = &args.junit {
        write_out(&junit::document(&reports), Some(path))?;
    }
    if let Some(filter) = args.filter.as_ref().filter(|_| reports.iter().all(|r| r.tests.is_empty() && r.passed)) {
        return Err(CommandError::Usage(format!("--filter: no test's file or name holds {filter:?}")));
    }
    let passed = reports.iter().all(|r| r.passed);
    if args.output == Format::Json {
        print_json(&serde_json::json!({"passed": passed, "packages": reports, "refusals": []}))?;
    }
    Ok(if passed { PASS } else { FAIL })
}

fn of(spec: &PolicyPackageSpec, args: &Test) -> PackageReport {
    let begun = Instant::now();
    let (mut tests, errors, compiled) = match compile(spec, args.platform) {
        Ok(compiled) => (run_tests(spec, &compiled, &[base_platform()]), Vec::new(), Some(compiled)),
        Err(refusals) => (TestReport::default(), refusals, None),
    };
    if let Some(filter) = &args.filter {
        tests.results.retain(|t| t.name.contains(filter) || t.file.contains(filter));
    }
    PackageReport {
        package: spec.package.clone(),
        version: spec.version.clone(),
        digest: digest(spec),
        passed: errors.is_empty() && tests.passed(),
        refusals: errors.iter().chain(&tests.refusals()).map(RefusalJson::from).collect(),
        coverage: compiled.map(|package| Coverage::of(&package, &tests)),
        errors: errors.into_iter().chain(tests.unreadable).collect(),
        tests: tests.results,
        seconds: begun.elapsed().as_secs_f64(),
    }
}

/// Compiles and tests a package, whoever signed it; what keeps the tests from running comes as refusals.
pub(super) fn examine(spec: &PolicyPackageSpec, is_platform: bool) -> (TestReport, Vec<Refusal>) {
    match compile(spec, is_platform) {
        Ok(compiled) => (run_tests(spec, &compiled, &[base_platform()]), Vec::new()),
        Err(refusals) => (TestReport::default(), refusals),
    }
}

/// Compiles a package as if it were unsigned.
fn compile(spec: &PolicyPackageSpec, is_platform: bool) -> Result<Arc<CompiledPackage>, Vec<Refusal>> {
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
    let verified = verify_first(&content, &ctx).map_err(|refusal| vec![refusal])?;
    let side = if is_platform { Side::Platform } else { Side::Tenant };
    CompiledPackage::compile(&content, &verified.digest, side)
}

#[cfg(test)]
mod unit {
    use super::*;
    use crate::api::{SourceFile, Tier, Tool};

    fn args(filter: Option<&str>) -> Test {
        Test {
            path: PathBuf::new(),
            platform: false,
            filter: filter.map(str::to_owned),
            coverage: false,
            junit: None,
            output: Format::Text,
        }
    }

    fn report(tests: &str, filter: Option<&str>) -> PackageReport {
        let tool = |name: &str, tier| Tool {
            name: name.into(),
            tier,
            sensitivity: Default::default(),
            groups: vec![],
            description: None,
            schema_digest: None,
        };
        let policies = "@id(\"reads\") permit(principal, action == Action::\"call_tool\", resource in ToolGroup::\"read\");\n\
            @id(\"writes\") permit(principal, action == Action::\"call_tool\", resource in ToolGroup::\"write\");\n";
        let spec = PolicyPackageSpec {
            package: "first".into(),
            version: "1.0.0".into(),
            tools: vec![tool("git/log", Tier::Read), tool("git/push", Tier::Write)],
            policies: vec![SourceFile { name: "main.cedar".into(), text: policies.into() }],
            tests: vec![SourceFile { name: "tests/main.yaml".into(), text: tests.into() }],
            ..Default::default()
        };
        of(&spec, &args(filter))
    }

    const PLAIN: Look = Look { fine: false, coverage: false, filtered: false };
    const READS: &str = "- {name: reads, agent: x, call: {tool: git/log}, expect: {decision: allow}}\n";
    const WRONG: &str =
        "- {name: 'a <b>', agent: x, call: {tool: git/push}, expect: {decision: deny, policies: [reads]}}\n";

    #[test]
    fn a_good_run_is_one_line_a_test_and_names_what_no_test_needed() {
        let report = report(READS, None);
        assert_eq!(report::text(&report, PLAIN), "ok    reads  tests/main.yaml:1\n");
        assert_eq!(
            report::summary(&report, PLAIN),
            "first 1.0.0: passed: 1 of 1 tests passed; 1 of 2 policies decided one\n\
             No test is decided by: writes (main.cedar:2:15)\n"
        );
        let all = report::summary(&report, Look { coverage: true, ..PLAIN });
        assert!(all.contains("     1  tenant/first/reads   main.cedar:1:14\n"), "{all}");
        assert!(all.contains("     0  tenant/first/writes  main.cedar:2:15\n"), "{all}");
        let fine = report::text(&report, Look { fine: true, ..PLAIN });
        assert!(fine.contains('✓') && !fine.contains("ok"), "{fine}");
    }

    #[test]
    fn a_failed_test_shows_what_was_expected_and_what_came() {
        let report = report(&format!("{READS}{WRONG}"), None);
        let text = report::text(&report, PLAIN);
        assert!(
            text.ends_with(
                "FAIL  a <b>  tests/main.yaml:2\n      - decision: deny\n      + decision: allow\n        code: allowed\n\
                 \x20     - policies: tenant/first/reads\n      + policies: tenant/first/writes\n        reason: A policy permits this.\n"
            ),
            "{text}"
        );
        let summary = report::summary(&report, PLAIN);
        assert!(summary.starts_with("first 1.0.0: FAILED: 1 of 2 tests passed"), "{summary}");
        assert!(!report.passed && report.coverage.as_ref().unwrap().never_decisive.is_empty());
        let xml = junit::document(&[report]);
        assert!(xml.contains("tests=\"2\" failures=\"1\" errors=\"0\""), "{xml}");
        assert!(xml.contains("name=\"a &lt;b&gt;\"") && xml.contains("<failure type=\"TestFailed\""), "{xml}");
        assert!(
            xml.contains(
                "<testcase classname=\"tests/main.yaml\" name=\"reads\" file=\"tests/main.yaml\" line=\"1\"/>"
            ),
            "{xml}"
        );
    }

    #[test]
    fn a_filter_looks_at_fewer_tests() {
        let report = report(&format!("{READS}{WRONG}"), Some("read"));
        assert!(report.passed && report.tests.len() == 1, "{}", report::text(&report, PLAIN));
        let quiet = report::summary(&report, Look { filtered: true, ..PLAIN });
        assert!(!quiet.contains("No test is decided by"), "{quiet}");
    }
}
