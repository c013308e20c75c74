//! `coordinator health`: whether the coordinator of this machine or container is well, for what starts it again.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

/// How long a coordinator may take for each part of its answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read: its first line says all.
const FIRST: usize = 64;

/// Options of `coordinator health`.
#[derive(Debug, Args)]
pub struct HealthOptions {
    /// The coordinator's --http-listen
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9000")]
    pub connect: String,
}

/// Asks for `/healthz`, which needs neither a token nor a certificate: over TLS if that is spoken there, else without.
/// As nothing secret is said, any certificate will do, as it does for the probes of Kubernetes.
///
/// # Errors
/// If nobody answers there, or not that it is well.
pub fn run(options: &HealthOptions) -> anyhow::Result<String> {
    let address = options.connect.as_str();
    let said = match over_tls(address) {
        // TLS first: a coordinator that speaks it counts those who do not.
        Err(_) => ask(connect(address)?)
            .with_context(|| format!("{address} takes connections and does not answer; give the coordinator's --http-listen with --connect"))?,
        Ok(said) => said,
    };
    ensure!(
        said.starts_with("HTTP/1.1 200"),
        "the coordinator at {address} is not well: {}; its log says why",
        said.lines().next().unwrap_or_default()
    );
    Ok("well".into())
}

fn connect(address: &str) -> anyhow::Result<TcpStream> {
    let nobody = || format!("no coordinator at {address}; is it running, and is this its --http-listen?");
    let mut reason = None;
    for address in address.to_socket_addrs().with_context(nobody)? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) => reason = Some(error),
        }
    }
    match reason {
        Some(error) => Err(error).with_context(nobody),
        None => bail!(nobody()),
    }
}

fn over_tls(address: &str) -> anyhow::Result<String> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    let session = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost")?)?;
    ask(StreamOwned::new(session, connect(address)?))
}

/// The beginning of the answer.
fn ask(mut stream: impl Read + Write) -> anyhow::Result<String> {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = [0; FIRST];
    let mut length = 0;
    while length < FIRST && !answer[..length].contains(&b'\n') {
        match stream.read(&mut answer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    ensure!(length > 0, "it hung up");
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Believes everybody.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
