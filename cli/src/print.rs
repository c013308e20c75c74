//! `--print-config`: the options in force, as a file that gives the same ones again.
//!
//! A value from a layer is printed as a key. A default is printed as a comment, because a default in a file would
//! count as given, and an option may be allowed only beside another.

use std::ffi::OsStr;
use std::fmt::Write as _;

use clap::{ArgMatches, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use toml_writer::{ToTomlValue as _, TomlStringBuilder};

use crate::error::ConfigError;
use crate::given::{Given, Origin, Said};
use crate::layers::{Resolved, descend};
use crate::option::{Kind, Opt, options};

/// From here on, notes stand right behind what they are about.
const WIDEST: usize = 40;

/// The options of the command in play, by their headings in its help.
///
/// # Errors
/// If a value is not Unicode, so that no TOML file can give it.
pub fn print(command: &Command, resolved: &Resolved) -> Result<String, ConfigError> {
    let mut tree = command.clone();
    tree.build();
    let (in_play, matches) = descend(&tree, &resolved.matches, &resolved.names);
    let mut headings: Vec<Option<&str>> = Vec::new();
    let mut lines = Vec::new();
    for option in options(in_play) {
        let heading = option.arg.get_help_heading();
        if !headings.contains(&heading) {
            headings.push(heading);
        }
        lines.push((heading, line(&option, resolved.given.get(option.name), matches)?));
    }
    let width = lines.iter().map(|(_, (text, _))| text.chars().count()).filter(|n| *n <= WIDEST).max();
    let width = width.unwrap_or_default();
    let names: Vec<&str> =
        std::iter::once(tree.get_name()).chain(resolved.names.iter().map(String::as_str)).collect();

    let mut page = format!(
        "# The options of `{}` and where each is from. Those behind a # are nobody's: defaults, or not there.\n[{}]\n",
        names.join(" "),
        names.join(".")
    );
    for heading in headings {
        let _ = writeln!(page, "\n# {}", heading.unwrap_or("Options"));
        for (_, (text, note)) in lines.iter().filter(|(of, _)| *of == heading) {
            let _ = writeln!(page, "{text:width$}  # {note}");
        }
    }
    Ok(page)
}

/// An option's line and the note behind it.
fn line(
    option: &Opt<'_>,
    given: Option<&Given>,
    matches: &ArgMatches,
) -> Result<(String, String), ConfigError> {
    let name = option.name;
    if let Some(given) = given {
        let value = match &given.said {
            Said::Flag(is_there) => is_there.to_string(),
            Said::Values(values) => value(option, values.iter().map(AsRef::as_ref))?,
        };
        return Ok((format!("{name} = {value}"), note(&given.origin)));
    }
    if option.kind() == Kind::Flag {
        return Ok((format!("# {name} = false"), "default".into()));
    }
    if let Some(values) = matches.get_raw(option.id()) {
        return Ok((format!("# {name} = {}", value(option, values)?), "default".into()));
    }
    let placeholder = option.arg.get_value_names().and_then(<[_]>::first).map_or("…", |name| name.as_str());
    let note = match default_in_words(option) {
        Some(words) => format!("default: {words}"),
        None if option.arg.is_required_set() => "required".into(),
        None => "not given".into(),
    };
    Ok((format!("# {name} = {placeholder}"), note))
}

/// A value as TOML: a number if it is one, and an array where there may be several.
fn value<'a>(option: &Opt<'_>, values: impl IntoIterator<Item = &'a OsStr>) -> Result<String, ConfigError> {
    let mut written = Vec::new();
    for value in values {
        let text =
            value.to_str().ok_or_else(|| ConfigError::NotUnicode { option: option.name.to_owned() })?;
        written.push(
            match option.kind() {
                Kind::Integer => number(text),
                // TOML's whole zero has no sign.
                Kind::Float if text.starts_with('-') && text.parse() == Ok(0i128) => Some("-0.0".into()),
                Kind::Float => number(text),
                Kind::Bool => Some(text.to_owned()),
                Kind::Text | Kind::Flag => None,
            }
            .unwrap_or_else(|| TomlStringBuilder::new(text).as_basic().to_toml_value()),
        );
    }
    Ok(if option.takes_several() { format!("[{}]", written.join(", ")) } else { written.concat() })
}

/// A number as TOML, which does not know all that Rust reads: `.5`, `+1`, `007`.
fn number(text: &str) -> Option<String> {
    let line = format!("n = {text}");
    let is_toml = DeTable::parse(&line).is_ok_and(|table| {
        let value = table.get_ref().get("n").map(Spanned::get_ref);
        matches!(value, Some(DeValue::Integer(_) | DeValue::Float(_)))
    });
    if is_toml {
        return Some(text.to_owned());
    }
    let whole = text.parse::<i128>().map(|number| number.to_string());
    let float = || text.parse::<f64>().map(|number| format!("{number:?}").to_lowercase());
    whole.or_else(|_| float()).ok()
}

/// What the help says of a default that clap does not know: `[default: one for each core]`.
fn default_in_words(option: &Opt<'_>) -> Option<String> {
    let help = option.arg.get_help()?.to_string();
    let (_, words) = help.rsplit_once("[default: ")?;
    words.strip_suffix(']').map(str::to_owned)
}

/// Where an option is from, in a comment's one line.
fn note(origin: &Origin) -> String {
    let text = match origin {
        Origin::CommandLine => "command line".to_owned(),
        Origin::Variable(name) => name.clone(),
        Origin::Line { .. } => origin.to_string(),
    };
    text.replace(char::is_control, "?")
}
