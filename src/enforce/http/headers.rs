//! Headers that repeat what a message says (2026-07-28), so that somebody on the way can act on them without reading the body.
//!
//! What was checked is the body. So a header that says something else is refused, and what goes to the server is derived from the
//! body again: no header of a client is passed on but `Mcp-Param-*`, and those only where the arguments say the same.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::enforce::mcp::methods::{META_VERSION, MODERN};
use crate::server::parse_json;

/// The revision.
pub const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
/// `method` of the body.
pub const METHOD: HeaderName = HeaderName::from_static("mcp-method");
/// `params.name` or `params.uri` of the body.
pub const NAME: HeaderName = HeaderName::from_static("mcp-name");
/// The session of the older era.
pub const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
/// Begins the headers that repeat a tool's arguments.
const PARAM: &str = "mcp-param-";
/// Most of those in one request.
const MAX_PARAMS: usize = 64;

/// A header that does not say what the body says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Header mismatch: {0}")]
pub struct Mismatch(pub String);

fn mismatch<T>(text: impl Into<String>) -> Result<T, Mismatch> {
    Err(Mismatch(text.into()))
}

/// What the headers of a request repeat, as the body says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repeated {
    /// `_meta`'s revision: there in the newer era only.
    pub version: Option<String>,
    /// The method; none: a response.
    pub method: Option<String>,
    /// Name of the tool or prompt, or URI of the resource.
    pub name: Option<String>,
}

impl Repeated {
    /// Reads a request's `method` and `params`.
    pub fn of(method: Option<&str>, params: Option<&Map<String, Value>>) -> Self {
        let text = |key: &str| params.and_then(|p| p.get(key)).and_then(Value::as_str).map(str::to_owned);
        let meta = params.and_then(|p| p.get("_meta")).and_then(Value::as_object);
        Self {
            version: meta.and_then(|m| m.get(META_VERSION)).and_then(Value::as_str).map(str::to_owned),
            method: method.map(str::to_owned),
            name: match method {
                Some("tools/call" | "prompts/get") => text("name"),
                Some("resources/read") => text("uri"),
                _ => None,
            },
        }
    }

    /// The same of a message's bytes.
    pub fn read(message: &[u8]) -> Self {
        let members = parse_json(message).ok();
        let method = members.as_ref().and_then(|m| m.get("method")).and_then(Value::as_str);
        Self::of(method, members.as_ref().and_then(|m| m.get("params")).and_then(Value::as_object))
    }

    /// Whether the headers say the same. In the newer era they must be there.
    pub fn agrees(&self, headers: &HeaderMap, request: bool) -> Result<(), Mismatch> {
        let version = one(headers, &VERSION)?;
        match (&self.version, version.as_deref()) {
            (Some(body), Some(header)) if body == header => {}
            (Some(_), Some(_)) => return mismatch("MCP-Protocol-Version and the body's protocol version differ"),
            (Some(_), None) => return mismatch("MCP-Protocol-Version is missing"),
            (None, Some(header)) if MODERN.contains(&header) && request => {
                return mismatch("MCP-Protocol-Version names a revision that the body does not");
            }
            (None, _) => {}
        }
        let modern = self.version.is_some();
        for (header, body) in [(&METHOD, &self.method), (&NAME, &self.name)] {
            let sent = one(headers, header)?;
            let sent = if *header == NAME { sent.map(|v| decoded(header, v)).transpose()? } else { sent };
            match (body, sent) {
                (Some(body), Some(sent)) if *body == sent => {}
                (None, None) => {}
                (Some(_), None) if !modern || !request => {}
                (Some(_), None) => return mismatch(format!("{header} is missing")),
                (_, Some(_)) => return mismatch(format!("{header} does not match the body")),
            }
        }
        Ok(())
    }

    /// The headers by which this goes to the server.
    pub fn write(&self, headers: &mut HeaderMap) -> Result<(), Mismatch> {
        let Some(version) = &self.version else { return Ok(()) };
        headers.insert(VERSION, plain(&VERSION, version)?);
        if let Some(method) = &self.method {
            headers.insert(METHOD, plain(&METHOD, method)?);
        }
        if let Some(name) = &self.name {
            headers.insert(NAME, plain(&NAME, &encoded(name))?);
        }
        Ok(())
    }
}

/// The `Mcp-Param-*` headers of a call, each of which some argument says, too. (Which one, the tool's schema knows: its server
/// compares again.)
pub fn params(
    headers: &HeaderMap,
    arguments: Option<&Map<String, Value>>,
) -> Result<Vec<(HeaderName, HeaderValue)>, Mismatch> {
    let mut out = Vec::new();
    for name in headers.keys().filter(|name| name.as_str().starts_with(PARAM)) {
        let sent = one(headers, name)?.unwrap_or_default();
        let value = decoded(name, sent.clone())?;
        if !arguments.is_some_and(|a| a.values().any(|v| says(v, &value))) {
            return mismatch(format!("{name} does not match any argument"));
        }
        out.push((name.clone(), plain(name, &sent)?));
        if out.len() > MAX_PARAMS {
            return mismatch(format!("more than {MAX_PARAMS} headers Mcp-Param-*"));
        }
    }
    Ok(out)
}

/// Whether a scalar in this value reads like this. Only through objects: no header repeats an element of a list.
fn says(value: &Value, text: &str) -> bool {
    match value {
        Value::String(s) => s == text,
        Value::Bool(b) => text == if *b { "true" } else { "false" },
        Value::Number(n) => {
            n.to_string() == text
                || n.as_f64().is_some_and(|n| text.parse::<f64>().is_ok_and(|t| t.is_finite() && t == n))
        }
        Value::Object(map) => map.values().any(|v| says(v, text)),
        Value::Null | Value::Array(_) => false,
    }
}

/// A header that may be there once.
fn one(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Mismatch> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    match (first, second) {
        (None, _) => Ok(None),
        (Some(_), Some(_)) => mismatch(format!("{name} is there twice")),
        (Some(value), None) => match value.to_str() {
            Ok(text) if !text.is_empty() => Ok(Some(text.to_owned())),
            _ => mismatch(format!("{name} has characters that no header may have")),
        },
    }
}

/// A value without the Base64 that stands for what no header may hold.
fn decoded(name: &HeaderName, value: String) -> Result<String, Mismatch> {
    let Some(inner) = value.strip_prefix("=?base64?").and_then(|v| v.strip_suffix("?=")) else { return Ok(value) };
    let bytes = STANDARD.decode(inner).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    bytes.map_or_else(|| mismatch(format!("{name} is not Base64 of UTF-8")), Ok)
}

/// The other way. What would be taken for Base64 is encoded, too.
fn encoded(value: &str) -> String {
    let safe = value.bytes().all(|b| (0x20..=0x7e).contains(&b))
        && value.trim() == value
        && !value.is_empty()
        && !(value.starts_with("=?base64?") && value.ends_with("?="));
    if safe { value.to_owned() } else { format!("=?base64?{}?=", STANDARD.encode(value)) }
}

fn plain(name: &HeaderName, value: &str) -> Result<HeaderValue, Mismatch> {
    HeaderValue::from_str(value).map_err(|_| Mismatch(format!("{name} can't be sent")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn modern(name: &str) -> Repeated {
        let params =
            json!({"name": name, "uri": "x", "_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}});
        Repeated::of(Some("tools/call"), params.as_object())
    }

    #[test]
    fn the_newer_era_says_everything_twice_and_the_same() {
        let good = [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tools/call"), ("mcp-name", "read")];
        assert_eq!(modern("read").agrees(&headers(&good), true), Ok(()));
        for leave_out in 0..3 {
            let mut some = good.to_vec();
            some.remove(leave_out);
            assert!(modern("read").agrees(&headers(&some), true).is_err(), "{leave_out}");
        }
        for (at, value) in [
            (0, "2025-11-25"),
            (1, "tools/list"),
            (1, "Tools/Call"),
            (2, "write"),
            (2, "read "),
            (2, "=?base64?d3JpdGU=?="),
        ] {
            let mut some = good.to_vec();
            some[at].1 = value;
            if value != "read " {
                assert!(modern("read").agrees(&headers(&some), true).is_err(), "{value}");
            }
        }
        let twice = [good[0], good[1], good[2], ("mcp-name", "write")];
        assert!(modern("read").agrees(&headers(&twice), true).is_err());
        assert!(
            modern("r\u{e9}ad")
                .agrees(&headers(&[good[0], good[1], ("mcp-name", "=?base64?csOpYWQ=?=")]), true)
                .is_ok()
        );
    }

    #[test]
    fn the_older_era_needs_none_but_what_is_there_must_agree() {
        let params = json!({"name": "read"});
        let older = Repeated::of(Some("tools/call"), params.as_object());
        assert_eq!(older.version, None);
        assert_eq!(older.agrees(&headers(&[]), true), Ok(()));
        assert_eq!(older.agrees(&headers(&[("mcp-protocol-version", "2025-06-18")]), true), Ok(()));
        assert!(older.agrees(&headers(&[("mcp-protocol-version", "2026-07-28")]), true).is_err());
        assert!(older.agrees(&headers(&[("mcp-name", "write")]), true).is_err());
        assert!(older.agrees(&headers(&[("mcp-method", "ping")]), true).is_err());
        let response = Repeated::of(None, None);
        assert!(response.agrees(&headers(&[("mcp-name", "write")]), false).is_err());
    }

    #[test]
    fn what_is_sent_on_comes_from_the_body() {
        let written = |repeated: Repeated| {
            let mut map = HeaderMap::new();
            repeated.write(&mut map).unwrap();
            map
        };
        let map = written(modern("read"));
        assert_eq!(
            (&map[VERSION], &map[METHOD], &map[NAME]),
            (&"2026-07-28".parse().unwrap(), &"tools/call".parse().unwrap(), &"read".parse().unwrap())
        );
        for name in ["r\u{e9}ad", " x", "a\nb", "=?base64?x?="] {
            let map = written(modern(name));
            assert!(modern(name).agrees(&map, true).is_ok(), "{name:?}");
            assert!(map[NAME].to_str().unwrap().starts_with("=?base64?"));
        }
        assert!(written(Repeated::of(Some("tools/call"), json!({"name": "x"}).as_object())).is_empty());
    }

    #[test]
    fn a_parameter_header_repeats_an_argument_or_is_refused() {
        let arguments = json!({"region": "eu", "deep": {"n": 42, "b": true}, "list": ["us"], "text": "gr\u{fc}n"});
        let check = |name: &str, value: &str| params(&headers(&[(name, value)]), arguments.as_object()).is_ok();
        assert!(check("mcp-param-region", "eu") && check("Mcp-Param-N", "42.0") && check("mcp-param-b", "true"));
        assert!(check("mcp-param-text", "=?base64?Z3LDvG4=?="));
        for (name, value) in [
            ("mcp-param-region", "us"),
            ("mcp-param-x", "null"),
            ("mcp-param-n", "43"),
            ("mcp-param-t", "=?base64?!?="),
        ] {
            assert!(!check(name, value), "{name} {value}");
        }
        assert!(params(&headers(&[("mcp-param-a", "eu")]), None).is_err());
        assert_eq!(params(&headers(&[("x-other", "eu")]), None), Ok(vec![]));
    }
}
