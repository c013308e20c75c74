//! A connection as its requests see it: who its peer is, and what the peer has become.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::connection_limiter::{ConnectionSlot, TrustLevel};
use super::connection_monitor::{ConnectionMonitor, MonitoredStream};

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Where it arrived.
    pub here: SocketAddr,
    certificate: AtomicBool,
    monitor: Arc<ConnectionMonitor>,
    slot: ConnectionSlot,
}

impl Connection {
    /// A connection with a slot among all.
    #[must_use]
    pub fn new(
        peer: SocketAddr,
        here: SocketAddr,
        monitor: Arc<ConnectionMonitor>,
        slot: ConnectionSlot,
    ) -> Arc<Self> {
        Arc::new(Self { peer, here, certificate: AtomicBool::new(false), monitor, slot })
    }

    /// The connection's stream, under watch.
    #[must_use]
    pub fn monitored<S>(&self, stream: S) -> MonitoredStream<S> {
        MonitoredStream::new(stream, self.monitor.clone())
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
    pub fn is_same_host(&self) -> bool {
        self.peer.ip().to_canonical() == self.here.ip().to_canonical()
    }

    /// A request that its peer may make begins, and makes the peer trusted so; it lasts until what is returned is
    /// dropped.
    #[must_use]
    pub fn request(self: &Arc<Self>, trust: TrustLevel) -> InFlightRequest {
        self.monitor.begin_request();
        self.slot.set_trust(trust);
        InFlightRequest(self.clone())
    }

    /// A worker has said hello: from now on it may send `bytes` more than before, to join.
    pub fn expect(&self, bytes: usize) {
        self.monitor.expect(bytes);
    }

    /// Its peer takes part: what it sends is bounded by the credits it is given.
    pub fn admit(&self) {
        self.monitor.admit();
        self.slot.set_trust(TrustLevel::Member);
    }
}

/// A request that is under way.
#[derive(Debug)]
pub struct InFlightRequest(Arc<Connection>);

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        if self.0.monitor.end_request() {
            self.0.slot.set_trust(TrustLevel::Known);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::super::connection_limiter::ConnectionLimiter;
    use super::super::connection_monitor::Rules;
    use super::*;

    fn connection(rules: Rules) -> (Arc<Connection>, MonitoredStream<DuplexStream>, DuplexStream) {
        let monitor = Arc::new(ConnectionMonitor::new(rules));
        let address: SocketAddr = ([10, 0, 0, 1], 1).into();
        let place = ConnectionLimiter::new("test", 10, 10).acquire(address.ip(), &monitor).unwrap();
        let connection = Connection::new(address, address, monitor, place);
        let (ours, theirs) = duplex(1024);
        (connection.clone(), connection.monitored(ours), theirs)
    }

    /// Waits for the end that the monitor makes, however long that takes.
    async fn end(stream: &mut MonitoredStream<DuplexStream>) -> String {
        loop {
            match stream.read(&mut [0; 100]).await {
                Ok(n) => assert!(n > 0, "it was closed by the peer"),
                Err(error) => return error.to_string(),
            }
        }
    }

    const QUICK: Rules = Rules {
        introduction: Duration::from_millis(40),
        idle: Duration::from_millis(40),
        stalled: Duration::from_millis(40),
        ..Rules::GRPC
    };

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
        let request = connection.request(TrustLevel::Known);
        let error = stream.write_all(&[0; 2000]).await.unwrap_err();
        assert_eq!(error.to_string(), "it took no answer");
        drop(request);
        let (connection, mut stream, _peer) = self::connection(QUICK);
        drop(connection.request(TrustLevel::Known));
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
        let request = connection.request(TrustLevel::Known);
        assert_eq!(take(200).await, Ok(200));
        drop(request);
        let request = connection.request(TrustLevel::Known);
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
        connection.monitor.evict();
        assert_eq!(end(&mut stream).await, "others needed its place");
    }
}
