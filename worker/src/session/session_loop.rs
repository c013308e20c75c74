//! One session: it moves messages between the network and the compute thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use tally_numerics::tree::Tree;
use tally_proto::convert;
use tally_proto::span::Clock;
use tally_proto::v1::gradient_down::Body;
use tally_proto::v1::{
    self, CoordinatorMessage, MessageContext, WorkerMessage, coordinator_message, gradient_up, worker_message,
};
use tally_transport::connect::Connection;
use tally_transport::link::{LinkIdentity, LinkSecret};
use tally_transport::local::{self, Down};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tonic::Streaming;

use super::compute::{Compute, ComputeExit, GradientTransport};
use super::end::{RetainedWorker, SessionEnd};
use super::handshake::{self, Admitted, next};
use super::messages::{Input, SendCommand};
use super::options::SessionOptions;
use super::peers::{PeerWiring, Peers};
use super::sender;
use super::slots::SlotPool;
use super::timeline::Timeline;
use crate::program::WorkerProgram;

/// Messages of each stream that may wait for the compute thread; then the network waits.
/// A chunk is 256 KiB, so this bounds the memory that a fast coordinator can make a worker use.
const MAX_QUEUED: usize = 1024;
/// Chunks between the sender and the connection.
const UP_CHANNEL: usize = 8;

/// Takes part in a run until something ends the session. `welcomed` becomes true once the coordinator has
/// let this worker in.
pub async fn run(
    options: &SessionOptions,
    program: &Arc<dyn WorkerProgram>,
    connection: Connection,
    retained: &mut RetainedWorker,
    welcomed: &mut bool,
    leave: Pin<&mut impl Future<Output = ()>>,
) -> SessionEnd {
    match take_part(options, program, connection, retained, welcomed, leave).await {
        Ok(end) | Err(end) => end,
    }
}

async fn take_part(
    options: &SessionOptions,
    program: &Arc<dyn WorkerProgram>,
    connection: Connection,
    retained: &mut RetainedWorker,
    welcomed: &mut bool,
    mut leave: Pin<&mut impl Future<Output = ()>>,
) -> Result<SessionEnd, SessionEnd> {
    let admitted = tokio::select! {
        admitted = handshake::admit(options, program, connection, retained) => admitted?,
        () = leave.as_mut() => return Ok(SessionEnd::Left),
    };
    let Admitted { mut client, control, mut incoming, context, welcome, dtype, memory } = admitted;
    let Some(engine) = retained.engine.take() else {
        return Err(SessionEnd::Failed("there is no engine".into()));
    };
    let same_run = retained.run.is_some_and(|(run, _)| run == context.run);
    let states = std::mem::take(&mut retained.states);
    let states = if same_run { states } else { Vec::new() };
    retained.run = Some((context.run, context.incarnation));
    *welcomed = true;
    retained.steps = 0;
    let spare = if welcome.spare { ", as a spare until there is work" } else { "" };
    let shared = if memory.is_some() { ", gradients through shared memory" } else { "" };
    options.report(&format!(
        "joined {}: {} on {}{shared}{spare}",
        options.connect,
        welcome.program,
        engine.device_name()
    ));

    let (up, up_stream) = mpsc::channel(UP_CHANNEL);
    let open = v1::StreamOpen { shares_memory: memory.is_some() };
    let open = v1::GradientUp { context: Some(context), body: Some(gradient_up::Body::StreamOpen(open)) };
    let _ = up.try_send(open);
    let mut down = match local::open_gradients(options.local.as_deref(), &mut client, up_stream).await {
        Ok(down) => down,
        Err(status) => {
            (retained.engine, retained.states) = (Some(engine), states);
            return Err(SessionEnd::of_status(&status));
        }
    };
    let (commands, queue) = mpsc::unbounded_channel();
    let (inputs, inbox) = std::sync::mpsc::channel();
    let elements = engine.manifest().trained_len();
    let chunks = tally_numerics::chunks(elements);
    let peers = match (LinkSecret::from_bytes(&welcome.link_secret), Tree::new(welcome.microbatches)) {
        (Some(secret), Ok(tree)) if options.local.is_none() => {
            let (inputs, commands, control) = (inputs.clone(), commands.clone(), control.clone());
            let identity = link_identity(options)?;
            let wiring =
                PeerWiring { context, tree, elements, dtype, inputs, commands, control, secret, identity };
            Some(Peers::start(wiring, &options.peers).await)
        }
        _ => None,
    };
    let (peers, endpoint) = peers.unzip();
    let offer = convert::offer(engine.manifest(), engine.device_name(), engine.numerics_class());
    let offer = v1::ModelManifest { peer: endpoint, ..offer };
    let _ = control.send(WorkerMessage {
        context: Some(context),
        body: Some(worker_message::Body::ModelManifest(offer)),
    });
    tracing::debug!(elements, chunks, "session {}", context.session);
    let (sums, slots) = memory.map(|memory| (memory.down, Arc::new(SlotPool::new(memory.up)))).unzip();
    let clock = Clock::start();
    let timeline = if welcome.spans { Timeline::new(clock) } else { Timeline::default() };
    let to_owners = peers.as_ref().map(Peers::sender);
    tokio::spawn(sender::run(context, chunks, queue, up, to_owners, slots.clone(), timeline.sends()));
    let (done, mut computed) = oneshot::channel();
    let compute =
        Compute::new(engine, states, welcome.microbatches, context, control.clone(), commands.clone())
            .with_transport(GradientTransport { dtype, sums, slots })
            .with_timeline(timeline);
    let thread = std::thread::Builder::new().name("compute".into()).spawn(move || {
        let _ = done.send(compute.run(&inbox));
    });
    if let Err(error) = thread {
        return Err(SessionEnd::Failed(format!("no thread to compute with: {error}")));
    }

    let mut early = None;
    let end = tokio::select! {
        // The thread ends before it is asked to only by a panic.
        result = &mut computed => {
            early = Some(result);
            SessionEnd::Failed(String::new())
        }
        end = forward_control(&mut incoming, context, inputs.clone(), &control, peers.as_ref(), clock) => end,
        end = forward_gradients(&mut down, context, inputs.clone(), &commands, peers.as_ref()) => end,
        () = leave.as_mut() => {
            let bye = worker_message::Body::Leave(v1::Leave {});
            let _ = control.send(WorkerMessage { context: Some(context), body: Some(bye) });
            // The coordinator answers by ending the stream; this worker leaves whether it does or not.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(1), async {
                while next(&mut incoming).await.is_ok() {}
            }).await;
            SessionEnd::Left
        }
    };
    // The gradient stream may break a moment before the message that says why.
    let end = match end {
        SessionEnd::Lost(reason) => reason_of_loss(&mut incoming, reason).await,
        other => other,
    };
    drop(peers);
    let _ = inputs.send(Input::End);
    drop(inputs);
    let result = match early {
        Some(result) => result,
        None => computed.await,
    };
    match result {
        Ok(ComputeExit { failed: Some(what), .. }) => return Ok(SessionEnd::Failed(what)),
        Ok(ComputeExit { engine, states, steps, .. }) => {
            (retained.engine, retained.states, retained.steps) = (Some(engine), states, steps);
        }
        Err(_) => return Ok(SessionEnd::Failed("the compute thread panicked; please report this".into())),
    }
    Ok(end)
}

/// This session's certificate for links, where the cluster uses TLS.
fn link_identity(options: &SessionOptions) -> Result<Option<LinkIdentity>, SessionEnd> {
    let tls = options.access.tls_ca.is_some();
    let identity = tls.then(LinkIdentity::generate).transpose();
    identity.map_err(|error| SessionEnd::Failed(format!("no certificate for links: {error:#}")))
}

/// When one stream breaks, the other one often brings the message that says why.
async fn reason_of_loss(incoming: &mut Streaming<CoordinatorMessage>, reason: String) -> SessionEnd {
    let end = async {
        loop {
            match next(incoming).await {
                Ok(message) => {
                    if let Some(end) = message.body.as_ref().and_then(SessionEnd::of_message) {
                        return Some(end);
                    }
                }
                Err(_) => return None,
            }
        }
    };
    let end = tokio::time::timeout(std::time::Duration::from_millis(200), end).await;
    end.ok().flatten().unwrap_or(SessionEnd::Lost(reason))
}

/// The context of a message, if the message belongs to this session.
fn check(context: Option<MessageContext>, ours: MessageContext) -> Result<MessageContext, SessionEnd> {
    context
        .filter(|s| (s.run, s.incarnation, s.session) == (ours.run, ours.incarnation, ours.session))
        .ok_or_else(|| SessionEnd::Lost("it sent a message of another run, incarnation or session".into()))
}

async fn forward_control(
    incoming: &mut Streaming<CoordinatorMessage>,
    ours: MessageContext,
    inputs: Sender<Input>,
    control: &mpsc::UnboundedSender<WorkerMessage>,
    peers: Option<&Peers>,
    clock: Clock,
) -> SessionEnd {
    let room = Arc::new(Semaphore::new(MAX_QUEUED));
    loop {
        let message = match next(incoming).await {
            Ok(message) => message,
            Err(end) => return end,
        };
        let received = Instant::now();
        let context = match check(message.context, ours) {
            Ok(context) => context,
            Err(end) => return end,
        };
        let Some(body) = message.body else { return SessionEnd::Lost("it sent an empty message".into()) };
        if let Some(end) = SessionEnd::of_message(&body) {
            return end;
        }
        // The answer leaves from here, so that it waits for nothing else.
        if let coordinator_message::Body::Clock(v1::ClockQuestion { number }) = body {
            let (received, sent) = (clock.at(received), clock.at(Instant::now()));
            let answer = worker_message::Body::Clock(v1::ClockAnswer { number, received, sent });
            let _ = control.send(WorkerMessage { context: Some(context), body: Some(answer) });
            continue;
        }
        if let coordinator_message::Body::Dial(dial) = body {
            if let Some(peers) = peers {
                peers.dial(dial);
            }
            continue;
        }
        let Ok(permit) = room.clone().acquire_owned().await else {
            return SessionEnd::Lost("closing".into());
        };
        if inputs.send(Input::Control(context, body, permit)).is_err() {
            return SessionEnd::Lost("the engine failed".into());
        }
    }
}

async fn forward_gradients(
    down: &mut Down,
    ours: MessageContext,
    inputs: Sender<Input>,
    commands: &mpsc::UnboundedSender<SendCommand>,
    peers: Option<&Peers>,
) -> SessionEnd {
    let room = Arc::new(Semaphore::new(MAX_QUEUED));
    loop {
        let message = match down.next().await {
            Some(Ok(message)) => message,
            None => return SessionEnd::Lost("it closed the connection".into()),
            Some(Err(status)) => return SessionEnd::of_status(&status),
        };
        let context = match check(message.context, ours) {
            Ok(context) => context,
            Err(end) => return end,
        };
        let Some(body) = message.body else { return SessionEnd::Lost("it sent an empty message".into()) };
        let attempt = context.attempt;
        let begin = match &body {
            Body::SumChunk(reduced) => {
                let _ = commands.send(SendCommand::Reduced { attempt, index: reduced.index });
                None
            }
            Body::AttemptBegin(begin) => Some(begin.clone()),
            Body::TakeBack(taken) => {
                let _ = commands.send(SendCommand::TakeBack { attempt, chunks: taken.chunks.clone() });
                continue;
            }
            _ => None,
        };
        let Ok(permit) = room.clone().acquire_owned().await else {
            return SessionEnd::Lost("closing".into());
        };
        if inputs.send(Input::Gradient(context, body, permit)).is_err() {
            return SessionEnd::Lost("the engine failed".into());
        }
        // The compute thread hears of the attempt before it gets an owner's sum.
        if let Some(begin) = begin {
            let layout = convert::layout(&begin);
            if let Some(peers) = peers {
                peers.begin(context, &begin, layout.clone());
            }
            let _ = commands.send(SendCommand::Attempt { attempt, layout });
        }
    }
}
