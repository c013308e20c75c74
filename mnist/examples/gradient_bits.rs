//! Prints the instructions that an engine chooses on this processor and the digest of a whole gradient
//! of the reference network, of a microbatch of one image: the same on every processor (**SUM-1**).
//! `scripts/older-cpus.sh` runs it on emulated ones.

#![allow(missing_docs, clippy::print_stdout)]

use anyhow::Context;
use rayon::ThreadPoolBuilder;
use tally_kernels::Simd;
use tally_mnist::data::PIXELS;
use tally_mnist::network::DigitEngine as _;
use tally_mnist::network::cpu::CpuEngine;
use tally_mnist::{LabelLoss, Samples};
use tally_numerics::state::State;
use tally_numerics::{digest, init};
use tally_worker::engine::Replica as _;

fn main() -> anyhow::Result<()> {
    let simd = Simd::chosen().map_err(anyhow::Error::msg)?;
    let pool = ThreadPoolBuilder::new().num_threads(2).build()?;
    let mut engine = CpuEngine::new(LabelLoss::default(), pool, simd, String::new());
    let parameters = init::parameters(engine.manifest(), 1);
    let mut gradient = vec![0.0; parameters.len()];
    let state = State::new(parameters, engine.manifest(), 1);
    engine.load(state);
    let pixels =
        (0..PIXELS).map(|place| if place % 7 < 3 { (place * 7919 % 251) as u8 } else { 0 }).collect();
    let samples = Samples::new(vec![0], pixels, vec![3], vec![4]).context("a sample")?;
    engine.gradient(&samples, 1.0, &mut gradient, &mut |_| ())?;
    println!("{simd} {}", digest::of(0, &gradient, &[&gradient]));
    Ok(())
}
