//! `remit rollout`: where a rollout stands, and what people ask of it, through the kubeconfig.
//!
//! An action is an entry in the rollout's status, written as the user of the kubeconfig: the API server says whether they may, and Remit's
//! state machine what comes of it. Nothing here needs Remit to be reachable. Exit 0: done, 1: refused, 2: not asked or no answer.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use futures::StreamExt as _;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watch_object};
use kube::{Api, Client};
use serde_json::json;

use super::decisions::current_namespace;
use super::output::{FAIL, Format, PASS};
use super::terminal::{self, failed, printable, table};
use crate::api::{
    ActionKind, CheckResult, DEFAULT_NAME, HandledAction, HumanAction, READY, RevisionStatus, TenantRollout,
    append_action,
};

/// For one call of the API server.
const CALL: Duration = Duration::from_secs(15);
/// How often the status is looked at while an action is handled.
const LOOK: Duration = Duration::from_millis(200);
/// How often an entry is written anew because somebody was faster.
const TRIES: usize = 10;
/// Field manager of entries.
const FIELD_MANAGER: &str = "kubectl-remit";

/// Rollouts of policy: where they stand, and holding, promoting, ending and undoing them.
#[derive(Debug, Args)]
pub struct RolloutArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows what is in force, what is on its way, and the history
    Status(Status),
    /// Holds the rollout where it is
    Pause(Optional),
    /// Lets a paused rollout go on
    Resume(Optional),
    /// Goes on to the next stage now
    Promote(Promote),
    /// Ends the rollout: what was in force before answers everybody
    Abort(Required),
    /// Puts a former revision in force
    Rollback(Rollback),
}

#[derive(Debug, Args)]
struct Target {
    /// Namespace of the tenant [default: that of the kubeconfig's context, else `default`]
    #[arg(short, long, env = "REMIT_TENANT")]
    namespace: Option<String>,
    /// Lines for people, or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
struct Status {
    #[command(flatten)]
    target: Target,
    /// Shows it again whenever it changes
    #[arg(short, long)]
    watch: bool,
}

#[derive(Debug, Args)]
struct Wait {
    /// Seconds to wait until Remit has handled it; 0: only asks
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    wait: u64,
}

#[derive(Debug, Args)]
struct Optional {
    #[command(flatten)]
    target: Target,
    /// Why, for the record
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
struct Required {
    #[command(flatten)]
    target: Target,
    /// Why, for the record
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
struct Promote {
    #[command(flatten)]
    target: Target,
    /// Into force for everyone, whatever is left to check: needs verb promote-unchecked, and a reason
    #[arg(long, requires = "reason")]
    full: bool,
    /// Why, for the record
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
struct Rollback {
    #[command(flatten)]
    target: Target,
    /// Number of the revision [default: the one before that in force]
    #[arg(long, value_name = "REVISION")]
    to: Option<i64>,
    /// Why, for the record
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("no Kubernetes: neither a ServiceAccount of a pod nor KUBECONFIG can be used: {0}")]
    Config(String),
    #[error("{0}")]
    Api(String),
    #[error("no answer of the API server within {} s", CALL.as_secs())]
    Timeout,
    #[error("namespace {0} has no TenantRollout")]
    None(String),
    #[error("{0}")]
    Nothing(&'static str),
    #[error("{0}")]
    Full(String),
    #[error("Remit has not handled it within {0} s: the entry stays, see `remit rollout status`")]
    Unhandled(u64),
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

/// Runs the command.
pub async fn run(args: RolloutArgs) -> ExitCode {
    match command(args.command).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => failed(&error),
    }
}

async fn command(command: Command) -> Result<u8, Error> {
    let (kind, target, reason, to, wait) = match command {
        Command::Status(args) => return status(&args).await,
        Command::Pause(a) => (ActionKind::Pause, a.target, a.reason, None, a.wait),
        Command::Resume(a) => (ActionKind::Resume, a.target, a.reason, None, a.wait),
        Command::Promote(a) if a.full => (ActionKind::PromoteFull, a.target, a.reason, None, a.wait),
        Command::Promote(a) => (ActionKind::Promote, a.target, a.reason, None, a.wait),
        Command::Abort(a) => (ActionKind::Abort, a.target, Some(a.reason), None, a.wait),
        Command::Rollback(a) => (ActionKind::Rollback, a.target, Some(a.reason), a.to, a.wait),
    };
    let cluster = Cluster::connect(&target).await?;
    let asked = cluster.ask(kind, reason, to).await?;
    let mut out = terminal::stdout();
    if wait.wait == 0 {
        match target.output {
            Format::Json => terminal::json(&mut out, &asked)?,
            Format::Text => writeln!(out, "{} is asked for (entry {})", asked.action, asked.id)?,
        }
        return Ok(PASS);
    }
    let handled = cluster.handled(&asked.id, Duration::from_secs(wait.wait)).await?;
    let handled = handled.ok_or(Error::Unhandled(wait.wait))?;
    let done = handled.result.starts_with("done");
    match target.output {
        Format::Json => terminal::json(&mut out, &handled)?,
        Format::Text => writeln!(out, "{}", printable(&handled.result))?,
    }
    Ok(if done { PASS } else { FAIL })
}

struct Cluster {
    client: Client,
    namespace: String,
}

impl Cluster {
    async fn connect(target: &Target) -> Result<Self, Error> {
        let config = kube::Config::infer().await.map_err(|e| Error::Config(e.to_string()))?;
        let client = Client::try_from(config).map_err(|e| Error::Config(e.to_string()))?;
        let namespace = target.namespace.clone().or_else(current_namespace).unwrap_or_else(|| "default".to_owned());
        Ok(Self { client, namespace })
    }

    fn api(&self) -> Api<TenantRollout> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn rollout(&self) -> Result<TenantRollout, Error> {
        let found = self.call(self.api().get_opt(DEFAULT_NAME)).await?;
        found.ok_or_else(|| Error::None(self.namespace.clone()))
    }

    /// As whom the API server knows the user of the kubeconfig.
    async fn user(&self) -> Result<String, Error> {
        let api: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = self.call(api.create(&PostParams::default(), &SelfSubjectReview::default())).await?;
        let user = review.status.and_then(|s| s.user_info).and_then(|u| u.username);
        user.ok_or(Error::Nothing("the API server does not say who you are"))
    }

    async fn call<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
        match tokio::time::timeout(CALL, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(kube::Error::Api(status))) => Err(Error::Api(words(&status.message, &self.namespace))),
            Ok(Err(error)) => Err(Error::Api(error.to_string())),
            Err(_) => Err(Error::Timeout),
        }
    }

    /// Writes the entry, about what is there now.
    async fn ask(&self, kind: ActionKind, reason: Option<String>, to: Option<i64>) -> Result<HumanAction, Error> {
        let actor = self.user().await?;
        let id = uuid::Uuid::now_v7().to_string();
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let mut last = Error::Timeout;
        for _ in 0..TRIES {
            let rollout = self.rollout().await?;
            let action = HumanAction {
                id: id.clone(),
                actor: actor.clone(),
                action: kind.as_str().into(),
                reason: reason.clone(),
                revision: to,
                digest: subject(&rollout, kind)?,
                stage: stage(&rollout, kind),
                via: None,
            };
            let patch = Patch::Merge(append_action(&rollout, &action).map_err(Error::Full)?);
            let api = self.api();
            match tokio::time::timeout(CALL, api.patch_status(DEFAULT_NAME, &params, &patch)).await {
                Ok(Ok(_)) => return Ok(action),
                Ok(Err(kube::Error::Api(status))) if status.is_conflict() => last = Error::Api(status.message.clone()),
                Ok(Err(kube::Error::Api(status))) => return Err(Error::Api(words(&status.message, &self.namespace))),
                Ok(Err(error)) => return Err(Error::Api(error.to_string())),
                Err(_) => return Err(Error::Timeout),
            }
        }
        Err(last)
    }

    async fn handled(&self, id: &str, within: Duration) -> Result<Option<HandledAction>, Error> {
        let begun = Instant::now();
        loop {
            let rollout = self.rollout().await?;
            let handled = rollout.status.into_iter().flat_map(|s| s.handled).find(|h| h.action.id == id);
            if handled.is_some() || begun.elapsed() > within {
                return Ok(handled);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Digest of what the action is about: if another one is there by the time it is handled, nothing is done. A tenant can be paused before
/// anything is under way.
fn subject(rollout: &TenantRollout, kind: ActionKind) -> Result<Option<String>, Error> {
    let status = rollout.status.as_ref();
    let digest = |r: Option<&RevisionStatus>| r.map(|r| r.digest.clone());
    let candidate = digest(status.and_then(|s| s.candidate.as_ref()));
    match kind {
        ActionKind::Pause | ActionKind::Resume => Ok(candidate),
        ActionKind::Rollback => {
            let stable = digest(status.and_then(|s| s.stable.as_ref()));
            stable.map(Some).ok_or(Error::Nothing("nothing is in force"))
        }
        ActionKind::Promote | ActionKind::PromoteFull | ActionKind::Abort => {
            candidate.map(Some).ok_or(Error::Nothing("no rollout is under way"))
        }
    }
}

/// The stage that is looked at: of two who ask for the next one at once only one moves it.
fn stage(rollout: &TenantRollout, kind: ActionKind) -> Option<i64> {
    let status = rollout.status.as_ref().filter(|_| kind == ActionKind::Promote)?;
    Some(status.stage.map_or(0, |stage| stage.saturating_add(1)))
}

/// The API server's refusal in short, and what helps.
fn words(message: &str, namespace: &str) -> String {
    if let Some((_, why)) = message.split_once("denied request: ") {
        return why.to_owned();
    }
    if message.contains("tenantrollouts/status") && message.contains("cannot") {
        return format!("{message}: ClusterRole remit-rollout-operator, bound in namespace {namespace}, lets you");
    }
    message.to_owned()
}

async fn status(args: &Status) -> Result<u8, Error> {
    let cluster = Cluster::connect(&args.target).await?;
    let mut out = terminal::stdout();
    if !args.watch {
        show(&mut out, &cluster.rollout().await?, args.target.output)?;
        return Ok(PASS);
    }
    let mut seen = Vec::new();
    let mut stream = Box::pin(watch_object(cluster.api(), DEFAULT_NAME).default_backoff());
    while let Some(event) = stream.next().await {
        let rollout = match event {
            Ok(Some(rollout)) => rollout,
            Ok(None) => return Err(Error::None(cluster.namespace)),
            // What can't get better by waiting; all else is tried again.
            Err(
                watcher::Error::InitialListFailed(kube::Error::Api(status))
                | watcher::Error::WatchStartFailed(kube::Error::Api(status)),
            ) if status.is_forbidden() => {
                return Err(Error::Api(words(&status.message, &cluster.namespace)));
            }
            Err(_) => continue,
        };
        let mut text = Vec::new();
        show(&mut text, &rollout, args.target.output)?;
        if text != seen {
            if !seen.is_empty() && args.target.output == Format::Text {
                writeln!(out)?;
            }
            out.write_all(&text)?;
            out.flush()?;
            seen = text;
        }
    }
    Ok(PASS)
}

fn show(out: &mut impl Write, rollout: &TenantRollout, format: Format) -> io::Result<()> {
    let status = rollout.status.clone().unwrap_or_default();
    if format == Format::Json {
        return terminal::json(out, &json!({"spec": rollout.spec, "status": status}));
    }
    let name = |r: &RevisionStatus| {
        printable(&format!("{} {} ({})", r.package, r.version, r.digest.get(..19).unwrap_or(&r.digest)))
    };
    writeln!(out, "{:?}", status.phase)?;
    match &status.stable {
        Some(stable) => writeln!(out, "in force:   {}, revision {}", name(stable), stable.revision)?,
        None => writeln!(out, "in force:   nothing")?,
    }
    if let Some(candidate) = &status.candidate {
        let progress = printable(status.progress.as_deref().unwrap_or("queued"));
        let share = status.percent.map(|p| format!(", {p} % of sessions")).unwrap_or_default();
        let stage = status.stage.map(|s| format!(", stage {}", s + 1)).unwrap_or_default();
        writeln!(out, "candidate:  {}, revision {}: {progress}{stage}{share}", name(candidate), candidate.revision)?;
        for (what, text) in [("replay", &status.replay), ("proof", &status.proof)] {
            if let Some(text) = text {
                writeln!(out, "{:<12}{}", format!("{what}:"), printable(text))?;
            }
        }
    }
    if let Some(verdict) = &status.verdict {
        writeln!(out, "verdict:    {:?}", verdict.result)?;
        for check in verdict.checks.iter().filter(|c| c.result != CheckResult::Pass) {
            let reason = check.reason.as_ref().map(|r| format!(": {}", printable(r))).unwrap_or_default();
            let (name, value, threshold) =
                (printable(&check.name), printable(&check.value), printable(&check.threshold));
            writeln!(out, "  {:?} {name}: {value} (at most {threshold}){reason}", check.result)?;
        }
    }
    if let Some(ready) = status.conditions.iter().find(|c| c.type_ == READY) {
        writeln!(out, "Ready:      {} {}: {}", ready.status, ready.reason, printable(&ready.message))?;
    }
    for open in &status.actions {
        writeln!(out, "waits:      {} by {}", printable(&open.action), printable(&open.actor))?;
    }
    if let Some(last) = status.handled.first() {
        let (action, actor) = (printable(&last.action.action), printable(&last.action.actor));
        writeln!(out, "last asked: {action} by {actor}: {}", printable(&last.result))?;
    }
    if !status.history.is_empty() {
        let rows: Vec<Vec<String>> = status
            .history
            .iter()
            .map(|h| {
                let at = h.at.as_ref().map(|t| t.0.to_string()).unwrap_or_default();
                let r = &h.revision;
                vec![r.revision.to_string(), r.package.clone(), r.version.clone(), h.phase.clone(), h.cause.clone(), at]
            })
            .collect();
        writeln!(out)?;
        table(out, &["REVISION", "PACKAGE", "VERSION", "PROGRESS", "CAUSE", "SINCE"], &rows)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::TenantRolloutStatus;

    #[test]
    fn refusals_are_told_in_short_with_what_helps() {
        let policy = "tenantrollouts.remit.dev \"default\" is forbidden: ValidatingAdmissionPolicy 'remit-rollout-actions' with binding \
                      'remit-rollout-actions' denied request: status.actions: pause needs verb pause";
        assert_eq!(words(policy, "acme"), "status.actions: pause needs verb pause");
        let rbac = "User \"bob\" cannot patch resource \"tenantrollouts/status\" in API group \"remit.dev\"";
        assert!(words(rbac, "acme").ends_with("ClusterRole remit-rollout-operator, bound in namespace acme, lets you"));
        assert_eq!(words("other", "acme"), "other");
    }

    #[test]
    fn an_action_is_about_what_is_there() {
        let mut rollout = TenantRollout::new(DEFAULT_NAME, Default::default());
        for kind in ActionKind::ALL {
            let without = matches!(kind, ActionKind::Pause | ActionKind::Resume);
            assert_eq!(subject(&rollout, kind).ok(), without.then_some(None), "{kind:?}");
        }
        let of = |digest: &str| Some(RevisionStatus { digest: digest.into(), ..RevisionStatus::default() });
        let status = TenantRolloutStatus { stable: of("s"), candidate: of("c"), ..TenantRolloutStatus::default() };
        rollout.status = Some(status);
        assert_eq!(subject(&rollout, ActionKind::Rollback).unwrap().as_deref(), Some("s"));
        assert_eq!(subject(&rollout, ActionKind::PromoteFull).unwrap().as_deref(), Some("c"));
    }

    #[test]
    fn the_status_names_what_is_on_its_way_and_what_holds_it() {
        let mut rollout = TenantRollout::new(DEFAULT_NAME, Default::default());
        rollout.status = Some(
            serde_json::from_value(json!({
                "phase": "Progressing", "stage": 0, "percent": 5, "progress": "canary",
                "stable": {"tenantUid": "u", "package": "base", "version": "1.0.0", "digest": "sha256:aaaaaaaaaaaaaaaa", "revision": 1},
                "candidate": {"tenantUid": "u", "package": "base", "version": "1.1.0\u{1b}[2J", "digest": "sha256:bb", "revision": 2},
                "verdict": {"result": "Fail", "checks": [
                    {"name": "errors", "result": "Fail", "value": "3 %", "threshold": "2 %", "reason": "d-1"},
                    {"name": "latency", "result": "Pass", "value": "1", "threshold": "2"}]},
                "history": [{"tenantUid": "u", "package": "base", "version": "1.0.0", "digest": "sha256:aa", "revision": 1,
                    "phase": "completed", "cause": "FirstPackage"}],
            }))
            .unwrap(),
        );
        let mut out = Vec::new();
        show(&mut out, &rollout, Format::Text).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("revision 2: canary, stage 1, 5 % of sessions"), "{text}");
        assert!(text.contains("Fail errors: 3 % (at most 2 %): d-1") && !text.contains("latency"), "{text}");
        assert!(text.contains("1.1.0\\u{1b}[2J") && text.contains("FirstPackage"), "{text}");
    }
}
