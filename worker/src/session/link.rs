//! How a worker reaches the coordinator: over the network, or, within one process, without a
//! socket, so that no certificate, token or port is needed. There its gradient stream is handed
//! over without being written out as bytes. The messages, their checks and the credits are the same.

use std::fmt::Debug;
use std::io;
use std::pin::Pin;

use tally_proto::v1::{GradientDown, GradientUp};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::connect::Client;

/// What comes down a gradient stream.
pub type Down = Pin<Box<dyn Stream<Item = Result<GradientDown, Status>> + Send>>;

/// The coordinator in the same process.
#[tonic::async_trait]
pub trait Link: Send + Sync + Debug {
    /// A new connection, at whose other end the coordinator's gRPC services are.
    ///
    /// # Errors
    /// If the coordinator is gone.
    fn dial(&self) -> io::Result<DuplexStream>;

    /// Opens a gradient stream; its first message is the stream's opening.
    async fn gradients(&self, up: mpsc::Receiver<GradientUp>) -> Result<Down, Status>;
}

/// Opens a gradient stream, directly if there is a link.
///
/// # Errors
/// What the coordinator or the connection says.
pub async fn open(
    link: Option<&dyn Link>,
    client: &mut Client,
    up: mpsc::Receiver<GradientUp>,
) -> Result<Down, Status> {
    match link {
        Some(link) => link.gradients(up).await,
        None => {
            let down = client.gradients(ReceiverStream::new(up)).await?.into_inner();
            Ok(Box::pin(down))
        }
    }
}
