//! A run that was moved, is used from elsewhere, or has lost a part of itself: it is found and checked, or what is
//! missing is named with the way on.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tally_tools::cluster::{Coordinator, Output, binaries, run, train_local, without_options};
use tempfile::TempDir;

const SMALL: [&str; 14] = [
    "--local",
    "--model",
    "mlp",
    "--backend",
    "cpu",
    "--epochs",
    "2",
    "--batch-size",
    "8",
    "--threads",
    "1",
    "--listen=127.0.0.1:0",
    "--http-listen=127.0.0.1:0",
    "--checkpoint-every=3",
];

/// A program called in a directory.
fn call(here: &Path, binary: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    let mut command = Command::new(binaries().join(binary));
    let output = without_options(&mut command).args(args).current_dir(here).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Output { status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

fn succeeds(output: Output) -> Output {
    assert!(output.status.success(), "{}\n{}", output.stdout, output.stderr);
    output
}

/// 24 training and 12 test samples that are not MNIST's.
fn write_data(directory: &Path, salt: usize) {
    fs::create_dir_all(directory).unwrap();
    for (name, count) in [("train", 24), ("t10k", 12)] {
        let idx = |header: &[u32], values: Vec<u8>| {
            header.iter().flat_map(|word| word.to_be_bytes()).chain(values).collect::<Vec<u8>>()
        };
        let images = (0..count * 784).map(|i| (i * (i / 784 + salt) % 251) as u8).collect();
        let images = idx(&[0x803, count as u32, 28, 28], images);
        fs::write(directory.join(format!("{name}-images-idx3-ubyte")), images).unwrap();
        let labels = idx(&[0x801, count as u32], (0..count).map(|i| ((i + salt) % 10) as u8).collect());
        fs::write(directory.join(format!("{name}-labels-idx1-ubyte")), labels).unwrap();
    }
}

/// A run in `run` of data in `data`, both below a directory of their own and given as relative paths.
fn trained_on(data: &OsStr, extra: &[&str]) -> TempDir {
    let here = tempfile::tempdir().unwrap();
    write_data(&here.path().join(data), 3);
    let places = [OsStr::new("--data-dir"), data, OsStr::new("--run-dir"), OsStr::new("a run")];
    let options = SMALL.iter().chain(extra).map(OsStr::new).chain(places);
    succeeds(call(here.path(), "coordinator", options));
    here
}

fn commands<'a>(run: &'a str, best: &'a str, out: &'a str) -> Vec<(&'static str, Vec<&'a str>)> {
    vec![
        ("coordinator", vec!["verify", run]),
        ("coordinator", vec!["samples", "--checkpoint", best, "--out", out, "--columns=2", "--rows=2"]),
        ("worker", vec!["evaluate", "--checkpoint", best]),
        // Last, since a run that goes on with --data-dir remembers it.
        ("coordinator", [&["--resume", run], &SMALL[..1], &SMALL[11..13]].concat()),
    ]
}

/// DATA-2: with the very samples that it was trained on, whatever their directory is called.
#[test]
fn data_2_a_run_is_used_from_anywhere_with_its_own_data() {
    for data in [OsString::from("my data"), OsString::from_vec(b"caf\xe9".to_vec())] {
        let here = trained_on(&data, &[]);
        let run = here.path().join("a run");
        let out = here.path().join("samples.png");
        let best = run.join("checkpoints/best");
        let [run, best, out] = [&run, &best, &out].map(|path| path.to_str().unwrap());
        for (binary, args) in commands(run, best, out) {
            succeeds(call(Path::new("/"), binary, args));
        }
        // What training has seen of the test set is what evaluation sees.
        let summary: serde_json::Value =
            serde_json::from_slice(&fs::read(Path::new(run).join("summary.json")).unwrap()).unwrap();
        let all = summary["test"]["digit_accuracy"].as_f64().unwrap();
        let line = call(Path::new("/"), "worker", ["evaluate", "--checkpoint", best]);
        let last = Path::new(run).join("checkpoints/last");
        let line = if line.stdout.contains(&format!("step {} ", summary["steps"])) {
            line
        } else {
            call(Path::new("/"), "worker", ["evaluate", "--checkpoint", last.to_str().unwrap()])
        };
        assert!(line.stdout.contains(&format!("{:.2}%", 100.0 * all)), "{all}: {}", line.stdout);
        // Pages and reports are told from elsewhere as well.
        let journal = fs::read_to_string(Path::new(run).join("journal.jsonl")).unwrap();
        let written = journal.lines().find(|line| line.contains(r#""event":"checkpoint""#)).unwrap();
        assert!(written.contains(r#""path":"/"#), "{written}");
    }
}

/// Not MNIST in their place, silently.
#[test]
fn data_2_data_that_is_gone_or_another_is_refused_until_it_is_named() {
    let here = trained_on(OsStr::new("data"), &[]);
    let (data, run) = (here.path().join("data"), here.path().join("a run"));
    let (best, out) = (run.join("checkpoints/best"), here.path().join("samples.png"));
    let [run, best, out] = [&run, &best, &out].map(|path| path.to_str().unwrap());
    let moved = here.path().join("moved");
    fs::rename(&data, &moved).unwrap();
    for (binary, args) in commands(run, best, out) {
        call(here.path(), binary, &args).is_refused(&[data.to_str().unwrap(), "have moved", "--data-dir"]);
        let named = [&args[..], &["--data-dir", moved.to_str().unwrap()]].concat();
        succeeds(call(here.path(), binary, named));
    }
    // From here on the run itself knows.
    fs::remove_dir_all(&moved).unwrap();
    write_data(&moved, 4);
    succeeds(call(
        here.path(),
        "worker",
        ["evaluate", "--checkpoint", best, "--data-dir", moved.to_str().unwrap()],
    ));
    call(here.path(), "coordinator", ["verify", run]).is_refused(&["is not the data", "--data-dir"]);
    write_data(&data, 4);
    call(here.path(), "worker", ["evaluate", "--checkpoint", best])
        .is_refused(&["is not the data", "--data-dir"]);
}

#[test]
fn weights_that_a_run_started_from_are_found_again_from_anywhere_and_where_they_have_moved_to() {
    let here = trained_on(OsStr::new("data"), &[]);
    let weights = here.path().join("w.safetensors");
    fs::copy(here.path().join("a run/checkpoints/last/model.safetensors"), &weights).unwrap();
    let options = ["--data-dir", "data", "--init", "w.safetensors", "--run-dir", "second"];
    succeeds(call(here.path(), "coordinator", SMALL.iter().chain(&options)));
    let second = here.path().join("second");
    let second = second.to_str().unwrap();
    succeeds(call(Path::new("/"), "coordinator", ["verify", second]));

    let moved = here.path().join("moved.safetensors");
    fs::rename(&weights, &moved).unwrap();
    let verify = ["verify", second];
    call(Path::new("/"), "coordinator", verify).is_refused(&[
        weights.to_str().unwrap(),
        "have moved",
        "--init",
    ]);
    let named = ["--init", moved.to_str().unwrap()];
    succeeds(call(Path::new("/"), "coordinator", [verify, named].concat()));

    let resume = [&["--resume", second, "--local"], &SMALL[11..13]].concat();
    // Trained on from those weights.
    let other = here.path().join("second/checkpoints/last");
    let args = [&resume[..], &["--init", other.to_str().unwrap()]].concat();
    call(Path::new("/"), "coordinator", args).is_refused(&["does not hold the weights", "--init"]);
    succeeds(call(Path::new("/"), "coordinator", [&resume[..], &named].concat()));
    succeeds(call(Path::new("/"), "coordinator", verify));
}

/// CKPT-1, RESUME-1: it must not begin again as if nothing had been there.
#[test]
fn resume_1_a_journal_that_is_shorter_than_the_checkpoints_is_named_with_both_ways_on() {
    let run_dir = train_local(
        1,
        &[
            "--model",
            "synthetic:parameters=100",
            "--epochs",
            "2",
            "--train-limit",
            "64",
            "--test-limit",
            "5",
            "--batch-size",
            "8",
            "--checkpoint-every",
            "3",
        ],
    );
    let (path, whole) =
        (run_dir.path().join("journal.jsonl"), fs::read(run_dir.path().join("journal.jsonl")).unwrap());
    let sha256 = run_dir.sha256();
    let newest = run_dir.checkpoints().pop().unwrap();
    let resume =
        ["--resume", run_dir.arg(), "--local", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let lines: Vec<&[u8]> = whole.split_inclusive(|&byte| byte == b'\n').collect();
    for kept in [0, 5] {
        fs::write(&path, lines[..kept].concat()).unwrap();
        for args in
            [&resume[..], &["verify", run_dir.arg()], &["report", run_dir.arg(), "--out", "/dev/null"]]
        {
            let output = run("coordinator", args);
            output.is_refused(&["journal.jsonl ends at step", newest.to_str().unwrap(), "--init", "backup"]);
        }
    }
    fs::remove_file(&path).unwrap();
    run("coordinator", resume).is_refused(&["journal.jsonl ends at step 0", newest.to_str().unwrap()]);
    // Without its checkpoints it is computed again, in the same bits.
    for checkpoint in run_dir.checkpoints() {
        fs::remove_dir_all(checkpoint).unwrap();
    }
    Coordinator::start(["--resume", run_dir.arg(), "--local"]).succeed();
    assert_eq!(run_dir.sha256(), sha256);
}

#[test]
fn what_is_written_is_what_the_name_says() {
    let run_dir =
        train_local(1, &["--model", "mlp", "--epochs", "1", "--train-limit", "16", "--test-limit", "5"]);
    let out = tempfile::tempdir().unwrap();
    let name = |name: &str| -> PathBuf { out.path().join(name) };
    for other in ["x.jpg", "x.JPEG", "x.html"] {
        let file = name(other);
        run("coordinator", ["samples", "--out", file.to_str().unwrap()])
            .is_refused(&["--out", "PNG", ".png"]);
        assert!(!file.exists());
    }
    let file = name("x.pdf");
    run("coordinator", ["report", run_dir.arg(), "--out", file.to_str().unwrap()])
        .is_refused(&["HTML", ".html"]);
    let report = ["report", run_dir.arg(), "--pictures", "0", "--out", "/dev/stdout"];
    let output = run("coordinator", report);
    assert!(output.status.success() && output.stdout.starts_with("<!DOCTYPE html>"), "{}", output.stderr);
}

/// A path of the shell's that needs quotes has them in what is printed to be copied.
#[test]
fn the_command_that_goes_on_with_a_run_can_be_pasted() {
    let here = tempfile::tempdir().unwrap();
    let run_dir = here.path().join("it's a run");
    let path = run_dir.to_str().unwrap();
    let options = [
        "--model",
        "synthetic:parameters=100,us-per-sample=3000",
        "--train-limit",
        "640",
        "--batch-size",
        "8",
    ];
    let coordinator = Coordinator::start([&["--local", "--run-dir", path], &options[..]].concat());
    coordinator.wait_for_line("run directory");
    coordinator.signal(tally_tools::cluster::Signal::INT);
    coordinator.succeed();
    let stdout = coordinator.output().stdout;
    let command =
        stdout.lines().find_map(|line| line.strip_prefix("stopped; go on with: coordinator ")).unwrap();
    let printed = Command::new("bash").arg("-c").arg(format!("printf '%s\\n' {command}")).output().unwrap();
    assert_eq!(String::from_utf8(printed.stdout).unwrap(), format!("--resume\n{path}\n"));
    let again = run("coordinator", ["--local", "--run-dir", path]);
    again.is_refused(&[r"--resume '"]);
}
