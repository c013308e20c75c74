//! The coordinator's decisions, as a pure state machine.
//!
//! Events go in, actions come out ([`Core::handle`]). There is no socket, clock, thread, file or random source in
//! here, so nothing in here can fail or wait, and any sequence of events can be repeated exactly. The server around
//! it (tally-coordinator) holds the floats and the sockets and performs the actions in their order.
//!
//! Promises kept here: **DATA-1** ([`ledger`]), **SUM-1** ([`assign`], `step_protocol`), **REP-1** (`replica_state`:
//! every digest of a worker is compared with the master's), **LIVE-1** (`step_protocol` leads a step from its plan to
//! its commit, `deadlines` assigns the leaves of a lost or late worker again within the step, `sharding` takes back the
//! chunks that workers cannot add up), **RESUME-1** ([`recovery`]).

pub mod assign;
pub mod audit;
mod audit_sums;

pub mod cluster;
mod deadlines;
pub mod events;
mod fault_injection;
pub mod ledger;
pub mod links;
pub mod optimizer;
pub mod recovery;
pub mod reduce_mode;

mod replica_state;
pub mod sampler;
mod sharding;
pub mod step;
mod step_protocol;
pub mod test_pass;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]
mod simulation;

use std::collections::VecDeque;
use std::time::Duration;

use tally_numerics::digest::Digest;
use tally_numerics::order::Schedule;
use tally_numerics::tree::{Node, Tree};

use audit_sums::SumsAudit;
use cluster::{Member, Members, Session};
use events::{Action, Event, RunOutcome};
use fault_injection::FaultInjection;
use ledger::Ledger;
use links::Links;
use optimizer::OptimizerConfig;
use recovery::{Recorded, Recovery};
use reduce_mode::{AutoReduce, ReduceMode};
use sampler::EpochSampler;
use step::StepInFlight;
use tally_numerics::layout::Layout;
use test_pass::TestPass;

/// Sharded steps whose layouts are remembered; replicas lag by no more than a few.
const LAYOUTS: usize = 8;

/// Commits whose digests are remembered; a replica that confirms an older one is too far behind.
const RECENT: usize = 1024;

/// The properties of a run on which decisions depend. They are fixed for the run.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// The reduction tree.
    pub tree: Tree,
    /// Chunks of a gradient.
    pub chunks: u32,
    /// Which samples each step has.
    pub schedule: Schedule,
    /// Epochs of the run.
    pub epochs: u32,
    /// Samples of the test set.
    pub test_samples: usize,
    /// The optimizer's settings.
    pub optimizer: OptimizerConfig,
    /// A checkpoint after every so many steps, beside those at the ends of epochs.
    pub checkpoint_every: Option<u64>,
    /// Workers to wait for before a new run starts.
    pub workers: usize,
    /// The share of steps that are audited, 0 to 1.
    pub audit_rate: f64,
    /// How gradients are added up.
    pub reduce: ReduceMode,
    /// Chunks of a node that a worker may send to the coordinator ahead of those that are whole
    /// ([`tally_numerics::CREDIT_WINDOW`]; less in tests).
    pub credit_window: usize,
}

impl RunSpec {
    /// Steps of the whole run.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.schedule.steps_per_epoch() as u64 * u64::from(self.epochs)
    }
}

/// What the run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Too few workers to start.
    Waiting,
    /// Looking for a worker that holds a newer state than the checkpoint.
    Recovering,
    /// Training.
    Training,
    /// In a test pass.
    Testing,
    /// Over.
    Finished,
}

/// The coordinator's state, except floats and sockets.
#[derive(Clone, Debug)]
pub struct Core {
    spec: RunSpec,
    sampler: EpochSampler,
    members: Members,
    ledger: Ledger,
    /// Samples of the epochs that were whole before this start.
    samples_before: u64,
    /// The step and digest of the master state.
    committed: u64,
    digest: Digest,
    /// The digests of the last commits, with which replicas that lag a little are compared.
    recent: VecDeque<(u64, Digest)>,
    /// The newest checkpoint's step, so that none is written twice.
    checkpointed: Option<u64>,
    attempt: u32,
    flight: Option<StepInFlight>,
    test: Option<TestPass>,
    /// The epochs whose test pass is done.
    tested: u32,
    started: bool,
    stopping: bool,
    finished: bool,
    /// The worker that found NaN in a gradient of the step being computed. One worker's NaN may be its own fault, so
    /// the others compute the step without it. If a second worker finds NaN, the model has diverged.
    non_finite: Option<Session>,
    /// The last assignment's quotas and the workers they were for, kept while they serve.
    last_quotas: Option<(Vec<Session>, Vec<u32>)>,
    /// Seconds from the slowest worker's last computing to the whole sum, smoothed.
    transfer: f64,
    /// What the journal knew at this start.
    recorded: Recorded,
    recovery: Option<Recovery>,
    audits: audit::Counts,
    /// The step, and the node of it, about which two workers differ.
    disputed: Option<(u64, Node)>,
    sums_audit: Option<SumsAudit>,
    links: Links,
    auto: AutoReduce,
    /// Whether workers add up, and whether machines combine, as was reported last.
    way: (bool, bool),
    /// The layouts of the last committed steps that were sharded.
    layouts: VecDeque<(u64, Layout)>,
    /// The star is used before this step.
    star_until: u64,
    /// Attempts that were void because they were sharded.
    void_attempts: u32,
    /// No machine combines before this step.
    combine_from: u64,
    /// How often machines stopped combining, and why they did so last.
    combining_stopped: u32,
    combining_stopped_by: &'static str,
    actions: Vec<Action>,
    /// A rule that is broken on purpose, to see which promise notices.
    #[cfg(test)]
    fault: Option<FaultInjection>,
}

impl Core {
    /// A run whose master state is at `committed` steps with this `digest`. A new run is at 0; a resumed one, of
    /// which something is `recorded`, waits for no more than one worker.
    #[must_use]
    pub fn new(spec: RunSpec, committed: u64, digest: Digest, recorded: Recorded) -> Self {
        let sampler = EpochSampler::new(spec.schedule);
        let mut core = Self {
            sampler,
            members: Members::default(),
            ledger: Ledger::new(spec.schedule.samples()),
            samples_before: 0,
            committed,
            digest,
            recent: VecDeque::new(),
            checkpointed: (committed > 0).then_some(committed),
            attempt: 0,
            flight: None,
            test: None,
            tested: 0,
            started: recorded.last().max(committed) > 0,
            stopping: false,
            finished: false,
            non_finite: None,
            last_quotas: None,
            transfer: 0.0,
            recovery: (recorded.last() > committed).then(Recovery::default),
            recorded,
            audits: audit::Counts::default(),
            disputed: None,
            sums_audit: None,
            links: Links::default(),
            auto: AutoReduce::default(),
            way: (false, false),
            layouts: VecDeque::new(),
            star_until: 0,
            void_attempts: 0,
            combine_from: 0,
            combining_stopped: 0,
            combining_stopped_by: "",
            actions: Vec::new(),
            #[cfg(test)]
            fault: None,
            spec,
        };
        core.go_to(committed, digest);
        core
    }

    /// The master state is at another step. Only called between steps.
    fn go_to(&mut self, committed: u64, digest: Digest) {
        let per_epoch = self.spec.schedule.steps_per_epoch() as u64;
        let samples = self.spec.schedule.samples();
        self.samples_before = committed / per_epoch * samples as u64;
        self.committed = committed;
        self.digest = digest;
        self.recent = VecDeque::from([(committed, digest)]);
        self.tested = self.recorded.tested(committed);
        // Samples that this epoch had used before the stop count as used.
        if !self.injects(FaultInjection::KeepLedger) {
            self.ledger = Ledger::new(samples);
        }
        for step in committed - committed % per_epoch + 1..=committed {
            self.ledger.commit(&self.sampler.ids(step));
        }
    }

    /// Whether this rule is broken on purpose; only ever in tests.
    #[allow(clippy::unused_self)]
    fn injects(&self, fault: FaultInjection) -> bool {
        #[cfg(test)]
        return self.fault == Some(fault);
        #[cfg(not(test))]
        {
            let _ = fault;
            false
        }
    }

    /// Handles an event that happened at `now` (on any steady clock), and returns the actions.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        if !self.finished {
            self.dispatch(now, event);
        }
        std::mem::take(&mut self.actions)
    }

    fn dispatch(&mut self, now: Duration, event: Event) {
        match event {
            Event::Joined { session, name, device, threads, held, links, machine } => {
                let member = Member { links, machine, ..Member::new(name, device, threads, held) };
                self.joined(now, session, member);
            }
            Event::Loaded { session, step, digest } => self.confirmed(now, session, step, digest, None),
            Event::Uploaded { session, step, digest } => self.uploaded(now, session, step, digest),
            Event::Header { from, node, digest, samples } => self.header(now, from, node, digest, samples),
            Event::Chunk { from, node, index, digest, fault } => {
                self.chunk(now, from, node, index, digest, fault);
            }
            Event::Trailer { from, node, receipts, computed } => {
                self.trailer(now, from, node, receipts, computed);
            }
            Event::NonFinite { from, node, tensor } => self.non_finite(now, from, node, tensor),
            Event::Applied { digest } => self.applied(now, digest),
            Event::Diverged => {
                let step = self.committed + 1;
                self.diverged(step, "the summed gradient".into());
            }
            Event::Committed { session, step, digest, differing, .. } => {
                self.confirmed(now, session, step, digest, differing.as_deref());
            }
            Event::Answered { session, step, leaf } => self.answered(now, session, step, leaf),
            Event::Audited { from, node, digest } => self.audited(now, from, node, digest),
            Event::Summed { chunk, digest } => self.summed(now, chunk, digest),
            Event::LinkUp { session, peer } => self.link_up(now, session, peer),
            Event::LinkDown { session, peer, reason } => self.link_down(now, session, peer, &reason),
            Event::Need { from, chunks } => self.need(from, chunks),
            Event::Tick => self.tick(now),
            Event::Lost { session, reason, polite } => self.lost(now, session, reason, polite),
            Event::Wake | Event::Stop => {
                self.stopping |= matches!(event, Event::Stop);
                if self.flight.is_none() {
                    self.boundary(now);
                }
            }
        }
    }

    // ---- Read by the server and its observers ----

    /// The run's spec.
    #[must_use]
    pub fn spec(&self) -> &RunSpec {
        &self.spec
    }

    /// The members of the cluster.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The accounting of samples.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Training samples committed in the whole run.
    #[must_use]
    pub fn samples_committed(&self) -> u64 {
        self.samples_before + self.ledger.committed()
    }

    /// The last committed step and its digest.
    #[must_use]
    pub fn committed(&self) -> (u64, Digest) {
        (self.committed, self.digest)
    }

    /// The links between workers.
    #[must_use]
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// The step in flight, if there is one.
    #[must_use]
    pub fn flight(&self) -> Option<&StepInFlight> {
        self.flight.as_ref()
    }

    /// What the run is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.finished {
            Phase::Finished
        } else if self.recovery.is_some() {
            Phase::Recovering
        } else if self.test.is_some() {
            Phase::Testing
        } else if self.flight.is_some() {
            Phase::Training
        } else {
            Phase::Waiting
        }
    }

    /// Between two steps: states for newcomers, checkpoints, test passes, the next step.
    fn boundary(&mut self, now: Duration) {
        if self.finished {
            return;
        }
        if self.stopping {
            self.recovery = None;
        } else if !self.recovered(now) {
            return;
        }
        self.send_states();
        if self.test.is_some() && !self.stopping {
            self.deal_test_leaves(now);
            return;
        }
        let per_epoch = self.spec.schedule.steps_per_epoch() as u64;
        let epochs_done = (self.committed / per_epoch) as u32;
        let due = self.spec.checkpoint_every.is_some_and(|every| self.committed.is_multiple_of(every));
        let at_end = self.committed.is_multiple_of(per_epoch);
        if self.committed > 0 && (due || at_end || self.stopping) {
            self.checkpoint();
        }
        if self.stopping {
            return self.finish(RunOutcome::Stopped);
        }
        if epochs_done > self.tested {
            let leaves = test_pass::microbatches(self.spec.test_samples);
            self.test = Some(TestPass::new(leaves, self.expected_answer()));
            self.actions.push(Action::TestBegin { step: self.committed, epoch: epochs_done });
            self.deal_test_leaves(now);
        } else if self.committed >= self.spec.steps() {
            self.finish(RunOutcome::Done);
        } else {
            self.start_step(now);
        }
    }

    fn checkpoint(&mut self) {
        if self.checkpointed != Some(self.committed) {
            self.checkpointed = Some(self.committed);
            self.actions.push(Action::Checkpoint { step: self.committed });
        }
    }

    fn finish(&mut self, outcome: RunOutcome) {
        self.finished = true;
        self.flight = None;
        self.actions.push(Action::Finish(outcome));
    }
}
