//! The compute thread alone, with both ends of its queues in the test.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use tally_numerics::manifest::Manifest;
use tally_numerics::schema::{LossSpec, Schema};
use tally_numerics::state::State;
use tally_numerics::update::Update;
use tally_numerics::update::rule::{Adam, Rule};
use tally_numerics::{chunk_range, chunks, init, sum};
use tally_proto::{floats, update};
use tokio::sync::Semaphore;

use super::*;
use crate::engine::Replica;
use crate::engine::synthetic::{SyntheticEngine, SyntheticSpec};
use crate::session::messages::Payload;

/// The optimizer keeps two moments.
const RULE: Rule = Rule::Adam(Adam {
    step_size: 0.1,
    beta1: 0.9,
    gradient1: 0.1,
    beta2: 0.99,
    gradient2: 0.01,
    correction: 10.0,
    epsilon: 1e-8,
    weight_decay: 0.0,
    keep: 0.999,
    cautious: false,
    amsgrad: false,
});

fn begin(unscaled: bool) -> v1::AttemptBegin {
    v1::AttemptBegin {
        unscaled,
        rules: vec![update::to_message(&RULE)],
        limit: f32::INFINITY,
        ..v1::AttemptBegin::default()
    }
}

/// The synthetic engine, which cannot read samples without bytes.
struct TestEngine(SyntheticEngine);

impl Replica for TestEngine {
    fn manifest(&self) -> &Manifest {
        self.0.manifest()
    }

    fn device_name(&self) -> String {
        self.0.device_name()
    }

    fn numerics_class(&self) -> String {
        self.0.numerics_class()
    }

    fn load(&mut self, state: State) -> Digest {
        self.0.load(state)
    }

    fn state(&mut self) -> Result<State, EngineError> {
        self.0.state()
    }

    fn previous_state(&mut self) -> Option<State> {
        self.0.previous_state()
    }

    fn apply(&mut self, update: &Update, first: usize, gradient: &[f32]) -> Digest {
        self.0.apply(update, first, gradient)
    }

    fn commit(&mut self) {
        self.0.commit();
    }
}

impl Engine for TestEngine {
    fn check(&self, samples: &Microbatch) -> Result<(), EngineError> {
        match samples.items().all(|item| !item.is_empty()) {
            true => Ok(()),
            false => Err(EngineError::Samples("a sample has no bytes".into())),
        }
    }

    fn gradient(
        &mut self,
        samples: &Microbatch,
        scale: f32,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Sums, EngineError> {
        self.0.gradient(samples, scale, out, ready)
    }

    fn evaluate(&mut self, samples: &Microbatch) -> Result<Sums, EngineError> {
        self.0.evaluate(samples)
    }
}

/// A compute thread with a small synthetic engine, and both ends of its queues.
struct Bench {
    inputs: Sender<Input>,
    heard: mpsc::UnboundedReceiver<WorkerMessage>,
    commands: mpsc::UnboundedReceiver<SendCommand>,
    room: Arc<Semaphore>,
    /// A second engine that shows what should come out.
    twin: Box<dyn Engine>,
    thread: std::thread::JoinHandle<ComputeExit>,
}

const STAMP: MessageContext = MessageContext { run: 1, incarnation: 1, session: 1, step: 0, attempt: 0 };

impl Bench {
    fn build() -> Box<dyn Engine> {
        let loss = |name: &str| LossSpec { name: name.into(), label: name.into() };
        let schema = Schema::new(vec![loss("a"), loss("b")], Vec::new(), None).unwrap();
        let spec = SyntheticSpec { parameters: 1000, ..SyntheticSpec::default() };
        Box::new(TestEngine(SyntheticEngine::new(spec, schema)))
    }

    fn new() -> Self {
        Self::with(Self::build(), Vec::new())
    }

    fn with(engine: Box<dyn Engine>, states: Vec<(u64, Digest)>) -> Self {
        let (control, heard) = mpsc::unbounded_channel();
        let (out, commands) = mpsc::unbounded_channel();
        let (inputs, inbox) = channel();
        let compute = Compute::new(engine, states, 4, STAMP, control, out);
        let thread = std::thread::spawn(move || compute.run(&inbox));
        Self { inputs, heard, commands, room: Arc::new(Semaphore::new(1 << 17)), twin: Self::build(), thread }
    }

    fn control(&self, step: u64, attempt: u32, body: coordinator_message::Body) {
        let permit = self.room.clone().try_acquire_owned().unwrap();
        self.inputs.send(Input::Control(MessageContext { step, attempt, ..STAMP }, body, permit)).unwrap();
    }

    fn gradient(&self, step: u64, attempt: u32, body: gradient_down::Body) {
        let permit = self.room.clone().try_acquire_owned().unwrap();
        self.inputs.send(Input::Gradient(MessageContext { step, attempt, ..STAMP }, body, permit)).unwrap();
    }

    fn load(&mut self) {
        let parameters = init::parameters(self.twin.manifest(), 1);
        let elements = parameters.len() as u64;
        let state = State::new(parameters, self.twin.manifest(), 2);
        let digest = self.twin.load(state.clone()).0;
        self.gradient(0, 0, gradient_down::Body::State(v1::State { elements, digest, moments: 2 }));
        for (vector, values) in state.vectors().enumerate() {
            let chunk = v1::StateChunk { vector: vector as u32, index: 0, data: floats::copy(values) };
            self.gradient(0, 0, gradient_down::Body::StateChunk(chunk));
        }
        assert!(matches!(self.hear(), worker_message::Body::Loaded(l) if l.digest == digest));
    }

    fn hear(&mut self) -> worker_message::Body {
        self.heard.blocking_recv().unwrap().body.unwrap()
    }

    /// Sends a step's sum; returns the digest that the coordinator would have.
    fn sum(&mut self, step: u64, attempt: u32) -> u64 {
        let gradient: Vec<f32> = (0..1000).map(|i| (step as f32) * 0.001 * i as f32).collect();
        self.gradient(step, attempt, gradient_down::Body::AttemptBegin(begin(false)));
        let reduced = v1::SumChunk { data: floats::copy(&gradient), ..v1::SumChunk::default() };
        self.gradient(step, attempt, gradient_down::Body::SumChunk(reduced));
        self.gradient(step, attempt, gradient_down::Body::AttemptClose(v1::AttemptClose { scale: 0.5 }));
        let digest = self.twin.apply(&Update::of(RULE, 0.5), 0, &gradient);
        self.twin.commit();
        digest.0
    }

    fn commit(&self, step: u64, digest: u64) {
        self.control(step, 1, coordinator_message::Body::Commit(v1::Commit { digest }));
    }

    fn committed(&mut self) -> u64 {
        match self.hear() {
            worker_message::Body::Committed(committed) => committed.digest,
            other => panic!("{other:?} where a commit should be"),
        }
    }

    fn end(self) -> Option<String> {
        self.inputs.send(Input::End).unwrap();
        self.thread.join().unwrap().failed
    }
}

#[test]
fn rep_1_the_streams_may_race_each_other() {
    let mut bench = Bench::new();
    bench.load();
    // The sums of three steps come before the first commit …
    let digests = [bench.sum(1, 1), bench.sum(2, 2), bench.sum(3, 3)];
    bench.commit(1, digests[0]);
    bench.commit(2, digests[1]);
    assert_eq!([bench.committed(), bench.committed()], [digests[0], digests[1]]);
    bench.commit(3, digests[2]);
    assert_eq!(bench.committed(), digests[2]);
    // … and a commit before its sum.
    let mut twin = Bench::new();
    twin.load();
    (1..=3).for_each(|step| {
        twin.sum(step, step as u32);
    });
    let fourth = twin.sum(4, 4);
    bench.commit(4, fourth);
    assert_eq!(bench.sum(4, 4), fourth);
    assert_eq!(bench.committed(), fourth);
    assert_eq!((bench.end(), twin.end()), (None, None));
}

#[test]
fn a_new_attempt_voids_what_was_applied_for_the_old_one() {
    let mut bench = Bench::new();
    bench.load();
    bench.gradient(1, 1, gradient_down::Body::AttemptBegin(begin(true)));
    let wrong = v1::SumChunk { data: floats::copy(&[9.0; 1000]), ..v1::SumChunk::default() };
    bench.gradient(1, 1, gradient_down::Body::SumChunk(wrong));
    bench.control(1, 1, coordinator_message::Body::Abort(v1::Abort { reason: "test".into() }));
    let digest = bench.sum(1, 2);
    bench.commit(1, digest);
    assert_eq!(bench.committed(), digest);
    assert_eq!(bench.end(), None);
}

/// LIVE-1: a slow replica hears that an attempt at the next step is void while it is busy
/// with the sum of this one, which is committed.
#[test]
fn live_1_the_abort_of_a_step_leaves_the_step_before_alone() {
    for overtakes in [true, false] {
        let mut bench = Bench::new();
        bench.load();
        let abort = coordinator_message::Body::Abort(v1::Abort { reason: "test".into() });
        let first = if overtakes {
            bench.control(2, 2, abort);
            bench.sum(1, 1)
        } else {
            let first = bench.sum(1, 1);
            bench.control(2, 2, abort);
            first
        };
        bench.commit(1, first);
        assert_eq!(bench.committed(), first);
        bench.gradient(2, 2, gradient_down::Body::AttemptBegin(begin(true)));
        let wrong = v1::SumChunk { data: floats::copy(&[9.0; 1000]), ..v1::SumChunk::default() };
        bench.gradient(2, 2, gradient_down::Body::SumChunk(wrong));
        let second = bench.sum(2, 3);
        bench.commit(2, second);
        assert_eq!(bench.committed(), second);
        assert_eq!(bench.end(), None);
    }
}

#[test]
fn sum_1_a_node_is_the_sum_of_its_microbatches_and_nodes_leave_in_order() {
    let mut bench = Bench::new();
    bench.load();
    let samples = |id: u32| Microbatch::new([(id, vec![1].into())]);
    // Three samples in four microbatches: the first is empty.
    for leaf in 1..4 {
        let body = coordinator_message::Body::Microbatch(samples(leaf).to_message(leaf, false));
        bench.control(1, 0, body);
    }
    let plan = v1::Plan { samples: 3, nodes: vec![2, 3], ..Default::default() };
    bench.control(1, 1, coordinator_message::Body::Plan(plan));
    let mut leaf = |id| {
        let mut out = vec![0.0; 1000];
        bench.twin.gradient(&samples(id), 1.0 / 3.0, &mut out, &mut |_| {}).unwrap();
        out
    };
    let mut right = leaf(2);
    sum::add(&mut right, &leaf(3));
    let expect = [(2, floats::copy(&leaf(1))), (3, floats::copy(&right))];
    for (wanted, sum) in expect.clone() {
        assert!(
            matches!(bench.commands.blocking_recv(), Some(SendCommand::ContributionBegin { header, .. }) if header.node == wanted)
        );
        let Some(SendCommand::Chunk { node, data, .. }) = bench.commands.blocking_recv() else {
            panic!("no chunk")
        };
        let Payload::Bytes(data) = data else { panic!("there is no shared memory") };
        assert_eq!((node, data), (wanted, sum));
        assert!(
            matches!(bench.commands.blocking_recv(), Some(SendCommand::ContributionEnd { trailer, .. }) if trailer.node == wanted)
        );
    }
    // An audit of the same node gets the same bits, and sends their digest alone.
    let plan = v1::Plan { samples: 3, nodes: vec![3], audit: true, ..Default::default() };
    bench.control(1, 1, coordinator_message::Body::Plan(plan));
    let Some(worker_message::Body::AuditDigest(audited)) = bench.heard.blocking_recv().unwrap().body else {
        panic!("no answer")
    };
    assert_eq!(audited.digest, tally_numerics::digest::of(0, &right, &[&right]).0);
    assert!(bench.commands.try_recv().is_err());
    assert_eq!(bench.end(), None);
}

/// RESUME-1: a worker that lost its coordinator can send the states that it has, and resume from the newest.
#[test]
fn resume_1_a_retained_state_is_offered_sent_and_resumed_from() {
    let mut bench = Bench::new();
    bench.load();
    let first = bench.sum(1, 1);
    bench.commit(1, first);
    assert_eq!(bench.committed(), first);
    bench.inputs.send(Input::End).unwrap();
    let exit = bench.thread.join().unwrap();
    let start = exit.states[1].1;
    assert_eq!(exit.states, [(1, Digest(first)), (0, start)]);

    let mut bench = Bench::with(exit.engine, exit.states);
    for (step, digest) in [(1, Digest(first)), (0, start)] {
        bench.control(step, 0, coordinator_message::Body::SendState(v1::SendState {}));
        let mut state = State { parameters: vec![0.0; 1000], moments: vec![vec![0.0; 1000]; 2] };
        for _ in 0..3 * chunks(1000) {
            let Some(SendCommand::State { step: of, chunk }) = bench.commands.blocking_recv() else {
                panic!("no state")
            };
            assert_eq!(of, step);
            let range = chunk_range(1000, chunk.index as usize);
            floats::read(&chunk.data, &mut state.vector_mut(chunk.vector as usize).unwrap()[range]).unwrap();
        }
        assert_eq!(state.digest(), digest);
    }
    bench.control(1, 0, coordinator_message::Body::ResumeRetained(v1::ResumeRetained { digest: first }));
    let Some(worker_message::Body::Loaded(loaded)) = bench.heard.blocking_recv().unwrap().body else {
        panic!("it does not resume")
    };
    assert_eq!(loaded.digest, first);
    assert_eq!(bench.end(), None);
}

#[test]
fn rep_1_a_state_that_was_damaged_in_memory_is_not_resumed_from() {
    let mut bench = Bench::new();
    bench.load();
    bench.inputs.send(Input::End).unwrap();
    let mut exit = bench.thread.join().unwrap();
    let mut state = exit.engine.state().unwrap();
    state.parameters[7] += 1.0;
    exit.engine.load(state);
    let bench = Bench::with(exit.engine, exit.states.clone());
    bench.control(
        0,
        0,
        coordinator_message::Body::ResumeRetained(v1::ResumeRetained { digest: exit.states[0].1.0 }),
    );
    assert!(bench.end().is_some_and(|why| why.contains("damaged")));
}

#[test]
fn trust_1_a_worker_leaves_a_coordinator_that_breaks_the_rules_and_says_why() {
    type Hostile = (fn(&mut Bench), &'static str);
    let hostile: [Hostile; 12] = [
        (|b| (0..=1 << 16).for_each(|step| b.commit(step + 2, 0)), "thousands of messages"),
        (
            |b| {
                b.gradient(0, 0, gradient_down::Body::State(v1::State { elements: 5, digest: 0, moments: 1 }))
            },
            "5 elements",
        ),
        (|b| b.gradient(0, 0, gradient_down::Body::StateChunk(v1::StateChunk::default())), "announced"),
        (
            |b| {
                let unreadable = Microbatch::new([(1, Vec::new().into())]).to_message(1, false);
                b.control(1, 1, coordinator_message::Body::Microbatch(unreadable));
            },
            "no bytes",
        ),
        (
            |b| {
                b.control(
                    1,
                    1,
                    coordinator_message::Body::Plan(v1::Plan { nodes: vec![99], ..Default::default() }),
                )
            },
            "99",
        ),
        (
            |b| {
                b.control(
                    1,
                    1,
                    coordinator_message::Body::Microbatch(v1::Microbatch {
                        ids: vec![1],
                        ..Default::default()
                    }),
                )
            },
            "samples",
        ),
        (
            |b| {
                b.load();
                b.gradient(1, 1, gradient_down::Body::AttemptBegin(begin(false)));
                b.gradient(
                    1,
                    1,
                    gradient_down::Body::SumChunk(v1::SumChunk {
                        index: u32::MAX,
                        ..v1::SumChunk::default()
                    }),
                );
            },
            "none",
        ),
        (
            |b| {
                b.load();
                b.gradient(1, 1, gradient_down::Body::AttemptBegin(v1::AttemptBegin::default()));
            },
            "0 rules",
        ),
        (
            |b| {
                b.load();
                let unknown = v1::AttemptBegin { rules: vec![v1::Rule { rule: None }], ..begin(true) };
                b.gradient(1, 1, gradient_down::Body::AttemptBegin(unknown));
            },
            "does not know",
        ),
        (
            |b| {
                b.load();
                let lion = v1::rule::Rule::Lion(v1::Lion::default());
                let other = v1::AttemptBegin { rules: vec![v1::Rule { rule: Some(lion) }], ..begin(true) };
                b.gradient(1, 1, gradient_down::Body::AttemptBegin(other));
            },
            "1 moments for a state with 2",
        ),
        (
            |b| {
                let state = v1::State { elements: 1000, digest: 0, moments: 4 };
                b.gradient(0, 0, gradient_down::Body::State(state));
            },
            "4 moments",
        ),
        (
            |b| {
                let state = v1::State { elements: 1000, digest: 0, moments: 2 };
                b.gradient(0, 0, gradient_down::Body::State(state));
                let chunk = v1::StateChunk { vector: 3, ..Default::default() };
                b.gradient(0, 0, gradient_down::Body::StateChunk(chunk));
            },
            "no vector 3",
        ),
    ];
    for (break_rules, word) in hostile {
        let mut bench = Bench::new();
        break_rules(&mut bench);
        let said = bench.hear();
        assert!(matches!(&said, worker_message::Body::Failed(f) if f.what.contains(word)), "{said:?}");
        assert!(bench.end().is_some_and(|why| why.contains(word)));
    }
}
