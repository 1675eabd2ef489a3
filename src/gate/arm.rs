//! Who is answered under which package while a rollout runs: shared out by an HMAC under the installation's key.
//!
//! Pure, and the same on every replica. What a caller can choose never chooses the arm: sessions count by the id that Remit issued,
//! and only while they live. A session that the candidate decides for stays with it in every later stage of the same revision.

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::decision::SessionState;
use super::request::CheckRequest;
use super::snapshot::Canary;

/// What the key of the arms is derived for, so that it is no other key.
const KEY: &[u8] = b"remit arms v1";
/// Separates the share of the arms from that of the shadow.
const ARM: &[u8] = b"arm\0";
const SHADOW: &[u8] = b"shadow\0";
/// Parts that sessions are shared out in: a hundredth of a percent.
const PARTS: u64 = 10_000;

/// Which package decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// The one in force.
    Stable,
    /// The one on its way.
    Canary,
}

impl Arm {
    /// As records and metrics write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Arm::Stable => "stable",
            Arm::Canary => "canary",
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Arm::Stable => Arm::Canary,
            Arm::Canary => Arm::Stable,
        }
    }
}

/// What moves from one package to the other as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit<'a> {
    /// A live session, by the id that Remit issued.
    Session(&'a str),
    /// An agent outside of a session.
    Agent(&'a str),
    /// Anybody else.
    Subject { type_: &'a str, id: &'a str },
}

impl<'a> Unit<'a> {
    /// Of a call. A session that is not the agent's own and live is a claim, and chooses nothing.
    pub fn of(request: &'a CheckRequest, session: SessionState) -> Self {
        let live = request.session.as_deref().filter(|_| session == SessionState::Live);
        match live {
            Some(id) => Unit::Session(id),
            None if request.subject.type_ == "agent" => Unit::Agent(&request.subject.id),
            None => Unit::Subject { type_: &request.subject.type_, id: &request.subject.id },
        }
    }
}

/// The key of the arms, from the installation's key for keyed digests.
pub fn arms_key(redaction: &[u8]) -> [u8; 32] {
    mac(redaction, &[KEY])
}

/// The package that decides for a unit of this tenant.
pub fn arm(tenant_uid: &str, canary: &Canary, unit: Unit<'_>) -> Arm {
    if within(ARM, tenant_uid, canary, unit, canary.percent) { Arm::Canary } else { Arm::Stable }
}

/// Whether the unit's calls are evaluated under the other package too.
pub fn shadowed(tenant_uid: &str, canary: &Canary, unit: Unit<'_>) -> bool {
    within(SHADOW, tenant_uid, canary, unit, canary.shadow_percent)
}

fn within(what: &[u8], tenant_uid: &str, canary: &Canary, unit: Unit<'_>, percent: u8) -> bool {
    if percent == 0 || percent >= 100 {
        return percent != 0;
    }
    let (kind, first, second) = match unit {
        Unit::Session(id) => (b"s", id, ""),
        Unit::Agent(name) => (b"a", name, ""),
        Unit::Subject { type_, id } => (b"o", type_, id),
    };
    let length = |part: &str| u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes();
    let digest = mac(
        &canary.key,
        &[
            what,
            &length(tenant_uid),
            tenant_uid.as_bytes(),
            &canary.revision.to_be_bytes(),
            kind,
            &length(first),
            first.as_bytes(),
            second.as_bytes(),
        ],
    );
    let mut eight = [0; 8];
    eight.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(eight) % PARTS < u64::from(percent) * (PARTS / 100)
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes keys of any length; were it otherwise, everybody would be in the same part, not in none.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0xff; 32] };
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
#[path = "arm_tests.rs"]
mod tests;
