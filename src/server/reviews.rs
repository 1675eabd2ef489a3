//! What the API server was asked about callers, remembered for a short time: TokenReviews and SubjectAccessReviews.
//!
//! Verdicts, good and bad, count for ten seconds. Only while the API server can't be reached does a former verdict count
//! longer, and it is marked stale then. One question is asked once, however many requests wait for its answer. Everything is
//! bounded: a flood of different questions must not grow memory, nor reach the API server unthrottled.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

/// How long a verdict counts.
pub const FRESH: Duration = Duration::from_secs(10);
/// How long it counts while the API server is out of reach.
pub const STALE: Duration = Duration::from_secs(300);
/// After the API server was found out of reach, a stale verdict is used for so long before it is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// The API server gave no verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoVerdict {
    /// It could not be reached, did not answer in time, is not ready, or answered 5xx or 429: former verdicts count longer.
    #[error("the API server can't be reached: {0}")]
    Away(String),
    /// It is there, but did not answer this (Remit lacks a right, or too many wait): nothing counts longer for that.
    #[error("no verdict: {0}")]
    Refused(String),
    /// It was not asked: too many failed at this address.
    #[error("too many failed at this address")]
    Throttled,
}

/// A verdict, and whether it is older than usual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<V> {
    /// What was said.
    pub value: V,
    /// Whether it is used only because the API server is out of reach.
    pub stale: bool,
}

struct Entry<V> {
    value: V,
    asked: Instant,
    /// Never counts from here on: the token has expired.
    ends: Option<Instant>,
    /// Set while the API server is out of reach.
    retry_at: Option<Instant>,
}

impl<V: Clone> Entry<V> {
    fn look(&self, now: Instant) -> Option<Verdict<V>> {
        if self.ends.is_some_and(|ends| now >= ends) {
            return None;
        }
        let age = now.saturating_duration_since(self.asked);
        if age < FRESH {
            return Some(Verdict { value: self.value.clone(), stale: false });
        }
        if self.retry_at.is_some_and(|at| now < at) { self.former(now) } else { None }
    }

    /// What counts while the API server is known to be out of reach.
    fn former(&self, now: Instant) -> Option<Verdict<V>> {
        let counts = self.retry_at.is_some() && self.ends.is_none_or(|ends| now < ends);
        let age = now.saturating_duration_since(self.asked);
        (counts && age < STALE).then(|| Verdict { value: self.value.clone(), stale: true })
    }

    fn dead(&self, now: Instant) -> bool {
        self.ends.is_some_and(|ends| now >= ends) || now.saturating_duration_since(self.asked) >= STALE
    }
}

type Flight<V> = Arc<OnceCell<Landed<V>>>;

#[derive(Clone)]
struct Landed<V> {
    /// When the question was asked.
    asked: Instant,
    /// How long the answer took: an API server that does not answer costs a timeout, from whose end on RETRY counts.
    took: Duration,
    answer: Result<Answer<V>, NoVerdict>,
}

/// A verdict as the question's future gives it.
#[derive(Clone, Debug)]
pub struct Answer<V> {
    /// What was said.
    pub value: V,
    /// From when on it never counts.
    pub ends: Option<Instant>,
}

/// Verdicts by question.
pub struct Reviews<K, V> {
    entries: RwLock<HashMap<K, Entry<V>>>,
    flights: Mutex<HashMap<K, Flight<V>>>,
    capacity: usize,
}

impl<K: Clone + Eq + Hash, V: Clone> Reviews<K, V> {
    /// Remembers at most `capacity` verdicts.
    pub fn new(capacity: usize) -> Self {
        Self { entries: RwLock::default(), flights: Mutex::default(), capacity }
    }

    /// A verdict that counts now.
    pub fn look(&self, key: &K, now: Instant) -> Option<Verdict<V>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(key)?.look(now)
    }

    fn former(&self, key: &K, now: Instant) -> Option<Verdict<V>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(key)?.former(now)
    }

    /// Whether there is a former verdict that satisfies `is`, fresh or not.
    pub fn knows(&self, key: &K, now: Instant, is: impl Fn(&V) -> bool) -> bool {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).is_some_and(|entry| !entry.dead(now) && is(&entry.value))
    }

    /// The verdict: a remembered one, or the one that `ask` brings. Requests with the same question wait for one `ask`; when it only
    /// looks whether an API server is back that was out of reach, they go on with the former verdict.
    pub async fn get<F>(&self, key: &K, now: Instant, ask: impl FnOnce() -> F) -> Result<Verdict<V>, NoVerdict>
    where
        F: Future<Output = Result<Answer<V>, NoVerdict>>,
    {
        if let Some(verdict) = self.look(key, now) {
            return Ok(verdict);
        }
        let flight = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            if flights.contains_key(key)
                && let Some(former) = self.former(key, now)
            {
                return Ok(former);
            }
            flights.entry(key.clone()).or_default().clone()
        };
        // Whoever asks may go away: OnceCell then lets the next one ask.
        let landing = Landing { reviews: self, key, flight: &flight };
        let Landed { asked, took, answer } = flight
            .get_or_init(|| async {
                let began = Instant::now();
                let answer = ask().await;
                Landed { asked: now, took: began.elapsed(), answer }
            })
            .await
            .clone();
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(answer) => {
                make_room(&mut entries, key, self.capacity, now);
                let value = answer.value.clone();
                entries.insert(key.clone(), Entry { value: answer.value, asked, ends: answer.ends, retry_at: None });
                drop(entries);
                drop(landing);
                Ok(Verdict { value, stale: false })
            }
            Err(NoVerdict::Away(why)) => {
                let Some(entry) = entries.get_mut(key) else { return Err(NoVerdict::Away(why)) };
                entry.retry_at = Some(asked + took + RETRY);
                entry.former(now).ok_or(NoVerdict::Away(why))
            }
            Err(refused) => Err(refused),
        }
    }
}

/// Removes the flight when its first passenger leaves, however it leaves.
struct Landing<'a, K: Eq + Hash, V> {
    reviews: &'a Reviews<K, V>,
    key: &'a K,
    flight: &'a Flight<V>,
}

impl<K: Eq + Hash, V> Drop for Landing<'_, K, V> {
    fn drop(&mut self) {
        let mut flights = self.reviews.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = flights.get(self.key).is_some_and(|there| Arc::ptr_eq(there, self.flight));
        // Two: the map's and this passenger's. While others wait they keep the flight in the map.
        if mine && (self.flight.initialized() || Arc::strong_count(self.flight) <= 2) {
            flights.remove(self.key);
        }
    }
}

fn make_room<K: Clone + Eq + Hash, V: Clone>(
    entries: &mut HashMap<K, Entry<V>>,
    key: &K,
    capacity: usize,
    now: Instant,
) {
    if entries.len() < capacity || entries.contains_key(key) {
        return;
    }
    entries.retain(|_, entry| !entry.dead(now));
    if entries.len() >= capacity {
        // Full of what may still be used: the hash's order is as good as any, and costs no bookkeeping on the hot path.
        let some: Vec<K> = entries.keys().take(capacity.div_ceil(8)).cloned().collect();
        for key in some {
            entries.remove(&key);
        }
    }
}

/// Failed authentications that one address may cause at once.
const BURST: f64 = 20.0;
/// How many it earns back each second.
const PER_SECOND: f64 = 1.0;
/// Addresses that are counted apart; beyond, they share one bucket.
const ADDRESSES: usize = 4096;

/// Counts failing reviews by remote address, so that garbage from one address stops reaching the API server.
#[derive(Default)]
pub struct Failures {
    buckets: Mutex<HashMap<Option<IpAddr>, Bucket>>,
}

struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, now: Instant) {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND;
        self.left = (self.left + earned).min(BURST);
        self.at = now;
    }
}

impl Failures {
    /// Whether this address has failed too often to be asked about again now.
    pub fn exhausted(&self, address: IpAddr, now: Instant) -> bool {
        self.bucket(address, now, |bucket| bucket.left < 1.0)
    }

    /// Counts a failure.
    pub fn count(&self, address: IpAddr, now: Instant) {
        self.bucket(address, now, |bucket| bucket.left = (bucket.left - 1.0).max(0.0));
    }

    fn bucket<T>(&self, address: IpAddr, now: Instant, use_it: impl FnOnce(&mut Bucket) -> T) -> T {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = Some(network(address));
        if !buckets.contains_key(&key) && buckets.len() >= ADDRESSES {
            buckets.retain(|_, bucket| {
                bucket.refill(now);
                bucket.left < BURST
            });
            if buckets.len() >= ADDRESSES {
                key = None;
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket { left: BURST, at: now });
        bucket.refill(now);
        use_it(bucket)
    }
}

/// An IPv6 host has a whole /64 to choose addresses from.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn good(value: u8) -> Result<Answer<u8>, NoVerdict> {
        Ok(Answer { value, ends: None })
    }

    fn down() -> Result<Answer<u8>, NoVerdict> {
        Err(NoVerdict::Away("connection refused".into()))
    }

    #[tokio::test]
    async fn a_verdict_counts_ten_seconds_and_never_past_its_end() {
        let reviews = Reviews::new(10);
        let t = Instant::now();
        reviews.get(&1, t, || async { good(7) }).await.unwrap();
        assert_eq!(reviews.look(&1, t + FRESH - Duration::from_millis(1)).unwrap().value, 7);
        assert_eq!(reviews.look(&1, t + FRESH), None);
        let ends = Some(t + Duration::from_secs(3));
        reviews.get(&2, t, || async { Ok(Answer { value: 1, ends }) }).await.unwrap();
        assert!(reviews.look(&2, t + Duration::from_millis(2999)).is_some());
        assert!(reviews.look(&2, t + Duration::from_secs(3)).is_none());
        let later = t + Duration::from_secs(4);
        assert!(
            reviews.get(&2, later, || async { down() }).await.is_err(),
            "an expired token is not used while the API server is away"
        );
    }

    #[tokio::test]
    async fn an_old_verdict_is_used_only_while_the_api_server_is_away_and_marked() {
        let reviews = Reviews::new(10);
        let t = Instant::now();
        reviews.get(&1, t, || async { good(7) }).await.unwrap();
        let stale = reviews.get(&1, t + Duration::from_secs(60), || async { down() }).await.unwrap();
        assert_eq!(stale, Verdict { value: 7, stale: true });
        let back = reviews.get(&1, t + Duration::from_secs(120), || async { good(8) }).await.unwrap();
        assert_eq!(back, Verdict { value: 8, stale: false }, "a verdict replaces what was remembered");
        let later = t + Duration::from_secs(120) + STALE;
        assert!(reviews.get(&1, later, || async { down() }).await.is_err(), "five minutes, no more");
        assert!(reviews.get(&2, t, || async { down() }).await.is_err(), "what was never reviewed is not believed");
        let refused = || async { Err(NoVerdict::Refused("403".into())) };
        reviews.get(&3, t, || async { good(7) }).await.unwrap();
        assert!(
            reviews.get(&3, t + Duration::from_secs(60), refused).await.is_err(),
            "a missing right of Remit is no outage"
        );
    }

    #[tokio::test]
    async fn one_question_is_asked_once_and_survives_the_first_asker() {
        let reviews = Arc::new(Reviews::new(10));
        let asked = Arc::new(AtomicUsize::new(0));
        let t = Instant::now();
        let ask = |wait: u64| {
            let (reviews, asked) = (reviews.clone(), asked.clone());
            async move {
                reviews
                    .get(&1, t, || async {
                        asked.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(wait)).await;
                        good(7)
                    })
                    .await
            }
        };
        let first = tokio::spawn(ask(60_000));
        tokio::task::yield_now().await;
        let others: Vec<_> = (0..20).map(|_| tokio::spawn(ask(5))).collect();
        tokio::task::yield_now().await;
        first.abort();
        for other in others {
            assert_eq!(other.await.unwrap().unwrap().value, 7);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2, "the one that went away, and one for the twenty others");
        assert!(reviews.flights.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn one_request_waits_for_an_api_server_that_does_not_answer_the_others_go_on() {
        let reviews = Arc::new(Reviews::new(10));
        let t = Instant::now();
        reviews.get(&1, t, || async { good(7) }).await.unwrap();
        let first = t + FRESH;
        reviews.get(&1, first, || async { down() }).await.unwrap();
        let due = first + RETRY + Duration::from_secs(1);
        assert_eq!(reviews.look(&1, due), None, "it is time to ask again");
        let asking = tokio::spawn({
            let reviews = reviews.clone();
            async move { reviews.get(&1, due, std::future::pending).await }
        });
        tokio::task::yield_now().await;
        let other = reviews.get(&1, due, || async { unreachable!("asked once") }).await.unwrap();
        assert_eq!(other, Verdict { value: 7, stale: true });
        asking.abort();
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let reviews = Reviews::new(64);
        let t = Instant::now();
        for n in 0..1000 {
            reviews.get(&n, t, || async { good(1) }).await.unwrap();
        }
        assert!(reviews.entries.read().unwrap().len() <= 64);
        let failures = Failures::default();
        for n in 0..10_000u32 {
            failures.count(IpAddr::V4(n.into()), t);
        }
        assert!(failures.buckets.lock().unwrap().len() <= ADDRESSES + 1);
    }

    #[test]
    fn failures_are_counted_by_address() {
        let failures = Failures::default();
        let t = Instant::now();
        let (bad, good): (IpAddr, IpAddr) = ("2001:db8::1".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let same_network: IpAddr = "2001:db8::ffff:2".parse().unwrap();
        for _ in 0..20 {
            assert!(!failures.exhausted(bad, t));
            failures.count(bad, t);
        }
        assert!(failures.exhausted(bad, t) && failures.exhausted(same_network, t));
        assert!(!failures.exhausted(good, t));
        assert!(!failures.exhausted(bad, t + Duration::from_secs(1)));
    }
}
