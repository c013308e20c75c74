//! `--print-config` says what is in force and where it is from, and can be used as a file again.

#![allow(clippy::unwrap_used)]

mod sample;

use std::ffi::OsString;

use proptest::prelude::*;
use sample::{command, layers, train, with_file};
use tally_cli::layers::{Resolved, resolve};
use tally_cli::print::print;
use tally_cli::{ConfigError, Environment};

fn printed(resolved: &Resolved) -> String {
    print(&command(), resolved).unwrap()
}

#[test]
fn each_option_is_there_with_where_it_is_from() {
    let file = sample::file("[coordinator]\nlearning-rate = 0.5\nlocal = true\ntag = ['a']\n");
    let path = file.path().to_str().unwrap();
    let line = format!("--print-config --config {path} --name x\"y --stay=false");
    let resolved = layers(&line, &[("TALLY_WORKERS", "3"), ("TALLY_LOCAL", "off")]).unwrap();
    assert!(resolved.print);
    let expected = "\
# The options of `coordinator` and where each is from. Those behind a # are nobody's: defaults, or not there.
[coordinator]

# Cluster
workers = 3             # TALLY_WORKERS
local = false           # TALLY_LOCAL
# threads = N           # default: one for each core
# connect-timeout = 60  # default
stay = false            # command line

# Options
learning-rate = 0.5     # line 2 of FILE
name = \"x\\\"y\"           # command line
tag = [\"a\"]             # line 4 of FILE
";
    assert_eq!(printed(&resolved).replace(path, "FILE"), expected);
}

#[test]
fn to_print_what_there_is_nothing_need_be_there() {
    let text = printed(&layers("look --print-config", &[]).unwrap());
    assert!(text.contains("[coordinator.look]\n") && text.contains("# out = FILE"), "{text}");
    assert!(layers("look", &[]).is_err());
    assert!(layers("--print-config --workers 0", &[]).is_err());
}

#[test]
fn what_toml_cannot_say_is_refused() {
    use std::os::unix::ffi::OsStringExt as _;
    let args = ["coordinator", "look", "--print-config", "--out"].map(OsString::from);
    let args = args.into_iter().chain([OsString::from_vec(vec![b'a', 0xff])]).collect();
    let resolved = resolve(&command(), args, &Environment::default()).unwrap();
    assert!(
        matches!(print(&command(), &resolved), Err(ConfigError::NotUnicode { option }) if option == "out")
    );
}

/// Numbers as people may write them on a command line.
fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(|n| n.to_string()),
        any::<f32>().prop_filter("finite", |n| n.is_finite()).prop_map(|n| format!("{n:e}")),
        r"[+-]?[0-9]{0,3}\.[0-9]{1,3}",
        r"[+-]?[0-9]{1,6}",
        r"[0-9]\.",
        r"[+-]0{1,2}",
    ]
}

proptest! {
    #[test]
    fn a_printed_configuration_gives_the_same_again(
        workers in prop_oneof![(1u32..=4096).prop_map(|n| n.to_string()), "\\+?00[1-9]"],
        rate in number(),
        name in "\\PC{0,9}|[\u{0}-\u{7f}]{1,9}",
        tags in prop::collection::vec("\\PC{1,9}", 0..3),
        stay: bool,
    ) {
        let mut args: Vec<OsString> = vec!["coordinator".into(), "--print-config".into()];
        args.push(format!("--workers={workers}").into());
        args.push(format!("--learning-rate={rate}").into());
        // No argument and no variable of a process has a null byte.
        args.push(format!("--name={}", name.replace('\0', "")).into());
        args.extend(tags.iter().map(|tag| format!("--tag={tag}").into()));
        args.extend(stay.then(|| "--stay".into()));
        let first = resolve(&command(), args, &Environment::default()).unwrap();
        let text = printed(&first);
        let again = with_file("", &[], &text).unwrap();
        prop_assert_eq!(format!("{:?}", train(&first)), format!("{:?}", train(&again)), "{}", text);
    }
}
