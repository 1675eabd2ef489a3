//! The file of issuers: read once at start, strictly. What it leaves out has the safer default; what is wrong in it is named by
//! its field, and nothing starts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hyper::Uri;
use jiff::SignedDuration;
use serde::Deserialize;

use super::jwt::Algorithm;
use crate::package::yaml;
use crate::server::authn::Audience;

/// Most that clocks may differ, seconds.
pub const MAX_SKEW: u64 = 300;
/// Issuers of one installation.
const MAX_ISSUERS: usize = 64;
/// The largest file.
const MAX_FILE: u64 = 1024 * 1024;

/// What an issuer's subjects are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Whatever the issuer calls its workloads: `oidc: {issuer, subject}` of an Agent.
    #[default]
    Oidc,
    /// SPIFFE ids of one trust domain: `spiffe` of an Agent.
    Spiffe,
}

/// One issuer, as the file has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Issuer {
    /// `iss` of its tokens, to the byte. Only SPIFFE may leave it out: its tokens then name none.
    #[serde(default)]
    pub issuer: Option<String>,
    /// What its subjects are.
    #[serde(default)]
    pub kind: Kind,
    /// The SPIFFE trust domain that it speaks for.
    #[serde(default)]
    pub trust_domain: Option<String>,
    /// Where its keys are.
    #[serde(default)]
    pub jwks_uri: Option<String>,
    /// Or a file with them.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
    /// PEM file of the CA of `jwksUri`; the system's, if not set.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// A token is for Remit when it names one of these.
    #[serde(default = "audiences")]
    pub audiences: Vec<String>,
    /// Algorithms that its signatures may have.
    #[serde(default = "algorithms")]
    pub algorithms: Vec<Algorithm>,
    /// Tenants that it may speak for.
    pub tenants: Vec<String>,
    /// How much its clock and Remit's may differ.
    #[serde(default = "skew")]
    pub clock_skew_seconds: u64,
    /// A token that lives longer, from `iat` to `exp`, is refused.
    #[serde(default)]
    pub max_token_lifetime_seconds: Option<u64>,
}

fn audiences() -> Vec<String> {
    vec![Audience::Checks.as_str().to_owned()]
}

fn algorithms() -> Vec<Algorithm> {
    vec![Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA]
}

fn skew() -> u64 {
    60
}

impl Issuer {
    /// How much clocks may differ.
    pub fn skew(&self) -> SignedDuration {
        SignedDuration::from_secs(i64::try_from(self.clock_skew_seconds.min(MAX_SKEW)).unwrap_or_default())
    }

    /// For logs.
    pub fn name(&self) -> &str {
        self.issuer.as_deref().or(self.trust_domain.as_deref()).unwrap_or_default()
    }
}

/// Why there are no issuers.
#[derive(Debug, thiserror::Error)]
pub enum IssuersError {
    /// The file.
    #[error("--issuers {path}: {why}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words, or the parser's.
        why: String,
    },
    /// A field.
    #[error("issuers[{index}].{field}: {why}")]
    Field {
        /// Which issuer, from 0.
        index: usize,
        /// Its field.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Keys, or the client that fetches them.
    #[error("issuer {issuer}: {error}")]
    Keys {
        /// Its name.
        issuer: String,
        /// What is wrong.
        error: super::KeyError,
    },
}

/// Reads and checks the file.
pub fn read(path: &Path) -> Result<Vec<Issuer>, IssuersError> {
    let failed = |why: String| IssuersError::File { path: path.to_owned(), why };
    let meta = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?;
    if meta.len() > MAX_FILE {
        return Err(failed("is over 1 MiB".into()));
    }
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    let mut issuers: Vec<Issuer> = yaml::read("issuers", &text).map_err(|e| failed(e.to_string()))?;
    // A relative path is meant from where the file is.
    let beside = |file: &mut Option<PathBuf>| {
        if let (Some(file), Some(folder)) = (file.as_mut(), path.parent()) {
            *file = folder.join(&*file);
        }
    };
    for issuer in &mut issuers {
        beside(&mut issuer.jwks_file);
        beside(&mut issuer.ca_file);
    }
    check(&issuers)?;
    Ok(issuers)
}

/// Refuses what would be unsafe or can't work.
pub fn check(issuers: &[Issuer]) -> Result<(), IssuersError> {
    let (mut names, mut domains) = (BTreeSet::new(), BTreeSet::new());
    for (index, issuer) in issuers.iter().enumerate() {
        let wrong = |field, why: &str| Err(IssuersError::Field { index, field, why: why.to_owned() });
        if index >= MAX_ISSUERS {
            return wrong("issuer", "at most 64 issuers are taken");
        }
        match (&issuer.issuer, issuer.kind) {
            (None, Kind::Oidc) => return wrong("issuer", "is missing"),
            (Some(name), _) if !is_issuer(name) => {
                return wrong("issuer", "must be an address such as https://issuer.example, without query or fragment");
            }
            (Some(name), _) if !names.insert(name.clone()) => return wrong("issuer", "is there already"),
            _ => {}
        }
        match (&issuer.trust_domain, issuer.kind) {
            (None, Kind::Spiffe) => return wrong("trustDomain", "is missing: an issuer of kind spiffe speaks for one"),
            (Some(_), Kind::Oidc) => return wrong("trustDomain", "is for kind spiffe"),
            (Some(domain), _) if !is_trust_domain(domain) => {
                return wrong("trustDomain", "must be a name such as prod.example, without spiffe://");
            }
            (Some(domain), _) if !domains.insert(domain.clone()) => return wrong("trustDomain", "is there already"),
            _ => {}
        }
        match (&issuer.jwks_uri, &issuer.jwks_file) {
            (None, None) => return wrong("jwksUri", "is missing: give it, or jwksFile"),
            (Some(_), Some(_)) => return wrong("jwksFile", "and jwksUri exclude each other"),
            (Some(uri), None) if !is_fetchable(uri) => {
                return wrong("jwksUri", "must begin with https:// (http:// only to a loopback address)");
            }
            (None, Some(_)) if issuer.ca_file.is_some() => return wrong("caFile", "is for jwksUri"),
            _ => {}
        }
        if issuer.audiences.is_empty() || issuer.audiences.iter().any(|a| a.is_empty() || a.len() > 512) {
            return wrong("audiences", "must name at least one audience, of 1 to 512 bytes");
        }
        if issuer.audiences.iter().any(|a| a == Audience::Admin.as_str()) {
            return wrong("audiences", "remit-admin is for people whom the cluster knows");
        }
        if issuer.algorithms.is_empty() {
            return wrong("algorithms", "must name at least one");
        }
        if issuer.tenants.is_empty() || issuer.tenants.iter().any(|t| super::super::caller::named(t.clone()).is_err()) {
            return wrong("tenants", "must name the namespaces that the issuer may speak for, each by its whole name");
        }
        if issuer.clock_skew_seconds > MAX_SKEW {
            return wrong("clockSkewSeconds", "must be at most 300");
        }
        if issuer.max_token_lifetime_seconds == Some(0) {
            return wrong("maxTokenLifetimeSeconds", "must be at least 1");
        }
    }
    Ok(())
}

fn is_issuer(name: &str) -> bool {
    let uri = name.parse::<Uri>().ok().filter(|uri| matches!(uri.scheme_str(), Some("https" | "http")));
    let plain = name.len() <= crate::api::MAX_ISSUER && name.bytes().all(|b| b.is_ascii_graphic());
    plain && !name.contains(['#', '?', '@']) && uri.is_some_and(|uri| uri.host().is_some_and(|h| !h.is_empty()))
}

fn is_trust_domain(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    !name.is_empty() && name.len() <= 255 && name.bytes().all(plain)
}

/// https; http only where the bytes never leave the machine.
fn is_fetchable(uri: &str) -> bool {
    let Ok(uri) = uri.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    match uri.scheme_str() {
        Some("https") => !host.is_empty(),
        Some("http") => host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()),
        _ => false,
    }
}
