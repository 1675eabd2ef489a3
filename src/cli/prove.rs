//! `remit prove`: what a candidate newly lets through, over all calls; and the worker that proves.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::output::{CommandError, FAIL, Format, PASS, finish, print, print_json};
use super::terminal::printable;
use crate::api::{Invariant, PolicyPackageSpec};
use crate::proof::worker::{Prover, work};
use crate::proof::{Holding, Input, Limits, Proof};
use crate::source::folder::{Packages, read, read_small};

/// Proves what a candidate newly lets through, over all calls that could be made.
#[derive(Debug, Args)]
pub struct Prove {
    /// The package in force: a folder, or a file with one PolicyPackage object.
    #[arg(long, value_name = "DIR|FILE")]
    baseline: PathBuf,
    /// The candidate.
    #[arg(long, value_name = "DIR|FILE")]
    candidate: PathBuf,
    #[command(flatten)]
    proof: ProofArgs,
    /// Unknown is a failure, too.
    #[arg(long)]
    require: bool,
    /// Lines for people, or JSON.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// How it is proved.
#[derive(Debug, Args)]
pub struct ProofArgs {
    /// Namespace: the platform's policies name agents and teams by it.
    #[arg(long, value_name = "NAMESPACE", default_value = "default")]
    pub tenant: String,
    /// A package of the platform beside Remit's own. May be given more than once.
    #[arg(long, value_name = "DIR|FILE")]
    pub platform: Vec<PathBuf>,
    /// What must hold of the candidate: the name of one of Remit's own invariants, a file with a list of invariants (YAML or JSON), or
    /// one in JSON. May be given more than once.
    #[arg(long, value_name = "NAME|FILE|JSON")]
    pub invariant: Vec<String>,
    /// The solver cvc5 [default: $REMIT_CVC5, or `cvc5` on the PATH].
    #[arg(long, value_name = "PROGRAM")]
    pub solver: Option<PathBuf>,
    /// Time for the whole proof, seconds, 1 to 3600.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
    /// Memory of the solver, MiB, 64 to 65536.
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(64..=65536))]
    pub memory: u64,
}

/// The invariants of `--invariant`, all of which mean something.
pub fn declared(invariants: &[String]) -> Result<Vec<Invariant>, CommandError> {
    let mut all = Vec::new();
    for named in invariants {
        let text = named.trim_start();
        let usage = |e: String| CommandError::Usage(format!("--invariant {named}: {e}"));
        if text.starts_with('{') {
            all.push(serde_json::from_str(text).map_err(|e| usage(e.to_string()))?);
        } else if Path::new(named).is_file() {
            let text = read_small(Path::new(named))?;
            let listed: Vec<Invariant> = serde_saphyr::from_str(&text).map_err(|e| usage(e.to_string()))?;
            all.extend(listed);
        } else {
            all.push(Invariant::named(named.as_str()));
        }
    }
    for invariant in &all {
        invariant.meaning().map_err(|e| CommandError::Usage(e.to_string()))?;
    }
    Ok(all)
}

impl ProofArgs {
    /// The invariants, all of which mean something.
    pub fn invariants(&self) -> Result<Vec<Invariant>, CommandError> {
        declared(&self.invariant)
    }

    /// Proves, in a process of its own.
    pub async fn prove(
        &self,
        baseline: &PolicyPackageSpec,
        candidate: &PolicyPackageSpec,
        invariants: Vec<Invariant>,
    ) -> Result<Proof, CommandError> {
        let input = Input {
            tenant: self.tenant.clone(),
            baseline: baseline.clone(),
            candidate: candidate.clone(),
            platform: self.platform.iter().map(|p| one_package(p)).collect::<Result<_, _>>()?,
            invariants,
        };
        let mut prover = Prover::new(self.solver.clone())
            .map_err(|e| CommandError::Usage(format!("this program does not know where it is: {e}")))?;
        let time = Duration::from_secs(self.timeout);
        prover.limits = Limits { time, query: time.min(Limits::default().query), memory: self.memory << 20 };
        prover.prove(input).await.map_err(CommandError::Usage)
    }
}

/// The one package of a folder or file.
pub fn one_package(path: &Path) -> Result<PolicyPackageSpec, CommandError> {
    let mut specs: Vec<PolicyPackageSpec> = match read(path)? {
        Packages::Folder(spec) => vec![*spec],
        Packages::Objects(objects) => objects.into_iter().map(|o| o.spec).collect(),
    };
    match (specs.pop(), specs.is_empty()) {
        (Some(spec), true) => Ok(spec),
        _ => Err(CommandError::Usage(format!("{}: one package is wanted here", path.display()))),
    }
}

/// Runs the command.
pub async fn run(args: Prove) -> ExitCode {
    finish(proved(&args).await)
}

async fn proved(args: &Prove) -> Result<u8, CommandError> {
    let (baseline, candidate) = (one_package(&args.baseline)?, one_package(&args.candidate)?);
    let invariants = args.proof.invariants()?;
    let proof = args.proof.prove(&baseline, &candidate, invariants).await?;
    let failed = fails(&proof, args.require);
    match args.output {
        Format::Json => {
            print_json(&serde_json::json!({"passed": !failed, "proof": proof}))?;
        }
        Format::Text => print(&lines(&proof)),
    }
    Ok(if failed { FAIL } else { PASS })
}

/// Whether a proof fails: somebody may do more, or an invariant does not hold; with `require`, whatever is not proved.
fn fails(proof: &Proof, require: bool) -> bool {
    proof.expands()
        || proof.invariants.iter().any(|i| i.holding == Holding::Fails)
        || require && (proof.is_unknown() || proof.invariants.iter().any(|i| i.holding == Holding::Unknown))
}

fn lines(proof: &Proof) -> String {
    let mut text = format!("alone: {}\nwith approval: {}\n", proof.alone.as_str(), proof.with_approval.as_str());
    let mut list = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            text.push_str(&format!("{title}:\n"));
            lines.iter().for_each(|line| text.push_str(&format!("  {}\n", printable(line))));
        }
    };
    let examples = |expands: bool| {
        proof.counter_examples.iter().filter(|c| c.expands == expands).map(|c| c.sentence.clone()).collect::<Vec<_>>()
    };
    list("newly let through", examples(true));
    list("no more let through", examples(false));
    list(
        "invariants",
        proof
            .invariants
            .iter()
            .map(|i| {
                let holding = match i.holding {
                    Holding::Holds => "holds",
                    Holding::Fails => "FAILS",
                    Holding::Unknown => "is not proved",
                };
                let why = i.because.as_ref().map(|w| format!(": {w}")).unwrap_or_default();
                format!("{} {holding}{why}", i.name)
            })
            .collect(),
    );
    list("unknown because", proof.unknown_because.clone());
    list("policies that can err", proof.can_err.iter().map(|c| format!("{} in {}", c.policy, c.environment)).collect());
    list("policies that can never apply", proof.never_apply.clone());
    list("not part of the proof", proof.notes.clone());
    text.push_str(&format!("{} questions, {} ms in the solver\n", proof.queries, proof.solver_millis));
    text
}

/// Runs the worker.
pub fn worker() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => finish(Err(CommandError::Usage(error))),
    }
}
