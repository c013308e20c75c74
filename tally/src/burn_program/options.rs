//! The options that every Burn program has, and the program's own.

use std::collections::BTreeSet;
use std::ffi::OsString;

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, ValueEnum, parser::ValueSource};
use serde::{Deserialize, Serialize};

/// Where workers take their samples from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataMode {
    /// The coordinator sends them: a worker needs no data
    #[default]
    Shipped,
    /// Each worker has all of them on its own machine, and is sent their numbers only
    Local,
}

impl DataMode {
    /// Whether workers have the samples.
    #[must_use]
    pub fn is_local(self) -> bool {
        self == Self::Local
    }
}

impl std::fmt::Display for DataMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Shipped => "shipped",
            Self::Local => "local",
        })
    }
}

#[derive(Clone, Debug, Args)]
struct DataArgs {
    /// Where workers take their samples from
    #[arg(long, value_enum, value_name = "MODE", default_value_t = DataMode::default(), help_heading = "Training")]
    data: DataMode,
}

/// The options of a Burn program: its own, and where its data is. What was given is told from defaults, so that a
/// resumed run can be compared with what was asked for.
#[derive(Clone, Debug)]
pub struct ProgramOptions<A> {
    /// The program's own.
    pub args: A,
    data: DataMode,
    given: BTreeSet<String>,
    /// What was given, as arguments.
    command_line: Vec<OsString>,
}

impl<A: Args> ProgramOptions<A> {
    /// The options without any that was given.
    ///
    /// # Errors
    /// If the program has an option that must be given.
    pub fn default_values() -> anyhow::Result<Self> {
        let command = Self::augment_args(Command::new("defaults").no_binary_name(true));
        let matches = command
            .try_get_matches_from(std::iter::empty::<&str>())
            .context("the program has options without a default; this command needs one for each")?;
        Ok(Self::from_arg_matches(&matches)?)
    }
}

impl<A> ProgramOptions<A> {
    /// Where workers take their samples from.
    #[must_use]
    pub fn data(&self) -> DataMode {
        self.data
    }

    /// The same, if it was said.
    #[must_use]
    pub fn given_data(&self) -> Option<DataMode> {
        self.given.contains("data").then_some(self.data)
    }

    /// What was given, as arguments.
    pub fn command_line(&self) -> &[OsString] {
        &self.command_line
    }

    /// The names of the program's own options that were given.
    pub fn given(&self) -> impl Iterator<Item = &str> {
        self.given.iter().map(String::as_str).filter(|name| *name != "data")
    }
}

impl<A: Args> FromArgMatches for ProgramOptions<A> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let own = Self::augment_args(Command::new("own"));
        let is_given = |arg: &&Arg| {
            let source = matches.value_source(arg.get_id().as_str());
            source.is_some_and(|source| source != ValueSource::DefaultValue)
        };
        let given: Vec<&Arg> = own.get_arguments().filter(is_given).collect();
        let mut command_line = Vec::new();
        for arg in &given {
            let Some(long) = arg.get_long() else { continue };
            let takes_values = arg.get_action().takes_values();
            for value in matches.get_raw(arg.get_id().as_str()).into_iter().flatten().filter(|_| takes_values)
            {
                command_line.extend([format!("--{long}").into(), value.to_owned()]);
            }
            if !takes_values {
                command_line.push(format!("--{long}").into());
            }
        }
        Ok(Self {
            given: given.iter().map(|arg| arg.get_id().as_str().to_owned()).collect(),
            command_line,
            data: DataArgs::from_arg_matches(matches)?.data,
            args: A::from_arg_matches(matches)?,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<A: Args> Args for ProgramOptions<A> {
    fn augment_args(command: Command) -> Command {
        let command = DataArgs::augment_args(command).next_help_heading("The program's own options");
        A::augment_args(command).next_help_heading(None)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
