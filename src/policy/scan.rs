//! The linear scan that stands before Cedar's parser.
//!
//! Cedar's parser is recursive: 150 nested parentheses overflow a small stack and end the process, and long chains of operators
//! do the same when the tree is dropped. So every text is lexed here first, exactly as Cedar lexes it, without recursion, and is
//! refused where it nests or chains deeper than Remit parses. What this lexer does not know, Cedar does not see.

use std::collections::HashMap;

use cedar_policy_core::parser::unescape::to_unescaped_string;

use super::refusal::{Refusal, RefusalCode};

/// Brackets may nest this deep.
pub const MAX_DEPTH: usize = 32;
/// Operators, member accesses, `if`s and conditions of one policy.
pub const MAX_CHAIN: usize = 128;
/// Bytes of one policy with its annotations.
pub const MAX_POLICY_BYTES: usize = 32 * 1024;
/// Bytes of one file.
pub const MAX_FILE_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of a package's schema.
pub const MAX_SCHEMA_BYTES: usize = 64 * 1024;
/// Types and actions that a package may declare.
pub const MAX_DECLARATIONS: usize = 256;
/// Types that one common type may stand for, all references written out.
const MAX_EXPANSION: u64 = 10_000;
/// The same, summed over every place of the schema that names a common type.
const MAX_EXPANSIONS: u64 = 200_000;

/// 1-based line and column (in characters) of a byte offset.
pub fn position(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
    (line, column)
}

/// `file:line:column`, as every message names a place.
pub fn place(file: &str, text: &str, offset: usize) -> String {
    let (line, column) = position(text, offset);
    format!("{file}:{line}:{column}")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ident,
    Text,
    Number,
    Symbol,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    offset: usize,
}

/// Longest first, so that `::` is not read as two colons.
const SYMBOLS: [&str; 29] = [
    "::", "==", "!=", "<=", ">=", "||", "&&", "@", ".", ",", ";", ":", "(", ")", "{", "}", "[", "]", "<", ">", "+",
    "-", "*", "/", "%", "!", "=", "?", "|",
];

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    /// The next token; Err: offset and what is wrong with it.
    fn next(&mut self) -> Result<Option<Token<'a>>, (usize, &'static str)> {
        loop {
            let rest = &self.text[self.at..];
            let Some(first) = rest.chars().next() else { return Ok(None) };
            if first.is_whitespace() {
                self.at += first.len_utf8();
                continue;
            }
            if rest.starts_with("//") {
                // Cedar ends a comment at a carriage return, too: what follows one is policy text.
                self.at += rest.find(['\n', '\r']).unwrap_or(rest.len());
                continue;
            }
            let offset = self.at;
            let (kind, length) = if first == '"' {
                (
                    Kind::Text,
                    string_length(rest).ok_or((offset, "this string does not end, or has a line break after `\\`"))?,
                )
            } else if first == '_' || first.is_ascii_alphabetic() {
                (Kind::Ident, rest.find(|c: char| c != '_' && !c.is_ascii_alphanumeric()).unwrap_or(rest.len()))
            } else if first.is_ascii_digit() {
                (Kind::Number, rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()))
            } else {
                let symbol = SYMBOLS.iter().find(|s| rest.starts_with(**s)).filter(|s| **s != "|");
                (Kind::Symbol, symbol.ok_or((offset, "this character has no meaning here"))?.len())
            };
            self.at += length;
            return Ok(Some(Token { kind, text: &rest[..length], offset }));
        }
    }
}

/// Length of the string literal that `rest` starts with: `"(\\.|[^"\\])*"`, where `.` is anything but a line feed.
fn string_length(rest: &str) -> Option<usize> {
    let mut escaped = false;
    for (index, c) in rest.char_indices().skip(1) {
        match c {
            '\n' if escaped => return None,
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(index + 1),
            _ => {}
        }
    }
    None
}

fn lex<'a>(file: &str, text: &'a str, syntax: RefusalCode) -> Result<Vec<Token<'a>>, Refusal> {
    let mut lexer = Lexer { text, at: 0 };
    let mut tokens = Vec::new();
    loop {
        match lexer.next() {
            Ok(Some(token)) => tokens.push(token),
            Ok(None) => return Ok(tokens),
            Err((offset, what)) => return Err(Refusal::new(syntax, format!("{}: {what}", place(file, text, offset)))),
        }
    }
}

fn closer(open: &str) -> Option<&'static str> {
    match open {
        "(" => Some(")"),
        "[" => Some("]"),
        "{" => Some("}"),
        _ => None,
    }
}

/// Scans a file of policies. Returns how many there are.
pub fn policies(file: &str, text: &str) -> Result<usize, Refusal> {
    if text.len() > MAX_FILE_BYTES {
        return Err(Refusal::new(
            RefusalCode::TooLarge,
            format!("{file}: {} bytes; a file holds at most {MAX_FILE_BYTES}", text.len()),
        ));
    }
    let tokens = lex(file, text, RefusalCode::CedarSyntax)?;
    let syntax =
        |offset, what: &str| Refusal::new(RefusalCode::CedarSyntax, format!("{}: {what}", place(file, text, offset)));
    let mut open: Vec<Token<'_>> = Vec::new();
    let mut chain = 0_usize;
    let mut start: Option<usize> = None;
    let mut count = 0_usize;
    for token in &tokens {
        let begin = *start.get_or_insert(token.offset);
        if token.offset + token.text.len() - begin > MAX_POLICY_BYTES {
            return Err(Refusal::new(
                RefusalCode::TooLarge,
                format!("{}: this policy is over {MAX_POLICY_BYTES} bytes", place(file, text, begin)),
            ));
        }
        if token.kind == Kind::Symbol && closer(token.text).is_some() {
            open.push(*token);
            if open.len() > MAX_DEPTH {
                return Err(Refusal::new(
                    RefusalCode::TooDeep,
                    format!("{}: brackets nest deeper than {MAX_DEPTH}", place(file, text, token.offset)),
                ));
            }
        } else if token.kind == Kind::Symbol && matches!(token.text, ")" | "]" | "}") {
            let opened = open.pop().ok_or_else(|| syntax(token.offset, "this bracket closes nothing"))?;
            if closer(opened.text) != Some(token.text) {
                return Err(syntax(token.offset, "this bracket closes another kind of bracket"));
            }
        } else if chains(token) {
            chain += 1;
            if chain > MAX_CHAIN {
                return Err(Refusal::new(
                    RefusalCode::TooDeep,
                    format!(
                        "{}: this policy has more than {MAX_CHAIN} operators, member accesses, conditions and `if`s; split it",
                        place(file, text, begin)
                    ),
                ));
            }
        } else if token.text == ";" && open.is_empty() {
            chain = 0;
            start = None;
            count += 1;
        }
    }
    match (open.last(), start) {
        (Some(token), _) => Err(syntax(token.offset, "this bracket is never closed")),
        (None, Some(begin)) => Err(syntax(begin, "this policy does not end in `;`")),
        (None, None) => Ok(count),
    }
}

/// A `forbid` as its author wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForbidText {
    /// Its `@id`.
    pub id: String,
    /// From its first annotation to its `;`, with the comments above it.
    pub text: String,
    /// SHA-256 of the policy without those comments, as records name it.
    pub text_hash: String,
}

/// A policy of a file: which tokens, and where its text lies, with and without the comments above it.
struct Statement<'t, 's> {
    tokens: &'t [Token<'s>],
    whole: std::ops::Range<usize>,
    text: std::ops::Range<usize>,
}

/// The policies of a file that compiles, in their order.
fn statements<'t, 's>(tokens: &'t [Token<'s>]) -> Vec<Statement<'t, 's>> {
    let (mut found, mut depth, mut from, mut begin) = (Vec::new(), 0_usize, 0, 0);
    for (n, token) in tokens.iter().enumerate() {
        match token.text {
            "(" | "[" | "{" if token.kind == Kind::Symbol => depth += 1,
            ")" | "]" | "}" if token.kind == Kind::Symbol => depth = depth.saturating_sub(1),
            ";" if token.kind == Kind::Symbol && depth == 0 => {
                let (policy, end) = (&tokens[begin..=n], token.offset + 1);
                let start = policy.first().map_or(end, |t| t.offset);
                found.push(Statement { tokens: policy, whole: from..end, text: start..end });
                (from, begin) = (end, n + 1);
            }
            _ => {}
        }
    }
    found
}

/// SHA-256 of a policy's text, as records name it.
fn hash(text: &str) -> String {
    super::sha256_text(text.as_bytes()).split_off("sha256:".len())
}

/// The forbids of a file that compiles, in their order.
pub fn forbids(file: &str, text: &str) -> Result<Vec<ForbidText>, Refusal> {
    let tokens = lex(file, text, RefusalCode::CedarSyntax)?;
    let forbids = statements(&tokens).into_iter().filter(|s| effect(s.tokens) == Some("forbid"));
    let found = forbids.map(|s| ForbidText {
        id: id(s.tokens).unwrap_or_default(),
        text: text.get(s.whole).unwrap_or_default().trim().to_owned(),
        text_hash: hash(text.get(s.text).unwrap_or_default()),
    });
    Ok(found.collect())
}

/// A policy's text, as records name it by its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyText {
    /// Its `@id`, unique in the package.
    pub id: String,
    /// From its first annotation to its `;`, without the comments above it.
    pub text: String,
    /// SHA-256 of the text, hex.
    pub sha256: String,
}

/// The policies of a package that compiles, in the order of its files. Nothing is parsed: also of a package that ended a parser.
pub fn texts(spec: &crate::api::PolicyPackageSpec) -> Result<Vec<PolicyText>, Refusal> {
    let mut found = Vec::new();
    for file in &spec.policies {
        let tokens = lex(&file.name, &file.text, RefusalCode::CedarSyntax)?;
        found.extend(statements(&tokens).into_iter().map(|s| {
            let text = file.text.get(s.text).unwrap_or_default().to_owned();
            PolicyText { id: id(s.tokens).unwrap_or_default(), sha256: hash(&text), text }
        }));
    }
    Ok(found)
}

/// `permit` or `forbid`: the first word of a policy that is no annotation's name.
fn effect<'a>(policy: &[Token<'a>]) -> Option<&'a str> {
    let words = policy.iter().enumerate().filter(|(_, t)| t.kind == Kind::Ident);
    words.map(|(n, t)| (n, t.text)).find(|(n, _)| *n == 0 || policy[n - 1].text != "@").map(|(_, text)| text)
}

/// The value of `@id("…")`. Ids hold nothing that has to be escaped, but may be written so.
fn id(policy: &[Token<'_>]) -> Option<String> {
    let at = policy.windows(4).find(|w| w[0].text == "@" && w[1].text == "id" && w[3].kind == Kind::Text)?;
    to_unescaped_string(at[3].text.trim_matches('"')).ok().map(String::from)
}

/// Where principal, action and resource stand in the head of a policy, annotations before it or not; None where it has none.
pub fn scope(policy: &str) -> Option<[std::ops::Range<usize>; 3]> {
    let tokens = lex("", policy, RefusalCode::CedarSyntax).ok()?;
    let effect = |pair: &[Token<'_>]| {
        pair[0].kind == Kind::Ident && matches!(pair[0].text, "permit" | "forbid") && pair[1].text == "("
    };
    // An annotation may be called `permit`, too: it has an `@` before it.
    let head = (0..tokens.len().saturating_sub(1))
        .find(|n| effect(&tokens[*n..*n + 2]) && (*n == 0 || tokens[*n - 1].text != "@"))?;
    let (mut depth, mut parts, mut first) = (0_usize, Vec::new(), None);
    for token in &tokens[head + 1..] {
        let symbol = token.kind == Kind::Symbol;
        if symbol && matches!(token.text, ")" | "]" | "}") {
            depth -= 1;
        }
        if symbol && (depth == 0 || (depth == 1 && token.text == ",")) && first.is_some() {
            parts.push(first.take()?);
        } else if depth > 0 {
            let begin = first.as_ref().map_or(token.offset, |r: &std::ops::Range<usize>| r.start);
            first = Some(begin..token.offset + token.text.len());
        }
        if symbol && closer(token.text).is_some() {
            depth += 1;
        }
        if depth == 0 {
            break;
        }
    }
    parts.try_into().ok()
}

/// Whether a token makes Cedar's tree one deeper.
fn chains(token: &Token<'_>) -> bool {
    match token.kind {
        Kind::Symbol => {
            matches!(
                token.text,
                "." | "==" | "!=" | "<" | "<=" | ">" | ">=" | "||" | "&&" | "+" | "-" | "*" | "/" | "%" | "!"
            )
        }
        Kind::Ident => matches!(token.text, "if" | "in" | "has" | "like" | "is" | "when" | "unless"),
        Kind::Text | Kind::Number => false,
    }
}

/// What a schema declares, found by the scan: enough to refuse reserved names at their place.
#[derive(Debug, PartialEq, Eq)]
pub struct Declaration {
    /// `entity`, `type` or `action`.
    pub what: &'static str,
    /// Name, unquoted and without escapes resolved.
    pub name: String,
    /// Byte offset of the name.
    pub offset: usize,
}

/// Scans a schema: nesting, number of declarations, and what common types stand for when written out.
pub fn schema(file: &str, text: &str) -> Result<Vec<Declaration>, Refusal> {
    if text.len() > MAX_SCHEMA_BYTES {
        return Err(Refusal::new(
            RefusalCode::TooLarge,
            format!("{file}: {} bytes; a schema has at most {MAX_SCHEMA_BYTES}", text.len()),
        ));
    }
    let tokens = lex(file, text, RefusalCode::SchemaSyntax)?;
    let syntax =
        |offset, what: &str| Refusal::new(RefusalCode::SchemaSyntax, format!("{}: {what}", place(file, text, offset)));
    let mut open: Vec<Token<'_>> = Vec::new();
    for token in tokens.iter().filter(|t| t.kind == Kind::Symbol) {
        match token.text {
            "(" | "[" | "{" | "<" => {
                open.push(*token);
                if open.len() > MAX_DEPTH {
                    return Err(Refusal::new(
                        RefusalCode::TooDeep,
                        format!("{}: types nest deeper than {MAX_DEPTH}", place(file, text, token.offset)),
                    ));
                }
            }
            ")" | "]" | "}" | ">" => {
                let opened = open.pop().ok_or_else(|| syntax(token.offset, "this bracket closes nothing"))?;
                if !matches!((opened.text, token.text), ("(", ")") | ("[", "]") | ("{", "}") | ("<", ">")) {
                    return Err(syntax(token.offset, "this bracket closes another kind of bracket"));
                }
            }
            _ => {}
        }
    }
    if let Some(token) = open.last() {
        return Err(syntax(token.offset, "this bracket is never closed"));
    }
    let declarations = declarations(&tokens);
    if declarations.len() > MAX_DECLARATIONS {
        return Err(Refusal::new(
            RefusalCode::TooCostly,
            format!("{file}: {} types and actions; a schema declares at most {MAX_DECLARATIONS}", declarations.len()),
        ));
    }
    common_types(file, text, &tokens)?;
    Ok(declarations)
}

/// Names that follow `entity`, `type` and `action` where a declaration can stand: at depth 0 or straight within a namespace.
fn declarations(tokens: &[Token<'_>]) -> Vec<Declaration> {
    let mut found = Vec::new();
    let mut starts = true;
    let mut index = 0;
    while let Some(token) = tokens.get(index) {
        index += 1;
        let what = match (token.kind, token.text) {
            (Kind::Ident, "entity") if starts => "entity",
            (Kind::Ident, "type") if starts => "type",
            (Kind::Ident, "action") if starts => "action",
            _ => {
                // A declaration begins after `;`, after the brace of a namespace, or after an annotation.
                starts = matches!(token.text, ";" | "{" | "}" | ")") || (starts && token.text == "external");
                continue;
            }
        };
        starts = false;
        while let Some(name) = tokens.get(index).filter(|t| matches!(t.kind, Kind::Ident | Kind::Text)) {
            let bare = name.text.trim_matches('"').to_owned();
            found.push(Declaration { what, name: bare, offset: name.offset });
            index += 1;
            if tokens.get(index).is_some_and(|t| t.text == ",") {
                index += 1;
            } else {
                break;
            }
        }
    }
    found
}

/// Cedar writes common types out where they are named: a few lines can stand for more types than memory holds.
fn common_types(file: &str, text: &str, tokens: &[Token<'_>]) -> Result<(), Refusal> {
    let mut bodies: HashMap<&str, (usize, Vec<&str>)> = HashMap::new();
    let mut index = 0;
    while index < tokens.len() {
        let named = match (tokens.get(index), tokens.get(index + 1), tokens.get(index + 2)) {
            (Some(t), Some(n), Some(e)) if t.text == "type" && n.kind == Kind::Ident && e.text == "=" => {
                Some((n.text, n.offset))
            }
            _ => None,
        };
        let Some((name, offset)) = named else {
            index += 1;
            continue;
        };
        let length = tokens[index + 3..].iter().take_while(|t| t.text != ";").count();
        let body = &tokens[index + 3..index + 3 + length];
        index += 3 + length;
        // A word before `:` or `?:` names an attribute, not a type.
        let types =
            body.iter().enumerate().filter(|(at, _)| !matches!(body.get(at + 1).map(|t| t.text), Some(":" | "?")));
        bodies.entry(name).or_insert((offset, Vec::new())).1.extend(types.map(|(_, t)| t.text));
    }
    // Sizes by repeated passes: a reference chain longer than MAX_DEPTH does not settle, and neither does a cycle.
    let mut sizes: HashMap<&str, u64> = bodies.keys().map(|name| (*name, 1)).collect();
    for pass in 0..=MAX_DEPTH {
        let mut next = HashMap::with_capacity(sizes.len());
        for (name, (offset, body)) in &bodies {
            let size = body.iter().map(|word| sizes.get(word).copied().unwrap_or(1)).fold(1_u64, u64::saturating_add);
            if size > MAX_EXPANSION {
                let message = format!(
                    "{}: type `{name}`, written out, has over {MAX_EXPANSION} parts",
                    place(file, text, *offset)
                );
                return Err(Refusal::new(RefusalCode::TooDeep, message));
            }
            next.insert(*name, size);
        }
        if next == sizes {
            let names = |at: usize| !matches!(tokens.get(at + 1).map(|t| t.text), Some(":" | "?"));
            let places = tokens.iter().enumerate().filter(|(at, _)| names(*at)).filter_map(|(_, t)| sizes.get(t.text));
            let total = places.fold(0_u64, |sum, size| sum.saturating_add(*size));
            if total > MAX_EXPANSIONS {
                let message = format!("{file}: its common types, written out where they are named, have {total} parts");
                return Err(Refusal::new(RefusalCode::TooCostly, message));
            }
            return Ok(());
        }
        if pass == MAX_DEPTH {
            let message =
                format!("{file}: types refer to each other in a cycle, or through more than {MAX_DEPTH} others");
            return Err(Refusal::new(RefusalCode::TooDeep, message));
        }
        sizes = next;
    }
    Ok(())
}

/// Scans JSON for its nesting, before any parser sees it.
pub fn json(file: &str, text: &str, max_bytes: usize) -> Result<(), Refusal> {
    if text.len() > max_bytes {
        return Err(Refusal::new(
            RefusalCode::TooLarge,
            format!("{file}: {} bytes; at most {max_bytes} are read", text.len()),
        ));
    }
    let (mut depth, mut within, mut escaped) = (0_usize, false, false);
    for (offset, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if within => escaped = true,
            b'"' => within = !within,
            b'[' | b'{' if !within => {
                depth += 1;
                if depth > MAX_DEPTH {
                    let message = format!("{}: brackets nest deeper than {MAX_DEPTH}", place(file, text, offset));
                    return Err(Refusal::new(RefusalCode::TooDeep, message));
                }
            }
            b']' | b'}' if !within => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(result: Result<usize, Refusal>) -> Option<RefusalCode> {
        result.err().map(|r| r.code)
    }

    #[test]
    fn brackets_in_strings_and_comments_do_not_count() {
        let deep = "(".repeat(200);
        let text = format!("// {deep}\n@id(\"{deep}\\\"{deep}\") permit(principal, action, resource);");
        assert_eq!(policies("a.cedar", &text), Ok(1));
    }

    #[test]
    fn a_comment_ends_at_a_carriage_return() {
        let text =
            format!("permit(principal, action, resource) when {{ // x\r{}true{} }};", "(".repeat(40), ")".repeat(40));
        assert_eq!(code(policies("a.cedar", &text)), Some(RefusalCode::TooDeep));
    }

    #[test]
    fn a_semicolon_within_brackets_does_not_start_the_count_again() {
        let text = format!(
            "permit(principal, action, resource) when {{ true{}; true{} }};",
            " && true".repeat(70),
            " && true".repeat(70)
        );
        assert_eq!(code(policies("a.cedar", &text)), Some(RefusalCode::TooDeep));
    }

    #[test]
    fn unbalanced_text_is_refused_at_its_place() {
        for (text, at) in [
            ("permit(", "a.cedar:1:7"),
            ("permit(principal];", "a.cedar:1:17"),
            ("\n  \"abc", "a.cedar:2:3"),
            (")", "a.cedar:1:1"),
        ] {
            let refusal = policies("a.cedar", text).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::CedarSyntax, "{text}");
            assert!(refusal.message.starts_with(at), "{}", refusal.message);
        }
    }

    #[test]
    fn many_conditions_count_as_a_chain() {
        let text = format!("permit(principal, action, resource) {};", "when { true }".repeat(129));
        assert_eq!(code(policies("a.cedar", &text)), Some(RefusalCode::TooDeep));
    }

    #[test]
    fn types_that_double_are_refused() {
        let mut text = String::from("type T0 = { a: Long };");
        for n in 1..30 {
            text.push_str(&format!("type T{n} = {{ a: T{p}, b: T{p} }};", p = n - 1));
        }
        assert_eq!(schema("schema.cedarschema", &text).unwrap_err().code, RefusalCode::TooDeep);
    }

    #[test]
    fn declarations_are_found_with_their_place() {
        let text = "namespace Docs { @doc(\"x\") entity A, B in [C] { type: Long, action: Long }; type T = { entity: Long }; }\naction \"read doc\", write appliesTo { principal: [A], resource: [B] };";
        let found: Vec<_> = schema("s", text).unwrap().into_iter().map(|d| (d.what, d.name)).collect();
        let expected = [("entity", "A"), ("entity", "B"), ("type", "T"), ("action", "read doc"), ("action", "write")];
        assert_eq!(found, expected.map(|(w, n)| (w, n.to_owned())));
    }

    #[test]
    fn deep_json_is_refused() {
        assert!(json("entities.json", &"[".repeat(33), 1000).is_err());
        assert!(json("entities.json", &format!("[\"{}\"]", "[".repeat(99)), 1000).is_ok());
    }

    #[test]
    fn texts_are_cut_out_with_the_id_and_hash_that_the_compiled_policy_has() {
        let text = "// Head.\n@id(\"a\") permit(principal, action, resource); // after a\n\
                    // About b;\n@reason(\"@id(no);\") @id(\"b\\u{2e}1\")\nforbid(principal, action, resource) when { [1, 2].contains(1) };";
        let file = |name: &str, text: &str| crate::api::SourceFile { name: name.into(), text: text.into() };
        let spec = crate::api::PolicyPackageSpec {
            package: "base".into(),
            version: "1.0.0".into(),
            policies: vec![
                file("one.cedar", text),
                file("two.cedar", "@id(\"c\")permit(principal, action, resource);"),
            ],
            ..Default::default()
        };
        let found = texts(&spec).unwrap();
        assert_eq!(found.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), ["a", "b.1", "c"]);
        assert_eq!(found[0].text, "@id(\"a\") permit(principal, action, resource);");
        let compiled = crate::policy::CompiledPackage::compile(&spec, "sha256:0", crate::policy::Side::Tenant).unwrap();
        let hashes =
            |id: &str| compiled.rules.iter().find(|r| r.reference.id == id).map(|r| r.reference.text_hash.clone());
        for policy in found {
            assert_eq!(hashes(&format!("tenant/base/{}", policy.id)), Some(policy.sha256), "{}", policy.id);
        }
    }

    #[test]
    fn forbids_are_cut_out_as_they_were_written() {
        let text = "// Head.\n@id(\"a\") permit(principal, action, resource); // after a\n\
                    // About b;\n@reason(\"forbid; permit\") @id(\"b\")\n  forbid(principal, action, resource) when { [1, 2].contains(1) };\n\
                    @id(\"forbid\") permit(principal, action, resource) when { \"forbid;\" == \"forbid\" };\n\
                    forbid(principal, action, resource) when { context has x }; ";
        let found = forbids("f.cedar", text).unwrap();
        let ids: Vec<_> = found.iter().map(|f| f.id.as_str()).collect();
        assert_eq!(ids, ["b", ""]);
        assert!(found[0].text.starts_with("// after a\n// About b;\n@reason"), "{}", found[0].text);
        assert!(found[0].text.ends_with("contains(1) };"), "{}", found[0].text);
        let own = &text[text.find("@reason").unwrap()..text.find("contains(1) };").unwrap() + "contains(1) };".len()];
        assert_eq!(format!("sha256:{}", found[0].text_hash), crate::policy::sha256_text(own.as_bytes()));
    }
}
