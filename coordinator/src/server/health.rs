//! Whether the coordinator is well and ready for workers: gRPC's health service, `/healthz` and
//! `/readyz`; and gRPC's reflection, so that generic clients know what can be called.
//!
//! *Well* is a process that answers. *Ready* is one whose driver runs, from its first answer
//! until it is asked to stop: a worker that comes then can be let in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tally_proto::MAX_FROM_WORKER;
use tally_proto::v1::cluster_server::ClusterServer;
use tokio::sync::{mpsc, oneshot};
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::FILE_DESCRIPTOR_SET as HEALTH_DESCRIPTORS;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use super::input::Input;
use super::service::Service;

/// The services whose health is told: all together, and each.
const SERVICES: [&str; 2] = ["", "tally.v1.Cluster"];

/// What is told of the coordinator's health.
#[derive(Clone, Debug)]
pub struct Health {
    ready: Arc<AtomicBool>,
    reporter: HealthReporter,
}

impl Health {
    /// Not ready yet.
    pub async fn new() -> Self {
        let health = Self { ready: Arc::default(), reporter: HealthReporter::new() };
        health.set(ServingStatus::NotServing).await;
        health
    }

    async fn set(&self, status: ServingStatus) {
        self.ready.store(status == ServingStatus::Serving, Ordering::Relaxed);
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Ready as soon as the driver answers.
    pub async fn ready_with(self, inputs: mpsc::Sender<Input>) {
        let (reply, answer) = oneshot::channel();
        if inputs.send(Input::Status(reply)).await.is_ok() && answer.await.is_ok() {
            self.set(ServingStatus::Serving).await;
        }
    }

    /// Not ready any more: the run ends.
    pub async fn stopping(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    /// `/readyz`, for the HTTP side.
    pub fn routes(&self) -> Router {
        let ready = self.ready.clone();
        let answer = move || async move {
            if ready.load(Ordering::Relaxed) {
                (StatusCode::OK, "ready\n")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "not ready for workers\n")
            }
        };
        Router::new().route("/readyz", get(answer))
    }

    /// All gRPC services of the coordinator.
    ///
    /// # Errors
    /// If the descriptions for reflection are damaged, which the build made.
    pub fn services(&self, service: Service) -> Result<Router, tonic_reflection::server::Error> {
        // Either version of reflection lists both.
        let described = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(tally_proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(HEALTH_DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
                .include_reflection_service(false)
        };
        let cluster = ClusterServer::new(service)
            .max_decoding_message_size(MAX_FROM_WORKER)
            .max_encoding_message_size(usize::MAX);
        let health = HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()));
        // Older clients know only the second.
        let routes = Routes::new(cluster)
            .add_service(health)
            .add_service(described().build_v1()?)
            .add_service(described().build_v1alpha()?);
        Ok(routes.prepare().into_axum_router())
    }
}
