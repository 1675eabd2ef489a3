//! The call's arguments as Cedar sees them: one flat map of texts, and one of integers.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};

use super::query::{Arguments, QueryError};

/// Texts that reach Cedar are at most this long; longer ones stand replaced by their length and hash.
pub const MAX_TEXT: usize = 64 * 1024;
/// A call has at most this many flattened arguments.
pub const MAX_KEYS: usize = 4096;
/// A flattened key is at most this long.
const MAX_KEY_BYTES: usize = 1024;
/// Nesting of arguments; gate 1 has refused deeper bodies already.
const MAX_NESTING: usize = 64;

impl Arguments {
    /// Flattens the arguments of a call: keys joined by `.` with `.` and `\` escaped by `\`, elements of arrays as `.0`, strings
    /// as they are, other scalars in RFC 8785 text, and an empty array or object as `[]` or `{}`, so that it can't be mistaken
    /// for an argument that is not there. Numbers that are integers of 64 bits, however written, are in `numbers` too.
    pub fn flatten(arguments: &Map<String, Value>) -> Result<Arguments, QueryError> {
        let mut flat = Arguments::default();
        let mut path = String::new();
        for (key, value) in arguments {
            path.clear();
            escape(key, &mut path);
            add(&mut flat, &mut path, value, 1)?;
        }
        Ok(flat)
    }
}

/// What stands in a record for a value that is not kept: `{"@sensitive": "hmac-sha256:…"}`.
pub const REDACTED: (&str, &str) = ("@sensitive", "hmac-sha256:");

impl Arguments {
    /// Flattens the arguments of a record, and gives the keys whose values were not kept: these are not among the arguments.
    pub fn flatten_kept(arguments: &Map<String, Value>) -> Result<(Arguments, Vec<String>), QueryError> {
        let mut flat = Self::flatten(arguments)?;
        let mut hidden = Vec::new();
        flat.strings.retain(|key, text| {
            let parent = key.strip_suffix(REDACTED.0).and_then(|rest| rest.strip_suffix('.'));
            let kept = parent.filter(|_| text.starts_with(REDACTED.1));
            hidden.extend(kept.map(str::to_owned));
            kept.is_none()
        });
        Ok((flat, hidden))
    }
}

fn escape(key: &str, path: &mut String) {
    for c in key.chars() {
        if matches!(c, '.' | '\\') {
            path.push('\\');
        }
        path.push(c);
    }
}

fn error(path: &str, message: impl Into<String>) -> QueryError {
    let shown: String = path.chars().take(100).collect();
    QueryError { field: format!("context.arguments.{shown}"), message: message.into() }
}

fn add(flat: &mut Arguments, path: &mut String, value: &Value, depth: usize) -> Result<(), QueryError> {
    if path.len() > MAX_KEY_BYTES {
        return Err(error(path, format!("the flattened key is over {MAX_KEY_BYTES} bytes")));
    }
    if depth > MAX_NESTING {
        return Err(error(path, format!("nests deeper than {MAX_NESTING}")));
    }
    let length = path.len();
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (key, member) in members {
                path.push('.');
                escape(key, path);
                add(flat, path, member, depth + 1)?;
                path.truncate(length);
            }
            Ok(())
        }
        Value::Array(elements) if !elements.is_empty() => {
            for (index, element) in elements.iter().enumerate() {
                path.push('.');
                path.push_str(&index.to_string());
                add(flat, path, element, depth + 1)?;
                path.truncate(length);
            }
            Ok(())
        }
        Value::Object(_) => insert(flat, path, "{}".to_owned()),
        Value::Array(_) => insert(flat, path, "[]".to_owned()),
        Value::Null => insert(flat, path, "null".to_owned()),
        Value::Bool(b) => insert(flat, path, b.to_string()),
        Value::String(text) if text.len() > MAX_TEXT => {
            flat.replaced.push(path.clone());
            let hash = super::sha256_text(text.as_bytes());
            insert(flat, path, format!("len:{} {hash}", text.len()))
        }
        Value::String(text) => insert(flat, path, text.clone()),
        Value::Number(number) => {
            if let Some(integer) = integer(number) {
                flat.numbers.insert(path.clone(), integer);
            }
            let text = serde_json_canonicalizer::to_string(number).map_err(|e| error(path, e.to_string()))?;
            insert(flat, path, text)
        }
    }
}

fn insert(flat: &mut Arguments, path: &str, text: String) -> Result<(), QueryError> {
    if flat.strings.len() >= MAX_KEYS {
        return Err(error(path, format!("a call has at most {MAX_KEYS} arguments, nested ones counted")));
    }
    put(&mut flat.strings, path, text)
}

/// Two arguments under one key would let the one that policy reads hide the one that the tool reads.
fn put(strings: &mut BTreeMap<String, String>, path: &str, text: String) -> Result<(), QueryError> {
    match strings.insert(path.to_owned(), text) {
        None => Ok(()),
        Some(_) => Err(error(path, "two arguments have this key when flattened")),
    }
}

/// The integer that a JSON number is, however it is written: `5`, `5.0` and `5e0` are one number to whoever executes the call.
fn integer(number: &Number) -> Option<i64> {
    if let Some(integer) = number.as_i64() {
        return Some(integer);
    }
    let float = number.as_f64()?;
    // Both bounds are powers of two, so exact. What lies between them and has no fraction is an i64.
    let fits = float.fract() == 0.0 && (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&float);
    #[expect(clippy::cast_possible_truncation, reason = "checked in the line above")]
    fits.then_some(float as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn flatten(value: Value) -> Result<Arguments, QueryError> {
        Arguments::flatten(value.as_object().unwrap())
    }

    #[test]
    fn nested_arguments_are_flat() {
        let flat = flatten(json!({"a": {"b": [1, "x", null, true]}, "e": [], "o": {}, "f": 1.5})).unwrap();
        let strings: Vec<_> = flat.strings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            strings,
            [
                ("a.b.0", "1"),
                ("a.b.1", "x"),
                ("a.b.2", "null"),
                ("a.b.3", "true"),
                ("e", "[]"),
                ("f", "1.5"),
                ("o", "{}")
            ]
        );
        assert_eq!(flat.numbers.iter().map(|(k, v)| (k.as_str(), *v)).collect::<Vec<_>>(), [("a.b.0", 1)]);
    }

    #[test]
    fn argument_key_collision() {
        // A literal key with a dot is another key than the nested one: neither hides the other.
        let flat =
            flatten(json!({"a": {"b": "evil"}, "a.b": "good", "a\\.b": "third", "a\\": {"b": "fourth"}})).unwrap();
        assert_eq!(flat.strings["a.b"], "evil");
        assert_eq!(flat.strings["a\\.b"], "good");
        assert_eq!(flat.strings.len(), 4);
        // And should two ever meet, the call is refused instead of one winning.
        let mut strings = BTreeMap::from([("a.b".to_owned(), "evil".to_owned())]);
        let error = put(&mut strings, "a.b", "good".to_owned()).unwrap_err();
        assert_eq!(error.field, "context.arguments.a.b");
    }

    #[test]
    fn an_integer_is_one_however_it_is_written() {
        let flat = flatten(json!({"a": 5.0, "b": 1e6, "c": i64::MIN, "d": 1e300, "e": u64::MAX})).unwrap();
        let numbers: Vec<_> = flat.numbers.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        assert_eq!(numbers, [("a", 5), ("b", 1_000_000), ("c", i64::MIN)]);
    }

    #[test]
    fn a_long_text_is_replaced_by_length_and_hash() {
        let flat = flatten(json!({"a": "x".repeat(MAX_TEXT), "b": "x".repeat(MAX_TEXT + 1)})).unwrap();
        assert_eq!(flat.replaced, ["b"]);
        assert_eq!(flat.strings["a"].len(), MAX_TEXT);
        assert!(flat.strings["b"].starts_with("len:65537 sha256:"));
        assert_eq!(flat.strings["b"].len(), "len:65537 sha256:".len() + 64);
    }

    #[test]
    fn values_that_a_record_does_not_keep_are_named_and_left_out() {
        let (flat, hidden) = Arguments::flatten_kept(
            json!({"a": {"b": {"@sensitive": "hmac-sha256:00"}}, "c": {"@sensitive": "mine"}, "d": 1})
                .as_object()
                .unwrap(),
        )
        .unwrap();
        assert_eq!(hidden, ["a.b"]);
        assert_eq!(flat.strings.keys().collect::<Vec<_>>(), ["c.@sensitive", "d"]);
    }

    #[test]
    fn keys_are_bounded_in_number_and_length() {
        let many: Map<String, Value> = (0..=MAX_KEYS).map(|n| (n.to_string(), Value::Null)).collect();
        assert!(Arguments::flatten(&many).unwrap_err().message.contains("at most 4096"));
        assert!(flatten(json!({"x".repeat(2000): 1})).is_err());
    }
}
