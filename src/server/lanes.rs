//! Long evaluations run beside the request threads, one at a time for each tenant: what a tenant's patterns and arguments
//! cost, that tenant waits for, and nobody else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::HttpError;

/// Text that an evaluation may look at on the request's own thread, bytes.
pub const LIGHT: usize = 4 * 1024;
/// What patterns may cost on the request's own thread, text bytes times pattern bytes: a few milliseconds.
pub const LIGHT_COST: u64 = 1 << 22;
/// Evaluations of one tenant that may wait.
const WAITING: usize = 64;
/// How long one waits.
const TIME: Duration = Duration::from_secs(5);
/// Lanes that are kept without need.
const KEPT: usize = 256;

struct Lane {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// The lanes, by tenant.
#[derive(Default)]
pub struct Lanes {
    lanes: Mutex<HashMap<String, Arc<Lane>>>,
}

impl Lanes {
    /// Runs `work` in the tenant's lane. It goes on, and keeps the lane, when the caller goes away.
    pub async fn run<T: Send + 'static>(
        &self,
        tenant: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HttpError> {
        let lane = self.lane(tenant);
        let busy = || HttpError::unavailable("too_busy", "This tenant has too many long evaluations under way.");
        let waiting: OwnedSemaphorePermit = lane.waiting.clone().try_acquire_owned().map_err(|_| busy())?;
        let running = tokio::time::timeout(TIME, lane.running.clone().acquire_owned()).await;
        let Ok(Ok(running)) = running else { return Err(busy()) };
        drop(waiting);
        let done = tokio::task::spawn_blocking(move || {
            let out = work();
            drop(running);
            out
        });
        done.await.map_err(|error| {
            tracing::error!(%error, "an evaluation ended abnormally");
            HttpError::internal()
        })
    }

    fn lane(&self, tenant: &str) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.len() > KEPT {
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || lane.running.available_permits() == 0);
        }
        let new =
            || Arc::new(Lane { running: Arc::new(Semaphore::new(1)), waiting: Arc::new(Semaphore::new(WAITING)) });
        lanes.entry(tenant.to_owned()).or_insert_with(new).clone()
    }
}
