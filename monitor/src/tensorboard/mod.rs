//! TensorBoard event files (`--tensorboard DIR`): the losses, metrics and times of steps and test passes, as scalars.
//!
//! Each start of the coordinator writes a file of its own, which begins by saying from which
//! step on it counts; TensorBoard then drops what an earlier file has of those steps. Where
//! `DIR` has no events yet, the file of a resumed run begins with what its journal has. Events
//! are written out with the first one that comes two seconds after the last write; those of a test pass and of the run's
//! end at once. A thread of its own writes the file, and training does not wait for it. A write that
//! fails is a warning, once, and ends the file; the run goes on.

mod event;
mod records;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use event::{Event, SessionLog, Summary, Value, What};

use crate::background_writer::BackgroundWriter;
use tally_coordinator::observer::{Context, Observer, RunEvent};
use tally_numerics::schema::Evaluation;
use tally_proto::span::Clock;
use tally_run::journal::{Line, StepLine};

/// How long an event may stay in memory.
const FLUSH_AFTER: Duration = Duration::from_secs(2);
/// What TensorBoard knows its files by.
const KIND: &str = "events.out.tfevents.";
/// The version of the format, as every writer states it.
const FILE_VERSION: &str = "brain.Event:2";

/// An event file that is being written.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    /// None once a write has failed.
    file: Option<BufWriter<File>>,
    flushed: Instant,
}

impl EventFile {
    /// Begins a file in `directory`, which is made if it is not there. `journal` has the lines of earlier starts; the
    /// file is for the steps after them.
    ///
    /// # Errors
    /// If the directory or the file can't be made or written to.
    pub fn create(directory: &Path, journal: &[Line]) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let last = journal.iter().rev().find_map(|line| match line {
            Line::Step(step) => Some(step.step),
            _ => None,
        });
        let first = fs::read_dir(directory)?
            .flatten()
            .all(|entry| !entry.file_name().to_string_lossy().starts_with(KIND));
        let now = Clock::wall();
        let name = |count: u32| {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            let host = if host.is_empty() { "tally".to_owned() } else { host };
            format!("{KIND}{:010}.{host}.{}.{count}", now as u64, std::process::id())
        };
        let (path, file) = (0u32..)
            .find_map(|count| {
                let path = directory.join(name(count));
                match File::create_new(&path) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                    file => Some(file.map(|file| (path, file))),
                }
            })
            .unwrap_or(Err(io::ErrorKind::AlreadyExists.into()))?;
        let mut events = Self { path, file: Some(BufWriter::new(file)), flushed: Instant::now() };
        events.write(&Event {
            wall_time: now,
            step: 0,
            what: Some(What::FileVersion(FILE_VERSION.into())),
        })?;
        let journal = if first && last.is_some() { journal } else { &[] };
        // What is written of the journal counts from its first step on.
        let from = if journal.is_empty() { last.unwrap_or(0) + 1 } else { 1 };
        events.write(&Event {
            wall_time: now,
            step: from as i64,
            what: Some(What::SessionLog(SessionLog { status: SessionLog::START })),
        })?;
        let mut clock = now;
        for line in journal {
            match line {
                Line::Start { unix_seconds, .. } => clock = *unix_seconds as f64,
                Line::Step(StepLine { seconds, .. }) | Line::Test { seconds, .. } => clock += seconds,
                _ => {}
            }
            if let Some(event) = event_of(line, clock) {
                events.write(&event)?;
            }
        }
        events.flush()?;
        Ok(events)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| records::write(file, &prost::Message::encode_to_vec(event)))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushed = Instant::now();
        self.file.as_mut().map_or(Ok(()), BufWriter::flush)
    }
}

/// Writes a run's events to a file, on a thread of its own.
#[derive(Debug)]
pub struct EventWriter(BackgroundWriter<(Option<Event>, bool)>);

impl EventWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(mut file: EventFile) -> io::Result<Self> {
        let write = move |(event, at_once)| file.append(event, at_once);
        BackgroundWriter::start("TensorBoard's event file", write).map(Self)
    }
}

impl Observer for EventWriter {
    fn observe(&mut self, _: &Context<'_>, event: &RunEvent<'_>) {
        match *event {
            // An earlier file, or what was read of the journal, has a step that is computed again.
            RunEvent::Committed { line, recomputed: false, .. } => {
                self.0.send((Some(step_event(line, Clock::wall())), false));
            }
            RunEvent::Journal(line) => {
                let end = matches!(line, Line::Test { .. } | Line::End { .. });
                self.0.send((event_of(line, Clock::wall()), end));
            }
            _ => {}
        }
    }
}

impl EventFile {
    /// Appends an event, if there is one, and writes out what has come if the last write was [`FLUSH_AFTER`] ago, or
    /// `at_once`.
    fn append(&mut self, event: Option<Event>, at_once: bool) {
        let written = event.map_or(Ok(()), |event| self.write(&event));
        let due = at_once || self.flushed.elapsed() >= FLUSH_AFTER;
        let written = written.and_then(|()| if due { self.flush() } else { Ok(()) });
        if let Err(error) = written {
            tracing::warn!("{} ends at an earlier step: {error}; the run goes on", self.path.display());
            // What is still in memory could not be written either.
            if let Some(file) = self.file.take() {
                let _ = file.into_parts();
            }
        }
    }
}

/// The scalars of a line; `None` if it has none.
fn event_of(line: &Line, wall_time: f64) -> Option<Event> {
    match line {
        Line::Step(step) => Some(step_event(step, wall_time)),
        Line::Test { step, evaluation, .. } => Some(test_event(*step, evaluation, wall_time)),
        _ => None,
    }
}

fn step_event(line: &StepLine, wall_time: f64) -> Event {
    let loss = line.loss.iter().map(|(name, mean)| (format!("loss/{name}"), *mean));
    let others = [
        ("optimizer/learning_rate", line.learning_rate.into()),
        ("optimizer/gradient_norm", line.gradient_norm),
        ("cluster/workers", line.workers as f64),
        ("seconds/step", line.seconds),
        ("seconds/compute", line.compute_seconds),
        ("seconds/transfer", line.transfer_seconds),
        ("seconds/waiting", line.waiting_seconds),
    ];
    let rate = (line.seconds > 0.0).then(|| line.samples as f64 / line.seconds);
    let rate = rate.map(|rate| ("cluster/samples_per_second", rate));
    let others = others.into_iter().chain(rate).map(|(tag, value)| (tag.to_owned(), value));
    scalars(line.step, wall_time, loss.chain(others))
}

fn test_event(step: u64, evaluation: &Evaluation, wall_time: f64) -> Event {
    let loss = std::iter::once(("test/loss".to_owned(), evaluation.total_loss()));
    let metrics = evaluation.ratios().map(|(name, value)| (format!("test/{name}"), value));
    scalars(step, wall_time, loss.chain(metrics))
}

fn scalars(step: u64, wall_time: f64, scalars: impl Iterator<Item = (String, f64)>) -> Event {
    let value = |(tag, value)| Value { tag, simple_value: Some(value as f32) };
    let summary = Summary { value: scalars.map(value).collect() };
    Event { wall_time, step: step as i64, what: Some(What::Summary(summary)) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
