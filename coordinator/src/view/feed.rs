//! The view between the driver, who changes it, and whoever looks.
//!
//! The driver holds the lock for as long as a change takes, a reader for as long as a copy
//! of what is new takes; text is made of it outside. So a page costs training next to nothing,
//! however slow its reader is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use tally_proto::span::Clock;
use tokio::sync::watch;

use super::spent::Seconds;
use super::state::{State, Update};
use super::{Cursor, View};

/// A view that is shared.
#[derive(Clone, Debug)]
pub struct Feed {
    view: Arc<Mutex<View>>,
    changed: watch::Sender<()>,
    clock: Clock,
}

impl Feed {
    /// Shares a view.
    #[must_use]
    pub fn new(view: View, clock: Clock) -> Self {
        Self { view: Arc::new(Mutex::new(view)), changed: watch::Sender::new(()), clock }
    }

    /// The clock that its times are of.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Changes the view.
    pub fn change(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.view());
        self.changed.send_replace(());
    }

    /// Everything.
    #[must_use]
    pub fn state(&self) -> State {
        self.told().0
    }

    /// Where the seconds went.
    #[must_use]
    pub fn seconds(&self) -> Seconds {
        self.view().seconds()
    }

    /// Everything, and a reader for what comes after it.
    #[must_use]
    pub fn follow(&self) -> (State, Reader) {
        let changes = self.changed.subscribe();
        let (state, cursor) = self.told();
        (state, Reader { feed: self.clone(), changes, cursor, over: false })
    }

    /// A laptop that slept, or a machine whose clock was set, has another time than the clock of the lanes.
    fn told(&self) -> (State, Cursor) {
        let (mut state, cursor) = self.view().state(self.clock.unix());
        state.moving.now = Clock::wall();
        (state, cursor)
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who looks.
#[derive(Debug)]
pub struct Reader {
    feed: Feed,
    changes: watch::Receiver<()>,
    cursor: Cursor,
    over: bool,
}

impl Reader {
    /// Waits for something new; `None` once the end of the run was told, or the driver is gone.
    pub async fn next(&mut self) -> Option<Update> {
        if self.over || self.changes.changed().await.is_err() {
            return None;
        }
        let view = self.feed.view();
        self.over = view.is_over();
        let mut update = view.update(self.feed.clock.unix(), &mut self.cursor);
        update.moving.now = Clock::wall();
        Some(update)
    }

    /// Rests before the next update, but not past the end of the run.
    pub async fn rest(&mut self, most: Duration) {
        let mut changes = self.changes.clone();
        let over = async { while !self.feed.view().is_over() && changes.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(most, over).await;
    }
}
