//! The beginning of a session: hello, welcome, an engine for what is trained.

use tally_exact::wire::WireDtype;
use tally_proto::segment::Segment;
use tally_proto::v1::{self, CoordinatorMessage, Stamp, WorkerMessage, coordinator_message, worker_message};
use tally_proto::version::{self, Speaker};
use tally_proto::{BF16, MAX_FROM_COORDINATOR, PROTOCOL, TIMELINE};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming};

use super::connect::{Client, Connection};
use super::{Ended, Kept, WorkerOptions};
use crate::engine::backend;

/// Chunks that a worker would put into shared memory at one time.
const MOST_PLACES: u32 = 256;

/// A worker that has been let in, with an engine in [`Kept`].
pub struct Admitted {
    /// For the gradient stream.
    pub client: Client,
    /// To the coordinator.
    pub control: mpsc::UnboundedSender<WorkerMessage>,
    /// From the coordinator.
    pub incoming: Streaming<CoordinatorMessage>,
    /// The session's.
    pub stamp: Stamp,
    /// What is trained.
    pub welcome: v1::Welcome,
    /// What gradients travel as.
    pub dtype: WireDtype,
    /// What is shared with a coordinator on this machine.
    pub memory: Option<Memory>,
}

/// Memory shared with the coordinator.
#[derive(Debug)]
pub struct Memory {
    /// Where this worker's chunks go.
    pub up: Segment,
    /// Where sums are read.
    pub down: Segment,
}

/// How a session ends when a stream breaks with this status. What a proxy may have said in the coordinator's place is
/// never its last word: with nothing behind it, a proxy answers 404, and 401 or 403 while its own rules change.
pub fn broken(status: &Status) -> Ended {
    let words = match status.message() {
        "" => status.code().description().into(),
        // Tonic's words for an answer that is none of gRPC's.
        words if words.starts_with("grpc-status header missing") => {
            format!("{words}: it is no coordinator that answers; is a proxy in between?")
        }
        words => words.into(),
    };
    match status.code() {
        Code::FailedPrecondition | Code::InvalidArgument => Ended::Refused(words),
        Code::Unauthenticated | Code::PermissionDenied => Ended::Denied(words),
        _ => Ended::Lost(words),
    }
}

/// The next message on the control stream, or how the session ends.
pub async fn next(stream: &mut Streaming<CoordinatorMessage>) -> Result<CoordinatorMessage, Ended> {
    match stream.message().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(Ended::Lost("it closed the connection".into())),
        Err(status) => Err(broken(&status)),
    }
}

/// How the session ends, if this message ends it.
pub fn last_word(body: &coordinator_message::Body) -> Option<Ended> {
    match body {
        coordinator_message::Body::Finished(f) => Some(Ended::Finished(f.reason.clone())),
        coordinator_message::Body::Refused(r) => Some(Ended::Refused(r.reason.clone())),
        coordinator_message::Body::Evicted(e) => Some(Ended::Lost(format!("it sent us away: {}", e.reason))),
        _ => None,
    }
}

/// Says hello, hears what is trained, and builds the engine for it unless it is kept.
///
/// # Errors
/// How the session ends instead.
pub async fn admit(
    options: &WorkerOptions,
    connection: Connection,
    kept: &mut Kept,
) -> Result<Admitted, Ended> {
    let mut client = Client::new(connection)
        .max_decoding_message_size(MAX_FROM_COORDINATOR)
        .max_encoding_message_size(usize::MAX);
    let (control, outgoing) = mpsc::unbounded_channel();
    let hello = v1::Hello {
        protocol: PROTOCOL,
        build: env!("CARGO_PKG_VERSION").into(),
        name: options.name.clone(),
        backend: options.backend.to_string(),
        threads: options.threads as u32,
        capabilities: vec![BF16.into(), TIMELINE.into()],
        held: held(kept),
    };
    let _ = control.send(WorkerMessage { stamp: None, body: Some(worker_message::Body::Hello(hello)) });
    let incoming = client.control(UnboundedReceiverStream::new(outgoing)).await.map_err(|s| broken(&s))?;
    let mut incoming = incoming.into_inner();
    let first = next(&mut incoming).await?;
    if let Some(ended) = first.body.as_ref().and_then(last_word) {
        return Err(ended);
    }
    let (Some(stamp), Some(coordinator_message::Body::Welcome(welcome))) = (first.stamp, first.body) else {
        return Err(Ended::Refused("its first message was no welcome".into()));
    };
    version::check(Speaker::new(&welcome.build, welcome.protocol), Speaker::this())
        .map_err(|mismatch| Ended::Refused(mismatch.to_string()))?;
    // A coordinator that was thought dead and replaced must not take its workers back.
    if let Some((run, newest)) = kept.run
        && run == stamp.run
        && stamp.incarnation < newest
    {
        let reason = format!("it is incarnation {}; {newest} has taken over", stamp.incarnation);
        options.tell(&format!("not joining {}: {reason}", options.connect));
        return Err(Ended::Lost(reason));
    }
    // The run may end, or this worker be sent away, while the engine is built.
    tokio::select! {
        built = build_engine(options, kept, &welcome) => built?,
        word = next(&mut incoming) => {
            let unexpected = || Ended::Lost("it spoke before it was offered a manifest".into());
            return Err(word?.body.as_ref().and_then(last_word).unwrap_or_else(unexpected));
        }
    }
    let dtype = match welcome.wire_dtype.as_str() {
        "" => WireDtype::default(),
        name => name.parse().map_err(|e| Ended::Refused(format!("its gradients: {e}")))?,
    };
    let share = options.share_memory && options.link.is_none();
    let elements = kept.engine.as_ref().filter(|_| share).map(|engine| engine.manifest().len());
    let memory = elements.and_then(|elements| memory(&welcome, elements));
    Ok(Admitted { client, control, incoming, stamp, welcome, dtype, memory })
}

/// The memory that the coordinator offers, if it is within reach and no more than it needs: what
/// is read of it is used up (**TRUST-1**).
fn memory(welcome: &v1::Welcome, elements: usize) -> Option<Memory> {
    let (up, down) = (welcome.up.as_ref()?, welcome.down.as_ref()?);
    let most = 2 * tally_exact::chunks(elements) as u64;
    if up.places > MOST_PLACES || u64::from(down.places) > most {
        tracing::warn!("the coordinator's memory is not shared: it offers more than it needs");
        return None;
    }
    let opened = Segment::open(up, true).and_then(|up| Ok(Memory { up, down: Segment::open(down, false)? }));
    opened.inspect_err(|e| tracing::debug!("the coordinator's memory is not shared: {e}")).ok()
}

/// What the engine still holds, in case the coordinator was lost and needs it back.
fn held(kept: &Kept) -> Vec<v1::Held> {
    let Some((run, _)) = kept.run else { return Vec::new() };
    kept.held.iter().map(|&(step, digest)| v1::Held { run, step, digest: digest.0 }).collect()
}

async fn build_engine(options: &WorkerOptions, kept: &mut Kept, welcome: &v1::Welcome) -> Result<(), Ended> {
    let spec = (welcome.model.clone(), welcome.label_loss.clone());
    if kept.spec.as_ref() == Some(&spec) && kept.engine.is_some() {
        return Ok(());
    }
    let model = spec.0.parse().map_err(Ended::Refused)?;
    let loss = spec.1.parse().map_err(Ended::Refused)?;
    let WorkerOptions { backend, device, precision, threads, .. } = *options;
    let build = move || backend::build_in(precision, &model, loss, backend, device, threads);
    let built = tokio::task::spawn_blocking(build).await;
    let engine =
        built.map_err(|e| Ended::Failed(e.to_string()))?.map_err(|e| Ended::Failed(e.to_string()))?;
    *kept = Kept { spec: Some(spec), engine: Some(engine), run: kept.run, held: Vec::new() };
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use tally_exact::CHUNK;

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
        assert!(memory(&welcome(&fit), 3 * CHUNK).is_some());
        assert!(memory(&welcome(&fit), 2 * CHUNK).is_none(), "two chunks have four places on the board");
        assert!(memory(&welcome(&segments(MOST_PLACES + 1, 6)), 3 * CHUNK).is_none());
        assert!(memory(&v1::Welcome { up: None, ..welcome(&fit) }, 3 * CHUNK).is_none());
    }
}
