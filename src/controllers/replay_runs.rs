//! Carries out runs of replays in the background, page by page, and answers a rollout that asks for one.
//!
//! Live checks come first: one thread of low priority, and after each page a pause as long as the page took. Where a run stands is in the
//! store, so that a restart or another leader goes on; two at once come to the same result, and what has finished stays.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::sync::{Notify, oneshot, watch};

use crate::api::{ReplaySelection, ReplayState, RolloutReplay};
use crate::fault;
use crate::lifecycle::evidence::{Progress, Question, ReplaySummary};
use crate::lifecycle::rollout::replayed_that_count;
use crate::policy::{CompiledPackage, Side, base_platform, sha256_text};
use crate::replay::{EffectiveSet, Recorded, Replay, Report, Tally, Task};
use crate::source::kubernetes::Objects;
use crate::source::past::PastPackages;
use crate::store::{OF_ROLLOUT, ReplayRun, Replays, RunSpec, RunStep, SUPERSEDED, StoreError};

/// Records of one page.
const PAGE: u32 = 1000;
/// For how long one run goes on before the next namespace has its turn.
const TURN: Duration = Duration::from_secs(5);
/// For how long the thread evaluates before it pauses, however large the packages are.
const SLICE: Duration = Duration::from_secs(1);
/// How often progress is kept.
const KEEP_EVERY: Duration = Duration::from_secs(2);
/// How often the runner looks for new runs by itself.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// When it tries again after the store failed.
const AGAIN: Duration = Duration::from_secs(5);
/// The longest pause after a page.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// For how long finished runs are kept.
const KEPT: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How often those that are older are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(3600);
/// Niceness of the thread that evaluates.
const NICE: i32 = 15;

/// How far back a rollout's replay looks where its spec says nothing, seconds.
const SINCE_SECONDS: i64 = 604_800;
/// Decisions that a rollout's verdict needs where its spec says nothing.
const MIN_DECISIONS: i64 = 20;
/// When a rollout that waits because too little could be replayed is replayed anew, over what was decided since.
const RENEW_SHORT: SignedDuration = SignedDuration::from_mins(10);
/// When any result is too old: what was decided since is not in it. A rollout then waits for a new one.
const RENEW: SignedDuration = SignedDuration::from_hours(24);
/// When a run that failed is tried again for a rollout.
const RETRY_FAILED: SignedDuration = SignedDuration::from_secs(30);

/// Why a run can't be carried out.
#[derive(Debug, thiserror::Error)]
enum RunError {
    /// Worth another try.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// It stays so.
    #[error("{0}")]
    Never(String),
    /// The process stops, or this process leads no more.
    #[error("stopped")]
    Stopped,
}

/// Whose turn it is: one namespace after the other, however many runs each has, and within a namespace one run after the other.
#[derive(Default)]
struct Turns {
    /// The namespace that was served last.
    tenant: String,
    /// The run of each that was served last.
    runs: HashMap<String, String>,
}

impl Turns {
    fn next(&mut self, open: Vec<ReplayRun>) -> Option<ReplayRun> {
        let mut tenants: BTreeMap<String, Vec<ReplayRun>> = BTreeMap::new();
        for run in open {
            tenants.entry(run.tenant_uid.clone()).or_default().push(run);
        }
        self.runs.retain(|tenant, _| tenants.contains_key(tenant));
        let after = (Bound::Excluded(self.tenant.clone()), Bound::Unbounded);
        let tenant = tenants.range(after).next().or_else(|| tenants.iter().next())?.0.clone();
        let mut runs = tenants.remove(&tenant)?;
        runs.sort_by(|a, b| a.id.cmp(&b.id));
        let served = self.runs.get(&tenant);
        let next = served.and_then(|served| runs.iter().position(|run| run.id > *served)).unwrap_or(0);
        let run = runs.swap_remove(next);
        self.runs.insert(tenant.clone(), run.id.clone());
        self.tenant = tenant;
        Some(run)
    }
}

/// Carries out runs.
pub struct ReplayRunner {
    store: Arc<dyn Replays>,
    past: Arc<dyn PastPackages>,
    /// What is there; None in a folder, that has no rollouts.
    objects: Option<Objects>,
    /// The operator's namespace.
    namespace: String,
    wake: Notify,
    /// One question is asked at a time, so that two polls don't make two runs.
    asking: tokio::sync::Mutex<()>,
}

impl ReplayRunner {
    /// Over these. It does nothing before [`ReplayRunner::run`].
    pub fn new(
        store: Arc<dyn Replays>,
        past: Arc<dyn PastPackages>,
        objects: Option<Objects>,
        namespace: String,
    ) -> Self {
        Self { store, past, objects, namespace, wake: Notify::new(), asking: tokio::sync::Mutex::default() }
    }

    /// The replay of a rollout's question: begun, under way, or done. Only a completed run of exactly this question counts.
    pub async fn answer(&self, question: &Question) -> Progress<ReplaySummary> {
        let rollout = self.objects.as_ref().and_then(|o| o.rollout_of(&question.tenant));
        let wanted = rollout.and_then(|r| r.0.as_ref().ok()?.spec.replay.clone()).unwrap_or_default();
        let _one = self.asking.lock().await;
        match self.poll(question, &wanted, Timestamp::now()).await {
            Ok(progress) => progress,
            Err(error) => Progress::Failed(format!("the store: {error}")),
        }
    }

    async fn poll(
        &self,
        question: &Question,
        wanted: &RolloutReplay,
        now: Timestamp,
    ) -> Result<Progress<ReplaySummary>, StoreError> {
        let (uid, key) = (question.tenant_uid.as_str(), key_of(question, wanted));
        let newest = self.store.newest_run(uid, &key, None).await?;
        let completed = self.store.newest_run(uid, &key, Some(ReplayState::Completed)).await?;
        let found = completed.and_then(|run| Some((run.finished?, result(&run, question)?)));
        // One that finished in the future (a clock was put back) is no younger.
        let found = found.filter(|(finished, _)| now.duration_since(*finished).abs() <= RENEW);
        let under_way = newest.as_ref().is_some_and(|run| !run.state.finished());
        if let Some((finished, summary)) = found {
            let needed = u64::try_from(wanted.min_decisions.unwrap_or(MIN_DECISIONS)).unwrap_or_default();
            let short = replayed_that_count(&summary, needed) < needed && now.duration_since(finished) > RENEW_SHORT;
            if short && !under_way {
                self.begin(question, wanted, key, now).await?;
            }
            return Ok(Progress::Done(summary));
        }
        match newest {
            Some(run) if under_way => Ok(Progress::Running { done: run.done, total: run.total }),
            Some(run)
                if run.state == ReplayState::Failed
                    && run.error.as_deref() != Some(SUPERSEDED)
                    && run.finished.is_some_and(|at| now.duration_since(at) < RETRY_FAILED) =>
            {
                Ok(Progress::Failed(run.error.unwrap_or_default()))
            }
            _ => {
                self.begin(question, wanted, key, now).await?;
                Ok(Progress::Running { done: 0, total: 0 })
            }
        }
    }

    async fn begin(
        &self,
        question: &Question,
        wanted: &RolloutReplay,
        key: String,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let back = SignedDuration::from_secs(wanted.since_seconds.unwrap_or(SINCE_SECONDS));
        let selection = ReplaySelection {
            since: now.checked_sub(back).ok().map(Time),
            until: Some(crate::replay::end_of_second(now)),
            limit: wanted.limit,
            ..ReplaySelection::default()
        };
        let spec = RunSpec {
            baseline: question.baseline.clone(),
            candidate: question.candidate.clone(),
            platform: question.platform.clone(),
            selection,
            invariants: wanted.invariants.clone(),
        };
        let id = uuid::Uuid::now_v7().to_string();
        // What the rollout asked before is nobody's question any more.
        self.store.supersede_runs(&question.tenant_uid, &key, now).await?;
        let run = ReplayRun::queued(id, &question.tenant, &question.tenant_uid, key, spec, now);
        if !self.store.add_run(&run).await? {
            tracing::debug!(tenant = question.tenant, "the replay of a rollout waits: too many are open");
        }
        self.wake.notify_one();
        Ok(())
    }

    /// Carries out runs until `stop` says so, or for ever.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let worker = match Worker::start() {
            Ok(worker) => worker,
            Err(error) => {
                tracing::error!(%error, "no replay can be carried out: its thread could not be started");
                return;
            }
        };
        let mut turns = Turns::default();
        let mut forgotten: Option<Instant> = None;
        while !*stop.borrow() {
            if forgotten.is_none_or(|at| at.elapsed() > FORGET_EVERY) {
                forgotten = Some(Instant::now());
                self.forget().await;
            }
            let wait = match self.next(&mut turns).await {
                Ok(Some(run)) => self.turn(&worker, &run, &stop).await,
                Ok(None) => Some(LOOK_EVERY),
                Err(error) => {
                    tracing::warn!(%error, "the runs of replays can't be read; it is tried again");
                    Some(AGAIN)
                }
            };
            let Some(wait) = wait else { continue };
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        }
    }

    async fn forget(&self) {
        let Ok(before) = Timestamp::now().checked_sub(KEPT) else { return };
        match self.store.forget_runs(before).await {
            Ok(0) => {}
            Ok(runs) => tracing::info!(runs, "replays that finished long ago are forgotten"),
            Err(error) => tracing::warn!(%error, "old replays could not be forgotten"),
        }
    }

    /// The next open run of the namespace whose turn it is.
    async fn next(&self, turns: &mut Turns) -> Result<Option<ReplayRun>, StoreError> {
        let mut open = self.store.open_runs().await?;
        // What is still to be recorded before a run's end must be there when it begins.
        let now = Timestamp::now();
        open.retain(|run| run.spec.selection.until.as_ref().is_none_or(|until| until.0 <= now));
        Ok(turns.next(open))
    }

    /// One turn of a run; how long to wait before the next.
    async fn turn(&self, worker: &Worker, run: &ReplayRun, stop: &watch::Receiver<bool>) -> Option<Duration> {
        match self.carry_on(worker, run, stop).await {
            Ok(()) => None,
            Err(RunError::Stopped) => Some(Duration::ZERO),
            Err(RunError::Store(error)) => {
                tracing::warn!(%error, run = run.id, "a replay could not go on; it is tried again");
                Some(AGAIN)
            }
            Err(RunError::Never(error)) => {
                tracing::warn!(%error, run = run.id, tenant = run.tenant, "a replay failed");
                let failed = RunStep::Failed { error, at: Timestamp::now() };
                match self.store.step_run(&run.id, &failed).await {
                    Ok(_) => None,
                    Err(error) => {
                        tracing::warn!(%error, run = run.id, "that a replay failed could not be kept");
                        Some(AGAIN)
                    }
                }
            }
        }
    }

    /// Replays pages until the run is done or its turn is over.
    async fn carry_on(&self, worker: &Worker, run: &ReplayRun, stop: &watch::Receiver<bool>) -> Result<(), RunError> {
        let task = self.task(run).await?;
        let replay = Arc::new(Replay::new(task).map_err(|e| RunError::Never(e.to_string()))?);
        let kept = run.checkpoint.as_deref().and_then(|text| serde_json::from_str::<Tally>(text).ok());
        let mut tally = kept.filter(|tally| replay.goes_on(tally)).unwrap_or_else(|| replay.begin());
        let selected = self.store.selected(&run.tenant, &run.spec.selection).await?;
        self.step(run, RunStep::Begun { total: selected.total, at: Timestamp::now() }).await?;
        let (cuts, mut after) = (selected.cuts, tally.last.clone().or(selected.after));
        let mut turn = OneTurn { begun: Instant::now(), kept: Instant::now() };
        loop {
            let rows = self.store.replay_page(&run.tenant, &run.spec.selection, &cuts, after.as_ref(), PAGE).await?;
            if rows.is_empty() {
                break;
            }
            let records: Arc<[Recorded]> = rows.into_iter().map(Recorded::from).collect();
            let mut looked_at = 0;
            while looked_at < records.len() {
                let (page, part, at) = (replay.clone(), records.clone(), Instant::now());
                let done = worker.run(move || {
                    let part = &part[looked_at..];
                    let looked_at = looked_at + page.some(&mut tally, part, &|| at.elapsed() >= SLICE);
                    (tally, looked_at)
                });
                (tally, looked_at) = done.await.ok_or_else(panicked)?;
                fault::point("replay.page_done");
                if self.pause(run, &tally, &mut turn, at, stop).await? {
                    return Ok(());
                }
            }
            after = tally.last.clone();
        }
        // What invariants say of the packages themselves, part by part as well.
        loop {
            let (made_up, at) = (replay.clone(), Instant::now());
            let done = worker.run(move || {
                let all = made_up.make_up(&mut tally, &|| at.elapsed() >= SLICE);
                (tally, all)
            });
            let all;
            (tally, all) = done.await.ok_or_else(panicked)?;
            if all {
                break;
            }
            if self.pause(run, &tally, &mut turn, at, stop).await? {
                return Ok(());
            }
        }
        let done = tally.done();
        let report = worker.run(move || replay.finish(&tally)).await;
        let mut report = report.ok_or_else(panicked)?;
        report.leave_out(cuts);
        let completed = RunStep::Completed {
            done,
            report: serde_json::to_string(&report).map_err(|e| RunError::Never(e.to_string()))?,
            input_fingerprint: report.input_fingerprint.clone(),
            result_fingerprint: report.result_fingerprint.clone(),
            at: Timestamp::now(),
        };
        self.step(run, completed).await?;
        tracing::info!(
            run = run.id,
            tenant = run.tenant,
            verdict = report.verdict.as_str(),
            replayed = report.counts.replayed,
            critical = report.counts.critical,
            "a replay is completed"
        );
        Ok(())
    }

    /// After a part that began at this instant: as long a pause, and where the run stands is kept. True where its turn is over.
    async fn pause(
        &self,
        run: &ReplayRun,
        tally: &Tally,
        turn: &mut OneTurn,
        at: Instant,
        stop: &watch::Receiver<bool>,
    ) -> Result<bool, RunError> {
        tokio::time::sleep(at.elapsed().min(LONGEST_PAUSE)).await;
        let stopped = *stop.borrow();
        let over = turn.begun.elapsed() > TURN || stopped;
        if over || turn.kept.elapsed() > KEEP_EVERY {
            turn.kept = Instant::now();
            let checkpoint = serde_json::to_string(tally).map_err(|e| RunError::Never(e.to_string()))?;
            self.step(run, RunStep::Progress { done: tally.done(), checkpoint }).await?;
        }
        if stopped { Err(RunError::Stopped) } else { Ok(over) }
    }

    /// Keeps a step. Where the run has finished meanwhile, somebody else has done it.
    async fn step(&self, run: &ReplayRun, step: RunStep) -> Result<(), RunError> {
        if !self.store.step_run(&run.id, &step).await? {
            tracing::debug!(run = run.id, "another process is farther with this replay");
        }
        Ok(())
    }

    async fn task(&self, run: &ReplayRun) -> Result<Task, RunError> {
        let spec = &run.spec;
        let mut platform = Vec::with_capacity(spec.platform.len());
        for digest in &spec.platform {
            platform.push(self.package(&self.namespace, digest, Side::Platform).await?);
        }
        let baseline = self.package(&run.tenant, &spec.baseline, Side::Tenant).await?;
        let candidate = self.package(&run.tenant, &spec.candidate, Side::Tenant).await?;
        Ok(Task {
            tenant: run.tenant.clone(),
            tenant_uid: Some(run.tenant_uid.clone()),
            baseline: EffectiveSet { platform: platform.clone(), package: baseline },
            candidate: EffectiveSet { platform, package: candidate },
            invariants: spec.invariants.clone(),
            selection: spec.selection.clone(),
        })
    }

    /// The package of exactly this digest.
    async fn package(&self, namespace: &str, digest: &str, side: Side) -> Result<Arc<CompiledPackage>, RunError> {
        if side == Side::Platform && base_platform().digest() == digest {
            return Ok(base_platform());
        }
        let found = self.past.find(namespace, digest, side).await;
        found.filter(|p| p.digest() == digest).ok_or_else(|| {
            let whose = if side == Side::Platform { "platform package" } else { "package" };
            RunError::Never(format!("{whose} {digest} is not there, or does not compile"))
        })
    }
}

/// Stands for the question and for what the rollout wants of its replay. The instants are not part of it.
fn key_of(question: &Question, wanted: &RolloutReplay) -> String {
    let text = serde_json_canonicalizer::to_string(&(question, wanted)).unwrap_or_default();
    format!("{OF_ROLLOUT}{}", sha256_text(text.as_bytes()))
}

/// The result of a completed run, if it is of exactly this question.
fn result(run: &ReplayRun, question: &Question) -> Option<ReplaySummary> {
    let report: Report = serde_json::from_str(run.report.as_deref()?).ok()?;
    let same = run.tenant_uid == question.tenant_uid
        && report.tenant == question.tenant
        && report.baseline.digest == question.baseline
        && report.candidate.digest == question.candidate
        && report.baseline.platform == question.platform
        && report.candidate.platform == question.platform;
    same.then(|| report.summary(&run.id))
}

fn panicked() -> RunError {
    RunError::Never("its evaluation panicked: see the log".to_owned())
}

/// One turn of a run.
struct OneTurn {
    begun: Instant,
    /// When it was kept last where the run stands.
    kept: Instant,
}

type Job = Box<dyn FnOnce() + Send>;

/// The one thread that evaluates.
struct Worker(mpsc::Sender<Job>);

impl Worker {
    fn start() -> std::io::Result<Self> {
        let (jobs, taken) = mpsc::channel::<Job>();
        std::thread::Builder::new().name("remit-replay".into()).stack_size(8 << 20).spawn(move || {
            // On Linux this is the calling thread alone. Where it may not, the pauses still leave half of a core.
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                tracing::debug!(%error, "the thread of replays keeps its priority");
            }
            while let Ok(job) = taken.recv() {
                job();
            }
        })?;
        Ok(Self(jobs))
    }

    /// Runs it there; None if it panicked.
    async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move || {
            if let Ok(done) = catch_unwind(AssertUnwindSafe(job)) {
                let _ = reply.send(done);
            }
        });
        self.0.send(job).ok()?;
        answer.await.ok()
    }
}

#[cfg(test)]
mod tests;
