//! Sessions: one run of one agent, its id issued by Remit. Issue, heartbeat, end, and the end by silence.
//!
//! Pure: ids and time come in as arguments, what must be kept goes out as rows. A session is only ever found together with
//! whom it belongs to, so that nobody can borrow, prolong or end another's, and a re-created agent or namespace inherits none.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

use crate::gate::SessionState;
use crate::store::SessionRow;

/// Live sessions that one agent may have.
pub const MAX_PER_AGENT: usize = 1000;

/// To whom a session belongs. The UIDs make a re-created agent or namespace another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Namespace.
    pub tenant: String,
    /// UID of the namespace.
    pub tenant_uid: String,
    /// Name of the agent.
    pub agent: String,
    /// UID of the agent.
    pub agent_uid: String,
}

impl Owner {
    fn owns(&self, row: &SessionRow) -> bool {
        row.agent_uid == self.agent_uid
            && row.agent == self.agent
            && row.tenant_uid == self.tenant_uid
            && row.tenant == self.tenant
    }

    fn of(row: &SessionRow) -> Self {
        Self {
            tenant: row.tenant.clone(),
            tenant_uid: row.tenant_uid.clone(),
            agent: row.agent.clone(),
            agent_uid: row.agent_uid.clone(),
        }
    }
}

/// What can't be done with a session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Unknown, ended, expired, or another's: not told apart.
    #[error("no live session of this agent has this id")]
    Unknown,
    /// The agent has too many.
    #[error("the agent has {MAX_PER_AGENT} live sessions already: end some first")]
    TooMany,
}

/// The live sessions, and how many each agent has.
#[derive(Debug, Default)]
pub struct SessionTable {
    live: HashMap<String, SessionRow>,
    per_agent: HashMap<Owner, usize>,
    /// What ended lately, and when that was heard of: what is read late of a session must not make it live again.
    over: HashMap<String, Timestamp>,
}

impl SessionTable {
    /// The table as it was kept; rows that have ended are left out.
    pub fn load(rows: impl IntoIterator<Item = SessionRow>) -> Self {
        let mut table = Self::default();
        for row in rows.into_iter().filter(|row| row.ended.is_none()) {
            table.insert(row);
        }
        table
    }

    /// How many are live.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether none is live.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Begins a session under a new id. The row must be kept before anybody hears of the id.
    pub fn issue(&mut self, id: String, owner: Owner, now: Timestamp) -> Result<SessionRow, SessionError> {
        if self.per_agent.get(&owner).is_some_and(|n| *n >= MAX_PER_AGENT) {
            return Err(SessionError::TooMany);
        }
        let Owner { tenant, tenant_uid, agent, agent_uid } = owner;
        let row = SessionRow { id, tenant, tenant_uid, agent, agent_uid, started: now, last_seen: now, ended: None };
        self.insert(row.clone());
        Ok(row)
    }

    /// A sign of life. One that comes after the session's time is too late.
    pub fn heartbeat(
        &mut self,
        id: &str,
        owner: &Owner,
        now: Timestamp,
        timeout_seconds: i64,
    ) -> Result<SessionRow, SessionError> {
        if self.state(Some(id), owner, now, timeout_seconds) != SessionState::Live {
            return Err(SessionError::Unknown);
        }
        let row = self.live.get_mut(id).ok_or(SessionError::Unknown)?;
        row.last_seen = row.last_seen.max(now);
        Ok(row.clone())
    }

    /// Ends a session.
    pub fn end(&mut self, id: &str, owner: &Owner, now: Timestamp) -> Result<SessionRow, SessionError> {
        if !self.live.get(id).is_some_and(|row| owner.owns(row)) {
            return Err(SessionError::Unknown);
        }
        self.remove(id, now, "ended").ok_or(SessionError::Unknown)
    }

    /// Whether the table says anything of this id.
    pub fn knows(&self, id: &str) -> bool {
        self.live.contains_key(id) || self.over.contains_key(id)
    }

    /// Takes over what the store says of a session, which another replica may have opened, prolonged or ended. To whom it belongs never
    /// changes; what has ended stays ended.
    pub fn adopt(&mut self, row: SessionRow, now: Timestamp) {
        if row.ended.is_some() {
            if let Some(former) = self.live.remove(&row.id) {
                self.uncount(&former);
            }
            self.over.insert(row.id, now);
        } else if let Some(known) = self.live.get_mut(&row.id) {
            known.last_seen = known.last_seen.max(row.last_seen);
        } else if !self.over.contains_key(&row.id) {
            self.insert(row);
        }
    }

    /// Sessions that have been silent for too long as far as this table knows, with the instant since which they have been.
    pub fn silent(&self, now: Timestamp, timeout_seconds: impl Fn(&SessionRow) -> i64) -> Vec<(SessionRow, Timestamp)> {
        let silent = self.live.values().filter_map(|row| {
            let timeout = timeout_seconds(row);
            let since = now.checked_sub(SignedDuration::from_secs(timeout)).ok()?;
            silent(row, now, timeout).then(|| (row.clone(), since))
        });
        silent.collect()
    }

    /// Forgets what ended so many seconds ago.
    pub fn forget_ended(&mut self, now: Timestamp, seconds: i64) {
        self.over.retain(|_, at| now.duration_since(*at) < SignedDuration::from_secs(seconds));
    }

    /// Takes back a session that could not be kept, and whose id nobody has heard.
    pub fn forget(&mut self, id: &str) {
        if let Some(row) = self.live.remove(id) {
            self.uncount(&row);
        }
    }

    /// What a check is told. Says Unknown from the very instant of expiry, not only once it was swept.
    pub fn state(&self, id: Option<&str>, owner: &Owner, now: Timestamp, timeout_seconds: i64) -> SessionState {
        let Some(id) = id else { return SessionState::NotNamed };
        match self.live.get(id) {
            Some(row) if owner.owns(row) && !silent(row, now, timeout_seconds) => SessionState::Live,
            _ => SessionState::Unknown,
        }
    }

    /// To whom a live session of this namespace belongs: for gateways, that name only the session.
    pub fn owner(&self, id: &str, tenant: &str, tenant_uid: &str) -> Option<Owner> {
        self.live.get(id).filter(|row| row.tenant == tenant && row.tenant_uid == tenant_uid).map(Owner::of)
    }

    /// Ends what has been silent for too long; the rows are to be kept. `timeout_seconds` is asked by tenant.
    pub fn expire(&mut self, now: Timestamp, timeout_seconds: impl Fn(&SessionRow) -> i64) -> Vec<SessionRow> {
        let silent: Vec<String> =
            self.live.values().filter(|row| silent(row, now, timeout_seconds(row))).map(|row| row.id.clone()).collect();
        silent.iter().filter_map(|id| self.remove(id, now, "expired")).collect()
    }

    fn insert(&mut self, row: SessionRow) {
        let owner = Owner::of(&row);
        if let Some(former) = self.live.insert(row.id.clone(), row) {
            self.uncount(&former);
        }
        *self.per_agent.entry(owner).or_default() += 1;
    }

    fn remove(&mut self, id: &str, now: Timestamp, why: &str) -> Option<SessionRow> {
        let mut row = self.live.remove(id)?;
        self.uncount(&row);
        row.ended = Some((now, why.to_owned()));
        self.over.insert(row.id.clone(), now);
        Some(row)
    }

    fn uncount(&mut self, row: &SessionRow) {
        let owner = Owner::of(row);
        if let Some(n) = self.per_agent.get_mut(&owner) {
            *n -= 1;
            if *n == 0 {
                self.per_agent.remove(&owner);
            }
        }
    }
}

fn silent(row: &SessionRow, now: Timestamp, timeout_seconds: i64) -> bool {
    now.duration_since(row.last_seen) >= SignedDuration::from_secs(timeout_seconds)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn owner(agent: &str) -> Owner {
        Owner { tenant: "acme".into(), tenant_uid: "ns-1".into(), agent: agent.into(), agent_uid: format!("{agent}-1") }
    }

    #[test]
    fn lives_by_heartbeats_and_ends_by_silence_to_the_second() {
        let mut table = SessionTable::default();
        let me = owner("coder");
        table.issue("s".into(), me.clone(), at(0)).unwrap();
        assert_eq!(table.state(Some("s"), &me, at(899), 900), SessionState::Live);
        assert_eq!(table.state(Some("s"), &me, at(900), 900), SessionState::Unknown, "before any sweep");
        assert_eq!(table.heartbeat("s", &me, at(900), 900), Err(SessionError::Unknown), "too late to live again");
        let ended = table.expire(at(900), |_| 900);
        assert_eq!(ended[0].ended, Some((at(900), "expired".into())));
        assert!(table.is_empty());

        table.issue("t".into(), me.clone(), at(1000)).unwrap();
        table.heartbeat("t", &me, at(1800), 900).unwrap();
        assert_eq!(table.state(Some("t"), &me, at(2699), 900), SessionState::Live);
        assert!(table.expire(at(2699), |_| 900).is_empty());
        assert_eq!(table.end("t", &me, at(2699)).unwrap().ended, Some((at(2699), "ended".into())));
        assert_eq!(table.end("t", &me, at(2699)), Err(SessionError::Unknown));
        assert_eq!(table.state(None, &me, at(2699), 900), SessionState::NotNamed);
    }

    #[test]
    fn nobody_borrows_prolongs_or_ends_anothers() {
        let mut table = SessionTable::default();
        table.issue("s".into(), owner("coder"), at(0)).unwrap();
        let recreated_agent = Owner { agent_uid: "coder-2".into(), ..owner("coder") };
        let recreated_namespace = Owner { tenant_uid: "ns-2".into(), ..owner("coder") };
        let other_tenant = Owner { tenant: "evil".into(), tenant_uid: "ns-9".into(), ..owner("coder") };
        for other in [owner("planner"), recreated_agent, recreated_namespace, other_tenant] {
            assert_eq!(table.state(Some("s"), &other, at(1), 900), SessionState::Unknown);
            assert_eq!(table.heartbeat("s", &other, at(1), 900), Err(SessionError::Unknown));
            assert_eq!(table.end("s", &other, at(1)), Err(SessionError::Unknown));
        }
        assert_eq!(table.owner("s", "evil", "ns-9"), None);
        assert_eq!(table.owner("s", "acme", "ns-2"), None);
        assert_eq!(table.owner("s", "acme", "ns-1"), Some(owner("coder")));
        assert_eq!(table.state(Some("s"), &owner("coder"), at(1), 900), SessionState::Live);
    }

    #[test]
    fn sessions_of_one_agent_are_bounded_and_the_others_are_not_touched() {
        let mut table = SessionTable::default();
        for n in 0..MAX_PER_AGENT {
            table.issue(format!("s{n}"), owner("coder"), at(0)).unwrap();
        }
        assert_eq!(table.issue("x".into(), owner("coder"), at(0)), Err(SessionError::TooMany));
        table.issue("y".into(), owner("planner"), at(0)).unwrap();
        table.end("s7", &owner("coder"), at(1)).unwrap();
        table.issue("x".into(), owner("coder"), at(1)).unwrap();
        table.forget("x");
        table.issue("z".into(), owner("coder"), at(1)).unwrap();
    }

    #[test]
    fn a_restart_keeps_them() {
        let mut table = SessionTable::default();
        let live = table.issue("s".into(), owner("coder"), at(0)).unwrap();
        table.issue("t".into(), owner("coder"), at(0)).unwrap();
        let ended = table.end("t", &owner("coder"), at(1)).unwrap();
        let again = SessionTable::load([live, ended]);
        assert_eq!(again.len(), 1);
        assert_eq!(again.state(Some("s"), &owner("coder"), at(2), 900), SessionState::Live);
        assert_eq!(again.state(Some("t"), &owner("coder"), at(2), 900), SessionState::Unknown);
    }

    #[test]
    fn what_the_store_says_is_taken_over_and_nothing_lives_again() {
        let (mut here, mut there) = (SessionTable::default(), SessionTable::default());
        let me = owner("coder");
        let row = there.issue("s".into(), me.clone(), at(0)).unwrap();
        here.adopt(row.clone(), at(1));
        assert_eq!(here.state(Some("s"), &me, at(899), 900), SessionState::Live);
        let seen = there.heartbeat("s", &me, at(800), 900).unwrap();
        assert_eq!(here.silent(at(900), |_| 900), [(row.clone(), at(0))], "it has not heard of the heartbeat yet");
        here.adopt(seen.clone(), at(900));
        here.adopt(row.clone(), at(900));
        assert_eq!(here.state(Some("s"), &me, at(1699), 900), SessionState::Live, "a late read does not move it back");
        assert!(here.silent(at(1699), |_| 900).is_empty());
        assert_eq!(here.len(), 1, "counted once");
        let ended = there.end("s", &me, at(1000)).unwrap();
        here.adopt(ended, at(1001));
        here.adopt(seen.clone(), at(1002));
        assert_eq!(here.state(Some("s"), &me, at(1002), 900), SessionState::Unknown);
        there.adopt(seen, at(1002));
        assert!(there.is_empty(), "what ended here neither");
        there.forget_ended(at(1900), 900);
        assert!(!there.knows("s"));
    }

    proptest! {
        /// Whatever happens in whatever order: the count per agent is what the table holds, and nothing lives past its time.
        #[test]
        fn counts_and_time_hold(ops in proptest::collection::vec((0u8..5, 0u8..6, 0u8..2, 0i64..30), 1..120)) {
            let mut table = SessionTable::default();
            let mut now = 0;
            for (op, id, agent, step) in ops {
                now += step;
                let me = owner(if agent == 0 { "coder" } else { "planner" });
                let id = format!("{id}-{}", if op == 0 { now } else { now - step });
                match op {
                    0 => { let _ = table.issue(id, me, at(now)); }
                    1 => { let _ = table.heartbeat(&id, &me, at(now), 20); }
                    2 => { let _ = table.end(&id, &me, at(now)); }
                    3 => { for row in table.expire(at(now), |_| 20) { prop_assert!(now - (row.last_seen.as_second() - at(0).as_second()) >= 20); } }
                    _ => table.forget(&id),
                }
                for agent in ["coder", "planner"] {
                    let held = table.live.values().filter(|row| row.agent == agent).count();
                    prop_assert_eq!(table.per_agent.get(&owner(agent)).copied().unwrap_or(0), held);
                }
                for row in table.live.values() {
                    let state = table.state(Some(&row.id), &Owner::of(row), at(now), 20);
                    prop_assert_eq!(state == SessionState::Live, !silent(row, at(now), 20));
                }
            }
        }
    }
}
