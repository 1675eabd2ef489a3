//! Follows a folder: looks for changes, and takes them as a whole.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::source::directory::{Directory, Fingerprint, Mistakes, fingerprint};
use crate::source::feed::{Feed, FeedError, Look, read_still};

/// How often the folder is looked at. A change is taken once one look has found it at rest.
const EVERY: Duration = Duration::from_millis(250);

/// What is to be said about the folder: in the log, by `/readyz`, as a metric.
#[derive(Debug, Default)]
pub struct Said {
    fault: Mutex<Option<String>>,
    taken: AtomicU64,
    refused: AtomicU64,
}

impl Said {
    /// What is wrong in the folder now, and what that means.
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes that came into force, and changes that did not.
    pub fn counts(&self) -> (u64, u64) {
        (self.taken.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }

    fn set(&self, fault: Option<String>) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Notes how a set was taken.
    pub fn note(&self, feed: &Feed, result: &Result<Option<String>, FeedError>) {
        let in_force = feed.in_force().unwrap_or_else(|| "no package".to_owned());
        match result {
            Ok(None) => {
                self.taken.fetch_add(1, Ordering::Relaxed);
                self.set(None);
                tracing::info!(%in_force, "the folder is in force");
            }
            Ok(Some(fault)) => {
                self.taken.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%in_force, %fault, "the folder is in force, but for what is wrong in it");
                self.set(Some(format!("{in_force} is in force; {fault}")));
            }
            Err(error) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%in_force, %error, "the folder's last change is not in force: the last good set stays");
                self.set(Some(format!(
                    "the last good set ({in_force}) stays in force, because of the last change: {error}"
                )));
            }
        }
    }
}

/// Follows the folder until `stop`.
pub async fn follow(mut feed: Feed, taken: Fingerprint, said: Arc<Said>, mut stop: watch::Receiver<bool>) {
    let dir = feed.dir().to_owned();
    let mut look = Look::new(taken);
    loop {
        tokio::select! {
            // Err: whoever could stop us is gone.
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let Some(now) = blocking(&dir, fingerprint).await else { continue };
        if !look.again(now) {
            continue;
        }
        let Some(Some((seen, set))) = blocking(&dir, read_still).await else { continue };
        let result = take(&mut feed, set).await;
        // What the store could not take is tried again; what is wrong stays wrong until somebody writes.
        if !matches!(result, Err(FeedError::Store(_))) {
            look.took(seen);
        }
        said.note(&feed, &result);
    }
}

async fn take(feed: &mut Feed, set: Result<Directory, Mistakes>) -> Result<Option<String>, FeedError> {
    feed.take(set?).await
}

/// Files are read beside the checks. None: reading panicked, and is tried again.
async fn blocking<T: Send + 'static>(dir: &Path, read: impl FnOnce(&Path) -> T + Send + 'static) -> Option<T> {
    let dir = dir.to_owned();
    let done = tokio::task::spawn_blocking(move || read(&dir)).await;
    done.inspect_err(|error| tracing::error!(%error, "reading the folder ended abnormally")).ok()
}
