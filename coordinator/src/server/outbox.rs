//! The queues of messages to one worker.
//!
//! The queues take messages without waiting, because the driver must never wait for a slow receiver. Their bytes are
//! counted, so that a receiver that is too far behind is dropped before it fills the coordinator's memory. Dropping a
//! receiver empties its gradient queue at once, even if its connection is stuck; messages on the control stream are
//! still sent.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tally_proto::v1::gradient_down::Body;
use tally_proto::v1::{CoordinatorMessage, GradientDown};
use tokio_stream::Stream;
use tonic::Status;

/// A message that can wait in a queue.
pub trait Queued {
    /// Whether what waits is still sent when the sending end is dropped.
    const LAST_WORDS: bool;

    /// About how many bytes it holds.
    fn weight(&self) -> usize;
}

impl Queued for CoordinatorMessage {
    const LAST_WORDS: bool = true;

    fn weight(&self) -> usize {
        prost::Message::encoded_len(self)
    }
}

impl Queued for GradientDown {
    const LAST_WORDS: bool = false;

    fn weight(&self) -> usize {
        match &self.body {
            Some(Body::SumChunk(reduced)) => reduced.data.len(),
            Some(Body::StateChunk(chunk)) => chunk.data.len(),
            _ => 64,
        }
    }
}

#[derive(Debug)]
struct Queue<M> {
    messages: VecDeque<M>,
    bytes: usize,
    closed: bool,
    waker: Option<Waker>,
}

fn lock<M>(queue: &Mutex<Queue<M>>) -> MutexGuard<'_, Queue<M>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sending end of one of a worker's streams. The stream ends when it is dropped.
#[derive(Debug)]
pub struct Outbox<M: Queued>(Arc<Mutex<Queue<M>>>);

/// The stream that tonic sends from.
#[derive(Debug)]
pub struct OutboxStream<M>(Arc<Mutex<Queue<M>>>);

/// The sending end of a worker's control stream.
pub type Control = Outbox<CoordinatorMessage>;
/// The sending end of a worker's gradient stream.
pub type Bulk = Outbox<GradientDown>;

/// Both ends of a stream.
#[must_use]
pub fn outbox<M: Queued>() -> (Outbox<M>, OutboxStream<M>) {
    let queue = Queue { messages: VecDeque::new(), bytes: 0, closed: false, waker: None };
    let queue = Arc::new(Mutex::new(queue));
    (Outbox(queue.clone()), OutboxStream(queue))
}

impl<M: Queued> Outbox<M> {
    /// Queues a message and returns the bytes that now wait. Messages to a worker that is gone are dropped; its loss
    /// is reported elsewhere.
    pub fn send(&self, message: M) -> usize {
        let mut queue = lock(&self.0);
        if queue.closed {
            return 0;
        }
        queue.bytes += message.weight();
        queue.messages.push_back(message);
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
        queue.bytes
    }
}

impl<M: Queued> Drop for Outbox<M> {
    fn drop(&mut self) {
        let mut queue = lock(&self.0);
        queue.closed = true;
        if !M::LAST_WORDS {
            queue.messages.clear();
        }
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }
}

impl<M> Drop for OutboxStream<M> {
    fn drop(&mut self) {
        let mut queue = lock(&self.0);
        queue.closed = true;
        queue.messages.clear();
        queue.bytes = 0;
    }
}

impl<M: Queued> Stream for OutboxStream<M> {
    type Item = Result<M, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = lock(&self.0);
        match queue.messages.pop_front() {
            Some(message) => {
                queue.bytes -= message.weight();
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
    use tally_proto::v1::SumChunk;
    use tokio_stream::StreamExt as _;

    use super::*;

    fn chunk() -> GradientDown {
        let reduced = SumChunk { data: vec![0; 100].into(), ..SumChunk::default() };
        GradientDown { context: None, body: Some(Body::SumChunk(reduced)) }
    }

    #[tokio::test]
    async fn bytes_are_counted_and_a_dropped_worker_holds_none() {
        let (bulk, mut stream) = outbox::<GradientDown>();
        assert_eq!((bulk.send(chunk()), bulk.send(chunk())), (100, 200));
        assert!(stream.next().await.is_some());
        assert_eq!(bulk.send(chunk()), 200);
        drop(bulk);
        assert_eq!(lock(&stream.0).messages.len(), 0);
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn last_words_are_still_sent() {
        let (control, mut stream) = outbox::<CoordinatorMessage>();
        control.send(CoordinatorMessage::default());
        drop(control);
        assert!(stream.next().await.is_some());
        assert!(stream.next().await.is_none());
    }
}
