//! A run directory as others see it: JSON files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::DEADLINE;

/// A temporary place for a run directory, removed when dropped.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _root: TempDir,
}

impl RunDir {
    /// A place where nothing is yet.
    ///
    /// # Panics
    /// If there is no temporary directory.
    #[must_use]
    pub fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        Self { path: root.path().join("run"), _root: root }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path as an argument.
    ///
    /// # Panics
    /// If it is not Unicode.
    #[must_use]
    pub fn arg(&self) -> &str {
        self.path.to_str().expect("a temporary path is Unicode")
    }

    /// `summary.json`.
    ///
    /// # Panics
    /// If it is not there or no JSON.
    #[must_use]
    pub fn summary(&self) -> Value {
        let file = self.path.join("summary.json");
        let text = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    }

    /// The summary's `parameters_sha256`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn sha256(&self) -> String {
        self.summary()["parameters_sha256"].as_str().expect("a summary has the parameters' SHA-256").into()
    }

    /// The journal's whole lines. None if there is no journal yet.
    ///
    /// # Panics
    /// If a whole line is no JSON.
    #[must_use]
    pub fn journal(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path.join("journal.jsonl")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        whole.lines().map(parse).collect()
    }

    /// Waits until the journal has a line like this, and returns the journal.
    ///
    /// # Panics
    /// If the [`DEADLINE`] passes first.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let end = Instant::now() + DEADLINE;
        loop {
            let journal = self.journal();
            if journal.iter().any(&wanted) {
                return journal;
            }
            assert!(Instant::now() < end, "no {what} in the journal: {journal:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until a step, or a later one, is committed.
    ///
    /// # Panics
    /// If the [`DEADLINE`] passes first.
    pub fn wait_for_step(&self, step: u64) {
        let reached = |line: &Value| line["event"] == "step" && line["step"].as_u64() >= Some(step);
        self.wait_for(&format!("step {step}"), reached);
    }

    /// The checkpoints that are there, oldest first.
    #[must_use]
    pub fn checkpoints(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path.join("checkpoints")).into_iter().flatten().flatten();
        let step =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-"));
        let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(step).collect();
        found.sort();
        found
    }
}

impl Default for RunDir {
    fn default() -> Self {
        Self::new()
    }
}

/// The lines of one kind.
pub fn events<'a>(journal: &'a [Value], event: &str) -> Vec<&'a Value> {
    journal.iter().filter(|line| line["event"] == event).collect()
}

/// The digests of the steps, which must be there from 1 on, in order, each once.
///
/// # Panics
/// If they are not.
#[must_use]
pub fn digests(journal: &[Value]) -> Vec<String> {
    let steps = events(journal, "step");
    let numbers: Vec<u64> = steps.iter().filter_map(|line| line["step"].as_u64()).collect();
    assert!(numbers.iter().copied().eq(1..=steps.len() as u64), "steps in the journal: {numbers:?}");
    steps.iter().map(|line| line["digest"].as_str().expect("a step has a digest").to_owned()).collect()
}
