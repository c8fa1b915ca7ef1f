//! The operator's files: read whole, of a bounded size, and told apart when they change.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Largest file, in bytes.
const MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Deepest folder that is looked into.
const MAX_DEPTH: usize = 8;

/// A file or folder that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{} can't be read: {source}", path.display())]
pub struct FileError {
    /// Which.
    path: PathBuf,
    /// What happened.
    source: io::Error,
}

impl FileError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self { path, source }
    }
}

/// A file's text.
pub(super) fn read(path: &Path) -> Result<String, FileError> {
    let read = || {
        let mut text = String::new();
        let mut file = File::open(path)?.take(MAX_BYTES + 1);
        file.read_to_string(&mut text)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it is over 4 MiB",
            ));
        }
        Ok(text)
    };
    read().map_err(FileError::at(path))
}

/// The files of that extension in a folder and those below it, in order; at most `most`.
pub(super) fn with_extension(
    folder: &Path,
    extension: &str,
    most: usize,
) -> Result<Vec<PathBuf>, FileError> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(FileError::at(&folder))? {
            let path = entry.map_err(FileError::at(&folder))?.path();
            // A Kubernetes ConfigMap shows each file as a link, and its versions in folders whose
            // names begin with dots.
            let hidden =
                (path.file_name()).is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if hidden {
                continue;
            }
            if path.is_dir() && depth < MAX_DEPTH {
                folders.push((path, depth + 1));
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
            if found.len() > most || folders.len() > most {
                let many = io::Error::other(format!("there are more than {most}"));
                return Err(FileError::at(&folder)(many));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What tells one state of files and folders from another: names, sizes, times and inodes of all
/// in them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Fingerprint(Vec<(PathBuf, Option<Mark>)>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    /// Looks at `paths`; folders are looked into as deep as [`with_extension`] does.
    pub(super) fn of<'a>(paths: impl IntoIterator<Item = &'a Path>, most: usize) -> Self {
        let mut marks = Vec::new();
        for path in paths {
            look(path, 0, most, &mut marks);
        }
        marks.sort_by(|one, other| one.0.cmp(&other.0));
        Self(marks)
    }
}

fn look(path: &Path, depth: usize, most: usize, marks: &mut Vec<(PathBuf, Option<Mark>)>) {
    let metadata = fs::metadata(path).ok();
    let is_folder = metadata.as_ref().is_some_and(Metadata::is_dir);
    marks.push((path.to_owned(), metadata.as_ref().map(Mark::of)));
    if !is_folder || depth > MAX_DEPTH {
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if marks.len() > most {
            return;
        }
        look(&entry.path(), depth + 1, most, marks);
    }
}

impl Mark {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}
