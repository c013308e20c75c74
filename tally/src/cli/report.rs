//! `coordinator report`: a run, or two compared, as one HTML file.

use maud::html;
use tally_cli::logging::in_one_line;
use tally_monitor::report;

use super::check_extension;
use crate::options::ReportOptions;
use crate::program::Program;

/// Writes the report and returns a line that describes it.
///
/// # Errors
/// If a directory holds no run, or the file can't be written.
pub fn run<P: Program>(program: &P, options: &ReportOptions) -> anyhow::Result<String> {
    options.log.init();
    check_extension(&options.out, "HTML", &["html", "htm", "xhtml"])?;
    let runs = report::read(&options.runs, &options.out)?;
    let mut sections = Vec::new();
    for run in &runs {
        match program.report_sections(&run.record, options) {
            Ok(own) if own.is_empty() => {}
            Ok(own) => sections.push(html! { h3 { (run.name) } @for section in &own { (section) } }),
            Err(error) => {
                sections.push(html! { p.quiet { "No samples of " (run.name) ": " (in_one_line(&error)) } })
            }
        }
    }
    report::write(&runs, &sections, &options.out)
}
