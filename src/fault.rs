//! Places where a test can end or stop the process, to see that a crash or a pause there loses nothing.
//!
//! `REMIT_FAULT=POINT[:N],…` ends the process (no destructors, as `kill -9`) when it passes the point for the Nth time, the first
//! where no N is given; `REMIT_PAUSE=POINT[:N],…` stops it (SIGSTOP) until somebody sends SIGCONT. Both exist under
//! `debug_assertions` only, as in the binary that `cargo test` builds anyway: a cargo feature would build everything twice, and a
//! release that was built beside the tests would have it by unification. A release has neither the code nor the variables' names.

/// Whether this build has fault points.
pub const ENABLED: bool = cfg!(debug_assertions);

/// A fault point. Names are `area.what_has_just_happened`, such as `rollout.bytes_kept`.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_: &'static str) {}

/// A fault point. Names are `area.what_has_just_happened`, such as `rollout.bytes_kept`.
#[cfg(debug_assertions)]
pub fn point(name: &'static str) {
    armed::pass(name);
}

#[cfg(debug_assertions)]
mod armed {
    use std::collections::HashMap;
    use std::sync::{Mutex, OnceLock, PoisonError};

    use rustix::process::{Signal, getpid, kill_process};

    struct Armed {
        kill: HashMap<String, u64>,
        pause: HashMap<String, u64>,
        passed: Mutex<HashMap<&'static str, u64>>,
    }

    /// By name, when to act: at which pass.
    pub(super) fn parse(text: &str) -> HashMap<String, u64> {
        let points = text.split(',').map(str::trim).filter(|p| !p.is_empty());
        let each = points.map(|p| match p.rsplit_once(':') {
            Some((name, n)) => (name.to_owned(), n.parse().unwrap_or(1)),
            None => (p.to_owned(), 1),
        });
        each.collect()
    }

    pub(super) fn pass(name: &'static str) {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        let read = |variable| std::env::var(variable).map(|text| parse(&text)).unwrap_or_default();
        let armed = ARMED.get_or_init(|| {
            let (kill, pause) = (read("REMIT_FAULT"), read("REMIT_PAUSE"));
            (!kill.is_empty() || !pause.is_empty()).then(|| Armed { kill, pause, passed: Mutex::default() })
        });
        let Some(armed) = armed else { return };
        let n = {
            let mut passed = armed.passed.lock().unwrap_or_else(PoisonError::into_inner);
            let n = passed.entry(name).or_default();
            *n += 1;
            *n
        };
        if armed.kill.get(name) == Some(&n) {
            eprintln!("fault point {name}: the process ends");
            let _ = kill_process(getpid(), Signal::KILL);
            std::process::abort();
        }
        if armed.pause.get(name) == Some(&n) {
            eprintln!("fault point {name}: the process is stopped");
            let _ = kill_process(getpid(), Signal::STOP);
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    #[test]
    fn points_are_armed_by_name_and_pass() {
        let armed = super::armed::parse("rollout.kept, rollout.status:3,");
        assert_eq!(armed.len(), 2);
        assert_eq!(armed["rollout.kept"], 1);
        assert_eq!(armed["rollout.status"], 3);
        // Not armed: nothing happens.
        super::point("rollout.kept");
    }
}
