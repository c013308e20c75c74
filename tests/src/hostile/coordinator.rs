//! Hostile workers against the whole coordinator: its gRPC service, driver, core and journal,
//! fed with the bytes of gRPC streams, without sockets.
//!
//! Whatever they do, nobody panics, the journal stays readable, no sample is lost or used
//! twice (**DATA-1**), and an honest worker that comes afterwards brings the run to its end.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::Frame;
use prost::Message;
use serde_json::json;
use tally_coordinator::dataset::Dataset;
use tally_coordinator::observer::Observer;
use tally_coordinator::server::driver::{Driver, DriverDeps};
use tally_coordinator::server::driver_heartbeat::Heartbeat;
use tally_coordinator::server::input::Input;
use tally_coordinator::server::master_state::MasterState;
use tally_coordinator::server::outbox::OutboxStream;
use tally_coordinator::server::service::{Service, Sizes};
use tally_core::events::RunOutcome;
use tally_core::recovery::Recorded;
use tally_core::reduce_mode::ReduceMode;
use tally_core::{Core, RunSpec};
use tally_monitor::Run;
use tally_monitor::console::{Console, ConsoleObserver};
use tally_monitor::metrics::MetricsObserver;
use tally_monitor::metrics::workers::WorkerSeries;
use tally_monitor::view::View;
use tally_monitor::view::observer::ViewObserver;
use tally_monitor::view::publisher::ViewPublisher;
use tally_monitor::view::state::RunInfo;
use tally_numerics::manifest::Manifest;
use tally_numerics::norm::BLOCK;
use tally_numerics::order::Schedule;
use tally_numerics::schema::{LossSpec, MetricKind, MetricSpec, Schema};
use tally_numerics::tree::{Node, Tree};
use tally_numerics::wire::WireDtype;
use tally_numerics::{digest, init};
use tally_proto::pool::Pool;
use tally_proto::span::Clock;
use tally_proto::v1::cluster_server::Cluster as _;
use tally_proto::v1::{
    AuditDigest, Chunk, ClockAnswer, Committed, ContributionBegin, ContributionEnd, CoordinatorMessage,
    Evaluated, Failed, GradientDown, GradientUp, Hello, Leave, LinkDown, LinkUp, Loaded, MessageContext,
    Need, NonFinite, Receipt, StateChunk, StreamOpen, WorkerMessage, coordinator_message, gradient_down,
    gradient_up, worker_message,
};
use tally_proto::{MAX_FROM_WORKER, PROTOCOL, TIMELINE, convert};
use tally_run::config::{RUN_VERSION, RunConfig};
use tally_run::directory::RunDirectory;
use tally_run::journal::{self, History, Journal};
use tally_run::summary::Summary;
use tally_worker::engine::synthetic::{self, SyntheticSpec};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tonic::codec::Codec as _;
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use super::{Script, framed};

const ELEMENTS: usize = 10;
const MICROBATCHES: u32 = 4;
/// The identity of the run.
pub(super) const RUN: u64 = 0x7a11_e57e_d000_0001;
/// Sums of the losses over a microbatch, and of a microbatch of the test pass, as they should be.
const LOSSES: [f64; 2] = [1.0, 2.0];
const SUMS: [f64; 11] = [1.0, 2.0, 1.0, 2.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0];
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
    let (driver, manifest) = driver(root.path());
    let sizes = Sizes { gradient: ELEMENTS, state: ELEMENTS, losses: LOSSES.len() };
    let service = Service::new((RUN, 1), sizes, dtype, inputs.clone(), Pool::default());
    let thread = std::thread::spawn(move || driver.run(receiver));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut cluster = Cluster { service, inputs: inputs.clone(), manifest, peers: Vec::new() };
        cluster.hostile(Script::new(script)).await;
        cluster.honest().await;
        let _ = inputs.send(Input::Stop).await;
    });
    drop((runtime, inputs));
    let (outcome, summary): (RunOutcome, Summary) =
        thread.join().expect("the driver does not panic").expect("a worker cannot stop the coordinator");
    // Numbers that are none are the model's, as far as the coordinator can know.
    let diverged = matches!(outcome, RunOutcome::Diverged { .. });
    assert!(outcome == RunOutcome::Done || diverged, "an honest worker could not finish: {outcome:?}");
    assert_eq!((summary.samples_lost, summary.samples_duplicated), (0, 0));
    let text = std::fs::read(root.path().join("run/journal.jsonl")).unwrap();
    let (_, whole) = journal::parse("journal".as_ref(), &text).expect("the journal stays readable");
    assert_eq!(whole, text.len());
}

/// Samples of one byte.
struct Bytewise(usize);

impl Dataset for Bytewise {
    fn len(&self) -> usize {
        self.0
    }

    fn item(&self, id: u32) -> anyhow::Result<Cow<'_, [u8]>> {
        Ok(vec![id as u8].into())
    }
}

/// Two losses, and a metric of each kind.
fn schema() -> Schema {
    let loss = |name: &str| LossSpec { name: name.into(), label: name.into() };
    let metric = |name: &str, kind| MetricSpec { name: name.into(), label: name.into(), kind };
    let metrics = vec![
        metric("right", MetricKind::Ratio { higher_is_better: true }),
        metric("errors", MetricKind::Histogram { first: -1, bins: 3 }),
        metric("confusion", MetricKind::Confusion { classes: 2 }),
    ];
    Schema::new(vec![loss("a"), loss("b")], metrics, Some("right".into())).unwrap()
}

/// A small run on a synthetic network.
fn config() -> RunConfig {
    let tensors = synthetic::manifest(&SyntheticSpec { parameters: ELEMENTS, ..SyntheticSpec::default() });
    serde_json::from_value(json!({
        "version": RUN_VERSION, "tally": "0.1.0", "run": format!("{RUN:016x}"),
        "program": { "name": "hostile", "variant": "synthetic", "arguments": {} },
        "schema": schema(), "seed": 1, "epochs": EPOCHS, "batch_size": BATCH, "microbatches": MICROBATCHES,
        "recipe": "custom",
        "optimizer": {
            "learning_rate": 0.1, "momentum": 0.9, "clip_norm": 2.0, "warmup_steps": 1, "lr_schedule": "linear",
        },
        "data": {
            "directory": null, "train_limit": null, "test_limit": null, "train_samples": TRAIN,
            "test_samples": TEST, "sha256": "",
        },
        "init": null, "chunk": BLOCK, "workers": 1, "checkpoint_every": null, "keep_checkpoints": 3,
        "tensors": tensors,
    }))
    .unwrap()
}

/// A driver of that run, that waits for one worker.
fn driver(root: &Path) -> (Driver, Manifest) {
    let config = config();
    let directory = RunDirectory::create(Some(&root.join("run"))).unwrap();
    let (journal, history): (Journal, History) = Journal::open(&directory.file("journal.jsonl")).unwrap();
    let parameters = init::parameters(&config.tensors, config.seed);
    let master = MasterState::new(&config.initial_state(parameters));
    let spec = RunSpec {
        tree: Tree::new(config.microbatches).unwrap(),
        chunks: 1,
        schedule: Schedule::new(config.seed, TRAIN, BATCH).unwrap(),
        epochs: config.epochs,
        test_samples: TEST,
        optimizer: config.optimizer.clone(),
        checkpoint_every: None,
        workers: 1,
        audit_rate: 0.25,
        reduce: ReduceMode::Sharded,
        credit_window: tally_numerics::CREDIT_WINDOW,
    };
    let clock = Clock::start();
    let info = RunInfo::of(&config, directory.path(), 1, spec.steps(), clock.origin()).unwrap();
    let run = Run {
        config: &config,
        directory: directory.path(),
        incarnation: 1,
        steps: spec.steps(),
        step: 0,
        epoch: 1,
        resumed: false,
        checkpoint: None,
    };
    let view = ViewPublisher::new(View::new(info), clock);
    let observers: Vec<Box<dyn Observer>> = vec![
        Box::new(MetricsObserver::new(&run, WorkerSeries::default())),
        Box::new(ViewObserver::new(view)),
        Box::new(ConsoleObserver::new(Console::new(), config.schema.clone())),
    ];
    let tensors = config.tensors.clone();
    let driver = Driver::new(DriverDeps {
        core: Core::new(spec, 0, master.digest(), Recorded::default()),
        config,
        directory,
        journal,
        history,
        master,
        train: Arc::new(Bytewise(TRAIN)),
        test: Arc::new(Bytewise(TEST)),
        incarnation: 1,
        clock,
        observers,
        spans: true,
        started: Arc::new(AtomicBool::new(false)),
        heartbeat: Heartbeat::start(),
    });
    (driver, tensors)
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
    tests: VecDeque<(u64, u32)>,
    states: VecDeque<(u64, u64)>,
    /// Nodes that others contribute, and states that it was asked for.
    audits: VecDeque<(MessageContext, u32)>,
    uploads: VecDeque<MessageContext>,
    clocks: VecDeque<u64>,
    dials: VecDeque<u64>,
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
                Body::Microbatch(leaf) if leaf.test => self.tests.push_back((context.step, leaf.leaf)),
                Body::Microbatch(leaf) => {
                    self.leaves.insert((context.step, leaf.leaf), leaf.ids);
                }
                Body::Abort(_) => self.plans.retain(|(plan, ..)| plan.attempt > context.attempt),
                Body::Commit(commit) => self.commits.push_back((context.step, commit.digest)),
                Body::Finished(_) | Body::Refused(_) | Body::Evicted(_) => self.finished = true,
                Body::Dial(dial) => self.dials.push_back(dial.peer),
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
        let tree = Tree::new(MICROBATCHES).unwrap();
        let (mut receipts, mut ids) = (Vec::new(), Vec::new());
        for leaf in tree.leaves(node) {
            let count = tree.samples(leaf, samples as usize).len();
            if count > 0 {
                receipts.push(Receipt { leaf, samples: count as u32, losses: LOSSES.to_vec() });
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
        } else if let Some(peer) = self.dials.pop_front() {
            // No worker here has links, whatever they say.
            self.tell(script.context(self.context), worker_message::Body::LinkUp(LinkUp { peer }));
        } else if let Some((step, digest)) = self.states.pop_front() {
            let context = script.context(self.at(step));
            self.tell(context, worker_message::Body::Loaded(Loaded { digest: script.number(digest) }));
        } else if let Some((step, digest)) = self.commits.pop_front() {
            let context = script.context(self.at(step));
            let (apply_seconds, round_seconds) = (script.float(0.1), script.float(0.2));
            let spans = script.spans();
            let digest = script.number(digest);
            let body = Committed { digest, apply_seconds, round_seconds, spans, sums: script.checksums() };
            self.tell(context, worker_message::Body::Committed(body));
        } else if let Some((context, node)) = self.audits.pop_front() {
            let body = AuditDigest { node: script.small(node), digest: script.number(0) };
            self.tell(script.context(context), worker_message::Body::AuditDigest(body));
        } else if let Some(context) = self.uploads.pop_front() {
            for vector in 0..2 {
                let (index, data) = (script.small(0), script.floats(ELEMENTS).into());
                let chunk = StateChunk { vector: script.small(vector), index, data };
                self.send(script.context(context), gradient_up::Body::StateChunk(chunk));
            }
        } else if let Some((step, leaf)) = self.tests.pop_front() {
            let context = script.context(self.at(step));
            let body =
                Evaluated { leaf: script.small(leaf), sums: script.sums(&SUMS), spans: script.spans() };
            self.tell(context, worker_message::Body::Evaluated(body));
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
                receipt.losses = script.sums(&LOSSES);
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
            retained: (0..script.byte() % 3).map(|_| script.retained()).collect(),
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
            dials: VecDeque::new(),
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
                    sums: script.checksums(),
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
                    losses: script.sums(&LOSSES),
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
            10 => {
                let links = Body::LinkDown(LinkDown { peer: script.number(1), reason: script.text() });
                let need = Need { chunks: (0..script.byte() % 8).map(|_| script.small(0)).collect() };
                peer.tell(context, if script.rarely(2) { Body::Need(need) } else { links });
            }
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
