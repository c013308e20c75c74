//! Reads the file that an option names, be it a regular file or a pipe.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The content of pipes that were read, by path.
static PIPES: Mutex<BTreeMap<PathBuf, Vec<u8>>> = Mutex::new(BTreeMap::new());

/// The bytes of the file at `path`, without the byte order mark that some editors write. A regular file is read each
/// time, so that it can be renewed. A pipe, such as that of `<(command)`, can be read only once, so its content is kept
/// as long as the process runs.
///
/// # Errors
/// The system's error; [`io::ErrorKind::InvalidData`] for text in UTF-16.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = if std::fs::metadata(path)?.is_file() {
        std::fs::read(path)?
    } else {
        let mut pipes = PIPES.lock().unwrap_or_else(PoisonError::into_inner);
        match pipes.get(path) {
            Some(bytes) => bytes.clone(),
            None => pipes.entry(path.into()).or_insert(std::fs::read(path)?).clone(),
        }
    };
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        let why = "it is text in UTF-16, as PowerShell's > writes it; save it as UTF-8 or ASCII";
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(bytes.strip_prefix(b"\xef\xbb\xbf").map(<[u8]>::to_vec).unwrap_or(bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn a_file_is_read_anew_each_time() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("a");
        for text in ["first", "second"] {
            fs::write(&file, text).unwrap();
            assert_eq!(read(&file).unwrap(), text.as_bytes());
        }
        fs::remove_file(&file).unwrap();
        assert_eq!(read(&file).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// The shell passes `<(command)` as the path of a pipe.
    #[test]
    fn a_pipe_can_be_read_again() {
        let (end, mut writer) = io::pipe().unwrap();
        writer.write_all(b"0123456789abcdef\n").unwrap();
        drop(writer);
        let path = PathBuf::from(format!("/dev/fd/{}", end.as_raw_fd()));
        for _ in 0..3 {
            assert_eq!(read(&path).unwrap(), b"0123456789abcdef\n");
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("a");
        fs::write(&file, b"\xef\xbb\xbftext").unwrap();
        assert_eq!(read(&file).unwrap(), b"text");
        fs::write(&file, b"\xff\xfet\0e\0").unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("UTF-16"));
    }
}
