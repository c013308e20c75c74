//! The journal: a line of JSON for each event of a run. Lines are only appended.
//!
//! A step's line is written before any worker is told that the step counts. The write is a system call of its own, so
//! a crash of the process loses no line; the file is synced at every checkpoint, so a loss of power costs at most the
//! lines since, which a resumed run computes again. A torn last line is dropped when the journal is opened.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tally_numerics::digest::Digest;
use tally_numerics::schema::{Evaluation, Named};
use thiserror::Error;

use tally_checkpoint::{files, remedy};

use crate::stored_path::shell_quoted;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Line {
    /// The coordinator has started, for the first time or again.
    Start {
        /// How the lines from here on are to be read: [`JOURNAL_VERSION`].
        #[serde(default = "first_version")]
        version: u32,
        /// The version of Tally that writes them.
        #[serde(default)]
        tally: String,
        /// How often it has been started.
        incarnation: u64,
        /// The committed step it goes on from.
        step: u64,
        /// Seconds since 1970, by the machine's clock.
        unix_seconds: u64,
    },
    /// A step counts.
    Step(StepLine),
    /// A test pass is done.
    Test {
        /// The step whose state was tested.
        step: u64,
        /// The epoch it ended.
        epoch: u32,
        /// Wall time of the pass.
        seconds: f64,
        /// Its result.
        #[serde(flatten)]
        evaluation: Evaluation,
    },
    /// A worker is ready for work.
    Join {
        /// The newest committed step.
        step: u64,
        /// Its session.
        session: u64,
        /// Its name.
        worker: String,
        /// Its device.
        device: String,
        /// What decides the bits of its gradients; empty in journals that did not record it.
        #[serde(default)]
        numerics_class: String,
    },
    /// A worker is gone.
    Lost {
        /// The newest committed step.
        step: u64,
        /// Its session.
        session: u64,
        /// Its name.
        worker: String,
        /// Why.
        reason: String,
        /// It left on its own request.
        polite: bool,
    },
    /// A lost worker's microbatches were assigned to others in the same step.
    Takeover {
        /// The step.
        step: u64,
        /// How many microbatches.
        leaves: u32,
        /// By how many workers.
        workers: usize,
    },
    /// A worker was past its deadline; its microbatches were assigned to others as well.
    Straggler {
        /// The step.
        step: u64,
        /// Its session.
        session: u64,
        /// Its name.
        worker: String,
        /// How many microbatches.
        leaves: u32,
    },
    /// A restarted coordinator continued from the state that a worker held.
    Adopt {
        /// The state's step.
        step: u64,
        /// The worker's session.
        session: u64,
        /// Its name.
        worker: String,
    },
    /// Two workers got different bits for the same node, or a worker and the coordinator for the same sums.
    Audit {
        /// The step.
        step: u64,
        /// The node of the tree; none if the sums that a worker had added up were compared.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<u32>,
        /// The worker that contributed it, or added up.
        owner: String,
        /// The worker that checked it, or `the coordinator`.
        checker: String,
        /// The worker whose bits differed, if a third worker decided.
        alone: Option<String>,
    },
    /// From this step on gradients are added up in another way.
    Reduction {
        /// The step.
        step: u64,
        /// How many workers add up; 0 if the coordinator does.
        owners: usize,
        /// Why.
        reason: String,
    },
    /// The coordinator added up chunks that workers were to add up.
    TakenBack {
        /// The step.
        step: u64,
        /// How many chunks.
        chunks: usize,
        /// Why.
        reason: String,
    },
    /// An attempt was void.
    Abort {
        /// The step.
        step: u64,
        /// The attempt.
        attempt: u32,
        /// Why.
        reason: String,
    },
    /// A checkpoint is on disk.
    Checkpoint {
        /// Its step.
        step: u64,
        /// Its directory.
        path: String,
    },
    /// The run, or this stretch of it, is over.
    End {
        /// The last committed step.
        step: u64,
        /// `done`, `stopped` or `diverged`.
        outcome: String,
    },
    /// An event that only a newer Tally knows, and that is ignored. It is never written.
    #[serde(other)]
    Unknown,
}

/// The version of the journal's lines. A new event, or a new part of one, that an older Tally may skip, does not
/// raise it; whatever else changes does (`docs/compatibility.md`).
pub const JOURNAL_VERSION: u32 = 1;

/// Of journals that do not say it.
fn first_version() -> u32 {
    1
}

/// A committed step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepLine {
    /// The step, from 1.
    pub step: u64,
    /// Its epoch, from 1.
    pub epoch: u32,
    /// Means over the batch: `total`, then each part.
    pub loss: Named,
    /// Samples of the batch.
    pub samples: usize,
    /// Workers that contributed.
    pub workers: usize,
    /// Wall time of the step.
    pub seconds: f64,
    /// Seconds the slowest worker computed.
    pub compute_seconds: f64,
    /// Seconds from there until the gradient was summed.
    pub transfer_seconds: f64,
    /// Average seconds that workers waited for the slowest.
    pub waiting_seconds: f64,
    /// The attempt that counted.
    pub attempt: u32,
    /// Workers that added gradients up; 0, and not written, if the coordinator did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub owners: usize,
    /// The learning rate.
    pub learning_rate: f32,
    /// The gradient's norm before clipping.
    pub gradient_norm: f64,
    /// Digest of parameters and momentum after the step.
    pub digest: Digest,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Why a journal cannot be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// A file operation failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A line before the last is damaged.
    #[error("{} is damaged at line {line}: {source}; restore it from a backup, or start a new run with --init from a checkpoint", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Lines that only another version can read.
    #[error(
        "{} was written by Tally {tally} from line {line} on (journal version {found}), and this one ({}) reads version {JOURNAL_VERSION}: \
         {}", path.display(), env!("CARGO_PKG_VERSION"), remedy((*found).into(), JOURNAL_VERSION)
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The line that says so, from 1.
        line: usize,
        /// The version of the lines behind it.
        found: u32,
        /// The Tally that wrote them.
        tally: String,
    },
    /// A step is there twice, or one is missing.
    #[error(
        "{} is damaged: step {found} stands where step {wanted} should; restore it from a backup, or start a new run with --init from \
         a checkpoint",
        path.display()
    )]
    Order {
        /// The file.
        path: PathBuf,
        /// The step that is there.
        found: u64,
        /// The step that should be.
        wanted: u64,
    },
    /// Its end, or all of it, is lost: it is synced before a checkpoint is written.
    #[error(
        "{} ends at step {last}, and {} holds step {step}: lines of the journal are lost. Restore the journal from a backup; or move \
         the checkpoints after step {last} away, and --resume computes those steps again, in the same bits; or start a new run from \
         the checkpoint's weights with --init {}",
        path.display(), checkpoint.display(), shell_quoted(checkpoint)
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// Its last step; 0 if it has none.
        last: u64,
        /// The newest whole checkpoint.
        checkpoint: PathBuf,
        /// Its step.
        step: u64,
    },
}

/// The history of a run, from its journal.
#[derive(Debug, Default)]
pub struct History {
    /// The digest of every step.
    pub digests: BTreeMap<u64, Digest>,
    /// What every test pass found, by step.
    pub tests: BTreeMap<u64, Evaluation>,
    /// Wall seconds of the steps and test passes.
    pub seconds: f64,
    /// Workers that became ready, and workers lost against their will.
    pub joined: u64,
    /// See `joined`.
    pub lost: u64,
    /// The newest start of a coordinator.
    pub incarnation: u64,
}

impl History {
    fn take(&mut self, line: Line) -> Result<(), (u64, u64)> {
        match line {
            Line::Step(step) => {
                let wanted = self.digests.last_key_value().map_or(1, |(last, _)| last + 1);
                if step.step != wanted {
                    return Err((step.step, wanted));
                }
                self.digests.insert(step.step, step.digest);
                self.seconds += step.seconds;
            }
            Line::Test { step, seconds, evaluation, .. } => {
                self.tests.insert(step, evaluation);
                self.seconds += seconds;
            }
            Line::Join { .. } => self.joined += 1,
            Line::Lost { polite: false, .. } => self.lost += 1,
            Line::Start { incarnation, .. } => self.incarnation = self.incarnation.max(incarnation),
            _ => {}
        }
        Ok(())
    }
}

/// The whole lines of a journal's text, and the bytes they take; what is behind the last line
/// break is torn. `path` is for error messages alone.
///
/// # Errors
/// [`JournalError::Damaged`] for the first line that is none, [`JournalError::Version`] for the first that says
/// that another version wrote what follows.
pub fn parse(path: &Path, text: &[u8]) -> Result<(Vec<Line>, usize), JournalError> {
    let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    let lines = text[..whole].split_inclusive(|&b| b == b'\n').zip(1..);
    let lines = lines.map(|(text, line)| {
        let parsed = serde_json::from_slice(text);
        if !matches!(parsed, Ok(Line::Start { version: JOURNAL_VERSION, .. }))
            && let Ok(Opening { event: Start::Start, version: found, tally }) = serde_json::from_slice(text)
            && found != JOURNAL_VERSION
        {
            return Err(JournalError::Version { path: path.into(), line, found, tally });
        }
        parsed.map_err(|source| JournalError::Damaged { path: path.into(), line, source })
    });
    Ok((lines.collect::<Result<_, _>>()?, whole))
}

/// As much of a start's line as every version has.
#[derive(Deserialize)]
struct Opening {
    event: Start,
    #[serde(default = "first_version")]
    version: u32,
    #[serde(default)]
    tally: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Start {
    Start,
}

/// A journal that can be appended to.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Journal {
    /// Opens the journal at `path`, or makes an empty one, drops a torn last line, and
    /// reads the rest.
    ///
    /// # Errors
    /// [`JournalError`] if it can't be read, or is damaged before its last line.
    pub fn open(path: &Path) -> Result<(Self, History), JournalError> {
        let failed = |what| move |source| JournalError::Io { what, path: path.into(), source };
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(failed("read")(e)),
        };
        let (lines, whole) = parse(path, &text)?;
        let mut history = History::default();
        for line in lines {
            history.take(line).map_err(|(found, wanted)| JournalError::Order {
                path: path.into(),
                found,
                wanted,
            })?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed("open"))?;
        // Some file systems cannot truncate, and most journals are whole.
        if whole != text.len() {
            file.set_len(whole as u64).map_err(failed("truncate"))?;
        }
        Ok((Self { path: path.into(), file, length: whole as u64 }, history))
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`JournalError::Io`], for example on a full disk; a line half written is cut off
    /// again, so that the journal stays whole.
    pub fn append(&mut self, line: &Line) -> Result<(), JournalError> {
        let failed = |source| JournalError::Io { what: "write to", path: self.path.clone(), source };
        let mut text = serde_json::to_vec(line).map_err(|e| failed(e.into()))?;
        text.push(b'\n');
        if let Err(e) = self.file.write_all(&text) {
            let _ = self.file.set_len(self.length);
            return Err(failed(e));
        }
        self.length += text.len() as u64;
        Ok(())
    }

    /// Makes the lines so far survive a loss of power.
    ///
    /// # Errors
    /// [`JournalError::Io`] if the disk refuses.
    pub fn sync(&self) -> Result<(), JournalError> {
        let failed = |source| JournalError::Io { what: "sync", path: self.path.clone(), source };
        files::sync(&self.file).map_err(failed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn step(step: u64) -> Line {
        Line::Step(StepLine {
            step,
            epoch: 1,
            loss: [("total", 6.0), ("label", 1.0), ("sum", 2.0), ("difference", 3.0)]
                .map(|(name, mean)| (name.to_owned(), mean))
                .into(),
            samples: 64,
            workers: 2,
            seconds: 0.5,
            compute_seconds: 0.25,
            transfer_seconds: 0.125,
            waiting_seconds: 0.0,
            attempt: 1,
            owners: 0,
            learning_rate: 0.1,
            gradient_norm: 7.0,
            digest: Digest(step),
        })
    }

    #[test]
    fn a_step_reads_as_the_design_says() {
        let value = serde_json::to_value(step(3)).unwrap();
        assert_eq!(value["event"], "step");
        assert_eq!(value["loss"]["total"], 6.0);
        assert_eq!(value["digest"], "0000000000000003");
        assert_eq!(serde_json::from_value::<Line>(value).unwrap(), step(3));
    }

    #[test]
    fn resume_1_a_torn_last_line_is_dropped_and_the_rest_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("journal.jsonl");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.append(&step(1)).unwrap();
        journal.append(&step(2)).unwrap();
        drop(journal);
        let mut text = fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"event\":\"step\",\"st");
        fs::write(&path, &text).unwrap();
        let (mut journal, history) = Journal::open(&path).unwrap();
        assert_eq!(history.digests.into_iter().collect::<Vec<_>>(), [(1, Digest(1)), (2, Digest(2))]);
        journal.append(&step(3)).unwrap();
        drop(journal);
        assert_eq!(Journal::open(&path).unwrap().1.digests.len(), 3);
    }

    #[test]
    fn a_damaged_line_or_a_missing_step_is_named() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("journal.jsonl");
        fs::write(&path, "{}\n").unwrap();
        assert!(matches!(Journal::open(&path), Err(JournalError::Damaged { line: 1, .. })));
        let lines = [step(1), step(3)].map(|l| serde_json::to_string(&l).unwrap() + "\n").concat();
        fs::write(&path, lines).unwrap();
        assert!(matches!(Journal::open(&path), Err(JournalError::Order { found: 3, wanted: 2, .. })));
    }

    fn start(version: u32) -> String {
        let line = Line::Start { version, tally: "9.9.9".into(), incarnation: 1, step: 0, unix_seconds: 1 };
        serde_json::to_string(&line).unwrap() + "\n"
    }

    #[test]
    fn a_journal_says_its_version_and_another_one_is_refused_by_name() {
        let read = |text: &str| parse(Path::new("a-journal"), text.as_bytes()).map(|(lines, _)| lines);
        assert_eq!(read(&start(JOURNAL_VERSION)).unwrap().len(), 1);
        // The first journals did not say it.
        let silent = "{\"event\":\"start\",\"incarnation\":1,\"step\":0,\"unix_seconds\":1}\n";
        assert!(matches!(read(silent).unwrap()[..], [Line::Start { version: 1, .. }]));
        // A newer one may look different in every other way.
        let strange = "{\"event\":\"start\",\"version\":2,\"tally\":\"9.9.9\",\"step\":\"none\"}\n";
        let known = serde_json::to_string(&step(1)).unwrap() + "\n";
        for newer in [start(2), strange.into(), format!("{silent}{known}{strange}what follows is no JSON\n")]
        {
            let error = read(&newer).unwrap_err();
            assert!(matches!(error, JournalError::Version { found: 2, .. }), "{error}");
            let error = error.to_string();
            for words in ["a-journal", "Tally 9.9.9", "upgrade this Tally"] {
                assert!(error.contains(words), "{error}");
            }
        }
    }

    #[test]
    fn what_only_a_newer_tally_tells_of_is_skipped() {
        let mut line = serde_json::to_value(step(1)).unwrap();
        line["carbon_grams"] = 12.5.into();
        let text = format!("{}{{\"event\":\"moon-phase\",\"step\":[1,{{}}]}}\n{line}\n", start(1));
        let (lines, _) = parse(Path::new("journal"), text.as_bytes()).unwrap();
        assert_eq!(lines[1..], [Line::Unknown, step(1)]);
        let mut history = History::default();
        for line in lines {
            history.take(line).unwrap();
        }
        assert_eq!(history.digests.len(), 1);
    }
}
