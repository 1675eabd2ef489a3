//! `remit who-can` and `remit what-can`: what could be allowed before any call is made, and on what it depends.

use std::io;
use std::process::ExitCode;

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::output::Format;
use super::pdp::{OpenError, PdpArgs};
use super::terminal::{self, failed, json as print_json, printable, table};
use crate::api::{Delegator, DelegatorKind};
use crate::enforce::authzen::Found;
use crate::enforce::{Pdp as _, PdpError};
use crate::gate::Depends;

/// Shows which agents could be allowed to call a tool.
#[derive(Debug, Args)]
pub struct WhoCan {
    /// The tool, server/name
    tool: String,
    #[command(flatten)]
    pdp: PdpArgs,
    /// Lines for people, or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Shows which tools an agent could be allowed to call.
#[derive(Debug, Args)]
pub struct WhatCan {
    /// The Agent [default: --agent, or the folder's only one]
    #[arg(value_name = "AGENT")]
    of: Option<String>,
    #[command(flatten)]
    pdp: PdpArgs,
    /// Lines for people, or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Pdp(#[from] PdpError),
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

/// One result with what is known of it. An agent that asks for itself gets no details.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Detail {
    id: String,
    tier: Option<String>,
    allowed: String,
    approval: String,
    depends: Vec<Depends>,
}

/// Runs `remit who-can`.
pub async fn who_can(args: WhoCan) -> ExitCode {
    let question = |_: &PdpArgs| {
        Ok(json!({
            "subject": {"type": "agent"}, "action": {"name": "call_tool"},
            "resource": {"type": "tool", "id": args.tool},
        }))
    };
    let none = format!("No agent could be allowed to call {}.", printable(&args.tool));
    finish(show("subject", &args.pdp, question, args.output, &none).await)
}

/// Runs `remit what-can`.
pub async fn what_can(args: WhatCan) -> ExitCode {
    let question = |pdp: &PdpArgs| {
        let agent = args.of.clone().map_or_else(|| pdp.agent(), Ok)?;
        Ok(json!({
            "subject": {"type": "agent", "id": agent}, "action": {"name": "call_tool"}, "resource": {"type": "tool"},
        }))
    };
    finish(
        show(
            "resource",
            &args.pdp,
            question,
            args.output,
            "It could be allowed to call no tool, or there is no such Agent.",
        )
        .await,
    )
}

/// 0: something is possible; 1: nothing is.
fn finish(result: Result<bool, Error>) -> ExitCode {
    match result {
        Ok(any) => ExitCode::from(u8::from(!any)),
        Err(error) => failed(&error),
    }
}

async fn show(
    kind: &str,
    args: &PdpArgs,
    question: impl FnOnce(&PdpArgs) -> Result<Value, OpenError>,
    format: Format,
    none: &str,
) -> Result<bool, Error> {
    let mut question = question(args)?;
    question["options"] = json!({"details": true});
    if let Some(session) = &args.session {
        question["context"]["session"] = json!(session);
    }
    if let Some(Delegator { kind, name }) = &args.on_behalf_of {
        let kind = if *kind == DelegatorKind::User { "user" } else { "agent" };
        question["context"]["on_behalf_of"] = json!({"type": kind, "id": name});
    }
    let pdp = args.connect(None).await?;
    let found = pdp.search(kind, &question).await;
    pdp.close().await;
    let found = found?;
    let mut out = terminal::stdout();
    match format {
        Format::Json => {
            let details = (!found.details.is_empty()).then_some(&found.details);
            let mut all = json!({"results": found.results});
            if let Some(details) = details {
                all["details"] = json!(details);
            }
            if let Some(until) = &found.observed_until {
                all["observed_until"] = json!(until);
            }
            print_json(&mut out, &all)?;
        }
        Format::Text if found.results.is_empty() => eprintln!("{none}"),
        Format::Text => print(&mut out, kind, &found)?,
    }
    if let Some(until) = &found.observed_until {
        eprintln!("The tenant observes until {}: what is not listed here could be let through, too.", printable(until));
    }
    Ok(!found.results.is_empty())
}

fn print(out: &mut impl io::Write, kind: &str, found: &Found) -> io::Result<()> {
    let details: Vec<Detail> = found.details.iter().map(|d| Detail::deserialize(d).unwrap_or_default()).collect();
    let id = |v: &Value| v.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    if details.len() != found.results.len() {
        // An agent's own token: it learns what it could do, and no more.
        let rows: Vec<Vec<String>> = found.results.iter().map(|r| vec![id(r)]).collect();
        return table(out, &[if kind == "subject" { "AGENT" } else { "TOOL" }], &rows);
    }
    let rows: Vec<Vec<String>> = details
        .into_iter()
        .map(|d| {
            let depends: Vec<String> = d.depends.iter().map(depends).collect();
            let mut row = vec![d.id, d.allowed, d.approval, depends.join("; ")];
            if kind == "resource" {
                row.insert(1, d.tier.unwrap_or_default());
            }
            row
        })
        .collect();
    let mut titles = vec!["AGENT", "ALLOWED", "APPROVAL", "DEPENDS ON"];
    if kind == "resource" {
        titles[0] = "TOOL";
        titles.insert(1, "TIER");
    }
    table(out, &titles, &rows)
}

fn depends(on: &Depends) -> String {
    let name = on.policy.rsplit('/').next().unwrap_or(&on.policy);
    let name = if on.policy.starts_with("platform/") { on.policy.as_str() } else { name };
    match on.conditions.as_slice() {
        [] => format!("{} {name}", on.effect),
        conditions => format!("{} {name}: {}", on.effect, conditions.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_how_far_it_is_settled_and_on_what_it_depends() {
        let found = Found {
            results: vec![json!({"type": "tool", "id": "git/push"})],
            details: vec![json!({"id": "git/push", "tier": "write", "allowed": "maybe", "approval": "no", "depends": [
                {"policy": "tenant/first/no-force", "effect": "forbid", "conditions": ["context.arguments.hasTag(\"force\")"]},
                {"policy": "platform/base/night", "effect": "forbid"}]})],
            observed_until: None,
        };
        let mut out = Vec::new();
        print(&mut out, "resource", &found).unwrap();
        let text = String::from_utf8(out).unwrap();
        let mut lines = text.lines();
        assert!(lines.next().unwrap().starts_with("TOOL       TIER    ALLOWED   APPROVAL   DEPENDS ON"), "{text}");
        assert!(
            lines.next().unwrap().ends_with(
                "git/push   write   maybe     no         forbid no-force: context.arguments.hasTag(\"force\"); forbid platform/base/night"
            ),
            "{text}"
        );
        // What an agent gets for itself has no details.
        let mut out = Vec::new();
        print(&mut out, "resource", &Found { details: vec![], ..found }).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "TOOL\ngit/push\n");
    }
}
