//! The connection to a coordinator.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Once, PoisonError};
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

use crate::client::{Bearer, ClientAccess};
use crate::tls::{self, Side};

/// How long the other side may take to accept a connection, and then to send its first bytes.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a coordinator. Every call on it carries the token.
pub type Connection = InterceptedService<Channel, Bearer>;
/// A client of a coordinator.
pub type Client = ClusterClient<Connection>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not `HOST:PORT`.
    #[error("--connect {}: {reason}; give HOST:PORT, such as 10.0.0.7:50051", address.escape_debug())]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate, a key or the token cannot be used.
    #[error("{0:#}")]
    Access(anyhow::Error),
    /// Nothing answers there.
    #[error("{0}")]
    Unreachable(String),
    /// The peer speaks another protocol, or one side does not trust the other.
    #[error("{0}")]
    Incompatible(String),
}

/// The host of `HOST:PORT`.
///
/// # Errors
/// [`ConnectError::Address`] if it is not an address.
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

/// The endpoint of `HOST:PORT`. Its connector speaks TLS itself, if TLS is used.
///
/// # Errors
/// [`ConnectError::Address`] if it is not an address.
pub fn endpoint(address: &str, tls: bool) -> Result<Endpoint, ConnectError> {
    host(address)?;
    let wrong = |reason: String| ConnectError::Address { address: address.into(), reason };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| wrong(e.to_string()))?;
    // Proxies read the scheme of the requests.
    let endpoint = if tls {
        let origin = format!("https://{address}").parse::<Uri>().map_err(|e| wrong(e.to_string()))?;
        endpoint.origin(origin)
    } else {
        endpoint
    };
    Ok(endpoint
        .connect_timeout(TIMEOUT)
        // A stream takes a few chunks at once; the queues behind it are bounded by credits.
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(32 << 20)
        .max_frame_size(1 << 20)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true))
}

/// Connects, and waits for the peer's first bytes: they show whether it speaks TLS and HTTP/2, and whether it trusts this
/// side's certificate. Certificates and token are read each time, so that renewed ones are used.
///
/// # Errors
/// [`ConnectError`] says why there is no connection.
pub async fn connect(address: &str, access: &ClientAccess) -> Result<Connection, ConnectError> {
    static WARNED: Once = Once::new();
    let host = host(address)?;
    let tls = access.tls(host).map_err(ConnectError::Access)?;
    let bearer = access.bearer().map_err(ConnectError::Access)?;
    if access.exposes_token(host, &bearer) {
        WARNED.call_once(|| {
            tracing::warn!(
                "the token goes to {host} unencrypted, so whoever reads this network's traffic can use it; TLS keeps it secret \
                 (--tls-ca)"
            );
        });
    }
    let endpoint = endpoint(address, tls.is_some())?;
    let (first_read, first) = FirstRead::new();
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    let tls = tls.map(|(config, name)| (TlsConnector::from(Arc::new(config)), name));
    let dial = tower::service_fn(move |uri| {
        let (dialled, tls, first_read) = (http.call(uri), tls.clone(), first_read.clone());
        async move {
            let stream = dialled.await?.into_inner();
            let stream: Box<dyn Stream> = match tls {
                None => Box::new(stream),
                Some((tls, name)) => Box::new(tls.connect(name, stream).await?),
            };
            Ok::<_, Box<dyn Error + Send + Sync>>(TokioIo::new(first_read.watch(stream)))
        }
    });
    let channel = endpoint.connect_with_connector(dial).await.map_err(|error| unreachable(&error))?;
    // A peer that sends nothing for so long is judged by the first call.
    if let Ok(Ok(First::Failed(error))) = tokio::time::timeout(TIMEOUT, first).await {
        return Err(error);
    }
    Ok(InterceptedService::new(channel, bearer))
}

/// A connection error in words. Tonic's own text is "transport error"; the last cause says what happened, unless TLS
/// failed.
pub(crate) fn unreachable(error: &(dyn Error + 'static)) -> ConnectError {
    if let Some(cause) = tls::cause(error, Side::Client) {
        return ConnectError::Incompatible(cause);
    }
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    ConnectError::Unreachable(cause.to_string())
}

/// The byte stream under a connection, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The first read from the peer.
#[derive(Debug)]
enum First {
    /// It may be HTTP/2.
    Bytes,
    /// It is not HTTP/2, or nothing came.
    Failed(ConnectError),
}

/// Sends the result of the first read of the first connection to the task that connects.
#[derive(Clone)]
struct FirstRead(Arc<Mutex<Option<oneshot::Sender<First>>>>);

impl FirstRead {
    fn new() -> (Self, oneshot::Receiver<First>) {
        let (sender, first) = oneshot::channel();
        (Self(Arc::new(Mutex::new(Some(sender)))), first)
    }

    fn watch<S>(&self, stream: S) -> Watched<S> {
        let report = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        Watched { stream, report }
    }
}

/// A stream that reports its first read.
struct Watched<S> {
    stream: S,
    report: Option<oneshot::Sender<First>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if let Some(report) = self.report.take() {
            let new = &buf.filled()[before..];
            let first = match (&read, tls::instead_of_http2(new)) {
                (Err(error), _) => First::Failed(unreachable(error)),
                (Ok(()), Some(words)) => First::Failed(ConnectError::Incompatible(words.into())),
                (Ok(()), None) if new.is_empty() => First::Failed(ConnectError::Unreachable(
                    "it closed the connection before it sent anything".into(),
                )),
                _ => First::Bytes,
            };
            // The receiver is gone after the timeout.
            let _ = report.send(first);
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
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

    /// The error of connecting to a server that answers with `answer` and closes the connection.
    fn error_of(answer: &'static [u8], access: &ClientAccess) -> String {
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
    fn a_peer_that_speaks_another_protocol_is_named_with_the_remedy() {
        let plain = ClientAccess::default();
        // An alert, as TLS answers plain text.
        let tls = error_of(b"\x15\x03\x03\0\x02\x02\x0a", &plain);
        assert!(tls.contains("speaks TLS") && tls.contains("--tls-ca"), "{tls}");
        let web = error_of(b"HTTP/1.1 400 Bad Request\r\n\r\n", &plain);
        assert!(web.contains("HTTP/1") && web.contains("--http-listen"), "{web}");
        let silent = error_of(b"", &plain);
        assert!(silent.contains("closed the connection") || silent.contains("reset"), "{silent}");

        let root = tempfile::tempdir().unwrap();
        let ca = root.path().join("ca");
        std::fs::write(&ca, rcgen::generate_simple_self_signed(["localhost".into()]).unwrap().cert.pem())
            .unwrap();
        let access = ClientAccess { tls_ca: Some(ca), ..plain };
        let plain = error_of(b"\0\0\x12\x04\0\0\0\0\0", &access);
        assert!(plain.contains("does not speak TLS") && plain.contains("--tls-cert"), "{plain}");
    }
}
