//! The promises, checked on the files of the run alone, against a run that nobody disturbed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;

/// A promise, and whether it was kept.
#[derive(Clone, Debug, Serialize)]
pub struct Promise {
    /// Its name in ARCHITECTURE.md.
    pub name: &'static str,
    /// What is checked.
    pub what: &'static str,
    /// Whether it holds.
    pub kept: bool,
    /// What was found.
    pub found: String,
}

/// The whole lines of a journal.
///
/// # Errors
/// If there is none, or a whole line is no JSON.
pub fn journal(run: &Path) -> anyhow::Result<Vec<Value>> {
    let path = run.join("journal.jsonl");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |line| serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()));
    whole.lines().map(parse).collect()
}

/// `summary.json`, or null if there is none.
#[must_use]
pub fn summary(run: &Path) -> Value {
    fs::read(run.join("summary.json"))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

fn steps(journal: &[Value]) -> impl Iterator<Item = &Value> {
    journal.iter().filter(|line| line["event"] == "step")
}

/// LIVE-1 in the journal: every step is there, in order, once.
#[must_use]
pub fn each_step_once(journal: &[Value]) -> Promise {
    let numbers: Vec<u64> = steps(journal).filter_map(|line| line["step"].as_u64()).collect();
    let last = numbers.iter().copied().max().unwrap_or(0);
    let mut counts = vec![0u32; last as usize + 1];
    numbers.iter().for_each(|step| counts[*step as usize] += 1);
    let lost = counts.iter().skip(1).filter(|count| **count == 0).count();
    let twice = counts.iter().filter(|count| **count > 1).count();
    Promise {
        name: "LIVE-1",
        what: "every step is in the journal, once and in order",
        kept: last > 0 && numbers.iter().copied().eq(1..=last),
        found: format!("{last} steps, {lost} lost, {twice} twice"),
    }
}

/// DATA-1: by the run's own ledger, and by adding up the journal.
#[must_use]
pub fn each_sample_once(journal: &[Value], summary: &Value, samples: u64) -> Promise {
    let epochs = summary["epochs"].as_u64().unwrap_or(0);
    let mut sums: BTreeMap<u64, u64> = BTreeMap::new();
    for line in steps(journal) {
        *sums.entry(line["epoch"].as_u64().unwrap_or(0)).or_default() +=
            line["samples"].as_u64().unwrap_or(0);
    }
    let wrong = (1..=epochs).filter(|epoch| sums.get(epoch) != Some(&samples)).count();
    let (lost, twice) = (&summary["samples_lost"], &summary["samples_duplicated"]);
    Promise {
        name: "DATA-1",
        what: "every sample is used once in every epoch",
        kept: epochs > 0
            && wrong == 0
            && (lost, twice) == (&0.into(), &0.into())
            && summary["samples"].as_u64() == Some(epochs * samples),
        found: format!(
            "{epochs} epochs of {samples}: {lost} lost, {twice} twice, {wrong} epochs with another sum"
        ),
    }
}

/// SUM-1 and RESUME-1: the same bits after every step, and at the end.
#[must_use]
pub fn equal_bits(run: (&[Value], &Value), reference: (&[Value], &Value)) -> Promise {
    let digests = |journal| steps(journal).map(|line| (line["step"].as_u64(), line["digest"].clone()));
    let wanted: BTreeMap<_, _> = digests(reference.0).collect();
    let different: Vec<u64> = digests(run.0)
        .filter(|(step, digest)| wanted.get(step) != Some(digest))
        .filter_map(|d| d.0)
        .collect();
    let (ours, theirs) = (&run.1["parameters_sha256"], &reference.1["parameters_sha256"]);
    let count = steps(run.0).count();
    let all = count > 0 && count == wanted.len();
    let sha = ours.as_str().unwrap_or("none");
    let first = different.first().map_or_else(String::new, |step| format!(", the first is step {step}"));
    Promise {
        name: "SUM-1, RESUME-1",
        what: "the undisturbed run's bits after every step and at the end",
        kept: all && different.is_empty() && ours.is_string() && ours == theirs,
        found: format!(
            "{} of {count} digests differ{first}; the reference has {} steps; parameters {sha} {} the reference's",
            different.len(),
            wanted.len(),
            if ours == theirs { "are" } else { "are not" }
        ),
    }
}

/// REP-1: no replica was found with other bits than the master state's.
#[must_use]
pub fn no_drift(journal: &[Value]) -> Promise {
    let drifted =
        journal.iter().filter(|l| l["reason"].as_str().is_some_and(|r| r.contains("drifted"))).count();
    Promise { name: "REP-1", what: "no replica drifted", kept: drifted == 0, found: format!("{drifted} did") }
}

/// How often each reason stands behind a kind of line, with its numbers made alike.
#[must_use]
pub fn reasons(journal: &[Value], event: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in journal.iter().filter(|line| line["event"] == event) {
        let reason = line["reason"].as_str().unwrap_or("");
        let words =
            reason.split(' ').map(|word| if word.chars().any(|c| c.is_ascii_digit()) { "N" } else { word });
        *counts.entry(words.collect::<Vec<_>>().join(" ")).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(steps: &[(u64, &str)]) -> Vec<Value> {
        steps
            .iter()
            .map(|(step, digest)| {
                json!({"event": "step", "step": step, "epoch": step.div_ceil(2), "samples": 10, "digest": digest})
            })
            .collect()
    }

    #[test]
    fn live_1_a_step_that_is_missing_or_there_twice_is_found() {
        assert!(each_step_once(&run(&[(1, "a"), (2, "b")])).kept);
        assert_eq!(each_step_once(&run(&[(1, "a"), (3, "b"), (3, "c")])).found, "3 steps, 1 lost, 1 twice");
        for wrong in [&[][..], &[(2, "b")], &[(1, "a"), (3, "b")], &[(2, "a"), (1, "b")]] {
            assert!(!each_step_once(&run(wrong)).kept, "{wrong:?}");
        }
    }

    #[test]
    fn data_1_the_ledger_and_the_journal_are_both_asked() {
        let journal = run(&[(1, "a"), (2, "b"), (3, "c"), (4, "d")]);
        let summary = |epochs: u64, lost: u64, samples: u64| json!({"epochs": epochs, "samples": samples, "samples_lost": lost, "samples_duplicated": 0});
        assert!(each_sample_once(&journal, &summary(2, 0, 40), 20).kept);
        assert!(!each_sample_once(&journal, &summary(2, 1, 40), 20).kept);
        assert!(!each_sample_once(&journal, &summary(2, 0, 30), 20).kept);
        assert!(!each_sample_once(&journal[..3], &summary(2, 0, 40), 20).kept);
        assert!(!each_sample_once(&journal, &Value::Null, 20).kept);
    }

    #[test]
    fn sum_1_one_digest_or_the_end_may_differ() {
        let (two, other) = (run(&[(1, "a"), (2, "b")]), run(&[(1, "a"), (2, "x")]));
        let (sha, sha_other) = (json!({"parameters_sha256": "s"}), json!({"parameters_sha256": "t"}));
        assert!(equal_bits((&two, &sha), (&two, &sha)).kept);
        assert!(!equal_bits((&two, &sha), (&other, &sha)).kept);
        assert!(!equal_bits((&two, &sha), (&two, &sha_other)).kept);
        assert!(!equal_bits((&two, &sha), (&run(&[(1, "a")]), &sha)).kept);
        assert!(!equal_bits((&two, &Value::Null), (&two, &Value::Null)).kept);
    }

    #[test]
    fn reasons_that_differ_in_numbers_are_one() {
        let lost = |reason| json!({"event": "lost", "reason": reason});
        let found = reasons(&[lost("it lags at step 3"), lost("it lags at step 17")], "lost");
        assert_eq!(found, BTreeMap::from([("it lags at step N".to_owned(), 2)]));
    }
}
