//! A chart of curves over steps, as SVG whose colours come from the page, so that it follows
//! light, dark and print. Curves differ by dashes as well as by colour.

use std::fmt::Write as _;

use maud::{Markup, PreEscaped, html};

use super::axis::{Axis, short};
use super::series::{Point, Series};

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 30.0;

/// Curves of a chart, at most: the style sheet has a colour and a dash for so many.
pub const MOST_CURVES: usize = 5;

/// How values are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// As they are.
    #[default]
    Linear,
    /// By their logarithm.
    Logarithmic,
    /// Shares from 0 to 1, as per cent.
    Percent,
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// How.
    pub scale: Scale,
    /// Its curves, at most [`MOST_CURVES`].
    pub series: Vec<Series>,
}

impl Chart {
    /// The figure; nothing if no curve has a point.
    pub fn draw(&self) -> Markup {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let usable = |value: f64| self.scale != Scale::Logarithmic || value > 0.0;
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values
                .filter(|&v| usable(v))
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
        };
        // A band is drawn around few curves only; around many it would hide them.
        let bands = self.series.len() <= 2;
        let (low, high) = match bands {
            true => range(&mut points().flat_map(|p| [p.low, p.high])),
            false => range(&mut points().map(|p| p.mean)),
        };
        if low > high {
            return html! {};
        }
        let y = match self.scale {
            Scale::Logarithmic => Axis::logarithmic(low, high),
            Scale::Percent => Axis::linear(low.max(0.0), high.min(1.0), 4),
            Scale::Linear => Axis::linear(low.min(0.0), high, 4),
        };
        let first = points().map(|p| p.step).fold(f64::INFINITY, f64::min);
        let last = points().map(|p| p.step).fold(f64::NEG_INFINITY, f64::max);
        let x = Axis::tight(first, last, 5);
        let at_x = |step: f64| LEFT + (WIDTH - LEFT - RIGHT) * x.place(step);
        let at_y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y.place(value);
        let number = |value: f64| match self.scale {
            Scale::Percent => format!("{}%", short(100.0 * value)),
            _ => short(value),
        };
        let path = |points: &[Point]| {
            line(points.iter().filter(|p| usable(p.mean)).map(|p| (at_x(p.step), at_y(p.mean))))
        };
        let band = |points: &[Point]| {
            let there = points.iter().map(|p| (at_x(p.step), at_y(p.high)));
            let back = points.iter().rev().map(|p| (at_x(p.step), at_y(p.low)));
            format!("{}Z", line(there.chain(back)))
        };
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        html! {
            figure.chart {
                figcaption { (self.title) @if self.scale == Scale::Logarithmic { span.quiet { " (logarithmic)" } } }
                svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(self.in_words(&number)) {
                    g.grid {
                        @for &mark in &y.marks {
                            line x1=(LEFT) x2=(right) y1=(pixel(at_y(mark))) y2=(pixel(at_y(mark))) {}
                            text.left x=(LEFT - 7.0) y=(pixel(at_y(mark) + 4.5)) { (number(mark)) }
                        }
                        @for &mark in &x.marks {
                            line.tick x1=(pixel(at_x(mark))) x2=(pixel(at_x(mark))) y1=(bottom) y2=(bottom + 4.0) {}
                            text.below x=(pixel(at_x(mark))) y=(bottom + 18.0) { (short(mark)) }
                        }
                    }
                    @for (index, series) in self.series.iter().enumerate() {
                        @if bands && series.points.iter().any(|p| p.low < p.high) {
                            path class=(format!("band s{index}")) d=(PreEscaped(band(&series.points))) {}
                        }
                    }
                    @for (index, series) in self.series.iter().enumerate() {
                        @match series.points.as_slice() {
                            [only] => circle class=(format!("dot s{index}")) cx=(pixel(at_x(only.step))) cy=(pixel(at_y(only.mean))) r="3.5" {},
                            points => path class=(format!("curve s{index}")) d=(PreEscaped(path(points))) {},
                        }
                    }
                }
                @if self.series.len() > 1 {
                    p.legend {
                        @for (index, series) in self.series.iter().enumerate() {
                            span {
                                svg viewBox="0 0 30 8" aria-hidden="true" { path class=(format!("curve s{index}")) d="M1 4H29" {} }
                                (series.name)
                            }
                        }
                    }
                }
            }
        }
    }

    /// The curves in words, for a screen reader: where each begins and ends.
    fn in_words(&self, number: &dyn Fn(f64) -> String) -> String {
        let mut words = format!("{} over steps.", self.title);
        for series in &self.series {
            if let (Some(first), Some(last)) = (series.points.first(), series.points.last()) {
                let name = if series.name.is_empty() { "It" } else { &series.name };
                let _ = write!(
                    words,
                    " {name}: {} at step {}, {} at step {}.",
                    number(first.mean),
                    first.step,
                    number(last.mean),
                    last.step
                );
            }
        }
        words
    }
}

/// A pixel in few characters.
fn pixel(at: f64) -> f64 {
    (10.0 * at).round() / 10.0
}

fn line(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (x, y) in points {
        let _ = write!(path, "{}{} {}", if path.is_empty() { 'M' } else { 'L' }, pixel(x), pixel(y));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(scale: Scale, values: &[f64]) -> String {
        let values = values.iter().enumerate().map(|(step, &value)| (step as u64 + 1, value));
        let series = vec![Series::new("a <b>", values)];
        Chart { title: "Loss & co".into(), scale, series }.draw().into_string()
    }

    #[test]
    fn a_curve_goes_from_corner_to_corner() {
        let svg = chart(Scale::Linear, &[0.0, 10.0]);
        assert!(svg.contains("d=\"M54 220L508 10\""), "{svg}");
        assert!(svg.contains("a &lt;b&gt;: 0 at step 1, 10 at step 2."), "{svg}");
        assert!(svg.contains("Loss &amp; co"));
    }

    #[test]
    fn odd_values_leave_a_chart_or_nothing() {
        assert_eq!(chart(Scale::Linear, &[]), "");
        assert_eq!(chart(Scale::Linear, &[f64::NAN]), "");
        assert_eq!(chart(Scale::Logarithmic, &[0.0, -1.0]), "");
        for values in [&[5.0][..], &[0.0, 0.0], &[-3.0, 4.0], &[1e-30, 1e30], &[f64::MAX, 1.0]] {
            for scale in [Scale::Linear, Scale::Logarithmic, Scale::Percent] {
                let svg = chart(scale, values);
                if scale == Scale::Logarithmic && values.iter().all(|&value| value <= 0.0) {
                    assert_eq!(svg, "", "no value has a logarithm");
                    continue;
                }
                assert!(
                    svg.contains("<svg") && !svg.contains("NaN") && !svg.contains("inf"),
                    "{scale:?} {values:?} {svg}"
                );
            }
        }
    }
}
