//! What people and tools see of a run: the summary and the status.

use super::*;

impl Driver {
    pub(super) fn seconds_left(&self) -> f64 {
        let (step, _) = self.parts.core.committed();
        (self.parts.core.spec().steps().saturating_sub(step)) as f64 * self.step_seconds
    }

    pub(super) fn summary(&self, outcome: &RunOutcome) -> Summary {
        let (steps, digest): (u64, Digest) = self.parts.core.committed();
        let per_epoch = self.parts.core.spec().schedule.steps_per_epoch() as u64;
        let ledger = self.parts.core.ledger();
        let before = &self.parts.history;
        Summary {
            outcome: match outcome {
                RunOutcome::Done => "done",
                RunOutcome::Stopped => "stopped",
                RunOutcome::Diverged { .. } => "diverged",
            }
            .into(),
            steps,
            epochs: (steps / per_epoch) as u32,
            test: self.last_test.as_ref().map(TestSummary::from),
            parameters_sha256: self.parts.config.tensors.sha256(&self.parts.referee.snapshot().flat(false)),
            digest: digest.to_string(),
            wall_seconds: before.seconds + self.started.elapsed().as_secs_f64(),
            images_per_second: self.trained_samples as f64 / self.trained_seconds.max(f64::MIN_POSITIVE),
            median_seconds: self.times.medians(),
            samples: self.parts.core.samples_committed(),
            samples_lost: ledger.lost(),
            samples_duplicated: ledger.duplicated(),
            workers_joined: self.joined,
            workers_lost: self.lost,
            audits: self.parts.core.audits().equal + self.parts.core.audits().differed,
            audits_differed: self.parts.core.audits().differed,
        }
    }

    pub(super) fn status(&self) -> v1::StatusReply {
        let core = &self.parts.core;
        let (step, _) = core.committed();
        let last = self.last_step.as_ref();
        let workers = core.members().0.iter().map(|(&session, m)| v1::WorkerStatus {
            session,
            name: m.name.clone(),
            device: m.device.words.clone(),
            state: self.state_of(m).into(),
            threads: m.threads,
            step: m.confirmed.unwrap_or(0),
            leaves: m.leaves,
            seconds_per_sample: m.per_sample.unwrap_or(0.0),
            samples: m.samples,
        });
        let config = &self.parts.config;
        v1::StatusReply {
            run: config.run.clone(),
            incarnation: self.parts.incarnation,
            model: config.model.to_string(),
            phase: self.phase().into(),
            step,
            steps: core.spec().steps(),
            epoch: core.spec().schedule.position((step + 1).min(core.spec().steps())).0,
            epochs: config.epochs,
            loss: last.map(|l| l.loss.into()),
            learning_rate: last.map_or(0.0, |l| f64::from(l.learning_rate)),
            images_per_second: last.map_or(0.0, |l| l.samples as f64 / self.step_seconds.max(1e-9)),
            seconds_left: self.seconds_left(),
            run_dir: self.parts.directory.path().display().to_string(),
            workers: workers.collect(),
            workers_wanted: core.spec().workers as u32,
            test: self.last_test.as_ref().map(|t| v1::TestStatus {
                loss: t.loss,
                digit_accuracy: t.digit_accuracy,
                sum_accuracy: t.sum_accuracy,
                difference_accuracy: t.difference_accuracy,
                all_correct: t.all_correct,
            }),
        }
    }
}
