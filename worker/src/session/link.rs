//! How a worker's gradient stream reaches the coordinator: over the network, or, within one
//! process, handed over without being written out as bytes. The messages, their checks and
//! the credits are the same.

use std::fmt::Debug;
use std::pin::Pin;

use tally_proto::v1::cluster_client::ClusterClient;
use tally_proto::v1::{GradientDown, GradientUp};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

/// What comes down a gradient stream.
pub type Down = Pin<Box<dyn Stream<Item = Result<GradientDown, Status>> + Send>>;

/// The coordinator in the same process.
#[tonic::async_trait]
pub trait Link: Send + Sync + Debug {
    /// Opens a gradient stream; its first message is the stream's opening.
    async fn gradients(&self, up: mpsc::Receiver<GradientUp>) -> Result<Down, Status>;
}

/// Opens a gradient stream, directly if there is a link.
///
/// # Errors
/// What the coordinator or the connection says.
pub async fn open(
    link: Option<&dyn Link>,
    client: &mut ClusterClient<Channel>,
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
