//! Ports under attack: bytes on real sockets, in one process.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::credentials::Credentials;
use super::options::AccessOptions;
use super::serve::{Port, Protocol};

const TOKEN: &str = "a-secret-of-those-who-train";
/// Only a hang reaches it.
const DEADLINE: Duration = Duration::from_secs(120);

/// A port that asks for a token, with the allowed requests counted.
async fn port(protocol: Protocol) -> (SocketAddr, Arc<AtomicUsize>) {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("token");
    std::fs::write(&file, TOKEN).unwrap();
    let options = AccessOptions { token_file: Some(file), ..AccessOptions::default() };
    let credentials = Credentials::load(&options).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let router = Router::new().fallback(move |body: Bytes| async move {
        counted.fetch_add(1, Ordering::Relaxed);
        body
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(Port::new(protocol, router, credentials, 64).serve(listener, std::future::pending()));
    (address, count)
}

async fn connect(address: SocketAddr, first: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(first).await.unwrap();
    stream
}

/// Reads until `text` has come.
async fn wait_for(stream: &mut TcpStream, text: &str) {
    let heard = async {
        let mut heard = Vec::new();
        while !String::from_utf8_lossy(&heard).contains(text) {
            assert!(stream.read_buf(&mut heard).await.unwrap() > 0, "{}", String::from_utf8_lossy(&heard));
        }
    };
    tokio::time::timeout(DEADLINE, heard).await.expect("an answer");
}

/// Sends the same again and again until the connection is over.
async fn flood(mut stream: TcpStream, mut next: impl FnMut() -> Vec<u8>) {
    let (mut from, mut to) = stream.split();
    let ended = async { while to.write_all(&next()).await.is_ok() {} };
    let mut sink = tokio::io::sink();
    let over = async {
        tokio::select! {
            _ = tokio::io::copy(&mut from, &mut sink) => {}
            () = ended => {}
        }
    };
    tokio::time::timeout(DEADLINE, over).await.expect("the connection ends");
}

#[tokio::test]
async fn trust_1_bodies_of_those_without_a_token_keep_nobody_from_sending_theirs() {
    let (address, count) = port(Protocol::Web).await;
    let slow = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx";
    let mut strangers = Vec::new();
    for _ in 0..40 {
        let mut stranger = connect(address, slow).await;
        wait_for(&mut stranger, "200 OK").await;
        strangers.push(stranger);
    }
    let head = format!("POST /answer HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    let mut friend = connect(address, format!("{head}Content-Length: 7\r\n\r\ndrawing").as_bytes()).await;
    wait_for(&mut friend, "drawing").await;
    assert_eq!(count.load(Ordering::Relaxed), 41);
}

// ---- HTTP/2, written by hand ----

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The headers of a call, as HPACK writes them without compression.
fn call(path: &str) -> Vec<u8> {
    let literal = |name: u8, value: &str| [&[name, value.len() as u8], value.as_bytes()].concat();
    [&[0x83, 0x86][..], &literal(1, "localhost"), &literal(4, path)].concat()
}

const OPEN: &str = "/grpc.health.v1.Health/Check";

#[tokio::test]
async fn trust_1_whoever_opens_streams_and_resets_them_at_once_does_not_go_on() {
    let (address, count) = port(Protocol::Grpc).await;
    for path in [OPEN, "/tally.v1.Cluster/Control"] {
        let stream = connect(address, PREFACE).await;
        let (mut id, headers) = (1, call(path));
        let mut sent = 0;
        flood(stream, || {
            id += 2;
            sent += 1;
            let cancel = frame(RST_STREAM, 0, id, &8u32.to_be_bytes());
            [frame(HEADERS, END_HEADERS | END_STREAM, id, &headers), cancel].concat()
        })
        .await;
        assert!(sent > 1);
    }
    let limit = (64 << 10) / call(OPEN).len();
    assert!(count.load(Ordering::Relaxed) <= limit, "{count:?}");
}

#[tokio::test]
async fn trust_1_headers_that_never_end_do_not_go_on() {
    let (address, count) = port(Protocol::Grpc).await;
    for padding in [&b""[..], &[0x40, 1, b'a', 1, b'b'].repeat(100)] {
        let stream = connect(address, &[PREFACE, &frame(HEADERS, 0, 1, &call(OPEN))].concat()).await;
        flood(stream, || frame(CONTINUATION, 0, 1, padding)).await;
    }
    assert_eq!(count.load(Ordering::Relaxed), 0, "a call that is not whole is none");
}

#[tokio::test]
async fn trust_1_a_small_header_that_stands_for_a_large_one_does_not_grow() {
    let (address, count) = port(Protocol::Grpc).await;
    // One field of 4000 bytes goes into the table, and a thousand references to it follow.
    let value = [b'x'; 4000];
    let field = [&[0x40, 1, b'a', 0x7f, 0xa1, 0x1e][..], &value].concat();
    let bomb = [call(OPEN), field, vec![0xbe; 1000]].concat();
    let mut stream =
        connect(address, &[PREFACE, &frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)].concat()).await;
    // Refused with 431, or with the connection's end; never handed on.
    let mut answer = Vec::new();
    let end = async {
        while let Ok(1..) = stream.read_buf(&mut answer).await {
            if answer.windows(3).any(|three| three == b"431") || answer.len() > 200 {
                break;
            }
        }
    };
    tokio::time::timeout(DEADLINE, end).await.expect("an answer");
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

/// A proxy that is cut off while it passes a body on tells its client of a bad gateway, and not why the request was refused.
#[tokio::test]
async fn a_request_that_is_refused_may_send_its_body_to_the_end() {
    let (address, count) = port(Protocol::Web).await;
    let head =
        b"POST /draw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000\r\nConnection: close\r\n\r\n";
    let mut stream = connect(address, head).await;
    for _ in 0..30 {
        stream.write_all(&[b'x'; 1000]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    wait_for(&mut stream, "401 Unauthorized").await;
    assert_eq!(count.load(Ordering::Relaxed), 0);
}
