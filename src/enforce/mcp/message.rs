//! JSON-RPC 2.0 messages, by their exact members.
//!
//! Some readers match member names without regard to case, take the first or the last of two, or take a message with `method`
//! and `result` for either. Whatever two readers could see differently is refused here. Must never guess what was meant: the id
//! that [`readable_id`] finds is only good for telling somebody that his message was refused.

use std::fmt;

use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Members of a message.
const MESSAGE: &[&str] = &["jsonrpc", "id", "method", "params", "result", "error"];
/// Members that an object may have at all.
const MAX_MEMBERS: usize = 65_536;
/// RFC 7493: what every reader takes for the same integer.
const MAX_ID: i64 = (1 << 53) - 1;

/// Id of a request: 1 and "1" are two.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Id {
    /// An integer.
    Number(i64),
    /// A string.
    Text(String),
}

impl Id {
    fn read(raw: &RawValue) -> Option<Self> {
        let text = raw.get();
        if text.starts_with('"') {
            return serde_json::from_str(text).ok().map(Self::Text);
        }
        // Digits only: 1.0 and 1e0 are the same number to some readers, and another id to others.
        let digits = text.strip_prefix('-').unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) || text == "-0" {
            return None;
        }
        text.parse().ok().filter(|n: &i64| n.abs() <= MAX_ID).map(Self::Number)
    }

    /// As it is written in a message.
    pub fn json(&self) -> serde_json::Value {
        match self {
            Self::Number(n) => (*n).into(),
            Self::Text(s) => s.as_str().into(),
        }
    }
}

/// For logs: the id is the peer's text, so it is escaped and cut.
impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n) => write!(f, "{n}"),
            Self::Text(s) => write!(f, "\"{}\"", brief(s)),
        }
    }
}

/// A peer's text for logs and messages: escaped and cut.
pub fn brief(text: &str) -> String {
    text.escape_debug().take(64).collect()
}

/// What a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Wants an answer.
    Request {
        /// Its id.
        id: Id,
        /// Its method, unescaped.
        method: String,
    },
    /// Wants none.
    Notification {
        /// Its method, unescaped.
        method: String,
    },
    /// An answer.
    Response {
        /// Id of the request.
        id: Id,
        /// It carries `error`, not `result`.
        failed: bool,
    },
}

/// A message and its parts, as they were written.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    /// What it is.
    pub kind: Kind,
    /// `params` of a request or notification: an object.
    pub params: Option<&'a RawValue>,
    /// `result` of a response: an object.
    pub result: Option<&'a RawValue>,
    /// `error` of a response: an object.
    pub error: Option<&'a RawValue>,
}

impl<'a> Message<'a> {
    /// Reads one message. The error says what is wrong with it.
    pub fn read(text: &'a str) -> Result<Self, String> {
        if text.trim_start().starts_with('[') {
            return Err("batches are not accepted: send each message on its own".into());
        }
        let members = Members::read(text, MESSAGE, true)?;
        if members.get("jsonrpc").map(RawValue::get) != Some("\"2.0\"") {
            return Err("jsonrpc: must be \"2.0\"".into());
        }
        let id = match members.get("id") {
            None => None,
            Some(raw) => Some(Id::read(raw).ok_or("id: must be a string or an integer within \u{b1}(2^53-1)")?),
        };
        let method = match members.get("method") {
            None => None,
            Some(raw) => Some(serde_json::from_str::<String>(raw.get()).map_err(|_| "method: must be a string")?),
        };
        let object = |name: &'static str| match members.get(name) {
            Some(raw) if raw.get().starts_with('{') => Ok(Some(raw)),
            Some(raw) if name == "params" && raw.get() == "null" => Ok(None),
            Some(_) => Err(format!("{name}: must be an object")),
            None => Ok(None),
        };
        let (params, result, error) = (object("params")?, object("result")?, object("error")?);
        let answers = result.is_some() || error.is_some();
        let kind = match (id, method) {
            (_, Some(_)) if answers => return Err("both a request and a response".into()),
            (Some(id), Some(method)) => Kind::Request { id, method },
            (None, Some(method)) => Kind::Notification { method },
            (_, None) if members.get("params").is_some() => return Err("params without method".into()),
            (Some(_), None) if result.is_some() && error.is_some() => return Err("both result and error".into()),
            (Some(id), None) if answers => Kind::Response { id, failed: error.is_some() },
            (None, None) if error.is_some() => return Err("an error that answers no request".into()),
            (_, None) => return Err("neither a request, a notification nor a response".into()),
        };
        Ok(Self { kind, params, result, error })
    }
}

/// The members of an object that somebody is going to look at, each at most once and under its exact name.
#[derive(Clone, Debug, Default)]
pub struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Members<'a> {
    /// Reads an object. `closed` refuses members that are not named in `known`.
    pub fn read(text: &'a str, known: &[&str], closed: bool) -> Result<Self, String> {
        let members = Self::all(text)?;
        let mut out: Vec<(String, &'a RawValue)> = Vec::new();
        for (name, raw) in members.0 {
            if known.contains(&name.as_str()) {
                if out.iter().any(|(n, _)| *n == name) {
                    return Err(format!("{name}: the key occurs twice in the same object"));
                }
                out.push((name, raw));
            } else if let Some(meant) = known.iter().find(|k| same_but_case(k, &name)) {
                return Err(format!("{}: some readers would take it for `{meant}`", brief(&name)));
            } else if closed {
                return Err(format!("{}: no member of this object", brief(&name)));
            }
        }
        Ok(Self(out))
    }

    /// Every member in its order, duplicates too.
    pub fn all(text: &'a str) -> Result<Self, String> {
        let mut de = serde_json::Deserializer::from_str(text);
        let members = de.deserialize_map(AllMembers).and_then(|members| de.end().map(|()| members));
        members.map(Self).map_err(|e| e.to_string())
    }

    /// One of the known members.
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, raw)| *raw)
    }

    /// One of the known members as a string.
    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name).and_then(|raw| serde_json::from_str(raw.get()).ok())
    }

    /// In their order.
    pub fn into_vec(self) -> Vec<(String, &'a RawValue)> {
        self.0
    }
}

struct AllMembers;

impl<'de> Visitor<'de> for AllMembers {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut out = Vec::new();
        while let Some(entry) = map.next_entry::<String, &'de RawValue>()? {
            if out.len() >= MAX_MEMBERS {
                return Err(serde::de::Error::custom(format_args!("more than {MAX_MEMBERS} members")));
            }
            out.push(entry);
        }
        Ok(out)
    }
}

/// Whether the names differ, but not to a reader that ignores case (Go's encoding/json folds as Unicode does: ſ is s).
pub fn same_but_case(a: &str, b: &str) -> bool {
    fn fold(text: &str) -> impl Iterator<Item = char> + '_ {
        text.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase)
    }
    a != b && fold(a).eq(fold(b))
}

/// The only id in a message that can't be accepted, so that who waits for its answer can be told. Nothing else of it counts.
pub fn readable_id(text: &str) -> Option<Id> {
    struct OnlyId;
    impl<'de> Visitor<'de> for OnlyId {
        type Value = Option<Id>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut ids = Vec::new();
            while let Some(key) = map.next_key::<String>()? {
                if key == "id" {
                    ids.push(Id::read(map.next_value::<&'de RawValue>()?));
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(if ids.len() == 1 { ids.pop().flatten() } else { None })
        }
    }
    let mut de = serde_json::Deserializer::from_str(text);
    de.deserialize_map(OnlyId).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> Kind {
        Message::read(text).unwrap().kind
    }

    fn refused(text: &str) -> String {
        Message::read(text).unwrap_err()
    }

    #[test]
    fn messages_are_told_apart_by_their_members() {
        let request = |id| Kind::Request { id, method: "ping".into() };
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#), request(Id::Number(1)));
        assert_eq!(kind(r#" { "method":"p\u0069ng","id":"1","jsonrpc":"2.0" } "#), request(Id::Text("1".into())));
        assert_eq!(
            kind(r#"{"jsonrpc":"2.0","method":"ping","params":null}"#),
            Kind::Notification { method: "ping".into() }
        );
        let answer = |failed| Kind::Response { id: Id::Number(-3), failed };
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":-3,"result":{}}"#), answer(false));
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":-3,"error":{"code":1,"message":""}}"#), answer(true));
    }

    #[test]
    fn what_two_readers_could_see_differently_is_refused() {
        for (text, why) in [
            (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, "batches"),
            (r#" []"#, "batches"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}"#, "method: the key occurs twice"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping","m\u0065thod":"tools/call"}"#, "method: the key occurs twice"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call"}"#, "take it for `method`"),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"param\u{17f}\":{}}", "take it for `params`"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping","extra":1}"#, "no member"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}"#, "both a request and a response"),
            (r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#, "both result and error"),
            (r#"{"jsonrpc":"2.0","id":1,"result":{},"params":{}}"#, "params without method"),
            (r#"{"jsonrpc":"2.0","result":{}}"#, "neither"),
            (r#"{"jsonrpc":"2.0","id":1}"#, "neither"),
            (r#"{"jsonrpc":"2.0","error":{}}"#, "no request"),
            (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, "jsonrpc"),
            (r#"{"id":1,"method":"ping"}"#, "jsonrpc"),
            (r#"{"jsonrpc":"2.0","id":1,"method":["ping"]}"#, "method: must be a string"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}"#, "params: must be an object"),
            (r#"{"jsonrpc":"2.0","id":1,"result":null}"#, "result: must be an object"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping"} {}"#, "trailing"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping""#, "EOF"),
            ("7", "JSON object"),
        ] {
            assert!(refused(text).contains(why), "{text}: {}", refused(text));
        }
        for id in ["1.0", "1e0", "-0", "null", "true", "{}", "9007199254740992", "123456789012345678901"] {
            let error = refused(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#));
            assert!(error.starts_with("id:"), "{id}: {error}");
        }
    }

    #[test]
    fn a_refused_message_is_answered_where_its_id_is_certain() {
        let deep = format!(r#"{{"a":{}{},"id":"x"}}"#, "[".repeat(50_000), "]".repeat(50_000));
        assert_eq!(readable_id(&deep), Some(Id::Text("x".into())));
        assert_eq!(readable_id(r#"{"id":7,"n":1e400}"#), Some(Id::Number(7)));
        assert_eq!(readable_id(r#"{"id":7,"id":8}"#), None);
        assert_eq!(readable_id(r#"{"id":null}"#), None);
        assert_eq!(readable_id("[]"), None);
    }

    #[test]
    fn names_that_differ_in_case_only_are_seen() {
        assert!(same_but_case("path", "PATH") && same_but_case("task", "ta\u{17f}\u{212a}"));
        assert!(!same_but_case("path", "path") && !same_but_case("path", "paths"));
    }
}
