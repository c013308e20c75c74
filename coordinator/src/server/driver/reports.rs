//! The summary and the status of a run.

use super::*;

impl Driver {
    pub(super) fn summary(&self, outcome: &RunOutcome) -> Summary {
        let (steps, digest): (u64, Digest) = self.core.committed();
        let per_epoch = self.core.spec().schedule.steps_per_epoch() as u64;
        let ledger = self.core.ledger();
        let before = &self.history;
        Summary {
            outcome: match outcome {
                RunOutcome::Done => "done",
                RunOutcome::Stopped => "stopped",
                RunOutcome::Diverged { .. } => "diverged",
            }
            .into(),
            steps,
            epochs: (steps / per_epoch) as u32,
            test: self.last_test.as_ref().map(Evaluation::numbers),
            parameters_sha256: self.config.tensors.sha256(&self.master.snapshot().parameters()),
            digest: digest.to_string(),
            wall_seconds: before.seconds + self.started.elapsed().as_secs_f64(),
            samples_per_second: self.totals.trained_samples as f64
                / self.totals.trained_seconds.max(f64::MIN_POSITIVE),
            median_seconds: self.times.medians(),
            samples: self.core.samples_committed(),
            samples_lost: ledger.lost(),
            samples_duplicated: ledger.duplicated(),
            workers_joined: self.totals.joined,
            workers_lost: self.totals.lost,
            audits: self.core.audits().equal + self.core.audits().differed,
            audits_differed: self.core.audits().differed,
        }
    }

    pub(super) fn status(&self) -> v1::StatusReply {
        let (context, core) = (self.context(), &self.core);
        let (step, _) = core.committed();
        let last = self.last_step.as_ref();
        let workers = core.members().0.iter().map(|(&session, m)| v1::WorkerStatus {
            session,
            name: m.name.clone(),
            device: m.device.name.clone(),
            state: m.activity(core.flight().is_some()).into(),
            threads: m.threads,
            step: m.confirmed.unwrap_or(0),
            leaves: m.leaves,
            seconds_per_sample: m.per_sample.unwrap_or(0.0),
            samples: m.samples,
        });
        let config = &self.config;
        v1::StatusReply {
            run: config.run.clone(),
            incarnation: self.incarnation,
            program: format!("{} ({})", config.program.name, config.program.variant),
            phase: context.phase().into(),
            step,
            steps: core.spec().steps(),
            epoch: context.epoch(),
            epochs: config.epochs,
            loss: last.map(|l| convert::named(&config.schema.named_losses(&l.loss))).unwrap_or_default(),
            learning_rate: last.map_or(0.0, |l| f64::from(l.learning_rate)),
            samples_per_second: last.map_or(0.0, |l| l.samples as f64 / self.step_seconds.max(1e-9)),
            seconds_left: context.seconds_left(),
            run_dir: self.directory.path().display().to_string(),
            workers: workers.collect(),
            workers_wanted: core.spec().workers as u32,
            test: self.last_test.as_ref().map(|t| convert::named(&t.numbers())).unwrap_or_default(),
        }
    }
}
