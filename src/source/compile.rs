//! Compiles packages once: by digest and side, with the intent to parse noted in the store first.
//!
//! Bytes that ended a parser (and with it the process) are known by that note after the restart, and are never parsed again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use crate::api::PolicyPackageSpec;
use crate::policy::{CompiledPackage, Refusal, RefusalCode, Side};
use crate::store::{Store, StoreError};

/// Packages that are compiled at the same time: the checks need the other cores.
const AT_ONCE: usize = 2;

/// A package, or everything that is wrong with it, the most important first.
pub type Compiled = Result<Arc<CompiledPackage>, Arc<Vec<Refusal>>>;

type Key = (String, Side);

/// The packages that were compiled and are still of use.
pub struct Compiler {
    store: Arc<dyn Store>,
    done: Mutex<HashMap<Key, Compiled>>,
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
        let _turn = self.turns.acquire().await.map_err(|e| StoreError::Closed(e.to_string()))?;
        if let Some(done) = self.look(&key) {
            return Ok(done);
        }
        if self.store.quarantined().await?.iter().any(|d| d == digest) {
            let refusal = Refusal::new(
                RefusalCode::Quarantined,
                format!("{digest} ended a parser before: it is not tried again"),
            );
            return Ok(self.keep(key, Err(Arc::new(vec![refusal]))));
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
        Ok(self.keep(key, compiled))
    }

    fn look(&self, key: &Key) -> Option<Compiled> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn keep(&self, key: Key, compiled: Compiled) -> Compiled {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).insert(key, compiled.clone());
        compiled
    }

    /// Forgets what is neither in use nor wanted.
    pub fn forget_but(&self, wanted: &HashSet<String>) {
        let in_use = |c: &Compiled| c.as_ref().is_ok_and(|p| Arc::strong_count(p) > 1);
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.retain(|(digest, _), compiled| wanted.contains(digest) || in_use(compiled));
    }
}
