//! The gRPC service: what workers send becomes inputs of the driver, after a first check.
//!
//! Nothing is decided here. A message that is not well-formed ends the worker's session
//! with an error in words (**TRUST-1**); floats are copied out of their message, or out of the
//! memory that is shared with a worker on the same machine, and
//! scanned for NaN and infinity on the threads that receive them.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::time::Instant;

use axum::Router;
use tally_numerics::digest::Digest;
use tally_numerics::norm::first_non_finite;
use tally_numerics::tree::Node;
use tally_numerics::wire::WireDtype;
use tally_numerics::{CREDIT_WINDOW, chunk_range};
use tally_proto::segment::Segment;
use tally_proto::span;
use tally_proto::v1::cluster_server::Cluster;
use tally_proto::v1::{self, GradientUp, WorkerMessage, gradient_up, worker_message};
use tally_proto::{MAX_FROM_WORKER, convert, floats};
use tally_transport::local::{Down, LocalTransport};
use tokio::io::DuplexStream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::input::{ConnectionEnds, Hello, Input};
use super::outbox::{OutboxStream, outbox};
use super::status_cache::StatusCache;
use super::versions::Versions;
use crate::access::connection::Connection;
use crate::access::join_rate_limiter::JoinRateLimiter;
use crate::access::serve::serve_within;
use tally_core::cluster::{DeviceInfo, Session};
use tally_core::events::{AttemptId, Event, Receipt};
use tally_proto::pool::{Chunk, Pool};

/// How long a stream may be without its first message.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// Bytes on their way between the coordinator and a local worker.
const PIPE: usize = 1 << 20;

/// A worker holds its committed state and the one before.
const MOST_HELD: usize = 2;

/// Chunks that a worker on this machine may have in shared memory: as many as credits allow for a node, and as many
/// again that wait for credits.
const SLOTS: u32 = 2 * CREDIT_WINDOW as u32;

/// How long what workers send is.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Elements of a gradient.
    pub gradient: usize,
    /// Elements of each of a state's vectors.
    pub state: usize,
    /// Parts of the loss.
    pub losses: usize,
}

/// The state that every handler needs.
#[derive(Clone, Debug)]
pub struct Service {
    run: u64,
    incarnation: u64,
    sizes: Sizes,
    dtype: WireDtype,
    inputs: mpsc::Sender<Input>,
    pool: Pool,
    sessions: Arc<AtomicU64>,
    joins: Arc<JoinRateLimiter>,
    versions: Versions,
    status_cache: Arc<StatusCache>,
    /// What was offered to workers of this machine that have not opened their gradient stream.
    memory: Arc<Mutex<HashMap<Session, Segment>>>,
}

impl Service {
    /// A service that feeds `inputs`; gradients travel as `dtype`.
    #[must_use]
    pub fn new(
        (run, incarnation): (u64, u64),
        sizes: Sizes,
        dtype: WireDtype,
        inputs: mpsc::Sender<Input>,
        pool: Pool,
    ) -> Self {
        let sessions = Arc::new(AtomicU64::new(1));
        Self {
            run,
            incarnation,
            sizes,
            dtype,
            inputs,
            pool,
            sessions,
            joins: Arc::default(),
            versions: Versions::default(),
            status_cache: Arc::default(),
            memory: Arc::default(),
        }
    }

    /// A session that nobody can guess, and that is greater than all before it.
    fn new_session(&self) -> Session {
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), self.run);
        self.sessions.fetch_add(1, Ordering::Relaxed) << 40 | random >> 24
    }

    async fn input(&self, input: Input) -> Result<(), Status> {
        self.inputs.send(input).await.map_err(|_| Status::unavailable("the run is over"))
    }

    fn check(&self, context: Option<v1::MessageContext>, session: Session) -> Result<AttemptId, String> {
        let context = context.ok_or("a message without a context")?;
        if (context.run, context.incarnation) != (self.run, self.incarnation) {
            return Err("a message of another run or incarnation".into());
        }
        if context.session != session {
            return Err("a message of another session".into());
        }
        Ok(AttemptId { session, step: context.step, attempt: context.attempt })
    }

    /// What a message tells, and before it what the worker did when.
    fn control_inputs(
        &self,
        session: Session,
        mut message: WorkerMessage,
    ) -> Result<(Option<Input>, Input), String> {
        use worker_message::Body;
        let from = self.check(message.context, session)?;
        let told = match &mut message.body {
            Some(Body::Committed(m)) => std::mem::take(&mut m.spans),
            Some(Body::Evaluated(m)) => std::mem::take(&mut m.spans),
            _ => Vec::new(),
        };
        let spans = span::spans(&told).map_err(|e| e.to_string())?;
        let (step, arrived) = (from.step, Instant::now());
        let spans = (!spans.is_empty()).then_some(Input::Spans { session, step, spans, arrived });
        Ok((spans, self.control_input(from, message)?))
    }

    fn control_input(&self, from: AttemptId, message: WorkerMessage) -> Result<Input, String> {
        use worker_message::Body;
        let AttemptId { session, step, .. } = from;
        Ok(match message.body.ok_or("an empty message")? {
            Body::Hello(_) => return Err("a second hello".into()),
            Body::ModelManifest(mut offer) => {
                let peer = offer.peer.take();
                // Other workers are sent it.
                if peer.as_ref().is_some_and(|peer| {
                    peer.address.len() > 256 || peer.certificate.len() > 4096 || peer.machine.len() > 64
                }) {
                    return Err("an address, a certificate or a machine's name that is too long".into());
                }
                let [name, numerics_class] = [&mut offer.device, &mut offer.numerics_class]
                    .map(|text| printable(&std::mem::take(text), 256));
                let device = DeviceInfo { name, numerics_class };
                let manifest = convert::manifest(offer).map_err(|e| e.to_string());
                Input::Offer { session, manifest, device, peer }
            }
            Body::Loaded(m) => Input::Event(Event::Loaded { session, step, digest: Digest(m.digest) }),
            Body::Committed(m) => {
                let committed = Event::Committed {
                    session,
                    step,
                    digest: Digest(m.digest),
                    apply: seconds(m.apply_seconds)?,
                    round: seconds(m.round_seconds)?,
                    differing: None,
                };
                match m.sums.is_empty() {
                    true => Input::Event(committed),
                    false => Input::Differs { committed, sums: m.sums },
                }
            }
            Body::LinkUp(m) => Input::Event(Event::LinkUp { session, peer: m.peer }),
            Body::LinkDown(m) => {
                let reason = printable(&m.reason, 256);
                Input::Event(Event::LinkDown { session, peer: m.peer, reason })
            }
            Body::Need(m) => Input::Event(Event::Need { from, chunks: m.chunks }),
            Body::NonFinite(m) => {
                Input::Event(Event::NonFinite { from, node: Node(m.node), tensor: printable(&m.tensor, 256) })
            }
            Body::Evaluated(evaluated) => Input::Evaluated { session, step, evaluated },
            Body::AuditDigest(m) => {
                Input::Event(Event::Audited { from, node: Node(m.node), digest: Digest(m.digest) })
            }
            Body::Clock(m) => {
                let (received, sent) = span::clock(&m).map_err(|e| e.to_string())?;
                Input::Clock { session, number: m.number, received, sent, arrived: Instant::now() }
            }
            Body::Failed(m) => Input::Failed { session, what: printable(&m.what, 1024) },
            Body::Leave(_) => Input::Event(Event::Lost { session, reason: "it left".into(), polite: true }),
        })
    }

    /// Memory to share with a worker on this machine.
    fn share_memory(&self, session: Session) -> Option<v1::Segment> {
        let segment = Segment::create(SLOTS).ok()?;
        let offer = segment.offer();
        self.memory().insert(session, segment);
        Some(offer)
    }

    fn memory(&self) -> MutexGuard<'_, HashMap<Session, Segment>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gradient_input(
        &self,
        session: Session,
        memory: Option<&Segment>,
        message: GradientUp,
    ) -> Result<Input, String> {
        use gradient_up::Body;
        let from = self.check(message.context, session)?;
        Ok(match message.body.ok_or("an empty message")? {
            Body::StreamOpen(_) => return Err("a second open".into()),
            Body::ContributionBegin(m) => Input::Event(Event::Header {
                from,
                node: Node(m.node),
                digest: Digest(m.digest),
                samples: m.samples,
            }),
            Body::Chunk(m) => {
                let data = match m.slot {
                    None => self.floats(self.dtype, self.sizes.gradient, m.index, &m.data),
                    Some(slot) => self.slot_floats(m.index, slot, memory),
                };
                Input::Chunk { from, node: Node(m.node), index: m.index, data }
            }
            Body::StateChunk(m) => {
                // Moments end before the constant elements, as a gradient does.
                let length = if m.vector == 0 { self.sizes.state } else { self.sizes.gradient };
                let data = self.floats(WireDtype::F32, length, m.index, &m.data);
                Input::State { session, step: from.step, vector: m.vector, index: m.index, data }
            }
            Body::ContributionEnd(m) => {
                let receipts = m.receipts.into_iter().map(|v1::Receipt { leaf, samples, losses }| {
                    convert::losses(losses, self.sizes.losses).map(|losses| Receipt { leaf, samples, losses })
                });
                let receipts: Vec<Receipt> = receipts.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
                Input::Event(Event::Trailer {
                    from,
                    node: Node(m.node),
                    receipts,
                    computed: seconds(m.compute_seconds)?,
                })
            }
        })
    }

    /// Chunk `index` of a vector of `elements`.
    fn floats(&self, dtype: WireDtype, elements: usize, index: u32, bytes: &[u8]) -> Result<Chunk, String> {
        let wanted = chunk_range(elements, index as usize).len();
        let chunk = floats::decode(dtype, bytes, wanted, &self.pool);
        finite(index, chunk.map_err(|e| format!("chunk {index}: {e}"))?)
    }

    fn slot_floats(&self, index: u32, slot: u32, memory: Option<&Segment>) -> Result<Chunk, String> {
        let memory = memory.ok_or("it put a chunk into memory that it does not share")?;
        let wanted = chunk_range(self.sizes.gradient, index as usize).len();
        let chunk = floats::fetch(self.dtype, memory, slot, wanted, &self.pool);
        finite(index, chunk.map_err(|e| format!("chunk {index} in shared memory: {e}"))?)
    }

    /// Takes a worker's gradient stream, which begins with its opening.
    ///
    /// # Errors
    /// If it does not, or is of no session.
    pub async fn attach<S>(
        &self,
        connection: Option<Arc<Connection>>,
        mut stream: S,
    ) -> Result<OutboxStream<v1::GradientDown>, Status>
    where
        S: Stream<Item = Result<GradientUp, Status>> + Send + Unpin + 'static,
    {
        let first = first(async { stream.next().await.transpose() }, "opening of a gradient stream").await?;
        let Some(GradientUp { context: Some(context), body: Some(gradient_up::Body::StreamOpen(open)) }) =
            first
        else {
            return Err(Status::invalid_argument("the first message of a gradient stream opens it"));
        };
        let session = context.session;
        self.check(Some(context), session).map_err(Status::failed_precondition)?;
        let memory = self.memory().remove(&session).filter(|_| open.shares_memory);
        if open.shares_memory && memory.is_none() {
            return Err(Status::failed_precondition("it shares memory that it was not offered"));
        }
        let (bulk, receiver) = outbox();
        let (known, answer) = oneshot::channel();
        let reads_shared_sums = memory.is_some();
        self.input(Input::Attach { session, bulk, reads_shared_sums, known }).await?;
        if !answer.await.unwrap_or(false) {
            return Err(Status::not_found("there is no such session, or it has its gradient stream"));
        }
        if let Some(connection) = connection {
            connection.admit();
        }
        let service = self.clone();
        tokio::spawn(async move {
            let reason = loop {
                let message = stream.next().await.transpose();
                match ended(message).and_then(|m| service.gradient_input(session, memory.as_ref(), m)) {
                    Ok(input) => {
                        if service.input(input).await.is_err() {
                            return;
                        }
                    }
                    Err(reason) => break reason,
                }
            };
            service.lost(session, reason).await;
        });
        Ok(receiver)
    }

    async fn lost(&self, session: Session, reason: String) {
        let _ = self.input(Input::Event(Event::Lost { session, reason, polite: false })).await;
    }
}

/// The connection of a request; there is none within a process.
fn connection_of<T>(request: &Request<T>) -> Option<Arc<Connection>> {
    request.extensions().get().cloned()
}

/// The first message of a stream, with a time limit.
async fn first<M>(message: impl Future<Output = Result<M, Status>>, what: &str) -> Result<M, Status> {
    let late = |_| Status::deadline_exceeded(format!("no {what} for {} s", FIRST_MESSAGE.as_secs()));
    tokio::time::timeout(FIRST_MESSAGE, message).await.map_err(late)?
}

/// A chunk, unless it holds NaN or infinity.
fn finite(index: u32, chunk: Chunk) -> Result<Chunk, String> {
    match first_non_finite(&chunk) {
        None => Ok(chunk),
        Some(at) => Err(format!("chunk {index} has {} at {at}", chunk[at])),
    }
}

/// A worker's text, without control characters, for a terminal and a journal.
fn printable(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

/// A worker's measurement: NaN or infinity would make the journal unreadable.
fn seconds(value: f64) -> Result<f64, String> {
    (0.0..=1e9).contains(&value).then_some(value).ok_or_else(|| format!("it measured {value} seconds"))
}

/// Why a stream ended, in words.
fn ended<T>(result: Result<Option<T>, Status>) -> Result<T, String> {
    match result {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err("its connection closed".into()),
        Err(status) => Err(format!("its connection broke: {}", status.message())),
    }
}

/// The way of workers in this process: gRPC without a socket, and gradients handed over.
#[derive(Debug)]
pub struct Local {
    service: Service,
    router: Router,
    runtime: Handle,
}

impl Local {
    /// A way to a service that `router` serves too; its connections live on the current runtime.
    #[must_use]
    pub fn new(service: Service, router: Router) -> Self {
        Self { service, router, runtime: Handle::current() }
    }
}

#[tonic::async_trait]
impl LocalTransport for Local {
    fn dial(&self) -> io::Result<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let router = self.router.clone();
        self.runtime.spawn(async move {
            if let Err(error) = serve_within(ours, router).await {
                tracing::debug!("a local worker's connection ended: {error}");
            }
        });
        Ok(theirs)
    }

    async fn gradients(&self, up: mpsc::Receiver<GradientUp>) -> Result<Down, Status> {
        let down = self.service.attach(None, ReceiverStream::new(up).map(Ok)).await?;
        Ok(Box::pin(down))
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    type ControlStream = OutboxStream<v1::CoordinatorMessage>;
    type GradientsStream = OutboxStream<v1::GradientDown>;

    async fn control(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let connection = connection_of(&request);
        let mut stream = request.into_inner();
        let first = first(stream.message(), "hello").await?.and_then(|m| m.body);
        let Some(worker_message::Body::Hello(hello)) = first else {
            return Err(Status::invalid_argument("the first message of a worker is its hello"));
        };
        self.versions.check(&hello)?;
        if let Some(connection) = &connection {
            if !self.joins.allow(connection.peer.ip()) {
                return Err(Status::resource_exhausted("too many workers join from this address; slow down"));
            }
            connection.expect(MAX_FROM_WORKER);
        }
        let near = connection.as_ref().is_some_and(|connection| connection.is_same_host());
        let ends = connection.map(|connection| ConnectionEnds {
            worker: connection.peer.ip().to_canonical(),
            coordinator: connection.here.ip().to_canonical(),
        });
        let ours = hello.retained.iter().filter(|held| held.run == self.run).take(MOST_HELD);
        let hello = Hello {
            name: printable(&hello.name, 128),
            threads: hello.threads,
            capabilities: hello.capabilities,
            held: ours.map(|held| (held.step, Digest(held.digest))).collect(),
            ends,
        };
        let session = self.new_session();
        let (control, receiver) = outbox();
        let memory = if near { self.share_memory(session) } else { None };
        self.input(Input::Hello { session, hello, control, memory }).await?;
        let service = self.clone();
        tokio::spawn(async move {
            let reason = loop {
                match ended(stream.message().await).and_then(|m| service.control_inputs(session, m)) {
                    Ok((spans, input)) => {
                        for input in spans.into_iter().chain([input]) {
                            if service.input(input).await.is_err() {
                                return;
                            }
                        }
                    }
                    Err(reason) => break reason,
                }
            };
            service.memory().remove(&session);
            service.lost(session, reason).await;
        });
        Ok(Response::new(receiver))
    }

    async fn gradients(
        &self,
        request: Request<Streaming<GradientUp>>,
    ) -> Result<Response<Self::GradientsStream>, Status> {
        self.attach(connection_of(&request), request.into_inner()).await.map(Response::new)
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        self.status_cache.answer(&self.inputs).await.map(Response::new)
    }
}
