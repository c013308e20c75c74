//! The way to a coordinator in the same process.
//!
//! It needs no socket, and so no certificate, token or port. The gradient stream hands messages over without
//! encoding them. The messages, their checks and the credits are the same as over the network.

use std::fmt::Debug;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use tally_proto::v1::{GradientDown, GradientUp};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;

use crate::client::Bearer;
use crate::connect::{self, Client, ConnectError, Connection};

/// The messages that come down a gradient stream.
pub type Down = Pin<Box<dyn Stream<Item = Result<GradientDown, Status>> + Send>>;

/// A coordinator in the same process.
#[tonic::async_trait]
pub trait LocalTransport: Send + Sync + Debug {
    /// A new connection, at whose other end the coordinator's gRPC services are.
    ///
    /// # Errors
    /// If the coordinator is gone.
    fn dial(&self) -> io::Result<DuplexStream>;

    /// Opens a gradient stream; its first message is the stream's opening.
    async fn gradients(&self, up: mpsc::Receiver<GradientUp>) -> Result<Down, Status>;
}

/// Connects to a coordinator in the same process. No other process can reach this connection, so it needs no
/// token.
///
/// # Errors
/// [`ConnectError::Unreachable`] if the coordinator is gone.
pub async fn connect(transport: Arc<dyn LocalTransport>) -> Result<Connection, ConnectError> {
    let endpoint = connect::endpoint("local:1", false)?;
    let dial = move |_| {
        let transport = transport.clone();
        async move { transport.dial().map(TokioIo::new) }
    };
    let channel = endpoint.connect_with_connector(tower::service_fn(dial)).await;
    let channel = channel.map_err(|error| connect::unreachable(&error))?;
    Ok(InterceptedService::new(channel, Bearer::default()))
}

/// Opens a gradient stream: through the local transport where there is one, else over the connection.
///
/// # Errors
/// The coordinator's status, or the connection's.
pub async fn open_gradients(
    transport: Option<&dyn LocalTransport>,
    client: &mut Client,
    up: mpsc::Receiver<GradientUp>,
) -> Result<Down, Status> {
    match transport {
        Some(transport) => transport.gradients(up).await,
        None => {
            let down = client.gradients(ReceiverStream::new(up)).await?.into_inner();
            Ok(Box::pin(down))
        }
    }
}
