//! The Burn operation on Tally's kernels beside Burn's own, layer by layer, forward and
//! backward, and the reference network as a user's would be: `cargo bench -p tally-mnist --bench
//! convolution`. Prints processor time (of all threads), the median of interleaved rounds, in ms.
//!
//! `TALLY_SIMD` chooses the path, `TALLY_BENCH_THREADS` the threads (1 without it),
//! `TALLY_BENCH_ROUNDS` the rounds.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use burn::tensor::{Tensor, TensorData};
use burn_autodiff::Autodiff;
use burn_flex::{Flex, FlexDevice};
use rayon::{ThreadPool, ThreadPoolBuilder};
use rustix::time::{ClockId, clock_gettime};
use tally_mnist::data::PIXELS;
use tally_mnist::network::burn::BurnEngine;
use tally_mnist::network::burn::networks::Reference;
use tally_mnist::network::{DigitEngine, backend};
use tally_mnist::{LabelLoss, ModelSpec, Samples};
use tally_numerics::init;
use tally_numerics::state::State;
use tally_worker::burn::DeviceContext;
use tally_worker::burn::convolution::{Activation, ConvolutionBackend, stock};
use tally_worker::device::{BackendChoice, DeviceOptions};

type Tracked = Autodiff<Flex>;
type Convolve =
    fn(Tensor<Tracked, 4>, Tensor<Tracked, 4>, Tensor<Tracked, 1>, usize, Activation) -> Tensor<Tracked, 4>;

/// Inputs, outputs, side, padding.
const LAYERS: [(usize, usize, usize, usize); 14] = [
    (1, 32, 28, 1),
    (4, 32, 28, 1),
    (8, 8, 28, 1),
    (8, 32, 28, 1),
    (16, 16, 28, 1),
    (16, 32, 28, 1),
    (32, 64, 28, 1),
    (64, 128, 14, 1),
    (128, 256, 14, 1),
    (256, 512, 7, 0),
    (512, 1024, 5, 0),
    (1024, 10, 3, 0),
    (48, 48, 20, 1),
    (64, 64, 30, 0),
];

fn main() {
    let number = |name, otherwise| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise);
    let (threads, rounds) = (number("TALLY_BENCH_THREADS", 1), number("TALLY_BENCH_ROUNDS", 5));
    let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    println!(
        "{:32} {:>8} {:>9} {:>9} {:>6}",
        "layer, ReLU, forward and backward", "images", "Burn's", "ours", "ratio"
    );
    for (inputs, outputs, side, padding) in LAYERS {
        for images in [8, 64] {
            let layer = (images, inputs, outputs, side, padding);
            let mut times = [Vec::new(), Vec::new()];
            let ways: [Convolve; 2] = [stock, <Tracked as ConvolutionBackend>::convolution];
            for _ in 0..=rounds {
                for (times, way) in times.iter_mut().zip(ways) {
                    times.push(cpu_ms(|| step(&pool, layer, way)));
                }
            }
            let [burn, ours] = times.map(median);
            let name = format!("{inputs} → {outputs}, {side}×{side}, padding {padding}");
            println!("{name:32} {images:8} {burn:9.2} {ours:9.2} {:6.2}", ours / burn);
        }
    }
    whole(threads, rounds);
}

/// The gradient of 64 images by the reference network.
fn whole(threads: usize, rounds: usize) {
    let context = DeviceContext::cpu(threads).unwrap();
    let mut burn = BurnEngine::new(Reference, LabelLoss::default(), context).unwrap();
    let (backend, threads) = (BackendChoice::Cpu, Some(threads as u32));
    let device = DeviceOptions { backend, threads, ..DeviceOptions::default() };
    let mut own = backend::network(&ModelSpec::Reference, LabelLoss::default(), &device).unwrap();
    let pixels = (0..64 * PIXELS).map(|i| (i * 7919 % 251) as u8).collect();
    let samples = Samples::new((0..64).collect(), pixels, vec![3; 64], vec![4; 64]).unwrap();
    let mut times = [Vec::new(), Vec::new()];
    let engines: [&mut dyn DigitEngine; 2] = [&mut burn, own.as_mut()];
    let mut out = vec![0.0; engines[0].manifest().len()];
    for (times, engine) in times.iter_mut().zip(engines) {
        let parameters = init::parameters(engine.manifest(), 1);
        let state = State::new(parameters, engine.manifest(), 1);
        engine.load(state);
        for _ in 0..=rounds {
            times.push(cpu_ms(|| {
                engine.gradient(&samples, 1.0, &mut out, &mut |_| ()).unwrap();
            }));
        }
    }
    let [burn, own] = times.map(median);
    println!("reference network, 64 images: Burn engine with the operation {burn:.1}, own engine {own:.1}");
}

fn step(
    pool: &ThreadPool,
    (images, inputs, outputs, side, padding): (usize, usize, usize, usize, usize),
    convolve: Convolve,
) {
    let values = |shape: &[usize]| {
        let len: usize = shape.iter().product();
        let values: Vec<f32> = (0..len).map(|i| (i * 7919 % 1000) as f32 * 1e-3 - 0.5).collect();
        TensorData::new(values, shape.to_vec())
    };
    pool.install(|| {
        let device = FlexDevice;
        let x =
            Tensor::<Tracked, 4>::from_data(values(&[images, inputs, side, side]), &device).require_grad();
        let weights =
            Tensor::<Tracked, 4>::from_data(values(&[outputs, inputs, 3, 3]), &device).require_grad();
        let bias = Tensor::<Tracked, 1>::from_data(values(&[outputs]), &device).require_grad();
        let y = convolve(x.clone(), weights.clone(), bias, padding, Activation::Relu);
        let gradients = y.sum().backward();
        assert!(x.grad(&gradients).is_some() && weights.grad(&gradients).is_some());
    });
}

/// Milliseconds of processor time.
fn cpu_ms(work: impl FnOnce()) -> f64 {
    let now = || {
        let now = clock_gettime(ClockId::ProcessCPUTime);
        now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
    };
    let before = now();
    work();
    (now() - before) * 1e3
}

/// Of all rounds but the first, which warms up.
fn median(mut times: Vec<f64>) -> f64 {
    times.remove(0);
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
