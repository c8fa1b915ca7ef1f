//! The testbed's parts, and the gateway's Envoy configuration, run for real.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failed step is a failed test"
)]

mod decider;
mod dial;
mod dns;
mod early_data;
mod entry;
mod half_close;
mod holder;
mod outage;
mod postgres;
mod process;
mod swtpm;
mod wire;
