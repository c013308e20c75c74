//! Files that are whole or absent, also on file systems that lack a function:
//!
//! | lacks | for example | instead |
//! | --- | --- | --- |
//! | symbolic links | FAT, some SMB shares and FUSE | a file that names the directory (`point`, `follow`) |
//! | `fsync`, of directories above all | some network file systems and FUSE | nothing: such a system gives no stronger promise ([`sync`]) |
//! | an exchange of two names | NFS, FUSE, older kernels | two renames (`store`) |
//! | renames of directories of a lower layer | OverlayFS | the manifest is removed first (`store`) |
//! | locks | Lustre without `flock`, some FUSE and NFS | nothing; [`lock`] tells the caller |
//! | free space | all | [`write_whole`] leaves the old file |
//!
//! Each is found by a try, since no list of file systems is complete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;

/// How the name of what is being written or removed begins.
pub(crate) const TEMPORARY: &str = ".tmp-";

/// More bytes than any name that [`link`] writes.
const MAX_NAME: u64 = 256;

/// Writes a file, or the entries of a directory, through to the disk, if the file system can.
///
/// # Errors
/// If the disk refuses.
pub fn sync(file: &File) -> io::Result<()> {
    match file.sync_all() {
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            Ok(())
        }
        result => result,
    }
}

/// Writes a directory's entries through to the disk, as [`sync`] does.
///
/// # Errors
/// If the disk refuses.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    sync(&File::open(path)?)
}

/// The directory that a path is in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

/// Writes a file whole and durably, or leaves the old one: the bytes go to a hidden file beside it, which is then renamed.
/// Links are followed and permissions kept. A pipe or a device (`/dev/stdout`), and a file in a directory where no other
/// can be made, are written in place.
///
/// # Errors
/// If the disk is full or refuses.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, |file| file.write_all(bytes))
}

fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let old = fs::metadata(path);
    if old.as_ref().is_ok_and(|old| !old.is_file()) {
        return write(&mut File::create(path)?);
    }
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let temporary = Temporary::new(parent(&path), "file");
    let mut file = match File::create(&temporary.0) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && old.is_ok() => {
            return write(&mut File::create(&path)?);
        }
        Err(error) => return Err(error),
    };
    write(&mut file)?;
    sync(&file)?;
    if let Ok(old) = old {
        // If they cannot be kept, the file has those of a new one.
        let _ = fs::set_permissions(&temporary.0, old.permissions());
    }
    fs::rename(&temporary.0, &path)?;
    sync_directory(parent(&path))
}

/// Removes whatever has this name. A failure leaves a hidden name behind, which does no harm and which `store::clean`
/// reports. So it is not an error of the operation.
pub(crate) fn remove(path: &Path) {
    let is_directory = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    let _ = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// A hidden name; whatever has it is removed in the end.
pub(crate) struct Temporary(pub(crate) PathBuf);

impl Temporary {
    pub(crate) fn new(root: &Path, what: &str) -> Self {
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

/// Makes the second path a symbolic link to the first.
pub(crate) type Symlink = fn(&str, &Path) -> io::Result<()>;

/// Makes `path`, which does not exist, a symbolic link to `name` beside it. If that fails, makes it a file that holds the
/// name and a line break, as Git does, and returns the failure.
pub(crate) fn link(path: &Path, name: &str, symlink: Symlink) -> io::Result<Option<io::Error>> {
    let Err(failure) = symlink(name, path) else { return Ok(None) };
    let mut file = File::create_new(path)?;
    writeln!(file, "{name}")?;
    sync(&file)?;
    Ok(Some(failure))
}

/// The name to which [`link`] has linked a path.
pub(crate) fn link_target(path: &Path) -> Option<OsString> {
    if let Ok(target) = fs::read_link(path) {
        return target.file_name().map(Into::into);
    }
    if !fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() < MAX_NAME) {
        return None;
    }
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_NAME).read_to_string(&mut text).ok()?;
    let name = text.trim_end();
    (!name.is_empty() && !name.contains(['/', '\n', '\0'])).then(|| name.into())
}

/// The directory that a file such as `checkpoints/best` names, on a file system without symbolic links; else the path
/// itself.
#[must_use]
pub fn follow(path: &Path) -> PathBuf {
    if !path.is_file() {
        return path.into();
    }
    let named = link_target(path).map(|name| parent(path).join(name));
    named.filter(|named| named.is_dir()).unwrap_or_else(|| path.into())
}

/// The result of [`lock`].
#[derive(Debug)]
pub enum Lock {
    /// The lock is held until the file is closed.
    Held,
    /// Another process holds the lock.
    Taken,
    /// The file system has no locks.
    Unsupported(io::Error),
}

/// Takes the lock of a file, if no other process has it.
#[must_use]
pub fn lock(file: &File) -> Lock {
    match rustix::io::retry_on_intr(|| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Lock::Held,
        Err(rustix::io::Errno::WOULDBLOCK) => Lock::Taken,
        Err(errno) => Lock::Unsupported(errno.into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_through_a_link_and_keeps_its_permissions() {
        let root = tempfile::tempdir().unwrap();
        let (file, link) = (root.path().join("report.html"), root.path().join("newest"));
        write_whole(&file, b"first").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("report.html", &link).unwrap();
        write_whole(&link, b"second").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"second");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2, "nothing else is left");
    }

    /// As with `report --out /dev/stdout`.
    #[test]
    fn a_device_is_written_in_place() {
        write_whole(Path::new("/dev/null"), b"text").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        let root = tempfile::tempdir().unwrap();
        assert!(write_whole(root.path(), b"text").is_err(), "a directory");
        assert!(write_whole(&root.path().join("no/such"), b"text").is_err());
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("report.html");
        write_whole(&file, b"good").unwrap();
        let full = |file: &mut File| {
            file.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        };
        assert_eq!(replace(&file, full).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&file).unwrap(), b"good");
        assert!(replace(&root.path().join("new"), full).is_err());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_file_is_followed_to_the_directory_that_it_names() {
        let root = tempfile::tempdir().unwrap();
        let (directory, best) = (root.path().join("step-00000001"), root.path().join("best"));
        fs::create_dir(&directory).unwrap();
        fs::write(&best, "step-00000001\n").unwrap();
        assert_eq!(follow(&best), directory);
        // Any other file is not a link.
        for text in ["step-00000002\n", "", "../step-00000001", "a\nb\n", &"x".repeat(1 << 10)] {
            fs::write(&best, text).unwrap();
            assert_eq!(follow(&best), best, "{text:?}");
        }
        assert_eq!(follow(&directory), directory);
        assert_eq!(follow(Path::new("no/such")), Path::new("no/such"));
    }

    #[test]
    fn a_lock_has_one_holder() {
        let root = tempfile::tempdir().unwrap();
        let open = || File::create(root.path().join("lock")).unwrap();
        let (first, second) = (open(), open());
        assert!(matches!(lock(&first), Lock::Held));
        assert!(matches!(lock(&second), Lock::Taken));
        drop(first);
        assert!(matches!(lock(&second), Lock::Held));
    }
}
