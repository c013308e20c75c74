//! The run directory: made new, or opened again, by one coordinator at a time.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

use super::config::{RUN_VERSION, RunConfig};
use super::stored_path::shell_quoted;
use tally_checkpoint::files::{self, Lock};
use tally_checkpoint::remedy;

/// Why a run directory cannot be used.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// A file operation failed.
    #[error("cannot {what} {}: {source}{}", path.display(), advice(what, source))]
    Io {
        /// The operation: "create", "read", …
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It already holds a run.
    #[error("{} already holds a run; continue it with --resume {}, or choose another --run-dir", .0.display(), shell_quoted(.0))]
    Exists(PathBuf),
    /// It holds no run.
    #[error(
        "{} is no run directory: {}; give the directory that --run-dir named",
        .0.display(), if .0.exists() { "it has no run.json" } else { "there is nothing by that name" }
    )]
    NotARun(PathBuf),
    /// Another process uses it.
    #[error("{} is in use by another coordinator; stop that one first", .0.display())]
    Locked(PathBuf),
    /// `run.json` is not valid.
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

/// The remedy for a directory or a file in it that cannot be made or written.
fn advice(what: &str, source: &io::Error) -> &'static str {
    use io::ErrorKind as K;
    match (what, source.kind()) {
        ("read", _) => "; check its permissions and the disk",
        (_, K::StorageFull | K::QuotaExceeded) => "; make room, or choose a --run-dir on another disk",
        (_, K::PermissionDenied | K::ReadOnlyFilesystem) => {
            "; choose a directory that can be written to with --run-dir, or let this one be written to"
        }
        _ => "; choose another directory with --run-dir, or check the disk",
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    move |source| DirectoryError::Io { what, path: path.into(), source }
}

/// A run directory that this process holds the lock of.
#[derive(Debug)]
pub struct RunDirectory {
    /// Absolute, so that what is recorded of it is valid in every working directory.
    path: PathBuf,
    /// As the user gave it.
    given: PathBuf,
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
        if directory.file("run.json").exists() && directory.has_begun() {
            return Err(DirectoryError::Exists(directory.given));
        }
        let checkpoints = directory.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(failed("create", &checkpoints))?;
        Ok(directory)
    }

    /// Whether there is more here than a configuration. A start that fails, on a full disk for example, leaves only what
    /// the next start may replace.
    fn has_begun(&self) -> bool {
        let journal = fs::metadata(self.file("journal.jsonl")).map_or(0, |journal| journal.len());
        let checkpoints = fs::read_dir(self.checkpoints()).is_ok_and(|mut entries| entries.next().is_some());
        journal > 0 || checkpoints
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

    fn lock(given: PathBuf) -> Result<Self, DirectoryError> {
        let file = given.join("lock");
        let lock = File::create(&file).map_err(failed("create", &file))?;
        match files::lock(&lock) {
            Lock::Held => {}
            Lock::Taken => return Err(DirectoryError::Locked(given)),
            Lock::Unsupported(error) => tracing::warn!(
                "the file system of {} has no locks ({error}), so nothing keeps a second coordinator from this run: start no \
                 other one on it, or choose a --run-dir on another file system",
                given.display()
            ),
        }
        // Only a removed working directory can make this fail.
        let path = std::path::absolute(&given).unwrap_or_else(|_| given.clone());
        Ok(Self { path, given, _lock: lock })
    }

    /// Where it is, as an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path as the user gave it, for messages and commands.
    #[must_use]
    pub fn given(&self) -> &Path {
        &self.given
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
        let path = self.file(name);
        let mut text = serde_json::to_vec_pretty(value).map_err(|e| failed("write", &path)(e.into()))?;
        text.push(b'\n');
        files::write_whole(&path, &text).map_err(failed("write", &path))
    }

    /// Counts this start of the coordinator, durably, and returns the number. `journalled` is the last start in the
    /// journal. The count goes on from there if its own file was lost, since workers refuse a coordinator with a lower
    /// number.
    ///
    /// # Errors
    /// [`DirectoryError::Io`] if it can't be read or written.
    pub fn next_incarnation(&self, journalled: u64) -> Result<u64, DirectoryError> {
        let path = self.file("incarnation.json");
        let before = match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<u64>(&text).unwrap_or_else(|error| {
                tracing::warn!("{} is damaged ({error}); the journal is used instead", path.display());
                journalled
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(failed("read", &path)(e)),
        };
        let next = before.max(journalled) + 1;
        self.write_json("incarnation.json", &next)?;
        Ok(next)
    }
}

/// The configuration of the run in `path`, which is not touched and may be in use.
///
/// # Errors
/// [`DirectoryError`] if it holds no run, or `run.json` is not valid.
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
        drop(first);
        fs::write(path.join("run.json"), "{}").unwrap();
        fs::write(path.join("journal.jsonl"), "{}\n").unwrap();
        assert!(matches!(RunDirectory::create(Some(&path)), Err(DirectoryError::Exists(_))));
        assert!(matches!(RunDirectory::open(&path), Err(DirectoryError::Version { found: 0, .. })));
        fs::write(path.join("run.json"), "{").unwrap();
        assert!(matches!(RunDirectory::open(&path), Err(DirectoryError::Config { .. })));
        assert!(matches!(RunDirectory::open(root.path()), Err(DirectoryError::NotARun(_))));
    }

    /// The same command must work once a full disk has room.
    #[test]
    fn a_start_that_failed_does_not_block_the_next() {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in [("run.json", "{}"), ("journal.jsonl", ""), ("incarnation.json", "1")] {
            drop(RunDirectory::create(Some(root.path())).unwrap());
            fs::write(root.path().join(file), text).unwrap();
        }
        drop(RunDirectory::create(Some(root.path())).unwrap());
        // A checkpoint could be lost, even if the journal is empty.
        fs::create_dir(root.path().join("checkpoints/step-00000001")).unwrap();
        assert!(matches!(RunDirectory::create(Some(root.path())), Err(DirectoryError::Exists(_))));
    }

    #[test]
    fn starts_are_counted_even_if_their_file_was_lost() {
        let root = tempfile::tempdir().unwrap();
        let directory = RunDirectory::create(Some(root.path())).unwrap();
        assert_eq!((directory.next_incarnation(0).unwrap(), directory.next_incarnation(1).unwrap()), (1, 2));
        let file = directory.file("incarnation.json");
        fs::write(&file, "").unwrap();
        assert_eq!(directory.next_incarnation(7).unwrap(), 8);
        fs::remove_file(&file).unwrap();
        assert_eq!(directory.next_incarnation(8).unwrap(), 9);
    }

    #[test]
    fn an_error_names_the_option_that_helps() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("a-file");
        fs::write(&file, "").unwrap();
        let error = RunDirectory::create(Some(&file.join("run"))).unwrap_err().to_string();
        assert!(error.contains("a-file") && error.contains("--run-dir"), "{error}");
        let read_only = DirectoryError::Io {
            what: "create",
            path: "runs".into(),
            source: io::ErrorKind::ReadOnlyFilesystem.into(),
        };
        assert!(read_only.to_string().contains("can be written to with --run-dir"), "{read_only}");
        let nowhere = RunDirectory::open(&root.path().join("nowhere")).unwrap_err().to_string();
        assert!(nowhere.contains("there is nothing by that name"), "{nowhere}");
    }

    #[test]
    fn a_path_in_a_command_is_quoted() {
        let error = DirectoryError::Exists("my runs/a".into()).to_string();
        assert!(error.contains("--resume 'my runs/a'"), "{error}");
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
