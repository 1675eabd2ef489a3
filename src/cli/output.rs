//! How commands print: lines for people on stdout, or JSON; what keeps a command from working on stderr.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use serde::Serialize;

use super::terminal::printable_lines;
use crate::policy::Refusal;
use crate::source::folder::SourceError;

/// What `-o` takes where there are lines for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON document.
    Json,
}

/// What `-o` takes where objects are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ObjectFormat {
    /// As `kubectl apply` takes it.
    #[default]
    Yaml,
    /// The same, as JSON.
    Json,
}

/// Passed.
pub const PASS: u8 = 0;
/// The command worked, and its verdict is no.
pub const FAIL: u8 = 1;
/// Usage, or the command could not work.
pub const ERROR: u8 = 2;

/// What ends a command before it has an answer.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Files.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// What was read is refused.
    #[error("{}", join(.0))]
    Refused(Vec<Refusal>),
    /// Usage, in words.
    #[error("{0}")]
    Usage(String),
    /// Writing a file.
    #[error("{path}: {error}")]
    Write {
        /// The file.
        path: String,
        /// Its words.
        error: std::io::Error,
    },
}

impl From<Refusal> for CommandError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(vec![refusal])
    }
}

impl CommandError {
    fn exit(&self) -> u8 {
        match self {
            CommandError::Refused(_) | CommandError::Source(SourceError::Refused(_)) => FAIL,
            _ => ERROR,
        }
    }
}

fn join(refusals: &[Refusal]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\nerror: ")
}

/// Ends a command: an error goes to stderr, one line each.
pub fn finish(result: Result<u8, CommandError>) -> ExitCode {
    ExitCode::from(result.unwrap_or_else(|error| {
        eprintln!("error: {}", printable_lines(&error.to_string()));
        error.exit()
    }))
}

/// A refusal in JSON answers.
#[derive(Serialize)]
pub struct RefusalJson {
    code: &'static str,
    message: String,
}

impl From<&Refusal> for RefusalJson {
    fn from(refusal: &Refusal) -> Self {
        Self { code: refusal.code.as_str(), message: refusal.message.clone() }
    }
}

/// Writes to stdout. A reader that has gone away (`| head`) is no error.
pub fn print(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// One JSON document on stdout.
pub fn print_json<T: Serialize>(value: &T) -> Result<(), CommandError> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| CommandError::Usage(format!("can't write JSON: {e}")))?;
    print(&format!("{text}\n"));
    Ok(())
}

/// Objects as text: several as YAML documents, or as a JSON List.
pub fn objects_text<T: Serialize>(objects: &[T], format: ObjectFormat) -> Result<String, CommandError> {
    let failed = |e: String| CommandError::Usage(format!("can't write the object: {e}"));
    match (format, objects) {
        (ObjectFormat::Json, [one]) => {
            serde_json::to_string_pretty(one).map(|text| text + "\n").map_err(|e| failed(e.to_string()))
        }
        (ObjectFormat::Json, many) => {
            let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": many});
            serde_json::to_string_pretty(&list).map(|text| text + "\n").map_err(|e| failed(e.to_string()))
        }
        (ObjectFormat::Yaml, _) => {
            // Long lines stay whole: a folded policy would be hard to read, and a folded signature to compare.
            let options = || serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
            let texts: Result<Vec<String>, CommandError> = objects
                .iter()
                .map(|o| serde_saphyr::to_string_with_options(o, options()).map_err(|e| failed(e.to_string())))
                .collect();
            Ok(texts?.join("---\n"))
        }
    }
}

/// Writes a text to stdout, or to a file where one is named.
pub fn write_out(text: &str, out: Option<&PathBuf>) -> Result<(), CommandError> {
    match out {
        None => print(text),
        Some(path) => std::fs::write(path, text)
            .map_err(|error| CommandError::Write { path: path.display().to_string(), error })?,
    }
    Ok(())
}
