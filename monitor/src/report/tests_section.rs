//! The test passes: a line each, and of the best one every metric that is a confusion matrix or a histogram.

use maud::{Markup, html};
use tally_numerics::schema::{MetricKind, MetricSpec, MetricValue};

use super::run_data::{RunData, TestPass, ratio_text, run_label};

/// Test passes that are listed; of more, those between are left out.
const LISTED: usize = 40;

/// The section.
pub fn section(runs: &[RunData]) -> Markup {
    html! {
        section #tests {
            h2 { "Tests" }
            @for (index, run) in runs.iter().enumerate() {
                @if runs.len() > 1 { h3 { (run_label(index)) ": " (run.name) } }
                @match run.best_test() {
                    None => p.quiet { "There is no test pass yet." },
                    Some(best) => {
                        p { "The best test pass, after step " (best.step) " (epoch " (best.epoch) "), over " (best.evaluation.samples) " samples:" }
                        (counts(run.schema().metrics(), best))
                        details open[runs.len() == 1 && run.tests.len() <= 20] {
                            summary { "Every test pass (" (run.tests.len()) ")" }
                            (list(run))
                        }
                    }
                }
            }
        }
    }
}

/// The metrics of a test pass that are counts: confusion matrices, and histograms beside them.
fn counts(metrics: &[MetricSpec], test: &TestPass) -> Markup {
    let value = |metric: &MetricSpec| test.evaluation.metrics.get(&metric.name);
    let (mut matrices, mut histograms) = (Vec::new(), Vec::new());
    for metric in metrics {
        match (&metric.kind, value(metric)) {
            (MetricKind::Confusion { .. }, Some(MetricValue::Confusion(rows))) => {
                matrices.push(confusion(&metric.label, rows));
            }
            (&MetricKind::Histogram { first, .. }, Some(MetricValue::Histogram(counts))) => {
                histograms.push(histogram(&metric.label, first, counts));
            }
            _ => {}
        }
    }
    html! {
        @if !(matrices.is_empty() && histograms.is_empty()) {
            div.pair {
                @for matrix in matrices { (matrix) }
                @if !histograms.is_empty() { div { @for histogram in histograms { (histogram) } } }
            }
        }
    }
}

fn list(run: &RunData) -> Markup {
    let every = run.tests.len().div_ceil(LISTED).max(1);
    let last = run.tests.len() - 1;
    let shown = run.tests.iter().enumerate().filter(|(at, _)| at % every == 0 || *at == last);
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        @for name in ["epoch", "step", "loss"] { th scope="col" { (name) } }
                        @for (metric, _) in run.schema().ratios() { th scope="col" { (metric.label) } }
                    }
                }
                tbody {
                    @for (_, TestPass { epoch, step, evaluation }) in shown {
                        tr {
                            td { (epoch) } td { (step) } td { (format!("{:.4}", evaluation.total_loss())) }
                            @for (metric, _) in run.schema().ratios() { td { (ratio_text(evaluation.ratio(&metric.name))) } }
                        }
                    }
                }
            }
        }
        @if every > 1 { p.quiet { "Every " (every) "th is listed." } }
    }
}

/// Counts by true class, a row each, and answered class, a column each.
fn confusion(label: &str, counts: &[Vec<u64>]) -> Markup {
    let mistakes = counts.iter().enumerate().flat_map(|(class, row)| {
        row.iter().enumerate().filter(move |(answer, _)| *answer != class).map(|(_, &count)| count)
    });
    let most = mistakes.max().unwrap_or(0).max(1);
    // Few mistakes should be seen beside many: by the root of their number.
    let heat = |count: u64| (count as f64 / most as f64).sqrt();
    html! {
        figure.confusion {
            figcaption { (label) ": " span.quiet { "the true class (row), the answer (column)" } }
            div.scroll {
                table {
                    thead { tr { th {} @for class in 0..counts.len() { th scope="col" { (class) } } } }
                    tbody {
                        @for (class, row) in counts.iter().enumerate() {
                            tr {
                                th scope="row" { (class) }
                                @for (answer, &count) in row.iter().enumerate() {
                                    @if answer == class { td.right { (count) } }
                                    @else if count == 0 { td.none { "·" } }
                                    @else { td.heat style=(format!("--heat:{:.0}%", 12.0 + 58.0 * heat(count))) { (count) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 150.0;
/// Room beside the first and the last bar, since their labels are wider than they are: on a
/// telephone half of "≤−10" takes 21.
const BESIDE: f64 = 12.0;
/// Room for a label under a bar.
const LABEL: f64 = 42.0;

/// The room of a bar.
fn pitch(bars: usize) -> f64 {
    (WIDTH - 2.0 * BESIDE) / bars.max(1) as f64
}

/// The middle of a bar.
fn middle(at: usize, bars: usize) -> f64 {
    (10.0 * (BESIDE + pitch(bars) * (at as f64 + 0.5))).round() / 10.0
}

/// Every so many bars have a label.
fn labelled(bars: usize) -> usize {
    (LABEL / pitch(bars)).ceil() as usize
}

/// An integer of a histogram; the outermost stand for all beyond as well.
fn bin_name(at: usize, bars: usize, first: i64) -> String {
    let value = first.saturating_add(i64::try_from(at).unwrap_or(i64::MAX));
    let sign = if value < 0 { "\u{2212}" } else { "" };
    let beyond = if at == 0 {
        "≤"
    } else if at + 1 == bars {
        "≥"
    } else {
        ""
    };
    format!("{beyond}{sign}{}", value.unsigned_abs())
}

/// Bars by the logarithm of their counts, since one bar is often much higher than the others.
fn histogram(label: &str, first: i64, counts: &[u64]) -> Markup {
    let bars = counts.len();
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let height = |count: u64| (HEIGHT - 46.0) * (1.0 + count as f64).ln() / (1.0 + most as f64).ln();
    let name = |at: usize| bin_name(at, bars, first);
    // The bar of zero, if there is one, has a colour of its own: of errors it counts the right answers.
    let zero = usize::try_from(first.saturating_neg()).ok().filter(|&at| at < bars);
    let all: u64 = counts.iter().sum();
    let highest = counts.iter().position(|&count| count == most).map(name).unwrap_or_default();
    let words = format!(
        "{label}: {most} of {all} are at {highest}, the highest bar; each bar has its count as its title"
    );
    let width = (0.8 * pitch(bars)).min(18.0);
    let every = labelled(bars);
    html! {
        figure.chart {
            figcaption { (label) span.quiet { " (bars are logarithmic)" } }
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(words) {
                g.grid { line x1="0" x2=(WIDTH) y1=(HEIGHT - 24.0) y2=(HEIGHT - 24.0) {} }
                @for (at, &count) in counts.iter().enumerate() {
                    @let middle = middle(at, bars);
                    @let tall = (10.0 * height(count)).round() / 10.0;
                    g {
                        title { (name(at)) ": " (count) }
                        rect.zero[zero == Some(at)] x=(middle - width / 2.0) width=(width) y=(HEIGHT - 24.0 - tall) height=(tall) rx="2" {}
                        @if count > 0 && pitch(bars) >= 20.0 { text.count x=(middle) y=(HEIGHT - 28.0 - tall) { (count) } }
                        @if at % every == 0 { text.below x=(middle) y=(HEIGHT - 8.0) { (name(at)) } }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labels_of_the_outer_bars_are_not_cut_off() {
        let bars = 21;
        let (first, last) = (middle(0, bars), middle(bars - 1, bars));
        assert!(first >= LABEL / 2.0 && last <= WIDTH - LABEL / 2.0, "{first}, {last}");
        for bars in [1, 3, 21, 300, 2048] {
            let every = labelled(bars);
            assert!(
                every as f64 * pitch(bars) >= LABEL
                    && (every == 1 || (every - 1) as f64 * pitch(bars) < LABEL)
            );
        }
        assert_eq!(labelled(21), 2);
    }

    #[test]
    fn the_outer_bars_stand_for_what_lies_beyond() {
        let names: Vec<String> = (0..4).map(|at| bin_name(at, 4, -2)).collect();
        assert_eq!(names, ["≤\u{2212}2", "\u{2212}1", "0", "≥1"]);
        let svg = histogram("errors of <x>", -2, &[1, 0, 40, 3]).into_string();
        assert_eq!(svg.matches("class=\"zero\"").count(), 1, "{svg}");
        assert!(svg.contains("errors of &lt;x&gt;: 40 of 44 are at 0") && !svg.contains("NaN"), "{svg}");
        assert!(!histogram("counts from 5 on", 5, &[1, 2]).into_string().contains("class=\"zero\""));
    }
}
