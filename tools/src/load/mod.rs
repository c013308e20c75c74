//! Thousands of connections that mean no good, kept up while a run goes on that must not notice (**TRUST-1**).
//!
//! The clients of a [`Flood`] have no secret: they say nothing, begin a TLS handshake and leave it at that, send
//! garbage, drip, never end their headers, call and hang up, or guess a token.

mod client;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tally_proto::v1::StatusRequest;
use tally_transport::client::ClientAccess;
use tally_transport::connect::{Client, connect};
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tonic::Code;

use crate::process::DEADLINE;
pub use client::Visit;
use client::Visitor;

/// Addresses of the loopback interface that visits come from: the coordinator counts them one by one.
const ADDRESSES: u8 = 6;
/// Calls with a token that was guessed, at one time.
const GUESSERS: usize = 4;

/// Where a flood goes, and what it knows.
#[derive(Clone, Debug)]
pub struct Target {
    /// The coordinator's port on the loopback interface.
    pub port: u16,
    /// Whom to believe, if TLS is spoken there, and a token that is none.
    pub access: ClientAccess,
}

impl Target {
    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    fn tls(&self) -> Option<TlsConnector> {
        let path = self.access.tls_ca.as_ref()?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).unwrap() {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Some(TlsConnector::from(Arc::new(config)))
    }
}

/// What came of a flood so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections that were opened.
    pub opened: AtomicU64,
    /// Those that the coordinator ended before they ended themselves.
    pub ended: AtomicU64,
    /// Calls with a wrong token that were denied.
    pub denied: AtomicU64,
    /// Calls with a wrong token that were let in.
    pub let_in: AtomicU64,
    stop: AtomicBool,
}

impl Counts {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// A flood that goes on until it is dropped.
#[derive(Debug)]
pub struct Flood {
    counts: Arc<Counts>,
    runtime: Option<Runtime>,
}

impl Flood {
    /// Opens `at_once` connections, each of which makes these visits in turn for ever, and stays for `stay` at each
    /// unless the coordinator ends it before.
    ///
    /// # Panics
    /// If a certificate that it is to believe is none.
    #[must_use]
    pub fn start(target: &Target, visits: &'static [Visit], at_once: usize, stay: Duration) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let counts = Arc::<Counts>::default();
        let tls = target.tls();
        for slot in 0..at_once {
            let source = Ipv4Addr::new(127, 0, 0, 1 + (slot % usize::from(ADDRESSES)) as u8);
            let visitor = Visitor { target: target.address(), source, tls: tls.clone(), stay };
            let counts = counts.clone();
            runtime.spawn(async move {
                for (turn, visit) in visits.iter().cycle().skip(slot % visits.len()).enumerate() {
                    if !counts.goes_on() {
                        return;
                    }
                    match visitor.visit(*visit, slot + turn, &counts.opened).await {
                        Ok(true) => _ = counts.ended.fetch_add(1, Ordering::Relaxed),
                        Ok(false) => {}
                        // Nobody listens, or there are no more ports: later, perhaps.
                        Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                    }
                }
            });
        }
        for _ in 0..if target.access.token_file.is_some() { GUESSERS } else { 0 } {
            runtime.spawn(guess(target.clone(), counts.clone()));
        }
        Self { counts, runtime: Some(runtime) }
    }

    /// What came of it so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Waits until it has come so far.
    ///
    /// # Panics
    /// If the [`DEADLINE`] passes first.
    pub fn wait_until(&self, far: impl Fn(&Counts) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !far(&self.counts) {
            assert!(Instant::now() < end, "the flood has not come far: {:?}", self.counts);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Calls with a token that is none, again and again.
async fn guess(target: Target, counts: Arc<Counts>) {
    while counts.goes_on() {
        let Ok(connection) = connect(&target.address().to_string(), &target.access).await else { continue };
        let mut client = Client::new(connection);
        // A few for each handshake.
        for _ in 0..10 {
            match client.status(StatusRequest {}).await {
                Ok(_) => _ = counts.let_in.fetch_add(1, Ordering::Relaxed),
                Err(status) if status.code() == Code::Unauthenticated => {
                    counts.denied.fetch_add(1, Ordering::Relaxed);
                }
                // It had to make room for another stranger.
                Err(_) => break,
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
