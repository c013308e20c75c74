//! The beginning of a session: Hello, Welcome, and an engine for the run.

use std::sync::Arc;

use tally_numerics::wire::WireDtype;
use tally_proto::segment::Segment;
use tally_proto::v1::{
    self, CoordinatorMessage, MessageContext, WorkerMessage, coordinator_message, worker_message,
};
use tally_proto::version::{self, Speaker};
use tally_proto::{BF16, LINKS, MAX_FROM_COORDINATOR, PROTOCOL, TIMELINE};
use tally_transport::connect::{Client, Connection};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use super::end::{RetainedWorker, SessionEnd};
use super::options::SessionOptions;
use crate::program::WorkerProgram;

/// The most chunks that a worker puts into shared memory at one time.
const MAX_SLOTS: u32 = 256;

/// A worker that the coordinator has let in. Its engine is in [`RetainedWorker`].
pub struct Admitted {
    /// For the gradient stream.
    pub client: Client,
    /// To the coordinator.
    pub control: mpsc::UnboundedSender<WorkerMessage>,
    /// From the coordinator.
    pub incoming: Streaming<CoordinatorMessage>,
    /// The session's context.
    pub context: MessageContext,
    /// The coordinator's Welcome.
    pub welcome: v1::Welcome,
    /// The data type in which gradients travel.
    pub dtype: WireDtype,
    /// The memory shared with a coordinator on this machine.
    pub memory: Option<SharedMemory>,
}

/// Memory shared with the coordinator.
#[derive(Debug)]
pub struct SharedMemory {
    /// This worker writes its chunks here.
    pub up: Segment,
    /// This worker reads sums here.
    pub down: Segment,
}

/// The next message on the control stream, or the end of the session.
///
/// # Errors
/// How the session ended.
pub async fn next(stream: &mut Streaming<CoordinatorMessage>) -> Result<CoordinatorMessage, SessionEnd> {
    match stream.message().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(SessionEnd::Lost("it closed the connection".into())),
        Err(status) => Err(SessionEnd::of_status(&status)),
    }
}

/// Sends Hello, receives Welcome, and builds the engine unless the retained one fits.
///
/// # Errors
/// How the session ends instead.
pub async fn admit(
    options: &SessionOptions,
    program: &Arc<dyn WorkerProgram>,
    connection: Connection,
    retained: &mut RetainedWorker,
) -> Result<Admitted, SessionEnd> {
    let mut client = Client::new(connection)
        .max_decoding_message_size(MAX_FROM_COORDINATOR)
        .max_encoding_message_size(usize::MAX);
    let (control, outgoing) = mpsc::unbounded_channel();
    let hello = v1::Hello {
        protocol: PROTOCOL,
        build: env!("CARGO_PKG_VERSION").into(),
        name: options.name.clone(),
        backend: options.device.backend.to_string(),
        threads: options.device.threads() as u32,
        capabilities: capabilities(options),
        retained: retained_states(retained),
    };
    let _ = control.send(WorkerMessage { context: None, body: Some(worker_message::Body::Hello(hello)) });
    let incoming = client.control(UnboundedReceiverStream::new(outgoing)).await;
    let mut incoming = incoming.map_err(|status| SessionEnd::of_status(&status))?.into_inner();
    let first = next(&mut incoming).await?;
    if let Some(end) = first.body.as_ref().and_then(SessionEnd::of_message) {
        return Err(end);
    }
    let (Some(context), Some(coordinator_message::Body::Welcome(welcome))) = (first.context, first.body)
    else {
        return Err(SessionEnd::Failed(format!(
            "what answers at {} is no Tally coordinator of this version (its first message was not a Welcome); check --connect",
            options.connect
        )));
    };
    version::check(Speaker::new(&welcome.build, welcome.protocol), Speaker::this())
        .map_err(|mismatch| SessionEnd::Refused(mismatch.to_string()))?;
    same_program(&options.connect, &welcome.program, program.name())?;
    // A coordinator that was thought dead and replaced must not take its workers back.
    if let Some((run, newest)) = retained.run
        && run == context.run
        && context.incarnation < newest
    {
        let reason = format!(
            "it is start {} of the run's coordinator; start {newest} has taken over",
            context.incarnation
        );
        options.report(&format!("not joining {}: {reason}", options.connect));
        return Err(SessionEnd::Lost(reason));
    }
    // The run may end, or the coordinator may send this worker away, while the engine is built.
    tokio::select! {
        built = build_engine(options, program, retained, &welcome.arguments) => built?,
        message = next(&mut incoming) => {
            let unexpected = || SessionEnd::Lost("it sent a message before it was offered a manifest".into());
            return Err(message?.body.as_ref().and_then(SessionEnd::of_message).unwrap_or_else(unexpected));
        }
    }
    let dtype = match welcome.wire_dtype.as_str() {
        "" => WireDtype::default(),
        name => name.parse().map_err(|e| {
            SessionEnd::Failed(format!(
                "the run's gradients travel in a format that this worker does not know: {e}; run the same build of Tally on \
                 both sides"
            ))
        })?,
    };
    let share = options.share_memory && options.local.is_none();
    let elements = retained.engine.as_ref().filter(|_| share).map(|engine| engine.manifest().trained_len());
    let memory = elements.and_then(|elements| open_memory(&welcome, elements));
    Ok(Admitted { client, control, incoming, context, welcome, dtype, memory })
}

/// What this worker can do. One in the coordinator's process needs no links.
fn capabilities(options: &SessionOptions) -> Vec<String> {
    let links = options.local.is_none().then_some(LINKS);
    [BF16, TIMELINE].into_iter().chain(links).map(Into::into).collect()
}

/// Whether the coordinator trains this worker's program. No later try would go better, so the worker gives up.
fn same_program(connect: &str, trained: &str, own: &str) -> Result<(), SessionEnd> {
    if trained == own {
        return Ok(());
    }
    Err(SessionEnd::Failed(format!(
        "the coordinator at {connect} trains the program {trained:?}, but this worker has the program {own:?}: start \
         the worker of {trained:?}, or give --connect the address of a coordinator of {own:?}"
    )))
}

/// The memory that the coordinator offers, if this machine can open it and if it is no larger than needed: reading
/// a segment uses memory for it (**TRUST-1**).
fn open_memory(welcome: &v1::Welcome, elements: usize) -> Option<SharedMemory> {
    let (up, down) = (welcome.up.as_ref()?, welcome.down.as_ref()?);
    let most = 2 * tally_numerics::chunks(elements) as u64;
    if up.slots > MAX_SLOTS || u64::from(down.slots) > most {
        tracing::warn!("the coordinator's memory is not shared: it offers more than it needs");
        return None;
    }
    let opened =
        Segment::open(up, true).and_then(|up| Ok(SharedMemory { up, down: Segment::open(down, false)? }));
    opened.inspect_err(|e| tracing::debug!("the coordinator's memory is not shared: {e}")).ok()
}

/// The states that the engine still has, in case the coordinator was lost and needs them back.
fn retained_states(retained: &RetainedWorker) -> Vec<v1::RetainedState> {
    let Some((run, _)) = retained.run else { return Vec::new() };
    retained.states.iter().map(|&(step, digest)| v1::RetainedState { run, step, digest: digest.0 }).collect()
}

async fn build_engine(
    options: &SessionOptions,
    program: &Arc<dyn WorkerProgram>,
    retained: &mut RetainedWorker,
    arguments: &str,
) -> Result<(), SessionEnd> {
    if retained.arguments.as_deref() == Some(arguments) && retained.engine.is_some() {
        return Ok(());
    }
    let (program, device) = (program.clone(), options.device.clone());
    let owned = arguments.to_owned();
    let built = tokio::task::spawn_blocking(move || program.engine(&owned, &device)).await;
    let engine = built
        .map_err(|e| SessionEnd::Failed(e.to_string()))?
        .map_err(|e| SessionEnd::Failed(e.to_string()))?;
    *retained = RetainedWorker {
        arguments: Some(arguments.into()),
        engine: Some(engine),
        run: retained.run,
        ..RetainedWorker::default()
    };
    Ok(())
}

#[cfg(test)]
mod program_tests {
    use super::*;

    #[test]
    fn a_coordinator_of_another_program_is_left_with_both_names() {
        assert!(same_program("host:1", "mnist", "mnist").is_ok());
        let Err(SessionEnd::Failed(why)) = same_program("host:1", "fashion", "mnist") else {
            unreachable!("another try would not go better")
        };
        for part in ["host:1", "\"fashion\"", "\"mnist\""] {
            assert!(why.contains(part), "{why}");
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use tally_numerics::CHUNK;

    use super::*;

    #[test]
    fn trust_1_no_more_memory_is_shared_than_is_needed() {
        let segments = |up, down| (Segment::create(up).unwrap(), Segment::create(down).unwrap());
        let welcome = |(up, down): &(Segment, Segment)| v1::Welcome {
            up: Some(up.offer()),
            down: Some(down.offer()),
            ..v1::Welcome::default()
        };
        let fit = segments(32, 6);
        assert!(open_memory(&welcome(&fit), 3 * CHUNK).is_some());
        assert!(open_memory(&welcome(&fit), 2 * CHUNK).is_none(), "two chunks have four slots for sums");
        assert!(open_memory(&welcome(&segments(MAX_SLOTS + 1, 6)), 3 * CHUNK).is_none());
        assert!(open_memory(&v1::Welcome { up: None, ..welcome(&fit) }, 3 * CHUNK).is_none());
    }
}
