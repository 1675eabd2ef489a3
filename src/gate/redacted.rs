//! Whether the answer to a recorded question depends on values that its record does not keep.
//!
//! Only ever errs on the side of "it does": an answer that was guessed would pass as one that was found.

use std::cell::Cell;
use std::sync::Arc;

use super::decision::CheckInput;
use super::pass::{Pass, deny};
use super::{delegation, platform, policy, stops, subject};

/// Asks as a check would, and says whether a policy of either side comes to something that only the values under `hidden` (flattened
/// keys) settle. `long`: such a value may be over 64 KiB.
pub fn depends_on_redacted(input: &CheckInput<'_>, hidden: &[String], long: bool) -> bool {
    let mut pass = Pass::new(input);
    let gates = [platform::gate, subject::gate, delegation::gate, stops::gate];
    if hidden.is_empty() || gates.iter().any(|gate| gate(&mut pass).is_err()) {
        return false;
    }
    let depends = Cell::new(false);
    let _ = policy::each(&pass, |package, query| {
        let mut packages = pass.platform.iter().map(Arc::as_ref).chain([package]);
        if packages.any(|p| p.depends_on(query, hidden, long, input.pattern_budget)) {
            depends.set(true);
            return Err(deny("depends", ""));
        }
        Ok(())
    });
    depends.get()
}
