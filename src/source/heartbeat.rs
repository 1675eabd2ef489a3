//! The heartbeat: an object that changes every two seconds, so that a feed without news can be told from a feed that is dead.
//!
//! Any replica writes it, whoever is due first; the others see that and wait. A replica that has written it and does not see it come
//! back has watches that are dead without saying so, and starts them anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use rand_core::{OsRng, RngCore};
use serde_json::json;

use super::follow::Pulse;
use super::kubernetes::call;
use crate::api::MANAGER;

/// Name of the object whose changes show that the feed lives.
pub const HEARTBEAT: &str = "remit-heartbeat";
/// How often it is changed.
const EVERY: Duration = Duration::from_secs(2);
/// The first of several replicas is due up to this much later, by chance.
const SPREAD_MILLIS: u32 = 500;
/// A change that this replica made and has not seen for so long shows that its watches are dead.
const DEAD: Duration = Duration::from_secs(8);

/// What is known of the beats. Pure.
#[derive(Debug)]
struct Beats {
    /// The last one that came through the watch, or when this began.
    seen: Instant,
    /// The first good write of this replica after which none has come.
    unseen: Option<Instant>,
    /// When the last write began.
    tried: Option<Instant>,
}

impl Beats {
    fn new(now: Instant) -> Self {
        Self { seen: now, unseen: None, tried: None }
    }

    /// One came through the watch.
    fn saw(&mut self, at: Instant) {
        self.seen = self.seen.max(at);
        if self.unseen.is_some_and(|written| written <= self.seen) {
            self.unseen = None;
        }
    }

    /// A write that began then succeeded.
    fn wrote(&mut self, begun: Instant) {
        if self.unseen.is_none() && self.seen < begun {
            self.unseen = Some(begun);
        }
    }

    /// When this replica should write next.
    fn due(&self, spread: Duration) -> Instant {
        self.tried.map_or(self.seen, |tried| tried.max(self.seen)) + EVERY + spread
    }

    /// Whether the watches are dead.
    fn dead(&self, now: Instant) -> bool {
        self.unseen.is_some_and(|written| now.saturating_duration_since(written) >= DEAD)
    }

    /// The watches were started anew.
    fn restarted(&mut self) {
        self.unseen = None;
    }
}

/// For ever. A write that fails is no news here: the age of the snapshot tells.
pub(super) async fn beat(client: Client, namespace: String, pulse: Arc<Pulse>) {
    let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let mut seen = pulse.seen();
    let mut beats = Beats::new(Instant::now());
    // The first at once: nobody may have written it yet.
    let mut due = Instant::now();
    loop {
        tokio::select! {
            Ok(()) = seen.changed() => {
                if let Some(at) = *seen.borrow_and_update() {
                    beats.saw(at);
                }
            }
            () = tokio::time::sleep_until(due.into()) => {
                let begun = Instant::now();
                beats.tried = Some(begun);
                if write(&api).await {
                    beats.wrote(begun);
                }
                if let Some(at) = *seen.borrow_and_update() {
                    beats.saw(at);
                }
                if beats.dead(Instant::now()) {
                    tracing::warn!("the heartbeat is written and does not come back: every watch is started again");
                    pulse.restart();
                    beats.restarted();
                }
            }
        }
        due = beats.due(Duration::from_millis((OsRng.next_u32() % SPREAD_MILLIS).into()));
    }
}

async fn write(api: &Api<ConfigMap>) -> bool {
    let params = PatchParams::apply("remit-heartbeat").force();
    let body = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": HEARTBEAT, "labels": {"app.kubernetes.io/managed-by": MANAGER}},
        "data": {"at": jiff::Timestamp::now().to_string()},
    });
    let done = call("the heartbeat", api.patch(HEARTBEAT, &params, &Patch::Apply(body))).await;
    if let Err(error) = &done {
        tracing::debug!(%error, "the heartbeat could not be written");
    }
    done.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(base: Instant, millis: u64) -> Instant {
        base + Duration::from_millis(millis)
    }

    #[test]
    fn of_several_replicas_the_first_writes_and_the_others_wait() {
        let base = Instant::now();
        let (mut first, mut second) = (Beats::new(base), Beats::new(base));
        assert_eq!(first.due(Duration::ZERO), after(base, 2000));
        first.tried = Some(after(base, 2000));
        first.wrote(after(base, 2000));
        for beats in [&mut first, &mut second] {
            beats.saw(after(base, 2005));
            assert_eq!(beats.due(Duration::from_millis(100)), after(base, 4105));
            assert!(!beats.dead(after(base, 60_000)), "what has been seen is not missed");
        }
    }

    #[test]
    fn what_was_written_and_does_not_come_back_shows_dead_watches() {
        let base = Instant::now();
        let mut beats = Beats::new(base);
        // Nothing can be written: that shows nothing.
        beats.tried = Some(after(base, 2000));
        assert!(!beats.dead(after(base, 60_000)));
        for written in [4000, 6000, 8000, 10_000] {
            beats.wrote(after(base, written));
            assert!(!beats.dead(after(base, written)));
        }
        assert!(!beats.dead(after(base, 11_999)));
        assert!(beats.dead(after(base, 12_000)), "eight seconds after the first");
        beats.restarted();
        assert!(!beats.dead(after(base, 12_000)));
        beats.wrote(after(base, 12_500));
        assert!(beats.dead(after(base, 20_500)), "if that did not help, again");
        beats.saw(after(base, 20_600));
        assert!(!beats.dead(after(base, 90_000)));
    }

    #[test]
    fn a_beat_that_comes_before_the_answer_to_its_write_counts() {
        let base = Instant::now();
        let mut beats = Beats::new(base);
        beats.saw(after(base, 2003));
        beats.wrote(after(base, 2000));
        assert!(!beats.dead(after(base, 60_000)));
    }
}
