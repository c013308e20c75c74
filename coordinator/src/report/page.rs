//! The page: its sections in their order, and the curves.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{Chart, Scale};
use super::series::Series;
use super::story::{State, Story};
use super::{gallery, happenings, results, tests_section};
use crate::console::human_seconds;
use tally_run::journal::StepLine;

const STYLE: &str = include_str!("style.css");

/// The whole page for one run, or for two to compare. It names nothing outside of itself.
#[must_use]
pub fn page(runs: &[Story]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let title = format!("Tally: {}", names.join(" and "));
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    p.brand { "Tally" }
                    h1 { @if runs.len() > 1 { "Two runs compared" } @else { (names[0]) } }
                    div.runs { @for (index, run) in runs.iter().enumerate() { (head(run, index, runs.len())) } }
                }
                main {
                    (results::section(runs))
                    section #curves { h2 { "Curves" } div.charts { @for chart in charts(runs) { (chart.draw()) } } }
                    (tests_section::section(runs))
                    (time(runs))
                    (happenings::workers(runs))
                    (happenings::faults(runs))
                    (gallery::section(runs))
                    (results::configuration(runs))
                }
                footer { "Written by Tally " (env!("CARGO_PKG_VERSION")) " from run.json, journal.jsonl, summary.json and the checkpoints." }
            }
        }
    }
    .into_string()
}

/// A run's name, how it stands, and what that means.
fn head(run: &Story, index: usize, count: usize) -> Markup {
    let config = &run.record.config;
    let last = run.record.last();
    html! {
        div.run {
            p {
                @if count > 1 { strong { (letter(index)) ": " (run.name) } " " }
                span class=(format!("badge {}", run.state.word())) { (run.state.word()) }
            }
            p {
                (config.model) ", " (config.tensors.len()) " parameters, on " (config.data.train_samples) " samples: "
                (config.epochs) " epochs of " (run.record.schedule.steps_per_epoch()) " steps, batch " (config.batch_size) ", recipe " (config.recipe) "."
                @if let Some(started) = run.started { " Started " (moment(started)) "." }
            }
            @match run.state {
                State::Done => {},
                State::Stopped => p.note { "The run was stopped at step " (last) " of " (run.steps_wanted()) "; it can be gone on with." },
                State::Diverged => p.note { "The run diverged after step " (last) " of " (run.steps_wanted()) ": what it computed was no number any more." },
                State::Unfinished => p.note {
                    "This run is unfinished: its journal ends at step " (last) " of " (run.steps_wanted())
                    " without saying that it was stopped. It is going on, or its coordinator was killed. What follows is the run so far."
                },
            }
        }
    }
}

/// A moment in words, in UTC.
fn moment(unix_seconds: u64) -> String {
    let at = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(unix_seconds));
    // Beyond the year 9999 there is no such form.
    let at = at.filter(|_| unix_seconds < 253_402_300_800);
    at.map_or_else(
        || "at an unknown time".to_owned(),
        |at| humantime::format_rfc3339_seconds(at).to_string().replace('T', " ").replace('Z', " UTC"),
    )
}

/// What a run is called where there are two.
pub fn letter(index: usize) -> char {
    if index == 0 { 'A' } else { 'B' }
}

/// A run's values by step.
fn of_steps(run: &Story, name: impl Into<String>, value: impl Fn(&StepLine) -> f64) -> Series {
    Series::new(name, run.record.steps.iter().map(|step| (step.step, value(step))))
}

/// One chart for each thing measured. Things that belong together share one where there is
/// one run; where there are two, those of the same name do.
fn charts(runs: &[Story]) -> Vec<Chart> {
    type Of<T> = (&'static str, fn(&T) -> f64);
    type Shown = (&'static str, Scale, fn(&StepLine) -> f64);
    let losses: [Of<StepLine>; 4] = [
        ("total", |s| s.loss.total),
        ("digit", |s| s.loss.label),
        ("sum", |s| s.loss.sum),
        ("difference", |s| s.loss.difference),
    ];
    let accuracies: [Of<tally_worker::scores::Scores>; 4] = [
        ("all three", |s| s.all_correct),
        ("digit", |s| s.digit_accuracy),
        ("sum", |s| s.sum_accuracy),
        ("difference", |s| s.difference_accuracy),
    ];
    let others: [Shown; 3] = [
        ("Images a second", Scale::Linear, |s| {
            if s.seconds > 0.0 { s.samples as f64 / s.seconds } else { f64::NAN }
        }),
        ("Learning rate", Scale::Linear, |s| s.learning_rate.into()),
        ("Norm of the gradient, before clipping", Scale::Logarithmic, |s| s.gradient_norm),
    ];
    let tested = |run: &Story, name: &str, value: fn(&tally_worker::scores::Scores) -> f64| {
        Series::new(name, run.tests.iter().map(|test| (test.step, value(&test.scores))))
    };
    let mut charts = Vec::new();
    if let [run] = runs {
        let series = losses.iter().map(|(name, value)| of_steps(run, *name, value)).collect();
        charts.push(Chart { title: "Loss, by part".into(), scale: Scale::Logarithmic, series });
        let series = accuracies.iter().map(|(name, value)| tested(run, name, *value)).collect();
        charts.push(Chart { title: "Right answers on the test set".into(), scale: Scale::Percent, series });
    } else {
        let names = || runs.iter().enumerate().map(|(index, run)| (letter(index).to_string(), run));
        for (name, value) in losses {
            let series = names().map(|(letter, run)| of_steps(run, letter, value)).collect();
            charts.push(Chart { title: format!("Loss: {name}"), scale: Scale::Logarithmic, series });
        }
        for (name, value) in accuracies {
            let series = names().map(|(letter, run)| tested(run, &letter, value)).collect();
            charts.push(Chart {
                title: format!("Right on the test set: {name}"),
                scale: Scale::Percent,
                series,
            });
        }
    }
    for (title, scale, value) in others {
        let name = |index: usize| if runs.len() > 1 { letter(index).to_string() } else { String::new() };
        let series = runs.iter().enumerate().map(|(index, run)| of_steps(run, name(index), value)).collect();
        charts.push(Chart { title: title.into(), scale, series });
    }
    charts
}

/// Where the time went: a bar for each run that adds up to its wall time, and the numbers.
fn time(runs: &[Story]) -> Markup {
    let share = |seconds: f64, total: f64| if total > 0.0 { 100.0 * seconds / total } else { 0.0 };
    html! {
        section #time {
            h2 { "Where the time went" }
            @for (index, run) in runs.iter().enumerate() {
                @if runs.len() > 1 { h3 { (letter(index)) ": " (run.name) } }
                @let total = run.spent.total;
                div.bar role="img" aria-label=(format!("{} of wall time, by part as in the table below", human_seconds(total))) {
                    @for (part, (_, seconds)) in run.spent.parts.iter().enumerate() {
                        @if share(*seconds, total) >= 0.1 {
                            span class=(format!("p{part}")) style=(format!("width:{:.2}%", share(*seconds, total))) {
                                @if share(*seconds, total) >= 6.0 { (format!("{:.0}%", share(*seconds, total))) }
                            }
                        }
                    }
                }
                table.narrow {
                    @for (part, (name, seconds)) in run.spent.parts.iter().enumerate() {
                        tr {
                            th scope="row" { span class=(format!("swatch p{part}")) {} (name) }
                            td { (format!("{seconds:.1} s")) }
                            td { (format!("{:.1}%", share(*seconds, total))) }
                        }
                    }
                    tr.sum { th scope="row" { "wall time" } td { (format!("{total:.1} s")) } td { "100%" } }
                }
            }
            p.quiet {
                "In a step all wait for the slowest worker: “computing” is what the mean worker computed, “waiting for the slowest” the rest until the slowest was done."
            }
        }
    }
}
