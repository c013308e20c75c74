//! Why a TLS handshake failed, and what to do about it.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};

use super::AS_END_ENTITY;

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
        A::UnrecognisedName => "it has no certificate for that name: give a name from its certificate with --tls-server-name".into(),
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
