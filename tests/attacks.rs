//! The attacks that a tenant's author or an agent would try, through the front door: objects by kubectl, questions over HTTPS.
//!
//! Each also has a closer look in the room that stops it, under the same name.

use serde_json::{Value, json};

use crate::support::{Cluster, call, cluster};

const ALL: &str = r#"@id("all") permit(principal, action, resource);"#;

/// A PolicyPackage `first` with two tools; `more` is laid over its spec.
fn package(version: &str, policies: &str, more: Value) -> String {
    let mut spec = json!({
        "package": "first", "version": version,
        "tools": [{"name": "git/log", "tier": "read"}, {"name": "git/push", "tier": "write"}],
        "policies": [{"name": "main.cedar", "text": policies}],
    });
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    let name = format!("{}-{version}", spec["package"].as_str().unwrap());
    json!({"apiVersion": "remit.dev/v1alpha1", "kind": "PolicyPackage", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

fn agent(name: &str, spec: Value) -> String {
    json!({"apiVersion": "remit.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name}, "spec": spec}).to_string()
}

/// A tenant with `coder` at this trust and a package in force; the tokens of the coder and of a gateway.
struct Tenant {
    c: &'static Cluster,
    name: String,
    coder: String,
    gateway: String,
}

impl Tenant {
    async fn new(trust: i64, policies: &str, more: Value) -> Tenant {
        let c = cluster();
        let name = c.namespace("attacks").await;
        c.apply(&name, &agent("coder", json!({"identities": [{"serviceAccount": "coder"}], "trustLevel": trust})))
            .unwrap();
        c.apply(&name, &package("1.0.0", policies, more)).unwrap();
        c.wait_for(&name, "tenantrollout/default", "Ready");
        let (coder, gateway) =
            (c.token_for(&name, "coder", "remit").await, c.token_for(&name, "gateway", "remit").await);
        c.bind(&name, "remit-gateway", "gateway");
        let t = Tenant { c, name, coder, gateway };
        // Both are known from here on: what follows is about the questions.
        for token in [&t.coder, &t.gateway] {
            let answer = crate::support::eventually("the caller is known", || async {
                let (status, body) = c.check(token, &t.name, &call("coder", "git/log", json!({}))).await;
                if status == 200 && body["context"]["code"] != "unknown_agent" {
                    Ok(body)
                } else {
                    Err(format!("{status} {body}"))
                }
            });
            answer.await;
        }
        t
    }

    async fn ask(&self, token: &str, body: &Value) -> (u16, Value) {
        self.c.check(token, &self.name, body).await
    }

    /// The code of an answer.
    async fn code(&self, token: &str, body: &Value) -> String {
        let (status, answer) = self.ask(token, body).await;
        assert_eq!(status, 200, "{answer}");
        answer["context"]["code"].as_str().unwrap().to_owned()
    }

    /// Asserts that the question is refused with 400, by the name of the field.
    async fn bad(&self, token: &str, body: &Value, field: &str) {
        let (status, answer) = self.ask(token, body).await;
        assert_eq!(status, 400, "{field}: {answer}");
        assert!(answer.to_string().contains(field), "{field}: {answer}");
        assert!(answer.get("decision").is_none(), "an error is no decision: {answer}");
    }

    /// Asserts that admission refuses a package, and that what is in force goes on.
    async fn refused(&self, policies: &str, more: Value, reason: &str) {
        let said = self.c.apply(&self.name, &package("9.0.0", policies, more)).expect_err("it is refused");
        assert!(said.contains("validate.remit.dev") && said.contains(reason), "{reason}: {said}");
        assert_eq!(self.code(&self.coder, &call("coder", "git/log", json!({}))).await, "allowed");
    }
}

#[tokio::test]
async fn tenant_entity_joins_platform_group() {
    let t = Tenant::new(2, ALL, json!({})).await;
    for (type_, parent) in [("Agent", "Team"), ("Tool", "ToolGroup"), ("Action", "Action")] {
        let entities = json!([{
            "uid": {"type": type_, "id": format!("{}/coder", t.name)}, "attrs": {},
            "parents": [{"type": parent, "id": "platform/admins"}],
        }]);
        t.refused(ALL, json!({"entities": entities.to_string()}), "ReservedName").await;
    }
}

#[tokio::test]
async fn tenant_fragment_redefines_core_type() {
    let t = Tenant::new(2, ALL, json!({})).await;
    for schema in [
        "entity Agent { trust: Long };",
        "type CallContext = { risk: Long };",
        "entity Doc;\naction read in [call_tool] appliesTo { principal: [Agent], resource: [Doc], context: CallContext };",
    ] {
        t.refused(ALL, json!({"schema": schema}), "ReservedName").await;
    }
}

/// Named like the platform's base package and its policy, a tenant's permit neither replaces nor hides the platform's forbid.
#[tokio::test]
async fn same_policy_id_in_platform_and_tenant() {
    let squat = r#"@id("trust-zero") permit(principal, action, resource);"#;
    let t = Tenant::new(0, squat, json!({"package": "base", "version": "1.0.0"})).await;
    let (_, answer) = t.ask(&t.gateway, &call("coder", "git/log", json!({}))).await;
    assert_eq!(answer["context"]["code"], "denied_by_policy", "{answer}");
    assert_eq!(answer["context"]["policies"], json!(["platform/base/trust-zero"]), "{answer}");
    let raise = r#"{"spec":{"trustLevel":1}}"#;
    t.c.kubectl(&["patch", "agent", "coder", "-n", &t.name, "--type=merge", "-p", raise]).unwrap();
    let answer = t.c.answered(&t.gateway, &t.name, &call("coder", "git/log", json!({})), "allowed").await;
    assert_eq!(answer["context"]["policies"], json!(["tenant/base/trust-zero"]), "{answer}");
}

#[tokio::test]
async fn deep_schema() {
    let t = Tenant::new(2, ALL, json!({})).await;
    for (open, close) in [("Set<", ">"), ("{ a: ", "}")] {
        let schema = format!("entity Doc {{ a: {}Long{} }};", open.repeat(3000), close.repeat(3000));
        t.refused(ALL, json!({"schema": schema}), "TooDeep").await;
    }
    t.refused(ALL, json!({"entities": "[".repeat(10_000)}), "TooDeep").await;
}

#[tokio::test]
async fn operator_chain_bomb() {
    let t = Tenant::new(2, ALL, json!({})).await;
    for condition in [
        format!("true{}", " && true".repeat(3000)),
        format!("context{} == 1", ".risk".repeat(3000)),
        format!("{}true{}", "if true then ".repeat(500), " else true".repeat(500)),
    ] {
        let bomb = format!("@id(\"a\") permit(principal, action, resource) when {{ {condition} }};");
        t.refused(&bomb, json!({}), "TooDeep").await;
    }
}

const DOCS: &str = r#"@id("all") permit(principal, action, resource);
    @id("no-secrets") @reason("That one is secret.") forbid(principal, action, resource is Doc)
    when { resource has secret && resource.secret };"#;

fn docs() -> Value {
    json!({
        "schema": "entity Doc { secret?: Bool };\n\
            action read_doc appliesTo { principal: [Agent], resource: [Doc], context: CallContext };",
        "mapping": {"resources": [
            {"type": "doc", "entity": "Doc", "attributes": [{"name": "secret", "from": "caller"}]},
        ]},
        "entities": r#"[{"uid": {"type": "Doc", "id": "plan"}, "attrs": {"secret": true}, "parents": []}]"#,
    })
}

fn read_doc(id: &str, properties: Value) -> Value {
    json!({
        "subject": {"type": "agent", "id": "coder"}, "action": {"name": "read_doc"},
        "resource": {"type": "doc", "id": id, "properties": properties},
    })
}

#[tokio::test]
async fn omitted_sensitivity() {
    let t = Tenant::new(2, DOCS, docs()).await;
    let (_, secret) = t.ask(&t.gateway, &read_doc("notes", json!({"secret": true}))).await;
    assert_eq!(secret["context"]["reason"], "That one is secret.", "{secret}");
    assert_eq!(t.code(&t.gateway, &read_doc("notes", json!({"secret": false}))).await, "allowed");
    // Left out, although the policy asks by `has`; and by the agent itself, who is not believed here.
    assert_eq!(t.code(&t.gateway, &read_doc("notes", json!({}))).await, "attributes_missing");
    assert_eq!(t.code(&t.coder, &read_doc("notes", json!({}))).await, "attributes_missing");
    t.bad(&t.coder, &read_doc("notes", json!({"secret": false})), "resource.properties.secret").await;
    // What the package lists is as the package says, whoever says what.
    assert_eq!(t.code(&t.gateway, &read_doc("plan", json!({}))).await, "denied_by_policy");
    t.bad(&t.gateway, &read_doc("plan", json!({"secret": false})), "resource.properties.secret").await;
}

#[tokio::test]
async fn typo_property() {
    let t = Tenant::new(2, DOCS, docs()).await;
    for (properties, field) in [
        (json!({"secrte": true}), "resource.properties.secrte"),
        (json!({"Secret": true}), "resource.properties.Secret"),
        (json!({"secret": "false"}), "resource.properties.secret"),
        (json!({"secret": null}), "resource.properties.secret"),
    ] {
        t.bad(&t.gateway, &read_doc("notes", properties), field).await;
    }
    let mut misspelt = call("coder", "git/push", json!({}));
    misspelt["context"] = json!({"argumnets": {"command": "git push --force"}});
    t.bad(&t.coder, &misspelt, "context.argumnets").await;
    misspelt["context"] = json!({});
    misspelt["arguments"] = json!({"command": "git push --force"});
    t.bad(&t.coder, &misspelt, "arguments").await;
}

#[tokio::test]
async fn unknown_tool() {
    let t = Tenant::new(4, ALL, json!({})).await;
    assert_eq!(t.code(&t.coder, &call("coder", "git/push", json!({}))).await, "allowed");
    // Everything is permitted, and yet: what no package lists has no tier, so nobody has judged it.
    for tool in ["git/unlisted", "git/Push", "git/push ", "push", "git/push/x", "gіt/push", "read"] {
        for token in [&t.coder, &t.gateway] {
            assert_eq!(t.code(token, &call("coder", tool, json!({}))).await, "unknown_tool", "{tool:?}");
        }
    }
    // Nor does another type of resource make a tool of it.
    let mut other = call("coder", "git/push", json!({}));
    other["resource"]["type"] = json!("Tool");
    t.bad(&t.coder, &other, "resource.type").await;
}

#[tokio::test]
async fn agent_supplies_own_attributes() {
    let policies = r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
        @id("trusted") permit(principal, action == Action::"call_tool", resource) when { principal.trust >= 3 };
        @id("granted") permit(principal, action, resource) when { context.granted };"#;
    let t = Tenant::new(1, policies, json!({})).await;
    let push = call("coder", "git/push", json!({}));
    assert_eq!(t.code(&t.coder, &push).await, "no_permit");
    for token in [&t.coder, &t.gateway] {
        let mut of_itself = push.clone();
        of_itself["subject"]["properties"] = json!({"trust": 4});
        t.bad(token, &of_itself, "subject.properties").await;
        let mut of_the_tool = push.clone();
        of_the_tool["resource"]["properties"] = json!({"tier": "read"});
        t.bad(token, &of_the_tool, "resource.properties.tier").await;
        // In the context and among the arguments they are names like others, and mean nothing.
        let claims = json!({"trust": 4, "granted": true, "risk": 0, "principal": {"trust": 4}});
        let mut in_context = call("coder", "git/push", claims.clone());
        for (key, value) in claims.as_object().unwrap() {
            in_context["context"][key] = value.clone();
        }
        assert_eq!(t.code(token, &in_context).await, "no_permit");
    }
}

#[tokio::test]
async fn argument_key_collision() {
    let policies = r#"@id("all") permit(principal, action, resource);
        @id("main") @reason("Not main.") forbid(principal, action, resource)
        when { context.arguments.hasTag("ref.branch") && context.arguments.getTag("ref.branch") == "main" };"#;
    let t = Tenant::new(2, policies, json!({})).await;
    let push = |arguments: Value| call("coder", "git/push", arguments);
    assert_eq!(t.code(&t.coder, &push(json!({"ref": {"branch": "main"}}))).await, "denied_by_policy");
    // A literal key with the dot in it stands beside the nested one and does not hide it, in either order.
    for arguments in [
        r#"{"ref.branch": "mine", "ref": {"branch": "main"}}"#,
        r#"{"ref": {"branch": "main"}, "ref.branch": "mine", "ref\\.branch": "mine"}"#,
    ] {
        let arguments: Value = serde_json::from_str(arguments).unwrap();
        assert_eq!(t.code(&t.coder, &push(arguments)).await, "denied_by_policy");
    }
    // The same key twice, at any level, is no JSON that two programs read alike.
    for arguments in [
        r#"{"ref": {"branch": "main", "branch": "mine"}}"#,
        r#"{"ref": {"branch": "main"}, "ref": {"branch": "mine"}}"#,
        r#"{"ref": {"branch": "main", "br\u0061nch": "mine"}}"#,
    ] {
        let body = push(json!("ARGUMENTS")).to_string().replace("\"ARGUMENTS\"", arguments);
        let path = format!("/tenants/{}/access/v1/evaluation", t.name);
        let json = [("content-type", "application/json")];
        let answer = t.c.http().send(hyper::Method::POST, &path, Some(&t.coder), &json, body).await.unwrap();
        assert_eq!((answer.status, answer.json()["code"].as_str()), (400, Some("invalid_json")), "{}", answer.text);
    }
}

#[tokio::test]
async fn oversized_argument_under_a_forbid() {
    let policies = r#"@id("all") permit(principal, action, resource);
        @id("no-force") forbid(principal, action, resource == Tool::"git/push")
        when { context.arguments.hasTag("command") && context.arguments.getTag("command") like "*--force*" };"#;
    let t = Tenant::new(2, policies, json!({})).await;
    let long = format!("{} --force", "x".repeat(70_000));
    assert_eq!(t.code(&t.coder, &call("coder", "git/push", json!({"command": long}))).await, "argument_too_large");
    // A text that no deciding policy reads may be long.
    assert_eq!(t.code(&t.coder, &call("coder", "git/push", json!({"note": long}))).await, "allowed");
    assert_eq!(t.code(&t.coder, &call("coder", "git/log", json!({"command": long}))).await, "allowed");
}

#[tokio::test]
async fn delegator_widens() {
    let policies = r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
        @id("alice") permit(principal, action, resource)
        when { principal has delegated_by && principal.delegated_by == User::"alice" };
        @id("not-bob") forbid(principal, action, resource)
        when { principal has delegated_by && principal.delegated_by == User::"bob" };"#;
    let t = Tenant::new(2, policies, json!({})).await;
    for user in ["alice", "bob"] {
        let spec = json!({
            "identities": [{"serviceAccount": format!("for-{user}")}], "trustLevel": 2,
            "delegation": {"mode": "Required", "fixed": {"kind": "User", "name": user}},
        });
        t.c.apply(&t.name, &agent(&format!("for-{user}"), spec)).unwrap();
    }
    let read = |agent: &str| call(agent, "git/log", json!({}));
    t.c.answered(&t.gateway, &t.name, &read("for-alice"), "allowed").await;
    // Alice may, the agent alone may not: it may not for Alice either.
    assert_eq!(t.code(&t.gateway, &call("for-alice", "git/push", json!({}))).await, "no_permit");
    // Bob may not: what the agent alone may, it may not for Bob.
    t.c.answered(&t.gateway, &t.name, &read("for-bob"), "denied_by_policy").await;
    assert_eq!(t.code(&t.coder, &read("coder")).await, "allowed");
}
