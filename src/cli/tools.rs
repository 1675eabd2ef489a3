//! `remit tools import`: a package gets an MCP server's tools, for a person to review.
//!
//! Writes where nothing of this server was there, or where the user says `--yes`; else shows what differs. Tiers that are there stay.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::output::{CommandError, FAIL, Format, PASS, finish, print, print_json};
use super::terminal::printable;
use crate::enforce::http::{Upstream, UpstreamArgs};
use crate::enforce::listing::{Target, list};
use crate::enforce::mcp::server_name::{is_server_name, of_command, of_url};
use crate::package::import::{Changed, Difference, Manifest, Offered, compare};
use crate::source::folder::MANIFEST;

/// The tools of a package.
#[derive(Debug, Subcommand)]
pub enum Tools {
    Import(Import),
}

/// Writes an MCP server's tools into a package, with proposed tiers and the digests of their definitions, for you to review.
///
/// Once they are there, shows what has changed since, and writes it with --yes. Tiers that are there stay as they are.
#[derive(Debug, Args)]
pub struct Import {
    /// Folder of the package
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The MCP server: an URL, or a command (words are cut at spaces; for anything else write it after --)
    #[arg(long, value_name = "CMD|URL", conflicts_with_all = ["mcp_url", "command"])]
    mcp: Option<String>,
    /// The MCP server's URL (streamable HTTP)
    #[arg(long, value_name = "URL", conflicts_with = "command")]
    mcp_url: Option<String>,
    /// Name of the server in the names of its tools; from the command or URL, if not set
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// Write what has changed
    #[arg(short, long, conflicts_with = "check")]
    yes: bool,
    /// Write nothing; exit 1 if anything differs
    #[arg(long)]
    check: bool,
    /// For the server to list its tools, seconds; a first `npx` downloads it
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    #[command(flatten)]
    upstream: UpstreamArgs,
    /// Lines for people, or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// The MCP server's command
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the command.
pub async fn run(tools: Tools) -> ExitCode {
    match tools {
        Tools::Import(args) => finish(import(args).await),
    }
}

/// The server, as it was named.
enum Source {
    Command(Vec<OsString>),
    Url(String),
}

async fn import(args: Import) -> Result<u8, CommandError> {
    let usage = |text: String| CommandError::Usage(text);
    // Before a server is started: what would the answer be good for?
    let path = args.dir.join(MANIFEST);
    let before = read_manifest(&path)?;
    let manifest = Manifest::read(&path.display().to_string(), &before).map_err(|e| usage(e.to_string()))?;

    let source = source(&args)?;
    let server = server(&args, &source)?;
    let target = match &source {
        Source::Command(command) => Target::Command(command.clone()),
        Source::Url(url) => {
            Target::Url(Box::new(Upstream::new(url, &args.upstream).map_err(|e| usage(e.to_string()))?))
        }
    };
    let listing =
        list(target, Duration::from_secs(args.timeout)).await.map_err(|e| usage(printable(&e.to_string())))?;
    for why in &listing.left_out {
        eprintln!("warning: {}", printable(why));
    }
    let offered: Vec<Offered> =
        listing.tools.into_iter().map(|(definition, digest)| Offered { definition, digest }).collect();
    let difference = compare(&server, manifest.tools(), &offered);

    let to_write = !difference.added.is_empty() || !difference.changed.is_empty();
    let write = to_write && !args.check && (args.yes || !difference.known);
    if write {
        let after = manifest.with(&difference).map_err(|e| usage(e.to_string()))?;
        replace(&path, &before, &after)?;
    }
    match args.output {
        Format::Json => print_json(&report(&server, &path, &difference, write))?,
        Format::Text => {
            print(&lines(&server, &difference));
            print(&next(&args, &source, &server, &path, &difference, write));
        }
    }
    Ok(if args.check && !difference.is_empty() { FAIL } else { PASS })
}

fn source(args: &Import) -> Result<Source, CommandError> {
    let is_url = |text: &str| text.starts_with("https://") || text.starts_with("http://");
    match (&args.mcp_url, &args.mcp) {
        (Some(url), _) => Ok(Source::Url(url.clone())),
        (None, Some(text)) if is_url(text) => Ok(Source::Url(text.clone())),
        (None, Some(text)) if !text.trim().is_empty() => {
            Ok(Source::Command(text.split_whitespace().map(OsString::from).collect()))
        }
        (None, None) if !args.command.is_empty() => Ok(Source::Command(args.command.clone())),
        _ => Err(CommandError::Usage("which MCP server? --mcp CMD|URL, --mcp-url URL, or its command after --".into())),
    }
}

fn server(args: &Import, source: &Source) -> Result<String, CommandError> {
    let found = match (&args.server, source) {
        (Some(name), _) => Some(name.clone()),
        (None, Source::Command(command)) => of_command(command),
        (None, Source::Url(url)) => of_url(url),
    };
    let Some(name) = found else {
        return Err(CommandError::Usage("--server NAME is missing: its command does not say what it is called".into()));
    };
    if is_server_name(&name) {
        return Ok(name);
    }
    let what = "lower-case letters, digits, `.`, `_` and `-`, at most 63";
    Err(CommandError::Usage(format!("--server {:?}: a server's name has {what}", printable(&name))))
}

fn read_manifest(path: &Path) -> Result<String, CommandError> {
    if !path.exists() {
        let dir = path.parent().unwrap_or(path).display();
        let why = format!("{}: there is no package; `remit init {dir}` writes one to begin with", path.display());
        return Err(CommandError::Usage(why));
    }
    std::fs::read_to_string(path).map_err(|error| CommandError::Write { path: path.display().to_string(), error })
}

/// Writes the new text in one step, if the old one is still what was read.
fn replace(path: &Path, before: &str, after: &str) -> Result<(), CommandError> {
    let failed = |error| CommandError::Write { path: path.display().to_string(), error };
    // A link stays one.
    let real = path.canonicalize().map_err(failed)?;
    let dir = real.parent().unwrap_or(Path::new("."));
    let temporary = dir.join(format!(".{MANIFEST}.{}", std::process::id()));
    let written = (|| {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        file.set_permissions(std::fs::metadata(&real)?.permissions())?;
        file.write_all(after.as_bytes())?;
        file.sync_all()?;
        if std::fs::read_to_string(&real)? != before {
            return Err(std::io::Error::other("was changed by somebody else in the meantime: nothing is written"));
        }
        std::fs::rename(&temporary, &real)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(failed)
}

/// What differs, for people.
fn lines(server: &str, difference: &Difference) -> String {
    let Difference { added, changed, removed, refused, unchanged, .. } = difference;
    let mut out = String::new();
    for tool in added {
        out += &format!("+ {}   {}: {}\n", printable(&tool.name), tool.tier.as_str(), tool.why);
        if !tool.description.is_empty() {
            out += &format!("    {}\n", printable(&tool.description));
        }
    }
    for tool in changed {
        out += &changed_lines(tool);
    }
    for name in removed {
        out += &format!("- {}   the server has it no longer; it stays until you delete it\n", printable(name));
    }
    for tool in refused {
        out += &format!("! {:?}   left out: {}\n", printable(&tool.name), tool.why);
    }
    let counts =
        [(added.len(), "new"), (changed.len(), "changed"), (removed.len(), "gone"), (*unchanged, "as reviewed")];
    let counts: Vec<String> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    let counts = if counts.is_empty() { "no tools".to_owned() } else { counts.join(", ") };
    out + &format!("{server}: {counts}\n")
}

fn changed_lines(tool: &Changed) -> String {
    let tier = tool.tier.as_str();
    let mut out = format!("~ {}   stays {tier}\n", printable(&tool.name));
    match &tool.old_digest {
        None => out = format!("~ {}   stays {tier}: was not pinned yet\n", printable(&tool.name)),
        Some(old) => {
            out += &format!("    definition {} -> {}\n", printable(old), tool.digest);
            match tool.old_description == tool.description {
                true => out += "    the description is the same: schemas, hints or the title differ\n",
                false => {
                    out += &format!("    {}\n", printable(&difference_of(&tool.old_description, &tool.description)))
                }
            }
        }
    }
    if let Some((proposed, why)) = &tool.proposed {
        out += &format!("    today {} would be proposed: {why}\n", proposed.as_str());
    }
    out
}

/// One text with what was taken out as `[-…-]` and what was put in as `{+…+}`, by words.
fn difference_of(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.split(' ').collect(), new.split(' ').collect());
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (&old[head..], &new[head..]);
    let tail = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let out = old_rest[..old_rest.len() - tail].join(" ");
    let put = new_rest[..new_rest.len() - tail].join(" ");
    let mut words: Vec<String> = old[..head].iter().map(|w| (*w).to_owned()).collect();
    if !out.is_empty() {
        words.push(format!("[-{out}-]"));
    }
    if !put.is_empty() {
        words.push(format!("{{+{put}+}}"));
    }
    words.extend(new_rest[new_rest.len() - tail..].iter().map(|w| (*w).to_owned()));
    words.join(" ")
}

/// What is to be done now.
fn next(args: &Import, source: &Source, server: &str, path: &Path, difference: &Difference, written: bool) -> String {
    let (path, dir) = (path.display(), args.dir.display());
    if !written {
        let pending = !difference.added.is_empty() || !difference.changed.is_empty();
        return match (pending, args.check) {
            (true, false) => "Nothing is written. If this is what you want: the same command with --yes\n".into(),
            _ => String::new(),
        };
    }
    let connect = match source {
        Source::Command(command) => {
            let words: Vec<String> = command.iter().map(|w| w.display().to_string()).collect();
            format!("-- {}", words.join(" "))
        }
        Source::Url(url) => format!("--upstream {url} --listen 127.0.0.1:8090"),
    };
    let steps = format!(
        "Written to {path}. A server's words decide nothing: each new tier is a proposal.\n\
         Next:\n  1. read what is marked `# review` in {path}, and raise `version`\n  2. remit test {dir}\n  \
         3. remit mcp-proxy --policy {dir} --server {server} {connect}\n"
    );
    steps.lines().map(|line| printable(line) + "\n").collect()
}

/// The same as JSON.
fn report(server: &str, path: &Path, difference: &Difference, written: bool) -> serde_json::Value {
    let Difference { known: _, added, changed, removed, unchanged, refused } = difference;
    let added: Vec<_> = added
        .iter()
        .map(|t| json!({"name": t.name, "tier": t.tier, "why": t.why, "description": t.description, "schemaDigest": t.digest}))
        .collect();
    let changed: Vec<_> = changed
        .iter()
        .map(|t| {
            json!({
                "name": t.name,
                "tier": t.tier,
                "proposed": t.proposed.as_ref().map(|(tier, why)| json!({"tier": tier, "why": why})),
                "schemaDigest": {"old": t.old_digest, "new": t.digest},
                "description": {"old": t.old_description, "new": t.description},
            })
        })
        .collect();
    let refused: Vec<_> = refused.iter().map(|t| json!({"name": t.name, "why": t.why})).collect();
    json!({
        "server": server,
        "file": path.display().to_string(),
        "written": written,
        "added": added,
        "changed": changed,
        "removed": removed,
        "unchanged": unchanged,
        "refused": refused,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_compared_by_words() {
        let told = |a, b| difference_of(a, b);
        assert_eq!(told("Reads a file.", "Reads a secret file."), "Reads a {+secret+} file.");
        assert_eq!(told("Reads a file.", "Deletes a file."), "[-Reads-] {+Deletes+} a file.");
        assert_eq!(told("a b", ""), "[-a b-]");
        assert_eq!(told("a a", "a a a"), "a a {+a+}");
    }

    #[test]
    fn nothing_of_a_server_reaches_the_terminal() {
        let tool = Changed {
            name: "fs/a".into(),
            tier: crate::api::Tier::Read,
            proposed: None,
            old_digest: Some("\u{1b}[2J".into()),
            digest: "sha256:1".into(),
            old_description: "\u{1b}]0;x\u{7}".into(),
            description: "\u{202e}y".into(),
        };
        let difference = Difference {
            changed: vec![tool],
            removed: vec!["fs/\u{1b}[1m".into()],
            refused: vec![crate::package::import::Refused { name: "\u{9b}31m".into(), why: "x".into() }],
            ..Default::default()
        };
        let text = lines("fs", &difference);
        assert!(!text.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{202e}')), "{text:?}");
    }
}
