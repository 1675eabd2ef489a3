//! A proof in a process of its own, `remit prove-worker`: with limits on time and memory, started without Remit's environment, and ended
//! with everything that it started. What goes wrong in it is `unknown`, with the reason, and touches nobody else.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::{Input, Limits, Proof};

/// Name of the hidden command.
pub const COMMAND: &str = "prove-worker";
/// What a worker is given, at most: two packages and the platform's, as JSON.
const MAX_INPUT: u64 = 256 * 1024 * 1024;
/// What it may answer.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;
/// Address space of the worker itself, besides as much as the solver has: its stack alone reserves 256 MiB.
const OWN_MEMORY: u64 = 768 << 20;
/// Niceness of the worker and, as its child, the solver: checks come first.
const NICE: i32 = 15;
/// How long a worker may take beyond the time for the proof: to compile, and to write down what it found.
const GRACE: Duration = Duration::from_secs(30);

/// What a worker is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Job {
    input: Input,
    solver: PathBuf,
    time_millis: u64,
    query_millis: u64,
    memory: u64,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Proof(Box<Proof>),
    /// One of the packages does not compile.
    Refused(String),
}

/// Where the worker's program and the solver are, and what a proof may cost.
#[derive(Clone, Debug)]
pub struct Prover {
    /// The `remit` program.
    pub program: PathBuf,
    /// The solver, as it was named; None: found by the environment.
    pub solver: Option<PathBuf>,
    /// Limits.
    pub limits: Limits,
}

impl Prover {
    /// This very program, the solver where it is found, and the usual limits.
    pub fn new(solver: Option<PathBuf>) -> std::io::Result<Self> {
        Ok(Self { program: std::env::current_exe()?, solver, limits: Limits::default() })
    }

    /// Proves. Whatever keeps it from that is in the answer, as the reason why nothing is known. Err: a package does not compile.
    pub async fn prove(&self, input: Input) -> Result<Proof, String> {
        let solver = match super::find(self.solver.as_deref()) {
            Ok(solver) => solver,
            Err(why) => return Ok(Proof::given_up(&input, why.to_string())),
        };
        let job = Job {
            input,
            solver,
            time_millis: millis(self.limits.time),
            query_millis: millis(self.limits.query),
            memory: self.limits.memory,
        };
        let answer = match serde_json::to_vec(&job) {
            Ok(text) => run(&self.program, text, self.limits.time + GRACE).await,
            Err(e) => Err(format!("the packages can't be handed on: {e}")),
        };
        match answer {
            Ok(Answer::Proof(proof)) => {
                // An answer to another question is none.
                let asked = Proof::unknown(&job.input, "the prover answered another question");
                let same = (&proof.baseline, &proof.candidate, &proof.platform)
                    == (&asked.baseline, &asked.candidate, &asked.platform);
                Ok(if same { *proof } else { asked })
            }
            Ok(Answer::Refused(why)) => Err(why),
            Err(why) => Ok(Proof::given_up(&job.input, why)),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn run(program: &Path, job: Vec<u8>, within: Duration) -> Result<Answer, String> {
    let mut child = Command::new(program)
        .arg(COMMAND)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| format!("the prover can't be started: {e}"))?;
    // Until it is waited for nobody else can have its id.
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let group = Group(group);
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("the prover can't be talked to".into());
    };
    let talk = async {
        let write = async {
            // A worker that is gone does not read; its end says why.
            let _ = input.write_all(&job).await;
            let _ = input.shutdown().await;
            drop(input);
        };
        let mut text = Vec::new();
        let mut limited = output.take(MAX_ANSWER);
        let (_, read) = tokio::join!(write, limited.read_to_end(&mut text));
        read.map_err(|e| format!("the prover's answer can't be read: {e}"))?;
        Ok::<_, String>(text)
    };
    let text = match tokio::time::timeout(within, talk).await {
        Ok(text) => text?,
        Err(_) => Vec::new(),
    };
    // A worker with an answer has ended its solver and ends by itself. One without is killed, and the solver with it.
    if text.is_empty() {
        drop(group);
    } else {
        std::mem::forget(group);
    }
    let status = match tokio::time::timeout(GRACE, child.wait()).await {
        Ok(status) => status,
        Err(_) => child.kill().await.map(|()| std::process::ExitStatus::default()),
    }
    .map_err(|e| format!("the prover's end is not known: {e}"))?;
    match serde_json::from_slice(&text) {
        Ok(answer) => Ok(answer),
        Err(_) if status.success() => Err("the prover's answer is no answer".into()),
        Err(_) => Err(format!("the prover ended before it had an answer ({status}), for lack of time or memory")),
    }
}

/// The worker's processes: dropped with the question, they end. Emptied before the worker is waited for to its end: afterwards its id may
/// be another's.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may be gone already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// The worker itself: reads a job from standard input, writes the answer to standard output.
pub fn work() -> Result<(), String> {
    let mut text = Vec::new();
    std::io::stdin().lock().take(MAX_INPUT).read_to_end(&mut text).map_err(|e| e.to_string())?;
    let job: Job = serde_json::from_slice(&text).map_err(|e| format!("standard input: {e}"))?;
    drop(text);
    // Before any thread or child: they have it from here. Where it may not, the limits still hold.
    let _ = rustix::process::setpriority_process(None, NICE);
    limit(job.memory.saturating_add(OWN_MEMORY), job.time_millis / 1000)?;
    let limits = Limits {
        time: Duration::from_millis(job.time_millis),
        query: Duration::from_millis(job.query_millis),
        memory: job.memory,
    };
    let answer = match super::prove(&job.input, job.solver, limits) {
        Ok(proof) => Answer::Proof(Box::new(proof)),
        Err(why) => Answer::Refused(why),
    };
    let text = serde_json::to_vec(&answer).map_err(|e| e.to_string())?;
    std::io::Write::write_all(&mut std::io::stdout().lock(), &text).map_err(|e| e.to_string())
}

/// What this process, and with it the solver, may use.
fn limit(memory: u64, seconds: u64) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let processor = seconds.saturating_add(GRACE.as_secs());
    for (resource, most) in [(Resource::As, memory), (Resource::Cpu, processor), (Resource::Core, 0)] {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).map_err(|e| format!("limits: {e}"))?;
    }
    Ok(())
}
