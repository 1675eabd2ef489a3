//! `package.yaml` edited in place: what people wrote there, comments, order and style, stays as it is.
//!
//! The places to edit come from the YAML parser, the edits are made in the text, and the result is read again: unless it says
//! exactly what was meant, nothing is written.

use std::ops::Range;

use serde::Deserialize;
use serde_json::{Value, json};
use serde_saphyr::{Location, Spanned};

use super::compare::{Added, Changed, Difference};
use crate::api::Tool;
use crate::package::yaml::{self, TextError};

/// Why the text was not edited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// It can't be read as it is.
    #[error(transparent)]
    Unreadable(#[from] TextError),
    /// It can be read, but not edited in place.
    #[error("{file}: the list `tools` is written in a way that can't be edited in place (anchors, aliases?): {why}")]
    Style {
        /// Its name in messages.
        file: String,
        /// What went wrong.
        why: String,
    },
}

/// A `package.yaml` with its text.
#[derive(Clone, Debug)]
pub struct Manifest {
    file: String,
    text: String,
    tools: Vec<Tool>,
}

/// The list of tools with its places. What else there is does not matter here.
#[derive(Deserialize)]
struct Places {
    #[serde(default)]
    tools: Option<Spanned<Vec<Spanned<Place>>>>,
}

/// One tool with the places of what may be edited, and of everything else, so that its end is known.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Place {
    name: Spanned<String>,
    tier: Spanned<String>,
    sensitivity: Option<Spanned<String>>,
    #[serde(default)]
    groups: Vec<Spanned<String>>,
    description: Option<Spanned<String>>,
    schema_digest: Option<Spanned<String>>,
}

#[derive(Deserialize)]
struct Tools {
    #[serde(default)]
    tools: Option<Vec<Tool>>,
}

impl Manifest {
    /// Reads the text; `file` is its name in messages.
    pub fn read(file: &str, text: &str) -> Result<Self, EditError> {
        let Tools { tools } = yaml::read(file, text)?;
        Ok(Self { file: file.into(), text: text.into(), tools: tools.unwrap_or_default() })
    }

    /// The tools that are there.
    pub fn tools(&self) -> &[Tool] {
        &self.tools
    }

    /// The text with what was added and changed. Tools that the server no longer offers stay.
    pub fn with(&self, difference: &Difference) -> Result<String, EditError> {
        let Places { tools } = yaml::read(&self.file, &self.text)?;
        let mut edits = Vec::new();
        let items = tools.as_ref().map(|t| t.value.as_slice()).unwrap_or_default();
        for changed in &difference.changed {
            let place = items.iter().find(|i| i.value.name.value == changed.name);
            let place = place.ok_or_else(|| self.style(format!("{} is not found again", changed.name)))?;
            self.change(place, changed, &mut edits)?;
        }
        if !difference.added.is_empty() {
            edits.push(self.add(tools.as_ref(), &difference.added)?);
        }
        let text = apply(&self.text, edits).ok_or_else(|| self.style("the places overlap".into()))?;
        self.agrees(&text, difference)?;
        Ok(text)
    }

    fn style(&self, why: String) -> EditError {
        EditError::Style { file: self.file.clone(), why }
    }

    /// Where something stands in the text, bytes.
    fn range(&self, at: &Location) -> Result<Range<usize>, EditError> {
        let span = at.span();
        let place = span.byte_offset().zip(span.byte_len()).and_then(|(offset, len)| {
            let start = usize::try_from(offset).ok()?;
            let range = start..start.checked_add(usize::try_from(len).ok()?)?;
            self.text.get(range.clone()).map(|_| range)
        });
        place.ok_or_else(|| self.style(format!("line {}: the place is not known", at.line())))
    }

    fn line_end(&self, from: usize) -> usize {
        let rest = &self.text[from..];
        from + rest.find('\n').map_or(rest.len(), |at| if rest[..at].ends_with('\r') { at - 1 } else { at })
    }

    fn new_line(&self) -> &'static str {
        if self.text.contains("\r\n") { "\r\n" } else { "\n" }
    }

    fn change(&self, place: &Spanned<Place>, changed: &Changed, edits: &mut Vec<Edit>) -> Result<(), EditError> {
        let tool = &place.value;
        let tier = self.range(&tool.tier.referenced)?;
        let flow = self.text[self.range(&place.referenced)?.start..].starts_with('{');
        let mut lines = String::new();
        let mut line = |key: &str, value: &str| match flow {
            true => lines.push_str(&format!(", {key}: {value}")),
            false => {
                let indent = " ".repeat(column(&place.referenced));
                lines.push_str(&format!("{}{indent}{key}: {value}", self.new_line()));
            }
        };
        match &tool.description {
            // What was never pinned was never imported: its words are its author's.
            _ if changed.old_digest.is_none() || changed.description.is_empty() => {}
            None => line("description", &quoted(&changed.description)),
            Some(old) if old.value == changed.description => {}
            Some(old) => {
                let at = self.range(&old.referenced)?;
                // A block (`|`, `>`) begins on a line of its own: it stays as its author wrote it.
                let before = self.text[..at.start].rsplit('\n').next().unwrap_or_default();
                if before.trim_end().ends_with(':') {
                    edits.push(Edit { at, text: quoted(&changed.description) });
                }
            }
        }
        match &tool.schema_digest {
            Some(old) => edits.push(Edit { at: self.range(&old.referenced)?, text: changed.digest.clone() }),
            None => line("schemaDigest", &changed.digest),
        }
        if !lines.is_empty() {
            let end = if flow { tier.end } else { self.line_end(tier.end) };
            edits.push(Edit { at: end..end, text: lines });
        }
        Ok(())
    }

    fn add(&self, tools: Option<&Spanned<Vec<Spanned<Place>>>>, added: &[Added]) -> Result<Edit, EditError> {
        let nl = self.new_line();
        let block = |indent: usize| -> String {
            let (dash, rest) = (" ".repeat(indent), " ".repeat(indent + 2));
            let item = |a: &Added| {
                let description = match a.description.as_str() {
                    "" => String::new(),
                    text => format!("{nl}{rest}description: {}", quoted(text)),
                };
                let Added { name, why, digest, .. } = a;
                let tier = a.tier.as_str();
                let name = plain(name);
                format!(
                    "{nl}{dash}- name: {name}{nl}{rest}tier: {tier} # review: {why}{description}{nl}{rest}schemaDigest: {digest}"
                )
            };
            added.iter().map(item).collect()
        };
        let Some(tools) = tools else {
            // `tools:` with nothing after it, or no such key.
            let mut offset = 0;
            for line in self.text.split_inclusive('\n') {
                if line.starts_with("tools:") {
                    let end = self.line_end(offset);
                    return Ok(Edit { at: end..end, text: block(2) });
                }
                offset += line.len();
            }
            let end = self.text.len();
            let begin = if self.text.is_empty() || self.text.ends_with('\n') { "" } else { nl };
            return Ok(Edit { at: end..end, text: format!("{begin}{nl}tools:{}{nl}", block(2)) });
        };
        let start = self.range(&tools.referenced)?.start;
        let flow = self.text[start..].starts_with('[');
        match (flow, tools.value.last()) {
            (false, None) => Err(self.style("the list has no place".into())),
            (true, None) => {
                let close = self.text[start..].find(']').ok_or_else(|| self.style("the list has no end".into()))?;
                let (end, line_end) = (start + close + 1, self.line_end(start + close + 1));
                let comment = &self.text[end..line_end];
                Ok(Edit { at: start..line_end, text: format!("{}{}", comment.trim_start(), block(2)) })
            }
            (true, Some(last)) => {
                let item = |a: &Added| {
                    let Added { name, why, digest, description, .. } = a;
                    let (name, text, tier) = (plain(name), quoted(description), a.tier.as_str());
                    format!(
                        ",{nl}  # review: {why}{nl}  {{name: {name}, tier: {tier}, description: {text}, schemaDigest: {digest}}}"
                    )
                };
                let end = self.end(last)?;
                Ok(Edit { at: end..end, text: added.iter().map(item).collect() })
            }
            (false, Some(last)) => {
                let indent = self.dash(last)?;
                let mut end = self.line_end(self.end(last)?);
                // Comments that stand in the list's indentation belong to it.
                while let Some(next) = self.text[end..].find('\n').map(|at| end + at + 1) {
                    let line_end = self.line_end(next);
                    let line = &self.text[next..line_end];
                    let depth = line.len() - line.trim_start().len();
                    if !line.trim_start().starts_with('#') || depth < indent.max(1) {
                        break;
                    }
                    end = line_end;
                }
                Ok(Edit { at: end..end, text: block(indent) })
            }
        }
    }

    /// Spaces before the dash of a block entry. (A list that is not indented has no place of its own.)
    fn dash(&self, place: &Spanned<Place>) -> Result<usize, EditError> {
        let head = &self.text[..self.range(&place.referenced)?.start];
        let line = head.rfind('-').map(|dash| head[..dash].rsplit('\n').next().unwrap_or_default());
        let spaces = line.filter(|line| line.bytes().all(|b| b == b' '));
        spaces.map(str::len).ok_or_else(|| self.style("an entry has no dash".into()))
    }

    /// Where a tool's entry ends.
    fn end(&self, place: &Spanned<Place>) -> Result<usize, EditError> {
        let tool = &place.value;
        let scalars = [&tool.name, &tool.tier].into_iter();
        let scalars = scalars.chain(&tool.sensitivity).chain(&tool.groups).chain(&tool.description);
        let mut end = 0;
        for scalar in scalars.chain(&tool.schema_digest) {
            let range = self.range(&scalar.referenced)?;
            // A block's text brings its line end along.
            let text = self.text[range.clone()].trim_end();
            end = end.max(range.start + text.len());
        }
        if self.text[self.range(&place.referenced)?.start..].starts_with('{') {
            let close = self.text[end..].find('}').ok_or_else(|| self.style("an entry has no end".into()))?;
            end += close + 1;
        }
        Ok(end)
    }

    /// The edited text says what it said before, and what was meant, and nothing else.
    fn agrees(&self, text: &str, difference: &Difference) -> Result<(), EditError> {
        let edited = |e: TextError| self.style(format!("the edited text can't be read: {e}"));
        let mut wanted: Value = yaml::read(&self.file, &self.text)?;
        let got: Value = yaml::read(&self.file, text).map_err(edited)?;
        let _: Tools = yaml::read(&self.file, text).map_err(edited)?;
        let wrong = |what: &str| self.style(format!("{what} would not be what it should be"));
        let object = wanted.as_object_mut().ok_or_else(|| wrong("the document"))?;
        let list = object.entry("tools").or_insert_with(|| json!([]));
        if list.is_null() {
            *list = json!([]);
        }
        let list = list.as_array_mut().ok_or_else(|| wrong("`tools`"))?;
        for changed in &difference.changed {
            let tool = list.iter_mut().find(|t| t["name"] == changed.name.as_str());
            let tool = tool.ok_or_else(|| wrong(&changed.name))?;
            tool["schemaDigest"] = json!(changed.digest);
            // A description that was left as it is may stay.
            let described = |list: &Value| {
                let tools = list["tools"].as_array()?;
                tools.iter().find(|t| t["name"] == changed.name.as_str())?.get("description").cloned()
            };
            if let Some(now) = described(&got) {
                let kept = tool.get("description") == Some(&now);
                if !kept && now != changed.description.as_str() {
                    return Err(wrong(&changed.name));
                }
                tool["description"] = now;
            }
        }
        for added in &difference.added {
            let mut tool = json!({"name": added.name, "tier": added.tier, "schemaDigest": added.digest});
            // A flow entry carries an empty description.
            let there =
                got["tools"].as_array().and_then(|tools| tools.iter().find(|t| t["name"] == added.name.as_str()));
            if there.is_some_and(|t| t.get("description").is_some()) || !added.description.is_empty() {
                tool["description"] = json!(added.description);
            }
            list.push(tool);
        }
        if wanted == got { Ok(()) } else { Err(wrong("the document")) }
    }
}

struct Edit {
    at: Range<usize>,
    text: String,
}

/// Makes all edits, from the back. None: two of them touch the same text.
fn apply(text: &str, mut edits: Vec<Edit>) -> Option<String> {
    // At one place, an insertion comes after what ends there.
    edits.sort_by_key(|e| (e.at.start, e.at.end));
    let mut out = String::with_capacity(text.len() + 4096);
    let mut done = 0;
    for edit in edits {
        out.push_str(text.get(done..edit.at.start)?);
        out.push_str(&edit.text);
        done = edit.at.end;
    }
    out.push_str(text.get(done..)?);
    Some(out)
}

/// Spaces before what stands there.
fn column(at: &Location) -> usize {
    usize::try_from(at.column()).unwrap_or_default().saturating_sub(1)
}

/// A double-quoted YAML scalar; JSON's are.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A name without quotes where YAML reads it as the same text.
fn plain(name: &str) -> String {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/'))
        && name.starts_with(|c: char| c.is_ascii_alphabetic());
    if plain { name.to_owned() } else { quoted(name) }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
