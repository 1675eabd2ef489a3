//! `remit policy`: versions of single policies, their difference, and going back to one, over HTTP.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, ClientError, ServerArgs};
use super::decisions::TenantArgs;
use super::output::{Format, PASS};
use super::terminal::{self, failed, printable, printable_lines, table};
use crate::store::PolicyVersion;
use crate::transport::encode;

/// Versions of single policies, over all packages that were in force.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the policies of a tenant, or the versions of one, newest first, deletions too
    Versions(Versions),
    /// Shows one version with its text
    Show(Show),
    /// Shows what became different from one version to another
    Diff(Diff),
    /// Goes back to the newest revision in which a policy has this version
    Rollback(Rollback),
}

#[derive(Debug, Args)]
struct Versions {
    /// `@id` of the policy, or PACKAGE/ID [default: all, with their newest version]
    #[arg(id = "of", value_name = "POLICY")]
    policy: Option<String>,
    #[command(flatten)]
    tenant: TenantArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// At most so many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Only those below this one
    #[arg(long, value_name = "VERSION")]
    before: Option<u64>,
    /// Lines for people, or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
struct Show {
    /// `@id` of the policy, or PACKAGE/ID
    #[arg(id = "of", value_name = "POLICY")]
    policy: String,
    /// Number of the version
    #[arg(id = "number", value_name = "VERSION")]
    version: u64,
    #[command(flatten)]
    tenant: TenantArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// Lines for people, or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
struct Diff {
    /// `@id` of the policy, or PACKAGE/ID
    #[arg(id = "of", value_name = "POLICY")]
    policy: String,
    /// Version to start from
    from: u64,
    /// Version to end at [default: the newest]
    to: Option<u64>,
    #[command(flatten)]
    tenant: TenantArgs,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
struct Rollback {
    /// `@id` of the policy, or PACKAGE/ID
    #[arg(id = "of", value_name = "POLICY")]
    policy: String,
    /// Number of the version
    #[arg(id = "number", value_name = "VERSION")]
    version: u64,
    /// Why, for the record
    #[arg(long)]
    reason: String,
    /// What else may become different by it, as a refusal lists it; may be given more than once
    #[arg(long, value_name = "CHANGE")]
    acknowledge: Vec<String>,
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

#[derive(Deserialize)]
struct Items {
    items: Vec<PolicyVersion>,
}

/// Runs the command.
pub async fn run(args: PolicyArgs) -> ExitCode {
    let server = match &args.command {
        Command::Versions(a) => &a.server,
        Command::Show(a) => &a.server,
        Command::Diff(a) => &a.server,
        Command::Rollback(a) => &a.server,
    };
    let client = match Client::open(server).await {
        Ok(client) => client,
        Err(error) => return failed(&error),
    };
    let done = match args.command {
        Command::Versions(args) => versions(&client, &args).await,
        Command::Show(args) => show(&client, &args).await,
        Command::Diff(args) => diff(&client, &args).await,
        Command::Rollback(args) => rollback(&client, &args).await,
    };
    client.close().await;
    match done {
        Ok(()) => ExitCode::from(PASS),
        Err(error) => failed(&error),
    }
}

fn path(client: &Client, tenant: &TenantArgs, policy: &str, rest: &str) -> String {
    let tenant = tenant.name(client);
    format!("/admin/tenants/{}/policies/{}{rest}", encode(&tenant), encode(policy))
}

async fn versions(client: &Client, args: &Versions) -> Result<(), Error> {
    let answer: Value = match &args.policy {
        None => {
            let tenant = args.tenant.name(client);
            client.get(&format!("/admin/tenants/{}/policies", encode(&tenant)), &[]).await?
        }
        Some(policy) => {
            let mut query = vec![("limit", args.limit.to_string())];
            query.extend(args.before.map(|before| ("before", before.to_string())));
            client.get(&path(client, &args.tenant, policy, "/versions"), &query).await?
        }
    };
    let mut out = terminal::stdout();
    if args.output == Format::Json {
        return Ok(terminal::json(&mut out, &answer)?);
    }
    let found: Items = serde_json::from_value(answer)
        .map_err(|e| ClientError::Answer { url: "policies".into(), why: printable(&e.to_string()) })?;
    let rows: Vec<Vec<String>> = found.items.iter().map(row).collect();
    let titles = ["POLICY", "VERSION", "CHANGE", "TIME", "BY", "PACKAGE", "REVISION", "REASON"];
    Ok(table(&mut out, &titles, &rows)?)
}

fn row(v: &PolicyVersion) -> Vec<String> {
    // Who went back to it counts more than who wrote it.
    let by = v.rolled_back_by.as_ref().or(v.author.as_ref()).or(v.applied_by.as_ref());
    let change = serde_json::to_value(v.change).ok().and_then(|c| c.as_str().map(str::to_owned)).unwrap_or_default();
    vec![
        format!("{}/{}", v.package, v.policy),
        v.version.to_string(),
        if v.deleted && change != "delete" { format!("{change} (gone)") } else { change },
        v.time.to_string(),
        by.cloned().unwrap_or_default(),
        v.package_version.clone(),
        v.revision.to_string(),
        v.reason.clone().unwrap_or_default(),
    ]
}

async fn show(client: &Client, args: &Show) -> Result<(), Error> {
    let rest = format!("/versions/{}", args.version);
    let found: PolicyVersion = client.get(&path(client, &args.tenant, &args.policy, &rest), &[]).await?;
    let mut out = terminal::stdout();
    match (args.output, &found.text) {
        (Format::Json, _) => terminal::json(&mut out, &found)?,
        (Format::Text, Some(text)) => writeln!(out, "{}", printable_lines(text))?,
        (Format::Text, None) => writeln!(out, "// gone with version {}", found.version)?,
    }
    Ok(())
}

async fn diff(client: &Client, args: &Diff) -> Result<(), Error> {
    let mut query = vec![("from", args.from.to_string())];
    query.extend(args.to.map(|to| ("to", to.to_string())));
    let text = client.get_bytes(&path(client, &args.tenant, &args.policy, "/diff"), &query).await?;
    let text = String::from_utf8_lossy(&text).into_owned();
    // Tabs stand before the names of the versions.
    let lines: Vec<String> =
        text.split('\n').map(|l| l.split('\t').map(printable).collect::<Vec<_>>().join("\t")).collect();
    let mut out = terminal::stdout();
    out.write_all(lines.join("\n").as_bytes())?;
    Ok(out.flush()?)
}

async fn rollback(client: &Client, args: &Rollback) -> Result<(), Error> {
    let body = json!({"version": args.version, "reason": args.reason, "acknowledge": args.acknowledge});
    let answer: Value = client.post(&path(client, &args.tenant, &args.policy, "/rollback"), &body).await?;
    let mut out = terminal::stdout();
    match args.output {
        Format::Json => terminal::json(&mut out, &answer)?,
        Format::Text => {
            let text = |field: &str| printable(answer[field].as_str().unwrap_or_default());
            writeln!(
                out,
                "{} is in version {}: revision {}, {}",
                text("policy"),
                answer["version"],
                answer["revision"],
                text("result")
            )?;
        }
    }
    Ok(())
}
