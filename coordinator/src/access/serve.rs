//! The loop that serves a port: it accepts connections, speaks TLS, and passes allowed requests on.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::header::WWW_AUTHENTICATE;
use axum::http::{HeaderValue, Request, Response, StatusCode};
use axum::response::IntoResponse as _;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use metrics::counter;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tally_transport::tls::{self, Side};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt as _;
use tonic::Status;
use tower::ServiceExt as _;

use super::connection::{Connection, InFlightRequest};
use super::connection_limiter::{ConnectionLimiter, PER_ADDRESS, TrustLevel};
use super::connection_monitor::{ConnectionMonitor, Rules};
use super::credentials::{Credentials, LoadedCredentials};
use super::permissions::{self, Denied, Permission};

/// Streams of one connection at one time; a worker needs two.
const STREAMS: u32 = 16;
/// Bytes of a request's headers.
const HEADERS: u32 = 16 << 10;
/// Bytes of a request over HTTP; a picture to be answered is the largest.
const BODY: usize = 8 << 20;
/// How long they may take to come.
const BODY_TIME: Duration = Duration::from_secs(30);
/// How long the body of a refused request may take.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Requests with a body that are read at one time.
const BODIES: usize = 16;
/// How long strangers may stay when a port closes.
const LAST_WORD: Duration = Duration::from_millis(200);
/// Open files that are left for everything but connections.
const OTHER_FILES: u64 = 256;

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC, over HTTP/2.
    Grpc,
    /// HTTP/1.1, for browsers and Prometheus.
    Web,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Web => "http",
        }
    }
}

/// A port: what is there, and who may use it.
pub struct Port {
    protocol: Protocol,
    router: Router,
    credentials: Arc<Credentials>,
    limiter: Arc<ConnectionLimiter>,
    bodies: Semaphore,
}

impl Port {
    /// A port with at most `most` connections at one time.
    #[must_use]
    pub fn new(protocol: Protocol, router: Router, credentials: Arc<Credentials>, most: usize) -> Self {
        let limiter = ConnectionLimiter::new(protocol.name(), most, PER_ADDRESS);
        Self { protocol, router, credentials, limiter, bodies: Semaphore::new(BODIES) }
    }

    /// Serves a listener until `shutdown` is ready, and then until what is under way has ended.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let port = Arc::new(self);
        let graceful = GracefulShutdown::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut shutdown => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    tokio::spawn(port.clone().take(stream, peer, graceful.watcher()));
                }
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    tracing::warn!("cannot take a connection: {error}");
                    // Most likely there are no more files to open; some connection will end.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        let ended = graceful.shutdown();
        tokio::pin!(ended);
        // Strangers are not waited for longer than it takes to tell them.
        if tokio::time::timeout(LAST_WORD, &mut ended).await.is_err() {
            port.limiter.close();
            ended.await;
        }
    }

    async fn take(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, watcher: Watcher) {
        let Ok(here) = stream.local_addr() else { return };
        let rules = match self.protocol {
            Protocol::Grpc => Rules::GRPC,
            Protocol::Web => Rules::WEB,
        };
        let monitor = Arc::new(ConnectionMonitor::new(rules));
        let place = match self.limiter.acquire(peer.ip(), &monitor) {
            Ok(place) => place,
            Err(full) => return tracing::debug!("a connection from {peer} is not taken: {full:?}"),
        };
        let connection = Connection::new(peer, here, monitor, place);
        let _ = stream.set_nodelay(true);
        let stream = connection.monitored(stream);
        let loaded = self.credentials.current();
        let config = match self.protocol {
            Protocol::Grpc => loaded.grpc.clone(),
            Protocol::Web => loaded.web.clone(),
        };
        drop(loaded);
        let ended = match config {
            None => self.clone().speak(stream, connection, watcher).await,
            Some(config) => match TlsAcceptor::from(config).accept(stream).await {
                Ok(stream) => {
                    if stream.get_ref().1.peer_certificates().is_some() {
                        connection.has_certificate();
                    }
                    self.clone().speak(stream, connection, watcher).await
                }
                Err(error) => {
                    counter!("tally_tls_failures_total", "port" => self.protocol.name()).increment(1);
                    Err(tls::cause(&error, Side::Server).unwrap_or_else(|| error.to_string()).into())
                }
            },
        };
        if let Err(error) = ended {
            tracing::debug!("the connection from {peer} ended: {error}");
        }
    }

    async fn speak(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        connection: Arc<Connection>,
        watcher: Watcher,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let protocol = self.protocol;
        let service = service_fn(move |request| {
            let (port, connection) = (self.clone(), connection.clone());
            async move { Ok::<_, Infallible>(port.answer(request, connection).await) }
        });
        watcher.watch(builder(protocol).serve_connection(TokioIo::new(stream), service)).await
    }

    async fn answer(&self, mut request: Request<Incoming>, connection: Arc<Connection>) -> Response<Body> {
        let loaded = self.credentials.current();
        if let Err(denied) = self.check(&request, &connection, &loaded) {
            counter!("tally_requests_denied_total", "port" => self.protocol.name()).increment(1);
            tracing::debug!("a request from {} was denied: {denied:?}", connection.peer);
            if self.protocol == Protocol::Web {
                drain(request.into_body()).await;
            }
            return self.deny(denied);
        }
        let deed = self.deed(&request);
        // A connection that only asks for the coordinator's health stays a stranger.
        let underway = (deed != Permission::Open || loaded.is_open()).then(|| {
            let looks_on = self.protocol == Protocol::Grpc && deed != Permission::Train;
            connection.request(if looks_on { TrustLevel::Onlooker } else { TrustLevel::Known })
        });
        let request = match self.protocol {
            Protocol::Grpc => {
                request.extensions_mut().insert(connection);
                request.map(Body::new)
            }
            // Requests without a token have no body, and must not delay the bodies of others.
            Protocol::Web if deed == Permission::Open => request.map(|_| Body::empty()),
            Protocol::Web => match self.whole(request).await {
                Ok(request) => request,
                Err(status) => return status.into_response(),
            },
        };
        let Ok(response) = self.router.clone().oneshot(request).await;
        response.map(|body| Body::new(Tracked { body, _underway: underway }))
    }

    fn deed(&self, request: &Request<Incoming>) -> Permission {
        match self.protocol {
            Protocol::Grpc => permissions::grpc_permission(request.uri().path()),
            Protocol::Web => permissions::http_permission(request.uri().path()),
        }
    }

    fn check(
        &self,
        request: &Request<Incoming>,
        connection: &Connection,
        loaded: &Arc<LoadedCredentials>,
    ) -> Result<(), Denied> {
        let deed = self.deed(request);
        permissions::check(deed, loaded, connection.certificate(), request.headers())?;
        if self.protocol == Protocol::Web && deed != Permission::Open {
            permissions::check_site(request, loaded, connection.here.ip().to_canonical().is_loopback())?;
        }
        Ok(())
    }

    fn deny(&self, denied: Denied) -> Response<Body> {
        let words = denied.words();
        if self.protocol == Protocol::Grpc {
            return match denied {
                Denied::NoToken | Denied::WrongToken => Status::unauthenticated(words),
                _ => Status::permission_denied(words),
            }
            .into_http();
        }
        match denied {
            Denied::NoToken | Denied::WrongToken => {
                // The token is the password; browsers ask for it, and remember it for live updates.
                let ask = HeaderValue::from_static(
                    "Basic realm=\"Tally: the token is the password\", charset=\"UTF-8\"",
                );
                let words =
                    "this needs a token: as `Authorization: Bearer TOKEN`, or as the password of any user\n";
                (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, ask)], words).into_response()
            }
            Denied::Host => (StatusCode::MISDIRECTED_REQUEST, format!("{words}\n")).into_response(),
            _ => (StatusCode::FORBIDDEN, format!("{words}\n")).into_response(),
        }
    }

    /// A request whose body is here, so that nothing behind waits for a peer.
    async fn whole(&self, request: Request<Incoming>) -> Result<Request<Body>, StatusCode> {
        let (parts, body) = request.into_parts();
        if http_body::Body::is_end_stream(&body) {
            return Ok(Request::from_parts(parts, Body::empty()));
        }
        if http_body::Body::size_hint(&body).lower() > BODY as u64 {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        let _permit = self.bodies.try_acquire().map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
        let body = tokio::time::timeout(BODY_TIME, to_bytes(Body::new(body), BODY)).await;
        let body =
            body.map_err(|_| StatusCode::REQUEST_TIMEOUT)?.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?;
        Ok(Request::from_parts(parts, Body::from(body)))
    }
}

/// Reads what a refused request still sends, and drops it. A proxy that is cut off while it sends a body answers that
/// the gateway is bad, and not why the request was refused.
async fn drain(body: Incoming) {
    let mut data = Body::new(body).into_data_stream();
    let all = async {
        let mut left = BODY;
        while let Some(Ok(part)) = data.next().await
            && part.len() <= left
        {
            left -= part.len();
        }
    };
    // Whoever takes longer gets the answer, and a connection that ends.
    let _ = tokio::time::timeout(DRAIN_TIME, all).await;
}

/// Whether an error of `accept` is one of the connection that was to be taken, and not of the port: a
/// peer that resets its connections at once must not make others wait.
fn is_of_the_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn builder(protocol: Protocol) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    match protocol {
        Protocol::Grpc => {
            builder = builder.http2_only();
            builder
                .http2()
                .timer(TokioTimer::new())
                .initial_stream_window_size(8 << 20)
                .initial_connection_window_size(32 << 20)
                .max_frame_size(1 << 20)
                .keep_alive_interval(Duration::from_secs(5))
                .keep_alive_timeout(Duration::from_secs(10))
                .max_concurrent_streams(STREAMS)
                .max_header_list_size(HEADERS);
        }
        Protocol::Web => {
            builder = builder.http1_only();
            builder.http1().timer(TokioTimer::new()).max_buf_size(HEADERS as usize).half_close(false);
        }
    }
    builder
}

/// Serves gRPC on a stream that begins and ends in this process.
///
/// # Errors
/// If it breaks.
pub async fn serve_within(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let service =
        service_fn(move |request: Request<Incoming>| router.clone().oneshot(request.map(Body::new)));
    builder(Protocol::Grpc).serve_connection(TokioIo::new(stream), service).await
}

/// How many connections each of two ports can have, if `wanted` are wanted. A worker may need a second
/// file, for the memory that it shares. The process's limit is raised as far as it may be.
#[must_use]
pub fn room(wanted: u32) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let most = files.saturating_sub(OTHER_FILES).max(OTHER_FILES / 4) / 3;
    if most < u64::from(wanted) {
        tracing::info!("at most {most} connections on each port: the system allows {files} open files");
    }
    wanted.min(u32::try_from(most).unwrap_or(u32::MAX)) as usize
}

/// An answer that counts as under way until it is sent, or nobody takes it any more.
struct Tracked {
    body: Body,
    _underway: Option<InFlightRequest>,
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
