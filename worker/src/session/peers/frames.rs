//! The two tasks of a link: one writes frames, one reads and checks them (**TRUST-1**).

use std::io;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use tally_numerics::chunk_range;
use tally_numerics::norm::first_non_finite;
use tally_numerics::wire::WireDtype;
use tally_proto::floats;
use tally_proto::peer_frame::{FrameKind, HEADER, Header};
use tally_proto::v1::{self, worker_message};
use tally_transport::link::{LinkReader, LinkStream, LinkWriter};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::queue::LinkQueue;
use super::{Shared, lock};

/// Serves a link whose queue is registered already, until it breaks.
pub fn serve(shared: &Arc<Shared>, peer: u64, queue: Arc<LinkQueue>, stream: LinkStream) {
    let (reader, writer) = stream.split();
    let task = shared.clone();
    shared.spawn(async move {
        let reason = tokio::select! {
            reason = read(&task, peer, reader) => reason,
            reason = write(&queue, writer) => reason,
        };
        broke(&task, peer, &queue, reason);
    });
}

/// A link is over: the coordinator is told, unless another link to the peer has taken its place.
fn broke(shared: &Shared, peer: u64, queue: &Arc<LinkQueue>, reason: String) {
    let mut links = lock(&shared.links);
    if links.get(&peer).is_some_and(|current| Arc::ptr_eq(current, queue)) {
        links.remove(&peer);
        tracing::debug!(peer, "a link to another worker broke: {reason}");
        shared.report(worker_message::Body::LinkDown(v1::LinkDown { peer, reason }));
    }
}

async fn write(queue: &LinkQueue, mut writer: LinkWriter) -> String {
    loop {
        let mut frame = Some(queue.next().await);
        while let Some(next) = frame {
            let mut bytes = Bytes::copy_from_slice(&next.header.encode()).chain(next.data);
            if let Err(error) = writer.write_all_buf(&mut bytes).await {
                return error.to_string();
            }
            frame = queue.try_next();
        }
        if let Err(error) = writer.flush().await {
            return error.to_string();
        }
    }
}

async fn read(shared: &Shared, peer: u64, mut reader: LinkReader) -> String {
    loop {
        if let Err(reason) = read_frame(shared, peer, &mut reader).await {
            return reason;
        }
    }
}

/// Reads a frame and acts on it.
async fn read_frame(shared: &Shared, peer: u64, reader: &mut LinkReader) -> Result<(), String> {
    let wiring = &shared.wiring;
    let (dtype, elements) = (wiring.dtype, wiring.elements);
    let ended = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => "it closed the link".to_string(),
        _ => error.to_string(),
    };
    let mut header = [0; HEADER];
    reader.read_exact(&mut header).await.map_err(ended)?;
    let header = Header::decode(&header, wiring.tree, elements, dtype).map_err(|e| format!("it sent {e}"))?;
    // The frame may be faster than the coordinator's announcement. It waits in the link: control does not wait for it.
    let mut newest = shared.newest.subscribe();
    newest.wait_for(|newest| *newest >= header.attempt).await.map_err(|e| e.to_string())?;
    let length = header.length as usize;
    let mut raw = shared.pool.take(length.div_ceil(4));
    let bytes = &mut bytemuck::cast_slice_mut(&mut raw)[..length];
    reader.read_exact(bytes).await.map_err(ended)?;
    header.check(bytes).map_err(|e| format!("it sent {e}"))?;
    let Some(attempt) = shared.attempt(header.attempt) else { return Ok(()) };
    let (layout, me) = (&attempt.layout, wiring.context.session);
    match header.kind {
        FrameKind::Sum if layout.source(me, header.index) == Some(peer) => {
            shared.deliver(&attempt, header, floats::share(raw).slice(..length)).await;
            Ok(())
        }
        FrameKind::Sum => {
            Err(format!("it sent the sum of chunk {}, which is another's to send", header.index))
        }
        FrameKind::Partial(node) if layout.may_send(peer, me, header.index) => {
            if header.digest != attempt.digest {
                return Err(format!("it computed {node} with another replica"));
            }
            let values = match dtype {
                WireDtype::F32 => raw,
                WireDtype::Bf16 => {
                    let mut values = shared.pool.take(chunk_range(elements, header.index as usize).len());
                    dtype.unpack(bytes, &mut values);
                    values
                }
            };
            if let Some(at) = first_non_finite(&values) {
                return Err(format!("it sent {} in chunk {} of {node}", values[at], header.index));
            }
            shared.add(&attempt, node, header.index, values).await;
            Ok(())
        }
        FrameKind::Partial(node) => {
            Err(format!("it sent chunk {} of {node} to the wrong worker", header.index))
        }
    }
}
