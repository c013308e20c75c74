//! Links between workers: who may dial, and the byte streams.
//!
//! The coordinator gives each worker a secret, and each worker that may dial it a token made of that secret and of both
//! sessions. So a worker knows those that the coordinator has sent, and a token is good for one pair of sessions.
//! Where the cluster uses TLS, each session has a certificate of its own; it reaches the other side through the
//! coordinator (**TRUST-1**).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use sha2::{Digest as _, Sha256};
use socket2::{SockRef, TcpKeepalive};
use subtle::ConstantTimeEq as _;
use tally_proto::peer_frame::{GREETING, Greeting, TOKEN};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::tls;

/// How long each stage of opening a link may take.
const STAGE: Duration = Duration::from_secs(5);
/// After so long without a byte a link is looked after.
const QUIET: Duration = Duration::from_secs(15);
/// What a worker that takes a link answers.
const WELCOME: u8 = 1;

/// The name in every certificate for links. It tells nothing: the certificate itself is compared.
const NAME: &str = "tally-worker";

/// What a coordinator shares with one worker, to make tokens of.
#[derive(Clone)]
pub struct LinkSecret([u8; TOKEN]);

/// The secret itself is never printed.
impl std::fmt::Debug for LinkSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LinkSecret(…)")
    }
}

impl LinkSecret {
    /// One that nobody can guess; `None` if the system has no random numbers.
    #[must_use]
    pub fn random() -> Option<Self> {
        let mut bytes = [0; TOKEN];
        tls::provider().secure_random.fill(&mut bytes).ok().map(|()| Self(bytes))
    }

    /// One that a coordinator has sent, if it is one.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// As it is sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The token with which session `from` dials session `to`, whose secret this is.
    #[must_use]
    pub fn token(&self, from: u64, to: u64) -> [u8; TOKEN] {
        // All parts have fixed lengths.
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(b"tally link");
        hash.update(from.to_le_bytes());
        hash.update(to.to_le_bytes());
        hash.finalize().into()
    }

    /// Whether a greeting's token is the one for its sessions.
    #[must_use]
    pub fn admits(&self, greeting: &Greeting) -> bool {
        self.token(greeting.from, greeting.to).ct_eq(&greeting.token).into()
    }
}

/// A session's certificate for links, with its key.
#[derive(Clone, Debug)]
pub struct LinkIdentity {
    config: Arc<ServerConfig>,
    certificate: CertificateDer<'static>,
}

impl LinkIdentity {
    /// A new one.
    ///
    /// # Errors
    /// If none can be made.
    pub fn generate() -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed([NAME.into()])?;
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let config = ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)?;
        Ok(Self { config: Arc::new(config), certificate })
    }

    /// The certificate, in DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }
}

/// The stream of a link.
#[derive(Debug)]
pub enum LinkStream {
    /// TCP.
    Plain(TcpStream),
    /// TLS over it.
    Tls(Box<TlsStream<TcpStream>>),
}

/// The receiving half of a link.
pub type LinkReader = Box<dyn AsyncRead + Send + Unpin>;
/// The sending half of a link.
pub type LinkWriter = Box<dyn AsyncWrite + Send + Unpin>;

impl LinkStream {
    /// Both halves; those of TCP do not wait for each other.
    #[must_use]
    pub fn split(self) -> (LinkReader, LinkWriter) {
        match self {
            Self::Plain(stream) => {
                let (reader, writer) = stream.into_split();
                (Box::new(reader), Box::new(writer))
            }
            Self::Tls(stream) => {
                let (reader, writer) = tokio::io::split(*stream);
                (Box::new(reader), Box::new(writer))
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).await,
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    async fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.read_exact(bytes).await.map(|_| ()),
            Self::Tls(stream) => stream.read_exact(bytes).await.map(|_| ()),
        }
    }
}

/// Sets what all links have: nothing waits to be sent, and a peer that is gone without a word, or a translation that has
/// forgotten the link, is noticed although nothing is sent for hours.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(QUIET).with_interval(QUIET / 3).with_retries(3);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Opens a link to the first address that answers, with TLS if the peer has a `certificate` (in DER).
///
/// # Errors
/// Why there is none, in words.
pub async fn dial(
    addresses: &[String],
    certificate: &[u8],
    greeting: &Greeting,
) -> Result<LinkStream, String> {
    let mut failure = "it has no address".to_string();
    for address in addresses {
        match dial_one(address, certificate, greeting).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = format!("{address}: {error}"),
        }
    }
    Err(failure)
}

async fn dial_one(address: &str, certificate: &[u8], greeting: &Greeting) -> Result<LinkStream, String> {
    let late = |_| format!("no answer for {} s", STAGE.as_secs());
    let stream = timeout(STAGE, TcpStream::connect(address)).await.map_err(late)?;
    let stream = stream.map_err(|e| e.to_string())?;
    prepare(&stream).map_err(|e| e.to_string())?;
    let mut stream = if certificate.is_empty() {
        LinkStream::Plain(stream)
    } else {
        let config = tls::client_of(certificate.to_vec().into()).map_err(|e| e.to_string())?;
        let name = ServerName::try_from(NAME).map_err(|e| e.to_string())?;
        let connected = timeout(STAGE, TlsConnector::from(Arc::new(config)).connect(name, stream));
        let connected = connected.await.map_err(late)?.map_err(|e| e.to_string())?;
        LinkStream::Tls(Box::new(connected.into()))
    };
    let greeted = timeout(STAGE, async {
        stream.write(&greeting.encode()).await?;
        let mut answer = [0];
        stream.read(&mut answer).await?;
        Ok::<_, io::Error>(answer[0])
    });
    match greeted.await.map_err(late)? {
        Ok(WELCOME) => Ok(stream),
        Ok(_) => Err("it answered with something else".into()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err("it refused the link".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Takes a connection of another worker, up to its greeting.
///
/// # Errors
/// If it does not greet in time, or is no worker.
pub async fn accept(
    stream: TcpStream,
    identity: Option<&LinkIdentity>,
) -> io::Result<(LinkStream, Greeting)> {
    prepare(&stream)?;
    let opened = timeout(STAGE, async {
        let mut stream = match identity {
            None => LinkStream::Plain(stream),
            Some(identity) => {
                let accepted = TlsAcceptor::from(identity.config.clone()).accept(stream).await?;
                LinkStream::Tls(Box::new(accepted.into()))
            }
        };
        let mut bytes = [0; GREETING];
        stream.read(&mut bytes).await?;
        let greeting = Greeting::decode(&bytes).map_err(io::Error::other)?;
        Ok((stream, greeting))
    });
    opened.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Tells a worker that its link is taken.
///
/// # Errors
/// If it is gone.
pub async fn welcome(stream: &mut LinkStream) -> io::Result<()> {
    stream.write(&[WELCOME]).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn greeting(secret: &LinkSecret) -> Greeting {
        Greeting { run: 1, incarnation: 2, from: 3, to: 4, token: secret.token(3, 4) }
    }

    #[test]
    fn trust_1_a_token_is_good_for_one_pair() {
        let secret = LinkSecret::random().unwrap();
        let good = greeting(&secret);
        assert!(secret.admits(&good));
        assert!(!secret.admits(&Greeting { from: 5, ..good }));
        assert!(!secret.admits(&Greeting { to: 5, ..good }));
        assert!(!LinkSecret::random().unwrap().admits(&good));
        assert!(LinkSecret::from_bytes(&[0; 31]).is_none());
    }

    /// Opens a link, and returns what the dialler got.
    async fn open(identity: Option<LinkIdentity>, certificate: &[u8]) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let accepts = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (mut stream, greeting) = accept(stream, identity.as_ref()).await?;
            welcome(&mut stream).await?;
            let (_, mut writer) = stream.split();
            writer.write_all(&[greeting.from as u8]).await?;
            writer.flush().await
        });
        // The first address answers nothing.
        let addresses = ["127.0.0.1:1".to_string(), address];
        let greeting = greeting(&LinkSecret::random().unwrap());
        let (mut reader, _) = dial(&addresses, certificate, &greeting).await?.split();
        let mut byte = [0];
        reader.read_exact(&mut byte).await.map_err(|e| e.to_string())?;
        accepts.await.unwrap().unwrap();
        assert_eq!(byte, [3]);
        Ok(())
    }

    #[tokio::test]
    async fn links_open_plain_and_with_the_certificate_that_the_coordinator_named() {
        open(None, &[]).await.unwrap();
        let identity = LinkIdentity::generate().unwrap();
        let certificate = identity.certificate().to_vec();
        open(Some(identity.clone()), &certificate).await.unwrap();
        let another = LinkIdentity::generate().unwrap();
        for wrong in [another.certificate(), &[7; 32]] {
            let error = open(Some(identity.clone()), wrong).await.unwrap_err();
            assert!(error.contains("certificate"), "{error}");
        }
    }
}
