//! What waits to be sent to one worker.
//!
//! The queues take messages without waiting, since the driver must never wait for a slow
//! receiver; the bytes of the gradient queue are counted, so that a receiver that lags too
//! far is dropped instead of filling the coordinator's memory.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tally_proto::v1::gradient_down::Body;
use tally_proto::v1::{CoordinatorMessage, GradientDown};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::Stream;
use tonic::Status;

/// The sending end of a worker's control stream.
pub type Control = UnboundedSender<Result<CoordinatorMessage, Status>>;

/// The sending end of a worker's gradient stream.
#[derive(Clone, Debug)]
pub struct Bulk {
    queue: UnboundedSender<GradientDown>,
    bytes: Arc<AtomicUsize>,
}

/// The stream that tonic sends from.
#[derive(Debug)]
pub struct BulkStream {
    queue: UnboundedReceiver<GradientDown>,
    bytes: Arc<AtomicUsize>,
}

/// Both ends of a worker's gradient stream.
#[must_use]
pub fn bulk() -> (Bulk, BulkStream) {
    let (queue, receiver) = unbounded_channel();
    let bytes = Arc::new(AtomicUsize::new(0));
    (Bulk { queue, bytes: bytes.clone() }, BulkStream { queue: receiver, bytes })
}

fn weight(message: &GradientDown) -> usize {
    match &message.body {
        Some(Body::Reduced(reduced)) => reduced.data.len(),
        Some(Body::StateChunk(chunk)) => chunk.data.len(),
        _ => 0,
    }
}

impl Bulk {
    /// Queues a message and returns the bytes that now wait. A worker that is gone takes
    /// nothing; its end is told elsewhere.
    pub fn send(&self, message: GradientDown) -> usize {
        let weight = weight(&message);
        let waiting = self.bytes.fetch_add(weight, Ordering::Relaxed) + weight;
        let _ = self.queue.send(message);
        waiting
    }
}

impl Stream for BulkStream {
    type Item = Result<GradientDown, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.queue.poll_recv(context).map(|message| {
            message.map(|message| {
                self.bytes.fetch_sub(weight(&message), Ordering::Relaxed);
                Ok(message)
            })
        })
    }
}
