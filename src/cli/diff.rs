//! `remit diff`: tests, proof and replay of a candidate in one comment for a pull request.

mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use self::report::{Diff, Held, Tests};
use super::output::{CommandError, FAIL, PASS, finish, print, print_json};
use super::prove::{ProofArgs, one_package};
use super::suggest::from_file;
use super::test::examine;
use crate::api::{ProofBudget, TenantRollout, TenantRolloutSpec};
use crate::policy::{CompiledPackage, Side, base_platform, digest};
use crate::replay::{EffectiveSet, Recorded, Report};
use crate::source::folder::read_small;

/// Puts tests, proof and replay of a candidate into one comment for a pull request.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The package in force: a folder, or a file with one PolicyPackage object.
    #[arg(long, value_name = "DIR|FILE")]
    baseline: PathBuf,
    /// The candidate.
    #[arg(long, value_name = "DIR|FILE")]
    candidate: PathBuf,
    /// Recorded decisions to replay (`-`: standard input): what `remit decisions list -o json` prints, or JSON lines.
    #[arg(long, value_name = "FILE")]
    decisions: PathBuf,
    #[command(flatten)]
    proof: ProofArgs,
    /// The TenantRollout that the candidate will go through (YAML or JSON): its budgets, its replay's `minDecisions` and `invariants`, and
    /// its acknowledged restrictions count, where no option below says otherwise.
    #[arg(long, value_name = "FILE")]
    rollout: Option<PathBuf>,
    /// Replayed decisions that may differ critically, 0 to 1000000 [default: 0].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..=1_000_000))]
    critical_drift: Option<i64>,
    /// Replayed decisions that may differ with severity high; expansions and restrictions apart, 0 to 1000000 [default: 2].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..=1_000_000))]
    high_drift: Option<i64>,
    /// Decisions that must have been replayed, 1 to 1000000; with fewer the replay is inconclusive [default: 20].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    min_decisions: Option<i64>,
    /// What the proof must say [default: not-required].
    #[arg(long = "proof", value_enum)]
    wanted: Option<Wanted>,
    /// Restrictions are meant: they count in no budget.
    #[arg(long)]
    acknowledge_restrictions: bool,
    /// What is inconclusive is a failure, too, and there must be a proof.
    #[arg(long)]
    require: bool,
    /// A comment, or JSON.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What the proof must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wanted {
    /// It is shown, and holds nothing.
    NotRequired,
    /// There must be one.
    Required,
    /// It must say that nobody may do more.
    NoExpansion,
}

/// What is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A comment for a pull request.
    #[default]
    Markdown,
    /// One JSON document.
    Json,
}

/// Runs the command.
pub async fn run(args: DiffArgs) -> ExitCode {
    finish(diff(&args).await)
}

async fn diff(args: &DiffArgs) -> Result<u8, CommandError> {
    let (baseline, candidate) = (one_package(&args.baseline)?, one_package(&args.candidate)?);
    let held = held(args, &digest(&candidate))?;
    let mut invariants = held.rollout.replay.clone().unwrap_or_default().invariants;
    invariants.extend(args.proof.invariants()?);
    let records = from_file(&args.decisions).map_err(|e| CommandError::Usage(e.to_string()))?;
    let mut platform = vec![base_platform()];
    for path in &args.proof.platform {
        platform.push(compile(path, &one_package(path)?, Side::Platform)?);
    }
    let set = |path, spec| -> Result<EffectiveSet, CommandError> {
        Ok(EffectiveSet { platform: platform.clone(), package: compile(path, spec, Side::Tenant)? })
    };
    let (old, new) = (set(&args.baseline, &baseline)?, set(&args.candidate, &candidate)?);
    let (tests, _) = examine(&candidate, false);
    let proof = args.proof.prove(&baseline, &candidate, invariants.clone()).await?;
    let mut records: Vec<Recorded> = records.into_iter().map(Recorded::from).collect();
    let replay: Report =
        crate::replay::run(&old, &new, &invariants, &mut records).map_err(|e| CommandError::Usage(e.to_string()))?;
    let diff = Diff::new(Tests::of(&tests), proof, replay, &held);
    match args.format {
        Format::Markdown => print(&diff.markdown()),
        Format::Json => print_json(&diff)?,
    }
    Ok(if diff.passed { PASS } else { FAIL })
}

/// What the candidate of this digest is held to: the rollout's own words, and the options over them.
fn held(args: &DiffArgs, candidate: &str) -> Result<Held, CommandError> {
    let mut rollout = match &args.rollout {
        Some(path) => rollout(path)?,
        None => TenantRolloutSpec::default(),
    };
    let budgets = rollout.budgets.get_or_insert_default();
    budgets.critical_drift = args.critical_drift.or(budgets.critical_drift);
    budgets.high_drift = args.high_drift.or(budgets.high_drift);
    let wanted = match args.wanted {
        Some(Wanted::NotRequired) => Some(ProofBudget::NotRequired),
        Some(Wanted::Required) => Some(ProofBudget::Required),
        Some(Wanted::NoExpansion) => Some(ProofBudget::NoExpansion),
        None => budgets.proof,
    };
    let required = wanted.filter(|w| !args.require || *w != ProofBudget::NotRequired);
    budgets.proof = required.or(args.require.then_some(ProofBudget::Required));
    let replay = rollout.replay.get_or_insert_default();
    replay.min_decisions = args.min_decisions.or(replay.min_decisions);
    for invariant in &replay.invariants {
        let refused = |e| CommandError::Usage(format!("--rollout: spec.replay.invariants: {e}"));
        invariant.meaning().map_err(refused)?;
    }
    if args.acknowledge_restrictions {
        rollout.acknowledged_restrictions.push(candidate.to_owned());
    }
    Ok(Held { rollout, require: args.require })
}

/// The spec of the one TenantRollout of a file.
fn rollout(path: &Path) -> Result<TenantRolloutSpec, CommandError> {
    let refused = |e: String| CommandError::Usage(format!("{}: {e}", path.display()));
    let object: Value = serde_saphyr::from_str(&read_small(path)?).map_err(|e| refused(e.to_string()))?;
    if object["kind"] != "TenantRollout" {
        return Err(refused("one TenantRollout is wanted here".into()));
    }
    let written = object["spec"].clone();
    let object: TenantRollout = serde_json::from_value(object).map_err(|e| refused(e.to_string()))?;
    let read = serde_json::to_value(&object.spec).map_err(|e| refused(e.to_string()))?;
    match ignored("spec", &written, &read) {
        Some(field) => Err(refused(format!("{field}: unknown field"))),
        None => Ok(object.spec),
    }
}

/// The first field that was not read: a budget with a misspelt name would be none. What says nothing may be missing.
fn ignored(at: &str, written: &Value, read: &Value) -> Option<String> {
    let nothing = |v: &Value| v.is_null() || *v == json!([]) || *v == json!({}) || *v == json!(false);
    match (written, read) {
        (Value::Object(written), read) => {
            let mut fields = written.iter().filter(|(_, v)| !nothing(v));
            fields.find_map(|(name, value)| match read.get(name) {
                Some(read) => ignored(&format!("{at}.{name}"), value, read),
                None => Some(format!("{at}.{name}")),
            })
        }
        (Value::Array(written), Value::Array(read)) => {
            let mut pairs = written.iter().zip(read).enumerate();
            pairs.find_map(|(n, (written, read))| ignored(&format!("{at}[{n}]"), written, read))
        }
        _ => None,
    }
}

fn compile(
    path: &Path,
    spec: &crate::api::PolicyPackageSpec,
    side: Side,
) -> Result<Arc<CompiledPackage>, CommandError> {
    CompiledPackage::compile(spec, &digest(spec), side).map_err(|refusals| {
        let all: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        CommandError::Usage(format!("{}: {}", path.display(), all.join("\nerror: ")))
    })
}
