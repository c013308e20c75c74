//! A connection, watched from its first byte.
//!
//! A peer decides how fast it sends, how much it sends and whether it reads. In any case its connection ends
//! - 20 s after its beginning if it has not made a whole, allowed request by then: this covers an unfinished TLS
//!   handshake, a slow header, and a peer that only waits;
//! - a minute after its last request;
//! - a minute after it stopped reading what it is sent;
//! - when it has sent more than it may before it takes part: so the memory that an unknown peer can occupy is
//!   bounded, independently of HTTP's own windows.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a peer may do, and how long it may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// From the beginning to the first whole, allowed request.
    pub introduction: Duration,
    /// Without a request.
    pub idle: Duration,
    /// Without taking anything of what is there to be sent.
    pub stalled: Duration,
    /// Bytes it may send before its first allowed request is whole.
    pub stranger_bytes: u64,
    /// Bytes it may send while requests are under way, unless it is admitted as a worker.
    pub known_bytes: u64,
}

impl Rules {
    /// For gRPC. A request that is no worker's is small.
    pub const GRPC: Self = Self {
        introduction: Duration::from_secs(20),
        idle: Duration::from_secs(60),
        stalled: Duration::from_secs(60),
        stranger_bytes: 64 << 10,
        known_bytes: 128 << 10,
    };
    /// For HTTP. A request may have a picture.
    pub const WEB: Self = Self { known_bytes: 16 << 20, ..Self::GRPC };
}

impl Default for Rules {
    fn default() -> Self {
        Self::GRPC
    }
}

/// The state of a connection's monitor.
#[derive(Debug)]
pub struct ConnectionMonitor {
    rules: Rules,
    state: Mutex<State>,
    received: AtomicU64,
    allowance: AtomicU64,
    is_evicted: AtomicBool,
    wake: Notify,
}

#[derive(Debug)]
struct State {
    known: bool,
    member: bool,
    requests: usize,
    since: Instant,
    idle_since: Instant,
    blocked_since: Option<Instant>,
}

impl Default for ConnectionMonitor {
    fn default() -> Self {
        Self::new(Rules::default())
    }
}

impl ConnectionMonitor {
    /// A stranger, from now on.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        let now = Instant::now();
        let state = State {
            known: false,
            member: false,
            requests: 0,
            since: now,
            idle_since: now,
            blocked_since: None,
        };
        Self {
            rules,
            state: Mutex::new(state),
            received: AtomicU64::new(0),
            allowance: AtomicU64::new(rules.stranger_bytes),
            is_evicted: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection, so that another can have its slot.
    pub fn evict(&self) {
        self.is_evicted.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Whether it was told to make room.
    #[must_use]
    pub fn is_evicted(&self) -> bool {
        self.is_evicted.load(Ordering::Relaxed)
    }

    /// A request that the peer may make begins.
    pub(super) fn begin_request(&self) {
        let first = {
            let mut state = self.state();
            state.requests += 1;
            !std::mem::replace(&mut state.known, true)
        };
        if first {
            self.allowance.store(self.rules.known_bytes, Ordering::Relaxed);
        }
    }

    /// A request is over; true if no other is, and the peer took part.
    pub(super) fn end_request(&self) -> bool {
        let mut state = self.state();
        state.requests -= 1;
        if state.requests > 0 {
            return false;
        }
        state.idle_since = Instant::now();
        self.received.store(0, Ordering::Relaxed);
        self.allowance.store(self.rules.known_bytes, Ordering::Relaxed);
        std::mem::take(&mut state.member)
    }

    /// The peer may send `bytes` more than before.
    pub(super) fn expect(&self, bytes: usize) {
        self.allowance.fetch_max(self.rules.known_bytes + bytes as u64, Ordering::Relaxed);
    }

    /// The peer takes part: what it sends is bounded by the credits it is given.
    pub(super) fn admit(&self) {
        self.state().member = true;
        self.allowance.store(u64::MAX, Ordering::Relaxed);
    }

    fn received(&self, bytes: usize) -> io::Result<()> {
        let all = self.received.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        if all > self.allowance.load(Ordering::Relaxed) {
            return Err(ended("it sent more than it may"));
        }
        Ok(())
    }

    /// Why the connection is over, if it is.
    fn over(&self, now: Instant) -> Option<&'static str> {
        if self.is_evicted() {
            return Some("others needed its place");
        }
        let state = self.state();
        if !state.known && now >= state.since + self.rules.introduction {
            return Some("it made no request");
        }
        if state.known && state.requests == 0 && now >= state.idle_since + self.rules.idle {
            return Some("it was idle");
        }
        let blocked = state.blocked_since.is_some_and(|since| now >= since + self.rules.stalled);
        blocked.then_some("it took no answer")
    }

    /// Waits until the connection is over, and says why.
    async fn watch(self: Arc<Self>) -> &'static str {
        // Often enough for each of the rules, and rarely enough to cost nothing.
        let every = self.rules.introduction.min(self.rules.idle).min(self.rules.stalled) / 4;
        loop {
            if let Some(why) = self.over(Instant::now()) {
                return why;
            }
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = self.wake.notified() => {}
            }
        }
    }
}

fn ended(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, why)
}

/// A stream under watch. Its reads and writes fail once its connection is over.
pub struct MonitoredStream<S> {
    stream: S,
    monitor: Arc<ConnectionMonitor>,
    watch: Pin<Box<dyn Future<Output = &'static str> + Send>>,
    blocked: bool,
}

impl<S> MonitoredStream<S> {
    /// Watches a connection's stream.
    #[must_use]
    pub fn new(stream: S, monitor: Arc<ConnectionMonitor>) -> Self {
        Self { stream, watch: Box::pin(monitor.clone().watch()), monitor, blocked: false }
    }

    /// What is pending stays so, unless the connection is over.
    fn unless_over<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.watch.as_mut().poll(cx).map(|why| {
            // It is asked again by whoever reads and writes separately.
            self.watch = Box::pin(std::future::ready(why));
            Err(ended(why))
        })
    }

    fn wrote<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_pending() != self.blocked {
            self.blocked = polled.is_pending();
            self.monitor.state().blocked_since = self.blocked.then(Instant::now);
        }
        if self.blocked { self.unless_over(cx) } else { polled }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MonitoredStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Pending => self.unless_over(cx),
            Poll::Ready(Ok(())) => Poll::Ready(self.monitor.received(buffer.filled().len() - before)),
            failed => failed,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MonitoredStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.wrote(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_shutdown(cx) {
            Poll::Pending => self.unless_over(cx),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn trust_1_a_connection_is_over_when_the_rules_say_so() {
        let (monitor, start) = (ConnectionMonitor::new(Rules::GRPC), Instant::now());
        assert_eq!(monitor.over(start + 19 * SECOND), None);
        assert_eq!(monitor.over(start + 20 * SECOND), Some("it made no request"));
        monitor.begin_request();
        assert_eq!(monitor.over(start + 3600 * SECOND), None, "a request is under way");
        monitor.state().blocked_since = Some(start);
        assert_eq!(monitor.over(start + 59 * SECOND), None);
        assert_eq!(monitor.over(start + 60 * SECOND), Some("it took no answer"));
        monitor.state().blocked_since = None;
        assert!(!monitor.end_request(), "it took no part");
        assert_eq!(monitor.over(Instant::now() + 59 * SECOND), None);
        assert_eq!(monitor.over(Instant::now() + 60 * SECOND), Some("it was idle"));
        monitor.evict();
        assert_eq!(monitor.over(start), Some("others needed its place"));
    }
}
