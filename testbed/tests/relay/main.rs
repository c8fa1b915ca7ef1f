//! Tool calls through real Envoy, the real service and real Postgres, to real HTTP servers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod answers;
mod audited;
mod bodies;
mod calls;
mod contracts;
mod entry;
mod keys;
mod opa;
mod permissions;
mod places;
mod proofs;
mod reloading;
mod replays;
mod scene;
mod secrets;
mod sidecar;
mod unproven;
