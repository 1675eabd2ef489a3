//! A package as a whole: its own tests, run through the gates, and what admission can prove from its bytes.
//!
//! Stands above `policy` and `gate` because tests are answered by the same gates as live calls. Pure: no client, no files.

mod accept;
mod case;
pub mod import;
mod testing;
mod verdict;
pub mod yaml;

pub use accept::{Accepted, accept, prove};
pub use testing::{Expected, Got, MAX_TESTS, TestReport, TestResult, run_tests, run_tests_while};
pub use verdict::Verdict;
