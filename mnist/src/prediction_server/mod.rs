//! Predictions of a run's newest checkpoint, for the dashboard.
//!
//! One thread computes all of them, one request after the other, at a low priority, so that training has precedence;
//! tokio's threads only wait for it. At most [`WAITING`] requests wait; one more is refused. The network is loaded at the
//! first request and again when there is a newer checkpoint, and dropped after [`IDLE`] without a request, so that a
//! dashboard that nobody uses costs no memory.

mod routes;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tally_worker::device::{BackendChoice, DeviceOptions, Precision};
use thiserror::Error;
use tokio::sync::oneshot;

use crate::data::MnistWithNumbers;
use crate::digit_image::{self, Bounds, Invert, PictureError};
use crate::predict::{PredictError, Prediction, Predictor};
use crate::sample_grid::{self, Grid, GridError};

/// The most requests that wait.
pub const WAITING: usize = 8;
/// How long a network is kept without a request.
pub const IDLE: Duration = Duration::from_secs(120);

/// Digits of the sample grid.
const TILES: usize = 24;
const COLUMNS: usize = 6;
/// Below the priority of training; the lowest is 19.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Why a request has no response.
#[derive(Debug, Error)]
pub enum PredictionError {
    /// The run has no checkpoint yet.
    #[error(
        "there is no checkpoint yet; ask again after the first epoch, or start the run with --checkpoint-every"
    )]
    NoCheckpoint,
    /// Too many requests wait.
    #[error("{WAITING} requests are waiting already; ask again in a second")]
    Busy,
    /// The coordinator is ending.
    #[error("the coordinator is ending; use `worker predict` instead")]
    Ending,
    /// The picture cannot be used.
    #[error("the picture cannot be used: {0}")]
    Picture(#[from] PictureError),
    /// The network or its checkpoint fails.
    #[error(transparent)]
    Predict(#[from] PredictError),
    /// The sample grid cannot be drawn.
    #[error(transparent)]
    Grid(#[from] GridError),
}

/// A prediction for a picture.
#[derive(Clone, Debug, Serialize)]
pub struct PredictResponse {
    /// The checkpoint's step.
    pub step: u64,
    /// The checkpoint's directory.
    pub checkpoint: String,
    /// The number of the request.
    pub number: u8,
    /// The prediction.
    #[serde(flatten)]
    pub prediction: Prediction,
    /// How the picture was prepared, as a text.
    pub read_as: String,
    /// The image that the network got: 784 pixels, row-major, 0 is background.
    pub pixels: Vec<u8>,
}

/// The sample grid, with the checkpoint's predictions once there is one.
#[derive(Clone, Debug)]
pub struct GridResponse {
    /// The checkpoint's step.
    pub step: Option<u64>,
    /// A PNG.
    pub png: Bytes,
}

type Reply<T> = oneshot::Sender<Result<T, PredictionError>>;

enum Request {
    Predict { picture: Bytes, number: u8, reply: Reply<PredictResponse> },
    Samples { reply: Reply<GridResponse> },
}

/// The server, as requests reach it. Clones share one thread, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct PredictionServer {
    requests: SyncSender<Request>,
}

impl PredictionServer {
    /// Starts the thread for the checkpoints under `root`; the sample grid shows samples of `test`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(root: PathBuf, test: MnistWithNumbers) -> std::io::Result<Self> {
        let (requests, inbox) = sync_channel(WAITING);
        let server = ServerThread { root, test, loaded: None, newest_tried: None, grid: None };
        std::thread::Builder::new().name("predictions".into()).spawn(move || {
            lower_priority();
            server.serve(&inbox);
        })?;
        Ok(Self { requests })
    }

    /// The newest checkpoint's prediction for a PNG or JPEG.
    ///
    /// # Errors
    /// [`PredictionError`].
    pub async fn predict(&self, picture: Bytes, number: u8) -> Result<PredictResponse, PredictionError> {
        self.send(|reply| Request::Predict { picture, number, reply }).await
    }

    /// The sample grid.
    ///
    /// # Errors
    /// [`PredictionError`].
    pub async fn samples(&self) -> Result<GridResponse, PredictionError> {
        self.send(|reply| Request::Samples { reply }).await
    }

    async fn send<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, PredictionError> {
        let (reply, response) = oneshot::channel();
        self.requests.try_send(request(reply)).map_err(|error| match error {
            TrySendError::Full(_) => PredictionError::Busy,
            TrySendError::Disconnected(_) => PredictionError::Ending,
        })?;
        response.await.map_err(|_| PredictionError::Ending)?
    }
}

/// Lowers the priority of the calling thread and of those that it starts. (On Linux priorities
/// belong to threads; elsewhere this would slow the whole process.)
fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!("predictions have the priority of training: {error}");
    }
}

/// The state of the thread.
struct ServerThread {
    root: PathBuf,
    test: MnistWithNumbers,
    loaded: Option<(Predictor, PathBuf)>,
    /// The newest checkpoint that was there when one was last loaded. If it was damaged, an older one is loaded, and the
    /// damaged one is not tried again.
    newest_tried: Option<u64>,
    grid: Option<GridResponse>,
}

impl ServerThread {
    fn serve(mut self, inbox: &Receiver<Request>) {
        loop {
            // Without a loaded network there is nothing to drop.
            let wait = if self.loaded.is_some() { IDLE } else { Duration::from_secs(u64::from(u32::MAX)) };
            match inbox.recv_timeout(wait) {
                // The client may have given up meanwhile.
                Ok(Request::Predict { reply, .. }) if reply.is_closed() => {}
                Ok(Request::Samples { reply }) if reply.is_closed() => {}
                Ok(Request::Predict { picture, number, reply }) => {
                    let _ = reply.send(self.predict(&picture, number));
                }
                Ok(Request::Samples { reply }) => {
                    let _ = reply.send(self.samples());
                }
                Err(RecvTimeoutError::Timeout) => (self.loaded, self.newest_tried) = (None, None),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// The network of the newest whole checkpoint, and the checkpoint's directory; `None` if there is none.
    fn newest(&mut self) -> Result<Option<&mut (Predictor, PathBuf)>, PredictionError> {
        let listed = tally_checkpoint::list(&self.root).map_err(PredictError::from)?;
        let newest = listed.last().map(|(step, _)| *step);
        if newest > self.newest_tried {
            let found = tally_checkpoint::newest_whole(&self.root, None).map_err(PredictError::from)?;
            for (step, why) in &found.skipped {
                tracing::warn!(step, "a checkpoint makes no predictions: {why}");
            }
            if let Some(checkpoint) = found.checkpoint {
                let path = tally_checkpoint::directory(&self.root, checkpoint.meta.step);
                // First free the memory of the old one.
                self.loaded = None;
                self.loaded = Some((Predictor::load(&path, checkpoint, &device())?, path));
            }
            self.newest_tried = newest;
        }
        Ok(self.loaded.as_mut())
    }

    fn predict(&mut self, picture: &[u8], number: u8) -> Result<PredictResponse, PredictionError> {
        let prepared =
            digit_image::prepare(&digit_image::decode(Cursor::new(picture), Bounds::REQUEST)?, Invert::Auto)?;
        let (predictor, path) = self.newest()?.ok_or(PredictionError::NoCheckpoint)?;
        let prediction = predictor.predict(&prepared.pixels, &[number])?.swap_remove(0);
        Ok(PredictResponse {
            step: predictor.meta().step,
            checkpoint: shown(path),
            number,
            prediction,
            read_as: prepared.preparation.to_string(),
            pixels: prepared.pixels.to_vec(),
        })
    }

    fn samples(&mut self) -> Result<GridResponse, PredictionError> {
        let test = self.test.clone();
        let newest = match self.newest() {
            // The synthetic model has checkpoints, but makes no predictions.
            Err(PredictionError::Predict(PredictError::Synthetic { .. })) => None,
            newest => newest?,
        };
        let step = newest.as_ref().map(|(predictor, _)| predictor.meta().step);
        if let Some(grid) = self.grid.clone().filter(|grid| grid.step == step) {
            return Ok(grid);
        }
        let predictor = self.loaded.as_mut().map(|(predictor, _)| predictor);
        let tiles = sample_grid::tiles(&test, "test", 0, TILES, predictor)?;
        let right = tiles.iter().filter(|tile| tile.right()).count();
        let subtitle = match step {
            Some(step) => format!(
                "predictions of step {step}: all three right for {right} of {}; a wrong one has a \u{2717} and a frame",
                tiles.len()
            ),
            None => "there is no checkpoint yet; its predictions will be shown here".into(),
        };
        let title = format!("MNIST test digits 0 to {}", tiles.len() - 1);
        let png = Grid { title, subtitle, columns: COLUMNS, tiles }.png()?.into();
        let grid = GridResponse { step, png };
        self.grid = Some(grid.clone());
        Ok(grid)
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// One thread of the CPU, even if the run computes on a GPU.
fn device() -> DeviceOptions {
    DeviceOptions { backend: BackendChoice::Cpu, device: 0, precision: Precision::F32, threads: Some(1) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
