//! Checks through the front door: an agent's own token over HTTPS, the objects that kubectl applied, and what is answered.

use std::time::Duration;

use kube::Api;
use serde_json::{Value, json};

use crate::support::{Cluster, call, cluster, eventually};

const POLICIES: &str = r#"
@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
@id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write") when { principal.trust >= 2 };
@id("admins") permit(principal, action == Action::"call_tool", resource in ToolGroup::"admin");
@id("ask-admin") @require_approval("leads") @approval_count("2")
forbid(principal, action == Action::"call_tool", resource in ToolGroup::"admin");
@id("no-force") @reason("Open a pull request instead.") @sensitive("password")
forbid(principal, action == Action::"call_tool", resource)
when { context.arguments.hasTag("command") && context.arguments.getTag("command") like "*--force*" };
"#;

fn object(kind: &str, name: &str, spec: Value) -> String {
    json!({"apiVersion": "remit.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}).to_string()
}

fn package(version: &str, policies: &str) -> String {
    let tools = json!([
        {"name": "git/log", "tier": "read"}, {"name": "git/push", "tier": "write"}, {"name": "git/gc", "tier": "admin"},
    ]);
    let spec = json!({
        "package": "first", "version": version, "tools": tools,
        "policies": [{"name": "main.cedar", "text": policies}],
    });
    object("PolicyPackage", &format!("first-{version}"), spec)
}

fn agent(name: &str, spec: Value) -> String {
    object("Agent", name, spec)
}

/// A tenant with `coder` (trust 2) and the package, and the coder's token.
async fn tenant(c: &Cluster) -> (String, String) {
    let tenant = c.namespace("checks").await;
    c.apply(&tenant, &agent("coder", json!({"identities": [{"serviceAccount": "coder"}], "trustLevel": 2}))).unwrap();
    c.apply(&tenant, &package("1.0.0", POLICIES)).unwrap();
    c.wait_for(&tenant, "tenantrollout/default", "Ready");
    let token = c.token_for(&tenant, "coder", "remit").await;
    c.answered(&token, &tenant, &call("coder", "git/log", json!({})), "allowed").await;
    (tenant, token)
}

#[tokio::test]
async fn an_agent_with_its_own_token_is_allowed_denied_and_asked() {
    let c = cluster();
    let (tenant, token) = tenant(c).await;
    let allowed = c.call(&token, &tenant, "coder", "git/push", json!({"command": "git push"})).await;
    assert_eq!((&allowed["decision"], &allowed["context"]["code"]), (&json!(true), &json!("allowed")), "{allowed}");
    let denied = c.call(&token, &tenant, "coder", "git/push", json!({"command": "git push --force"})).await;
    assert_eq!(denied["decision"], false);
    assert_eq!(denied["context"]["reason"], "Open a pull request instead.");
    assert!(denied["context"]["decision_id"].as_str().is_some_and(|id| id.len() == 36), "{denied}");
    assert!(!denied.to_string().contains("no-force"), "the agent learns no policy ids: {denied}");
    let asked = c.call(&token, &tenant, "coder", "git/gc", json!({})).await;
    assert_eq!((&asked["decision"], &asked["context"]["code"]), (&json!(false), &json!("approval_required")));
    let unknown = c.call(&token, &tenant, "coder", "git/unlisted", json!({})).await;
    assert_eq!(unknown["context"]["code"], "unknown_tool");

    // A gateway is told which policies decided; what the agent was told stands in the record with them.
    let gateway = c.token_for(&tenant, "gateway", "remit").await;
    c.bind(&tenant, "remit-gateway", "gateway");
    let told = c.answered(&gateway, &tenant, &call("coder", "git/gc", json!({})), "approval_required").await;
    assert!(told.to_string().contains("tenant/first/ask-admin"), "{told}");
}

#[tokio::test]
async fn agent_claims_foreign_identity() {
    let c = cluster();
    let (tenant, token) = tenant(c).await;
    c.apply(&tenant, &agent("chief", json!({"identities": [{"serviceAccount": "chief"}], "trustLevel": 4}))).unwrap();
    // Even when its ServiceAccount may `check` for others, an agent speaks only for itself.
    c.bind(&tenant, "remit-gateway", "coder");
    let chief = c.token_for(&tenant, "chief", "remit").await;
    c.answered(&chief, &tenant, &call("chief", "git/log", json!({})), "allowed").await;
    let (status, body) = c.check(&token, &tenant, &call("chief", "git/log", json!({}))).await;
    assert_eq!(status, 403, "{body}");
    let (other, _) = self::tenant(c).await;
    let (status, body) = c.check(&token, &other, &call("coder", "git/log", json!({}))).await;
    assert_eq!(status, 403, "{body}");
}

#[tokio::test]
async fn foreign_audience_token() {
    let c = cluster();
    let (tenant, _) = tenant(c).await;
    for audience in ["remit-admin", "https://kubernetes.default.svc"] {
        let token = c.token_for(&tenant, "coder", audience).await;
        let (status, body) = c.check(&token, &tenant, &call("coder", "git/log", json!({}))).await;
        assert_eq!(status, 401, "{audience}: {body}");
    }
    let (status, _) = c.check("garbage", &tenant, &call("coder", "git/log", json!({}))).await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn a_stranger_without_the_verb_check_is_refused() {
    let c = cluster();
    let (tenant, _) = tenant(c).await;
    let token = c.token_for(&tenant, "stranger", "remit").await;
    let (status, body) = c.check(&token, &tenant, &call("coder", "git/log", json!({}))).await;
    assert_eq!(status, 403, "{body}");
    c.bind(&tenant, "remit-gateway", "stranger");
    c.answered(&token, &tenant, &call("coder", "git/log", json!({})), "allowed").await;
}

#[tokio::test]
async fn suspending_lowering_and_deleting_an_agent_change_the_answer() {
    let c = cluster();
    let (tenant, token) = tenant(c).await;
    let push = call("coder", "git/push", json!({}));
    c.answered(&token, &tenant, &push, "allowed").await;
    let patch =
        |body: &str| c.kubectl(&["patch", "agent", "coder", "-n", &tenant, "--type=merge", "-p", body]).unwrap();
    patch(r#"{"spec":{"trustLevel":1}}"#);
    c.answered(&token, &tenant, &push, "no_permit").await;
    patch(r#"{"spec":{"suspend":true}}"#);
    c.answered(&token, &tenant, &push, "paused").await;
    patch(r#"{"spec":{"suspend":false,"trustLevel":0}}"#);
    c.answered(&token, &tenant, &push, "denied_by_policy").await;
    c.kubectl(&["delete", "agent", "coder", "-n", &tenant]).unwrap();
    eventually("the identity is nobody's", || async {
        let (status, body) = c.check(&token, &tenant, &push).await;
        if status == 403 { Ok(()) } else { Err(format!("{status} {body}")) }
    })
    .await;
}

#[tokio::test]
async fn a_fixed_delegator_restricts_and_is_recorded() {
    let c = cluster();
    let (tenant, _) = tenant(c).await;
    let spec = json!({
        "identities": [{"serviceAccount": "helper"}], "trustLevel": 3,
        "delegation": {"mode": "Required", "fixed": {"kind": "Agent", "name": "junior"}},
    });
    c.apply(&tenant, &agent("junior", json!({"trustLevel": 1}))).unwrap();
    c.apply(&tenant, &agent("helper", spec)).unwrap();
    let token = c.token_for(&tenant, "helper", "remit").await;
    c.answered(&token, &tenant, &call("helper", "git/log", json!({})), "allowed").await;
    c.answered(&token, &tenant, &call("helper", "git/push", json!({})), "no_permit").await;
    let mut claims = call("helper", "git/log", json!({}));
    claims["context"]["on_behalf_of"] = json!("ceo");
    let (status, body) = c.check(&token, &tenant, &claims).await;
    assert_eq!(status, 403, "{body}");
    let found = list(c, &tenant, "delegator=junior&outcome=allow").await;
    assert!(!found.is_empty() && found.iter().all(|d| d["record"]["agent"] == "helper"), "{found:?}");
}

#[tokio::test]
async fn sessions_are_issued_lived_and_ended() {
    let c = cluster();
    let (tenant, token) = tenant(c).await;
    let spec = json!({"identities": [{"serviceAccount": "strict"}], "trustLevel": 2, "session": "Required"});
    c.apply(&tenant, &agent("strict", spec)).unwrap();
    let strict = c.token_for(&tenant, "strict", "remit").await;
    c.answered(&strict, &tenant, &call("strict", "git/log", json!({})), "session_required").await;
    let http = c.http();
    let opened = http.post("/sessions", &strict, &json!({})).await.unwrap();
    assert_eq!(opened.status, 201, "{}", opened.text);
    let id = opened.json()["session"].as_str().unwrap().to_owned();
    let with = |agent: &str, id: &str| {
        let mut body = call(agent, "git/log", json!({}));
        body["context"]["session"] = json!(id);
        body
    };
    c.answered(&strict, &tenant, &with("strict", &id), "allowed").await;
    let stolen = http.check(&token, &tenant, &with("coder", &id)).await.unwrap().json();
    assert_eq!(stolen["context"]["code"], "session_unknown", "nobody borrows another's session");
    let beat = http.post(&format!("/sessions/{id}/heartbeat"), &token, &json!({})).await.unwrap();
    assert_eq!(beat.status, 404, "nor keeps it alive");
    assert_eq!(http.post(&format!("/sessions/{id}/heartbeat"), &strict, &json!({})).await.unwrap().status, 200);
    assert_eq!(http.post(&format!("/sessions/{id}/end"), &strict, &json!({})).await.unwrap().status, 200);
    c.answered(&strict, &tenant, &with("strict", &id), "session_unknown").await;
}

/// The tenant's profile says for how long; a heartbeat is a sign of life, a check is not.
#[tokio::test]
async fn a_silent_session_ends_after_the_profiles_timeout() {
    let c = cluster();
    let (tenant, token) = tenant(c).await;
    c.apply(&tenant, &object("TenantProfile", "default", json!({"sessionTimeoutSeconds": 10}))).unwrap();
    c.wait_for(&tenant, "tenantprofile/default", "Ready");
    let http = c.http();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let opened = eventually("the profile is in force", || async {
            let opened = http.post("/sessions", &token, &json!({})).await?.json();
            if opened["expires_after_seconds"] == 10 { Ok(opened) } else { Err(opened.to_string()) }
        });
        ids.push(opened.await["session"].as_str().unwrap().to_owned());
    }
    let code = async |id: &str| {
        let mut body = call("coder", "git/log", json!({}));
        body["context"]["session"] = json!(id);
        c.check(&token, &tenant, &body).await.1["context"]["code"].as_str().unwrap_or_default().to_owned()
    };
    // The first lives on by its heartbeats, the second is asked with all the time.
    for _ in 0..14 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(
            http.post(&format!("/sessions/{}/heartbeat", ids[0]), &token, &json!({})).await.unwrap().status,
            200
        );
        code(&ids[1]).await;
    }
    assert_eq!(code(&ids[0]).await, "allowed");
    assert_eq!(code(&ids[1]).await, "session_unknown");
}

#[tokio::test]
async fn records_are_listed_filtered_and_only_for_who_may() {
    let c = cluster();
    let (tenant, token) = tenant(c).await;
    let denied =
        c.call(&token, &tenant, "coder", "git/push", json!({"command": "--force", "password": "hunter2"})).await;
    let id = denied["context"]["decision_id"].as_str().unwrap().to_owned();
    let found = eventually("the record is there", || async {
        let found = list(c, &tenant, "agent=coder&outcome=deny&action=call_tool").await;
        found.into_iter().find(|d| d["record"]["id"] == id.as_str()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    assert_eq!(found["record"]["policies"][0]["id"], "tenant/first/no-force");
    assert!(!found.to_string().contains("hunter2"), "a @sensitive value is kept as a digest: {found}");
    assert!(list(c, &tenant, "agent=nobody").await.is_empty());

    let stranger = c.token_for(&tenant, "nosy", "remit-admin").await;
    let path = format!("/admin/tenants/{tenant}/decisions");
    assert_eq!(c.http().get(&path, &stranger).await.unwrap().status, 403);
    assert_eq!(c.http().get(&path, &token).await.unwrap().status, 401, "the audience of agents is not enough");
}

#[tokio::test]
async fn batches_and_bad_questions() {
    let c = cluster();
    let (tenant, token) = tenant(c).await;
    let http = c.http();
    let path = format!("/tenants/{tenant}/access/v1/evaluations");
    let item = |tool: &str| json!({"resource": {"type": "tool", "id": tool}});
    let mut body = call("coder", "git/log", json!({}));
    body["evaluations"] = json!([item("git/log"), item("git/gc"), item("git/push")]);
    let answers = http.post(&path, &token, &body).await.unwrap().json();
    let decisions: Vec<_> = answers["evaluations"].as_array().unwrap().iter().map(|e| e["decision"].clone()).collect();
    assert_eq!(decisions, [true, false, true], "{answers}");
    body["options"] = json!({"evaluations_semantic": "deny_on_first_deny"});
    let answers = http.post(&path, &token, &body).await.unwrap().json();
    assert_eq!(answers["evaluations"].as_array().unwrap().len(), 2, "{answers}");
    body["evaluations"] = Value::Array((0..1001).map(|_| item("git/log")).collect());
    assert_eq!(http.post(&path, &token, &body).await.unwrap().status, 400);

    let bad = |text: &'static str| {
        let (http, token, path) = (http.clone(), token.clone(), format!("/tenants/{tenant}/access/v1/evaluation"));
        async move {
            let json = [("content-type", "application/json")];
            http.send(hyper::Method::POST, &path, Some(&token), &json, text).await.unwrap().status
        }
    };
    assert_eq!(bad(r#"{"subject":{"type":"agent","id":"coder","id":"chief"}}"#).await, 400, "duplicate key");
    assert_eq!(bad("{").await, 400);
    let mut own = call("coder", "git/push", json!({}));
    own["subject"]["properties"] = json!({"trust": 4});
    assert_eq!(c.check(&token, &tenant, &own).await.0, 400, "agent_supplies_own_attributes");
    let (status, body) =
        c.check(&token, &tenant, &call("coder", "git/log", json!({"a.b": 1, "a": {"b": 2}, "a\\.b": 3}))).await;
    assert_eq!(status, 200, "escaped keys don't collide: {body}");
}

/// The `like` of a tenant may be slow; the checks of another go on meanwhile.
#[tokio::test]
async fn like_bomb_argument() {
    let c = cluster();
    let (bomber, bomber_token) = tenant(c).await;
    let (other, token) = tenant(c).await;
    let patterns: String = (0..40)
        .map(|i| {
            let pattern = "a*".repeat(100);
            format!(
                "@id(\"bomb-{i}\") forbid(principal, action == Action::\"call_tool\", resource) when \
                 {{ context.arguments.hasTag(\"command\") && context.arguments.getTag(\"command\") like \"{pattern}b{i}\" }};\n"
            )
        })
        .collect();
    c.rolls_out_at_once(&bomber);
    c.apply(&bomber, &package("1.1.0", &format!("{POLICIES}{patterns}"))).unwrap();
    c.wait_for(&bomber, "policypackage/first-1.1.0", "Ready");
    let bomb = call("coder", "git/log", json!({"command": "a".repeat(60_000)}));
    c.answered(&bomber_token, &bomber, &bomb, "evaluation_too_costly").await;
    let bombs: Vec<_> = (0..8)
        .map(|_| {
            let (http, bomber, token, bomb) = (c.http(), bomber.clone(), bomber_token.clone(), bomb.clone());
            tokio::spawn(async move { http.check(&token, &bomber, &bomb).await })
        })
        .collect();
    for _ in 0..20 {
        let answer = c.call(&token, &other, "coder", "git/log", json!({"command": "git log"})).await;
        assert_eq!(answer["context"]["code"], "allowed");
    }
    for bomb in bombs {
        let answer = bomb.await.unwrap().unwrap();
        assert_eq!(answer.json()["context"]["code"], "evaluation_too_costly", "{}", answer.text);
    }
}

/// An open door for nobody: no rows, and few of the tokens reach the API server.
#[tokio::test]
async fn garbage_token_flood() {
    let c = Cluster::start_own();
    let reviews = |c: &Cluster| {
        let (_, text) = c.operator.get("/metrics").unwrap();
        let count = |l: &str| l.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0);
        text.lines().filter(|l| l.starts_with("remit_authn_reviews_total")).map(count).sum::<f64>()
    };
    let namespace = c.namespace("flood").await;
    let good = c.token_for(&namespace, "x", "remit").await;
    let http = c.http();
    let before = reviews(&c);
    let parts: Vec<&str> = good.split('.').collect();
    for i in 0..300 {
        // Half of it rubbish, half of it a good token with another signature.
        let token = if i % 2 == 0 {
            format!("rubbish{i}")
        } else {
            format!("{}.{}.{}{i:03}", parts[0], parts[1], &parts[2][3..])
        };
        let status = http.check(&token, &namespace, &call("x", "git/log", json!({}))).await.unwrap().status;
        assert!(status == 401 || status == 429, "{status}");
    }
    let asked = reviews(&c) - before;
    assert!(asked <= 60.0, "{asked} TokenReviews for 300 bad tokens");
    let auditor = c.token_for("remit-system", "auditor", "remit-admin").await;
    c.bind("remit-system", "remit-auditor", "auditor");
    let rows = eventually("the auditor may read", || async {
        let answer = http.get("/admin/audit/records?after=0&limit=10", &auditor).await?;
        if answer.status == 200 { Ok(answer.text) } else { Err(answer.text) }
    })
    .await;
    assert_eq!(rows.trim(), "", "no rows");
}

/// Decisions of a tenant, as an auditor sees them.
pub async fn list(c: &Cluster, tenant: &str, query: &str) -> Vec<Value> {
    let token = c.token_for(tenant, "auditor", "remit-admin").await;
    let bindings: Api<k8s_openapi::api::rbac::v1::RoleBinding> = Api::namespaced(c.client().await, tenant);
    if bindings.get_opt("remit-auditor-auditor").await.unwrap().is_none() {
        c.bind(tenant, "remit-auditor", "auditor");
    }
    eventually("the auditor may read", || async {
        let answer = c.http().get(&format!("/admin/tenants/{tenant}/decisions?{query}"), &token).await?;
        if answer.status == 200 {
            Ok(answer.json()["items"].as_array().cloned().unwrap_or_default())
        } else {
            Err(format!("{} {}", answer.status, answer.text))
        }
    })
    .await
}
