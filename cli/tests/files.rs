//! What a file may hold, and what is said of one that may not.

#![allow(clippy::unwrap_used)]

mod sample;

use proptest::prelude::*;
use sample::{layers, train, with_file};

/// The first line of what is said of a file with this text.
fn refused(text: &str, expected: &str) {
    let error = with_file("", &[], text).unwrap_err();
    assert_eq!(error.lines().next().unwrap(), format!("error: {expected}"), "{text}");
}

#[test]
fn what_is_no_option_is_refused_with_its_line_and_what_may_be_meant() {
    refused(
        "[coordinator]\nworkrs = 4\n",
        "line 2 of FILE: [coordinator] has no option workrs; did you mean workers?",
    );
    refused(
        "[coordinator]\nlearning_rate = 1\n",
        "line 2 of FILE: [coordinator] has no option learning_rate; did you mean learning-rate?",
    );
    refused(
        "[coordinator]\ncolour = 4\n",
        "line 2 of FILE: [coordinator] has no option colour; see coordinator --help",
    );
    refused(
        "[coordinator]\nout = 'a'\n",
        "line 2 of FILE: [coordinator] has no option out; [coordinator.look] has one",
    );
    refused(
        "[coordinator.look]\nworkers = 4\n",
        "line 2 of FILE: [coordinator.look] has no option workers; [coordinator] has one",
    );
    refused(
        "[coordinator.lok]\nout = 'a'\n",
        "line 1 of FILE: [coordinator.lok] is the table of no command; did you mean [coordinator.look]?",
    );
    refused(
        "\n[cordinator]\nworkers = 4\n",
        "line 2 of FILE: [cordinator] is no program's table; did you mean [coordinator]?",
    );
    refused(
        "[server]\n",
        "line 1 of FILE: [server] is no program's table; there are [coordinator] and [worker]",
    );
    refused(
        "workers = 4\n",
        "line 1 of FILE: workers is in no program's table; put [coordinator] or [worker] above it",
    );
    refused(
        "coordinator = 4\n",
        "line 1 of FILE: coordinator is not a table; write [coordinator] above its options",
    );
    refused(
        "[coordinator]\nconfig = 'other.toml'\n",
        "line 2 of FILE: [coordinator] has no option config; see coordinator --help",
    );
    refused(
        "[coordinator]\nversion = true\n",
        "line 2 of FILE: [coordinator] has no option version; see coordinator --help",
    );
    refused(
        "[coordinator.completions]\nshell = 'bash'\n",
        "line 1 of FILE: [coordinator.completions] is the table of no command; see coordinator --help",
    );
}

#[test]
fn the_first_mistake_in_the_file_is_the_one_that_is_told() {
    refused(
        "[coordinator]\nworkrs = 4\nacross = 5\n",
        "line 2 of FILE: [coordinator] has no option workrs; did you mean workers?",
    );
}

#[test]
fn a_value_of_another_type_is_refused_with_its_line_and_what_is_expected() {
    let line = |value: &str, expected: &str| {
        let (key, value) = value.split_once('=').unwrap();
        refused(
            &format!("[coordinator]\n{key} = {value}\n"),
            &format!("line 2 of FILE: {key} takes {expected}"),
        );
    };
    line("workers='4'", "an integer, not a string");
    line("workers=4.0", "an integer, not a float");
    line("workers=[4]", "an integer, not an array");
    line("learning-rate='fast'", "a number, not a string");
    line("learning-rate=true", "a number, not a boolean");
    line("local=1", "true or false, not an integer");
    line("local='true'", "true or false, not a string");
    line("name=true", "a string, not a boolean");
    line("name=1979-05-27", "a string, not a date or time");
    line("name={ first = 'a' }", "a string, not a table");
    line("tag=['a', false]", "a string or an array of them, not a boolean");
}

#[test]
fn what_is_no_toml_is_refused_with_its_line_and_without_showing_it() {
    let error = with_file("", &[], "[coordinator]\nname = 'secret\n").unwrap_err();
    assert!(error.starts_with("error: line 2 of FILE is no TOML: "), "{error}");
    assert!(!error.contains("secret"), "{error}");
    refused("[coordinator]\nworkers = 1\nworkers = 2\n", "line 3 of FILE is no TOML: duplicate key");
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_who_named_it() {
    let error = layers("--config /nowhere/tally.toml", &[]).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot read /nowhere/tally.toml, which --config names: No such file"),
        "{error}"
    );
    let error = layers("", &[("TALLY_CONFIG", "/nowhere/tally.toml")]).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot read /nowhere/tally.toml, which TALLY_CONFIG names: No such file"),
        "{error}"
    );
}

#[test]
fn the_other_programs_table_is_left_alone() {
    let text = "[worker]\nanything = { goes = 1 }\n[coordinator]\nworkers = 5\n";
    assert_eq!(train(&with_file("", &[], text).unwrap()).workers, 5);
}

#[test]
fn numbers_are_read_however_toml_writes_them() {
    let read = |text: &str| train(&with_file("", &[], &format!("[coordinator]\n{text}\n")).unwrap());
    assert_eq!(read("workers = 1_000").workers, 1000);
    assert_eq!(read("workers = 0x10").workers, 16);
    assert_eq!(read("learning-rate = 1e-3").learning_rate, Some(1e-3));
    assert_eq!(read("learning-rate = 1_0.5").learning_rate, Some(10.5));
    assert_eq!(read("learning-rate = 2").learning_rate, Some(2.0));
    assert_eq!(read("connect-timeout = 18_446_744_073_709_551_615").connect_timeout, u64::MAX);
    assert_eq!(read("name = 7").name.as_deref(), Some("7"));
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(text in r#"(\[|\]|=|"|'|\n|#|\{|\}|,|\.|-|coordinator|worker|look|workers|name|tag|local|true|[0-9]|0x|e|[ \PC]){0,40}"#) {
        let _ = with_file("", &[], &text);
    }
}
