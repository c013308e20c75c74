//! Everything that shows a run and decides nothing of it: the page and its data, metrics for Prometheus, traces,
//! TensorBoard's events, the console's lines, and reports.
//!
//! All of it is fed by the driver through one list of [`Observer`]s, which [`observers`] makes; training waits while an
//! observer works, so observers copy what they need and leave slow work to other threads. What is measured is named by
//! the run's [`Schema`](tally_numerics::schema::Schema): no loss and no metric is known here by name. A report is made
//! of a run directory alone, while the run goes on or after it.

#![forbid(unsafe_code)]

pub mod console;
pub mod http;
pub mod metrics;
pub mod report;
pub mod tensorboard;
pub mod trace;
pub mod view;

#[cfg(test)]
mod test_support;

use std::path::Path;

use anyhow::Context as _;
use axum::Router;
use tally_coordinator::observer::Observer;
use tally_proto::span::Clock;
use tally_run::config::RunConfig;
use tally_run::journal::{self, Line};

use console::{Console, ConsoleObserver};
use http::ProgramPanels;
use metrics::{Exporter, MetricsObserver};
use tensorboard::EventFile;
use trace::Trace;
use view::View;
use view::observer::ViewObserver;
use view::publisher::ViewPublisher;
use view::state::RunInfo;

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
    /// It goes on from an earlier start, which the journal tells of.
    pub resumed: bool,
}

/// What shows a run beside the page.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// What `/metrics` answers.
    pub exporter: Exporter,
    /// The console.
    pub console: Console,
    /// The trace, if one is asked for.
    pub trace: Option<Trace>,
    /// The directory of TensorBoard's events, if they are asked for.
    pub tensorboard: Option<&'a Path>,
}

/// What is read of a run while it goes on.
#[derive(Clone, Debug)]
pub struct Monitor {
    /// The page's data.
    pub view: ViewPublisher,
    /// What `/metrics` answers.
    pub exporter: Exporter,
}

impl Monitor {
    /// The page, its data, `/metrics` and `/healthz`; `more` are the routes of others, which get the same headers.
    #[must_use]
    pub fn router(&self, panels: &ProgramPanels, more: Router) -> Router {
        http::router(self.view.clone(), self.exporter.clone(), panels, more)
    }
}

/// The observers of a run, for its driver, and what is read of it meanwhile. All times are by `clock`.
///
/// # Errors
/// If the journal of an earlier start can't be read, or TensorBoard's file can't be made.
pub fn observers(
    run: Run<'_>,
    clock: Clock,
    outputs: Outputs<'_>,
) -> anyhow::Result<(Vec<Box<dyn Observer>>, Monitor)> {
    let Run { config, directory, incarnation, steps, resumed } = run;
    let Outputs { exporter, console, trace, tensorboard } = outputs;
    let before = if resumed { earlier_lines(directory)? } else { Vec::new() };
    let info = RunInfo::of(config, directory, incarnation, steps, clock.origin());
    let mut view = View::new(info.context("cannot describe the run")?);
    view.replay(&before);
    let view = ViewPublisher::new(view, clock);

    let mut observers: Vec<Box<dyn Observer>> = vec![
        Box::new(MetricsObserver::new(config, incarnation, exporter.workers())),
        Box::new(ViewObserver::new(view.clone())),
        Box::new(ConsoleObserver::new(console, config.schema.clone())),
    ];
    if let Some(trace) = trace {
        observers.push(Box::new(trace));
    }
    if let Some(events) = tensorboard {
        let file = EventFile::create(events, &before).with_context(|| {
            format!(
                "cannot write TensorBoard's events to {}; choose another directory with --tensorboard",
                events.display()
            )
        })?;
        observers.push(Box::new(file));
    }
    Ok((observers, Monitor { view, exporter }))
}

/// The journal's lines of earlier starts.
fn earlier_lines(directory: &Path) -> anyhow::Result<Vec<Line>> {
    let path = directory.join("journal.jsonl");
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(journal::parse(&path, &text)?.0)
}

/// The warning that a checkpoint is not on disk.
fn no_checkpoint(step: u64, error: &str) -> String {
    format!("no checkpoint at step {step}: {error}")
}
