//! Runs a package's own tests through the gates, over the package as it would be in force and the platform's base package.
//!
//! The verdict depends on the package alone: no clock, no live objects. Number and time are bounded, because a package is run
//! before anybody has vouched for it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_saphyr::Spanned;

use super::case::{Case, Expect, Question, TENANT};
use super::yaml;
use crate::api::{EffectiveProfile, PolicyPackageSpec, SourceFile};
use crate::gate::{CheckInput, Decision, MAX_PATTERN_COST, Outcome, SessionState, Snapshot, Tenant, check};
use crate::policy::{CompiledPackage, Refusal, RefusalCode, Side};

/// The most tests of one package.
pub const MAX_TESTS: usize = 1000;
/// The longest name of a test.
const MAX_NAME_BYTES: usize = 200;
/// How long the tests of one package may take.
const MAX_TIME: Duration = Duration::from_secs(10);
/// What the tenant of a platform package's test permits, so that the answer shows what the platform forbids.
const EVERYTHING: &str = r#"@id("everything") permit(principal, action, resource);"#;

/// How a package's tests went.
#[derive(Clone, Debug, Default)]
pub struct TestReport {
    /// In the order of files and tests.
    pub results: Vec<TestResult>,
    /// Files and tests that can't be read, run out of bounds or have the same name.
    pub unreadable: Vec<Refusal>,
    /// Time ran out before the last test. On a machine with more time it may be another verdict.
    pub cut_short: bool,
}

/// One test that was run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TestResult {
    /// File of the package.
    pub file: String,
    /// Line, from 1.
    pub line: u64,
    /// Column, from 1.
    pub column: u64,
    /// Name of the test.
    pub name: String,
    /// Whether everything expected is so.
    pub passed: bool,
    /// What the author expects.
    pub expected: Expected,
    /// What the gates answered.
    pub got: Got,
}

/// What the author expects; what is None is not compared.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Expected {
    /// Decision.
    pub decision: Outcome,
    /// Reason code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// All determining policies, with their whole ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policies: Option<BTreeSet<String>>,
}

/// What the gates answered.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Got {
    /// Decision.
    pub decision: Outcome,
    /// Reason code.
    pub code: String,
    /// Reason for people.
    pub reason: String,
    /// All determining policies.
    pub policies: BTreeSet<String>,
    /// Policies that errored, with Cedar's words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

impl TestReport {
    /// Whether every test could be read and passed. A package without tests passes.
    pub fn passed(&self) -> bool {
        self.unreadable.is_empty() && self.results.iter().all(|r| r.passed)
    }

    /// The first thing that keeps the package from coming into force, for a condition's one line.
    pub fn refusal(&self) -> Option<Refusal> {
        let mut refusals = self.refusals().into_iter();
        let mut first = refusals.next()?;
        match refusals.len() {
            0 => {}
            more => first.message += &format!(" (and {more} more)"),
        }
        Some(first)
    }

    /// Everything that keeps the package from coming into force.
    pub fn refusals(&self) -> Vec<Refusal> {
        let failed = self.results.iter().filter(|r| !r.passed);
        let failed = failed.map(|r| Refusal::new(RefusalCode::TestFailed, r.to_string()));
        self.unreadable.iter().cloned().chain(failed).collect()
    }
}

/// `tests/a.yaml:3:1: test "name": expected …, got …`
impl std::fmt::Display for TestResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}: test {:?}: expected {}", self.file, self.line, self.column, self.name, self.expected)?;
        write!(f, ", got {}", self.got)
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.decision.as_str())?;
        if let Some(code) = &self.code {
            write!(f, " ({code})")?;
        }
        if let Some(policies) = &self.policies {
            write!(f, " by {}", list(policies))?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Got {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} ({}): {:?}; determining policies: {}",
            self.decision.as_str(),
            self.code,
            self.reason,
            list(&self.policies)
        )?;
        for error in &self.errors {
            write!(f, "; {}", error.replace('\n', " "))?;
        }
        Ok(())
    }
}

fn list(policies: &BTreeSet<String>) -> String {
    match policies.len() {
        0 => "none".into(),
        _ => policies.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
    }
}

/// Runs all tests of the package, at most `MAX_TIME` long.
pub fn run_tests(
    spec: &PolicyPackageSpec,
    compiled: &Arc<CompiledPackage>,
    platform: &[Arc<CompiledPackage>],
) -> TestReport {
    let start = Instant::now();
    run_tests_while(spec, compiled, platform, || start.elapsed() < MAX_TIME)
}

/// Runs tests of the package while `go_on` says so; tests that were not run are a refusal, not a pass.
pub fn run_tests_while(
    spec: &PolicyPackageSpec,
    compiled: &Arc<CompiledPackage>,
    platform: &[Arc<CompiledPackage>],
    go_on: impl Fn() -> bool,
) -> TestReport {
    let mut report = TestReport::default();
    let cases = read_cases(&spec.tests, &mut report.unreadable);
    if cases.is_empty() {
        return report;
    }
    let world = match World::new(spec, compiled, platform) {
        Ok(world) => world,
        Err(refusals) => {
            report.unreadable.extend(refusals);
            return report;
        }
    };
    let total = cases.len();
    for (place, name, question, expect) in cases {
        if !go_on() {
            report.cut_short = true;
            report.unreadable.push(Refusal::new(
                RefusalCode::TestFailed,
                format!("{}: the tests took too long: {} of {total} were run", place.file, report.results.len()),
            ));
            break;
        }
        report.results.push(world.run(place, name, question, expect));
    }
    report
}

/// Where a test stands.
#[derive(Clone)]
struct Place {
    file: String,
    line: u64,
    column: u64,
}

type Readable = (Place, String, Question, Expect);

fn read_cases(files: &[SourceFile], unreadable: &mut Vec<Refusal>) -> Vec<Readable> {
    let mut cases = Vec::new();
    let mut names: HashMap<String, Place> = HashMap::new();
    for file in files {
        let read: Vec<Spanned<Case>> = match yaml::read(&file.name, &file.text) {
            Ok(read) => read,
            Err(error) => {
                unreadable.push(Refusal::new(RefusalCode::TestSyntax, error.to_string()));
                continue;
            }
        };
        for case in read {
            let (line, column) = (case.defined.line(), case.defined.column());
            let place = Place { file: file.name.clone(), line, column };
            let at = format!("{}:{line}:{column}", file.name);
            let mut refuse = |code, why: String| unreadable.push(Refusal::new(code, format!("{at}: {why}")));
            let name = case.value.name.clone();
            if name.len() > MAX_NAME_BYTES {
                refuse(RefusalCode::TestSyntax, format!("name has {} bytes, at most {MAX_NAME_BYTES}", name.len()));
            } else if let Some(first) = names.get(&name) {
                let first = format!("{}:{}:{}", first.file, first.line, first.column);
                refuse(RefusalCode::DuplicateId, format!("test {name:?} has the same name as the one at {first}"));
            } else {
                names.insert(name.clone(), place.clone());
                match case.value.question() {
                    Ok((name, question, expect)) => cases.push((place, name, question, expect)),
                    Err(why) => refuse(RefusalCode::TestSyntax, format!("test {name:?}: {why}")),
                }
            }
        }
    }
    if cases.len() > MAX_TESTS {
        let why = format!("spec.tests: {} tests, at most {MAX_TESTS}", cases.len());
        unreadable.push(Refusal::new(RefusalCode::TooLarge, why));
        cases.clear();
    }
    cases
}

/// What every test is asked of: the package in force in a tenant of its own.
struct World {
    platform: Vec<Arc<CompiledPackage>>,
    package: Arc<CompiledPackage>,
    /// Before the short ids that tests may write: `tenant/first/`.
    prefix: String,
}

impl World {
    fn new(
        spec: &PolicyPackageSpec,
        compiled: &Arc<CompiledPackage>,
        platform: &[Arc<CompiledPackage>],
    ) -> Result<Self, Vec<Refusal>> {
        let mut platform = platform.to_vec();
        Ok(match compiled.side() {
            Side::Tenant => {
                Self { platform, package: compiled.clone(), prefix: format!("tenant/{}/", compiled.package()) }
            }
            Side::Platform => {
                platform.retain(|p| p.digest() != compiled.digest());
                platform.push(compiled.clone());
                let tenant = PolicyPackageSpec {
                    package: "test".into(),
                    version: "1.0.0".into(),
                    tools: spec.tools.clone(),
                    policies: vec![SourceFile { name: "everything.cedar".into(), text: EVERYTHING.into() }],
                    ..Default::default()
                };
                let package = CompiledPackage::compile(&tenant, &crate::policy::digest(&tenant), Side::Tenant)?;
                Self { platform, package, prefix: format!("platform/{}/", compiled.package()) }
            }
        })
    }

    fn run(&self, place: Place, name: String, question: Question, expect: Expect) -> TestResult {
        let tenant = Tenant {
            canary: None,
            name: TENANT.into(),
            uid: "test".into(),
            agents: question.agents,
            package: Some(self.package.clone()),
            profile: EffectiveProfile::default(),
        };
        let snapshot = Snapshot {
            platform: Some(Ok(self.platform.clone())),
            tenants: HashMap::from([(TENANT.to_string(), Arc::new(tenant))]),
            ..Snapshot::default()
        };
        let checked = check(&CheckInput {
            snapshot: &snapshot,
            tenant: TENANT,
            caller: &question.caller,
            request: &question.request,
            session: SessionState::NotNamed,
            now: question.now,
            id: "test",
            request_id: None,
            redaction_key: b"test",
            pattern_budget: MAX_PATTERN_COST,
        });
        let got = Got::from(checked.decision);
        let expected = Expected {
            decision: expect.decision,
            code: expect.code,
            policies: expect.policies.map(|ids| {
                ids.into_iter().map(|id| if id.contains('/') { id } else { format!("{}{id}", self.prefix) }).collect()
            }),
        };
        let passed = expected.decision == got.decision
            && expected.code.as_ref().is_none_or(|code| *code == got.code)
            && expected.policies.as_ref().is_none_or(|policies| *policies == got.policies);
        TestResult { file: place.file, line: place.line, column: place.column, name, passed, expected, got }
    }
}

impl From<Decision> for Got {
    fn from(decision: Decision) -> Self {
        Self {
            decision: decision.outcome,
            code: decision.code.into(),
            reason: decision.reason,
            policies: decision.policies.iter().map(|p| p.id.clone()).collect(),
            errors: decision.errors.into_iter().map(|e| format!("{}: {}", e.policy, e.message)).collect(),
        }
    }
}

#[cfg(test)]
#[path = "testing_tests.rs"]
mod unit;
