//! `--local=false` on the command line: takes back what a lower layer says, which clap's flags cannot.

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::Command;

use crate::option::{Kind, options};

/// The names of the flags of some commands.
pub fn flags<'a>(commands: impl IntoIterator<Item = &'a Command>) -> BTreeSet<&'a str> {
    let all = commands.into_iter().flat_map(options);
    all.filter(|option| option.kind() == Kind::Flag).map(|option| option.name).collect()
}

/// The arguments as clap reads them, where `--local=true` is `--local`; and the flags that they take back.
pub fn read(args: &[OsString], flags: &BTreeSet<&str>) -> (Vec<OsString>, BTreeSet<String>) {
    let mut taken_back = BTreeSet::new();
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let (options, rest) = args.split_at(end);
    let read = |arg: &OsString| {
        let known = arg.to_str().and_then(|text| text.strip_prefix("--")?.split_once('='));
        match known.filter(|(name, _)| flags.contains(name)) {
            Some((name, "true")) => Some(format!("--{name}").into()),
            Some((name, "false")) => {
                taken_back.insert(name.to_owned());
                None
            }
            _ => Some(arg.clone()),
        }
    };
    let args = options.iter().filter_map(read).collect::<Vec<_>>();
    ([&args[..], rest].concat(), taken_back)
}
