//! What an author says beside a policy: `@id`, `@reason`, `@require_approval` and the others. Unknown ones are refused, because
//! a misspelt `@require_approval` would turn a request for approval into a plain forbid, or a permit into nothing at all.

use cedar_policy_core::ast::{Effect, Template};

use super::query::{Ask, Side};
use super::refusal::{Refusal, RefusalCode};
use super::scan;

/// Seconds of 30 days: approvals are not used for longer.
const MAX_WINDOW: u64 = 30 * 24 * 3600;
const MAX_COUNT: u32 = 100;
const MAX_REASON: usize = 1024;

/// The annotations of one policy, read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    pub id: String,
    pub reason: Option<String>,
    pub code: Option<String>,
    pub ask: Option<Ask>,
    pub sensitive: Vec<String>,
    pub grants_tenants: bool,
}

/// Reads the annotations of a policy, in the file that it stands in.
pub fn read(file: &str, text: &str, policy: &Template, side: Side) -> Result<Annotations, Vec<Refusal>> {
    let mut found = Annotations::default();
    let mut refusals = Vec::new();
    let (mut group, mut count, mut window, mut binds) = (None, None, None, None);
    let offset = policy.loc().map_or(0, |l| l.start());
    let named = policy.annotations().find(|(k, _)| k.as_ref() == "id").map(|(_, v)| v.val.to_string());
    match &named {
        Some(id) if valid_id(id) => found.id.clone_from(id),
        Some(id) => refusals.push(Refusal::new(
            RefusalCode::InvalidAnnotation,
            format!("{}: @id({id:?}): 1 to 128 of `A-Z a-z 0-9 . _ -`", scan::place(file, text, offset)),
        )),
        None => refusals.push(Refusal::new(
            RefusalCode::MissingId,
            format!(
                "{}: this policy has no @id(\"…\"); answers and records name it by that",
                scan::place(file, text, offset)
            ),
        )),
    }
    let shown = named.as_deref().unwrap_or("?");
    for (key, annotation) in policy.annotations() {
        let (key, value) = (key.as_ref(), annotation.val.as_str());
        let at = scan::place(file, text, annotation.loc.as_ref().map_or(offset, |l| l.start()));
        let mut wrong = |what: &str| {
            refusals
                .push(Refusal::new(RefusalCode::InvalidAnnotation, format!("{at}: policy `{shown}`: @{key}: {what}")));
        };
        match key {
            "id" => {}
            "reason" if value.trim().is_empty() => wrong("say why, in words"),
            "reason" if value.len() > MAX_REASON => wrong("at most 1024 bytes"),
            "reason" => found.reason = Some(value.to_owned()),
            "code" if !valid_id(value) => wrong("1 to 128 of `A-Z a-z 0-9 . _ -`"),
            "code" => found.code = Some(value.to_owned()),
            "require_approval" if policy.effect() == Effect::Permit => {
                wrong("stands on a `forbid`: that is what an approval lifts");
            }
            "require_approval" if value.trim().is_empty() => wrong("names the group that approves, or \"delegator\""),
            "require_approval" => group = Some(value.to_owned()),
            "approval_count" => match number(value).and_then(|n| u32::try_from(n).ok()).filter(|n| (1..=MAX_COUNT).contains(n)) {
                Some(n) => count = Some(n),
                None => wrong("a number from 1 to 100"),
            },
            "approval_window" => match duration(value).filter(|s| (1..=MAX_WINDOW).contains(s)) {
                Some(seconds) => window = Some(seconds),
                None => wrong("a time such as \"90s\", \"15m\", \"2h\" or \"1d\", at most 30d"),
            },
            "approval_binds" => match list(value) {
                Some(keys) => binds = Some(keys),
                None => wrong("names arguments, separated by commas"),
            },
            "sensitive" => match list(value) {
                Some(paths) => found.sensitive = paths,
                None => wrong("names argument paths, separated by commas"),
            },
            "grants_tenants" if side != Side::Platform => wrong("is for the platform's packages only"),
            "grants_tenants" if policy.effect() != Effect::Permit => wrong("stands on a `permit`"),
            "grants_tenants" if !matches!(value, "" | "true") => wrong("takes no value"),
            "grants_tenants" => found.grants_tenants = true,
            _ => refusals.push(Refusal::new(
                RefusalCode::UnknownAnnotation,
                format!(
                    "{at}: policy `{shown}`: @{key} is unknown; there are @id, @reason, @code, @require_approval, @approval_count, \
                     @approval_window, @approval_binds, @sensitive and @grants_tenants"
                ),
            )),
        }
    }
    match group {
        Some(group) => {
            found.ask = Some(Ask { group, count: count.unwrap_or(1), window_seconds: window, binds: binds.unwrap_or_default() });
        }
        None if count.is_some() || window.is_some() || binds.is_some() => refusals.push(Refusal::new(
            RefusalCode::InvalidAnnotation,
            format!(
                "{}: policy `{shown}`: @approval_count, @approval_window and @approval_binds need @require_approval(\"group\")",
                scan::place(file, text, offset)
            ),
        )),
        None => {}
    }
    if refusals.is_empty() { Ok(found) } else { Err(refusals) }
}

fn valid_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// A number in its one decimal form.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

fn duration(text: &str) -> Option<u64> {
    let (digits, unit) = match text.char_indices().last()? {
        (at, 's') => (&text[..at], 1),
        (at, 'm') => (&text[..at], 60),
        (at, 'h') => (&text[..at], 3600),
        (at, 'd') => (&text[..at], 24 * 3600),
        _ => (text, 1),
    };
    number(digits)?.checked_mul(unit)
}

fn list(text: &str) -> Option<Vec<String>> {
    let items: Vec<String> = text.split(',').map(|i| i.trim().to_owned()).collect();
    items.iter().all(|i| !i.is_empty()).then_some(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cedar_policy_core::parser::parse_policy_or_template;

    fn read_one(text: &str, side: Side) -> Result<Annotations, Vec<Refusal>> {
        read("a.cedar", text, &parse_policy_or_template(None, text).unwrap(), side)
    }

    #[test]
    fn an_ask_is_read_whole() {
        let text = r#"@id("ask") @reason("Two leads look.") @require_approval("leads") @approval_count("2") @approval_window("15m")
            @approval_binds("repo, branch") @sensitive("token") forbid(principal, action, resource);"#;
        let found = read_one(text, Side::Tenant).unwrap();
        let binds = vec!["repo".to_owned(), "branch".to_owned()];
        assert_eq!(found.ask, Some(Ask { group: "leads".into(), count: 2, window_seconds: Some(900), binds }));
        assert_eq!(found.sensitive, ["token"]);
    }

    #[test]
    fn wrong_values_and_places_are_refused() {
        use RefusalCode::{InvalidAnnotation, MissingId, UnknownAnnotation};
        for (annotations, effect, code) in [
            ("", "permit", MissingId),
            (r#"@id("a/b")"#, "permit", InvalidAnnotation),
            (r#"@id("a") @require_aproval("x")"#, "forbid", UnknownAnnotation),
            (r#"@id("a") @require_approval("x")"#, "permit", InvalidAnnotation),
            (r#"@id("a") @require_approval("")"#, "forbid", InvalidAnnotation),
            (r#"@id("a") @approval_count("2")"#, "forbid", InvalidAnnotation),
            (r#"@id("a") @require_approval("x") @approval_count("0")"#, "forbid", InvalidAnnotation),
            (r#"@id("a") @require_approval("x") @approval_count("+2")"#, "forbid", InvalidAnnotation),
            (r#"@id("a") @require_approval("x") @approval_window("31d")"#, "forbid", InvalidAnnotation),
            (r#"@id("a") @require_approval("x") @approval_binds("a,,b")"#, "forbid", InvalidAnnotation),
            (r#"@id("a") @grants_tenants"#, "permit", InvalidAnnotation),
        ] {
            let text = format!("{annotations} {effect}(principal, action, resource);");
            let refusals = read_one(&text, Side::Tenant).unwrap_err();
            assert_eq!(refusals[0].code, code, "{text}");
            assert!(refusals[0].message.starts_with("a.cedar:1:"), "{}", refusals[0].message);
        }
        assert!(
            read_one("@id(\"a\") @grants_tenants permit(principal, action, resource);", Side::Platform)
                .unwrap()
                .grants_tenants
        );
        assert!(read_one("@id(\"a\") @grants_tenants forbid(principal, action, resource);", Side::Platform).is_err());
    }
}
