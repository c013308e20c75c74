//! The page: its sections in their order, and the curves.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use tally_run::journal::StepLine;

use super::chart::{Chart, MOST_CURVES, Scale};
use super::run_data::{RunData, State, losses, ratios, run_label};
use super::series::Series;
use super::{incidents, results, tests_section};
use crate::human_seconds::human_seconds;

const STYLE: &str = include_str!("style.css");

/// The whole page for one run, or for two to compare, with a program's own `sections`. It names nothing outside of
/// itself.
#[must_use]
pub fn page(runs: &[RunData], sections: &[Markup]) -> String {
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
                    (incidents::workers(runs))
                    (incidents::faults(runs))
                    @for section in sections { (section) }
                    (results::configuration(runs))
                }
                footer { "Written by Tally " (env!("CARGO_PKG_VERSION")) " from run.json, journal.jsonl, summary.json and the checkpoints." }
            }
        }
    }
    .into_string()
}

/// A run's name and state.
fn head(run: &RunData, index: usize, count: usize) -> Markup {
    let config = &run.record.config;
    let last = run.record.last();
    html! {
        div.run {
            p {
                @if count > 1 { strong { (run_label(index)) ": " (run.name) } " " }
                span class=(format!("badge {}", run.state.word())) { (run.state.word()) }
            }
            p {
                (config.program.name) " " (config.program.variant) ", " (config.tensors.len()) " parameters, on " (config.data.train_samples) " samples: "
                (config.epochs) " epochs of " (run.record.schedule.steps_per_epoch()) " steps, batch " (config.batch_size) ", optimizer " (config.optimizer.algorithm) ", recipe " (config.recipe) "."
                @if let Some(started) = run.started { " Started " (moment(started)) "." }
            }
            @match run.state {
                State::Done => {},
                State::Stopped => p.note { "The run was stopped at step " (last) " of " (run.steps_wanted()) "; it can be resumed." },
                State::Diverged => p.note { "The run diverged after step " (last) " of " (run.steps_wanted()) ": its loss or a gradient became NaN or infinite." },
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

/// A run's values by step.
fn of_steps(run: &RunData, name: impl Into<String>, value: impl Fn(&StepLine) -> f64) -> Series {
    Series::new(name, run.record.steps.iter().map(|step| (step.step, value(step))))
}

/// A part of the loss by step.
fn of_loss(run: &RunData, name: impl Into<String>, loss: &str) -> Series {
    of_steps(run, name, |step| step.loss.get(loss).copied().unwrap_or(f64::NAN))
}

/// A metric by the step that was tested.
fn of_tests(run: &RunData, name: impl Into<String>, metric: &str) -> Series {
    Series::new(name, run.tests.iter().map(|test| (test.step, test.ratio(metric).unwrap_or(f64::NAN))))
}

/// One chart for each thing measured. Things that belong together share one where there is
/// one run; where there are two, those of the same name do.
fn charts(runs: &[RunData]) -> Vec<Chart> {
    type Shown = (&'static str, Scale, fn(&StepLine) -> f64);
    let others: [Shown; 3] = [
        ("Samples a second", Scale::Linear, |s| {
            if s.seconds > 0.0 { s.samples as f64 / s.seconds } else { f64::NAN }
        }),
        ("Learning rate", Scale::Linear, |s| s.learning_rate.into()),
        ("Norm of the gradient, before clipping", Scale::Logarithmic, |s| s.gradient_norm),
    ];
    let mut charts = Vec::new();
    if let [run] = runs {
        let all = losses(runs);
        let title = if all.len() > 1 { "Loss, by part" } else { "Loss" };
        let series = all.iter().map(|loss| of_loss(run, &loss.label, &loss.name)).collect();
        charts.extend(several(title, |_| Scale::Logarithmic, series));
        let series = ratios(runs).iter().map(|metric| of_tests(run, &metric.label, &metric.name)).collect();
        charts.extend(several("Metrics of the test set", scale_of_ratios, series));
    } else {
        let names = || runs.iter().enumerate().map(|(index, run)| (run_label(index), run));
        for loss in losses(runs) {
            let series = names().map(|(label, run)| of_loss(run, label, &loss.name)).collect();
            charts.push(Chart { title: format!("Loss: {}", loss.label), scale: Scale::Logarithmic, series });
        }
        for metric in ratios(runs) {
            let series: Vec<Series> =
                names().map(|(label, run)| of_tests(run, label, &metric.name)).collect();
            let title = format!("Test set: {}", metric.label);
            charts.push(Chart { title, scale: scale_of_ratios(&series), series });
        }
    }
    for (title, scale, value) in others {
        let name = |index: usize| if runs.len() > 1 { run_label(index) } else { "" };
        let series = runs.iter().enumerate().map(|(index, run)| of_steps(run, name(index), value)).collect();
        charts.push(Chart { title: title.into(), scale, series });
    }
    charts
}

/// Charts of as many curves as one can tell apart.
fn several(title: &str, scale: fn(&[Series]) -> Scale, series: Vec<Series>) -> Vec<Chart> {
    let chart = |part: &[Series]| Chart { title: title.into(), scale: scale(part), series: part.to_vec() };
    series.chunks(MOST_CURVES).map(chart).collect()
}

/// Per cent for shares; other ratios as they are.
fn scale_of_ratios(series: &[Series]) -> Scale {
    let mut points = series.iter().flat_map(|series| &series.points);
    if points.all(|point| 0.0 <= point.low && point.high <= 1.0) { Scale::Percent } else { Scale::Linear }
}

/// How the time divides: a bar for each run that adds up to its wall time, and the numbers.
fn time(runs: &[RunData]) -> Markup {
    let share = |seconds: f64, total: f64| if total > 0.0 { 100.0 * seconds / total } else { 0.0 };
    html! {
        section #time {
            h2 { "Where the time went" }
            @for (index, run) in runs.iter().enumerate() {
                @if runs.len() > 1 { h3 { (run_label(index)) ": " (run.name) } }
                @let total = run.time.total;
                div.bar role="img" aria-label=(format!("{} of wall time, by part as in the table below", human_seconds(total))) {
                    @for (part, (_, seconds)) in run.time.parts.iter().enumerate() {
                        @if share(*seconds, total) >= 0.1 {
                            span class=(format!("p{part}")) style=(format!("width:{:.2}%", share(*seconds, total))) {
                                @if share(*seconds, total) >= 6.0 { (format!("{:.0}%", share(*seconds, total))) }
                            }
                        }
                    }
                }
                table.narrow {
                    @for (part, (name, seconds)) in run.time.parts.iter().enumerate() {
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
