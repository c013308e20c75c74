//! A proxy between a worker and its coordinator that passes every byte on, records it, and sends the record again on
//! connections of its own.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tally_tools::cluster::DEADLINE;

/// Bytes that are written down: the hello, the offer and the opening of both streams are among the first.
const MOST: usize = 64 << 10;

/// Passes one worker's connection on.
#[derive(Clone, Debug)]
pub struct Recorder {
    target: SocketAddr,
    port: u16,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    /// Listens before the coordinator at `port` of the loopback interface.
    ///
    /// # Panics
    /// If there is no free port.
    #[must_use]
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let target = (Ipv4Addr::LOCALHOST, port).into();
        let port = listener.local_addr().unwrap().port();
        let recorder = Self { target, port, said: Arc::default() };
        let recording = recorder.clone();
        std::thread::spawn(move || {
            for worker in listener.incoming().flatten() {
                let _ = recording.pass_on(&worker);
            }
        });
        recorder
    }

    /// Where the worker connects to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    fn pass_on(&self, worker: &TcpStream) -> io::Result<()> {
        let coordinator = TcpStream::connect(self.target)?;
        for stream in [worker, &coordinator] {
            stream.set_nodelay(true)?;
        }
        let (mut down_from, mut down_to) = (coordinator.try_clone()?, worker.try_clone()?);
        std::thread::spawn(move || {
            let _ = io::copy(&mut down_from, &mut down_to);
            let _ = down_to.shutdown(Shutdown::Both);
        });
        let (recorder, mut from, mut to) = (self.clone(), worker.try_clone()?, coordinator);
        std::thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                recorder.write_down(&buffer[..read]);
                if to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        });
        Ok(())
    }

    fn write_down(&self, bytes: &[u8]) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MOST - said.len();
        said.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Says all of it again on a connection of its own, `times` times.
    ///
    /// # Panics
    /// If there is nothing, or the coordinator cannot be reached.
    pub fn say_again(&self, times: usize) {
        let end = Instant::now() + DEADLINE;
        let said = loop {
            let said = self.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if said.len() >= 1024 {
                break said;
            }
            assert!(Instant::now() < end, "the worker has said {} bytes", said.len());
            std::thread::sleep(Duration::from_millis(10));
        };
        for _ in 0..times {
            let mut stream = TcpStream::connect(self.target).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            // It may be ended before all is said.
            let _ = stream.write_all(&said);
            let _ = io::copy(&mut stream, &mut io::sink());
        }
    }
}
