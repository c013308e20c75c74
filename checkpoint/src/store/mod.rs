//! The directories: writing one whole, reading one verified, keeping a few (**CKPT-1**).
//!
//! Everything unfinished has a hidden name, `.tmp-…` or `.old-…`. Such a name never counts as a checkpoint, and
//! [`clean`] removes it or puts it back.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use tally_numerics::manifest::Manifest;
use tally_numerics::state::State;

use crate::error::CheckpointError;
use crate::files::{self, TEMPORARY, Temporary, remove};
use crate::meta::{BadSeal, Files, MAX_MANIFEST, Meta, VERSION, seal, unseal};
use crate::tensors::{self, Fault};
use crate::{MANIFEST, MODEL, MOMENTS};

/// The links that a root may have: to the best checkpoint so far and to the newest.
pub const LINKS: [&str; 2] = ["best", "last"];

const STEP: &str = "step-";
/// The checkpoint that another of the same step is about to replace.
const ASIDE: &str = ".old-";

/// A checkpoint that was read, and verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Its description.
    pub meta: Meta,
    /// Parameters and moments, in the order of `meta.tensors`.
    pub state: State,
}

/// What [`newest_whole`] found.
#[derive(Debug, Default)]
pub struct Newest {
    /// The newest checkpoint that is whole, if one is.
    pub checkpoint: Option<Checkpoint>,
    /// The newer ones that could not be used, newest first, and why. The errors name them.
    pub skipped: Vec<(u64, CheckpointError)>,
}

/// Where the checkpoint of a step is, or would be.
#[must_use]
pub fn directory(root: &Path, step: u64) -> PathBuf {
    root.join(name_of(step))
}

fn name_of(step: u64) -> String {
    format!("{STEP}{step:08}")
}

/// The step of a checkpoint's directory, if that is what `name` is.
fn step_of(name: &OsStr) -> Option<u64> {
    let name = name.to_str()?;
    let step = name.strip_prefix(STEP)?.parse().ok()?;
    // There is one name for a step: no sign, no shorter or longer padding.
    (name_of(step) == name).then_some(step)
}

/// Writes the checkpoint of `meta.step` and returns its directory. After it has returned, the checkpoint survives a
/// power loss. An existing checkpoint of the same step, from before a crash, is replaced; it is whole until then.
///
/// `root` is made if it is not there. The state is in the order of `meta.tensors`.
///
/// # Errors
/// [`CheckpointError::Refused`] if the vectors and `meta` do not belong together;
/// [`CheckpointError::Io`] if the disk is full or refuses. Either way, what was there is
/// still there, and nothing else is; only if the very last `fsync` is refused, the new
/// checkpoint is there as well, whole, but may not survive a power loss.
pub fn write(root: &Path, meta: &Meta, state: &State) -> Result<PathBuf, CheckpointError> {
    check(meta, state).map_err(|why| CheckpointError::Refused { step: meta.step, why })?;
    make_root(root)?;
    // From here on, whatever happens, the temporary name is removed: by its destructor,
    // or by `clean` after a crash.
    let temporary = Temporary::new(root, &name_of(meta.step));
    fs::create_dir(&temporary.0).map_err(CheckpointError::io("make the directory", &temporary.0))?;
    fill(&temporary.0, meta, state)?;
    let target = directory(root, meta.step);
    publish(&temporary.0, &target, exchange)?;
    Ok(target)
}

/// Checks that a checkpoint of these could be read again.
fn check(meta: &Meta, state: &State) -> Result<(), String> {
    if meta.version != VERSION {
        return Err(format!("its version is {}, not {VERSION}", meta.version));
    }
    if !state.fits(&meta.tensors) || state.moments.len() != meta.moments.len() {
        let lengths: Vec<usize> = state.vectors().map(<[f32]>::len).collect();
        let (all, trained) = (meta.tensors.len(), meta.tensors.trained_len());
        let named = meta.moments.len();
        return Err(format!("vectors of {lengths:?} for {all} elements and {named} moments of {trained}"));
    }
    let digest = state.digest();
    if digest != meta.digest {
        return Err(format!("the digest of its tensors is {digest}, not {}", meta.digest));
    }
    let sha256 = meta.tensors.sha256(&state.parameters);
    if sha256 != meta.parameters_sha256 {
        return Err(format!("the SHA-256 of its parameters is {sha256}, not {}", meta.parameters_sha256));
    }
    Ok(())
}

fn make_root(root: &Path) -> Result<(), CheckpointError> {
    if root.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(root).map_err(CheckpointError::io("make the directory", root))?;
    sync_directory(files::parent(root))
}

/// Writes the files of a checkpoint into a directory, and syncs them and the directory to the disk.
fn fill(into: &Path, meta: &Meta, state: &State) -> Result<(), CheckpointError> {
    let mut files = Files::new();
    let trained = meta.tensors.without_constants();
    let moments = MOMENTS.iter().zip(&state.moments).map(|(name, values)| (name, &trained, values));
    for (name, tensors, values) in std::iter::once((&MODEL, &meta.tensors, &state.parameters)).chain(moments)
    {
        let entry = write_file(&into.join(name), |file| tensors::write(file, tensors, values))?;
        files.insert((*name).to_owned(), entry);
    }
    write_file(&into.join(MANIFEST), |file| file.write_all(&seal(meta, &files)?))?;
    sync_directory(into)
}

/// Writes a file with `content` and syncs it to the disk.
fn write_file<T>(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>,
) -> Result<T, CheckpointError> {
    let write = || {
        let mut file = BufWriter::new(File::create(path)?);
        let result = content(&mut file)?;
        files::sync(&file.into_inner().map_err(io::IntoInnerError::into_error)?)?;
        Ok(result)
    };
    write().map_err(CheckpointError::io("write", path))
}

/// Syncs a directory's entries to the disk.
fn sync_directory(path: &Path) -> Result<(), CheckpointError> {
    files::sync_directory(path).map_err(CheckpointError::io("have on the disk", path))
}

/// Moves a filled directory to the place of its checkpoint, and syncs that to the disk. An existing checkpoint is
/// replaced in one step if the system can exchange two names, otherwise in two steps; after a crash between these
/// [`clean`] puts the old one back.
fn publish(
    temporary: &Path,
    target: &Path,
    exchange: impl Fn(&Path, &Path) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    let occupied = target.symlink_metadata().is_ok();
    if occupied && exchange(temporary, target).is_ok() {
        // The old one has the temporary name now, and goes with it once this is kept.
        return sync_directory(files::parent(target));
    }
    let aside = if occupied { Some(set_aside(target)?) } else { None };
    if let Err(error) = fs::rename(temporary, target) {
        if let Some(aside) = &aside {
            // Back to what was; if that fails too, `clean` does it.
            let _ = fs::rename(aside, target);
        }
        return Err(CheckpointError::io("rename into place", target)(error));
    }
    sync_directory(files::parent(target))?;
    if let Some(aside) = aside {
        remove(&aside);
    }
    Ok(())
}

/// Exchanges two names in one step. What was at `target` is then the temporary one.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "macos"))]
fn exchange(temporary: &Path, target: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, temporary, CWD, target, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "macos")))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Gives a checkpoint the hidden name under which [`clean`] finds it after a crash.
fn set_aside(target: &Path) -> Result<PathBuf, CheckpointError> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let aside = files::parent(target).join(format!("{ASIDE}{name}"));
    remove(&aside);
    fs::rename(target, &aside).map_err(CheckpointError::io("set aside", target))?;
    Ok(aside)
}

/// Reads and verifies a checkpoint; `path` is its directory, or one of [`LINKS`] to it, of either kind.
///
/// # Errors
/// [`CheckpointError::Damaged`] names the file that is not what was written;
/// [`CheckpointError::Absent`] and [`CheckpointError::Version`] where there is none, or
/// one of another format; [`CheckpointError::Io`] if the disk refuses.
pub fn read(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let path = &files::follow(path);
    let damaged = |file, why| CheckpointError::Damaged { directory: path.clone(), file, why };
    let (meta, files) = unseal(&read_manifest(path)?).map_err(|bad| match bad {
        BadSeal::Damaged(why) => damaged(MANIFEST, why),
        BadSeal::Version(found) => CheckpointError::Version { directory: path.clone(), found },
    })?;
    if let Some(step) = path.file_name().and_then(step_of)
        && step != meta.step
    {
        return Err(damaged(MANIFEST, format!("is that of step {}, not of the directory's", meta.step)));
    }
    let vector = |name: &'static str, tensors: &Manifest| {
        let entry = files.get(name).ok_or_else(|| damaged(MANIFEST, format!("does not list {name}")))?;
        let read = || {
            let file = File::open(path.join(name))?;
            let length = file.metadata()?.len();
            tensors::read(BufReader::with_capacity(1 << 16, file), length, tensors, entry)
        };
        read().map_err(|fault| match fault {
            Fault::Why(why) => damaged(name, why),
            Fault::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                damaged(name, "is not there".into())
            }
            Fault::Io(source) => CheckpointError::Io { doing: "read", path: path.join(name), source },
        })
    };
    if meta.moments.len() > MOMENTS.len() {
        return Err(damaged(MANIFEST, format!("names {} moments", meta.moments.len())));
    }
    let trained = meta.tensors.without_constants();
    let moments = MOMENTS[..meta.moments.len()].iter().map(|name| vector(name, &trained));
    let state =
        State { parameters: vector(MODEL, &meta.tensors)?, moments: moments.collect::<Result<_, _>>()? };
    // The files are what was written; this says that what was written fits together.
    check(&meta, &state).map_err(|why| damaged(MANIFEST, format!("does not fit: {why}")))?;
    Ok(Checkpoint { meta, state })
}

fn read_manifest(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let file = path.join(MANIFEST);
    let io = CheckpointError::io("read", &file);
    let open = match File::open(&file) {
        Ok(open) => open,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(CheckpointError::Absent { path: path.into() });
        }
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    // One byte over the limit cuts the text short, and then its checksum does not fit.
    open.take(MAX_MANIFEST).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// The checkpoints of a root by step, ascending; none if there is no such directory.
/// Whether they are whole is not looked at.
///
/// # Errors
/// [`CheckpointError::Io`] if the root cannot be read.
pub fn list(root: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let mut found: Vec<_> = names(root)?
        .into_iter()
        .filter_map(|path| Some((path.file_name().and_then(step_of)?, path)))
        .filter(|(_, path)| path.is_dir())
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// All entries of a root; none if it does not exist.
fn names(root: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(CheckpointError::io("list", root))?,
    };
    let paths: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    paths.map_err(CheckpointError::io("list", root))
}

/// The newest checkpoint that can be read, of a step of `at_most` or below if that is given. A checkpoint that cannot
/// be read is skipped: training again from an older one costs time, and ends in the same bits (RESUME-1). Only a
/// checkpoint of a newer format ends the search, because a newer Tally has continued the run.
///
/// # Errors
/// [`CheckpointError::Io`] if the root itself cannot be read, [`CheckpointError::Version`] if
/// a newer Tally wrote there.
pub fn newest_whole(root: &Path, at_most: Option<u64>) -> Result<Newest, CheckpointError> {
    let mut newest = Newest::default();
    for (step, path) in list(root)?.into_iter().rev() {
        if at_most.is_some_and(|most| step > most) {
            continue;
        }
        match read(&path) {
            Ok(checkpoint) => {
                newest.checkpoint = Some(checkpoint);
                break;
            }
            Err(error @ CheckpointError::Version { found: VERSION.., .. }) => return Err(error),
            Err(error) => newest.skipped.push((step, error)),
        }
    }
    Ok(newest)
}

/// Removes all checkpoints but the newest `keep`, those of the steps `protect`, and those
/// that [`LINKS`] lead to. Returns the steps removed, ascending. A crash leaves each of
/// them whole or gone.
///
/// # Errors
/// [`CheckpointError::Io`] for the first that cannot be removed; those before it are gone.
pub fn prune(root: &Path, keep: usize, protect: &[u64]) -> Result<Vec<u64>, CheckpointError> {
    prune_by(root, keep, protect, |from, to| fs::rename(from, to))
}

fn prune_by(
    root: &Path,
    keep: usize,
    protect: &[u64],
    rename: impl Fn(&Path, &Path) -> io::Result<()>,
) -> Result<Vec<u64>, CheckpointError> {
    let linked = LINKS.map(|name| files::link_target(&root.join(name)).and_then(|name| step_of(&name)));
    let all = list(root)?;
    let mut removed = Vec::new();
    // They are renamed, that is had on the disk, and only then they lose their files.
    let mut temporaries = Vec::new();
    for (step, path) in &all[..all.len().saturating_sub(keep)] {
        if protect.contains(step) || linked.contains(&Some(*step)) {
            continue;
        }
        let temporary = Temporary::new(root, &name_of(*step));
        match rename(path, &temporary.0) {
            Ok(()) => temporaries.push(temporary),
            // Without its manifest it is not a checkpoint any more.
            Err(_) => remove_in_place(path).map_err(CheckpointError::io("remove", path))?,
        }
        removed.push(*step);
    }
    if !removed.is_empty() {
        sync_directory(root)?;
    }
    Ok(removed)
}

/// Removes a checkpoint where it is, its manifest first.
fn remove_in_place(path: &Path) -> io::Result<()> {
    match fs::remove_file(path.join(MANIFEST)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::remove_dir_all(path)
}

/// Lets `name`, one of [`LINKS`], lead to the checkpoint of a step: as a relative link, or where the file system has
/// none, as a file that holds the name of its directory, which [`read`] follows as well. Whoever follows it finds the
/// old or the new checkpoint at any time; a copy of a checkpoint under that name is replaced as a checkpoint is.
/// Returns the failure if no symbolic link could be made.
///
/// # Errors
/// [`CheckpointError::Link`] for another name or a step that has no checkpoint;
/// [`CheckpointError::Io`] if the disk refuses, and then the link is as it was.
pub fn link(root: &Path, name: &str, step: u64) -> Result<Option<io::Error>, CheckpointError> {
    link_by(root, name, step, |target, link| std::os::unix::fs::symlink(target, link))
}

fn link_by(
    root: &Path,
    name: &str,
    step: u64,
    symlink: files::Symlink,
) -> Result<Option<io::Error>, CheckpointError> {
    if !LINKS.contains(&name) || !directory(root, step).is_dir() {
        return Err(CheckpointError::Link { root: root.into(), name: name.into(), step });
    }
    let link = root.join(name);
    let io = || CheckpointError::io("link", &link);
    let temporary = Temporary::new(root, name);
    let failure = files::link(&temporary.0, &name_of(step), symlink).map_err(io())?;
    // A copy that followed links (cp -L, many object stores) has the checkpoint itself there.
    let copy = link.join(MANIFEST).is_file() && link.symlink_metadata().is_ok_and(|there| there.is_dir());
    if copy {
        publish(&temporary.0, &link, exchange)?;
    } else {
        fs::rename(&temporary.0, &link).map_err(io())?;
        sync_directory(root)?;
    }
    Ok(failure)
}

/// Tidies up after a process that died: removes what was half written or half removed,
/// and puts back a checkpoint that was about to be replaced. Returns the hidden names
/// that were dealt with.
///
/// For the start of a run, while no other process writes to the root.
///
/// # Errors
/// [`CheckpointError::Io`] if the root cannot be read or a checkpoint not be put back.
pub fn clean(root: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut found = Vec::new();
    for path in names(root)? {
        let Some(name) = path.file_name().and_then(OsStr::to_str) else { continue };
        let is_checkpoint = |name: &&str| step_of(OsStr::new(name)).is_some() || LINKS.contains(name);
        if let Some(name) = name.strip_prefix(ASIDE).filter(is_checkpoint) {
            let target = root.join(name);
            if target.symlink_metadata().is_err() {
                fs::rename(&path, &target).map_err(CheckpointError::io("put back", &target))?;
            } else {
                remove(&path);
            }
        } else if name.starts_with(TEMPORARY) {
            remove(&path);
        } else {
            continue;
        }
        found.push(path);
    }
    if !found.is_empty() {
        sync_directory(root)?;
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
