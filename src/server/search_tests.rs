//! Searches over the router: who may ask what, pages, and that nothing is recorded.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::{PolicyPackageSpec, SourceFile, Tier, Tool};
use crate::gate::{self, AgentEntry, Tenant};
use crate::policy::{CompiledPackage, Side};
use crate::server::Clock as _;
use crate::server::testing::{World, agent, tenant, with_packages};

const POLICIES: &str = r#"
@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
@id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write") when { principal.trust >= 2 };
@id("ask-admin") @require_approval("leads") forbid(principal, action == Action::"call_tool", resource in ToolGroup::"admin");
@id("admins") permit(principal, action == Action::"call_tool", resource in ToolGroup::"admin") when { principal.trust >= 3 };
@id("no-force") forbid(principal, action == Action::"call_tool", resource in ToolGroup::"write")
when { context.arguments.hasTag("force") };
@id("web") permit(principal, action == Action::"network_access", resource);
"#;

/// acme with coder (trust 2), chief (3) and fresh (0), and eight tools.
async fn world() -> World {
    let tool = |name: &str, tier| Tool {
        name: name.into(),
        tier,
        sensitivity: Default::default(),
        groups: vec![],
        description: None,
        schema_digest: None,
    };
    let mut tools: Vec<Tool> = (0..6).map(|n| tool(&format!("files/read{n}"), Tier::Read)).collect();
    tools.extend([tool("git/push", Tier::Write), tool("git/gc", Tier::Admin)]);
    let spec = PolicyPackageSpec {
        package: "first".into(),
        version: "1.0.0".into(),
        tools,
        policies: vec![SourceFile { name: "main.cedar".into(), text: POLICIES.into() }],
        ..PolicyPackageSpec::default()
    };
    let package = CompiledPackage::compile(&spec, "sha256:00", Side::Tenant).unwrap();
    let with_trust = |name: &str, trust| {
        let mut entry: AgentEntry = agent("acme", name);
        entry.facts.trust = trust;
        (name.to_owned(), Arc::new(entry))
    };
    let agents = [with_trust("coder", 2), with_trust("chief", 3), with_trust("fresh", 0)].into();
    let mut snapshot = with_packages();
    let acme = Tenant { package: Some(package), agents, ..Tenant::clone(&tenant("acme", &[])) };
    snapshot.tenants.insert("acme".into(), Arc::new(acme));
    World::with(gate::check, snapshot).await
}

fn tools_of(agent: &str) -> Value {
    json!({"subject": {"type": "agent", "id": agent}, "action": {"name": "call_tool"}, "resource": {"type": "tool"}})
}

fn agents_for(tool: &str) -> Value {
    json!({"subject": {"type": "agent"}, "action": {"name": "call_tool"}, "resource": {"type": "tool", "id": tool}})
}

fn ids(body: &Value) -> Vec<&str> {
    body["results"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap()).collect()
}

const RESOURCE: &str = "/tenants/acme/access/v1/search/resource";
const SUBJECT: &str = "/tenants/acme/access/v1/search/subject";

#[tokio::test]
async fn an_agent_finds_its_tools_and_nobody_elses() {
    let w = world().await;
    let found = w.post("acme:coder", "/access/v1/search/resource", &tools_of("coder")).await;
    assert_eq!(found.status, 200, "{}", found.text);
    let expected: Vec<String> = (0..6).map(|n| format!("files/read{n}")).chain(["git/push".into()]).collect();
    assert_eq!(ids(&found.body), expected, "the admin tool needs trust 3");
    assert!(found.body.get("context").is_none());
    assert_eq!(found.body["page"], json!({"next_token": "", "count": 7}));
    assert!(found.text.starts_with("{\"page\":"), "the page is the first member: {}", found.text);
    assert_eq!(w.post("acme:coder", RESOURCE, &tools_of("chief")).await.code(), (403, "not_your_identity"));
    let foreign = w.post("other:coder", RESOURCE, &tools_of("coder")).await;
    assert_eq!(foreign.code(), (403, "not_your_identity"));
    // Who else may is not its business either; conditions are not, even when it asks.
    let mut body = agents_for("git/push");
    body["options"] = json!({"details": true});
    let found = w.post("acme:coder", SUBJECT, &body).await;
    assert_eq!(ids(&found.body), ["coder"], "{}", found.text);
    assert!(!found.text.contains("force"), "{}", found.text);
    // A stranger asks nothing.
    assert_eq!(w.post("acme:nobody", RESOURCE, &tools_of("coder")).await.code(), (403, "not_allowed"));
    assert!(w.journal.records.lock().unwrap().is_empty(), "searches are not decisions");
    let metrics = w.state.metrics.text().unwrap();
    assert!(metrics.contains("remit_searches_total{search=\"resource\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_gateway_finds_agents_actions_and_on_what_it_depends() {
    let w = world().await;
    let mut body = agents_for("git/gc");
    body["options"] = json!({"details": true});
    let found = w.post("acme:gateway", SUBJECT, &body).await;
    assert_eq!(ids(&found.body), ["chief"], "{}", found.text);
    let detail = &found.body["context"]["details"][0];
    assert_eq!((&detail["allowed"], &detail["approval"]), (&json!("always"), &json!("always")), "{detail}");
    body["resource"]["id"] = json!("git/push");
    let found = w.post("acme:gateway", SUBJECT, &body).await;
    assert_eq!(ids(&found.body), ["chief", "coder"]);
    let detail = &found.body["context"]["details"][1];
    assert_eq!((&detail["allowed"], &detail["approval"]), (&json!("maybe"), &json!("no")), "{detail}");
    assert_eq!(
        detail["depends"],
        json!([{"policy": "tenant/first/no-force", "effect": "forbid", "conditions": ["context.arguments.hasTag(\"force\")"]}])
    );
    let which = json!({"subject": {"type": "agent", "id": "coder"}, "resource": {"type": "tool", "id": "git/push"}});
    let found = w.post("acme:gateway", "/tenants/acme/access/v1/search/action", &which).await;
    assert_eq!(found.body["results"], json!([{"name": "call_tool"}]), "{}", found.text);
}

#[tokio::test]
async fn pages_are_followed_to_the_end_and_belong_to_one_question() {
    let w = world().await;
    let mut body = tools_of("coder");
    let mut all = Vec::new();
    for round in 0.. {
        body["page"]["limit"] = json!(3);
        let found = w.post("acme:gateway", RESOURCE, &body).await;
        assert!(found.body["results"].as_array().unwrap().len() <= 3 && round < 5, "{}", found.text);
        all.extend(ids(&found.body).into_iter().map(str::to_owned));
        match found.body["page"]["next_token"].as_str().unwrap() {
            "" => break,
            token => body["page"]["token"] = json!(token),
        }
    }
    assert_eq!(all.len(), 7, "{all:?}");
    // The token of one question is none of another's.
    let token = body["page"].clone();
    let mut other = tools_of("chief");
    other["page"] = token;
    let refused = w.post("acme:gateway", RESOURCE, &other).await;
    assert_eq!((refused.status, refused.body["field"].as_str()), (400, Some("page.token")));
    let mut none = tools_of("coder");
    none["page"] = json!({"limit": 0});
    let found = w.post("acme:gateway", RESOURCE, &none).await;
    assert_eq!(found.body["results"], json!([]));
    assert_ne!(found.body["page"]["next_token"], "", "there is more");
}

#[tokio::test]
async fn what_cant_be_searched_for_is_refused_by_name() {
    let w = world().await;
    let field = async |path: &str, body: Value| {
        let reply = w.post("acme:gateway", path, &body).await;
        (reply.status, reply.body["field"].as_str().unwrap_or_default().to_owned())
    };
    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = tools_of("coder");
        change(&mut body);
        body
    };
    let wrong = |name: &str| (400, name.to_owned());
    assert_eq!(field(RESOURCE, with(&|b| b["resource"]["type"] = json!("domain"))).await, wrong("resource.type"));
    let mut users = agents_for("git/push");
    users["subject"]["type"] = json!("user");
    assert_eq!(field(SUBJECT, users).await, wrong("subject.type"));
    assert_eq!(
        field(RESOURCE, with(&|b| b["context"] = json!({"arguments": {"a": 1}}))).await,
        wrong("context.arguments")
    );
    assert_eq!(field(RESOURCE, with(&|b| b["arguments"] = json!({"a": 1}))).await, wrong("arguments"));
    for page in [json!([]), json!({"limit": -1}), json!({"token": "x"}), json!({"token": 3})] {
        assert_eq!(field(RESOURCE, with(&|b| b["page"] = page.clone())).await.0, 400, "{page}");
    }
    let nobody = w.post("acme:gateway", RESOURCE, &tools_of("nobody")).await;
    assert_eq!((nobody.status, &nobody.body["results"]), (200, &json!([])), "an unknown agent may nothing");
    let unknown = w.post("acme:gateway", "/tenants/nowhere/access/v1/search/resource", &tools_of("coder")).await;
    assert_eq!(unknown.status, 403, "who may not ask there does not learn whether it is there");
    // An id where none is needed is ignored.
    let found = w.post("acme:gateway", RESOURCE, &with(&|b| b["resource"]["id"] = json!("git/push"))).await;
    assert_eq!(ids(&found.body).len(), 7);
}

#[tokio::test]
async fn while_the_tenant_observes_nothing_of_its_own_makes_a_tool_impossible() {
    let w = world().await;
    let mut snapshot = (*w.state.snapshot.load_full()).clone();
    let mut acme = Tenant::clone(&snapshot.tenants["acme"]);
    let until = w.clock.now() + jiff::SignedDuration::from_hours(1);
    acme.profile.observe_until = Some(until);
    snapshot.tenants.insert("acme".into(), Arc::new(acme));
    w.state.snapshot.store(Arc::new(snapshot));
    let found = w.post("acme:coder", RESOURCE, &tools_of("coder")).await;
    assert_eq!(ids(&found.body).len(), 8, "the admin tool, too: {}", found.text);
    assert_eq!(found.body["context"], json!({"observed_until": until.to_string()}));
    assert_eq!(ids(&w.post("acme:gateway", RESOURCE, &tools_of("fresh")).await.body).len(), 0, "the platform stops it");
}

#[tokio::test]
async fn metadata_names_the_search_endpoints() {
    let w = world().await;
    let request =
        axum::http::Request::get("/.well-known/authzen-configuration/tenants/acme").header("host", "remit.example");
    let metadata = w.send(request.body(axum::body::Body::empty()).unwrap()).await.body;
    assert_eq!(metadata["search_resource_endpoint"], "https://remit.example/tenants/acme/access/v1/search/resource");
    assert_eq!(metadata["search_subject_endpoint"], "https://remit.example/tenants/acme/access/v1/search/subject");
}
