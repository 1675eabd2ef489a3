//! No allow without its record: what a client saw is there after a crash, and the chain shows what was changed.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use crate::support::{Cluster, call};

const PACKAGE: &str = r#"
apiVersion: remit.dev/v1alpha1
kind: PolicyPackage
metadata: {name: first-1.0.0}
spec:
  package: first
  version: 1.0.0
  tools: [{name: git/log, tier: read}]
  policies:
    - name: main.cedar
      text: '@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");'
---
apiVersion: remit.dev/v1alpha1
kind: Agent
metadata: {name: coder}
spec: {identities: [{serviceAccount: coder}], trustLevel: 1}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_load_loses_no_allow_that_a_client_saw() {
    let c = Cluster::start_own();
    let tenant = c.namespace("crash").await;
    c.apply(&tenant, PACKAGE).unwrap();
    let token = c.token_for(&tenant, "coder", "remit").await;
    c.answered(&token, &tenant, &call("coder", "git/log", json!({})), "allowed").await;

    let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (http, tenant, token) = (c.http(), tenant.clone(), token.clone());
            let (seen, stop) = (seen.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let Ok(answer) = http.check(&token, &tenant, &call("coder", "git/log", json!({}))).await else {
                        break;
                    };
                    let body = answer.json();
                    if body["decision"] == true {
                        seen.lock().unwrap().push(body["context"]["decision_id"].as_str().unwrap().to_owned());
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    c.operator.kill();
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let seen = seen.lock().unwrap().clone();
    assert!(seen.len() > 20, "the load was real: {}", seen.len());

    c.operator.start();
    let kept = crate::checks::list(&c, &tenant, "outcome=allow&limit=1000").await;
    let mut ids: std::collections::HashSet<String> =
        kept.iter().map(|d| d["record"]["id"].as_str().unwrap().to_owned()).collect();
    if seen.len() >= ids.len() {
        // More than a page: ask for each.
        let auditor = c.token_for(&tenant, "auditor", "remit-admin").await;
        for id in &seen {
            let path = format!("/admin/tenants/{tenant}/decisions/{id}");
            if !ids.contains(id) && c.http().get(&path, &auditor).await.unwrap().status == 200 {
                ids.insert(id.clone());
            }
        }
    }
    let lost: Vec<_> = seen.iter().filter(|id| !ids.contains(*id)).collect();
    assert!(lost.is_empty(), "{} of {} allows have no record: {lost:?}", lost.len(), seen.len());

    // The chain went on over the crash; what is changed afterwards is found.
    c.answered(&token, &tenant, &call("coder", "git/log", json!({})), "allowed").await;
    assert_eq!(c.operator.stop(), Some(0), "a graceful stop");
    let anchor = c.operator.data().join("anchor.yaml");
    let maps = c.kubectl(&["get", "configmaps", "-n", "remit-system", "-o", "name"]).unwrap();
    let name = maps.lines().find(|n| n.contains("remit-anchor-")).expect("the anchor was published").to_owned();
    std::fs::write(&anchor, c.kubectl(&["get", &name, "-n", "remit-system", "-o", "yaml"]).unwrap()).unwrap();
    let verify = |database: &std::path::Path| {
        let out = Command::new(env!("CARGO_BIN_EXE_remit"))
            .args(["audit", "verify", "--db"])
            .arg(database)
            .arg("--anchor")
            .arg(&anchor)
            .output()
            .unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
    };
    let database = c.operator.data().join("remit.db");
    let (code, said) = verify(&database);
    assert_eq!(code, Some(0), "{said}");

    let edit = |name: &str, sql: &'static str| {
        let copy = c.operator.data().join(name);
        std::fs::copy(&database, &copy).unwrap();
        (copy, sql)
    };
    for (copy, sql) in [
        edit("cut.db", "DELETE FROM records WHERE seq > (SELECT max(seq) - 3 FROM records)"),
        edit("middle.db", "DELETE FROM records WHERE seq = 2"),
        edit(
            "changed.db",
            "UPDATE records SET body = replace(body, '\"allow\"', '\"deny\"')
             WHERE seq = (SELECT min(seq) FROM records WHERE body LIKE '%\"allow\"%')",
        ),
    ] {
        use sqlx::Connection as _;
        let mut db = sqlx::SqliteConnection::connect(copy.to_str().unwrap()).await.unwrap();
        let done = sqlx::query(sql).execute(&mut db).await.unwrap();
        assert!(done.rows_affected() > 0, "{sql} changed nothing");
        db.close().await.unwrap();
        let (code, said) = verify(&copy);
        assert_eq!(code, Some(1), "{sql}: {said}");
    }
}
