//! A child process with its output in a file, which cannot outlive the tests.
//!
//! Children get `PR_SET_PDEATHSIG` (by setpriv), so even a killed test process takes them along.
//! The kernel ties that signal, and Envoy ties its own, to the *thread* that forked; so one
//! thread that never ends forks them all.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, kill_process, setrlimit};
use tempfile::TempDir;

pub use rustix::process::Signal;

/// How long a process may take to stop or to start listening, and all else that is waited for to
/// come about, before that is a failure: far longer than on a slow and busy machine, and less than
/// the minute after which the service would look for itself.
pub const PATIENCE: Duration = Duration::from_secs(40);

const POLL: Duration = Duration::from_millis(5);

/// How much of a process's log a failed test shows.
const LAST_LINES: usize = 20;

/// A running (or ended) child; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    _folder: TempDir,
}

impl Process {
    /// Starts `command` with no input and with stdout and stderr going to one log file.
    ///
    /// Of the command, the program, arguments, added environment and working folder count.
    pub fn start(name: &str, command: &Command) -> Result<Process> {
        let folder = crate::scratch::folder(name)?;
        let log = folder.path().join("log");
        let output = File::create(&log)?;
        let mut wrapped = Command::new("setpriv");
        wrapped
            .args(["--pdeathsig", "KILL", "--"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C is for the tests; these go down in order, after them.
            .process_group(0);
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            wrapped.current_dir(folder);
        }
        let child = fork(wrapped).with_context(|| format!("start {name}"))?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log,
            _folder: folder,
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All output so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends a signal; to a process that has ended, that is an error.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!("{} has ended: {status}\n{}", self.name, self.log());
        }
        send(self.child.id(), signal)
    }

    /// The exit status if the process has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self, at_most: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + at_most;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} still runs after {at_most:?}\n{}", self.name, self.log());
            }
            thread::sleep(POLL);
        }
    }

    /// SIGTERM, then the exit status; a process that ignores it for [`PATIENCE`] is killed, and
    /// that is an error.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.stop_by(Signal::TERM)
    }

    /// As [`Process::terminate`] with another signal.
    pub fn stop_by(&mut self, signal: Signal) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(signal)?;
        self.wait(PATIENCE).inspect_err(|_| self.kill())
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        // Fails only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops the process in its tracks (SIGSTOP): its sockets stay open, nothing answers.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a paused process go on.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Waits until something accepts TCP connections at `address`; an earlier end of the process
    /// is an error that holds its log.
    pub fn wait_for_port(&mut self, address: SocketAddr) -> Result<()> {
        self.wait_until(&format!("listen on {address}"), || {
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
        })
    }

    /// Waits until the log holds `text`.
    pub fn wait_for_log(&mut self, text: &str) -> Result<()> {
        let log = self.log.clone();
        self.wait_until(&format!("log {text:?}"), || {
            fs::read(&log).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text))
        })
    }

    fn wait_until(&mut self, what: &str, ready: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !ready() {
            if let Some(status) = self.ended()? {
                let signal = status
                    .signal()
                    .map_or(String::new(), |s| format!(" (signal {s})"));
                bail!(
                    "{} ended before it could {what}: {status}{signal}\n{}",
                    self.name,
                    self.log()
                );
            }
            if Instant::now() >= deadline {
                bail!(
                    "{} did not {what} in {PATIENCE:?}\n{}",
                    self.name,
                    self.log()
                );
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Process {
    /// Where a test fails, the end of what this wrote says why.
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let lines = log.lines().rev().take(LAST_LINES);
            let mut lines: Vec<_> = lines
                .map(|line| &line[..line.floor_char_boundary(1000)])
                .collect();
            lines.reverse();
            eprintln!("the end of the log of {}:\n{}", self.name, lines.join("\n"));
        }
    }
}

/// Raises this process's limit of open files, which children inherit, as far as it may be.
pub fn allow_many_open_files() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).context("raise the limit of open files")
}

/// Sends a signal to any process id.
pub(crate) fn send(id: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(id)
        .ok()
        .and_then(Pid::from_raw)
        .context("not a process id")?;
    kill_process(pid, signal).with_context(|| format!("send {signal:?} to {id}"))
}

/// Runs a short command to its end and returns its stdout; anything but success is an error that
/// holds its stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_else(|| OsStr::new("?"));
    let program = program.to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} failed with {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

type Birth = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Forks on the thread that lives as long as the process.
fn fork(command: Command) -> Result<Child> {
    static MIDWIFE: OnceLock<Mutex<mpsc::Sender<Birth>>> = OnceLock::new();
    let midwife = MIDWIFE.get_or_init(|| {
        let (births, waiting) = mpsc::channel::<Birth>();
        thread::spawn(move || {
            for (mut command, born) in waiting {
                let _ = born.send(command.spawn());
            }
        });
        Mutex::new(births)
    });
    let (born, child) = mpsc::channel();
    midwife
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, born))
        .map_err(|_| anyhow!("the forking thread is gone"))?;
    Ok(child.recv()??)
}
