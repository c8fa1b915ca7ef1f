//! The signed registry in Postgres: rows, queries and migrations.
//!
//! The only crate that speaks SQL. It turns rows into the domain types of `permission` and
//! decides nothing: what a row is worth is `permission::decide`'s to say.

#![forbid(unsafe_code)]

mod connection;
mod connections;
mod feed;
mod health;
mod import;
mod inspect;
mod listing;
mod lookup;
mod nonces;
mod poca;
mod poca_rows;
mod revocation;
mod rotation;
mod schema;
mod server;
mod vouching;
mod writer;

pub use connection::{OpenError, Options, Reader};
pub use feed::{Batch, Change, Feed, Progress, Read, Wakeups, Why};
pub use health::{Ending, Rights};
pub use import::{Added, Import, SignedRow};
pub use inspect::Stored;
pub use listing::{Filter, KeyEntry, PermissionEntry, ScopeEntry};
pub use lookup::LookupError;
pub use nonces::NonceTable;
pub use poca_rows::{PocaKeyEntry, StoredPocaKey};
pub use revocation::{Revocation, Revoked};
pub use rotation::Rotation;
pub use schema::{MigrateError, SCHEMA_VERSION, SchemaError, migrate};
pub use vouching::{Stated, StatementRow};
pub use writer::{OnExisting, WriteError, Writer};
