//! `audit`

use std::path::PathBuf;

use audit::Head;
use clap::{Args, Subcommand};

/// `audit`
#[derive(Debug, Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub command: AuditCommand,
}

/// What is done with audit files.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Name the first record that was edited, removed, inserted, swapped or repeated
    #[command(after_help = "\
What a chain alone can't prove: that its end was not cut off, or all of it written anew. Keep what
`audit head` prints where the gateway can't write, and give it as --head.

Example:
  agent-gateway-registry audit verify audit-0000000000000001.jsonl audit.jsonl")]
    Verify(AuditVerifyArgs),
    /// Print number and hash of a file's last record, to be kept elsewhere
    #[command(after_help = "\
Example:
  agent-gateway-registry audit head audit.jsonl")]
    Head(AuditHeadArgs),
}

/// `audit verify`
#[derive(Debug, Args)]
pub struct AuditVerifyArgs {
    /// The files, the oldest first
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// A record that must be among them, as `audit head` printed it
    #[arg(long, value_name = "SEQ:HASH")]
    pub head: Option<Head>,
    /// The record before the first one, where older files were moved away
    #[arg(long, value_name = "SEQ:HASH")]
    pub after: Option<Head>,
}

/// `audit head`
#[derive(Debug, Args)]
pub struct AuditHeadArgs {
    /// The file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}
