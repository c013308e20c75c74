//! A worker that says anything, on a link of the real code of another worker.

use std::net::Ipv4Addr;
use std::time::Duration;

use tally_numerics::CHUNK;
use tally_numerics::tree::{Node, Tree};
use tally_numerics::wire::WireDtype;
use tally_proto::convert;
use tally_proto::peer_frame::{FrameKind, Greeting, Header};
use tally_proto::v1::{self, AttemptBegin, MessageContext, gradient_down, worker_message};
use tally_transport::link::LinkSecret;
use tally_worker::session::messages::{Input, SendCommand};
use tally_worker::session::peers::{PeerOptions, PeerWiring, Peers};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::Script;

/// The session of the worker under test, and of the hostile one.
const OURS: u64 = 1;
const THEIRS: u64 = 2;
/// A large chunk, and a small one that most frames carry.
const ELEMENTS: usize = CHUNK + 5;
const SMALL: u32 = 1;
const DIGEST: u64 = 77;

fn context(step: u64, attempt: u32) -> MessageContext {
    MessageContext { run: 5, incarnation: 1, session: OURS, step, attempt }
}

/// Plays a script. Whatever is sent, no task panics, and nothing reaches the compute thread or the coordinator that is not a
/// chunk of an attempt that was announced.
///
/// # Panics
/// If that is not so.
pub fn play(script: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(&mut Script::new(script)));
}

async fn run(script: &mut Script<'_>) {
    let (inputs, inbox) = std::sync::mpsc::channel();
    let (commands, mut for_coordinator) = mpsc::unbounded_channel();
    let (control, mut said) = mpsc::unbounded_channel();
    let secret = LinkSecret::from_bytes(&[7; 32]).unwrap();
    let wiring = PeerWiring {
        context: context(0, 0),
        tree: Tree::new(4).unwrap(),
        elements: ELEMENTS,
        dtype: WireDtype::F32,
        inputs,
        commands,
        control,
        secret: secret.clone(),
        identity: None,
    };
    let listen = Some((Ipv4Addr::LOCALHOST, 0).into());
    let (peers, endpoint) = Peers::start(wiring, &PeerOptions { listen, ..PeerOptions::default() }).await;
    let port = endpoint.port as u16;
    let mut attempt = 0;
    let mut link = open(script, &secret, port).await;
    while let Some(op) = script.op() {
        match op % 16 {
            0 => link = open(script, &secret, port).await,
            1 | 2 => {
                attempt += 1;
                let owners = match script.byte() % 4 {
                    0 => vec![],
                    1 => vec![THEIRS, OURS],
                    _ => vec![OURS, THEIRS],
                };
                let samples = script.small(16).min(1000);
                // On this worker's machine is another one, which sends nothing.
                let machine =
                    v1::Machine { workers: vec![OURS, 77], nodes: vec![script.small(1), script.small(2)] };
                let begin = AttemptBegin {
                    linked: [&owners[..], &[77]].concat(),
                    owners,
                    machines: if script.rarely(2) { vec![machine] } else { Vec::new() },
                    samples,
                    digest: DIGEST,
                    ..AttemptBegin::default()
                };
                peers.begin(context(1, attempt), &begin, convert::layout(&begin));
            }
            3 => write(&mut link, script.bytes()).await,
            _ => {
                let frame = frame(script, attempt);
                write(&mut link, &frame).await;
            }
        }
        // The tasks of the link get their turn.
        tokio::task::yield_now().await;
    }
    drop(link);
    tokio::time::sleep(Duration::from_millis(2)).await;
    drop(peers);
    while let Ok(Input::Gradient(of, gradient_down::Body::SumChunk(sum), _)) = inbox.try_recv() {
        let wanted = if sum.index == SMALL { 20 } else { 4 * CHUNK };
        assert!(of.attempt <= attempt && sum.index <= 1 && sum.data.len() == wanted, "{of:?}");
    }
    while let Ok(command) = for_coordinator.try_recv() {
        assert!(
            matches!(command, SendCommand::Sum { attempt: of, index, .. } if of <= attempt && index <= 1)
        );
    }
    while let Ok(message) = said.try_recv() {
        assert!(matches!(message.body, Some(worker_message::Body::LinkDown(_))), "{message:?}");
    }
}

/// Opens a link, most often with a good greeting.
async fn open(script: &mut Script<'_>, secret: &LinkSecret, port: u16) -> Option<TcpStream> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
    let (from, to) = (script.number(THEIRS), script.number(OURS));
    let greeting = Greeting {
        run: script.number(5),
        incarnation: script.number(1),
        from,
        to,
        token: secret.token(script.number(from), script.number(to)),
    };
    stream.write_all(&greeting.encode()).await.ok()?;
    let good = (greeting.run, greeting.incarnation, to) == (5, 1, OURS) && secret.admits(&greeting);
    let mut answer = [0];
    let welcomed = stream.read_exact(&mut answer).await.is_ok() && answer == [1];
    assert_eq!(welcomed, good, "{greeting:?}");
    welcomed.then_some(stream)
}

/// A frame that is most often sound.
fn frame(script: &mut Script<'_>, attempt: u32) -> Vec<u8> {
    let payload = script.floats(5);
    let kind = if script.rarely(3) { FrameKind::Sum } else { FrameKind::Partial(Node(script.small(4))) };
    let index = script.small(SMALL);
    // An attempt that is never announced would have the link wait for ever.
    let of = script.small(attempt).min(attempt);
    let mut header = Header::of(kind, (1, of), index, script.number(DIGEST), &payload);
    header.length = script.small(header.length);
    header.crc = script.small(header.crc);
    [&header.encode()[..], &payload].concat()
}

async fn write(link: &mut Option<TcpStream>, bytes: &[u8]) {
    let sent = match link {
        Some(stream) => stream.write_all(bytes).await.is_ok(),
        None => false,
    };
    if !sent {
        *link = None;
    }
}
