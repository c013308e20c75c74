//! One option of a command, and what it is called in each layer.

use std::any::TypeId;

use clap::{Arg, ArgAction, Command};

use crate::{CONFIG, PRINT_CONFIG, documents};

/// What kind of value an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// None: it is there or not.
    Flag,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer,
    /// A number, perhaps with a fraction.
    Float,
    /// Words, a path, or numbers that an option reads in its own way.
    Text,
}

/// An option that every layer can give: one with a long name that is no question about the program.
#[derive(Clone, Copy, Debug)]
pub struct Opt<'a> {
    /// As clap knows it.
    pub arg: &'a Arg,
    /// Its long name, without the dashes: its key in a file.
    pub name: &'a str,
}

impl Opt<'_> {
    /// What clap knows it by.
    #[must_use]
    pub fn id(&self) -> &str {
        self.arg.get_id().as_str()
    }

    /// The variable that gives it.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("TALLY_{}", self.name.to_uppercase().replace('-', "_"))
    }

    /// What it takes.
    #[must_use]
    pub fn kind(&self) -> Kind {
        let is = |types: &[TypeId]| types.iter().any(|of| self.arg.get_value_parser().type_id() == *of);
        let whole = [
            TypeId::of::<u8>(),
            TypeId::of::<u16>(),
            TypeId::of::<u32>(),
            TypeId::of::<u64>(),
            TypeId::of::<usize>(),
            TypeId::of::<i32>(),
            TypeId::of::<i64>(),
        ];
        if matches!(self.arg.get_action(), ArgAction::SetTrue) {
            Kind::Flag
        } else if is(&[TypeId::of::<bool>()]) {
            Kind::Bool
        } else if is(&whole) {
            Kind::Integer
        } else if is(&[TypeId::of::<f32>(), TypeId::of::<f64>()]) {
            Kind::Float
        } else {
            Kind::Text
        }
    }

    /// Whether it may have several values.
    #[must_use]
    pub fn takes_several(&self) -> bool {
        matches!(self.arg.get_action(), ArgAction::Append)
            || self.arg.get_num_args().is_some_and(|range| range.max_values() > 1)
    }
}

/// The options of one command, of a tree that was built.
pub fn options(command: &Command) -> impl Iterator<Item = Opt<'_>> {
    command.get_arguments().filter_map(|arg| {
        let question = matches!(
            arg.get_action(),
            ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
        );
        let name = arg.get_long().filter(|name| !question && ![CONFIG, PRINT_CONFIG].contains(name))?;
        Some(Opt { arg, name })
    })
}

/// The commands of a tree that have options to configure, the root first, each with its full name such
/// as `coordinator.status`.
#[must_use]
pub fn commands(root: &Command) -> Vec<(String, &Command)> {
    let mut found = vec![(root.get_name().to_owned(), root)];
    let mut next = 0;
    while let Some((name, command)) = found.get(next).cloned() {
        let inner = subcommands(command).map(|inner| (format!("{name}.{}", inner.get_name()), inner));
        found.extend(inner);
        next += 1;
    }
    found
}

/// The commands right below one, but for those that only tell of the program.
pub fn subcommands(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|inner| !documents::is_about_the_program(inner.get_name()))
}
