//! What the journal tells of the faults: when each was noticed, and when the cluster had
//! its next step. Pure: facts and lines with their times go in, figures come out.
//!
//! Faults overlap, about one a second, and each is measured as if it were alone. So a time
//! may hold another fault's share, and the median says more than the greatest.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::plan::Fault;
use super::watch::Seen;

/// A fault that happened. Times are seconds, by the clock of the [`Seen`] lines.
#[derive(Clone, Debug, Serialize)]
pub struct Fact {
    /// What.
    pub fault: Fault,
    /// To whom, where it was one worker.
    pub worker: Option<String>,
    /// When it was done.
    pub at: f64,
    /// When it was undone: for a coordinator, when it was started again.
    pub until: f64,
}

/// Milliseconds: the middle, nearly the greatest, the greatest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// How many were measured.
    pub count: usize,
    /// The median.
    pub median: f64,
    /// The 99th percentile, by nearest rank.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Quantiles {
    /// Of times in seconds.
    pub fn of(seconds: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = seconds.into_iter().map(|s| s * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            let at = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
        };
        Self { count: sorted.len(), median: rank(0.5), p99: rank(0.99), max: rank(1.0) }
    }
}

/// The figures of one kind of fault.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The kind.
    pub fault: Fault,
    /// How often it was done.
    pub done: usize,
    /// From the fault to the journal's line that tells of it. Not all are told of: a short
    /// freeze need not be noticed, and a worker that is not connected is not missed.
    pub detection: Quantiles,
    /// From the fault to the next step that counted.
    pub recovery: Quantiles,
    /// The longest time without a step while the fault lasted and until the step after it.
    pub pause: Quantiles,
}

/// How a start of the coordinator went on from the one before.
#[derive(Clone, Debug, Serialize)]
pub struct Restart {
    /// Which start it was.
    pub incarnation: u64,
    /// The newest step in the journal before it.
    pub journalled: u64,
    /// The step it went on from.
    pub resumed: u64,
    /// Steps of the journal that were computed again.
    pub recomputed: u64,
    /// A worker that was a part of the cluster lived through it undisturbed.
    pub survived: bool,
    /// Milliseconds from the process's start to the first new step.
    pub to_step_ms: Option<f64>,
}

/// Faults and the journal in the order of their times, for people who look for a cause. Of
/// the steps, those that were waited for long.
#[must_use]
pub fn timeline(facts: &[Fact], lines: &[Seen]) -> String {
    let mut all: Vec<(f64, String)> = Vec::new();
    for fact in facts {
        let who = fact.worker.as_deref().unwrap_or("");
        all.push((fact.at, format!("> {who} {}", fact.fault)));
        all.push((fact.until, format!("< {who} {}: undone", fact.fault)));
    }
    let mut last = 0.0;
    for seen in lines {
        if !seen.is("step") {
            all.push((seen.at, seen.line.to_string().chars().take(240).collect()));
        } else if std::mem::replace(&mut last, seen.at) + 1.0 < seen.at {
            all.push((seen.at, format!("step {}", seen.step())));
        }
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all.into_iter().map(|(at, what)| format!("{at:10.4}  {what}\n")).collect()
}

/// The line that tells of a fault, if there is one.
fn noticed<'a>(fact: &Fact, lines: &'a [Seen]) -> Option<&'a Seen> {
    let worker = fact.worker.as_deref();
    let named = |s: &Seen| worker.is_some() && s.line["worker"].as_str() == worker;
    let mut after = lines.iter().filter(|s| s.at >= fact.at);
    match fact.fault {
        Fault::Join => after.find(|s| s.is("join") && named(s)).filter(|s| s.at <= fact.until),
        Fault::KillAll | Fault::KillEverything => after.find(|s| s.is("lost")).filter(|s| s.at <= fact.until),
        Fault::KillCoordinator | Fault::StopCoordinator | Fault::Delay => None,
        _ => after
            // A straggler's line may leave open whose work it was.
            .find(|s| named(s) || s.is("straggler") && s.line["worker"].is_null())
            .filter(|s| s.is("lost") || s.is("straggler"))
            // A line long after its cause has another. A death shows when it shows.
            .filter(|s| s.at <= fact.until + 0.1 || matches!(fact.fault, Fault::Kill | Fault::Abort)),
    }
}

/// The figures of every kind of fault that was done.
#[must_use]
pub fn rows(facts: &[Fact], lines: &[Seen]) -> Vec<Row> {
    let commits: Vec<f64> = lines.iter().filter(|s| s.is("step")).map(|s| s.at).collect();
    let next = |at: f64| commits.partition_point(|commit| *commit < at);
    let mut kinds: BTreeMap<Fault, Vec<&Fact>> = BTreeMap::new();
    for fact in facts {
        kinds.entry(fact.fault).or_default().push(fact);
    }
    let row = |(fault, facts): (Fault, Vec<&Fact>)| {
        let detection = facts.iter().filter_map(|fact| Some(noticed(fact, lines)?.at - fact.at));
        let recovery = facts.iter().filter_map(|fact| Some(commits.get(next(fact.at))? - fact.at));
        let pause = facts.iter().filter_map(|fact| {
            let (first, last) = (next(fact.at), next(fact.until).min(commits.len().checked_sub(1)?));
            let around = commits.get(first.checked_sub(1)?..=last.max(first))?;
            around.windows(2).map(|pair| pair[1] - pair[0]).max_by(f64::total_cmp)
        });
        Row {
            fault,
            done: facts.len(),
            detection: Quantiles::of(detection),
            recovery: Quantiles::of(recovery),
            pause: Quantiles::of(pause),
        }
    };
    kinds.into_iter().map(row).collect()
}

/// Every start of the coordinator that followed a fault of it.
#[must_use]
pub fn restarts(facts: &[Fact], lines: &[Seen]) -> Vec<Restart> {
    let starts: Vec<usize> = (0..lines.len()).filter(|i| lines[*i].is("start")).collect();
    let restart = |start: &usize| {
        let (before, after) = lines.split_at(*start);
        let journalled = before.iter().rev().find(|s| s.is("step")).map_or(0, Seen::step);
        let step = after.iter().position(|s| s.is("step"));
        // Where a worker brought a newer state than the checkpoint's, a line says so before
        // the first step.
        let adopted = after[1..step.unwrap_or(after.len())]
            .iter()
            .filter(|s| s.line["event"].as_str().is_some_and(|event| event.starts_with("adopt")))
            .map(Seen::step);
        let resumed = adopted.chain([after[0].step()]).max().unwrap_or(0);
        let previous = before.iter().rev().find(|s| s.is("start")).map_or(0.0, |s| s.at);
        let since_then = |f: &&Fact| f.until > previous && f.until <= after[0].at;
        let cause = facts.iter().find(|f| f.fault.hits_coordinator() && since_then(f))?;
        let first = step.map(|index| after[index].at);
        Some(Restart {
            incarnation: after[0].line["incarnation"].as_u64().unwrap_or(0),
            journalled,
            resumed,
            recomputed: journalled.saturating_sub(resumed),
            // Where the start before had not come to a new step, what its workers held was
            // what it had computed again, and no line tells how far that was.
            survived: before.iter().rev().take_while(|s| !s.is("start")).any(|s| s.is("step"))
                && someone_lived(facts, before, cause.at, first.unwrap_or(f64::INFINITY)),
            to_step_ms: first.map(|first| 1e3 * (first - cause.until)),
        })
    };
    starts.iter().skip(1).filter_map(restart).collect()
}

/// The names of those who are a part of the cluster after these lines.
pub fn members<'a>(lines: impl DoubleEndedIterator<Item = &'a Seen>) -> BTreeSet<&'a str> {
    let mut newest: BTreeMap<&str, bool> = BTreeMap::new();
    for line in lines.rev().take_while(|s| !s.is("start")) {
        if let Some(worker) = line.line["worker"].as_str().filter(|_| line.is("join") || line.is("lost")) {
            newest.entry(worker).or_insert(line.is("join"));
        }
    }
    newest.into_iter().filter_map(|(worker, present)| present.then_some(worker)).collect()
}

/// Workers killed one at a time, in peace otherwise. Milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Alone {
    /// From the kill to the journal's line.
    pub detection: Quantiles,
    /// A step of whole workers, just before a kill.
    pub step: Quantiles,
    /// The step in which a worker died, what it left undone included.
    pub struck: Quantiles,
}

/// The figures of kills that were done one at a time.
#[must_use]
pub fn alone(facts: &[Fact], lines: &[Seen]) -> Alone {
    let seconds = |s: &Seen| s.line["seconds"].as_f64().unwrap_or(0.0);
    let steps: Vec<&Seen> = lines.iter().filter(|s| s.is("step")).collect();
    let before = |fact: &Fact| steps.partition_point(|s| s.at < fact.at);
    let whole =
        facts.iter().flat_map(|f| steps[before(f).saturating_sub(3)..before(f)].iter().map(|s| seconds(s)));
    let struck = facts.iter().filter_map(|fact| {
        let step = noticed(fact, lines)?.step() + 1;
        steps[before(fact)..].iter().find(|s| s.step() == step).map(|s| seconds(s))
    });
    Alone {
        detection: Quantiles::of(facts.iter().filter_map(|fact| Some(noticed(fact, lines)?.at - fact.at))),
        step: Quantiles::of(whole),
        struck: Quantiles::of(struck),
    }
}

/// Whether a worker was a part of the cluster at `from`, and no fault hit it until `to`.
fn someone_lived(facts: &[Fact], before: &[Seen], from: f64, to: f64) -> bool {
    // What is told after `from` is an end that `from` brought.
    let members = members(before.iter().filter(|s| s.at < from));
    let overlaps = |fact: &Fact| fact.at <= to && fact.until >= from;
    let stopped = |fact: &Fact| fact.fault == Fault::StopCoordinator || fact.fault.hits_all_workers();
    if facts.iter().any(|fact| stopped(fact) && overlaps(fact)) {
        return false;
    }
    let hurt = |worker: &str| facts.iter().any(|f| overlaps(f) && f.worker.as_deref() == Some(worker));
    members.iter().any(|worker| !hurt(worker))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn seen(lines: &[(f64, Value)]) -> Vec<Seen> {
        lines.iter().map(|(at, line)| Seen { at: *at, line: line.clone() }).collect()
    }

    fn fact(fault: Fault, worker: Option<&str>, at: f64, until: f64) -> Fact {
        Fact { fault, worker: worker.map(str::to_owned), at, until }
    }

    fn step(step: u64) -> Value {
        json!({"event": "step", "step": step})
    }

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let q = Quantiles::of((1..=200).map(f64::from).map(|ms| ms / 1e3));
        assert_eq!((q.count, q.median.round(), q.p99.round(), q.max.round()), (200, 100.0, 198.0, 200.0));
        assert!(Quantiles::of([]).median.is_nan());
    }

    #[test]
    fn a_death_is_noticed_by_its_own_line_and_over_with_the_next_step() {
        let lines = seen(&[
            (1.0, step(1)),
            (1.15, json!({"event": "lost", "worker": "w2"})),
            (1.25, json!({"event": "lost", "worker": "w1"})),
            (1.5, step(2)),
            (1.6, step(3)),
            (2.6, step(4)),
        ]);
        let kill = fact(Fault::Kill, Some("w1"), 1.125, 2.0);
        let row = rows(&[kill], &lines).remove(0);
        assert_eq!((row.done, row.detection.median, row.recovery.median), (1, 125.0, 375.0));
        assert_eq!(row.pause.median.round(), 1000.0);
    }

    #[test]
    fn a_worker_that_was_not_there_is_not_missed() {
        let lines = seen(&[
            (1.0, step(1)),
            (1.5, json!({"event": "join", "worker": "w1"})),
            (3.0, json!({"event": "lost", "worker": "w1"})),
        ]);
        let row = rows(&[fact(Fault::Kill, Some("w1"), 1.2, 1.4)], &lines).remove(0);
        assert_eq!((row.detection.count, row.recovery.count), (0, 0));
    }

    #[test]
    fn a_kill_alone_is_compared_with_the_steps_before_it() {
        let step = |step: u64, seconds: f64| json!({"event": "step", "step": step, "seconds": seconds});
        let lines = seen(&[
            (1.0, step(1, 0.5)),
            (1.5, step(2, 0.5)),
            (1.6, json!({"event": "lost", "step": 2, "worker": "w1"})),
            (2.5, step(3, 1.0)),
            (3.0, step(4, 0.5)),
        ]);
        let alone = alone(&[fact(Fault::Kill, Some("w1"), 1.575, 2.75)], &lines);
        assert_eq!(
            (alone.detection.median.round(), alone.step.median, alone.struck.max),
            (25.0, 500.0, 1000.0)
        );
    }

    #[test]
    fn a_restart_counts_what_it_computes_again() {
        let join = |worker| json!({"event": "join", "worker": worker});
        let mut lines = vec![
            (0.0, json!({"event": "start", "incarnation": 1, "step": 0})),
            (0.5, join("w0")),
            (0.6, join("w1")),
            (1.0, step(1)),
            (1.1, step(2)),
            (1.2, step(3)),
            (2.0, json!({"event": "start", "incarnation": 2, "step": 1})),
            (3.0, step(4)),
        ];
        let kill = fact(Fault::KillCoordinator, None, 1.25, 1.75);
        let other = fact(Fault::Kill, Some("w0"), 1.0, 2.5);
        let restart = &restarts(&[kill.clone(), other.clone()], &seen(&lines))[0];
        assert_eq!((restart.journalled, restart.resumed, restart.recomputed), (3, 1, 2));
        assert_eq!((restart.survived, restart.to_step_ms), (true, Some(1250.0)));
        let both = fact(Fault::Cut, Some("w1"), 2.9, 4.0);
        assert!(!restarts(&[kill.clone(), other, both], &seen(&lines))[0].survived);
        lines.insert(7, (2.5, json!({"event": "adopted", "step": 3})));
        assert_eq!(restarts(&[kill], &seen(&lines))[0].recomputed, 0);
    }
}
