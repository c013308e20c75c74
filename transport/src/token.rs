//! The shared secrets of a cluster.
//!
//! A token is compared in constant time, whatever its length, and neither `Debug` nor an error
//! prints it. White space around it is dropped, since editors and `echo` add a newline.

use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use thiserror::Error;

use crate::option_file;

/// The fewest characters of a token.
pub const SHORTEST: usize = 16;
/// The most, so that it fits the headers of any HTTP server and proxy.
pub const LONGEST: usize = 1024;

/// Why a text is not a token.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the token file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The text is empty, or too short to be a secret.
    #[error(
        "the token in {place} has {length} characters, and a secret has at least {SHORTEST}; make one with: openssl rand -hex 32"
    )]
    Short {
        /// Where it was found.
        place: String,
        /// Its length.
        length: usize,
    },
    /// The text is longer than any secret.
    #[error("the token in {0} has more than {LONGEST} characters; is that the right file?")]
    Long(String),
    /// The text has quotes, a variable's name or "Bearer" around the token.
    #[error(
        "the token in {0} has {1} around or before it, which not every reader takes off; leave the bare token there, on every machine"
    )]
    Wrapped(String, &'static str),
    /// The text cannot be sent in a header.
    #[error(
        "the token in {0} has characters other than visible ASCII ones; make one with: openssl rand -hex 32"
    )]
    Characters(String),
}

/// A secret; a client that presents it is taken for authorised.
#[derive(Clone)]
pub struct Token {
    secret: String,
    /// Tokens are compared by their digests: these have one length, so that the time reveals nothing.
    digest: [u8; 32],
}

impl Token {
    /// A token from `text`; errors name `place`, where it was found.
    ///
    /// # Errors
    /// [`TokenError`] if it is too short, too long, or cannot be sent.
    pub fn new(text: &str, place: &str) -> Result<Self, TokenError> {
        let secret = text.trim();
        // Docker keeps the quotes in an environment file; systemd and shells remove them.
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

    /// The token in a file.
    ///
    /// # Errors
    /// [`TokenError`] if it cannot be read or holds none.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text =
            option_file::read(path).map_err(|source| TokenError::Read { path: path.into(), source })?;
        let place = path.display().to_string();
        let text = std::str::from_utf8(&text).map_err(|_| TokenError::Characters(place.clone()))?;
        Self::new(text, &place)
    }

    /// The token in `file` if it is given, else the one in the environment variable, if that is set.
    ///
    /// # Errors
    /// [`TokenError`] if there is a text that is not a token.
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

    /// Whether `shown` is this token. The comparison takes as long for any other text.
    #[must_use]
    pub fn is(&self, shown: &[u8]) -> bool {
        self.digest.ct_eq(&digest(shown)).into()
    }

    /// The value of the `authorization` header: `Bearer …`.
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

/// The secret itself is never printed.
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

    /// One side would send the quotes, and the other would not expect them.
    #[test]
    fn a_token_with_quotes_a_name_or_bearer_is_refused_and_not_shown() {
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
    fn a_text_that_is_not_a_secret_is_refused_with_its_place() {
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
