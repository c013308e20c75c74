//! The clusters that `scaling` measures.

use tally_numerics::wire::WireDtype;

use super::calibrate::LARGE;
use super::measure::Case;

/// 1 MiB of gradient.
pub const MEBI: usize = 1 << 18;
/// The batch of the cases that make a curve, and their microbatches: as many as its last point has workers.
pub const BATCH: usize = 1024;

fn synthetic(parameters: usize, micros: u64) -> String {
    format!("synthetic:parameters={parameters},us-per-sample={micros}")
}

/// The curve's cluster with so many workers.
#[must_use]
pub fn on_the_curve(workers: usize, link: Option<f64>) -> Case {
    Case {
        workers,
        model: synthetic(MEBI, 1000),
        batch_size: BATCH,
        microbatches: BATCH as u32,
        wire_dtype: WireDtype::F32,
        link,
    }
}

/// Rates of the links that are measured, in bits a second.
pub const LINKS: [f64; 3] = [1e8, 1e9, 5e9];

/// All cases: none of them is one that the costs come from.
#[must_use]
pub fn all(links: bool) -> Vec<Case> {
    let f32 = WireDtype::F32;
    let case = |workers, parameters, micros, microbatches, wire_dtype, link| Case {
        workers,
        model: synthetic(parameters, micros),
        batch_size: 64,
        microbatches,
        wire_dtype,
        link,
    };
    let mut cases = Vec::new();
    // The reference network's size over sockets, with as many microbatches as usual and with more.
    for workers in [1, 2, 3, 4, 8] {
        cases.push(case(workers, LARGE, 4000, 8, f32, None));
    }
    cases.push(case(16, LARGE, 16_000, 16, f32, None));
    for workers in [2, 8] {
        cases.push(case(workers, LARGE, 4000, 8, WireDtype::Bf16, None));
    }
    for workers in [1, 4, 16, 64, 256] {
        cases.push(on_the_curve(workers, None));
    }
    if links {
        for workers in [1, 4, 16, 64, 256] {
            cases.push(on_the_curve(workers, Some(1e9)));
        }
        for (workers, dtype) in [(1, f32), (2, f32), (4, f32), (8, f32), (4, WireDtype::Bf16)] {
            cases.push(case(workers, LARGE, 4000, 8, dtype, Some(1e9)));
        }
        for workers in [2, 4] {
            cases.push(case(workers, LARGE, 4000, 8, f32, Some(5e9)));
        }
        for workers in [1, 2, 8] {
            cases.push(case(workers, MEBI, 4000, 8, f32, Some(1e8)));
        }
    }
    cases
}
