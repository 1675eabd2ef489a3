//! `remit replay`: recorded decisions under two packages, offline, by the operator's own engine.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::client::{Client, ClientError, ServerArgs};
use super::decisions::{TenantArgs, instant};
use super::output::{CommandError, FAIL, PASS, finish, print, print_json};
use super::prove::{declared, one_package};
use super::suggest::from_file;
use super::terminal::printable_lines;
use crate::api::{PolicyPackageSpec, RecordedOutcome, ReplaySelection, ReplayVerdict};
use crate::gate::DecisionRecord;
use crate::policy::{CompiledPackage, Side, base_platform, digest};
use crate::replay::{EffectiveSet, Recorded, Report, Task, html, newest_tenant, order, run_task, selects};
use crate::store::{Page, StoredDecision};
use crate::transport::encode;

/// Decisions of one page of a server.
const PAGE: u32 = 1000;
/// Decisions that are held at once: they are put in order first.
const MAX_DECISIONS: usize = 1_000_000;

/// Evaluates recorded decisions under two packages, with the facts of their time.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The package to compare with: a folder, or a file with one PolicyPackage object.
    #[arg(long, value_name = "DIR|FILE")]
    baseline: PathBuf,
    /// The package to try.
    #[arg(long, value_name = "DIR|FILE")]
    candidate: PathBuf,
    /// Recorded decisions: a file (`-`: standard input) with what `remit decisions list -o json` prints, or JSON lines; or the
    /// address of a Remit, such as https://remit.example:8443, with --token-file.
    #[arg(long, value_name = "FILE|URL")]
    decisions: String,
    /// A package of the platform beside Remit's own. May be given more than once.
    #[arg(long, value_name = "DIR|FILE")]
    platform: Vec<PathBuf>,
    /// What must hold of the candidate: the name of one of Remit's own invariants, a file with a list of invariants (YAML or JSON), or
    /// one in JSON. May be given more than once.
    #[arg(long, value_name = "NAME|FILE|JSON")]
    invariant: Vec<String>,
    #[command(flatten)]
    tenant: TenantArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// From then on: a time such as 2026-01-31T12:00:00Z, or an age such as 15m, 2h, 7d
    #[arg(long, value_parser = instant)]
    since: Option<Timestamp>,
    /// Before then: a time or an age
    #[arg(long, value_parser = instant)]
    until: Option<Timestamp>,
    /// Only of this session. May be given more than once.
    #[arg(long)]
    session: Vec<String>,
    /// Only of this agent. May be given more than once.
    #[arg(long)]
    agent: Vec<String>,
    /// Only on behalf of this user or agent: NAME, user:NAME or agent:NAME. May be given more than once.
    #[arg(long)]
    delegator: Vec<String>,
    /// Only of this tool. May be given more than once.
    #[arg(long)]
    tool: Vec<String>,
    /// Only with this outcome. May be given more than once.
    #[arg(long, value_enum)]
    outcome: Vec<OutcomeArg>,
    /// At most so many, the newest, 1 to 1000000.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    limit: i64,
    /// Threads [default: as many as there are cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: Option<u8>,
    /// Lines for people, JSON, or a page of HTML.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum OutcomeArg {
    Allow,
    Deny,
    ApprovalRequired,
    Refused,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
    Html,
}

/// Runs the command.
pub async fn run(args: ReplayArgs) -> ExitCode {
    finish(replay(args).await)
}

async fn replay(mut args: ReplayArgs) -> Result<u8, CommandError> {
    let selection = args.selection();
    selection.check().map_err(|(field, why)| CommandError::Usage(format!("{field}: {why}")))?;
    let invariants = declared(&args.invariant)?;
    let mut platform = vec![base_platform()];
    for path in &args.platform {
        platform.push(compile(path, &one_package(path)?, Side::Platform)?);
    }
    let set = |path: &PathBuf| -> Result<EffectiveSet, CommandError> {
        Ok(EffectiveSet { platform: platform.clone(), package: compile(path, &one_package(path)?, Side::Tenant)? })
    };
    let (baseline, candidate) = (set(&args.baseline)?, set(&args.candidate)?);
    let mut records = args.records(&selection).await?;
    order(&mut records);
    let (tenant, tenant_uid) = newest_tenant(&records);
    let task = Task { tenant, tenant_uid, baseline, candidate, invariants, selection };
    let threads = args.threads.map(usize::from);
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let report: Report =
        run_task(task, &records, threads).map_err(|e| CommandError::Usage(format!("--invariant: {e}")))?;
    match args.output {
        Format::Text => print(&printable_lines(&report.text())),
        Format::Json => print_json(&report)?,
        Format::Html => print(&html(&report)),
    }
    Ok(if report.verdict == ReplayVerdict::Pass { PASS } else { FAIL })
}

fn compile(path: &std::path::Path, spec: &PolicyPackageSpec, side: Side) -> Result<Arc<CompiledPackage>, CommandError> {
    CompiledPackage::compile(spec, &digest(spec), side).map_err(|refusals| {
        let all: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        CommandError::Usage(format!("{}: {}", path.display(), all.join("\nerror: ")))
    })
}

impl ReplayArgs {
    fn selection(&self) -> ReplaySelection {
        let outcome = |outcome: &OutcomeArg| match outcome {
            OutcomeArg::Allow => RecordedOutcome::Allow,
            OutcomeArg::Deny => RecordedOutcome::Deny,
            OutcomeArg::ApprovalRequired => RecordedOutcome::ApprovalRequired,
            OutcomeArg::Refused => RecordedOutcome::Refused,
        };
        ReplaySelection {
            since: self.since.map(Time),
            until: self.until.map(Time),
            sessions: self.session.clone(),
            agents: self.agent.clone(),
            delegators: self.delegator.clone(),
            tools: self.tool.clone(),
            outcomes: self.outcome.iter().map(outcome).collect(),
            limit: Some(self.limit),
        }
    }

    /// The newest records that the selection takes.
    async fn records(&mut self, selection: &ReplaySelection) -> Result<Vec<Recorded>, CommandError> {
        let mut found: Vec<DecisionRecord> = if self.decisions.contains("://") {
            let server = ServerArgs { url: Some(self.decisions.clone()), policy: None, ..self.server.clone() };
            from_server(&server, &self.tenant, selection).await.map_err(|e| CommandError::Usage(e.to_string()))?
        } else {
            let path = PathBuf::from(&self.decisions);
            from_file(&path).map_err(|e| CommandError::Usage(e.to_string()))?
        };
        found.retain(|record| selects(selection, record));
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        if found.len() > limit {
            found.sort_by(|a, b| (b.time, &b.id).cmp(&(a.time, &a.id)));
            found.truncate(limit);
        }
        Ok(found.into_iter().map(Recorded::from).collect())
    }
}

async fn from_server(
    server: &ServerArgs,
    tenant: &TenantArgs,
    selection: &ReplaySelection,
) -> Result<Vec<DecisionRecord>, ClientError> {
    let client = Client::open(server).await?;
    let found = pages(&client, &tenant.name(&client), selection).await;
    client.close().await;
    found
}

async fn pages(client: &Client, tenant: &str, selection: &ReplaySelection) -> Result<Vec<DecisionRecord>, ClientError> {
    let path = format!("/admin/tenants/{}/decisions", encode(tenant));
    // The end is fixed before the first page, so that what comes meanwhile does not move the pages.
    let until = selection.until.as_ref().map_or_else(Timestamp::now, |t| t.0);
    let one = |list: &[String]| if let [one] = list { Some(one.clone()) } else { None };
    let mut found = Vec::new();
    let mut page: Option<String> = None;
    loop {
        let query = [
            ("agent", one(&selection.agents)),
            ("session", one(&selection.sessions)),
            ("delegator", one(&selection.delegators)),
            ("since", selection.since.as_ref().map(|t| t.0.to_string())),
            ("until", Some(until.to_string())),
            ("limit", Some(PAGE.to_string())),
            ("page", page),
        ];
        let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let next: Page<StoredDecision> = client.get(&path, &query).await?;
        found.extend(next.items.into_iter().map(|d| d.record).filter(|record| selects(selection, record)));
        let enough = found.len() >= usize::try_from(selection.limit()).unwrap_or(MAX_DECISIONS).min(MAX_DECISIONS);
        match next.next {
            Some(next) if !enough => page = Some(next),
            _ => return Ok(found),
        }
    }
}
