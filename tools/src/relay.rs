//! A stable address in front of coordinators that come and go, and a connection that can
//! be hurt: cut, held back, made slow.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that are read at once.
const PIECE: usize = 64 << 10;
/// Pieces on the way in one direction; then the sender's own system has to hold them.
const ON_THE_WAY: usize = 64;

/// Passes connections on to an address that may change, so that workers find a restarted
/// coordinator although it takes a free port again. Bytes are passed on unchanged and in
/// order, now or later; where nobody listens, a connection is closed at once. A relay runs
/// until the process ends.
#[derive(Clone, Debug)]
pub struct Relay {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    target: SocketAddr,
    /// New connections are closed at once.
    refuses: bool,
    /// Nothing is delivered.
    holds: bool,
    /// How long every byte is on the way.
    delay: Duration,
    /// A piece with more bytes breaks its connection.
    most: usize,
    open: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    ends: [TcpStream; 2],
    over: Arc<AtomicBool>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while_held(&self) {
        let mut state = self.state();
        while state.holds {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A port of the loopback interface on which nobody listens, for a process that is to be started with it.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
    listener.local_addr().expect("a listener has an address").port()
}

impl Relay {
    /// A relay to `target`, both on the loopback interface.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn start(target: u16) -> Self {
        Self::to((Ipv4Addr::LOCALHOST, target).into())
    }

    /// A relay from the loopback interface to `target`.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
        let port = listener.local_addr().expect("a listener has an address").port();
        let (delay, most) = (Duration::ZERO, usize::MAX);
        let state = State { target, refuses: false, holds: false, delay, most, open: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let relay = Self { port, shared: shared.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = pass_on(stream, &shared);
            }
        });
        relay
    }

    /// Where workers connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Passes new connections on to another port.
    pub fn retarget(&self, target: u16) {
        self.shared.state().target.set_port(target);
    }

    /// Breaks every connection, and closes new ones at once until it is [mended](Self::mend).
    pub fn cut(&self) {
        let mut state = self.shared.state();
        state.refuses = true;
        for connection in state.open.drain(..) {
            for end in &connection.ends {
                let _ = end.shutdown(Shutdown::Both);
            }
        }
    }

    /// Holds all bytes back, of new connections too, until it is [mended](Self::mend).
    pub fn hold(&self) {
        self.shared.state().holds = true;
    }

    /// Every byte takes so long from now on, until it is [mended](Self::mend).
    pub fn delay(&self, delay: Duration) {
        self.shared.state().delay = delay;
    }

    /// Lets small pieces through only, until it is [mended](Self::mend): one with more bytes breaks its connection, as
    /// a path does in the end on which large packets vanish.
    pub fn narrow(&self, most: usize) {
        self.shared.state().most = most;
    }

    /// Works as it should again: what was held back is delivered, in order.
    pub fn mend(&self) {
        let mut state = self.shared.state();
        (state.refuses, state.holds, state.delay, state.most) = (false, false, Duration::ZERO, usize::MAX);
        self.shared.changed.notify_all();
    }
}

fn pass_on(near: TcpStream, shared: &Arc<Shared>) -> std::io::Result<()> {
    let target = {
        let state = shared.state();
        if state.refuses {
            return Ok(());
        }
        state.target
    };
    let far = TcpStream::connect(target)?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
    }
    let over = Arc::new(AtomicBool::new(false));
    for (from, to) in [(&near, &far), (&far, &near)] {
        let (sender, receiver) = sync_channel(ON_THE_WAY);
        let (input, shared_in) = (from.try_clone()?, shared.clone());
        std::thread::spawn(move || take(input, &shared_in, &sender));
        let (ends, shared_out, over) = ([from.try_clone()?, to.try_clone()?], shared.clone(), over.clone());
        std::thread::spawn(move || {
            deliver(&ends[1], &shared_out, &receiver);
            // Whichever side ends first, however it ends, ends the other.
            over.store(true, Ordering::Relaxed);
            for end in ends {
                let _ = end.shutdown(Shutdown::Both);
            }
        });
    }
    let mut state = shared.state();
    state.open.retain(|connection| !connection.over.load(Ordering::Relaxed));
    state.open.push(Connection { ends: [near, far], over });
    Ok(())
}

type Piece = (Instant, Vec<u8>);

fn take(mut from: TcpStream, shared: &Shared, to: &SyncSender<Piece>) {
    let mut buffer = vec![0; PIECE];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let due = Instant::now() + shared.state().delay;
        if to.send((due, buffer[..read].to_vec())).is_err() {
            return;
        }
    }
}

fn deliver(mut to: &TcpStream, shared: &Shared, from: &Receiver<Piece>) {
    for (due, piece) in from {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        shared.wait_while_held();
        if piece.len() > shared.state().most || to.write_all(&piece).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
        port
    }

    fn exchange(stream: &mut TcpStream, word: [u8; 4]) -> std::io::Result<[u8; 4]> {
        let mut heard = [0; 4];
        stream.write_all(&word)?;
        stream.read_exact(&mut heard)?;
        Ok(heard)
    }

    fn connect(relay: &Relay) -> TcpStream {
        TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port())).unwrap()
    }

    #[test]
    fn what_is_held_back_arrives_later_and_a_delay_is_one() {
        let relay = Relay::start(echo());
        let mut stream = connect(&relay);
        assert_eq!(exchange(&mut stream, *b"one ").unwrap(), *b"one ");
        relay.hold();
        stream.write_all(b"two ").unwrap();
        let mut heard = [0; 4];
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(stream.read_exact(&mut heard).is_err());
        relay.mend();
        stream.set_read_timeout(None).unwrap();
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(heard, *b"two ");
        relay.delay(Duration::from_millis(40));
        let start = Instant::now();
        assert_eq!(exchange(&mut stream, *b"slow").unwrap(), *b"slow");
        assert!(start.elapsed() >= Duration::from_millis(80));
    }

    #[test]
    fn a_cut_breaks_connections_and_refuses_new_ones_until_it_is_mended() {
        let relay = Relay::start(echo());
        let mut stream = connect(&relay);
        assert_eq!(exchange(&mut stream, *b"one ").unwrap(), *b"one ");
        relay.cut();
        assert!(exchange(&mut stream, *b"two ").is_err());
        assert!(exchange(&mut connect(&relay), *b"more").is_err());
        relay.mend();
        assert_eq!(exchange(&mut connect(&relay), *b"back").unwrap(), *b"back");
    }
}
