//! Results and configuration: of one run as they are, of two side by side with what differs.

use std::collections::BTreeMap;

use maud::{Markup, html};
use serde_json::Value;
use tally_run::summary::Summary;

use super::run_data::{RunData, TestPass, ratio_text, ratios, run_label};
use crate::human_seconds::human_seconds;

/// A row of results: its name, each run's value in words, and as a number where a difference
/// says something.
struct Row {
    name: String,
    words: Vec<String>,
    numbers: Vec<Option<f64>>,
    /// How a difference of these numbers is written.
    unit: Unit,
}

#[derive(Clone, Copy)]
enum Unit {
    /// Shares, compared in percentage points.
    Points,
    /// Compared by their ratio.
    Ratio,
    /// Compared as they are.
    Count,
    /// Not compared.
    Word,
}

/// The results.
pub fn section(runs: &[RunData]) -> Markup {
    html! {
        section #results {
            h2 { "Results" }
            @if let [run] = runs { (cards(run)) }
            div.scroll {
                table {
                    @if runs.len() > 1 {
                        thead { tr { th {} @for index in 0..runs.len() { th scope="col" { (run_label(index)) } } th scope="col" { "B against A" } } }
                    }
                    tbody {
                        @for row in rows(runs) {
                            tr {
                                th scope="row" { (row.name) }
                                @for word in &row.words { td.word[matches!(row.unit, Unit::Word)] { (word) } }
                                @if runs.len() > 1 { td { (row.difference()) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The metrics that are one number, large.
fn cards(run: &RunData) -> Markup {
    let Some(test) = run.last_test() else {
        return html! { p.note { "There is no test pass yet; the first comes at the end of the first epoch." } };
    };
    html! {
        div.cards {
            p.card { strong { (format!("{:.4}", test.evaluation.total_loss())) } " loss" }
            @for (metric, _) in run.schema().ratios() {
                p.card { strong { (ratio_text(test.evaluation.ratio(&metric.name))) } " " (metric.label) }
            }
        }
        p.quiet { "On " (test.evaluation.samples) " test samples after step " (test.step) ", epoch " (test.epoch) "." }
    }
}

impl Row {
    fn difference(&self) -> String {
        let [Some(a), Some(b)] = self.numbers[..] else { return String::new() };
        match self.unit {
            Unit::Word => String::new(),
            Unit::Points => format!("{:+.2} points", 100.0 * (b - a)),
            Unit::Ratio if a > 0.0 => format!("× {:.3}", b / a),
            Unit::Ratio => String::new(),
            Unit::Count if a == b => "equal".into(),
            Unit::Count => format!("{:+}", b - a),
        }
    }
}

fn rows(runs: &[RunData]) -> Vec<Row> {
    type Value<'a> = &'a dyn Fn(&RunData) -> Option<f64>;
    let row = |name: &str, unit, value: Value<'_>, word: &dyn Fn(f64) -> String| {
        let numbers: Vec<Option<f64>> = runs.iter().map(value).collect();
        let words = numbers.iter().map(|number| number.map_or_else(|| "–".to_owned(), word)).collect();
        Row { name: name.into(), words, numbers, unit }
    };
    let words = |name: &str, word: &dyn Fn(&RunData) -> String| Row {
        name: name.into(),
        words: runs.iter().map(word).collect(),
        numbers: vec![None; runs.len()],
        unit: Unit::Word,
    };
    let count = &|x: f64| x.to_string();
    let seconds = &|x: f64| human_seconds(x);
    let summary = |run: &RunData, value: fn(&Summary) -> u64| {
        run.record.summary.as_ref().map(|summary| value(summary) as f64)
    };
    let mut rows = vec![
        words("outcome", &|run| run.state.word().into()),
        row("steps", Unit::Count, &|run| Some(run.record.last() as f64), count),
    ];
    for metric in ratios(runs) {
        let of = |test: &TestPass| test.ratio(&metric.name);
        let last = |run: &RunData| run.last_test().and_then(of);
        let unit = match runs.iter().filter_map(last).all(|ratio| (0.0..=1.0).contains(&ratio)) {
            true => Unit::Points,
            false => Unit::Ratio,
        };
        rows.push(row(&metric.label, unit, &last, &ratio_text));
        if runs.iter().any(|run| run.schema().best().is_some_and(|best| best.name == metric.name)) {
            let best = |run: &RunData| run.best_test().and_then(of);
            rows.push(row(&format!("{}, at best", metric.label), unit, &best, &ratio_text));
        }
    }
    rows.extend([
        row(
            "loss on the test set",
            Unit::Ratio,
            &|run| run.last_test().map(|test| test.evaluation.total_loss()),
            &|x| format!("{x:.4}"),
        ),
        row("wall time", Unit::Ratio, &|run| Some(run.time.total), seconds),
        row("samples a second", Unit::Ratio, &RunData::samples_per_second, &|x| format!("{x:.0}")),
    ]);
    type Counted = (&'static str, fn(&RunData) -> u64);
    let counts: [Counted; 6] = [
        ("workers that joined", |run| run.counts.joined),
        ("workers lost", |run| run.counts.lost),
        ("microbatches taken over", |run| run.counts.taken_over),
        ("times a worker was late", |run| run.counts.late),
        ("attempts that were void", |run| run.counts.aborts),
        ("starts of the coordinator", |run| run.counts.starts),
    ];
    rows.extend(counts.map(|(name, value)| row(name, Unit::Count, &|run| Some(value(run) as f64), count)));
    rows.push(row("samples lost", Unit::Count, &|run| summary(run, |s| s.samples_lost), count));
    rows.push(row("samples used twice", Unit::Count, &|run| summary(run, |s| s.samples_duplicated), count));
    rows.push(words("digest of the last step", &|run| {
        run.record.steps.last().map_or_else(|| "–".into(), |step| step.digest.to_string())
    }));
    rows.push(words("parameters' SHA-256", &|run| {
        let of_now = run.record.summary.as_ref().filter(|s| s.steps == run.record.last());
        of_now.map_or_else(|| "–".into(), |summary| summary.parameters_sha256.clone())
    }));
    rows
}

/// The configuration: every value, and of two runs first those that differ.
pub fn configuration(runs: &[RunData]) -> Markup {
    let tables: Vec<BTreeMap<String, String>> = runs.iter().map(flat).collect();
    let mut names: Vec<&String> = tables.iter().flat_map(BTreeMap::keys).collect();
    names.sort_unstable();
    names.dedup();
    let value =
        |table: &BTreeMap<String, String>, name: &str| table.get(name).cloned().unwrap_or_else(|| "–".into());
    let (other, same): (Vec<&String>, Vec<&String>) = names
        .into_iter()
        .partition(|name| tables.windows(2).any(|pair| pair[0].get(*name) != pair[1].get(*name)));
    let table = |names: &[&String]| {
        html! {
            div.scroll {
                table.config {
                    @if runs.len() > 1 { thead { tr { th {} @for index in 0..runs.len() { th scope="col" { (run_label(index)) } } } } }
                    tbody { @for name in names { tr { th scope="row" { (name) } @for t in &tables { td.word { (value(t, name)) } } } } }
                }
            }
        }
    };
    html! {
        section #configuration {
            h2 { "Configuration" }
            @if runs.len() > 1 {
                h3 { "What differs" }
                @if other.is_empty() { p { "Nothing does." } } @else { (table(&other)) }
                details { summary { "What is the same (" (same.len()) " values)" } (table(&same)) }
            } @else {
                (table(&same))
            }
        }
    }
}

/// `run.json` as names and values, without the list of tensors.
fn flat(run: &RunData) -> BTreeMap<String, String> {
    fn walk(name: &str, value: &Value, into: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                    walk(&name, value, into);
                }
            }
            Value::Null => drop(into.insert(name.into(), "–".into())),
            Value::String(text) => drop(into.insert(name.into(), text.clone())),
            other => drop(into.insert(name.into(), other.to_string())),
        }
    }
    let mut table = BTreeMap::new();
    let mut config = serde_json::to_value(&run.record.config).unwrap_or_default();
    if let Some(fields) = config.as_object_mut() {
        fields.remove("tensors");
    }
    walk("", &config, &mut table);
    table.insert(
        "tensors".into(),
        format!(
            "{} with {} elements",
            run.record.config.tensors.tensors().len(),
            run.record.config.tensors.len()
        ),
    );
    table
}
