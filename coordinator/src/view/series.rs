//! A run's curves in bounded memory.
//!
//! A point is the mean over a bucket of steps. Buckets have one step at first; whenever there
//! are [`MOST`] points, neighbours are merged and buckets have twice as many steps from then
//! on. So a curve costs the same after a hundred steps and after a million.

use serde::Serialize;

/// Points at most.
pub const MOST: usize = 1024;

/// What is drawn of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Values {
    /// The mean loss.
    pub total: f64,
    /// The digit's part of it.
    pub label: f64,
    /// The sum's.
    pub sum: f64,
    /// The difference's.
    pub difference: f64,
    /// Samples over the step's wall time.
    pub images_per_second: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// The gradient's norm before clipping.
    pub gradient_norm: f64,
}

impl Values {
    fn map(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            total: f(self.total, other.total),
            label: f(self.label, other.label),
            sum: f(self.sum, other.sum),
            difference: f(self.difference, other.difference),
            images_per_second: f(self.images_per_second, other.images_per_second),
            learning_rate: f(self.learning_rate, other.learning_rate),
            gradient_norm: f(self.gradient_norm, other.gradient_norm),
        }
    }
}

/// Points as the page draws them, a column each; `step` is a bucket's last.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Columns {
    step: Vec<u64>,
    total: Vec<f64>,
    label: Vec<f64>,
    sum: Vec<f64>,
    difference: Vec<f64>,
    images_per_second: Vec<f64>,
    learning_rate: Vec<f64>,
    gradient_norm: Vec<f64>,
}

/// How much of a series somebody has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    bucket: u64,
    points: usize,
}

/// All curves of a run.
#[derive(Debug)]
pub struct Series {
    /// Steps of a bucket: a power of two.
    bucket: u64,
    points: Vec<(u64, Values)>,
    /// The sum over the bucket that is not full yet, and how many steps it has.
    open: (Values, u64),
}

impl Default for Series {
    fn default() -> Self {
        Self { bucket: 1, points: Vec::new(), open: (Values::default(), 0) }
    }
}

impl Series {
    /// Takes the next step.
    pub fn push(&mut self, step: u64, values: Values) {
        self.open.0 = self.open.0.map(values, |a, b| a + b);
        self.open.1 += 1;
        if self.open.1 < self.bucket {
            return;
        }
        let (sum, count) = std::mem::take(&mut self.open);
        self.points.push((step, sum.map(sum, |a, _| a / count as f64)));
        if self.points.len() == MOST {
            let merge = |pair: &[(u64, Values)]| (pair[1].0, pair[0].1.map(pair[1].1, |a, b| 0.5 * (a + b)));
            self.points = self.points.chunks_exact(2).map(merge).collect();
            self.bucket *= 2;
        }
    }

    /// Forgets the steps after `step`, which are computed again.
    pub fn cut(&mut self, step: u64) {
        let whole = self.points.partition_point(|(last, _)| *last <= step);
        self.points.truncate(whole);
        self.open = (Values::default(), 0);
    }

    /// Everything, and what to compare with next time.
    #[must_use]
    pub fn all(&self) -> (Columns, Seen) {
        (columns(&self.points), Seen { bucket: self.bucket, points: self.points.len() })
    }

    /// What has come since; `Err` with everything where buckets were merged, and `None` if
    /// there is nothing new.
    #[must_use]
    pub fn since(&self, seen: &mut Seen) -> Option<Result<Columns, Columns>> {
        let now = Seen { bucket: self.bucket, points: self.points.len() };
        let before = std::mem::replace(seen, now);
        if before == now {
            return None;
        }
        let appended = before.bucket == now.bucket && before.points <= now.points;
        Some(if appended { Ok(columns(&self.points[before.points..])) } else { Err(self.all().0) })
    }
}

fn columns(points: &[(u64, Values)]) -> Columns {
    let column = |of: fn(&Values) -> f64| points.iter().map(|(_, values)| of(values)).collect();
    Columns {
        step: points.iter().map(|(step, _)| *step).collect(),
        total: column(|v| v.total),
        label: column(|v| v.label),
        sum: column(|v| v.sum),
        difference: column(|v| v.difference),
        images_per_second: column(|v| v.images_per_second),
        learning_rate: column(|v| v.learning_rate),
        gradient_norm: column(|v| v.gradient_norm),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn series(steps: u64) -> Series {
        let mut series = Series::default();
        for step in 1..=steps {
            series.push(step, Values { total: step as f64, ..Values::default() });
        }
        series
    }

    #[test]
    fn a_short_run_is_kept_step_by_step() {
        let (columns, _) = series(3).all();
        assert_eq!((columns.step, columns.total), (vec![1, 2, 3], vec![1.0, 2.0, 3.0]));
    }

    #[test]
    fn a_hundred_thousand_steps_are_as_many_points_as_a_thousand_and_keep_their_mean() {
        for steps in [MOST as u64 - 1, MOST as u64, 100_000, 1_000_000] {
            let (columns, _) = series(steps).all();
            let (points, bucket) = (columns.step.len(), columns.step[1] - columns.step[0]);
            assert!((MOST / 2..MOST).contains(&points), "{points} of {steps}");
            assert!(bucket.is_power_of_two() && columns.step.iter().all(|step| step.is_multiple_of(bucket)));
            // The mean of a bucket is half a step below its middle.
            for (step, total) in columns.step.iter().zip(&columns.total) {
                assert_eq!(*total, *step as f64 - (bucket - 1) as f64 / 2.0);
            }
            assert!(steps - columns.step.last().unwrap() < bucket);
        }
    }

    #[test]
    fn who_looks_again_is_told_what_is_new_or_that_all_has_changed() {
        let mut series = series(MOST as u64 - 2);
        let (_, mut seen) = series.all();
        assert_eq!(series.since(&mut seen), None);
        series.push(MOST as u64 - 1, Values::default());
        assert_eq!(series.since(&mut seen).unwrap().unwrap().step, [MOST as u64 - 1]);
        series.push(MOST as u64, Values::default());
        assert_eq!(series.since(&mut seen).unwrap().unwrap_err().step.len(), MOST / 2);
        assert_eq!(series.since(&mut seen), None);
        series.cut(10);
        assert_eq!(series.since(&mut seen).unwrap().unwrap_err().step.len(), 5);
    }
}
