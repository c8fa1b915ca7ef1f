//! One open connection to a database, for those who must know when a statement was carried out.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::postgres::Database;

/// What psql says when it has carried out all that came before.
const DONE: &str = "-- done --";

/// A session as the database's owner; it ends when dropped.
#[derive(Debug)]
pub struct Session {
    psql: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    /// Connects.
    pub fn open(database: &Database) -> Result<Session> {
        let mut psql = database
            .psql()?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start psql")?;
        let input = psql.stdin.take().context("stdin of psql")?;
        let output = BufReader::new(psql.stdout.take().context("stdout of psql")?);
        let mut session = Session {
            psql,
            input,
            output,
        };
        session.run("SELECT")?;
        Ok(session)
    }

    /// Runs statements, and returns when the server has answered; a failure ends the session, and
    /// shows on stderr.
    pub fn run(&mut self, sql: &str) -> Result<()> {
        writeln!(self.input, "{sql};\n\\echo {DONE}").context("psql has ended")?;
        let mut line = String::new();
        while line.trim_end() != DONE {
            line.clear();
            if self.output.read_line(&mut line)? == 0 {
                bail!("psql has ended");
            }
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}
