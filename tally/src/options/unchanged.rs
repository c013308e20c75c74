//! Options that are fixed for a run.

use anyhow::bail;

/// Checks an option that is fixed for a run.
///
/// # Errors
/// If it was given beside `--resume` and is not as the run has it.
pub fn unchanged<T: PartialEq>(
    option: &str,
    given: Option<&T>,
    run: &T,
    shown: impl Fn(&T) -> String,
) -> anyhow::Result<()> {
    match given {
        Some(given) if given != run => bail!(
            "{option} {} cannot change on --resume: the run has {}; leave it out, or start a new run",
            shown(given),
            shown(run)
        ),
        _ => Ok(()),
    }
}
