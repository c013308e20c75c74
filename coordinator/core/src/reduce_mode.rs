//! How a cluster adds gradients up, and with `--reduce auto` the choice: the star, until its transfers are a large part of the step and sharded steps are measured to be
//! faster.
//!
//! Whether sharding pays depends on links that nobody knows beforehand: the coordinator's, the workers', and what is
//! between them. So it is tried for a few steps, and the medians decide. Both ways give the same bits, so a trial costs
//! only its time. After a trial that did not pay, the next one waits for longer.

use std::collections::VecDeque;

/// How a cluster adds gradients up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReduceMode {
    /// All gradients go through the coordinator.
    Star,
    /// Workers add them up, whenever they have links to each other.
    Sharded,
    /// Whichever is measured to be faster; it begins with the star.
    #[default]
    Auto,
}

/// Steps of each kind whose median counts.
const STEPS: usize = 9;
/// The least part of a step of the star that its transfer must take for a trial.
const TRANSFER: f64 = 0.2;
/// A sharded step that takes less than this part of the star's is faster.
const FASTER: f64 = 0.95;
/// Sharding ends when its steps take so many times those of the star.
const SLOWER: f64 = 1.2;
/// Steps between a trial that did not pay and the next; twice as many each further time.
const PAUSE: u64 = 100;
/// A trial for which the links are not up after so many steps ends.
const PATIENCE: u64 = 60;

/// A committed step, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Whether workers added up.
    pub sharded: bool,
    /// Workers that contributed.
    pub workers: usize,
    /// Workers that can have links.
    pub able: usize,
    /// Seconds of the step.
    pub seconds: f64,
    /// Seconds from the slowest worker's last computing to the whole sum.
    pub transfer: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Star,
    Trial,
    Sharded,
}

/// The decision, and what it rests on.
#[derive(Clone, Debug, Default)]
pub struct AutoReduce {
    phase: Phase,
    workers: usize,
    star: VecDeque<f64>,
    transfers: VecDeque<f64>,
    sharded: VecDeque<f64>,
    /// Steps in this phase.
    steps: u64,
    /// Steps before the next trial.
    pause: u64,
    /// Trials that did not pay.
    failed: u32,
    reason: String,
}

fn push(window: &mut VecDeque<f64>, value: f64) {
    if window.len() == STEPS {
        window.pop_front();
    }
    window.push_back(value);
}

/// The median, once there are enough values.
fn median(window: &VecDeque<f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = window.iter().copied().collect();
    sorted.sort_unstable_by(f64::total_cmp);
    (sorted.len() == STEPS).then(|| sorted[STEPS / 2])
}

impl AutoReduce {
    /// Whether workers should have links, and the next step should be sharded.
    #[must_use]
    pub fn wants_sharded(&self) -> bool {
        self.phase != Phase::Star
    }

    /// Why it is the star again, in words.
    #[must_use]
    pub fn reason(&self) -> String {
        self.reason.clone()
    }

    /// Takes a committed step into account.
    pub fn committed(&mut self, step: &Step) {
        if step.workers != self.workers {
            // Nothing that was measured with other workers holds. A cluster that is sharded stays so until it is slow.
            let phase = if self.phase == Phase::Trial { Phase::Star } else { self.phase };
            *self = Self { phase, workers: step.workers, ..Self::default() };
        }
        self.steps += 1;
        if step.sharded {
            push(&mut self.sharded, step.seconds);
        } else {
            push(&mut self.star, step.seconds);
            push(&mut self.transfers, step.transfer);
        }
        let (star, sharded) = (median(&self.star), median(&self.sharded));
        match self.phase {
            Phase::Star => {
                self.pause = self.pause.saturating_sub(1);
                let (Some(star), Some(transfer)) = (star, median(&self.transfers)) else { return };
                if self.pause == 0 && step.workers >= 2 && step.able >= 2 && transfer > TRANSFER * star {
                    self.sharded.clear();
                    self.enter(Phase::Trial);
                }
            }
            Phase::Trial => match (star, sharded) {
                (Some(star), Some(sharded)) if sharded < FASTER * star => self.enter(Phase::Sharded),
                (Some(star), Some(sharded)) => self.give_up(star, sharded),
                _ if self.steps >= PATIENCE && self.sharded.is_empty() => {
                    self.reason = "workers have no links to each other".into();
                    self.wait();
                }
                _ => {}
            },
            Phase::Sharded => {
                if let (Some(star), Some(sharded)) = (star, sharded)
                    && sharded > SLOWER * star
                {
                    self.give_up(star, sharded);
                }
            }
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.steps = 0;
    }

    fn give_up(&mut self, star: f64, sharded: f64) {
        self.reason = format!("a step takes {star:.3} s with the star, and {sharded:.3} s sharded");
        self.wait();
    }

    fn wait(&mut self) {
        self.pause = PAUSE << self.failed.min(10);
        self.failed += 1;
        self.star.clear();
        self.transfers.clear();
        self.enter(Phase::Star);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commits steps that take `star` or `sharded` seconds, and returns how many of them were sharded.
    fn run(
        auto: &mut AutoReduce,
        steps: usize,
        workers: usize,
        transfer: f64,
        star: f64,
        sharded: f64,
    ) -> usize {
        (0..steps)
            .filter(|_| {
                let is_sharded = auto.wants_sharded();
                let seconds = if is_sharded { sharded } else { star };
                auto.committed(&Step { sharded: is_sharded, workers, able: workers, seconds, transfer });
                is_sharded
            })
            .count()
    }

    #[test]
    fn a_star_whose_transfers_are_short_is_left_alone() {
        assert_eq!(run(&mut AutoReduce::default(), 500, 4, 0.1, 1.0, 0.2), 0);
        assert_eq!(
            run(&mut AutoReduce::default(), 500, 1, 0.9, 1.0, 0.2),
            0,
            "one worker has nobody to share with"
        );
    }

    #[test]
    fn sharding_stays_where_it_is_faster_until_the_workers_change() {
        let mut auto = AutoReduce::default();
        assert_eq!(run(&mut auto, 500, 4, 0.6, 1.0, 0.5), 500 - STEPS);
        // With other workers it goes on, and is compared again only if it is slow.
        assert_eq!(run(&mut auto, 100, 3, 0.6, 1.0, 0.5), 100);
    }

    #[test]
    fn a_trial_that_does_not_pay_ends_and_the_next_one_comes_later() {
        let mut auto = AutoReduce::default();
        let sharded = run(&mut auto, 1000, 4, 0.6, 1.0, 1.1);
        assert!((2 * STEPS..5 * STEPS).contains(&sharded), "{sharded}");
        assert_eq!(auto.reason(), "a step takes 1.000 s with the star, and 1.100 s sharded");
    }

    #[test]
    fn a_trial_without_links_ends() {
        let mut auto = AutoReduce::default();
        for _ in 0..STEPS as u64 + PATIENCE {
            auto.committed(&Step { sharded: false, workers: 3, able: 3, seconds: 1.0, transfer: 0.5 });
        }
        assert!(!auto.wants_sharded());
        assert!(auto.reason().contains("no links"));
    }
}
