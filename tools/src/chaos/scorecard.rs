//! The scorecard of a run under chaos, as text, Markdown and JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::checker::Promise;
use super::measure::{Alone, Fact, Quantiles, Restart, Row};

/// The outcome of a run under chaos.
#[derive(Clone, Debug, Serialize)]
pub struct Scorecard {
    /// What repeats it.
    pub command: String,
    /// Whether cables can be pulled on this machine, in words.
    pub network: String,
    /// How long faults happened.
    pub seconds: f64,
    /// Committed steps.
    pub steps: u64,
    /// Milliseconds of a step: from one commit to the next, the faults included.
    pub step_ms: Quantiles,
    /// The promises.
    pub promises: Vec<Promise>,
    /// The figures by kind of fault.
    pub rows: Vec<Row>,
    /// The figures of workers that were killed one at a time afterwards.
    pub alone: Alone,
    /// Every start of the coordinator that followed a fault of it.
    pub restarts: Vec<Restart>,
    /// Why workers were lost, with counts.
    pub lost: BTreeMap<String, usize>,
    /// Why attempts were void, with counts.
    pub aborts: BTreeMap<String, usize>,
    /// What went wrong that nobody did on purpose.
    pub complaints: Vec<String>,
    /// Every fault, with its times.
    pub facts: Vec<Fact>,
}

impl Scorecard {
    /// Whether every promise was kept.
    #[must_use]
    pub fn kept(&self) -> bool {
        self.promises.iter().all(|promise| promise.kept)
    }

    /// For a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        self.render(plain)
    }

    /// For a document.
    #[must_use]
    pub fn markdown(&self) -> String {
        self.render(markdown)
    }

    fn render(&self, table: fn(&[Vec<String>]) -> String) -> String {
        let mut text = format!("`{}`\n\n", self.command);
        let faults: usize = self.rows.iter().map(|row| row.done).sum();
        let _ = writeln!(
            text,
            "{faults} faults in {:.0} s, {} steps, {} restarts of the coordinator; from step to step {} ms in the median, {} \
             the greatest. Cables: {}.\n",
            self.seconds,
            self.steps,
            self.restarts.len(),
            ms(self.step_ms.median),
            ms(self.step_ms.max),
            self.network,
        );
        text += &table(&self.promise_table());
        text += "\n";
        text += &table(&self.fault_table());
        text += "\nMilliseconds. Noticed: from the fault to its line in the journal. Next step: from the fault to the next \
                 commit. Longest pause: the longest time without a commit while the fault lasted and until the commit after.\n\n";
        if self.alone.step.count > 0 {
            let _ = writeln!(
                text,
                "One worker killed at a time, all others whole, {} times: noticed after {} ms in the median, {} the greatest; the \
                 step in which it died took {} ms in the median and {} the greatest, {:.2} and {:.2} of the median step ({} ms).\n",
                self.alone.detection.count,
                ms(self.alone.detection.median),
                ms(self.alone.detection.max),
                ms(self.alone.struck.median),
                ms(self.alone.struck.max),
                self.alone.struck.median / self.alone.step.median,
                self.alone.struck.max / self.alone.step.median,
                ms(self.alone.step.median),
            );
        }
        if !self.restarts.is_empty() {
            text += &table(&self.restart_table());
            text += "\n";
        }
        for (what, reasons) in [("Workers lost", &self.lost), ("Attempts void", &self.aborts)] {
            if !reasons.is_empty() {
                text += &table(&reason_table(what, reasons));
                text += "\n";
            }
        }
        for complaint in &self.complaints {
            let _ = writeln!(text, "- {complaint}");
        }
        text
    }

    fn promise_table(&self) -> Vec<Vec<String>> {
        let mut table = vec![cells(["promise", "", "kept", "found"])];
        for p in &self.promises {
            table.push(cells([p.name, p.what, if p.kept { "yes" } else { "NO" }, &p.found]));
        }
        table
    }

    fn fault_table(&self) -> Vec<Vec<String>> {
        let heads =
            ["fault", "done", "noticed", "median", "p99", "next step", "p99", "longest pause", "p99", "max"];
        let mut table = vec![cells(heads)];
        for r in &self.rows {
            table.push(vec![
                r.fault.to_string(),
                r.done.to_string(),
                r.detection.count.to_string(),
                ms(r.detection.median),
                ms(r.detection.p99),
                ms(r.recovery.median),
                ms(r.recovery.p99),
                ms(r.pause.median),
                ms(r.pause.p99),
                ms(r.pause.max),
            ]);
        }
        table
    }

    fn restart_table(&self) -> Vec<Vec<String>> {
        let heads = [
            "coordinator started again",
            "times",
            "to the first new step, median",
            "p99",
            "steps computed again",
            "by the worst",
            "restarts without any",
        ];
        let mut table = vec![cells(heads)];
        for (what, survived) in
            [("a worker lived through it", true), ("none did, or all were told to stop", false)]
        {
            let of: Vec<&Restart> = self.restarts.iter().filter(|r| r.survived == survived).collect();
            let times = Quantiles::of(of.iter().filter_map(|r| Some(r.to_step_ms? / 1e3)));
            table.push(vec![
                what.to_owned(),
                of.len().to_string(),
                ms(times.median),
                ms(times.p99),
                of.iter().map(|r| r.recomputed).sum::<u64>().to_string(),
                of.iter().map(|r| r.recomputed).max().unwrap_or(0).to_string(),
                of.iter().filter(|r| r.recomputed == 0).count().to_string(),
            ]);
        }
        table
    }
}

fn reason_table(what: &str, reasons: &BTreeMap<String, usize>) -> Vec<Vec<String>> {
    let mut table = vec![cells([what, "times"])];
    let mut sorted: Vec<_> = reasons.iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    table.extend(sorted.into_iter().map(|(reason, count)| vec![reason.clone(), count.to_string()]));
    table
}

fn cells<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

fn ms(value: f64) -> String {
    match value {
        v if v.is_nan() => "-".into(),
        v if v < 10.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// Columns of even width; numbers stand to the right.
fn plain(table: &[Vec<String>]) -> String {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| table.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let number = |column: usize| {
        table.iter().skip(1).all(|row| row.get(column).is_some_and(|c| c == "-" || c.parse::<f64>().is_ok()))
    };
    let mut text = String::new();
    for row in table {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if number(column) {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn markdown(table: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (index, row) in table.iter().enumerate() {
        let row: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        let _ = writeln!(text, "| {} |", row.join(" | "));
        if index == 0 {
            let _ = writeln!(text, "|{}", " --- |".repeat(row.len()));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_even_and_numbers_stand_right() {
        let table = [cells(["a", "times"]), cells(["long", "7"]), cells(["b", "-"])];
        assert_eq!(plain(&table), "a     times\nlong      7\nb         -\n");
        assert_eq!(markdown(&table), "| a | times |\n| --- | --- |\n| long | 7 |\n| b | - |\n");
    }
}
