//! `bench`: what Tally costs, a step of it beside a step of plain Burn on the same threads.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use burn::tensor::backend::Backend as _;
use burn_flex::FlexDevice;
use clap::Args;
use tally_cli::logging::LogOptions;
use tally_coordinator::dataset::microbatch;
use tally_numerics::order::Schedule;
use tally_run::record::Record;
use tally_worker::burn::thread_pool;

use super::job::Split;
use super::options::ProgramOptions;
use super::program::{BurnProgram, Cpu, Program};
use crate::options::SEED;

/// Steps at the beginning that are not counted: memory is taken and caches are filled.
const WARM_UP: usize = 3;

/// Options of `bench`.
#[derive(Debug, Args)]
pub struct BenchOptions<A: Args> {
    /// Steps that are timed each time
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(4..=100_000))]
    pub timed_steps: u32,

    /// How often both are timed, in turns
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// Threads of the computation
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: u32,

    /// Samples of a step [default: the program's]
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,

    /// Microbatches of Tally's step
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub microbatches: u32,

    /// Only time plain Burn, and print its seconds: for a process of its own
    #[arg(long, hide = true)]
    pub plain: bool,

    /// The program's options.
    #[command(flatten)]
    pub program: ProgramOptions<A>,

    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,
}

/// Times a step of plain Burn and of one worker of Tally in turns, and writes medians and peaks of memory to `out`.
///
/// # Errors
/// If one of them fails.
pub fn run<P: Program>(options: &BenchOptions<P::Args>, out: &mut impl Write) -> anyhow::Result<()> {
    options.log.init();
    if options.plain {
        for seconds in plain::<P>(options)? {
            writeln!(out, "{seconds}")?;
        }
        return Ok(());
    }
    let defaults = BurnProgram::<P>::on_host(&options.program.args)?.defaults();
    let batch = options.batch_size.unwrap_or(defaults.batch_size);
    writeln!(
        out,
        "{}: batch {batch}, {} microbatch(es) of Tally's, {} thread(s), medians of {} steps in each of {} rounds",
        P::NAME,
        options.microbatches,
        options.threads,
        options.timed_steps,
        options.rounds
    )?;
    let mut ratios = Vec::new();
    for _ in 0..options.rounds {
        let (burn, burn_memory) = measured(own_command("bench", &["--plain"])?, |text| {
            text.lines().map(|line| line.trim().parse().context("a time of plain Burn")).collect()
        })?;
        let directory = std::env::temp_dir().join(format!("tally-bench-{}", std::process::id()));
        let result = tally_step::<P>(options, batch, &directory);
        // A run that could not be made has left nothing.
        let _ = std::fs::remove_dir_all(&directory);
        let (tally, tally_memory) = result?;
        ratios.push(tally / burn);
        writeln!(
            out,
            "plain Burn {:8.2} ms {:6.0} MiB   Tally, one local worker {:8.2} ms {:6.0} MiB   ratio {:.3}",
            1e3 * burn,
            burn_memory,
            1e3 * tally,
            tally_memory,
            tally / burn
        )?;
        out.flush()?;
    }
    writeln!(out, "median ratio {:.3}", median(ratios))?;
    Ok(())
}

/// This program with another command, and this one's options.
fn own_command(name: &str, more: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("this program's own file")?);
    command.arg(name).args(std::env::args_os().skip(2)).args(more);
    Ok(command)
}

/// The median of the seconds that a process tells, and its peak of memory in MiB.
fn measured(
    mut command: Command,
    times: impl FnOnce(&str) -> anyhow::Result<Vec<f64>>,
) -> anyhow::Result<(f64, f64)> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0.0f64;
    while child.try_wait()?.is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        peak = peak.max(kib.unwrap_or(0.0) / 1024.0);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let output = child.wait_with_output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", error.lines().last().unwrap_or("it ended without a word"));
    Ok((median(times(&String::from_utf8_lossy(&output.stdout))?), peak))
}

/// A step of a run with one local worker.
fn tally_step<P: Program>(
    options: &BenchOptions<P::Args>,
    batch: usize,
    directory: &Path,
) -> anyhow::Result<(f64, f64)> {
    let samples = BurnProgram::<P>::on_host(&options.program.args)?.samples(Split::Train, true)?.len();
    let steps = options.timed_steps as usize + WARM_UP;
    let epochs = steps.div_ceil(samples.div_ceil(batch));
    let mut command = Command::new(std::env::current_exe().context("this program's own file")?);
    command.args(["local", "--workers", "1", "--backend", "cpu", "--listen", "127.0.0.1:0"]);
    command.args(["--http-listen", "127.0.0.1:0", "--no-timeline", "--run-dir"]).arg(directory);
    command.args(["--threads", &options.threads.to_string(), "--epochs", &epochs.to_string()]);
    command.args(["--batch-size", &batch.to_string(), "--microbatches", &options.microbatches.to_string()]);
    command.args(options.program.command_line());
    measured(command, |_| {
        let steps = Record::read(directory)?.steps;
        Ok(steps.iter().skip(WARM_UP).take(options.timed_steps as usize).map(|step| step.seconds).collect())
    })
}

/// Seconds of each step of Burn's own loop: batch, step, optimizer.
fn plain<P: Program>(options: &BenchOptions<P::Args>) -> anyhow::Result<Vec<f64>> {
    let (pool, _) = thread_pool(options.threads as usize)?;
    pool.install(|| {
        Cpu::seed(&FlexDevice, SEED);
        let job = BurnProgram::<P>::on_host(&options.program.args)?;
        let train = job.samples(Split::Train, false)?;
        let batch = options.batch_size.unwrap_or(job.defaults().batch_size);
        let schedule = Schedule::new(SEED, train.len(), batch)?;
        let order = schedule.order(1);
        let mut ids = order.into_iter().cycle();
        let steps = options.timed_steps as usize + WARM_UP;
        let batches = (0..steps).map(|_| {
            let ids: Vec<u32> = ids.by_ref().take(batch.min(train.len())).collect();
            microbatch(&*train, &ids)
        });
        let batches = batches.collect::<anyhow::Result<Vec<_>>>()?;
        let mut seconds = job.plain_steps(&batches, &FlexDevice)?;
        seconds.drain(..WARM_UP);
        Ok(seconds)
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
