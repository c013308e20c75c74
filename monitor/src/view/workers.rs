//! The table of workers: those that are there, and those that were lost.

use std::collections::{BTreeMap, VecDeque};

use tally_core::Core;
use tally_core::cluster::Session;

use super::lanes::Lane;
use super::state::Worker;

/// Workers that are gone and still in the table.
const MOST_GONE: usize = 256;

/// The table.
#[derive(Debug, Default)]
pub struct Workers {
    here: BTreeMap<Session, Worker>,
    gone: VecDeque<Worker>,
    version: u64,
}

impl Workers {
    /// Looks at the members anew.
    pub fn refresh(&mut self, core: &Core) {
        let members = &core.members().0;
        self.here.retain(|session, _| members.contains_key(session));
        for (&session, member) in members {
            let worker = self.here.entry(session).or_insert_with(|| Worker {
                session: format!("{session:x}"),
                name: member.name.clone(),
                device: member.device.name.clone(),
                threads: member.threads,
                ..Worker::default()
            });
            worker.state = member.activity(core.flight().is_some());
            worker.step = member.confirmed.unwrap_or(0);
            worker.microbatches = member.leaves;
            worker.seconds_per_sample = member.per_sample;
            worker.samples = member.samples;
        }
        self.version += 1;
    }

    /// A worker became ready.
    pub fn joined(&mut self, session: Session, unix: f64) {
        if let Some(worker) = self.here.get_mut(&session) {
            worker.joined_unix = Some(unix);
        }
        self.version += 1;
    }

    /// A worker is gone.
    pub fn lost(&mut self, session: Session, name: &str, reason: &str, unix: f64) {
        let worker = self.here.remove(&session).unwrap_or_else(|| Worker {
            session: format!("{session:x}"),
            name: name.into(),
            ..Worker::default()
        });
        if self.gone.len() == MOST_GONE {
            self.gone.pop_front();
        }
        self.gone.push_back(Worker {
            state: "gone",
            microbatches: 0,
            left_unix: Some(unix),
            reason: Some(reason.into()),
            ..worker
        });
        self.version += 1;
    }

    /// A worker was past its deadline.
    pub fn late(&mut self, session: Session) {
        if let Some(worker) = self.here.get_mut(&session) {
            worker.late += 1;
        }
    }

    /// A worker computes microbatches in place of another.
    pub fn takes_over(&mut self, session: Session, microbatches: u64) {
        if let Some(worker) = self.here.get_mut(&session) {
            worker.takeovers += microbatches;
        }
    }

    /// What a worker did in a step, for its smoothed times. Spans that come with the answers of a test pass belong to no
    /// step.
    pub fn lane(&mut self, session: Session, lane: &Lane) {
        let Some(worker) = self.here.get_mut(&session) else { return };
        if lane.spans.iter().any(|span| span.kind == "test") {
            return;
        }
        let seconds = |kinds: &[&str]| -> f64 {
            let spans = lane.spans.iter().filter(|span| kinds.contains(&span.kind));
            spans.map(|span| span.end - span.start).sum()
        };
        for (smooth, kinds) in [
            (&mut worker.compute_seconds, &["compute", "takeover", "audit"][..]),
            (&mut worker.send_seconds, &["send"]),
            (&mut worker.wait_seconds, &["wait"]),
            (&mut worker.apply_seconds, &["apply"]),
        ] {
            let now = seconds(kinds);
            *smooth = Some(smooth.map_or(now, |before| before + 0.2 * (now - before)));
        }
    }

    /// Changes whenever the table may have.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Those that are there, in the order of their sessions, then those that are gone, the
    /// newest first.
    #[must_use]
    pub fn table(&self) -> Vec<Worker> {
        self.here.values().chain(self.gone.iter().rev()).cloned().collect()
    }
}
