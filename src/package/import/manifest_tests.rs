//! Texts as people write them, before and after.

use super::*;
use crate::api::Tier;

const D1: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const D2: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

fn added(name: &str) -> Added {
    Added {
        name: name.into(),
        tier: Tier::Write,
        why: "nothing says that it only reads".into(),
        description: "Says \"hi\": # no comment".into(),
        digest: D1.into(),
    }
}

fn changed(name: &str) -> Changed {
    Changed {
        name: name.into(),
        tier: Tier::Read,
        proposed: None,
        old_digest: Some(D1.into()),
        digest: D2.into(),
        old_description: String::new(),
        description: "New words.".into(),
    }
}

fn with(text: &str, added: &[Added], changed: &[Changed]) -> Result<String, EditError> {
    let difference = Difference { added: added.to_vec(), changed: changed.to_vec(), ..Default::default() };
    Manifest::read("package.yaml", text)?.with(&difference)
}

#[test]
fn a_new_tool_comes_last_and_nothing_else_moves() {
    let before = "# Ours.\npackage: p # the name\nversion: 0.1.0\n\ntools:\n  # The one that we know.\n  - name: git/log   # reads\n    tier: read\n  # - name: git/old\n\n# How it maps.\nauthor: \"me\"\n";
    let after = with(before, &[added("fs/say")], &[]).unwrap();
    let entry = format!(
        "  - name: fs/say\n    tier: write # review: nothing says that it only reads\n    description: \"Says \\\"hi\\\": # no comment\"\n    schemaDigest: {D1}\n"
    );
    let (head, tail) = before.split_at(before.find("\n# How").unwrap());
    assert_eq!(after, format!("{head}{entry}{tail}"));
}

#[test]
fn a_changed_tool_keeps_its_tier_its_comments_and_its_order() {
    let before = format!(
        "package: p\nversion: 0.1.0\ntools:\n- tier: read # decided by Ada\n  name: fs/a\n  groups: [x, y] # two\n  schemaDigest: {D1} # 2026-01\n  description: 'Old words.' # hm\n- {{name: fs/b, tier: admin}} # never\n- name: fs/c\n  description: >-\n    A long\n    text.\n  tier: write\n"
    );
    let after = with(&before, &[], &[changed("fs/a"), changed("fs/b"), changed("fs/c")]).unwrap();
    let wanted = before
        .replace(D1, D2)
        .replace("'Old words.'", "\"New words.\"")
        .replace("tier: admin}", &format!("tier: admin, description: \"New words.\", schemaDigest: {D2}}}"))
        .replace("  tier: write\n", &format!("  tier: write\n  schemaDigest: {D2}\n"));
    assert_eq!(after, wanted);
}

#[test]
fn what_was_not_pinned_is_pinned_and_keeps_its_words() {
    let before = "package: p\nversion: 0.1.0\ntools:\n  - {name: fs/a, tier: read} # one\n  - name: fs/b # two\n    tier: read\n    description: Ours.\n";
    let pin = |name| Changed { old_digest: None, ..changed(name) };
    let wanted = before
        .replace("read} # one", &format!("read, schemaDigest: {D2}}} # one"))
        .replace("tier: read\n    desc", &format!("tier: read\n    schemaDigest: {D2}\n    desc"));
    assert_eq!(with(before, &[], &[pin("fs/a"), pin("fs/b")]).unwrap(), wanted);
}

#[test]
fn every_way_to_write_a_list_takes_a_new_tool() {
    for before in [
        "package: p\nversion: 0.1.0\n",
        "package: p\nversion: 0.1.0",
        "package: p\nversion: 0.1.0\ntools:\n",
        "package: p\nversion: 0.1.0\ntools: # none\nauthor: me\n",
        "package: p\nversion: 0.1.0\ntools: []\n",
        "tools: [ ] # none yet\npackage: p\nversion: 0.1.0\n",
        "package: p\ntools: [{name: a/b, tier: read}]\nversion: 0.1.0\n",
        "package: p\ntools: [\n  {name: a/b, tier: read, groups: [x]}, # first\n  {tier: read,\n   name: a/c}\n]\nversion: 0.1.0\n",
        "package: p\ntools:\n- name: a/b\n  tier: read\n# next\nversion: 0.1.0\n",
        "package: p\ntools:\n    - tier: read\n      name: a/b\n      description: |\n        two\n        lines\n\nversion: 0.1.0\n",
        "package: p\ntools:\n  - {name: \"a/b\", tier: read}",
        "package: p\r\ntools:\r\n  - name: a/b\r\n    tier: read\r\nversion: 0.1.0\r\n",
    ] {
        let after = with(before, &[added("fs/say"), added("fs/s:y")], &[]).unwrap_or_else(|e| panic!("{before}\n{e}"));
        let tools = Manifest::read("package.yaml", &after).unwrap().tools;
        let old = Manifest::read("package.yaml", before).unwrap().tools;
        assert_eq!(tools[..old.len()], old[..], "{after}");
        assert_eq!(tools[old.len()].name, "fs/say", "{after}");
        assert_eq!(tools[old.len() + 1].name, "fs/s:y", "{after}");
        assert_eq!(after.matches("# review: nothing").count(), 2, "{after}");
        for comment in ["# none", "# first", "# next"] {
            assert_eq!(before.contains(comment), after.contains(comment), "{after}");
        }
        if before.contains('\r') {
            assert_eq!(after.matches('\n').count(), after.matches("\r\n").count(), "{after:?}");
        }
    }
}

#[test]
fn what_can_not_be_edited_in_place_is_refused() {
    let anchored = "package: p\nversion: 0.1.0\ntools:\n  - &a {name: fs/a, tier: read}\nauthor: x\n";
    // Whatever the style, either the text says what was meant, or there is none.
    if let Ok(text) = with(anchored, &[], &[changed("fs/a")]) {
        let tools = Manifest::read("package.yaml", &text).unwrap().tools;
        assert_eq!(tools[0].schema_digest.as_deref(), Some(D2));
    }
    let aliased = "package: p\nversion: &v read\ntools:\n  - name: fs/a\n    tier: *v\n";
    match with(aliased, &[], &[changed("fs/a")]) {
        Err(EditError::Style { .. }) => {}
        Ok(text) => {
            assert_eq!(Manifest::read("p", &text).unwrap().tools[0].schema_digest.as_deref(), Some(D2), "{text}")
        }
        Err(other) => panic!("{other}"),
    }
    let error = with("tools: [", &[added("fs/a")], &[]).unwrap_err();
    assert!(matches!(error, EditError::Unreadable(_)), "{error}");
    let error = with("package: p\ntools:\n  - name: fs/a\n    tier: raed\n", &[added("fs/b")], &[]).unwrap_err();
    assert!(error.to_string().starts_with("package.yaml:4:11: "), "{error}");
}
