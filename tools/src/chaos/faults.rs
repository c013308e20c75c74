//! Doing what the plan says, and undoing it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::measure::Fact;
use super::plan::{Action, Fault};
use super::processes::Processes;
use crate::cluster::Signal;

/// A moment of the timeline: an action begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// It is undone. Before what begins at the same time.
    End(usize),
    /// It is done.
    Begin(usize),
}

/// The moments of a plan in their order.
#[must_use]
pub fn timeline(actions: &[Action]) -> Vec<(Duration, Moment)> {
    let begin = actions.iter().enumerate().map(|(index, a)| (a.at, Moment::Begin(index)));
    let end = actions.iter().enumerate().map(|(index, a)| (a.at + a.lasts, Moment::End(index)));
    let mut moments: Vec<(Duration, Moment)> = begin.chain(end).collect();
    moments.sort_unstable();
    moments
}

/// What was done, while it goes on.
#[derive(Debug, Default)]
pub struct Doings {
    open: BTreeMap<usize, Fact>,
    /// What is over, in the order of its end.
    pub facts: Vec<Fact>,
}

impl Doings {
    /// Performs a moment; `now` is the clock that facts are told by.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn perform(
        &mut self,
        processes: &mut Processes,
        actions: &[Action],
        moment: Moment,
        now: f64,
    ) -> anyhow::Result<()> {
        match moment {
            Moment::Begin(index) => {
                let action = &actions[index];
                let worker = action.slot.map(|slot| processes.name(slot));
                self.open.insert(index, Fact { fault: action.fault, worker, at: now, until: f64::INFINITY });
                begin(processes, action)
            }
            Moment::End(index) => {
                if let Some(fact) = self.open.remove(&index) {
                    self.facts.push(Fact { until: now, ..fact });
                }
                end(processes, &actions[index])
            }
        }
    }

    /// Those that are over, and those that are not.
    #[must_use]
    pub fn all(&self) -> Vec<Fact> {
        let mut all: Vec<Fact> = self.facts.iter().chain(self.open.values()).cloned().collect();
        all.sort_by(|a, b| a.at.total_cmp(&b.at));
        all
    }
}

fn begin(processes: &mut Processes, action: &Action) -> anyhow::Result<()> {
    let slot = action.slot.unwrap_or(0);
    match action.fault {
        Fault::Kill => processes.kill_worker(slot, Signal::KILL),
        Fault::Abort => processes.kill_worker(slot, Signal::ABORT),
        Fault::FreezeShort | Fault::FreezeLong => processes.signal_worker(slot, Signal::STOP),
        Fault::Leave => processes.signal_worker(slot, Signal::INT),
        Fault::Join => processes.start_worker(slot),
        Fault::Cable => processes.cable(slot, false)?,
        Fault::Cut | Fault::Stall | Fault::Delay => {
            if let Some(relay) = processes.relay(slot) {
                match action.fault {
                    Fault::Cut => relay.cut(),
                    Fault::Stall => relay.hold(),
                    _ => relay.delay(action.delay),
                }
            }
        }
        Fault::LinksCut | Fault::LinksStall => {
            if let Some(links) = processes.links(slot) {
                if action.fault == Fault::LinksCut { links.cut() } else { links.hold() }
            }
        }
        Fault::KillCoordinator => processes.kill_coordinator(action.rough)?,
        Fault::StopCoordinator => processes.stop_coordinator(),
        Fault::KillAll => kill_workers(processes),
        Fault::KillEverything => {
            processes.kill_coordinator(action.rough)?;
            kill_workers(processes);
        }
    }
    Ok(())
}

fn end(processes: &mut Processes, action: &Action) -> anyhow::Result<()> {
    let slot = action.slot.unwrap_or(0);
    match action.fault {
        Fault::Kill | Fault::Abort => processes.start_worker(slot),
        Fault::FreezeShort | Fault::FreezeLong => processes.signal_worker(slot, Signal::CONT),
        Fault::Leave => {
            processes.gather_worker(slot);
            processes.start_worker(slot);
        }
        Fault::Join if action.rough => processes.kill_worker(slot, Signal::KILL),
        Fault::Join => processes.signal_worker(slot, Signal::INT),
        Fault::Cable => processes.cable(slot, true)?,
        Fault::Cut | Fault::Stall | Fault::Delay => {
            if let Some(relay) = processes.relay(slot) {
                relay.mend();
            }
        }
        Fault::LinksCut | Fault::LinksStall => {
            if let Some(links) = processes.links(slot) {
                links.mend();
            }
        }
        Fault::KillCoordinator => processes.resume(),
        Fault::StopCoordinator => {
            processes.gather_coordinator()?;
            processes.resume();
        }
        Fault::KillAll => processes.start_lasting(),
        Fault::KillEverything => {
            processes.resume();
            processes.start_lasting();
        }
    }
    Ok(())
}

/// All of them, guests too; a guest's own end finds nothing left to do.
fn kill_workers(processes: &mut Processes) {
    for slot in processes.manned() {
        processes.kill_worker(slot, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_and_what_begins_at_one_time_come_in_this_order() {
        let action = |at, lasts| Action {
            at: Duration::from_secs(at),
            fault: Fault::Kill,
            slot: Some(0),
            lasts: Duration::from_secs(lasts),
            delay: Duration::ZERO,
            rough: false,
        };
        let moments: Vec<Moment> =
            timeline(&[action(1, 2), action(2, 3), action(3, 1)]).into_iter().map(|(_, m)| m).collect();
        let wanted = [
            Moment::Begin(0),
            Moment::Begin(1),
            Moment::End(0),
            Moment::Begin(2),
            Moment::End(2),
            Moment::End(1),
        ];
        assert_eq!(moments, wanted);
    }
}
