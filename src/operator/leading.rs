//! What only the leader does: every controller, and the work in the background that belongs to nobody else.
//!
//! Starts once the caches are synced and the lease is held; ends with the lease. A crash at any point leaves what the next leader
//! can go on from.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::election::Election;
use super::feed::Relay;
use crate::controllers::leadership::{Ended, lead};
use crate::controllers::{self, Context};
use crate::server::retain;

/// What is needed to lead.
pub struct Leading {
    pub ctx: Arc<Context>,
    pub changes: Arc<Relay>,
    /// Time for the passes under way when the lease is lost.
    pub grace: Duration,
}

/// The election and the work of the leader, as they run.
pub struct Reconciling {
    work: JoinHandle<Result<(), Ended>>,
    election: JoinHandle<()>,
    stop: watch::Sender<bool>,
    release: watch::Sender<bool>,
}

impl Leading {
    /// Stands for election as soon as `ready` says so, and leads whenever the lease is held.
    pub fn start(self, election: Election, mut ready: watch::Receiver<bool>) -> Reconciling {
        let ((stop, stopped), (release, mut released)) = (watch::channel(false), watch::channel(false));
        let leadership = self.ctx.leadership.clone();
        let grace = self.grace;
        let work = tokio::spawn(async move { lead(&leadership, stopped, grace, |ended| self.begin(ended)).await });
        let election = tokio::spawn(async move {
            // Who has seen nothing yet must not lead: it would act on an empty cluster.
            tokio::select! {
                synced = ready.wait_for(|ready| *ready) => if synced.is_err() { return },
                _ = released.wait_for(|released| *released) => return,
            }
            election.run(released).await;
        });
        Reconciling { work, election, stop, release }
    }

    /// Begins a term; its tasks end when `ended` says so.
    fn begin(&self, ended: watch::Receiver<bool>) -> JoinSet<()> {
        let mut tasks = controllers::start(self.ctx.clone(), self.changes.begin(), ended.clone());
        tasks.spawn(self.ctx.runner.clone().run(ended.clone()));
        let (store, snapshot) = (self.ctx.store.clone(), self.ctx.snapshot.clone());
        tasks.spawn(retain(store, snapshot, self.ctx.namespace.clone(), ended));
        tasks
    }
}

impl Reconciling {
    /// A task ended that should run for as long as this replica leads, or the election did.
    pub async fn ended(&mut self) {
        tokio::select! {
            _ = &mut self.work => {}
            _ = &mut self.election => {}
        }
    }

    /// Lets the passes under way finish, within `time`, and then gives the lease up: never the other way round.
    pub async fn stop(mut self, time: Duration) {
        let _ = self.stop.send(true);
        if !self.work.is_finished() && tokio::time::timeout(time, &mut self.work).await.is_err() {
            tracing::warn!("a reconcile pass was still under way");
            self.work.abort();
        }
        let _ = self.release.send(true);
        if !self.election.is_finished() {
            let _ = self.election.await;
        }
    }
}
