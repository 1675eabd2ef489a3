//! Which tier to propose for a tool, and why. Carefully: a hint alone makes nothing more than `read` of a tool whose name says less,
//! and what is not known to only read is proposed as `write`.

use serde_json::{Map, Value};

use crate::api::Tier;

/// Words of a name that speak of what can't be undone, of running whatever one is given, or of who may do what.
const ADMIN: &[&str] = &[
    "admin",
    "bash",
    "cmd",
    "command",
    "commands",
    "credential",
    "credentials",
    "delete",
    "deploy",
    "destroy",
    "drop",
    "env",
    "environ",
    "erase",
    "eval",
    "evaluate",
    "exec",
    "execute",
    "force",
    "format",
    "grant",
    "impersonate",
    "install",
    "invoke",
    "kill",
    "password",
    "passwords",
    "permission",
    "permissions",
    "purge",
    "remove",
    "reset",
    "revoke",
    "rm",
    "role",
    "roles",
    "run",
    "script",
    "secret",
    "secrets",
    "shell",
    "shutdown",
    "spawn",
    "sudo",
    "terminal",
    "terminate",
    "token",
    "tokens",
    "truncate",
    "uninstall",
    "wipe",
];

/// Words of a name that speak of a change.
const WRITE: &[&str] = &[
    "add", "append", "apply", "approve", "assign", "cancel", "close", "comment", "commit", "copy", "create", "disable",
    "edit", "enable", "fork", "import", "insert", "label", "lock", "mark", "merge", "modify", "move", "open", "patch",
    "pay", "post", "publish", "push", "put", "register", "rename", "replace", "restore", "save", "schedule", "send",
    "set", "start", "stop", "submit", "toggle", "transfer", "trigger", "unlock", "update", "upload", "upsert", "write",
];

/// A tier to begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The tier.
    pub tier: Tier,
    /// What speaks for it, for the reviewer. Words of ours only.
    pub why: String,
}

/// Proposes a tier from a tool's name, title and hints as its server sent them.
pub fn propose(definition: &Map<String, Value>) -> Proposal {
    let text = |key: &str| definition.get(key).and_then(Value::as_str).unwrap_or_default();
    let hints = definition.get("annotations").and_then(Value::as_object);
    let hint = |key: &str| hints.and_then(|h| h.get(key)).and_then(Value::as_bool) == Some(true);
    let title = hints.and_then(|h| h.get("title")).and_then(Value::as_str).unwrap_or_default();
    let words: Vec<String> = [text("name"), text("title"), title].iter().flat_map(|t| words(t)).collect();
    let found = |list: &[&'static str]| list.iter().find(|word| words.iter().any(|w| w == *word)).copied();
    let proposal = |tier, why: String| Proposal { tier, why };

    if let Some(word) = found(ADMIN) {
        return proposal(Tier::Admin, format!("its name says `{word}`"));
    }
    if hint("destructiveHint") {
        let why = if hint("readOnlyHint") { "destructiveHint and readOnlyHint at once" } else { "destructiveHint" };
        return proposal(Tier::Admin, why.into());
    }
    match (hint("readOnlyHint"), found(WRITE)) {
        (true, None) => proposal(Tier::Read, "readOnlyHint".into()),
        (true, Some(word)) => proposal(Tier::Write, format!("its name says `{word}`, though it hints readOnlyHint")),
        (false, Some(word)) => proposal(Tier::Write, format!("its name says `{word}`")),
        (false, None) => proposal(Tier::Write, "nothing says that it only reads".into()),
    }
}

/// The words of a name, in lower case: `deleteFile`, `delete_file` and `Delete file` are two words each.
fn words(name: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut before = ' ';
    let letters: Vec<char> = name.chars().collect();
    for (i, &c) in letters.iter().enumerate() {
        // `HTTPDelete`: the last capital of a run begins the next word.
        let next_is_lower = letters.get(i + 1).is_some_and(|n| n.is_lowercase());
        let begins = c.is_uppercase() && (before.is_lowercase() || before.is_uppercase() && next_is_lower);
        if (!c.is_alphabetic() || begins) && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if c.is_alphabetic() {
            word.extend(c.to_lowercase());
        }
        before = c;
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tier(name: &str, annotations: Value) -> (Tier, String) {
        let Value::Object(definition) = json!({"name": name, "annotations": annotations}) else { unreachable!() };
        let proposal = propose(&definition);
        (proposal.tier, proposal.why)
    }

    #[test]
    fn what_is_not_known_to_only_read_is_write() {
        assert_eq!(tier("frobnicate", json!({})).0, Tier::Write);
        assert_eq!(tier("get_log", Value::Null).0, Tier::Write);
        assert_eq!(tier("get_log", json!({"readOnlyHint": "yes"})).0, Tier::Write);
        assert_eq!(tier("get_log", json!({"readOnlyHint": true})), (Tier::Read, "readOnlyHint".into()));
    }

    #[test]
    fn no_hint_makes_a_dangerous_name_harmless() {
        let harmless = json!({"readOnlyHint": true, "destructiveHint": false});
        for name in ["delete_file", "deleteFile", "DROP TABLE", "run-shell", "HTTPExec", "git.reset", "kill9", "Ｘ_rm"]
        {
            assert_eq!(tier(name, harmless.clone()).0, Tier::Admin, "{name}");
        }
        for name in ["write_file", "createIssue", "push"] {
            assert_eq!(tier(name, harmless.clone()).0, Tier::Write, "{name}");
        }
        // Words, not letters.
        for name in ["get_dropdown", "list_formats", "brand", "runtime_info"] {
            assert_eq!(tier(name, harmless.clone()).0, Tier::Read, "{name}");
        }
    }

    #[test]
    fn a_destructive_hint_is_believed() {
        assert_eq!(tier("write_file", json!({"destructiveHint": true})), (Tier::Admin, "destructiveHint".into()));
        assert_eq!(tier("look", json!({"destructiveHint": true, "readOnlyHint": true})).0, Tier::Admin);
    }

    #[test]
    fn a_title_counts_too() {
        let Value::Object(tool) =
            json!({"name": "t1", "title": "Delete everything", "annotations": {"readOnlyHint": true}})
        else {
            unreachable!()
        };
        assert_eq!(propose(&tool).tier, Tier::Admin);
    }
}
