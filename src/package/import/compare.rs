//! What a server offers beside what the package has of it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::tier::propose;
use crate::api::{Tier, Tool};

/// The longest description that is written into a package, characters. The whole of it is in the digest.
const MAX_DESCRIPTION: usize = 500;
/// The longest `server/name` that a package takes, bytes.
const MAX_NAME: usize = 253;

/// One tool as its server sent it.
#[derive(Clone, Debug)]
pub struct Offered {
    /// The definition.
    pub definition: Map<String, Value>,
    /// Its digest.
    pub digest: String,
}

/// A tool that the package does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// `server/name`.
    pub name: String,
    /// Proposed.
    pub tier: Tier,
    /// Why that tier.
    pub why: String,
    /// One line; empty where the server says nothing.
    pub description: String,
    /// Of the definition.
    pub digest: String,
}

/// A tool whose definition is not the one that was reviewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// `server/name`.
    pub name: String,
    /// The tier that the package gives it. It stays.
    pub tier: Tier,
    /// The tier that would be proposed today, and why, where it is a higher one.
    pub proposed: Option<(Tier, String)>,
    /// The digest that was reviewed; none: nothing was pinned.
    pub old_digest: Option<String>,
    /// The digest of what the server sends now.
    pub digest: String,
    /// The description in the package.
    pub old_description: String,
    /// The server's.
    pub description: String,
}

/// A tool that no package can name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// As the server sent it.
    pub name: String,
    /// Why.
    pub why: String,
}

/// All that differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Whether the package has any tool of this server.
    pub known: bool,
    /// New ones, in the server's order.
    pub added: Vec<Added>,
    /// Others than reviewed.
    pub changed: Vec<Changed>,
    /// In the package, but no longer offered.
    pub removed: Vec<String>,
    /// The same as reviewed.
    pub unchanged: usize,
    /// Not importable.
    pub refused: Vec<Refused>,
}

impl Difference {
    /// Whether there is nothing to import and nothing that is gone.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

/// Compares what a server offers with the package's tools. `server` is the name that this installation gives the server.
pub fn compare(server: &str, tools: &[Tool], offered: &[Offered]) -> Difference {
    let prefix = format!("{server}/");
    let ours: Vec<&Tool> = tools.iter().filter(|t| t.name.starts_with(&prefix)).collect();
    let mut difference = Difference { known: !ours.is_empty(), ..Default::default() };
    let mut seen = BTreeMap::new();
    for tool in offered {
        let local = tool.definition.get("name").and_then(Value::as_str).unwrap_or_default();
        let name = format!("{prefix}{local}");
        let refuse = |why: &str| Refused { name: local.to_owned(), why: why.to_owned() };
        if let Some(why) = unusable(local, &name) {
            difference.refused.push(refuse(why));
            continue;
        }
        if let Some(before) = seen.insert(name.clone(), tool.digest.clone()) {
            if before == tool.digest {
                continue;
            }
            // Which of the two would be called? Neither is, then.
            difference.refused.push(refuse("the server lists it twice, in two ways"));
            difference.added.retain(|a| a.name != name);
            difference.changed.retain(|c| c.name != name);
            continue;
        }
        let proposal = propose(&tool.definition);
        let description = one_line(tool.definition.get("description").and_then(Value::as_str).unwrap_or_default());
        let digest = tool.digest.clone();
        match ours.iter().find(|t| t.name == name) {
            None => difference.added.push(Added { name, tier: proposal.tier, why: proposal.why, description, digest }),
            Some(known) if known.schema_digest.as_deref() == Some(digest.as_str()) => difference.unchanged += 1,
            Some(known) => difference.changed.push(Changed {
                name,
                tier: known.tier,
                proposed: (rank(proposal.tier) > rank(known.tier)).then_some((proposal.tier, proposal.why)),
                old_digest: known.schema_digest.clone(),
                digest,
                old_description: known.description.clone().unwrap_or_default(),
                description,
            }),
        }
    }
    difference.removed = ours.iter().filter(|t| !seen.contains_key(&t.name)).map(|t| t.name.clone()).collect();
    difference
}

fn unusable(local: &str, name: &str) -> Option<&'static str> {
    if local.is_empty() {
        return Some("it has no name");
    }
    if !local.bytes().all(|b| b.is_ascii_graphic() && b != b'/') {
        return Some("a tool's name is printable ASCII without spaces and slashes");
    }
    (name.len() > MAX_NAME).then_some("its name is too long")
}

fn rank(tier: Tier) -> u8 {
    match tier {
        Tier::Read => 0,
        Tier::Write => 1,
        Tier::Admin => 2,
    }
}

/// A server's text as one bounded line that no terminal obeys.
fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut line: String = text.chars().take(MAX_DESCRIPTION).collect();
    if line.len() < text.len() {
        line.push('…');
    }
    let mut shown = String::with_capacity(line.len());
    for c in line.chars() {
        // What `Debug` would escape is what does not print, and what changes how others print.
        match c {
            '"' | '\'' | '\\' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn offered(name: &str, description: &str, digest: &str) -> Offered {
        let Value::Object(definition) = json!({"name": name, "description": description}) else { unreachable!() };
        Offered { definition, digest: digest.into() }
    }

    fn tool(name: &str, tier: Tier, digest: Option<&str>) -> Tool {
        Tool {
            name: name.into(),
            tier,
            sensitivity: Default::default(),
            groups: vec![],
            description: Some("old".into()),
            schema_digest: digest.map(Into::into),
        }
    }

    #[test]
    fn a_tier_that_is_there_stays_and_what_is_gone_is_named() {
        let tools = [
            tool("fs/same", Tier::Read, Some("d1")),
            tool("fs/drop_all", Tier::Read, Some("d2")),
            tool("fs/unpinned", Tier::Admin, None),
            tool("fs/gone", Tier::Write, Some("d4")),
            tool("other/gone", Tier::Write, None),
        ];
        let now = [
            offered("same", "x", "d1"),
            offered("drop_all", "drops", "D2"),
            offered("unpinned", "old", "d3"),
            offered("new", "is new", "d5"),
        ];
        let difference = compare("fs", &tools, &now);
        assert!(difference.known && !difference.is_empty());
        assert_eq!(difference.unchanged, 1);
        assert_eq!(difference.removed, ["fs/gone"]);
        let added: Vec<_> = difference.added.iter().map(|a| (a.name.as_str(), a.tier)).collect();
        assert_eq!(added, [("fs/new", Tier::Write)]);
        let [dropped, unpinned] = &difference.changed[..] else { panic!("{difference:?}") };
        assert_eq!((dropped.name.as_str(), dropped.tier), ("fs/drop_all", Tier::Read));
        assert_eq!(dropped.proposed.as_ref().unwrap().0, Tier::Admin);
        assert_eq!((dropped.old_digest.as_deref(), dropped.digest.as_str()), (Some("d2"), "D2"));
        assert_eq!((unpinned.tier, &unpinned.proposed, &unpinned.old_digest), (Tier::Admin, &None, &None));
        assert!(compare("fs", &tools[..1], &now[..1]).is_empty());
        assert!(!compare("new", &tools, &now).known);
    }

    #[test]
    fn names_that_no_package_can_hold_are_refused() {
        let now = [
            offered("", "", "d"),
            offered("a b", "", "d"),
            offered("other/a", "", "d"),
            offered("gr\u{fc}n", "", "d"),
            offered("a\u{1b}[2J", "", "d"),
            offered(&"n".repeat(300), "", "d"),
            offered("twice", "one", "d"),
            offered("twice", "two", "e"),
            offered("good", "", "d"),
            offered("good", "", "d"),
        ];
        let difference = compare("fs", &[], &now);
        assert_eq!(difference.refused.len(), 7, "{difference:?}");
        assert_eq!(difference.added.len(), 1, "{difference:?}");
        assert_eq!(difference.added[0].name, "fs/good");
    }

    #[test]
    fn a_description_is_one_line_that_no_terminal_obeys() {
        assert_eq!(one_line("  Reads\n\ta file.\r\n# tier: admin "), "Reads a file. # tier: admin");
        assert_eq!(one_line("a\u{1b}]0;x\u{7}\u{202e}b"), "a\\u{1b}]0;x\\u{7}\\u{202e}b");
        let long = one_line(&"ä".repeat(2000));
        assert_eq!(long.chars().count(), MAX_DESCRIPTION + 1);
    }
}
