//! The layer of the environment: `TALLY_BATCH_SIZE=64` is `--batch-size 64`.
//!
//! An empty variable counts as not set, so that `${TALLY_EPOCHS:-}` in a compose file gives nothing. Line breaks at
//! its end are removed: they come from the file that it was read from. Variables that belong to no option of the
//! command are left alone: containers share their environment, and Kubernetes adds `TALLY_…_SERVICE_HOST` for a
//! Service of that name. Only what looks like a misspelt option is warned about.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt as _;

use clap::Command;

use crate::error::ConfigError;
use crate::given::{Given, Layer, Origin, Said};
use crate::option::{Kind, commands, options};
use crate::similar::misspelt;

/// The start of every variable's name.
pub const PREFIX: &str = "TALLY_";
/// The variable that names the file.
pub const CONFIG_VARIABLE: &str = "TALLY_CONFIG";

/// The variables of the environment that can be Tally's and hold something.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        let mine = variables.into_iter().filter_map(|(name, value)| {
            let (name, value) = (name.into().into_string().ok()?, without_line_breaks(value.into()));
            (name.starts_with(PREFIX) && !value.is_empty()).then_some((name, value))
        });
        Self(mine.collect())
    }
}

impl Environment {
    /// That of this process.
    #[must_use]
    pub fn of_the_process() -> Self {
        std::env::vars_os().collect()
    }

    /// Without what is an option's of the programs `others`, and not of `program`.
    #[must_use]
    pub fn beside(mut self, program: &Command, others: &[Command]) -> Self {
        let own = variables(program);
        let theirs: BTreeSet<String> = others.iter().flat_map(variables).collect();
        self.0.retain(|name, _| own.contains(name) || !theirs.contains(name));
        self
    }

    /// What a variable holds.
    #[must_use]
    pub fn get(&self, variable: &str) -> Option<&OsStr> {
        self.0.get(variable).map(OsString::as_os_str)
    }

    /// What it says of the options of `command`.
    ///
    /// # Errors
    /// If a flag's variable is neither true nor false.
    pub fn layer(&self, command: &Command) -> Result<Layer, ConfigError> {
        let mut layer = Layer::new();
        for option in options(command) {
            let variable = option.variable();
            let Some(value) = self.get(&variable) else { continue };
            let said = match option.kind() {
                Kind::Flag => Said::Flag(boolean(value).ok_or_else(|| ConfigError::Type {
                    origin: Origin::Variable(variable.clone()),
                    name: format!("--{}", option.name),
                    expected: "true or false",
                    found: format!("{value:?}"),
                })?),
                _ if option.takes_several() => Said::Values(list(value)),
                _ => Said::Values(vec![value.to_owned()]),
            };
            layer.insert(option.name.to_owned(), Given { said, origin: Origin::Variable(variable) });
        }
        Ok(layer)
    }

    /// Variables that are no option's of the program `root`, and nearly one of `command`'s.
    #[must_use]
    pub fn warnings(&self, root: &Command, command: &Command) -> Vec<String> {
        let known = variables(root);
        let own: Vec<String> =
            options(command).map(|option| option.variable()).chain([CONFIG_VARIABLE.to_owned()]).collect();
        let names = || own.iter().filter_map(|name| name.strip_prefix(PREFIX));
        let strangers = self.0.keys().filter(|name| !known.contains(*name) && *name != CONFIG_VARIABLE);
        strangers
            .filter_map(|stranger| {
                let meant = misspelt(stranger.strip_prefix(PREFIX)?, names())?;
                Some(format!("{stranger} in the environment is no option's; {PREFIX}{meant} is"))
            })
            .collect()
    }
}

/// The variables of all options of a program.
fn variables(program: &Command) -> BTreeSet<String> {
    commands(program)
        .iter()
        .flat_map(|(_, command)| options(command).map(|option| option.variable()))
        .collect()
}

/// A value without the line breaks at its end, which secrets and environment files written on Windows have.
fn without_line_breaks(value: OsString) -> OsString {
    let mut bytes = value.into_vec();
    while bytes.last().is_some_and(|byte| b"\r\n".contains(byte)) {
        bytes.pop();
    }
    OsString::from_vec(bytes)
}

/// What people write for yes and no.
fn boolean(value: &OsStr) -> Option<bool> {
    match value.to_str()?.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// Values with commas between.
fn list(value: &OsStr) -> Vec<OsString> {
    match value.to_str() {
        Some(text) => text.split(',').map(OsString::from).collect(),
        None => vec![value.to_owned()],
    }
}
