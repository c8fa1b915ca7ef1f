//! The registry's binary, with real Postgres and a real TPM (swtpm) behind it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that can't go on has failed"
)]

mod asking;
mod audit;
mod elsewhere;
mod granting;
mod interrupted;
mod keys;
mod listing;
mod measured;
mod office;
mod outages;
mod pins;
mod poca_keys;
mod poca_rows;
mod refusals;
mod revoking;
mod roots;
mod subjects;
mod tending;
mod tpm_trouble;
mod transcripts;
mod user;
