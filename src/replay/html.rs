//! A report as one page to send to a colleague: no script, nothing that is loaded, and every text escaped.

use super::event::{Event, SideOf};
use super::report::{Named, Report};
use crate::api::Tier;

/// What the page may load: its own style and nothing else. Sent as a header and written into the page.
pub const CONTENT_SECURITY_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1f24}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}\
th,td{border:1px solid #d0d7de;padding:.3rem .5rem;text-align:left;vertical-align:top}th{background:#f6f8fa}\
td.n{text-align:right;font-variant-numeric:tabular-nums}code{font:13px ui-monospace,monospace;word-break:break-all}\
.critical,.fail{color:#a40e26;font-weight:600}.high{color:#9a3412;font-weight:600}.pass{color:#116329;font-weight:600}\
.inconclusive{color:#6e5200;font-weight:600}";

/// The page.
pub fn page(report: &Report) -> String {
    let r = report;
    let title = format!("Replay of {} in {}", versions(r), r.tenant);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{}\">\
         <title>{}</title><style>{STYLE}</style></head><body>\n<h1>{}</h1>\n",
        // A page can't forbid its own framing; the header does.
        escape(&CONTENT_SECURITY_POLICY.replace("; frame-ancestors 'none'", "")),
        escape(&title),
        escape(&title),
    );
    out.push_str(&format!("<p>Verdict: <span class=\"{0}\">{0}</span>.", r.verdict.as_str()));
    r.reasons.iter().for_each(|reason| out.push_str(&format!(" {}", escape(reason))));
    out.push_str("</p>\n");
    if let (Some(from), Some(to)) = (r.from, r.to) {
        out.push_str(&format!("<p>Decisions from {from} to {to}, each with the facts of its time.</p>\n"));
    }
    counts(r, &mut out);
    left_out(r, &mut out);
    matrix(r, &mut out);
    worst(r, &mut out);
    invariants(r, &mut out);
    out.push_str(
        "<h2>What was compared</h2>\n<table><tr><th></th><th>Package</th><th>Digest</th><th>Platform</th></tr>\n",
    );
    for (side, named) in [("Baseline", &r.baseline), ("Candidate", &r.candidate)] {
        out.push_str(&compared(side, named));
    }
    out.push_str(&format!(
        "</table>\n<h2>Fingerprints</h2>\n<p>Input <code>{}</code><br>Result <code>{}</code></p>\n</body></html>\n",
        escape(&r.input_fingerprint),
        escape(&r.result_fingerprint)
    ));
    out
}

fn versions(r: &Report) -> String {
    format!("{} {} → {} {}", r.baseline.package, r.baseline.version, r.candidate.package, r.candidate.version)
}

fn compared(side: &str, named: &Named) -> String {
    let platform: Vec<String> = named.platform.iter().map(|d| format!("<code>{}</code>", escape(d))).collect();
    format!(
        "<tr><td>{side}</td><td>{} {}</td><td><code>{}</code></td><td>{}</td></tr>\n",
        escape(&named.package),
        escape(&named.version),
        escape(&named.digest),
        platform.join("<br>")
    )
}

fn counts(r: &Report, out: &mut String) {
    let c = &r.counts;
    out.push_str(
        "<h2>Counts</h2>\n<table><tr><th>Selected</th><th>Replayed</th><th>Not replayable</th><th>Same</th>\
        <th>Critical</th><th>High</th><th>Medium</th><th>Low</th></tr>\n<tr>",
    );
    for n in [c.selected, c.replayed, c.not_replayable, c.same, c.critical, c.high, c.medium, c.low] {
        out.push_str(&format!("<td class=\"n\">{n}</td>"));
    }
    out.push_str("</tr></table>\n");
    for (title, counts) in [("By root cause", &c.causes), ("Not replayable because", &c.not_replayable_because)] {
        if !counts.is_empty() {
            let each: Vec<String> = counts.iter().map(|(name, n)| format!("{} {n}", escape(name))).collect();
            out.push_str(&format!("<p>{title}: {}.</p>\n", each.join(", ")));
        }
    }
}

fn left_out(r: &Report, out: &mut String) {
    if !r.left_out.is_empty() {
        let each: Vec<String> = r.left_out.iter().map(|l| format!("{} of {}", l.decisions, escape(&l.agent))).collect();
        out.push_str(&format!("<p>Left out by the limit, older than what was replayed: {}.</p>\n", each.join(", ")));
    }
}

fn matrix(r: &Report, out: &mut String) {
    if r.matrix.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Outcomes</h2>\n<table><tr><th>Before</th><th>After</th><th>Reads</th><th>Writes and others</th></tr>\n",
    );
    for cell in &r.matrix {
        out.push_str(&format!(
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>\n",
            cell.baseline.as_str(),
            cell.candidate.as_str(),
            cell.reads,
            cell.writes
        ));
    }
    out.push_str("</table>\n");
}

fn worst(r: &Report, out: &mut String) {
    let differences = r.counts.low + r.counts.medium + r.counts.high + r.counts.critical;
    out.push_str("<h2>Differences, the worst first</h2>\n");
    if differences == 0 {
        out.push_str("<p>None.</p>\n");
        return;
    }
    if usize::try_from(differences).unwrap_or(usize::MAX) > r.worst.len() {
        out.push_str(&format!("<p>The worst {} of {differences}.</p>\n", r.worst.len()));
    }
    out.push_str("<table><tr><th>Severity</th><th>What</th><th>Before</th><th>After</th><th>Decision</th></tr>\n");
    r.worst.iter().for_each(|event| out.push_str(&row(event)));
    out.push_str("</table>\n");
}

fn row(event: &Event) -> String {
    format!(
        "<tr><td class=\"{0}\">{0}<br>{1}</td><td>{2}</td><td>{3}</td><td>{4}</td><td>{5}<br><code>{6}</code></td></tr>\n",
        event.severity.as_str(),
        event.cause.as_str(),
        escape(&event.sentence),
        side(&event.baseline),
        side(&event.candidate),
        event.time,
        escape(&event.decision)
    )
}

fn side(side: &SideOf) -> String {
    let mut out =
        format!("{} ({}), tier {}", side.outcome.as_str(), escape(&side.code), side.tier.map_or("none", Tier::as_str));
    for policy in &side.policies {
        out.push_str(&format!("<br><code>{}</code>", escape(policy)));
    }
    out
}

fn invariants(r: &Report, out: &mut String) {
    if r.invariants.is_empty() {
        return;
    }
    out.push_str("<h2>Invariants</h2>\n<table><tr><th>Invariant</th><th>Holds</th><th>Counter-example</th><th>Decisions</th></tr>\n");
    for i in &r.invariants {
        out.push_str(&format!(
            "<tr><td>{}</td><td class=\"{}\">{}</td><td>{}</td><td class=\"n\">{}</td></tr>\n",
            escape(&i.name),
            if i.holds { "pass" } else { "fail" },
            if i.holds { "yes" } else { "no" },
            escape(i.counter_example.as_deref().unwrap_or_default()),
            i.decisions
        ));
    }
    out.push_str(
        "</table>\n<p>What holds here holds for the replayed decisions and for made-up calls of every listed tool; \
        only a proof speaks of all calls.</p>\n",
    );
}

/// Text in HTML, also inside an attribute.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Neither controls nor what turns the direction of a text reach a reader.
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                out.push('\u{fffd}')
            }
            c => out.push(c),
        }
    }
    out
}
