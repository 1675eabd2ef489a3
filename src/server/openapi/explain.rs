//! Shapes of what explains and foresees decisions: search and why.

use serde_json::{Map, Value, json};

/// The schemas by name.
pub(super) fn schemas(action: &Value, context: &Value) -> Map<String, Value> {
    let mut all = Map::new();
    for part in [search(action, context), why()] {
        if let Value::Object(part) = part {
            all.extend(part);
        }
    }
    all
}

fn search(action: &Value, context: &Value) -> Value {
    let text = json!({"type": "string", "minLength": 1, "maxLength": 1024});
    let searched = json!({"type": "object", "required": ["type"], "properties": {"type": text, "id": text}});
    let search = json!({"subject": searched, "action": action, "resource": searched, "context": context,
        "page": {"type": "object", "properties": {
            "token": {"type": "string", "description": "`next_token` of the former page of the same search."},
            "limit": {"type": "integer", "minimum": 0, "description": "Most results of the page; 1000 if not set, and at most."}
        }},
        "options": {"type": "object", "properties": {"details": {"type": "boolean", "description": "Gateways: with `context.details`."}}}
    });
    json!({
        "SearchRequest": {"type": "object", "properties": search,
            "description": "As an evaluation, but the entity that is searched for (its `id`, or the action) is left out and `context.arguments` is not taken."},
        "SearchResponse": {"type": "object", "required": ["page", "results"], "properties": {
            "page": {"type": "object", "required": ["next_token"], "properties": {
                "next_token": {"type": "string", "description": "Empty on the last page."}, "count": {"type": "integer"}}},
            "context": {"type": "object", "properties": {
                "observed_until": {"type": "string", "format": "date-time", "description": "While the tenant observes: tools that are not listed could be let through, too."},
                "details": {"type": "array", "description": "One for each result, in their order.", "items": {
                "type": "object", "required": ["id", "allowed", "approval"], "properties": {
                    "id": {"type": "string"}, "tier": {"enum": ["read", "write", "admin"]},
                    "allowed": {"enum": ["maybe", "always"]}, "approval": {"enum": ["no", "maybe", "always"]},
                    "depends": {"type": "array", "description": "Policies that depend on the call, with the conditions that do.", "items": {"type": "object", "properties": {
                        "policy": {"type": "string"}, "effect": {"enum": ["permit", "forbid", "ask"]},
                        "conditions": {"type": "array", "items": {"type": "string"}}}}}
                }}}}},
            "results": {"type": "array", "items": {"type": "object", "properties": {"type": text, "id": text, "name": text}}}
        }}
    })
}

fn why() -> Value {
    json!({
        "Source": {"type": "object", "required": ["file", "line", "column", "text", "width"], "properties": {
            "file": {"type": "string"}, "line": {"type": "integer"}, "column": {"type": "integer"},
            "text": {"type": "string", "description": "The whole line."}, "width": {"type": "integer", "description": "Characters that are meant."}}},
        "Fact": {"type": "object", "required": ["path"], "properties": {"path": {"type": "string"}, "value": {"type": "string", "description": "In Cedar's text."},
            "missing": {"enum": ["not kept", "not there"]}}},
        "Failed": {"type": "object", "required": ["part", "text", "result"], "properties": {
            "part": {"enum": ["principal", "action", "resource", "condition"]}, "text": {"type": "string"}, "source": {"$ref": "#/components/schemas/Source"},
            "result": {"enum": ["false", "error", "not known"]}, "error": {"type": "string"},
            "facts": {"type": "array", "items": {"$ref": "#/components/schemas/Fact"}}}},
        "Why": {"type": "object", "required": ["decision_id", "time", "outcome", "code", "reason", "subject", "action", "resource"], "properties": {
            "decision_id": {"type": "string"}, "time": {"type": "string", "format": "date-time"},
            "outcome": {"enum": ["allow", "deny", "approval_required", "refused"]}, "code": {"type": "string"}, "reason": {"type": "string"},
            "would_be": {"type": "object", "description": "What it would have been, where the tenant observed; all else explains this.",
                "properties": {"outcome": {"enum": ["deny", "approval_required"]}, "code": {"type": "string"}, "reason": {"type": "string"}}},
            "subject": {"type": "string"}, "delegated_from": {"type": "string"}, "action": {"type": "string"}, "resource": {"type": "string"},
            "determining": {"type": "array", "items": {"type": "object", "required": ["policy"], "properties": {
                "policy": {"type": "string"}, "effect": {"enum": ["permit", "forbid", "ask"]}, "reason": {"type": "string"}, "rule": {"type": "string"},
                "source": {"$ref": "#/components/schemas/Source"}, "text": {"type": "string"},
                "facts": {"type": "array", "items": {"$ref": "#/components/schemas/Fact"}},
                "error": {"type": "string"}, "failed": {"$ref": "#/components/schemas/Failed"}}}},
            "nearest": {"type": "array", "maxItems": 5, "items": {"type": "object", "properties": {
                "policy": {"type": "string"}, "reason": {"type": "string"}, "source": {"$ref": "#/components/schemas/Source"},
                "scope_held": {"type": "integer", "description": "Of principal, action and resource."},
                "conditions_held": {"type": "integer"}, "conditions": {"type": "integer"}, "failed": {"$ref": "#/components/schemas/Failed"}}}},
            "advice": {"type": "array", "items": {"type": "string"}},
            "packages": {"type": "array", "items": {"type": "object", "properties": {
                "side": {"enum": ["platform", "tenant"]}, "digest": {"type": "string"}, "package": {"type": "string"}, "text": {"enum": ["shown", "hidden", "gone"]}}}}
        }}
    })
}
