//! How many files this process may have open: each tunnel takes one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is open besides local connections: connections to the gateway, the TPM, the log and what
/// the runtime needs.
const OTHERS: u64 = 64;

/// Raises the limit as far as it may be, and warns where that isn't enough for `connections`. The
/// usual soft limit (1024) is so low only for programs that use `select`.
pub(crate) fn make_room(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(error) => {
            tracing::warn!(%error, "can't raise the limit of open files");
            limit.current
        }
    };
    let needed = connections as u64 + OTHERS;
    if limit.is_some_and(|limit| limit < needed) {
        tracing::warn!(
            limit,
            needed,
            "too few open files are allowed for --max-tunnels: raise `ulimit -n`"
        );
    }
}
