//! A plan for people, and for programs.

use std::io::Write;

use serde_json::json;

use super::measured::Measured;
use super::{PlanOptions, Row};
use tally_capacity::advice::Limit;
use tally_capacity::{Cluster, Prediction};

/// One JSON object.
pub fn json(
    out: &mut impl Write,
    cluster: &Cluster,
    run: Option<&Measured>,
    rows: &[Row],
) -> anyhow::Result<()> {
    let plan = json!({
        "parameters": cluster.parameters,
        "gradient_bytes": cluster.gradient_bytes(),
        "wire_dtype": cluster.wire_dtype,
        "batch_size": cluster.batch_size,
        "microbatches": cluster.tree.microbatches(),
        "clipped": cluster.clipped,
        "sample_seconds": cluster.computing.sample,
        "cores": cluster.cores,
        "one_machine": cluster.one_machine,
        "per_machine": cluster.per_machine,
        "costs": cluster.costs,
        "run": run,
        "predictions": rows,
    });
    serde_json::to_writer(&mut *out, &plan)?;
    Ok(out.write_all(b"\n")?)
}

/// A table and what it comes to.
pub fn text(
    out: &mut impl Write,
    cluster: &Cluster,
    run: Option<&Measured>,
    rows: &[Row],
    options: &PlanOptions,
) -> anyhow::Result<()> {
    writeln!(
        out,
        "{} parameters, {} a gradient as {}; batch {} in {} microbatches, {} a sample",
        cluster.parameters,
        bytes(cluster.gradient_bytes()),
        cluster.wire_dtype,
        cluster.batch_size,
        cluster.tree.microbatches(),
        time(cluster.computing.sample)
    )?;
    if cluster.one_machine {
        writeln!(out, "all on one machine with {} cores, over sockets", cluster.cores)?;
    } else {
        let worker = options.worker_bandwidth.unwrap_or(options.bandwidth);
        writeln!(
            out,
            "coordinator: {} cores, {} each way; {}: {}; round trip {}",
            cluster.cores,
            rate(options.bandwidth.0),
            match cluster.per_machine {
                1 => "workers".into(),
                mates => format!("machines of {mates} workers"),
            },
            rate(worker.0),
            time(options.round_trip.0)
        )?;
    }
    if let Some(run) = run {
        writeln!(
            out,
            "from {}: {} workers, {} a step, {} a sample",
            run.run_dir,
            run.workers,
            time(run.step_seconds),
            time(run.sample_seconds)
        )?;
    }
    writeln!(
        out,
        "\n{:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9}  limit",
        "workers",
        "step",
        "sharded",
        "compute",
        "up",
        "reduce",
        "down",
        "update",
        "samples",
        "control",
        "effic.",
        "samples/s",
        "in",
        "out",
        "memory",
        "CPU"
    )?;
    for Row { prediction: p, limit, .. } in rows {
        let parts = &p.parts;
        let sharded = p.sharded_seconds.map_or("-".into(), time);
        write!(out, "{:>7} {:>9} {sharded:>9}", p.workers, time(p.step_seconds))?;
        for part in [
            parts.compute,
            parts.gradients_up,
            parts.reduce,
            parts.sum_down,
            parts.update,
            parts.samples,
            parts.control,
        ] {
            write!(out, " {:>9}", time(part))?;
        }
        writeln!(
            out,
            " {:>5.0}% {:>9} {:>9} {:>9} {:>9} {:>9}  {limit}",
            100.0 * p.efficiency,
            number(p.samples_per_second),
            format!("{}/s", bytes(p.bytes_in / p.step_seconds)),
            format!("{}/s", bytes(p.bytes_out / p.step_seconds)),
            bytes(p.memory.total() as f64),
            time(p.cpu_seconds)
        )?;
    }
    writeln!(
        out,
        "\nThe columns compute to control add up to the step; work beside something longer counts as 0. In, out, memory and\n\
         CPU (core-seconds for a step) are the coordinator's. All columns but `sharded` are for --reduce star; `sharded` is the\n\
         time of a step in which workers add up. --reduce auto chooses the faster."
    )?;
    verdict(out, rows)
}

/// Where the limit is, and what to do.
fn verdict(out: &mut impl Write, rows: &[Row]) -> anyhow::Result<()> {
    if let Some(first) = rows.iter().find(|row| row.limit != Limit::Computing) {
        writeln!(out, "From {} on, the limit is {}.", workers_of(first.prediction.workers), first.limit)?;
    } else {
        writeln!(out, "Computing is the limit for all of these.")?;
    }
    let rate = |row: &&Row| row.prediction.samples_per_second;
    let best = rows.iter().max_by(|a, b| rate(a).total_cmp(&rate(b)));
    let Some(best) = best else { return Ok(()) };
    // The fewest that come to nearly as much.
    let enough = rows.iter().find(|row| rate(row) >= 0.95 * rate(&best)).unwrap_or(best);
    let Prediction { workers, samples_per_second, .. } = enough.prediction;
    if rows.len() > 1 {
        writeln!(
            out,
            "{}: {} samples/s, at least 95 % of the most in the table.",
            workers_of(workers),
            number(samples_per_second)
        )?;
    }
    let sharded = rows.iter().filter_map(|Row { prediction: p, .. }| {
        Some((p.workers, p.samples_per_second * p.step_seconds / p.sharded_seconds?))
    });
    if let Some((workers, rate)) = sharded.max_by(|a, b| a.1.total_cmp(&b.1))
        && rate > samples_per_second
    {
        writeln!(out, "Sharded, {}: {} samples/s.", workers_of(workers), number(rate))?;
    }
    let Some(last) = rows.last() else { return Ok(()) };
    if !last.changes.is_empty() {
        writeln!(out, "\nWith {}, what would help:", workers_of(last.prediction.workers))?;
    }
    for change in &last.changes {
        writeln!(out, "  {:.2} times the samples/s: {}", change.times, change.what)?;
    }
    Ok(())
}

/// Three digits of a time.
fn time(seconds: f64) -> String {
    match seconds {
        0.0 => "0".into(),
        s if s < 0.995e-3 => format!("{} µs", digits(s * 1e6)),
        s if s < 0.995 => format!("{} ms", digits(s * 1e3)),
        s => format!("{} s", digits(s)),
    }
}

fn bytes(bytes: f64) -> String {
    match bytes {
        b if b < 0.995e6 => format!("{} kB", digits(b / 1e3)),
        b if b < 0.995e9 => format!("{} MB", digits(b / 1e6)),
        b => format!("{} GB", digits(b / 1e9)),
    }
}

fn rate(bits: f64) -> String {
    match bits {
        b if b < 1e9 => format!("{} Mbit/s", digits(b / 1e6)),
        b => format!("{} Gbit/s", digits(b / 1e9)),
    }
}

fn workers_of(count: usize) -> String {
    format!("{count} worker{}", if count == 1 { "" } else { "s" })
}

fn number(value: f64) -> String {
    if value < 100.0 { digits(value) } else { format!("{value:.0}") }
}

/// About three digits.
fn digits(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}
