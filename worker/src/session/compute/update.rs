//! The update of a step: the rules come first, then the reduced chunks, then, unless it is known before, the factor of
//! the gradient, and at the end the commit (**REP-1**).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tally_numerics::digest::Digest;
use tally_numerics::update::Update;
use tally_numerics::update::rule::Rule;
use tally_numerics::{chunk_range, chunks};
use tally_proto::pool::Chunk;
use tally_proto::span::SpanKind;
use tally_proto::v1::{self, MessageContext, WorkerMessage, worker_message};
use tally_proto::{floats, update};

use super::{Compute, ComputeError};

/// How long a replica waits at least for sums of a closed step before it asks the coordinator for them …
const NEED_AFTER: Duration = Duration::from_millis(100);
/// … and how long before it asks again.
const NEED_AGAIN: Duration = Duration::from_secs(1);

/// The update of the next step, which is being applied to the engine's second buffer.
#[derive(Debug)]
pub(super) struct PendingUpdate {
    pub(super) step: u64,
    pub(super) attempt: u32,
    rules: Arc<[Rule]>,
    limit: f32,
    /// Reduced chunks that wait for the gradient's factor.
    deferred: Vec<v1::SumChunk>,
    seen: Vec<bool>,
    missing: usize,
    /// The checksums of the chunks that owners have sent.
    checksums: Vec<v1::SumChecksum>,
    began: Instant,
    /// When the coordinator is asked for what is missing, once the step is closed.
    need_at: Option<Instant>,
    /// The update, once the gradient's factor is known.
    update: Option<Update>,
    applied: usize,
    digest: Digest,
    /// When the last reduced chunk came.
    complete_at: Option<Instant>,
}

impl Compute {
    /// An attempt begins; what was applied for an earlier one is void.
    pub(super) fn attempt_begins(
        &mut self,
        context: MessageContext,
        begin: &v1::AttemptBegin,
    ) -> Result<(), ComputeError> {
        let missing = chunks(self.engine.manifest().trained_len());
        let rules = self.rules(begin)?;
        let update = begin.unscaled.then(|| self.update(rules.clone(), 1.0, begin.limit));
        self.pending_update = Some(PendingUpdate {
            step: context.step,
            attempt: context.attempt,
            rules,
            limit: begin.limit,
            deferred: Vec::new(),
            seen: vec![false; missing],
            missing,
            checksums: Vec::new(),
            began: Instant::now(),
            need_at: None,
            update,
            applied: 0,
            digest: Digest::default(),
            complete_at: None,
        });
        Ok(())
    }

    /// The gradient's factor is known: the chunks that waited for it are applied.
    pub(super) fn attempt_closes(
        &mut self,
        context: MessageContext,
        close: &v1::AttemptClose,
    ) -> Result<(), ComputeError> {
        let Some(pending) = self.pending_update.as_ref().filter(|u| u.attempt == context.attempt) else {
            return Ok(());
        };
        let update = self.update(pending.rules.clone(), close.scale, pending.limit);
        let Some(pending) = &mut self.pending_update else { return Ok(()) };
        pending.update = Some(update);
        if pending.missing > 0 {
            // What owners have sent is on its way. The coordinator has all of it already.
            let now = Instant::now();
            pending.need_at = Some(now + NEED_AFTER.max(now - pending.began));
        }
        let deferred = std::mem::take(&mut pending.deferred);
        deferred.iter().try_for_each(|reduced| self.apply(reduced))
    }

    /// When the coordinator is to be asked for sums that have not come.
    pub(super) fn need_at(&self) -> Option<Instant> {
        self.pending_update.as_ref().filter(|pending| pending.missing > 0)?.need_at
    }

    /// Asks for the sums that have not come: an owner was lost after the coordinator had them.
    pub(super) fn need(&mut self) {
        let Some(pending) = &mut self.pending_update else { return };
        pending.need_at = Some(Instant::now() + NEED_AGAIN);
        let missing = pending.seen.iter().enumerate().filter(|(_, seen)| !**seen);
        let need = v1::Need { chunks: missing.map(|(index, _)| index as u32).collect() };
        let context = Some(MessageContext { step: pending.step, attempt: pending.attempt, ..self.context });
        let _ = self.control.send(WorkerMessage { context, body: Some(worker_message::Body::Need(need)) });
    }

    fn update(&self, rules: Arc<[Rule]>, scale: f32, limit: f32) -> Update {
        Update::new(rules, self.engine.manifest().segments().clone(), scale, limit)
    }

    /// The rules of an attempt, which must be for this model and the state that it has.
    fn rules(&self, begin: &v1::AttemptBegin) -> Result<Arc<[Rule]>, ComputeError> {
        let rules: Option<Vec<Rule>> = begin.rules.iter().map(update::from_message).collect();
        let rules = rules.ok_or_else(|| {
            ComputeError("the coordinator trains with an optimizer that this build does not know".into())
        })?;
        let segments = self.engine.manifest().segments();
        if !Update::fits(&rules, segments) || rules[0].moments() != self.moments {
            return Err(ComputeError(format!(
                "the coordinator's optimizer has {} rules for {} groups of tensors, and {} moments for a state with {}",
                rules.len(),
                segments.groups(),
                rules.first().map_or(0, Rule::moments),
                self.moments
            )));
        }
        if begin.limit.is_nan() || begin.limit <= 0.0 {
            return Err(ComputeError(format!("the coordinator clips elements to ±{}", begin.limit)));
        }
        Ok(rules.into())
    }

    pub(super) fn reduced(
        &mut self,
        context: MessageContext,
        reduced: v1::SumChunk,
    ) -> Result<(), ComputeError> {
        let Some(update) = self.pending_update.as_mut().filter(|u| u.attempt == context.attempt) else {
            return Ok(());
        };
        let index = reduced.index as usize;
        match update.seen.get_mut(index) {
            Some(seen) if !*seen => *seen = true,
            // An owner and the coordinator may both send it, with the same bits.
            Some(_) => return Ok(()),
            None => return Err(ComputeError(format!("chunk {index} of the sum is none of this model's"))),
        }
        if reduced.crc != 0 {
            update.checksums.push(v1::SumChecksum { index: reduced.index, crc: reduced.crc });
        }
        update.missing -= 1;
        if update.missing == 0 {
            update.complete_at = Some(Instant::now());
        }
        if update.update.is_some() {
            self.apply(&reduced)
        } else {
            update.deferred.push(reduced);
            Ok(())
        }
    }

    /// Applies a reduced chunk to the second buffer. A chunk in shared memory is read only now: it stays
    /// there until the step's commit is confirmed.
    fn apply(&mut self, reduced: &v1::SumChunk) -> Result<(), ComputeError> {
        let Some(pending) = &mut self.pending_update else { return Ok(()) };
        let Some(update) = &pending.update else { return Ok(()) };
        let from = Instant::now();
        let range = chunk_range(self.engine.manifest().trained_len(), reduced.index as usize);
        let wrong = |what: String| ComputeError(format!("chunk {} of the sum: {what}", reduced.index));
        let (dtype, pool) = (self.transport.dtype, &self.pool);
        let copied: Chunk;
        let gradient: &[f32] = if let Some(slot) = reduced.slot {
            let shared = self.transport.sums.as_ref();
            let memory = shared.ok_or_else(|| {
                wrong("the coordinator says that it is in shared memory, but there is none".into())
            })?;
            let fetched = floats::fetch(dtype, memory, slot, range.len(), pool);
            copied = fetched.map_err(|e| wrong(e.to_string()))?;
            &copied
        } else if let Some(view) = floats::view(dtype, &reduced.data, range.len()) {
            view
        } else {
            let decoded = floats::decode(dtype, &reduced.data, range.len(), pool);
            copied = decoded.map_err(|e| wrong(e.to_string()))?;
            &copied
        };
        let part = self.engine.apply(update, range.start, gradient);
        pending.digest = pending.digest.and(part);
        pending.applied += 1;
        if pending.applied == pending.seen.len() {
            pending.digest = pending.digest.and(self.engine.finish_update()?);
        }
        self.timeline.record(SpanKind::Apply, 0, from);
        Ok(())
    }

    pub(super) fn advance_commit(&mut self) -> bool {
        let (Some(&(step, digest)), Some(at)) = (self.commits.front(), self.step()) else { return false };
        if step <= at {
            self.commits.pop_front();
            return true;
        }
        let Some(update) = self
            .pending_update
            .take_if(|u| u.step == step && step == at.saturating_add(1) && u.applied == u.seen.len())
        else {
            return false;
        };
        self.commits.pop_front();
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64(),
            _ => 0.0,
        };
        if update.digest == digest {
            let from = Instant::now();
            self.engine.commit();
            self.timeline.record(SpanKind::Apply, 0, from);
            self.previous = self.committed.replace((step, digest));
            self.steps += 1;
            self.microbatches.retain(|&(of, _), _| of > step);
            self.prefetched.retain(|&(of, _)| of > step);
        }
        // With another digest this replica stays at its step. The coordinator compares what it got, and sends it away, or
        // whoever sent it other sums than it sent the coordinator.
        let sums = if update.digest == digest { Vec::new() } else { update.checksums };
        let contribution_began = self.contribution_began.take();
        let spans = self.timeline.drain_spans();
        self.send(
            step,
            worker_message::Body::Committed(v1::Committed {
                digest: update.digest.0,
                apply_seconds: between(update.complete_at, Some(Instant::now())),
                round_seconds: between(contribution_began, update.complete_at),
                spans,
                sums,
            }),
        );
        true
    }
}
