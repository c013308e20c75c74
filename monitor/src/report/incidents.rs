//! The workers and the faults of a run.

use maud::{Markup, html};
use tally_run::journal::Line;

use super::run_data::{Member, RunData, run_label};

/// Rows of a table, at most.
const ROWS: usize = 200;

/// The workers.
pub fn workers(runs: &[RunData]) -> Markup {
    html! {
        section #workers {
            h2 { "Workers" }
            @for (index, run) in runs.iter().enumerate() {
                @if runs.len() > 1 { h3 { (run_label(index)) ": " (run.name) } }
                @if run.members.is_empty() { p.quiet { "No worker was ready yet." } } @else { (members(&run.members)) }
            }
        }
    }
}

fn members(members: &[Member]) -> Markup {
    html! {
        div.scroll {
            table {
                thead { tr { @for name in ["worker", "computes with", "ready at step", "left at step", "late"] { th scope="col" { (name) } } th.word scope="col" { "why it left" } } }
                tbody {
                    @for member in members.iter().take(ROWS) {
                        tr.lost[member.left.is_some() && !member.polite] {
                            th scope="row" { (member.name) }
                            td.word { (member.device) }
                            td { (member.joined) }
                            @match &member.left {
                                None => { td { "–" } td { (member.late) } td.word { "it stayed" } },
                                Some((step, why)) => {
                                    td { (step) } td { (member.late) }
                                    td.word { @if !member.polite { strong { "lost: " } } (why) }
                                },
                            }
                        }
                    }
                }
            }
        }
        (more(members.len()))
    }
}

fn more(count: usize) -> Markup {
    html! { @if count > ROWS { p.quiet { "And " (count - ROWS) " more, which are in the journal." } } }
}

/// The faults, and what became of them.
pub fn faults(runs: &[RunData]) -> Markup {
    html! {
        section #faults {
            h2 { "Faults" }
            @for (index, run) in runs.iter().enumerate() {
                @if runs.len() > 1 { h3 { (run_label(index)) ": " (run.name) } }
                @let faults: Vec<_> = run.record.others.iter().filter_map(fault).collect();
                @if faults.is_empty() {
                    p { "Nothing went wrong: no worker was lost or late, no attempt was void, the coordinator was started once." }
                } @else {
                    div.scroll {
                        table {
                            thead { tr { th scope="col" { "step" } th.word scope="col" { "what" } th.word scope="col" { "more" } } }
                            tbody { @for (step, what, text) in faults.iter().take(ROWS) { tr { td { (step) } th scope="row" { (what) } td.word { (text) } } } }
                        }
                    }
                    (more(faults.len()))
                }
            }
        }
    }
}

/// The fault that a line of the journal tells of: its step, its name, its details.
fn fault(line: &Line) -> Option<(u64, &'static str, String)> {
    Some(match line {
        Line::Start { incarnation, step, .. } if *incarnation > 1 => (
            *step,
            "coordinator started again",
            format!("start {incarnation}, from the state of step {step}"),
        ),
        Line::Lost { step, worker, reason, polite: false, .. } => {
            (*step, "worker lost", format!("{worker}: {reason}"))
        }
        Line::Takeover { step, leaves, workers } => {
            (*step, "taken over", format!("{leaves} microbatches by {workers} workers, in the same step"))
        }
        Line::Straggler { step, worker, leaves, .. } => {
            (*step, "late", format!("{worker}: its {leaves} microbatches were computed by others too"))
        }
        Line::TakenBack { step, chunks, reason } => {
            (*step, "taken back", format!("{chunks} chunks were added up by the coordinator: {reason}"))
        }
        Line::Adopt { step, worker, .. } => {
            (*step, "state adopted", format!("from worker {worker}, which held it"))
        }
        Line::Audit { step, node, owner, checker, alone } => {
            let verdict = alone
                .as_ref()
                .map_or("nobody could decide".into(), |name| format!("{name} was alone with its bits"));
            let what = node.map_or("sums".into(), |node| format!("node {node}"));
            (*step, "audit differed", format!("{what}, {owner} and {checker}: {verdict}"))
        }
        Line::Abort { step, attempt, reason } => {
            (*step, "attempt void", format!("attempt {attempt}: {reason}"))
        }
        Line::End { step, outcome } if outcome == "diverged" => (
            *step,
            "diverged",
            "the loss or a gradient became NaN or infinite; the state of this step is the last good one"
                .into(),
        ),
        _ => return None,
    })
}
