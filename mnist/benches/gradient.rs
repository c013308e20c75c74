//! The reference network's gradient on a CPU for microbatches of several sizes, and a whole step
//! of 64 images: `cargo bench -p tally-mnist --bench gradient`.
//!
//! Prints wall time and processor time (of all threads) of the quickest and of the median
//! round; on a busy machine the processor time is the one to look at. `TALLY_SIMD` chooses
//! the path, `TALLY_BENCH_THREADS` the threads (1 without it), `TALLY_BENCH_ROUNDS` the rounds.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use tally_mnist::data::PIXELS;
use tally_mnist::network::{DigitEngine, backend};
use tally_mnist::{LabelLoss, ModelSpec, Samples};
use tally_numerics::init;
use tally_numerics::state::State;
use tally_numerics::update::Update;
use tally_numerics::wire::WireDtype;
use tally_worker::device::{BackendChoice, DeviceOptions};

fn main() {
    let number = |name, otherwise| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise);
    let (threads, rounds) = (number("TALLY_BENCH_THREADS", 1), number("TALLY_BENCH_ROUNDS", 7));
    let (backend, threads) = (BackendChoice::Cpu, Some(threads as u32));
    let device = DeviceOptions { backend, threads, ..DeviceOptions::default() };
    let mut engine = backend::network(&ModelSpec::Reference, LabelLoss::default(), &device).unwrap();
    let parameters = init::parameters(engine.manifest(), 1);
    let mut out = vec![0.0; parameters.len()];
    let state = State::new(parameters, engine.manifest(), 1);
    engine.load(state);
    println!("{}, {rounds} rounds; ms", engine.device_name());
    println!(
        "{:36} {:>9} {:>9} {:>9} {:>9} {:>10}",
        "", "wall min", "median", "cpu min", "median", "images/cpu s"
    );
    for images in [4, 8, 16, 32, 64] {
        let samples = samples(0, images);
        measure(&format!("gradient of a microbatch of {images}"), rounds, images, || {
            engine.gradient(&samples, 1.0, &mut out, &mut |_| ()).unwrap();
        });
    }
    measure("update", rounds, 64, || update(engine.as_mut(), &out));
    let one = samples(0, 1);
    for (what, stale) in [("gradient of a microbatch of 1", false), ("the same and packing", true)] {
        measure(what, rounds, 1, || {
            if stale {
                engine.commit();
            }
            engine.gradient(&one, 1.0, &mut out, &mut |_| ()).unwrap();
        });
    }
    for microbatches in [8, 1] {
        let samples: Vec<Samples> =
            (0..microbatches).map(|i| samples(i * 64 / microbatches, 64 / microbatches)).collect();
        let samples: Vec<&Samples> = samples.iter().collect();
        measure(&format!("step of 64 in {microbatches} microbatches, at once"), rounds, 64, || {
            engine.node_gradient(&samples, 1.0 / 64.0, WireDtype::F32, &mut out, &mut |_| ()).unwrap();
            update(engine.as_mut(), &out);
        });
    }
}

fn update(engine: &mut dyn DigitEngine, gradient: &[f32]) {
    engine.apply(&Update::sgd(1e-6, 0.9, 1.0), 0, gradient);
    engine.finish_update().unwrap();
    engine.commit();
}

fn measure(what: &str, rounds: usize, images: usize, mut work: impl FnMut()) {
    let cpu = || {
        let now = clock_gettime(ClockId::ProcessCPUTime);
        now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
    };
    work();
    let (mut walls, mut cpus) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (wall, before) = (Instant::now(), cpu());
        work();
        walls.push(wall.elapsed().as_secs_f64() * 1e3);
        cpus.push((cpu() - before) * 1e3);
    }
    walls.sort_by(f64::total_cmp);
    cpus.sort_by(f64::total_cmp);
    let middle = rounds / 2;
    println!(
        "{what:36} {:9.1} {:9.1} {:9.1} {:9.1} {:10.1}",
        walls[0],
        walls[middle],
        cpus[0],
        cpus[middle],
        images as f64 / cpus[middle] * 1e3
    );
}

fn samples(first: usize, count: usize) -> Samples {
    let pixels = (first * PIXELS..(first + count) * PIXELS).map(|i| (i * 7919 % 251) as u8).collect();
    let ids = (first as u32..(first + count) as u32).collect();
    Samples::new(ids, pixels, vec![3; count], vec![4; count]).unwrap()
}
