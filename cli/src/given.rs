//! The value of an option in a layer, and its origin.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// The value of an option in a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// That a flag is there or not.
    Flag(bool),
    /// Its value, or values.
    Values(Vec<OsString>),
}

/// The origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    CommandLine,
    /// A variable of the environment.
    Variable(String),
    /// A line of a file, from 1.
    Line {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("the command line"),
            Self::Variable(name) => write!(f, "{name} in the environment"),
            Self::Line { path, line } => write!(f, "line {line} of {}", path.display()),
        }
    }
}

/// A value, and its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// What.
    pub said: Said,
    /// Where.
    pub origin: Origin,
}

/// Options by their long names.
pub type Layer = BTreeMap<String, Given>;
