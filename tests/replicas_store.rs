//! Several replicas on one PostgreSQL: what they share, and what a crash on either side must not change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};
use sqlx::Row;

use crate::replicas::{Load, READS, WRITES, answers, change, object, outage, package, tenant};
use crate::support::postgres::{Server, connect};
use crate::support::{Http, Replicas, call, eventually, eventually_blocking};

/// Replicas with the PostgreSQL that they share: it can be stopped.
struct World {
    // Dropped first: what runs on the other.
    c: Replicas,
    postgres: Server,
}

impl World {
    fn start(n: usize) -> World {
        let postgres = Server::start_new();
        let url = postgres.url();
        let c = Replicas::start(n, &["--postgres-url", &url]);
        World { c, postgres }
    }

    /// Of two replicas the one that is to die at this point leads: it starts armed while the other has the lease, and gets it from there.
    fn armed_leader(&self, point: &str) -> (usize, usize) {
        let (armed, other) = (1 - self.c.leader(), self.c.leader());
        self.c.replica(armed).kill();
        self.c.arm(armed, "REMIT_FAULT", point);
        self.c.replica(armed).start();
        self.c.replica(other).stop();
        self.c.leader_but(other);
        self.c.replica(other).start();
        (armed, other)
    }

    /// Waits until every journal is shipped.
    fn shipped(&self) {
        eventually_blocking("every journal is shipped", || {
            let lags: Vec<_> = self.c.all().map(|o| o.metric("remit_journal_lag_rows")).collect();
            if lags.iter().all(|lag| *lag == Some(0.0)) { Ok(()) } else { Err(format!("{lags:?}")) }
        });
    }

    /// Decision ids of a tenant in PostgreSQL, with how often each is there.
    async fn recorded(&self, tenant: &str) -> BTreeMap<String, i64> {
        let mut conn = connect(&self.postgres.url()).await;
        let sql = "SELECT id, count(*) AS n FROM records WHERE tenant = $1 GROUP BY id";
        let rows = sqlx::query(sql).bind(tenant).fetch_all(&mut conn).await.unwrap();
        rows.iter().map(|r| (r.get("id"), r.get("n"))).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_go_on_without_postgresql_and_no_record_is_lost_or_kept_twice() {
    let mut w = World::start(3);
    let (tenant, token) = tenant(&w.c).await;
    let loads: Vec<Load> = (0..3).map(|i| Load::on(w.c.http_of(i), &token, &tenant)).collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    w.postgres.stop();
    tokio::time::sleep(outage(10)).await;
    // A crash in the middle of that loses nothing either: the journal is on the disk.
    let crashed = 1 - w.c.leader().min(1);
    w.postgres.start();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut answered = Vec::new();
    for load in loads {
        answered.extend(load.was_good().await);
    }
    w.c.replica(crashed).kill();
    w.c.replica(crashed).start();
    w.shipped();
    let recorded = w.recorded(&tenant).await;
    let missing: Vec<_> = answered.iter().filter(|id| !recorded.contains_key(*id)).collect();
    assert!(missing.is_empty(), "{} of {} are missing", missing.len(), answered.len());
    assert!(recorded.values().all(|n| *n == 1), "kept twice");
    // What comes into force after it comes into force everywhere.
    change(&w.c, &tenant);
    for i in 0..3 {
        answers(&w.c, i, &token, &tenant, "git/push", "allowed").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_the_same_at_every_replica() {
    let w = World::start(2);
    let (tenant, token) = tenant(&w.c).await;
    let post = async |i: usize, path: &str| {
        let http = w.c.http_of(i);
        let path = format!("/tenants/{tenant}/{path}");
        http.send(Method::POST, &path, Some(&token), &[("content-type", "application/json")], "{}").await.unwrap()
    };
    let opened = post(0, "sessions").await;
    assert_eq!(opened.status, 201, "{}", opened.text);
    let id = opened.json()["session"].as_str().unwrap().to_owned();
    let ask = async |i: usize| {
        let mut body = call("coder", "git/log", json!({}));
        body["context"]["session"] = json!(id);
        let answer = w.c.http_of(i).check(&token, &tenant, &body).await.unwrap();
        answer.json()["context"]["code"].as_str().unwrap_or(&answer.text).to_owned()
    };
    // At once: an agent does not wait between opening a session and using it.
    for i in [1, 0] {
        assert_eq!(ask(i).await, "allowed", "replica {i}");
    }
    assert_eq!(post(1, &format!("sessions/{id}/heartbeat")).await.status, 200);
    assert_eq!(post(1, &format!("sessions/{id}/end")).await.status, 200);
    assert_ne!(ask(1).await, "allowed");
    eventually("it has ended everywhere", || async {
        match ask(0).await {
            code if code == "allowed" => Err(code),
            _ => Ok(()),
        }
    })
    .await;
}

/// Every effect of a rollout's pass: the leader dies right after it.
const EFFECTS: &[&str] = &["rollout.bytes_kept", "rollout.committed", "rollout.status_written", "rollout.event_told"];

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_after_any_effect_of_a_rollout_leaves_one_declared_state() {
    let w = World::start(2);
    for point in EFFECTS {
        let (tenant, token) = tenant(&w.c).await;
        let (armed, other) = w.armed_leader(point);
        let load = Load::on(w.c.http_of(other), &token, &tenant);
        change(&w.c, &tenant);
        w.c.replica(armed).wait_ended();
        assert!(w.c.replica(armed).log().contains(&format!("fault point {point}")), "{point}");
        w.c.leader_but(armed);
        w.c.arm(armed, "REMIT_FAULT", "");
        w.c.replica(armed).start();
        for i in 0..2 {
            answers(&w.c, i, &token, &tenant, "git/push", "allowed").await;
        }
        load.was_good().await;
        eventually_blocking(&format!("{point}: one declared state"), || {
            let text = w.c.kubectl(&["get", "tenantrollout", "default", "-n", &tenant, "-o", "json"])?;
            let status = serde_json::from_str::<Value>(&text).map_err(|e| e.to_string())?["status"].clone();
            let done =
                status["phase"] == "Healthy" && status["stable"]["version"] == "2.0.0" && status["candidate"].is_null();
            if done { Ok(()) } else { Err(status.to_string()) }
        });
        // The store has it once.
        let mut conn = connect(&w.postgres.url()).await;
        let sql = "SELECT version, count(*) AS n FROM in_force WHERE tenant = $1 GROUP BY version";
        let rows = sqlx::query(sql).bind(&tenant).fetch_all(&mut conn).await.unwrap();
        let kept: BTreeMap<String, i64> = rows.iter().map(|r| (r.get("version"), r.get("n"))).collect();
        assert_eq!(kept, BTreeMap::from([("1.0.0".to_owned(), 1), ("2.0.0".to_owned(), 1)]), "{point}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_whose_leader_dies_is_carried_out_by_the_next_and_says_the_same() {
    let w = World::start(2);
    let (tenant, token) = tenant(&w.c).await;
    let rollout = json!({"package": {"name": "first", "version": "=1.0.0"}});
    w.c.apply(&tenant, &object("TenantRollout", "default", rollout)).unwrap();
    change(&w.c, &tenant);
    for i in 0..2 {
        answers(&w.c, i, &token, &tenant, "git/push", "no_permit").await;
    }
    w.shipped();
    // A whole second after all of that: the same decisions whenever it is asked for.
    let until = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + 1).unwrap();
    let (armed, _) = w.armed_leader("replay.page_done");
    let spec = json!({"candidate": {"name": "first", "version": "=2.0.0"}, "selection": {"until": until}});
    let replay = |name: &str| {
        w.c.apply(&tenant, &object("PolicyReplay", name, spec.clone())).unwrap();
        w.c.wait_for(&tenant, &format!("policyreplay/{name}"), "Ready");
        let text = w.c.kubectl(&["get", "policyreplay", name, "-n", &tenant, "-o", "json"]).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["status"].clone()
    };
    let first = replay("first");
    assert!(!w.c.replica(armed).leads(), "it has died: {first}");
    assert!(w.c.replica(armed).log().contains("fault point replay.page_done"));
    assert_eq!(first["state"], "completed", "{first}");
    assert!(first["counts"]["critical"].as_i64() > Some(0), "{first}");
    let again = replay("again");
    for same in ["counts", "inputFingerprint", "resultFingerprint", "verdict"] {
        assert_eq!(first[same], again[same], "{same}");
    }
}

/// Every effect of the pass that carries out a person's rollback.
const BACK: &[&str] = &[
    "rollout.bytes_kept",
    "rollout.committed",
    "rollout.status_written",
    "rollout.actions_removed",
    "rollout.event_told",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_after_any_effect_of_a_rollback_leaves_one_declared_state() {
    let w = World::start(2);
    let me = w.c.kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).unwrap();
    for point in BACK {
        let (tenant, token) = tenant(&w.c).await;
        change(&w.c, &tenant);
        for i in 0..2 {
            answers(&w.c, i, &token, &tenant, "git/push", "allowed").await;
        }
        let status = || {
            let text = w.c.kubectl(&["get", "tenantrollout", "default", "-n", &tenant, "-o", "json"])?;
            Ok::<_, String>(serde_json::from_str::<Value>(&text).map_err(|e| e.to_string())?["status"].clone())
        };
        let settled = eventually_blocking("the change has settled", || {
            let s = status()?;
            if s["phase"] == "Healthy" && s["candidate"].is_null() { Ok(s) } else { Err(s.to_string()) }
        });
        let (armed, other) = w.armed_leader(point);
        let load = Load::on(w.c.http_of(other), &token, &tenant);
        let entry = json!({
            "id": "undo", "actor": me, "action": "rollback", "reason": "writes are wrong",
            "digest": settled["stable"]["digest"],
        });
        let body = json!({
            "apiVersion": "remit.dev/v1alpha1", "kind": "TenantRollout", "metadata": {"name": "default"},
            "status": {"actions": [entry]},
        });
        let args = ["--server-side", "--subresource=status", "--field-manager=undo"];
        w.c.apply_with(&tenant, &body.to_string(), &args).unwrap();
        w.c.replica(armed).wait_ended();
        assert!(w.c.replica(armed).log().contains(&format!("fault point {point}")), "{point}");
        w.c.leader_but(armed);
        w.c.arm(armed, "REMIT_FAULT", "");
        w.c.replica(armed).start();
        for i in 0..2 {
            answers(&w.c, i, &token, &tenant, "git/push", "no_permit").await;
        }
        load.was_good().await;
        let end = eventually_blocking(&format!("{point}: one declared state"), || {
            let s = status()?;
            let open = s["actions"].as_array().is_some_and(|a| !a.is_empty());
            let done =
                s["phase"] == "Degraded" && s["stable"]["version"] == "1.0.0" && s["candidate"].is_null() && !open;
            if done { Ok(s) } else { Err(s.to_string()) }
        });
        // Once: one step back, one word on it, one row.
        let handled = end["handled"].as_array().unwrap();
        assert_eq!(handled.len(), 1, "{point}: {end}");
        assert!(handled[0]["result"].as_str().unwrap().starts_with("done"), "{point}: {end}");
        assert_eq!(end["stable"]["revision"], 3, "{point}: {end}");
        let mut conn = connect(&w.postgres.url()).await;
        let sql = "SELECT revision, version FROM in_force WHERE tenant = $1 ORDER BY revision";
        let rows = sqlx::query(sql).bind(&tenant).fetch_all(&mut conn).await.unwrap();
        let kept: Vec<(i64, String)> = rows.iter().map(|r| (r.get("revision"), r.get("version"))).collect();
        let right = [(1, "1.0.0"), (2, "2.0.0"), (3, "1.0.0")].map(|(n, v)| (n, v.to_owned()));
        assert_eq!(kept, right, "{point}");
    }
}

/// Asks all replicas in turn about every session, for as long as it runs: by session, when it was answered by which package.
struct Watcher {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<BTreeMap<String, Vec<(Instant, bool)>>>,
}

impl Watcher {
    fn on(replicas: Vec<Http>, token: &str, tenant: &str, sessions: &[String]) -> Watcher {
        let (stop, token, tenant) = (Arc::new(AtomicBool::new(false)), token.to_owned(), tenant.to_owned());
        let (stopped, sessions) = (stop.clone(), sessions.to_vec());
        let task = tokio::spawn(async move {
            let mut seen: BTreeMap<String, Vec<(Instant, bool)>> = BTreeMap::new();
            while !stopped.load(Ordering::SeqCst) {
                for session in &sessions {
                    for http in &replicas {
                        let mut body = call("coder", "git/push", json!({}));
                        body["context"]["session"] = json!(session);
                        // A replica that is gone answers nothing, and that is no answer under another package.
                        if let Ok(answer) = http.check(&token, &tenant, &body).await
                            && let Some(candidate) = answer.json()["decision"].as_bool()
                        {
                            seen.entry(session.clone()).or_default().push((Instant::now(), candidate));
                        }
                    }
                }
            }
            seen
        });
        Watcher { stop, task }
    }

    async fn end(self) -> BTreeMap<String, Vec<(Instant, bool)>> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.unwrap()
    }
}

/// From the first answer under the candidate on, for so long a session may be answered by both: what propagation takes, and much more.
const WINDOW: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn no_session_is_answered_under_two_packages_though_leaders_die() {
    let w = World::start(3);
    let (tenant, token) = tenant(&w.c).await;
    let stage = |percent| json!({"percent": percent, "minSeconds": 0, "minDecisions": 0, "gate": "Manual"});
    let rollout = json!({
        "stages": [stage(50), {"percent": 100, "minSeconds": 0, "minDecisions": 0}],
        "onInconclusive": "Proceed",
        "budgets": {
            "criticalDrift": 1_000_000, "highDrift": 1_000_000, "denialGrowthPercent": 100, "errorPercent": 100,
            "latencyGrowthPercent": 10_000, "shadowPercent": 100,
        },
    });
    w.c.apply(&tenant, &object("TenantRollout", "default", rollout)).unwrap();
    let mut sessions = Vec::new();
    for n in 0..24 {
        let path = format!("/tenants/{tenant}/sessions");
        let http = w.c.http_of(n % 3);
        let opened = http.send(Method::POST, &path, Some(&token), &[("content-type", "application/json")], "{}").await;
        let opened = opened.unwrap();
        sessions.push(opened.json()["session"].as_str().unwrap_or_else(|| panic!("{}", opened.text)).to_owned());
    }
    let watcher = Watcher::on((0..3).map(|i| w.c.http_of(i)).collect(), &token, &tenant, &sessions);
    w.c.apply(&tenant, &package("2.0.0", &[READS, WRITES])).unwrap();
    let at = |percent: i64| {
        eventually_blocking(&format!("{percent} % of the sessions are the candidate's"), || {
            let path = "jsonpath={.status.percent}";
            let now = w.c.kubectl(&["get", "tenantrollout", "default", "-n", &tenant, "-o", path])?;
            if now == percent.to_string() { Ok(()) } else { Err(now) }
        });
    };
    at(50);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let first = w.c.leader();
    w.c.replica(first).kill();
    let next = w.c.leader_but(first);
    w.c.replica(first).start();
    // Two leaders for a moment.
    w.c.replica(next).signal("STOP");
    w.c.leader_but(next);
    w.c.replica(next).signal("CONT");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let seen = watcher.end().await;
    at(50);
    let mut moved = BTreeSet::new();
    for (session, answers) in &seen {
        let Some((first, _)) = answers.iter().find(|(_, candidate)| *candidate) else { continue };
        moved.insert(session.clone());
        let back = answers.iter().filter(|(at, candidate)| !candidate && *at > *first + WINDOW).count();
        assert_eq!(back, 0, "session {session} was answered by the old package long after the new one");
    }
    assert_eq!(seen.len(), sessions.len());
    assert!(!moved.is_empty() && moved.len() < sessions.len(), "{} of {} moved", moved.len(), sessions.len());
    // And now, all replicas say the same of each.
    for session in &sessions {
        let mut said = BTreeSet::new();
        for i in 0..3 {
            let mut body = call("coder", "git/push", json!({}));
            body["context"]["session"] = json!(session);
            let answer = w.c.http_of(i).check(&token, &tenant, &body).await.unwrap();
            said.insert(answer.json()["decision"].as_bool());
        }
        assert_eq!(said, BTreeSet::from([Some(moved.contains(session))]), "{session}");
    }
}
