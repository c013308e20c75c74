//! The frames that wait for a link. They share their floats with what this worker keeps anyway.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use tally_proto::peer_frame::Header;
use tokio::sync::Notify;

use super::lock;

/// A header with its payload.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The header.
    pub header: Header,
    /// The floats, as they travel.
    pub data: Bytes,
}

/// The frames for one peer.
#[derive(Debug, Default)]
pub struct LinkQueue {
    frames: Mutex<VecDeque<Frame>>,
    filled: Notify,
}

impl LinkQueue {
    /// Appends a frame. `newest` is the attempt that was announced last: frames of attempts before the one before are of no use to
    /// anybody, and are dropped, so that a peer that does not read fills no memory.
    pub fn push(&self, frame: Frame, newest: u32) {
        let mut frames = lock(&self.frames);
        while frames.front().is_some_and(|old| old.header.attempt.saturating_add(1) < newest) {
            frames.pop_front();
        }
        frames.push_back(frame);
        drop(frames);
        self.filled.notify_one();
    }

    /// The next frame, if one waits.
    pub fn try_next(&self) -> Option<Frame> {
        lock(&self.frames).pop_front()
    }

    /// The next frame. There is one task that takes them.
    pub async fn next(&self) -> Frame {
        loop {
            if let Some(frame) = self.try_next() {
                return frame;
            }
            self.filled.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tally_proto::peer_frame::FrameKind;

    use super::*;

    #[test]
    fn frames_of_old_attempts_do_not_pile_up() {
        let queue = LinkQueue::default();
        for attempt in 1..100 {
            for index in 0..3 {
                let header = Header::of(FrameKind::Sum, (1, attempt), index, 0, &[]);
                queue.push(Frame { header, data: Bytes::new() }, attempt);
            }
        }
        let left: Vec<u32> = std::iter::from_fn(|| queue.try_next()).map(|f| f.header.attempt).collect();
        assert_eq!(left, [98, 98, 98, 99, 99, 99]);
    }
}
