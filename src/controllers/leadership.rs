//! Who reconciles: a handle that says whether this replica leads, and what runs only while it does.
//!
//! The election itself is the operator's. Nothing here may outlive the loss of the lease by more than the grace that the
//! election's terms leave.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

/// Says whether this replica leads. Cheap to clone and to ask.
#[derive(Clone, Debug)]
pub struct Leadership {
    term: Arc<Term>,
    leads: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Term {
    base: Instant,
    /// Milliseconds after `base` until which this replica leads; 0: it does not; the maximum: for ever.
    until: AtomicU64,
}

/// Tells the handles of a gain and a loss. The election has it.
#[derive(Debug)]
pub struct Office {
    term: Arc<Term>,
    leads: watch::Sender<bool>,
}

/// The two ends. Nobody leads yet.
pub fn leadership() -> (Office, Leadership) {
    let term = Arc::new(Term { base: Instant::now(), until: AtomicU64::new(0) });
    let (sender, leads) = watch::channel(false);
    (Office { term: term.clone(), leads: sender }, Leadership { term, leads })
}

impl Office {
    /// This replica leads until then, if nothing else is said before.
    pub fn hold(&self, until: Instant) {
        let millis = u64::try_from(until.saturating_duration_since(self.term.base).as_millis()).unwrap_or(u64::MAX - 1);
        self.term.until.store(millis, Ordering::Release);
        self.leads.send_if_modified(|leads| !std::mem::replace(leads, true));
    }

    /// This replica does not lead.
    pub fn lose(&self) {
        self.term.until.store(0, Ordering::Release);
        self.leads.send_if_modified(|leads| std::mem::replace(leads, false));
    }
}

impl Leadership {
    /// One that leads for ever, where there is nobody else.
    pub fn alone() -> Self {
        let term = Arc::new(Term { base: Instant::now(), until: AtomicU64::new(u64::MAX) });
        Self { term, leads: watch::channel(true).1 }
    }

    /// Whether this replica leads at this very moment. By the local monotonic clock: a process that was stopped for longer than its
    /// lease says no as soon as it runs again, before anybody has told it. Ask before each write that only the leader may make.
    pub fn holds(&self) -> bool {
        match self.term.until.load(Ordering::Acquire) {
            0 => false,
            u64::MAX => true,
            until => self.term.base.elapsed() < Duration::from_millis(until),
        }
    }

    /// Goes on with `work` only while this replica leads: asked before every step of it, also right after a pause of the process.
    /// None: it no longer does, and the work was dropped where it stood, as by a crash.
    pub async fn guard<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        let mut leads = self.watch();
        let mut lost = std::pin::pin!(async {
            if leads.wait_for(|leads| !*leads).await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        std::future::poll_fn(|cx| {
            if !self.holds() || lost.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            work.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Told of each gain and loss.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.leads.clone()
    }
}

/// Runs what only the leader may: `start` is called at each gain, with what turns true at the loss or at `stop`. Its tasks then have
/// `grace` to end by themselves. Returns after `stop`, when all have ended; Err: a task ended by itself, which none should.
pub async fn lead(
    leadership: &Leadership,
    mut stop: watch::Receiver<bool>,
    grace: Duration,
    mut start: impl FnMut(watch::Receiver<bool>) -> JoinSet<()>,
) -> Result<(), Ended> {
    let mut leads = leadership.watch();
    loop {
        let stopped = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => true,
            gained = leads.wait_for(|leads| *leads) => gained.is_err(),
        };
        if stopped {
            return Ok(());
        }
        let (end, ended) = watch::channel(false);
        let mut tasks = start(ended);
        let stopped = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => true,
            _ = leads.wait_for(|leads| !*leads) => false,
            Some(_) = tasks.join_next() => return Err(Ended),
        };
        let _ = end.send(true);
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, all).await.is_err() {
            tracing::warn!("work of the leader was still under way and is given up");
            tasks.shutdown().await;
        }
        if stopped {
            return Ok(());
        }
    }
}

/// A task ended that should run for as long as this replica leads.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    #[test]
    fn holds_until_the_instant_without_being_told() {
        let (office, leadership) = leadership();
        assert!(!leadership.holds());
        office.hold(far());
        assert!(leadership.holds() && *leadership.watch().borrow());
        // As after a pause of the process: nobody has run to tell, and the time is over.
        office.hold(Instant::now());
        assert!(!leadership.holds() && *leadership.watch().borrow());
        office.lose();
        assert!(!leadership.holds() && !*leadership.watch().borrow());
        assert!(Leadership::alone().holds());
    }

    #[tokio::test]
    async fn work_of_the_leader_starts_at_a_gain_and_ends_at_a_loss() {
        let (office, leadership) = leadership();
        let (stop, stopped) = watch::channel(false);
        let running = Arc::new(AtomicUsize::new(0));
        let starts = Arc::new(AtomicUsize::new(0));
        let (count, started) = (running.clone(), starts.clone());
        let start = move |mut ended: watch::Receiver<bool>| {
            started.fetch_add(1, Ordering::SeqCst);
            let mut tasks = JoinSet::new();
            let count = count.clone();
            tasks.spawn(async move {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = ended.wait_for(|e| *e).await;
                count.fetch_sub(1, Ordering::SeqCst);
            });
            // One that does not listen is given up.
            tasks.spawn(std::future::pending());
            tasks
        };
        let handle = leadership.clone();
        let all = tokio::spawn(async move { lead(&handle, stopped, Duration::from_millis(20), start).await });
        let reach = async |want: (usize, usize)| {
            while (starts.load(Ordering::SeqCst), running.load(Ordering::SeqCst)) != want {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::sleep(Duration::from_millis(5)).await;
        reach((0, 0)).await;
        office.hold(far());
        reach((1, 1)).await;
        // Renewed: nothing starts anew.
        office.hold(far());
        tokio::time::sleep(Duration::from_millis(5)).await;
        reach((1, 1)).await;
        office.lose();
        reach((1, 0)).await;
        office.hold(far());
        reach((2, 1)).await;
        stop.send(true).unwrap();
        assert_eq!(all.await.unwrap(), Ok(()));
        assert_eq!(running.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn guarded_work_takes_no_step_after_the_lease_is_over() {
        let (office, leadership) = leadership();
        assert_eq!(leadership.guard(async { 1 }).await, None);
        office.hold(far());
        assert_eq!(leadership.guard(async { 1 }).await, Some(1));
        let steps = AtomicUsize::new(0);
        let work = async {
            steps.fetch_add(1, Ordering::SeqCst);
            // The process was paused here: the time is over, and nobody has told.
            office.hold(Instant::now());
            tokio::task::yield_now().await;
            steps.fetch_add(1, Ordering::SeqCst);
        };
        assert_eq!(leadership.guard(work).await, None);
        assert_eq!(steps.load(Ordering::SeqCst), 1);
        office.hold(far());
        let (handle, waits) = (leadership.clone(), tokio::task::yield_now());
        let hanging = tokio::spawn(async move { handle.guard(std::future::pending::<()>()).await });
        waits.await;
        office.lose();
        assert_eq!(hanging.await.unwrap(), None);
    }

    #[test]
    fn one_that_is_alone_works_without_anybody_who_tells() {
        let leadership = Leadership::alone();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let work = async {
            tokio::task::yield_now().await;
            1
        };
        assert_eq!(runtime.block_on(leadership.guard(work)), Some(1));
    }

    #[tokio::test]
    async fn a_task_that_ends_by_itself_is_news() {
        let (office, leadership) = leadership();
        let (_stop, stopped) = watch::channel(false);
        office.hold(far());
        let start = |_| {
            let mut tasks = JoinSet::new();
            tasks.spawn(async {});
            tasks
        };
        assert_eq!(lead(&leadership, stopped, Duration::ZERO, start).await, Err(Ended));
    }
}
