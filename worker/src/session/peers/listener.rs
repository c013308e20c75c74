//! How links come about: this worker is dialled, or dials because the coordinator asks it to.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tally_proto::peer_frame::{Greeting, TOKEN};
use tally_proto::v1::{self, worker_message};
use tally_transport::link::{self, LinkStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::queue::LinkQueue;
use super::{Shared, frames, lock};

/// Connections that may be between their beginning and their greeting.
const MOST_GREETING: usize = 64;

/// Options of a worker's links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerOptions {
    /// Do not listen; this worker only dials others.
    pub dial_only: bool,
    /// Listen here; on any port of all addresses if it is not given.
    pub listen: Option<SocketAddr>,
    /// The `HOST:PORT` at which others reach this worker.
    pub advertise: Option<String>,
    /// What the workers that combine with this one have in common; its machine if it is not given.
    pub machine: Option<String>,
}

/// A name that the workers of this machine have in common, and others have not; empty if none can be found out.
pub fn this_machine() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().chars().take(64).collect()
}

/// Listens for links, and returns the port; 0 if this worker only dials.
pub async fn listen(shared: &Arc<Shared>, options: &PeerOptions) -> u16 {
    if options.dial_only {
        return 0;
    }
    let any = [SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))];
    let addresses = options.listen.map_or(any.to_vec(), |address| vec![address]);
    let mut bound = TcpListener::bind(&addresses[..]).await;
    if let (Err(error), Some(address)) = (&bound, options.listen)
        && error.kind() == io::ErrorKind::AddrInUse
    {
        // Another worker of this machine has it, of `--devices` for one.
        tracing::warn!("other workers can reach this one at another port than {address}, which is in use");
        bound = TcpListener::bind(SocketAddr::new(address.ip(), 0)).await;
    }
    match bound.and_then(|listener| Ok((listener.local_addr()?.port(), listener))) {
        Ok((port, listener)) => {
            let task = shared.clone();
            shared.spawn(async move { accept(&task, listener).await });
            port
        }
        Err(error) => {
            let address = addresses[0];
            tracing::warn!(
                "other workers cannot dial this one: cannot listen on {address}: {error}; see --peer-listen"
            );
            0
        }
    }
}

async fn accept(shared: &Arc<Shared>, listener: TcpListener) {
    let greeting = Arc::new(Semaphore::new(MOST_GREETING));
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            // No descriptors are left, most likely.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(permit) = greeting.clone().try_acquire_owned() else { continue };
        let task = shared.clone();
        shared.spawn(async move {
            if let Err(reason) = take(&task, stream).await {
                tracing::debug!("no link for {from}: {reason}");
            }
            drop(permit);
        });
    }
}

/// Takes a link, if the coordinator has sent the worker that dials.
async fn take(shared: &Arc<Shared>, stream: TcpStream) -> Result<(), String> {
    let wiring = &shared.wiring;
    let accepted = link::accept(stream, wiring.identity.as_ref()).await;
    let (mut stream, greeting) = accepted.map_err(|e| e.to_string())?;
    let ours = &wiring.context;
    let wanted = (ours.run, ours.incarnation, ours.session);
    if (greeting.run, greeting.incarnation, greeting.to) != wanted || !wiring.secret.admits(&greeting) {
        return Err("it is not one that the coordinator has sent".into());
    }
    let queue = register(shared, greeting.from);
    link::welcome(&mut stream).await.map_err(|e| e.to_string())?;
    frames::serve(shared, greeting.from, queue, stream);
    Ok(())
}

/// What is to be sent to a peer waits here from now on; an older link to it is not used any more.
fn register(shared: &Shared, peer: u64) -> Arc<LinkQueue> {
    let queue = Arc::new(LinkQueue::default());
    lock(&shared.links).insert(peer, queue.clone());
    queue
}

/// Dials another worker, and reports the outcome.
pub async fn dial(shared: Arc<Shared>, dial: v1::Dial) {
    let peer = dial.peer;
    let opened = open(&shared, &dial).await;
    shared.report(match opened {
        Ok(stream) => {
            let queue = register(&shared, peer);
            frames::serve(&shared, peer, queue, stream);
            worker_message::Body::LinkUp(v1::LinkUp { peer })
        }
        Err(reason) => worker_message::Body::LinkDown(v1::LinkDown { peer, reason }),
    });
}

async fn open(shared: &Shared, dial: &v1::Dial) -> Result<LinkStream, String> {
    let token: [u8; TOKEN] =
        dial.token.as_ref().try_into().map_err(|_| "the coordinator's token is none".to_string())?;
    let ours = &shared.wiring.context;
    let greeting =
        Greeting { run: ours.run, incarnation: ours.incarnation, from: ours.session, to: dial.peer, token };
    link::dial(&dial.addresses, &dial.certificate, &greeting).await
}
