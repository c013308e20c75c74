//! What one connection of a flood does.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

/// What a connection does once it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visit {
    /// It says nothing.
    Silent,
    /// It begins a TLS handshake, and waits.
    HalfOpen,
    /// It sends bytes that mean nothing, once.
    Garbage,
    /// It sends them without end.
    Torrent,
    /// It begins well, a byte at a time.
    Dripping,
    /// Another protocol, in which this one does not answer.
    Http1,
    /// Headers that never end.
    EndlessHeaders,
    /// Calls that are taken back at once.
    Resets,
}

impl Visit {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Silent,
        Self::HalfOpen,
        Self::Garbage,
        Self::Torrent,
        Self::Dripping,
        Self::Http1,
        Self::EndlessHeaders,
        Self::Resets,
    ];
    /// Those who do nothing once they are there.
    pub const IDLE: &'static [Self] = &[Self::Silent, Self::HalfOpen];
}

/// HTTP/2's opening: the preface and empty settings.
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The headers of `POST http:` as HPACK has them; the path follows.
const HEADERS: &[u8] = b"\x83\x86\x04\x1c/grpc.health.v1.Health/Check";
/// Between two drops.
const DROP: Duration = Duration::from_millis(20);

/// Who makes visits.
pub struct Visitor {
    /// Where.
    pub target: SocketAddr,
    /// From where.
    pub source: Ipv4Addr,
    /// How TLS is spoken, if it is; some visits do not get that far.
    pub tls: Option<TlsConnector>,
    /// How long it stays.
    pub stay: Duration,
}

impl Visitor {
    /// Makes a visit, and tells whether it was ended by the other side.
    pub async fn visit(&self, visit: Visit, turn: usize, opened: &AtomicU64) -> io::Result<bool> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.source, 0).into())?;
        let stream = socket.connect(self.target).await?;
        opened.fetch_add(1, Ordering::Relaxed);
        if turn.is_multiple_of(2) {
            // It leaves without a farewell.
            stream.set_zero_linger()?;
        }
        match &self.tls {
            // Every second one shakes hands first.
            Some(tls) if visit != Visit::HalfOpen && turn % 4 < 2 => {
                let within = tls.connect(ServerName::from(self.target.ip()), stream);
                match tokio::time::timeout(self.stay, within).await {
                    Ok(Ok(stream)) => Ok(self.act(visit, stream).await),
                    Ok(Err(_)) => Ok(true),
                    Err(_) => Ok(false),
                }
            }
            _ => Ok(self.act(visit, stream).await),
        }
    }

    async fn act(&self, visit: Visit, stream: impl AsyncRead + AsyncWrite + Unpin) -> bool {
        let (mut from, mut to) = tokio::io::split(stream);
        let heard = async {
            let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
        };
        let said = async {
            if say(visit, &mut to).await.is_ok() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = heard => true,
            () = said => true,
            () = tokio::time::sleep(self.stay) => false,
        }
    }
}

/// Says all that there is to say, which may have no end.
async fn say(visit: Visit, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    match visit {
        Visit::Silent => {}
        Visit::HalfOpen => to.write_all(&half_a_hello()).await?,
        Visit::Garbage => to.write_all(&[0x5a; 3000]).await?,
        Visit::Torrent => loop {
            to.write_all(&[0xa5; 64 << 10]).await?;
        },
        Visit::Dripping => {
            for byte in OPENING.iter().cycle() {
                to.write_all(&[*byte]).await?;
                to.flush().await?;
                tokio::time::sleep(DROP).await;
            }
        }
        Visit::Http1 => to.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await?,
        Visit::EndlessHeaders => {
            to.write_all(&[OPENING, &frame(1, 0, 1, HEADERS)].concat()).await?;
            let more = frame(9, 0, 1, &b"\x40\x01a\x01b".repeat(200));
            loop {
                to.write_all(&more).await?;
            }
        }
        Visit::Resets => {
            to.write_all(OPENING).await?;
            for stream in (1..).step_by(2) {
                let call = [frame(1, 5, stream, HEADERS), frame(3, 0, stream, &[0, 0, 0, 8])].concat();
                to.write_all(&call).await?;
            }
        }
    }
    to.flush().await
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The first half of what a client says first in TLS.
fn half_a_hello() -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let mut hello = Vec::new();
    ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut hello).unwrap();
    hello.truncate(hello.len() / 2);
    hello
}
