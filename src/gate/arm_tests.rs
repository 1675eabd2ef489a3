use proptest::prelude::*;

use super::*;
use crate::policy::base_platform;

fn canary(revision: i64, percent: u8, key: u8) -> Canary {
    Canary { package: Some(base_platform()), revision, percent, shadow_percent: percent, key: [key; 32] }
}

/// Sessions as Remit issues them.
fn sessions(seed: u64, n: u64) -> Vec<String> {
    (0..n)
        .map(|i| uuid::Uuid::from_u64_pair(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(i), i).to_string())
        .collect()
}

fn of(canary: &Canary, session: &str) -> Arm {
    arm("uid-1", canary, Unit::Session(session))
}

proptest! {
    /// Stages only ever move a session from stable to candidate, whatever replica answers.
    #[test]
    fn grows_with_the_percentage(id in ".{1,40}", uid in "[a-f0-9-]{1,36}", revision in 1i64..1000, key in any::<[u8; 32]>(), a in 0u8..=100, b in 0u8..=100) {
        let (low, high) = (a.min(b), a.max(b));
        let base = Canary { key, ..canary(revision, low, 0) };
        let later = Canary { percent: high, ..base.clone() };
        for unit in [Unit::Session(&id), Unit::Agent(&id), Unit::Subject { type_: "user", id: &id }] {
            if arm(&uid, &base, unit) == Arm::Canary {
                prop_assert_eq!(arm(&uid, &later, unit), Arm::Canary);
            }
            prop_assert_eq!(arm(&uid, &base, unit), arm(&uid, &base.clone(), unit));
            prop_assert_eq!(arm(&uid, &Canary { percent: 0, ..base.clone() }, unit), Arm::Stable);
            prop_assert_eq!(arm(&uid, &Canary { percent: 100, ..base.clone() }, unit), Arm::Canary);
        }
    }
}

#[test]
fn shares_are_what_the_stage_says() {
    for key in [1u8, 2, 3] {
        let ids = sessions(u64::from(key), 20_000);
        for percent in [1u8, 5, 25, 50, 99] {
            let c = canary(7, percent, key);
            let n = ids.iter().filter(|id| of(&c, id) == Arm::Canary).count();
            let expected = 20_000.0 * f64::from(percent) / 100.0;
            let deviation = (expected * (1.0 - f64::from(percent) / 100.0)).sqrt();
            let off = (n as f64 - expected).abs() / deviation;
            assert!(off < 4.5, "key {key}, {percent} %: {n} of 20000 is {off:.1} standard deviations off");
        }
    }
}

#[test]
fn key_revision_tenant_and_kind_each_share_out_anew() {
    let ids = sessions(9, 4_000);
    let base = canary(7, 50, 1);
    let arms = |c: &Canary, uid: &str| ids.iter().map(|id| arm(uid, c, Unit::Session(id))).collect::<Vec<_>>();
    let first = arms(&base, "uid-1");
    let same = |other: &[Arm]| first.iter().zip(other).filter(|(a, b)| a == b).count();
    for other in [
        arms(&canary(8, 50, 1), "uid-1"),
        arms(&canary(7, 50, 2), "uid-1"),
        arms(&base, "uid-2"),
        ids.iter().map(|id| arm("uid-1", &base, Unit::Agent(id))).collect(),
        ids.iter()
            .map(|id| if shadowed("uid-1", &base, Unit::Session(id)) { Arm::Canary } else { Arm::Stable })
            .collect(),
    ] {
        let same = same(&other);
        assert!((1_800..2_200).contains(&same), "half of them by chance, not {same} of 4000");
    }
}

#[test]
fn only_a_live_session_is_one() {
    let request = CheckRequest {
        subject: crate::gate::EntityRef { type_: "agent".into(), id: "coder".into(), ..Default::default() },
        session: Some("chosen".into()),
        ..Default::default()
    };
    assert_eq!(Unit::of(&request, SessionState::Live), Unit::Session("chosen"));
    assert_eq!(Unit::of(&request, SessionState::Unknown), Unit::Agent("coder"));
    let mut user = request.clone();
    user.subject.type_ = "user".into();
    assert_eq!(Unit::of(&user, SessionState::NotNamed), Unit::Subject { type_: "user", id: "coder" });
}

#[test]
fn parts_of_a_name_do_not_run_into_each_other() {
    let c = canary(1, 50, 4);
    let of = |type_: &str, id: &str| arm("u", &c, Unit::Subject { type_, id });
    let differing = (0..64).filter(|n| of(&format!("a{n}b"), "c") != of(&format!("a{n}"), "bc")).count();
    assert!(differing > 10, "{differing}");
}

#[test]
fn the_key_is_derived() {
    assert_ne!(arms_key(&[1; 32]), [1; 32]);
    assert_ne!(arms_key(&[1; 32]), arms_key(&[2; 32]));
}
