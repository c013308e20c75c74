//! An axis and its marks.

/// A scale from the least to the greatest value, with its marks.
#[derive(Clone, Debug)]
pub struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// The marks, ascending.
    pub marks: Vec<f64>,
}

impl Axis {
    /// An axis that holds all of `low` to `high`, with about `wanted` marks at round numbers,
    /// between which it begins and ends.
    pub fn linear(low: f64, high: f64, wanted: usize) -> Self {
        let span = if high > low { high - low } else { low.abs().max(1.0) };
        let rough = span / wanted.max(1) as f64;
        let magnitude = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|m| m * magnitude).into_iter().find(|&s| s >= rough).unwrap_or(rough);
        let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
        let last = last.max(first + 1);
        let marks: Vec<f64> = (first..=last).map(|n| n as f64 * step).collect();
        Self { low: first as f64 * step, high: last as f64 * step, log: false, marks }
    }

    /// A logarithmic one, with marks at powers of ten, and between where they are few. `low`
    /// must be over 0.
    pub fn logarithmic(low: f64, high: f64) -> Self {
        let decades = (high / low).log10();
        let multiples: &[f64] = if decades > 4.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let every = if decades > 9.0 { (decades / 6.0).ceil() as usize } else { 1 };
        let candidates: Vec<f64> = (low.log10().floor() as i32..=high.log10().ceil() as i32)
            .step_by(every)
            .flat_map(|power| multiples.iter().map(move |m| m * 10f64.powi(power)))
            .collect();
        // The marks around and inside.
        let below = candidates.iter().rposition(|&c| c <= low).unwrap_or(0);
        let above = candidates.iter().position(|&c| c >= high).unwrap_or(candidates.len() - 1);
        let marks = candidates[below..=above.max(below + 1).min(candidates.len() - 1)].to_vec();
        let (first, last) = (marks[0].min(low), marks[marks.len() - 1].max(high));
        Self { low: first, high: if last > first { last } else { first * 10.0 }, log: true, marks }
    }

    /// An axis without room around it: the marks lie inside of `low` to `high`.
    pub fn tight(low: f64, high: f64, wanted: usize) -> Self {
        let around = Self::linear(low, high, wanted);
        let marks = around.marks.into_iter().filter(|m| (low..=high).contains(m)).collect();
        Self { low, high: if high > low { high } else { low + 1.0 }, log: false, marks }
    }

    /// The place of a value: 0 at the low end, 1 at the high one, and never outside.
    pub fn place(&self, value: f64) -> f64 {
        let scale = |x: f64| if self.log { x.max(self.low).ln() } else { x };
        let (low, high) = (scale(self.low), scale(self.high));
        ((scale(value) - low) / (high - low)).clamp(0.0, 1.0)
    }
}

/// A number in few characters.
pub fn short(value: f64) -> String {
    let trimmed = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    match value.abs() {
        0.0 => "0".into(),
        size if !(1e-4..1e12).contains(&size) => format!("{value:.0e}"),
        size if size < 10.0 => trimmed(format!("{value:.4}")),
        size if size < 10_000.0 => trimmed(format!("{value:.1}")),
        size if size < 1e6 => format!("{}k", trimmed(format!("{:.1}", value / 1e3))),
        size if size < 1e9 => format!("{}M", trimmed(format!("{:.1}", value / 1e6))),
        _ => format!("{}G", trimmed(format!("{:.1}", value / 1e9))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn marks_are_round_numbers() {
        assert_eq!(Axis::linear(0.0, 0.97, 5).marks, [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(Axis::tight(1.0, 938.0, 5).marks, [200.0, 400.0, 600.0, 800.0]);
        assert_eq!(Axis::logarithmic(0.03, 2.0).marks, [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]);
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 0.05, 0.6000000000000001, 12.0, 938.0, 20_000.0, 1_500_000.0, 1e-6].map(short);
        assert_eq!(texts, ["0", "0.05", "0.6", "12", "938", "20k", "1.5M", "1e-6"]);
    }

    proptest! {
        #[test]
        fn every_value_lies_on_its_axis(a in 1e-9f64..1e9, b in 1e-9f64..1e9, log: bool) {
            let (low, high) = (a.min(b), a.max(b));
            let axis = if log { Axis::logarithmic(low, high) } else { Axis::linear(low, high, 5) };
            let (low, high) = (axis.place(low), axis.place(high));
            prop_assert!((0.0..=1.0).contains(&low) && low <= high && high <= 1.0);
            prop_assert!(axis.marks.len() >= 2 && axis.marks.len() < 40, "{:?}", axis.marks);
        }
    }
}
