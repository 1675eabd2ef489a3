//! The Lease `remit` in the operator's namespace: asks `lifecycle::election` what to do, does it, and tells who leads.
//!
//! Never says that this replica leads for longer than its last good write allows, whatever hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use rand_core::{OsRng, RngCore};
use tokio::sync::watch;

use crate::api::MANAGER;
use crate::controllers::leadership::Office;
use crate::lifecycle::election::{Action, Candidate, Record, Terms};

/// Name of the Lease.
pub const LEASE: &str = "remit";

/// What the metrics say of the election.
#[derive(Debug, Default)]
pub struct Tally {
    /// 1 while this replica leads.
    pub leads: AtomicU64,
    /// How often it began to.
    pub gained: AtomicU64,
    /// Tries that failed.
    pub failures: AtomicU64,
}

/// One replica's part in the election.
pub struct Election {
    api: Api<Lease>,
    candidate: Candidate,
    terms: Terms,
    office: Office,
    tally: Arc<Tally>,
    /// Whom the log last said to lead.
    said: Option<String>,
}

/// A try that failed.
#[derive(Debug, thiserror::Error)]
enum TryError {
    #[error(transparent)]
    Api(#[from] Box<kube::Error>),
    #[error("the API server did not answer in time")]
    TimedOut,
}

impl TryError {
    fn is_conflict(&self) -> bool {
        matches!(self, TryError::Api(e) if matches!(&**e, kube::Error::Api(s) if s.is_conflict() || s.is_already_exists()))
    }
}

async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn timed<T>(limit: Duration, call: impl Future<Output = kube::Result<T>>) -> Result<T, TryError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|e| TryError::Api(Box::new(e))),
        Err(_) => Err(TryError::TimedOut),
    }
}

impl Election {
    /// Nothing is asked yet. `id` must be this process's own.
    pub fn new(client: Client, namespace: &str, id: String, terms: Terms, office: Office, tally: Arc<Tally>) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            candidate: Candidate::new(id, terms),
            terms,
            office,
            tally,
            said: None,
        }
    }

    /// Stands for election until `stop`; then gives the lease up, so that another takes it at once.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let until = self.candidate.until();
            let deadline = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            let done = tokio::select! {
                biased;
                () = told(&mut stop) => break,
                // Also while a call hangs.
                () = deadline => {
                    self.candidate.lapse(Instant::now());
                    Err(TryError::TimedOut)
                }
                done = self.attempt() => done,
            };
            if let Err(error) = done {
                self.tally.failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "the lease could not be asked for");
            }
            self.tell();
            let next = Instant::now() + self.candidate.pause(OsRng.next_u32());
            let wake = self.candidate.until().map_or(next, |until| until.min(next));
            tokio::select! {
                () = told(&mut stop) => break,
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            self.candidate.lapse(Instant::now());
            self.tell();
        }
        self.office.lose();
        if self.candidate.until().is_some() {
            match self.release().await {
                Ok(()) => tracing::info!("the lease is released"),
                Err(error) => tracing::warn!(%error, "the lease could not be released: it runs out"),
            }
        }
    }

    /// Reads the Lease and writes it where it is this replica's turn.
    async fn attempt(&mut self) -> Result<(), TryError> {
        let limit = self.terms.call();
        let begun = Instant::now();
        let lease = timed(limit, self.api.get_opt(LEASE)).await?;
        let seen = lease.as_ref().map(|lease| record(lease.spec.as_ref()));
        let action = self.candidate.read(seen, Instant::now(), Timestamp::now());
        let post = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        let written = match (&action, lease) {
            (Action::Wait, _) => return Ok(()),
            (Action::Create(next) | Action::Update(next), None) => {
                let mut lease = Lease::default();
                lease.metadata.name = Some(LEASE.into());
                lease.labels_mut().insert("app.kubernetes.io/managed-by".into(), MANAGER.into());
                lease.spec = Some(spec(next));
                timed(limit, self.api.create(&post, &lease)).await
            }
            (Action::Create(next) | Action::Update(next), Some(mut lease)) => {
                lease.spec = Some(spec(next));
                // With the resourceVersion that was read.
                timed(limit, self.api.replace(LEASE, &post, &lease)).await
            }
        };
        match written {
            Ok(lease) => {
                // As it reads back: the API server keeps microseconds.
                let record = record(lease.spec.as_ref());
                self.candidate.wrote(record, begun, Instant::now());
                Ok(())
            }
            // Somebody was faster: the next try reads who.
            Err(error) if error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn release(&mut self) -> Result<(), TryError> {
        let limit = self.terms.call();
        let Some(mut lease) = timed(limit, self.api.get_opt(LEASE)).await? else { return Ok(()) };
        if let Some(next) = self.candidate.release(&record(lease.spec.as_ref()), Timestamp::now()) {
            lease.spec = Some(spec(&next));
            let post = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
            timed(limit, self.api.replace(LEASE, &post, &lease)).await?;
        }
        Ok(())
    }

    fn tell(&mut self) {
        let led = self.tally.leads.load(Ordering::Relaxed) == 1;
        match self.candidate.until() {
            Some(until) => {
                if !led {
                    self.tally.gained.fetch_add(1, Ordering::Relaxed);
                    tracing::info!("this replica leads: it reconciles from now on");
                }
                self.tally.leads.store(1, Ordering::Relaxed);
                self.office.hold(until);
            }
            None => {
                self.office.lose();
                self.tally.leads.store(0, Ordering::Relaxed);
                if led {
                    tracing::warn!("the lease is lost: this replica serves, and another reconciles");
                }
            }
        }
        let holder = self.candidate.holder().map(str::to_owned);
        if holder != self.said {
            tracing::info!(holder = holder.as_deref().unwrap_or("nobody"), "who leads");
            self.said = holder;
        }
    }
}

fn record(spec: Option<&LeaseSpec>) -> Record {
    Record {
        holder: spec.and_then(|s| s.holder_identity.clone()).unwrap_or_default(),
        seconds: spec.and_then(|s| s.lease_duration_seconds).unwrap_or_default(),
        transitions: spec.and_then(|s| s.lease_transitions).unwrap_or_default(),
        acquired: spec.and_then(|s| s.acquire_time.as_ref()).map(|t| t.0),
        renewed: spec.and_then(|s| s.renew_time.as_ref()).map(|t| t.0),
    }
}

fn spec(record: &Record) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(record.holder.clone()),
        lease_duration_seconds: Some(record.seconds),
        lease_transitions: Some(record.transitions),
        acquire_time: record.acquired.map(MicroTime),
        renew_time: record.renewed.map(MicroTime),
        ..LeaseSpec::default()
    }
}
