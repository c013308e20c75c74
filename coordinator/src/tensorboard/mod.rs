//! TensorBoard event files (`--tensorboard DIR`): what the journal says of steps and test
//! passes, as scalars.
//!
//! Each start of the coordinator writes a file of its own, which begins by saying from which
//! step on it counts; TensorBoard then drops what an earlier file has of those steps. Where
//! `DIR` has no events yet, the file of a resumed run begins with what its journal has. Events
//! reach the disk within two seconds. A write that fails is a warning, once, and ends the
//! file; the run goes on.

mod event;
mod records;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use event::{Event, SessionLog, Summary, Value, What};

use tally_run::journal::{Follower, Line, StepLine};

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
    /// Begins a file in `directory`, which is made if it is not there, for what comes after the
    /// committed `step`. `journal` is what the run has of the time before.
    ///
    /// # Errors
    /// If the directory or the file can't be made or written to.
    pub fn create(directory: &Path, step: u64, journal: &[Line]) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let first = fs::read_dir(directory)?
            .flatten()
            .all(|entry| !entry.file_name().to_string_lossy().starts_with(KIND));
        let now = unix_now();
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
        let journal = if first { journal } else { &[] };
        // What is written of the journal counts from its first step on.
        let from = if journal.is_empty() { step + 1 } else { 1 };
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

impl Follower for EventFile {
    fn line(&mut self, line: &Line) {
        let written = event_of(line, unix_now()).map_or(Ok(()), |event| self.write(&event));
        let due =
            self.flushed.elapsed() >= FLUSH_AFTER || matches!(line, Line::Test { .. } | Line::End { .. });
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

fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The scalars of a line; none if it has none.
fn event_of(line: &Line, wall_time: f64) -> Option<Event> {
    let (step, scalars) = match line {
        Line::Step(step) => (step.step, of_step(step)),
        Line::Test { step, scores, .. } => {
            let scalars = vec![
                ("test/loss", scores.loss),
                ("test/digit_accuracy", scores.digit_accuracy),
                ("test/sum_accuracy", scores.sum_accuracy),
                ("test/difference_accuracy", scores.difference_accuracy),
                ("test/all_correct", scores.all_correct),
            ];
            (*step, scalars)
        }
        _ => return None,
    };
    let value = |(tag, value): (&str, f64)| Value { tag: tag.into(), simple_value: Some(value as f32) };
    let summary = Summary { value: scalars.into_iter().map(value).collect() };
    Some(Event { wall_time, step: step as i64, what: Some(What::Summary(summary)) })
}

fn of_step(step: &StepLine) -> Vec<(&'static str, f64)> {
    let mut scalars = vec![
        ("loss/total", step.loss.total),
        ("loss/label", step.loss.label),
        ("loss/sum", step.loss.sum),
        ("loss/difference", step.loss.difference),
        ("optimizer/learning_rate", step.learning_rate.into()),
        ("optimizer/gradient_norm", step.gradient_norm),
        ("cluster/workers", step.workers as f64),
        ("seconds/step", step.seconds),
        ("seconds/compute", step.compute_seconds),
        ("seconds/transfer", step.transfer_seconds),
        ("seconds/waiting", step.waiting_seconds),
    ];
    if step.seconds > 0.0 {
        scalars.push(("cluster/images_per_second", step.samples as f64 / step.seconds));
    }
    scalars
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
