//! The state machines. Pure: (state, observation, now) in, (state, effects) out; no clock, no client, no store.

pub mod drift;
pub mod election;
pub mod evidence;
pub mod rollout;
pub mod session;
