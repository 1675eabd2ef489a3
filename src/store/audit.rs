//! Verification of a writer's chain: pure, over rows, anchors and tombstones, wherever they were read from.

use serde::{Deserialize, Serialize};

use super::chain::Columns;

/// One row of the chain, as the database has it and as `GET /admin/audit/records` sends it (one JSON object a line).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditRow {
    /// Sequence number.
    pub seq: u64,
    /// Hash of the chain up to and including this row, hex.
    pub hash: String,
    /// The record's JSON, byte for byte; absent where retention took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The columns by which it is found; absent where retention took them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    /// Hash of the body, hex, where retention took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_hash: Option<String>,
    /// Number of the tombstone that covers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tombstone: Option<u64>,
}
