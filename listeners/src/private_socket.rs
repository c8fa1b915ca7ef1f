//! A Unix socket in a folder that nobody else can change, so that whoever connects there meets its
//! owner, and nobody in between.

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::geteuid;
use serde::Deserialize;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::time::{Instant, sleep};

use crate::Inherited;

/// Who may connect, as far as the file system decides; by its mode in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Access {
    /// The owner alone, and root.
    #[serde(rename = "0600")]
    Owner,
    /// And the group of the process.
    #[serde(rename = "0660")]
    Group,
    /// Everybody who reaches it; whoever accepts looks at the peer's credentials.
    #[serde(skip)]
    Everybody,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Group => 0o660,
            Self::Everybody => 0o666,
        }
    }
}

/// Writable by the group or by others: they could put another socket in its place.
const WRITABLE_BY_OTHERS: u32 = 0o022;
const BACKLOG: u32 = 128;
/// How long another process that is just starting in the same folder is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Others could put their own socket there.
    #[error("folder {} belongs to another user, or others may write to it", .0.display())]
    UnsafeFolder(PathBuf),
    /// A file that is no socket.
    #[error("{} is there, and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// More may connect to it than should.
    #[error("the socket at {} has mode {mode:04o}, which lets other users connect", path.display())]
    Exposed {
        /// The socket.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A live process has it.
    #[error("another process listens at {}", .0.display())]
    InUse(PathBuf),
    /// The operating system refuses.
    #[error("{} can't be listened on: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// The listening socket; its file is removed when this is dropped, unless it was handed over.
#[derive(Debug)]
pub struct PrivateSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Which file is ours: device and inode.
    file: Option<(u64, u64)>,
}

impl PrivateSocket {
    /// The socket at `path` that was handed over, or else a new one.
    pub async fn open(
        path: &Path,
        access: Access,
        inherited: &mut Inherited,
    ) -> Result<Self, SocketError> {
        match inherited.unix(path) {
            Some(listener) => Self::adopt(listener, path, access),
            None => Self::bind(path, access).await,
        }
    }

    fn adopt(
        listener: std::os::unix::net::UnixListener,
        path: &Path,
        access: Access,
    ) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        let mode = fs::symlink_metadata(path).map_err(failed)?.mode() & 0o777;
        if mode & !access.mode() != 0 {
            let path = path.to_owned();
            return Err(SocketError::Exposed { path, mode });
        }
        Ok(Self {
            listener: UnixListener::from_std(listener).map_err(failed)?,
            path: path.to_owned(),
            file: None,
        })
    }

    /// Listens at `path`. A socket that a dead process left there is replaced, a live one is not.
    async fn bind(path: &Path, access: Access) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        let found = fs::metadata(folder).map_err(failed)?;
        let trusted = [0, geteuid().as_raw()].contains(&found.uid());
        if !trusted || found.mode() & WRITABLE_BY_OTHERS != 0 {
            return Err(SocketError::UnsafeFolder(folder.to_owned()));
        }
        // Between looking and listening no other process of ours may do the same.
        let _locked = lock(folder, path).await?;
        remove_stale(path).await?;
        let socket = UnixSocket::new_stream().map_err(failed)?;
        socket.bind(path).map_err(failed)?;
        // Before it listens: until then nobody can connect, whatever the umask says.
        fs::set_permissions(path, Permissions::from_mode(access.mode())).map_err(failed)?;
        let listener = socket.listen(BACKLOG).map_err(failed)?;
        let file = identity(path).map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: Some(file),
        })
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        // It still listens, so nobody has replaced it as stale.
        if self.file.is_some() && identity(&self.path).ok() == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Locks the folder, until what this returns is dropped.
async fn lock(folder: &Path, path: &Path) -> Result<File, SocketError> {
    let failed = |source| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(folder).map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                sleep(Duration::from_millis(10)).await;
            }
            Err(TryLockError::WouldBlock) => return Err(SocketError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}

async fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        // Nobody listens any more.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        // Somebody does, even if it takes no connection now.
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}
