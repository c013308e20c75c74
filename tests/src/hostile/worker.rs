//! A hostile coordinator against a worker's compute thread and its sender.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use prost::Message as _;
use tally_numerics::schema::{LossSpec, Schema};
use tally_numerics::state as held;
use tally_numerics::update::Update;
use tally_proto::span::{self, Clock};
use tally_proto::update;
use tally_proto::v1::{
    self, Abort, AttemptBegin, AttemptClose, Commit, Committed, CoordinatorMessage, GradientDown,
    MessageContext, Microbatch, Plan, ResumeRetained, SendState, State, StateChunk, SumChunk, Welcome,
    coordinator_message, gradient_down, worker_message,
};
use tally_worker::engine::Replica as _;
use tally_worker::engine::synthetic::{SyntheticEngine, SyntheticSpec};
use tally_worker::session::compute::{Compute, ComputeExit};
use tally_worker::session::messages::{Input, SendCommand};
use tally_worker::session::sender;
use tally_worker::session::timeline::{SendTrack, Timeline};
use tokio::sync::{Semaphore, mpsc};

use super::Script;

const ELEMENTS: usize = 10;
const MICROBATCHES: u32 = 4;
const OURS: MessageContext = MessageContext { run: 7, incarnation: 1, session: 9, step: 0, attempt: 0 };
/// Inputs of a script; the longest scripts end here.
const MOST: usize = 4096;

fn engine() -> SyntheticEngine {
    let loss = LossSpec { name: "digit".into(), label: "digit".into() };
    let schema = Schema::new(vec![loss], Vec::new(), None).unwrap();
    SyntheticEngine::new(SyntheticSpec { parameters: ELEMENTS, ..SyntheticSpec::default() }, schema)
}

/// What the coordinator of a script believes of its worker, and what it sends.
struct Hostile {
    inputs: Sender<Input>,
    commands: mpsc::UnboundedSender<SendCommand>,
    room: Arc<Semaphore>,
    sent: usize,
    /// A replica that shows the right digests.
    twin: SyntheticEngine,
    at: MessageContext,
}

/// Plays a script: everything a coordinator can send, decoded as the session does, in any
/// order, to a compute thread and a sender.
///
/// # Panics
/// If the compute thread panics, or tells something that cannot be sent.
pub fn play(script: &[u8]) {
    let mut script = Script::new(script);
    let (inputs, inbox) = channel();
    let (control, mut heard) = mpsc::unbounded_channel();
    let (commands, queue) = mpsc::unbounded_channel();
    let microbatches = if script.rarely(64) { script.small(MICROBATCHES) } else { MICROBATCHES };
    let timeline = Timeline::new(Clock::start());
    let sends = timeline.sends();
    let compute = Compute::new(Box::new(engine()), Vec::new(), microbatches, OURS, control, commands.clone())
        .with_timeline(timeline);
    let room = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
    let mut hostile = Hostile { inputs, commands, room, sent: 0, twin: engine(), at: OURS };
    let thread = std::thread::spawn(move || compute.run(&inbox));
    // Most scripts begin with a good state, since nothing is computed before.
    if !script.rarely(8) {
        hostile.state(&mut Script::new(&[]), true);
    }
    while hostile.sent < MOST
        && let Some(op) = script.op()
    {
        let before = hostile.sent;
        hostile.act(op, &mut script);
        hostile.settle(hostile.sent - before + 4);
    }
    hostile.settle(hostile.sent.min(64));
    let _ = hostile.inputs.send(Input::End);
    drop(hostile);
    let ComputeExit { engine, failed, .. } = thread.join().expect("the compute thread does not panic");
    assert_eq!(engine.manifest().len(), ELEMENTS);
    let mut said = false;
    while let Ok(message) = heard.try_recv() {
        match message.body {
            Some(worker_message::Body::Failed(_)) => said = true,
            Some(worker_message::Body::Committed(Committed { spans, .. })) => {
                assert!(span::spans(&spans).is_ok(), "the coordinator would refuse {spans:?}");
            }
            _ => {}
        }
    }
    if let Some(why) = failed {
        assert!(!why.is_empty() && said, "it ended without a word: {why}");
    }
    send(queue, sends);
}

/// Has the sender send what the compute thread gave it, as far as credits go.
fn send(queue: mpsc::UnboundedReceiver<SendCommand>, sends: SendTrack) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (up, mut sent) = mpsc::channel(2);
    runtime.block_on(async {
        let sender =
            tokio::spawn(sender::run(OURS, tally_numerics::chunks(ELEMENTS), queue, up, None, None, sends));
        while let Some(message) = sent.recv().await {
            assert!(message.encoded_len() <= tally_proto::MAX_FROM_WORKER);
        }
        sender.await.expect("the sender does not panic");
    });
}

impl Hostile {
    /// Waits until the compute thread has done up to `things` things, or all there are: it looks
    /// for new inputs after each.
    fn settle(&self, things: usize) {
        let probe = coordinator_message::Body::Welcome(Welcome::default());
        let turn = Arc::new(Semaphore::new(1));
        for _ in 0..things {
            let Ok(permit) = turn.clone().try_acquire_owned() else { return };
            if self.inputs.send(Input::Control(OURS, probe.clone(), permit)).is_err() {
                return;
            }
            // The permit comes back when the input was taken, or the thread has ended.
            while turn.available_permits() == 0 {
                std::thread::yield_now();
            }
        }
    }

    fn control(&mut self, context: Option<MessageContext>, body: Option<coordinator_message::Body>) {
        // Through the bytes, as on the wire.
        let bytes = CoordinatorMessage { context, body }.encode_to_vec();
        self.control_bytes(&bytes);
    }

    fn control_bytes(&mut self, bytes: &[u8]) {
        let Ok(CoordinatorMessage { context: Some(context), body: Some(body) }) =
            CoordinatorMessage::decode(bytes)
        else {
            return;
        };
        self.sent += 1;
        let permit = self.room.clone().try_acquire_owned().unwrap();
        let _ = self.inputs.send(Input::Control(context, body, permit));
    }

    fn gradient(&mut self, context: Option<MessageContext>, body: Option<gradient_down::Body>) {
        let bytes = GradientDown { context, body }.encode_to_vec();
        self.gradient_bytes(&bytes);
    }

    fn gradient_bytes(&mut self, bytes: &[u8]) {
        let Ok(GradientDown { context: Some(context), body: Some(body) }) = GradientDown::decode(bytes)
        else {
            return;
        };
        self.sent += 1;
        if let gradient_down::Body::SumChunk(reduced) = &body {
            let _ =
                self.commands.send(SendCommand::Reduced { attempt: context.attempt, index: reduced.index });
        }
        let permit = self.room.clone().try_acquire_owned().unwrap();
        let _ = self.inputs.send(Input::Gradient(context, body, permit));
    }

    fn act(&mut self, op: u8, script: &mut Script<'_>) {
        use coordinator_message::Body as Control;
        use gradient_down::Body as Down;
        let step = MessageContext { step: self.at.step + 1, ..self.at };
        match op % 32 {
            0 => self.control_bytes(script.bytes()),
            1 => self.gradient_bytes(script.bytes()),
            2 => self.state(script, false),
            6 => {
                let context = script.context(step);
                let leaf = leaf(script.small(1), script);
                self.control(context, Some(Control::Microbatch(leaf)));
            }
            7 => {
                let context = script.context(step);
                let nodes = (0..script.byte() % 5).map(|_| script.small(2)).collect();
                let (audit, takeover) = (script.rarely(4), script.rarely(8));
                let plan = Plan {
                    samples: script.small(4),
                    nodes,
                    digest: script.number(0),
                    audit,
                    takeover,
                    to_owners: script.rarely(4),
                };
                self.control(context, Some(Control::Plan(plan)));
            }
            8 => {
                let context = script.context(step);
                self.control(context, Some(Control::Abort(Abort { reason: script.text() })));
            }
            9 => {
                let context = script.context(step);
                self.control(context, Some(Control::Commit(Commit { digest: script.number(0) })));
            }
            10 => {
                let (context, begin) = (script.context(step), begin(script));
                self.gradient(context, Some(Down::AttemptBegin(begin)));
            }
            11 => {
                let (context, index) = (script.context(step), script.small(0));
                let data = script.floats(ELEMENTS).into();
                self.gradient(
                    context,
                    Some(Down::SumChunk(SumChunk { index, data, slot: None, crc: script.small(0) })),
                );
            }
            12 => {
                let context = script.context(step);
                let scale = script.float(1.0) as f32;
                self.gradient(context, Some(Down::AttemptClose(AttemptClose { scale })));
            }
            13 => {
                let context = script.context(self.at);
                let (vector, index) = (script.small(1), script.small(0));
                let data = script.floats(ELEMENTS).into();
                self.gradient(context, Some(Down::StateChunk(StateChunk { vector, index, data })));
            }
            14 => {
                let mut test = leaf(script.small(0), script);
                test.test = true;
                let context = script.context(self.at);
                self.control(context, Some(Control::Microbatch(test)));
            }
            15 => {
                let context = script.context(self.at);
                self.control(context, Some(Control::SendState(SendState {})));
            }
            16 => {
                let context = script.context(self.at);
                self.control(
                    context,
                    Some(Control::ResumeRetained(ResumeRetained { digest: script.number(0) })),
                );
            }
            3 => self.at.attempt = script.small(self.at.attempt.saturating_add(1)),
            // Most of the time it does what is due: a worker leaves at the first broken rule.
            _ => self.step(script),
        }
    }

    /// The moments of the worker's state, if it took the one that was sent.
    fn moments(&mut self) -> usize {
        self.twin.state().map_or(0, |state| state.moments.len())
    }

    /// A state; `good` ones are as they should be.
    fn state(&mut self, script: &mut Script<'_>, good: bool) {
        let value = if good { 0.5 } else { script.float(0.5) as f32 };
        let step = if good { 0 } else { script.number(self.at.step) };
        self.at.step = step.min(u64::MAX - 1);
        let context = Some(MessageContext { step, ..OURS });
        let moments = if good || script.rarely(2) { 1 } else { 2 };
        let held =
            held::State { parameters: vec![value; ELEMENTS], moments: vec![vec![0.0; ELEMENTS]; moments] };
        let digest = self.twin.load(held.clone()).0;
        let wrong = !good && script.rarely(8);
        let (elements, digest, moments) = match wrong {
            true => (script.number(ELEMENTS as u64), script.number(digest), script.small(moments as u32)),
            false => (ELEMENTS as u64, digest, moments as u32),
        };
        self.gradient(context, Some(gradient_down::Body::State(State { elements, digest, moments })));
        for (vector, values) in held.vectors().enumerate() {
            let data = tally_proto::floats::copy(values);
            let chunk = StateChunk { vector: vector as u32, index: 0, data };
            self.gradient(context, Some(gradient_down::Body::StateChunk(chunk)));
        }
    }

    /// A step from its samples to its commit, most often as it should be; else a message is
    /// missing, comes twice, or changes places with the next.
    fn step(&mut self, script: &mut Script<'_>) {
        use coordinator_message::Body as Control;
        use gradient_down::Body as Down;
        let attempt = self.at.attempt.saturating_add(1);
        self.at =
            MessageContext { step: self.at.step.saturating_add(1).min(u64::MAX - 1), attempt, ..self.at };
        let begin = begin(script);
        let scale = script.float(1.0) as f32;
        let gradient = [0.25f32; ELEMENTS];
        let data = tally_proto::floats::copy(&gradient);
        let kept = self.moments();
        let rule = begin.rules.first().and_then(update::from_message);
        let digest = match rule.filter(|rule| rule.moments() == kept) {
            Some(rule) => {
                let scale = if begin.unscaled { 1.0 } else { scale };
                self.twin.apply(&Update::of(rule, scale), 0, &gradient).0
            }
            None => 0,
        };
        self.twin.commit();
        let sample =
            |number| Say::Control(Control::Microbatch(leaf(number, &mut Script::new(&[1, 15, 0, 0]))));
        let mut message: Vec<Say> = (0..MICROBATCHES).map(sample).collect();
        message.extend([
            Say::Control(Control::Plan(Plan { samples: MICROBATCHES, nodes: vec![2, 3], ..Plan::default() })),
            Say::Gradient(Down::AttemptBegin(begin)),
            Say::Gradient(Down::SumChunk(SumChunk { data, ..SumChunk::default() })),
            Say::Gradient(Down::AttemptClose(AttemptClose { scale })),
            Say::Control(Control::Commit(Commit { digest: script.number(digest) })),
        ]);
        for at in 0..message.len() {
            let times = match script.byte() % 64 {
                1 => 0,
                2 => 2,
                3 if at + 1 < message.len() => {
                    message.swap(at, at + 1);
                    1
                }
                _ => 1,
            };
            for _ in 0..times {
                match message[at].clone() {
                    Say::Control(body) => self.control(script.context(self.at), Some(body)),
                    Say::Gradient(body) => self.gradient(script.context(self.at), Some(body)),
                }
            }
        }
    }
}

/// A message of either stream.
#[derive(Clone)]
enum Say {
    Control(coordinator_message::Body),
    Gradient(gradient_down::Body),
}

fn begin(script: &mut Script<'_>) -> AttemptBegin {
    let sgd = v1::Sgd {
        learning_rate: script.float(0.1) as f32,
        momentum: script.float(0.9) as f32,
        gradient: 1.0,
        ..v1::Sgd::default()
    };
    let rule = match script.byte() % 64 {
        1 => None,
        2 => Some(v1::rule::Rule::Adam(v1::Adam { keep: script.float(1.0) as f32, ..v1::Adam::default() })),
        _ => Some(v1::rule::Rule::Sgd(sgd)),
    };
    let rules = vec![v1::Rule { rule }; if script.rarely(64) { script.small(1) as usize % 4 } else { 1 }];
    let owners = if script.rarely(4) { vec![script.number(1), script.number(2)] } else { Vec::new() };
    AttemptBegin {
        unscaled: script.rarely(2),
        rules,
        limit: f32::INFINITY,
        machines: Vec::new(),
        linked: owners.clone(),
        owners,
        samples: script.small(4),
        digest: script.number(0),
    }
}

/// Samples of a leaf, most often one, most often right.
fn leaf(number: u32, script: &mut Script<'_>) -> Microbatch {
    let n = usize::from(script.byte() % 3);
    let ids = (0..n).map(|_| script.small(3)).collect();
    let items = if script.rarely(64) { script.bytes().to_vec() } else { vec![9; 3 * n] };
    let lengths = if script.rarely(64) {
        script.bytes().iter().map(|&byte| u32::from(byte)).collect()
    } else {
        vec![3; n]
    };
    Microbatch { leaf: number, test: false, ids, items: items.into(), lengths }
}
