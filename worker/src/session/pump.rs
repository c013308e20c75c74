//! One session: the handshake, then messages between the network and the compute thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use tally_proto::v1::cluster_client::ClusterClient;
use tally_proto::v1::{
    self, CoordinatorMessage, Stamp, WorkerMessage, coordinator_message, gradient_up, worker_message,
};
use tally_proto::{MAX_FROM_COORDINATOR, PROTOCOL, convert};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::compute::{Compute, Input};
use super::sender::{self, Item};
use super::{Ended, Kept, WorkerOptions};
use crate::engine::backend;

/// Messages that may wait for the compute thread, of each stream; then the network waits.
/// A chunk is 1 MiB, so this bounds what a fast coordinator can make a worker hold.
const WAITING: usize = 256;
/// Chunks between the sender and the connection.
const UP: usize = 2;

/// Takes part until something ends it. `welcomed` becomes true once the coordinator has
/// let this worker in.
pub async fn session(
    options: &WorkerOptions,
    channel: Channel,
    kept: &mut Kept,
    welcomed: &mut bool,
    leave: Pin<&mut impl Future<Output = ()>>,
) -> Ended {
    match take_part(options, channel, kept, welcomed, leave).await {
        Ok(ended) | Err(ended) => ended,
    }
}

fn lost(status: &Status) -> Ended {
    match status.code() {
        Code::FailedPrecondition | Code::InvalidArgument | Code::Unimplemented => {
            Ended::Refused(status.message().into())
        }
        _ => Ended::Lost(status.message().into()),
    }
}

async fn next(stream: &mut Streaming<CoordinatorMessage>) -> Result<CoordinatorMessage, Ended> {
    match stream.message().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(Ended::Lost("it closed the connection".into())),
        Err(status) => Err(lost(&status)),
    }
}

async fn take_part(
    options: &WorkerOptions,
    channel: Channel,
    kept: &mut Kept,
    welcomed: &mut bool,
    mut leave: Pin<&mut impl Future<Output = ()>>,
) -> Result<Ended, Ended> {
    let mut client = ClusterClient::new(channel)
        .max_decoding_message_size(MAX_FROM_COORDINATOR)
        .max_encoding_message_size(usize::MAX);
    let (control, outgoing) = mpsc::unbounded_channel();
    let hello = v1::Hello {
        protocol: PROTOCOL,
        build: env!("CARGO_PKG_VERSION").into(),
        name: options.name.clone(),
        backend: options.backend.to_string(),
        threads: options.threads as u32,
        capabilities: Vec::new(),
        held: Vec::new(),
    };
    let _ = control.send(WorkerMessage { stamp: None, body: Some(worker_message::Body::Hello(hello)) });
    let incoming = client.control(UnboundedReceiverStream::new(outgoing)).await.map_err(|s| lost(&s))?;
    let mut incoming = incoming.into_inner();

    let first = next(&mut incoming).await?;
    let (Some(stamp), Some(coordinator_message::Body::Welcome(welcome))) = (first.stamp, first.body) else {
        return Err(Ended::Refused("its first message was no welcome".into()));
    };
    if welcome.protocol != PROTOCOL {
        return Err(Ended::Refused(format!(
            "it ({}) speaks protocol {}, this worker ({}) protocol {PROTOCOL}; run the same version on both sides",
            welcome.build,
            welcome.protocol,
            env!("CARGO_PKG_VERSION")
        )));
    }
    build_engine(options, kept, &welcome).await?;
    let Some(engine) = kept.engine.take() else { return Err(Ended::Failed("there is no engine".into())) };
    *welcomed = true;
    let spare = if welcome.spare { ", as a spare until there is work" } else { "" };
    options.tell(&format!("joined {}: {} on {}{spare}", options.connect, welcome.model, engine.device()));

    let (up, up_stream) = mpsc::channel(UP);
    let open = v1::GradientUp { stamp: Some(stamp), body: Some(gradient_up::Body::Open(v1::Open {})) };
    let _ = up.try_send(open);
    let bulk = client.gradients(ReceiverStream::new(up_stream)).await.map_err(|s| lost(&s));
    let mut bulk = match bulk {
        Ok(bulk) => bulk.into_inner(),
        Err(ended) => {
            kept.engine = Some(engine);
            return Err(ended);
        }
    };
    let offer = convert::offer(engine.manifest(), engine.device());
    let _ =
        control.send(WorkerMessage { stamp: Some(stamp), body: Some(worker_message::Body::Offer(offer)) });

    let (items, queue) = mpsc::unbounded_channel();
    let (chunks, elements) = (tally_exact::chunks(engine.manifest().len()), engine.manifest().len());
    tracing::debug!(elements, chunks, "session {}", stamp.session);
    tokio::spawn(sender::run(stamp, chunks, queue, up));
    let (inputs, inbox) = std::sync::mpsc::channel();
    let (done, computed) = oneshot::channel();
    let compute = Compute::new(
        engine,
        welcome.shards,
        welcome.label_loss.parse().unwrap_or_default(),
        stamp,
        control.clone(),
        items.clone(),
    );
    let thread = std::thread::Builder::new().name("compute".into()).spawn(move || {
        let _ = done.send(compute.run(&inbox));
    });
    if let Err(error) = thread {
        return Err(Ended::Failed(format!("no thread to compute with: {error}")));
    }

    let ended = tokio::select! {
        ended = pump_control(&mut incoming, stamp, inputs.clone()) => ended,
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
        Ended::Lost(reason) => last_word(&mut incoming, reason).await,
        other => other,
    };
    let _ = inputs.send(Input::End);
    drop(inputs);
    match computed.await {
        Ok((engine, None)) => kept.engine = Some(engine),
        Ok((_, Some(what))) => return Ok(Ended::Failed(what)),
        Err(_) => return Ok(Ended::Failed("the compute thread panicked; please report this".into())),
    }
    Ok(ended)
}

async fn last_word(incoming: &mut Streaming<CoordinatorMessage>, reason: String) -> Ended {
    let word = async {
        loop {
            match next(incoming).await.map(|m| m.body) {
                Ok(Some(coordinator_message::Body::Finished(f))) => return Ended::Finished(f.reason),
                Ok(Some(coordinator_message::Body::Evicted(e))) => return Ended::Lost(e.reason),
                Ok(_) => {}
                Err(_) => return Ended::Lost(reason.clone()),
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_millis(200), word)
        .await
        .unwrap_or(Ended::Lost(reason.clone()))
}

async fn build_engine(options: &WorkerOptions, kept: &mut Kept, welcome: &v1::Welcome) -> Result<(), Ended> {
    let spec = (welcome.model.clone(), welcome.label_loss.clone());
    if kept.spec.as_ref() == Some(&spec) && kept.engine.is_some() {
        return Ok(());
    }
    let model = spec.0.parse().map_err(Ended::Refused)?;
    let loss = spec.1.parse().map_err(Ended::Refused)?;
    let (backend, device, threads) = (options.backend, options.device, options.threads);
    let built =
        tokio::task::spawn_blocking(move || backend::build(&model, loss, backend, device, threads)).await;
    let engine =
        built.map_err(|e| Ended::Failed(e.to_string()))?.map_err(|e| Ended::Failed(e.to_string()))?;
    *kept = Kept { spec: Some(spec), engine: Some(engine) };
    Ok(())
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
) -> Ended {
    let room = Arc::new(Semaphore::new(WAITING));
    loop {
        let message = match next(incoming).await {
            Ok(message) => message,
            Err(ended) => return ended,
        };
        let stamp = match check(message.stamp, ours) {
            Ok(stamp) => stamp,
            Err(ended) => return ended,
        };
        let body = match message.body {
            Some(coordinator_message::Body::Finished(f)) => return Ended::Finished(f.reason),
            Some(coordinator_message::Body::Refused(r)) => return Ended::Refused(r.reason),
            Some(coordinator_message::Body::Evicted(e)) => {
                return Ended::Lost(format!("it sent us away: {}", e.reason));
            }
            Some(body) => body,
            None => return Ended::Lost("it sent an empty message".into()),
        };
        let Ok(permit) = room.clone().acquire_owned().await else { return Ended::Lost("closing".into()) };
        if inputs.send(Input::Control(stamp, body, permit)).is_err() {
            return Ended::Lost("the engine failed".into());
        }
    }
}

async fn pump_gradients(
    bulk: &mut Streaming<v1::GradientDown>,
    ours: Stamp,
    inputs: Sender<Input>,
    items: &mpsc::UnboundedSender<Item>,
) -> Ended {
    let room = Arc::new(Semaphore::new(WAITING));
    loop {
        let message = match bulk.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return Ended::Lost("it closed the connection".into()),
            Err(status) => return lost(&status),
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
