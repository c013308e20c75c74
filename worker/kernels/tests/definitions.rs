//! The kernels against their definitions in double, and against each other bit by bit.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use proptest::prelude::*;
use rayon::ThreadPoolBuilder;
use tally_kernels::first::{self, Bordered};
use tally_kernels::pack::{self, OihwWeights};
use tally_kernels::winograd::batched::{self, Direction};
use tally_kernels::{BLOCK, Epilogue, NodeParts, Part, Planes, Simd, TAPS, direct, pool, winograd};
use tally_numerics::wire::WireDtype;

/// Numbers in ±1 from a hash, a tenth of them zeros.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let number = |i: u64| {
        let mut z =
            seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(i.wrapping_mul(0xBF58_476D_1CE4_E5B9));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        if z.is_multiple_of(10) { 0.0 } else { (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0 }
    };
    (0..len as u64).map(number).collect()
}

/// The path that `TALLY_SIMD` names, where one is enough.
fn simd() -> Simd {
    Simd::chosen().unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Runs `work` with every path and with 1, 2 and 3 threads; all must give the same bits.
fn on_every_path(work: impl Fn(Simd) -> Vec<f32> + Sync) -> Vec<f32> {
    let mut first: Option<Vec<f32>> = None;
    for simd in Simd::all() {
        for threads in [1, 2, 3] {
            let threads = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let result = threads.install(|| work(simd));
            match &first {
                None => first = Some(result),
                Some(first) => assert!(bits(first) == bits(&result), "{simd}"),
            }
        }
    }
    first.unwrap()
}

/// A convolution in double over channel-last activations in a planes' layout.
struct Case {
    from: Planes,
    to: Planes,
    outputs: usize,
    padding: usize,
    x: Vec<f32>,
    dy: Vec<f32>,
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Case {
    fn new(inputs: usize, outputs: usize, side: usize, padding: usize, images: usize, seed: u64) -> Self {
        let from = Planes::of(inputs, side, images);
        let to = Planes::of(outputs, side + 2 * padding - 2, images);
        let mut dy = numbers(seed + 2, to.len());
        for block in 0..to.blocks {
            for (place, value) in dy[block * to.block()..][..to.block()].iter_mut().enumerate() {
                if block * BLOCK + place % BLOCK >= outputs {
                    *value = 0.0;
                }
            }
        }
        let mut bias = numbers(seed + 3, to.blocks * BLOCK);
        bias[outputs..].fill(0.0);
        let weights = numbers(seed + 1, outputs * inputs * TAPS);
        Self { x: numbers(seed, from.len()), from, to, outputs, padding, dy, weights, bias }
    }

    fn inputs(&self) -> usize {
        self.from.blocks * BLOCK
    }

    /// Calls `term(image, output channel, output pixel, tap, input channel, input pixel)`.
    fn each_term(&self, mut term: impl FnMut(usize, usize, usize, usize)) {
        for y in 0..self.to.side {
            for x in 0..self.to.side {
                for tap in 0..TAPS {
                    let (iy, ix) = (y + tap / 3, x + tap % 3);
                    let inside = |i: usize| i >= self.padding && i - self.padding < self.from.side;
                    if !inside(iy) || !inside(ix) {
                        continue;
                    }
                    for image in 0..self.from.images {
                        for block in 0..self.to.blocks {
                            let out = self.to.at(block, y, x, image);
                            let at = (iy - self.padding, ix - self.padding);
                            term(out, block, tap, self.from.at(0, at.0, at.1, image));
                        }
                    }
                }
            }
        }
    }

    fn oihw(&self) -> OihwWeights<'_> {
        OihwWeights::new(&self.weights, self.outputs, self.inputs())
    }

    fn weight(&self, o: usize, c: usize, tap: usize) -> f64 {
        if o < self.outputs { f64::from(self.weights[(o * self.inputs() + c) * TAPS + tap]) } else { 0.0 }
    }

    /// Forward, input gradient, weight gradient.
    fn naive(&self) -> [Vec<f64>; 3] {
        let mut y = vec![0.0; self.to.len()];
        for (place, y) in y.iter_mut().enumerate() {
            *y = f64::from(self.bias[place / self.to.block() * BLOCK + place % BLOCK]);
        }
        let mut dx = vec![0.0; self.from.len()];
        let mut dw = vec![0.0; self.weights.len()];
        self.each_term(|out, block, tap, input| {
            for o in 0..BLOCK {
                for c in 0..self.inputs() {
                    let (o_all, input) =
                        (block * BLOCK + o, input + c / BLOCK * self.from.block() + c % BLOCK);
                    let weight = self.weight(o_all, c, tap);
                    y[out + o] += weight * f64::from(self.x[input]);
                    dx[input] += weight * f64::from(self.dy[out + o]);
                    if o_all < self.outputs {
                        dw[(o_all * self.inputs() + c) * TAPS + tap] +=
                            f64::from(self.dy[out + o]) * f64::from(self.x[input]);
                    }
                }
            }
        });
        [y, dx, dw]
    }

    fn packed(&self, simd: Simd, block: usize, pack: impl Fn(Simd, OihwWeights<'_>, &mut [f32])) -> Vec<f32> {
        let mut packed = vec![f32::NAN; self.to.blocks * self.from.blocks * block];
        pack(simd, self.oihw(), &mut packed);
        packed
    }

    fn forward(&self, method: Method, simd: Simd, relu: bool) -> Vec<f32> {
        let weights = match method {
            Method::Direct => self.packed(simd, pack::WEIGHT_BLOCK, pack::forward),
            Method::Winograd => self.packed(simd, winograd::transformed_len(1), winograd::weights::forward),
        };
        let mut y = vec![f32::NAN; self.to.len()];
        let epilogue = if relu { Epilogue::BiasRelu(&self.bias) } else { Epilogue::Bias(&self.bias) };
        method.convolve()(simd, &self.x, self.from, &weights, self.padding, epilogue, &mut y, self.to);
        y
    }

    fn backward(&self, method: Method, simd: Simd, epilogue: Epilogue<'_>) -> Vec<f32> {
        let weights = match method {
            Method::Direct => self.packed(simd, pack::WEIGHT_BLOCK, pack::backward),
            Method::Winograd => self.packed(simd, winograd::transformed_len(1), winograd::weights::backward),
        };
        let mut dx = vec![f32::NAN; self.from.len()];
        method.convolve()(simd, &self.dy, self.to, &weights, 2 - self.padding, epilogue, &mut dx, self.from);
        dx
    }

    /// Forward with ReLU or by the input, over several batches at once.
    fn batched(pieces: &[Case], direction: Direction, simd: Simd) -> Vec<Vec<f32>> {
        let planes = |case: &Case| {
            if direction == Direction::Forward { (case.from, case.to) } else { (case.to, case.from) }
        };
        let mut outs: Vec<Vec<f32>> =
            pieces.iter().map(|case| vec![f32::NAN; planes(case).1.len()]).collect();
        let batches = pieces.iter().zip(&mut outs).map(|(case, out)| {
            let (from, to) = planes(case);
            let (x, epilogue) = match direction {
                Direction::Forward => (&case.x, Epilogue::BiasRelu(&case.bias)),
                Direction::InputGrad => (&case.dy, Epilogue::ReluGradient(&case.x)),
            };
            batched::Job { x, from, epilogue, out, to }
        });
        let first = &pieces[0];
        batched::convolve(simd, direction, batches.collect(), first.oihw(), first.padding);
        outs
    }

    fn part(&self) -> Part<'_> {
        Part { dy: &self.dy, to: self.to, x: &self.x, from: self.from }
    }

    fn weight_grad(
        &self,
        method: Method,
        simd: Simd,
        parts: &[Vec<Part<'_>>],
        rounding: WireDtype,
    ) -> Vec<f32> {
        let microbatches = &NodeParts { parts: parts.to_vec(), rounding };
        let mut dw = vec![f32::NAN; self.weights.len()];
        match method {
            Method::Direct => direct::weight_grad(simd, microbatches, self.padding, self.inputs(), &mut dw),
            Method::Winograd => {
                winograd::weight_grad(simd, microbatches, self.padding, self.inputs(), &mut dw)
            }
        }
        dw
    }
}

/// A microbatch of one part.
fn one<T>(part: T) -> NodeParts<T> {
    NodeParts { parts: vec![vec![part]], rounding: WireDtype::F32 }
}

#[derive(Clone, Copy, Debug)]
enum Method {
    Direct,
    Winograd,
}
const METHODS: [Method; 2] = [Method::Direct, Method::Winograd];

impl Method {
    fn convolve(self) -> Convolve {
        match self {
            Method::Direct => direct::convolve,
            Method::Winograd => winograd::convolve,
        }
    }
}

type Convolve = fn(Simd, &[f32], Planes, &[f32], usize, Epilogue<'_>, &mut [f32], Planes);

fn assert_close(mine: &[f32], exact: &[f64], what: &str) {
    assert_eq!(mine.len(), exact.len());
    let size = (exact.iter().map(|x| x * x).sum::<f64>() / exact.len() as f64).sqrt();
    for (place, (mine, exact)) in mine.iter().zip(exact).enumerate() {
        let error = (f64::from(*mine) - exact).abs();
        assert!(error <= 1e-4 * size.max(1.0), "{what}, {place}: {mine}, not {exact}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..Default::default() })]

    /// Random shapes, odd sides and single images among them.
    #[test]
    fn a_convolution_and_its_gradients_are_their_definitions(
        inputs in 1usize..3, outputs in 1usize..70, side in 3usize..9, padding in 0usize..2,
        images in 1usize..5, seed in 0u64..1000,
    ) {
        let case = Case::new(inputs * BLOCK, outputs, side, padding, images, seed);
        let [y, dx, dw] = case.naive();
        let with_relu: Vec<f64> = y.iter().map(|y| y.max(0.0)).collect();
        let of = numbers(seed + 9, case.from.len());
        let masked: Vec<f64> =
            dx.iter().zip(&of).map(|(dx, of)| if *of == 0.0 { 0.0 } else { *dx }).collect();
        for method in METHODS {
            let forward = |relu| on_every_path(|simd| case.forward(method, simd, relu));
            assert_close(&forward(false), &y, "forward");
            assert_close(&forward(true), &with_relu, "forward with ReLU");
            let backward = |epilogue| on_every_path(|simd| case.backward(method, simd, epilogue));
            assert_close(&backward(Epilogue::Nothing), &dx, "by input");
            assert_close(&backward(Epilogue::ReluGradient(&of)), &masked, "by input with ReLU");
            let microbatch = [vec![case.part()]];
            assert_close(&on_every_path(|simd| case.weight_grad(method, simd, &microbatch, WireDtype::F32)), &dw, "by weights");
        }
        let masked: Vec<f64> =
            dx.iter().zip(&case.x).map(|(dx, of)| if *of == 0.0 { 0.0 } else { *dx }).collect();
        let case = [case];
        assert_close(&on_every_path(|simd| Case::batched(&case, Direction::Forward, simd).concat()), &with_relu, "batched");
        assert_close(&on_every_path(|simd| Case::batched(&case, Direction::InputGrad, simd).concat()), &masked, "batched input gradient");
    }

    /// SUM-1: a node computed at once has the bits of its microbatches added along their tree, and no
    /// image's results depend on those beside it. NodeParts may be empty or have several parts.
    #[test]
    fn sum_1_microbatches_at_once_have_the_bits_of_microbatches_alone(
        parts in proptest::collection::vec(0usize..3, 4), side in 3usize..7, padding in 0usize..2, seed in 0u64..1000,
    ) {
        let count = parts.iter().sum::<usize>();
        prop_assume!(count > 0);
        let whole = Case::new(BLOCK, 40, side, padding, 2 * count, seed);
        let pieces: Vec<Case> = (0..count).map(|i| piece(&whole, 2 * i..2 * i + 2)).collect();
        let mut rest = pieces.as_slice();
        let microbatches: Vec<&[Case]> = parts.iter().map(|&n| {
            let (mine, others) = rest.split_at(n);
            rest = others;
            mine
        }).collect();
        for direction in [Direction::Forward, Direction::InputGrad] {
            let at_once = on_every_path(|simd| Case::batched(&pieces, direction, simd).concat());
            let alone = pieces.iter().map(|piece| Case::batched(std::slice::from_ref(piece), direction, simd()).concat());
            prop_assert!(bits(&at_once) == bits(&alone.collect::<Vec<_>>().concat()), "{direction:?}");
        }
        for method in METHODS {
            let forward = |case: &Case| case.forward(method, simd(), true);
            let backward = |case: &Case| case.backward(method, simd(), Epilogue::Nothing);
            let (y, dx) = (forward(&whole), backward(&whole));
            for (i, piece) in pieces.iter().enumerate() {
                prop_assert!(bits(&forward(piece)) == bits(&stretch(&y, whole.to, 2 * i..2 * i + 2)));
                prop_assert!(bits(&backward(piece)) == bits(&stretch(&dx, whole.from, 2 * i..2 * i + 2)));
            }
            let all: Vec<Vec<Part<'_>>> =
                microbatches.iter().map(|microbatch| microbatch.iter().map(Case::part).collect()).collect();
            for rounding in [WireDtype::F32, WireDtype::Bf16] {
                let at_once = on_every_path(|simd| whole.weight_grad(method, simd, &all, rounding));
                let alone = all.iter().map(|microbatch| {
                    (!microbatch.is_empty()).then(|| {
                        let one = std::slice::from_ref(microbatch);
                        let mut alone = whole.weight_grad(method, simd(), one, WireDtype::F32);
                        rounding.round(&mut alone);
                        alone
                    })
                });
                let sum = tally_numerics::sum::along_tree(alone, |mut left, right| {
                    rounding.add(&mut left, &right);
                    left
                });
                prop_assert!(bits(&sum.unwrap()) == bits(&at_once), "{method:?}, {rounding}");
            }
        }
    }

    #[test]
    fn the_first_convolution_is_its_definition(side in 3usize..9, images in 1usize..5, seed in 0u64..1000) {
        let shape = Bordered { side, images };
        let values = numbers(seed, images * side * side);
        let mut x = vec![f32::NAN; shape.len()];
        shape.fill(&mut x, |image, pixel| values[image * side * side + pixel]);
        let (weights, bias) = (numbers(seed + 1, BLOCK * TAPS), numbers(seed + 2, BLOCK));
        let to = Planes::of(BLOCK, side, images);
        let dy = numbers(seed + 3, to.len());
        let mut y = vec![0.0; to.len()];
        let mut dw = vec![0.0; BLOCK * TAPS];
        for row in 0..side {
            for column in 0..side {
                for image in 0..images {
                    for o in 0..BLOCK {
                        let at = to.at(0, row, column, image) + o;
                        let mut sum = f64::from(bias[o]);
                        for tap in 0..TAPS {
                            let place = ((row + tap / 3) * (side + 2) + column + tap % 3) * images + image;
                            sum += f64::from(x[place]) * f64::from(weights[o * TAPS + tap]);
                            dw[o * TAPS + tap] += f64::from(x[place]) * f64::from(dy[at]);
                        }
                        y[at] = sum.max(0.0);
                    }
                }
            }
        }
        let mine = on_every_path(|simd| {
            let mut y = vec![f32::NAN; to.len()];
            first::convolve(simd, &x, shape, &weights, &bias, &mut y);
            y
        });
        assert_close(&mine, &y, "forward");
        let mine = on_every_path(|simd| {
            let mut dw = vec![f32::NAN; BLOCK * TAPS];
            first::weight_grad(simd, &one((dy.as_slice(), x.as_slice(), shape)), &mut dw);
            dw
        });
        assert_close(&mine, &dw, "by weights");
    }

    #[test]
    fn a_bias_gradient_adds_every_pixel(outputs in 1usize..70, side in 1usize..6, images in 1usize..5, seed in 0u64..99) {
        let to = Planes::of(outputs, side, images);
        let dy = numbers(seed, to.len());
        let mut exact = vec![0.0; outputs];
        for (place, dy) in dy.iter().enumerate() {
            let o = place / to.block() * BLOCK + place % BLOCK;
            if o < outputs {
                exact[o] += f64::from(*dy);
            }
        }
        let mine = on_every_path(|simd| {
            let mut db = vec![f32::NAN; outputs];
            direct::bias_grad(simd, &one(Part { dy: &dy, to, x: &dy, from: to }), &mut db);
            db
        });
        assert_close(&mine, &exact, "by bias");
    }

    /// The first of equals takes the gradient, a NaN passes, a window that the ReLU emptied
    /// takes nothing.
    #[test]
    fn a_pool_takes_the_first_greatest(side in 1usize..4, images in 1usize..4, seed in 0u64..1000) {
        let from = Planes::of(BLOCK, 2 * side, images);
        let to = pool::pooled(from);
        // Few values, so that many are equal.
        let value = |v: f32| if v > 0.9 { f32::NAN } else { (v * 3.0).floor().max(0.0) };
        let x: Vec<f32> = numbers(seed, from.len()).into_iter().map(value).collect();
        let dy = numbers(seed + 1, to.len());
        let (mut y, mut dx) = (vec![0.0f32; to.len()], vec![0.0f32; from.len()]);
        for row in 0..side {
            for column in 0..side {
                for row_of_images in 0..images * BLOCK {
                    let at = |i: usize| from.at(0, 2 * row + i / 2, 2 * column + i % 2, 0) + row_of_images;
                    let mut best = 0;
                    for i in 1..4 {
                        let (a, b) = (x[at(best)], x[at(i)]);
                        if b > a || (b.is_nan() && !a.is_nan()) {
                            best = i;
                        }
                    }
                    let out = to.at(0, row, column, 0) + row_of_images;
                    y[out] = x[at(best)];
                    dx[at(best)] = if y[out] == 0.0 { 0.0 } else { dy[out] };
                }
            }
        }
        let mine = on_every_path(|simd| {
            let mut y = vec![0.5; to.len()];
            pool::max(simd, &x, from, &mut y);
            y
        });
        prop_assert!(mine.iter().zip(&y).all(|(a, b)| a == b || (a.is_nan() && b.is_nan())));
        let mine = on_every_path(|simd| {
            let mut dx = vec![0.5; from.len()];
            pool::gradient(simd, &dy, &x, from, &mut dx);
            dx
        });
        prop_assert_eq!(mine, dx);
    }
}

/// Some images of activations.
fn stretch(values: &[f32], shape: Planes, images: std::ops::Range<usize>) -> Vec<f32> {
    values
        .chunks_exact(shape.pixel())
        .flat_map(|pixel| pixel[images.start * BLOCK..images.end * BLOCK].iter().copied())
        .collect()
}

/// A case of some of another's images.
fn piece(whole: &Case, images: std::ops::Range<usize>) -> Case {
    let count = images.len();
    Case {
        from: Planes { images: count, ..whole.from },
        to: Planes { images: count, ..whole.to },
        outputs: whole.outputs,
        padding: whole.padding,
        x: stretch(&whole.x, whole.from, images.clone()),
        dy: stretch(&whole.dy, whole.to, images),
        weights: whole.weights.clone(),
        bias: whole.bias.clone(),
    }
}

fn show(errors: &[f64]) -> String {
    errors.iter().map(|error| format!("{error:.1e} ")).collect()
}

/// How far the kernels stray from double for the reference network's deep layers, relative to
/// the results' root mean square: Winograd's at most five times as far as the direct ones.
/// A layer of many pixels, whose weight gradient goes microbatch by microbatch over all blocks of inputs.
#[test]
fn sum_1_a_layer_that_is_not_deep_is_its_definition_and_has_the_bits_of_its_microbatches() {
    let cases = [1, 2, 3].map(|seed| Case::new(2 * BLOCK, 40, 13, 1, 14, seed));
    let [[_, _, mut exact], rest @ ..] = cases.each_ref().map(Case::naive);
    for [_, _, dw] in rest {
        exact.iter_mut().zip(dw).for_each(|(sum, dw)| *sum += dw);
    }
    let microbatches: Vec<Vec<Part<'_>>> =
        cases.iter().map(|case| vec![case.part()]).chain([vec![]]).collect();
    for rounding in [WireDtype::F32, WireDtype::Bf16] {
        let weight_grad = |microbatches: &[Vec<Part<'_>>], rounding| {
            on_every_path(|simd| cases[0].weight_grad(Method::Winograd, simd, microbatches, rounding))
        };
        let at_once = weight_grad(&microbatches, rounding);
        let alone = microbatches[..3].iter().map(|microbatch| {
            let mut alone = weight_grad(std::slice::from_ref(microbatch), WireDtype::F32);
            rounding.round(&mut alone);
            Some(alone)
        });
        let sum = tally_numerics::sum::along_tree(alone.chain([None]), |mut left, right| {
            rounding.add(&mut left, &right);
            left
        });
        assert!(bits(&sum.unwrap()) == bits(&at_once), "{rounding}");
        if rounding == WireDtype::F32 {
            assert_close(&at_once, &exact, "by weights");
        }
    }
}

#[test]
fn winograds_errors_are_of_the_direct_kernels_size() {
    for (inputs, outputs, side, padding) in [
        (64, 64, 14, 1),
        (128, 32, 14, 1),
        (256, 32, 7, 0),
        (256, 512, 7, 0),
        (512, 64, 5, 0),
        (64, 1024, 5, 0),
    ] {
        let images = if outputs > 64 { 8 } else { 4 };
        let mut case = Case::new(inputs, outputs, side, padding, images, 7);
        // The results of a ReLU, as in the network.
        case.x.iter_mut().for_each(|x| *x = x.max(0.0));
        let exact = case.naive();
        let error = |mine: &[f32], exact: &[f64]| {
            let size = exact.iter().map(|x| x * x).sum::<f64>();
            let error = mine.iter().zip(exact).map(|(m, e)| (f64::from(*m) - e).powi(2)).sum::<f64>();
            (error / size).sqrt()
        };
        let errors = METHODS.map(|method| {
            let forward = case.forward(method, simd(), false);
            let input_grad = case.backward(method, simd(), Epilogue::Nothing);
            let weight_grad = case.weight_grad(method, simd(), &[vec![case.part()]], WireDtype::F32);
            [error(&forward, &exact[0]), error(&input_grad, &exact[1]), error(&weight_grad, &exact[2])]
        });
        let masked: Vec<f64> =
            exact[1].iter().zip(&case.x).map(|(dx, of)| if *of == 0.0 { 0.0 } else { *dx }).collect();
        let with_relu: Vec<f64> = exact[0].iter().map(|y| y.max(0.0)).collect();
        let case = [case];
        let batched = [
            error(&Case::batched(&case, Direction::Forward, simd()).concat(), &with_relu),
            error(&Case::batched(&case, Direction::InputGrad, simd()).concat(), &masked),
        ];
        println!("{inputs} to {outputs}, side {side}: {} batched {}", show(&errors.concat()), show(&batched));
        for (place, direct) in errors[0].iter().enumerate() {
            assert!(errors[1][place] < 5.0 * direct, "{errors:?}");
        }
        assert!(batched[0] < 5.0 * errors[0][0] && batched[1] < 5.0 * errors[0][1], "{batched:?}");
    }
}
