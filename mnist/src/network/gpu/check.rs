//! Whether a GPU computes what the CPU does, asked before it computes for anybody.
//!
//! A few samples' gradient is held to the one of the engine on the CPU, and an update to the host's, whose bits it must
//! have (**REP-1**). It takes some milliseconds, and finds a kernel that a compiler or a GPU that nobody has tried makes
//! wrong.

use rayon::ThreadPoolBuilder;
use tally_kernels::Simd;
use tally_numerics::init;
use tally_numerics::random::{Purpose, Stream};
use tally_numerics::state::State;
use tally_numerics::update::Update;
use tally_numerics::wire::WireDtype;
use tally_worker::device::Precision;
use tally_worker::engine::{EngineError, Replica as _, apply_whole};

use crate::data::{PIXELS, Samples};
use crate::network::cpu::CpuEngine;
use crate::network::{DigitEngine, LabelLoss};

/// Checks an engine; its parameters are others afterwards.
///
/// # Errors
/// In words, what is wrong.
pub fn check(engine: &mut dyn DigitEngine, precision: Precision, loss: LabelLoss) -> Result<(), String> {
    let manifest = engine.manifest().clone();
    let pool = ThreadPoolBuilder::new().build().map_err(|error| error.to_string())?;
    let simd = Simd::chosen()?;
    let mut host = CpuEngine::new(loss, pool, simd, String::new());
    let parameters = init::parameters(&manifest, 1);
    host.load(State::new(parameters.clone(), &manifest, 1));
    engine.load(State::new(parameters, &manifest, 1));
    let leaves = [samples(1, 3)?, samples(2, 2)?];
    let leaves = leaves.each_ref();
    let [mut ours, mut theirs] = [(); 2].map(|()| vec![f32::NAN; manifest.len()]);
    let failed = |error: EngineError| error.to_string();
    engine.node_gradient(&leaves, 0.2, WireDtype::F32, &mut ours, &mut |_| ()).map_err(failed)?;
    host.node_gradient(&leaves, 0.2, WireDtype::F32, &mut theirs, &mut |_| ()).map_err(failed)?;
    let allowed = tolerance(precision);
    let distances = manifest.tensors().iter().enumerate().map(|(index, tensor)| {
        let range = manifest.range(index);
        (&tensor.name, distance(&ours[range.clone()], &theirs[range]))
    });
    let wrong = distances.filter(|(_, off)| off.is_nan() || *off > allowed);
    // All of them, because they show where in the network it begins.
    let wrong: Vec<String> = wrong.map(|(name, off)| format!("{name} {off:.1e}")).collect();
    if !wrong.is_empty() {
        return Err(format!(
            "of {} gradients these are farther from the CPU's than the {allowed} that may be rounding: {}",
            manifest.tensors().len(),
            wrong.join(", ")
        ));
    }
    let update = Update::sgd(0.0371, 0.9, 0.7312);
    let digest = apply_whole(engine, &update, &theirs).map_err(failed)?;
    let wanted = apply_whole(&mut host, &update, &theirs).map_err(failed)?;
    if digest != wanted {
        return Err(format!("an update's digest is {digest} where the host's is {wanted}"));
    }
    Ok(())
}

/// How far a tensor's gradient may be off: some three times what was seen. Rounded factors cost more than their
/// rounding, for they open and shut ReLUs: of values spread about zero a part in 2¹¹ is nearer to it than TF32's rounding, and
/// a gradient that lacks a part `p` of its terms is off by `√p`. A kernel that is wrong is off by 1.
fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 1e-5,
        Precision::Tf32 => 0.15,
        Precision::Bf16 => 0.4,
    }
}

/// The difference's length by the right one's.
fn distance(ours: &[f32], right: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let mut differences = ours.iter().zip(right).map(|(a, b)| f64::from(*a) - f64::from(*b));
    let off = squares(&mut differences);
    (off / squares(&mut right.iter().map(|&x| f64::from(x))).max(f64::MIN_POSITIVE)).sqrt()
}

/// Images of nothing, but a fifth of it of any brightness.
fn samples(seed: u64, count: usize) -> Result<Samples, String> {
    let mut random = Stream::new(seed, Purpose::TrainNumbers);
    let mut byte = |below: u32| u8::try_from(random.below(below)).unwrap_or(0);
    let pixels = (0..count * PIXELS).map(|_| if byte(5) == 0 { byte(256) } else { 0 }).collect();
    let numbers = (0..count).map(|_| byte(10)).collect();
    let labels = (0..count).map(|_| byte(10)).collect();
    // Ids that no other samples have.
    let ids = (0..count as u32).map(|id| u32::MAX - 8 * seed as u32 - id).collect();
    Samples::new(ids, pixels, numbers, labels).map_err(|error| error.to_string())
}
