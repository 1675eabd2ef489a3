//! The open doors of a replica: checks, admission, health.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::OperatorError;
use super::context::Admission;
use super::listeners::Listeners;
use crate::controllers::Context;
use crate::server::tls::{Limits, ServingCertificate, serve};
use crate::server::{AppState, admission, health_router, router};

/// The servers that run.
pub struct Serving {
    doors: JoinSet<()>,
    health: JoinSet<()>,
    leave: watch::Sender<bool>,
    close: watch::Sender<bool>,
    end: watch::Sender<bool>,
}

/// Opens every door.
pub fn start(
    listeners: Listeners,
    certificate: &Arc<ServingCertificate>,
    state: &AppState,
    ctx: &Arc<Context>,
) -> Result<Serving, OperatorError> {
    let ((leave, leaving), (close, closed), (end, ended)) =
        (watch::channel(false), watch::channel(false), watch::channel(false));
    let (tls, limits, metrics) = (certificate.config()?, Limits::default(), &state.metrics);
    let (mut doors, mut health) = (JoinSet::new(), JoinSet::new());
    let checks = router(state.clone());
    doors.spawn(serve(listeners.checks, Some(tls.clone()), checks, limits, metrics.clone(), closed.clone()));
    let webhook = admission::router(Arc::new(Admission::new(ctx.clone())));
    doors.spawn(serve(listeners.webhook, Some(tls), webhook, limits, metrics.clone(), closed));
    let live = health_router(state.clone(), leaving);
    health.spawn(serve(listeners.metrics, None, live, limits, metrics.clone(), ended));
    Ok(Serving { doors, health, leave, close, end })
}

impl Serving {
    /// One ended that should run for ever.
    pub async fn ended(&mut self) {
        tokio::select! {
            Some(_) = self.doors.join_next() => {}
            Some(_) = self.health.join_next() => {}
            else => {}
        }
    }

    /// Says that this replica is not ready any more, and goes on answering.
    pub fn leave(&self) {
        let _ = self.leave.send(true);
    }

    /// Takes no more calls, lets those under way finish, and closes health last: a probe must not find a closed port before.
    pub async fn stop(mut self) {
        let _ = self.close.send(true);
        while self.doors.join_next().await.is_some() {}
        let _ = self.end.send(true);
        while self.health.join_next().await.is_some() {}
    }
}
