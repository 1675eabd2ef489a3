//! One watch, for ever. It keeps a store, and says what changed after the store has it.
//!
//! After any failure the kind is listed anew, with backoff and jitter that never give up, and what differs from the store is told as
//! if the watch had seen it: a change that was made meanwhile is never missed, and one that was not made wakes nobody. A watch never
//! ends the process. The store goes on showing what was last seen; how old that is, the heartbeat tells.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::api::Api;
use kube::runtime::reflector::{Lookup, ObjectRef, Store, store::Writer};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Resource, ResourceExt};
use rand_core::{OsRng, RngCore};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::kubernetes::{Change, Listeners, tell};

/// Whether the feed lives: a heartbeat counts while the first set is complete and no watch is failing.
pub struct Pulse {
    complete: AtomicBool,
    failing: AtomicU32,
    alive: Box<dyn Fn() + Send + Sync>,
    seen: watch::Sender<Option<Instant>>,
    restart: watch::Sender<u64>,
    /// What the watches did, for `/metrics`.
    pub tally: WatchTally,
}

/// What the watches did.
#[derive(Debug, Default)]
pub struct WatchTally {
    /// Kinds that were listed.
    pub lists: AtomicU64,
    /// Watches that failed.
    pub failures: AtomicU64,
    /// Times that every watch was started anew, because nothing came through them.
    pub restarts: AtomicU64,
}

impl Pulse {
    /// Calls `alive` at each sign of life.
    pub fn new(alive: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            complete: AtomicBool::new(false),
            failing: AtomicU32::new(0),
            alive: Box::new(alive),
            seen: watch::channel(None).0,
            restart: watch::channel(0).0,
            tally: WatchTally::default(),
        }
    }

    /// The first set is complete: from now on there are signs of life, and this is the first.
    pub fn complete(&self) {
        self.complete.store(true, Ordering::Release);
        self.alive_if_whole();
    }

    /// The heartbeat object came through its watch.
    pub(super) fn beat(&self) {
        self.seen.send_replace(Some(Instant::now()));
        self.alive_if_whole();
    }

    fn alive_if_whole(&self) {
        if self.complete.load(Ordering::Acquire) && self.failing.load(Ordering::Relaxed) == 0 {
            (self.alive)();
        }
    }

    /// When the heartbeat object last came.
    pub(super) fn seen(&self) -> watch::Receiver<Option<Instant>> {
        self.seen.subscribe()
    }

    /// Starts every watch anew.
    pub(super) fn restart(&self) {
        self.tally.restarts.fetch_add(1, Ordering::Relaxed);
        self.restart.send_modify(|n| *n += 1);
    }
}

/// A time between half and one and a half of this, so that replicas don't all do it at once.
pub(super) fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.5 + f64::from(OsRng.next_u32()) / f64::from(u32::MAX))
}

/// Doubling from 100 ms to 10 s, with jitter, for ever.
#[derive(Default)]
struct Retry {
    tries: u32,
}

impl Retry {
    fn next(&mut self) -> Duration {
        let ceiling = 100u64.saturating_mul(1 << self.tries.min(7)).min(10_000);
        self.tries = self.tries.saturating_add(1);
        Duration::from_millis(ceiling / 2 + u64::from(OsRng.next_u32()) % (ceiling / 2))
    }
}

/// The store of a kind, and what a new list says of it.
pub(super) struct Known<K>
where
    K: Lookup + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone + Default,
{
    reader: Store<K>,
    writer: Writer<K>,
    /// Whether the store has been whole once.
    listed: bool,
    /// What the list under way has named so far.
    named: HashSet<ObjectRef<K>>,
    /// What of it differs from the store.
    differs: Vec<Change>,
}

impl<K> Known<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    pub(super) fn new(reader: Store<K>, writer: Writer<K>) -> Self {
        Self { reader, writer, listed: false, named: HashSet::new(), differs: Vec::new() }
    }

    /// Takes an event into the store, and gives what it changed.
    fn take(&mut self, event: &Event<K>, change: &impl Fn(&K) -> Option<Change>) -> Vec<Change> {
        let news = match event {
            Event::Apply(o) | Event::Delete(o) => change(o).into_iter().collect(),
            Event::Init => {
                self.named.clear();
                self.differs.clear();
                Vec::new()
            }
            Event::InitApply(o) => {
                let key = ObjectRef::from_obj(o);
                let before = self.reader.get(&key);
                let same = before.is_some_and(|b| {
                    let (b, o) = (b.meta(), o.meta());
                    b.uid == o.uid && b.resource_version == o.resource_version
                });
                // Asked also where nothing differs: it is a sign of life.
                let change = change(o);
                if !same {
                    self.differs.extend(change);
                }
                self.named.insert(key);
                Vec::new()
            }
            Event::InitDone if self.listed => {
                // What a new list leaves out has vanished without a word.
                let gone = self.reader.state().into_iter().filter(|o| !self.named.contains(&ObjectRef::from_obj(&**o)));
                let gone: Vec<Change> = gone.filter_map(|o| change(&o)).collect();
                self.named.clear();
                std::mem::take(&mut self.differs).into_iter().chain(gone).collect()
            }
            Event::InitDone => {
                self.listed = true;
                self.named.clear();
                self.differs.clear();
                vec![Change::Everything]
            }
        };
        self.writer.apply_watcher_event(event);
        news
    }
}

/// One watch.
pub(super) struct Follow<K, F>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    pub(super) api: Api<K>,
    pub(super) config: watcher::Config,
    pub(super) relist: Duration,
    pub(super) known: Known<K>,
    pub(super) change: F,
    pub(super) pulse: Arc<Pulse>,
    pub(super) to: Arc<Listeners>,
}

/// Why a watch is started anew.
enum Anew {
    Failed(watcher::Error),
    Ended,
    Restart,
    Relist,
}

impl<K, F> Follow<K, F>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    F: Fn(&K) -> Option<Change> + Send,
{
    /// For ever.
    pub(super) async fn run(mut self) {
        let kind = K::kind(&());
        let (mut retry, mut failing) = (Retry::default(), false);
        let mut restart = self.pulse.restart.subscribe();
        loop {
            let anew = self.once(&mut retry, &mut failing, &mut restart).await;
            let failed = !matches!(anew, Anew::Relist);
            // Until it is listed again, what the store shows may be old.
            if failed && !failing {
                failing = true;
                self.pulse.failing.fetch_add(1, Ordering::Relaxed);
            }
            match anew {
                Anew::Failed(error) => {
                    self.pulse.tally.failures.fetch_add(1, Ordering::Relaxed);
                    if retry.tries == 0 {
                        tracing::warn!(%kind, %error, "a watch failed and is tried again");
                    } else {
                        tracing::debug!(%kind, %error, "a watch failed again");
                    }
                }
                Anew::Ended => tracing::warn!(%kind, "a watch ended and is started again"),
                Anew::Restart => tracing::debug!(%kind, "the watch is started again"),
                Anew::Relist => {
                    tracing::debug!(%kind, "the kind is listed anew");
                    continue;
                }
            }
            tokio::time::sleep(retry.next()).await;
        }
    }

    /// One list and the watch after it, until it fails or has lasted.
    async fn once(&mut self, retry: &mut Retry, failing: &mut bool, restart: &mut watch::Receiver<u64>) -> Anew {
        restart.mark_unchanged();
        let mut stream = std::pin::pin!(watcher(self.api.clone(), self.config.clone()));
        let mut over = std::pin::pin!(tokio::time::sleep(jittered(self.relist)));
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                Ok(()) = restart.changed() => return Anew::Restart,
                () = &mut over => return Anew::Relist,
            };
            let event = match event {
                // Who wrote is kept, what of it is not: that is as large as the object.
                Some(Ok(event)) => event.modify(|o| o.managed_fields_mut().iter_mut().for_each(|m| m.fields_v1 = None)),
                Some(Err(error)) => return Anew::Failed(error),
                None => return Anew::Ended,
            };
            let news = self.known.take(&event, &self.change);
            if matches!(event, Event::InitDone) {
                self.pulse.tally.lists.fetch_add(1, Ordering::Relaxed);
                if std::mem::take(failing) {
                    self.pulse.failing.fetch_sub(1, Ordering::Relaxed);
                    tracing::info!(kind = %K::kind(&()), "the watch goes on");
                }
                *retry = Retry::default();
            }
            for change in &news {
                tell(&self.to, change);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;
    use kube::runtime::reflector;

    use super::*;

    fn namespace(name: &str, version: &str) -> Namespace {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.into());
        namespace.metadata.uid = Some(format!("{name}-uid"));
        namespace.metadata.resource_version = Some(version.into());
        namespace
    }

    fn change(o: &Namespace) -> Option<Change> {
        Some(Change::Namespace(o.name_any()))
    }

    fn list(known: &mut Known<Namespace>, objects: &[(&str, &str)]) -> Vec<Change> {
        assert!(known.take(&Event::Init, &change).is_empty());
        for (name, version) in objects {
            assert!(
                known.take(&Event::InitApply(namespace(name, version)), &change).is_empty(),
                "not before it is whole"
            );
        }
        known.take(&Event::InitDone, &change)
    }

    #[test]
    fn a_new_list_tells_what_changed_meanwhile_and_nothing_else() {
        let (reader, writer) = reflector::store();
        let mut known = Known::new(reader.clone(), writer);
        assert_eq!(list(&mut known, &[("a", "1"), ("b", "1"), ("c", "1")]), [Change::Everything]);
        assert_eq!(list(&mut known, &[("a", "1"), ("b", "1"), ("c", "1")]), []);
        let of = |name: &str| Change::Namespace(name.into());
        // b changed, c vanished, d is new.
        assert_eq!(list(&mut known, &[("a", "1"), ("b", "2"), ("d", "1")]), [of("b"), of("d"), of("c")]);
        assert_eq!(known.take(&Event::Apply(namespace("a", "3")), &change), [of("a")]);
        // A list that breaks off tells nothing and takes nothing away.
        assert!(known.take(&Event::Init, &change).is_empty());
        known.take(&Event::InitApply(namespace("b", "9")), &change);
        assert_eq!(reader.len(), 3);
        assert_eq!(list(&mut known, &[("a", "3"), ("b", "2"), ("d", "1")]), []);
    }

    #[test]
    fn retries_never_end_and_never_wait_long() {
        let mut retry = Retry::default();
        let waits: Vec<Duration> = (0..1000).map(|_| retry.next()).collect();
        assert!(waits[0] < Duration::from_millis(101));
        assert!(waits.iter().all(|w| *w <= Duration::from_secs(10) && *w >= Duration::from_millis(50)));
        assert!(waits[999] >= Duration::from_secs(5));
        assert_ne!(waits[998], waits[999]);
    }

    #[test]
    fn a_beat_counts_only_while_every_watch_is_whole() {
        let beats = Arc::new(AtomicU64::new(0));
        let counted = beats.clone();
        let pulse = Pulse::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        pulse.beat();
        assert_eq!(beats.load(Ordering::Relaxed), 0, "before the first set");
        pulse.complete();
        pulse.beat();
        assert_eq!(beats.load(Ordering::Relaxed), 2);
        pulse.failing.fetch_add(1, Ordering::Relaxed);
        pulse.beat();
        assert_eq!(beats.load(Ordering::Relaxed), 2);
        assert!(pulse.seen().borrow().is_some());
    }
}
