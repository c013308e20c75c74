//! The journal as it grows: every line with the moment it was seen.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How often the file is looked at: the resolution of all times.
const EVERY: Duration = Duration::from_millis(1);

/// A line and when it was seen, in seconds from the watch's beginning.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When.
    pub at: f64,
    /// The line.
    pub line: Value,
}

impl Seen {
    /// Whether it is of this event.
    #[must_use]
    pub fn is(&self, event: &str) -> bool {
        self.line["event"] == event
    }

    /// Its step.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.line["step"].as_u64().unwrap_or(0)
    }
}

/// Watches a journal on a thread of its own until it is dropped.
#[derive(Debug)]
pub struct Watch {
    start: Instant,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to watch a file that may not be there yet.
    #[must_use]
    pub fn start(journal: &Path) -> Self {
        let start = Instant::now();
        let (seen, stop) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::<AtomicBool>::default());
        let (to, until, path) = (seen.clone(), stop.clone(), journal.to_owned());
        let thread = std::thread::spawn(move || {
            let mut tail = Tail { path, file: None, read: 0, start };
            while !until.load(Ordering::Relaxed) {
                let new = tail.read();
                if !new.is_empty() {
                    to.lock().unwrap_or_else(PoisonError::into_inner).extend(new);
                }
                std::thread::sleep(EVERY);
            }
        });
        Self { start, seen, stop, thread: Some(thread) }
    }

    /// Seconds since the beginning.
    #[must_use]
    pub fn now(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Everything so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.look(<[Seen]>::to_vec)
    }

    /// Looks at everything so far in place.
    pub fn look<T>(&self, at: impl FnOnce(&[Seen]) -> T) -> T {
        at(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The newest step, and when it was committed; 0 and the beginning if there is none.
    #[must_use]
    pub fn last_step(&self) -> (u64, f64) {
        self.look(|seen| seen.iter().rev().find(|s| s.is("step")).map_or((0, 0.0), |s| (s.step(), s.at)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A file that is read as it grows, in whole lines. A torn last line may be cut off again.
struct Tail {
    path: PathBuf,
    file: Option<File>,
    read: u64,
    start: Instant,
}

impl Tail {
    fn read(&mut self) -> Vec<Seen> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &self.file else { return Vec::new() };
        let length = file.metadata().map_or(0, |m| m.len());
        if length <= self.read {
            return Vec::new();
        }
        let mut text = vec![0; (length - self.read) as usize];
        if file.read_exact_at(&mut text, self.read).is_err() {
            return Vec::new();
        }
        let Some(end) = text.iter().rposition(|b| *b == b'\n') else { return Vec::new() };
        self.read += end as u64 + 1;
        let at = self.start.elapsed().as_secs_f64();
        let lines = text[..end].split(|b| *b == b'\n');
        // A line that is no JSON stays visible as null; the promises are checked on the file.
        lines.map(|line| Seen { at, line: serde_json::from_slice(line).unwrap_or_default() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn lines_are_seen_whole_and_once_though_a_torn_one_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.jsonl");
        let mut tail = Tail { path: path.clone(), file: None, read: 0, start: Instant::now() };
        assert!(tail.read().is_empty());
        let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        file.write_all(b"{\"event\":\"step\",\"step\":1}\n{\"event\":\"st").unwrap();
        let seen = tail.read();
        assert_eq!((seen.len(), seen[0].step()), (1, 1));
        file.set_len(26).unwrap();
        file.write_all(b"{\"event\":\"step\",\"step\":2}\n").unwrap();
        let seen = tail.read();
        assert_eq!((seen.len(), seen[0].step()), (1, 2));
        assert!(tail.read().is_empty());
    }
}
