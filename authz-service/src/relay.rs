//! Tool calls: one Check with the whole body for each `POST /relay`.

pub mod nonces;
