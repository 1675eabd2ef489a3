//! Replays of recorded decisions.

use serde_json::{Map, Value, json};

use super::{body, reference, responses};

/// The routes.
pub fn add(paths: &mut Map<String, Value>) {
    let security = json!([{"admin": []}]);
    let tenant = json!({"name": "tenant", "in": "query", "required": true, "description": "A namespace.",
        "schema": {"type": "string", "maxLength": 63}});
    let id = json!({"name": "id", "in": "path", "required": true, "description": "Id of the run, as Remit issued it.",
        "schema": {"type": "string"}});
    paths.insert(
        "/admin/replay/runs".into(),
        json!({"post": {
            "operationId": "beginReplay", "tags": ["Replay"], "summary": "Replay recorded decisions under two packages",
            "description": "Needs verb `create` on `policyreplays.remit.dev` and `get` on `decisions.remit.dev` in the namespace. The run is of exactly the packages and \
                records that are there now, and is carried out in the background; `Location` is its status. At most 16 runs of a namespace \
                wait or are under way (429).",
            "security": security, "requestBody": body("NewReplay", true),
            "responses": responses("202", "The run, queued.", "ReplayRun")
        }}),
    );
    paths.insert(
        "/admin/replay/runs/{id}".into(),
        json!({"get": {
            "operationId": "getReplay", "tags": ["Replay"], "summary": "Where a replay stands",
            "description": "Needs verb `get` on `policyreplays.remit.dev` and on `decisions.remit.dev` in the namespace. 404 for a run of another namespace.",
            "security": security, "parameters": [id, tenant], "responses": responses("200", "The run.", "ReplayRun")
        }}),
    );
    paths.insert("/admin/replay/runs/{id}/report".into(), json!({"get": {
        "operationId": "getReplayReport", "tags": ["Replay"], "summary": "What a replay came to",
        "description": "Needs verb `get` on `policyreplays.remit.dev` and on `decisions.remit.dev` in the namespace. With `Accept: text/html` a page to send to a \
            colleague, without script; else JSON. 409 as long as there is none, or where the run failed.",
        "security": security, "parameters": [id, tenant],
        "responses": {
            "200": {"description": "The report.", "content": {
                "application/json": {"schema": reference("schemas", "ReplayReport")},
                "text/html": {"schema": {"type": "string"}}
            }},
            "default": reference("responses", "Error")
        }
    }}));
}

/// Their schemas.
pub fn schemas() -> Map<String, Value> {
    let text = || json!({"type": "string"});
    let texts = || json!({"type": "array", "maxItems": 64, "items": {"type": "string"}});
    let time = || json!({"type": "string", "format": "date-time"});
    let selector = json!({"type": "object", "additionalProperties": false,
        "description": "By name and version range, or by digest; the highest version in the range.",
        "properties": {"name": text(), "version": text(), "digest": text()}});
    let selection = json!({"type": "object", "additionalProperties": false, "properties": {
        "since": time(), "until": time(), "sessions": texts(), "agents": texts(), "delegators": texts(), "tools": texts(),
        "outcomes": {"type": "array", "items": {"enum": ["allow", "deny", "approval_required", "refused"]}},
        "limit": {"type": "integer", "minimum": 1, "maximum": 10_000_000, "default": 100_000, "description": "So many: the newest of each agent, in equal shares; what one does not need is the others'."}
    }});
    let invariants = json!({"type": "array", "maxItems": 16, "items": {"type": "object", "required": ["name"],
    "additionalProperties": false, "properties": {
        "name": {"type": "string", "description": "`no_write_privilege_escalation`, `unknown_tools_denied`, `write_tools_need_approval`, or a name of your own beside `expect`."},
        "agent": text(), "agentTrustBelow": {"type": "integer", "minimum": 1, "maximum": 4}, "team": text(),
        "tier": {"enum": ["read", "write", "admin"]}, "tool": text(), "expect": {"enum": ["neverAllow", "neverAllowAlone"]}
    }}});
    let side = json!({"type": "object", "properties": {
        "outcome": text(), "code": text(), "policies": texts(), "tier": {"enum": ["read", "write", "admin"]}
    }});
    let package = json!({"type": "object", "properties": {"package": text(), "version": text(), "digest": text(), "platform": texts()}});
    let schemas = json!({
        "NewReplay": {"type": "object", "required": ["tenant", "candidate"], "additionalProperties": false, "properties": {
            "tenant": {"type": "string", "maxLength": 63}, "baseline": selector, "candidate": selector,
            "selection": selection, "invariants": invariants
        }},
        "ReplayRun": {"type": "object", "required": ["id", "tenant", "state", "status"], "properties": {
            "id": text(), "tenant": text(), "state": {"enum": ["queued", "running", "completed", "failed"]},
            "progress": {"type": "object", "properties": {"done": {"type": "integer"}, "total": {"type": "integer"}}},
            "baseline": text(), "candidate": text(), "platform": texts(), "selection": selection, "invariants": invariants,
            "createdAt": time(), "startedAt": time(), "finishedAt": time(), "error": text(),
            "inputFingerprint": text(), "resultFingerprint": text(),
            "status": {"type": "string", "description": "Address of this."}, "report": {"type": "string", "description": "Address of the report, once there is one."}
        }},
        "ReplayReport": {"type": "object", "properties": {
            "tenant": text(), "baseline": package, "candidate": package, "selection": selection, "from": time(), "to": time(),
            "verdict": {"enum": ["pass", "fail", "inconclusive"]}, "reasons": texts(),
            "leftOut": {"type": "array", "maxItems": 100, "description": "Whose decisions the limit left out.", "items": {"type": "object",
                "properties": {"agent": text(), "decisions": {"type": "integer"}}}},
            "counts": {"type": "object"},
            "matrix": {"type": "array", "items": {"type": "object", "properties": {
                "baseline": text(), "candidate": text(), "reads": {"type": "integer"}, "writes": {"type": "integer"}}}},
            "worst": {"type": "array", "maxItems": 100, "items": {"type": "object", "properties": {
                "decision": text(), "time": time(), "severity": {"enum": ["low", "medium", "high", "critical"]},
                "cause": {"enum": ["access_restricted", "access_expanded", "approval_added", "approval_removed", "approval_weakened", "rule_changed"]},
                "agent": text(), "delegatedFrom": text(), "action": text(), "tool": text(), "baseline": side, "candidate": side,
                "sentence": text()}}},
            "invariants": {"type": "array", "items": {"type": "object", "properties": {
                "name": text(), "holds": {"type": "boolean"}, "counterExample": text(), "decisions": {"type": "integer"}}}},
            "inputFingerprint": text(), "resultFingerprint": text()
        }}
    });
    schemas.as_object().cloned().unwrap_or_default()
}
