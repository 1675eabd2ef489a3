//! YAML that authors write, read with bounds (nesting, aliases, size) and with the place of every mistake.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_saphyr::{DuplicateKeyPolicy, Options};

/// A mistake in a text file, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct TextError {
    /// File name, as messages write it.
    pub file: String,
    /// Line, from 1; 0: unknown.
    pub line: u64,
    /// Column, from 1; 0: unknown.
    pub column: u64,
    /// What is wrong, in one line.
    pub message: String,
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message),
            line => write!(f, "{}:{line}:{}: {}", self.file, self.column, self.message),
        }
    }
}

/// Nesting at most 64 deep, aliases bounded, a key at most once. The library's budgets are made for texts that are not trusted.
fn options() -> Options {
    serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::Error, with_snippet: false }
}

/// Reads one document.
pub fn read<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, TextError> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|e| located(file, &e))
}

/// Reads several documents, each by itself: the error of one does not hide the others. Empty documents are skipped.
pub fn read_all<T: DeserializeOwned>(file: &str, text: &str) -> Vec<Result<T, TextError>> {
    let mut bytes = text.as_bytes();
    serde_saphyr::read_with_options(&mut bytes, options()).map(|item| item.map_err(|e| located(file, &e))).collect()
}

fn located(file: &str, error: &serde_saphyr::Error) -> TextError {
    let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
    let text = error.without_snippet().to_string();
    // The place stands in front of the message, once.
    let text = text.lines().next().unwrap_or_default();
    let place = format!("line {line}, column {column}");
    let message = [format!(" at {place}"), format!(" ({place})"), format!("{place}: ")]
        .iter()
        .fold(text.to_string(), |text, place| text.replacen(place.as_str(), "", 1));
    TextError { file: file.into(), line, column, message }
}

#[cfg(test)]
mod unit {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Small {
        name: String,
        #[serde(default)]
        count: u8,
    }

    #[test]
    fn a_mistake_has_its_place_once() {
        let error = read::<Small>("a.yaml", "name: x\ncuont: 3\n").unwrap_err();
        assert_eq!((error.line, error.column), (2, 1), "{error}");
        assert!(error.message.contains("cuont"), "{error}");
        assert!(error.to_string().starts_with("a.yaml:2:1: "), "{error}");
        assert!(!error.message.contains("line"), "{error}");
        let error = read::<Small>("a.yaml", "name: x\nname: y\n").unwrap_err();
        assert_eq!(error.line, 2, "{error}");
        let error = read::<Small>("a.yaml", "name: [").unwrap_err();
        assert!(error.line > 0, "{error}");
    }

    #[test]
    fn nesting_and_aliases_are_bounded() {
        let deep = format!("name: {}", "[".repeat(200_000));
        assert!(read::<serde_json::Value>("a.yaml", &deep).is_err());
        let deep: String = (0..2_000).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
        assert!(read::<serde_json::Value>("a.yaml", &deep).is_err());
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
        }
        assert!(read::<serde_json::Value>("a.yaml", &bomb).is_err());
    }

    #[test]
    fn one_bad_document_does_not_hide_the_others() {
        let read: Vec<_> = read_all::<Small>("a.yaml", "name: a\n---\nother: b\n---\n---\nname: c\n");
        assert_eq!(read.len(), 3);
        assert_eq!(read[0].as_ref().unwrap().name, "a");
        assert_eq!(read[1].as_ref().unwrap_err().line, 3);
        assert_eq!(read[2].as_ref().unwrap().name, "c");
    }
}
