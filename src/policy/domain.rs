//! Network names: the one form in which policies meet them, and their suffixes as parents.
//!
//! A name that a resolver reads in another way than policy does would slip past a forbid, so there is no guessing: what has a
//! second reading is refused.

use std::net::IpAddr;

/// A name in its one form.
#[derive(Debug, PartialEq, Eq)]
pub enum Domain {
    /// An address: no parents.
    Address(String),
    /// A name, lower case, without the last dot.
    Name(String),
}

impl Domain {
    /// The name as its Cedar id.
    pub fn name(&self) -> &str {
        match self {
            Domain::Address(name) | Domain::Name(name) => name,
        }
    }

    /// The suffixes of a name, nearest first: `api.example.org` has `example.org` and `org`.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        let mut rest = match self {
            Domain::Address(_) => "",
            Domain::Name(name) => name.as_str(),
        };
        std::iter::from_fn(move || {
            rest = rest.split_once('.')?.1;
            Some(rest)
        })
    }
}

/// Reads a name; Err: what is wrong with it.
pub fn parse(text: &str) -> Result<Domain, &'static str> {
    if !text.is_ascii() {
        return Err("write the name in ASCII (punycode)");
    }
    let bracketless = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bracketless.parse::<IpAddr>() {
        let canonical = match address {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
            IpAddr::V4(_) => address,
        };
        return Ok(Domain::Address(canonical.to_string()));
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if name.is_empty() || name.len() > 253 {
        return Err("a name has 1 to 253 characters");
    }
    let label = |l: &str| {
        (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if !name.split('.').all(label) {
        return Err("labels have 1 to 63 of `a-z 0-9 - _`; no scheme, port or path");
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    // Resolvers read `127.1` and `0x7f.1` as addresses (WHATWG URL: a host that ends in a number).
    if last.bytes().all(|b| b.is_ascii_digit())
        || last.strip_prefix("0x").is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Err("this reads as an address; write it in full");
    }
    Ok(Domain::Name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_form_and_its_suffixes() {
        let domain = parse("API.Example.org.").unwrap();
        assert_eq!(domain.name(), "api.example.org");
        assert_eq!(domain.parents().collect::<Vec<_>>(), ["example.org", "org"]);
        assert_eq!(parse("::ffff:10.0.0.1").unwrap(), Domain::Address("10.0.0.1".into()));
        assert_eq!(parse("10.0.0.1").unwrap().parents().count(), 0);
    }

    #[test]
    fn what_has_a_second_reading_is_refused() {
        for text in [
            "",
            ".",
            "a..b",
            "127.1",
            "0x7f.0x1",
            "2130706433",
            "b\u{fc}cher.de",
            "a.org:443",
            "http://a.org",
            "a b",
            "x.org..",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
