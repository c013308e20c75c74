//! Files that are written beside a run (the trace, TensorBoard's events) are written by threads of their own. The run
//! does not wait for them while it goes on, and at its end only for a limited time.

use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The longest time that the end of a run waits for such a thread.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most items that may wait.
const MAX_QUEUED: usize = 1 << 12;

/// Waits for the end of a thread, and returns whether it came in time.
pub fn join_within(thread: &JoinHandle<()>, timeout: Duration) -> bool {
    let end = Instant::now() + timeout;
    while !thread.is_finished() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// A thread that writes items. Items for which there is no room are left out.
#[derive(Debug)]
pub struct BackgroundWriter<T> {
    items: Option<SyncSender<T>>,
    left_out: u64,
    thread: JoinHandle<()>,
    name: &'static str,
}

impl<T: Send + 'static> BackgroundWriter<T> {
    /// Starts a thread that gives each item to `write`. `name` is what people call the file.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(name: &'static str, mut write: impl FnMut(T) + Send + 'static) -> std::io::Result<Self> {
        let (items, inbox) = sync_channel::<T>(MAX_QUEUED);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            for item in inbox {
                write(item);
            }
        })?;
        Ok(Self { items: Some(items), left_out: 0, thread, name })
    }

    /// Queues an item.
    pub fn send(&mut self, item: T) {
        let sent = self.items.as_ref().map(|items| items.try_send(item));
        if matches!(sent, Some(Err(TrySendError::Full(_)))) {
            self.left_out += 1;
            if self.left_out == 1 {
                tracing::warn!(
                    "{} is not written as fast as the run goes on, and has gaps from here on",
                    self.name
                );
            }
        }
    }
}

impl<T> Drop for BackgroundWriter<T> {
    fn drop(&mut self) {
        self.items = None;
        if !join_within(&self.thread, CLOSE_TIMEOUT) {
            let seconds = CLOSE_TIMEOUT.as_secs();
            tracing::warn!("{} ends early: it could not be written within {seconds} s", self.name);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_run_does_not_wait_for_a_writer_that_is_stuck() {
        let (release, stuck) = channel::<()>();
        let (written, received) = channel();
        let mut writer = BackgroundWriter::start("a test", move |item: u64| {
            let _ = stuck.recv();
            let _ = written.send(item);
        })
        .unwrap();
        let items = MAX_QUEUED as u64 + 100;
        (0..items).for_each(|item| writer.send(item));
        assert!(writer.left_out >= 98, "{}", writer.left_out);
        drop(release);
        let left_out = writer.left_out;
        drop(writer);
        let received: Vec<u64> = received.iter().collect();
        let queued = items - left_out;
        assert_eq!((received[0], received.len() as u64), (0, queued), "what had room is written at the end");
    }
}
