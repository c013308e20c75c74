//! One set of options from three layers, and errors that say which layer is at fault.

#![allow(clippy::unwrap_used)]

mod sample;

use tally_cli::ConfigError;

use sample::{layers, look, train, with_file};

const FILE: &str = "[coordinator]\nworkers = 2\n";

#[test]
fn the_command_line_wins_over_the_environment_and_that_over_the_file() {
    let workers =
        |line, variables: &[(&str, &str)], text| train(&with_file(line, variables, text).unwrap()).workers;
    let variable = [("TALLY_WORKERS", "3")];
    assert_eq!(workers("--workers 4", &variable, FILE), 4);
    assert_eq!(workers("--workers=4", &[], FILE), 4);
    assert_eq!(workers("", &variable, FILE), 3);
    assert_eq!(workers("", &[], FILE), 2);
    assert_eq!(workers("", &[], ""), 1);
}

#[test]
fn the_file_on_the_command_line_wins_over_the_one_in_the_environment() {
    let named = sample::file("[coordinator]\nworkers = 7\n");
    let line = format!("--config {}", named.path().display());
    assert_eq!(train(&with_file(&line, &[], FILE).unwrap()).workers, 7);
}

#[test]
fn an_empty_variable_is_as_one_that_is_not_set() {
    assert_eq!(train(&with_file("", &[("TALLY_WORKERS", "")], FILE).unwrap()).workers, 2);
    assert!(layers("", &[("TALLY_CONFIG", "")]).is_ok());
}

/// As `kubectl create secret --from-file` and environment files from Windows have them.
#[test]
fn line_breaks_at_the_end_of_a_variable_are_removed() {
    for end in ["\n", "\r", "\r\n", "\n\n"] {
        let with = |name, value: &str| [(name, format!("{value}{end}"))];
        let given = |variable: &[(&str, String)]| {
            let variables: Vec<_> = variable.iter().map(|(name, value)| (*name, value.as_str())).collect();
            train(&layers("", &variables).unwrap())
        };
        assert_eq!(given(&with("TALLY_WORKERS", "3")).workers, 3, "{end:?}");
        assert_eq!(given(&with("TALLY_NAME", "a")).name.as_deref(), Some("a"));
        assert!(given(&with("TALLY_LOCAL", "yes")).local);
        assert_eq!(given(&with("TALLY_TAG", "a,b")).tag, ["a", "b"]);
        assert_eq!(given(&with("TALLY_WORKERS", "")).workers, 1, "as one that is not set");
    }
}

#[test]
fn a_value_with_a_line_break_is_shown_on_one_line() {
    let inside = layers("", &[("TALLY_WORKERS", "3\n4")]).unwrap_err();
    let ConfigError::Arguments(inside) = inside else { unreachable!("it is clap that refuses") };
    let text = inside.to_string();
    let first = text.lines().next().unwrap();
    assert!(first.contains(r"'3\n4'") && first.contains("--workers"), "{text}");
}

#[test]
fn a_flag_is_taken_back_by_a_variable_that_says_false() {
    let text = "[coordinator]\nlocal = true\n";
    for (word, is_local) in [
        ("true", true),
        ("1", true),
        ("YES", true),
        ("on", true),
        ("false", false),
        ("0", false),
        ("No", false),
        ("off", false),
    ] {
        assert_eq!(train(&with_file("", &[("TALLY_LOCAL", word)], text).unwrap()).local, is_local, "{word}");
        assert_eq!(train(&layers("", &[("TALLY_LOCAL", word)]).unwrap()).local, is_local, "{word}");
    }
    assert!(train(&with_file("", &[], text).unwrap()).local);
    assert!(train(&layers("--local", &[("TALLY_LOCAL", "false")]).unwrap()).local);
    let error = layers("", &[("TALLY_LOCAL", "maybe")]).unwrap_err().to_string();
    assert_eq!(error, "TALLY_LOCAL in the environment: --local takes true or false, not \"maybe\"");
}

#[test]
fn a_flag_is_taken_back_on_the_command_line() {
    let (text, variable) = ("[coordinator]\nlocal = true\n", [("TALLY_LOCAL", "true")]);
    assert!(!train(&with_file("--local=false", &variable, text).unwrap()).local);
    assert!(train(&layers("--local=true", &[("TALLY_LOCAL", "false")]).unwrap()).local);
    assert!(with_file("--local=false --threads=2", &[], text).is_err(), "--threads needs --local");
    let unknown = error("look --local=false --out o", &[], text);
    assert!(unknown.starts_with("error: unexpected argument '--local' found"), "{unknown}");
    let wrong = error("--local=maybe", &[], "");
    assert!(wrong.starts_with("error: unexpected value 'maybe' for '--local'"), "{wrong}");
    let arguments = look(&layers("look --out o -- --local=false", &[]).unwrap()).runs;
    assert_eq!(arguments, [std::path::PathBuf::from("--local=false")]);
}

#[test]
fn a_command_has_a_table_of_its_own_and_shares_the_environment() {
    let text = "[coordinator]\nname = 'a'\n[coordinator.look]\nname = 'b'\nout = 'c'\n";
    let command = look(&with_file("look run", &[], text).unwrap());
    assert_eq!((command.name.as_deref(), command.out.to_str()), (Some("b"), Some("c")));
    assert_eq!(train(&with_file("", &[], text).unwrap()).name.as_deref(), Some("a"));
    let command =
        look(&with_file("look run", &[("TALLY_NAME", "d"), ("TALLY_WORKERS", "no number")], text).unwrap());
    assert_eq!(command.name.as_deref(), Some("d"));
}

#[test]
fn what_lower_layers_give_stays_clear_of_arguments_that_are_not_options() {
    let command = look(&layers("look --name n -- --run", &[("TALLY_OUT", "-o=ut")]).unwrap());
    assert_eq!(command.runs, [std::path::PathBuf::from("--run")]);
    assert_eq!(command.out.to_str(), Some("-o=ut"));
}

#[test]
fn several_values_come_from_every_layer_and_are_not_mixed() {
    let text = "[coordinator]\ntag = ['a', 'b c']\n";
    let tags = |line, variables: &[(&str, &str)]| train(&with_file(line, variables, text).unwrap()).tag;
    assert_eq!(tags("", &[]), ["a", "b c"]);
    assert_eq!(tags("", &[("TALLY_TAG", "d,e f")]), ["d", "e f"]);
    assert_eq!(tags("--tag g h", &[("TALLY_TAG", "d,e f")]), ["g", "h"]);
}

/// What clap says, without the colours and the usage.
fn error(line: &str, variables: &[(&str, &str)], text: &str) -> String {
    let error = with_file(line, variables, text).unwrap_err();
    let lines = error.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .take_while(|line| !line.starts_with("Usage") && !line.starts_with("For more"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn what_clap_refuses_is_refused_from_every_layer_and_says_which() {
    let workers = "error: invalid value '0' for '--workers <N>': 0 is not in 1..=4096";
    assert_eq!(error("--workers 0", &[], ""), workers);
    assert_eq!(
        error("", &[("TALLY_WORKERS", "0")], ""),
        format!("{workers}\ntip: --workers is TALLY_WORKERS in the environment")
    );
    assert_eq!(
        error("", &[], "# 1\n[coordinator]\n\nworkers = 0\n"),
        format!("{workers}\ntip: --workers is line 4 of FILE")
    );
}

#[test]
fn options_that_exclude_or_need_each_other_may_be_from_different_layers() {
    let conflict = "error: the argument '--stay' cannot be used with '--connect-timeout <SECONDS>'";
    assert_eq!(
        error("--stay", &[("TALLY_CONNECT_TIMEOUT", "5"), ("TALLY_WORKERS", "3")], ""),
        format!("{conflict}\ntip: --connect-timeout is TALLY_CONNECT_TIMEOUT in the environment")
    );
    let text = "[coordinator]\nthreads = 2\n";
    assert_eq!(
        error("", &[("TALLY_WORKERS", "3")], text),
        "error: the following required arguments were not provided:\n--local\ntip: --threads is line 2 of FILE"
    );
    assert_eq!(train(&with_file("", &[("TALLY_LOCAL", "yes")], text).unwrap()).threads, Some(2));
}

#[test]
fn the_command_lines_own_mistakes_are_told_as_ever() {
    let variables = [("TALLY_WORKERS", "3"), ("TALLY_NAME", "n")];
    assert_eq!(
        error("--wokers 4 --name x", &variables, FILE),
        "error: unexpected argument '--wokers' found\ntip: a similar argument exists: '--workers'"
    );
    assert_eq!(
        error("--workers", &variables, FILE),
        "error: a value is required for '--workers <N>' but none was supplied"
    );
    assert_eq!(
        error("--name x --workers y", &variables, FILE),
        "error: invalid value 'y' for '--workers <N>': invalid digit found in string"
    );
    assert_eq!(
        error("look", &[], FILE),
        "error: the following required arguments were not provided:\n--out <FILE>"
    );
}

#[test]
fn help_is_given_whatever_the_layers_hold() {
    let help = with_file("--help", &[("TALLY_LOCAL", "maybe")], "no TOML").unwrap_err();
    assert!(help.contains("--workers") && help.contains("TALLY_LOG_LEVEL"), "{help}");
}

#[test]
fn completions_and_man_pages_are_made_whatever_the_layers_hold() {
    assert!(with_file("completions bash", &[("TALLY_LOCAL", "maybe")], "no TOML").is_ok());
}

#[test]
fn only_a_variable_that_looks_like_a_misspelt_option_is_warned_about() {
    let variables = [
        ("TALLY_WORKER", "4"),
        ("TALLY_CONFG", "x"),
        ("TALLY_OUT", "of another command"),
        ("TALLY_TOKEN", "not ours"),
        ("TALLY_COORDINATOR_SERVICE_HOST", "10.0.0.1"),
        ("TALLY_PORT", "tcp://10.0.0.1:50051"),
        ("OTHER_WORKER", "4"),
    ];
    assert_eq!(
        layers("", &variables).unwrap().warnings,
        [
            "TALLY_CONFG in the environment is no option's; TALLY_CONFIG is",
            "TALLY_WORKER in the environment is no option's; TALLY_WORKERS is",
        ]
    );
}
