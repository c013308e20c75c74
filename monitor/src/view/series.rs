//! A run's curves in bounded memory.
//!
//! A point is the mean over a bucket of steps. Buckets have one step at first; whenever there
//! are [`MOST`] points, neighbours are merged and buckets have twice as many steps from then
//! on. So a curve costs the same after a hundred steps and after a million.

use indexmap::IndexMap;
use serde::Serialize;
use tally_numerics::schema::Schema;
use tally_run::journal::StepLine;

/// Points at most.
pub const MOST: usize = 1024;

/// The curves after those of the loss.
const AFTER_LOSS: [&str; 3] = ["samples_per_second", "learning_rate", "gradient_norm"];

/// Points as the page draws them, a column for each curve; `step` is a bucket's last.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Columns {
    step: Vec<u64>,
    #[serde(flatten)]
    curves: IndexMap<String, Vec<f64>>,
}

/// How much of a series a reader has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    bucket: u64,
    points: usize,
}

/// All curves of a run.
#[derive(Debug)]
pub struct Series {
    /// The curves' names: `loss/total`, `loss/` and each part of the loss, then [`AFTER_LOSS`]. A part's name has
    /// no slash, so names are unique.
    names: Vec<String>,
    /// Steps of a bucket: a power of two.
    bucket: u64,
    /// A bucket's last step, and a value for each curve.
    points: Vec<(u64, Vec<f64>)>,
    /// The sums over the bucket that is not full yet.
    sums: Vec<f64>,
    /// How many steps that bucket has.
    count: u64,
    /// The last step taken.
    last: u64,
}

impl Series {
    /// The empty curves of a run that measures these losses.
    #[must_use]
    pub fn new(schema: &Schema) -> Self {
        let parts = schema.losses().iter().map(|loss| loss.name.as_str());
        let losses = std::iter::once("total").chain(parts).map(|name| format!("loss/{name}"));
        let names: Vec<String> = losses.chain(AFTER_LOSS.map(str::to_owned)).collect();
        Self { bucket: 1, points: Vec::new(), sums: vec![0.0; names.len()], count: 0, last: 0, names }
    }

    /// Takes the next step. One that was taken before is computed again, as its checkpoint was lost: the curves go on
    /// from there.
    pub fn push(&mut self, line: &StepLine) {
        if line.step <= self.last {
            self.cut(line.step - 1);
        }
        self.last = line.step;
        let others =
            [line.samples as f64 / line.seconds.max(1e-9), f64::from(line.learning_rate), line.gradient_norm];
        let loss = |name: &String| Some(line.loss.get(name.strip_prefix("loss/")?).copied().unwrap_or(0.0));
        let values = self.names.iter().map_while(loss).chain(others);
        self.sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        self.count += 1;
        if self.count < self.bucket {
            return;
        }
        let count = std::mem::take(&mut self.count) as f64;
        let means = self.sums.iter_mut().map(|sum| std::mem::take(sum) / count).collect();
        self.points.push((line.step, means));
        if self.points.len() == MOST {
            let mean = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| 0.5 * (a + b)).collect();
            let merge = |pair: &[(u64, Vec<f64>)]| (pair[1].0, mean(&pair[0].1, &pair[1].1));
            self.points = self.points.chunks_exact(2).map(merge).collect();
            self.bucket *= 2;
        }
    }

    /// Forgets the steps after `step`.
    fn cut(&mut self, step: u64) {
        let whole = self.points.partition_point(|(last, _)| *last <= step);
        self.points.truncate(whole);
        self.sums.fill(0.0);
        self.count = 0;
    }

    /// Everything, and the mark of a reader that has seen it.
    #[must_use]
    pub fn all(&self) -> (Columns, Seen) {
        (self.columns(0), Seen { bucket: self.bucket, points: self.points.len() })
    }

    /// The points since; `Err` with all points where buckets were merged, and `None` if there is nothing new.
    #[must_use]
    pub fn since(&self, seen: &mut Seen) -> Option<Result<Columns, Columns>> {
        let now = Seen { bucket: self.bucket, points: self.points.len() };
        let before = std::mem::replace(seen, now);
        if before == now {
            return None;
        }
        let appended = before.bucket == now.bucket && before.points <= now.points;
        Some(if appended { Ok(self.columns(before.points)) } else { Err(self.all().0) })
    }

    /// The points from number `first` on.
    fn columns(&self, first: usize) -> Columns {
        let points = &self.points[first..];
        let column = |at: usize| points.iter().map(|(_, values)| values[at]).collect();
        let curves = self.names.iter().enumerate().map(|(at, name)| (name.clone(), column(at)));
        Columns { step: points.iter().map(|(step, _)| *step).collect(), curves: curves.collect() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::test_support::{schema, step_line};

    fn series(steps: u64) -> Series {
        let mut series = Series::new(&schema());
        (1..=steps).for_each(|step| series.push(&step_line(step, step as f64)));
        series
    }

    #[test]
    fn a_short_run_is_kept_step_by_step() {
        let (columns, _) = series(3).all();
        assert_eq!((&columns.step, &columns.curves["loss/total"]), (&vec![1, 2, 3], &vec![1.0, 2.0, 3.0]));
        let names: Vec<&String> = columns.curves.keys().collect();
        assert_eq!(
            names,
            ["loss/total", "loss/a", "loss/b", "samples_per_second", "learning_rate", "gradient_norm"]
        );
        let of_first: Vec<f64> = columns.curves.values().map(|curve| curve[0]).collect();
        assert_eq!(of_first, [1.0, 0.25, 0.75, 128.0, 0.25, 7.0]);
    }

    #[test]
    fn a_hundred_thousand_steps_are_as_many_points_as_a_thousand_and_keep_their_mean() {
        for steps in [MOST as u64 - 1, MOST as u64, 100_000, 1_000_000] {
            let (columns, _) = series(steps).all();
            let (points, bucket) = (columns.step.len(), columns.step[1] - columns.step[0]);
            assert!((MOST / 2..MOST).contains(&points), "{points} of {steps}");
            assert!(bucket.is_power_of_two() && columns.step.iter().all(|step| step.is_multiple_of(bucket)));
            // The mean of a bucket is half a step below its middle.
            for (step, total) in columns.step.iter().zip(&columns.curves["loss/total"]) {
                assert_eq!(*total, *step as f64 - (bucket - 1) as f64 / 2.0);
            }
            assert!(steps - columns.step.last().unwrap() < bucket);
        }
    }

    #[test]
    fn a_reader_gets_what_is_new_or_everything_where_buckets_were_merged() {
        let mut series = series(MOST as u64 - 2);
        let (_, mut seen) = series.all();
        assert_eq!(series.since(&mut seen), None);
        series.push(&step_line(MOST as u64 - 1, 0.0));
        assert_eq!(series.since(&mut seen).unwrap().unwrap().step, [MOST as u64 - 1]);
        series.push(&step_line(MOST as u64, 0.0));
        assert_eq!(series.since(&mut seen).unwrap().unwrap_err().step.len(), MOST / 2);
        assert_eq!(series.since(&mut seen), None);
        series.cut(10);
        assert_eq!(series.since(&mut seen).unwrap().unwrap_err().step.len(), 5);
    }

    #[test]
    fn resume_1_steps_that_are_computed_again_take_the_place_of_the_lost_ones() {
        let mut series = series(15);
        (11..=12).for_each(|step| series.push(&step_line(step, 0.0)));
        let (columns, _) = series.all();
        assert_eq!(columns.step, (1..=12).collect::<Vec<_>>());
        assert_eq!(columns.curves["loss/total"][9..], [10.0, 0.0, 0.0]);
    }
}
