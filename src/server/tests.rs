//! The routes, in-process.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use super::testing::*;
use crate::store::Store as _;

const ONE: &str = "/access/v1/evaluation";
const MANY: &str = "/access/v1/evaluations";

#[tokio::test]
async fn an_agent_asks_for_itself_and_hears_no_policies() {
    let w = World::new().await;
    let allow = w.ask("acme:coder", "coder", "git/allow").await;
    assert_eq!((allow.status, &allow.body["decision"]), (200, &json!(true)));
    assert_eq!(allow.headers["content-type"], "application/json");
    let id = allow.body["context"]["decision_id"].as_str().unwrap();
    assert_eq!(w.journal.records.lock().unwrap()[0].id, id);
    assert!(allow.body["context"].get("policies").is_none() && allow.body["context"].get("digests").is_none());

    let ask = w.ask("acme:coder", "coder", "git/ask").await;
    assert_eq!((ask.code(), &ask.body["decision"]), ((200, "approval_required"), &json!(false)));
    assert_eq!(ask.body["context"]["asks"], json!([{"group": "leads", "count": 2, "reason": "Because."}]));
}

#[tokio::test]
async fn a_gateway_hears_policies_and_digests() {
    let w = World::new().await;
    let deny = w.ask("acme:gateway", "coder", "git/deny").await;
    assert_eq!(deny.body["decision"], json!(false));
    assert_eq!(deny.body["context"]["policies"], json!(["tenant/first/p"]));
    assert_eq!(deny.body["context"]["digests"], json!({"tenant": ["sha256:00"]}));
    let ask = w.post("acme:gateway", "/tenants/acme/access/v1/evaluation", &question("coder", "git/ask")).await;
    assert_eq!(ask.body["context"]["asks"][0]["policy"], "tenant/first/p");
}

#[tokio::test]
async fn who_may_not_ask_is_refused_and_recorded_where_it_belongs() {
    let w = World::new().await;
    // Neither an agent nor a gateway.
    let stranger = w.post("evil:pod", "/tenants/acme/access/v1/evaluation", &question("coder", "git/allow")).await;
    assert_eq!(stranger.code(), (403, "not_allowed"));
    assert!(stranger.body["message"].as_str().unwrap().contains("acme"));
    // A gateway of another tenant.
    let other = w.post("other:gateway", "/tenants/acme/access/v1/evaluation", &question("coder", "git/allow")).await;
    assert_eq!(other.code(), (403, "not_allowed"));
    // Claimed by two Agents.
    w.rights.0.lock().unwrap().insert("system:serviceaccount:acme:twin check agents acme".into());
    assert_eq!(w.ask("acme:twin", "coder", "git/allow").await.code(), (403, "identity_conflict"));
    let records = w.journal.records.lock().unwrap();
    let kept: Vec<_> = records.iter().map(|r| (r.tenant.as_str(), r.outcome.as_str(), r.code.as_str())).collect();
    assert_eq!(
        kept,
        [
            ("evil", "refused", "not_allowed"),
            ("other", "refused", "not_allowed"),
            ("acme", "refused", "identity_conflict"),
        ],
        "nobody fills another tenant's journal"
    );
    assert_eq!(records[0].id, stranger.body["decision_id"]);
}

#[tokio::test]
async fn of_a_caller_that_may_not_ask_little_is_read() {
    let w = World::new().await;
    let mut large = question("coder", "git/allow");
    large["context"] = json!({"arguments": {"text": "a".repeat(100_000)}});
    assert_eq!(w.post("acme:stranger", ONE, &large).await.code(), (403, "not_allowed"));
    assert_eq!(w.post("acme:stranger", MANY, &large).await.code(), (403, "not_allowed"));
    assert!(w.journal.outcomes().is_empty(), "nothing was read, so nothing is recorded");
    assert_eq!(w.post("acme:coder", ONE, &large).await.code(), (200, "allowed"));
}

#[tokio::test]
async fn a_refused_batch_is_one_record() {
    let w = World::new().await;
    let mut body = question("coder", "git/allow");
    body["evaluations"] = vec![json!({}); 500].into();
    assert_eq!(w.post("evil:pod", "/tenants/acme/access/v1/evaluations", &body).await.code(), (403, "not_allowed"));
    assert_eq!(w.journal.outcomes().len(), 1);
}

#[tokio::test]
async fn agent_claims_foreign_identity() {
    let w = World::with(crate::gate::check, with_packages()).await;
    assert_eq!(w.ask("acme:coder", "coder", "git/log").await.body["decision"], json!(true));
    // Also with verb `check`: what belongs to an agent never acts as a gateway.
    w.rights.0.lock().unwrap().insert("system:serviceaccount:acme:coder check agents acme".into());
    w.rights.0.lock().unwrap().insert("system:serviceaccount:other:coder check agents acme".into());
    let planner = w.ask("acme:coder", "planner", "git/log").await;
    assert_eq!(planner.code(), (403, "not_your_identity"));
    let user = json!({"subject": {"type": "user", "id": "coder"}, "action": {"name": "call_tool"}, "resource": {"type": "tool", "id": "git/log"}});
    assert_eq!(w.post("acme:coder", ONE, &user).await.code(), (403, "not_your_identity"));
    // The namesake of another tenant.
    let foreign = w.post("other:coder", "/tenants/acme/access/v1/evaluation", &question("coder", "git/log")).await;
    assert_eq!(foreign.code(), (403, "not_your_identity"));
    let mut batch = question("coder", "git/log");
    batch["evaluations"] = json!([{}, {"subject": {"type": "agent", "id": "planner"}}]);
    let batch = w.post("acme:coder", MANY, &batch).await;
    assert_eq!(batch.body["evaluations"][0]["decision"], json!(true));
    assert_eq!(batch.body["evaluations"][1]["context"]["error"]["status"], 403);
    let records = w.journal.records.lock().unwrap();
    let refused: Vec<_> = records.iter().filter(|r| r.code == "not_your_identity").map(|r| r.tenant.as_str()).collect();
    assert_eq!(refused, ["acme", "acme", "other", "acme"], "recorded, each in the caller's own tenant");
}

#[tokio::test]
async fn a_gateway_asks_through_the_real_gates() {
    let w = World::with(crate::gate::check, with_packages()).await;
    let allow = w.ask("acme:gateway", "planner", "git/log").await;
    assert_eq!(allow.body["context"]["policies"], json!(["tenant/first/reads"]));
    assert_eq!(allow.body["context"]["digests"]["tenant"], json!(["sha256:00"]));
    assert_eq!(w.ask("acme:gateway", "planner", "git/push").await.code(), (200, "unknown_tool"));
    assert_eq!(w.ask("acme:gateway", "nobody", "git/log").await.code(), (200, "unknown_agent"));
    let mut session = question("planner", "git/log");
    session["context"] = json!({"session": "0123"});
    assert_eq!(w.post("acme:gateway", ONE, &session).await.code(), (200, "session_unknown"));
    w.rights.0.lock().unwrap().insert("alice check agents nowhere".into());
    let nowhere = w.post("human", "/tenants/nowhere/access/v1/evaluation", &question("a", "git/log")).await;
    assert_eq!(nowhere.code(), (404, "unknown_tenant"));
    let none = World::with(crate::gate::check, snapshot()).await;
    assert_eq!(none.ask("acme:coder", "coder", "git/log").await.status, 503, "never a tenant-only allow");
}

#[tokio::test]
async fn without_a_good_token_nothing_is_read_or_recorded() {
    let w = World::new().await;
    let request = Request::post(ONE).header("content-type", "application/json").body(Body::from("{}")).unwrap();
    let none = w.send(request).await;
    assert_eq!(none.code(), (401, "token_missing"));
    assert_eq!(none.headers["www-authenticate"], r#"Bearer realm="remit""#);
    let garbage = w.post("garbage", ONE, &json!("not even an object")).await;
    assert_eq!(garbage.code(), (401, "token_rejected"));
    assert_eq!(garbage.headers["www-authenticate"], r#"Bearer realm="remit", error="invalid_token""#);
    let basic = Request::post(ONE).header("authorization", "Basic acme:coder").body(Body::empty()).unwrap();
    assert_eq!(w.send(basic).await.code(), (401, "token_missing"));
    assert!(w.journal.outcomes().is_empty());
}

#[tokio::test]
async fn a_human_without_namespace_must_name_the_tenant() {
    let w = World::new().await;
    assert_eq!(w.ask("human", "coder", "git/allow").await.code(), (400, "tenant_needed"));
    w.rights.0.lock().unwrap().insert("alice check agents acme".into());
    let named = w.post("human", "/tenants/acme/access/v1/evaluation", &question("coder", "git/allow")).await;
    assert_eq!(named.body["decision"], json!(true));
    let bad = w.post("human", "/tenants/A..b/access/v1/evaluation", &question("coder", "git/allow")).await;
    assert_eq!((bad.status, &bad.body["field"]), (400, &json!("tenant")));
}

#[tokio::test]
async fn no_allow_leaves_without_its_record() {
    let w = World::new().await;
    for mode in [SpyJournal::FULL, SpyJournal::COMMIT_FAILS, SpyJournal::HANGS] {
        w.journal.mode.store(mode, Ordering::SeqCst);
        let allow = w.ask("acme:coder", "coder", "git/allow").await;
        assert_eq!((allow.code(), &allow.body["decision"]), ((200, "audit_unavailable"), &json!(false)), "mode {mode}");
        let began = Instant::now();
        assert_eq!(w.ask("acme:coder", "coder", "git/deny").await.code(), (200, "no_permit"));
        assert!(began.elapsed() < Duration::from_millis(90), "a deny waits for nothing");
        let mut batch = question("coder", "git/allow");
        batch["evaluations"] = json!([{}, {"resource": {"type": "tool", "id": "git/deny"}}]);
        let batch = w.post("acme:coder", MANY, &batch).await;
        assert_eq!(batch.body["evaluations"][0]["context"]["code"], "audit_unavailable");
        assert_eq!(batch.body["evaluations"][1]["context"]["code"], "no_permit");
    }
}

#[tokio::test]
async fn a_stale_or_missing_snapshot_answers_nothing() {
    let w = World::new().await;
    w.clock.forward(Duration::from_secs(300));
    assert_eq!(w.ask("acme:coder", "coder", "git/allow").await.status, 200);
    w.clock.forward(Duration::from_secs(1));
    let stale = w.ask("acme:coder", "coder", "git/allow").await;
    assert_eq!(stale.code(), (503, "snapshot_stale"));
    assert_eq!(stale.headers["retry-after"], "1");
    w.state.freshness.alive(super::Clock::instant(&*w.clock));
    assert_eq!(w.ask("acme:coder", "coder", "git/allow").await.status, 200);
    let fresh = super::Freshness::new(Instant::now());
    assert_eq!(fresh.age(Instant::now()), None);
}

#[tokio::test]
async fn a_slow_body_does_not_outlive_a_stop() {
    let w = World::with(crate::gate::check, with_packages()).await;
    let (before, mut stopped, mut contested) = (with_packages(), with_packages(), with_packages());
    let mut acme = crate::gate::Tenant::clone(&stopped.tenants["acme"]);
    let mut coder = crate::gate::AgentEntry::clone(&acme.agents["coder"]);
    coder.facts.suspended = true;
    acme.agents.insert("coder".into(), Arc::new(coder));
    stopped.tenants.insert("acme".into(), Arc::new(acme));
    contested.identities.insert("system:serviceaccount:acme:coder".into(), crate::gate::IdentityOwner::Conflict);
    for (meanwhile, code) in
        [(before, (200, "allowed")), (stopped, (200, "paused")), (contested, (503, "identity_changed"))]
    {
        w.state.snapshot.store(Arc::new(with_packages()));
        let state = w.state.clone();
        // The caller was looked up before the first byte of the body was asked for.
        let body = Body::from_stream(futures::stream::once(async move {
            state.snapshot.store(Arc::new(meanwhile));
            Ok::<_, std::convert::Infallible>(question("coder", "git/log").to_string())
        }));
        let request = with_token(Request::post(ONE), "acme:coder");
        let request = request.header("content-type", "application/json").body(body).unwrap();
        assert_eq!(w.send(request).await.code(), code);
    }
}

#[tokio::test]
async fn bodies_are_strict() {
    let w = World::new().await;
    let send = async |body: &str| w.send(post("acme:coder", ONE, body.to_owned())).await;
    let duplicate = send(r#"{"subject":{"type":"agent","id":"coder","id":"planner"}}"#).await;
    assert_eq!((duplicate.code(), &duplicate.body["field"]), ((400, "invalid_json"), &json!("subject.id")));
    let deep = send(&format!(r#"{{"context":{{"arguments":{{"a":{}{}}}}}}}"#, "[".repeat(62), "]".repeat(62))).await;
    assert_eq!(deep.code(), (400, "invalid_json"));
    assert!(deep.body["message"].as_str().unwrap().contains("64"), "{}", deep.text);
    let missing = send("{}").await;
    assert_eq!((missing.code(), &missing.body["field"]), ((400, "invalid_request"), &json!("subject")));
    let large = send(&format!("{{\"x\":\"{}\"}}", "x".repeat(1 << 20))).await;
    assert_eq!(large.code(), (413, "body_too_large"));
    let chunked = Body::from_stream(futures::stream::iter((0..300).map(|_| Ok::<_, std::io::Error>(vec![b' '; 4096]))));
    let chunked = with_token(Request::post(ONE), "acme:coder").header("content-type", "application/json").body(chunked);
    assert_eq!(w.send(chunked.unwrap()).await.code(), (413, "body_too_large"), "also without a length");
    let text = with_token(Request::post(ONE), "acme:coder").header("content-type", "text/plain");
    assert_eq!(w.send(text.body(Body::from("{}")).unwrap()).await.code(), (415, "unsupported_media_type"));
    let charset =
        with_token(Request::post(ONE), "acme:coder").header("content-type", "Application/JSON; charset=utf-8");
    let charset = charset.body(Body::from(question("coder", "git/allow").to_string())).unwrap();
    assert_eq!(w.send(charset).await.status, 200);
    assert!(w.journal.outcomes().len() == 1, "what can't be read has no effect");
}

#[tokio::test]
async fn errors_are_plain_text_for_whom_wants_text() {
    let w = World::new().await;
    let mut request = post("acme:coder", ONE, "{}".into());
    request.headers_mut().insert("accept", "text/plain".parse().unwrap());
    let reply = w.send(request).await;
    assert_eq!((reply.status, reply.text.as_str()), (400, "subject: is required"));
    assert_eq!(w.get("acme:coder", ONE).await.code(), (405, "method_not_allowed"));
    assert_eq!(w.get("acme:coder", "/nowhere").await.code(), (404, "unknown_route"));
}

#[tokio::test]
async fn the_request_id_is_echoed_and_kept() {
    let w = World::new().await;
    let with_id = |id: &str, token: &str| {
        let mut request = post(token, ONE, question("coder", "git/allow").to_string());
        request.headers_mut().insert("x-request-id", id.parse().unwrap());
        request
    };
    let echoed = w.send(with_id("bfe9eb29-ab87.X_1", "acme:coder")).await;
    assert_eq!(echoed.headers["x-request-id"], "bfe9eb29-ab87.X_1");
    assert_eq!(w.journal.records.lock().unwrap()[0].request_id.as_deref(), Some("bfe9eb29-ab87.X_1"));
    assert_eq!(w.send(with_id("a", "garbage")).await.headers["x-request-id"], "a", "on errors too");
    for bad in ["", "a b", "a;b", &"x".repeat(129)] {
        let reply = w.send(with_id(bad, "acme:coder")).await;
        assert_eq!((reply.code(), &reply.body["field"]), ((400, "invalid_request_id"), &json!("X-Request-ID")));
        assert!(!reply.headers.contains_key("x-request-id"));
    }
    assert!(!w.ask("acme:coder", "coder", "git/allow").await.headers.contains_key("x-request-id"));
}

fn batch(tools: &[&str], semantic: Option<&str>) -> Value {
    let items: Vec<Value> =
        tools.iter().map(|t| json!({"resource": {"type": "tool", "id": format!("git/{t}")}})).collect();
    let mut body =
        json!({"subject": {"type": "agent", "id": "coder"}, "action": {"name": "call_tool"}, "evaluations": items});
    if let Some(semantic) = semantic {
        body["options"] = json!({"evaluations_semantic": semantic, "another_option": 1});
    }
    body
}

async fn decisions(w: &World, tools: &[&str], semantic: Option<&str>) -> Vec<bool> {
    let reply = w.post("acme:coder", MANY, &batch(tools, semantic)).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(reply.body.get("decision").is_none());
    reply.body["evaluations"].as_array().unwrap().iter().map(|a| a["decision"].as_bool().unwrap()).collect()
}

#[tokio::test]
async fn every_semantic_of_evaluations() {
    let w = World::new().await;
    let tools = ["allow", "deny", "allow", "ask"];
    assert_eq!(decisions(&w, &tools, None).await, [true, false, true, false]);
    assert_eq!(decisions(&w, &tools, Some("execute_all")).await, [true, false, true, false]);
    assert_eq!(w.journal.outcomes().len(), 8);
    assert_eq!(decisions(&w, &tools, Some("deny_on_first_deny")).await, [true, false]);
    assert_eq!(
        decisions(&w, &["allow", "bad", "allow"], Some("deny_on_first_deny")).await,
        [true, false],
        "an error is a denial"
    );
    assert_eq!(
        decisions(&w, &["deny", "bad", "allow", "allow"], Some("permit_on_first_permit")).await,
        [false, false, true]
    );
    assert_eq!(w.journal.outcomes().len(), 8 + 2 + 2 + 3, "what comes after the end is neither evaluated nor recorded");
    let unknown = w.post("acme:coder", MANY, &batch(&["allow"], Some("any"))).await;
    assert_eq!(unknown.body["field"], "options.evaluations_semantic");
}

#[tokio::test]
async fn an_allow_that_was_not_kept_ends_deny_on_first_deny_and_does_not_end_permit_on_first_permit() {
    let w = World::new().await;
    w.journal.mode.store(SpyJournal::COMMIT_FAILS, Ordering::SeqCst);
    assert_eq!(decisions(&w, &["allow", "allow"], Some("deny_on_first_deny")).await, [false]);
    assert_eq!(decisions(&w, &["allow", "allow"], Some("permit_on_first_permit")).await, [false, false]);
}

#[tokio::test]
async fn errors_of_items_stand_in_their_context() {
    let w = World::new().await;
    let mut body = batch(&["allow", "bad"], None);
    body["evaluations"].as_array_mut().unwrap().push(json!({"resource": {"type": "tool"}}));
    let reply = w.post("acme:coder", MANY, &body).await;
    let items = &reply.body["evaluations"];
    assert_eq!(items[0]["decision"], json!(true));
    assert_eq!(
        items[1]["context"]["error"],
        json!({"status": 400, "message": "resource.properties.owner: is the package's"})
    );
    assert!(items[1]["context"]["decision_id"].is_string());
    assert_eq!(items[2]["decision"], json!(false));
    assert_eq!(items[2]["context"]["error"]["status"], 400);
    assert_eq!(items[2]["context"]["field"], "evaluations[2].resource.id");
    let single = w.ask("acme:coder", "coder", "git/bad").await;
    assert_eq!((single.code(), &single.body["field"]), ((400, "invalid_request"), &json!("resource.properties.owner")));
}

#[tokio::test]
async fn a_batch_of_a_thousand_is_answered_and_one_more_is_refused_without_effect() {
    let w = World::new().await;
    let thousand = decisions(&w, &["allow"; 1000], None).await;
    assert!(thousand.len() == 1000 && thousand.iter().all(|d| *d));
    assert_eq!(w.journal.outcomes().len(), 1000);
    let reply = w.post("acme:coder", MANY, &batch(&["allow"; 1001], None)).await;
    assert_eq!((reply.code(), &reply.body["field"]), ((400, "batch_too_large"), &json!("evaluations")));
    assert_eq!(w.journal.outcomes().len(), 1000);
}

#[tokio::test]
async fn evaluations_without_items_is_one_evaluation() {
    let w = World::new().await;
    for extra in [None, Some(json!([]))] {
        let mut body = question("coder", "git/allow");
        if let Some(items) = extra {
            body["evaluations"] = items;
        }
        let reply = w.post("acme:coder", MANY, &body).await;
        assert_eq!(reply.body["decision"], json!(true));
        assert!(reply.body.get("evaluations").is_none());
    }
}

#[tokio::test]
async fn a_panic_in_the_gates_is_an_error_and_no_allow() {
    let w = World::new().await;
    assert_eq!(w.ask("acme:coder", "coder", "git/panic").await.code(), (500, "internal"));
    let mut body = question("coder", "git/panic");
    body["context"] = json!({"arguments": {"a": "x".repeat(5000)}});
    assert_eq!(w.post("acme:coder", ONE, &body).await.code(), (500, "internal"));
    assert_eq!(w.ask("acme:coder", "coder", "git/allow").await.status, 200);
}

#[tokio::test]
async fn like_bomb_argument_leaves_other_tenants_checks_going() {
    // One thread answers requests, as on a machine whose other core is busy.
    let w = World::new().await;
    let mut bomb = question("coder", "git/slow");
    bomb["context"] = json!({"arguments": {"text": "a".repeat(60_000)}});
    let began = Instant::now();
    let bombs = futures::future::join_all((0..4).map(|_| w.post("acme:coder", ONE, &bomb)));
    let others = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        for _ in 0..20 {
            assert_eq!(w.ask("other:coder", "coder", "git/allow").await.status, 200);
        }
        let mut large = question("coder", "git/allow");
        large["context"] = json!({"arguments": {"text": "a".repeat(60_000)}});
        assert_eq!(w.post("other:coder", ONE, &large).await.status, 200);
        began.elapsed()
    };
    let (bombs, others) = tokio::join!(bombs, others);
    assert!(others < Duration::from_millis(400), "{others:?}");
    assert!(bombs.iter().all(|r| r.status == 200));
}

#[tokio::test]
async fn what_costs_too_much_for_the_requests_thread_is_decided_in_the_lane() {
    fn gate(input: &crate::gate::CheckInput<'_>) -> crate::gate::Checked {
        let mut checked = by_name(input);
        if input.pattern_budget < crate::gate::MAX_PATTERN_COST {
            checked.decision.outcome = crate::gate::Outcome::Deny;
            checked.decision.code = crate::gate::TOO_COSTLY;
        }
        checked
    }
    let w = World::with(gate, snapshot()).await;
    assert_eq!(w.ask("acme:coder", "coder", "git/allow").await.code(), (200, "allowed"));
    assert_eq!(w.journal.outcomes().len(), 1, "only what was answered is recorded");
}

/// What a call waits for its turn says nothing of the package that decides it.
#[tokio::test]
async fn the_recorded_latency_is_without_the_wait_for_a_turn() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    static RUNNING: AtomicU64 = AtomicU64::new(0);
    static HELD: AtomicBool = AtomicBool::new(true);
    fn gate(input: &crate::gate::CheckInput<'_>) -> crate::gate::Checked {
        RUNNING.fetch_add(1, Ordering::SeqCst);
        while HELD.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        by_name(input)
    }
    let w = World::with(gate, snapshot()).await;
    let mut heavy = question("coder", "git/allow");
    heavy["context"]["arguments"]["text"] = "x".repeat(8 * 1024).into();
    let ask = || w.post("acme:coder", "/access/v1/evaluation", &heavy);
    let while_held = async {
        while RUNNING.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The first one is in the gates, the second waits.
        w.clock.forward(Duration::from_secs(4));
        HELD.store(false, Ordering::SeqCst);
    };
    let (first, second, ()) = tokio::join!(ask(), ask(), while_held);
    assert_eq!((first.code(), second.code()), ((200, "allowed"), (200, "allowed")));
    let records = w.journal.records.lock().unwrap();
    let mut took: Vec<u64> = records.iter().map(|r| r.latency_micros).collect();
    took.sort_unstable();
    assert_eq!(took, [0, 4_000_000]);
}

#[tokio::test]
async fn metadata_names_the_address_that_the_client_used() {
    let w = World::new().await;
    let get = async |path: &str, host: &str| {
        w.send(Request::get(path).header("host", host).body(Body::empty()).unwrap()).await
    };
    let plain = get("/.well-known/authzen-configuration", "pdp.example.com").await;
    assert_eq!(plain.status, 200);
    assert_eq!(
        plain.body,
        json!({
            "policy_decision_point": "https://pdp.example.com",
            "access_evaluation_endpoint": "https://pdp.example.com/access/v1/evaluation",
            "access_evaluations_endpoint": "https://pdp.example.com/access/v1/evaluations",
            "search_subject_endpoint": "https://pdp.example.com/access/v1/search/subject",
            "search_resource_endpoint": "https://pdp.example.com/access/v1/search/resource",
            "search_action_endpoint": "https://pdp.example.com/access/v1/search/action",
        })
    );
    let tenant = get("/.well-known/authzen-configuration/tenants/acme", "127.0.0.1:8443").await;
    assert_eq!(tenant.body["policy_decision_point"], "https://127.0.0.1:8443/tenants/acme");
    assert_eq!(tenant.body["access_evaluation_endpoint"], "https://127.0.0.1:8443/tenants/acme/access/v1/evaluation");
    assert_eq!(get("/.well-known/authzen-configuration", "evil/path").await.body["field"], "Host");
}

#[tokio::test]
async fn what_became_of_a_call_is_said_by_who_asked_and_once() {
    let w = World::new().await;
    let mut ids = Vec::new();
    for tool in ["git/allow", "git/deny"] {
        ids.push(w.ask("acme:coder", "coder", tool).await.body["context"]["decision_id"].as_str().unwrap().to_owned());
    }
    let records = w.journal.records.lock().unwrap().clone();
    for record in records {
        crate::store::Journal::append(w.store.as_ref(), record).unwrap().await.unwrap();
    }
    let (id, denied) = (&ids[0], format!("/decisions/{}/outcome", ids[1]));
    assert_eq!(w.post("acme:coder", &denied, &json!({"outcome": "success"})).await.code(), (409, "not_allowed_call"));
    let path = format!("/decisions/{id}/outcome");
    let said = json!({"outcome": "tool_error", "duration_ms": 12});
    for stranger in ["acme:gateway", "other:gateway", "acme:planner"] {
        assert_eq!(w.post(stranger, &path, &said).await.code(), (404, "unknown_decision"), "{stranger}");
    }
    assert_eq!(w.post("acme:coder", "/decisions/nothing/outcome", &said).await.code(), (404, "unknown_decision"));
    for (wrong, field) in [
        (json!({"outcome": "great"}), "outcome"),
        (json!({"duration_ms": 1}), "outcome"),
        (json!({"outcome": "success", "duration_ms": -1}), "duration_ms"),
        (json!({"outcome": "success", "duration": 1}), "duration"),
    ] {
        let reply = w.post("acme:coder", &path, &wrong).await;
        assert_eq!((reply.status, &reply.body["field"]), (400, &json!(field)), "{}", reply.text);
    }
    assert_eq!(w.post("acme:coder", &path, &said).await.status, 204);
    assert_eq!(w.post("acme:coder", &format!("/tenants/acme{path}"), &said).await.status, 204, "the same again");
    let other = json!({"outcome": "success"});
    assert_eq!(w.post("acme:coder", &path, &other).await.code(), (409, "outcome_reported"));
    let kept = w.store.decision("acme", id).await.unwrap().unwrap().call.unwrap();
    assert_eq!((kept.outcome.as_str(), kept.duration_ms), ("tool_error", Some(12)));
}

#[tokio::test]
async fn sessions_live_over_http_and_over_a_restart() {
    let w = World::new().await;
    let open = w.post("acme:coder", "/sessions", &json!({})).await;
    assert_eq!(
        (open.status, &open.body["agent"], &open.body["expires_after_seconds"]),
        (201, &json!("coder"), &json!(60))
    );
    let id = open.body["session"].as_str().unwrap().to_owned();
    assert_eq!(id.len(), 32);
    let ask = async |w: &World, token: &str, agent: &str| {
        let mut body = question(agent, "git/allow");
        body["context"] = json!({"session": id});
        w.post(token, ONE, &body).await;
        w.journal.records.lock().unwrap().last().unwrap().code.clone()
    };
    assert_eq!(ask(&w, "acme:coder", "coder").await, "allowed:Live");
    assert_eq!(ask(&w, "acme:planner", "planner").await, "allowed:Unknown", "another agent's");
    assert_eq!(ask(&w, "other:coder", "coder").await, "allowed:Unknown", "another tenant's");
    for (token, verb) in
        [("acme:planner", "heartbeat"), ("acme:planner", "end"), ("other:coder", "end"), ("other:gateway", "end")]
    {
        let reply = w.post(token, &format!("/sessions/{id}/{verb}"), &json!({})).await;
        assert_eq!(reply.code(), (404, "session_unknown"), "{token} {verb}");
    }

    let w = w.restarted().await;
    assert_eq!(ask(&w, "acme:coder", "coder").await, "allowed:Live");
    w.clock.forward(Duration::from_secs(59));
    assert_eq!(w.post("acme:gateway", &format!("/sessions/{id}/heartbeat"), &json!({})).await.status, 200);
    w.state.sessions.keep(w.store.as_ref()).await.unwrap();
    w.clock.forward(Duration::from_secs(59));
    let w = w.restarted().await;
    assert_eq!(ask(&w, "acme:coder", "coder").await, "allowed:Live", "the heartbeat was kept");
    w.clock.forward(Duration::from_secs(1));
    assert_eq!(ask(&w, "acme:coder", "coder").await, "allowed:Unknown", "silent for a minute");
    assert_eq!(w.post("acme:coder", &format!("/sessions/{id}/heartbeat"), &json!({})).await.status, 404);
    w.clock.forward(Duration::from_secs(3600));
    w.state.sessions.expire(&crate::gate::Snapshot::default(), super::Clock::now(&*w.clock));
    assert_eq!(w.state.sessions.len(), 1, "before the first set is built nobody's timeout is known");
    w.state.sessions.expire(&w.state.snapshot.load(), super::Clock::now(&*w.clock));
    w.state.sessions.keep(w.store.as_ref()).await.unwrap();
    assert!(w.store.live_sessions().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_session_ends_once_for_good() {
    let w = World::new().await;
    let open = w.post("acme:gateway", "/tenants/acme/sessions", &json!({"agent": "planner"})).await;
    let id = open.body["session"].as_str().unwrap().to_owned();
    assert_eq!(w.post("acme:planner", &format!("/sessions/{id}/heartbeat"), &json!({})).await.status, 200);
    let delete = with_token(Request::delete(format!("/tenants/acme/sessions/{id}")), "acme:planner");
    let ended = w.send(delete.body(Body::empty()).unwrap()).await;
    assert_eq!((ended.status, &ended.body["ended"]), (200, &json!(true)));
    assert_eq!(w.post("acme:planner", &format!("/sessions/{id}/end"), &json!({})).await.status, 404);
    assert!(w.store.live_sessions().await.unwrap().is_empty(), "the heartbeat before it does not bring it back");
    let w = w.restarted().await;
    assert!(w.state.sessions.is_empty());
}

#[tokio::test]
async fn sessions_are_opened_only_for_whom_one_may_speak() {
    let w = World::new().await;
    let open = async |token: &str, path: &str, body: Value| w.post(token, path, &body).await;
    assert_eq!(open("acme:coder", "/sessions", json!({"agent": "planner"})).await.code(), (403, "not_your_identity"));
    assert_eq!(open("acme:coder", "/tenants/other/sessions", json!({})).await.code(), (403, "not_your_identity"));
    assert_eq!(open("acme:gateway", "/sessions", json!({})).await.body["field"], "agent");
    assert_eq!(open("acme:gateway", "/sessions", json!({"agent": "nobody"})).await.code(), (404, "unknown_agent"));
    assert_eq!(open("acme:gateway", "/sessions", json!({"agnet": "coder"})).await.body["field"], "agnet");
    assert_eq!(
        open("evil:pod", "/tenants/acme/sessions", json!({"agent": "coder"})).await.code(),
        (403, "not_allowed")
    );
    let plain = with_token(Request::post("/sessions"), "acme:coder").body(Body::empty()).unwrap();
    assert_eq!(w.send(plain).await.status, 201, "an agent needs no body");
}

#[tokio::test]
async fn decisions_are_listed_to_whom_rbac_lets_read_them() {
    let w = World::new().await;
    let path = "/admin/tenants/acme/decisions";
    assert_eq!(w.get("acme:coder", path).await.code(), (401, "token_audience"));
    assert_eq!(w.get("admin", path).await.code(), (403, "not_allowed"));
    w.rights.0.lock().unwrap().insert("alice get decisions acme".into());
    for tool in ["git/allow", "git/deny"] {
        w.ask("acme:coder", "coder", tool).await;
    }
    let records = w.journal.records.lock().unwrap().clone();
    for record in records {
        crate::store::Journal::append(w.store.as_ref(), record).unwrap().await.unwrap();
    }
    let all = w.get("admin", path).await;
    assert_eq!(all.body["items"].as_array().unwrap().len(), 2, "{}", all.text);
    let denied = w.get("admin", &format!("{path}?outcome=deny&agent=coder")).await;
    assert_eq!(denied.body["items"].as_array().unwrap().len(), 1);
    let id = denied.body["items"][0]["record"]["id"].as_str().unwrap();
    assert_eq!(w.get("admin", &format!("{path}/{id}")).await.body["record"]["outcome"], "deny");
    assert_eq!(w.get("admin", &format!("{path}/nope")).await.status, 404);
    // delete_and_recreate_namespace: the new one sees nothing of the old one's.
    let mut recreated = snapshot();
    let new = crate::gate::Tenant { uid: "uid-2".into(), ..crate::gate::Tenant::clone(&recreated.tenants["acme"]) };
    recreated.tenants.insert("acme".into(), std::sync::Arc::new(new));
    w.state.snapshot.store(std::sync::Arc::new(recreated));
    assert_eq!(w.get("admin", path).await.body["items"], json!([]));
    assert_eq!(w.get("admin", &format!("{path}/{id}")).await.code(), (404, "unknown_decision"));
    w.state.snapshot.store(std::sync::Arc::new(snapshot()));
    assert_eq!(w.get("admin", &format!("{path}?outcom=deny")).await.body["field"], "outcom");
    assert_eq!(w.get("admin", &format!("{path}?page=nonsense")).await.code(), (400, "invalid_filter"));
    assert_eq!(w.get("admin", "/admin/tenants/other/decisions").await.code(), (403, "not_allowed"));
    assert_eq!(w.get("admin", "/admin/audit/records").await.code(), (403, "not_allowed"));
    w.rights.0.lock().unwrap().insert("alice get decisions remit-system".into());
    let chain = w.get("admin", "/admin/audit/records?after=1").await;
    assert_eq!((chain.status, chain.text.lines().count()), (200, 1));
    assert_eq!(w.get("admin", "/admin/audit/anchors").await.status, 200);
    assert_eq!(w.get("admin", "/admin/audit/tombstones").await.body["tombstones"], json!([]));
}

#[tokio::test]
async fn health_and_metrics_speak_of_what_happened() {
    let w = World::new().await;
    w.ask("acme:coder", "coder", "git/allow").await;
    w.ask("garbage", "coder", "git/allow").await;
    let health = super::health_router(w.state.clone(), tokio::sync::watch::channel(false).1);
    let get = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = tower::ServiceExt::oneshot(health.clone(), request).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    assert_eq!(get("/livez").await.0, 200);
    assert_eq!(get("/readyz").await.0, 200);
    let (_, text) = get("/metrics").await;
    for line in [
        r#"remit_decisions_total{outcome="allow",code="allowed",would_be=""} 1"#,
        r#"remit_requests_refused_total{code="token_rejected"} 1"#,
        "remit_check_duration_seconds_count 1",
        "remit_snapshot_age_seconds 0.0",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    assert!(!text.contains("coder") && !text.contains("acme"), "no label that a tenant chooses");
}

#[test]
fn the_openapi_document_names_every_route_and_its_references_resolve() {
    let document = super::openapi::document();
    let text = document.to_string();
    for (at, _) in text.match_indices("\"$ref\":\"#") {
        let pointer = text[at + 9..].split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    for path in [
        "/access/v1/evaluation",
        "/tenants/{tenant}/access/v1/evaluations",
        "/sessions/{id}/heartbeat",
        "/admin/audit/records",
    ] {
        assert!(document["paths"].get(path).is_some(), "{path}");
    }
}
