//! The folder in which a sidecar keeps what it must find again: the certificate, where the private
//! key is, and, while it runs, where it listens.
//!
//! `sidecar.json` is the state; it is replaced as a whole, so that certificate and key always belong
//! together. What else is there of it (certificate, public key) is written for others to read.
//!
//! The private key is in the TPM, but whoever can write here can lead the agent's requests elsewhere,
//! and whoever can read the URL of the running proxy can send some: it belongs to its owner alone.

mod record;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

pub use self::record::{Next, Retired, State};
use crate::entrance::Entrance;

/// Largest file that is read back, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// How often a lock is tried, and how long until the next time.
const LOCK_ATTEMPTS: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The same while another command changes the state, and may have to wait for the TPM.
const CHANGE_ATTEMPTS: u32 = 500;

/// Why the state can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file or the folder can't be read.
    #[error("can't read {path}: {source}")]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file or the folder can't be written.
    #[error("can't write {path}: {source}")]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Others may write to the folder, or it is another user's.
    #[error("{path} can be changed by other users")]
    Exposed {
        /// The folder.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Another command changes it.
    #[error("another command is changing {path}")]
    Changing {
        /// The folder.
        path: PathBuf,
    },
    /// Another process runs this sidecar.
    #[error("a sidecar already runs for {path}")]
    Running {
        /// The folder.
        path: PathBuf,
    },
}

/// An agent's state folder.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The folder at `path`, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        // Written into messages and into what other programs are told to read.
        Self(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The certificate, PEM.
    pub fn certificate_path(&self) -> PathBuf {
        self.0.join("machine-client.pem")
    }

    /// The public key for the principal: hex of the DER `SubjectPublicKeyInfo`.
    pub fn spki_path(&self) -> PathBuf {
        self.0.join("spki.hex")
    }

    fn record_path(&self) -> PathBuf {
        self.0.join("sidecar.json")
    }

    fn next_path(&self) -> PathBuf {
        self.0.join("next.json")
    }

    /// The URL of the running proxy, with its token.
    pub fn url_path(&self) -> PathBuf {
        self.0.join("proxy.url")
    }

    fn lock_path(&self) -> PathBuf {
        self.0.join("run.lock")
    }

    /// Makes the folder for its owner alone, if it isn't there.
    pub fn create(&self) -> Result<(), StateError> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0);
        made.map_err(|source| Self::write_error(&self.0, source))
    }

    /// Reads the state; `None` if `init` never ran to its end here.
    pub fn load(&self) -> Result<Option<State>, StateError> {
        self.check_owner()?;
        let path = self.record_path();
        let Some(text) = read(&path)? else {
            return Ok(None);
        };
        match State::from_text(&text) {
            Ok(state) => Ok(Some(state)),
            Err(what) => Err(StateError::Damaged { path, what }),
        }
    }

    /// Writes the state, at once or not at all, and then what others read of it.
    pub fn save(&self, state: &State) -> Result<(), StateError> {
        self.replace(&self.record_path(), &state.to_text())?;
        self.export(state)
    }

    /// Writes certificate and public key, where they aren't there yet.
    pub fn export(&self, state: &State) -> Result<(), StateError> {
        let spki = format!("{}\n", state.leaf.spki.to_hex());
        for (path, text) in [
            (self.certificate_path(), &state.certificate_pem),
            (self.spki_path(), &spki),
        ] {
            if read(&path)?.as_ref() != Some(text) {
                self.replace(&path, text)?;
            }
        }
        Ok(())
    }

    /// The key that is to replace this one, if a rotation has begun.
    pub fn next(&self) -> Result<Option<Next>, StateError> {
        let path = self.next_path();
        let Some(text) = read(&path)? else {
            return Ok(None);
        };
        match Next::from_text(&text) {
            Ok(next) => Ok(Some(next)),
            Err(what) => Err(StateError::Damaged { path, what }),
        }
    }

    /// Writes down which key is to be the next one.
    pub fn save_next(&self, next: &Next) -> Result<(), StateError> {
        self.replace(&self.next_path(), &next.to_text())
    }

    /// Forgets it.
    pub fn remove_next(&self) -> Result<(), StateError> {
        let path = self.next_path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Self::write_error(&path, error))
            }
            _ => Ok(()),
        }
    }

    /// Takes the right to change the state, for which others wait a moment at most.
    pub fn lock_changes(&self) -> Result<File, StateError> {
        let path = &self.0;
        let failed = |source| StateError::Read {
            path: path.clone(),
            source,
        };
        let folder = File::open(path).map_err(failed)?;
        for _ in 0..CHANGE_ATTEMPTS {
            match folder.try_lock() {
                Ok(()) => return Ok(folder),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
        Err(StateError::Changing { path: path.clone() })
    }

    /// Takes the right to run this sidecar, which one process at a time has.
    pub fn lock(&self) -> Result<RunLock, StateError> {
        let path = self.lock_path();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|source| Self::write_error(&path, source))?;
        // `running` holds the lock for the moment in which it looks.
        for _ in 0..LOCK_ATTEMPTS {
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Ok(RunLock {
                    _file: file,
                    url: self.url_path(),
                });
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        Err(StateError::Running {
            path: self.0.clone(),
        })
    }

    /// Writes down how the sidecar that holds `lock` is reached.
    pub fn announce(&self, _lock: &RunLock, entrance: &Entrance) -> Result<(), StateError> {
        self.replace(&self.url_path(), &format!("{}\n", entrance.url()))
    }

    /// How the sidecar of this state is reached, if one runs.
    pub fn running(&self) -> Result<Option<Entrance>, StateError> {
        self.check_owner()?;
        // The file alone proves nothing: a killed sidecar leaves it behind, and its port may be
        // somebody else's by now.
        let path = self.lock_path();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Read { path, source }),
        };
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return Ok(None);
        }
        let path = self.url_path();
        let Some(text) = read(&path)? else {
            return Ok(None);
        };
        match text.trim_end().parse() {
            Ok(entrance) => Ok(Some(entrance)),
            Err(_) => Err(StateError::Damaged {
                path,
                what: "not a proxy's URL".to_owned(),
            }),
        }
    }

    fn check_owner(&self) -> Result<(), StateError> {
        let path = self.0.clone();
        let folder = match fs::metadata(&path) {
            Ok(folder) => folder,
            Err(source) => return Err(StateError::Read { path, source }),
        };
        if folder.uid() != rustix::process::geteuid().as_raw() || folder.mode() & 0o022 != 0 {
            return Err(StateError::Exposed { path });
        }
        Ok(())
    }

    /// Whoever reads the file sees the old text or the new one, also after a crash.
    fn replace(&self, path: &Path, text: &str) -> Result<(), StateError> {
        let temporary = path.with_added_extension(format!("{}.tmp", std::process::id()));
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            File::open(&self.0)?.sync_all()
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&temporary);
            Self::write_error(path, source)
        })
    }

    fn write_error(path: &Path, source: std::io::Error) -> StateError {
        StateError::Write {
            path: path.to_owned(),
            source,
        }
    }
}

/// The right to run a sidecar for a state folder; dropping it takes the announced URL away.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
    url: PathBuf,
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // May never have been announced.
        let _ = fs::remove_file(&self.url);
    }
}

/// `None` if there is no such file.
fn read(path: &Path) -> Result<Option<String>, StateError> {
    let mut text = String::new();
    let done =
        File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text));
    match done {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}
