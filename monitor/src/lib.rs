//! Everything that shows a run and decides nothing of it: the page and its data, metrics for Prometheus, traces,
//! TensorBoard's events, the console's lines, and reports.
//!
//! The driver feeds all of it but reports through one list of [`Observer`]s, which [`Starting::observe`] makes;
//! training waits while an observer works, so observers copy what they need and leave slow work to other threads. The
//! run's [`Schema`] names what is measured: this crate knows no loss and no metric by name. A report is made of a run
//! directory alone, while the run goes on or after it.

#![forbid(unsafe_code)]

mod background_writer;
pub mod console;
pub mod http;
mod human_seconds;
pub mod metrics;
pub mod report;
pub mod tensorboard;
pub mod trace;
pub mod view;

#[cfg(test)]
mod test_support;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use axum::Router;
use tally_coordinator::observer::Observer;
use tally_numerics::schema::{Named, Schema};
use tally_proto::span::Clock;
use tally_run::config::RunConfig;
use tally_run::journal::{self, Line};

use console::{Console, ConsoleObserver};
use http::Panels;
pub use human_seconds::human_seconds;
use metrics::{Exporter, MetricsObserver};
use tensorboard::{EventFile, EventWriter};
use trace::Trace;
use view::View;
use view::observer::ViewObserver;
use view::publisher::ViewPublisher;
use view::state::RunInfo;

/// Files that a run is shown in, if they are asked for.
#[derive(Clone, Debug, Default)]
pub struct MonitorOptions {
    /// The file of the trace.
    pub trace: Option<PathBuf>,
    /// The directory of TensorBoard's events.
    pub tensorboard: Option<PathBuf>,
}

/// The run that is to be shown, as it is before its driver starts.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Its configuration.
    pub config: &'a RunConfig,
    /// Its directory.
    pub directory: &'a Path,
    /// How often its coordinator has been started, this start included.
    pub incarnation: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// The step that the run goes on from, and its epoch; of a new run 0 and 1.
    pub step: u64,
    /// See `step`.
    pub epoch: u32,
    /// The run goes on from an earlier start, whose lines are in the journal.
    pub resumed: bool,
    /// The newest checkpoint's step, and when it was written.
    pub checkpoint: Option<(u64, SystemTime)>,
}

/// A monitor that has no run yet.
#[derive(Debug)]
pub struct Starting {
    clock: Clock,
    exporter: Exporter,
    trace: Option<Trace>,
    tensorboard: Option<PathBuf>,
}

/// The readers' side of a run: page and metrics.
#[derive(Clone, Debug)]
pub struct Monitor {
    view: ViewPublisher,
    exporter: Exporter,
    schema: Schema,
}

impl Monitor {
    /// Installs the process's metrics and makes the trace, before there is a run: a run directory should not be made
    /// for a run that can't start.
    ///
    /// # Errors
    /// If the trace can't be made, or the process has a recorder of metrics already.
    pub fn start(options: MonitorOptions) -> anyhow::Result<Starting> {
        let clock = Clock::start();
        let exporter = metrics::install()?;
        let trace = options.trace.map(|path| {
            Trace::create(&path, clock.origin()).with_context(|| {
                format!("cannot write the trace {}; name another file with --trace", path.display())
            })
        });
        Ok(Starting { clock, exporter, trace: trace.transpose()?, tensorboard: options.tensorboard })
    }

    /// The clock by which all times are told.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.view.clock()
    }

    /// The page with a program's panels, its data and `/metrics`.
    pub fn router(&self, panels: Panels) -> Router {
        http::router(self.view.clone(), self.exporter.clone(), panels)
    }

    /// Keeps the metrics current: folds in recorded samples, and measures the room that the run directory has left.
    pub async fn keep_up(self, run_dir: PathBuf) {
        self.exporter.keep_up(run_dir).await;
    }

    /// Prints a line to the console; there is no bar before the driver starts and after it ends.
    pub fn note(&self, text: &str) {
        Console::new().note(text);
    }

    /// Prints a warning to the console, as [`note`](Self::note) does.
    pub fn warn(&self, text: &str) {
        Console::new().warn(text);
    }

    /// A test pass in one line, from a summary's numbers.
    #[must_use]
    pub fn test_line(&self, numbers: &Named) -> String {
        self.schema.describe(numbers)
    }
}

impl Starting {
    /// The observers of a run, for its driver, and the monitor that answers readers meanwhile.
    ///
    /// # Errors
    /// If the journal of an earlier start can't be read, or TensorBoard's file can't be made.
    pub fn observe(self, run: &Run<'_>) -> anyhow::Result<(Vec<Box<dyn Observer>>, Monitor)> {
        let &Run { config, directory, incarnation, steps, resumed, .. } = run;
        let Self { clock, exporter, trace, tensorboard } = self;
        let before = if resumed { earlier_lines(directory)? } else { Vec::new() };
        let info = RunInfo::of(config, directory, incarnation, steps, clock.origin());
        let mut view = View::new(info.context("cannot describe the run")?);
        view.replay(&before);
        let view = ViewPublisher::new(view, clock);
        let schema = config.schema.clone();

        let mut observers: Vec<Box<dyn Observer>> = vec![
            Box::new(MetricsObserver::new(run, exporter.workers())),
            Box::new(ViewObserver::new(view.clone())),
            Box::new(ConsoleObserver::new(Console::new(), schema.clone())),
        ];
        if let Some(trace) = trace {
            observers.push(Box::new(trace));
        }
        if let Some(events) = tensorboard {
            let file = EventFile::create(&events, &before).with_context(|| {
                format!(
                    "cannot write TensorBoard's events to {}; choose another directory with --tensorboard",
                    events.display()
                )
            })?;
            observers.push(Box::new(EventWriter::start(file)?));
        }
        Ok((observers, Monitor { view, exporter, schema }))
    }
}

/// The journal's lines of earlier starts.
fn earlier_lines(directory: &Path) -> anyhow::Result<Vec<Line>> {
    let path = directory.join("journal.jsonl");
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(journal::parse(&path, &text)?.0)
}
