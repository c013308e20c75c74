//! Reports of run directories as a coordinator writes them.

use std::fs;

use maud::html;
use tally_run::config::RunConfig;
use tally_run::journal::Line;

use crate::test_support::{config, evaluation, step_line};

use super::*;

/// A directory with this configuration and journal.
fn run(root: &Path, name: &str, config: &RunConfig, lines: &[Line]) -> PathBuf {
    let path = root.join(name);
    fs::create_dir(&path).unwrap();
    fs::write(path.join("run.json"), serde_json::to_vec(config).unwrap()).unwrap();
    let text: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
    fs::write(path.join("journal.jsonl"), text).unwrap();
    path
}

fn lines() -> Vec<Line> {
    let tested = |step, right| Line::Test { step, epoch: 1, seconds: 0.5, evaluation: evaluation(right) };
    vec![
        Line::Start { version: 1, tally: "0.1.0".into(), incarnation: 1, step: 0, unix_seconds: 0 },
        Line::Join {
            step: 0,
            session: 1,
            worker: "<anna>".into(),
            device: "CPU".into(),
            numerics_class: "".into(),
        },
        Line::Step(step_line(1, 2.0)),
        tested(1, 7.0),
        Line::Step(step_line(2, 1.0)),
        Line::Takeover { step: 2, leaves: 3, workers: 1 },
        tested(2, 6.0),
        Line::End { step: 2, outcome: "stopped".into() },
    ]
}

#[test]
fn a_report_names_what_the_schema_names_and_has_the_programs_sections() {
    let root = tempfile::tempdir().unwrap();
    let (path, out) = (run(root.path(), "a", &config(), &lines()), root.path().join("report.html"));
    let runs = read(std::slice::from_ref(&path), &out).unwrap();
    let words = write(&runs, &[html! { section #own { "<of the program>" } }], &out).unwrap();
    assert!(words.contains("stopped, step 2 of 4"), "{words}");
    let page = fs::read_to_string(&out).unwrap();
    for part in [
        "a-program small",
        "Loss, by part",
        "loss b: 1.5 at step 1, 0.75 at step 2.",
        "all right: 87.5% at step 1, 75% at step 2.",
        "75.00%",
        "all right, at best",
        "The best test pass, after step 1",
        "kinds: ",
        "errors of &lt;x&gt;: 5 of 8 are at 0",
        "&lt;anna&gt;",
        "3 microbatches by 1 workers",
        "&lt;of the program&gt;",
    ] {
        assert!(page.contains(part), "no {part:?} in {page}");
    }
    assert!(page.find("id=\"own\"") < page.find("id=\"configuration\""));
    let error = read(std::slice::from_ref(&path), &path.join("run.json")).unwrap_err();
    assert!(error.to_string().contains("is a file of the run"), "{error}");
}

#[test]
fn two_runs_that_measure_different_things_are_compared_in_what_they_share() {
    let root = tempfile::tempdir().unwrap();
    let mut other = serde_json::to_value(config()).unwrap();
    other["schema"] =
        serde_json::json!({ "losses": [{ "name": "a", "label": "a" }], "metrics": [], "best": null });
    let other: RunConfig = serde_json::from_value(other).unwrap();
    let paths = [run(root.path(), "a", &config(), &lines()), run(root.path(), "b", &other, &lines()[..3])];
    let runs = read(&paths, &root.path().join("report.html")).unwrap();
    let page = page::page(&runs, &[]);
    for part in ["Two runs compared", "Loss: total", "Loss: loss b", "Test set: all right", "unfinished"] {
        assert!(page.contains(part), "no {part:?} in {page}");
    }
    assert!(!page.contains("NaN"));
}
