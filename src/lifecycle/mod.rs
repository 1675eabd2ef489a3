//! The state machines. Pure: (state, observation, now) -> (state, effects); no client, no clock, no store.

pub mod rollout;
