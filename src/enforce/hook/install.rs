//! What the installer writes into a coding agent's settings, and takes out again.
//!
//! The contracts are open where the hook is not there to answer: a missing binary, a crash, a timeout. So the command is the
//! binary's absolute path in a line of shell that ends in the blocking code whatever happens, its time is far above the hook's
//! own, and where the contract has a switch that turns failures into blocks (Claude Code's `onFailure`), it is set.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::CodingAgent;
use super::document::{DocumentError, Items, Members, indentation, pretty};

/// Ends every installed command: also the mark by which it is found again. Exit code 2 is the hook's own answer; everything else
/// is a hook that could not answer, which some agents would let pass, above all without a word on stderr.
const TAIL: &str =
    "|| { c=$?; [ $c = 2 ] || echo 'remit: the hook ended without an answer: this call is blocked' >&2; exit 2; }";
/// Seconds after which the agent ends the hook. Expired time lets the call through in most contracts, so it is far beyond the
/// hook's own, which blocks.
const TIME: u64 = 600;

/// What to install.
#[derive(Clone, Debug)]
pub struct Installation {
    /// For which coding agent.
    pub agent: CodingAgent,
    /// Absolute path of this binary.
    pub program: PathBuf,
    /// What follows `hook NAME`.
    pub flags: Vec<String>,
    /// The settings file itself, absolute.
    pub settings: PathBuf,
    /// Folder with the policies, absolute, where it is on this machine.
    pub policy: Option<PathBuf>,
}

/// What becomes of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to do.
    Unchanged,
    /// The new text.
    Changed(String),
}

/// Why the settings are left alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// The file's content.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// Something that a line of shell, or the agent's own expansion of it, could read differently.
    #[error("{0:?}: a `$`, a backtick or a control character in it can't be installed: use another path")]
    Word(String),
    /// The settings turn hooks off.
    #[error("{0} turns hooks off: take it out first, or nothing is enforced")]
    HooksOff(&'static str),
}

/// The settings with the hook. `text` is None where there is no file yet.
pub fn install(text: Option<&str>, plan: &Installation) -> Result<Outcome, InstallError> {
    let old = text.filter(|text| !text.trim().is_empty());
    let entry = entry(plan)?;
    let Some(old) = old else {
        let mut settings = Members::default();
        add(&mut settings, plan, &entry, "  ")?;
        return Ok(Outcome::Changed(settings.write("  ", 0) + "\n"));
    };
    let indent = indentation(old);
    let mut settings = Members::read(old, "(all)")?;
    refuse_hooks_off(plan.agent, &settings)?;
    if installed(&settings, plan)? == vec![entry.clone()] && rules(plan).iter().all(|rule| has_rule(&settings, rule)) {
        return Ok(Outcome::Unchanged);
    }
    take_out(&mut settings, plan, indent)?;
    add(&mut settings, plan, &entry, indent)?;
    Ok(Outcome::Changed(framed(old, &settings.write(indent, 0))))
}

/// The settings without what `install` added, whatever flags it had.
pub fn uninstall(text: &str, plan: &Installation) -> Result<Outcome, InstallError> {
    if text.trim().is_empty() {
        return Ok(Outcome::Unchanged);
    }
    let indent = indentation(text);
    let mut settings = Members::read(text, "(all)")?;
    if !take_out(&mut settings, plan, indent)? {
        return Ok(Outcome::Unchanged);
    }
    Ok(Outcome::Changed(framed(text, &settings.write(indent, 0))))
}

/// The object's new text between the whitespace that was around the old one.
fn framed(old: &str, new: &str) -> String {
    let (start, end) = (old.len() - old.trim_start().len(), old.trim_end().len());
    format!("{}{new}{}", &old[..start], &old[end..])
}

/// The command line of the hook.
fn command(plan: &Installation) -> Result<String, InstallError> {
    let program = plan.program.to_string_lossy().into_owned();
    let words =
        [program, "hook".to_owned(), plan.agent.name().to_owned()].into_iter().chain(plan.flags.iter().cloned());
    let mut line = String::new();
    for word in words {
        if word.chars().any(|c| c.is_control() || matches!(c, '$' | '`' | char::REPLACEMENT_CHARACTER)) {
            return Err(InstallError::Word(word));
        }
        line.push_str(&format!("'{}' ", word.replace('\'', r"'\''")));
    }
    Ok(line + TAIL)
}

/// The words of a command that this module wrote; None of every other.
fn words(command: &str) -> Option<Vec<String>> {
    let mut rest = command.strip_suffix(TAIL)?;
    let mut words = Vec::new();
    while !rest.is_empty() {
        let mut word = String::new();
        loop {
            let (text, after) = rest.strip_prefix('\'')?.split_once('\'')?;
            word.push_str(text);
            rest = after;
            match rest.strip_prefix(r"\'") {
                Some(after) => {
                    word.push('\'');
                    rest = after;
                }
                None => break,
            }
        }
        words.push(word);
        rest = rest.strip_prefix(' ')?;
    }
    Some(words)
}

/// The group with the one hook, for every tool: the agent's own and those of MCP servers.
fn entry(plan: &Installation) -> Result<Value, InstallError> {
    let command = command(plan)?;
    let hook = match plan.agent {
        CodingAgent::ClaudeCode => {
            json!({"type": "command", "command": command, "timeout": TIME, "onFailure": "block"})
        }
        CodingAgent::GeminiCli => {
            json!({"type": "command", "name": "remit", "command": command, "timeout": TIME * 1000})
        }
    };
    Ok(json!({"matcher": "*", "hooks": [hook]}))
}

/// Words of the command, where this is a hook that was installed for this coding agent.
fn ours(hook: &Value, agent: CodingAgent) -> Option<Vec<String>> {
    let words = words(hook.get("command")?.as_str()?)?;
    (words.get(1)? == "hook" && words.get(2)? == agent.name()).then_some(words)
}

fn refuse_hooks_off(agent: CodingAgent, settings: &Members) -> Result<(), InstallError> {
    let value = |key: &str| settings.get(key).and_then(|text| serde_json::from_str::<Value>(text).ok());
    match agent {
        CodingAgent::ClaudeCode if value("disableAllHooks").is_some_and(|v| v != Value::Bool(false)) => {
            Err(InstallError::HooksOff("disableAllHooks"))
        }
        CodingAgent::GeminiCli => {
            let config = value("hooksConfig").unwrap_or_default();
            if config.get("enabled") == Some(&Value::Bool(false)) {
                return Err(InstallError::HooksOff("hooksConfig.enabled"));
            }
            let disabled = config.get("disabled").and_then(Value::as_array);
            if disabled.is_some_and(|names| names.iter().any(|name| name == "remit")) {
                return Err(InstallError::HooksOff("hooksConfig.disabled"));
            }
            Ok(())
        }
        CodingAgent::ClaudeCode => Ok(()),
    }
}

fn shape(text: &str) -> Result<Value, DocumentError> {
    serde_json::from_str(text).map_err(|e| DocumentError::Json(e.to_string()))
}

/// The groups of the event that hold a hook of ours.
fn installed(settings: &Members, plan: &Installation) -> Result<Vec<Value>, DocumentError> {
    let Some(hooks) = settings.get("hooks") else { return Ok(Vec::new()) };
    let Some(text) = Members::read(hooks, "hooks")?.get(plan.agent.event()).map(str::to_owned) else {
        return Ok(Vec::new());
    };
    let groups: Result<Vec<Value>, _> = Items::read(&text, plan.agent.event())?.iter().map(shape).collect();
    let holds = |group: &Value| {
        let hooks = group.get("hooks").and_then(Value::as_array);
        hooks.is_some_and(|hooks| hooks.iter().any(|hook| ours(hook, plan.agent).is_some()))
    };
    Ok(groups?.into_iter().filter(holds).collect())
}

fn add(settings: &mut Members, plan: &Installation, entry: &Value, indent: &str) -> Result<(), InstallError> {
    let event = plan.agent.event();
    let mut hooks = Members::read(settings.get("hooks").unwrap_or("{}"), "hooks")?;
    let mut groups = Items::read(hooks.get(event).unwrap_or("[]"), event)?;
    groups.push(pretty(entry, indent, 3))?;
    hooks.set(event, groups.write(indent, 2))?;
    settings.set("hooks", hooks.write(indent, 1))?;
    let missing: Vec<String> = rules(plan).into_iter().filter(|rule| !has_rule(settings, rule)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut permissions = Members::read(settings.get("permissions").unwrap_or("{}"), "permissions")?;
    let mut deny = Items::read(permissions.get("deny").unwrap_or("[]"), "permissions.deny")?;
    for rule in missing {
        deny.push(Value::from(rule).to_string())?;
    }
    permissions.set("deny", deny.write(indent, 2))?;
    settings.set("permissions", permissions.write(indent, 1))?;
    Ok(())
}

/// Whether anything was taken out.
fn take_out(settings: &mut Members, plan: &Installation, indent: &str) -> Result<bool, InstallError> {
    let Some(text) = settings.get("hooks") else { return Ok(false) };
    let event = plan.agent.event();
    let mut hooks = Members::read(text, "hooks")?;
    let Some(text) = hooks.get(event) else { return Ok(false) };
    let groups = Items::read(text, event)?;
    let (mut kept, mut flags) = (Items::default(), Vec::new());
    for group in groups.iter() {
        let mut members = Members::read(group, event)?;
        let mut list = Items::read(members.get("hooks").unwrap_or("[]"), "hooks[].hooks")?;
        let before = list.len();
        list.retain(|hook| match shape(hook).ok().and_then(|hook| ours(&hook, plan.agent)) {
            Some(words) => {
                flags.push(words);
                false
            }
            None => true,
        });
        if list.len() == before {
            kept.push(group.to_owned())?;
        } else if list.len() > 0 {
            members.set("hooks", list.write(indent, 4))?;
            kept.push(members.write(indent, 3))?;
        }
    }
    if flags.is_empty() {
        return Ok(false);
    }
    match kept.len() {
        0 => hooks.remove(event),
        _ => hooks.set(event, kept.write(indent, 2))?,
    }
    match hooks.is_empty() {
        true => settings.remove("hooks"),
        false => settings.set("hooks", hooks.write(indent, 1))?,
    }
    for words in flags {
        let at = words.iter().position(|word| word == "--policy");
        let policy = at.and_then(|at| words.get(at + 1)).map(PathBuf::from);
        remove_rules(settings, &rules(&Installation { policy, ..plan.clone() }), indent)?;
    }
    Ok(true)
}

fn remove_rules(settings: &mut Members, rules: &[String], indent: &str) -> Result<(), InstallError> {
    let Some(text) = settings.get("permissions") else { return Ok(()) };
    let mut permissions = Members::read(text, "permissions")?;
    let Some(text) = permissions.get("deny") else { return Ok(()) };
    let mut deny = Items::read(text, "permissions.deny")?;
    let before = deny.len();
    deny.retain(|item| !matches!(shape(item), Ok(Value::String(rule)) if rules.contains(&rule)));
    if deny.len() == before {
        return Ok(());
    }
    match deny.len() {
        0 => permissions.remove("deny"),
        _ => permissions.set("deny", deny.write(indent, 2))?,
    }
    match permissions.is_empty() {
        true => settings.remove("permissions"),
        false => settings.set("permissions", permissions.write(indent, 1))?,
    }
    Ok(())
}

fn has_rule(settings: &Members, rule: &str) -> bool {
    let value = settings.get("permissions").and_then(|text| shape(text).ok());
    let deny = value.as_ref().and_then(|v| v.get("deny")).and_then(Value::as_array);
    deny.is_some_and(|rules| rules.iter().any(|r| r == rule))
}

/// Claude Code's own rules, which hold also where the hook does not run: the agent's edit tools leave these settings and the
/// policies alone, its read tool the tokens beside them. (A shell is not bound by them.)
fn rules(plan: &Installation) -> Vec<String> {
    if plan.agent != CodingAgent::ClaudeCode {
        return Vec::new();
    }
    let mut rules = Vec::new();
    rules.extend(pattern(&plan.settings).map(|path| format!("Edit({path})")));
    if let Some(policy) = plan.policy.as_deref().and_then(pattern) {
        rules.push(format!("Edit({policy}/**)"));
        rules.push(format!("Read({policy}/.remit/**)"));
    }
    rules
}

/// An absolute path in the rules' syntax; None where it has characters that patterns read.
fn pattern(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ' ' | '+' | '@');
    (path.is_absolute() && text.chars().all(plain)).then(|| format!("/{text}"))
}
