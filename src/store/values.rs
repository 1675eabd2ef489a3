//! Numbers, times and envelopes as the databases hold them: their integers are signed, their times microseconds since 1970.

use jiff::Timestamp;

use super::StoreError;
use crate::api::Envelope;

pub(super) fn signed(what: &'static str, n: u64) -> Result<i64, StoreError> {
    i64::try_from(n).map_err(|_| StoreError::Corrupt { what, why: format!("{n} is over 2^63-1") })
}

pub(super) fn unsigned(what: &'static str, n: i64) -> Result<u64, StoreError> {
    u64::try_from(n).map_err(|_| StoreError::Corrupt { what, why: format!("{n} is negative") })
}

pub(super) fn time(what: &'static str, micros: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(micros).map_err(|e| StoreError::Corrupt { what, why: e.to_string() })
}

pub(super) fn version(what: &'static str, text: &str) -> Result<semver::Version, StoreError> {
    semver::Version::parse(text).map_err(|e| StoreError::Corrupt { what, why: format!("`{text}`: {e}") })
}

pub(super) fn json(what: &'static str, envelope: &Envelope) -> Result<String, StoreError> {
    serde_json::to_string(envelope).map_err(|e| StoreError::Corrupt { what, why: e.to_string() })
}

pub(super) fn envelope(what: &'static str, text: &str) -> Result<Envelope, StoreError> {
    serde_json::from_str(text).map_err(|e| StoreError::Corrupt { what, why: e.to_string() })
}
