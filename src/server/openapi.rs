//! The OpenAPI 3.1 document of the HTTP surface.

mod by_hand;
mod explain;
mod replays;

use serde_json::{Value, json};

/// The document, as served at `/openapi.json` and committed in docs/.
pub fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Remit",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "summary": "Says what each AI agent may do, for whom, right now.",
            "description": "OpenID AuthZEN Authorization API 1.0 (evaluation, evaluations and search), sessions, and the record. Unknown \
                members of a request are ignored, except those that look like a misspelt `arguments`, `session`, \
                `on_behalf_of`, `context` or `evaluations`, or lie at the wrong level: these are refused, because a call \
                judged without them could be judged too kindly. Bodies are I-JSON (RFC 7493): duplicate keys, numbers beyond \
                \u{b1}(2^53-1), invalid UTF-8 and nesting over 64 are refused. Errors are JSON; with `Accept: text/plain` they \
                are the message alone."
        },
        "security": [{"token": []}],
        "paths": paths(),
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                    "description": "A ServiceAccount token with audience `remit` (agents and gateways)."},
                "admin": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                    "description": "A token with audience `remit-admin` (humans)."}
            },
            "parameters": parameters(),
            "responses": {
                "Error": {
                    "description": "No decision was made; nothing may be done.",
                    "headers": {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}},
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/Error"}},
                        "text/plain": {"schema": {"type": "string"}}
                    }
                }
            },
            "headers": {"RequestId": {"description": "The caller's, echoed.", "schema": {"type": "string"}}},
            "schemas": schemas()
        }
    })
}

fn paths() -> Value {
    let mut paths = serde_json::Map::new();
    for (prefix, tenant) in [("", false), ("/tenants/{tenant}", true)] {
        let id = |name: &str| if tenant { format!("{name}InTenant") } else { name.to_owned() };
        let with = |mut parameters: Vec<Value>| {
            if tenant {
                parameters.insert(0, reference("parameters", "Tenant"));
            }
            parameters.push(reference("parameters", "RequestId"));
            parameters
        };
        let session = || vec![reference("parameters", "Session")];
        let of =
            if tenant { "The tenant in the path." } else { "The tenant is the one of the caller's ServiceAccount." };
        paths.insert(
            format!("{prefix}/access/v1/evaluation"),
            json!({"post": {
                "operationId": id("evaluation"), "tags": ["AuthZEN"], "summary": "May this be done?", "description": of,
                "parameters": with(vec![]), "requestBody": body("EvaluationRequest", true),
                "responses": responses("200", "The decision.", "Decision")
            }}),
        );
        paths.insert(
            format!("{prefix}/access/v1/evaluations"),
            json!({"post": {
                "operationId": id("evaluations"), "tags": ["AuthZEN"], "summary": "May these be done?",
                "description": format!("{of} At most 1,000 items; without items, or with none, this is `evaluation`."),
                "parameters": with(vec![]), "requestBody": body("EvaluationsRequest", true),
                "responses": responses("200", "The decisions, in order.", "EvaluationsResponse")
            }}),
        );
        for (kind, operation, what) in [
            ("resource", "searchResource", "Which tools could this agent be allowed to call?"),
            ("subject", "searchSubject", "Which agents could be allowed to call this tool?"),
            ("action", "searchAction", "By which actions could this be done?"),
        ] {
            paths.insert(
                format!("{prefix}/access/v1/search/{kind}"),
                json!({"post": {
                    "operationId": id(operation), "tags": ["AuthZEN"], "summary": what,
                    "description": format!("{of} No decision, and not recorded: what is found must be asked again with the call itself. \
                        Found is what some call could be allowed to do, with an approval where policies ask for one. An agent \
                        finds out about itself only."),
                    "parameters": with(vec![]), "requestBody": body("SearchRequest", true),
                    "responses": responses("200", "A page of what was found.", "SearchResponse")
                }}),
            );
        }
        let decision = json!({"name": "id", "in": "path", "required": true, "schema": {"type": "string"}});
        paths.insert(
            format!("{prefix}/decisions/{{id}}/outcome"),
            json!({"post": {
                "operationId": id("reportOutcome"), "tags": ["AuthZEN"], "summary": "Say what became of an allowed call",
                "description": format!("{of} Once for each decision, by the caller who asked for it; the same said again is no error."),
                "parameters": with(vec![decision]), "requestBody": body("CallOutcome", true),
                "responses": {"204": {"description": "It is kept."}, "default": reference("responses", "Error")}
            }}),
        );
        paths.insert(
            format!("{prefix}/sessions"),
            json!({"post": {
                "operationId": id("openSession"), "tags": ["Sessions"], "summary": "Begin a session", "description": of,
                "parameters": with(vec![]), "requestBody": body("NewSession", false),
                "responses": responses("201", "The session.", "Session")
            }}),
        );
        let end = |operation: &str| {
            json!({
                "operationId": id(operation), "tags": ["Sessions"], "summary": "End a session", "description": of,
                "parameters": with(session()), "responses": responses("200", "It has ended.", "Session")
            })
        };
        paths.insert(format!("{prefix}/sessions/{{id}}"), json!({"delete": end("deleteSession")}));
        paths.insert(format!("{prefix}/sessions/{{id}}/end"), json!({"post": end("endSession")}));
        paths.insert(format!("{prefix}/sessions/{{id}}/heartbeat"), json!({"post": {
            "operationId": id("heartbeat"), "tags": ["Sessions"], "summary": "Keep a session alive", "description": of,
            "parameters": with(session()), "responses": responses("200", "It lives.", "Session")
        }}));
        let known = if tenant {
            "/.well-known/authzen-configuration/tenants/{tenant}"
        } else {
            "/.well-known/authzen-configuration"
        };
        paths.insert(known.to_owned(), json!({"get": {
            "operationId": id("metadata"), "tags": ["AuthZEN"], "summary": "Policy decision point metadata", "security": [],
            "parameters": with(vec![]), "responses": responses("200", "The metadata.", "Metadata")
        }}));
    }
    paths.extend(by_hand::paths());
    paths.insert("/openapi.json".into(), json!({"get": {
        "operationId": "openapi", "summary": "This document", "security": [],
        "responses": {"200": {"description": "This document.", "content": {"application/json": {"schema": {"type": "object"}}}}}
    }}));
    admin(&mut paths);
    Value::Object(paths)
}

fn admin(paths: &mut serde_json::Map<String, Value>) {
    let security = json!([{"admin": []}]);
    let filters: Vec<Value> = [
        ("agent", "Agent, by name."),
        ("delegator", "Delegator, by name."),
        ("session", "Session id."),
        ("action", "Action name."),
        ("outcome", "`allow`, `deny`, `approval_required` or `refused`."),
        ("would_be", "Only what was observed and would be this: `deny` or `approval_required`."),
        ("since", "From this instant on (RFC 3339)."),
        ("until", "Before this instant (RFC 3339)."),
        ("limit", "At most so many, 1 to 1000; 100 if not set."),
        ("page", "`next` of the former page."),
    ]
    .into_iter()
    .map(|(name, description)| query(name, description))
    .collect();
    let mut of_tenant = vec![reference("parameters", "Tenant")];
    of_tenant.extend(filters);
    paths.insert(
        "/admin/tenants/{tenant}/decisions".into(),
        json!({"get": {
            "operationId": "listDecisions", "tags": ["Record"], "summary": "Decisions of a tenant, newest first",
            "description": "Needs verb `get` on `decisions.remit.dev` in the namespace.", "security": security,
            "parameters": of_tenant, "responses": responses("200", "A page.", "DecisionPage")
        }}),
    );
    paths.insert("/admin/tenants/{tenant}/decisions/{id}".into(), json!({"get": {
        "operationId": "getDecision", "tags": ["Record"], "summary": "One decision",
        "description": "Needs verb `get` on `decisions.remit.dev` in the namespace.", "security": security,
        "parameters": [reference("parameters", "Tenant"), {"name": "id", "in": "path", "required": true, "schema": {"type": "string"}}],
        "responses": responses("200", "The decision with its record.", "StoredDecision")
    }}));
    paths.insert("/admin/tenants/{tenant}/decisions/{id}/why".into(), json!({"get": {
        "operationId": "explainDecision", "tags": ["Record"], "summary": "Why a decision fell as it did",
        "description": "Needs verb `get` on `decisions.remit.dev` in the namespace. From the record and the packages that it names: the \
            determining policies with place and values, or on a default deny the nearest permits with what failed first. Texts of the \
            platform's policies are shown to who has the verb in the operator's namespace, too.", "security": security,
        "parameters": [reference("parameters", "Tenant"), {"name": "id", "in": "path", "required": true, "schema": {"type": "string"}}],
        "responses": responses("200", "The explanation.", "Why")
    }}));
    replays::add(paths);
    let audit = "Needs verb `get` on `decisions.remit.dev` in the operator's namespace.";
    paths.insert("/admin/audit/records".into(), json!({"get": {
        "operationId": "auditRecords", "tags": ["Record"], "summary": "Rows of the hash chain, one JSON object a line",
        "description": format!("{audit} An answer ends after 8 MiB of records, too: go on after its last row until there is none."),
        "security": security,
        "parameters": [query("after", "Sequence number after which to begin; 0 if not set."), query("limit", "At most so many, 1 to 10000; 1000 if not set."),
            query("writer", WRITER)],
        "responses": {
            "200": {"description": "The rows.", "content": {"application/x-ndjson": {"schema": {"type": "string"}}}},
            "default": reference("responses", "Error")
        }
    }}));
    for (path, operation, what) in [
        ("/admin/audit/anchors", "auditAnchors", "Signed anchors (DSSE), oldest first"),
        ("/admin/audit/tombstones", "auditTombstones", "What retention has taken, signed (DSSE), oldest first"),
        (
            "/admin/audit/writers",
            "auditWriters",
            "The writer of the replica that answers, and the manifest of all writers",
        ),
    ] {
        let parameters = if operation == "auditWriters" { json!([]) } else { json!([query("writer", WRITER)]) };
        paths.insert(path.into(), json!({"get": {
            "operationId": operation, "tags": ["Record"], "summary": what, "description": audit, "security": security,
            "parameters": parameters,
            "responses": {
                "200": {"description": what, "content": {"application/json": {"schema": {"type": "object"}}}},
                "default": reference("responses", "Error")
            }
        }}));
    }
}

/// Which chain.
const WRITER: &str = "Whose chain: one of the manifest, the answering replica's if not set.";

fn parameters() -> Value {
    json!({
        "Tenant": {"name": "tenant", "in": "path", "required": true, "description": "A namespace.", "schema": {"type": "string", "maxLength": 63}},
        "Session": {"name": "id", "in": "path", "required": true, "description": "A session's id.", "schema": {"type": "string"}},
        "RequestId": {"name": "X-Request-ID", "in": "header", "required": false,
            "description": "Echoed, and kept in the record. Anything outside this alphabet is 400.",
            "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"}}
    })
}

fn schemas() -> Value {
    let text = json!({"type": "string", "minLength": 1, "maxLength": 1024});
    let properties = json!({"type": "object", "description": "Attributes. Only what the package's mapping takes from the caller is used."});
    let entity = json!({"type": "object", "required": ["type", "id"], "properties": {"type": text, "id": text, "properties": properties}});
    let action =
        json!({"type": "object", "required": ["name"], "properties": {"name": text, "properties": properties}});
    let context = json!({"type": "object", "properties": {
        "arguments": {"type": "object", "description": "The call's arguments."},
        "session": {"type": "string", "description": "A session that Remit issued."},
        "on_behalf_of": {"description": "For whom the agent acts.", "oneOf": [
            {"type": "string", "description": "A user's name."},
            {"type": "object", "required": ["type", "id"], "properties": {"type": {"enum": ["user", "agent"]}, "id": text}}
        ]}
    }});
    let question = json!({"subject": entity, "action": action, "resource": entity, "context": context});
    let mut batch = question.clone();
    batch["evaluations"] = json!({"type": "array", "maxItems": super::wire::MAX_ITEMS, "items": {"type": "object", "properties": question}});
    batch["options"] = json!({"type": "object", "properties": {"evaluations_semantic": {
        "enum": ["execute_all", "deny_on_first_deny", "permit_on_first_permit"], "default": "execute_all"}}});
    let mut schemas = json!({
        "EvaluationRequest": {"type": "object", "required": ["subject", "action", "resource"], "properties": question},
        "EvaluationsRequest": {"type": "object", "properties": batch},
        "Decision": {"type": "object", "required": ["decision"], "properties": {
            "decision": {"type": "boolean", "description": "True only for an allow whose record is committed."},
            "context": {"type": "object", "properties": {
                "code": {"type": "string", "description": "Stable reason code, such as `allowed`, `denied_by_policy`, `no_permit`, `approval_required`, `audit_unavailable`."},
                "reason": {"type": "string"},
                "decision_id": {"type": "string", "format": "uuid"},
                "would_be": {"type": "object", "description": "With code `observed`: the tenant only observes, and this is what the decision would be.",
                    "properties": {"outcome": {"enum": ["deny", "approval_required"]}, "code": {"type": "string"}, "reason": {"type": "string"},
                        "policies": {"type": "array", "items": {"type": "string"}, "description": "Gateways only."}}},
                "asks": {"type": "array", "description": "With `approval_required`: who must be asked.", "items": {"type": "object",
                    "properties": {"group": {"type": "string"}, "count": {"type": "integer"}, "reason": {"type": "string"}, "policy": {"type": "string"}}}},
                "policies": {"type": "array", "items": {"type": "string"}, "description": "Determining policies; gateways only."},
                "digests": {"type": "object", "description": "Packages that were evaluated, by side; gateways only."},
                "errors": {"type": "array", "items": {"type": "object"}, "description": "Policies that errored; gateways only."},
                "error": {"type": "object", "description": "In a batch: why this item could not be evaluated.",
                    "properties": {"status": {"type": "integer"}, "message": {"type": "string"}}},
                "field": {"type": "string"}
            }}
        }},
        "EvaluationsResponse": {"description": "Decisions in the order of the items; a single decision where there are none.", "oneOf": [
            {"type": "object", "required": ["evaluations"], "properties": {"evaluations": {"type": "array", "items": {"$ref": "#/components/schemas/Decision"}}}},
            {"$ref": "#/components/schemas/Decision"}
        ]},
        "Metadata": {"type": "object", "required": ["policy_decision_point", "access_evaluation_endpoint", "access_evaluations_endpoint"], "properties": {
            "policy_decision_point": {"type": "string", "format": "uri"},
            "access_evaluation_endpoint": {"type": "string", "format": "uri"},
            "access_evaluations_endpoint": {"type": "string", "format": "uri"},
            "search_subject_endpoint": {"type": "string", "format": "uri"},
            "search_resource_endpoint": {"type": "string", "format": "uri"},
            "search_action_endpoint": {"type": "string", "format": "uri"}
        }},
        "NewSession": {"type": "object", "additionalProperties": false, "properties": {"agent": {"type": "string", "description": "Required of gateways; an agent may leave it out."}}},
        "Session": {"type": "object", "required": ["session", "agent"], "properties": {
            "session": {"type": "string"}, "agent": {"type": "string"},
            "expires_after_seconds": {"type": "integer", "description": "Without heartbeat for so long it ends."},
            "ended": {"type": "boolean"}
        }},
        "StoredDecision": {"type": "object", "required": ["seq", "hash", "record"], "properties": {
            "seq": {"type": "integer", "description": "Gap-free number in the writer's chain."},
            "hash": {"type": "string", "description": "Hash of the chain up to here."},
            "record": {"type": "object"},
            "call": {"$ref": "#/components/schemas/CallOutcome"}
        }},
        "CallOutcome": {"type": "object", "required": ["outcome"], "properties": {
            "outcome": {"enum": ["success", "tool_error", "failed", "cancelled", "not_sent"],
                "description": "The tool answered; it answered that it failed; its server failed; the agent took the call back; it was never sent."},
            "duration_ms": {"type": "integer", "minimum": 0},
            "time": {"type": "string", "format": "date-time", "readOnly": true, "description": "When it was reported."}
        }},
        "DecisionPage": {"type": "object", "required": ["items"], "properties": {
            "items": {"type": "array", "items": {"$ref": "#/components/schemas/StoredDecision"}},
            "next": {"type": "string", "description": "Give it back as `page`; absent on the last page."}
        }},
        "Error": {"type": "object", "required": ["code", "message"], "properties": {
            "code": {"type": "string", "description": "Stable, snake_case."},
            "message": {"type": "string"},
            "field": {"type": "string", "description": "What was wrong."},
            "decision_id": {"type": "string", "description": "The record of the refusal, where one was kept."}
        }}
    });
    if let Some(all) = schemas.as_object_mut() {
        all.extend(explain::schemas(&action, &context));
        all.extend(by_hand::schemas());
        all.extend(replays::schemas());
    }
    schemas
}

fn reference(kind: &str, name: &str) -> Value {
    json!({"$ref": format!("#/components/{kind}/{name}")})
}

fn query(name: &str, description: &str) -> Value {
    json!({"name": name, "in": "query", "required": false, "description": description, "schema": {"type": "string"}})
}

fn body(schema: &str, required: bool) -> Value {
    json!({"required": required, "content": {"application/json": {"schema": reference("schemas", schema)}}})
}

fn responses(status: &str, description: &str, schema: &str) -> Value {
    json!({
        status: {"description": description, "content": {"application/json": {"schema": reference("schemas", schema)}},
            "headers": {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}}},
        "default": reference("responses", "Error")
    })
}
