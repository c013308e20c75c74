//! Whether the coordinator is well and ready for workers: gRPC's health service, `/healthz` and `/readyz`; and gRPC's
//! reflection, so that generic clients can list the methods.
//!
//! A coordinator is *well* if its process answers and its driver makes progress. It is *ready* if it lets workers in:
//! from the driver's first answer until the run is asked to stop, while the driver makes progress. Without progress
//! it is not ready after five seconds and not well after twenty, so that a supervisor that checks `/healthz` starts
//! the coordinator again. While the driver waits for a checkpoint, which may be large, the limit is ten minutes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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

use super::driver_heartbeat::Heartbeat;
use super::input::Input;
use super::service::Service;

/// The services whose health is reported: all together, and each.
const SERVICES: [&str; 2] = ["", "tally.v1.Cluster"];

/// The longest time without progress of the driver in which workers are let in.
const READY_LIMIT: Duration = Duration::from_secs(5);
/// The longest time without progress in which the coordinator counts as healthy …
const HEALTHY_LIMIT: Duration = Duration::from_secs(20);
/// … and while the driver waits for a checkpoint.
const SLOW_WORK_LIMIT: Duration = Duration::from_secs(600);
/// How often gRPC's health service is updated.
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);

/// What is told of the coordinator's health.
#[derive(Clone, Debug)]
pub struct Health {
    /// The driver has answered its first question.
    ready: Arc<AtomicBool>,
    /// The run ends.
    stopping: Arc<AtomicBool>,
    heartbeat: Heartbeat,
    reporter: HealthReporter,
}

impl Health {
    /// Not ready yet; the driver has this heartbeat.
    pub async fn new(heartbeat: Heartbeat) -> Self {
        let reporter = HealthReporter::new();
        let health = Self { ready: Arc::default(), stopping: Arc::default(), heartbeat, reporter };
        health.set(ServingStatus::NotServing).await;
        health
    }

    async fn set(&self, status: ServingStatus) {
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Ready from the first answer of the driver on, while it makes progress.
    pub async fn ready_with(self, inputs: mpsc::Sender<Input>) {
        let (reply, answer) = oneshot::channel();
        if inputs.send(Input::Status(reply)).await.is_err() || answer.await.is_err() {
            return;
        }
        self.ready.store(true, Ordering::Relaxed);
        let mut reported = None;
        while !self.stopping.load(Ordering::Relaxed) {
            let status = if self.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing };
            if reported.replace(status) != Some(status) {
                self.set(status).await;
            }
            tokio::time::sleep(UPDATE_INTERVAL).await;
        }
        // The loop may have reported otherwise while the run was being stopped.
        self.set(ServingStatus::NotServing).await;
    }

    /// Not ready any more: the run ends.
    pub async fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.set(ServingStatus::NotServing).await;
    }

    fn is_ready(&self) -> bool {
        let asked = self.ready.load(Ordering::Relaxed) && !self.stopping.load(Ordering::Relaxed);
        asked && self.heartbeat.silence() < READY_LIMIT
    }

    /// `/healthz` and `/readyz`, for the HTTP side.
    pub fn routes(&self) -> Router {
        let stuck = |of: &Self, limit: Duration| match of.heartbeat.silence() {
            silence if silence < limit => None,
            silence => Some((StatusCode::SERVICE_UNAVAILABLE, stuck_driver(silence))),
        };
        let (a, b) = (self.clone(), self.clone());
        let healthz = move || async move {
            let limit = if a.heartbeat.is_slow_work() { SLOW_WORK_LIMIT } else { HEALTHY_LIMIT };
            stuck(&a, limit).unwrap_or((StatusCode::OK, "ok\n".into()))
        };
        let readyz = move || async move {
            stuck(&b, READY_LIMIT).unwrap_or_else(|| match b.is_ready() {
                true => (StatusCode::OK, "ready\n".into()),
                false => (StatusCode::SERVICE_UNAVAILABLE, "not ready for workers\n".into()),
            })
        };
        Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz))
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

/// The answer while the driver makes no progress.
fn stuck_driver(silence: Duration) -> String {
    format!(
        "the driver has made no progress for {} s; most likely the disk of the run directory does not answer\n",
        silence.as_secs()
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(routes: &Router, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = routes.clone().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        (status, String::from_utf8(to_bytes(answer.into_body(), 1000).await.unwrap().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_driver_without_progress_is_neither_ready_nor_healthy_until_it_makes_progress_again() {
        let heartbeat = Heartbeat::silent_for(READY_LIMIT);
        let health = Health::new(heartbeat.clone()).await;
        health.ready.store(true, Ordering::Relaxed);
        let routes = health.routes();
        assert_eq!(ask(&routes, "/healthz").await.0, 200, "it may wait for a slow disk");
        let (status, body) = ask(&routes, "/readyz").await;
        assert!(status == 503 && body.contains("no progress for 5 s"), "{status} {body}");

        let stuck = Health::new(Heartbeat::silent_for(HEALTHY_LIMIT)).await.routes();
        let (status, body) = ask(&stuck, "/healthz").await;
        assert!(status == 503 && body.contains("no progress for 20 s"), "{status} {body}");

        let large = Heartbeat::silent_for(HEALTHY_LIMIT);
        let writing = Health::new(large.clone()).await.routes();
        let status = large.during_slow_work(|| {
            std::thread::scope(|scope| {
                let asked = || {
                    tokio::runtime::Builder::new_current_thread()
                        .build()
                        .unwrap()
                        .block_on(ask(&writing, "/healthz"))
                };
                scope.spawn(asked).join().unwrap().0
            })
        });
        assert_eq!(status, 200, "a large checkpoint takes its time");

        heartbeat.beat();
        assert_eq!(ask(&routes, "/readyz").await, (200, "ready\n".into()));
        health.stopping().await;
        assert_eq!(ask(&routes, "/readyz").await, (503, "not ready for workers\n".into()));
        assert_eq!(ask(&routes, "/healthz").await, (200, "ok\n".into()), "a run that ends is healthy");
    }
}
