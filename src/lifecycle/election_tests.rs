use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A Lease as the API server keeps it: guarded by its version.
#[derive(Clone, Debug, Default)]
struct Lease {
    record: Option<Record>,
    version: u64,
}

impl Lease {
    fn write(&mut self, action: &Action, read: u64) -> Option<Record> {
        let record = match action {
            Action::Create(record) if self.record.is_none() => record,
            Action::Update(record) if self.record.is_some() && self.version == read => record,
            _ => return None,
        };
        self.version += 1;
        self.record = Some(record.clone());
        Some(record.clone())
    }
}

/// One process, with a wall clock of its own.
struct Process {
    candidate: Candidate,
    skew: i64,
}

impl Process {
    fn new(id: &str, skew: i64) -> Self {
        Self { candidate: Candidate::new(id.into(), Terms::default()), skew }
    }

    fn clock(&self, base: Instant, now: Instant) -> Timestamp {
        let passed = i64::try_from(now.duration_since(base).as_millis()).unwrap();
        Timestamp::from_millisecond(1_800_000_000_000 + self.skew * 1000 + passed).unwrap()
    }

    /// One whole try: read, then write. `answered`: whether the answer to the write came back.
    fn turn(&mut self, lease: &mut Lease, base: Instant, now: Instant, answered: bool) {
        let clock = self.clock(base, now);
        let (seen, version) = (lease.record.clone(), lease.version);
        let action = self.candidate.read(seen, now, clock);
        if let Some(record) = lease.write(&action, version)
            && answered
        {
            self.candidate.wrote(record, now, now);
        }
    }
}

fn after(base: Instant, seconds: u64) -> Instant {
    base + Duration::from_secs(seconds)
}

#[test]
fn first_creates_the_lease_and_the_second_waits_for_its_whole_duration_since_it_saw_the_last_change() {
    let base = Instant::now();
    let (mut lease, mut a, mut b) = (Lease::default(), Process::new("a", 0), Process::new("b", 0));
    a.turn(&mut lease, base, base, true);
    assert!(a.candidate.leads(base));
    b.turn(&mut lease, base, after(base, 1), true);
    assert_eq!(b.candidate.holder(), Some("a"));
    // `a` is gone. `b` saw the record at 1 s.
    for second in 2..16 {
        b.turn(&mut lease, base, after(base, second), true);
        assert!(!b.candidate.leads(after(base, second)), "at {second} s");
    }
    b.turn(&mut lease, base, after(base, 16), true);
    assert!(b.candidate.leads(after(base, 16)));
    let record = lease.record.unwrap();
    assert_eq!((record.holder.as_str(), record.transitions, record.seconds), ("b", 1, 15));
}

#[test]
fn holder_stops_before_anybody_else_can_begin() {
    let base = Instant::now();
    let mut a = Process::new("a", 0);
    let mut lease = Lease::default();
    a.turn(&mut lease, base, base, true);
    // The API server is gone from here on.
    assert!(a.candidate.leads(base + Duration::from_millis(9_999)));
    assert!(!a.candidate.leads(after(base, 10)));
    assert!(a.candidate.lapse(after(base, 10)), "it is told once");
    assert!(!a.candidate.lapse(after(base, 11)));
    assert_eq!(a.candidate.until(), None);
    let terms = Terms::default();
    assert!(terms.renew + terms.grace() < terms.lease);
}

#[test]
fn a_write_counts_from_when_it_began() {
    let base = Instant::now();
    let mut a = Candidate::new("a".into(), Terms::default());
    let Action::Create(record) = a.read(None, base, Timestamp::UNIX_EPOCH) else { panic!() };
    // It took 9 s to be answered.
    a.wrote(record.clone(), base, after(base, 9));
    assert!(a.leads(after(base, 9)));
    assert!(!a.leads(after(base, 10)));
    // And one that took longer than that never made a leader.
    a.wrote(record, base, after(base, 12));
    assert!(!a.leads(after(base, 12)) && a.until().is_none());
}

#[test]
fn clocks_that_differ_by_years_change_nothing() {
    let base = Instant::now();
    let years = 3 * 365 * 86_400;
    for (first, second) in [(years, -years), (-years, years)] {
        let (mut lease, mut a, mut b) = (Lease::default(), Process::new("a", first), Process::new("b", second));
        for second in 0..60 {
            let now = after(base, second);
            if second % 2 == 0 {
                a.turn(&mut lease, base, now, true);
            }
            b.turn(&mut lease, base, now, true);
            assert!(a.candidate.leads(now) && !b.candidate.leads(now), "at {second} s");
        }
    }
}

#[test]
fn a_released_lease_is_taken_at_once() {
    let base = Instant::now();
    let (mut lease, mut a, mut b) = (Lease::default(), Process::new("a", 0), Process::new("b", 0));
    a.turn(&mut lease, base, base, true);
    b.turn(&mut lease, base, after(base, 1), true);
    let released = a.candidate.release(lease.record.as_ref().unwrap(), a.clock(base, after(base, 2))).unwrap();
    assert!(!a.candidate.leads(after(base, 2)));
    lease.write(&Action::Update(released), lease.version).unwrap();
    b.turn(&mut lease, base, after(base, 3), true);
    assert!(b.candidate.leads(after(base, 3)));
    // What is no longer one's own is not released.
    assert_eq!(a.candidate.release(lease.record.as_ref().unwrap(), Timestamp::UNIX_EPOCH), None);
}

#[test]
fn a_paused_leader_knows_at_once_that_it_leads_no_more_and_its_late_write_fails() {
    let base = Instant::now();
    let (mut lease, mut a, mut b) = (Lease::default(), Process::new("a", 0), Process::new("b", 0));
    a.turn(&mut lease, base, base, true);
    b.turn(&mut lease, base, base, true);
    // `a` had read the lease and was stopped before it wrote.
    let version = lease.version;
    let late = a.candidate.read(lease.record.clone(), after(base, 2), Timestamp::UNIX_EPOCH);
    b.turn(&mut lease, base, after(base, 15), true);
    assert!(b.candidate.leads(after(base, 15)));
    assert!(!a.candidate.leads(after(base, 16)), "by its own clock, without a call");
    assert_eq!(lease.write(&late, version), None);
    a.turn(&mut lease, base, after(base, 16), true);
    assert!(!a.candidate.leads(after(base, 16)) && a.candidate.holder() == Some("b"));
}

#[test]
fn a_write_without_an_answer_is_found_out_by_reading() {
    let base = Instant::now();
    let (mut lease, mut a) = (Lease::default(), Process::new("a", 0));
    a.turn(&mut lease, base, base, false);
    assert!(!a.candidate.leads(base), "nobody told it that it leads");
    a.turn(&mut lease, base, after(base, 2), true);
    assert!(a.candidate.leads(after(base, 2)));
    assert_eq!(lease.record.as_ref().unwrap().transitions, 0, "it was never another's");
    // A Lease that somebody deleted is made again, and whoever makes it leads.
    lease.record = None;
    a.turn(&mut lease, base, after(base, 4), true);
    assert!(a.candidate.leads(after(base, 4)));
}

#[test]
fn waiting_is_jittered_and_renewing_is_not() {
    let base = Instant::now();
    let mut a = Process::new("a", 0);
    assert_eq!(a.candidate.pause(0), Duration::from_secs(2));
    assert!(a.candidate.pause(u32::MAX) > Duration::from_millis(4_390));
    a.turn(&mut Lease::default(), base, base, true);
    assert_eq!(a.candidate.pause(u32::MAX), Duration::from_secs(2));
}

#[test]
fn terms_that_can_not_work_are_refused() {
    let terms = |lease, renew, retry| Terms {
        lease: Duration::from_secs(lease),
        renew: Duration::from_secs(renew),
        retry: Duration::from_secs(retry),
    };
    Terms::default().check().unwrap();
    terms(3, 2, 1).check().unwrap();
    terms(10, 10, 2).check().unwrap_err();
    terms(15, 3, 2).check().unwrap_err();
}

proptest! {
    /// Whatever is delayed, paused, lost or skewed: never two leaders at one instant, and one again soon after the trouble ends.
    #[test]
    fn never_two_leaders_at_once(
        steps in prop::collection::vec((0usize..3, 0u64..4_000, 0u64..12_000, any::<bool>(), any::<bool>()), 1..120),
        skews in prop::array::uniform3(-1_000_000i64..1_000_000),
    ) {
        let base = Instant::now();
        let mut lease = Lease::default();
        let mut all: Vec<Process> = skews.iter().enumerate().map(|(i, s)| Process::new(&format!("p{i}"), *s)).collect();
        // Writes under way: by process, what it read, what it writes and when it began.
        let mut under_way: BTreeMap<usize, (Action, u64, Instant)> = BTreeMap::new();
        let mut now = base;
        for (who, pause, delay, reaches, answered) in steps {
            now += Duration::from_millis(pause);
            if let Some((action, version, begun)) = under_way.remove(&who) {
                // It was on its way for a while.
                now += Duration::from_millis(delay);
                let written = if reaches { lease.write(&action, version) } else { None };
                if let Some(record) = written && answered {
                    all[who].candidate.wrote(record, begun, now);
                }
            } else {
                let clock = all[who].clock(base, now);
                let action = all[who].candidate.read(lease.record.clone(), now, clock);
                under_way.insert(who, (action, lease.version, now));
            }
            let leaders = all.iter().filter(|p| p.candidate.leads(now)).count();
            prop_assert!(leaders <= 1, "{leaders} leaders");
        }
        // The trouble is over.
        for _ in 0..40 {
            now += Duration::from_secs(2);
            for process in &mut all {
                process.turn(&mut lease, base, now, true);
            }
        }
        prop_assert_eq!(all.iter().filter(|p| p.candidate.leads(now)).count(), 1);
    }
}
