//! One check's way through the gates, over an immutable snapshot. Pure: no clock, no client, no store.

mod decision;
mod request;
mod snapshot;

pub use decision::*;
pub use request::*;
pub use snapshot::*;

/// Runs every gate in its order.
pub fn check(input: &CheckInput<'_>) -> Checked {
    let _ = input;
    unimplemented!()
}
