//! The JUnit report: the XML that CI systems read. Everything in it is escaped; what XML can't hold is replaced.

use std::fmt::Write as _;

use super::PackageReport;

/// The whole document.
pub fn document(reports: &[PackageReport]) -> String {
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"remit test\">\n");
    for report in reports {
        suite(&mut xml, report);
    }
    xml.push_str("</testsuites>\n");
    xml
}

fn suite(xml: &mut String, report: &PackageReport) {
    let failures = report.tests.iter().filter(|t| !t.passed).count();
    let (errors, tests) = (report.errors.len(), report.tests.len() + report.errors.len());
    let name = escape(&format!("{} {}", report.package, report.version));
    let _ = writeln!(
        xml,
        "  <testsuite name=\"{name}\" tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"0\" time=\"{:.3}\">",
        report.seconds
    );
    for refusal in &report.errors {
        let (code, message) = (escape(refusal.code.as_str()), escape(&refusal.message));
        let _ = writeln!(
            xml,
            "    <testcase classname=\"{name}\" name=\"{code}\">\n      <error type=\"{code}\" message=\"{message}\"/>\n    </testcase>"
        );
    }
    for test in &report.tests {
        let (file, called) = (escape(&test.file), escape(&test.name));
        let head =
            format!("    <testcase classname=\"{file}\" name=\"{called}\" file=\"{file}\" line=\"{}\"", test.line);
        if test.passed {
            let _ = writeln!(xml, "{head}/>");
            continue;
        }
        let short =
            escape(&format!("expected {}, got {} ({})", test.expected, test.got.decision.as_str(), test.got.code));
        let _ = writeln!(
            xml,
            "{head}>\n      <failure type=\"TestFailed\" message=\"{short}\">{}</failure>\n    </testcase>",
            escape(&test.to_string())
        );
    }
    xml.push_str("  </testsuite>\n");
}

/// For text and for attributes in double quotes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            // A parser turns these into spaces where they stand in an attribute.
            '\t' | '\n' | '\r' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            // XML 1.0 has no way to write them.
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_tests_author_is_markup() {
        assert_eq!(escape("a<b>&\"'\u{1b}[31m\n]]>"), "a&lt;b&gt;&amp;&quot;&apos;\u{fffd}[31m&#10;]]&gt;");
    }
}
