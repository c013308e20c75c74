//! The layer of the file: TOML, with a table for each program and each of its commands.
//!
//! ```toml
//! [coordinator]
//! batch-size = 64
//!
//! [coordinator.status]
//! connect = "10.0.0.7:50051"
//!
//! [worker]
//! stay = true
//! ```
//!
//! One file serves a whole cluster: a program checks all of its own table, so that a mistake in any of its commands
//! is found at once, and ignores the other program's table. An unknown key is an error.

use std::ffi::OsString;
use std::ops::Range;
use std::path::Path;

use clap::Command;
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use crate::PROGRAMS;
use crate::error::ConfigError;
use crate::given::{Given, Layer, Origin, Said};
use crate::option::{Kind, Opt, commands, options, subcommands};
use crate::similar::similar;

/// What the file says of the options of the command with these names, below the program `tree`.
///
/// # Errors
/// If it can't be read, or holds anything in the program's table that is none of its options or of
/// another type.
pub fn layer(
    path: &Path,
    named_by: &'static str,
    tree: &Command,
    names: &[String],
) -> Result<Layer, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.into(),
        named_by,
        source,
    })?;
    Reader { path, text: &text, root: tree }.read(names)
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    root: &'a Command,
}

impl Reader<'_> {
    fn read(&self, names: &[String]) -> Result<Layer, ConfigError> {
        let whole = DeTable::parse(self.text).map_err(|error| ConfigError::Syntax {
            path: self.path.into(),
            line: self.line(error.span().unwrap_or_default()),
            reason: error.message().to_owned(),
        })?;
        let mut layer = Layer::new();
        for (key, value) in in_order(whole.get_ref()) {
            let name = key.get_ref().as_ref();
            match value.get_ref() {
                DeValue::Table(table) if name == self.root.get_name() => {
                    self.table(self.root, name, table, Some(names), &mut layer)?;
                }
                DeValue::Table(_) if PROGRAMS.contains(&name) => {}
                DeValue::Table(_) => {
                    let what = format!("[{name}] is no program's table");
                    let remedy = match similar(name, PROGRAMS) {
                        Some(meant) => format!("did you mean [{meant}]?"),
                        None => format!("there are [{}]", PROGRAMS.join("] and [")),
                    };
                    return Err(self.unknown(key.span(), what, remedy));
                }
                _ if PROGRAMS.contains(&name) => {
                    let what = format!("{name} is not a table");
                    return Err(self.unknown(key.span(), what, format!("write [{name}] above its options")));
                }
                _ => {
                    let what = format!("{name} is in no program's table");
                    let remedy = format!("put [{}] above it", PROGRAMS.join("] or ["));
                    return Err(self.unknown(key.span(), what, remedy));
                }
            }
        }
        Ok(layer)
    }

    /// Checks a command's table and those below it. `names` lead from here to the command in play, if it
    /// is below here; its options go into `layer`.
    fn table(
        &self,
        command: &Command,
        full_name: &str,
        table: &DeTable<'_>,
        names: Option<&[String]>,
        layer: &mut Layer,
    ) -> Result<(), ConfigError> {
        for (key, value) in in_order(table) {
            let name = key.get_ref().as_ref();
            if let DeValue::Table(inner) = value.get_ref()
                && let Some(below) = subcommands(command).find(|below| below.get_name() == name)
            {
                let names = names.and_then(<[String]>::split_first).filter(|(next, _)| *next == name);
                let full_name = format!("{full_name}.{name}");
                self.table(below, &full_name, inner, names.map(|(_, rest)| rest), layer)?;
                continue;
            }
            let Some(option) = options(command).find(|option| option.name == name) else {
                let is_table = matches!(value.get_ref(), DeValue::Table(_));
                return Err(self.unknown_key(command, full_name, name, key.span(), is_table));
            };
            let said = self.value(&option, value)?;
            if names.is_some_and(<[String]>::is_empty) {
                layer.insert(name.to_owned(), Given { said, origin: self.origin(key.span()) });
            }
        }
        Ok(())
    }

    fn value(&self, option: &Opt<'_>, value: &Spanned<DeValue<'_>>) -> Result<Said, ConfigError> {
        if option.kind() == Kind::Flag {
            return match value.get_ref() {
                DeValue::Boolean(given) => Ok(Said::Flag(*given)),
                _ => Err(self.wrong_type(option, value)),
            };
        }
        let values = match value.get_ref() {
            DeValue::Array(values) if option.takes_several() => {
                values.iter().map(|value| self.scalar(option, value)).collect::<Result<_, _>>()?
            }
            _ => vec![self.scalar(option, value)?],
        };
        Ok(Said::Values(values))
    }

    fn scalar(&self, option: &Opt<'_>, value: &Spanned<DeValue<'_>>) -> Result<OsString, ConfigError> {
        let text = match (option.kind(), value.get_ref()) {
            (Kind::Text, DeValue::String(text)) => Some(text.clone().into_owned()),
            (Kind::Bool, DeValue::Boolean(given)) => Some(given.to_string()),
            (Kind::Integer | Kind::Float | Kind::Text, DeValue::Integer(number)) => decimal(number),
            (Kind::Float | Kind::Text, DeValue::Float(number)) => Some(number.as_str().to_owned()),
            _ => None,
        };
        text.map(OsString::from).ok_or_else(|| self.wrong_type(option, value))
    }

    fn wrong_type(&self, option: &Opt<'_>, value: &Spanned<DeValue<'_>>) -> ConfigError {
        let expected = match (option.kind(), option.takes_several()) {
            (Kind::Flag | Kind::Bool, _) => "true or false",
            (Kind::Integer, false) => "an integer",
            (Kind::Float, false) => "a number",
            (Kind::Text, false) => "a string",
            (Kind::Integer, true) => "an integer or an array of them",
            (Kind::Float, true) => "a number or an array of them",
            (Kind::Text, true) => "a string or an array of them",
        };
        let found = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        ConfigError::Type {
            origin: self.origin(value.span()),
            name: option.name.to_owned(),
            expected,
            found: found.to_owned(),
        }
    }

    fn unknown_key(
        &self,
        command: &Command,
        full_name: &str,
        name: &str,
        span: Range<usize>,
        is_table: bool,
    ) -> ConfigError {
        if is_table {
            let what = format!("[{full_name}.{name}] is the table of no command");
            let remedy = match similar(name, subcommands(command).map(Command::get_name)) {
                Some(meant) => format!("did you mean [{full_name}.{meant}]?"),
                None => format!("see {} --help", self.root.get_name()),
            };
            return self.unknown(span, what, remedy);
        }
        let what = format!("[{full_name}] has no option {name}");
        let elsewhere = commands(self.root)
            .into_iter()
            .find(|(_, command)| options(command).any(|option| option.name == name))
            .map(|(table, _)| table);
        let remedy = match (elsewhere, similar(name, options(command).map(|option| option.name))) {
            (Some(table), _) => format!("[{table}] has one"),
            (None, Some(meant)) => format!("did you mean {meant}?"),
            (None, None) => format!("see {} --help", full_name.replace('.', " ")),
        };
        self.unknown(span, what, remedy)
    }

    fn unknown(&self, span: Range<usize>, what: String, remedy: String) -> ConfigError {
        ConfigError::Unknown { origin: self.origin(span), what, remedy }
    }

    fn origin(&self, span: Range<usize>) -> Origin {
        Origin::Line { path: self.path.into(), line: self.line(span) }
    }

    /// The line that something starts on, from 1.
    fn line(&self, span: Range<usize>) -> usize {
        self.text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
    }
}

type Entry<'t, 'i> = (&'t Spanned<std::borrow::Cow<'i, str>>, &'t Spanned<DeValue<'i>>);

/// A table's entries as they stand in the file, so that its first mistake is told.
fn in_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<Entry<'t, 'i>> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// A whole number as options read them, from whatever base it is written in.
fn decimal(number: &DeInteger<'_>) -> Option<String> {
    if number.radix() == 10 {
        return Some(number.as_str().to_owned());
    }
    u64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
}
