//! Errors of options. Each says what is wrong, where, and what to do.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::given::Origin;

/// Options that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// clap refuses a value, from any layer.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// The file can't be read.
    #[error("cannot read {}, which {named_by} names: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// `--config` or the variable.
        named_by: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// It is not TOML. The line itself is not shown, because it may contain a secret.
    #[error("line {line} of {} is no TOML: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser said.
        reason: String,
    },
    /// It has something that is none of the program's options.
    #[error("{origin}: {what}; {remedy}")]
    Unknown {
        /// Where.
        origin: Origin,
        /// What is there.
        what: String,
        /// What may have been meant, or where to look.
        remedy: String,
    },
    /// A value is of another type than the option's.
    #[error("{origin}: {name} takes {expected}, not {found}")]
    Type {
        /// Where.
        origin: Origin,
        /// The option's key or variable.
        name: String,
        /// What it takes.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A value cannot be written in TOML.
    #[error(
        "--{option} is not Unicode, and TOML can say nothing else; give it on the command line or in the environment"
    )]
    NotUnicode {
        /// The option.
        option: String,
    },
    /// What was asked for cannot be written.
    #[error("cannot write {place}: {source}")]
    Write {
        /// Where to.
        place: String,
        /// The system's error.
        source: io::Error,
    },
}
