//! **TRUST-1**: nothing that a peer sends panics anyone, loses a sample, or keeps an honest
//! peer from going on. Random scripts, 256 of each kind unless `PROPTEST_CASES` says otherwise;
//! `fuzz/` plays the same for longer.

use proptest::prelude::*;
use tally_tests::hostile::{coordinator, peer, worker};

fn scripts() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..2000)
}

/// Nothing hostile at all: the harness itself trains to the end.
#[test]
fn an_honest_worker_alone_finishes_the_run() {
    coordinator::play(&[]);
    coordinator::play(&[7]);
}

proptest! {
    #[test]
    fn trust_1_the_coordinator_stands_whatever_workers_send(script in scripts()) {
        coordinator::play(&script);
    }

    #[test]
    fn trust_1_a_worker_stands_whatever_another_worker_sends(script in scripts()) {
        peer::play(&script);
    }

    #[test]
    fn trust_1_a_worker_stands_whatever_a_coordinator_sends(script in scripts()) {
        worker::play(&script);
    }
}
