//! A rollout in a stage, on a real control plane: sessions are shared out, each stays where it is, and the records say where.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use remit::api::PolicyPackageSpec;
use remit::policy::digest;
use serde_json::{Value, json};

use crate::operator::{READS, WRITES, agent, package, spec};
use crate::support::{Cluster, cluster, eventually, eventually_blocking};

/// Sessions that are watched: that all of them land on one arm of a half happens once in 2^39.
const SESSIONS: usize = 40;

/// Stages that only a person ends, and budgets that nothing here exceeds: the candidate lets more through, which is what is seen.
fn rollout() -> String {
    let stage = |percent| json!({"percent": percent, "minSeconds": 0, "minDecisions": 0, "gate": "Manual"});
    json!({
        "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"},
        "spec": {
            "stages": [stage(50), stage(80), {"percent": 100, "minSeconds": 0, "minDecisions": 0}],
            "onInconclusive": "Proceed",
            "budgets": {
                "criticalDrift": 1_000_000, "highDrift": 1_000_000, "denialGrowthPercent": 100, "errorPercent": 100,
                "latencyGrowthPercent": 10_000, "shadowPercent": 100,
            },
        },
    })
    .to_string()
}

struct World<'a> {
    c: &'a Cluster,
    tenant: String,
    token: String,
    /// Sessions of agents `a0` to `a3`.
    sessions: Vec<(String, String)>,
}

impl<'a> World<'a> {
    /// 1.0.0 in force, under which nobody writes, and sessions that are open.
    async fn new(c: &'a Cluster, prefix: &str) -> Self {
        let tenant = c.namespace(prefix).await;
        for n in 0..4 {
            c.apply(&tenant, &agent(&format!("a{n}"), &format!("a{n}"), 2)).unwrap();
        }
        c.apply(&tenant, &rollout()).unwrap();
        c.put(&tenant, &spec("1.0.0", &[READS]));
        let token = c.token_for(&tenant, "gateway", "remit").await;
        c.bind(&tenant, "remit-gateway", "gateway");
        let mut world = Self { c, tenant, token, sessions: Vec::new() };
        world.answered("a0", None, "files/read", "allowed").await;
        for n in 0..SESSIONS {
            let name = format!("a{}", n % 4);
            let path = format!("/tenants/{}/sessions", world.tenant);
            let body = json!({"agent": name}).to_string();
            let json = [("content-type", "application/json")];
            let opened = c.http().send(Method::POST, &path, Some(&world.token), &json, body).await.unwrap();
            let session = opened.json()["session"].as_str().unwrap_or_else(|| panic!("{}", opened.text)).to_owned();
            world.sessions.push((name, session));
        }
        world
    }

    /// Applies a candidate.
    fn candidate(&self, candidate: &PolicyPackageSpec) {
        self.c.apply(&self.tenant, &package(candidate).1).unwrap();
    }

    /// Waits until so many sessions of 100 are the candidate's.
    fn at(&self, percent: i64) -> Value {
        eventually_blocking(&format!("{percent} % of the sessions are the candidate's"), || {
            let status = self.c.rollout(&self.tenant)["status"].clone();
            if status["percent"] == percent { Ok(status) } else { Err(status.to_string()) }
        })
    }

    async fn ask(&self, agent: &str, session: Option<&str>, tool: &str) -> Value {
        let mut body = crate::support::call(agent, tool, json!({}));
        if let Some(session) = session {
            body["context"]["session"] = json!(session);
        }
        self.c.check(&self.token, &self.tenant, &body).await.1
    }

    async fn answered(&self, agent: &str, session: Option<&str>, tool: &str, code: &str) {
        eventually(&format!("{tool} is answered {code}"), || async {
            let body = self.ask(agent, session, tool).await;
            if body["context"]["code"] == code { Ok(()) } else { Err(body.to_string()) }
        })
        .await;
    }

    /// Which sessions may write now, with the digest that each was evaluated under.
    async fn writers(&self) -> BTreeMap<String, (bool, String)> {
        let mut out = BTreeMap::new();
        for (agent, session) in &self.sessions {
            let body = self.ask(agent, Some(session), "files/write").await;
            let allowed = body["decision"].as_bool().unwrap_or_else(|| panic!("{body}"));
            let digest = body["context"]["digests"]["tenant"][0].as_str().unwrap().to_owned();
            out.insert(session.clone(), (allowed, digest));
        }
        out
    }

    fn metric(&self, name: &str, labels: &str) -> u64 {
        let (_, text) = self.c.operator.get("/metrics").unwrap();
        let line = format!("{name}{{tenant=\"{}\"{labels}}} ", self.tenant);
        text.lines().find_map(|l| l.strip_prefix(&line)).map_or(0, |n| n.parse().unwrap())
    }
}

#[tokio::test]
async fn a_stage_routes_sessions_and_the_records_say_where() {
    let w = World::new(cluster(), "arms").await;
    let (old, new) = (digest(&spec("1.0.0", &[READS])), digest(&spec("1.1.0", &[READS, WRITES])));
    assert!(w.writers().await.values().all(|(allowed, under)| !allowed && *under == old));
    w.candidate(&spec("1.1.0", &[READS, WRITES]));
    let status = w.at(50);
    let revision = status["candidate"]["revision"].as_i64().unwrap();
    // From the status to every replica's snapshot it takes a moment.
    let settled = eventually("some sessions are answered under the candidate", || async {
        let now = w.writers().await;
        let canary = now.values().filter(|(allowed, _)| *allowed).count();
        if canary > 0 { Ok(now) } else { Err(format!("{canary} of {SESSIONS}")) }
    })
    .await;
    let canary = settled.values().filter(|(allowed, _)| *allowed).count();
    assert!(canary < SESSIONS, "and the others are not");
    for (allowed, under) in settled.values() {
        assert_eq!(under, if *allowed { &new } else { &old });
    }
    for _ in 0..3 {
        assert!(w.writers().await == settled, "a session keeps its arm for the whole stage");
    }

    // What the record says.
    let kept = crate::checks::list(w.c, &w.tenant, "action=call_tool&limit=1000").await;
    let mut arms: BTreeMap<String, u64> = BTreeMap::new();
    for record in kept.iter().map(|d| &d["record"]).filter(|r| r["revision"] == revision) {
        let (allowed, under) = &settled[record["request"]["session"].as_str().unwrap()];
        let arm = if *allowed { "canary" } else { "stable" };
        assert_eq!(record["arm"], arm, "{record}");
        assert_eq!(record["digests"]["tenant"], json!([under]));
        *arms.entry(arm.into()).or_default() += 1;
    }
    assert!(arms["canary"] >= canary as u64 * 3 && arms["stable"] >= 3, "{arms:?}");

    // What is counted of it. Every one of these calls is decided otherwise by the other package.
    eventually_blocking("the shadow has compared them", || {
        let (compared, critical) = (
            w.metric("remit_shadow_compared_total", ""),
            w.metric("remit_shadow_drift_total", ",severity=\"critical\""),
        );
        if compared >= 3 * SESSIONS as u64 && critical == compared {
            Ok(())
        } else {
            Err(format!("{critical} of {compared}"))
        }
    });
    let counted = |arm: &str, outcome: &str| {
        w.metric("remit_rollout_decisions_total", &format!(",arm=\"{arm}\",outcome=\"{outcome}\""))
    };
    assert_eq!((counted("canary", "deny"), counted("stable", "allow")), (0, 0));
    assert!(counted("canary", "allow") > 0 && counted("stable", "deny") > 0);
}

/// A restart, as another replica would, finds every session where it was; and as stages grow sessions only ever come to the candidate.
#[tokio::test]
async fn arms_outlive_a_restart_and_only_grow() {
    let c = Cluster::start_own();
    let w = World::new(&c, "stages").await;
    w.candidate(&spec("1.1.0", &[READS, WRITES]));
    w.at(50);
    let before = eventually("some sessions are answered under the candidate", || async {
        let now = w.writers().await;
        if now.values().any(|(allowed, _)| *allowed) { Ok(now) } else { Err(String::new()) }
    })
    .await;
    c.operator.kill();
    c.operator.start();
    assert!(w.writers().await == before, "the same key, the same revision, the same arms");

    promote(&w);
    w.at(80);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let later = w.writers().await;
    for (session, (allowed, _)) in &before {
        assert!(!allowed || later[session].0, "session {session} went back to what was in force");
    }
    let count = |all: &BTreeMap<String, (bool, String)>| all.values().filter(|(allowed, _)| *allowed).count();
    assert!(count(&later) >= count(&before));

    promote(&w);
    c.in_force(&w.tenant, &digest(&spec("1.1.0", &[READS, WRITES])));
    assert_eq!(count(&w.writers().await), SESSIONS);
}

/// As a person does it: one entry more in the list of actions.
fn promote(w: &World<'_>) {
    let id = format!("p-{}", crate::support::unique());
    let actor = w.c.kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).unwrap();
    let status = w.c.rollout(&w.tenant)["status"].clone();
    let has = !status["actions"].is_null();
    let entry = json!({"id": id, "actor": actor, "action": "promote", "digest": status["candidate"]["digest"]});
    let patch = match has {
        true => json!([{"op": "add", "path": "/status/actions/-", "value": entry}]),
        false => json!([{"op": "add", "path": "/status/actions", "value": [entry]}]),
    };
    let patch = format!("-p={patch}");
    w.c.kubectl(&["patch", "tenantrollout", "default", "-n", &w.tenant, "--subresource=status", "--type=json", &patch])
        .unwrap();
}
