//! The events of a run, for everything that shows it.
//!
//! Training needs no observer. The driver passes each [`RunEvent`] to every [`Observer`] of its list, in order, on
//! its own thread. Training waits for the observers, so an observer copies what it needs and does slow work on
//! another thread.

use std::path::Path;
use std::time::{Duration, Instant};

use tally_core::Core;
use tally_core::cluster::Session;
use tally_core::events::{ClusterEvent, Committed};
use tally_numerics::schema::Evaluation;
use tally_proto::span::Clock;
use tally_run::journal::{Line, StepLine};

use crate::timeline::Lane;
use crate::timeline::clock::Offset;

/// The run as it is when something happens.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The core, with its state of the cluster.
    pub core: &'a Core,
    /// The clock of all times that are shown.
    pub clock: Clock,
    /// Seconds since this start of the coordinator.
    pub seconds: f64,
    /// The run was asked to stop.
    pub stopping: bool,
    /// The activity between two steps.
    pub idle: Idle,
    /// Wall seconds of a step, smoothed; 0 before the first.
    pub step_seconds: f64,
}

impl Context<'_> {
    /// What the run is doing, in a word.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        use tally_core::Phase;
        match self.core.phase() {
            Phase::Finished => "finished",
            _ if self.stopping => "stopping",
            Phase::Waiting => "waiting",
            Phase::Recovering => "recovering",
            Phase::Training => "training",
            Phase::Testing => "testing",
        }
    }

    /// Seconds until the last step's commit, if the run goes on like this.
    #[must_use]
    pub fn seconds_left(&self) -> f64 {
        self.core.spec().steps().saturating_sub(self.core.committed().0) as f64 * self.step_seconds
    }

    /// The epoch of the newest step, or the one that is to begin.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        let (step, _) = self.core.committed();
        self.core.spec().schedule.position((step + 1).min(self.core.spec().steps())).0
    }

    /// The name of a worker, or its session if it is gone.
    #[must_use]
    pub fn worker_name(&self, session: Session) -> String {
        let member = self.core.members().0.get(&session);
        member.map_or_else(|| format!("{session:x}"), |member| member.name.clone())
    }
}

/// What time between two steps is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// A restarted coordinator looks for a newer state.
    Recovering,
    /// A test pass.
    Testing,
    /// The next step is about to begin.
    Committing,
    /// There is no worker.
    Waiting,
}

/// Something that has happened.
#[derive(Clone, Copy, Debug)]
pub enum RunEvent<'a> {
    /// The driver has started.
    Started {
        /// How often this run's coordinator has been started.
        incarnation: u64,
    },
    /// A line is about to be written to the journal; a step's line comes with [`Committed`](Self::Committed).
    Journal(&'a Line),
    /// A worker takes part: its replica may not be ready yet.
    Connected {
        /// Its session.
        session: Session,
        /// Its name.
        name: &'a str,
        /// Its device, for people.
        device: &'a str,
    },
    /// The cluster has changed. The core knows of it already.
    Cluster(&'a ClusterEvent),
    /// An attempt at a step begins.
    AttemptBegun,
    /// The sum of the attempt is whole, and is about to be applied.
    SumWhole,
    /// The coordinator's own copy has been updated, in so many seconds.
    Updated {
        /// Seconds.
        seconds: f64,
    },
    /// The attempt is void.
    AttemptVoid {
        /// The step.
        step: u64,
        /// The attempt.
        attempt: u32,
        /// Why.
        reason: &'a str,
    },
    /// A step counts.
    Committed {
        /// The core's record of it.
        step: &'a Committed,
        /// The journal's line.
        line: &'a StepLine,
        /// A resumed run had to compute it again.
        recomputed: bool,
    },
    /// A test pass begins.
    TestBegun {
        /// The epoch that is over.
        epoch: u32,
    },
    /// A test pass is done.
    Tested {
        /// The step whose state was tested.
        step: u64,
        /// The epoch that it ended.
        epoch: u32,
        /// Wall seconds of the pass.
        seconds: f64,
        /// Its result.
        evaluation: &'a Evaluation,
    },
    /// The driver has taken a snapshot for a checkpoint, which another thread writes.
    CheckpointBegun,
    /// A checkpoint is on disk, or could not be written.
    Checkpoint {
        /// Its step.
        step: u64,
        /// When the writing began and ended.
        from: Instant,
        /// See `from`.
        to: Instant,
        /// Its directory, or what failed.
        result: Result<&'a Path, &'a str>,
    },
    /// A worker has confirmed a step.
    Confirmed {
        /// Its session.
        session: Session,
        /// The step.
        step: u64,
        /// Seconds that its update took.
        apply: f64,
        /// Seconds from the beginning of its contribution to the whole sum; 0 for a spare.
        round: f64,
    },
    /// A worker's clock has been compared with the coordinator's.
    Clock {
        /// Its session.
        session: Session,
        /// How far it is off.
        offset: Offset,
    },
    /// A worker has told what it did.
    Lane(&'a Lane),
    /// A chunk of a gradient was taken from a worker.
    Received {
        /// Its bytes.
        bytes: usize,
    },
    /// A chunk of the sum was queued for the replicas.
    Sent {
        /// The bytes of all copies.
        bytes: usize,
    },
    /// When the last assignment of the step was due, after its beginning.
    Deadline(Option<Duration>),
    /// A worker was sent away.
    Evicted {
        /// Its replica's digest was wrong (**REP-1**).
        drifted: bool,
    },
    /// A worker was lost before it had done a step, or because its link is too slow.
    UnproductiveSession,
    /// A message for the person who started the run.
    Note(&'a str),
    /// A warning for that person.
    Warning(&'a str),
    /// The coordinator itself has failed; its run can be resumed.
    Failed(&'a str),
    /// Time has passed, or the driver is between two inputs; told at least once a second.
    Tick,
    /// The run, or this stretch of it, is over: `done`, `stopped`, `diverged` or `failed`.
    Ended {
        /// How.
        outcome: &'a str,
    },
}

/// Something that shows a run.
pub trait Observer: Send {
    /// Something has happened. Training waits until this returns.
    fn observe(&mut self, context: &Context<'_>, event: &RunEvent<'_>);
}
