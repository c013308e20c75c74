//! A run as a trace that Perfetto and `chrome://tracing` open: `--trace FILE`.
//!
//! The file is an array of Chrome's trace events. It is written as the run goes, by a thread of its
//! own, in whole events; the format allows the closing bracket to be missing, so the file of a coordinator that
//! crashed can be opened. The driver never waits for the disk: events for which there is no room are
//! left out and counted. A file that cannot be written is warned of once, and the run goes on.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use tally_coordinator::observer::{Context, Observer, RunEvent};
use tally_coordinator::timeline::{Lane, Span, SpanKind};
use tally_core::cluster::Session;
use tally_core::events::ClusterEvent;

use crate::background_writer::{CLOSE_TIMEOUT, join_within};

/// Events that may wait for the disk.
const WAITING: usize = 1 << 14;
/// Bytes that are written at once …
const BUFFER: usize = 1 << 16;
/// … or what there is after this.
const EVERY: Duration = Duration::from_secs(1);

/// The coordinator's process in the trace; workers have the numbers after it.
const COORDINATOR: u64 = 1;
/// A worker's tracks.
const WORKS: u32 = 1;
const SENDS: u32 = 2;

/// A track of the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Track {
    /// Steps and what they consist of, and test passes.
    Steps = 1,
    /// Checkpoints, which are written meanwhile.
    Checkpoints = 2,
}

/// Details of an event.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Args {
    /// A track's or process's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where a process is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sort_index: Option<u64>,
    /// The step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// The attempt at it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Microbatches computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub microbatches: Option<u32>,
    /// How far the times may be off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_error_us: Option<f64>,
    /// In words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
}

impl Args {
    /// Of a step.
    #[must_use]
    pub fn step(step: u64) -> Self {
        Self { step: Some(step), ..Self::default() }
    }

    fn name(name: &str) -> Self {
        Self { name: Some(name.into()), ..Self::default() }
    }
}

/// An event as the file has it; times are in microseconds.
#[derive(Debug, Serialize)]
struct Event {
    name: Cow<'static, str>,
    ph: &'static str,
    pid: u64,
    tid: u32,
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    /// A moment is shown over its process.
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<&'static str>,
    args: Args,
}

#[derive(Debug)]
enum Item {
    Joined { session: Session, name: String },
    Lane(Lane),
    Span { track: Track, name: Cow<'static, str>, start: f64, end: f64, args: Args },
    Moment { session: Option<Session>, name: &'static str, at: f64, args: Args },
    LeftOut { events: u64, at: f64 },
}

/// An attempt at a step, in seconds since 1970.
#[derive(Clone, Copy, Debug, Default)]
struct AttemptTimestamps {
    begun: f64,
    whole: f64,
    applied: f64,
}

/// A trace being written. It is whole when this is dropped.
#[derive(Debug)]
pub struct Trace {
    items: Option<SyncSender<Item>>,
    left_out: u64,
    thread: Option<JoinHandle<()>>,
    /// Of the attempt in flight.
    attempt: AttemptTimestamps,
}

impl Trace {
    /// Begins the file, over what was there; times are told from `origin` on, in seconds since 1970.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(path: &Path, origin: f64) -> std::io::Result<Self> {
        let file = File::create(path)?;
        let (items, inbox) = sync_channel(WAITING);
        let mut writer = Writer::new(file, path.into(), origin);
        let thread = std::thread::Builder::new().name("trace".into()).spawn(move || writer.run(&inbox))?;
        Ok(Self {
            items: Some(items),
            left_out: 0,
            thread: Some(thread),
            attempt: AttemptTimestamps::default(),
        })
    }

    fn send(&mut self, at: f64, item: Item) {
        let Some(items) = &self.items else { return };
        if self.left_out > 0 && items.try_send(Item::LeftOut { events: self.left_out, at }).is_ok() {
            self.left_out = 0;
        }
        match items.try_send(item) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.left_out += 1,
            // It has said why.
            Err(TrySendError::Disconnected(_)) => self.items = None,
        }
    }

    /// A worker has come.
    pub fn joined(&mut self, session: Session, name: &str, at: f64) {
        self.send(at, Item::Joined { session, name: name.into() });
    }

    /// The spans of a worker.
    pub fn lane(&mut self, lane: &Lane) {
        let at = lane.spans.last().map_or(0.0, |span| span.end);
        self.send(at, Item::Lane(lane.clone()));
    }

    /// A span of the coordinator.
    pub fn span(
        &mut self,
        track: Track,
        name: impl Into<Cow<'static, str>>,
        start: f64,
        end: f64,
        args: Args,
    ) {
        self.send(end, Item::Span { track, name: name.into(), start, end, args });
    }

    /// A moment of a worker, or of the run.
    pub fn moment(&mut self, session: Option<Session>, name: &'static str, at: f64, args: Args) {
        self.send(at, Item::Moment { session, name, at, args });
    }

    /// A committed attempt, and what it consisted of.
    fn committed(&mut self, step: u64, attempt: u32, now: f64) {
        let AttemptTimestamps { begun, whole, applied } = self.attempt;
        let args = Args { attempt: Some(attempt), ..Args::step(step) };
        // The span that contains the others comes first.
        for (name, start, end) in [
            ("step", begun, now),
            ("reduce", begun, whole),
            ("update", whole, applied),
            ("commit", applied, now),
        ] {
            self.span(Track::Steps, name, start, end, args.clone());
        }
    }

    /// The cluster has changed.
    fn cluster(&mut self, event: &ClusterEvent, step: u64, now: f64) {
        let (session, name, what) = match event {
            ClusterEvent::Lost { session, reason, .. } => (Some(*session), "gone", reason.clone()),
            ClusterEvent::Late { session, leaves, .. } => {
                (Some(*session), "late", format!("{leaves} microbatches are given to others too"))
            }
            ClusterEvent::TakenOver { leaves, by, .. } => {
                (None, "takeover", format!("{leaves} microbatches, by {} workers", by.len()))
            }
            ClusterEvent::TakenBack { chunks, reason, .. } => {
                (None, "taken back", format!("{chunks} chunks: {reason}"))
            }
            ClusterEvent::Reduction { owners, reason, .. } => {
                (None, "reduction", format!("{owners} owners: {reason}"))
            }
            ClusterEvent::Ready { .. } | ClusterEvent::Adopted { .. } | ClusterEvent::Audited { .. } => {
                return;
            }
        };
        self.moment(session, name, now, Args { what: Some(what), ..Args::step(step) });
    }
}

impl Observer for Trace {
    fn observe(&mut self, context: &Context<'_>, event: &RunEvent<'_>) {
        let clock = context.clock;
        match *event {
            RunEvent::Connected { session, name, .. } => self.joined(session, name, clock.unix()),
            RunEvent::Cluster(event) => self.cluster(event, context.core.committed().0, clock.unix()),
            RunEvent::AttemptBegun => self.attempt.begun = clock.unix(),
            RunEvent::SumWhole => self.attempt.whole = clock.unix(),
            RunEvent::Updated { .. } => self.attempt.applied = clock.unix(),
            RunEvent::AttemptVoid { step, attempt, reason } => {
                let args = Args { attempt: Some(attempt), what: Some(reason.into()), ..Args::step(step) };
                self.span(Track::Steps, "void attempt", self.attempt.begun, clock.unix(), args);
            }
            RunEvent::Committed { step, .. } => self.committed(step.step, step.attempt, clock.unix()),
            RunEvent::Tested { step, seconds, .. } => {
                let now = clock.unix();
                self.span(Track::Steps, "test pass", now - seconds, now, Args::step(step));
            }
            RunEvent::Checkpoint { step, from, to, result } => {
                let args = Args { what: result.err().map(str::to_owned), ..Args::step(step) };
                self.span(Track::Checkpoints, "checkpoint", clock.at(from), clock.at(to), args);
            }
            RunEvent::Lane(lane) => self.lane(lane),
            _ => {}
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.items = None;
        if let Some(thread) = self.thread.take()
            && !join_within(&thread, CLOSE_TIMEOUT)
        {
            tracing::warn!(
                "the trace is cut off: it could not be written within {} s",
                CLOSE_TIMEOUT.as_secs()
            );
        }
    }
}

/// The thread that writes.
struct Writer<W> {
    file: W,
    path: PathBuf,
    origin: f64,
    buffer: Vec<u8>,
    /// The processes of workers.
    processes: HashMap<Session, u64>,
    begun: bool,
}

impl<W: Write> Writer<W> {
    fn new(file: W, path: PathBuf, origin: f64) -> Self {
        let mut new = Self {
            file,
            path,
            origin,
            buffer: Vec::with_capacity(2 * BUFFER),
            processes: HashMap::new(),
            begun: false,
        };
        new.process(COORDINATOR, "coordinator", &["steps", "checkpoints"]);
        new
    }

    fn run(&mut self, inbox: &Receiver<Item>) {
        if let Err(error) = self.write_all(inbox) {
            let path = self.path.display();
            tracing::warn!("the trace {path} ends here, as it cannot be written: {error}; the run goes on");
        }
    }

    fn write_all(&mut self, inbox: &Receiver<Item>) -> std::io::Result<()> {
        let mut flushed = Instant::now();
        loop {
            let item = inbox.recv_timeout(EVERY.saturating_sub(flushed.elapsed()));
            let over = matches!(item, Err(RecvTimeoutError::Disconnected));
            if let Ok(item) = item {
                self.item(item);
            }
            if over {
                self.buffer.extend_from_slice(b"\n]\n");
            }
            if over || self.buffer.len() >= BUFFER || flushed.elapsed() >= EVERY {
                self.file.write_all(&self.buffer)?;
                self.buffer.clear();
                flushed = Instant::now();
            }
            if over {
                return self.file.flush();
            }
        }
    }

    fn item(&mut self, item: Item) {
        match item {
            Item::Joined { session, name } => {
                let process = COORDINATOR + 1 + self.processes.len() as u64;
                self.processes.insert(session, process);
                self.process(process, &format!("worker {name}"), &["works", "sends"]);
            }
            Item::Lane(lane) => {
                let Some(&process) = self.processes.get(&lane.session) else { return };
                for span in &lane.spans {
                    self.worker_span(process, &lane, span);
                }
            }
            Item::Span { track, name, start, end, args } => {
                self.complete(COORDINATOR, track as u32, name, (start, end), args);
            }
            Item::Moment { session, name, at, args } => {
                let process = session.and_then(|session| self.processes.get(&session).copied());
                self.moment(process.unwrap_or(COORDINATOR), name, at, args);
            }
            Item::LeftOut { events, at } => {
                let what = Some(format!("{events} events are missing before this: the disk was too slow"));
                self.moment(COORDINATOR, "left out", at, Args { what, ..Args::default() });
            }
        }
    }

    fn worker_span(&mut self, process: u64, lane: &Lane, span: &Span) {
        let track = if span.kind == SpanKind::Send { SENDS } else { WORKS };
        let args = Args {
            microbatches: (span.leaves > 0).then_some(span.leaves),
            clock_error_us: Some((lane.error * 1e7).round() / 10.0),
            ..Args::step(lane.step)
        };
        self.complete(process, track, span.kind.name().into(), (span.start, span.end), args);
    }

    /// Nanoseconds since the origin. Whole ones, so that what lies within or after another span
    /// does so in the file.
    fn nanoseconds(&self, unix: f64) -> f64 {
        ((unix - self.origin) * 1e9).round()
    }

    fn complete(
        &mut self,
        pid: u64,
        tid: u32,
        name: Cow<'static, str>,
        (start, end): (f64, f64),
        args: Args,
    ) {
        let (start, end) = (self.nanoseconds(start), self.nanoseconds(end));
        let (ts, dur) = (start / 1e3, Some((end - start) / 1e3));
        self.event(&Event { name, ph: "X", pid, tid, ts, dur, s: None, args });
    }

    fn moment(&mut self, pid: u64, name: &'static str, at: f64, args: Args) {
        let ts = self.nanoseconds(at) / 1e3;
        self.event(&Event { name: name.into(), ph: "i", pid, tid: WORKS, ts, dur: None, s: Some("p"), args });
    }

    /// Names a process and its tracks.
    fn process(&mut self, pid: u64, name: &str, tracks: &[&str]) {
        self.metadata(pid, 0, "process_name", Args::name(name));
        let order = Args { sort_index: Some(pid), ..Args::default() };
        self.metadata(pid, 0, "process_sort_index", order);
        for (tid, track) in (1..).zip(tracks) {
            self.metadata(pid, tid, "thread_name", Args::name(track));
        }
    }

    fn metadata(&mut self, pid: u64, tid: u32, name: &'static str, args: Args) {
        self.event(&Event { name: name.into(), ph: "M", pid, tid, ts: 0.0, dur: None, s: None, args });
    }

    fn event(&mut self, event: &Event) {
        self.buffer.extend_from_slice(if self.begun { b",\n" } else { b"[\n" });
        self.begun = true;
        // Writing numbers and names to memory does not fail.
        let _ = serde_json::to_writer(&mut self.buffer, event);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use serde_json::Value;
    use tally_coordinator::observer::Idle;

    use super::*;
    use crate::test_support;

    fn lane(session: Session) -> Lane {
        let span = |kind, start, end| Span { kind, leaves: 2, start, end };
        let spans = vec![span(SpanKind::Takeover, 101.0, 102.25), span(SpanKind::Send, 101.5, 103.0)];
        Lane { session, step: 7, error: 0.000_25, spans }
    }

    fn fill(trace: &mut Trace) {
        trace.joined(9, "a \"quoted\" name", 100.0);
        trace.lane(&lane(9));
        trace.lane(&lane(10));
        trace.span(Track::Steps, "step", 100.0, 104.0, Args::step(7));
        trace.moment(Some(9), "lost", 104.0, Args { what: Some("gone".into()), ..Args::default() });
    }

    #[test]
    fn a_trace_is_an_array_of_events_with_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace.json");
        let mut trace = Trace::create(&path, 100.0).unwrap();
        fill(&mut trace);
        drop(trace);
        let events: Vec<Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let names: Vec<&str> = events.iter().filter_map(|e| e["args"]["name"].as_str()).collect();
        assert_eq!(
            names,
            ["coordinator", "steps", "checkpoints", "worker a \"quoted\" name", "works", "sends"]
        );
        let find = |name| events.iter().find(|e| e["name"] == name).unwrap();
        let taken = find("takeover");
        assert_eq!((taken["ts"].as_f64(), taken["dur"].as_f64()), (Some(1e6), Some(1.25e6)));
        assert_eq!((taken["pid"].as_u64(), taken["tid"].as_u64()), (Some(2), Some(1)));
        assert_eq!(
            (taken["args"]["microbatches"].as_u64(), taken["args"]["step"].as_u64()),
            (Some(2), Some(7))
        );
        assert_eq!(taken["args"]["clock_error_us"].as_f64(), Some(250.0));
        assert_eq!(find("send")["tid"].as_u64(), Some(2));
        assert_eq!(find("lost")["ph"], "i");
        // A worker that never came has no lanes.
        assert_eq!(events.iter().filter(|e| e["name"] == "takeover").count(), 1);
    }

    #[test]
    fn what_is_written_of_a_trace_that_is_cut_needs_only_its_bracket() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, PathBuf::new(), 100.0);
        for i in 0..2000 {
            writer.item(Item::Joined { session: i, name: "w".into() });
            writer.item(Item::Lane(lane(i)));
        }
        let mut written = std::mem::take(&mut writer.buffer);
        assert!(written.len() > BUFFER);
        written.push(b']');
        let events: Vec<Value> = serde_json::from_slice(&written).unwrap();
        assert_eq!(events.iter().filter(|event| event["name"] == "takeover").count(), 2000);
    }

    #[test]
    fn a_file_that_cannot_be_written_ends_the_trace_and_nothing_else() {
        // Linux's device that is always full.
        let mut trace = Trace::create(Path::new("/dev/full"), 100.0).unwrap();
        while trace.items.is_some() {
            fill(&mut trace);
        }
        fill(&mut trace);
    }

    #[test]
    fn a_trace_that_the_disk_does_not_keep_up_with_leaves_events_out_and_says_so() {
        let (items, inbox) = sync_channel(4);
        let mut trace =
            Trace { items: Some(items), left_out: 0, thread: None, attempt: AttemptTimestamps::default() };
        for _ in 0..3 {
            fill(&mut trace);
        }
        let told: Vec<Item> = inbox.try_iter().collect();
        assert_eq!((told.len(), trace.left_out), (4, 11));
        fill(&mut trace);
        assert!(matches!(inbox.try_iter().next(), Some(Item::LeftOut { events: 11, .. })));
    }

    #[test]
    fn a_steps_parts_lie_within_it_one_after_the_other() {
        let (items, inbox) = sync_channel(16);
        let mut trace =
            Trace { items: Some(items), left_out: 0, thread: None, attempt: AttemptTimestamps::default() };
        let (core, line) = (test_support::core(), test_support::step_line(7, 1.0));
        let step = test_support::committed(&line);
        for event in [
            RunEvent::AttemptBegun,
            RunEvent::SumWhole,
            RunEvent::Updated { seconds: 0.1 },
            RunEvent::Committed { step: &step, line: &line, recomputed: false },
        ] {
            test_support::tell(&mut trace, &core, 0.0, Idle::Committing, &event);
        }
        let spans: Vec<(String, f64, f64)> = inbox
            .try_iter()
            .map(|item| match item {
                Item::Span { name, start, end, args, .. } => {
                    assert_eq!((args.step, args.attempt), (Some(7), Some(1)));
                    (name.into_owned(), start, end)
                }
                other => panic!("{other:?}"),
            })
            .collect();
        let names: Vec<&str> = spans.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["step", "reduce", "update", "commit"]);
        let (step, parts) = spans.split_first().unwrap();
        assert_eq!((parts[0].1, parts[2].2), (step.1, step.2));
        assert!(parts.windows(2).all(|pair| pair[0].2 == pair[1].1 && pair[0].1 <= pair[0].2), "{parts:?}");
    }
}
