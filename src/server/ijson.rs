//! Gate 1: JSON as RFC 7493 (I-JSON) wants it, read once into values.
//!
//! Two readers of the same bytes must see the same call, or what was checked is not what is executed. So duplicate keys,
//! numbers that a double can't hold exactly, lone surrogates, noncharacters and deep nesting are refused here, with the path
//! of what is wrong. Must never guess, repair or drop anything.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Objects and arrays may lie this deep in one another.
pub const MAX_DEPTH: usize = 64;
/// Values of one text, all levels together: each takes a hundred times the memory of the two bytes that it may be written in.
pub const MAX_VALUES: usize = 65_536;
/// Largest magnitude of a number: above it neighbours fall together in a double (RFC 7493, 2.2).
pub const MAX_NUMBER: u64 = (1 << 53) - 1;

/// JSON that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct JsonError {
    /// Path of what is wrong, such as `context.arguments.files[2]`; empty for the whole text.
    pub field: String,
    /// What is wrong, with line and column where they help.
    pub message: String,
}

/// Reads one JSON object; nothing may follow it.
pub fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, JsonError> {
    match parse(bytes)? {
        Value::Object(map) => Ok(map),
        other => Err(JsonError {
            field: String::new(),
            message: format!("the body must be a JSON object, not {}", kind(&other)),
        }),
    }
}

/// Reads one JSON value; nothing may follow it.
pub fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    let (path, left) = (RefCell::new(Vec::new()), Cell::new(MAX_VALUES));
    let mut de = serde_json::Deserializer::from_slice(bytes);
    let read =
        Strict { depth: 0, path: &path, left: &left }.deserialize(&mut de).and_then(|value| de.end().map(|()| value));
    read.map_err(|error| JsonError { field: join(&path.borrow()), message: error.to_string() })
}

/// What a value is, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

enum Step {
    Key(String),
    Index(usize),
}

/// The steps were pushed on the way out, innermost first.
fn join(steps: &[Step]) -> String {
    let mut out = String::new();
    for step in steps.iter().rev() {
        match step {
            Step::Key(key) => {
                if !out.is_empty() {
                    out.push('.');
                }
                // A key is the caller's text: shown escaped and cut, so that it can't forge a log line or fill one.
                out.extend(key.escape_debug().take(64));
            }
            Step::Index(index) => out.push_str(&format!("[{index}]")),
        }
    }
    out
}

#[derive(Clone, Copy)]
struct Strict<'p> {
    depth: usize,
    path: &'p RefCell<Vec<Step>>,
    /// Values that may still come.
    left: &'p Cell<usize>,
}

impl Strict<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format_args!("nested deeper than {MAX_DEPTH}")));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.left.get().checked_sub(1) {
            None => return Err(D::Error::custom(format_args!("more than {MAX_VALUES} values"))),
            Some(left) => self.left.set(left),
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Value, E> {
        if v > MAX_NUMBER { Err(too_large()) } else { Ok(Value::Number(v.into())) }
    }

    fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Value, E> {
        if v.unsigned_abs() > MAX_NUMBER { Err(too_large()) } else { Ok(Value::Number(v.into())) }
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        // Integers beyond 64 bits arrive here already rounded, so magnitude is all that can be told of them.
        if v.abs() > MAX_NUMBER as f64 {
            return Err(too_large());
        }
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Value, E> {
        check_text(v)?;
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E: serde::de::Error>(self, v: String) -> Result<Value, E> {
        check_text(&v)?;
        Ok(Value::String(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut out = Vec::new();
        loop {
            match seq.next_element_seed(inner) {
                Ok(Some(value)) => out.push(value),
                Ok(None) => return Ok(Value::Array(out)),
                Err(error) => {
                    self.path.borrow_mut().push(Step::Index(out.len()));
                    return Err(error);
                }
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            check_text(&key)?;
            if out.contains_key(&key) {
                self.path.borrow_mut().push(Step::Key(key));
                return Err(A::Error::custom("the key occurs twice in the same object"));
            }
            match map.next_value_seed(inner) {
                Ok(value) => {
                    out.insert(key, value);
                }
                Err(error) => {
                    self.path.borrow_mut().push(Step::Key(key));
                    return Err(error);
                }
            }
        }
        Ok(Value::Object(out))
    }
}

fn too_large<E: serde::de::Error>() -> E {
    E::custom("a number beyond \u{b1}(2^53-1) is not the same for every reader (RFC 7493): send it as a string")
}

/// RFC 7493, 2.1: no noncharacters. (Lone surrogates and invalid UTF-8 don't get past the parser.)
fn check_text<E: serde::de::Error>(text: &str) -> Result<(), E> {
    if text.is_ascii() {
        return Ok(());
    }
    let non = |c: char| (u32::from(c) & 0xFFFE) == 0xFFFE || ('\u{FDD0}'..='\u{FDEF}').contains(&c);
    if text.chars().any(non) { Err(E::custom("a string contains a Unicode noncharacter (RFC 7493)")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> JsonError {
        parse(text.as_bytes()).unwrap_err()
    }

    #[test]
    fn what_is_plain_json_reads_as_serde_reads_it() {
        let text = r#"{"a":[1,-2,0.5,null,true,"\u00e9"],"b":{"c":{}},"d":9007199254740991}"#;
        let plain: Value = serde_json::from_str(text).unwrap();
        assert_eq!(parse(text.as_bytes()).unwrap(), plain);
    }

    #[test]
    fn duplicate_keys_are_refused_at_every_level_also_when_escaped() {
        assert_eq!(refused(r#"{"a":1,"a":2}"#).field, "a");
        assert_eq!(refused(r#"{"x":[{},{"y":{"a":1,"\u0061":2}}]}"#).field, "x[1].y.a");
        assert!(refused(r#"{"x":{"a":1,"a":1}}"#).message.contains("twice"));
    }

    #[test]
    fn nesting_ends_at_64() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(parse(deep(64).as_bytes()).is_ok());
        assert!(refused(&deep(65)).message.contains("nested deeper than 64"));
        assert!(refused(&deep(100_000)).message.contains("nested deeper than 64"));
    }

    #[test]
    fn values_are_counted() {
        let list = |n: usize| format!("[[{}],{{\"a\":0}}]", vec!["0"; n].join(","));
        assert!(parse(list(MAX_VALUES - 4).as_bytes()).is_ok());
        assert!(refused(&list(MAX_VALUES - 3)).message.contains("more than 65536 values"));
    }

    #[test]
    fn numbers_are_the_same_for_every_reader() {
        for bad in
            ["9007199254740992", "-9007199254740992", "18446744073709551616", "1e300", "123456789012345678901234567890"]
        {
            assert!(refused(&format!(r#"{{"n":{bad}}}"#)).message.contains("2^53-1"), "{bad}");
            assert_eq!(refused(&format!(r#"{{"n":{bad}}}"#)).field, "n");
        }
        assert!(refused("1e999").message.contains("out of range"));
        assert!(parse(b"-9007199254740991").is_ok());
    }

    #[test]
    fn broken_text_is_refused() {
        assert!(parse(b"{\"a\":\"\xff\"}").is_err());
        assert!(parse(br#"{"a":"\ud800"}"#).is_err());
        assert!(refused("{\"a\":\"\u{FFFE}\"}").message.contains("noncharacter"));
        assert!(refused("{\"\u{FDD0}\":1}").message.contains("noncharacter"));
        assert!(refused("{} {}").message.contains("trailing"));
        assert!(refused("").message.contains("EOF"));
        assert!(parse_object(b"[]").unwrap_err().message.contains("not an array"));
    }

    #[test]
    fn the_path_in_a_message_is_escaped_and_cut() {
        let key = format!("\\n{}", "k".repeat(500));
        let error = refused(&format!(r#"{{"{key}":1e300}}"#));
        assert!(error.field.len() < 80 && !error.field.contains('\n'), "{}", error.field);
    }
}
