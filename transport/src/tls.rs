//! TLS on both sides: which certificates are trusted, and why a handshake failed.
//!
//! A certificate is trusted if one of the configured certificates signed it, by WebPKI's rules, **or if it is one of the
//! configured certificates**. `openssl req -x509` makes certificates that are marked as a CA's, and WebPKI accepts none of
//! those from a peer. Name, validity and possession of the key are checked in both cases.
//!
//! [`cause`] turns every failure into its cause and the remedy.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName,
    RootCertStore, SignatureScheme,
};

use crate::{option_file, pem};

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
fn roots(path: &Path) -> anyhow::Result<(Arc<RootCertStore>, Vec<CertificateDer<'static>>)> {
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

/// The TLS configuration of an HTTP/2 client that trusts the certificates in `ca`, and those that they sign.
///
/// # Errors
/// If a file cannot be read, or holds something else.
pub fn client(ca: &Path, identity: Option<(&Path, &Path)>) -> anyhow::Result<ClientConfig> {
    let (roots, pinned) = roots(ca)?;
    let inner = WebPkiServerVerifier::builder_with_provider(roots, provider()).build()?;
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(PinnedOr { inner, pinned }));
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

/// The side that reports a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A worker, or `coordinator status`.
    Client,
    /// The coordinator.
    Server,
}

/// The cause and the remedy, if TLS failed.
#[must_use]
pub fn cause(error: &(dyn Error + 'static), side: Side) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        // `source` of an I/O error skips the error that it holds.
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let held = held.and_then(|held| held.downcast_ref::<rustls::Error>());
        if let Some(error) = error.downcast_ref::<rustls::Error>().or(held) {
            return Some(describe(error, side));
        }
        next = error.source();
    }
    None
}

fn describe(error: &rustls::Error, side: Side) -> String {
    use rustls::Error as E;
    let cause = match (error, side) {
        (E::InvalidCertificate(error), side) => return certificate(error, side),
        (E::InvalidMessage(_), Side::Client) => {
            "it does not speak TLS: start it with --tls-cert and --tls-key, or leave --tls-ca out here"
        }
        (E::InvalidMessage(_), Side::Server) => {
            "it does not speak TLS: a worker without --tls-ca, or a browser at http:// instead of https://"
        }
        (E::NoCertificatesPresented, _) | (E::AlertReceived(AlertDescription::CertificateRequired), _) => {
            match side {
                Side::Client => {
                    "it asks for a certificate: give one that its --tls-client-ca trusts with --tls-cert and --tls-key"
                }
                Side::Server => {
                    "it shows no certificate, and --tls-client-ca asks for one: it needs --tls-cert and --tls-key"
                }
            }
        }
        (E::AlertReceived(alert), side) => return alerted(*alert, side),
        (E::PeerIncompatible(_), _) => {
            "it speaks no version or cipher of TLS that this side does; both need TLS 1.2 or 1.3, and no proxy that changes it"
        }
        (error, _) => return format!("TLS failed: {error}"),
    };
    cause.into()
}

/// The cause behind the peer's alert.
fn alerted(alert: AlertDescription, side: Side) -> String {
    use AlertDescription as A;
    let (own, their) = match side {
        Side::Client => ("--tls-cert", "--tls-client-ca"),
        Side::Server => ("--tls-cert", "--tls-ca"),
    };
    let why = match alert {
        A::UnknownCA | A::BadCertificate | A::CertificateUnknown | A::UnsupportedCertificate | A::AccessDenied | A::DecryptError => {
            format!("it does not trust the certificate in {own}: name that one, or the one that signed it, with {their} there")
        }
        A::CertificateExpired | A::CertificateRevoked => {
            format!("it says that the certificate in {own} is no longer valid: renew it, and see that both clocks are right")
        }
        A::NoApplicationProtocol => "it speaks TLS and no HTTP/2: is that the port of its --http-listen, and not of its --listen?".into(),
        A::UnrecognisedName => "it has no certificate for that name: give the one it has with --tls-server-name".into(),
        A::HandshakeFailure | A::ProtocolVersion | A::InsufficientSecurity => {
            "it agrees to no version, cipher or certificate of this side; both need TLS 1.2 or 1.3, and it may ask for a certificate \
             (--tls-cert)".into()
        }
        _ => "it ended the handshake".into(),
    };
    format!("{why} (TLS alert {alert:?})")
}

/// The fault of the peer's certificate.
fn certificate(error: &CertificateError, side: Side) -> String {
    use CertificateError as C;
    let (known, make) = match side {
        Side::Client => ("--tls-ca", "make one with -addext subjectAltName=DNS:HOST (docs/security.md)"),
        Side::Server => ("--tls-client-ca", "make one as docs/security.md says"),
    };
    match error {
        C::UnknownIssuer => format!(
            "{known} does not name who signed its certificate: name the CA's certificate there, or its own; those between \
             the two stand behind its own in its --tls-cert"
        ),
        C::NotValidForName => "its certificate is not for that name: give one that it is for with --tls-server-name".into(),
        C::NotValidForNameContext { expected, presented } if presented.is_empty() => format!(
            "its certificate names no host, so not {} either (a CN is not looked at): {make}", expected.to_str()
        ),
        C::NotValidForNameContext { expected, presented } => format!(
            "its certificate is not for {}, but for {}: give one of these names with --tls-server-name",
            expected.to_str(),
            presented.iter().map(|name| unwrapped(name)).collect::<Vec<_>>().join(", ")
        ),
        C::Expired => "its certificate has expired: renew it".into(),
        C::ExpiredContext { time, not_after } => format!(
            "its certificate expired {} ago: renew it, unless this machine's clock is wrong",
            rounded(time.as_secs().saturating_sub(not_after.as_secs()))
        ),
        C::NotValidYet => "its certificate is not valid yet: see that both clocks are right".into(),
        C::NotValidYetContext { time, not_before } => format!(
            "its certificate is valid only in {}, by this machine's clock: see that both clocks are right",
            rounded(not_before.as_secs().saturating_sub(time.as_secs()))
        ),
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => {
            let usage = if side == Side::Client { "serverAuth" } else { "clientAuth" };
            format!("its certificate is for other purposes: one with an extendedKeyUsage needs {usage} in it")
        }
        C::Other(why) if why.to_string() == AS_END_ENTITY => format!(
            "its certificate calls itself a CA's (CA:TRUE, as openssl req -x509 makes it) and is not the one in {known}: copy its \
             own there, or make one with -addext basicConstraints=critical,CA:FALSE"
        ),
        C::Other(why) if why.to_string() == "UnsupportedCertVersion" => {
            format!("its certificate is of X.509 version 1, which can name no host: {make}")
        }
        C::BadSignature => format!(
            "its certificate is not signed by the one of that name in {known}, which may be an older one: copy the present one there"
        ),
        C::UnsupportedSignatureAlgorithmContext { .. }
        | C::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "its certificate is signed in a way that is not trusted, such as with SHA-1 or an RSA key under 2048 bits: make one \
             with -newkey rsa:2048 -sha256".into()
        }
        error => format!("its certificate cannot be used: {error}"),
    }
}

/// `DnsName("localhost")` as it is written on a command line.
fn unwrapped(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, inner)| inner.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"')
}

/// A duration, rounded.
fn rounded(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The protocol that a peer speaks instead of HTTP/2, and the remedy, if its first bytes show it.
#[must_use]
pub fn instead_of_http2(first: &[u8]) -> Option<&'static str> {
    match first {
        // The header of a record: an alert or a handshake, of version 3.
        [0x15 | 0x16, 3, ..] => Some(
            "it speaks TLS, and this side does not: give --tls-ca with its certificate, or the one that signed it (PEM)",
        ),
        [b'H', b'T', b'T', b'P', ..] => Some(
            "it speaks HTTP/1, and no gRPC: is that the port of its --http-listen, and not of its --listen?",
        ),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
        date_time_ymd,
    };
    use rustls::{ServerConfig, ServerConnection};
    use tempfile::TempDir;

    use super::*;

    /// A certificate and its key, in files.
    struct Holder {
        certificate: PathBuf,
        key: PathBuf,
    }

    struct Authority {
        root: TempDir,
        ca: CertifiedIssuer<'static, KeyPair>,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, "the authority");
            let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join("ca"), ca.pem()).unwrap();
            Self { root, ca }
        }

        fn ca(&self) -> PathBuf {
            self.root.path().join("ca")
        }

        /// A certificate for `localhost`, changed by `change`, signed by the CA or by itself.
        fn holder(&self, name: &str, signed: bool, change: impl FnOnce(&mut CertificateParams)) -> Holder {
            let [certificate, key] =
                ["certificate", "key"].map(|part| self.root.path().join(format!("{name}-{part}")));
            let pair = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            change(&mut params);
            let made = if signed { params.signed_by(&pair, &self.ca) } else { params.self_signed(&pair) };
            fs::write(&certificate, made.unwrap().pem()).unwrap();
            fs::write(&key, pair.serialize_pem()).unwrap();
            Holder { certificate, key }
        }
    }

    fn mark_as_ca(params: &mut CertificateParams) {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }

    /// A handshake in memory; fails with each side's description of the failure.
    fn handshake(
        server: &Holder,
        clients: Option<&Path>,
        trusted: &Path,
        client: Option<&Holder>,
        name: &str,
    ) -> Result<(), [Option<String>; 2]> {
        let builder =
            ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(ca) => builder.with_client_cert_verifier(super::client_verifier(ca, true).unwrap()),
        };
        let (certificates, key) = identity(&server.certificate, &server.key).unwrap();
        let mut config = builder.with_single_cert(certificates, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let mut there = ServerConnection::new(Arc::new(config)).unwrap();
        let config =
            super::client(trusted, client.map(|c| (c.certificate.as_path(), c.key.as_path()))).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut here = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut failures = [None, None];
        for _ in 0..10 {
            let mut bytes = Vec::new();
            while here.wants_write() {
                here.write_tls(&mut bytes).unwrap();
            }
            there.read_tls(&mut &bytes[..]).unwrap();
            let message =
                there.process_new_packets().err().and_then(|e| cause(&io::Error::other(e), Side::Server));
            failures[1] = failures[1].take().or(message);
            let mut bytes = Vec::new();
            while there.wants_write() {
                there.write_tls(&mut bytes).unwrap();
            }
            here.read_tls(&mut &bytes[..]).unwrap();
            let message =
                here.process_new_packets().err().and_then(|e| cause(&io::Error::other(e), Side::Client));
            failures[0] = failures[0].take().or(message);
        }
        if failures == [None, None] {
            assert!(!here.is_handshaking() && !there.is_handshaking());
            return Ok(());
        }
        Err(failures)
    }

    /// The client's error for a server whose certificate is changed by `change`.
    fn refused(signed: bool, name: &str, change: impl FnOnce(&mut CertificateParams)) -> String {
        let authority = Authority::new();
        let server = authority.holder("server", signed, change);
        let trusted = if signed { authority.ca() } else { server.certificate.clone() };
        let [message, _] = handshake(&server, None, &trusted, None, name).unwrap_err();
        message.unwrap()
    }

    #[test]
    fn trust_1_a_certificate_is_trusted_if_a_configured_one_signed_it_or_equals_it() {
        let authority = Authority::new();
        let signed = authority.holder("signed", true, |_| {});
        let own = authority.holder("own", false, |_| {});
        // As openssl req -x509 makes it.
        let own_ca = authority.holder("own-ca", false, mark_as_ca);
        for (server, trusted) in [
            (&signed, &authority.ca()),
            (&signed, &signed.certificate),
            (&own, &own.certificate),
            (&own_ca, &own_ca.certificate),
        ] {
            assert_eq!(handshake(server, None, trusted, None, "localhost"), Ok(()));
            // The same holds for clients' certificates.
            assert_eq!(handshake(&own, Some(trusted), &own.certificate, Some(server), "localhost"), Ok(()));
        }
        for (server, trusted) in [
            (&own, &authority.ca()),
            (&own_ca, &authority.ca()),
            (&own_ca, &own.certificate),
            (&signed, &own_ca.certificate),
        ] {
            assert!(handshake(server, None, trusted, None, "localhost").is_err());
            let [client, coordinator] =
                handshake(&own, Some(trusted), &own.certificate, Some(server), "localhost").unwrap_err();
            assert!(client.unwrap().contains("it does not trust the certificate in --tls-cert"));
            assert!(coordinator.unwrap().contains("--tls-client-ca"));
        }
    }

    #[test]
    fn trust_1_a_pinned_certificate_must_have_the_name_and_be_valid() {
        for ca in [false, true] {
            let kind = |params: &mut CertificateParams| {
                if ca {
                    mark_as_ca(params);
                }
            };
            let message = refused(false, "elsewhere", kind);
            assert!(message.contains("not for elsewhere") && message.contains("localhost"), "{message}");
            let message = refused(false, "localhost", |params| {
                kind(params);
                params.not_after = date_time_ymd(2001, 1, 1);
                params.not_before = date_time_ymd(2000, 1, 1);
            });
            assert!(
                message.contains("expired") && message.contains("days ago") && message.contains("renew"),
                "{message}"
            );
            let message = refused(false, "localhost", |params| {
                kind(params);
                params.not_before = date_time_ymd(2900, 1, 1);
                params.not_after = date_time_ymd(3000, 1, 1);
            });
            assert!(message.contains("valid only in") && message.contains("clock"), "{message}");
        }
    }

    #[test]
    fn each_failure_is_reported_with_its_cause_and_remedy() {
        let message = refused(true, "127.0.0.1", |_| {});
        assert!(message.contains("127.0.0.1") && message.contains("--tls-server-name"), "{message}");
        let message = refused(true, "localhost", |params| params.subject_alt_names = Vec::new());
        assert!(message.contains("names no host") && message.contains("subjectAltName"), "{message}");
        let message = refused(true, "localhost", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        assert!(message.contains("serverAuth"), "{message}");

        let authority = Authority::new();
        let (server, other) = (authority.holder("server", true, |_| {}), Authority::new());
        let [message, coordinator] = handshake(&server, None, &other.ca(), None, "localhost").unwrap_err();
        let message = message.unwrap();
        // Two CAs of one name: the older one's certificate is still at the worker.
        assert!(message.contains("--tls-ca") && message.contains("older"), "{message}");
        assert!(coordinator.unwrap().contains("--tls-ca"));
        let ours = authority.holder("ours", false, mark_as_ca);
        let [message, _] = handshake(&ours, None, &authority.ca(), None, "localhost").unwrap_err();
        let message = message.unwrap();
        assert!(message.contains("CA:TRUE") && message.contains("copy"), "{message}");
        let stranger = authority.holder("stranger", false, |_| {});
        let [message, _] = handshake(&stranger, None, &authority.ca(), None, "localhost").unwrap_err();
        assert!(message.unwrap().contains("does not name who signed"));

        let [client, coordinator] =
            handshake(&server, Some(&authority.ca()), &authority.ca(), None, "localhost").unwrap_err();
        let client = client.unwrap();
        assert!(client.contains("--tls-cert and --tls-key"), "{client}");
        assert!(coordinator.unwrap().contains("shows no certificate"));
    }

    #[test]
    fn a_key_of_another_certificate_is_named() {
        let authority = Authority::new();
        let (one, other) = (authority.holder("one", true, |_| {}), authority.holder("other", true, |_| {}));
        let error =
            super::client(&authority.ca(), Some((&one.certificate, &other.key))).unwrap_err().to_string();
        assert!(error.contains("other-key") && error.contains("one-certificate"), "{error}");
    }

    #[test]
    fn a_byte_order_mark_before_a_certificate_is_ignored() {
        let authority = Authority::new();
        let marked = authority.root.path().join("marked");
        fs::write(&marked, [b"\xef\xbb\xbf", authority.ca.pem().as_bytes()].concat()).unwrap();
        assert!(super::client(&marked, None).is_ok());
    }
}
