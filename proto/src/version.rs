//! Which builds of Tally can work together: those of one [`PROTOCOL`].
//!
//! `docs/compatibility.md` says what may change without raising it, and `proto/tests/compatibility.rs` checks the
//! messages against it.

use std::fmt;

use thiserror::Error;

/// The version that both sides must have. Raised whenever an old peer would misunderstand a message, or
/// would compute other bits from the same one.
pub const PROTOCOL: u32 = 1;

/// The most characters of a peer's build that are repeated.
const LONGEST_BUILD: usize = 64;

/// One side, by its own statement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Speaker {
    /// The version of Tally.
    build: String,
    /// The protocol it speaks.
    protocol: u32,
}

impl Speaker {
    /// This process.
    #[must_use]
    pub fn this() -> Self {
        Self::new(env!("CARGO_PKG_VERSION"), PROTOCOL)
    }

    /// A peer that says so. Control characters are removed, because the text is printed on a terminal.
    #[must_use]
    pub fn new(build: &str, protocol: u32) -> Self {
        let build = build.chars().filter(|c| !c.is_control()).take(LONGEST_BUILD).collect();
        Self { build, protocol }
    }
}

impl fmt::Display for Speaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let build = if self.build.is_empty() { "of no version" } else { &self.build };
        write!(f, "(Tally {build}) speaks protocol {}", self.protocol)
    }
}

/// A coordinator and a worker that cannot work together. Both sides say it in these words.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "the coordinator {coordinator}, the worker {worker}: upgrade the {}, which is the older one",
    if coordinator.protocol < worker.protocol { "coordinator" } else { "worker" }
)]
pub struct Mismatch {
    coordinator: Speaker,
    worker: Speaker,
}

/// Whether they can work together.
///
/// # Errors
/// In words, with which of them is to be upgraded.
pub fn check(coordinator: Speaker, worker: Speaker) -> Result<(), Mismatch> {
    if coordinator.protocol == worker.protocol { Ok(()) } else { Err(Mismatch { coordinator, worker }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_of_one_protocol_work_together_and_of_others_the_older_is_to_be_upgraded() {
        let at = |build, protocol| Speaker::new(build, protocol);
        assert_eq!(check(at("0.1.0", 3), at("0.9.9", 3)), Ok(()));
        let words = |coordinator, worker| check(coordinator, worker).map_err(|e| e.to_string());
        assert_eq!(
            words(at("0.1.0", 3), at("0.2.0", 4)),
            Err("the coordinator (Tally 0.1.0) speaks protocol 3, the worker (Tally 0.2.0) speaks protocol 4: \
                 upgrade the coordinator, which is the older one"
                .into())
        );
        assert!(words(at("0.2.0", 4), at("0.1.0", 3)).is_err_and(|e| e.contains("upgrade the worker")));
    }

    #[test]
    fn trust_1_what_a_peer_calls_itself_is_short_and_plain() {
        let long = format!("\u{1b}[2J{}\n", "x".repeat(1000));
        let told = Speaker::new(&long, 7).to_string();
        assert!(told.len() < 120 && !told.contains(char::is_control), "{told:?}");
        assert!(Speaker::new("", 7).to_string().contains("of no version"));
    }
}
