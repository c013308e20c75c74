//! The series of each worker, by its name.
//!
//! They are kept apart from the recorder of the other metrics, since they end: the series of a worker that has gone
//! stay for a while, so that its end is seen, and are then removed. At most [`MOST`] workers have series, however many
//! come and go; workers that are there come first.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tally_coordinator::timeline::clock::Offset;
use tally_coordinator::timeline::{Lane, SpanKind};
use tally_core::cluster::Session;

/// Workers that have series at one time.
pub const MOST: usize = 512;
/// How long the series of one that has gone stay.
const KEPT: Duration = Duration::from_secs(300);

/// The values of the workers of one name.
#[derive(Debug, Default)]
struct Row {
    device: String,
    /// Its sessions, and the samples of each that are counted.
    here: BTreeMap<Session, u64>,
    /// The newest of them.
    session: Session,
    gone: Option<Instant>,
    step: u64,
    microbatches: u64,
    samples: u64,
    /// In the order of [`SpanKind::ALL`].
    seconds: [f64; SpanKind::ALL.len()],
    /// Its measured speed.
    per_sample: Option<f64>,
    late: u64,
    taken_over: u64,
    /// How long the mean worker waited for it, when it was the slowest.
    waited_for: f64,
    clock: Option<Offset>,
}

#[derive(Debug, Default)]
struct Table {
    rows: BTreeMap<String, Row>,
    names: BTreeMap<Session, String>,
    /// Workers without room for their series: names and devices.
    left_out: BTreeMap<Session, (String, String)>,
}

impl Table {
    fn row(&mut self, session: Session) -> Option<&mut Row> {
        self.rows.get_mut(self.names.get(&session)?)
    }

    /// Forgets workers that have been gone for long, and, where room is needed, those that went first.
    fn settle(&mut self, now: Instant) {
        self.rows.retain(|_, row| row.gone.is_none_or(|gone| now.saturating_duration_since(gone) < KEPT));
        while let Some((&session, (name, _))) = self.left_out.first_key_value() {
            if !self.rows.contains_key(name) && self.rows.len() >= MOST {
                let gone = self.rows.iter().filter_map(|(name, row)| Some((row.gone?, name)));
                let Some(first) = gone.min().map(|(_, name)| name.clone()) else { return };
                self.rows.remove(&first);
            }
            if let Some((name, device)) = self.left_out.remove(&session) {
                let row = self.rows.entry(name.clone()).or_default();
                row.here.insert(session, 0);
                (row.device, row.session, row.gone) = (device, session, None);
                self.names.insert(session, name);
            }
        }
    }

    fn gone(&mut self, session: Session, now: Instant) {
        self.left_out.remove(&session);
        let Some(row) = self.names.remove(&session).and_then(|name| self.rows.get_mut(&name)) else { return };
        row.here.remove(&session);
        if row.here.is_empty() {
            (row.gone, row.microbatches) = (Some(now), 0);
        }
    }

    fn lane(&mut self, lane: &Lane) {
        let Some(row) = self.row(lane.session) else { return };
        for (kind, total) in SpanKind::ALL.into_iter().zip(&mut row.seconds) {
            *total +=
                lane.spans.iter().filter(|span| span.kind == kind).map(|span| span.seconds()).sum::<f64>();
        }
        // What is told between steps has no microbatches of a step in it.
        if lane.spans.iter().all(|span| span.kind != SpanKind::Test) {
            let given =
                lane.spans.iter().filter(|s| matches!(s.kind, SpanKind::Compute | SpanKind::Takeover));
            row.microbatches = given.map(|span| u64::from(span.leaves)).sum();
        }
    }

    fn render(&self, text: &mut String) {
        let rows: Vec<(String, &Row)> = self.rows.iter().map(|(name, row)| (escaped(name), row)).collect();
        let mut out = Text { text, rows: &rows };
        out.head("tally_worker_info", "gauge", "Always 1; its labels tell a worker's device and session.");
        for (name, row) in &rows {
            let (device, session) = (escaped(&row.device), row.session);
            out.line(format_args!(
                "tally_worker_info{{worker=\"{name}\",device=\"{device}\",session=\"{session:x}\"}} 1"
            ));
        }
        out.family("tally_worker_up", "gauge", "1 while the worker is a member of the cluster.", |row| {
            Some(f64::from(u8::from(row.gone.is_none())))
        });
        out.family("tally_worker_step", "gauge", "The last step that the worker confirmed.", |row| {
            Some(row.step as f64)
        });
        out.family(
            "tally_worker_microbatches",
            "gauge",
            "Microbatches that it computed for that step.",
            |row| Some(row.microbatches as f64),
        );
        out.family(
            "tally_worker_samples_total",
            "counter",
            "Training samples that the worker contributed to committed steps.",
            |row| Some(row.samples as f64),
        );
        out.head(
            "tally_worker_activity_seconds_total",
            "counter",
            "Seconds that the worker told it spent, by activity; it sends while it does something else.",
        );
        for (name, row) in &rows {
            for (kind, seconds) in SpanKind::ALL.into_iter().zip(row.seconds) {
                out.line(format_args!(
                    "tally_worker_activity_seconds_total{{worker=\"{name}\",activity=\"{}\"}} {seconds}",
                    kind.name()
                ));
            }
        }
        out.family(
            "tally_worker_sample_seconds",
            "gauge",
            "Seconds a sample, smoothed, by which its assignment is measured.",
            |row| row.per_sample,
        );
        out.family(
            "tally_worker_waited_for_seconds_total",
            "counter",
            "How long the mean worker waited for it, when it was the slowest.",
            |row| Some(row.waited_for),
        );
        out.family("tally_worker_late_total", "counter", "How often it was past its deadline.", |row| {
            Some(row.late as f64)
        });
        out.family(
            "tally_worker_microbatches_taken_over_total",
            "counter",
            "Microbatches that it was assigned in place of others.",
            |row| Some(row.taken_over as f64),
        );
        out.family(
            "tally_worker_clock_offset_seconds",
            "gauge",
            "How far its clock is ahead of the coordinator's.",
            |row| row.clock.map(|clock| clock.seconds),
        );
        out.family("tally_worker_clock_error_seconds", "gauge", "How far that may be off.", |row| {
            row.clock.map(|clock| clock.error)
        });
        out.family("tally_worker_round_trip_seconds", "gauge", "The newest round trip to it.", |row| {
            row.clock.map(|clock| clock.round_trip)
        });
        let name = "tally_worker_series_left_out";
        out.head(name, "gauge", "Workers without series, since there are too many.");
        out.line(format_args!("{name} {}", self.left_out.len()));
    }
}

/// Metrics in Prometheus's text format.
struct Text<'a> {
    text: &'a mut String,
    rows: &'a [(String, &'a Row)],
}

impl Text<'_> {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // A string takes whatever is written to it.
        let _ = writeln!(self.text, "{line}");
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// A series for each worker that has a value.
    fn family(&mut self, name: &str, kind: &str, help: &str, value: impl Fn(&Row) -> Option<f64>) {
        self.head(name, kind, help);
        for (worker, row) in self.rows {
            if let Some(value) = value(row) {
                self.line(format_args!("{name}{{worker=\"{worker}\"}} {value}"));
            }
        }
    }
}

/// A label's value, as the text format has it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The series, between the driver, which counts, and the scrapes of `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct WorkerSeries(Arc<Mutex<Table>>);

impl WorkerSeries {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker takes part.
    pub fn joined(&self, session: Session, name: &str, device: &str, now: Instant) {
        let mut table = self.table();
        table.left_out.insert(session, (name.into(), device.into()));
        table.settle(now);
    }

    /// A worker takes part no more.
    pub fn gone(&self, session: Session, now: Instant) {
        let mut table = self.table();
        table.gone(session, now);
        table.settle(now);
    }

    /// A worker has confirmed a step, after which it has contributed `samples` in this session.
    pub fn confirmed(&self, session: Session, step: u64, samples: u64) {
        if let Some(row) = self.table().row(session) {
            row.step = step;
            if let Some(counted) = row.here.get_mut(&session) {
                row.samples += samples.saturating_sub(std::mem::replace(counted, samples));
            }
        }
    }

    /// A worker's speed, as far as it was measured.
    pub fn speed(&self, session: Session, per_sample: Option<f64>) {
        if let Some(row) = self.table().row(session) {
            row.per_sample = per_sample;
        }
    }

    /// A worker was the slowest of a step, and the mean worker waited for it for so long.
    pub fn waited_for(&self, session: Session, seconds: f64) {
        if let Some(row) = self.table().row(session) {
            row.waited_for += seconds;
        }
    }

    /// The spans of a worker.
    pub fn lane(&self, lane: &Lane) {
        self.table().lane(lane);
    }

    /// A worker's clock has been compared.
    pub fn clock(&self, session: Session, clock: Offset) {
        if let Some(row) = self.table().row(session) {
            row.clock = Some(clock);
        }
    }

    /// A worker was late.
    pub fn late(&self, session: Session) {
        if let Some(row) = self.table().row(session) {
            row.late += 1;
        }
    }

    /// A worker was assigned microbatches in place of another.
    pub fn takes_over(&self, session: Session, microbatches: u32) {
        if let Some(row) = self.table().row(session) {
            row.taken_over += u64::from(microbatches);
        }
    }

    /// Appends the series in Prometheus's text format.
    pub fn render(&self, text: &mut String, now: Instant) {
        let mut table = self.table();
        table.settle(now);
        table.render(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tally_coordinator::timeline::Span;

    fn text(series: &WorkerSeries, now: Instant) -> String {
        let mut text = String::new();
        series.render(&mut text, now);
        text
    }

    fn has(text: &str, line: &str) -> bool {
        text.lines().any(|other| other == line)
    }

    #[test]
    fn a_worker_that_has_gone_is_seen_to_be_gone_and_then_forgotten() {
        let (series, now) = (WorkerSeries::default(), Instant::now());
        series.joined(0xab, "a", "CPU", now);
        assert!(has(&text(&series, now), "tally_worker_up{worker=\"a\"} 1"));
        series.gone(0xab, now);
        assert!(has(&text(&series, now + KEPT / 2), "tally_worker_up{worker=\"a\"} 0"));
        assert!(!text(&series, now + KEPT).contains("worker="));
    }

    #[test]
    fn counters_go_on_when_a_worker_comes_back() {
        let (series, now) = (WorkerSeries::default(), Instant::now());
        series.joined(1, "a", "CPU", now);
        series.confirmed(1, 7, 100);
        series.confirmed(1, 8, 150);
        series.late(1);
        series.gone(1, now);
        series.joined(2, "a", "CPU", now);
        series.confirmed(2, 9, 30);
        series.confirmed(1, 10, 1000);
        let text = text(&series, now);
        assert!(has(&text, "tally_worker_samples_total{worker=\"a\"} 180"), "{text}");
        assert!(has(&text, "tally_worker_late_total{worker=\"a\"} 1"), "{text}");
        assert!(has(&text, "tally_worker_info{worker=\"a\",device=\"CPU\",session=\"2\"} 1"), "{text}");
    }

    #[test]
    fn seconds_are_counted_by_activity() {
        let (series, now) = (WorkerSeries::default(), Instant::now());
        series.joined(1, "a", "CPU", now);
        let span = |kind, leaves, start, end| Span { kind, leaves, start, end };
        let lane = |spans| Lane { session: 1, step: 3, error: 0.0, spans };
        series.lane(&lane(vec![
            span(SpanKind::Compute, 4, 1.0, 2.0),
            span(SpanKind::Takeover, 2, 2.0, 2.5),
            span(SpanKind::Wait, 0, 2.5, 4.0),
        ]));
        series.lane(&lane(vec![span(SpanKind::Test, 1, 5.0, 6.0), span(SpanKind::Wait, 0, 6.0, 6.5)]));
        let text = text(&series, now);
        let line = |activity, seconds| {
            format!("tally_worker_activity_seconds_total{{worker=\"a\",activity=\"{activity}\"}} {seconds}")
        };
        assert!(has(&text, &line("compute", 1.0)) && has(&text, &line("wait", 2.0)), "{text}");
        assert!(has(&text, &line("takeover", 0.5)) && has(&text, &line("test", 1.0)), "{text}");
        assert!(has(&text, "tally_worker_microbatches{worker=\"a\"} 6"), "{text}");
    }

    #[test]
    fn there_are_so_many_series_at_most_and_those_who_are_here_come_first() {
        let (series, now) = (WorkerSeries::default(), Instant::now());
        let workers = |text: &str| text.lines().filter(|l| l.starts_with("tally_worker_up{")).count();
        for session in 0..MOST as u64 + 10 {
            series.joined(session, &format!("w{session}"), "CPU", now);
        }
        let full = text(&series, now);
        assert_eq!(workers(&full), MOST);
        assert!(has(&full, "tally_worker_series_left_out 10"));
        // One that goes makes room for one that is here.
        series.gone(0, now);
        let next = text(&series, now);
        assert_eq!(workers(&next), MOST);
        assert!(has(&next, "tally_worker_series_left_out 9") && !next.contains("\"w0\""));
        // Names that come and go without end take no more.
        for session in 1000..3000 {
            series.joined(session, &format!("w{session}"), "CPU", now);
            series.gone(session, now);
        }
        assert_eq!(workers(&text(&series, now)), MOST);
    }

    #[test]
    fn trust_1_a_name_stays_within_its_label() {
        let (series, now) = (WorkerSeries::default(), Instant::now());
        series.joined(1, "a\"} 7\\", "CPU\nx", now);
        let text = text(&series, now);
        assert!(has(&text, "tally_worker_up{worker=\"a\\\"} 7\\\\\"} 1"), "{text}");
        assert!(text.contains("device=\"CPU\\nx\""), "{text}");
    }
}
