//! The demo's services, as the demo starts them: with the certificates that its script makes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that can't go on should say so and stop"
)]

mod certificates;
mod client;
mod service;
mod startup;
