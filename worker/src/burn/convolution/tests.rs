//! The operation against Burn's own, over random shapes.
#![allow(clippy::unwrap_used)]

use burn::tensor::TensorData;
use burn_flex::FlexDevice;
use proptest::prelude::*;
use rayon::ThreadPoolBuilder;

use super::*;

type Tracked = Autodiff<Flex>;
type Convolve =
    fn(Tensor<Tracked, 4>, Tensor<Tracked, 4>, Tensor<Tracked, 1>, usize, Activation) -> Tensor<Tracked, 4>;

/// A layer and what comes into it.
#[derive(Clone, Debug)]
struct Case {
    images: usize,
    inputs: usize,
    outputs: usize,
    side: usize,
    padding: usize,
    activation: Activation,
    seed: u32,
}

/// Results, and the gradients by images, weights and biases.
type Outcome = [Vec<f32>; 4];

impl Case {
    fn values(&self, of: u32, len: usize) -> Vec<f32> {
        let mut state = self.seed.wrapping_mul(2_654_435_761) ^ of.wrapping_mul(0x9e37_79b9) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    fn layer(&self) -> Option<Layer> {
        let Self { images, inputs, outputs, side, padding, activation, .. } = *self;
        Layer::of([images, inputs, side, side], [outputs, inputs, 3, 3], padding, activation)
    }

    /// Images, weights and biases.
    fn operands(&self) -> [Vec<f32>; 3] {
        let Self { images, inputs, outputs, side, .. } = *self;
        [images * inputs * side * side, outputs * inputs * 9, outputs]
            .into_iter()
            .zip(0..)
            .map(|(len, of)| self.values(of, len))
            .collect::<Vec<_>>()
            .try_into()
            .unwrap()
    }

    fn run(&self, [x, weights, bias]: &[Vec<f32>; 3], convolve: Convolve) -> Outcome {
        let Self { images, inputs, outputs, side, padding, activation, .. } = *self;
        let device = FlexDevice;
        let microbatch = |values: &[f32], shape: &[usize]| TensorData::new(values.to_vec(), shape.to_vec());
        let x = Tensor::<Tracked, 4>::from_data(microbatch(x, &[images, inputs, side, side]), &device)
            .require_grad();
        let weights = Tensor::<Tracked, 4>::from_data(microbatch(weights, &[outputs, inputs, 3, 3]), &device)
            .require_grad();
        let bias = Tensor::<Tracked, 1>::from_data(microbatch(bias, &[outputs]), &device).require_grad();
        let y = convolve(x.clone(), weights.clone(), bias.clone(), padding, activation);
        let dy = self.values(9, y.shape().num_elements());
        let dy = Tensor::<Tracked, 4>::from_data(TensorData::new(dy, y.shape()), &device);
        let gradients = (y.clone() * dy).sum().backward();
        let values = |tensor: TensorData| tensor.to_vec::<f32>().unwrap();
        [
            values(y.into_data()),
            values(x.grad(&gradients).unwrap().into_data()),
            values(weights.grad(&gradients).unwrap().into_data()),
            values(bias.grad(&gradients).unwrap().into_data()),
        ]
    }

    fn own(&self, operands: &[Vec<f32>; 3], threads: usize) -> Outcome {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| self.run(operands, <Tracked as ConvolutionBackend>::convolution))
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let channels = || prop_oneof![Just(16usize), Just(32), Just(64), 16..80usize];
    (1..20usize, channels(), 16..70usize, 3..12usize, 0..2usize, any::<bool>(), any::<u32>()).prop_map(
        |(images, inputs, outputs, side, padding, relu, seed)| Case {
            images,
            inputs,
            outputs,
            side,
            padding,
            activation: if relu { Activation::Relu } else { Activation::Linear },
            seed,
        },
    )
}

/// The root mean square of the difference, relative to that of what is right.
fn error(found: &[f32], right: &[f32]) -> f64 {
    assert_eq!(found.len(), right.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let off = square(&mut found.iter().zip(right).map(|(&f, &r)| f64::from(f) - f64::from(r)));
    (off / square(&mut right.iter().map(|&r| f64::from(r))).max(1e-30)).sqrt()
}

/// Where a sum is within rounding of zero, the two may be on different sides of the ReLU.
fn without_edges(case: &Case, operands: &mut [Vec<f32>; 3]) {
    if case.activation == Activation::Relu {
        // Every other output is far above zero, the others far below: what is tested is the mask.
        let far = (case.inputs * 9) as f32;
        for (output, bias) in operands[2].iter_mut().enumerate() {
            *bias = if output % 2 == 0 { far } else { -far };
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn it_is_burns_own_operation(case in cases()) {
        prop_assert!(case.layer().is_some(), "the kernels do it");
        let mut operands = case.operands();
        without_edges(&case, &mut operands);
        let own = case.own(&operands, 2);
        let right = case.run(&operands, stock);
        for (what, (own, right)) in
            ["results", "by images", "by weights", "by biases"].into_iter().zip(own.iter().zip(&right))
        {
            let error = error(own, right);
            prop_assert!(error < 2e-5, "{what}: {error:e}");
        }
    }

    /// SUM-1: not the threads, and forward and by the input not the images beside either.
    #[test]
    fn sum_1_the_bits_depend_on_no_thread_and_no_neighbour(case in cases()) {
        let operands = case.operands();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let (one, two) = (case.own(&operands, 1), case.own(&operands, 3));
        for (one, two) in one.iter().zip(&two) {
            prop_assert_eq!(bits(one), bits(two));
        }
        let alone = Case { images: 1, ..case.clone() };
        let image = operands[0].len() / case.images;
        let first = [operands[0][..image].to_vec(), operands[1].clone(), operands[2].clone()];
        let alone = alone.own(&first, 2);
        prop_assert_eq!(bits(&alone[0]), bits(&one[0][..alone[0].len()]));
        prop_assert_eq!(bits(&alone[1]), bits(&one[1][..alone[1].len()]));
    }
}

#[test]
fn a_nan_passes() {
    let case = Case {
        images: 3,
        inputs: 20,
        outputs: 33,
        side: 7,
        padding: 1,
        activation: Activation::Relu,
        seed: 5,
    };
    for sick in 0..3 {
        let mut operands = case.operands();
        operands[sick][0] = f32::NAN;
        let own = case.own(&operands, 1);
        assert!(own[0].iter().any(|v| v.is_nan()), "operand {sick}");
    }
}

#[test]
fn other_shapes_stay_burns() {
    let of = |x, weights, padding| Layer::of(x, weights, padding, Activation::Linear).is_some();
    assert!(of([1, 32, 8, 8], [8, 32, 3, 3], 1));
    assert!(!of([1, 32, 8, 8], [8, 32, 5, 5], 1), "another kernel");
    assert!(!of([1, 32, 8, 9], [8, 32, 3, 3], 1), "no square");
    assert!(!of([1, 32, 8, 8], [8, 16, 3, 3], 1), "groups");
    assert!(!of([1, 32, 8, 8], [8, 32, 3, 3], 2), "more padding");
    assert!(!of([1, 1, 8, 8], [8, 1, 3, 3], 1), "few channels");
    assert!(!of([1, 32, 2, 2], [8, 32, 3, 3], 0), "nothing comes out");
}
