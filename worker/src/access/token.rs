//! The shared secrets of a cluster.
//!
//! A token is compared in constant time, whatever its length, and no way of printing one
//! shows it. It is read without the white space around it, since editors and `echo` add a
//! newline.

use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use thiserror::Error;

use super::file;

/// The fewest characters of a token.
pub const SHORTEST: usize = 16;
/// The most, so that it fits the headers of any HTTP server and proxy.
pub const LONGEST: usize = 1024;

/// Why something is no token.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The file can't be read.
    #[error("cannot read the token file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is empty, or too short to be a secret.
    #[error(
        "the token in {place} has {length} characters, and a secret has at least {SHORTEST}; make one with: openssl rand -hex 32"
    )]
    Short {
        /// Where it was found.
        place: String,
        /// Its length.
        length: usize,
    },
    /// No secret is that long.
    #[error("the token in {0} has more than {LONGEST} characters; is that the right file?")]
    Long(String),
    /// It is written as a shell or a file of variables would have it.
    #[error(
        "the token in {0} has {1} around or before it, which not every reader takes off; leave the bare token there, on every machine"
    )]
    Wrapped(String, &'static str),
    /// It cannot be sent in a header.
    #[error(
        "the token in {0} has characters other than visible ASCII ones; make one with: openssl rand -hex 32"
    )]
    Characters(String),
}

/// A secret that whoever shows it has been given.
#[derive(Clone)]
pub struct Token {
    secret: String,
    /// What is compared: both sides of a comparison have one length, so that it tells nothing.
    digest: [u8; 32],
}

impl Token {
    /// A token from the text of `place`, which errors name.
    ///
    /// # Errors
    /// [`TokenError`] if it is too short, too long, or can't be sent.
    pub fn new(text: &str, place: &str) -> Result<Self, TokenError> {
        let secret = text.trim();
        // A file of variables is read with its quotes by Docker and without them by systemd and shells.
        if [['"'; 2], ['\''; 2]]
            .iter()
            .any(|[a, b]| secret.len() > 1 && secret.starts_with(*a) && secret.ends_with(*b))
        {
            return Err(TokenError::Wrapped(place.into(), "quotes"));
        }
        if secret.starts_with("TALLY_") && secret.contains('=') {
            return Err(TokenError::Wrapped(place.into(), "the name of a variable"));
        }
        if secret.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("bearer ")) {
            return Err(TokenError::Wrapped(place.into(), "the word Bearer"));
        }
        if secret.len() < SHORTEST {
            return Err(TokenError::Short { place: place.into(), length: secret.len() });
        }
        if secret.len() > LONGEST {
            return Err(TokenError::Long(place.into()));
        }
        if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Characters(place.into()));
        }
        Ok(Self { secret: secret.into(), digest: digest(secret.as_bytes()) })
    }

    /// Reads a file's.
    ///
    /// # Errors
    /// [`TokenError`] if it can't be read or holds none.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text = file::read(path).map_err(|source| TokenError::Read { path: path.into(), source })?;
        let place = path.display().to_string();
        let text = std::str::from_utf8(&text).map_err(|_| TokenError::Characters(place.clone()))?;
        Self::new(text, &place)
    }

    /// The file's if one is named, else the environment's, if there is one.
    ///
    /// # Errors
    /// [`TokenError`] if what there is is no token.
    pub fn find(file: Option<&Path>, variable: &str) -> Result<Option<Self>, TokenError> {
        match (file, std::env::var_os(variable)) {
            (Some(path), _) => Self::read(path).map(Some),
            (None, Some(text)) => {
                let text = text.to_str().ok_or_else(|| TokenError::Characters(variable.into()))?;
                Self::new(text, variable).map(Some)
            }
            (None, None) => Ok(None),
        }
    }

    /// Whether this is what somebody has shown; takes as long for any that is not.
    #[must_use]
    pub fn is(&self, shown: &[u8]) -> bool {
        self.digest.ct_eq(&digest(shown)).into()
    }

    /// The header that shows it: `authorization: Bearer …`.
    #[must_use]
    pub fn bearer(&self) -> String {
        format!("Bearer {}", self.secret)
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.digest.ct_eq(&other.digest).into()
    }
}

/// Never the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn trust_1_a_token_is_what_is_between_the_white_space() {
        let token = Token::new(" 0123456789abcdef\r\n", "here").unwrap();
        assert!(token.is(b"0123456789abcdef"));
        for other in [&b""[..], b"0123456789abcde", b"0123456789abcdeg", b"0123456789abcdef\n", b" "] {
            assert!(!token.is(other), "{other:?}");
        }
        assert_eq!(token.bearer(), "Bearer 0123456789abcdef");
    }

    #[test]
    fn trust_1_a_token_is_not_printed() {
        let token = Token::new("0123456789abcdef", "here").unwrap();
        assert!(!format!("{token:?} {:#?}", Some(&token)).contains("0123"));
        let short = Token::new("hunter2", "here").unwrap_err().to_string();
        assert!(short.contains("7 characters") && !short.contains("hunter2"), "{short}");
    }

    /// One side would show the quotes, and the other not ask for them.
    #[test]
    fn a_token_that_is_wrapped_in_something_is_refused_and_not_shown() {
        for (text, words) in [
            ("\"0123456789abcdef\"\n", "quotes"),
            ("'0123456789abcdef'", "quotes"),
            ("\"\"", "quotes"),
            ("TALLY_TOKEN=0123456789abcdef\n", "the name of a variable"),
            ("Bearer 0123456789abcdef", "the word Bearer"),
        ] {
            let error = Token::new(text, "the-file").unwrap_err().to_string();
            assert!(
                error.contains("the-file") && error.contains(words) && !error.contains("0123"),
                "{error}"
            );
        }
        // A quote inside is a character like any other.
        assert!(Token::new("0123456789'abc\"ef\"", "the-file").is_ok());
    }

    #[test]
    fn what_is_no_secret_is_refused_with_its_place() {
        for text in [
            "",
            " \n",
            "fifteen-letters",
            &"x".repeat(LONGEST + 1),
            "0123456789 abcdef",
            "0123456789ab\u{e9}def",
        ] {
            let error = Token::new(text, "the-file").unwrap_err().to_string();
            assert!(error.contains("the-file"), "{error}");
        }
        assert!(Token::read("/no/such/file".as_ref()).unwrap_err().to_string().contains("/no/such/file"));
    }
}
