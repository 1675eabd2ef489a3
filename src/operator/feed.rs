//! The watches, the index over them, and the way of each change to whoever reconciles.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::options::Options;
use crate::gate::Snapshot;
use crate::server::Freshness;
use crate::source::compile::Compiler;
use crate::source::index::{Faults, Index, Sources};
use crate::source::kubernetes::{self, Change, Objects, Pulse, Watching};

/// The watches and the index over them.
pub struct Feed {
    pub objects: Objects,
    pub changes: Arc<Relay>,
    pub ready: watch::Receiver<bool>,
    pub index: JoinHandle<()>,
    pub pulse: Arc<Pulse>,
}

/// What the snapshot is made from, and where it goes.
pub struct Into<'a> {
    pub compiler: &'a Arc<Compiler>,
    pub snapshot: &'a Arc<ArcSwap<Snapshot>>,
    pub faults: &'a Arc<Faults>,
    pub freshness: &'a Arc<Freshness>,
    /// Key by which sessions are shared out between packages.
    pub arms_key: [u8; 32],
}

impl Feed {
    pub fn start(args: &Options, watching: &Watching, installation: &str, into: Into<'_>) -> Self {
        let (to_index, for_index) = mpsc::unbounded_channel();
        let (to_controllers, changes) = mpsc::unbounded_channel();
        let pulse = {
            let freshness = into.freshness.clone();
            Arc::new(Pulse::new(move || freshness.alive(Instant::now())))
        };
        // The index first: a reconciler that reads what it says should find it said.
        let all = Arc::new(vec![to_index, to_controllers.clone()]);
        let objects = kubernetes::watch(watching, &args.namespace, &pulse, &all);
        let sources = Sources {
            objects: objects.clone(),
            compiler: into.compiler.clone(),
            namespace: args.namespace.clone(),
            installation: installation.to_owned(),
            declared: args.platform_package.clone(),
            arms_key: into.arms_key,
        };
        let (ready, readiness) = watch::channel(false);
        let (snapshot, faults) = (into.snapshot.clone(), into.faults.clone());
        let index = Index::new(sources, snapshot, faults, vec![to_controllers], pulse.clone(), ready);
        let relay = Arc::new(Relay::default());
        tokio::spawn(relay.clone().run(changes));
        Self { objects, changes: relay, ready: readiness, index: tokio::spawn(index.run(for_index)), pulse }
    }
}

/// Hands changes on to whoever reconciles now. While nobody does they are let go: who begins is told to look at everything.
#[derive(Default)]
pub struct Relay(Mutex<Option<mpsc::UnboundedSender<Change>>>);

impl Relay {
    /// From now on changes come here, and first of all: everything. Whoever took them before gets no more.
    pub fn begin(&self) -> mpsc::UnboundedReceiver<Change> {
        let (sender, receiver) = mpsc::unbounded_channel();
        // In front of what the watches see from now on; what they saw before is in their stores.
        let _ = sender.send(Change::Everything);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    async fn run(self: Arc<Self>, mut changes: mpsc::UnboundedReceiver<Change>) {
        while let Some(change) = changes.recv().await {
            let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if to.as_ref().is_some_and(|sender| sender.send(change).is_err()) {
                *to = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_begins_is_told_to_look_at_everything_and_then_of_each_change() {
        let relay = Arc::new(Relay::default());
        let (sender, changes) = mpsc::unbounded_channel();
        tokio::spawn(relay.clone().run(changes));
        let signer = |name: &str| Change::Signer(name.into());
        // Nobody listens: nothing piles up.
        sender.send(signer("lost")).unwrap();
        for term in ["first", "second"] {
            tokio::task::yield_now().await;
            let mut here = relay.begin();
            assert_eq!(here.recv().await, Some(Change::Everything));
            sender.send(signer(term)).unwrap();
            assert_eq!(here.recv().await, Some(signer(term)));
        }
    }
}
