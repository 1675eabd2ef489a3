//! The solver: cvc5 as a child process, with limits on time and memory.
//!
//! It gets generated SMT text and nothing else: no shell, no file, none of Remit's environment. What it does not answer in time, or
//! dies of, is unknown; it is killed then, and waited for.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use cedar_policy_symcc::solver::{Decision, DecisionWithModel, Solver, SolverError};
use cedar_policy_symcc::{CedarSymCompiler, CompiledPolicy, CompiledPolicySet, Env, SmtLibScript as _};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, BufWriter};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Name of the program, as Debian's package `cvc5` installs it.
pub const PROGRAM: &str = "cvc5";
/// Environment variable that names it.
pub const VARIABLE: &str = "REMIT_CVC5";
/// The longest answer that is read.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;

/// Why there is no solver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSolver {
    /// Named, and not there.
    #[error("the solver {0} is not there or can't be run")]
    Named(String),
    /// Not found.
    #[error(
        "the solver `{PROGRAM}` is not installed (Debian: package cvc5); --solver or {VARIABLE} names another place"
    )]
    Missing,
}

/// Finds the solver: as named, by the environment, on the PATH.
pub fn find(named: Option<&Path>) -> Result<PathBuf, NoSolver> {
    let variable = std::env::var_os(VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = named.map(Path::to_path_buf).or(variable) {
        return if is_program(&path) { Ok(path) } else { Err(NoSolver::Named(path.display().to_string())) };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(PROGRAM)).find(|p| is_program(p)).ok_or(NoSolver::Missing)
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// What a proof may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// All of it.
    pub time: Duration,
    /// One question to the solver.
    pub query: Duration,
    /// Address space of the solver, bytes.
    pub memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: Duration::from_secs(60), query: Duration::from_secs(20), memory: 2 << 30 }
    }
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoAnswer {
    /// All the time is used up.
    #[error("the time for the proof is used up")]
    OutOfTime,
    /// One question took too long.
    #[error("the solver did not answer within {} s", .0.as_secs())]
    Slow(Duration),
    /// It says so itself.
    #[error("the solver can't tell")]
    CantTell,
    /// It is gone.
    #[error("the solver ended: {0}")]
    Ended(String),
    /// The policies can't be put to it.
    #[error("the policies can't be put to the solver: {0}")]
    NotPut(String),
}

/// A running solver.
#[derive(Debug)]
pub(super) struct Cvc5 {
    child: Child,
    input: BufWriter<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Cvc5 {
    fn start(program: &Path, limits: &Limits) -> std::io::Result<Self> {
        let mut child = Command::new(program)
            // `like` needs the whole theory of strings.
            .args(["--lang", "smt", "--strings-exp"])
            .arg(format!("--tlimit-per={}", limits.query.as_millis()))
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        };
        #[cfg(target_os = "linux")]
        if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw) {
            use rustix::process::{Resource, Rlimit, prlimit};
            let limit = Rlimit { current: Some(limits.memory), maximum: Some(limits.memory) };
            prlimit(Some(pid), Resource::As, limit)?;
        }
        Ok(Self { child, input: BufWriter::new(input), output: BufReader::new(output) })
    }

    async fn line(&mut self, into: &mut String) -> Result<usize, SolverError> {
        let left = MAX_ANSWER.saturating_sub(into.len() as u64);
        let length = (&mut self.output).take(left).read_line(into).await?;
        if length == 0 {
            return Err(SolverError::Solver(self.obituary().await));
        }
        Ok(length)
    }

    /// How it ended, as far as that is known.
    async fn obituary(&mut self) -> String {
        match tokio::time::timeout(Duration::from_millis(500), self.child.wait()).await {
            Ok(Ok(status)) => status.to_string(),
            _ => "it closed its output".to_owned(),
        }
    }
}

impl Solver for Cvc5 {
    fn smtlib_input(&mut self) -> &mut (dyn tokio::io::AsyncWrite + Unpin + Send) {
        &mut self.input
    }

    async fn enable_models(&mut self) -> Result<(), SolverError> {
        self.smtlib_input().set_option("produce-models", "true").await.map_err(Into::into)
    }

    async fn check_sat(&mut self) -> Result<Decision, SolverError> {
        self.smtlib_input().check_sat().await?;
        self.input.flush().await?;
        let mut answer = String::new();
        self.line(&mut answer).await?;
        match answer.trim() {
            "sat" => Ok(Decision::Sat),
            "unsat" => Ok(Decision::Unsat),
            "unknown" => Ok(Decision::Unknown),
            other => Err(SolverError::UnrecognizedSolverOutput(other.chars().take(200).collect())),
        }
    }

    async fn check_sat_with_model(&mut self) -> Result<DecisionWithModel, SolverError> {
        match self.check_sat().await? {
            Decision::Unsat => return Ok(DecisionWithModel::Unsat),
            Decision::Unknown => return Ok(DecisionWithModel::Unknown),
            Decision::Sat => {}
        }
        self.smtlib_input().get_model().await?;
        self.input.flush().await?;
        let mut model = String::new();
        self.line(&mut model).await?;
        if model.trim() != "(" {
            return Err(SolverError::UnrecognizedSolverOutput(model.chars().take(200).collect()));
        }
        loop {
            let start = model.len();
            self.line(&mut model).await?;
            if model.get(start..).is_some_and(|line| line.trim() == ")") {
                return Ok(DecisionWithModel::Sat { model });
            }
        }
    }
}

/// A question to the solver.
pub(super) enum Ask<'a> {
    /// Whether everything that the first set allows is allowed by the second; Some: a call where it is not.
    Implies(&'a CompiledPolicySet, &'a CompiledPolicySet),
    /// Whether the policy never errs; Some: a call where it does.
    NeverErrs(&'a CompiledPolicy),
}

/// A solver that is started when it is needed and again when it had to be killed, and the time that it has taken.
pub(super) struct Session {
    program: PathBuf,
    limits: Limits,
    deadline: Instant,
    running: Option<CedarSymCompiler<Cvc5>>,
    pub spent: Duration,
    pub queries: u64,
    /// Whether a question has no answer because it had to end: with more time or memory it might have one.
    pub gave_up: bool,
}

impl Session {
    pub fn new(program: PathBuf, limits: Limits) -> Self {
        let deadline = Instant::now() + limits.time;
        Self { program, limits, deadline, running: None, spent: Duration::ZERO, queries: 0, gave_up: false }
    }

    /// Whether more than half of the time is left.
    pub fn is_early(&self) -> bool {
        self.deadline.saturating_duration_since(Instant::now()) * 2 > self.limits.time
    }

    /// Asks. Ok(None): proved.
    pub async fn ask(&mut self, ask: Ask<'_>) -> Result<Option<Env>, NoAnswer> {
        let answer = self.put(ask).await;
        self.gave_up |= matches!(&answer, Err(why) if !matches!(why, NoAnswer::NotPut(_)));
        answer
    }

    async fn put(&mut self, ask: Ask<'_>) -> Result<Option<Env>, NoAnswer> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(NoAnswer::OutOfTime);
        }
        let started = Instant::now();
        let mut solver = match self.running.take() {
            Some(running) => running,
            None => Cvc5::start(&self.program, &self.limits)
                .map_err(|e| NoAnswer::Ended(e.to_string()))
                .and_then(|s| CedarSymCompiler::new(s).map_err(|e| NoAnswer::Ended(e.to_string())))?,
        };
        self.queries += 1;
        let question = async {
            match ask {
                Ask::Implies(a, b) => solver.check_implies_with_counterexample_opt(a, b).await,
                Ask::NeverErrs(policy) => solver.check_never_errors_with_counterexample_opt(policy).await,
            }
        };
        let within = left.min(self.limits.query);
        let answer = tokio::time::timeout(within, question).await;
        self.spent += started.elapsed();
        let answer = match answer {
            Ok(answer) => answer.map_err(no_answer),
            Err(_) if left < self.limits.query => Err(NoAnswer::OutOfTime),
            Err(_) => Err(NoAnswer::Slow(self.limits.query)),
        };
        match answer {
            Ok(found) => {
                self.running = Some(solver);
                Ok(found)
            }
            // What it may still say would be an answer to this question.
            Err(error) => {
                end(solver).await;
                Err(error)
            }
        }
    }

    /// Ends the solver.
    pub async fn close(&mut self) {
        if let Some(running) = self.running.take() {
            end(running).await;
        }
    }
}

/// Ends it, and waits: nothing is left behind.
async fn end(mut compiler: CedarSymCompiler<Cvc5>) {
    let _ = compiler.solver_mut().child.kill().await;
}

fn no_answer(error: cedar_policy_symcc::err::Error) -> NoAnswer {
    use cedar_policy_symcc::err::Error;
    match error {
        Error::SolverUnknown => NoAnswer::CantTell,
        Error::SolverError(SolverError::Io(e)) => NoAnswer::Ended(e.to_string()),
        Error::SolverError(SolverError::Solver(text)) => NoAnswer::Ended(text),
        // An interrupted solver says so in words of its own.
        Error::SolverError(e) => NoAnswer::Ended(e.to_string()),
        other => NoAnswer::NotPut(other.to_string()),
    }
}
