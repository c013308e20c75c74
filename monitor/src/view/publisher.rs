//! The view between the driver, which changes it, and the pages, which read it.
//!
//! The driver holds the lock for as long as a change takes, a page for as long as a copy of what is new takes; text
//! is made of the copy outside of the lock. So a page costs training next to nothing, however slow its reader is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tally_proto::span::Clock;
use tokio::sync::watch;

use super::state::{State, Update};
use super::time_breakdown::Seconds;
use super::{Cursor, View};

/// A view that is shared.
#[derive(Clone, Debug)]
pub struct ViewPublisher {
    view: Arc<Mutex<View>>,
    changed: watch::Sender<()>,
    clock: Clock,
}

impl ViewPublisher {
    /// Shares a view whose times are of `clock`.
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
        self.snapshot().0
    }

    /// How the wall time divides.
    #[must_use]
    pub fn seconds(&self) -> Seconds {
        self.view().seconds()
    }

    /// Everything, and a subscription to what comes after it.
    #[must_use]
    pub fn subscribe(&self) -> (State, Subscription) {
        let changes = self.changed.subscribe();
        let (state, cursor) = self.snapshot();
        (state, Subscription { publisher: self.clone(), changes, cursor, over: false })
    }

    /// The clock of the lanes does not follow the machine's, which can sleep or be set.
    fn snapshot(&self) -> (State, Cursor) {
        let (mut state, cursor) = self.view().state(self.clock.unix());
        state.live.now = Clock::wall();
        (state, cursor)
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader of a view, and how much it has read.
#[derive(Debug)]
pub struct Subscription {
    publisher: ViewPublisher,
    changes: watch::Receiver<()>,
    cursor: Cursor,
    over: bool,
}

impl Subscription {
    /// Waits for something new; `None` after the end of the run was read, or if the driver is gone.
    pub async fn next(&mut self) -> Option<Update> {
        if self.over || self.changes.changed().await.is_err() {
            return None;
        }
        let view = self.publisher.view();
        self.over = view.is_over();
        let mut update = view.update(self.publisher.clock.unix(), &mut self.cursor);
        update.live.now = Clock::wall();
        Some(update)
    }

    /// Waits before the next update, but not past the end of the run.
    pub async fn throttle(&mut self, most: Duration) {
        let mut changes = self.changes.clone();
        let over = async { while !self.publisher.view().is_over() && changes.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(most, over).await;
    }
}
