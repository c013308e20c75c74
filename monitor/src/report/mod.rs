//! A run as one page that needs nothing else: no network, no script, no file beside it. It reads well on a screen, light
//! or dark, on a telephone and on paper. Of two runs it shows the differences.
//!
//! * [`run_data`] reads a run directory, and touches nothing there;
//! * [`series`] thins curves out, so that the page is as small for 100 000 steps as for 1 000;
//! * [`chart`] draws them as SVG; [`page`] and its neighbours write the HTML.

mod axis;
pub mod chart;
mod incidents;
pub mod page;
mod results;
pub mod run_data;
pub mod series;
mod tests_section;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use maud::Markup;
use tally_checkpoint::files::write_whole;

use run_data::RunData;

/// Reads the runs that a report in the file `out` is to show.
///
/// # Errors
/// If a directory holds no run, or `out` is a file of one.
pub fn read(runs: &[PathBuf], out: &Path) -> anyhow::Result<Vec<RunData>> {
    let data = runs.iter().map(|path| RunData::read(path)).collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(
        runs.iter().all(|run| !out.starts_with(run)) || !out.exists(),
        "{} is a file of the run; choose another one with --out",
        out.display()
    );
    Ok(data)
}

/// Writes the report and returns a line that describes it. `sections` are the program's own; they stand before the
/// configuration, and may use the classes of the page's style sheet.
///
/// # Errors
/// If the file can't be written.
pub fn write(runs: &[RunData], sections: &[Markup], out: &Path) -> anyhow::Result<String> {
    let page = page::page(runs, sections);
    write_whole(out, page.as_bytes())
        .with_context(|| format!("cannot write {}; choose another file with --out", out.display()))?;
    let of = |run: &RunData| {
        let (state, last, wanted) = (run.state.word(), run.record.last(), run.steps_wanted());
        format!("{} ({state}, step {last} of {wanted})", run.name)
    };
    let of: Vec<String> = runs.iter().map(of).collect();
    let size = page.len().div_ceil(1024);
    Ok(format!("the report of {} is in {} ({size} KiB)", of.join(" and "), out.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
