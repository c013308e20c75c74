//! A short run under chaos: **LIVE-1**, **DATA-1**, **SUM-1**, **REP-1**, **RESUME-1**, **CKPT-1**.
//!
//! The seed fixes what is done and when; what comes of it is the machine's. So nothing about
//! times is asserted, only the promises. Longer runs: `docs/reliability.md`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use tally_tools::chaos::{self, Options};

#[test]
fn the_promises_hold_under_twenty_seconds_of_chaos() {
    let options = Options {
        seed: 47,
        minutes: 1.0 / 3.0,
        action_every: 700,
        samples: 1000,
        encores: 2,
        // What pulls cables needs privileges that a test should not.
        no_namespaces: true,
        // Others may test on this machine as well.
        patience: 170,
        ..Options::default()
    };
    let directory = tempfile::tempdir().unwrap();
    let card = chaos::run(&options, &directory.path().join("chaos")).unwrap();
    println!("{}", card.text());
    if !card.kept() {
        let kept = directory.keep();
        panic!(
            "a promise was broken; what is left is in {}; repeat it: {}",
            kept.display(),
            options.command()
        );
    }
    assert!(card.steps > 0 && card.rows.len() > 5, "nothing happened");
}
