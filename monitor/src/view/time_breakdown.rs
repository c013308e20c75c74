//! Where the seconds went: every second since the coordinator's start belongs to one activity, so that the activities
//! add up to wall time.

use serde::Serialize;

use tally_core::events::Committed;

/// What a second was spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activity {
    /// The mean worker computed.
    Computing,
    /// Gradients travelled after the slowest had computed its last.
    Transferring,
    /// The mean worker waited for the slowest.
    Waiting,
    /// The sum was applied.
    Updating,
    /// The rest of a step: the journal, commits, plans.
    Committing,
    /// A test pass.
    Testing,
    /// Attempts that were void, microbatches that were computed again, a restart.
    Recovering,
    /// The driver's part of a checkpoint; writing it is another thread's.
    Checkpointing,
    /// There was no worker.
    Idle,
}

const ACTIVITIES: [Activity; 9] = [
    Activity::Computing,
    Activity::Transferring,
    Activity::Waiting,
    Activity::Updating,
    Activity::Committing,
    Activity::Testing,
    Activity::Recovering,
    Activity::Checkpointing,
    Activity::Idle,
];

/// The seconds of a start.
#[derive(Clone, Debug, Default)]
pub struct TimeBreakdown {
    seconds: [f64; ACTIVITIES.len()],
    /// Up to here every second is accounted for.
    upto: f64,
    /// A usual step's transfer: what a disturbed one takes beyond is for recovering.
    transfer: Option<f64>,
    /// Something went wrong in the step in flight.
    disturbed: bool,
}

/// An activity with its seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ActivitySeconds {
    name: Activity,
    seconds: f64,
}

/// All activities; their seconds add up to `wall`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seconds {
    wall: f64,
    parts: Vec<ActivitySeconds>,
}

impl Seconds {
    /// The activities' names and seconds.
    pub fn parts(&self) -> impl Iterator<Item = (String, f64)> {
        self.parts.iter().map(|part| (format!("{:?}", part.name).to_lowercase(), part.seconds))
    }
}

impl TimeBreakdown {
    /// What is not accounted for up to `now` (seconds since the start) was spent on `activity`.
    pub fn until(&mut self, now: f64, activity: Activity) {
        self.add(activity, now - self.upto);
    }

    /// Moves on by some seconds, if time does.
    fn add(&mut self, activity: Activity, seconds: f64) {
        let seconds = seconds.max(0.0);
        self.seconds[activity as usize] += seconds;
        self.upto += seconds;
    }

    /// Microbatches of the step in flight are computed again, or the whole step is.
    pub fn disturbed(&mut self) {
        self.disturbed = true;
    }

    /// A step was committed at `now`, whose update took the coordinator `updating` seconds; what
    /// came before the step was spent on `before`.
    pub fn step(&mut self, now: f64, step: &Committed, updating: f64, before: Activity) {
        self.until(now - step.seconds, before);
        let usual = self.transfer.unwrap_or(step.transfer_seconds);
        let recovering = if std::mem::take(&mut self.disturbed) {
            (step.transfer_seconds - usual).max(0.0)
        } else {
            self.transfer = Some(usual + 0.1 * (step.transfer_seconds - usual));
            0.0
        };
        // What workers say cannot add more than there was.
        let mut left = (now - self.upto).max(0.0);
        for (activity, seconds) in [
            (Activity::Updating, updating),
            (Activity::Recovering, recovering),
            (Activity::Waiting, step.waiting_seconds),
            (Activity::Computing, step.compute_seconds - step.waiting_seconds),
            (Activity::Transferring, step.transfer_seconds - recovering),
        ] {
            let seconds = seconds.clamp(0.0, left);
            left -= seconds;
            self.add(activity, seconds);
        }
        self.until(now, Activity::Committing);
    }

    /// The seconds so far.
    #[must_use]
    pub fn snapshot(&self) -> Seconds {
        let parts =
            ACTIVITIES.iter().map(|&name| ActivitySeconds { name, seconds: self.seconds[name as usize] });
        Seconds { wall: self.seconds.iter().sum(), parts: parts.collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_support::{self, step_line};

    fn committed(seconds: f64, compute: f64, transfer: f64, waiting: f64) -> Committed {
        let mut line = step_line(1, 0.0);
        (line.seconds, line.compute_seconds) = (seconds, compute);
        (line.transfer_seconds, line.waiting_seconds) = (transfer, waiting);
        test_support::committed(&line)
    }

    fn of(breakdown: &TimeBreakdown, activity: Activity) -> f64 {
        breakdown.seconds[activity as usize]
    }

    #[test]
    fn a_step_is_divided_as_its_measurements_say() {
        let mut breakdown = TimeBreakdown::default();
        breakdown.step(10.0, &committed(4.0, 2.0, 1.0, 0.5), 0.25, Activity::Idle);
        let parts = [
            Activity::Idle,
            Activity::Computing,
            Activity::Waiting,
            Activity::Transferring,
            Activity::Updating,
        ];
        assert_eq!(parts.map(|part| of(&breakdown, part)), [6.0, 1.5, 0.5, 1.0, 0.25]);
        assert_eq!((of(&breakdown, Activity::Committing), breakdown.snapshot().wall), (0.75, 10.0));
    }

    #[test]
    fn what_a_disturbed_step_takes_beyond_the_usual_is_for_recovering() {
        let mut breakdown = TimeBreakdown::default();
        breakdown.step(4.0, &committed(4.0, 2.0, 1.0, 0.0), 0.0, Activity::Idle);
        breakdown.disturbed();
        breakdown.step(10.0, &committed(6.0, 2.0, 3.0, 0.0), 0.0, Activity::Idle);
        assert_eq!(
            (of(&breakdown, Activity::Recovering), of(&breakdown, Activity::Transferring)),
            (2.0, 2.0)
        );
        breakdown.step(14.0, &committed(4.0, 2.0, 1.0, 0.0), 0.0, Activity::Idle);
        assert_eq!(of(&breakdown, Activity::Recovering), 2.0);
    }

    proptest! {
        /// Whatever workers measure, and in whatever order things happen.
        #[test]
        fn the_parts_add_up_to_wall_time(
            steps in proptest::collection::vec((0.0..9.0f64, 0.0..9.0f64, 0.0..99.0f64, 0.0..99.0f64, any::<bool>()), 1..50),
        ) {
            let (mut breakdown, mut now) = (TimeBreakdown::default(), 0.0);
            for (between, seconds, compute, transfer, disturbed) in steps {
                now += between;
                if disturbed {
                    breakdown.disturbed();
                    breakdown.until(now, Activity::Checkpointing);
                }
                now += seconds;
                breakdown.step(now, &committed(seconds, compute, transfer, compute / 3.0), 0.1, Activity::Testing);
                let snapshot = breakdown.snapshot();
                prop_assert!((snapshot.wall - now).abs() < 1e-9 * now.max(1.0), "{} {now}", snapshot.wall);
                prop_assert!(snapshot.parts.iter().all(|part| part.seconds >= 0.0));
            }
        }
    }
}
