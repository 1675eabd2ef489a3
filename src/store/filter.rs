//! What a listing of decisions may ask for, the same for every database.

use super::{DecisionFilter, StoreError};

/// Page size where none is asked for.
const PAGE: u32 = 100;
/// The largest page.
const MAX_PAGE: u32 = 1000;
/// The largest page of the chain.
const MAX_AUDIT_PAGE: u32 = 10_000;
/// Bytes of records from which on a page ends, however many rows it may have: one agent may send a megabyte with each call. A page has
/// one record at least.
pub(super) const PAGE_BYTES: i64 = 8 * 1024 * 1024;
/// The largest batch of retention: the writer does nothing else meanwhile.
const MAX_RETAIN: u32 = 1000;
/// What filters may ask for.
const OUTCOMES: [&str; 4] = ["allow", "deny", "approval_required", "refused"];
/// The same, of what was observed.
const WOULD_BE: [&str; 2] = ["deny", "approval_required"];

impl DecisionFilter {
    /// The size of the page, once the rest is known to be askable.
    pub(super) fn page_size(&self) -> Result<i64, StoreError> {
        let limit = within("limit", self.limit.unwrap_or(PAGE), MAX_PAGE)?;
        for (field, value, known) in
            [("outcome", &self.outcome, &OUTCOMES[..]), ("would_be", &self.would_be, &WOULD_BE)]
        {
            if let Some(outcome) = value.as_deref().filter(|o| !known.contains(o)) {
                let why = format!("`{}` is none of {}", outcome.escape_debug(), known.join(", "));
                return Err(StoreError::Invalid { field, why });
            }
        }
        Ok(i64::from(limit))
    }
}

/// Not the `next` of a former page.
pub(super) fn bad_page() -> StoreError {
    StoreError::Invalid { field: "page", why: "not the `next` of a former page".into() }
}

/// Rows of the chain that may be asked for at once.
pub(super) fn audit_limit(limit: u32) -> Result<i64, StoreError> {
    within("limit", limit, MAX_AUDIT_PAGE).map(i64::from)
}

/// Records that retention may take at once.
pub(super) fn retain_batch(batch: u32) -> Result<i64, StoreError> {
    within("batch", batch, MAX_RETAIN).map(i64::from)
}

fn within(field: &'static str, n: u32, most: u32) -> Result<u32, StoreError> {
    if (1..=most).contains(&n) {
        return Ok(n);
    }
    Err(StoreError::Invalid { field, why: format!("{n} is not within 1 to {most}") })
}
