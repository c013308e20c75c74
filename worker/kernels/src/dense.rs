//! Linear layers, `y = x·Wᵀ + b`, for the small ones of the heads: rows of `x` and `y` are
//! images. Each output is one chain of fused multiply-adds over its inputs in their order.

use crate::simd::{Kernel, Simd};
use crate::simd_vec::SimdVec;

/// `y[n][o] = bias[o] + Σ_i x[n][i]·transposed[i][o]`, with a ReLU if `relu`.
/// `transposed` is the transposed weight ([`transpose`]).
///
/// # Panics
/// If the slices' lengths don't fit each other.
pub fn forward(simd: Simd, x: &[f32], transposed: &[f32], bias: &[f32], relu: bool, y: &mut [f32]) {
    let (outputs, inputs) = (bias.len(), transposed.len() / bias.len());
    assert_eq!(transposed.len(), inputs * outputs, "a weight for each input and output");
    assert_eq!(y.len() / outputs * inputs, x.len(), "as many rows out as in");
    simd.run(Forward { x, transposed, bias, relu, y });
}

struct Forward<'a> {
    x: &'a [f32],
    transposed: &'a [f32],
    bias: &'a [f32],
    relu: bool,
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, _: L) {
        let outputs = self.bias.len();
        let inputs = self.transposed.len() / outputs;
        for (x, y) in self.x.chunks_exact(inputs).zip(self.y.chunks_exact_mut(outputs)) {
            y.copy_from_slice(self.bias);
            for (&x, weights) in x.iter().zip(self.transposed.chunks_exact(outputs)) {
                add_product(x, weights, y);
            }
            if self.relu {
                for y in y {
                    *y = if *y <= 0.0 { 0.0 } else { *y };
                }
            }
        }
    }
}

/// `into[i] += factor·values[i]`, each rounded once.
#[inline(always)]
fn add_product(factor: f32, values: &[f32], into: &mut [f32]) {
    for (into, value) in into.iter_mut().zip(values) {
        *into = factor.mul_add(*value, *into);
    }
}

/// The input gradient: `dx[n][i] = Σ_o dy[n][o]·weights[o][i]`.
///
/// # Panics
/// If the slices' lengths don't fit each other.
pub fn input_grad(simd: Simd, dy: &[f32], weights: &[f32], outputs: usize, dx: &mut [f32]) {
    let inputs = weights.len() / outputs;
    assert_eq!(weights.len(), inputs * outputs, "a weight for each input and output");
    assert_eq!(dx.len() / inputs * outputs, dy.len(), "as many rows out as in");
    simd.run(InputGradient { dy, weights, outputs, dx });
}

struct InputGradient<'a> {
    dy: &'a [f32],
    weights: &'a [f32],
    outputs: usize,
    dx: &'a mut [f32],
}

impl Kernel for InputGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, _: L) {
        let inputs = self.weights.len() / self.outputs;
        for (dy, dx) in self.dy.chunks_exact(self.outputs).zip(self.dx.chunks_exact_mut(inputs)) {
            dx.fill(0.0);
            for (&dy, weights) in dy.iter().zip(self.weights.chunks_exact(inputs)) {
                add_product(dy, weights, dx);
            }
        }
    }
}

/// Adds the weight and bias gradients, image by image:
/// `dw[o][i] += Σ_n dy[n][o]·x[n][i]` and `db[o] += Σ_n dy[n][o]`.
///
/// # Panics
/// If the slices' lengths don't fit each other.
pub fn add_weight_grad(simd: Simd, dy: &[f32], x: &[f32], dw: &mut [f32], db: &mut [f32]) {
    let (outputs, inputs) = (db.len(), dw.len() / db.len());
    assert_eq!(dw.len(), inputs * outputs, "a weight for each input and output");
    assert_eq!(dy.len() / outputs * inputs, x.len(), "as many rows out as in");
    simd.run(WeightGradient { dy, x, dw, db });
}

struct WeightGradient<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    dw: &'a mut [f32],
    db: &'a mut [f32],
}

impl Kernel for WeightGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, _: L) {
        let Self { dy, x, dw, db } = self;
        let (outputs, inputs) = (db.len(), dw.len() / db.len());
        for (dy, x) in dy.chunks_exact(outputs).zip(x.chunks_exact(inputs)) {
            for (&dy, dw) in dy.iter().zip(dw.chunks_exact_mut(inputs)) {
                add_product(dy, x, dw);
            }
            for (db, dy) in db.iter_mut().zip(dy) {
                *db += dy;
            }
        }
    }
}

/// The gradient of a ReLU: zeros in `dy` wherever its result `of` is 0.
pub fn relu_gradient(dy: &mut [f32], of: &[f32]) {
    for (dy, of) in dy.iter_mut().zip(of) {
        *dy = if *of == 0.0 { 0.0 } else { *dy };
    }
}

/// `weights[o][i]` as `[i][o]`.
///
/// # Panics
/// If the slices differ in length.
pub fn transpose(weights: &[f32], outputs: usize, transposed: &mut [f32]) {
    assert_eq!(weights.len(), transposed.len(), "the same weights");
    let inputs = weights.len() / outputs;
    for (o, weights) in weights.chunks_exact(inputs).enumerate() {
        for (i, &weight) in weights.iter().enumerate() {
            transposed[i * outputs + o] = weight;
        }
    }
}
