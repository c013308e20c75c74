//! Sharded attempts: workers add chunks up, and the coordinator takes back what they cannot (**LIVE-1**).
//!
//! A contributor sends the chunks of its nodes to their owners, and keeps them until the next attempt. An owner sends each
//! whole sum to all linked workers and to the coordinator, for which it is a contribution of the root. So the
//! coordinator knows of an owner's chunk only whether its sum has come, and nothing else counts as delivered: a trailer
//! says what was computed, and not that it has arrived.
//!
//! Whenever an owner cannot finish a chunk (it is lost, late, or has lost its link to a contributor), the coordinator
//! takes the chunk back: contributors send what they kept of it to the coordinator, as in the star. An owner's sum that
//! comes all the same has the same bits, if all workers are of one numerics class. If they are not, the attempt is void
//! instead, so that there is one version of each sum.
//!
//! Where workers of one machine combine, a combiner waits for what its machine was given when the attempt began, and knows
//! of nothing else. So the coordinator takes all chunks back when nodes are dealt again.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Core;
use super::cluster::Session;
use super::events::{Action, ClusterEvent};
use super::fault_injection::FaultInjection;
use super::reduce_mode::ReduceMode;
use tally_numerics::layout::{Layout, Machine};

/// A worker whose sums were late owns nothing for so many steps; twice as many each further time.
const REST: u64 = 8;
/// After a void attempt so many steps use the star; twice as many each further time.
const STAR_STEPS: u64 = 8;
/// One in so many ready workers may be left out of a sharded attempt for lack of links.
const LEFT_OUT: usize = 8;

impl Core {
    /// Whether steps are to be sharded where links allow it.
    pub(super) fn wants_sharded(&self) -> bool {
        match self.spec.reduce {
            ReduceMode::Star => false,
            ReduceMode::Sharded => true,
            ReduceMode::Auto => self.auto.wants_sharded(),
        }
    }

    /// The layout of the next attempt, between these ready workers.
    pub(super) fn choose_layout(&self, step: u64, ready: &[Session]) -> Layout {
        // Audits of nodes compare what comes to the coordinator.
        let alike = ready.iter().all(|session| self.members.are_alike(*session, ready[0]));
        let audits_node = self.audit_is_due(step) && !(self.audits_sums(step) && alike);
        let audit = audits_node || self.has_disputed_sums(step);
        let star = !self.wants_sharded() || step < self.star_until || audit;
        let layout = if star { None } else { self.sharded_layout(step, ready) };
        layout.unwrap_or_default()
    }

    /// The owners are the workers that have links to all others. Few workers without them are left out; with many, or
    /// with too few owners, there is no such layout.
    fn sharded_layout(&self, step: u64, ready: &[Session]) -> Option<Layout> {
        let mut linked = ready.to_vec();
        loop {
            let missing = |session: &Session| {
                linked.iter().filter(|peer| *peer != session && !self.links.is_up(*session, **peer)).count()
            };
            let may_own = |session: &&Session| self.members.0[session].owns_from <= step;
            let owners: Vec<Session> =
                linked.iter().filter(|s| missing(s) == 0).filter(may_own).copied().collect();
            if owners.len() >= 2 && 2 * owners.len() >= linked.len() {
                let machines = self.machines(step, &owners, &linked);
                return Some(Layout { owners, linked, machines });
            }
            let worst = linked.iter().copied().max_by_key(|session| missing(session))?;
            if missing(&worst) == 0 || LEFT_OUT * (ready.len() - linked.len() + 1) > ready.len() {
                return None;
            }
            linked.retain(|session| *session != worst);
        }
    }

    /// The machines on which several of these workers combine: at least one of them has links to all, and owners are on
    /// other machines as well.
    fn machines(&self, step: u64, owners: &[Session], linked: &[Session]) -> Vec<Machine> {
        let mut machines: BTreeMap<&str, Vec<Session>> = BTreeMap::new();
        for session in linked {
            machines.entry(&self.members.0[session].machine).or_default().push(*session);
        }
        // Workers that do not say where they are may not know what combining is.
        if step < self.combine_from || machines.contains_key("") {
            return Vec::new();
        }
        let machine = |workers: Vec<Session>| Machine::new(workers, owners, Vec::new());
        let combines = |machine: &Machine| {
            machine.workers.len() > 1 && (1..owners.len()).contains(&machine.combiners.len())
        };
        machines.into_values().map(machine).filter(combines).collect()
    }

    /// No machine combines for some steps: it is not known which of its workers did not do its part.
    pub(super) fn stop_combining(&mut self, step: u64, reason: &'static str) {
        self.combining_stopped_by = reason;
        self.combine_from = step + 1 + (REST << self.combining_stopped.min(8));
        self.combining_stopped += 1;
    }

    /// Reports when gradients begin to be added up in another way.
    pub(super) fn report_layout(&mut self, step: u64, layout: &Layout, ready: usize) {
        let (owners, machines) = (layout.owners.len(), layout.machines.len());
        if self.audit_is_due(step) {
            return;
        }
        let way = (owners > 0, machines > 0);
        if std::mem::replace(&mut self.way, way) == way {
            return;
        }
        let reason = if owners > 0 {
            let combine = match machines {
                0 if step < self.combine_from => {
                    let from = self.combine_from;
                    format!("; no machine combines before step {from}: {}", self.combining_stopped_by)
                }
                0 => String::new(),
                1 => "; those of one machine combine".into(),
                _ => format!("; those of each of {machines} machines combine"),
            };
            format!("{owners} of {ready} workers have links to all{combine}")
        } else if step < self.star_until {
            "the last attempt was void".into()
        } else if !self.wants_sharded() {
            self.auto.reason()
        } else {
            format!("too few of {ready} workers have links to all")
        };
        self.actions.push(Action::Report(ClusterEvent::Reduction { step, owners, reason }));
    }

    /// The coordinator adds these chunks up from here on. Returns false if the attempt is void instead.
    pub(super) fn take_back(&mut self, now: Duration, chunks: Vec<u32>, reason: &str) -> bool {
        let Some(flight) = &self.flight else { return false };
        if chunks.is_empty() || self.injects(FaultInjection::ForgetTakeBack) {
            return true;
        }
        let (step, attempt) = (flight.step, flight.attempt);
        if flight.classes.len() > 1 && !self.injects(FaultInjection::MixVersions) {
            self.void_mixed(now, reason);
            return false;
        }
        let (due, count) = (self.transfer_due(now), chunks.len());
        let Some(flight) = &mut self.flight else { return false };
        chunks.iter().for_each(|&chunk| flight.own.push(chunk));
        self.postpone(due);
        self.actions.push(Action::TakeBack { step, attempt, chunks });
        self.actions.push(Action::Report(ClusterEvent::TakenBack {
            step,
            chunks: count,
            reason: reason.into(),
        }));
        true
    }

    /// A sum might have two versions with different bits: the step starts again, with the star.
    pub(super) fn void_mixed(&mut self, now: Duration, reason: &str) {
        self.void_attempts += 1;
        self.star_until = self.committed + 1 + (STAR_STEPS << self.void_attempts.min(8));
        self.abort(&format!("{reason}, and the workers' devices compute different bits"));
        self.boundary(now);
    }

    /// All receipts are there: from now on owners are waited for.
    pub(super) fn await_sums(&mut self, now: Duration) {
        let due = self.transfer_due(now);
        if let Some(flight) = &mut self.flight
            && flight.layout.is_sharded()
            && flight.has_all_receipts()
        {
            flight.sums_due.get_or_insert(due);
        }
    }

    /// Takes the chunks of late owners back.
    pub(super) fn sums_overdue(&mut self, now: Duration) {
        let Some(flight) = &self.flight else { return };
        if flight.closing || flight.sums_due.is_none_or(|due| now < due) {
            return;
        }
        let (step, chunks) = (flight.step, flight.missing());
        if chunks.is_empty() {
            return;
        }
        if !flight.layout.machines.is_empty() {
            // A combiner may have them, so that no owner is to blame.
            let reason = "the sums of machines that combine were late";
            self.stop_combining(step, reason);
            self.take_back(now, chunks, reason);
            return;
        }
        let mut late: Vec<Session> = chunks.iter().filter_map(|&chunk| flight.layout.owner(chunk)).collect();
        late.sort_unstable();
        late.dedup();
        let name = |session: &Session| self.members.0.get(session).map(|member| member.name.as_str());
        let reason =
            format!("the sums of {} were late", late.iter().filter_map(name).collect::<Vec<_>>().join(", "));
        for session in late {
            if let Some(member) = self.members.0.get_mut(&session) {
                member.owns_from = step + 1 + (REST << member.late_sums.min(8));
                member.late_sums += 1;
            }
        }
        self.take_back(now, chunks, &reason);
    }
}
