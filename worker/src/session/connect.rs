//! The connection to a coordinator.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tally_proto::v1::cluster_client::ClusterClient;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::Service as _;

use super::link::Link;
use crate::access::client::{Bearer, ClientAccess};
use crate::access::tls::{self, Side};

/// How long the other side may take to be there, and then to say something.
const PATIENCE: Duration = Duration::from_secs(5);

/// A way to a coordinator, on which every call shows the token.
pub type Connection = InterceptedService<Channel, Bearer>;
/// A client of a coordinator.
pub type Client = ClusterClient<Connection>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is none.
    #[error("--connect {}: {reason}; give HOST:PORT, such as 10.0.0.7:50051", address.escape_debug())]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What was given to be shown, or to be believed, is not what it should be.
    #[error("{0:#}")]
    Access(anyhow::Error),
    /// Nobody answers there.
    #[error("{0}")]
    Unreachable(String),
    /// Who answers there speaks something else, or one of the two does not believe the other.
    #[error("{0}")]
    Mistaken(String),
}

/// The host of `HOST:PORT`.
///
/// # Errors
/// [`ConnectError::Address`] if it is no address.
pub fn host(address: &str) -> Result<&str, ConnectError> {
    let parts =
        address.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    match parts {
        Some((host, _)) if !address.contains('/') => Ok(host),
        _ => Err(ConnectError::Address {
            address: address.into(),
            reason: "it has no host, or no port from 0 to 65535".into(),
        }),
    }
}

/// How to reach `HOST:PORT`, by way of a connector that speaks TLS itself if it is to be spoken.
///
/// # Errors
/// [`ConnectError::Address`] if it is no address.
pub fn endpoint(address: &str, tls: bool) -> Result<Endpoint, ConnectError> {
    host(address)?;
    let wrong = |reason: String| ConnectError::Address { address: address.into(), reason };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| wrong(e.to_string()))?;
    // What is said inside of the connection, to whoever passes it on.
    let endpoint = if tls {
        let origin = format!("https://{address}").parse::<Uri>().map_err(|e| wrong(e.to_string()))?;
        endpoint.origin(origin)
    } else {
        endpoint
    };
    Ok(endpoint
        .connect_timeout(PATIENCE)
        // A stream takes a few chunks at once; the queues behind it are bounded by credits.
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(32 << 20)
        .max_frame_size(1 << 20)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true))
}

/// Connects, and waits for the first that the other side says: who does not speak TLS, or not gRPC, or does not
/// believe a certificate, is found by that. Certificates and token are read anew each time, so that they can be renewed.
///
/// # Errors
/// [`ConnectError`] in words.
pub async fn connect(address: &str, access: &ClientAccess) -> Result<Connection, ConnectError> {
    let tls = access.tls(host(address)?).map_err(ConnectError::Access)?;
    let bearer = access.bearer().map_err(ConnectError::Access)?;
    let endpoint = endpoint(address, tls.is_some())?;
    let (overheard, first) = Overheard::new();
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    let tls = tls.map(|(config, name)| (TlsConnector::from(Arc::new(config)), name));
    let dial = tower::service_fn(move |uri| {
        let (dialled, tls, overheard) = (http.call(uri), tls.clone(), overheard.clone());
        async move {
            let stream = dialled.await?.into_inner();
            let stream: Box<dyn Stream> = match tls {
                None => Box::new(stream),
                Some((tls, name)) => Box::new(tls.connect(name, stream).await?),
            };
            Ok::<_, Box<dyn Error + Send + Sync>>(TokioIo::new(overheard.listen(stream)))
        }
    });
    let channel = endpoint.connect_with_connector(dial).await.map_err(|error| unreachable(&error))?;
    // Whoever says nothing for so long is judged by the first call.
    if let Ok(Ok(First::Not(error))) = tokio::time::timeout(PATIENCE, first).await {
        return Err(error);
    }
    Ok(InterceptedService::new(channel, bearer))
}

/// The way to a coordinator in the same process: without a socket, so that nobody else is on it.
///
/// # Errors
/// [`ConnectError::Unreachable`] if the coordinator is gone.
pub async fn within(link: std::sync::Arc<dyn Link>) -> Result<Connection, ConnectError> {
    let endpoint = endpoint("local:1", false)?;
    let dial = move |_| {
        let link = link.clone();
        async move { link.dial().map(TokioIo::new) }
    };
    let channel = endpoint.connect_with_connector(tower::service_fn(dial)).await;
    let channel = channel.map_err(|error| unreachable(&error))?;
    Ok(InterceptedService::new(channel, Bearer::default()))
}

/// Tonic says "transport error"; what happened is the last cause, unless it is TLS that failed.
fn unreachable(error: &(dyn Error + 'static)) -> ConnectError {
    if let Some(words) = tls::cause(error, Side::Client) {
        return ConnectError::Mistaken(words);
    }
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    ConnectError::Unreachable(cause.to_string())
}

/// What carries a connection.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The first that came from the other side.
#[derive(Debug)]
enum First {
    /// It may be HTTP/2.
    Bytes,
    /// It is not, or nothing came.
    Not(ConnectError),
}

/// Who waits for the first that the other side says on the first connection.
#[derive(Clone)]
struct Overheard(Arc<Mutex<Option<oneshot::Sender<First>>>>);

impl Overheard {
    fn new() -> (Self, oneshot::Receiver<First>) {
        let (tell, first) = oneshot::channel();
        (Self(Arc::new(Mutex::new(Some(tell)))), first)
    }

    fn listen<S>(&self, stream: S) -> Listened<S> {
        let tell = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        Listened { stream, tell }
    }
}

/// A stream of which the first read is told.
struct Listened<S> {
    stream: S,
    tell: Option<oneshot::Sender<First>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Listened<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if let Some(tell) = self.tell.take() {
            let new = &buf.filled()[before..];
            let first = match (&read, tls::instead_of_http2(new)) {
                (Err(error), _) => First::Not(unreachable(error)),
                (Ok(()), Some(words)) => First::Not(ConnectError::Mistaken(words.into())),
                (Ok(()), None) if new.is_empty() => {
                    First::Not(ConnectError::Unreachable("it hung up before it had said anything".into()))
                }
                _ => First::Bytes,
            };
            // Nobody waits any more if it took too long.
            let _ = tell.send(first);
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listened<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        let endpoint = |address| endpoint(address, true);
        for good in ["localhost:50051", "10.0.0.7:1", "[::1]:50051"] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in ["", "localhost", "localhost:", ":50051", "a:99999", "http://a:1", "a b:1", "a:1\n"] {
            let error = endpoint(bad).unwrap_err();
            assert!(matches!(error, ConnectError::Address { .. }), "{bad}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    /// What is said of somebody who answers every connection with `answer`, and hangs up.
    fn told(answer: &'static [u8], access: &ClientAccess) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(answer);
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(connect(&address, access)).map(|_| ()).unwrap_err();
        server.join().unwrap();
        error.to_string()
    }

    #[test]
    fn who_speaks_something_else_is_told_with_what_to_do() {
        let plain = ClientAccess::default();
        // An alert, as TLS answers to who does not speak it.
        let tls = told(b"\x15\x03\x03\0\x02\x02\x0a", &plain);
        assert!(tls.contains("speaks TLS") && tls.contains("--tls-ca"), "{tls}");
        let web = told(b"HTTP/1.1 400 Bad Request\r\n\r\n", &plain);
        assert!(web.contains("HTTP/1") && web.contains("--http-listen"), "{web}");
        let silent = told(b"", &plain);
        assert!(silent.contains("hung up") || silent.contains("reset"), "{silent}");

        let root = tempfile::tempdir().unwrap();
        let ca = root.path().join("ca");
        std::fs::write(&ca, rcgen::generate_simple_self_signed(["localhost".into()]).unwrap().cert.pem())
            .unwrap();
        let access = ClientAccess { tls_ca: Some(ca), ..plain };
        let plain = told(b"\0\0\x12\x04\0\0\0\0\0", &access);
        assert!(plain.contains("does not speak TLS") && plain.contains("--tls-cert"), "{plain}");
    }
}
