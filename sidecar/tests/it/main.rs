//! The sidecar's binary, with a real TPM (swtpm) behind it and a real HTTP/2 gateway before it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that can't go on has failed"
)]

mod activation;
mod agent;
mod client;
mod exec;
mod gateway;
mod init;
mod lifecycle;
mod local_clients;
mod manual;
mod outages;
mod people;
mod pins;
mod poca;
mod refusals;
mod relay;
mod rotation;
mod sockets;
mod token;
mod tpm_trouble;
mod trace;
mod transcripts;
mod tunnels;
mod user;
