//! `remit diff`: tests, proof and replay of a candidate in one comment for a pull request.

mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};

use self::report::{Budgets, Diff, ProofWanted, Tests};
use super::output::{CommandError, FAIL, PASS, finish, print, print_json};
use super::prove::{ProofArgs, one_package};
use super::suggest::from_file;
use super::test::examine;
use crate::policy::{CompiledPackage, Side, base_platform, digest};
use crate::replay::{EffectiveSet, Recorded, Report};

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
    /// Replayed decisions that may differ critically, 0 to 1000000.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    critical_drift: u64,
    /// Replayed decisions that may differ with severity high; expansions and restrictions apart, 0 to 1000000.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    high_drift: u64,
    /// Decisions that must have been replayed, 1 to 1000000; with fewer the replay is inconclusive.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    min_decisions: u64,
    /// What the proof must say.
    #[arg(long = "proof", value_enum, default_value_t)]
    wanted: Wanted,
    /// Restrictions are meant: they count in no budget.
    #[arg(long)]
    acknowledge_restrictions: bool,
    /// What is inconclusive is a failure, too.
    #[arg(long)]
    require: bool,
    /// A comment, or JSON.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What the proof must say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Wanted {
    /// It is shown, and holds nothing.
    #[default]
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
    let invariants = args.proof.invariants()?;
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
    let budgets = Budgets {
        critical: args.critical_drift,
        high: args.high_drift,
        min_decisions: args.min_decisions,
        acknowledged: args.acknowledge_restrictions,
        require: args.require,
        proof: match args.wanted {
            Wanted::NotRequired => ProofWanted::NotRequired,
            Wanted::Required => ProofWanted::Required,
            Wanted::NoExpansion => ProofWanted::NoExpansion,
        },
    };
    let diff = Diff::new(Tests::of(&tests), proof, replay, &budgets);
    match args.format {
        Format::Markdown => print(&diff.markdown()),
        Format::Json => print_json(&diff)?,
    }
    Ok(if diff.passed { PASS } else { FAIL })
}

fn compile(
    path: &std::path::Path,
    spec: &crate::api::PolicyPackageSpec,
    side: Side,
) -> Result<Arc<CompiledPackage>, CommandError> {
    CompiledPackage::compile(spec, &digest(spec), side).map_err(|refusals| {
        let all: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        CommandError::Usage(format!("{}: {}", path.display(), all.join("\nerror: ")))
    })
}
