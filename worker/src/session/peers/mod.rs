//! Sharded attempts: this worker's links to others, and its part as an owner of chunks (**SUM-1**, **LIVE-1**).
//!
//! A `queue` and two tasks (`frames`) serve each link. `attempt` adds up what arrives. Nothing here decides: the
//! coordinator says who dials whom (`listener`), and in which attempt who owns which chunk. A link on which anything
//! is wrong is closed and reported; the coordinator then takes back what the link was needed for.

mod attempt;
mod frames;
mod listener;
mod queue;

use std::collections::HashMap;
use std::future::Future;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tally_numerics::chunks;
use tally_numerics::layout::Layout;
use tally_numerics::tree::{Node, Tree};
use tally_numerics::wire::WireDtype;
use tally_proto::floats;
use tally_proto::peer_frame::{FrameKind, Header};
use tally_proto::pool::{Chunk, Pool};
use tally_proto::v1::{self, MessageContext, WorkerMessage, gradient_down, worker_message};
use tally_transport::link::{LinkIdentity, LinkSecret};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::messages::{Input, PartialSum, SendCommand};
use attempt::Attempt;
pub use listener::PeerOptions;
use queue::{Frame, LinkQueue};

/// Models of sums that may wait for the compute thread; a replica that lags further gets none from owners.
const MODELS_QUEUED: usize = 4;

/// Where sums go within this worker, and what links need to know.
pub struct PeerWiring {
    /// The session's.
    pub context: MessageContext,
    /// The reduction tree.
    pub tree: Tree,
    /// Elements of a gradient.
    pub elements: usize,
    /// How they travel.
    pub dtype: WireDtype,
    /// To the compute thread.
    pub inputs: Sender<Input>,
    /// To the sender, for the coordinator.
    pub commands: mpsc::UnboundedSender<SendCommand>,
    /// To the coordinator.
    pub control: mpsc::UnboundedSender<WorkerMessage>,
    /// What tokens of those that dial this worker are made of.
    pub secret: LinkSecret,
    /// This session's certificate, where the cluster uses TLS.
    pub identity: Option<LinkIdentity>,
}

/// The links of a session. They end when it is dropped.
pub struct Peers(PeerSender);

/// Sends to owners.
#[derive(Clone)]
pub struct PeerSender(Arc<Shared>);

struct Shared {
    wiring: PeerWiring,
    pool: Pool,
    /// The attempt that was announced last, and the one before, of which sums may still be on their way.
    attempts: Mutex<[Arc<Attempt>; 2]>,
    newest: watch::Sender<u32>,
    links: Mutex<HashMap<u64, Arc<LinkQueue>>>,
    room: Arc<Semaphore>,
    tasks: Mutex<JoinSet<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Peers {
    fn drop(&mut self) {
        lock(&self.0.0.tasks).abort_all();
        lock(&self.0.0.links).clear();
    }
}

impl Peers {
    /// Listens as `options` say, and returns what the coordinator is to know of it.
    pub async fn start(wiring: PeerWiring, options: &PeerOptions) -> (Self, v1::PeerEndpoint) {
        let room = Arc::new(Semaphore::new(MODELS_QUEUED * chunks(wiring.elements)));
        let none = Arc::new(Attempt::default());
        let certificate = wiring.identity.as_ref().map(|identity| identity.certificate().to_vec());
        let shared = Arc::new(Shared {
            wiring,
            pool: Pool::default(),
            attempts: Mutex::new([none.clone(), none]),
            newest: watch::Sender::new(0),
            links: Mutex::default(),
            room,
            tasks: Mutex::default(),
        });
        let port = listener::listen(&shared, options).await;
        let endpoint = v1::PeerEndpoint {
            address: options.advertise.clone().unwrap_or_default(),
            port: port.into(),
            certificate: certificate.unwrap_or_default().into(),
            machine: options.machine.clone().unwrap_or_else(listener::this_machine),
        };
        (Self(PeerSender(shared)), endpoint)
    }

    /// A handle for the sender.
    #[must_use]
    pub fn sender(&self) -> PeerSender {
        self.0.clone()
    }

    /// The coordinator has announced an attempt.
    pub fn begin(&self, context: MessageContext, begin: &v1::AttemptBegin, layout: Layout) {
        let shared = &self.0.0;
        let mut attempts = lock(&shared.attempts);
        // A worker that is sent a state is told of the attempt in flight a second time.
        if context.attempt > attempts[0].attempt {
            let wiring = &shared.wiring;
            let shape = (wiring.tree, chunks(wiring.elements), begin.samples as usize);
            let me = wiring.context.session;
            let attempt =
                Attempt::new((context.step, context.attempt), layout, begin.digest, me, shape, wiring.dtype);
            attempts.rotate_right(1);
            attempts[0] = Arc::new(attempt);
            drop(attempts);
            shared.newest.send_replace(context.attempt);
        }
    }

    /// The coordinator asks for a link.
    pub fn dial(&self, dial: v1::Dial) {
        let shared = self.0.0.clone();
        self.0.0.spawn(async move { listener::dial(shared, dial).await });
    }
}

impl PeerSender {
    /// Sends a chunk of a node to another worker, or adds it up if that is this one. Without a link the chunk is lost, and
    /// the coordinator takes it back.
    pub async fn send(&self, sum: PartialSum) {
        let shared = &self.0;
        if sum.to == shared.wiring.context.session {
            let wanted = tally_numerics::chunk_range(shared.wiring.elements, sum.index as usize).len();
            let decoded = floats::decode(shared.wiring.dtype, &sum.data, wanted, &shared.pool);
            if let (Some(attempt), Ok(values)) = (shared.attempt(sum.attempt), decoded) {
                shared.add(&attempt, Node(sum.node), sum.index, values).await;
            }
            return;
        }
        shared.send(sum);
    }
}

impl Shared {
    /// An attempt of which messages may still come: the newest or the one before.
    fn attempt(&self, attempt: u32) -> Option<Arc<Attempt>> {
        lock(&self.attempts).iter().find(|known| known.attempt == attempt).cloned()
    }

    /// Adds a partial sum. What becomes whole goes to its owner, or to everybody if this worker owns it.
    async fn add(&self, attempt: &Attempt, node: Node, index: u32, values: Chunk) {
        let Some((node, sum)) = attempt.add(node, index, values) else { return };
        let data = floats::encode(self.wiring.dtype, sum, &self.pool);
        let (step, number) = (attempt.step, attempt.attempt);
        let owner = attempt.layout.owner(index);
        if let Some(owner) = owner.filter(|owner| *owner != self.wiring.context.session) {
            let (node, digest) = (node.0, attempt.digest);
            return self.send(PartialSum { to: owner, step, attempt: number, node, index, digest, data });
        }
        let header = Header::of(FrameKind::Sum, (step, number), index, 0, &data);
        let to_coordinator = SendCommand::Sum { step, attempt: number, index, data: data.clone() };
        let _ = self.wiring.commands.send(to_coordinator);
        self.deliver(attempt, header, data).await;
    }

    /// Sends a partial sum to another worker.
    fn send(&self, sum: PartialSum) {
        let kind = FrameKind::Partial(Node(sum.node));
        let header = Header::of(kind, (sum.step, sum.attempt), sum.index, sum.digest, &sum.data);
        self.push(sum.to, Frame { header, data: sum.data });
    }

    /// A frame for a worker; it is lost if there is no link.
    fn push(&self, to: u64, frame: Frame) {
        let link = lock(&self.links).get(&to).cloned();
        if let Some(link) = link {
            link.push(frame, *self.newest.borrow());
        }
    }

    /// Gives a sum to the workers that get it from this one, and to the compute thread.
    async fn deliver(&self, attempt: &Attempt, header: Header, data: Bytes) {
        for peer in attempt.layout.receivers(self.wiring.context.session, header.index) {
            self.push(peer, Frame { header, data: data.clone() });
        }
        let Ok(permit) = self.room.clone().acquire_owned().await else { return };
        let context = MessageContext { step: header.step, attempt: header.attempt, ..self.wiring.context };
        let sum = v1::SumChunk { index: header.index, data, slot: None, crc: header.crc };
        let _ = self.wiring.inputs.send(Input::Gradient(context, gradient_down::Body::SumChunk(sum), permit));
    }

    /// Tells the coordinator of a link.
    fn report(&self, body: worker_message::Body) {
        let _ =
            self.wiring.control.send(WorkerMessage { context: Some(self.wiring.context), body: Some(body) });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}
