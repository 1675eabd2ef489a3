//! `remit hook install`: puts the hook into a coding agent's settings, and takes it out again.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::api::DelegatorKind;
use crate::cli::output::{CommandError, Format, PASS, finish, print, print_json};
use crate::cli::pdp::PdpArgs;
use crate::cli::terminal::printable;
use crate::enforce::hook::{self, CodingAgent, InstallOutcome, Installation, Written};
use crate::enforce::{ANY_TOOL, ListedTool};

/// `--timeout` where it is not given.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Puts the hook into a coding agent's settings, with a copy of the old file beside it.
///
/// What the flags and the environment say now is written into the command: the agent's own environment does not count.
#[derive(Debug, Args)]
pub struct Install {
    /// The coding agent.
    #[arg(value_enum, value_name = "CODING_AGENT")]
    coding_agent: Agent,
    #[command(flatten)]
    pdp: PdpArgs,
    /// Leave what the policy allows to the agent's own permission prompts, instead of answering them
    #[arg(long)]
    defer: bool,
    #[command(flatten)]
    place: Place,
    /// Take out what was installed
    #[arg(long)]
    uninstall: bool,
    /// Print what the file would be, and write nothing
    #[arg(long)]
    print: bool,
    /// Lines for people, or JSON
    #[arg(short, long, value_enum, default_value_t, conflicts_with = "print")]
    output: Format,
}

/// Coding agents.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Agent {
    /// Claude Code
    ClaudeCode,
    /// Gemini CLI
    GeminiCli,
}

/// Which settings.
#[derive(Debug, Default, Args)]
#[group(multiple = false)]
struct Place {
    /// The settings file
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// The user's settings (default)
    #[arg(long)]
    user: bool,
    /// The settings of the project in this folder
    #[arg(long)]
    project: bool,
    /// The machine's settings, which no user or project can turn off; needs the right to write there
    #[arg(long)]
    managed: bool,
}

/// Runs the command.
pub fn run(args: &Install) -> ExitCode {
    finish(install(args))
}

fn install(args: &Install) -> Result<u8, CommandError> {
    let agent = match args.coding_agent {
        Agent::ClaudeCode => CodingAgent::ClaudeCode,
        Agent::GeminiCli => CodingAgent::GeminiCli,
    };
    let settings = settings(agent, &args.place)?;
    let (flags, policy) = if args.uninstall { (Vec::new(), None) } else { flags(args, works(&args.pdp, agent)?)? };
    let program = std::env::current_exe().and_then(|path| path.canonicalize());
    let program = program.map_err(|e| CommandError::Usage(format!("this program's own path is not known: {e}")))?;
    let plan = Installation { agent, program, flags, settings: settings.clone(), policy };
    let edit = |text: Option<&str>| match (args.uninstall, text) {
        (true, None) => Ok(InstallOutcome::Unchanged),
        (true, Some(text)) => hook::uninstall(text, &plan),
        (false, text) => hook::install(text, &plan),
    };
    let failed = |e: hook::FileError| CommandError::Usage(e.to_string());
    if args.print {
        let old = hook::read_settings(&settings).map_err(failed)?;
        let outcome =
            edit(old.as_deref()).map_err(|error| failed(hook::FileError::Content { path: settings.clone(), error }))?;
        print(match &outcome {
            InstallOutcome::Changed(new) => new,
            InstallOutcome::Unchanged => old.as_deref().unwrap_or_default(),
        });
        return Ok(PASS);
    }
    // What users must be able to read, and only the administrator to write.
    let mode = if args.place.managed { 0o644 } else { 0o600 };
    let written = hook::rewrite(&settings, mode, edit).map_err(failed)?;
    say(args, agent, &settings, &written)?;
    Ok(PASS)
}

fn say(args: &Install, agent: CodingAgent, settings: &Path, written: &Written) -> Result<(), CommandError> {
    let backup = match written {
        Written::Changed { backup } => backup.as_ref().map(|path| path.display().to_string()),
        Written::Unchanged => None,
    };
    let changed = *written != Written::Unchanged;
    let file = settings.display();
    if args.output == Format::Json {
        return print_json(&serde_json::json!({
            "agent": agent.name(), "settings": file.to_string(), "changed": changed, "backup": backup,
            "installed": !args.uninstall,
        }));
    }
    let mut text = match (args.uninstall, changed) {
        (false, true) => format!("{file}: {} asks Remit before every tool call\n", agent.name()),
        (false, false) => format!("{file}: is installed already, as it is\n"),
        (true, true) => format!("{file}: the hook was taken out\n"),
        (true, false) => format!("{file}: no hook of Remit's is in it\n"),
    };
    if let Some(backup) = backup {
        text += &format!("The file as it was: {backup}\n");
    }
    if !args.uninstall && changed {
        text += &match agent {
            CodingAgent::ClaudeCode => {
                "Needs Claude Code 2.1.295 or newer: an older one lets a call through when the hook is stopped \
                                        by its time limit.\nStart the agent anew, and see the hook with /hooks.\n"
                    .to_owned()
            }
            CodingAgent::GeminiCli => "Start the agent anew, and see the hook with /hooks.\n".to_owned(),
        };
    }
    print(&text);
    Ok(())
}

/// A hook that can't answer blocks everything: better said now. Gives the name of the agent that acts: written down, no call has to
/// look for it. Says so where the policy would let the coding agent do nothing at all: most likely its tools are not in the package yet.
fn works(args: &PdpArgs, coding_agent: CodingAgent) -> Result<String, CommandError> {
    let failed = |e: &dyn std::fmt::Display| CommandError::Usage(e.to_string());
    let runtime = crate::laptop::runtime().map_err(|e| failed(&e))?;
    runtime.block_on(async {
        let (pdp, agent) = args.open().await.map_err(|e| failed(&e))?;
        let listed = pdp.listed(&agent, args.session.as_deref()).await;
        pdp.close().await;
        let own = format!("{}/", coding_agent.name());
        let some = |tool: &ListedTool| tool.name.starts_with(&own) || tool.name == ANY_TOOL;
        if !listed.map_err(|e| failed(&e))?.iter().any(some) {
            eprintln!(
                "warning: the policy lets {} call none of {}'s own tools, so every call will be denied: docs/hooks.md has their \
                 names for package.yaml",
                printable(&agent),
                coding_agent.name(),
            );
        }
        Ok(agent)
    })
}

/// The hook's flags, and the policy's folder. Paths are absolute: the agent starts the hook anywhere.
fn flags(args: &Install, agent: String) -> Result<(Vec<String>, Option<PathBuf>), CommandError> {
    let pdp = &args.pdp;
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(|e| CommandError::Usage(format!("{}: {e}", path.display())));
    let mut flags = Vec::new();
    let mut flag = |name: &str, value: String| flags.extend([name.to_owned(), value]);
    let mut folder = None;
    if let Some(dir) = &pdp.policy {
        let dir = dir.canonicalize().map_err(|e| CommandError::Usage(format!("--policy {}: {e}", dir.display())))?;
        flag("--policy", text(&dir)?);
        folder = Some(dir);
    } else if let Some(url) = &pdp.remit {
        flag("--remit", url.clone());
        if let Some(file) = &pdp.ca_file {
            flag("--ca-file", text(&absolute(file)?)?);
        }
        // Not resolved: a projected token is a link that moves.
        if let Some(file) = &pdp.token_file {
            flag("--token-file", text(&absolute(file)?)?);
        }
    } else {
        return Err(CommandError::Usage("say where to ask: --policy DIR, or --remit URL".into()));
    }
    flag("--agent", agent);
    for (name, value) in [("--tenant", &pdp.tenant), ("--session", &pdp.session)] {
        if let Some(value) = value {
            flag(name, value.clone());
        }
    }
    if let Some(delegator) = &pdp.on_behalf_of {
        let kind = match delegator.kind {
            DelegatorKind::User => "user",
            DelegatorKind::Agent => "agent",
        };
        flag("--on-behalf-of", format!("{kind}:{}", delegator.name));
    }
    if pdp.timeout != TIMEOUT {
        flag("--timeout", pdp.timeout.as_secs_f64().to_string());
    }
    if args.defer {
        flags.push("--defer".to_owned());
    }
    Ok((flags, folder))
}

fn text(path: &Path) -> Result<String, CommandError> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| CommandError::Usage(format!("{}: a path that is no text can't be installed", path.display())))
}

/// The settings file, absolute.
fn settings(agent: CodingAgent, place: &Place) -> Result<PathBuf, CommandError> {
    let (folder, machine) = match agent {
        CodingAgent::ClaudeCode if cfg!(target_os = "macos") => {
            (".claude", "/Library/Application Support/ClaudeCode/managed-settings.json")
        }
        CodingAgent::ClaudeCode => (".claude", "/etc/claude-code/managed-settings.json"),
        CodingAgent::GeminiCli if cfg!(target_os = "macos") => {
            (".gemini", "/Library/Application Support/GeminiCli/settings.json")
        }
        CodingAgent::GeminiCli => (".gemini", "/etc/gemini-cli/settings.json"),
    };
    let own = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = match place {
        Place { settings: Some(file), .. } => file.clone(),
        Place { managed: true, .. } => PathBuf::from(machine),
        Place { project: true, .. } => Path::new(folder).join("settings.json"),
        _ => match own("CLAUDE_CONFIG_DIR").filter(|_| agent == CodingAgent::ClaudeCode) {
            Some(folder) => folder.join("settings.json"),
            None => own("HOME")
                .ok_or_else(|| CommandError::Usage("HOME is not set: give --settings FILE".into()))?
                .join(folder)
                .join("settings.json"),
        },
    };
    std::path::absolute(&path).map_err(|e| CommandError::Usage(format!("{}: {e}", path.display())))
}
