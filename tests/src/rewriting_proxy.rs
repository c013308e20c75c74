//! A proxy between a worker and its coordinator that decodes every message and may change or drop it: through it a
//! worker of today looks like one of another version to the coordinator, and the coordinator to the worker.

use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;

use tally_proto::v1::cluster_client::ClusterClient;
use tally_proto::v1::cluster_server::{Cluster, ClusterServer};
use tally_proto::v1::{
    CoordinatorMessage, GradientDown, GradientUp, StatusReply, StatusRequest, WorkerMessage,
};
use tally_proto::{MAX_FROM_COORDINATOR, MAX_FROM_WORKER};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

/// What the proxy sends in place of each message; `None` drops it.
pub trait Rewrite: Send + Sync + 'static {
    /// From the worker.
    fn worker(&self, message: WorkerMessage) -> Option<WorkerMessage> {
        Some(message)
    }
    /// From the coordinator.
    fn coordinator(&self, message: CoordinatorMessage) -> Option<CoordinatorMessage> {
        Some(message)
    }
    /// From the worker, on the stream of gradients.
    fn up(&self, message: GradientUp) -> Option<GradientUp> {
        Some(message)
    }
}

/// A proxy that listens until it is dropped.
#[derive(Debug)]
pub struct RewritingProxy {
    port: u16,
    _runtime: Runtime,
}

impl RewritingProxy {
    /// Stands before the coordinator at `port` of the loopback interface.
    ///
    /// # Panics
    /// If there is no port for it, or no coordinator.
    pub fn start(port: u16, rewrite: impl Rewrite) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (listener, client) = runtime.block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            (listener, ClusterClient::connect(format!("http://127.0.0.1:{port}")).await.unwrap())
        });
        let port = listener.local_addr().unwrap().port();
        let client = client.max_decoding_message_size(MAX_FROM_COORDINATOR);
        let between = Between { client, rewrite: Arc::new(rewrite) };
        let service = ClusterServer::new(between).max_decoding_message_size(MAX_FROM_WORKER);
        runtime
            .spawn(Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
        Self { port, _runtime: runtime }
    }

    /// Where the worker connects to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

struct Between<I> {
    client: ClusterClient<Channel>,
    rewrite: Arc<I>,
}

type Passed<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// Up to where the stream breaks.
fn whole<M: Send + 'static>(
    stream: Streaming<M>,
    rewrite: impl Fn(M) -> Option<M> + Send + 'static,
) -> impl Stream<Item = M> + Send {
    stream.map_while(Result::ok).filter_map(rewrite)
}

fn passed<M: Send + 'static>(
    stream: Streaming<M>,
    rewrite: impl Fn(M) -> Option<M> + Send + 'static,
) -> Response<Passed<M>> {
    Response::new(Box::pin(stream.filter_map(move |message| match message {
        Ok(message) => rewrite(message).map(Ok),
        Err(status) => Some(Err(status)),
    })))
}

#[tonic::async_trait]
impl<I: Rewrite> Cluster for Between<I> {
    type ControlStream = Passed<CoordinatorMessage>;
    type GradientsStream = Passed<GradientDown>;

    async fn control(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let (up, down) = (self.rewrite.clone(), self.rewrite.clone());
        let up = whole(request.into_inner(), move |message| up.worker(message));
        let answer = self.client.clone().control(up).await?.into_inner();
        Ok(passed(answer, move |message| down.coordinator(message)))
    }

    async fn gradients(
        &self,
        request: Request<Streaming<GradientUp>>,
    ) -> Result<Response<Self::GradientsStream>, Status> {
        let up = self.rewrite.clone();
        let up = whole(request.into_inner(), move |message| up.up(message));
        Ok(passed(self.client.clone().gradients(up).await?.into_inner(), Some))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        self.client.clone().status(request).await
    }
}
