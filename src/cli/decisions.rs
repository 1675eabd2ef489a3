//! `remit decisions`: what was decided, from the records.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Unit};

use super::client::{Client, ClientError, ServerArgs};
use super::terminal::{self, failed, json, printable, table};
use crate::gate::DecisionRecord;
use crate::store::{Page, StoredDecision};
use crate::transport::encode;

/// Decisions, from the records.
#[derive(Debug, Args)]
pub struct DecisionsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists a tenant's decisions, newest first
    List(Box<List>),
    /// Shows one decision with everything that was recorded
    Get(Get),
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    tenant: TenantArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// Only of this agent
    #[arg(long)]
    agent: Option<String>,
    /// Only on behalf of this user or agent: NAME, user:NAME or agent:NAME
    #[arg(long)]
    delegator: Option<String>,
    /// Only of this session
    #[arg(long)]
    session: Option<String>,
    /// Only of this action, such as call_tool
    #[arg(long)]
    action: Option<String>,
    /// Only with this outcome
    #[arg(long, value_parser = ["allow", "deny", "approval_required", "refused"])]
    outcome: Option<String>,
    /// Only those that were observed, and would be this if they were enforced
    #[arg(long, value_parser = ["deny", "approval_required"])]
    would_be: Option<String>,
    /// From then on: a time such as 2026-01-31T12:00:00Z, or an age such as 15m, 2h, 7d
    #[arg(long, value_parser = instant)]
    since: Option<Timestamp>,
    /// Before then: a time or an age
    #[arg(long, value_parser = instant)]
    until: Option<Timestamp>,
    /// At most so many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Goes on where a former list ended
    #[arg(long)]
    page: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
struct Get {
    /// Decision id
    id: String,
    #[command(flatten)]
    tenant: TenantArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// The tenant whose records are read.
#[derive(Debug, Args)]
pub(super) struct TenantArgs {
    /// The tenant [default: the folder's, or the namespace of the kubeconfig's context, else `default`]
    #[arg(short = 'n', long = "namespace", alias = "tenant", env = "REMIT_TENANT", value_name = "TENANT")]
    namespace: Option<String>,
}

impl TenantArgs {
    /// What was said; else the folder's own, or the kubeconfig's.
    pub(super) fn name(&self, client: &Client) -> String {
        self.namespace
            .clone()
            .or_else(|| client.tenant())
            .or_else(current_namespace)
            .unwrap_or_else(|| "default".to_owned())
    }
}

/// Namespace of the kubeconfig's current context, as kubectl takes it.
pub(super) fn current_namespace() -> Option<String> {
    let config = kube::config::Kubeconfig::read().ok()?;
    let current = config.current_context?;
    config.contexts.into_iter().find(|c| c.name == current)?.context?.namespace.filter(|n| !n.is_empty())
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Table,
    Wide,
    Json,
}

/// A time, or an age before now.
pub(super) fn instant(text: &str) -> Result<Timestamp, String> {
    instant_at(text, Timestamp::now())
}

fn instant_at(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let wrong = || "expected a time such as 2026-01-31T12:00:00Z, or an age such as 15m, 2h, 7d".to_owned();
    let age: Span = text.parse().map_err(|_| wrong())?;
    if age.is_negative() {
        return Err(wrong());
    }
    now.to_zoned(TimeZone::UTC).checked_sub(age).map(|then| then.timestamp()).map_err(|_| wrong())
}

/// Runs the command.
pub async fn run(args: DecisionsArgs) -> ExitCode {
    let result = match args.command {
        Command::List(list) => run_list(*list).await,
        Command::Get(get) => run_get(get).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

async fn run_list(args: List) -> Result<(), Error> {
    let client = Client::open(&args.server).await?;
    let done = list(args, &client).await;
    client.close().await;
    done
}

async fn list(args: List, client: &Client) -> Result<(), Error> {
    let time = |t: Option<Timestamp>| t.map(|t| t.to_string());
    let filters = [
        ("agent", args.agent),
        ("delegator", args.delegator),
        ("session", args.session),
        ("action", args.action),
        ("outcome", args.outcome),
        ("would_be", args.would_be),
        ("since", time(args.since)),
        ("until", time(args.until)),
        ("limit", Some(args.limit.to_string())),
        ("page", args.page),
    ];
    let query: Vec<_> = filters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let tenant = args.tenant.name(client);
    let path = format!("/admin/tenants/{}/decisions", encode(&tenant));
    let mut out = terminal::stdout();
    if args.output == Format::Json {
        // As the server sent it: a newer server may say more than this version knows.
        let page: serde_json::Value = client.get(&path, &query).await?;
        return Ok(json(&mut out, &page)?);
    }
    let page: Page<StoredDecision> = client.get(&path, &query).await?;
    if page.items.is_empty() {
        eprintln!("No decisions found in tenant {}.", printable(&tenant));
        return Ok(());
    }
    print_list(&mut out, &page.items, args.output == Format::Wide)?;
    out.flush()?;
    if let Some(next) = page.next {
        eprintln!("There are more: add --page {}", printable(&next));
    }
    Ok(())
}

/// The outcome; of what was only observed also what it would be.
fn outcome(record: &DecisionRecord) -> String {
    match &record.would_be {
        Some(would_be) => format!("{} (would be {})", record.outcome.as_str(), would_be.outcome.as_str()),
        None => record.outcome.as_str().to_owned(),
    }
}

/// The code; of what was only observed the one that it would have.
fn code(record: &DecisionRecord) -> String {
    match &record.would_be {
        Some(would_be) => format!("{} ({})", record.code, would_be.code),
        None => record.code.clone(),
    }
}

fn print_list(out: &mut impl Write, items: &[StoredDecision], wide: bool) -> io::Result<()> {
    let mut titles = vec!["TIME", "AGENT", "FOR", "ACTION", "RESOURCE", "OUTCOME", "CODE", "POLICIES", "DECISION"];
    if wide {
        titles.extend(["SEQ", "SESSION", "CALLER", "MICROS", "REASON"]);
    }
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|d| {
            let r = &d.record;
            let would_be = r.would_be.iter().flat_map(|w| &w.policies);
            let mut policies: Vec<&str> = Vec::new();
            // What asks determines, too.
            for p in r.policies.iter().chain(&r.asks).chain(would_be) {
                if !policies.contains(&p.id.as_str()) {
                    policies.push(&p.id);
                }
            }
            let time = r.time.round(Unit::Millisecond).unwrap_or(r.time);
            let mut row = vec![
                time.to_string(),
                if r.agent.is_empty() {
                    format!("{}:{}", r.request.subject.type_, r.request.subject.id)
                } else {
                    r.agent.clone()
                },
                r.delegated_from.clone().unwrap_or_default(),
                r.request.action.name.clone(),
                r.request.resource.id.clone(),
                outcome(r),
                code(r),
                policies.join(","),
                r.id.clone(),
            ];
            if wide {
                row.extend([
                    d.seq.to_string(),
                    r.request.session.clone().unwrap_or_default(),
                    r.caller.username.clone(),
                    r.latency_micros.to_string(),
                    r.reason.clone(),
                ]);
            }
            row
        })
        .collect();
    table(out, &titles, &rows)
}

async fn run_get(args: Get) -> Result<(), Error> {
    let client = Client::open(&args.server).await?;
    let done = get(args, &client).await;
    client.close().await;
    done
}

async fn get(args: Get, client: &Client) -> Result<(), Error> {
    let path = format!("/admin/tenants/{}/decisions/{}", encode(&args.tenant.name(client)), encode(&args.id));
    let mut out = terminal::stdout();
    if args.output == Format::Json {
        let decision: serde_json::Value = client.get(&path, &[]).await?;
        return Ok(json(&mut out, &decision)?);
    }
    let decision: StoredDecision = client.get(&path, &[]).await?;
    Ok(print_one(&mut out, &decision)?)
}

fn print_one(out: &mut impl Write, d: &StoredDecision) -> io::Result<()> {
    let r = &d.record;
    let mut line = |name: &str, value: &str| match value {
        "" => Ok(()),
        value => writeln!(out, "{:<12}{}", format!("{name}:"), printable(value)),
    };
    line("Decision", &r.id)?;
    line("Time", &r.time.to_string())?;
    line("Tenant", &r.tenant)?;
    line("Outcome", r.outcome.as_str())?;
    line("Code", &r.code)?;
    line("Reason", &r.reason)?;
    if let Some(w) = &r.would_be {
        line("Would be", &format!("{} ({}): {}", w.outcome.as_str(), w.code, w.reason))?;
        for p in &w.policies {
            line("Would be by", &with_reason(&p.id, p.reason.as_deref()))?;
        }
    }
    line("Agent", &r.agent)?;
    line("For", r.delegated_from.as_deref().unwrap_or_default())?;
    line("Caller", &r.caller.username)?;
    line("Session", r.request.session.as_deref().unwrap_or_default())?;
    line("Action", &r.request.action.name)?;
    line("Resource", &format!("{} {}", r.request.resource.type_, r.request.resource.id))?;
    for (name, value) in &r.request.arguments {
        line("Argument", &format!("{name} = {value}"))?;
    }
    for p in &r.policies {
        line("Policy", &with_reason(&p.id, p.reason.as_deref()))?;
    }
    for p in &r.asks {
        line("Asks", &with_reason(&p.id, p.reason.as_deref()))?;
    }
    for e in &r.errors {
        line("Error", &format!("{}: {}", e.policy, e.message))?;
    }
    for (side, digests) in &r.digests {
        for digest in digests {
            line("Package", &format!("{side} {digest}"))?;
        }
    }
    line("Request id", r.request_id.as_deref().unwrap_or_default())?;
    line("Latency", &format!("{} µs", r.latency_micros))?;
    if let Some(call) = &d.call {
        let took = call.duration_ms.map(|ms| format!(" after {ms} ms")).unwrap_or_default();
        line("Call", &format!("{}{took}, as the caller said", call.outcome.as_str()))?;
    }
    line("Record", &format!("{} {}", d.seq, d.hash))
}

fn with_reason(id: &str, reason: Option<&str>) -> String {
    match reason {
        Some(reason) => format!("{id} ({reason})"),
        None => id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::testing::Server;
    use crate::store::testing::record;

    fn stored() -> StoredDecision {
        let mut record = record("acme", 1);
        record.delegated_from = Some("user:alice".into());
        record.request.arguments.insert("branch".into(), "a\u{1b}[31m".into());
        StoredDecision { seq: 1, hash: "ab".into(), record, call: None }
    }

    #[test]
    fn an_age_is_before_now() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        for (text, then) in [
            ("15m", "2026-01-31T11:45:00Z"),
            ("2h", "2026-01-31T10:00:00Z"),
            ("7d", "2026-01-24T12:00:00Z"),
            ("2026-01-01T00:00:00+01:00", "2025-12-31T23:00:00Z"),
        ] {
            assert_eq!(instant_at(text, now).unwrap().to_string(), then, "{text}");
        }
        for text in ["yesterday", "-2h", "", "12"] {
            assert!(instant_at(text, now).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn filters_go_to_the_server_that_knows_them() {
        let (asked, seen) = std::sync::mpsc::channel();
        let route = axum::routing::get(move |uri: axum::http::Uri| async move {
            asked.send(uri.to_string()).unwrap();
            axum::Json(Page { items: vec![stored()], next: Some("1.1".into()) })
        });
        let router = axum::Router::new().route("/admin/tenants/acme/decisions", route);
        let server = Server::start(router).await;
        let cli =
            ["remit", "list", "-n", "acme", "--agent", "a b", "--outcome", "deny", "--since", "2026-01-01T00:00:00Z"];
        #[derive(clap::Parser)]
        struct Cli {
            #[command(subcommand)]
            command: Command,
        }
        let Command::List(list) = <Cli as clap::Parser>::parse_from(cli).command else { panic!("not list") };
        run_list(List { server: server.args(), ..*list }).await.unwrap();
        assert_eq!(
            seen.recv().unwrap(),
            "/admin/tenants/acme/decisions?agent=a%20b&outcome=deny&since=2026-01-01T00%3A00%3A00Z&limit=100"
        );
        for wrong in [["--limit", "0"], ["--limit", "1001"], ["--outcome", "maybe"], ["--since", "yesterday"]] {
            let cli = ["remit", "list"].into_iter().chain(wrong);
            assert!(<Cli as clap::Parser>::try_parse_from(cli).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_table_says_who_what_and_why() {
        let mut out = Vec::new();
        let mut twice = stored();
        twice.record.asks = twice.record.policies.clone();
        print_list(&mut out, &[twice], false).unwrap();
        let text = String::from_utf8(out).unwrap();
        let mut lines = text.lines();
        assert!(lines.next().unwrap().starts_with("TIME "));
        let cells: Vec<_> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(
            cells[1..],
            [
                "coder",
                "user:alice",
                "call_tool",
                "git/status",
                "allow",
                "allowed",
                "tenant/base/reads",
                "01900000-0000-7000-8000-000000000001"
            ]
        );
    }

    #[test]
    fn what_was_only_observed_says_what_it_would_be() {
        let mut observed = stored();
        observed.record.code = "observed".into();
        observed.record.would_be = Some(crate::gate::RecordedWouldBe {
            outcome: crate::gate::Outcome::Deny,
            code: "denied_by_policy".into(),
            reason: "Not here.".into(),
            policies: std::mem::take(&mut observed.record.policies),
        });
        let (mut list, mut one) = (Vec::new(), Vec::new());
        print_list(&mut list, std::slice::from_ref(&observed), false).unwrap();
        print_one(&mut one, &observed).unwrap();
        let (list, one) = (String::from_utf8(list).unwrap(), String::from_utf8(one).unwrap());
        let row = "allow (would be deny)   observed (denied_by_policy)   tenant/base/reads";
        assert!(list.contains(row), "{list}");
        assert!(one.contains("deny (denied_by_policy): Not here."), "{one}");
    }

    #[test]
    fn one_decision_is_shown_without_control_characters() {
        let mut out = Vec::new();
        print_one(&mut out, &stored()).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("Policy:     tenant/base/reads"), "{text}");
        assert!(text.contains("For:        user:alice") && !text.contains('\u{1b}'), "{text}");
    }
}
