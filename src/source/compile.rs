//! Compiles packages once: by digest and side, with the intent to parse noted in the store first.
//!
//! Bytes that ended a parser (and with it the process) are known by that note after the restart, and are never parsed again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::api::PolicyPackageSpec;
use crate::policy::{CompiledPackage, Refusal, RefusalCode, Side};
use crate::store::{Store, StoreError};

/// Packages that are compiled at the same time: the checks need the other cores.
const AT_ONCE: usize = 2;

/// Source text of packages that are kept although nothing refers to them, bytes. Compiled they take many times as much, and whoever
/// applies and deletes one after the other must not fill the memory.
const UNUSED: usize = 16 * 1024 * 1024;
/// What was compiled within this time may be about to come into force: the index must find it, and not compile while others wait.
const YOUNG: Duration = Duration::from_secs(30);

/// A package, or everything that is wrong with it, the most important first.
pub type Compiled = Result<Arc<CompiledPackage>, Arc<Vec<Refusal>>>;

type Key = (String, Side);

/// A compiled package, the bytes of its source, and when that was.
struct Done {
    compiled: Compiled,
    bytes: usize,
    at: Instant,
}

/// The packages that were compiled and are still of use.
pub struct Compiler {
    store: Arc<dyn Store>,
    done: Mutex<HashMap<Key, Done>>,
    turns: Semaphore,
}

impl Compiler {
    /// A compiler that notes its intents in this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, done: Mutex::default(), turns: Semaphore::new(AT_ONCE) }
    }

    /// Compiles, or gives what was compiled before. `digest` must be the digest of `spec`. Errors only where the store does not
    /// take the note: it is worth trying again.
    pub async fn compile(&self, spec: &PolicyPackageSpec, digest: &str, side: Side) -> Result<Compiled, StoreError> {
        let key = (digest.to_owned(), side);
        if let Some(done) = self.look(&key) {
            return Ok(done);
        }
        let bytes = source_bytes(spec);
        let _turn = self.turns.acquire().await.map_err(|e| StoreError::Closed(e.to_string()))?;
        if let Some(done) = self.look(&key) {
            return Ok(done);
        }
        if self.store.quarantined().await?.iter().any(|d| d == digest) {
            let refusal = Refusal::new(
                RefusalCode::Quarantined,
                format!("{digest} ended a parser before: it is not tried again"),
            );
            return Ok(self.keep(key, Err(Arc::new(vec![refusal])), bytes));
        }
        self.store.parse_begins(digest).await?;
        let (spec, wanted) = (spec.clone(), digest.to_owned());
        let result = tokio::task::spawn_blocking(move || CompiledPackage::compile(&spec, &wanted, side)).await;
        self.store.parse_ended(digest).await?;
        let compiled = match result {
            Ok(done) => done.map_err(Arc::new),
            Err(error) => {
                tracing::error!(%digest, %error, "compiling a package failed");
                Err(Arc::new(vec![Refusal::new(
                    RefusalCode::Quarantined,
                    "its compilation failed: see the operator's log",
                )]))
            }
        };
        Ok(self.keep(key, compiled, bytes))
    }

    /// What was compiled before.
    pub fn compiled(&self, digest: &str, side: Side) -> Option<Compiled> {
        self.look(&(digest.to_owned(), side))
    }

    fn look(&self, key: &Key) -> Option<Compiled> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).get(key).map(|done| done.compiled.clone())
    }

    fn keep(&self, key: Key, compiled: Compiled, bytes: usize) -> Compiled {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let unused: usize = done.values().filter(|d| !in_use(&d.compiled)).map(|d| d.bytes).sum();
        if unused + bytes > UNUSED {
            evict(&mut done, now);
        }
        done.insert(key, Done { compiled: compiled.clone(), bytes, at: now });
        compiled
    }

    /// Forgets what is neither in use nor wanted.
    pub fn forget_but(&self, wanted: &HashSet<String>) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.retain(|(digest, _), one| wanted.contains(digest) || in_use(&one.compiled));
    }
}

/// Whether anybody else holds the package: the snapshot does, of what is in force.
fn in_use(compiled: &Compiled) -> bool {
    compiled.as_ref().is_ok_and(|package| Arc::strong_count(package) > 1)
}

/// Lets go of what nobody holds and nobody is about to take.
fn evict(done: &mut HashMap<Key, Done>, now: Instant) {
    done.retain(|_, one| in_use(&one.compiled) || now.saturating_duration_since(one.at) < YOUNG);
}

fn source_bytes(spec: &PolicyPackageSpec) -> usize {
    let files = spec.policies.iter().chain(&spec.tests).map(|f| f.text.len()).sum::<usize>();
    files + spec.schema.as_deref().map_or(0, str::len) + spec.entities.as_deref().map_or(0, str::len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SourceFile;
    use crate::store::{SqliteOptions, SqliteStore};

    #[tokio::test]
    async fn packages_that_nobody_holds_do_not_fill_the_memory() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path(), SqliteOptions::default()).await.unwrap();
        let compiler = Compiler::new(store.clone());
        let spec = |n: usize| PolicyPackageSpec {
            package: "p".into(),
            version: format!("1.0.{n}"),
            policies: vec![SourceFile {
                name: "a.cedar".into(),
                text: "@id(\"a\") permit(principal, action, resource);".into(),
            }],
            ..PolicyPackageSpec::default()
        };
        let held = compiler.compile(&spec(0), "sha256:0", Side::Tenant).await.unwrap();
        assert!(held.is_ok());
        for n in 1..4 {
            compiler.compile(&spec(n), &format!("sha256:{n}"), Side::Tenant).await.unwrap().unwrap();
        }
        evict(&mut compiler.done.lock().unwrap(), Instant::now());
        assert_eq!(compiler.done.lock().unwrap().len(), 4, "they may be about to come into force");
        evict(&mut compiler.done.lock().unwrap(), Instant::now() + YOUNG);
        assert_eq!(compiler.done.lock().unwrap().len(), 1);
        assert!(compiler.look(&("sha256:0".into(), Side::Tenant)).is_some(), "what is in use stays");
        store.close().await;
    }
}
