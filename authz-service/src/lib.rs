//! The decision point: answers Envoy's `ext_authz` from the signed registry.
//!
//! A library only so that its parts can be tested; `agent-gateway-authz` is what runs.

#![forbid(unsafe_code)]

pub mod addresses;
pub mod admin;
pub mod audit;
pub mod cache;
pub mod check;
pub mod cli;
pub mod config;
pub mod connections;
pub mod decision_point;
pub mod follow;
pub mod freshness;
mod loads;
pub mod metrics;
pub mod relay;
pub mod resolver;
pub mod serve;
pub mod telemetry;
mod timed;
pub mod tunnels;
