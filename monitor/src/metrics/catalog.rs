//! All metrics except those of each worker, announced in one place before they have a value.
//!
//! A series that appears with its first event is missing when it matters: an alert that compares it is silent after a
//! restart that finds no worker, and its first value is not an increase. So each series exists from the first scrape on:
//! counters and histograms at 0, and gauges at what is known then, or at NaN, to which no comparison is true. The
//! run's schema names the series of losses and metrics. Tests compare this table with the code, the alerts and the board.

use metrics::{Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tally_numerics::schema::Schema;

/// What kind of metric.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Counter,
    /// With its value at the start.
    Gauge(f64),
    Histogram,
}

use Kind::{Counter, Gauge, Histogram};

/// A gauge whose value is not known yet.
const UNKNOWN: Kind = Gauge(f64::NAN);

/// A metric: its name, kind and unit, its description, and its label, if it has one.
struct Metric(&'static str, Kind, Option<Unit>, &'static str, Option<(&'static str, Values)>);

/// The values of a label.
#[derive(Clone, Copy, Debug)]
enum Values {
    Fixed(&'static [&'static str]),
    /// The total loss, and each loss of the schema.
    Losses,
    /// The schema's metrics that are one number.
    Ratios,
}

use Values::Fixed;

impl Values {
    fn of(self, schema: &Schema) -> Vec<String> {
        match self {
            Fixed(values) => values.iter().map(|&value| value.to_owned()).collect(),
            Self::Losses => {
                let names = schema.losses().iter().map(|loss| loss.name.clone());
                std::iter::once("total".to_owned()).chain(names).collect()
            }
            Self::Ratios => schema.ratios().map(|(metric, _)| metric.name.clone()).collect(),
        }
    }
}

const YES_NO: Values = Fixed(&["true", "false"]);
const PORTS: Values = Fixed(&["grpc", "http"]);
const SECONDS: Option<Unit> = Some(Unit::Seconds);
const BYTES: Option<Unit> = Some(Unit::Bytes);

const ALL: &[Metric] = &[
    Metric("tally_incarnation", UNKNOWN, None, "How often this run's coordinator has been started.", None),
    Metric("tally_step", UNKNOWN, None, "The last committed step.", None),
    Metric("tally_steps", UNKNOWN, None, "Steps of the whole run.", None),
    Metric("tally_epoch", UNKNOWN, None, "The epoch of the last committed step, from 1.", None),
    Metric("tally_steps_total", Counter, None, "Steps committed since this start.", None),
    Metric("tally_samples_total", Counter, None, "Training samples committed since this start.", None),
    Metric("tally_samples_lost_total", Counter, None, "Samples that an epoch ended without; always 0.", None),
    Metric(
        "tally_samples_duplicated_total",
        Counter,
        None,
        "Samples used twice in an epoch; always 0.",
        None,
    ),
    Metric(
        "tally_loss",
        UNKNOWN,
        None,
        "The last step's mean loss, by part.",
        Some(("part", Values::Losses)),
    ),
    Metric("tally_gradient_norm", UNKNOWN, None, "The last step's gradient norm before clipping.", None),
    Metric("tally_learning_rate", UNKNOWN, None, "The last step's learning rate.", None),
    Metric(
        "tally_test_metric_ratio",
        UNKNOWN,
        None,
        "The last test pass's metrics that are one number.",
        Some(("metric", Values::Ratios)),
    ),
    Metric("tally_test_loss", UNKNOWN, None, "The last test pass's mean loss.", None),
    Metric(
        "tally_workers",
        Gauge(0.0),
        None,
        "Workers by state.",
        Some(("state", Fixed(&["joining", "loading", "ready"]))),
    ),
    Metric("tally_workers_wanted", UNKNOWN, None, "Workers the run waits for at its start.", None),
    Metric("tally_step_seconds", Histogram, SECONDS, "Wall time of a step.", None),
    Metric("tally_step_compute_seconds", Histogram, SECONDS, "Computing of a step's slowest worker.", None),
    Metric(
        "tally_step_transfer_seconds",
        Histogram,
        SECONDS,
        "From the slowest worker's last computing to the whole sum.",
        None,
    ),
    Metric("tally_step_waiting_seconds", Histogram, SECONDS, "The mean worker's wait for the slowest.", None),
    Metric(
        "tally_worker_apply_seconds",
        Histogram,
        SECONDS,
        "A worker's update, after the whole sum came.",
        None,
    ),
    Metric(
        "tally_worker_round_seconds",
        Histogram,
        SECONDS,
        "From the beginning of a worker's contribution to the whole sum.",
        None,
    ),
    Metric("tally_test_seconds", Histogram, SECONDS, "Wall time of a test pass.", None),
    Metric("tally_gradient_received_bytes_total", Counter, BYTES, "Gradient bytes taken from workers.", None),
    Metric("tally_gradient_sent_bytes_total", Counter, BYTES, "Summed gradient bytes sent to workers.", None),
    Metric("tally_workers_joined_total", Counter, None, "Workers that became ready.", None),
    Metric(
        "tally_workers_lost_total",
        Counter,
        None,
        "Workers gone, by whether they left by their own will.",
        Some(("polite", YES_NO)),
    ),
    Metric(
        "tally_unproductive_sessions_total",
        Counter,
        None,
        "Sessions of workers that ended before a step was done, or because the link is too slow.",
        None,
    ),
    Metric(
        "tally_evictions_total",
        Counter,
        None,
        "Workers sent away, by whether their replica had drifted.",
        Some(("drifted", YES_NO)),
    ),
    Metric("tally_aborted_attempts_total", Counter, None, "Steps that had to start again.", None),
    Metric(
        "tally_microbatches_taken_over_total",
        Counter,
        None,
        "Microbatches of lost workers that others computed.",
        None,
    ),
    Metric(
        "tally_microbatches_speculative_total",
        Counter,
        None,
        "Microbatches of late workers that others computed too.",
        None,
    ),
    Metric(
        "tally_reduction_owners",
        Gauge(0.0),
        None,
        "Workers that add gradients up; 0 if the coordinator does.",
        None,
    ),
    Metric("tally_links", Gauge(0.0), None, "Links between workers that are up.", None),
    Metric(
        "tally_chunks_taken_back_total",
        Counter,
        None,
        "Chunks that the coordinator added up because a worker could not.",
        None,
    ),
    Metric(
        "tally_step_deadline_seconds",
        UNKNOWN,
        SECONDS,
        "When the last assignment of the last step was due.",
        None,
    ),
    Metric(
        "tally_audits_total",
        Counter,
        None,
        "Nodes that a second worker computed too, by whether the bits were equal.",
        Some(("equal", YES_NO)),
    ),
    Metric(
        "tally_steps_recomputed_total",
        Counter,
        None,
        "Steps that a resumed run had to compute again.",
        None,
    ),
    Metric(
        "tally_checkpoints_total",
        Counter,
        None,
        "Checkpoints, by result.",
        Some(("result", Fixed(&["written", "failed"]))),
    ),
    Metric(
        "tally_checkpoint_step",
        Gauge(0.0),
        None,
        "The step of the newest checkpoint; 0 before the first.",
        None,
    ),
    Metric(
        "tally_checkpoint_time_seconds",
        UNKNOWN,
        SECONDS,
        "When the newest checkpoint was written, in seconds since 1970; before the first, when the run was started.",
        None,
    ),
    Metric(
        "tally_run_dir_free_bytes",
        UNKNOWN,
        BYTES,
        "Bytes that may be written to the run directory's file system.",
        None,
    ),
    Metric("tally_run_dir_size_bytes", UNKNOWN, BYTES, "The size of that file system.", None),
    Metric("tally_connections", Gauge(0.0), None, "Connections, by port.", Some(("port", PORTS))),
    Metric(
        "tally_connections_refused_total",
        Counter,
        None,
        "Connections for which there was no room, by port.",
        Some(("port", PORTS)),
    ),
    Metric(
        "tally_tls_failures_total",
        Counter,
        None,
        "Connections that ended before TLS was agreed on, by port.",
        Some(("port", PORTS)),
    ),
    Metric(
        "tally_requests_denied_total",
        Counter,
        None,
        "Requests without the right to what they asked for, by port.",
        Some(("port", PORTS)),
    ),
];

/// Describes all metrics to the recorder, and gives each series its first value.
pub fn announce(schema: &Schema) {
    describe_gauge!("tally_build_info", "Always 1; its labels tell the version.");
    gauge!("tally_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    describe_gauge!("tally_run_info", "Always 1; its labels tell the run, its program and model.");
    for Metric(name, kind, unit, help, label) in ALL {
        match (kind, unit) {
            (Counter, Some(unit)) => describe_counter!(*name, *unit, *help),
            (Counter, None) => describe_counter!(*name, *help),
            (Gauge(_), Some(unit)) => describe_gauge!(*name, *unit, *help),
            (Gauge(_), None) => describe_gauge!(*name, *help),
            (Histogram, Some(unit)) => describe_histogram!(*name, *unit, *help),
            (Histogram, None) => describe_histogram!(*name, *help),
        }
        let series: Vec<Vec<Label>> = match label {
            None => vec![Vec::new()],
            Some((label, values)) => {
                values.of(schema).into_iter().map(|value| vec![Label::new(*label, value)]).collect()
            }
        };
        for labels in series {
            match kind {
                Counter => counter!(*name, labels).absolute(0),
                Gauge(value) => gauge!(*name, labels).set(*value),
                Histogram => drop(histogram!(*name, labels)),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::metrics::workers::WorkerSeries;
    use crate::test_support::schema;

    /// Words that look like names of metrics.
    fn names(text: &str) -> BTreeSet<String> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.filter(|word| word.starts_with("tally_")).map(str::to_owned).collect()
    }

    fn sources(below: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(below).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => sources(&path, found),
                path if path.extension().is_some_and(|it| it == "rs") => found.push(path),
                _ => {}
            }
        }
    }

    /// A scrape before anything has happened.
    fn scraped() -> String {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(metrics_exporter_prometheus::Matcher::Suffix("_seconds".into()), &[1.0])
            .unwrap()
            .build_recorder();
        metrics::with_local_recorder(&recorder, || announce(&schema()));
        let handle = recorder.handle();
        handle.run_upkeep();
        handle.render()
    }

    fn is_there(scraped: &str, name: &str) -> bool {
        let samples = scraped.lines().filter(|line| !line.starts_with('#'));
        samples.filter_map(|line| line.strip_prefix(name)).any(|rest| rest.starts_with(['{', ' ']))
    }

    #[test]
    fn every_metric_that_the_code_sets_is_announced_with_each_of_its_series() {
        let (root, mut files) = (Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), Vec::new());
        for part in ["monitor/src", "coordinator/src", "tally/src"] {
            sources(&root.join(part), &mut files);
        }
        let scraped = scraped();
        let mut seen = 0;
        for file in files.iter().filter(|file| !file.ends_with("catalog.rs")) {
            let text = std::fs::read_to_string(file).unwrap();
            for macro_name in ["counter!(\"", "gauge!(\"", "histogram!(\""] {
                for (at, _) in text.match_indices(macro_name) {
                    let name = text[at + macro_name.len()..].split('"').next().unwrap();
                    let announced = ALL.iter().any(|metric| metric.0 == name) || name.ends_with("_info");
                    assert!(announced, "{name}, which {} sets, is not announced", file.display());
                    seen += 1;
                }
            }
        }
        assert!(seen > 40, "{seen}");
        for Metric(name, kind, _, _, label) in ALL {
            let series = if *kind == Histogram { format!("{name}_count") } else { (*name).to_owned() };
            match label {
                None => assert!(is_there(&scraped, &series), "{name}:\n{scraped}"),
                Some((label, values)) => values.of(&schema()).iter().for_each(|value| {
                    let series = format!("{series}{{{label}=\"{value}\"}}");
                    assert!(is_there(&scraped, &series), "{series}:\n{scraped}");
                }),
            }
        }
    }

    /// The series of a worker come with the worker, and the seconds of each part are rendered apart.
    #[test]
    fn whatever_an_alert_or_the_board_asks_for_is_there_from_the_first_scrape() {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let mut of_workers = String::new();
        WorkerSeries::default().render(&mut of_workers, std::time::Instant::now());
        let scraped = scraped();
        for file in ["prometheus/rules/tally.yml", "grafana/dashboards/tally.json"] {
            let text = std::fs::read_to_string(deploy.join(file)).unwrap();
            for name in names(&text).into_iter().filter(|name| name != "tally_run_seconds_total") {
                let of_worker = of_workers.contains(&format!("# TYPE {name} "));
                assert!(
                    of_worker || is_there(&scraped, &name) || name == "tally_run_info",
                    "{name} of {file}"
                );
            }
        }
    }
}
