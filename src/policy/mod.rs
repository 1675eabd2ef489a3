//! Cedar and packages: schema, package bytes, canonical JSON, signatures, index and evaluation.
//!
//! Pure: nothing here knows Kubernetes' client, HTTP, SQL or the file system.

mod compiled;
mod query;
mod refusal;

pub use compiled::CompiledPackage;
pub use query::*;
pub use refusal::{Refusal, RefusalCode};
