//! Where the seconds went: every second of a start belongs to one part, so that the parts add
//! up to wall time.

use serde::Serialize;

use tally_core::events::Committed;

/// What a second was spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
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
    /// Attempts that were void, shares that were computed again, a restart.
    Recovering,
    /// The driver's part of a checkpoint; writing it is another thread's.
    Checkpointing,
    /// There was nobody to compute.
    Idle,
}

const PARTS: [Part; 9] = [
    Part::Computing,
    Part::Transferring,
    Part::Waiting,
    Part::Updating,
    Part::Committing,
    Part::Testing,
    Part::Recovering,
    Part::Checkpointing,
    Part::Idle,
];

/// The seconds of a start.
#[derive(Clone, Debug, Default)]
pub struct Spent {
    seconds: [f64; PARTS.len()],
    /// Up to here every second is accounted for.
    upto: f64,
    /// A usual step's transfer: what a disturbed one takes beyond is for recovering.
    transfer: Option<f64>,
    /// Something went wrong in the step in flight.
    disturbed: bool,
}

/// A part with its seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PartSeconds {
    name: Part,
    seconds: f64,
}

/// All parts; they add up to `wall`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seconds {
    wall: f64,
    parts: Vec<PartSeconds>,
}

impl Seconds {
    /// The parts' names and seconds.
    pub fn parts(&self) -> impl Iterator<Item = (String, f64)> {
        self.parts.iter().map(|part| (format!("{:?}", part.name).to_lowercase(), part.seconds))
    }
}

impl Spent {
    /// What is not accounted for up to `now` (seconds since the start) was spent on `part`.
    pub fn until(&mut self, now: f64, part: Part) {
        self.add(part, now - self.upto);
    }

    /// Moves on by some seconds, if time does.
    fn add(&mut self, part: Part, seconds: f64) {
        let seconds = seconds.max(0.0);
        self.seconds[part as usize] += seconds;
        self.upto += seconds;
    }

    /// Leaves of the step in flight are computed again, or the whole step is.
    pub fn disturbed(&mut self) {
        self.disturbed = true;
    }

    /// A step was committed at `now`, whose update took the coordinator `updating` seconds; what
    /// came before the step was spent on `before`.
    pub fn step(&mut self, now: f64, step: &Committed, updating: f64, before: Part) {
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
        for (part, seconds) in [
            (Part::Updating, updating),
            (Part::Recovering, recovering),
            (Part::Waiting, step.waiting_seconds),
            (Part::Computing, step.compute_seconds - step.waiting_seconds),
            (Part::Transferring, step.transfer_seconds - recovering),
        ] {
            let seconds = seconds.clamp(0.0, left);
            left -= seconds;
            self.add(part, seconds);
        }
        self.until(now, Part::Committing);
    }

    /// As the page shows them.
    #[must_use]
    pub fn told(&self) -> Seconds {
        let parts = PARTS.iter().map(|&name| PartSeconds { name, seconds: self.seconds[name as usize] });
        Seconds { wall: self.seconds.iter().sum(), parts: parts.collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tally_numerics::digest::Digest;
    use tally_numerics::loss::LossParts;

    use super::*;

    fn committed(seconds: f64, compute: f64, transfer: f64, waiting: f64) -> Committed {
        Committed {
            step: 1,
            epoch: 1,
            attempt: 1,
            loss: LossParts::default(),
            samples: 64,
            workers: 2,
            seconds,
            compute_seconds: compute,
            transfer_seconds: transfer,
            waiting_seconds: waiting,
            slowest: None,
            learning_rate: 0.1,
            digest: Digest::default(),
        }
    }

    fn of(spent: &Spent, part: Part) -> f64 {
        spent.seconds[part as usize]
    }

    #[test]
    fn a_step_is_divided_as_its_measurements_say() {
        let mut spent = Spent::default();
        spent.step(10.0, &committed(4.0, 2.0, 1.0, 0.5), 0.25, Part::Idle);
        let parts = [Part::Idle, Part::Computing, Part::Waiting, Part::Transferring, Part::Updating];
        assert_eq!(parts.map(|part| of(&spent, part)), [6.0, 1.5, 0.5, 1.0, 0.25]);
        assert_eq!((of(&spent, Part::Committing), spent.told().wall), (0.75, 10.0));
    }

    #[test]
    fn what_a_disturbed_step_takes_beyond_the_usual_is_for_recovering() {
        let mut spent = Spent::default();
        spent.step(4.0, &committed(4.0, 2.0, 1.0, 0.0), 0.0, Part::Idle);
        spent.disturbed();
        spent.step(10.0, &committed(6.0, 2.0, 3.0, 0.0), 0.0, Part::Idle);
        assert_eq!((of(&spent, Part::Recovering), of(&spent, Part::Transferring)), (2.0, 2.0));
        spent.step(14.0, &committed(4.0, 2.0, 1.0, 0.0), 0.0, Part::Idle);
        assert_eq!(of(&spent, Part::Recovering), 2.0);
    }

    proptest! {
        /// Whatever workers measure, and in whatever order things happen.
        #[test]
        fn the_parts_add_up_to_wall_time(
            steps in proptest::collection::vec((0.0..9.0f64, 0.0..9.0f64, 0.0..99.0f64, 0.0..99.0f64, any::<bool>()), 1..50),
        ) {
            let (mut spent, mut now) = (Spent::default(), 0.0);
            for (between, seconds, compute, transfer, disturbed) in steps {
                now += between;
                if disturbed {
                    spent.disturbed();
                    spent.until(now, Part::Checkpointing);
                }
                now += seconds;
                spent.step(now, &committed(seconds, compute, transfer, compute / 3.0), 0.1, Part::Testing);
                let told = spent.told();
                prop_assert!((told.wall - now).abs() < 1e-9 * now.max(1.0), "{} {now}", told.wall);
                prop_assert!(told.parts.iter().all(|part| part.seconds >= 0.0));
            }
        }
    }
}
