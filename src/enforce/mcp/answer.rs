//! What the proxy itself says: refusals, errors, and the tool results that tell a model that its call was not made.
//!
//! An agent learns the author's word, the reason and the decision's id. Must never name policies, digests, addresses or files.

use serde_json::{Value, json};

use super::message::Id;
use super::methods::{Era, MODERN};
use crate::enforce::{PdpError, Ruling, Verdict};

/// Not JSON.
pub const PARSE_ERROR: i64 = -32700;
/// No request that JSON-RPC or MCP knows.
pub const INVALID_REQUEST: i64 = -32600;
/// A method that does not pass.
pub const METHOD_NOT_FOUND: i64 = -32601;
/// Parameters that do not pass.
pub const INVALID_PARAMS: i64 = -32602;
/// The server or Remit failed.
pub const INTERNAL_ERROR: i64 = -32603;
/// A revision of the protocol that the proxy does not know (2026-07-28).
const UNSUPPORTED_VERSION: i64 = -32022;

/// A JSON-RPC error; without an id where the request's can't be told.
pub fn error(id: Option<&Id>, code: i64, message: &str) -> Vec<u8> {
    let id = id.map_or(Value::Null, Id::json);
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}).to_string().into_bytes()
}

/// The error by which a modern client finds a revision that the proxy knows.
pub fn unsupported_version(id: &Id, requested: &str) -> Vec<u8> {
    let data = json!({"supported": MODERN, "requested": requested});
    let error = json!({"code": UNSUPPORTED_VERSION, "message": "Unsupported protocol version", "data": data});
    json!({"jsonrpc": "2.0", "id": id.json(), "error": error}).to_string().into_bytes()
}

/// A response with this result, which is JSON already.
pub fn result(id: &Id, result: &str) -> Vec<u8> {
    format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, id.json()).into_bytes()
}

/// A tool result that says that the call was not made.
pub fn refused(id: &Id, era: Era, text: &str) -> Vec<u8> {
    let mut body = json!({"content": [{"type": "text", "text": text}], "isError": true});
    if era == Era::Modern {
        body["resultType"] = "complete".into();
    }
    result(id, &body.to_string())
}

/// Why a call that Remit did not allow was not made, for the model.
pub fn denied(verdict: &Verdict) -> String {
    let rule = verdict.rule.as_ref().unwrap_or(&verdict.code);
    let reason = &verdict.reason;
    match verdict.ruling {
        Ruling::ApprovalRequired => {
            let who = match verdict.asks.as_slice() {
                [] => "a person".to_owned(),
                [group] => format!("a person of group {group}"),
                groups => format!("a person of each of the groups {}", groups.join(", ")),
            };
            let id = &verdict.decision_id;
            format!(
                "denied ({rule}): {reason} This call was not made: {who} must approve it first. Tell the user what you want to do \
                 and why, and give them the request id {id}. Don't retry until they say that it is approved."
            )
        }
        Ruling::Allow | Ruling::Deny => format!("denied ({rule}): {reason}"),
    }
}

/// Why a call about which there is no answer was not made. Addresses and the like go to the log only.
pub fn undecided(error: &PdpError) -> String {
    match error {
        PdpError::Unreachable(_) => {
            "denied (remit_unreachable): Remit can't be reached, so this call was not made.".into()
        }
        PdpError::Timeout(after) => {
            format!(
                "denied (remit_timeout): Remit gave no answer within {} ms, so this call was not made.",
                after.as_millis()
            )
        }
        PdpError::Refused { code, message, .. } => format!("denied ({code}): this call was not made: {message}"),
        PdpError::Malformed(_) => {
            "denied (remit_malformed): Remit's answer can't be read, so this call was not made.".into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn verdict(ruling: Ruling, rule: Option<&str>) -> Verdict {
        Verdict {
            ruling,
            code: "denied_by_policy".into(),
            rule: rule.map(Into::into),
            reason: "Open a pull request instead.".into(),
            decision_id: "d-1".into(),
            asks: vec!["leads".into()],
        }
    }

    #[test]
    fn a_denial_gives_the_authors_word_or_the_code() {
        assert_eq!(denied(&verdict(Ruling::Deny, Some("no-force"))), "denied (no-force): Open a pull request instead.");
        assert_eq!(denied(&verdict(Ruling::Deny, None)), "denied (denied_by_policy): Open a pull request instead.");
        let asks = denied(&verdict(Ruling::ApprovalRequired, None));
        assert!(asks.contains("a person of group leads must") && asks.contains("request id d-1"), "{asks}");
    }

    #[test]
    fn what_went_wrong_is_said_without_addresses() {
        let unreachable = undecided(&PdpError::Unreachable("unix:///home/me/policy/.remit/remit.sock".into()));
        assert!(unreachable.contains("can't be reached") && !unreachable.contains("/home"), "{unreachable}");
        assert!(undecided(&PdpError::Timeout(Duration::from_millis(1500))).contains("1500 ms"));
        assert!(!undecided(&PdpError::Malformed("secret".into())).contains("secret"));
    }

    #[test]
    fn results_are_of_the_requests_era() {
        let read = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
        let id = Id::Text("a\"\n".into());
        let modern = read(refused(&id, Era::Modern, "no"));
        assert_eq!((&modern["id"], &modern["result"]["resultType"]), (&json!("a\"\n"), &json!("complete")));
        assert_eq!(read(refused(&id, Era::Legacy, "no"))["result"].get("resultType"), None);
        assert_eq!(read(error(None, PARSE_ERROR, "x"))["id"], Value::Null);
    }
}
