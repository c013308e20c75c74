//! Curves of any length as at most [`POINTS`] points.

/// Points of a curve, at most; about as many as a screen has columns for it.
pub const POINTS: usize = 400;

/// A value as great stands for NaN: the journal has the greatest `f64` where a loss is NaN.
const BEYOND: f64 = 1e300;

/// A stretch of a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The stretch's last step.
    pub step: f64,
    /// The mean over the stretch.
    pub mean: f64,
    /// The least value in it.
    pub low: f64,
    /// The greatest.
    pub high: f64,
}

/// A curve with its name.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points, by ascending step.
    pub points: Vec<Point>,
}

impl Series {
    /// A curve of `values`, each with its step; if there are too many, stretches of equally many neighbours become one
    /// point. NaN and infinity are left out.
    pub fn new(name: impl Into<String>, values: impl ExactSizeIterator<Item = (u64, f64)>) -> Self {
        let stretch = values.len().div_ceil(POINTS).max(1);
        let mut points = Vec::new();
        let (mut sum, mut count, mut seen, last) = (0.0, 0u32, 0, values.len());
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for (step, value) in values {
            seen += 1;
            if value.abs() < BEYOND {
                sum += value;
                count += 1;
                (low, high) = (low.min(value), high.max(value));
            }
            if seen % stretch == 0 || seen == last {
                if count > 0 {
                    points.push(Point { step: step as f64, mean: sum / f64::from(count), low, high });
                }
                (sum, count, low, high) = (0.0, 0, f64::INFINITY, f64::NEG_INFINITY);
            }
        }
        Self { name: name.into(), points }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: u64) -> Series {
        Series::new("", (1..=n).map(|step| (step, step as f64)).collect::<Vec<_>>().into_iter())
    }

    #[test]
    fn a_short_curve_keeps_every_value() {
        let points = ramp(3).points;
        assert_eq!(points.len(), 3);
        assert_eq!(points[1], Point { step: 2.0, mean: 2.0, low: 2.0, high: 2.0 });
    }

    #[test]
    fn a_long_curve_keeps_its_extremes_its_mean_and_its_end() {
        let points = ramp(100_001).points;
        assert!(points.len() <= POINTS && points.len() > POINTS / 2, "{}", points.len());
        assert_eq!(
            (points[0].low, points.last().map(|p| (p.step, p.high))),
            (1.0, Some((100_001.0, 100_001.0)))
        );
        assert_eq!(points[0], Point { step: 251.0, mean: 126.0, low: 1.0, high: 251.0 });
    }

    #[test]
    fn nan_and_infinity_are_left_out() {
        let values = [(1, f64::NAN), (2, 1.0), (3, f64::INFINITY), (4, f64::MAX)];
        assert_eq!(Series::new("", values.into_iter()).points.len(), 1);
        assert!(Series::new("", [].into_iter()).points.is_empty());
    }
}
