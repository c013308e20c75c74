//! A connection, watched from its first byte.
//!
//! A peer decides how fast it speaks, how much it sends and whether it listens. Whatever it
//! decides, its connection ends
//! - 20 s after its beginning if it has not made a whole, allowed request by then: so a TLS handshake that
//!   does not go on, a header that drips, and a peer that only waits are all one case;
//! - a minute after its last request;
//! - a minute after it stopped taking what it is sent;
//! - when it has sent more than it may before it takes part: what a peer can make the
//!   coordinator hold is bounded before it is known, whatever HTTP's own windows would allow.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::crowd::{Place, Standing};

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
    /// Bytes it may send while requests are under way, unless it is [admitted](Connection::admit).
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

/// What the watch over a connection knows.
#[derive(Debug)]
pub struct Visitor {
    rules: Rules,
    state: Mutex<State>,
    received: AtomicU64,
    allowance: AtomicU64,
    must_go: AtomicBool,
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

impl Default for Visitor {
    fn default() -> Self {
        Self::new(Rules::default())
    }
}

impl Visitor {
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
            must_go: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection, so that another can have its place.
    pub fn make_room(&self) {
        self.must_go.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Whether it was told to make room.
    #[must_use]
    pub fn must_go(&self) -> bool {
        self.must_go.load(Ordering::Relaxed)
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
        if self.must_go() {
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

/// A connection as its requests see it.
#[derive(Debug)]
pub struct Connection {
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Where it arrived.
    pub here: SocketAddr,
    certificate: AtomicBool,
    visitor: Arc<Visitor>,
    place: Place,
}

impl Connection {
    /// A connection with a place among all.
    #[must_use]
    pub fn new(peer: SocketAddr, here: SocketAddr, visitor: Arc<Visitor>, place: Place) -> Arc<Self> {
        Arc::new(Self { peer, here, certificate: AtomicBool::new(false), visitor, place })
    }

    /// Its peer has shown a certificate that was found good.
    pub fn has_certificate(&self) {
        self.certificate.store(true, Ordering::Relaxed);
    }

    /// Whether it has.
    #[must_use]
    pub fn certificate(&self) -> bool {
        self.certificate.load(Ordering::Relaxed)
    }

    /// Whether it begins and ends at one address: most likely its peer is on this machine.
    #[must_use]
    pub fn is_near(&self) -> bool {
        self.peer.ip().to_canonical() == self.here.ip().to_canonical()
    }

    /// A request that its peer may make begins, and gives it this standing; it lasts until what is returned is
    /// dropped.
    #[must_use]
    pub fn request(self: &Arc<Self>, standing: Standing) -> Underway {
        let first = {
            let mut state = self.visitor.state();
            state.requests += 1;
            !std::mem::replace(&mut state.known, true)
        };
        if first {
            self.visitor.allowance.store(self.visitor.rules.known_bytes, Ordering::Relaxed);
        }
        self.place.stand(standing);
        Underway(self.clone())
    }

    /// A worker has said hello: from now on it may send `bytes` more than before, to come in.
    pub fn expect(&self, bytes: usize) {
        self.visitor.allowance.fetch_max(self.visitor.rules.known_bytes + bytes as u64, Ordering::Relaxed);
    }

    /// Its peer takes part: what it sends is bounded by the credits it is given.
    pub fn admit(&self) {
        self.visitor.state().member = true;
        self.visitor.allowance.store(u64::MAX, Ordering::Relaxed);
        self.place.stand(Standing::Member);
    }
}

/// A request that is under way.
#[derive(Debug)]
pub struct Underway(Arc<Connection>);

impl Drop for Underway {
    fn drop(&mut self) {
        let Connection { visitor, place, .. } = &*self.0;
        let mut state = visitor.state();
        state.requests -= 1;
        if state.requests == 0 {
            state.idle_since = Instant::now();
            visitor.received.store(0, Ordering::Relaxed);
            visitor.allowance.store(visitor.rules.known_bytes, Ordering::Relaxed);
            if std::mem::take(&mut state.member) {
                place.stand(Standing::Known);
            }
        }
    }
}

/// A stream under watch. Its reads and writes fail once its connection is over.
pub struct Guarded<S> {
    stream: S,
    visitor: Arc<Visitor>,
    watch: Pin<Box<dyn Future<Output = &'static str> + Send>>,
    blocked: bool,
}

impl<S> Guarded<S> {
    /// Watches a connection's stream.
    #[must_use]
    pub fn new(stream: S, connection: &Connection) -> Self {
        let visitor = connection.visitor.clone();
        Self { stream, watch: Box::pin(visitor.clone().watch()), visitor, blocked: false }
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
            self.visitor.state().blocked_since = self.blocked.then(Instant::now);
        }
        if self.blocked { self.unless_over(cx) } else { polled }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Pending => self.unless_over(cx),
            Poll::Ready(Ok(())) => Poll::Ready(self.visitor.received(buffer.filled().len() - before)),
            failed => failed,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
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
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::super::crowd::Crowd;
    use super::*;

    fn connection(rules: Rules) -> (Arc<Connection>, Guarded<DuplexStream>, DuplexStream) {
        let visitor = Arc::new(Visitor::new(rules));
        let address: SocketAddr = ([10, 0, 0, 1], 1).into();
        let place = Crowd::new("test", 10, 10).enter(address.ip(), &visitor).unwrap();
        let connection = Connection::new(address, address, visitor, place);
        let (ours, theirs) = duplex(1024);
        (connection.clone(), Guarded::new(ours, &connection), theirs)
    }

    /// Waits for the end that the guard makes, however long that takes.
    async fn end(stream: &mut Guarded<DuplexStream>) -> String {
        loop {
            match stream.read(&mut [0; 100]).await {
                Ok(n) => assert!(n > 0, "it was closed by the peer"),
                Err(error) => return error.to_string(),
            }
        }
    }

    const SECOND: Duration = Duration::from_secs(1);
    const QUICK: Rules = Rules {
        introduction: Duration::from_millis(40),
        idle: Duration::from_millis(40),
        stalled: Duration::from_millis(40),
        ..Rules::GRPC
    };

    #[tokio::test]
    async fn trust_1_a_connection_is_over_when_the_rules_say_so() {
        let (connection, ..) = connection(Rules::GRPC);
        let (visitor, start) = (&connection.visitor, Instant::now());
        assert_eq!(visitor.over(start + 19 * SECOND), None);
        assert_eq!(visitor.over(start + 20 * SECOND), Some("it made no request"));
        let request = connection.request(Standing::Known);
        assert_eq!(visitor.over(start + 3600 * SECOND), None, "a request is under way");
        visitor.state().blocked_since = Some(start);
        assert_eq!(visitor.over(start + 59 * SECOND), None);
        assert_eq!(visitor.over(start + 60 * SECOND), Some("it took no answer"));
        visitor.state().blocked_since = None;
        drop(request);
        assert_eq!(visitor.over(Instant::now() + 59 * SECOND), None);
        assert_eq!(visitor.over(Instant::now() + 60 * SECOND), Some("it was idle"));
        visitor.make_room();
        assert_eq!(visitor.over(start), Some("others needed its place"));
    }

    #[tokio::test]
    async fn trust_1_who_makes_no_request_goes_whether_silent_or_dripping() {
        for drips in [false, true] {
            let (_connection, mut stream, mut peer) = connection(QUICK);
            let drip = tokio::spawn(async move {
                while drips && peer.write_all(b"x").await.is_ok() {
                    tokio::task::yield_now().await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                std::future::pending::<()>().await;
            });
            assert_eq!(end(&mut stream).await, "it made no request");
            drip.abort();
        }
    }

    #[tokio::test]
    async fn trust_1_who_is_idle_or_takes_no_answer_goes() {
        let (connection, mut stream, _peer) = connection(QUICK);
        let request = connection.request(Standing::Known);
        let error = stream.write_all(&[0; 2000]).await.unwrap_err();
        assert_eq!(error.to_string(), "it took no answer");
        drop(request);
        let (connection, mut stream, _peer) = self::connection(QUICK);
        drop(connection.request(Standing::Known));
        assert_eq!(end(&mut stream).await, "it was idle");
    }

    #[tokio::test]
    async fn trust_1_what_a_peer_sends_is_bounded_until_it_takes_part() {
        let rules = Rules { stranger_bytes: 100, known_bytes: 300, ..Rules::GRPC };
        let (connection, mut stream, mut peer) = connection(rules);
        let mut buffer = [0; 1000];
        let mut take = async |bytes: usize| {
            peer.write_all(&vec![0; bytes]).await.unwrap();
            stream.read(&mut buffer).await.map_err(|e| e.to_string())
        };
        assert_eq!(take(100).await, Ok(100));
        let request = connection.request(Standing::Known);
        assert_eq!(take(200).await, Ok(200));
        drop(request);
        let request = connection.request(Standing::Known);
        assert_eq!(take(300).await, Ok(300));
        connection.expect(50);
        assert_eq!(take(50).await, Ok(50));
        connection.admit();
        for _ in 0..100 {
            assert_eq!(take(1000).await, Ok(1000));
        }
        // One that has left is as it was before it came.
        drop(request);
        assert_eq!(take(301).await, Err("it sent more than it may".into()));
    }

    #[tokio::test]
    async fn trust_1_who_must_make_room_goes_at_once() {
        let (connection, mut stream, _peer) = connection(Rules::GRPC);
        connection.visitor.make_room();
        assert_eq!(end(&mut stream).await, "others needed its place");
    }
}
