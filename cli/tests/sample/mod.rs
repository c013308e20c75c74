//! A small program with every kind of option, and what the tests ask of it.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Command, Parser, Subcommand};
use tally_cli::layers::{Resolved, resolve};
use tally_cli::{ConfigError, Environment};
use tempfile::NamedTempFile;

#[derive(Debug, Parser)]
#[command(name = "coordinator", version, args_conflicts_with_subcommands = true)]
pub struct Sample {
    #[command(subcommand)]
    pub command: Option<Inner>,
    #[command(flatten)]
    pub train: Train,
}

#[derive(Debug, Subcommand)]
pub enum Inner {
    /// Look at runs
    Look(Look),
}

#[derive(Debug, Args)]
pub struct Train {
    /// Workers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "Cluster")]
    pub workers: u32,
    #[arg(long, help_heading = "Cluster")]
    pub local: bool,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N", requires = "local", help_heading = "Cluster")]
    pub threads: Option<u32>,
    #[arg(long, value_name = "SECONDS", default_value_t = 60, help_heading = "Cluster")]
    pub connect_timeout: u64,
    #[arg(long, conflicts_with = "connect_timeout", help_heading = "Cluster")]
    pub stay: bool,
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,
    #[arg(long)]
    pub name: Option<String>,
    #[arg(long, value_name = "TAG", num_args = 1..)]
    pub tag: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Look {
    pub runs: Vec<PathBuf>,
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    #[arg(long)]
    pub name: Option<String>,
}

pub fn command() -> Command {
    tally_cli::command::<Sample>()
}

/// Merges a command line and an environment.
pub fn layers(line: &str, variables: &[(&str, &str)]) -> Result<Resolved, ConfigError> {
    let args = std::iter::once("coordinator").chain(line.split_whitespace());
    let environment: Environment = variables.iter().copied().collect();
    resolve(&command(), args.map(OsString::from).collect(), &environment)
}

/// The same with a file that holds `text`, and the error as it is printed; there the file's name is `FILE`.
pub fn with_file(line: &str, variables: &[(&str, &str)], text: &str) -> Result<Resolved, String> {
    let file = file(text);
    let path = file.path().to_str().unwrap();
    layers(line, &[variables, &[("TALLY_CONFIG", path)]].concat()).map_err(|error| {
        let printed = match error {
            ConfigError::Arguments(error) => error.to_string(),
            error => format!("error: {error}"),
        };
        printed.replace(path, "FILE")
    })
}

pub fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

pub fn train(resolved: &Resolved) -> Train {
    use clap::FromArgMatches as _;
    Sample::from_arg_matches(&resolved.matches).unwrap().train
}

pub fn look(resolved: &Resolved) -> Look {
    use clap::FromArgMatches as _;
    match Sample::from_arg_matches(&resolved.matches).unwrap().command {
        Some(Inner::Look(look)) => look,
        None => unreachable!("the command is look"),
    }
}
