//! The directories: writing one whole, reading one verified, keeping a few (**CKPT-1**).
//!
//! Everything half done carries a hidden name, `.tmp-…` or `.old-…`, which nothing here
//! takes for a checkpoint and [`clean`] knows what to do with.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tally_exact::digest;

use crate::error::CheckpointError;
use crate::meta::{BadSeal, Files, MAX_MANIFEST, Meta, VERSION, seal, unseal};
use crate::tensors::{self, Fault};
use crate::{MANIFEST, MODEL, OPTIMIZER};

/// The links that a root may have: to the best checkpoint so far and to the newest.
pub const LINKS: [&str; 2] = ["best", "last"];

const STEP: &str = "step-";
/// Being written, or being removed: of no use to anyone.
const TEMPORARY: &str = ".tmp-";
/// The checkpoint that another of the same step is about to replace.
const ASIDE: &str = ".old-";

/// A checkpoint that was read, and verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// What it says of itself.
    pub meta: Meta,
    /// The parameters, a flat vector in the order of `meta.tensors`.
    pub parameters: Vec<f32>,
    /// The momentum, in the same order.
    pub momentum: Vec<f32>,
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

/// Writes the checkpoint of `meta.step` and returns its directory. Once this returns, the
/// checkpoint survives a power loss. One of the same step that is there already, from
/// before a crash, is replaced, and is whole until it is.
///
/// `root` is made if it is not there. `parameters` and `momentum` are flat vectors in the
/// order of `meta.tensors`.
///
/// # Errors
/// [`CheckpointError::Refused`] if the vectors and `meta` do not belong together;
/// [`CheckpointError::Io`] if the disk is full or refuses. Either way, what was there is
/// still there, and nothing else is; only if the very last `fsync` is refused, the new
/// checkpoint is there as well, whole, but may not survive a power loss.
pub fn write(
    root: &Path,
    meta: &Meta,
    parameters: &[f32],
    momentum: &[f32],
) -> Result<PathBuf, CheckpointError> {
    check(meta, parameters, momentum).map_err(|why| CheckpointError::Refused { step: meta.step, why })?;
    make_root(root)?;
    // From here on, whatever happens, the temporary name is removed: by its destructor,
    // or by `clean` after a crash.
    let temporary = Temporary::new(root, &name_of(meta.step));
    fs::create_dir(&temporary.0).map_err(CheckpointError::io("make the directory", &temporary.0))?;
    fill(&temporary.0, meta, parameters, momentum)?;
    let target = directory(root, meta.step);
    publish(&temporary.0, &target, exchange)?;
    Ok(target)
}

/// Whether a checkpoint of these could be read again.
fn check(meta: &Meta, parameters: &[f32], momentum: &[f32]) -> Result<(), String> {
    let len = meta.tensors.len();
    if meta.version != VERSION {
        return Err(format!("its version is {}, not {VERSION}", meta.version));
    }
    if parameters.len() != len || momentum.len() != len {
        let (p, v) = (parameters.len(), momentum.len());
        return Err(format!("{p} parameters and {v} of momentum for {len} elements"));
    }
    let digest = digest::of(0, parameters, momentum);
    if digest != meta.digest {
        return Err(format!("the digest of its tensors is {digest}, not {}", meta.digest));
    }
    let sha256 = meta.tensors.sha256(parameters);
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
    match root.parent() {
        Some(parent) if parent != Path::new("") => sync_directory(parent),
        _ => sync_directory(Path::new(".")),
    }
}

/// Writes the files of a checkpoint into a directory and has them, and it, on the disk.
fn fill(into: &Path, meta: &Meta, parameters: &[f32], momentum: &[f32]) -> Result<(), CheckpointError> {
    let mut files = Files::new();
    for (name, values) in [(MODEL, parameters), (OPTIMIZER, momentum)] {
        let entry = write_file(&into.join(name), |file| tensors::write(file, &meta.tensors, values))?;
        files.insert(name.to_owned(), entry);
    }
    write_file(&into.join(MANIFEST), |file| file.write_all(&seal(meta, &files)?))?;
    sync_directory(into)
}

/// Writes a file with `content` and has it on the disk.
fn write_file<T>(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>,
) -> Result<T, CheckpointError> {
    let write = || {
        let mut file = BufWriter::new(File::create(path)?);
        let result = content(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok(result)
    };
    write().map_err(CheckpointError::io("write", path))
}

/// Has a directory's entries on the disk.
fn sync_directory(path: &Path) -> Result<(), CheckpointError> {
    match File::open(path).and_then(|directory| directory.sync_all()) {
        // Some network file systems have no such thing for a directory, and no weaker
        // promise than that is to be had from them.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            Ok(())
        }
        result => result.map_err(CheckpointError::io("have on the disk", path)),
    }
}

/// Moves a filled directory to where its checkpoint belongs and has that on the disk. A
/// checkpoint that is there is replaced in one step where the system can exchange two
/// names, else in two, between which [`clean`] finds the old one.
fn publish(
    temporary: &Path,
    target: &Path,
    exchange: impl Fn(&Path, &Path) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    let occupied = target.symlink_metadata().is_ok();
    if occupied && exchange(temporary, target).is_ok() {
        // The old one has the temporary name now, and goes with it once this is kept.
        return sync_directory(root_of(target));
    }
    let aside = if occupied { Some(set_aside(target)?) } else { None };
    if let Err(error) = fs::rename(temporary, target) {
        if let Some(aside) = &aside {
            // Back to what was; if that fails too, `clean` does it.
            let _ = fs::rename(aside, target);
        }
        return Err(CheckpointError::io("rename into place", target)(error));
    }
    sync_directory(root_of(target))?;
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
    let aside = root_of(target).join(format!("{ASIDE}{name}"));
    remove(&aside);
    fs::rename(target, &aside).map_err(CheckpointError::io("set aside", target))?;
    Ok(aside)
}

fn root_of(target: &Path) -> &Path {
    target.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

/// Removes whatever has this name. A failure leaves a hidden name behind, which [`clean`]
/// reports and which harms nobody; so it is no reason to fail what went well.
fn remove(path: &Path) {
    let is_directory = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    let _ = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// A hidden name; whatever has it is removed in the end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(root: &Path, what: &str) -> Self {
        // Not the name of one that an earlier process left behind and `clean` could not
        // remove, nor of another thread's.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = root.join(format!("{TEMPORARY}{what}-{}-{count}", std::process::id()));
            if path.symlink_metadata().is_err() {
                return Self(path);
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Reads and verifies a checkpoint; `path` is its directory or a link to it.
///
/// # Errors
/// [`CheckpointError::Damaged`] names the file that is not what was written;
/// [`CheckpointError::Absent`] and [`CheckpointError::Version`] where there is none, or
/// one of another format; [`CheckpointError::Io`] if the disk refuses.
pub fn read(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let damaged = |file, why| CheckpointError::Damaged { directory: path.into(), file, why };
    let (meta, files) = unseal(&read_manifest(path)?).map_err(|bad| match bad {
        BadSeal::Damaged(why) => damaged(MANIFEST, why),
        BadSeal::Version(found) => CheckpointError::Version { directory: path.into(), found },
    })?;
    if let Some(step) = path.file_name().and_then(step_of)
        && step != meta.step
    {
        return Err(damaged(MANIFEST, format!("is that of step {}, not of the directory's", meta.step)));
    }
    let vector = |name| {
        let entry = files.get(name).ok_or_else(|| damaged(MANIFEST, format!("does not list {name}")))?;
        let read = || {
            let file = File::open(path.join(name))?;
            let length = file.metadata()?.len();
            tensors::read(BufReader::with_capacity(1 << 16, file), length, &meta.tensors, entry)
        };
        read().map_err(|fault| match fault {
            Fault::Why(why) => damaged(name, why),
            Fault::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                damaged(name, "is not there".into())
            }
            Fault::Io(source) => CheckpointError::Io { doing: "read", path: path.join(name), source },
        })
    };
    let (parameters, momentum) = (vector(MODEL)?, vector(OPTIMIZER)?);
    // The files are what was written; this says that what was written fits together.
    check(&meta, &parameters, &momentum).map_err(|why| damaged(MANIFEST, format!("does not fit: {why}")))?;
    Ok(Checkpoint { meta, parameters, momentum })
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

/// All that lies in a root; nothing if there is none.
fn names(root: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(CheckpointError::io("list", root))?,
    };
    let paths: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    paths.map_err(CheckpointError::io("list", root))
}

/// The newest checkpoint that can be read, of a step of `at_most` or below if that is
/// given. One that cannot be read, for whatever reason, is passed over: training again
/// from an older one costs time and never a bit (RESUME-1).
///
/// # Errors
/// [`CheckpointError::Io`] if the root itself cannot be read.
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
    let linked = LINKS.map(|name| fs::read_link(root.join(name)).ok()?.file_name().and_then(step_of));
    let all = list(root)?;
    let mut removed = Vec::new();
    // They are renamed, that is had on the disk, and only then they lose their files.
    let mut temporaries = Vec::new();
    for (step, path) in &all[..all.len().saturating_sub(keep)] {
        if protect.contains(step) || linked.contains(&Some(*step)) {
            continue;
        }
        let temporary = Temporary::new(root, &name_of(*step));
        fs::rename(path, &temporary.0).map_err(CheckpointError::io("remove", path))?;
        temporaries.push(temporary);
        removed.push(*step);
    }
    if !removed.is_empty() {
        sync_directory(root)?;
    }
    Ok(removed)
}

/// Lets `name`, one of [`LINKS`], lead to the checkpoint of a step, as a relative link.
/// Whoever follows it finds the old or the new checkpoint at any time.
///
/// # Errors
/// [`CheckpointError::Link`] for another name or a step that has no checkpoint;
/// [`CheckpointError::Io`] if the disk refuses, and then the link is as it was.
pub fn link(root: &Path, name: &str, step: u64) -> Result<(), CheckpointError> {
    if !LINKS.contains(&name) || !directory(root, step).is_dir() {
        return Err(CheckpointError::Link { root: root.into(), name: name.into(), step });
    }
    let link = root.join(name);
    let io = || CheckpointError::io("link", &link);
    let temporary = Temporary::new(root, name);
    std::os::unix::fs::symlink(name_of(step), &temporary.0).map_err(io())?;
    fs::rename(&temporary.0, &link).map_err(io())?;
    sync_directory(root)
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
        if let Some(step) = name.strip_prefix(ASIDE).and_then(|name| step_of(OsStr::new(name))) {
            let target = directory(root, step);
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
mod tests {
    use proptest::prelude::*;
    use safetensors::SafeTensors;
    use tally_exact::manifest::{Manifest, TensorSpec};
    use tempfile::TempDir;

    use super::*;
    use crate::read_weights;

    fn network() -> Manifest {
        let tensor = |name, shape: &[u32]| TensorSpec::with_fan_in(name, shape, 9);
        Manifest::new(vec![
            tensor("conv2.weight", &[2, 1, 3]),
            tensor("conv1.weight", &[4]),
            tensor("b", &[1]),
        ])
        .unwrap()
    }

    /// A checkpoint of `step` whose values follow from it and `salt`.
    fn checkpoint(step: u64, salt: f32) -> Checkpoint {
        let tensors = network();
        let parameters: Vec<f32> =
            (0..tensors.len()).map(|i| (i as f32 + salt) * 0.3 - step as f32).collect();
        let momentum: Vec<f32> = parameters.iter().map(|p| -0.1 * p).collect();
        let meta = Meta {
            version: VERSION,
            run: "run".into(),
            model: "net".into(),
            label_loss: "cross-entropy".into(),
            step,
            epoch: 1,
            digest: digest::of(0, &parameters, &momentum),
            parameters_sha256: tensors.sha256(&parameters),
            tensors,
            config: serde_json::json!({ "seed": 1 }),
        };
        Checkpoint { meta, parameters, momentum }
    }

    fn save(root: &Path, checkpoint: &Checkpoint) -> Result<PathBuf, CheckpointError> {
        write(root, &checkpoint.meta, &checkpoint.parameters, &checkpoint.momentum)
    }

    /// A root with checkpoints of these steps.
    fn root_with(steps: &[u64]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for &step in steps {
            save(root.path(), &checkpoint(step, 0.0)).unwrap();
        }
        root
    }

    fn steps(root: &Path) -> Vec<u64> {
        list(root).unwrap().into_iter().map(|(step, _)| step).collect()
    }

    /// The names in a directory, hidden ones too.
    fn everything(root: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    fn newest(root: &Path) -> Option<Checkpoint> {
        newest_whole(root, None).unwrap().checkpoint
    }

    #[test]
    fn a_checkpoint_comes_back_as_it_was_written() {
        let root = tempfile::tempdir().unwrap();
        let nested = root.path().join("run/checkpoints");
        let written = checkpoint(1234, 0.0);
        let path = save(&nested, &written).unwrap();
        assert_eq!(path, nested.join("step-00001234"));
        assert_eq!(read(&path).unwrap(), written);
        assert_eq!(everything(&nested), ["step-00001234"]);
        assert_eq!(everything(&path), [MANIFEST, MODEL, OPTIMIZER]);
    }

    #[test]
    fn the_safetensors_crate_reads_both_files() {
        let root = tempfile::tempdir().unwrap();
        let written = checkpoint(7, 0.0);
        let path = save(root.path(), &written).unwrap();
        for (name, values) in [(MODEL, &written.parameters), (OPTIMIZER, &written.momentum)] {
            let bytes = fs::read(path.join(name)).unwrap();
            let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
            assert_eq!(header.offset_keys(), ["b", "conv1.weight", "conv2.weight"]);
            let tensor =
                SafeTensors::deserialize(&bytes).unwrap().tensor("conv2.weight").unwrap().data().to_vec();
            let wanted: Vec<u8> = values[..6].iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(tensor, wanted);
        }
        let read = read_weights(&path, &network()).unwrap();
        assert_eq!((read.values, read.unknown.len()), (written.parameters.clone(), 0));
        assert_eq!(read_weights(&path.join(MODEL), &network()).unwrap().values, written.parameters);
    }

    /// CKPT-1: whatever bit of whatever file is flipped, and wherever a file is cut, the
    /// checkpoint is refused with the file's name.
    #[test]
    fn ckpt_1_every_flipped_bit_and_every_truncation_is_found() {
        let root = root_with(&[5]);
        let path = directory(root.path(), 5);
        for name in [MODEL, OPTIMIZER, MANIFEST] {
            let file = path.join(name);
            let good = fs::read(&file).unwrap();
            let refused = |bytes: &[u8], how: String| {
                fs::write(&file, bytes).unwrap();
                match read(&path) {
                    Err(CheckpointError::Damaged { file, .. }) => assert_eq!(file, name, "{how}"),
                    other => panic!("{name}, {how}: {other:?}"),
                }
            };
            for bit in 0..8 * good.len() {
                let mut flipped = good.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                refused(&flipped, format!("bit {bit} flipped"));
            }
            for end in 0..good.len() {
                refused(&good[..end], format!("cut at {end}"));
            }
            refused(&[good.as_slice(), b" "].concat(), "one byte more".into());
            fs::write(&file, &good).unwrap();
        }
        assert_eq!(read(&path).unwrap(), checkpoint(5, 0.0));
    }

    #[test]
    fn ckpt_1_a_missing_file_is_found() {
        let root = root_with(&[5]);
        let path = directory(root.path(), 5);
        fs::remove_file(path.join(OPTIMIZER)).unwrap();
        let text = read(&path).unwrap_err().to_string();
        assert!(
            text.contains("step-00000005 is damaged: optimizer.safetensors is not there; use an older"),
            "{text}"
        );
        fs::remove_file(path.join(MANIFEST)).unwrap();
        assert!(matches!(read(&path), Err(CheckpointError::Absent { .. })));
        assert!(matches!(read(Path::new("no/such")), Err(CheckpointError::Absent { .. })));
    }

    /// CKPT-1: files of two checkpoints do not make one, though each is whole.
    #[test]
    fn ckpt_1_files_of_two_checkpoints_are_not_mixed() {
        let root = root_with(&[5, 6]);
        let (five, six) = (directory(root.path(), 5), directory(root.path(), 6));
        fs::copy(six.join(OPTIMIZER), five.join(OPTIMIZER)).unwrap();
        assert!(matches!(read(&five), Err(CheckpointError::Damaged { file: OPTIMIZER, .. })));
        let eight = directory(root.path(), 8);
        fs::rename(&six, &eight).unwrap();
        assert!(matches!(read(&eight), Err(CheckpointError::Damaged { file: MANIFEST, .. })));
        // Under a name of the user's own it is a checkpoint still.
        let own = root.path().join("the-good-one");
        fs::rename(&eight, &own).unwrap();
        assert_eq!(read(&own).unwrap(), checkpoint(6, 0.0));
    }

    /// CKPT-1: a process that dies before the rename has changed nothing, whichever files
    /// it had begun and however far it got with them.
    #[test]
    fn ckpt_1_a_crash_before_the_rename_leaves_the_old_state() {
        let root = root_with(&[10, 20]);
        let new = checkpoint(30, 0.0);
        let names = [MODEL, OPTIMIZER, MANIFEST];
        for (begun, part) in [(0, 0.0), (0, 0.5), (0, 1.0), (1, 0.5), (1, 1.0), (2, 0.0), (2, 0.9), (2, 1.0)]
        {
            let temporary = Temporary::new(root.path(), &name_of(30));
            fs::create_dir(&temporary.0).unwrap();
            fill(&temporary.0, &new.meta, &new.parameters, &new.momentum).unwrap();
            for name in &names[begun + 1..] {
                fs::remove_file(temporary.0.join(name)).unwrap();
            }
            let last = temporary.0.join(names[begun]);
            let bytes = fs::read(&last).unwrap();
            fs::write(&last, &bytes[..(bytes.len() as f64 * part) as usize]).unwrap();
            std::mem::forget(temporary); // The crash: no destructor runs.

            assert_eq!(steps(root.path()), [10, 20]);
            assert_eq!(newest(root.path()).unwrap(), checkpoint(20, 0.0));
            assert!(newest_whole(root.path(), None).unwrap().skipped.is_empty());
        }
        assert_eq!(clean(root.path()).unwrap().len(), 8);
        assert_eq!(everything(root.path()), ["step-00000010", "step-00000020"]);
        save(root.path(), &new).unwrap();
        assert_eq!(newest(root.path()).unwrap(), new);
    }

    #[test]
    fn ckpt_1_a_checkpoint_of_the_same_step_is_replaced() {
        let root = root_with(&[10]);
        let path = save(root.path(), &checkpoint(10, 0.5)).unwrap();
        assert_eq!(read(&path).unwrap(), checkpoint(10, 0.5));
        assert_eq!(everything(root.path()), ["step-00000010"]);
        // A damaged one is replaced as well, and so is an empty directory.
        fs::write(path.join(MODEL), b"x").unwrap();
        save(root.path(), &checkpoint(10, 0.75)).unwrap();
        assert_eq!(read(&path).unwrap(), checkpoint(10, 0.75));
        fs::create_dir(directory(root.path(), 11)).unwrap();
        save(root.path(), &checkpoint(11, 0.5)).unwrap();
        assert_eq!(newest(root.path()).unwrap(), checkpoint(11, 0.5));
        assert_eq!(everything(root.path()), ["step-00000010", "step-00000011"]);
    }

    /// CKPT-1 where two names cannot be exchanged: a crash between the two renames.
    #[test]
    fn ckpt_1_a_crash_amid_a_replacement_leaves_the_old_one() {
        let root = root_with(&[10]);
        let path = directory(root.path(), 10);
        set_aside(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(clean(root.path()).unwrap().len(), 1);
        assert_eq!(read(&path).unwrap(), checkpoint(10, 0.0));

        // And one after the second rename, before the old one was removed.
        set_aside(&path).unwrap();
        save(root.path(), &checkpoint(10, 0.5)).unwrap();
        clean(root.path()).unwrap();
        assert_eq!(read(&path).unwrap(), checkpoint(10, 0.5));
        assert_eq!(everything(root.path()), ["step-00000010"]);
    }

    /// CKPT-1 where two names cannot be exchanged, as on some network file systems.
    #[test]
    fn ckpt_1_without_an_exchange_a_checkpoint_is_replaced_or_left() {
        let unsupported = |_: &Path, _: &Path| Err(io::ErrorKind::Unsupported.into());
        let root = root_with(&[10]);
        let path = directory(root.path(), 10);
        let new = checkpoint(10, 0.5);

        publish(&root.path().join(".tmp-vanished"), &path, unsupported).unwrap_err();
        assert_eq!(read(&path).unwrap(), checkpoint(10, 0.0));
        assert_eq!(everything(root.path()), ["step-00000010"]);

        let temporary = Temporary::new(root.path(), &name_of(10));
        fs::create_dir(&temporary.0).unwrap();
        fill(&temporary.0, &new.meta, &new.parameters, &new.momentum).unwrap();
        publish(&temporary.0, &path, unsupported).unwrap();
        assert_eq!(read(&path).unwrap(), new);
        assert_eq!(everything(root.path()), ["step-00000010"]);
    }

    /// CKPT-1: a disk that is full when the second file is written.
    #[cfg(target_os = "linux")]
    #[test]
    fn ckpt_1_a_full_disk_leaves_what_was_there_and_nothing_else() {
        let root = root_with(&[10]);
        let new = checkpoint(20, 0.0);
        let temporary = Temporary::new(root.path(), &name_of(20));
        fs::create_dir(&temporary.0).unwrap();
        std::os::unix::fs::symlink("/dev/full", temporary.0.join(OPTIMIZER)).unwrap();
        let error = fill(&temporary.0, &new.meta, &new.parameters, &new.momentum).unwrap_err();
        let CheckpointError::Io { source, path, .. } = &error else { panic!("{error}") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        assert!(path.ends_with(OPTIMIZER), "{error}");
        drop(temporary);
        assert_eq!(everything(root.path()), ["step-00000010"]);
        assert_eq!(newest(root.path()).unwrap(), checkpoint(10, 0.0));
    }

    #[test]
    fn a_root_that_cannot_be_written_is_an_error_with_its_path() {
        // A file where the root should be; permissions do not stop a test run by root.
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("checkpoints");
        fs::write(&root, b"a file").unwrap();
        let text = save(&root, &checkpoint(1, 0.0)).unwrap_err().to_string();
        assert!(text.starts_with("cannot make the directory "), "{text}");
        assert!(text.contains(&root.display().to_string()), "{text}");
        assert_eq!(fs::read(&root).unwrap(), b"a file");
        assert!(list(&root).is_err());
    }

    #[test]
    fn a_directory_without_permission_is_left_as_it_was() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = root_with(&[10]);
        let permit = |mode| fs::set_permissions(root.path(), fs::Permissions::from_mode(mode)).unwrap();
        permit(0o555);
        let result = save(root.path(), &checkpoint(20, 0.0));
        permit(0o755);
        // Whoever is root may write all the same.
        let left = if rustix::process::geteuid().is_root() { vec![10, 20] } else { vec![10] };
        assert_eq!((result.is_ok(), steps(root.path())), (left.len() == 2, left));
        assert_eq!(read(&directory(root.path(), 10)).unwrap(), checkpoint(10, 0.0));
    }

    #[test]
    fn what_could_not_be_read_is_not_written() {
        let root = root_with(&[10]);
        let good = checkpoint(20, 0.0);
        let with = |change: fn(&mut Checkpoint)| {
            let mut bad = good.clone();
            change(&mut bad);
            bad
        };
        for bad in [
            with(|c| c.meta.version = 2),
            with(|c| c.meta.digest.0 ^= 1),
            with(|c| c.meta.parameters_sha256 = "00".repeat(32)),
            with(|c| c.parameters.truncate(3)),
            with(|c| c.momentum[0] += 1.0),
        ] {
            assert!(matches!(save(root.path(), &bad), Err(CheckpointError::Refused { step: 20, .. })));
        }
        assert_eq!(everything(root.path()), ["step-00000010"]);
    }

    #[test]
    fn the_list_is_ascending_and_has_checkpoints_alone() {
        let root = root_with(&[900, 20, 123_456_789, 100_000_000]);
        for name in
            ["step-7", "step-000000007", "step-+0000007", "step-abcdefgh", "other", ".tmp-step-00000001-1-1"]
        {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        fs::write(root.path().join("step-00000003"), b"a file").unwrap();
        assert_eq!(steps(root.path()), [20, 900, 100_000_000, 123_456_789]);
        assert!(list(&root.path().join("none")).unwrap().is_empty());
        assert!(newest(&root.path().join("none")).is_none());
    }

    #[test]
    fn the_newest_whole_one_is_found_past_damaged_ones() {
        let root = root_with(&[10, 20, 30, 40]);
        fs::write(directory(root.path(), 40).join(MODEL), b"x").unwrap();
        fs::remove_file(directory(root.path(), 30).join(MANIFEST)).unwrap();
        let newest = newest_whole(root.path(), None).unwrap();
        assert_eq!(newest.checkpoint.unwrap(), checkpoint(20, 0.0));
        let skipped: Vec<_> = newest.skipped.iter().map(|(step, _)| *step).collect();
        assert_eq!(skipped, [40, 30]);
        assert!(
            newest.skipped[0]
                .1
                .to_string()
                .contains("step-00000040 is damaged: model.safetensors has 1 bytes")
        );

        let earlier = newest_whole(root.path(), Some(19)).unwrap();
        assert_eq!((earlier.checkpoint.unwrap(), earlier.skipped.len()), (checkpoint(10, 0.0), 0));
        assert!(newest_whole(root.path(), Some(9)).unwrap().checkpoint.is_none());
    }

    #[test]
    fn links_lead_to_checkpoints_and_are_replaced() {
        let root = root_with(&[10, 20]);
        link(root.path(), "last", 10).unwrap();
        link(root.path(), "best", 10).unwrap();
        link(root.path(), "last", 20).unwrap();
        assert_eq!(fs::read_link(root.path().join("last")).unwrap(), Path::new("step-00000020"));
        assert_eq!(read(&root.path().join("last")).unwrap(), checkpoint(20, 0.0));
        assert_eq!(read(&root.path().join("best")).unwrap(), checkpoint(10, 0.0));
        assert_eq!(
            read_weights(&root.path().join("best"), &network()).unwrap().values,
            checkpoint(10, 0.0).parameters
        );
        assert_eq!(steps(root.path()), [10, 20]);
        assert_eq!(everything(root.path()), ["best", "last", "step-00000010", "step-00000020"]);
        for (name, step) in [("last", 30), ("../last", 10), ("newest", 10), ("", 10)] {
            assert!(
                matches!(link(root.path(), name, step), Err(CheckpointError::Link { .. })),
                "{name} {step}"
            );
        }
    }

    #[test]
    fn pruning_keeps_the_newest_the_protected_and_the_linked() {
        let root = root_with(&[10, 20, 30, 40, 50, 60]);
        link(root.path(), "best", 20).unwrap();
        assert_eq!(prune(root.path(), 2, &[40]).unwrap(), [10, 30]);
        assert_eq!(steps(root.path()), [20, 40, 50, 60]);
        assert!(prune(root.path(), 2, &[40]).unwrap().is_empty());
        assert!(prune(root.path(), 9, &[]).unwrap().is_empty());
        assert_eq!(prune(root.path(), 0, &[]).unwrap(), [40, 50, 60]);
        assert_eq!(everything(root.path()), ["best", "step-00000020"]);
        assert!(prune(&root.path().join("none"), 1, &[]).unwrap().is_empty());
    }

    #[test]
    fn cleaning_touches_nothing_of_others() {
        let root = root_with(&[10]);
        link(root.path(), "last", 10).unwrap();
        fs::write(root.path().join(".hidden"), b"").unwrap();
        fs::write(root.path().join(".old-notes"), b"").unwrap();
        fs::write(root.path().join(".tmp-last-1-1"), b"").unwrap();
        assert_eq!(clean(root.path()).unwrap(), [root.path().join(".tmp-last-1-1")]);
        assert_eq!(everything(root.path()), [".hidden", ".old-notes", "last", "step-00000010"]);
        assert!(clean(&root.path().join("none")).unwrap().is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Garbage in any file is an error, never a panic.
        #[test]
        fn garbage_in_a_checkpoint_is_an_error(
            name in prop::sample::select(vec![MODEL, OPTIMIZER, MANIFEST]),
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        ) {
            let root = root_with(&[1]);
            let path = directory(root.path(), 1);
            fs::write(path.join(name), bytes).unwrap();
            prop_assert!(read(&path).is_err());
        }
    }
}
