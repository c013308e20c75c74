//! The newest events of a run, numbered.

use std::collections::VecDeque;

use serde::Serialize;

/// Entries that are remembered.
const MOST: usize = 300;

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The coordinator was started.
    Start,
    /// A worker became ready.
    Join,
    /// A worker is gone.
    Lost,
    /// Microbatches of a lost or late worker were assigned to others.
    Takeover,
    /// A worker was past its deadline.
    Late,
    /// Gradients are added up in another way, or elsewhere.
    Reduction,
    /// An attempt was void.
    Abort,
    /// Two workers got different bits for one node.
    Audit,
    /// A checkpoint was written.
    Checkpoint,
    /// A test pass is done.
    Test,
    /// The run goes on from a state that a worker held.
    Adopt,
    /// Something that a person should look after.
    Warning,
    /// The run is over.
    End,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// Counts up from 1; an event has another number after a restart.
    pub id: u64,
    /// When, in seconds since 1970; `None` where the journal of an earlier start has no time.
    pub unix: Option<f64>,
    /// The newest committed step.
    pub step: u64,
    /// Its kind.
    pub kind: Kind,
    /// The name of the worker that it concerns.
    pub worker: Option<String>,
    /// The event in words.
    pub text: String,
}

/// The newest entries.
#[derive(Debug, Default)]
pub struct Log {
    entries: VecDeque<Entry>,
    last: u64,
}

impl Log {
    /// Appends an entry; its number is given here.
    pub fn push(&mut self, mut entry: Entry) {
        self.last += 1;
        entry.id = self.last;
        if self.entries.len() == MOST {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    /// The number of the newest entry.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The entries after number `seen`, oldest first.
    #[must_use]
    pub fn since(&self, seen: u64) -> Vec<Entry> {
        let first = self.entries.partition_point(|entry| entry.id <= seen);
        self.entries.range(first..).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_told_once() {
        let mut log = Log::default();
        for step in 0..MOST as u64 + 5 {
            let text = format!("step {step}");
            log.push(Entry { id: 0, unix: None, step, kind: Kind::Warning, worker: None, text });
        }
        let ids = |seen| log.since(seen).iter().map(|entry| entry.id).collect::<Vec<_>>();
        assert_eq!((ids(0).len(), ids(0)[0], log.last()), (MOST, 6, MOST as u64 + 5));
        assert_eq!(ids(MOST as u64 + 3), [MOST as u64 + 4, MOST as u64 + 5]);
        assert!(ids(log.last()).is_empty());
    }
}
