//! Options from the command line, the environment and a file, through the real binaries; and over both
//! trees of commands, so that an option that is added has its variable and its key.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Program;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Command};
use tally_cli::layers::{Resolved, resolve};
use tally_cli::option::{Kind, Opt, commands, options};
use tally_cli::print::print;
use tally_cli::{ConfigError, Environment};
use tally_tools::cluster::{Coordinator, Output, Process, RunDir, binaries, run, run_with};
use tempfile::TempDir;

const SECRET: &str = "a-secret-of-those-who-train";

fn programs() -> [Command; 2] {
    [
        tally_cli::command::<tally_mnist::cli::coordinator::Cli>(),
        tally_cli::command::<tally_mnist::cli::worker::Cli>(),
    ]
}

fn built(mut command: Command) -> Command {
    command.build();
    command
}

/// A directory with `tally.toml` in it.
struct Files(TempDir);

impl Files {
    fn new(text: &str) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        fs::write(files.path(), text).unwrap();
        files
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("tally.toml")
    }

    fn arg(&self) -> String {
        self.path().to_str().unwrap().into()
    }
}

// ---- Every option of both programs ----

/// What a command line, an environment and a file come to, whatever it takes to be run besides.
fn merged(
    program: &Command,
    line: &[String],
    variables: &[(String, String)],
) -> Result<Resolved, ConfigError> {
    let line = line.iter().map(OsString::from).collect();
    resolve(program, line, &variables.iter().map(|(name, value)| (name, value)).collect())
}

/// A value that the option takes.
fn sample(program: &Command, line: &[String], option: &Opt<'_>) -> String {
    let default = option.arg.get_default_values().iter().map(|value| value.to_str().unwrap().to_owned());
    let possible = option.arg.get_possible_values();
    let named = possible.iter().map(|value| value.get_name().to_owned());
    let others =
        ["3", "0.5", "sgd", "127.0.0.1:0", "cross-entropy", "constant", "bf16", "mlp", "words", "5ms", "10G"]
            .map(String::from);
    let is_taken = |value: &String| {
        let line = [line, &[format!("--{}={value}", option.name)]].concat();
        match merged(program, &line, &[]) {
            Err(ConfigError::Arguments(error)) => {
                !matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation)
            }
            other => other.is_ok(),
        }
    };
    let found = default.chain(named).chain(others).find(is_taken);
    found.unwrap_or_else(|| panic!("no value for --{}: add one that it takes", option.name))
}

/// The options that must stand beside what `line` gives, with values.
fn completed(program: &Command, command: &Command, mut line: Vec<String>, given: &str) -> Vec<String> {
    loop {
        let with = [&line[..], &[given.to_owned()]].concat();
        let error = match merged(program, &with, &[]) {
            Err(ConfigError::Arguments(error)) if error.kind() == ErrorKind::MissingRequiredArgument => error,
            Err(error) => panic!("{with:?}: {error}"),
            Ok(_) => return line,
        };
        let Some(ContextValue::Strings(missing)) = error.get(ContextKind::InvalidArg) else {
            panic!("{error}")
        };
        for missing in missing {
            // One of several is named as <--this <VALUE>|--that <VALUE>>.
            let name = missing.trim_start_matches(['<', '-']).split([' ', '=', '|', '>']).next().unwrap();
            let option = options(command).find(|option| option.name == name).unwrap();
            line.push(match option.kind() {
                Kind::Flag => format!("--{name}"),
                _ => format!("--{name}={}", sample(program, &line, &option)),
            });
        }
    }
}

#[test]
fn every_option_can_be_given_in_every_layer() {
    let mut tried = 0;
    for program in programs() {
        let tree = built(program.clone());
        for (full_name, command) in commands(&tree) {
            let line: Vec<String> = full_name.split('.').map(String::from).collect();
            let line = [&line[..], &["--print-config".into()]].concat();
            for option in options(command) {
                let (value, argument) = match option.kind() {
                    Kind::Flag => ("true".into(), format!("--{}", option.name)),
                    _ => {
                        let value = sample(&program, &line, &option);
                        (value.clone(), format!("--{}={value}", option.name))
                    }
                };
                let quoted = if option.kind() == Kind::Text { format!("{value:?}") } else { value.clone() };
                let file = Files::new(&format!("[{full_name}]\n{} = {quoted}\n", option.name));
                let line = completed(&program, command, line.clone(), &argument);
                // What it comes to, without where each is from.
                let outcome = |line: &[String], variables: &[(String, String)]| {
                    let resolved = merged(&program, line, variables).unwrap();
                    let printed = print(&program, &resolved).unwrap();
                    printed
                        .lines()
                        .map(|line| line.split("  #").next().unwrap().to_owned())
                        .collect::<Vec<_>>()
                };
                let on_the_line = outcome(&[&line[..], &[argument]].concat(), &[]);
                let in_the_environment = outcome(&line, &[(option.variable(), value)]);
                let in_the_file = outcome(&line, &[("TALLY_CONFIG".into(), file.arg())]);
                let is_in_force = |line: &String| line.starts_with(&format!("{} = ", option.name));
                assert!(
                    on_the_line.iter().any(is_in_force),
                    "{full_name} --{}: {on_the_line:#?}",
                    option.name
                );
                assert_eq!(on_the_line, in_the_environment, "{full_name}: {}", option.variable());
                assert_eq!(on_the_line, in_the_file, "{full_name}: {}", option.name);
                tried += 1;
            }
        }
    }
    assert!(tried > 100, "only {tried} options were found");
}

#[test]
fn names_of_options_cannot_be_taken_for_anything_else() {
    let trees = programs().map(built);
    let all: Vec<(String, &Command)> = trees.iter().flat_map(commands).collect();
    let every: BTreeMap<String, String> = all
        .iter()
        .flat_map(|(_, command)| options(command))
        .map(|option| (option.variable(), "true".to_owned()))
        .collect();
    for (full_name, command) in &all {
        for option in options(command) {
            let variable = option.variable();
            let is_secret = ["TALLY_TOKEN", "TALLY_VIEW_TOKEN", "TALLY_CONFIG", "TALLY_SIMD"]
                .contains(&variable.as_str());
            assert!(!is_secret, "{full_name} --{}: {variable} is something else already", option.name);
            // For a Service called tally-NAME, Kubernetes sets such variables in every container.
            let kubernetes =
                ["TALLY_PORT", "_SERVICE_HOST", "_SERVICE_PORT", "_PORT", "_TCP", "_ADDR", "_PROTO"];
            let is_set_by_others = kubernetes.iter().any(|end| variable.ends_with(end));
            assert!(!is_set_by_others, "{full_name} --{}: Kubernetes may set {variable}", option.name);
            let is_command = command.get_subcommands().any(|inner| inner.get_name() == option.name);
            assert!(
                !is_command,
                "{full_name} --{}: a command has this name, so [{full_name}.{0}] is a table",
                option.name
            );
            let action = option.arg.get_action();
            let is_understood = matches!(action, ArgAction::Set | ArgAction::Append | ArgAction::SetTrue);
            assert!(
                is_understood,
                "{full_name} --{}: teach tally-cli what {action:?} means in a file",
                option.name
            );
        }
    }
    // Both programs may run in one environment, with the options of both.
    let environment: Environment = every.into_iter().collect();
    for (tree, known) in trees.iter().zip([&trees[1..], &[]]) {
        // The coordinator knows the worker, which knows nobody.
        let environment = environment.clone().beside(tree, known);
        for (full_name, command) in commands(tree) {
            assert_eq!(environment.warnings(tree, command), [""; 0], "{full_name}");
        }
    }
}

// ---- The binaries ----

#[test]
fn a_cluster_runs_from_one_file_and_what_is_said_above_it_wins() {
    let files = Files::new(
        "[coordinator]\nlisten = '127.0.0.1:0'\nhttp-listen = '127.0.0.1:0'\nmodel = 'mlp'\nepochs = 3\n\
         batch-size = 4\ntrain-limit = 12\ntest-limit = 5\nseed = 7\n\n\
         [worker]\nbackend = 'cpu'\nthreads = 1\nname = 'from-the-file'\n",
    );
    let (run, file) = (RunDir::new(), files.arg());
    let variables = [
        ("TALLY_CONFIG", file.as_str()),
        ("TALLY_RUN_DIR", run.arg()),
        ("TALLY_EPOCHS", "2"),
        ("TALLY_BATCH_SIZE", "5"),
    ];
    let coordinator = Coordinator::from(Process::start_with(
        &binaries().join("coordinator"),
        &variables,
        ["--batch-size", "6"],
    ));
    let address = format!("127.0.0.1:{}", coordinator.grpc_port());
    let variables = [("TALLY_CONFIG", file.as_str()), ("TALLY_CONNECT", address.as_str())];
    let worker = Process::start_with(&binaries().join("worker"), &variables, [""; 0]);
    coordinator.succeed();
    worker.succeed();
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(run.path().join("run.json")).unwrap()).unwrap();
    let numbers = ["seed", "epochs", "batch_size"].map(|key| config[key].as_u64());
    assert_eq!(numbers, [Some(7), Some(2), Some(6)], "{config}");
    let joined = run.journal().iter().any(|line| line.to_string().contains("from-the-file"));
    assert!(joined, "the worker has another name: {:?}", run.journal());
}

/// What a binary refuses before it does anything.
fn refused(output: &Output, expected: &str) {
    assert_eq!(output.status.code(), Some(2), "{}", output.stderr);
    assert!(output.stderr.contains(expected), "no {expected:?} in {}", output.stderr);
    assert!(output.stdout.is_empty(), "{}", output.stdout);
}

#[test]
fn mistakes_are_refused_with_their_place() {
    let read = |binary, text| {
        let files = Files::new(text);
        let output = run(binary, ["--config", &files.arg()]);
        (output, files.path())
    };
    let (output, file) = read("coordinator", "[coordinator]\nlearning-rat = 0.1\n");
    refused(
        &output,
        &format!(
            "error: line 2 of {}: [coordinator] has no option learning-rat; did you mean learning-rate?\n",
            file.display()
        ),
    );
    let (output, file) = read("worker", "[worker.predict]\nnumber = 'five'\n");
    refused(
        &output,
        &format!("error: line 2 of {}: number takes an integer, not a string\n", file.display()),
    );
    let (output, file) = read("coordinator", "[coordinator]\n# No network at all.\nmodel = 'resnet'\n");
    refused(&output, "error: invalid value 'resnet' for '--model <MODEL>'");
    refused(&output, &format!("tip: --model is line 3 of {}\n", file.display()));
    refused(
        &run_with("worker", &[("TALLY_STAY", "always")], [""; 0]),
        "error: TALLY_STAY in the environment: --stay takes true or false, not \"always\"\n",
    );
    refused(
        &run_with("worker", &[("TALLY_CONFIG", "/nowhere")], [""; 0]),
        "error: cannot read /nowhere, which TALLY_CONFIG names: No such file",
    );
}

#[test]
fn a_printed_configuration_is_a_file_that_gives_it_again() {
    let files = Files::new("[coordinator]\nlocal = true\nlinger = true\nclip-norm = 1.5\n");
    let variables = [("TALLY_THREADS", "2"), ("TALLY_LINGER", "false")];
    let line =
        ["--print-config", "--learning-rate", ".25", "--run-dir", "a \"b\" c", "--config", &files.arg()];
    let first = run_with("coordinator", &variables, line);
    assert!(first.status.success(), "{}", first.stderr);
    let active = |text: &str| -> BTreeMap<String, String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let parts = lines.filter_map(|line| line.split_once(" = "));
        parts.map(|(key, rest)| (key.into(), rest.split("  #").next().unwrap().trim().into())).collect()
    };
    let expected = [
        ("clip-norm", "\"1.5\""),
        ("learning-rate", "0.25"),
        ("linger", "false"),
        ("local", "true"),
        ("run-dir", r#""a \"b\" c""#),
        ("threads", "2"),
    ];
    assert_eq!(active(&first.stdout), expected.map(|(key, value)| (key.into(), value.into())).into());
    let again = run("coordinator", ["--print-config", "--config", &Files::new(&first.stdout).arg()]);
    assert_eq!(active(&again.stdout), active(&first.stdout), "{}", again.stderr);
}

#[test]
fn secrets_are_never_printed() {
    let variables = [("TALLY_TOKEN", SECRET), ("TALLY_VIEW_TOKEN", SECRET), ("TALLY_WORKER", "2")];
    let wrong = Files::new(&format!("[coordinator]\ntoken = '{SECRET}'\n"));
    let broken = Files::new(&format!("[coordinator]\ntoken = '{SECRET}\n"));
    let (wrong, broken) = (wrong.arg(), broken.arg());
    let lines: [&[&str]; 5] = [
        &["--print-config"],
        &["--help"],
        &["--config", &wrong],
        &["--config", &broken],
        &["--workers", "0"],
    ];
    for line in lines {
        let output = run_with("coordinator", &variables, line);
        let said = output.stdout + &output.stderr;
        assert!(!said.is_empty() && !said.contains(SECRET), "{line:?}: {said}");
    }
    let misspelt = run_with("worker", &[("TALLY_TOKEN_FLE", SECRET)], ["--print-config"]);
    assert_eq!(
        misspelt.stderr,
        "warning: TALLY_TOKEN_FLE in the environment is no option's; TALLY_TOKEN_FILE is\n"
    );
    assert!(!misspelt.stdout.contains(SECRET));
}

#[test]
fn completions_and_man_pages_tell_of_every_option() {
    for program in programs() {
        let tree = built(program);
        let binary = tree.get_name();
        for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
            let output = run(binary, ["completions", shell]);
            assert!(output.status.success(), "{}", output.stderr);
            for option in commands(&tree).iter().flat_map(|(_, command)| options(command)) {
                assert!(output.stdout.contains(option.name), "{binary} --{} in {shell}", option.name);
            }
        }
        let files = Files::new("");
        let directory = files.0.path().join("man/man1");
        let output = run(binary, ["man".as_ref(), directory.as_os_str()]);
        assert!(output.status.success(), "{}", output.stderr);
        for (full_name, command) in commands(&tree) {
            let page = fs::read_to_string(directory.join(full_name.replace('.', "-") + ".1")).unwrap();
            assert!(page.contains(".TH ") && page.contains(".SH SYNOPSIS"), "{page}");
            for option in options(command) {
                let name = format!("\\-\\-{}", option.name.replace('-', "\\-"));
                assert!(page.contains(&name), "{full_name} {name}:\n{page}");
            }
        }
    }
}

#[test]
fn the_completions_for_bash_complete_an_option() {
    let files = Files::new("");
    let script = files.0.path().join("completions.bash");
    fs::write(&script, run("coordinator", ["completions", "bash"]).stdout).unwrap();
    let ask = format!(
        ". {}; COMP_WORDS=(coordinator --batch-s); COMP_CWORD=1; _coordinator coordinator --batch-s coordinator; echo \"${{COMPREPLY[*]}}\"",
        script.display()
    );
    let output = Program::new("bash").args(["-c", &ask]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "--batch-size", "{output:?}");
}

#[test]
fn what_deploys_gives_only_options_that_there_are() {
    let trees = programs().map(built);
    let known: Vec<String> = trees
        .iter()
        .flat_map(commands)
        .flat_map(|(_, command)| options(command).map(|option| option.variable()).collect::<Vec<_>>())
        .collect();
    let deploy = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy"));
    let mut found = 0;
    for file in text_files(deploy) {
        let text = fs::read_to_string(&file).unwrap();
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let others = ["TALLY_TOKEN", "TALLY_VIEW_TOKEN", "TALLY_CONFIG", "TALLY_PORT"];
            if word.starts_with("TALLY_") && word.len() > 6 && !others.contains(&word) {
                found += 1;
                assert!(known.iter().any(|name| name == word), "{}: {word} is no option's", file.display());
            }
        }
    }
    assert!(found > 5, "only {found} variables were found");
}

/// What people wrote below a directory.
fn text_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let wanted = ["yaml", "service", "sbatch", "env", "sh"];
    entries
        .filter(|path| path.file_name().is_none_or(|name| name != "node_modules"))
        .flat_map(|path| if path.is_dir() { text_files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|end| wanted.iter().any(|w| end == *w)))
        .collect()
}
