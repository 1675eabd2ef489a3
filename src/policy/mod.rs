//! Cedar and packages: schema, package bytes, canonical JSON, signatures, index and evaluation.
//!
//! Pure: nothing here knows Kubernetes' client, HTTP, SQL or the file system.

#[cfg(test)]
mod agreement;
mod annotations;
mod arguments;
#[cfg(test)]
mod attacks;
mod base;
mod catalogue;
mod compile;
mod compiled;
mod digest;
mod domain;
mod dsse;
mod evaluate;
mod facts;
mod index;
mod plan;
pub(crate) mod portrait;
mod prospect;
mod query;
mod redacted;
mod refusal;
mod scan;
mod schema;
mod signer;
#[cfg(test)]
mod support;
mod unknown;
mod verify;
mod why;

pub use arguments::REDACTED;
pub use base::base_platform;
pub use compiled::CompiledPackage;
pub use digest::{canonical, digest, object_name, sha256_text, short};
pub use dsse::{
    ANY_INSTALLATION, Ed25519Dsse, FORMAT_VERSION, MAX_STATEMENT_BYTES, PAYLOAD_TYPE, SignError, SignatureVerifier,
    Statement, peek_statement, sign,
};
pub use prospect::{Kind, PolicyProspect, Prospect};
pub use query::*;
pub use refusal::{Refusal, RefusalCode};
pub use scan::{ForbidText, PolicyText, forbids, texts};
pub(crate) use schema::{TYPES, uid};
pub use signer::{KeyError, PublicKey, Signer, SignerError};
pub use unknown::Outcomes;
pub use verify::{
    MAX_PACKAGE_BYTES, SigningMode, Verified, VerifyContext, parse_version, signature_needed, verify_first,
    verify_recorded,
};
pub(crate) use verify::{check_high_water, examine, verify_bytes};
pub use why::{Fact, Failed, NearPermit, Part, PolicyWhy, Source};
