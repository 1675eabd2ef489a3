//! `remit suggest`: a least-privilege package from recorded decisions.
//!
//! Writes only into a folder that is empty or not there, and nothing that the package's own tests refuse goes unsaid.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::client::{Client, ClientError, ServerArgs};
use super::decisions::{TenantArgs, instant};
use super::output::{CommandError, FAIL, Format, PASS, finish, print, print_json};
use super::terminal::printable;
use super::test::examine;
use crate::api::{PolicyPackageSpec, SourceFile};
use crate::gate::DecisionRecord;
use crate::source::folder::{MANIFEST, Packages, read};
use crate::store::{Page, StoredDecision};
use crate::suggest::{Settings, SuggestError, Suggestion, suggest};
use crate::transport::encode;

/// Decisions that are looked at, at most: they are held in memory.
const MAX_DECISIONS: usize = 100_000;
/// Decisions of one page.
const PAGE: usize = 1000;
/// The largest file of decisions.
const MAX_FILE: u64 = 1024 * 1024 * 1024;

/// Suggests a least-privilege package from recorded decisions.
#[derive(Debug, Args)]
pub struct Suggest {
    /// Folder to write; made if it is not there. It must be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    tenant: TenantArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// Reads decisions from a file (`-`: standard input) instead of a server: what `remit decisions list -o json` prints, or JSON lines
    #[arg(long, value_name = "FILE")]
    decisions: Option<PathBuf>,
    /// The package that the decisions were made under (folder or objects): its forbids and tools stay [default: that of --policy]
    #[arg(long, value_name = "DIR|FILE")]
    package: Option<PathBuf>,
    /// Only decisions from then on: a time, or an age such as 7d
    #[arg(long, value_parser = instant)]
    since: Option<Timestamp>,
    /// Only decisions before then: a time or an age
    #[arg(long, value_parser = instant)]
    until: Option<Timestamp>,
    /// Only this agent's decisions: the package will be for it alone
    #[arg(long)]
    agent: Option<String>,
    /// Name of the package, where --package gives none
    #[arg(long, default_value = "suggested")]
    name: String,
    /// How often an agent must have called a tool that reads
    #[arg(long, default_value_t = Settings::default().min_reads, value_name = "N")]
    min_reads: usize,
    /// How often an agent must have called a tool that writes or administers
    #[arg(long, default_value_t = Settings::default().min_changes, value_name = "N")]
    min_changes: usize,
    /// Lines for people, or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Why there is no suggestion.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Suggest(#[from] SuggestError),
    #[error("{path}: {why}")]
    Decisions { path: String, why: String },
    #[error("more than {MAX_DECISIONS} decisions: narrow it with --since, --until or --agent")]
    TooMany,
}

/// Runs the command.
pub async fn run(args: Suggest) -> ExitCode {
    match suggested(args).await {
        Ok(code) => ExitCode::from(code),
        Err(Error::Command(error)) => finish(Err(error)),
        Err(error) => super::terminal::failed(&error),
    }
}

async fn suggested(mut args: Suggest) -> Result<u8, Error> {
    empty(&args.out)?;
    let there = args.package.clone().or_else(|| args.server.policy.as_deref().and_then(package_of));
    let existing = there.as_deref().map(one_package).transpose()?;
    let server = std::mem::take(&mut args.server);
    let mut records = match &args.decisions {
        Some(path) => from_file(path)?,
        None => from_server(&server, &args).await?,
    };
    let wanted = |r: &DecisionRecord| {
        args.agent.as_ref().is_none_or(|a| *a == r.agent)
            && args.since.is_none_or(|t| r.time >= t)
            && args.until.is_none_or(|t| r.time < t)
    };
    records.retain(wanted);
    let settings = Settings {
        package: args.name.clone(),
        min_reads: args.min_reads,
        min_changes: args.min_changes,
        ..Settings::default()
    };
    let done = suggest(&records, existing.as_ref(), &settings)?;
    write(&args.out, &done.files)?;
    // What is on the disk counts, not what was meant to be written.
    let spec = one_package(&args.out)?;
    let (tests, refusals) = examine(&spec, false);
    let problems: Vec<String> = refusals.iter().chain(&tests.refusals()).map(ToString::to_string).collect();
    let good = problems.is_empty() && done.summary.replay.unexplained.is_empty();
    match args.output {
        Format::Json => {
            let files: Vec<String> = done.files.iter().map(|f| args.out.join(&f.name).display().to_string()).collect();
            print_json(&serde_json::json!({
                "passed": good, "files": files, "tests": tests.results.len(), "problems": problems, "summary": done.summary,
            }))?;
        }
        Format::Text => print(&lines(&args.out, &done, tests.results.len(), &problems)),
    }
    Ok(if good { PASS } else { FAIL })
}

fn lines(out: &Path, done: &Suggestion, tests: usize, problems: &[String]) -> String {
    let s = &done.summary;
    let mut text = format!(
        "{} {} from {} decisions: {} permits, {} forbids kept, {tests} tests, in {}\n",
        printable(&s.package),
        printable(&s.version),
        s.decisions,
        s.permits.len(),
        s.kept.len(),
        out.display()
    );
    let mut list = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            text.push_str(&format!("{title}\n"));
            lines.iter().for_each(|line| text.push_str(&format!("  {}\n", printable(line))));
        }
    };
    list("Permits:", s.permits.iter().map(|(id, n)| format!("{id} ({n}×)")).collect());
    list("Tools to review:", s.review.clone());
    list("Left out:", s.left_out.iter().map(|l| l.line()).collect());
    list("Answered in another way under it:", s.replay.named.iter().map(|d| d.line()).collect());
    list("ANSWERED IN ANOTHER WAY FOR NO KNOWN REASON:", s.replay.unexplained.iter().map(|d| d.line()).collect());
    list("PROBLEMS:", problems.to_vec());
    text.push_str(&format!(
        "Replayed: {} the same, {} in another way as named, {} not replayed, {} unexplained\n",
        s.replay.same,
        s.replay.named.iter().map(|d| d.decisions).sum::<usize>(),
        s.replay.not_replayed,
        s.replay.unexplained.iter().map(|d| d.decisions).sum::<usize>()
    ));
    text.push_str(&format!("Next: read {0}/package.yaml and {0}/permits.cedar, then remit test {0}\n", out.display()));
    text
}

fn empty(dir: &Path) -> Result<(), CommandError> {
    match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(CommandError::Write { path: dir.display().to_string(), error }),
        Ok(entries) => match entries.count() {
            0 => Ok(()),
            _ => Err(CommandError::Usage(format!("{}: the folder is not empty", dir.display()))),
        },
    }
}

fn write(dir: &Path, files: &[SourceFile]) -> Result<(), CommandError> {
    let failed = |path: &Path, error| CommandError::Write { path: path.display().to_string(), error };
    let tests = dir.join("tests");
    std::fs::create_dir_all(&tests).map_err(|e| failed(&tests, e))?;
    for file in files {
        let path = dir.join(&file.name);
        std::fs::write(&path, &file.text).map_err(|e| failed(&path, e))?;
    }
    Ok(())
}

/// The package in a folder of `remit serve`: the folder itself, or the only one in it. None: it holds none or several.
fn package_of(dir: &Path) -> Option<PathBuf> {
    if dir.join(MANIFEST).is_file() {
        return Some(dir.to_owned());
    }
    let folders = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut packages = folders.filter(|path| path.join(MANIFEST).is_file());
    packages.next().filter(|_| packages.next().is_none())
}

/// The one package of a folder or a file.
fn one_package(path: &Path) -> Result<PolicyPackageSpec, CommandError> {
    match read(path)? {
        Packages::Folder(spec) => Ok(*spec),
        Packages::Objects(mut objects) => match (objects.pop(), objects.is_empty()) {
            (Some(object), true) => Ok(PolicyPackageSpec { signature: None, signer: None, ..object.spec }),
            _ => Err(CommandError::Usage(format!("{}: holds several packages, name the one", path.display()))),
        },
    }
}

async fn from_server(server: &ServerArgs, args: &Suggest) -> Result<Vec<DecisionRecord>, Error> {
    let client = Client::open(server).await?;
    let records = pages(&client, args).await;
    client.close().await;
    records
}

async fn pages(client: &Client, args: &Suggest) -> Result<Vec<DecisionRecord>, Error> {
    let tenant = args.tenant.name(client);
    let path = format!("/admin/tenants/{}/decisions", encode(&tenant));
    let time = |t: Option<Timestamp>| t.map(|t| t.to_string());
    // The end is fixed before the first page, so that what comes meanwhile does not move the pages.
    let until = args.until.unwrap_or_else(Timestamp::now);
    let mut records = Vec::new();
    let mut page: Option<String> = None;
    loop {
        let query = [
            ("agent", args.agent.clone()),
            ("since", time(args.since)),
            ("until", time(Some(until))),
            ("limit", Some(PAGE.to_string())),
            ("page", page),
        ];
        let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let found: Page<StoredDecision> = client.get(&path, &query).await?;
        records.extend(found.items.into_iter().map(|d| d.record));
        if records.len() > MAX_DECISIONS {
            return Err(Error::TooMany);
        }
        match found.next {
            Some(next) => page = Some(next),
            None => return Ok(records),
        }
    }
}

/// Decisions of a file, however they were printed.
pub(super) fn from_file(path: &Path) -> Result<Vec<DecisionRecord>, Error> {
    let wrong = |why: String| Error::Decisions { path: path.display().to_string(), why };
    let mut text = String::new();
    let mut reader: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(std::io::stdin()),
        false => Box::new(std::fs::File::open(path).map_err(|e| wrong(e.to_string()))?),
    };
    reader.as_mut().take(MAX_FILE).read_to_string(&mut text).map_err(|e| wrong(e.to_string()))?;
    if text.len() as u64 == MAX_FILE {
        return Err(wrong(format!("over {MAX_FILE} bytes")));
    }
    read_decisions(&text).map_err(wrong)
}

/// Pages, lists, stored decisions and records, one after the other.
fn read_decisions(text: &str) -> Result<Vec<DecisionRecord>, String> {
    let mut records = Vec::new();
    let mut waiting = Vec::new();
    for (n, value) in serde_json::Deserializer::from_str(text).into_iter::<Value>().enumerate() {
        waiting.push(value.map_err(|e| format!("value {}: {e}", n + 1))?);
        while let Some(value) = waiting.pop() {
            match value {
                Value::Array(items) => waiting.extend(items),
                Value::Object(mut map) => match (map.remove("items"), map.remove("record")) {
                    (Some(Value::Array(items)), _) => waiting.extend(items),
                    (_, Some(record)) => waiting.push(record),
                    _ => {
                        let record = serde_json::from_value(Value::Object(map));
                        records.push(record.map_err(|e| format!("value {}: not a decision: {e}", n + 1))?);
                    }
                },
                _ => return Err(format!("value {}: not a decision", n + 1)),
            }
            if records.len() > MAX_DECISIONS {
                return Err(Error::TooMany.to_string());
            }
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::record;

    #[test]
    fn decisions_are_read_however_they_were_printed() {
        let one = serde_json::to_value(record("acme", 1)).unwrap();
        let stored = serde_json::json!({"seq": 1, "hash": "ab", "record": one});
        for text in [
            serde_json::json!({"items": [stored, stored], "next": "1.1"}).to_string(),
            serde_json::json!([stored, one]).to_string(),
            format!("{one}\n{stored}\n"),
            format!("{}\n{}", serde_json::json!({"items": [one]}), serde_json::json!({"items": [stored]})),
        ] {
            assert_eq!(read_decisions(&text).unwrap().len(), 2, "{text}");
        }
        assert!(read_decisions("").unwrap().is_empty());
        for wrong in ["7", "{}", "[[7]]", "{\"items\": [{\"id\": 1}]}", "{"] {
            assert!(read_decisions(wrong).unwrap_err().contains("value 1"), "{wrong}");
        }
    }
}
