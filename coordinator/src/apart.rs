//! What is written beside a run (the trace, TensorBoard's events) is written by threads of its own, for which the run does
//! not wait: not while it goes on, and at its end no longer than they need where somebody takes what they write.

use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::run::journal::{Follower, Line};

/// How long the end of a run waits for the last of what is written beside it.
pub const LAST: Duration = Duration::from_secs(10);
/// Lines that may wait.
const WAITING: usize = 1 << 12;

/// Waits for the end of a thread, and returns whether it came.
pub fn end_within(thread: &JoinHandle<()>, most: Duration) -> bool {
    let end = Instant::now() + most;
    while !thread.is_finished() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// A follower of the journal on a thread of its own. Lines for which there is no room are left out.
#[derive(Debug)]
pub struct Apart {
    lines: Option<SyncSender<Line>>,
    left_out: u64,
    thread: JoinHandle<()>,
    name: &'static str,
}

impl Apart {
    /// Has `follower` follow on a thread that is called `name`.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(name: &'static str, mut follower: impl Follower + 'static) -> std::io::Result<Self> {
        let (lines, inbox) = sync_channel::<Line>(WAITING);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            for line in inbox {
                follower.line(&line);
            }
        })?;
        Ok(Self { lines: Some(lines), left_out: 0, thread, name })
    }
}

impl Follower for Apart {
    fn line(&mut self, line: &Line) {
        let full = self
            .lines
            .as_ref()
            .is_some_and(|lines| matches!(lines.try_send(line.clone()), Err(TrySendError::Full(_))));
        self.left_out += u64::from(full);
        if full && self.left_out == 1 {
            tracing::warn!(
                "{} is not written as fast as the run goes on, and has gaps from here on",
                self.name
            );
        }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.lines = None;
        if !end_within(&self.thread, LAST) {
            tracing::warn!("{} ends early: it is not written within {} s", self.name, LAST.as_secs());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    #[derive(Debug)]
    struct Stuck(Receiver<()>, std::sync::mpsc::Sender<u64>);

    impl Follower for Stuck {
        fn line(&mut self, line: &Line) {
            let _ = self.0.recv();
            if let Line::Checkpoint { step, .. } = line {
                let _ = self.1.send(*step);
            }
        }
    }

    #[test]
    fn a_run_does_not_wait_for_what_is_written_beside_it() {
        let (go, wait) = channel();
        let (tell, heard) = channel();
        let mut apart = Apart::start("a test", Stuck(wait, tell)).unwrap();
        let lines = WAITING as u64 + 100;
        for step in 0..lines {
            apart.line(&Line::Checkpoint { step, path: String::new() });
        }
        assert!(apart.left_out >= 98, "{}", apart.left_out);
        drop(go);
        let left_out = apart.left_out;
        drop(apart);
        let heard: Vec<u64> = heard.iter().collect();
        assert_eq!(
            (heard[0], heard.len() as u64),
            (0, lines - left_out),
            "what had room is whole at the end"
        );
    }
}
