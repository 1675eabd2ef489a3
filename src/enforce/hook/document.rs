//! A settings file of somebody else, edited in place: what is not ours keeps its bytes, its order and its indentation.
//!
//! Must never drop a member, and refuses a file that it can't read whole (comments, duplicate keys).

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A file that can't be edited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON.
    #[error("is not plain JSON (comments can't be kept): {0}")]
    Json(String),
    /// Of another shape than the coding agent's settings have.
    #[error("{field}: must be {wanted}")]
    Shape {
        /// Its path.
        field: String,
        /// What is expected.
        wanted: &'static str,
    },
}

/// The members of an object in their order, each value as it was written.
#[derive(Clone, Debug, Default)]
pub struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members: Vec<(String, Box<RawValue>)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if members.iter().any(|(known, _)| *known == key) {
                        return Err(A::Error::custom(format_args!("{key:?} occurs twice")));
                    }
                    members.push((key, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(All)
    }
}

impl Members {
    /// Reads an object. `field` is its path for errors.
    pub fn read(text: &str, field: &str) -> Result<Self, DocumentError> {
        if !text.trim_start().starts_with('{') {
            return Err(DocumentError::Shape { field: field.to_owned(), wanted: "an object" });
        }
        serde_json::from_str(text).map_err(|e| DocumentError::Json(e.to_string()))
    }

    /// A member as it was written.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.get())
    }

    /// Puts a member in its place, or last.
    pub fn set(&mut self, key: &str, text: String) -> Result<(), DocumentError> {
        let value = raw(text)?;
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key.to_owned(), value)),
        }
        Ok(())
    }

    /// Takes a member out.
    pub fn remove(&mut self, key: &str) {
        self.0.retain(|(name, _)| name != key);
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text, as a value that lies `depth` levels deep.
    pub fn write(&self, indent: &str, depth: usize) -> String {
        let items = self.0.iter().map(|(key, value)| format!("{}: {}", quoted(key), value.get()));
        block(('{', '}'), items, indent, depth)
    }
}

/// The items of an array, each as it was written.
#[derive(Clone, Debug, Default)]
pub struct Items(Vec<Box<RawValue>>);

impl Items {
    /// Reads an array.
    pub fn read(text: &str, field: &str) -> Result<Self, DocumentError> {
        if !text.trim_start().starts_with('[') {
            return Err(DocumentError::Shape { field: field.to_owned(), wanted: "a list" });
        }
        serde_json::from_str(text).map(Self).map_err(|e| DocumentError::Json(e.to_string()))
    }

    /// Each item's text.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|value| value.get())
    }

    /// Adds an item at the end.
    pub fn push(&mut self, text: String) -> Result<(), DocumentError> {
        self.0.push(raw(text)?);
        Ok(())
    }

    /// Keeps the items that `keep` says.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.0.retain(|value| keep(value.get()));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The text, as a value that lies `depth` levels deep.
    pub fn write(&self, indent: &str, depth: usize) -> String {
        block(('[', ']'), self.0.iter().map(|value| value.get().to_owned()), indent, depth)
    }
}

fn raw(text: String) -> Result<Box<RawValue>, DocumentError> {
    RawValue::from_string(text).map_err(|e| DocumentError::Json(e.to_string()))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn block((open, close): (char, char), items: impl Iterator<Item = String>, indent: &str, depth: usize) -> String {
    let (inner, outer) = (indent.repeat(depth + 1), indent.repeat(depth));
    let lines: Vec<String> = items.map(|item| format!("{inner}{item}")).collect();
    match lines.is_empty() {
        true => format!("{open}{close}"),
        false => format!("{open}\n{}\n{outer}{close}", lines.join(",\n")),
    }
}

/// The indentation of the file's first indented line; two spaces where there is none.
pub fn indentation(text: &str) -> &str {
    let indents = text.lines().map(|line| &line[..line.len() - line.trim_start_matches([' ', '\t']).len()]);
    indents.into_iter().find(|indent| !indent.is_empty()).unwrap_or("  ")
}

/// A JSON value's text at its depth.
pub fn pretty(value: &serde_json::Value, indent: &str, depth: usize) -> String {
    match value {
        serde_json::Value::Object(map) => {
            let items = map.iter().map(|(key, value)| format!("{}: {}", quoted(key), pretty(value, indent, depth + 1)));
            block(('{', '}'), items, indent, depth)
        }
        serde_json::Value::Array(values) => {
            block(('[', ']'), values.iter().map(|value| pretty(value, indent, depth + 1)), indent, depth)
        }
        other => other.to_string(),
    }
}
