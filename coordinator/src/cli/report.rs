//! `coordinator report`: a run, or two compared, as one HTML file.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args;
use tally_checkpoint::files::write_whole;
use tally_worker::cli::DeviceOptions;
use tally_worker::logging::{LogOptions, in_one_line};

use super::is_of_kind;
use crate::report::gallery::Gallery;
use crate::report::page;
use crate::report::story::Story;

/// Options of `coordinator report`.
#[derive(Debug, Args)]
pub struct ReportOptions {
    /// The run's directory, or two to compare. Nothing in them is touched; runs may be going on
    #[arg(value_name = "RUN_DIR", num_args = 1..=2, required = true)]
    pub runs: Vec<PathBuf>,

    /// The HTML file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// Show N test digits with the best checkpoint's answers, and up to N of its mistakes; 0
    /// leaves them out and reads no checkpoint
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(0..=200))]
    pub pictures: u32,

    /// What to compute the answers with.
    #[command(flatten)]
    pub device: DeviceOptions,

    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,
}

/// Writes the report and returns a line that says what of.
///
/// # Errors
/// If a directory holds no run, or the file can't be written. Checkpoints or data that can't be
/// read leave the pictures out, and the report says why.
pub fn run(options: &ReportOptions) -> anyhow::Result<String> {
    options.log.init()?;
    is_of_kind(&options.out, "HTML", &["html", "htm", "xhtml"])?;
    let mut runs = options.runs.iter().map(|path| Story::read(path)).collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(
        options.runs.iter().all(|run| !options.out.starts_with(run)) || !options.out.exists(),
        "{} is a file of the run; choose another one with --out",
        options.out.display()
    );
    if options.pictures > 0 {
        for run in &mut runs {
            match Gallery::of(&run.record, options.pictures as usize, &options.device) {
                Ok(gallery) => run.gallery = Some(gallery),
                Err(error) => run.no_gallery = Some(in_one_line(&error)),
            }
        }
    }
    let page = page::page(&runs);
    write_whole(&options.out, page.as_bytes())
        .with_context(|| format!("cannot write {}; choose another file with --out", options.out.display()))?;
    let of: Vec<String> = runs
        .iter()
        .map(|run| {
            format!(
                "{} ({}, step {} of {})",
                run.name,
                run.state.word(),
                run.record.last(),
                run.steps_wanted()
            )
        })
        .collect();
    let size = page.len().div_ceil(1024);
    Ok(format!("the report of {} is in {} ({size} KiB)", of.join(" and "), options.out.display()))
}
