//! What waits to be sent to one worker.
//!
//! The queues take messages without waiting, since the driver must never wait for a slow
//! receiver; the bytes of the gradient queue are counted, so that a receiver that lags too
//! far is dropped instead of filling the coordinator's memory. Dropping it empties its
//! queue at once, even if the connection never takes another byte.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tally_proto::v1::gradient_down::Body;
use tally_proto::v1::{CoordinatorMessage, GradientDown};
use tokio::sync::mpsc::UnboundedSender;
use tokio_stream::Stream;
use tonic::Status;

/// The sending end of a worker's control stream.
pub type Control = UnboundedSender<Result<CoordinatorMessage, Status>>;

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<GradientDown>,
    bytes: usize,
    closed: bool,
    waker: Option<Waker>,
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sending end of a worker's gradient stream. The stream ends when it is dropped.
#[derive(Debug)]
pub struct Bulk(Arc<Mutex<Queue>>);

/// The stream that tonic sends from.
#[derive(Debug)]
pub struct BulkStream(Arc<Mutex<Queue>>);

/// Both ends of a worker's gradient stream.
#[must_use]
pub fn bulk() -> (Bulk, BulkStream) {
    let queue = Arc::new(Mutex::new(Queue::default()));
    (Bulk(queue.clone()), BulkStream(queue))
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
        let mut queue = lock(&self.0);
        queue.bytes += weight(&message);
        queue.messages.push_back(message);
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
        queue.bytes
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        let mut queue = lock(&self.0);
        queue.closed = true;
        queue.messages.clear();
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }
}

impl Stream for BulkStream {
    type Item = Result<GradientDown, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = lock(&self.0);
        match queue.messages.pop_front() {
            Some(message) => {
                queue.bytes -= weight(&message);
                Poll::Ready(Some(Ok(message)))
            }
            None if queue.closed => Poll::Ready(None),
            None => {
                queue.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tally_proto::v1::Reduced;
    use tokio_stream::StreamExt as _;

    use super::*;

    fn chunk() -> GradientDown {
        let reduced = Reduced { index: 0, data: vec![0; 100].into() };
        GradientDown { stamp: None, body: Some(Body::Reduced(reduced)) }
    }

    #[tokio::test]
    async fn bytes_are_counted_and_a_dropped_worker_holds_none() {
        let (bulk, mut stream) = bulk();
        assert_eq!((bulk.send(chunk()), bulk.send(chunk())), (100, 200));
        assert!(stream.next().await.is_some());
        assert_eq!(bulk.send(chunk()), 200);
        drop(bulk);
        assert_eq!(lock(&stream.0).messages.len(), 0);
        assert!(stream.next().await.is_none());
    }
}
