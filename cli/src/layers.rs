//! One set of options from all layers.
//!
//! First the command and its options on the command line are found. Options that are missing are looked up in the
//! environment, then in the file, and appended to the command line. Then clap parses all of it as if it had been
//! written there.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use crate::documents::is_about_the_program;
use crate::environment::{CONFIG_VARIABLE, Environment};
use crate::error::ConfigError;
use crate::file;
use crate::flags::{flags, read};
use crate::given::{Given, Layer, Origin, Said};
use crate::option::{Kind, commands, options};
use crate::{CONFIG, PRINT_CONFIG};

/// The result of merging the layers.
#[derive(Debug)]
pub struct Resolved {
    /// The options in force, as clap parsed them.
    pub matches: ArgMatches,
    /// The names of the command in play, below the program's.
    pub names: Vec<String>,
    /// Which options a layer gave, and which one.
    pub given: Layer,
    /// Whether they are to be printed.
    pub print: bool,
    /// Warnings.
    pub warnings: Vec<String>,
}

/// Merges the layers for the command that `args` name; the first of them is the program.
///
/// # Errors
/// If anything that was given cannot be used. `--help` and `--version` are errors of clap as well.
pub fn resolve(
    command: &Command,
    args: Vec<OsString>,
    environment: &Environment,
) -> Result<Resolved, ConfigError> {
    let mut tree = command.clone();
    tree.build();
    // Errors are ignored here, and reported after all layers are merged; --help is answered at once.
    let all = flags(commands(&tree).into_iter().map(|(_, command)| command));
    let first = command.clone().ignore_errors(true).try_get_matches_from(read(&args, &all).0)?;
    let names = names(&first);
    if names.iter().any(|name| is_about_the_program(name)) {
        let matches = command.clone().try_get_matches_from(args)?;
        return Ok(Resolved { matches, names, given: Layer::new(), print: false, warnings: Vec::new() });
    }
    let (in_play, first) = descend(&tree, &first, &names);
    let on_the_line = |id: &str| first.value_source(id) == Some(ValueSource::CommandLine);

    // What the environment says takes the place of what the file says.
    let mut lower = match (first.get_one::<PathBuf>(CONFIG), environment.get(CONFIG_VARIABLE)) {
        (Some(path), _) => file::layer(path, "--config", &tree, &names)?,
        (None, Some(path)) => file::layer(path.as_ref(), CONFIG_VARIABLE, &tree, &names)?,
        (None, None) => Layer::new(),
    };
    lower.extend(environment.layer(in_play)?);
    let (above, open): (Vec<_>, Vec<_>) = options(in_play).partition(|option| on_the_line(option.id()));
    let (args, taken_back) = read(&args, &flags([in_play]));
    lower.retain(|name, _| !taken_back.contains(name) && open.iter().any(|option| option.name == name));

    let print = on_the_line(PRINT_CONFIG);
    let command = if print { without_required(command.clone(), &names) } else { command.clone() };
    let matches =
        parse(&command, &args, &lower).map_err(|error| explained(error, &command, &args, &lower))?;

    let (_, parsed) = descend(&tree, &matches, &names);
    let mut given = lower;
    let no = Given { said: Said::Flag(false), origin: Origin::CommandLine };
    given.extend(taken_back.into_iter().map(|name| (name, no.clone())));
    given.extend(above.into_iter().map(|option| {
        let values = parsed.get_raw(option.id()).into_iter().flatten();
        let said = match option.kind() {
            Kind::Flag => Said::Flag(true),
            _ => Said::Values(values.map(OsString::from).collect()),
        };
        (option.name.to_owned(), Given { said, origin: Origin::CommandLine })
    }));
    let warnings = environment.warnings(&tree, in_play);
    Ok(Resolved { matches, names, given, print, warnings })
}

/// The names of the command in play, below the program's.
fn names(matches: &ArgMatches) -> Vec<String> {
    let mut names = Vec::new();
    let mut matches = matches;
    while let Some((name, inner)) = matches.subcommand() {
        names.push(name.to_owned());
        matches = inner;
    }
    names
}

/// The command in play, and what was parsed for it.
pub(crate) fn descend<'a>(
    tree: &'a Command,
    matches: &'a ArgMatches,
    names: &[String],
) -> (&'a Command, &'a ArgMatches) {
    names.iter().fold((tree, matches), |(command, matches), name| {
        (
            command.find_subcommand(name).unwrap_or(command),
            matches.subcommand_matches(name).unwrap_or(matches),
        )
    })
}

/// To print what there is, nothing need be there.
fn without_required(command: Command, names: &[String]) -> Command {
    match names.split_first() {
        None => command.mut_args(|arg| arg.required(false)),
        Some((name, inner)) => command.mut_subcommand(name, |command| without_required(command, inner)),
    }
}

/// Parses the arguments with what a lower layer gives behind them, or before a `--` that ends them.
fn parse(command: &Command, args: &[OsString], lower: &Layer) -> Result<ArgMatches, clap::Error> {
    let mut args = args.to_vec();
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    args.splice(end..end, lower.iter().flat_map(|(name, given)| arguments(name, &given.said)));
    command.clone().try_get_matches_from(args)
}

/// An option as it is written on a command line.
fn arguments(name: &str, said: &Said) -> Vec<OsString> {
    match said {
        Said::Flag(true) => vec![format!("--{name}").into()],
        Said::Flag(false) => Vec::new(),
        Said::Values(values) => {
            let written = values.iter().map(|value| {
                let mut argument = OsString::from(format!("--{name}="));
                argument.push(value);
                argument
            });
            written.collect()
        }
    }
}

/// The error with its values on one line each, and the origin of each option that it would be another without.
fn explained(mut error: clap::Error, command: &Command, args: &[OsString], lower: &Layer) -> clap::Error {
    let raw: Vec<_> = error
        .context()
        .filter_map(|(kind, value)| match value {
            ContextValue::String(text) if text.contains(char::is_control) => {
                Some((kind, text.escape_debug().to_string()))
            }
            _ => None,
        })
        .collect();
    let matters = |name: &str| {
        let mut without = lower.clone();
        without.remove(name);
        parse(command, args, &without).err().is_none_or(|other| !is_same(&error, &other))
    };
    let tips: Vec<StyledStr> = lower
        .iter()
        .filter(|(name, _)| matters(name))
        .map(|(name, given)| format!("--{name} is {}", given.origin).into())
        .collect();
    if !tips.is_empty() {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    for (kind, text) in raw {
        error.insert(kind, ContextValue::String(text));
    }
    error
}

/// Whether two errors say the same. Their usage is of the arguments and not of the error.
fn is_same(one: &clap::Error, other: &clap::Error) -> bool {
    let said = |error: &clap::Error| {
        let context = error.context().filter(|(kind, _)| *kind != ContextKind::Usage);
        context.map(|(kind, value)| format!("{kind:?} {value:?}")).collect::<Vec<_>>()
    };
    one.kind() == other.kind() && said(one) == said(other)
}
