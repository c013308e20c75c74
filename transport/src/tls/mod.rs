//! TLS on both sides: which certificates are trusted, and [why a handshake failed](cause).
//!
//! A certificate is trusted if one of the configured certificates signed it, by WebPKI's rules, **or if it is one of the
//! configured certificates**. `openssl req -x509` makes certificates that are marked as a CA's, and WebPKI accepts none of
//! those from a peer. Name, validity and possession of the key are checked in both cases.

mod failure;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WantsClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, DistinguishedName, RootCertStore,
    SignatureScheme,
};

pub use self::failure::{Side, cause, instead_of_http2};
use crate::{option_file, pem};

/// Certificates as WebPKI wants them, and as they are.
type Trusted = (Arc<RootCertStore>, Vec<CertificateDer<'static>>);

/// The cryptography of all TLS in Tally.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A certificate chain with its private key, from PEM files.
///
/// # Errors
/// If a file cannot be read, or holds something else.
pub fn identity(
    certificate: &Path,
    key: &Path,
) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let read = |path: &Path| option_file::read(path).map_err(|source| pem::cannot_read(path, source));
    Ok((pem::certificates(&read(certificate)?, certificate)?, pem::key(&read(key)?, key)?))
}

/// The error for an [`identity`] that TLS refuses. Usually the key does not belong to the certificate.
pub fn unusable_identity(certificate: &Path, key: &Path) -> impl FnOnce(rustls::Error) -> anyhow::Error {
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    move |error| match error {
        rustls::Error::InconsistentKeys(_) => anyhow!(
            "the key in {key} is not that of the first certificate in {certificate}; name the key it was made with, and put \
             that certificate first in the file, those that signed it behind"
        ),
        error => anyhow!("the certificate in {certificate} and the key in {key} cannot be used: {error}"),
    }
}

/// The trusted certificates in a PEM file.
fn roots(path: &Path) -> anyhow::Result<Trusted> {
    let bytes = option_file::read(path).map_err(|source| pem::cannot_read(path, source))?;
    let pinned = pem::certificates(&bytes, path)?;
    let mut roots = RootCertStore::empty();
    for (number, certificate) in pinned.iter().enumerate() {
        roots.add(certificate.clone()).with_context(|| {
            format!("certificate {} of {} is damaged; copy the file again", number + 1, path.display())
        })?;
    }
    Ok((Arc::new(roots), pinned))
}

/// A client that trusts these certificates, and those that they sign.
fn client_builder((roots, pinned): Trusted) -> anyhow::Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let inner = WebPkiServerVerifier::builder_with_provider(roots, provider()).build()?;
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(PinnedOr { inner, pinned })))
}

/// The TLS configuration of a client that trusts one certificate, and those that it signs.
///
/// # Errors
/// If it is no certificate.
pub fn client_of(certificate: CertificateDer<'static>) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).context("the peer's certificate is damaged")?;
    Ok(client_builder((Arc::new(roots), vec![certificate]))?.with_no_client_auth())
}

/// The TLS configuration of an HTTP/2 client that trusts the certificates in `ca`, and those that they sign.
///
/// # Errors
/// If a file cannot be read, or holds something else.
pub fn client(ca: &Path, identity: Option<(&Path, &Path)>) -> anyhow::Result<ClientConfig> {
    let builder = client_builder(roots(ca)?)?;
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let (certificates, own) = self::identity(certificate, key)?;
            builder.with_client_auth_cert(certificates, own).map_err(unusable_identity(certificate, key))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Trusts clients whose certificates are in `ca`, or are signed by those. If `required`, a client must present one.
///
/// # Errors
/// If the file cannot be read, or holds something else.
pub fn client_verifier(ca: &Path, required: bool) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let (roots, pinned) = roots(ca)?;
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    Ok(Arc::new(PinnedOr { inner: builder.build()?, pinned }))
}

/// Trusts what `inner` trusts, and the pinned certificates themselves.
#[derive(Debug)]
struct PinnedOr<V: ?Sized> {
    pinned: Vec<CertificateDer<'static>>,
    inner: Arc<V>,
}

impl<V: ?Sized> PinnedOr<V> {
    /// Whether a refused certificate is pinned, and was refused only for its issuer or for being a CA's. WebPKI checks
    /// the dates before both.
    fn is_pinned(&self, certificate: &CertificateDer<'_>, refused: &rustls::Error) -> bool {
        let by_issuer = match refused {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
            rustls::Error::InvalidCertificate(CertificateError::Other(why)) => {
                why.to_string() == AS_END_ENTITY
            }
            _ => false,
        };
        by_issuer && self.pinned.iter().any(|known| known.as_ref() == certificate.as_ref())
    }
}

/// WebPKI's error for a CA's certificate that a peer presents as its own.
const AS_END_ENTITY: &str = "CaUsedAsEndEntity";

impl ServerCertVerifier for PinnedOr<WebPkiServerVerifier> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(refused) if self.is_pinned(end_entity, &refused) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl ClientCertVerifier for PinnedOr<dyn ClientCertVerifier> {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match self.inner.verify_client_cert(end_entity, intermediates, now) {
            Err(refused) if self.is_pinned(end_entity, &refused) => Ok(ClientCertVerified::assertion()),
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
