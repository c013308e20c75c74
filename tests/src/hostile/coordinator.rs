//! Hostile workers against the whole coordinator: its gRPC service, driver, core and journal,
//! fed with the bytes of gRPC streams, without sockets.
//!
//! Whatever they do, nobody panics, the journal stays readable, no sample is lost or used
//! twice (**DATA-1**), and an honest worker that comes afterwards brings the run to its end.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::Frame;
use prost::Message;
use tally::options::Training;
use tally_coordinator::server::driver::{Driver, Parts};
use tally_coordinator::server::master_state::MasterState;
use tally_coordinator::server::outbox::OutboxStream;
use tally_coordinator::server::service::{Input, Service};
use tally_core::events::Outcome;
use tally_core::recovery::Recorded;
use tally_core::{Core, Shape};
use tally_mnist::data::Split;
use tally_mnist::{Mnist, MnistWithNumbers};
use tally_monitor::console::Console;
use tally_monitor::metrics::workers::WorkerSeries;
use tally_monitor::view::View;
use tally_monitor::view::feed::{Clock, Feed};
use tally_monitor::view::state::About;
use tally_numerics::digest;
use tally_numerics::init;
use tally_numerics::manifest::Manifest;
use tally_numerics::order::Schedule;
use tally_numerics::tree::{Node, Tree};
use tally_numerics::wire::WireDtype;
use tally_proto::pool::Pool;
use tally_proto::v1::cluster_server::Cluster as _;
use tally_proto::v1::{
    Answers, AuditDigest, Chunk, ClockAnswer, Committed, ContributionBegin, ContributionEnd,
    CoordinatorMessage, Failed, GradientDown, GradientUp, Hello, Leave, Loaded, MessageContext, NonFinite,
    Receipt, StateChunk, StreamOpen, WorkerMessage, coordinator_message, gradient_down, gradient_up,
    worker_message,
};
use tally_proto::{MAX_FROM_WORKER, PROTOCOL, TIMELINE, convert};
use tally_run::directory::RunDirectory;
use tally_run::journal::{self, History, Journal};
use tally_run::summary::Summary;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tonic::codec::Codec as _;
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use super::{Script, framed};

const ELEMENTS: usize = 10;
const SHARDS: u32 = 4;
const TRAIN: usize = 11;
const TEST: usize = 5;
const BATCH: usize = 4;
const EPOCHS: u32 = 2;
/// Workers of a script at one time.
const MOST: usize = 4;
/// What an honest worker may need to finish the run; far more than it takes.
const ROUNDS: usize = 1000;

/// Plays a script.
///
/// # Panics
/// If a promise is broken.
pub fn play(script: &[u8]) {
    let root = tempfile::tempdir().unwrap();
    let (inputs, receiver) = mpsc::channel(64);
    let dtype = WireDtype::default();
    let (driver, run, manifest) = driver(root.path());
    let service = Service::new((run, 1), ELEMENTS, dtype, inputs.clone(), Pool::default());
    let thread = std::thread::spawn(move || driver.run(receiver));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut cluster = Cluster { service, inputs: inputs.clone(), manifest, peers: Vec::new() };
        cluster.hostile(Script::new(script)).await;
        cluster.honest().await;
        let _ = inputs.send(Input::Stop).await;
    });
    drop((runtime, inputs));
    let (outcome, summary): (Outcome, Summary) =
        thread.join().expect("the driver does not panic").expect("a worker cannot stop the coordinator");
    // Numbers that are none are the model's, as far as the coordinator can know.
    let diverged = matches!(outcome, Outcome::Diverged { .. });
    assert!(outcome == Outcome::Done || diverged, "an honest worker could not finish: {outcome:?}");
    assert_eq!((summary.samples_lost, summary.samples_duplicated), (0, 0));
    let text = std::fs::read(root.path().join("run/journal.jsonl")).unwrap();
    let (_, whole) = journal::parse("journal".as_ref(), &text).expect("the journal stays readable");
    assert_eq!(whole, text.len());
}

/// A driver of a small run on a synthetic network, that waits for one worker.
fn driver(root: &std::path::Path) -> (Driver, u64, Manifest) {
    let split = |name, n: usize| Split::new(name, vec![7; 784 * n], vec![3; n]).unwrap();
    let data = Mnist { train: split("training", TRAIN), test: split("test", TEST) };
    let training = Training {
        model: Some(format!("synthetic:parameters={ELEMENTS}").parse().unwrap()),
        batch_size: Some(BATCH),
        shards: Some(SHARDS),
        epochs: Some(EPOCHS),
        ..Training::default()
    };
    let run = 0x7a11_e57e_d000_0001;
    let config = training.configure(&data, run, 1).unwrap();
    let directory = RunDirectory::create(Some(&root.join("run"))).unwrap();
    let (journal, history): (Journal, History) = Journal::open(&directory.file("journal.jsonl")).unwrap();
    let parameters = init::parameters(&config.tensors, config.seed);
    let referee = MasterState::new(&parameters, &vec![0.0; parameters.len()]);
    let shape = Shape {
        tree: Tree::new(config.shards).unwrap(),
        chunks: 1,
        schedule: Schedule::new(config.seed, TRAIN, BATCH).unwrap(),
        epochs: config.epochs,
        test_samples: TEST,
        recipe: config.optimizer,
        checkpoint_every: None,
        workers: 1,
        audit_rate: 0.25,
    };
    let (seed, tensors) = (config.seed, config.tensors.clone());
    let clock = Clock::start();
    let about = About::of(&config, directory.path(), 1, shape.steps(), clock.origin()).unwrap();
    let driver = Driver::new(Parts {
        feed: Feed::new(View::new(about), clock),
        spans: true,
        series: WorkerSeries::default(),
        trace: None,
        core: Core::new(shape, 0, referee.digest(), Recorded::default()),
        config,
        directory,
        journal,
        history,
        referee,
        train: MnistWithNumbers::train(data.train, seed),
        test: MnistWithNumbers::test(data.test, seed),
        incarnation: 1,
        console: Console::new(),
        started: Arc::new(AtomicBool::new(false)),
        pulse: Pulse::start(),
    });
    (driver, run, tensors)
}

/// The bytes of a gRPC request, as they come.
struct Up(mpsc::UnboundedReceiver<Bytes>);

impl http_body::Body for Up {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

fn stream<M: Message + Default + 'static>() -> (mpsc::UnboundedSender<Bytes>, Request<Streaming<M>>) {
    let (up, body) = mpsc::unbounded_channel();
    let decoder = ProstCodec::<M, M>::default().decoder();
    (up, Request::new(Streaming::new_request(decoder, Up(body), None, Some(MAX_FROM_WORKER))))
}

/// What is there of a stream now.
fn ready<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    match pin!(stream).poll_next(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(item) => item,
        Poll::Pending => None,
    }
}

/// A worker, and what it has heard.
struct Peer {
    control: Option<mpsc::UnboundedSender<Bytes>>,
    gradients: Option<mpsc::UnboundedSender<Bytes>>,
    control_down: OutboxStream<CoordinatorMessage>,
    gradients_down: Option<OutboxStream<GradientDown>>,
    context: MessageContext,
    /// What it has to do: the context, the replica's digest, the step's samples, the node.
    plans: VecDeque<(MessageContext, u64, u32, Node)>,
    leaves: BTreeMap<(u64, u32), Vec<u32>>,
    tests: VecDeque<(u64, u32, usize)>,
    states: VecDeque<(u64, u64)>,
    /// Nodes that others contribute, and states that it was asked for.
    audits: VecDeque<(MessageContext, u32)>,
    uploads: VecDeque<MessageContext>,
    clocks: VecDeque<u64>,
    commits: VecDeque<(u64, u64)>,
    finished: bool,
}

impl Peer {
    fn hear(&mut self) {
        use coordinator_message::Body;
        while let Some(Ok(CoordinatorMessage { context: Some(context), body: Some(body) })) =
            ready(&mut self.control_down)
        {
            match body {
                Body::Welcome(_) => self.context = context,
                Body::Plan(plan) if plan.audit => {
                    self.audits.extend(plan.nodes.iter().map(|&node| (context, node)));
                }
                Body::Plan(plan) => {
                    self.plans
                        .extend(plan.nodes.iter().map(|&n| (context, plan.digest, plan.samples, Node(n))));
                }
                Body::ResumeRetained(keep) => self.states.push_back((context.step, keep.digest)),
                Body::SendState(_) => self.uploads.push_back(context),
                Body::Clock(question) => self.clocks.push_back(question.number),
                Body::Microbatch(leaf) if leaf.test => {
                    self.tests.push_back((context.step, leaf.leaf, leaf.ids.len()))
                }
                Body::Microbatch(leaf) => {
                    self.leaves.insert((context.step, leaf.leaf), leaf.ids);
                }
                Body::Abort(_) => self.plans.retain(|(plan, ..)| plan.attempt > context.attempt),
                Body::Commit(commit) => self.commits.push_back((context.step, commit.digest)),
                Body::Finished(_) | Body::Refused(_) | Body::Evicted(_) => self.finished = true,
            }
        }
        let Some(down) = &mut self.gradients_down else { return };
        while let Some(Ok(GradientDown { context: Some(context), body: Some(body) })) = ready(down) {
            if let gradient_down::Body::State(state) = body {
                self.states.push_back((context.step, state.digest));
            }
        }
    }

    fn raw(&self, gradients: bool, bytes: Vec<u8>) {
        if let Some(to) = if gradients { &self.gradients } else { &self.control } {
            let _ = to.send(bytes.into());
        }
    }

    fn tell(&self, context: Option<MessageContext>, body: worker_message::Body) {
        self.raw(false, framed(&WorkerMessage { context, body: Some(body) }.encode_to_vec()));
    }

    fn send(&self, context: Option<MessageContext>, body: gradient_up::Body) {
        self.raw(true, framed(&GradientUp { context, body: Some(body) }.encode_to_vec()));
    }

    fn at(&self, step: u64) -> MessageContext {
        MessageContext { step, attempt: 0, ..self.context }
    }

    /// The receipts of a node's leaves, and the digest of their samples.
    fn work(&self, step: u64, samples: u32, node: Node) -> (Vec<Receipt>, u64) {
        let tree = Tree::new(SHARDS).unwrap();
        let (mut receipts, mut ids) = (Vec::new(), Vec::new());
        for leaf in tree.leaves(node) {
            let count = tree.samples(leaf, samples as usize).len();
            if count > 0 {
                let losses = Some(tally_proto::v1::Losses { label: 1.0, sum: 2.0, difference: 3.0 });
                receipts.push(Receipt { leaf, samples: count as u32, losses });
                ids.extend_from_slice(self.leaves.get(&(step, leaf)).map_or(&[][..], Vec::as_slice));
            }
        }
        (receipts, digest::of_samples(ids))
    }

    /// Does the next thing that is due, as the script would have it.
    fn work_on(&mut self, script: &mut Script<'_>) -> bool {
        if let Some(number) = self.clocks.pop_front() {
            let (received, sent) = (script.float(3.0), script.float(3.0));
            let answer = ClockAnswer { number: script.number(number), received, sent };
            self.tell(script.context(self.context), worker_message::Body::Clock(answer));
        } else if let Some((step, digest)) = self.states.pop_front() {
            let context = script.context(self.at(step));
            self.tell(context, worker_message::Body::Loaded(Loaded { digest: script.number(digest) }));
        } else if let Some((step, digest)) = self.commits.pop_front() {
            let context = script.context(self.at(step));
            let (apply_seconds, round_seconds) = (script.float(0.1), script.float(0.2));
            let spans = script.spans();
            let body = Committed { digest: script.number(digest), apply_seconds, round_seconds, spans };
            self.tell(context, worker_message::Body::Committed(body));
        } else if let Some((context, node)) = self.audits.pop_front() {
            let body = AuditDigest { node: script.small(node), digest: script.number(0) };
            self.tell(script.context(context), worker_message::Body::AuditDigest(body));
        } else if let Some(context) = self.uploads.pop_front() {
            for momentum in [false, true] {
                let (index, data) = (script.small(0), script.floats(ELEMENTS).into());
                let chunk = StateChunk { momentum, index, data };
                self.send(script.context(context), gradient_up::Body::StateChunk(chunk));
            }
        } else if let Some((step, leaf, n)) = self.tests.pop_front() {
            let context = script.context(self.at(step));
            let digits = if script.rarely(64) { script.bytes().to_vec() } else { vec![3; n] };
            let (sums, differences) = (script.floats(n).into(), script.floats(n).into());
            let (leaf, losses, spans) = (script.small(leaf), script.losses(), script.spans());
            let body = Answers { leaf, losses, digits: digits.into(), sums, differences, spans };
            self.tell(context, worker_message::Body::Answers(body));
        } else if let Some((context, digest, samples, node)) = self.plans.pop_front() {
            let (mut receipts, ids) = self.work(context.step, samples, node);
            let header = ContributionBegin {
                node: script.small(node.0),
                digest: script.number(digest),
                samples: script.number(ids),
            };
            self.send(script.context(context), gradient_up::Body::ContributionBegin(header));
            for _ in 0..=script.byte() % 64 / 63 {
                let (node, index) = (script.small(node.0), script.small(0));
                let data = script.floats(ELEMENTS).into();
                self.send(
                    script.context(context),
                    gradient_up::Body::Chunk(Chunk { node, index, data, slot: None }),
                );
            }
            for receipt in &mut receipts {
                receipt.losses = script.losses();
                receipt.samples = script.small(receipt.samples);
            }
            if script.rarely(64) {
                receipts.extend_from_within(..);
            }
            let (node, compute_seconds) = (script.small(node.0), script.float(0.1));
            let trailer = ContributionEnd { node, receipts, compute_seconds };
            self.send(script.context(context), gradient_up::Body::ContributionEnd(trailer));
        } else {
            return false;
        }
        true
    }
}

/// The coordinator and its workers.
struct Cluster {
    service: Service,
    inputs: mpsc::Sender<Input>,
    manifest: Manifest,
    peers: Vec<Peer>,
}

/// Reads as a script in which everything is as it should be.
const HONEST: &[u8] = &[12; 400];

impl Cluster {
    /// Waits until all that was sent has been dealt with; false once the run is over.
    async fn settle(&mut self) -> bool {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        // The driver's own answer comes after all that it was told before.
        let (reply, answer) = oneshot::channel();
        let going = self.inputs.send(Input::Status(reply)).await.is_ok() && answer.await.is_ok();
        tokio::task::yield_now().await;
        for peer in &mut self.peers {
            peer.hear();
        }
        going
    }

    async fn join(&mut self, script: &mut Script<'_>) {
        let (control, request) = stream();
        let hello = Hello {
            protocol: script.small(PROTOCOL),
            name: script.text(),
            threads: script.small(1),
            capabilities: vec![TIMELINE.into()],
            held: (0..script.byte() % 3).map(|_| script.held()).collect(),
            ..Hello::default()
        };
        let first = WorkerMessage { context: None, body: Some(worker_message::Body::Hello(hello)) };
        let _ = control.send(framed(&first.encode_to_vec()).into());
        let Ok(down) = self.service.control(request).await else { return };
        let mut peer = Peer {
            control: Some(control),
            gradients: None,
            control_down: down.into_inner(),
            gradients_down: None,
            context: MessageContext::default(),
            plans: VecDeque::new(),
            leaves: BTreeMap::new(),
            tests: VecDeque::new(),
            states: VecDeque::new(),
            audits: VecDeque::new(),
            uploads: VecDeque::new(),
            clocks: VecDeque::new(),
            commits: VecDeque::new(),
            finished: false,
        };
        self.settle().await;
        peer.hear();
        let (gradients, request) = stream();
        let open = gradient_up::Body::StreamOpen(StreamOpen { shares_memory: script.rarely(64) });
        let open = GradientUp { context: script.context(peer.context), body: Some(open) };
        let _ = gradients.send(framed(&open.encode_to_vec()).into());
        if let Ok(down) = self.service.gradients(request).await {
            peer.gradients = Some(gradients);
            peer.gradients_down = Some(down.into_inner());
        }
        let mut offer = convert::offer(&self.manifest, script.text(), script.text());
        if script.rarely(64) {
            let tensor = &mut offer.tensors[0];
            tensor.bound = script.float(0.1);
            tensor.shape = (0..script.byte() % 5).map(|_| script.small(3)).collect();
            tensor.name = script.text();
        }
        peer.tell(script.context(peer.context), worker_message::Body::ModelManifest(offer));
        self.peers.push(peer);
        self.settle().await;
    }

    async fn hostile(&mut self, mut script: Script<'_>) {
        if !script.rarely(8) {
            self.join(&mut Script::new(HONEST)).await;
        }
        while let Some(op) = script.op() {
            self.act(op, &mut script).await;
            if !self.settle().await {
                return;
            }
        }
    }

    async fn act(&mut self, op: u8, script: &mut Script<'_>) {
        use worker_message::Body;
        let peers = self.peers.len();
        if peers == 0 || (op % 64 > 60 && peers < MOST) {
            return self.join(script).await;
        }
        let at = usize::from(op / 64) % peers;
        let peer = &mut self.peers[at];
        let step = peer.plans.front().map_or(peer.at(1), |(context, ..)| *context);
        let context = script.context(step);
        // Most of the time it does what is due: one that only shouts is sent away at once.
        match op % 64 {
            0 => peer.raw(script.rarely(2), framed(script.bytes())),
            1 => peer.raw(script.rarely(2), script.bytes().to_vec()),
            2 => peer.tell(context, Body::Loaded(Loaded { digest: script.number(0) })),
            3 => {
                let body = Committed {
                    digest: script.number(0),
                    apply_seconds: script.float(0.1),
                    round_seconds: script.float(0.1),
                    spans: script.spans(),
                };
                peer.tell(context, Body::Committed(body));
            }
            4 => peer
                .tell(context, Body::NonFinite(NonFinite { node: script.small(1), tensor: script.text() })),
            5 => {
                let header = ContributionBegin {
                    node: script.small(1),
                    digest: script.number(0),
                    samples: script.number(0),
                };
                peer.send(context, gradient_up::Body::ContributionBegin(header));
            }
            6 => {
                let data = script.floats(ELEMENTS).into();
                let slot = if script.rarely(4) { Some(script.small(2)) } else { None };
                let chunk = Chunk { node: script.small(1), index: script.small(0), data, slot };
                peer.send(context, gradient_up::Body::Chunk(chunk));
            }
            7 => {
                let receipts = (0..script.byte() % 6).map(|leaf| Receipt {
                    leaf: script.small(leaf.into()),
                    samples: script.small(1),
                    losses: script.losses(),
                });
                let receipts = receipts.collect();
                let (node, compute_seconds) = (script.small(1), script.float(0.1));
                peer.send(
                    context,
                    gradient_up::Body::ContributionEnd(ContributionEnd { node, receipts, compute_seconds }),
                );
            }
            8 => match script.byte() % 4 {
                0 => peer.control = None,
                1 => peer.gradients = None,
                2 => peer.tell(context, Body::Leave(Leave {})),
                _ => peer.tell(context, Body::Failed(Failed { what: script.text() })),
            },
            9 => drop(self.peers.swap_remove(at)),
            _ => {
                peer.work_on(script);
            }
        }
    }

    /// All others go; one that keeps the rules does what is left, until the run is over.
    async fn honest(&mut self) {
        self.peers.clear();
        for _ in 0..ROUNDS {
            if !self.settle().await {
                return;
            }
            match self.peers.first_mut() {
                None => self.join(&mut Script::new(HONEST)).await,
                Some(peer) if peer.finished => return,
                Some(peer) => while peer.work_on(&mut Script::new(HONEST)) {},
            }
        }
    }
}
