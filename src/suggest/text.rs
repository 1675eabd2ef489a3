//! Texts that agents chose, written where they must stay texts: in Cedar, in YAML, in comments and in ids.
//!
//! Must never write a character that could end the literal or the line that it stands in.

use serde_json::{Map, Value};

use crate::policy::sha256_text;

/// The longest text in a comment.
const MAX_COMMENT: usize = 160;

/// Letters and digits of any script, and printable ASCII; not what changes how others are shown.
fn plain(c: char) -> bool {
    c == ' ' || c.is_ascii_graphic() || (!c.is_ascii() && c.is_alphanumeric())
}

/// A Cedar string literal.
pub fn cedar(text: &str) -> String {
    format!("\"{}\"", inside(text, false))
}

/// A pattern of Cedar's `like` that matches what begins with this text.
pub fn cedar_prefix(text: &str) -> String {
    format!("\"{}*\"", inside(text, true))
}

fn inside(text: &str, pattern: bool) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '*' if pattern => out.push_str("\\*"),
            c if plain(c) => out.push(c),
            c => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
        }
    }
    out
}

/// A double-quoted YAML scalar.
pub fn yaml(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if plain(c) => out.push(c),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

/// A JSON value as YAML in one line.
pub fn yaml_value(value: &Value) -> String {
    match value {
        Value::String(text) => yaml(text),
        Value::Array(items) => format!("[{}]", items.iter().map(yaml_value).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => yaml_map(members),
        scalar => scalar.to_string(),
    }
}

/// A JSON object as YAML in one line.
pub fn yaml_map(members: &Map<String, Value>) -> String {
    let members: Vec<_> = members.iter().map(|(k, v)| format!("{}: {}", yaml(k), yaml_value(v))).collect();
    format!("{{{}}}", members.join(", "))
}

/// A text as comments show it: one line, quoted, of bounded length.
pub fn quoted(text: &str) -> String {
    let short: String = text.chars().take(MAX_COMMENT).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{}{more}", cedar(&short))
}

/// Words as comments show them: one line.
pub fn words(text: &str) -> String {
    let line: String = text.chars().map(|c| if plain(c) || c == '…' { c } else { ' ' }).collect();
    line
}

/// Part of a policy's id: the same text always gives the same, and another text another.
pub fn slug(text: &str) -> String {
    let slug: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '.' })
        .take(40)
        .collect();
    // One `/` is in every tool's name; whatever else was replaced or cut might have been told apart by it.
    if slug == text.replacen('/', ".", 1) && text.matches('.').count() == 0 {
        return slug;
    }
    format!("{slug}-{}", hash8(text))
}

/// Eight hex digits that stand for a text.
pub fn hash8(text: &str) -> String {
    sha256_text(text.as_bytes()).chars().skip("sha256:".len()).take(8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: [&str; 9] = [
        "a\"]); permit(principal, action, resource); //",
        "a\nforbid: x",
        "\\",
        "a*b?",
        "\u{202e}\u{2028}\u{85}\u{feff}\r\t\0",
        "{a: [b, *c, &d]} # no",
        "grün 語",
        "\u{1F4A5}'`${x}",
        "- name: \"x\"",
    ];

    #[test]
    fn yaml_scalars_come_back_as_they_were() {
        for text in HOSTILE {
            let value = serde_json::json!({text: [text, {"n": 1.5, "b": null}, -7]});
            let Value::Object(map) = &value else { panic!() };
            let line = yaml_map(map);
            assert!(!line.contains(['\n', '\r', '\u{2028}', '\u{85}']), "{line}");
            let back: Value = crate::package::yaml::read("t.yaml", &line).unwrap();
            assert_eq!(back, value, "{line}");
        }
    }

    #[test]
    fn comments_are_one_line() {
        for text in HOSTILE {
            for shown in [quoted(text), words(text)] {
                assert!(shown.chars().all(|c| plain(c) || c == '…'), "{shown}");
            }
        }
        assert!(quoted(&"a".repeat(1000)).len() < 200);
    }

    #[test]
    fn slugs_are_ids_and_tell_texts_apart() {
        let mut texts: Vec<String> = HOSTILE.iter().map(|t| (*t).to_owned()).collect();
        texts.extend(["git/push", "git.push", "git_push", "git-push", "a/b/c", ""].map(str::to_owned));
        texts.extend([format!("{}x", "a".repeat(40)), format!("{}y", "a".repeat(40))]);
        let slugs: std::collections::BTreeSet<String> = texts.iter().map(|t| slug(t)).collect();
        assert_eq!(slugs.len(), texts.len());
        assert!(slugs.iter().all(|s| s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))));
        assert_eq!(slug("git/push"), "git.push");
    }
}
