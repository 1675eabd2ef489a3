//! The one way by which a package may come into force, in a cluster and in a folder: signature, bytes, tests, history.
//!
//! Bytes that take long are looked at in the background: whoever asks waits as long as they have patience, and no longer. A package that
//! was not looked at to its end is refused as long as it is not. How many are looked at at once is bounded, and what was cut short for
//! want of time is not begun anew at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};

use super::compile::{Compiled, Compiler};
use crate::api::PolicyPackageSpec;
use crate::package::{Verdict, run_tests, run_tests_while};
use crate::policy::{CompiledPackage, Refusal, RefusalCode, Side, VerifyContext};
use crate::store::StoreError;

/// Time that tests get at first. What takes longer waits for its turn among what takes longer, and holds up nobody else.
const QUICK: Duration = Duration::from_secs(1);
/// Packages whose tests run at the same time at first, and of those that take longer.
const QUICK_AT_ONCE: usize = 2;
const SLOW_AT_ONCE: usize = 1;
/// For how long it is remembered that tests were cut short.
const CUT_SHORT: Duration = Duration::from_secs(300);
/// When to ask again for what is under way.
const SOON: Duration = Duration::from_millis(500);
/// Results that are remembered; a platform change makes every old one useless.
const REMEMBERED: usize = 4096;
/// Patience of who has nothing else to do.
pub const PATIENT: Duration = Duration::from_secs(300);

/// A package, and the platform's under which its tests run.
type Key = (String, Side, String);
/// What was found; the error is the store's.
type Found = Result<(Compiled, Option<Refusal>), String>;

/// Results of package tests, by package and platform: a test's outcome depends on nothing else.
#[derive(Clone)]
pub struct TestResults(Arc<Inner>);

struct Inner {
    known: Mutex<HashMap<Key, Known>>,
    under_way: Mutex<HashMap<Key, watch::Receiver<Option<Found>>>>,
    quick: Semaphore,
    slow: Semaphore,
    /// Time for tests at first, and then; None: as long as any package's tests get.
    times: [Option<Duration>; 2],
}

#[derive(Clone)]
struct Known {
    refusal: Option<Refusal>,
    /// Until when it holds; None: for ever.
    until: Option<Instant>,
}

/// What is said of a package.
#[derive(Debug)]
pub struct Said {
    /// A refusal as long as it is not known.
    pub verdict: Verdict,
    /// When it may be another one although nothing has changed.
    pub again: Option<Duration>,
}

impl Default for TestResults {
    fn default() -> Self {
        Self::with_times([Some(QUICK), None])
    }
}

impl TestResults {
    fn with_times(times: [Option<Duration>; 2]) -> Self {
        Self(Arc::new(Inner {
            known: Mutex::default(),
            under_way: Mutex::default(),
            quick: Semaphore::new(QUICK_AT_ONCE),
            slow: Semaphore::new(SLOW_AT_ONCE),
            times,
        }))
    }
}

/// Looks at a package: signature first, then its bytes, then its tests, then the tenant's history. `platform`: the platform's
/// packages, base first; `patience`: how long to wait for what takes long. Errors only where the store can't be used: it is worth
/// trying again.
pub async fn judge(
    compiler: &Arc<Compiler>,
    results: &TestResults,
    spec: &PolicyPackageSpec,
    verify: &VerifyContext<'_>,
    platform: Vec<Arc<CompiledPackage>>,
    patience: Duration,
) -> Result<Said, StoreError> {
    let mut verdict = Verdict::of_bytes(spec, verify);
    // Nothing parses bytes that nobody answers for.
    if verdict.signed.is_err() {
        return Ok(Said { verdict, again: None });
    }
    let side = if verify.is_platform { Side::Platform } else { Side::Tenant };
    let key = results.key(&verdict.digest, side, &platform);
    let Some((compiled, test)) = results.look(compiler, spec, key.clone(), platform, patience).await? else {
        let why =
            "its tests are still running, or wait for their turn: it may not come into force before they have passed";
        verdict.test = Some(Refusal::new(RefusalCode::TestFailed, why));
        return Ok(Said { verdict, again: Some(SOON) });
    };
    (verdict.compiled, verdict.test) = (Some(compiled.map_err(|refusals| first(&refusals))), test);
    Ok(Said { verdict, again: results.expires(&key) })
}

/// Why a tenant's package can't come into force under these platform packages, whatever signatures and history say; None: nothing.
pub async fn obstacle(
    compiler: &Arc<Compiler>,
    results: &TestResults,
    spec: &PolicyPackageSpec,
    digest: &str,
    platform: Vec<Arc<CompiledPackage>>,
    patience: Duration,
) -> Result<Option<Refusal>, StoreError> {
    let key = results.key(digest, Side::Tenant, &platform);
    Ok(match results.look(compiler, spec, key, platform, patience).await? {
        Some((Err(refusals), _)) => Some(first(&refusals)),
        Some((Ok(_), test)) => test,
        None => Some(Refusal::new(RefusalCode::TestFailed, "its tests are still running: try again")),
    })
}

fn first(refusals: &[Refusal]) -> Refusal {
    refusals.first().cloned().unwrap_or_else(|| Refusal::new(RefusalCode::Malformed, "the package does not compile"))
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TestResults {
    fn key(&self, digest: &str, side: Side, platform: &[Arc<CompiledPackage>]) -> Key {
        (digest.to_owned(), side, platform.iter().map(|p| p.digest()).collect::<Vec<_>>().join(" "))
    }

    fn known(&self, key: &Key) -> Option<Known> {
        let known = lock(&self.0.known).get(key).cloned();
        known.filter(|k| k.until.is_none_or(|until| Instant::now() < until))
    }

    fn remember(&self, key: &Key, known: Known) {
        let mut all = lock(&self.0.known);
        if all.len() > REMEMBERED {
            all.clear();
        }
        all.insert(key.clone(), known);
    }

    /// When a result that was cut short is tried again.
    fn expires(&self, key: &Key) -> Option<Duration> {
        let until = self.known(key)?.until?;
        Some(until.saturating_duration_since(Instant::now()).max(SOON))
    }

    /// What compiling and testing says; None: it is not known yet, and goes on in the background.
    async fn look(
        &self,
        compiler: &Arc<Compiler>,
        spec: &PolicyPackageSpec,
        key: Key,
        platform: Vec<Arc<CompiledPackage>>,
        patience: Duration,
    ) -> Result<Option<(Compiled, Option<Refusal>)>, StoreError> {
        if let Some(compiled) = compiler.compiled(&key.0, key.1) {
            match self.known(&key) {
                _ if compiled.is_err() || spec.tests.is_empty() => return Ok(Some((compiled, None))),
                Some(known) => return Ok(Some((compiled, known.refusal))),
                None => {}
            }
        }
        let mut found = self.begin(compiler, spec, key, platform);
        match tokio::time::timeout(patience, found.wait_for(Option::is_some)).await {
            Err(_) => Ok(None),
            Ok(Ok(found)) => match &*found {
                Some(Ok(found)) => Ok(Some(found.clone())),
                Some(Err(why)) => Err(StoreError::Closed(why.clone())),
                None => Ok(None),
            },
            Ok(Err(_)) => Err(StoreError::Closed("looking at the package ended abnormally: see Remit's log".into())),
        }
    }

    /// One look at each package at a time, whoever asks.
    fn begin(
        &self,
        compiler: &Arc<Compiler>,
        spec: &PolicyPackageSpec,
        key: Key,
        platform: Vec<Arc<CompiledPackage>>,
    ) -> watch::Receiver<Option<Found>> {
        let mut under_way = lock(&self.0.under_way);
        if let Some(found) = under_way.get(&key) {
            return found.clone();
        }
        let (tell, found) = watch::channel(None);
        under_way.insert(key.clone(), found.clone());
        drop(under_way);
        let ended = Ended(self.clone(), key.clone());
        let (results, compiler, spec) = (self.clone(), compiler.clone(), spec.clone());
        tokio::spawn(async move {
            let _ended = ended;
            let done = match compiler.compile(&spec, &key.0, key.1).await {
                Ok(Ok(package)) => {
                    let test = results.failing_test(&spec, &package, platform, &key).await;
                    Ok((Ok(package), test))
                }
                Ok(Err(refusals)) => Ok((Err(refusals), None)),
                Err(error) => Err(error.to_string()),
            };
            let _ = tell.send(Some(done));
        });
        found
    }

    /// Runs the tests of a compiled package under these platform packages; the refusal, where one fails.
    async fn failing_test(
        &self,
        spec: &PolicyPackageSpec,
        package: &Arc<CompiledPackage>,
        platform: Vec<Arc<CompiledPackage>>,
        key: &Key,
    ) -> Option<Refusal> {
        if spec.tests.is_empty() {
            return None;
        }
        if let Some(known) = self.known(key) {
            return known.refusal;
        }
        let run = async |turns: &Semaphore, time: Option<Duration>| {
            let _turn = turns.acquire().await;
            let (tests, package, platform) = (spec.clone(), package.clone(), platform.clone());
            let run = tokio::task::spawn_blocking(move || {
                let begun = Instant::now();
                match time {
                    Some(time) => run_tests_while(&tests, &package, &platform, || begun.elapsed() < time),
                    None => run_tests(&tests, &package, &platform),
                }
            });
            run.await
        };
        let [at_first, then] = self.0.times;
        let mut ran = run(&self.0.quick, at_first).await;
        if ran.as_ref().is_ok_and(|report| report.cut_short) {
            ran = run(&self.0.slow, then).await;
        }
        let known = match ran {
            // On a machine with more time it may be another verdict.
            Ok(report) if report.cut_short => Known {
                refusal: report.refusal().map(|mut refusal| {
                    refusal.message += &format!("; they are run again after {} minutes", CUT_SHORT.as_secs() / 60);
                    refusal
                }),
                until: Some(Instant::now() + CUT_SHORT),
            },
            Ok(report) => Known { refusal: report.refusal(), until: None },
            Err(error) => {
                tracing::error!(%error, "running the tests of a package failed");
                let why = "the tests could not be run: see Remit's log";
                Known { refusal: Some(Refusal::new(RefusalCode::TestFailed, why)), until: None }
            }
        };
        self.remember(key, known.clone());
        known.refusal
    }
}

/// Whatever becomes of a look, the next one may begin.
struct Ended(TestResults, Key);

impl Drop for Ended {
    fn drop(&mut self) {
        lock(&self.0.0.under_way).remove(&self.1);
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
