//! The convolutions of the reference network, layer by layer: `cargo bench -p tally-kernels`.
//! One item is one floating-point operation of the direct convolution (a multiplication or
//! an addition), so `Gitem/s` are GFLOP/s, for Winograd's too.
//!
//! `TALLY_SIMD` chooses the path, `TALLY_BENCH_THREADS` the threads (1 without it).

#![allow(missing_docs, clippy::unwrap_used)]

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tally_kernels::pack::{self, OihwWeights};
use tally_kernels::simd::Kernel;
use tally_kernels::simd_vec::SimdVec;
use tally_kernels::tile::{Init, Segment, Tile, TileEpilogue};
use tally_kernels::winograd::batched::{self, Direction, Job};
use tally_kernels::{BLOCK, Epilogue, NodeParts, Part, Planes, Simd, TAPS, direct, winograd};
use tally_numerics::wire::WireDtype;

fn main() {
    divan::main();
}

/// Inputs, outputs, side of the input, padding.
type Shape = (usize, usize, usize, usize);
const LAYERS: [(&str, Shape); 5] = [
    ("conv2", (32, 64, 28, 1)),
    ("conv3", (64, 128, 14, 1)),
    ("conv4", (128, 256, 14, 1)),
    ("conv5", (256, 512, 7, 0)),
    ("conv6", (512, 1024, 5, 0)),
];

/// Every layer with the batches that a pass has: 4, 8 and 16 images.
fn cases() -> impl Iterator<Item = Case> {
    LAYERS.into_iter().flat_map(|(name, shape)| [4, 8, 16].map(|images| Case { name, shape, images }))
}

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    shape: Shape,
    images: usize,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} × {}", self.name, self.images)
    }
}

impl Case {
    fn planes(self) -> (Planes, Planes) {
        let (inputs, outputs, side, padding) = self.shape;
        (Planes::of(inputs, side, self.images), Planes::of(outputs, side + 2 * padding - 2, self.images))
    }
    /// Products that reach inside the image, twice.
    fn operations(self) -> ItemsCount {
        let (inputs, outputs, side, padding) = self.shape;
        let out = side + 2 * padding - 2;
        let along = (0..out).map(|y| (3.min(side + padding - y)) - padding.saturating_sub(y)).sum::<usize>();
        ItemsCount::new(2 * along * along * inputs * outputs * self.images)
    }
}

fn threads() -> usize {
    std::env::var("TALLY_BENCH_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

fn pool() -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads()).build().unwrap()
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1000) as f32 * 1e-3 - 0.5).collect()
}

/// The shared face of the two ways to convolve.
type Convolve = fn(Simd, &[f32], Planes, &[f32], usize, Epilogue<'_>, &mut [f32], Planes);

fn forward(bencher: Bencher<'_, '_>, case: Case, block: usize, convolve: Convolve) {
    let (simd, pool, (from, to)) = (Simd::chosen().unwrap(), pool(), case.planes());
    let (x, bias) = (values(from.len()), values(to.blocks * BLOCK));
    let weights = values(to.blocks * from.blocks * block);
    let mut y = vec![0.0; to.len()];
    bencher.counter(case.operations()).bench_local(|| {
        pool.install(|| {
            let epilogue = Epilogue::BiasRelu(&bias);
            convolve(simd, black_box(&x), from, &weights, case.shape.3, epilogue, &mut y, to);
        });
    });
}

fn input_grad(bencher: Bencher<'_, '_>, case: Case, block: usize, convolve: Convolve) {
    let (simd, pool, (from, to)) = (Simd::chosen().unwrap(), pool(), case.planes());
    let (dy, of) = (values(to.len()), values(from.len()));
    let weights = values(to.blocks * from.blocks * block);
    let mut dx = vec![0.0; from.len()];
    bencher.counter(case.operations()).bench_local(|| {
        pool.install(|| {
            let epilogue = Epilogue::ReluGradient(&of);
            convolve(simd, black_box(&dy), to, &weights, 2 - case.shape.3, epilogue, &mut dx, from);
        });
    });
}

type WeightGrad = fn(Simd, &NodeParts<Part<'_>>, usize, usize, &mut [f32]);

fn weight_grad(bencher: Bencher<'_, '_>, case: Case, gradient: WeightGrad) {
    let (simd, pool, (from, to)) = (Simd::chosen().unwrap(), pool(), case.planes());
    let (dy, x) = (values(to.len()), values(from.len()));
    let mut dw = vec![0.0; case.shape.0 * case.shape.1 * TAPS];
    let parts = vec![vec![Part { dy: &dy, to, x: &x, from }]];
    let microbatches = NodeParts { parts, rounding: WireDtype::F32 };
    bencher.counter(case.operations()).bench_local(|| {
        pool.install(|| gradient(simd, black_box(&microbatches), case.shape.3, case.shape.0, &mut dw));
    });
}

#[divan::bench(args = cases())]
fn direct_forward(bencher: Bencher<'_, '_>, case: Case) {
    forward(bencher, case, pack::WEIGHT_BLOCK, direct::convolve);
}

#[divan::bench(args = cases())]
fn direct_input_grad(bencher: Bencher<'_, '_>, case: Case) {
    input_grad(bencher, case, pack::WEIGHT_BLOCK, direct::convolve);
}

#[divan::bench(args = cases())]
fn direct_weight_grad(bencher: Bencher<'_, '_>, case: Case) {
    weight_grad(bencher, case, direct::weight_grad);
}

#[divan::bench(args = cases())]
fn winograd_forward(bencher: Bencher<'_, '_>, case: Case) {
    forward(bencher, case, winograd::transformed_len(1), winograd::convolve);
}

#[divan::bench(args = cases())]
fn winograd_input_grad(bencher: Bencher<'_, '_>, case: Case) {
    input_grad(bencher, case, winograd::transformed_len(1), winograd::convolve);
}

#[divan::bench(args = cases())]
fn winograd_weight_grad(bencher: Bencher<'_, '_>, case: Case) {
    weight_grad(bencher, case, winograd::weight_grad);
}

/// A batch of 8 alone, and eight of them.
fn batched_cases() -> impl Iterator<Item = (Case, usize)> {
    cases().filter(|case| case.images == 8).flat_map(|case| [(case, 1), (case, 8)])
}

fn batched(bencher: Bencher<'_, '_>, (case, batches): (Case, usize), direction: Direction) {
    let (simd, pool, (from, to)) = (Simd::chosen().unwrap(), pool(), case.planes());
    let (from, to) = if direction == Direction::Forward { (from, to) } else { (to, from) };
    let (x, bias) = (values(from.len()), values(to.blocks * BLOCK));
    let of = values(to.len());
    let weights = values(case.shape.0 * case.shape.1 * TAPS);
    let mut outs = vec![vec![0.0; to.len()]; batches];
    let epilogue =
        if direction == Direction::Forward { Epilogue::BiasRelu(&bias) } else { Epilogue::ReluGradient(&of) };
    bencher.counter(Case { images: 8 * batches, ..case }.operations()).bench_local(|| {
        let batches = outs.iter_mut().map(|out| Job { x: &x, from, epilogue, out, to }).collect();
        pool.install(|| {
            let (inputs, outputs, _, padding) = case.shape;
            batched::convolve(simd, direction, batches, OihwWeights::new(&weights, outputs, inputs), padding);
        });
    });
}

#[divan::bench(args = batched_cases().map(|(case, n)| format!("{case} × {n}")).collect::<Vec<_>>())]
fn batched_forward(bencher: Bencher<'_, '_>, name: &str) {
    batched(bencher, named(name), Direction::Forward);
}

#[divan::bench(args = batched_cases().map(|(case, n)| format!("{case} × {n}")).collect::<Vec<_>>())]
fn batched_input_grad(bencher: Bencher<'_, '_>, name: &str) {
    batched(bencher, named(name), Direction::InputGrad);
}

fn named(name: &str) -> (Case, usize) {
    batched_cases().find(|(case, n)| format!("{case} × {n}") == name).unwrap()
}

/// The register tile on operands that the first cache holds: what the core can do at most.
#[divan::bench]
fn tile_in_the_first_cache(bencher: Bencher<'_, '_>) {
    struct Repeat<'a>(&'a [f32], &'a [f32], &'a mut [f32]);
    impl Kernel for Repeat<'_> {
        type Output = ();
        #[inline(always)]
        fn run<L: SimdVec>(self, lanes: L) {
            lanes.tile(Tile::<BLOCK, 1> {
                a: self.0,
                b: self.1,
                segments: &[Segment { a: 0, b: 0 }; 1000],
                steps: BLOCK,
                out: self.2,
                init: Init::Zero,
                epilogue: TileEpilogue::Keep,
            });
        }
    }
    let (simd, a, b, mut out) =
        (Simd::chosen().unwrap(), values(12 * BLOCK), values(BLOCK * BLOCK), values(12 * BLOCK));
    bencher
        .counter(ItemsCount::new(2 * 12 * BLOCK * BLOCK * 1000))
        .bench_local(|| simd.run(Repeat(black_box(&a), &b, &mut out)));
}

#[divan::bench]
fn pack_conv6(bencher: Bencher<'_, '_>) {
    let (simd, pool, weights) = (Simd::chosen().unwrap(), pool(), values(1024 * 512 * TAPS));
    let (mut forward, mut backward) = (weights.clone(), weights.clone());
    bencher.bench_local(|| {
        pool.install(|| {
            let weights = OihwWeights::new(black_box(&weights), 1024, 512);
            pack::forward(simd, weights, &mut forward);
            pack::backward(simd, weights, &mut backward);
        });
    });
}
