//! What the run's newest checkpoint answers, for the dashboard.
//!
//! One thread of its own does all of it, one question after the other, at a low priority, so
//! that it takes from the training what is left over; tokio's threads only wait for it. At
//! most [`WAITING`] questions wait, and one more is refused. The network is loaded when it is
//! first asked, again when there is a newer checkpoint, and let go of after [`IDLE`] without a
//! question, so that nobody pays for a dashboard nobody looks at.

mod routes;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tally_data::Paired;
use tally_worker::cli::DeviceOptions;
use tally_worker::engine::backend::BackendChoice;
use tally_worker::engine::burn::Precision;
use tally_worker::picture::{self, Bounds, Invert, PictureError};
use tally_worker::predict::{Answer, PredictError, Predictor};
use thiserror::Error;
use tokio::sync::oneshot;

use crate::pictures::{self, Grid, GridError};

/// Questions that may wait.
pub const WAITING: usize = 8;
/// How long a network is kept that nobody asks.
pub const IDLE: Duration = Duration::from_secs(120);

/// Digits of the picture of the data.
const PICTURED: usize = 24;
const COLUMNS: usize = 6;
/// Lower than anything that trains; the scale ends at 19.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Why a question has no answer.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The run has no checkpoint yet.
    #[error(
        "there is no checkpoint yet; ask again after the first epoch, or start the run with --checkpoint-every"
    )]
    NoCheckpoint,
    /// Too many ask.
    #[error("{WAITING} questions are waiting already; ask again in a second")]
    Busy,
    /// The coordinator is ending.
    #[error("the coordinator is ending; ask `worker predict` instead")]
    Ending,
    /// The picture shows the network nothing.
    #[error("the picture cannot be used: {0}")]
    Picture(#[from] PictureError),
    /// The network or its checkpoint fails.
    #[error(transparent)]
    Predict(#[from] PredictError),
    /// The picture of the data cannot be made.
    #[error(transparent)]
    Grid(#[from] GridError),
}

/// An answer, with what it was given to.
#[derive(Clone, Debug, Serialize)]
pub struct Predicted {
    /// The step of the checkpoint that was asked.
    pub step: u64,
    /// Its directory.
    pub checkpoint: String,
    /// The number that was asked with.
    pub number: u8,
    /// What it answers.
    #[serde(flatten)]
    pub answer: Answer,
    /// What was found of the picture, in words.
    pub read_as: String,
    /// What the network saw: 784 pixels, row-major, 0 is background.
    pub pixels: Vec<u8>,
}

/// The picture of the data, with the checkpoint's answers once there is one.
#[derive(Clone, Debug)]
pub struct Pictured {
    /// The checkpoint's step.
    pub step: Option<u64>,
    /// A PNG.
    pub png: Bytes,
}

type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

enum Question {
    Predict { picture: Bytes, number: u8, reply: Reply<Predicted> },
    Samples { reply: Reply<Pictured> },
}

/// Where questions are asked. Clones ask the same thread, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct Predictions {
    questions: SyncSender<Question>,
}

impl Predictions {
    /// Starts the thread for the checkpoints under `root`; `test` is what is pictured.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(root: PathBuf, test: Paired) -> std::io::Result<Self> {
        let (questions, inbox) = sync_channel(WAITING);
        let desk = Desk { root, test, loaded: None, looked_at: None, pictured: None };
        std::thread::Builder::new().name("predictions".into()).spawn(move || {
            lower_priority();
            desk.serve(&inbox);
        })?;
        Ok(Self { questions })
    }

    /// What the newest checkpoint answers to a PNG or JPEG.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn predict(&self, picture: Bytes, number: u8) -> Result<Predicted, Refusal> {
        self.ask(|reply| Question::Predict { picture, number, reply }).await
    }

    /// The picture of the data.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn samples(&self) -> Result<Pictured, Refusal> {
        self.ask(|reply| Question::Samples { reply }).await
    }

    async fn ask<T>(&self, question: impl FnOnce(Reply<T>) -> Question) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.questions.try_send(question(reply)).map_err(|error| match error {
            TrySendError::Full(_) => Refusal::Busy,
            TrySendError::Disconnected(_) => Refusal::Ending,
        })?;
        answer.await.map_err(|_| Refusal::Ending)?
    }
}

/// The calling thread, and those it starts, give way to everything else. (On Linux priorities
/// belong to threads; elsewhere this would slow the whole process.)
fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!("predictions run at the training's priority: {error}");
    }
}

/// The thread's own.
struct Desk {
    root: PathBuf,
    test: Paired,
    loaded: Option<(Predictor, PathBuf)>,
    /// The newest checkpoint that was there when one was last loaded. It may have been damaged;
    /// then an older one is loaded, and it is not tried again.
    looked_at: Option<u64>,
    pictured: Option<Pictured>,
}

impl Desk {
    fn serve(mut self, inbox: &Receiver<Question>) {
        loop {
            // A thread that holds nothing need not wake up to let go of it.
            let wait = if self.loaded.is_some() { IDLE } else { Duration::from_secs(u64::from(u32::MAX)) };
            match inbox.recv_timeout(wait) {
                // Whoever asked may have given up meanwhile.
                Ok(Question::Predict { reply, .. }) if reply.is_closed() => {}
                Ok(Question::Samples { reply }) if reply.is_closed() => {}
                Ok(Question::Predict { picture, number, reply }) => {
                    let _ = reply.send(self.predict(&picture, number));
                }
                Ok(Question::Samples { reply }) => {
                    let _ = reply.send(self.samples());
                }
                Err(RecvTimeoutError::Timeout) => (self.loaded, self.looked_at) = (None, None),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// The network of the newest whole checkpoint, and where that is; none if there is none.
    fn newest(&mut self) -> Result<Option<&mut (Predictor, PathBuf)>, Refusal> {
        let listed = tally_checkpoint::list(&self.root).map_err(PredictError::from)?;
        let newest = listed.last().map(|(step, _)| *step);
        if newest > self.looked_at {
            let found = tally_checkpoint::newest_whole(&self.root, None).map_err(PredictError::from)?;
            for (step, why) in &found.skipped {
                tracing::warn!(step, "a checkpoint gives no answers: {why}");
            }
            if let Some(checkpoint) = found.checkpoint {
                let path = tally_checkpoint::directory(&self.root, checkpoint.meta.step);
                // The old one's memory first.
                self.loaded = None;
                self.loaded = Some((Predictor::load(&path, checkpoint, &device())?, path));
            }
            self.looked_at = newest;
        }
        Ok(self.loaded.as_mut())
    }

    fn predict(&mut self, picture: &[u8], number: u8) -> Result<Predicted, Refusal> {
        let prepared =
            picture::prepare(&picture::decode(Cursor::new(picture), Bounds::REQUEST)?, Invert::Auto)?;
        let (predictor, path) = self.newest()?.ok_or(Refusal::NoCheckpoint)?;
        let answer = predictor.answer(&prepared.pixels, &[number])?.swap_remove(0);
        Ok(Predicted {
            step: predictor.meta().step,
            checkpoint: shown(path),
            number,
            answer,
            read_as: prepared.how.to_string(),
            pixels: prepared.pixels.to_vec(),
        })
    }

    fn samples(&mut self) -> Result<Pictured, Refusal> {
        let test = self.test.clone();
        let newest = self.newest()?;
        let step = newest.as_ref().map(|(predictor, _)| predictor.meta().step);
        if let Some(pictured) = self.pictured.clone().filter(|pictured| pictured.step == step) {
            return Ok(pictured);
        }
        let predictor = self.loaded.as_mut().map(|(predictor, _)| predictor);
        let tiles = pictures::tiles(&test, "test", 0, PICTURED, predictor)?;
        let right = tiles.iter().filter(|tile| tile.right()).count();
        let subtitle = match step {
            Some(step) => format!(
                "answers of step {step}: all three right for {right} of {}; a wrong one has a \u{2717} and a frame",
                tiles.len()
            ),
            None => "there is no checkpoint yet; its answers will stand beside the truth".into(),
        };
        let title = format!("MNIST test digits 0 to {}", tiles.len() - 1);
        let png = Grid { title, subtitle, columns: COLUMNS, tiles }.png()?.into();
        let pictured = Pictured { step, png };
        self.pictured = Some(pictured.clone());
        Ok(pictured)
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// One thread of the CPU, whatever the run computes with.
fn device() -> DeviceOptions {
    DeviceOptions { backend: BackendChoice::Cpu, device: 0, precision: Precision::F32, threads: Some(1) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
