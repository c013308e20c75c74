//! A path as it is kept in a file and shown in a command, so that it leads to the same place from anywhere.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A path that is absolute, and byte for byte what was given. In JSON it is a string; one that is not Unicode is
/// an object with its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct KeptPath(PathBuf);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Bytes { bytes: Vec<u8> },
}

impl From<Written> for KeptPath {
    fn from(written: Written) -> Self {
        // Not made absolute: the first versions kept relative paths, and nobody knows any more from where.
        Self(match written {
            Written::Text(text) => text.into(),
            Written::Bytes { bytes } => std::ffi::OsString::from_vec(bytes).into(),
        })
    }
}

impl From<KeptPath> for Written {
    fn from(kept: KeptPath) -> Self {
        match kept.0.into_os_string().into_string() {
            Ok(text) => Self::Text(text),
            Err(path) => Self::Bytes { bytes: path.into_vec() },
        }
    }
}

impl From<&Path> for KeptPath {
    /// Keeps a path that is relative to where this process is.
    fn from(path: &Path) -> Self {
        Self(std::path::absolute(path).unwrap_or_else(|_| path.into()))
    }
}

impl AsRef<Path> for KeptPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

/// For people.
impl fmt::Display for KeptPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// A path as a word of a command that a shell reads: in quotes, if it needs any.
#[must_use]
pub fn quoted(path: impl AsRef<OsStr>) -> String {
    let path = path.as_ref();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+,:@%=".contains(byte);
    match path.to_str() {
        Some(text) if !text.is_empty() && text.bytes().all(|byte| plain(&byte)) => text.into(),
        Some(text) if !text.contains(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        // As bash, zsh and ksh read it: what is not visible is written by its number.
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
    fn a_relative_path_is_kept_as_an_absolute_one() {
        let kept = KeptPath::from(Path::new("data/mnist"));
        assert_eq!(kept.as_ref(), std::env::current_dir().unwrap().join("data/mnist"));
        assert_eq!(KeptPath::from(Path::new("/data")).to_string(), "/data");
    }

    #[test]
    fn every_byte_of_a_path_comes_back_from_json() {
        for bytes in [&b"/data"[..], b"/my data/\xe4\xb8\xad", b"/caf\xe9", b"/a\nb", b"/\"\\"] {
            let path = PathBuf::from(OsString::from_vec(bytes.to_vec()));
            let json = serde_json::to_string(&KeptPath::from(path.as_path())).unwrap();
            let read: KeptPath = serde_json::from_str(&json).unwrap();
            assert_eq!(read.as_ref(), path, "{json}");
            // What older versions write and read.
            assert_eq!(json.starts_with('"'), path.to_str().is_some(), "{json}");
        }
        let older: KeptPath = serde_json::from_str("\"data\"").unwrap();
        assert_eq!(older.as_ref(), Path::new("data"));
    }

    #[test]
    fn a_shell_reads_a_quoted_path_as_it_is() {
        assert_eq!(quoted("runs/run-0001"), "runs/run-0001");
        assert_eq!(quoted("my runs/run-0001"), "'my runs/run-0001'");
        for bytes in
            [&b"it's here"[..], b"$HOME", b"", b"a;b&c|d", b"caf\xe9", b"a\nb\tc", b"\\x41", b"~/a", b"*"]
        {
            let path = OsString::from_vec(bytes.to_vec());
            let printed = Command::new("bash").arg("-c").arg(format!("printf %s {}", quoted(&path))).output();
            assert_eq!(printed.unwrap().stdout, bytes, "{}", quoted(&path));
        }
    }
}
