//! The agent's side of the gateway: a key in a TPM, the certificate that carries it, and a local
//! HTTP CONNECT proxy that tunnels to the gateway over mTLS HTTP/2.
//!
//! Nothing is decided here. Which destinations an agent may reach is up to the service behind
//! the gateway; the sidecar proves who asks, and hands the answer on.

#![forbid(unsafe_code)]

pub mod call;
pub mod certificate;
pub mod cli;
pub mod config;
pub mod credential;
pub mod doctor;
pub mod entrance;
pub mod exec;
pub mod failure;
pub mod gateway;
pub mod init;
mod inquiry;
mod open_files;
pub mod output;
pub mod pin;
pub mod prompt;
pub mod proof;
pub mod proxy;
mod rekey;
pub mod request;
pub mod rotate;
pub mod run;
pub mod state;
pub mod status;
pub mod telemetry;
