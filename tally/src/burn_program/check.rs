//! `check`: computes one microbatch in several ways that must not differ, and says which promise a difference breaks.

use std::io::Write;
use std::process::Command;
use std::sync::{Arc, PoisonError};

use anyhow::{Context as _, bail, ensure};
use burn::tensor::backend::Backend as _;
use burn_flex::FlexDevice;
use clap::Args;
use tally_cli::logging::LogOptions;
use tally_coordinator::dataset::{Dataset, microbatch};
use tally_numerics::digest;
use tally_numerics::state::State;
use tally_proto::convert::Microbatch;
use tally_worker::device::{BackendChoice, DeviceOptions};
use tally_worker::engine::Engine;
use tally_worker::program::WorkerProgram;

use super::engine::GENERATOR;
use super::job::Split;
use super::options::ProgramOptions;
use super::program::{BurnProgram, Cpu, Program};
use crate::options::SEED;

/// How far the mean loss of a microbatch may be from the mean of its samples' losses, relatively: float32 adds in
/// another order there.
const TOLERANCE: f64 = 1e-3;
/// Samples that must survive serialisation, spread over the data.
const ITEMS: usize = 64;

/// Options of `check`.
#[derive(Debug, Args)]
pub struct CheckOptions<A: Args> {
    /// Samples of the microbatch that is computed
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=4096))]
    pub microbatch: u32,

    /// Only print the digest of the first microbatch: for the comparison with a second process
    #[arg(long, hide = true)]
    pub digest: bool,

    /// The program's options.
    #[command(flatten)]
    pub program: ProgramOptions<A>,

    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,
}

/// What a microbatch gave: everything that must not differ.
#[derive(Debug, PartialEq)]
struct Answer {
    gradient: u64,
    loss: f64,
    values: Vec<f32>,
}

/// The program on one number of threads.
struct Subject {
    engine: Box<dyn Engine>,
    train: Arc<dyn Dataset>,
}

impl Subject {
    fn new<P: Program>(options: &CheckOptions<P::Args>, threads: u32) -> anyhow::Result<Self> {
        let program = BurnProgram::<P>::default();
        let arguments = BurnProgram::<P>::told(&options.program, SEED)?.to_string();
        let device =
            DeviceOptions { backend: BackendChoice::Cpu, threads: Some(threads), ..DeviceOptions::default() };
        let mut engine = program.engine(&arguments, &device)?;
        let generator = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
        Cpu::seed(&FlexDevice, SEED);
        let job = BurnProgram::<P>::on_host(&options.program.args)?;
        let layout = job.layout().map_err(anyhow::Error::msg)?;
        let values = job.values(&layout).map_err(anyhow::Error::msg)?;
        drop(generator);
        let state = State::new(values, engine.manifest(), 1);
        engine.load(state);
        Ok(Self { engine, train: job.samples(Split::Train, options.program.data().is_local())? })
    }

    fn samples(&self, first: usize, count: usize) -> anyhow::Result<Microbatch> {
        let len = self.train.len();
        let ids: Vec<u32> = (first..first + count).map(|id| (id % len) as u32).collect();
        Ok(microbatch(&*self.train, &ids)?.at(1, first as u32))
    }

    fn compute(&mut self, samples: &Microbatch) -> anyhow::Result<Answer> {
        let mut values = vec![0.0; self.engine.manifest().trained_len()];
        let losses = self.engine.gradient(samples, 1.0 / samples.len() as f32, &mut values, &mut |_| ())?;
        Ok(Answer {
            gradient: digest::of(0, &values, &[]).0,
            loss: losses.0[0] / losses.0.get(1).copied().unwrap_or(samples.len() as f64),
            values,
        })
    }
}

/// Checks a program, and writes what was found to `out`.
///
/// # Errors
/// If anything differs that must not, with how many.
pub fn run<P: Program>(options: &CheckOptions<P::Args>, out: &mut impl Write) -> anyhow::Result<()> {
    options.log.init();
    let count = options.microbatch as usize;
    let mut subject = Subject::new::<P>(options, 1)?;
    let samples = subject.samples(0, count)?;
    let first = subject.compute(&samples)?;
    if options.digest {
        writeln!(out, "{:016x} {:016x}", first.gradient, first.loss.to_bits())?;
        return Ok(());
    }
    let mut found = Findings { out, failed: 0 };
    found.say(
        "items survive serialisation",
        items::<P>(options),
        "a field that serde skips; a float as text",
    )?;
    found.say(
        "the data is the same when it is opened again",
        reopened::<P>(options),
        "`rand::rng()`, the order of a HashMap or of a directory's files while the data is read",
    )?;
    found.say(
        "a microbatch has the same gradient when it is computed again",
        same(&first, &subject.compute(&samples)?),
        "`rand::rng()` or the order of a HashMap in the batcher or the model; a state that the model keeps",
    )?;
    let other = subject.samples(count, count)?;
    subject.compute(&other)?;
    found.say(
        "… and after another one",
        same(&first, &subject.compute(&samples)?),
        "a state that the model or the batcher keeps",
    )?;
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8)) as u32;
    let mut threaded = Subject::new::<P>(options, threads)?;
    found.say(
        &format!("… and on {threads} threads"),
        same(&first, &threaded.compute(&samples)?),
        "a full `sum()` or `mean()` over millions of elements, which Burn's CPU backend adds up by threads",
    )?;
    found.say(
        "… and in another process",
        elsewhere(&first),
        "the order of a HashMap, `rand::rng()`, the time or an address in the data, the batcher or the model",
    )?;
    if has_buffers(&subject) {
        writeln!(
            found.out,
            "note  the model keeps running statistics (BatchNorm): each microbatch normalises by itself, so the result depends \
             on --batch-size and --microbatches, though not on the number of workers"
        )?;
    } else {
        found.say(
            "the loss is the mean over the samples, each by itself",
            alone(&mut subject, &samples, first.loss),
            "a loss that is a sum, or that depends on the other samples of a batch (contrastive losses): it then depends on \
             --microbatches as well, though not on the number of workers",
        )?;
    }
    let unused = without_gradient(&subject, &first);
    if !unused.is_empty() {
        writeln!(
            found.out,
            "note  {} of the trained tensors have no gradient here: {}; they travel with every step, so freeze them with \
             `no_grad()` if they are not to be trained",
            unused.len(),
            unused.join(", ")
        )?;
    }
    match found.failed {
        0 => Ok(()),
        1 => bail!("1 check failed"),
        failed => bail!("{failed} checks failed"),
    }
}

struct Findings<'a, W> {
    out: &'a mut W,
    failed: usize,
}

impl<W: Write> Findings<'_, W> {
    /// A line for a check; if it failed, with what usually causes that.
    fn say(&mut self, what: &str, result: anyhow::Result<()>, cause: &str) -> anyhow::Result<()> {
        match result {
            Ok(()) => writeln!(self.out, "ok    {what}")?,
            Err(error) => {
                self.failed += 1;
                writeln!(self.out, "FAIL  {what}: {error:#}\n      usual causes: {cause}")?;
            }
        }
        Ok(())
    }
}

/// Some ids of a data set, the first and the last among them.
fn spread(len: usize) -> impl Iterator<Item = u32> {
    let count = len.min(ITEMS);
    (0..count).map(move |index| if count == 1 { 0 } else { (index * (len - 1) / (count - 1)) as u32 })
}

fn items<P: Program>(options: &CheckOptions<P::Args>) -> anyhow::Result<()> {
    let job = BurnProgram::<P>::on_host(&options.program.args)?;
    for split in [Split::Train, Split::Test] {
        let len = job.samples(split, true)?.len();
        spread(len).try_for_each(|id| job.check_item(split, id))?;
    }
    Ok(())
}

fn reopened<P: Program>(options: &CheckOptions<P::Args>) -> anyhow::Result<()> {
    let prints = || -> anyhow::Result<[String; 2]> {
        let job = BurnProgram::<P>::on_host(&options.program.args)?;
        Ok([job.fingerprint(Split::Train)?, job.fingerprint(Split::Test)?])
    };
    for (name, [once, again]) in ["training", "test"].iter().zip(transposed(prints()?, prints()?)) {
        ensure!(once == again, "the {name} samples have the fingerprints {once} and {again}");
    }
    Ok(())
}

fn transposed([a, b]: [String; 2], [c, d]: [String; 2]) -> [[String; 2]; 2] {
    [[a, c], [b, d]]
}

fn same(first: &Answer, again: &Answer) -> anyhow::Result<()> {
    let differing =
        first.values.iter().zip(&again.values).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    ensure!(
        differing == 0,
        "{differing} of {} elements of the gradient differ; the same bits for any number of workers (SUM-1) and after a \
         takeover need them equal",
        first.values.len()
    );
    ensure!(
        first.loss.to_bits() == again.loss.to_bits(),
        "the loss was {} and is {}",
        first.loss,
        again.loss
    );
    Ok(())
}

/// The same microbatch in a process of its own.
fn elsewhere(first: &Answer) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("this program's own file")?;
    let output = Command::new(program).args(std::env::args_os().skip(1)).arg("--digest").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "it ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let wanted = format!("{:016x} {:016x}", first.gradient, first.loss.to_bits());
    ensure!(text.trim() == wanted, "digests of gradient and loss are {}, and were {wanted}", text.trim());
    Ok(())
}

/// Whether the mean loss of the microbatch is that of its samples.
fn alone(subject: &mut Subject, samples: &Microbatch, mean: f64) -> anyhow::Result<()> {
    let mut sum = 0.0;
    for &id in samples.ids() {
        let one = microbatch(&*subject.train, &[id])?.at(samples.place().0, samples.place().1);
        sum += subject.compute(&one)?.loss;
    }
    let each = sum / samples.len() as f64;
    ensure!(
        (each - mean).abs() <= TOLERANCE * mean.abs().max(TOLERANCE),
        "together they have {mean}, and each by itself {each} on average"
    );
    Ok(())
}

/// Whether the model has running statistics.
fn has_buffers(subject: &Subject) -> bool {
    subject.engine.manifest().tensors().iter().any(|tensor| tensor.buffer)
}

/// The names of tensors whose gradient is zero throughout.
fn without_gradient(subject: &Subject, answer: &Answer) -> Vec<String> {
    let manifest = subject.engine.manifest();
    let none = |index: &usize| answer.values[manifest.range(*index)].iter().all(|&value| value == 0.0);
    let is_trained = |index: &usize| {
        let tensor = &manifest.tensors()[*index];
        !tensor.constant && !tensor.buffer
    };
    let trained = (0..manifest.tensors().len()).filter(is_trained);
    trained.filter(none).map(|index| manifest.tensors()[index].name.clone()).collect()
}
