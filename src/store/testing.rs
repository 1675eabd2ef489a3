//! Records for the store's own tests.

pub mod postgres;

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::gate::{ActionRef, Caller, CheckRequest, DecisionRecord, EntityRef, Outcome};
use crate::policy::{CallerKind, PolicyRef};

/// Record number `n` of a tenant, one second after the former; its id is in the order of time.
pub fn record(tenant: &str, n: u64) -> DecisionRecord {
    let time = Timestamp::from_second(1_800_000_000 + i64::try_from(n).unwrap()).unwrap();
    DecisionRecord {
        id: format!("01900000-0000-7000-8000-{n:012x}"),
        time,
        tenant: tenant.into(),
        tenant_uid: format!("uid-{tenant}"),
        request_id: None,
        caller: Caller {
            username: format!("system:serviceaccount:{tenant}:coder"),
            kind: CallerKind::Agent,
            agent: Some((tenant.into(), "coder".into())),
            stale: false,
        },
        agent: "coder".into(),
        delegated_from: None,
        request: CheckRequest {
            subject: EntityRef { type_: "agent".into(), id: "coder".into(), ..Default::default() },
            action: ActionRef { name: "call_tool".into(), ..Default::default() },
            resource: EntityRef { type_: "tool".into(), id: "git/status".into(), ..Default::default() },
            ..Default::default()
        },
        facts: crate::gate::RecordedFacts::default(),
        arm: "stable".into(),
        revision: None,
        digests: BTreeMap::new(),
        outcome: Outcome::Allow,
        code: "allowed".into(),
        reason: String::new(),
        policies: vec![PolicyRef {
            id: "tenant/base/reads".into(),
            reason: None,
            code: None,
            text_hash: "00".into(),
            ask: None,
            grants_tenants: false,
        }],
        asks: vec![],
        errors: vec![],
        observed: false,
        would_be: None,
        latency_micros: 12,
    }
}
