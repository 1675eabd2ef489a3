//! `remit why`: a decision explained, with the place in the policies and the values that they read.

use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;

use clap::Args;

use super::client::{Client, ClientError, ServerArgs};
use super::decisions::TenantArgs;
use super::output::{FAIL, Format, PASS};
use super::terminal::{self, failed, json, printable};
use crate::gate::{Determining, Nearest, Why};
use crate::policy::{Fact, Failed, Part, Source};
use crate::store::{Page, StoredDecision};
use crate::transport::encode;

/// Characters of a source line that are shown around what is meant.
const AROUND: usize = 100;

/// Explains a decision: the policies that decided, or the permits that were nearest and what failed.
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// Decision id [default: the last call that was denied or needs an approval]
    id: Option<String>,
    #[command(flatten)]
    tenant: TenantArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// Lines for people, or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

/// Runs the command.
pub async fn run(args: WhyArgs) -> ExitCode {
    let client = match Client::open(&args.server).await {
        Ok(client) => client,
        Err(error) => return failed(&error),
    };
    let done = explain(args, &client).await;
    client.close().await;
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => failed(&error),
    }
}

async fn explain(args: WhyArgs, client: &Client) -> Result<u8, Error> {
    let tenant = args.tenant.name(client);
    let decisions = format!("/admin/tenants/{}/decisions", encode(&tenant));
    let id = match args.id {
        Some(id) => id,
        None => match last_stopped(client, &decisions).await? {
            Some(id) => id,
            None => {
                eprintln!("No decision of tenant {} stopped a call.", printable(&tenant));
                return Ok(FAIL);
            }
        },
    };
    let path = format!("{decisions}/{}/why", encode(&id));
    let mut out = terminal::stdout();
    match args.output {
        // As the server sent it: a newer server may say more than this version knows.
        Format::Json => json(&mut out, &client.get::<serde_json::Value>(&path, &[]).await?)?,
        Format::Text => print(&mut out, &client.get::<Why>(&path, &[]).await?, io::stdout().is_terminal())?,
    }
    Ok(PASS)
}

/// The newest decision that let nothing through, or would not have if its tenant enforced.
async fn last_stopped(client: &Client, decisions: &str) -> Result<Option<String>, Error> {
    let mut newest: Option<StoredDecision> = None;
    for (filter, outcome) in
        [("outcome", "deny"), ("outcome", "approval_required"), ("would_be", "deny"), ("would_be", "approval_required")]
    {
        let query = [(filter, outcome.to_owned()), ("limit", "1".to_owned())];
        let page: Page<StoredDecision> = client.get(decisions, &query).await?;
        let found = page.items.into_iter().next();
        newest = match (newest, found) {
            (Some(a), Some(b)) => Some(if b.record.time > a.record.time { b } else { a }),
            (a, b) => a.or(b),
        };
    }
    Ok(newest.map(|d| d.record.id))
}

/// Prints an explanation. `fine`: the reader is a terminal, which shows more than ASCII.
fn print(out: &mut impl Write, why: &Why, fine: bool) -> io::Result<()> {
    let p = printable;
    writeln!(out, "{} ({}): {}", why.outcome.as_str(), p(&why.code), p(&why.reason))?;
    if let Some(w) = &why.would_be {
        writeln!(out, "would be {} ({}): {}", w.outcome.as_str(), p(&w.code), p(&w.reason))?;
    }
    write!(out, "  {} {} {}", p(&why.subject), p(&why.action), p(&why.resource))?;
    if let Some(delegator) = &why.delegated_from {
        write!(out, " for {}", p(delegator))?;
    }
    writeln!(out, ", {}, decision {}", why.time, p(&why.decision_id))?;
    for policy in &why.determining {
        determining(out, policy)?;
    }
    if !why.nearest.is_empty() {
        writeln!(out, "\nNo permit matched. The nearest, and what failed first:")?;
    }
    for (n, permit) in why.nearest.iter().enumerate() {
        nearest(out, n + 1, permit, fine)?;
    }
    if !why.advice.is_empty() {
        writeln!(out)?;
    }
    for sentence in &why.advice {
        writeln!(out, "{} {}", if fine { "→" } else { "->" }, p(sentence))?;
    }
    Ok(())
}

fn at(source: Option<&Source>) -> String {
    source.map(|s| format!("  {}:{}:{}", printable(&s.file), s.line, s.column)).unwrap_or_default()
}

fn determining(out: &mut impl Write, policy: &Determining) -> io::Result<()> {
    let effect = policy.effect.as_deref().unwrap_or("policy");
    writeln!(out, "\n{effect} {}{}", printable(&policy.policy), at(policy.source.as_ref()))?;
    if let Some(reason) = &policy.reason {
        writeln!(out, "  \"{}\"", printable(reason))?;
    }
    if let Some(text) = &policy.text {
        for line in text.lines() {
            writeln!(out, "  | {}", printable(line))?;
        }
    }
    if let Some(error) = &policy.error {
        writeln!(out, "  error: {}", printable(error))?;
    }
    if let Some(failed) = policy.failed.as_ref().filter(|_| policy.error.is_some()) {
        excerpt(out, failed)?;
        return facts(out, &failed.facts);
    }
    facts(out, &policy.facts)
}

fn nearest(out: &mut impl Write, number: usize, permit: &Nearest, fine: bool) -> io::Result<()> {
    writeln!(out, "\n{number}. {}{}", printable(&permit.policy), at(permit.source.as_ref()))?;
    let failed = &permit.failed;
    let said = match (failed.part, failed.result.as_str()) {
        (Part::Principal, _) => "the principal does not fit".to_owned(),
        (Part::Action, _) => "the action does not fit".to_owned(),
        (Part::Resource, _) => "the resource does not fit".to_owned(),
        (Part::Condition, result) => {
            let is = match result {
                "error" => "this ends in an error",
                "not known" => "this reads a value that was not kept",
                _ => "this is false",
            };
            format!("{} of {} conditions hold, {is}", permit.conditions_held, permit.conditions)
        }
    };
    writeln!(out, "   {} {said}:", if fine { "✗" } else { "x" })?;
    excerpt(out, failed)?;
    if let Some(error) = &failed.error {
        writeln!(out, "   error: {}", printable(error))?;
    }
    facts(out, &failed.facts)
}

/// The line with carets under what is meant.
fn excerpt(out: &mut impl Write, failed: &Failed) -> io::Result<()> {
    let Some(source) = &failed.source else { return writeln!(out, "     {}", printable(&failed.text)) };
    let whole: Vec<char> = source.text.chars().collect();
    let meant = source.column.saturating_sub(1).min(whole.len());
    // A long line is cut so that what is meant can be seen.
    let from = if meant + source.width <= AROUND { 0 } else { meant.saturating_sub(8) };
    let shown: String = whole[from..].iter().take(AROUND).collect();
    let before: String = whole[from..meant].iter().collect();
    let width = source.width.min(AROUND.saturating_sub(meant - from)).max(1);
    let cut = if from > 0 { "..." } else { "" };
    let place = format!("{}:{}", printable(&source.file), source.line);
    let margin = " ".repeat(place.chars().count());
    let indent = " ".repeat(cut.len() + printable(&before).chars().count());
    writeln!(out, "     {place} | {cut}{}", printable(&shown))?;
    writeln!(out, "     {margin} | {indent}{}", "^".repeat(width))
}

fn facts(out: &mut impl Write, facts: &[Fact]) -> io::Result<()> {
    for fact in facts {
        let value = fact.value.as_deref().or(fact.missing.as_deref()).unwrap_or("unknown");
        match fact.path.strip_suffix(" in") {
            Some(of) => writeln!(out, "     {} is in {}", printable(of), printable(value))?,
            None if fact.value.is_none() => writeln!(out, "     {}: {}", printable(&fact.path), printable(value))?,
            None => writeln!(out, "     {} = {}", printable(&fact.path), printable(value))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(why: serde_json::Value) -> String {
        let mut out = Vec::new();
        print(&mut out, &serde_json::from_value(why).unwrap(), false).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_failed_condition_is_underlined_and_its_values_stand_below() {
        let found = text(json!({
            "decision_id": "d-1", "time": "2026-11-22T12:00:00Z", "outcome": "deny", "code": "no_permit", "reason": "No policy permits this.",
            "subject": "agent:coder", "action": "call_tool", "resource": "tool:git/push",
            "nearest": [{"policy": "tenant/first/writes", "scope_held": 3, "conditions_held": 1, "conditions": 2,
                "source": {"file": "main.cedar", "line": 3, "column": 1, "text": "permit(x)", "width": 6},
                "failed": {"part": "condition", "text": "principal.trust >= 2", "result": "false",
                    "source": {"file": "main.cedar", "line": 4, "column": 8, "text": "when { principal.trust >= 2 };", "width": 20},
                    "facts": [{"path": "principal.trust", "value": "1"}, {"path": "context.arguments.getTag(\"p\")", "missing": "not kept"}]}}],
            "advice": ["Raise \u{1b}[31mit."],
        }));
        let expected = "\
deny (no_permit): No policy permits this.
  agent:coder call_tool tool:git/push, 2026-11-22T12:00:00Z, decision d-1

No permit matched. The nearest, and what failed first:

1. tenant/first/writes  main.cedar:3:1
   x 1 of 2 conditions hold, this is false:
     main.cedar:4 | when { principal.trust >= 2 };
                  |        ^^^^^^^^^^^^^^^^^^^^
     principal.trust = 1
     context.arguments.getTag(\"p\"): not kept

-> Raise \\u{1b}[31mit.
";
        assert_eq!(found, expected);
    }

    #[test]
    fn a_long_line_is_cut_around_what_is_meant() {
        let line = format!("{}context.hour > 3 && true{}", "x".repeat(300), "y".repeat(300));
        let failed = Failed {
            part: Part::Condition,
            text: "context.hour > 3".into(),
            source: Some(Source { file: "a.cedar".into(), line: 1, column: 301, text: line, width: 16 }),
            result: "false".into(),
            error: None,
            facts: vec![],
        };
        let mut out = Vec::new();
        excerpt(&mut out, &failed).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let caret = lines[1].find('^').unwrap();
        assert_eq!(&lines[0][caret..caret + 16], "context.hour > 3", "{text}");
        assert!(lines[0].len() < 140, "{text}");
    }

    #[test]
    fn a_policy_that_decided_is_shown_whole() {
        let found = text(json!({
            "decision_id": "d-1", "time": "2026-11-22T12:00:00Z", "outcome": "deny", "code": "denied_by_policy", "reason": "No.",
            "subject": "agent:coder", "action": "call_tool", "resource": "tool:git/push", "delegated_from": "user:alice",
            "determining": [{"policy": "tenant/first/no", "effect": "forbid", "reason": "No.",
                "source": {"file": "main.cedar", "line": 3, "column": 1, "text": "forbid(x)", "width": 6}, "text": "@id(\"no\")\nforbid(x);",
                "facts": [{"path": "principal in", "value": "[Team::\"core\"]"}]},
                {"policy": "platform/base/p", "reason": "Never."}],
        }));
        assert!(found.contains("for user:alice"), "{found}");
        assert!(
            found.contains("\nforbid tenant/first/no  main.cedar:3:1\n  \"No.\"\n  | @id(\"no\")\n  | forbid(x);\n"),
            "{found}"
        );
        assert!(found.contains("principal is in [Team::\"core\"]"), "{found}");
        assert!(found.contains("\npolicy platform/base/p\n  \"Never.\"\n"), "{found}");
    }
}
