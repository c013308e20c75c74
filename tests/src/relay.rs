//! A stable address in front of coordinators that come and go.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// Passes connections on to a port that may change, so that workers find a restarted
/// coordinator although it takes a free port again. Bytes are passed on unchanged; where
/// nobody listens, a connection is closed at once. A relay runs until the process ends.
#[derive(Clone, Debug)]
pub struct Relay {
    port: u16,
    target: Arc<AtomicU16>,
}

impl Relay {
    /// A relay to `target`, both on the loopback interface.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn start(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
        let port = listener.local_addr().expect("a listener has an address").port();
        let target = Arc::new(AtomicU16::new(target));
        let relay = Self { port, target: target.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = pass_on(stream, target.load(Ordering::Relaxed));
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
        self.target.store(target, Ordering::Relaxed);
    }
}

fn pass_on(near: TcpStream, target: u16) -> io::Result<()> {
    let far = TcpStream::connect((Ipv4Addr::LOCALHOST, target))?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
    }
    for (from, to) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
        std::thread::spawn(move || {
            let _ = io::copy(&mut &from, &mut &to);
            // Whichever side ends first, however it ends, ends the other.
            for stream in [from, to] {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
    }
    Ok(())
}
