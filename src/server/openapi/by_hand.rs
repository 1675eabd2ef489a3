//! Paths and shapes of the history of policies and of rollouts as people steer them.

use serde_json::{Map, Value, json};

/// The paths.
pub(super) fn paths() -> Map<String, Value> {
    let mut all = Map::new();
    for (prefix, tenant) in [("", false), ("/admin/tenants/{tenant}", true)] {
        let id = |name: &str| if tenant { format!("{name}InTenant") } else { name.to_owned() };
        let with = |names: &[&str], queries: &[(&str, &str)]| {
            let mut out: Vec<Value> = Vec::new();
            if tenant {
                out.push(json!({"$ref": "#/components/parameters/Tenant"}));
            }
            out.extend(names.iter().map(|name| in_path(name)));
            out.extend(queries.iter().map(|(name, what)| super::query(name, what)));
            out
        };
        let of = if tenant { "" } else { "The tenant is the one of the caller's ServiceAccount. " };
        let reads =
            format!("{of}Needs verb `get` on `policypackages` there; without it the tenant is not there (404).");
        let name = "`@id` of the policy, or `PACKAGE%2FID`.";
        let mut get = |path: &str, operation: &str, what: &str, parameters: Vec<Value>, answer: Value| {
            all.insert(
                format!("{prefix}{path}"),
                json!({"get": {
                    "operationId": id(operation), "tags": ["History"], "summary": what, "description": format!("{reads} {name}"),
                    "security": [{"admin": []}], "parameters": parameters,
                    "responses": {"200": answer, "default": error()}
                }}),
            );
        };
        get(
            "/policies",
            "policies",
            "Every policy that was ever in force, with its newest version",
            with(&[], &[]),
            answer("PolicyVersions"),
        );
        let limit = ("limit", "At most so many, 1 to 1000; 100 if not set.");
        let before = ("before", "Only versions below this number.");
        get(
            "/policies/{name}/versions",
            "policyVersions",
            "Versions of a policy, newest first, deletions too",
            with(&["name"], &[limit, before]),
            answer("PolicyVersions"),
        );
        get(
            "/policies/{name}/versions/{version}",
            "policyVersion",
            "One version with its text",
            with(&["name", "version"], &[]),
            answer("PolicyVersion"),
        );
        get(
            "/policies/{name}/diff",
            "policyDiff",
            "What became different, as a unified diff",
            with(&["name"], &[("from", "Version to start from."), ("to", "Version to end at; the newest if not set.")]),
            json!({"description": "The diff; empty where both are equal.", "content": {"text/x-diff": {"schema": {"type": "string"}}}}),
        );
        all.insert(
            format!("{prefix}/policies/{{name}}/rollback"),
            json!({"post": {
                "operationId": id("policyRollback"), "tags": ["History"], "summary": "Go back to a version of a policy",
                "description": format!("{of}Puts the newest revision of the history in force in which the policy has this version. Needs verb \
                    `rollback` on `tenantrollouts`. 409 `other_changes` lists what else becomes different, until `acknowledge` names all of it; \
                    409 `rollout_under_way` while a candidate is; 422 where the package would not come into force today."),
                "security": [{"admin": []}], "parameters": with(&["name"], &[]), "requestBody": body("PolicyRollback", true),
                "responses": {"200": answer("ActionDone"), "202": answer("ActionDone"), "409": answer("Conflict"), "default": error()}
            }}),
        );
    }
    all.extend(rollouts());
    all
}

fn rollouts() -> Map<String, Value> {
    let tenant = json!({"$ref": "#/components/parameters/Tenant"});
    let reads = "Needs verb `get` on `tenantrollouts` there; without it the tenant is not there (404).";
    let operation = |id: &str, what: &str, description: &str, parameters: Vec<Value>| {
        json!({"operationId": id, "tags": ["Rollouts"], "summary": what, "description": description,
            "security": [{"admin": []}], "parameters": parameters})
    };
    let mut list = operation("rollouts", "Revisions of the tenant, newest first", reads, vec![tenant.clone()]);
    list["responses"] = json!({"200": answer("Rollouts"), "default": error()});
    let asks = "As if the caller had changed `spec.package`: needs verb `patch` (`create` where there is no TenantRollout yet) on \
                `tenantrollouts`, and is written by field manager `remit-http`. Answers when the rollout has begun or after 8 s.";
    let mut create = operation("createRollout", "Ask for another package", asks, vec![tenant.clone()]);
    create["requestBody"] = body("NewRollout", true);
    create["responses"] = json!({"202": answer("Rollouts"), "default": error()});
    let mut all = Map::new();
    let base = "/admin/tenants/{tenant}/rollouts";
    all.insert(base.into(), json!({"get": list, "post": create}));
    for (path, id, what, schema) in [
        (
            "observability",
            "rolloutObservability",
            "What the records say of both packages of the rollout under way, or of the newest",
            "Observability",
        ),
        ("{id}", "rollout", "One revision with the steps that it took", "Rollout"),
        (
            "{id}/package",
            "rolloutPackage",
            "The package of a revision, as it is kept (needs `get` on `policypackages`)",
            "Package",
        ),
    ] {
        let mut parameters = vec![tenant.clone()];
        if path.starts_with('{') {
            parameters.push(in_path("id"));
        }
        let mut get = operation(id, what, reads, parameters);
        get["responses"] = json!({"200": answer(schema), "default": error()});
        all.insert(format!("{base}/{path}"), json!({"get": get}));
    }
    let acts = "An entry in the rollout's status under the caller's name, with `via: http`. Needs the verb that the entry needs: `pause` for \
                pause and resume, `promote`, `promote-unchecked` for promote with `full`, `abort`, `rollback`. pause, resume, promote and abort \
                are of the rollout under way, rollback is of the one in force (of the one under way it is an abort). 202: not handled within \
                8 s; 409 `not_current` or `action_refused`.";
    let action = json!({"name": "action", "in": "path", "required": true,
        "schema": {"enum": ["pause", "resume", "promote", "abort", "rollback"]}});
    let mut act = operation("actOnRollout", "Steer a rollout", acts, vec![tenant, in_path("id"), action]);
    act["requestBody"] = body("RolloutAction", false);
    act["responses"] = json!({"200": answer("ActionDone"), "202": answer("ActionDone"), "409": answer("Conflict"), "default": error()});
    all.insert(format!("{base}/{{id}}/{{action}}"), json!({"post": act}));
    all
}

fn in_path(name: &str) -> Value {
    json!({"name": name, "in": "path", "required": true, "schema": {"type": if name == "name" { "string" } else { "integer" }}})
}

fn body(schema: &str, required: bool) -> Value {
    super::body(schema, required)
}

fn answer(schema: &str) -> Value {
    json!({"description": schema, "content": {"application/json": {"schema": super::reference("schemas", schema)}}})
}

fn error() -> Value {
    super::reference("responses", "Error")
}

/// The schemas by name.
pub(super) fn schemas() -> Map<String, Value> {
    let text = json!({"type": "string"});
    let number = json!({"type": "integer"});
    let of = |name: &str| super::reference("schemas", name);
    let arm = json!({"type": "object", "properties": {"decisions": number, "denied": number, "errors": number,
        "agents": {"type": "array", "items": {"type": "object"}}}});
    let all = json!({
        "PolicyVersion": {"type": "object", "required": ["package", "policy", "version", "time", "change", "deleted", "revision", "package_version", "after", "before"], "properties": {
            "package": text, "policy": text, "version": {"type": "integer", "minimum": 1, "description": "Without gaps."},
            "time": {"type": "string", "format": "date-time"}, "change": {"enum": ["create", "update", "delete", "rollback"]},
            "deleted": {"type": "boolean", "description": "The policy is gone with this version."},
            "sha256": {"type": "string", "description": "Of the text, as `text_hash` in records."},
            "text": {"type": "string", "description": "With a single version only."},
            "revision": number, "package_version": text,
            "after": {"type": "string", "description": "Digest of the package in force from then on; empty: none."},
            "before": {"type": "string", "description": "Digest of the one before; empty: none."},
            "key_fingerprint": text, "author": {"type": "string", "description": "As the package says; signed where it is signed."},
            "applied_by": {"type": "string", "description": "Who applied the package: user name, or `field manager NAME`."},
            "rolled_back_by": text, "reason": text}},
        "PolicyVersions": {"type": "object", "required": ["items"], "properties": {"policy": text,
            "items": {"type": "array", "items": of("PolicyVersion")}, "next": {"type": ["integer", "null"], "description": "Give it back as `before`."}}},
        "PolicyRollback": {"type": "object", "required": ["version", "reason"], "additionalProperties": false, "properties": {
            "version": {"type": "integer", "minimum": 1}, "reason": {"type": "string", "minLength": 1, "maxLength": 1024},
            "acknowledge": {"type": "array", "items": text, "description": "What else may become different, as a refusal lists it."}}},
        "NewRollout": {"type": "object", "required": ["package"], "additionalProperties": false, "properties": {
            "package": {"type": "object", "additionalProperties": false, "properties": {"name": text, "version": {"type": "string", "description": "A range, as in spec.package."}, "digest": text}}}},
        "RolloutAction": {"type": "object", "additionalProperties": false, "properties": {
            "reason": {"type": "string", "maxLength": 1024, "description": "Needed for abort, rollback and promote with `full`."},
            "full": {"type": "boolean", "description": "promote: for everyone, whatever is left to check."},
            "to": {"type": "integer", "description": "rollback: the revision to go back to; the one before if not set."}}},
        "Rollout": {"type": "object", "required": ["id", "package", "version", "digest", "progress", "in_force"], "properties": {
            "id": {"type": "integer", "description": "Number of the revision."}, "package": text, "version": text, "digest": text,
            "key_fingerprint": text, "progress": {"enum": ["queued", "canary", "promoting", "completed", "rolled_back"]},
            "cause": text, "message": text, "at": {"type": "string", "format": "date-time"}, "in_force": {"type": "boolean"},
            "under_way": {"type": "object", "properties": {"stage": number, "percent": number, "verdict": {"type": "object"}, "replay": text, "proof": text, "hold": {"type": "object"}}},
            "steps": {"type": "array", "items": {"type": "object"}, "description": "With a single rollout only, newest first."}}},
        "Rollouts": {"type": "object", "required": ["phase", "current", "items"], "properties": {
            "phase": {"enum": ["Healthy", "Progressing", "Paused", "Degraded"]}, "message": text,
            "current": {"type": "boolean", "description": "Whether this describes the newest spec."},
            "items": {"type": "array", "items": of("Rollout")}}},
        "Observability": {"type": "object", "properties": {"rollout": {"type": "object"}, "under_way": {"type": "boolean"}, "percent": {"type": ["integer", "null"]},
            "rates_since": text, "drift_since": text, "stable": arm, "candidate": arm,
            "drift": {"type": "object", "description": "Calls that were evaluated under both."}, "verdict": {"type": ["object", "null"]}, "newest_record": {"type": ["string", "null"]}}},
        "Package": {"type": "object", "description": "Spec of a PolicyPackage."},
        "ActionDone": {"type": "object", "required": ["action", "result", "rollouts"], "properties": {
            "action": {"type": "object"}, "result": {"type": "string", "description": "`done: …`, or `waiting`."}, "rollouts": of("Rollouts"),
            "before": text, "after": text, "revision": number, "changes": {"type": "array", "items": {"type": "object"}}}},
        "Conflict": {"type": "object", "required": ["code", "message"], "properties": {"code": text, "message": text,
            "changes": {"type": "array", "items": {"type": "object", "properties": {"acknowledge": text, "change": text}}},
            "acknowledge": {"type": "array", "items": text}, "revision": number}}
    });
    match all {
        Value::Object(all) => all,
        _ => Map::new(),
    }
}
