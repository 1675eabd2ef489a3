//! Calls that wait for the shadow: each tenant in its turn, and within a tenant each agent.
//!
//! Room is shared out: whoever has more waiting than the others never keeps a call of theirs out. Where there is no room for all, the
//! newest call of whoever has the most gives way.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::{Job, subject_name};
use crate::server::wire::weight;

/// Calls that wait, of all tenants, of one, and of one agent.
pub(super) const WAITING: usize = 4096;
pub(super) const WAITING_OF_TENANT: usize = WAITING / 4;
pub(super) const WAITING_OF_AGENT: usize = WAITING_OF_TENANT / 4;
/// Text of the calls that wait, bytes; shared out as the places are.
const WAITING_BYTES: usize = 16 * 1024 * 1024;
/// Bytes that go with a place. A call counts as its bytes, and as no less than this: so places and bytes are one measure.
const PLACE: usize = WAITING_BYTES / WAITING;

/// Calls of an agent with their weights.
type Jobs = VecDeque<(Job, usize)>;

#[derive(Default)]
struct OfAgent {
    jobs: Jobs,
    weight: usize,
}

#[derive(Default)]
struct OfTenant {
    agents: HashMap<String, OfAgent>,
    /// Which agent's turn it is.
    turns: VecDeque<String>,
    weight: usize,
}

#[derive(Default)]
struct Waiting {
    tenants: HashMap<String, OfTenant>,
    /// Which tenant's turn it is.
    turns: VecDeque<String>,
    weight: usize,
    closed: bool,
}

/// The calls that wait.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it, where there is room or somebody with more has to make some. Gives back what is not compared for it.
    pub(super) fn push(&self, job: Job) -> Vec<Job> {
        let weight = weight(&job.request).max(PLACE);
        let (tenant, agent) = (job.call.tenant.clone(), subject_name(&job.request.subject));
        let (mut w, mut out) = (self.lock(), Vec::new());
        loop {
            match w.in_the_way(&tenant, &agent, weight) {
                InTheWay::Nobody => break,
                InTheWay::Itself => {
                    out.push(job);
                    return out;
                }
                InTheWay::Other(tenant, agent) => out.extend(w.take(&tenant, &agent, VecDeque::pop_back)),
            }
        }
        w.add(tenant, agent, job, weight);
        drop(w);
        self.arrived.notify_one();
        out
    }

    /// The next call, each tenant in its turn; None: closed.
    pub(super) fn pop(&self) -> Option<Job> {
        let mut w = self.lock();
        loop {
            if let Some(job) = w.next() {
                return Some(job);
            }
            if w.closed {
                return None;
            }
            w = self.arrived.wait(w).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes nothing more.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    /// What still waits, which nobody will compare.
    pub(super) fn abandon(&self) -> Vec<Job> {
        let mut w = self.lock();
        std::iter::from_fn(|| w.next()).collect()
    }
}

/// Who has to give way for a call.
enum InTheWay {
    Nobody,
    Itself,
    Other(String, String),
}

impl Waiting {
    fn in_the_way(&self, tenant: &str, agent: &str, weight: usize) -> InTheWay {
        if self.closed || weight > WAITING_OF_TENANT * PLACE {
            return InTheWay::Itself;
        }
        let of_tenant = self.tenants.get(tenant);
        let of_agent = of_tenant.and_then(|t| t.agents.get(agent));
        let own = of_agent.map_or(0, |a| a.weight) + weight;
        // Whoever has nothing waiting may always have one call.
        if of_agent.is_some() && own > WAITING_OF_AGENT * PLACE {
            return InTheWay::Itself;
        }
        let all = of_tenant.map_or(0, |t| t.weight) + weight;
        if let Some(of_tenant) = of_tenant.filter(|_| all > WAITING_OF_TENANT * PLACE) {
            return match of_tenant.heaviest_but(Some(agent)) {
                Some((other, has)) if has >= own => InTheWay::Other(tenant.to_owned(), other.to_owned()),
                _ => InTheWay::Itself,
            };
        }
        if self.weight + weight <= WAITING_BYTES {
            return InTheWay::Nobody;
        }
        let others = self.tenants.iter().filter(|(name, _)| *name != tenant);
        let Some((name, heaviest)) = others.max_by_key(|(_, t)| t.weight).filter(|(_, t)| t.weight >= all) else {
            return InTheWay::Itself;
        };
        heaviest
            .heaviest_but(None)
            .map_or(InTheWay::Itself, |(agent, _)| InTheWay::Other(name.clone(), agent.to_owned()))
    }

    fn add(&mut self, tenant: String, agent: String, job: Job, weight: usize) {
        self.weight += weight;
        if !self.tenants.contains_key(&tenant) {
            self.turns.push_back(tenant.clone());
        }
        let of_tenant = self.tenants.entry(tenant).or_default();
        of_tenant.weight += weight;
        if !of_tenant.agents.contains_key(&agent) {
            of_tenant.turns.push_back(agent.clone());
        }
        let of_agent = of_tenant.agents.entry(agent).or_default();
        of_agent.weight += weight;
        of_agent.jobs.push_back((job, weight));
    }

    /// The next call in turn.
    fn next(&mut self) -> Option<Job> {
        let tenant = self.turns.pop_front()?;
        let agent = self.tenants.get_mut(&tenant)?.turns.pop_front()?;
        // Who has no more is not in the turns either: `take` sees to it.
        if let Some(of_tenant) = self.tenants.get_mut(&tenant) {
            of_tenant.turns.push_back(agent.clone());
        }
        self.turns.push_back(tenant.clone());
        self.take(&tenant, &agent, VecDeque::pop_front)
    }

    /// Takes one of an agent's calls out.
    fn take(&mut self, tenant: &str, agent: &str, which: fn(&mut Jobs) -> Option<(Job, usize)>) -> Option<Job> {
        let of_tenant = self.tenants.get_mut(tenant)?;
        let of_agent = of_tenant.agents.get_mut(agent)?;
        let (job, weight) = which(&mut of_agent.jobs)?;
        of_agent.weight -= weight;
        of_tenant.weight -= weight;
        self.weight -= weight;
        if of_agent.jobs.is_empty() {
            of_tenant.agents.remove(agent);
            of_tenant.turns.retain(|a| a != agent);
        }
        if of_tenant.agents.is_empty() {
            self.tenants.remove(tenant);
            self.turns.retain(|t| t != tenant);
        }
        Some(job)
    }
}

impl OfTenant {
    /// The agent with the most that waits, besides this one.
    fn heaviest_but(&self, agent: Option<&str>) -> Option<(&str, usize)> {
        let others = self.agents.iter().filter(|(name, _)| Some(name.as_str()) != agent);
        others.max_by_key(|(_, a)| a.weight).map(|(name, a)| (name.as_str(), a.weight))
    }
}
