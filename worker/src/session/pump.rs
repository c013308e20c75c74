//! One session: messages between the network and the compute thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use tally_proto::convert;
use tally_proto::span::Clock;
use tally_proto::v1::{
    self, CoordinatorMessage, Stamp, WorkerMessage, coordinator_message, gradient_up, worker_message,
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tonic::Streaming;

use super::compute::{Compute, Input, Rest, Travel};
use super::connect::Connection;
use super::handshake::{self, Admitted, broken, last_word, next};
use super::link::{self, Down};
use super::places::Places;
use super::sender::{self, Item};
use super::timeline::Timeline;
use super::{Ended, Kept, WorkerOptions};

/// Messages that may wait for the compute thread, of each stream; then the network waits.
/// A chunk is 1 MiB, so this bounds what a fast coordinator can make a worker hold.
const WAITING: usize = 256;
/// Chunks between the sender and the connection.
const UP: usize = 2;

/// Takes part until something ends it. `welcomed` becomes true once the coordinator has
/// let this worker in.
pub async fn session(
    options: &WorkerOptions,
    connection: Connection,
    kept: &mut Kept,
    welcomed: &mut bool,
    leave: Pin<&mut impl Future<Output = ()>>,
) -> Ended {
    match take_part(options, connection, kept, welcomed, leave).await {
        Ok(ended) | Err(ended) => ended,
    }
}

async fn take_part(
    options: &WorkerOptions,
    connection: Connection,
    kept: &mut Kept,
    welcomed: &mut bool,
    mut leave: Pin<&mut impl Future<Output = ()>>,
) -> Result<Ended, Ended> {
    let admitted = tokio::select! {
        admitted = handshake::admit(options, connection, kept) => admitted?,
        () = leave.as_mut() => return Ok(Ended::Left),
    };
    let Admitted { mut client, control, mut incoming, stamp, welcome, dtype, memory } = admitted;
    let Some(engine) = kept.engine.take() else { return Err(Ended::Failed("there is no engine".into())) };
    let same_run = kept.run.is_some_and(|(run, _)| run == stamp.run);
    let held = std::mem::take(&mut kept.held);
    let held = if same_run { held } else { Vec::new() };
    kept.run = Some((stamp.run, stamp.incarnation));
    *welcomed = true;
    kept.steps = 0;
    let spare = if welcome.spare { ", as a spare until there is work" } else { "" };
    let way = if memory.is_some() { ", gradients through shared memory" } else { "" };
    options.tell(&format!(
        "joined {}: {} on {}{way}{spare}",
        options.connect,
        welcome.model,
        engine.device()
    ));

    let (up, up_stream) = mpsc::channel(UP);
    let open = v1::Open { shares_memory: memory.is_some() };
    let open = v1::GradientUp { stamp: Some(stamp), body: Some(gradient_up::Body::Open(open)) };
    let _ = up.try_send(open);
    let bulk = link::open(options.link.as_deref(), &mut client, up_stream).await.map_err(|s| broken(&s));
    let mut bulk = match bulk {
        Ok(bulk) => bulk,
        Err(ended) => {
            (kept.engine, kept.held) = (Some(engine), held);
            return Err(ended);
        }
    };
    let offer = convert::offer(engine.manifest(), engine.device(), engine.kind());
    let _ =
        control.send(WorkerMessage { stamp: Some(stamp), body: Some(worker_message::Body::Offer(offer)) });

    let (items, queue) = mpsc::unbounded_channel();
    let (chunks, elements) = (tally_exact::chunks(engine.manifest().len()), engine.manifest().len());
    tracing::debug!(elements, chunks, "session {}", stamp.session);
    let (sums, places) = memory.map(|memory| (memory.down, Arc::new(Places::new(memory.up)))).unzip();
    let clock = Clock::start();
    let timeline = if welcome.spans { Timeline::new(clock) } else { Timeline::default() };
    tokio::spawn(sender::run(stamp, chunks, queue, up, places.clone(), timeline.sends()));
    let (inputs, inbox) = std::sync::mpsc::channel();
    let (done, mut computed) = oneshot::channel();
    let compute = Compute::new(
        engine,
        held,
        welcome.shards,
        welcome.label_loss.parse().unwrap_or_default(),
        stamp,
        control.clone(),
        items.clone(),
    )
    .travelling(Travel { dtype, sums, places })
    .recording(timeline);
    let thread = std::thread::Builder::new().name("compute".into()).spawn(move || {
        let _ = done.send(compute.run(&inbox));
    });
    if let Err(error) = thread {
        return Err(Ended::Failed(format!("no thread to compute with: {error}")));
    }

    let mut early = None;
    let ended = tokio::select! {
        // The thread ends before it is told to only by a panic.
        result = &mut computed => {
            early = Some(result);
            Ended::Failed(String::new())
        }
        ended = pump_control(&mut incoming, stamp, inputs.clone(), &control, clock) => ended,
        ended = pump_gradients(&mut bulk, stamp, inputs.clone(), &items) => ended,
        () = leave.as_mut() => {
            let bye = worker_message::Body::Leave(v1::Leave {});
            let _ = control.send(WorkerMessage { stamp: Some(stamp), body: Some(bye) });
            // The coordinator answers by ending the stream; whether it does or not, we go.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(1), async {
                while next(&mut incoming).await.is_ok() {}
            }).await;
            Ended::Left
        }
    };
    // The bulk stream may break a moment before the word that says why.
    let ended = match ended {
        Ended::Lost(reason) => why(&mut incoming, reason).await,
        other => other,
    };
    let _ = inputs.send(Input::End);
    drop(inputs);
    let result = match early {
        Some(result) => result,
        None => computed.await,
    };
    match result {
        Ok(Rest { failed: Some(what), .. }) => return Ok(Ended::Failed(what)),
        Ok(Rest { engine, held, steps, .. }) => {
            (kept.engine, kept.held, kept.steps) = (Some(engine), held, steps)
        }
        Err(_) => return Ok(Ended::Failed("the compute thread panicked; please report this".into())),
    }
    Ok(ended)
}

/// A stream that breaks is often followed by the word that says why, on the other one.
async fn why(incoming: &mut Streaming<CoordinatorMessage>, reason: String) -> Ended {
    let word = async {
        loop {
            match next(incoming).await {
                Ok(message) => {
                    if let Some(ended) = message.body.as_ref().and_then(last_word) {
                        return Some(ended);
                    }
                }
                Err(_) => return None,
            }
        }
    };
    let word = tokio::time::timeout(std::time::Duration::from_millis(200), word).await;
    word.ok().flatten().unwrap_or(Ended::Lost(reason))
}

/// Whether a message is of this session.
fn check(stamp: Option<Stamp>, ours: Stamp) -> Result<Stamp, Ended> {
    stamp
        .filter(|s| (s.run, s.incarnation, s.session) == (ours.run, ours.incarnation, ours.session))
        .ok_or_else(|| Ended::Lost("it sent a message of another run, incarnation or session".into()))
}

async fn pump_control(
    incoming: &mut Streaming<CoordinatorMessage>,
    ours: Stamp,
    inputs: Sender<Input>,
    control: &mpsc::UnboundedSender<WorkerMessage>,
    clock: Clock,
) -> Ended {
    let room = Arc::new(Semaphore::new(WAITING));
    loop {
        let message = match next(incoming).await {
            Ok(message) => message,
            Err(ended) => return ended,
        };
        let received = Instant::now();
        let stamp = match check(message.stamp, ours) {
            Ok(stamp) => stamp,
            Err(ended) => return ended,
        };
        let Some(body) = message.body else { return Ended::Lost("it sent an empty message".into()) };
        if let Some(ended) = last_word(&body) {
            return ended;
        }
        // Asked and answered here, where nothing else is waited for.
        if let coordinator_message::Body::Clock(v1::ClockQuestion { number }) = body {
            let (received, sent) = (clock.at(received), clock.at(Instant::now()));
            let answer = worker_message::Body::Clock(v1::ClockAnswer { number, received, sent });
            let _ = control.send(WorkerMessage { stamp: Some(stamp), body: Some(answer) });
            continue;
        }
        let Ok(permit) = room.clone().acquire_owned().await else { return Ended::Lost("closing".into()) };
        if inputs.send(Input::Control(stamp, body, permit)).is_err() {
            return Ended::Lost("the engine failed".into());
        }
    }
}

async fn pump_gradients(
    bulk: &mut Down,
    ours: Stamp,
    inputs: Sender<Input>,
    items: &mpsc::UnboundedSender<Item>,
) -> Ended {
    let room = Arc::new(Semaphore::new(WAITING));
    loop {
        let message = match bulk.next().await {
            Some(Ok(message)) => message,
            None => return Ended::Lost("it closed the connection".into()),
            Some(Err(status)) => return broken(&status),
        };
        let stamp = match check(message.stamp, ours) {
            Ok(stamp) => stamp,
            Err(ended) => return ended,
        };
        let Some(body) = message.body else { return Ended::Lost("it sent an empty message".into()) };
        if let v1::gradient_down::Body::Reduced(reduced) = &body {
            let _ = items.send(Item::Reduced { attempt: stamp.attempt, index: reduced.index });
        }
        let Ok(permit) = room.clone().acquire_owned().await else { return Ended::Lost("closing".into()) };
        if inputs.send(Input::Gradient(stamp, body, permit)).is_err() {
            return Ended::Lost("the engine failed".into());
        }
    }
}
