//! What the test passes found: a line each, the confusion matrix of the digit, and by how much
//! sums and differences were off.

use maud::{Markup, html};
use tally_worker::scores::{REACH, Scores};

use super::page::letter;
use super::story::{Story, TestPass};

/// Test passes that are listed; of more, those between are left out.
const LISTED: usize = 40;

/// The section.
pub fn section(runs: &[Story]) -> Markup {
    html! {
        section #tests {
            h2 { "Tests" }
            @for (index, run) in runs.iter().enumerate() {
                @if runs.len() > 1 { h3 { (letter(index)) ": " (run.name) } }
                @match run.best_test() {
                    None => p.quiet { "There is no test pass yet." },
                    Some(best) => {
                        p { "The best test pass, after step " (best.step) " (epoch " (best.epoch) "), over " (best.scores.samples) " digits:" }
                        div.pair {
                            (confusion(&best.scores))
                            div {
                                (histogram("Errors of the sum", &best.scores.sum_errors))
                                (histogram("Errors of the difference", &best.scores.difference_errors))
                            }
                        }
                        details open[runs.len() == 1 && run.tests.len() <= 20] {
                            summary { "Every test pass (" (run.tests.len()) ")" }
                            (list(&run.tests))
                        }
                    }
                }
            }
        }
    }
}

fn list(tests: &[TestPass]) -> Markup {
    let every = tests.len().div_ceil(LISTED).max(1);
    let shown = tests.iter().enumerate().filter(|(at, _)| at % every == 0 || at + 1 == tests.len());
    let percent = |share: f64| format!("{:.2}%", 100.0 * share);
    html! {
        div.scroll {
            table {
                thead { tr { @for name in ["epoch", "step", "loss", "digit", "sum", "difference", "all three"] { th scope="col" { (name) } } } }
                tbody {
                    @for (_, TestPass { epoch, step, scores: s }) in shown {
                        tr {
                            td { (epoch) } td { (step) } td { (format!("{:.4}", s.loss)) }
                            @for share in [s.digit_accuracy, s.sum_accuracy, s.difference_accuracy, s.all_correct] { td { (percent(share)) } }
                        }
                    }
                }
            }
        }
        @if every > 1 { p.quiet { "Every " (every) "th is listed." } }
    }
}

/// Rows are what a digit is, columns what it was taken for.
fn confusion(scores: &Scores) -> Markup {
    let mistakes = scores.confusion.iter().enumerate().flat_map(|(is, row)| {
        row.iter().enumerate().filter(move |(taken, _)| *taken != is).map(|(_, &count)| count)
    });
    let most = mistakes.max().unwrap_or(0).max(1);
    // Few mistakes should be seen beside many: by the root of their number.
    let heat = |count: u32| (f64::from(count) / f64::from(most)).sqrt();
    html! {
        figure.confusion {
            figcaption { "Digits: " span.quiet { "what it is (row), what it was taken for (column)" } }
            div.scroll {
                table {
                    thead { tr { th {} @for digit in 0..10 { th scope="col" { (digit) } } } }
                    tbody {
                        @for (is, row) in scores.confusion.iter().enumerate() {
                            tr {
                                th scope="row" { (is) }
                                @for (taken, &count) in row.iter().enumerate() {
                                    @if taken == is { td.right { (count) } }
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

/// Where the middle of a bar is.
fn middle(at: usize, bars: usize) -> f64 {
    let width = (WIDTH - 2.0 * BESIDE) / bars.max(1) as f64;
    (10.0 * (BESIDE + width * (at as f64 + 0.5))).round() / 10.0
}

/// Bars by the logarithm of their counts, since nearly all errors are 0.
fn histogram(title: &str, counts: &[u32]) -> Markup {
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let height = |count: u32| (HEIGHT - 46.0) * (1.0 + f64::from(count)).ln() / (1.0 + f64::from(most)).ln();
    let name = |at: usize| match at as i64 - REACH {
        error if error == -REACH => format!("≤\u{2212}{REACH}"),
        error if error == REACH => format!("≥{REACH}"),
        error if error < 0 => format!("\u{2212}{}", -error),
        error => error.to_string(),
    };
    let right = counts.get(REACH as usize).copied().unwrap_or(0);
    let all: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    let words = format!("{title}: {right} of {all} are right; the table of counts by error is in the labels");
    html! {
        figure.chart {
            figcaption { (title) span.quiet { " (answer minus truth; bars are logarithmic)" } }
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(words) {
                g.grid { line x1="0" x2=(WIDTH) y1=(HEIGHT - 24.0) y2=(HEIGHT - 24.0) {} }
                @for (at, &count) in counts.iter().enumerate() {
                    @let middle = middle(at, counts.len());
                    @let tall = (10.0 * height(count)).round() / 10.0;
                    g {
                        title { (count) " answers are off by " (name(at)) }
                        rect.zero[at as i64 == REACH] x=(middle - 9.0) width="18" y=(HEIGHT - 24.0 - tall) height=(tall) rx="2" {}
                        @if count > 0 { text.count x=(middle) y=(HEIGHT - 28.0 - tall) { (count) } }
                        @if at % 2 == 0 { text.below x=(middle) y=(HEIGHT - 8.0) { (name(at)) } }
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
        let bars = 2 * REACH as usize + 1;
        let (first, last) = (middle(0, bars), middle(bars - 1, bars));
        assert!(first >= 21.0 && last <= WIDTH - 21.0, "{first}, {last}");
        assert!(2.0 * (middle(1, bars) - first) >= 42.0, "every second bar has a label");
    }
}
