//! A package's digest: SHA-256 over the RFC 8785 form of what the author wrote.
//!
//! It must not depend on how a client writes the object (key order, empty lists, spelled-out defaults), and never covers the
//! fields that are filled in afterwards: digest, signer and signature.

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::api::{Mapping, PolicyPackageSpec, SourceFile, Tool};

/// What is signed: every field of the spec but `signer`, `digest` and `signature`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Content<'a> {
    package: &'a str,
    version: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tools: &'a [Tool],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    policies: &'a [SourceFile],
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: &'a Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entities: &'a Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mapping: &'a Option<Mapping>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tests: &'a [SourceFile],
    #[serde(skip_serializing_if = "Option::is_none")]
    author: &'a Option<String>,
}

/// The bytes that the digest is over: RFC 8785 (JSON Canonicalization Scheme).
pub fn canonical(spec: &PolicyPackageSpec) -> Vec<u8> {
    // Taken apart by name, so that a new field of the spec can't be forgotten here.
    let PolicyPackageSpec {
        package,
        version,
        tools,
        policies,
        schema,
        entities,
        mapping,
        tests,
        author,
        signer: _,
        digest: _,
        signature: _,
    } = spec;
    let content = Content { package, version, tools, policies, schema, entities, mapping, tests, author };
    // Texts and enums under fixed keys: there is no number or key that RFC 8785 could refuse. Were there one, the bytes
    // are no JSON, so that no signature and no recorded digest can belong to them.
    serde_json_canonicalizer::to_vec(&content).unwrap_or_else(|e| format!("not canonical: {e}").into_bytes())
}

/// Digest of the package, `sha256:` and 64 hex digits.
pub fn digest(spec: &PolicyPackageSpec) -> String {
    sha256_text(&canonical(spec))
}

/// `sha256:` and 64 lower-case hex digits of the bytes' SHA-256: how Remit writes digests and fingerprints.
pub fn sha256_text(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::from("sha256:"), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The first eight hex digits of a digest: enough for people and object names, never to identify bytes.
pub fn short(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..8).unwrap_or(hex)
}

/// Name of the object that holds a package: `<package>-<version>-<first 8 of the digest>`, as RFC 1123 wants it.
pub fn object_name(spec: &PolicyPackageSpec, digest: &str) -> String {
    let name = format!("{}-{}-{}", spec.package, spec.version, short(digest)).to_lowercase();
    // In a version, "-" may stand beside "." (1.0.0-a.-1); in a name it may not.
    let bytes = name.as_bytes();
    let beside_dash = |i: usize| bytes.get(i + 1) == Some(&b'-') || i.checked_sub(1).is_some_and(|j| bytes[j] == b'-');
    name.char_indices().map(|(i, c)| if c == '.' && beside_dash(i) { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Envelope, Sensitivity, Tier};

    fn spec() -> PolicyPackageSpec {
        PolicyPackageSpec {
            package: "acme".into(),
            version: "1.2.3".into(),
            tools: vec![Tool {
                name: "fs/read".into(),
                tier: Tier::Read,
                sensitivity: Sensitivity::Normal,
                groups: vec![],
                description: None,
                schema_digest: None,
            }],
            policies: vec![SourceFile {
                name: "a.cedar".into(),
                text: "permit(principal,\n  action, resource);".into(),
            }],
            ..Default::default()
        }
    }

    #[test]
    fn is_sha256_over_the_rfc_8785_form() {
        let canonical = r#"{"package":"acme","policies":[{"name":"a.cedar","text":"permit(principal,\n  action, resource);"}],"tools":[{"name":"fs/read","tier":"read"}],"version":"1.2.3"}"#;
        assert_eq!(String::from_utf8(super::canonical(&spec())).unwrap(), canonical);
        assert_eq!(digest(&spec()), sha256_text(canonical.as_bytes()));
        // SHA-256 of the empty string, FIPS 180-4.
        assert_eq!(sha256_text(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(short(&sha256_text(b"")), "e3b0c442");
    }

    #[test]
    fn does_not_depend_on_key_order_or_client_encoding() {
        let texts = [
            "package: acme\nversion: 1.2.3\ntools: [{name: fs/read, tier: read}]\npolicies: [{name: a.cedar, text: \"permit(principal,\\n  action, resource);\"}]\n",
            "policies:\n- text: |-\n    permit(principal,\n      action, resource);\n  name: 'a.cedar'\ntests: []\ntools:\n- groups: []\n  tier: read\n  sensitivity: normal\n  name: fs/read\nversion: '1.2.3'\npackage: \"acme\"\nschema: null\n",
            r#"{"version":"1.2.3","package":"\u0061cme","tools":[{"tier":"read","name":"fs\/read"}],"policies":[{"text":"permit(principal,\n  action, resource);","name":"a.cedar"}]}"#,
        ];
        for text in texts {
            let read: PolicyPackageSpec = serde_saphyr::from_str(text).unwrap();
            assert_eq!(digest(&read), digest(&spec()), "{text}");
        }
    }

    #[test]
    fn covers_everything_but_what_is_filled_in_later() {
        let base = digest(&spec());
        let mut later = spec();
        later.digest = Some("sha256:00".into());
        later.signer = Some("alice".into());
        later.signature = Some(Envelope::default());
        assert_eq!(digest(&later), base);

        let changes: [fn(&mut PolicyPackageSpec); 9] = [
            |s| s.package.push('x'),
            |s| s.version = "1.2.4".into(),
            |s| s.tools[0].tier = Tier::Write,
            |s| s.policies[0].text.push(' '),
            |s| s.schema = Some(String::new()),
            |s| s.entities = Some("[]".into()),
            |s| s.mapping = Some(Mapping::default()),
            |s| s.tests.push(SourceFile::default()),
            |s| s.author = Some("Ann".into()),
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut changed = spec();
            change(&mut changed);
            assert_ne!(digest(&changed), base, "change {i}");
        }
    }

    #[test]
    fn object_names_are_names() {
        let digest = sha256_text(b"");
        let named = |version: &str| object_name(&PolicyPackageSpec { version: version.into(), ..spec() }, &digest);
        assert_eq!(named("1.2.3"), "acme-1.2.3-e3b0c442");
        assert_eq!(named("1.0.0-RC.1"), "acme-1.0.0-rc.1-e3b0c442");
        assert_eq!(named("1.0.0-a.-1-.b"), "acme-1.0.0-a--1--b-e3b0c442");
    }
}
