//! One small synthetic run that tests disturb, and its digests when nobody does.

use std::sync::OnceLock;

use tally_tools::cluster::{Coordinator, RunDir, Signal, digests, events, train_local};

/// Epochs of four steps, each followed by a test pass. The time a sample takes is no part
/// of the bits.
pub fn options(us_per_sample: u32, epochs: u32) -> Vec<String> {
    let model = format!("synthetic:parameters=50000,us-per-sample={us_per_sample}");
    // A learning rate that does not depend on the number of epochs.
    let schedule = ["--lr-schedule", "constant", "--warmup-steps", "10"];
    let data = ["--batch-size", "64", "--train-limit", "250", "--test-limit", "12"];
    let options = ["--model", &model, "--epochs", &epochs.to_string()];
    [&options[..], &schedule, &data].concat().into_iter().map(String::from).collect()
}

/// The digests of the baseline run, as many steps as any test needs.
fn baseline_digests() -> &'static [String] {
    static DIGESTS: OnceLock<Vec<String>> = OnceLock::new();
    DIGESTS.get_or_init(|| {
        let options = options(0, 200);
        digests(&train_local(1, &options.iter().map(String::as_str).collect::<Vec<_>>()).journal())
    })
}

/// Starts a coordinator of such a run.
///
/// # Panics
/// If it does not come up.
pub fn coordinator(run: &RunDir, workers: &str, us_per_sample: u32, epochs: u32) -> Coordinator {
    coordinator_with(run, workers, us_per_sample, epochs, &[])
}

/// The same, with further options.
///
/// # Panics
/// If it does not come up.
pub fn coordinator_with(
    run: &RunDir,
    workers: &str,
    us_per_sample: u32,
    epochs: u32,
    more: &[&str],
) -> Coordinator {
    let cluster = [&["--workers", workers, "--run-dir", run.arg()], more].concat();
    Coordinator::start(cluster.into_iter().map(String::from).chain(options(us_per_sample, epochs)))
}

/// The run has the bits of the baseline run in each of its steps, and used every sample once.
///
/// # Panics
/// If it has not.
pub fn equals_baseline(run: &RunDir) {
    let found = digests(&run.journal());
    let wanted = baseline_digests().get(..found.len()).expect("the baseline run is long enough");
    assert!(!found.is_empty() && found == wanted, "{found:?}\nis not\n{wanted:?}");
    let summary = run.summary();
    assert_eq!((&summary["samples_lost"], &summary["samples_duplicated"]), (&0.into(), &0.into()));
    // Counted without the ledger: the samples that the steps of each whole epoch had.
    let journal = run.journal();
    for epoch in 1..=summary["epochs"].as_u64().unwrap() {
        let steps = events(&journal, "step").into_iter().filter(|step| step["epoch"] == epoch);
        assert_eq!(steps.map(|step| step["samples"].as_u64().unwrap()).sum::<u64>(), 250, "epoch {epoch}");
    }
}

/// Stops a run politely, which must end well.
///
/// # Panics
/// If it does not.
pub fn stop(coordinator: &Coordinator) {
    coordinator.signal(Signal::INT);
    coordinator.succeed();
}
