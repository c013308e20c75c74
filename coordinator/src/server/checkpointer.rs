//! Writes checkpoints on a thread of its own, from immutable snapshots, so that training
//! does not wait for the disk (**CKPT-1**).
//!
//! One checkpoint is written at a time; if the next is due before the disk is done, the driver waits, because every
//! waiting snapshot would hold a copy of the model.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use tally_checkpoint::{self as checkpoint, CheckpointError, Meta};

use super::master_state::Snapshot;

/// The result of a job.
#[derive(Debug)]
pub struct Done {
    /// The checkpoint's step.
    pub step: u64,
    /// Where it is, or why it could not be written.
    pub result: Result<PathBuf, String>,
    /// When it was begun.
    pub from: Instant,
    /// When it was done.
    pub to: Instant,
}

#[derive(Debug)]
enum Job {
    Write(Box<Meta>, Snapshot),
    Best(u64),
}

/// The warnings that were given, so that each is given once and not with every checkpoint.
#[derive(Default)]
struct Warnings(BTreeSet<String>);

impl Warnings {
    fn once(&mut self, text: String) {
        if !self.0.contains(&text) {
            tracing::warn!("{text}");
            self.0.insert(text);
        }
    }

    /// Warns of a link that is a file or is not there at all.
    fn link(&mut self, name: &str, result: Result<Option<std::io::Error>, CheckpointError>) {
        match result {
            Ok(None) => {}
            Ok(Some(lacking)) => self.once(format!(
                "the file system makes no symbolic links ({lacking}): checkpoints/best and checkpoints/last are files that \
                 name a directory, which --checkpoint and --init follow"
            )),
            Err(error) => self.once(format!("cannot mark a checkpoint as the {name}: {error}")),
        }
    }
}

/// The writing thread.
#[derive(Debug)]
pub struct Checkpointer {
    jobs: Option<SyncSender<Job>>,
    done: Receiver<Done>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// Starts the thread for checkpoints under `root`, of which the `keep` newest and the
    /// best stay. `best` is the best so far.
    #[must_use]
    pub fn start(root: PathBuf, keep: usize, mut best: Option<u64>) -> Self {
        let (jobs, inbox) = sync_channel(0);
        let (outbox, done) = channel();
        let work = move || {
            let mut warnings = Warnings::default();
            for job in inbox {
                match job {
                    Job::Write(mut meta, snapshot) => {
                        let (step, from) = (meta.step, Instant::now());
                        let state = snapshot.state();
                        drop(snapshot);
                        meta.parameters_sha256 = meta.tensors.sha256(&state.parameters);
                        let result = checkpoint::write(&root, &meta, &state);
                        // A whole checkpoint counts even if it cannot be linked, or older ones cannot be removed.
                        if result.is_ok() {
                            warnings.link("last", checkpoint::link(&root, "last", step));
                            if let Err(error) = checkpoint::prune(&root, keep, best.as_slice()) {
                                warnings.once(format!("older checkpoints stay: {error}"));
                            }
                        }
                        let result = result.map_err(|error| error.to_string());
                        let _ = outbox.send(Done { step, result, from, to: Instant::now() });
                    }
                    Job::Best(step) => {
                        best = Some(step);
                        warnings.link("best", checkpoint::link(&root, "best", step));
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("checkpoints".into()).spawn(work).ok();
        Self { jobs: Some(jobs), done, thread }
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs
            && jobs.send(job).is_err()
        {
            tracing::error!("the thread that writes checkpoints has ended");
        }
    }

    /// Queues a checkpoint, to be written after the one before. The thread fills in the parameters' SHA-256.
    pub fn write(&self, meta: Meta, snapshot: Snapshot) {
        self.send(Job::Write(Box::new(meta), snapshot));
    }

    /// Marks a checkpoint as the best, once it is written.
    pub fn best(&self, step: u64) {
        self.send(Job::Best(step));
    }

    /// The jobs that were finished since the last call.
    pub fn poll(&self) -> Vec<Done> {
        self.done.try_iter().collect()
    }

    /// Waits for the last checkpoint and ends the thread.
    pub fn finish(&mut self) -> Vec<Done> {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.poll()
    }
}
