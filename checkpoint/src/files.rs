//! Files that are whole or absent, on file systems that lack something.
//!
//! What a file system may lack, and what is done without it:
//!
//! | it lacks | found on | done without it |
//! | --- | --- | --- |
//! | symbolic links | FAT, some SMB shares and FUSE | a file that names the directory ([`point`], [`follow`]) |
//! | `fsync`, of directories above all | some network file systems and FUSE | nothing: no stronger promise is to be had ([`sync`]) |
//! | an exchange of two names | NFS, FUSE, older kernels | two renames (`store`) |
//! | renames of directories of a lower layer | OverlayFS | what makes it a checkpoint is removed first (`store`) |
//! | locks | Lustre without `flock`, some FUSE and NFS | nothing; the caller is told ([`lock`]) |
//! | room | all | [`write_whole`] leaves what was there |
//!
//! Each is found by trying, since no list of file systems is ever complete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;

/// More bytes than the longest name that [`point`] writes.
const LONGEST_NAME: u64 = 256;

/// Has a file, or the entries of a directory, on the disk, where the file system has such a thing.
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

/// Has a directory's entries on the disk, as [`sync`].
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

/// Writes a file whole and durably, or leaves what was there: the bytes go to a hidden file beside it first, which
/// then takes its name. A link is followed, and permissions stay. What is no regular file (a pipe, `/dev/stdout`), and a
/// file in a directory that takes no other, are written as they are.
///
/// # Errors
/// If the disk is full or refuses.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, |file| file.write_all(bytes))
}

fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let there = fs::metadata(path);
    if there.as_ref().is_ok_and(|there| !there.is_file()) {
        return write(&mut File::create(path)?);
    }
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = parent(&path).join(format!(".tmp-{}-{count}", std::process::id()));
    let mut file = match File::create(&temporary) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && there.is_ok() => {
            return write(&mut File::create(&path)?);
        }
        Err(error) => return Err(error),
    };
    let written = (|| {
        write(&mut file)?;
        sync(&file)?;
        if let Ok(there) = there {
            // Where it can't be kept, the new one has those of any new file.
            let _ = fs::set_permissions(&temporary, there.permissions());
        }
        fs::rename(&temporary, &path)
    })();
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_directory(parent(&path))
}

/// Makes the second a symbolic link to the first.
pub(crate) type Symlink = fn(&str, &Path) -> io::Result<()>;

/// Makes `path`, which is not there, lead to `name` beside it: as a symbolic link, or else as a file that holds the
/// name and a line break, as Git does. Returns why it is no link, if it is none.
pub(crate) fn point(path: &Path, name: &str, symlink: Symlink) -> io::Result<Option<io::Error>> {
    let Err(lacking) = symlink(name, path) else { return Ok(None) };
    let mut file = File::create_new(path)?;
    writeln!(file, "{name}")?;
    sync(&file)?;
    Ok(Some(lacking))
}

/// The name that a file made by [`point`] holds, or that a link leads to.
pub(crate) fn pointed(path: &Path) -> Option<OsString> {
    if let Ok(target) = fs::read_link(path) {
        return target.file_name().map(Into::into);
    }
    if !fs::symlink_metadata(path).is_ok_and(|there| there.is_file() && there.len() < LONGEST_NAME) {
        return None;
    }
    let mut text = String::new();
    File::open(path).ok()?.take(LONGEST_NAME).read_to_string(&mut text).ok()?;
    let name = text.trim_end();
    (!name.is_empty() && !name.contains(['/', '\n', '\0'])).then(|| name.into())
}

/// Where a path leads to: the directory named by a file such as `checkpoints/best`, where there are no symbolic
/// links; else the path itself.
#[must_use]
pub fn follow(path: &Path) -> PathBuf {
    if !path.is_file() {
        return path.into();
    }
    let named = pointed(path).map(|name| parent(path).join(name));
    named.filter(|named| named.is_dir()).unwrap_or_else(|| path.into())
}

/// Whether a lock was had.
#[derive(Debug)]
pub enum Lock {
    /// It is held until the file is closed.
    Held,
    /// Somebody else holds it.
    Taken,
    /// The file system has no locks: nobody knows who else is there.
    Unsupported(io::Error),
}

/// Takes the lock of a file, if nobody has it.
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

    /// `report --out /dev/stdout`, or a pipe: there is nothing to rename.
    #[test]
    fn what_is_no_file_is_written_to() {
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
    fn a_file_leads_to_the_directory_that_it_names() {
        let root = tempfile::tempdir().unwrap();
        let (directory, best) = (root.path().join("step-00000001"), root.path().join("best"));
        fs::create_dir(&directory).unwrap();
        fs::write(&best, "step-00000001\n").unwrap();
        assert_eq!(follow(&best), directory);
        // Whatever else is in a file, it is the file that was meant.
        for text in ["step-00000002\n", "", "../step-00000001", "a\nb\n", &"x".repeat(1 << 10)] {
            fs::write(&best, text).unwrap();
            assert_eq!(follow(&best), best, "{text:?}");
        }
        assert_eq!(follow(&directory), directory);
        assert_eq!(follow(Path::new("no/such")), Path::new("no/such"));
    }

    #[test]
    fn a_lock_is_one_processs_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let open = || File::create(root.path().join("lock")).unwrap();
        let (first, second) = (open(), open());
        assert!(matches!(lock(&first), Lock::Held));
        assert!(matches!(lock(&second), Lock::Taken));
        drop(first);
        assert!(matches!(lock(&second), Lock::Held));
    }
}
