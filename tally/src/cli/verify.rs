//! `coordinator verify`: computes steps of a run again and compares them with its journal,
//! so that anyone who has the run directory can prove how its model came about.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde::Serialize;
use tally_cli::logging::LogOptions;
use tally_cli::output::{self, Level};
use tally_monitor::console::{BAR_INTERVAL, progress_bar};
use tally_monitor::human_seconds;
use tally_run::journal::Line;
use tally_run::record::Record;
use tally_worker::device::DeviceOptions;

use crate::prepare::{check_build, complete_optimizer};
use crate::program::CoordinatorProgram;
use crate::replay::{Recomputed, Replay, Start, milestones};

/// How often a line is printed where there is no terminal for a bar.
const PLAIN_EVERY: Duration = Duration::from_secs(10);
/// After so many other digests in a row, the next ones would be others as well.
const ENOUGH: u64 = 3;

/// Options of `coordinator verify`.
#[derive(Debug, Args)]
pub struct VerifyOptions {
    /// The run's directory. Nothing in it is touched; a run may be going on in it
    #[arg(value_name = "RUN_DIR")]
    pub run: PathBuf,

    /// The steps to compare: N, A..B (both included), A.. or ..B. The steps between the nearest
    /// checkpoint and the first are computed as well [default: the whole run]
    #[arg(long, value_name = "STEPS")]
    pub steps: Option<StepRange>,

    /// Where the run's data is now, if it has moved
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Where the weights that the run started from (--init) are now, if they have moved
    #[arg(long, value_name = "FILE")]
    pub init: Option<PathBuf>,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,

    /// What to compute with; must be of the run's kind.
    #[command(flatten)]
    pub device: DeviceOptions,

    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,
}

/// An inclusive range of steps, perhaps open at an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepRange {
    first: Option<u64>,
    last: Option<u64>,
}

impl FromStr for StepRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no range of steps; write 7, 7..9, 7.. or ..9, counted from 1");
        let end = |text: &str| match text.trim() {
            "" => Ok(None),
            number => number.parse().ok().filter(|&n: &u64| n > 0).map(Some).ok_or_else(bad),
        };
        let range = match text.split_once("..") {
            Some((first, last)) => Self { first: end(first)?, last: end(last)? },
            None => end(text).map(|step| Self { first: step, last: step })?,
        };
        let whole = range == Self::default() && text.trim() != "..";
        let backwards = matches!(range, Self { first: Some(a), last: Some(b) } if a > b);
        if whole || backwards { Err(bad()) } else { Ok(range) }
    }
}

impl StepRange {
    /// The first and last step of this range in a journal of `recorded` steps.
    fn within(self, recorded: u64) -> anyhow::Result<(u64, u64)> {
        ensure!(recorded > 0, "the journal has no step yet; there is nothing to verify");
        let (first, last) = (self.first.unwrap_or(1), self.last.unwrap_or(recorded));
        ensure!(
            first <= recorded && last <= recorded,
            "--steps {first}..{last} reaches beyond the journal, which has steps 1 to {recorded}"
        );
        Ok((first, last))
    }
}

/// What a comparison found.
#[derive(Debug, Serialize)]
struct Verdict {
    run: String,
    run_dir: String,
    first: u64,
    last: u64,
    /// The committed step that was loaded; 0 for the initial state.
    started_at: u64,
    device: String,
    /// Steps of the range that were computed; fewer than there are if it was given up.
    computed: u64,
    /// Those of which everything is as the journal has it.
    equal: u64,
    first_difference: Option<Difference>,
    /// Checkpoints and summaries on the way that hold the state that was computed.
    states_equal: u64,
    warnings: Vec<String>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Difference {
    step: u64,
    what: String,
    recorded: String,
    computed: String,
    meaning: String,
}

impl Verdict {
    fn line(&self) -> String {
        let Self { first, last, computed, equal, states_equal, .. } = self;
        let of = if last - first + 1 == *computed {
            format!("{equal} of {computed}")
        } else {
            format!("{equal} of the {computed} computed")
        };
        let steps = if first == last { format!("step {first}") } else { format!("steps {first} to {last}") };
        let states = match states_equal {
            0 => String::new(),
            1 => ", and so has 1 state on disk".into(),
            n => format!(", and so have {n} states on disk"),
        };
        format!("{steps}: {of} have the journal's digests{states}")
    }
}

/// Computes the steps, compares them, and writes the result to `out`.
///
/// # Errors
/// If the directory, the data or the device can't be used; and if anything differs, with the
/// first step that does and what that means.
pub fn run<P: CoordinatorProgram>(
    program: &P,
    options: &VerifyOptions,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    options.log.init();
    let begun = Instant::now();
    let mut record = Record::read(&options.run)?;
    if let (Some(moved), Some(from)) = (&options.init, &mut record.config.init) {
        from.path = moved.as_path().into();
    }
    let (first, last) = options.steps.unwrap_or_default().within(record.last())?;
    check_build(program, &record.config, &options.run)?;
    complete_optimizer(program, &mut record.config)
        .with_context(|| format!("{} cannot be computed again", options.run.display()))?;
    let data = program.recorded_data(&record.config, options.data_dir.as_deref())?;
    let mut start = Start::nearest(program, &record, first - 1)?;
    let skipped = std::mem::take(&mut start.skipped);
    let arguments = program.untimed(&record.config.program.arguments).to_string();
    let engine = program.engine(&arguments, &options.device)?;
    let mut replay = Replay::new(&record, start, data.train, engine)?;
    let mut progress = Progress::new(replay.at(), last);
    let from = match replay.at() {
        0 => "the initial state".to_string(),
        step => format!("checkpoint {step}"),
    };
    output::note(Level::Info, &format!("verifying from {from} on {}", replay.device()));
    let mut verdict = Verdict {
        run: record.config.run.clone(),
        run_dir: options.run.display().to_string(),
        first,
        last,
        started_at: replay.at(),
        device: replay.device(),
        computed: 0,
        equal: 0,
        first_difference: None,
        states_equal: 0,
        warnings: Vec::new(),
        seconds: 0.0,
    };
    let classes = numerics_classes(&record);
    let here = replay.numerics_class();
    if !classes.is_empty() && !classes.contains(&here) {
        let classes = classes.into_iter().collect::<Vec<_>>().join("; ");
        progress.warn(
            &mut verdict,
            format!("the run was computed on {classes}, and this is {here}: its bits may differ"),
        );
    }
    for (_, why) in skipped {
        progress.warn(&mut verdict, format!("passed over a checkpoint: {why}"));
    }
    compare(&record, &mut replay, &mut verdict, &mut progress)?;
    progress.end();
    verdict.seconds = begun.elapsed().as_secs_f64();
    if options.json {
        serde_json::to_writer(&mut *out, &verdict)?;
        out.write_all(b"\n")?;
    } else {
        writeln!(out, "{}", verdict.line())?;
    }
    out.flush()?;
    match verdict.first_difference {
        None => Ok(()),
        Some(Difference { step, what, recorded, computed, meaning }) => {
            bail!(
                "step {step} differs: the {what} on record is {recorded}, and computed again {computed}: {meaning}"
            )
        }
    }
}

/// What decided the bits of the run's gradients, by the workers that joined it.
fn numerics_classes(record: &Record) -> BTreeSet<String> {
    let classes = record.others.iter().filter_map(|line| match line {
        Line::Join { numerics_class, .. } if !numerics_class.is_empty() => Some(numerics_class.clone()),
        _ => None,
    });
    classes.collect()
}

/// Computes up to the last step of the verdict's range, and fills the verdict in.
fn compare(
    record: &Record,
    replay: &mut Replay,
    verdict: &mut Verdict,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let mut others = 0;
    while replay.at() < verdict.last && others < ENOUGH {
        let again = replay.advance()?;
        progress.step(again.step);
        let Some(line) = record.step(again.step) else { break };
        let differences = again.differences(line);
        let digest_differs = differences.iter().any(|(what, ..)| what == "digest");
        others = if digest_differs { others + 1 } else { 0 };
        if again.step < verdict.first {
            if digest_differs {
                let step = again.step;
                progress.warn(verdict, format!("step {step}, before those asked for, has another digest in the journal; verify it as well"));
            }
            // It is the steps asked for that are judged.
            others = 0;
            continue;
        }
        verdict.computed += 1;
        verdict.equal += u64::from(differences.is_empty());
        if let Some((what, recorded, computed)) = differences.into_iter().next() {
            let found = verdict.first_difference.get_or_insert_with(|| Difference {
                step: again.step,
                what,
                recorded,
                computed,
                meaning: String::new(),
            });
            tracing::info!(step = again.step, first = found.step, "differs");
        }
        states(record, replay, &again, verdict, progress);
    }
    if let Some(found) = &mut verdict.first_difference
        && found.meaning.is_empty()
    {
        found.meaning = meaning(found, others, replay.at());
    }
    Ok(())
}

/// Compares what lies on disk of the state that the replay has reached.
fn states(
    record: &Record,
    replay: &Replay,
    again: &Recomputed,
    verdict: &mut Verdict,
    progress: &mut Progress,
) {
    for milestone in milestones(record, again.step) {
        let path = milestone.path.display();
        let (digest, sha256) = match milestone.found {
            Ok(found) => found,
            Err(why) => {
                progress.warn(verdict, format!("{path} can't be compared: {why}"));
                continue;
            }
        };
        let computed = replay.parameters_sha256();
        let (what, on_record, computed) = if digest != again.digest {
            ("digest", digest.to_string(), again.digest.to_string())
        } else if sha256 != computed {
            ("parameters' SHA-256", sha256, computed)
        } else {
            verdict.states_equal += 1;
            continue;
        };
        verdict.first_difference.get_or_insert_with(|| Difference {
            step: again.step,
            what: format!("{what} in {path}"),
            recorded: on_record,
            computed,
            meaning: "the journal is right and this file is not of this run; go by the journal, and don't use the file".into(),
        });
    }
}

/// What a difference tells, by how the steps after it compare.
fn meaning(found: &Difference, others: u64, reached: u64) -> String {
    if found.what != "digest" {
        return "the state is the one on record, so this number was changed or damaged in the journal; restore \
                journal.jsonl from a backup"
            .into();
    }
    match (others, reached - found.step) {
        (0, _) => "the steps after it agree, so its line was changed or damaged in the journal; restore journal.jsonl \
                   from a backup"
            .into(),
        (_, 0) => "if a step after it agrees, its line was changed in the journal; if not, this machine computes other \
                   bits than the run's did, or the run was not computed as recorded: verify more steps, or on a \
                   machine of the run's kind"
            .into(),
        _ => "the steps after it differ as well, so this machine computes other bits than the run's did (another kind \
              of processor or device), or the run was not computed as recorded; verify on a machine of the run's kind"
            .into(),
    }
}

/// How far it is, on standard error: a bar on a terminal, else a line now and then.
struct Progress {
    terminal: bool,
    from: u64,
    last: u64,
    begun: Instant,
    told: Instant,
}

impl Progress {
    fn new(from: u64, last: u64) -> Self {
        let now = Instant::now();
        Self { terminal: output::is_terminal(), from, last, begun: now, told: now }
    }

    fn warn(&self, verdict: &mut Verdict, text: String) {
        output::note(Level::Warn, &text);
        verdict.warnings.push(text);
    }

    fn step(&mut self, step: u64) {
        let every = if self.terminal { BAR_INTERVAL } else { PLAIN_EVERY };
        if self.told.elapsed() < every {
            return;
        }
        self.told = Instant::now();
        let (done, all) = (step - self.from, self.last - self.from);
        let left = self.begun.elapsed().as_secs_f64() / done.max(1) as f64 * (self.last - step) as f64;
        let left = human_seconds(left);
        if self.terminal {
            let colours = std::env::var_os("NO_COLOR").is_none();
            let bar = progress_bar(done, all, colours);
            output::status(Some(format!("step {step}  {bar} {done}/{all}  {left} left")));
        } else {
            output::note(Level::Info, &format!("step {step} of {}  {left} left", self.last));
        }
    }

    fn end(&mut self) {
        output::status(None);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn range(first: impl Into<Option<u64>>, last: impl Into<Option<u64>>) -> StepRange {
        StepRange { first: first.into(), last: last.into() }
    }

    #[test]
    fn ranges_are_inclusive_and_may_be_open() {
        let read = |text: &str| text.parse::<StepRange>();
        assert_eq!(read("7"), Ok(range(7, 7)));
        assert_eq!(read("7..9"), Ok(range(7, 9)));
        assert_eq!(
            (read("7.."), read("..9"), read("..")),
            (Ok(range(7, None)), Ok(range(None, 9)), Ok(range(None, None)))
        );
        for bad in ["", "0", "0..3", "9..7", "a..b", "1...3", "1..2..3", "-1", "1.5"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_range_outside_the_journal_says_what_there_is() {
        assert_eq!(range(None, None).within(12).unwrap(), (1, 12));
        assert_eq!(range(4, None).within(12).unwrap(), (4, 12));
        assert!(range(4, 13).within(12).unwrap_err().to_string().contains("steps 1 to 12"));
        assert!(range(13, None).within(12).is_err());
        assert!(range(None, None).within(0).unwrap_err().to_string().contains("no step yet"));
    }
}
