//! An engine without a network: gradients hashed from sample ids, of any size, at any speed.
//!
//! With it everything but the arithmetic of a network can be tested, measured and tortured
//! quickly. It keeps what the cluster relies on: equal samples and parameters give equal
//! bits (**SUM-1**); other samples, another place in the vector or a replica that went
//! astray give others; gradients are as small as a network's, so that parameters stay
//! finite for any number of steps; and a leaf's first chunks are ready long before its last.
//!
//! Element `i` of a leaf's gradient is `scale·(Σ_samples h·noise(i) + n·0.01·p[i])`, where
//! `h` in ±0.5 and the noise in ±1 are hashed from the ids and the place: a noisy pull of every
//! parameter towards 0.

use std::time::{Duration, Instant};

use tally_data::Samples;
use tally_numerics::CHUNK;
use tally_numerics::digest::{Digest, of_samples};
use tally_numerics::loss::LossParts;
use tally_numerics::manifest::{MAX_ELEMENTS, Manifest, TensorSpec};
use tally_numerics::update::Update;

use super::replica::Replica;
use super::spec::SyntheticSpec;
use super::{Answers, Engine, EngineError};

/// The length of the table of noise, a power of two that fits a core's second-level cache.
/// A block of that many elements takes its noise from one stretch of it.
const NOISE: usize = 1 << 16;

/// The tensors of a synthetic network: up to four of equal size, the last with the rest.
///
/// # Panics
/// Never: the size is brought into the bounds of a manifest.
#[must_use]
#[allow(clippy::expect_used)] // At most four tensors with names of their own, within the bounds.
pub fn manifest(spec: &SyntheticSpec) -> Manifest {
    let elements = spec.parameters.clamp(1, MAX_ELEMENTS);
    let tensors = elements.min(4);
    let each = elements / tensors;
    let specs = (0..tensors).map(|index| {
        let size = if index + 1 == tensors { elements - each * index } else { each };
        TensorSpec { name: format!("synthetic{index}.weight"), shape: vec![size as u32], bound: 0.1 }
    });
    Manifest::new(specs.collect()).expect("four tensors make a manifest")
}

/// How one worker's engine departs from the others', for tests: the environment variable
/// `TALLY_SYNTHETIC`, such as `slower=3,flip=10`. What is not understood is not heeded.
#[derive(Debug)]
struct Quirks {
    /// It takes so many times as long.
    slower: f64,
    /// A bit of every so-manieth leaf's gradient is wrong; 0 for none.
    flip: u64,
}

impl Quirks {
    fn from_environment() -> Self {
        let text = std::env::var("TALLY_SYNTHETIC").unwrap_or_default();
        let value = |name: &str| {
            let of = text.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            of.and_then(|value| value.parse::<f64>().ok()).filter(|value| value.is_finite() && *value >= 0.0)
        };
        Self { slower: value("slower").unwrap_or(1.0), flip: value("flip").unwrap_or(0.0) as u64 }
    }
}

/// A [`Replica`] with hashed gradients.
pub struct SyntheticEngine {
    spec: SyntheticSpec,
    manifest: Manifest,
    replica: Replica,
    /// Noise in ±1, twice over, so that a stretch of [`NOISE`] may start anywhere in the first.
    noise: Vec<f32>,
    quirks: Quirks,
    leaves: u64,
}

impl SyntheticEngine {
    /// An engine whose parameters and momentum are zeros until it is given a state.
    #[must_use]
    pub fn new(spec: SyntheticSpec) -> Self {
        let manifest = manifest(&spec);
        let mut replica = Replica::default();
        replica.load(vec![0.0; manifest.len()], vec![0.0; manifest.len()]);
        let once = (0..NOISE as u64).map(|i| (2.0 * fraction(mix(i)) - 1.0) as f32);
        let noise = once.clone().chain(once).collect();
        Self { spec, manifest, replica, noise, quirks: Quirks::from_environment(), leaves: 0 }
    }

    /// The time that a leaf of these samples takes.
    fn duration(&self, samples: &Samples, hash: u64) -> Duration {
        let whole = self.spec.per_sample.as_secs_f64() * samples.len() as f64 * self.quirks.slower;
        let stray = self.spec.jitter * (2.0 * fraction(mix(hash ^ 1)) - 1.0);
        Duration::from_secs_f64((whole * (1.0 + stray)).clamp(0.0, 1e6))
    }
}

impl Engine for SyntheticEngine {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn kind(&self) -> String {
        "synthetic".into()
    }

    fn device(&self) -> String {
        format!("synthetic ({:?} a sample)", self.spec.per_sample)
    }

    fn load(&mut self, parameters: Vec<f32>, momentum: Vec<f32>) -> Digest {
        assert_eq!(parameters.len(), self.manifest.len(), "a state has the manifest's length");
        self.replica.load(parameters, momentum)
    }

    fn state(&mut self) -> Result<(Vec<f32>, Vec<f32>), EngineError> {
        Ok((self.replica.parameters().to_vec(), self.replica.momentum().to_vec()))
    }

    fn before(&mut self) -> Option<(Vec<f32>, Vec<f32>)> {
        self.replica.before().map(|(parameters, momentum)| (parameters.to_vec(), momentum.to_vec()))
    }

    fn gradient(
        &mut self,
        samples: &Samples,
        scale: f32,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<LossParts, EngineError> {
        assert_eq!(out.len(), self.manifest.len(), "a gradient has the manifest's length");
        let start = Instant::now();
        let hash = of_samples(samples.ids().iter().copied());
        let duration = self.duration(samples, hash);
        let height =
            scale * samples.ids().iter().map(|&id| fraction(mix(u64::from(id))) as f32 - 0.5).sum::<f32>();
        let pull = 0.01 * scale * samples.len() as f32;

        self.leaves += 1;
        let flip = self.quirks.flip > 0 && self.leaves.is_multiple_of(self.quirks.flip);
        let parameters = self.replica.parameters();
        let all = out.len();
        for first in (0..all).step_by(CHUNK) {
            let end = all.min(first + CHUNK);
            for block in (first..end).step_by(NOISE) {
                let size = NOISE.min(end - block);
                let shift = mix(hash ^ block as u64) as usize % NOISE;
                let noise = &self.noise[shift..shift + size];
                let inputs = noise.iter().zip(&parameters[block..block + size]);
                for (g, (noise, p)) in out[block..block + size].iter_mut().zip(inputs) {
                    *g = height * noise + pull * p;
                }
            }
            if flip && first == 0 {
                out[0] = f32::from_bits(out[0].to_bits() ^ 1);
            }
            let due = duration.mul_f64(end as f64 / all as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
            ready(&out[..end]);
        }

        let mut losses = LossParts::default();
        for &id in samples.ids() {
            let [label, sum, difference] = [2, 3, 4].map(|what| fraction(mix(u64::from(id) << 3 | what)));
            losses.label += 0.1 + label;
            losses.sum += 1.0 + sum;
            losses.difference += 1.0 + difference;
        }
        Ok(losses)
    }

    fn apply(&mut self, update: Update, first: usize, gradient: &[f32]) -> Digest {
        self.replica.apply(update, first, gradient)
    }

    fn commit(&mut self) {
        self.replica.commit();
    }

    fn predict(&mut self, samples: &Samples) -> Result<Answers, EngineError> {
        std::thread::sleep(self.duration(samples, of_samples(samples.ids().iter().copied())));
        let value = |id: u32, what: u64| fraction(mix(u64::from(id) << 5 | what)) as f32;
        let mut answers = Answers::default();
        for &id in samples.ids() {
            answers.logits.push(std::array::from_fn(|digit| value(id, digit as u64)));
            answers.sums.push(18.0 * value(id, 10));
            answers.differences.push(9.0 * value(id, 11));
        }
        Ok(answers)
    }
}

/// SplitMix64's next state and finaliser (Steele, Lea, Flood 2014).
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A hash as a number in `[0, 1)` with 24 bits.
fn fraction(hash: u64) -> f64 {
    (hash >> 40) as f64 / f64::from(1u32 << 24)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tally_data::samples::PIXELS;

    use super::*;

    fn samples(ids: impl IntoIterator<Item = u32>) -> Samples {
        let ids: Vec<u32> = ids.into_iter().collect();
        let n = ids.len();
        Samples::new(ids, vec![0; n * PIXELS], vec![1; n], vec![2; n]).unwrap()
    }

    fn engine(text: &str) -> SyntheticEngine {
        let super::super::ModelSpec::Synthetic(spec) = text.parse().unwrap() else { unreachable!() };
        let mut engine = SyntheticEngine::new(spec);
        let parameters = tally_numerics::init::parameters(&engine.manifest, 1);
        engine.load(parameters, vec![0.0; engine.manifest.len()]);
        engine
    }

    fn gradient(engine: &mut SyntheticEngine, samples: &Samples) -> Vec<f32> {
        let mut out = vec![f32::NAN; engine.manifest.len()];
        engine.gradient(samples, 1.0 / 64.0, &mut out, &mut |_| ()).unwrap();
        out
    }

    #[test]
    fn any_size_makes_a_manifest() {
        for parameters in [0, 1, 3, 4, 7, 100_000, usize::MAX] {
            let manifest = manifest(&SyntheticSpec { parameters, ..Default::default() });
            assert_eq!(manifest.len(), parameters.clamp(1, MAX_ELEMENTS));
        }
    }

    /// SUM-1: equal samples and parameters give equal bits.
    #[test]
    fn sum_1_a_leaf_has_its_bits_wherever_it_is_computed() {
        let (mut one, mut two) =
            (engine("synthetic:parameters=300000"), engine("synthetic:parameters=300000"));
        let leaf = samples(0..8);
        let first = gradient(&mut one, &leaf);
        gradient(&mut two, &samples(8..16));
        assert_eq!(first, gradient(&mut two, &leaf));
        assert_eq!(first, gradient(&mut one, &leaf));
    }

    #[test]
    fn other_samples_places_and_parameters_give_other_gradients() {
        let mut engine = engine("synthetic:parameters=300000");
        let (one, two) = (gradient(&mut engine, &samples(0..8)), gradient(&mut engine, &samples(8..16)));
        assert!(one.iter().zip(&two).filter(|(a, b)| a == b).count() < 100);
        assert!(one[..100_000].iter().zip(&one[CHUNK..]).filter(|(a, b)| a == b).count() < 100);
        let (mut parameters, momentum) = engine.state().unwrap();
        parameters[77] = f32::from_bits(parameters[77].to_bits() ^ (1 << 22));
        engine.load(parameters, momentum);
        let astray = gradient(&mut engine, &samples(0..8));
        assert_eq!(one.iter().zip(&astray).filter(|(a, b)| a != b).count(), 1);
        assert_ne!(one[77], astray[77]);
    }

    #[test]
    fn chunks_are_ready_one_after_the_other_and_losses_are_positive() {
        let mut engine = engine("synthetic:parameters=600000");
        let mut out = vec![0.0; 600_000];
        let mut prefixes = Vec::new();
        let losses =
            engine.gradient(&samples(0..8), 1.0, &mut out, &mut |done| prefixes.push(done.len())).unwrap();
        assert_eq!(prefixes, [CHUNK, 2 * CHUNK, 600_000]);
        assert!(losses.label > 0.0 && losses.sum > 0.0 && losses.difference > 0.0);
    }

    #[test]
    fn parameters_stay_finite_and_small() {
        let mut engine = engine("synthetic:parameters=500");
        let update = Update { learning_rate: 0.1, momentum: 0.9, clip: 1.0 };
        for step in 0..20_000u32 {
            let mut out = vec![0.0; 500];
            let ids = samples([step * 3, step * 3 + 1, step * 3 + 2]);
            engine.gradient(&ids, 1.0 / 3.0, &mut out, &mut |_| ()).unwrap();
            engine.apply(update, 0, &out);
            engine.commit();
        }
        assert!(engine.state().unwrap().0.iter().all(|p| p.abs() < 20.0));
    }

    #[test]
    fn a_leaf_takes_its_time() {
        let mut engine = engine("synthetic:parameters=1000,us-per-sample=5000,jitter=0.5");
        let start = Instant::now();
        gradient(&mut engine, &samples(0..8));
        assert!(start.elapsed() >= Duration::from_millis(20));
        let leaf = samples(0..8);
        let durations = [1, 2, 3].map(|hash| engine.duration(&leaf, hash));
        assert!(durations.iter().all(|d| (20..=60).contains(&d.as_millis())), "{durations:?}");
        assert_ne!(durations[0], durations[1]);
    }
}
