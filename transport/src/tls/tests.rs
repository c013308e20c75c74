use std::fs;
use std::io;
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
    let config = super::client(trusted, client.map(|c| (c.certificate.as_path(), c.key.as_path()))).unwrap();
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
    let error = super::client(&authority.ca(), Some((&one.certificate, &other.key))).unwrap_err().to_string();
    assert!(error.contains("other-key") && error.contains("one-certificate"), "{error}");
}

#[test]
fn a_byte_order_mark_before_a_certificate_is_ignored() {
    let authority = Authority::new();
    let marked = authority.root.path().join("marked");
    fs::write(&marked, [b"\xef\xbb\xbf", authority.ca.pem().as_bytes()].concat()).unwrap();
    assert!(super::client(&marked, None).is_ok());
}
