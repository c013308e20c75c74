//! The run directory: made new, or opened again, by one coordinator at a time.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::Serialize;
use thiserror::Error;

use tally_checkpoint::remedy;

use super::config::{RUN_VERSION, RunConfig};

/// Why a run directory cannot be used.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// A file operation failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried: "create", "read", …
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It already holds a run.
    #[error("{} already holds a run; continue it with --resume {}, or choose another --run-dir", .0.display(), .0.display())]
    Exists(PathBuf),
    /// It holds no run.
    #[error("{} is no run directory: it has no run.json; give the directory that --run-dir named", .0.display())]
    NotARun(PathBuf),
    /// Another process uses it.
    #[error("{} is in use by another coordinator; stop that one first", .0.display())]
    Locked(PathBuf),
    /// `run.json` does not say what it must.
    #[error("{} is damaged: {source}; restore it from a backup, or start a new run with --init from a checkpoint", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A layout this version can't read.
    #[error(
        "{} was written by Tally {tally} (layout {found}), and this one ({}) reads layout {RUN_VERSION}: {}",
        path.display(), env!("CARGO_PKG_VERSION"), remedy(*found, RUN_VERSION)
    )]
    Version {
        /// The directory.
        path: PathBuf,
        /// Its layout; 0 if it does not say.
        found: u64,
        /// The Tally that wrote it.
        tally: String,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    move |source| DirectoryError::Io { what, path: path.into(), source }
}

/// A run directory that this process holds the lock of.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    /// Keeps the lock until it is dropped or the process ends, however it ends.
    _lock: File,
}

impl RunDirectory {
    /// Makes a new one: at `path`, or as the next free `run-NNNN` under `runs/`.
    ///
    /// # Errors
    /// [`DirectoryError`] if it can't be made or already holds a run.
    pub fn create(path: Option<&Path>) -> Result<Self, DirectoryError> {
        let path = match path {
            Some(path) => {
                fs::create_dir_all(path).map_err(failed("create", path))?;
                path.to_path_buf()
            }
            None => next_under(Path::new("runs"))?,
        };
        let directory = Self::lock(path)?;
        if directory.file("run.json").exists() {
            return Err(DirectoryError::Exists(directory.path));
        }
        let checkpoints = directory.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(failed("create", &checkpoints))?;
        Ok(directory)
    }

    /// Opens one that holds a run, and reads its configuration.
    ///
    /// # Errors
    /// [`DirectoryError`] if it holds none, is in use, or is damaged.
    pub fn open(path: &Path) -> Result<(Self, RunConfig), DirectoryError> {
        // A directory without a run gets no lock file.
        if !path.join("run.json").exists() {
            return Err(DirectoryError::NotARun(path.into()));
        }
        let directory = Self::lock(path.into())?;
        Ok((directory, config(path)?))
    }

    fn lock(path: PathBuf) -> Result<Self, DirectoryError> {
        let file = path.join("lock");
        let lock = File::create(&file).map_err(failed("create", &file))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(DirectoryError::Locked(path)),
            Err(errno) => Err(failed("lock", &file)(errno.into())),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where its checkpoints are.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.file("checkpoints")
    }

    /// Writes a JSON file whole or not at all, durably.
    ///
    /// # Errors
    /// [`DirectoryError::Io`]; what was there before is intact then.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), DirectoryError> {
        let (path, temporary) = (self.file(name), self.file(&format!(".{name}.tmp")));
        let mut text = serde_json::to_vec_pretty(value).map_err(|e| failed("write", &path)(e.into()))?;
        text.push(b'\n');
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&temporary);
            failed("write", &path)(source)
        })
    }

    /// Counts this start of the coordinator, durably, and returns the number.
    ///
    /// # Errors
    /// [`DirectoryError::Io`] if it can't be read or written.
    pub fn next_incarnation(&self) -> Result<u64, DirectoryError> {
        let path = self.file("incarnation.json");
        let before = match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<u64>(&text)
                .map_err(|source| DirectoryError::Config { path: path.clone(), source })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(failed("read", &path)(e)),
        };
        self.write_json("incarnation.json", &(before + 1))?;
        Ok(before + 1)
    }
}

/// The configuration of the run in `path`, which is not touched and may be in use.
///
/// # Errors
/// [`DirectoryError`] if it holds no run, or `run.json` does not say what it must.
pub fn config(path: &Path) -> Result<RunConfig, DirectoryError> {
    let file = path.join("run.json");
    let text = fs::read(&file).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => DirectoryError::NotARun(path.into()),
        _ => failed("read", &file)(error),
    })?;
    parse_config(path, &text)
}

/// The configuration that the text of `run.json` in `path` holds.
///
/// # Errors
/// [`DirectoryError::Config`] or [`DirectoryError::Version`].
pub fn parse_config(path: &Path, text: &[u8]) -> Result<RunConfig, DirectoryError> {
    let damaged = |source| DirectoryError::Config { path: path.join("run.json"), source };
    let value: serde_json::Value = serde_json::from_slice(text).map_err(damaged)?;
    let found = value.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if found != u64::from(RUN_VERSION) {
        let tally = value.get("tally").and_then(serde_json::Value::as_str).unwrap_or("of no version");
        return Err(DirectoryError::Version { path: path.into(), found, tally: tally.into() });
    }
    serde_json::from_value(value).map_err(damaged)
}

/// The next free `run-NNNN`, made at once so that nobody else takes it.
fn next_under(root: &Path) -> Result<PathBuf, DirectoryError> {
    fs::create_dir_all(root).map_err(failed("create", root))?;
    let names = fs::read_dir(root).map_err(failed("read", root))?.flatten();
    let numbers = names.filter_map(|e| e.file_name().to_str()?.strip_prefix("run-")?.parse::<u32>().ok());
    let mut number = numbers.max().unwrap_or(0) + 1;
    loop {
        let path = root.join(format!("run-{number:04}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(e) => return Err(failed("create", &path)(e)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn two_coordinators_cannot_have_one_directory() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a");
        let first = RunDirectory::create(Some(&path)).unwrap();
        assert!(matches!(RunDirectory::create(Some(&path)), Err(DirectoryError::Locked(_))));
        assert_eq!((first.next_incarnation().unwrap(), first.next_incarnation().unwrap()), (1, 2));
        drop(first);
        fs::write(path.join("run.json"), "{}").unwrap();
        assert!(matches!(RunDirectory::create(Some(&path)), Err(DirectoryError::Exists(_))));
        assert!(matches!(RunDirectory::open(&path), Err(DirectoryError::Version { found: 0, .. })));
        fs::write(path.join("run.json"), "{").unwrap();
        assert!(matches!(RunDirectory::open(&path), Err(DirectoryError::Config { .. })));
        assert!(matches!(RunDirectory::open(root.path()), Err(DirectoryError::NotARun(_))));
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_the_old_one() {
        let root = tempfile::tempdir().unwrap();
        let directory = RunDirectory::create(Some(root.path())).unwrap();
        directory.write_json("a.json", &1).unwrap();
        // A directory where the temporary file would be: creating it fails, even for root.
        fs::create_dir(root.path().join(".a.json.tmp")).unwrap();
        assert!(directory.write_json("a.json", &2).is_err());
        assert_eq!(fs::read_to_string(root.path().join("a.json")).unwrap(), "1\n");
    }

    #[test]
    fn another_layout_is_refused_with_what_to_do() {
        let read = |text: &str| parse_config(Path::new("a-run"), text.as_bytes()).unwrap_err().to_string();
        let newer = read(r#"{"version": 2, "tally": "9.9.9", "all": "else is different"}"#);
        for words in ["a-run", "Tally 9.9.9", "layout 2", "upgrade this Tally"] {
            assert!(newer.contains(words), "{newer}");
        }
        let older = read(r#"{"version": 0, "tally": "0.0.1"}"#);
        assert!(older.contains("Tally 0.0.1") && older.contains("use the Tally that wrote it"), "{older}");
    }
}
