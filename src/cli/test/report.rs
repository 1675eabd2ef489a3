//! How `remit test` prints: one line a test, what differs below a failed one, and a summary.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::PackageReport;
use crate::cli::terminal::printable;
use crate::package::TestResult;

/// Policies that no test needed, named without being asked for.
const NAMED: usize = 10;

/// What the reader wants, and where it reads.
#[derive(Clone, Copy)]
pub struct Look {
    /// A terminal, which shows more than ASCII.
    pub fine: bool,
    /// `--coverage`.
    pub coverage: bool,
    /// `--filter`: not all tests were looked at.
    pub filtered: bool,
}

impl Look {
    fn mark(self, passed: bool) -> &'static str {
        match (self.fine, passed) {
            (true, true) => "\u{1b}[32m✓\u{1b}[0m",
            (true, false) => "\u{1b}[31m✗\u{1b}[0m",
            (false, true) => "ok   ",
            (false, false) => "FAIL ",
        }
    }

    fn faint(self, text: &str) -> String {
        if self.fine { format!("\u{1b}[2m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// One line for each test, and what differs below those that failed.
pub fn text(report: &PackageReport, look: Look) -> String {
    let mut text = String::new();
    for test in &report.tests {
        let place = look.faint(&format!("{}:{}", printable(&test.file), test.line));
        let _ = writeln!(text, "{} {}  {place}", look.mark(test.passed), printable(&test.name));
        if !test.passed {
            difference(&mut text, test);
        }
    }
    text
}

/// Lines with `-` were expected, lines with `+` came instead, the others say more.
fn difference(text: &mut String, test: &TestResult) {
    let (expected, got) = (&test.expected, &test.got);
    let mut line = |sign: char, name: &str, value: &str| {
        let _ = writeln!(text, "      {sign} {name}: {}", printable(value));
    };
    let mut differ = |name: &str, wanted: Option<&str>, came: &str| match wanted {
        Some(wanted) if wanted != came => {
            line('-', name, wanted);
            line('+', name, came);
        }
        _ => line(' ', name, came),
    };
    differ("decision", Some(expected.decision.as_str()), got.decision.as_str());
    differ("code", expected.code.as_deref(), &got.code);
    differ("policies", expected.policies.as_ref().map(list).as_deref(), &list(&got.policies));
    line(' ', "reason", &got.reason);
    for error in &got.errors {
        line(' ', "error", error);
    }
}

fn list(policies: &BTreeSet<String>) -> String {
    match policies.len() {
        0 => "none".into(),
        _ => policies.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
    }
}

/// The verdict, and which policies no test needed.
pub fn summary(report: &PackageReport, look: Look) -> String {
    let passed = report.tests.iter().filter(|t| t.passed).count();
    let verdict = if report.passed { "passed" } else { "FAILED" };
    let (package, version) = (printable(&report.package), printable(&report.version));
    let mut text = format!("{package} {version}: {verdict}: {passed} of {} tests passed", report.tests.len());
    let Some(coverage) = report.coverage.as_ref().filter(|c| !c.policies.is_empty()) else { return text + "\n" };
    let decisive = coverage.policies.len() - coverage.never_decisive.len();
    let _ = writeln!(text, "; {decisive} of {} policies decided one", coverage.policies.len());
    if look.coverage {
        let width = coverage.policies.iter().map(|p| p.id.chars().count()).max().unwrap_or(0);
        for p in &coverage.policies {
            let _ = writeln!(text, "{:>6}  {:width$}  {}", p.tests, printable(&p.id), look.faint(&printable(&p.place)));
        }
    } else if report.passed && !look.filtered && !report.tests.is_empty() && !coverage.never_decisive.is_empty() {
        let never = coverage.policies.iter().filter(|p| p.tests == 0);
        let named: Vec<String> = never
            .take(NAMED)
            .map(|p| format!("{} ({})", printable(p.id.rsplit('/').next().unwrap_or_default()), printable(&p.place)))
            .collect();
        let more = coverage.never_decisive.len() - named.len();
        let more = if more > 0 { format!(", and {more} more (--coverage)") } else { String::new() };
        let _ = writeln!(text, "No test is decided by: {}{more}", named.join(", "));
    }
    text
}
