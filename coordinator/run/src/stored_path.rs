//! Paths that are stored in files, so that they are valid in every working directory, and paths in shell commands.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// An absolute path, with exactly the bytes that were given. In JSON it is a string, or an object with its bytes if it
/// is not Unicode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Json", into = "Json")]
pub struct StoredPath(PathBuf);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Json {
    Text(String),
    Bytes { bytes: Vec<u8> },
}

impl From<Json> for StoredPath {
    fn from(json: Json) -> Self {
        // A relative path, as older versions stored it, stays as it is: its working directory is unknown.
        Self(match json {
            Json::Text(text) => text.into(),
            Json::Bytes { bytes } => std::ffi::OsString::from_vec(bytes).into(),
        })
    }
}

impl From<StoredPath> for Json {
    fn from(path: StoredPath) -> Self {
        match path.0.into_os_string().into_string() {
            Ok(text) => Self::Text(text),
            Err(path) => Self::Bytes { bytes: path.into_vec() },
        }
    }
}

impl From<&Path> for StoredPath {
    /// Makes a path absolute, from the working directory.
    fn from(path: &Path) -> Self {
        Self(std::path::absolute(path).unwrap_or_else(|_| path.into()))
    }
}

impl AsRef<Path> for StoredPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

/// As people read it: bytes that are not Unicode are replaced.
impl fmt::Display for StoredPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// A path as a word of a shell command, in quotes if it needs them.
#[must_use]
pub fn shell_quoted(path: impl AsRef<OsStr>) -> String {
    let path = path.as_ref();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+,:@%=".contains(byte);
    match path.to_str() {
        Some(text) if !text.is_empty() && text.bytes().all(|byte| plain(&byte)) => text.into(),
        Some(text) if !text.contains(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        // The form of bash, zsh and ksh, which writes control characters by their numbers.
        _ => {
            let bytes = path.as_bytes().iter().map(|byte| match byte {
                byte if plain(byte) || *byte == b' ' => char::from(*byte).to_string(),
                byte => format!("\\x{byte:02x}"),
            });
            format!("$'{}'", bytes.collect::<String>())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::ffi::OsString;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_relative_path_is_stored_as_an_absolute_one() {
        let stored = StoredPath::from(Path::new("data/mnist"));
        assert_eq!(stored.as_ref(), std::env::current_dir().unwrap().join("data/mnist"));
        assert_eq!(StoredPath::from(Path::new("/data")).to_string(), "/data");
    }

    #[test]
    fn every_byte_of_a_path_comes_back_from_json() {
        for bytes in [&b"/data"[..], b"/my data/\xe4\xb8\xad", b"/caf\xe9", b"/a\nb", b"/\"\\"] {
            let path = PathBuf::from(OsString::from_vec(bytes.to_vec()));
            let json = serde_json::to_string(&StoredPath::from(path.as_path())).unwrap();
            let read: StoredPath = serde_json::from_str(&json).unwrap();
            assert_eq!(read.as_ref(), path, "{json}");
            // Older versions write and read a string.
            assert_eq!(json.starts_with('"'), path.to_str().is_some(), "{json}");
        }
        let older: StoredPath = serde_json::from_str("\"data\"").unwrap();
        assert_eq!(older.as_ref(), Path::new("data"));
    }

    #[test]
    fn a_shell_reads_a_quoted_path_as_it_is() {
        assert_eq!(shell_quoted("runs/run-0001"), "runs/run-0001");
        assert_eq!(shell_quoted("my runs/run-0001"), "'my runs/run-0001'");
        for bytes in
            [&b"it's here"[..], b"$HOME", b"", b"a;b&c|d", b"caf\xe9", b"a\nb\tc", b"\\x41", b"~/a", b"*"]
        {
            let path = OsString::from_vec(bytes.to_vec());
            let printed =
                Command::new("bash").arg("-c").arg(format!("printf %s {}", shell_quoted(&path))).output();
            assert_eq!(printed.unwrap().stdout, bytes, "{}", shell_quoted(&path));
        }
    }
}
