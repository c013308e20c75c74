//! The signals that ask a program to stop, the same for both binaries.
//!
//! Any of them asks for a polite end: the program stops its work as it should and ends. A second SIGINT or
//! SIGTERM ends it at once, whatever it is doing. What terminals and batch systems send again by themselves (SIGHUP
//! comes from the kernel and from the shell, SIGXCPU every second) asks, however often it comes.

use std::io;

use tally_cli::output;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// What a program exits with whose work was not done when it was told to stop: `EX_TEMPFAIL` of sysexits(3).
/// A supervisor that counts 0 as the end of the job must start it again.
pub const STOPPED_EARLY: u8 = 75;

/// Hears of signals.
#[derive(Clone, Debug)]
pub struct Signals(watch::Receiver<Option<i32>>);

impl Signals {
    /// Listens from here on, on the current runtime. Where another process hands signals on, a second one does not
    /// insist: whoever presses Ctrl-C has sent it to both already.
    ///
    /// # Errors
    /// If the system does not let it.
    pub fn listen(handed_on: bool) -> io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
        // A batch system's notices; without a handler each of them ends the process at once.
        let limit = SignalKind::from_raw(rustix::process::Signal::XCPU.as_raw());
        let mut others = vec![SignalKind::user_defined1(), SignalKind::user_defined2(), limit];
        if !is_ignored(SignalKind::hangup().as_raw_value()) {
            others.push(SignalKind::hangup());
        }
        let (heard, mut signals) = mpsc::unbounded_channel();
        for (kinds, insists) in [(&kinds[..], !handed_on), (&others[..], false)] {
            for &kind in kinds {
                tokio::spawn(hear(signal(kind)?, (kind.as_raw_value(), insists), heard.clone()));
            }
        }
        let (tell, asked) = watch::channel(None);
        tokio::spawn(async move {
            let mut insisted = false;
            while let Some((number, insists)) = signals.recv().await {
                if insists && std::mem::replace(&mut insisted, true) {
                    end(128 + number);
                }
                tell.send_if_modified(|asked| asked.is_none() && asked.replace(number).is_none());
            }
        });
        Ok(Self(asked))
    }

    /// Waits for the first signal, and returns its number.
    pub async fn asked(&self) -> i32 {
        match self.0.clone().wait_for(Option::is_some).await.map(|asked| *asked) {
            Ok(Some(number)) => number,
            _ => std::future::pending().await,
        }
    }
}

/// Ends the process at once, with what it has said.
pub fn end(code: i32) -> ! {
    output::flush();
    std::process::exit(code)
}

async fn hear(mut signal: Signal, it: (i32, bool), to: mpsc::UnboundedSender<(i32, bool)>) {
    while signal.recv().await.is_some() && to.send(it).is_ok() {}
}

/// Whether this process was started with the signal ignored, as `nohup` does with SIGHUP: then it stays ignored.
/// Where the system does not tell, it counts as ignored.
fn is_ignored(signal: i32) -> bool {
    std::fs::read_to_string("/proc/self/status").map_or(true, |status| ignores(&status, signal))
}

fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_none_or(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_seen_in_the_systems_words() {
        let hangup = SignalKind::hangup().as_raw_value();
        assert!(ignores("Name:\tworker\nSigIgn:\t0000000000001001\n", hangup));
        assert!(!ignores("SigIgn:\t0000000000001000\nSigCgt:\tffffffffffffffff\n", hangup));
        assert!(ignores("Name:\tworker\n", hangup), "where the system does not tell, nothing is changed");
    }
}
