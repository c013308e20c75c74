//! Whether the coordinator is well and ready for workers: gRPC's health service, `/healthz` and
//! `/readyz`; and gRPC's reflection, so that generic clients know what can be called.
//!
//! *Well* is a process that answers and whose driver moves. *Ready* is one that lets workers in: from the driver's first
//! answer until the run is asked to stop, while the driver moves. One that stands still is not ready after
//! five seconds and not well after twenty, so that a supervisor that heeds `/healthz` starts the
//! coordinator again. Only while it waits for a checkpoint, which may be large, it has ten minutes.

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

use crate::shell::pulse::Pulse;
use crate::shell::service::{Input, Service};

/// The services whose health is told: all together, and each.
const SERVICES: [&str; 2] = ["", "tally.v1.Cluster"];

/// A driver that has not moved for so long lets nobody in.
const READY: Duration = Duration::from_secs(5);
/// One that has not moved for so long is not well …
const WELL: Duration = Duration::from_secs(20);
/// … or for so long, while it waits for a checkpoint to be written.
const PATIENT: Duration = Duration::from_secs(600);
/// How often gRPC's health service is told.
const LOOK: Duration = Duration::from_secs(1);

/// What is told of the coordinator's health.
#[derive(Clone, Debug)]
pub struct Health {
    /// The driver has answered.
    ready: Arc<AtomicBool>,
    /// The run ends.
    stopping: Arc<AtomicBool>,
    pulse: Pulse,
    reporter: HealthReporter,
}

impl Health {
    /// Not ready yet; the driver has this pulse.
    pub async fn new(pulse: Pulse) -> Self {
        let reporter = HealthReporter::new();
        let health = Self { ready: Arc::default(), stopping: Arc::default(), pulse, reporter };
        health.tell(ServingStatus::NotServing).await;
        health
    }

    async fn tell(&self, status: ServingStatus) {
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Ready as soon as the driver answers, and while it moves.
    pub async fn ready_with(self, inputs: mpsc::Sender<Input>) {
        let (reply, answer) = oneshot::channel();
        if inputs.send(Input::Status(reply)).await.is_err() || answer.await.is_err() {
            return;
        }
        self.ready.store(true, Ordering::Relaxed);
        let mut told = None;
        while !self.stopping.load(Ordering::Relaxed) {
            let status = if self.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing };
            if told.replace(status) != Some(status) {
                self.tell(status).await;
            }
            tokio::time::sleep(LOOK).await;
        }
        // It may have been told otherwise while it was being asked to stop.
        self.tell(ServingStatus::NotServing).await;
    }

    /// Not ready any more: the run ends.
    pub async fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.tell(ServingStatus::NotServing).await;
    }

    fn is_ready(&self) -> bool {
        let asked = self.ready.load(Ordering::Relaxed) && !self.stopping.load(Ordering::Relaxed);
        asked && self.pulse.still() < READY
    }

    /// `/healthz` and `/readyz`, for the HTTP side.
    pub fn routes(&self) -> Router {
        let well = |of: &Self, patience: Duration| match of.pulse.still() {
            still if still < patience => None,
            still => Some((StatusCode::SERVICE_UNAVAILABLE, stands_still(still))),
        };
        let (a, b) = (self.clone(), self.clone());
        let healthz = move || async move {
            let patience = if a.pulse.is_patient() { PATIENT } else { WELL };
            well(&a, patience).unwrap_or((StatusCode::OK, "ok\n".into()))
        };
        let readyz = move || async move {
            well(&b, READY).unwrap_or_else(|| match b.is_ready() {
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

/// What is said of a driver that has not moved for so long.
fn stands_still(still: Duration) -> String {
    format!(
        "the driver has not moved for {} s; most likely the disk of the run directory does not answer\n",
        still.as_secs()
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

    /// A driver that never moves is there from the start: it has its first moment only.
    #[tokio::test]
    async fn a_driver_that_stands_still_is_neither_ready_nor_well_and_one_that_moves_again_is_both() {
        let pulse = Pulse::still_for(READY);
        let health = Health::new(pulse.clone()).await;
        health.ready.store(true, Ordering::Relaxed);
        let routes = health.routes();
        assert_eq!(ask(&routes, "/healthz").await.0, 200, "it may wait for a slow disk");
        let (status, words) = ask(&routes, "/readyz").await;
        assert!(status == 503 && words.contains("has not moved for 5 s"), "{status} {words}");

        let stuck = Health::new(Pulse::still_for(WELL)).await.routes();
        let (status, words) = ask(&stuck, "/healthz").await;
        assert!(status == 503 && words.contains("has not moved for 20 s"), "{status} {words}");

        let large = Pulse::still_for(WELL);
        let writing = Health::new(large.clone()).await.routes();
        let status = large.patiently(|| {
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

        pulse.beat();
        assert_eq!(ask(&routes, "/readyz").await, (200, "ready\n".into()));
        health.stopping().await;
        assert_eq!(ask(&routes, "/readyz").await, (503, "not ready for workers\n".into()));
        assert_eq!(ask(&routes, "/healthz").await, (200, "ok\n".into()), "a run that ends is well");
    }
}
