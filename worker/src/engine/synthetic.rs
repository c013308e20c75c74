//! An engine without a network: gradients hashed from sample ids, of any size, at any speed.
//!
//! With it everything but the arithmetic of a network can be tested and measured quickly. It has the
//! properties that the cluster relies on. Equal samples and parameters give equal bits (**SUM-1**). Other
//! samples, another element of the vector or a damaged replica give other bits. Gradients are as small as a
//! network's, so that parameters stay finite for any number of steps. The first chunks of a microbatch are ready
//! long before its last.
//!
//! Element `i` of a microbatch's gradient is `scale·(Σ_samples h·noise(i) + n·0.01·p[i])`, where
//! `h` in ±0.5 and the noise in ±1 are hashed from the samples' ids and the element: a noisy pull of every
//! parameter towards 0. Losses and metrics are hashed from the ids alone.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use tally_numerics::CHUNK;
use tally_numerics::digest::{Digest, of_samples};
use tally_numerics::manifest::{MAX_ELEMENTS, Manifest, TensorSpec};
use tally_numerics::schema::{MetricKind, Schema, Sums};
use tally_numerics::state::State;
use tally_numerics::update::Update;
use tally_proto::convert::Microbatch;

use super::host_replica::HostReplica;
use super::{Engine, EngineError, Replica};

/// The length of the table of noise, a power of two that fits a core's second-level cache.
/// A block of that many elements takes its noise from one stretch of it.
const NOISE: usize = 1 << 16;

/// Hashes of metrics are numbered from here, beyond those of all losses.
const METRICS: u64 = 1 << 16;

/// Size and speed of the synthetic engine, as in `parameters=100000,us-per-sample=20,jitter=0.25`; each setting may
/// be left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SyntheticSpec {
    /// Elements of the gradient.
    pub parameters: usize,
    /// The time that a sample takes.
    pub per_sample: Duration,
    /// Each microbatch takes between 1 − jitter and 1 + jitter of its time; its samples' hash decides.
    pub jitter: f64,
}

impl Default for SyntheticSpec {
    fn default() -> Self {
        Self { parameters: 100_000, per_sample: Duration::ZERO, jitter: 0.0 }
    }
}

impl fmt::Display for SyntheticSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { parameters, per_sample, jitter } = self;
        write!(f, "parameters={parameters},us-per-sample={},jitter={jitter}", per_sample.as_micros())
    }
}

impl FromStr for SyntheticSpec {
    type Err = String;
    fn from_str(settings: &str) -> Result<Self, String> {
        let mut spec = Self::default();
        for setting in settings.split(',').filter(|s| !s.is_empty()) {
            let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
            let bad = || format!("{setting:?} is not a setting of the synthetic model");
            match key {
                "parameters" => {
                    let elements = value.parse().ok().filter(|n| (1..=MAX_ELEMENTS).contains(n));
                    spec.parameters = elements.ok_or_else(bad)?;
                }
                "us-per-sample" => spec.per_sample = Duration::from_micros(value.parse().map_err(|_| bad())?),
                "jitter" => {
                    spec.jitter = value.parse().ok().filter(|j| (0.0..=1.0).contains(j)).ok_or_else(bad)?;
                }
                _ => return Err(bad()),
            }
        }
        Ok(spec)
    }
}

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
        TensorSpec::new(format!("synthetic{index}.weight"), &[size as u32], 0.1)
    });
    Manifest::new(specs.collect()).expect("four tensors make a manifest")
}

/// How one worker's engine differs from the others', for tests: the environment variable
/// `TALLY_SYNTHETIC`, such as `slower=3,flip=10`. Unknown words are ignored.
#[derive(Debug)]
struct Deviation {
    /// Gradients take so many times as long.
    slower: f64,
    /// In every microbatch whose number is a multiple of this, a bit of the gradient is wrong; 0 for none.
    flip: u64,
}

impl Deviation {
    fn from_environment() -> Self {
        let text = std::env::var("TALLY_SYNTHETIC").unwrap_or_default();
        let value = |name: &str| {
            let of = text.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            of.and_then(|value| value.parse::<f64>().ok()).filter(|value| value.is_finite() && *value >= 0.0)
        };
        Self { slower: value("slower").unwrap_or(1.0), flip: value("flip").unwrap_or(0.0) as u64 }
    }
}

/// An engine with hashed gradients.
pub struct SyntheticEngine {
    spec: SyntheticSpec,
    schema: Schema,
    manifest: Manifest,
    replica: HostReplica,
    /// Noise in ±1, twice over, so that a stretch of [`NOISE`] may start anywhere in the first.
    noise: Vec<f32>,
    deviation: Deviation,
    /// How many gradients were computed.
    gradients: u64,
}

impl SyntheticEngine {
    /// An engine with the losses and metrics of this schema. Its state is zero until it is given one.
    #[must_use]
    pub fn new(spec: SyntheticSpec, schema: Schema) -> Self {
        let manifest = manifest(&spec);
        let mut replica = HostReplica::default();
        replica.load(State::zeros(&manifest, 1));
        let once = (0..NOISE as u64).map(|i| (2.0 * fraction(mix(i)) - 1.0) as f32);
        let noise = once.clone().chain(once).collect();
        let deviation = Deviation::from_environment();
        Self { spec, schema, manifest, replica, noise, deviation, gradients: 0 }
    }

    /// The sums of the samples' losses: the first from 0.1 to 1.1 a sample, the others from 1 to 2.
    fn losses(&self, samples: &Microbatch) -> Sums {
        let mut sums = vec![0.0; self.schema.losses().len()];
        for &id in samples.ids() {
            for (index, sum) in sums.iter_mut().enumerate() {
                let least = if index == 0 { 0.1 } else { 1.0 };
                *sum += least + hashed(id, 2 + index as u64);
            }
        }
        Sums(sums)
    }

    /// The time that these samples take.
    fn duration(&self, samples: &Microbatch, hash: u64) -> Duration {
        let whole = self.spec.per_sample.as_secs_f64() * samples.len() as f64 * self.deviation.slower;
        let stray = self.spec.jitter * (2.0 * fraction(mix(hash ^ 1)) - 1.0);
        Duration::from_secs_f64((whole * (1.0 + stray)).clamp(0.0, 1e6))
    }
}

impl Replica for SyntheticEngine {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn device_name(&self) -> String {
        format!("synthetic ({:?} a sample)", self.spec.per_sample)
    }

    fn numerics_class(&self) -> String {
        "synthetic".into()
    }

    fn load(&mut self, state: State) -> Digest {
        assert!(state.fits(&self.manifest), "a state has the manifest's length");
        self.replica.load(state)
    }

    fn state(&mut self) -> Result<State, EngineError> {
        Ok(self.replica.state().clone())
    }

    fn previous_state(&mut self) -> Option<State> {
        self.replica.previous().cloned()
    }

    fn apply(&mut self, update: &Update, first: usize, gradient: &[f32]) -> Digest {
        self.replica.apply(update, first, gradient)
    }

    fn commit(&mut self) {
        self.replica.commit();
    }
}

impl Engine for SyntheticEngine {
    /// Only ids are read, so samples of any bytes will do.
    fn check(&self, _samples: &Microbatch) -> Result<(), EngineError> {
        Ok(())
    }

    fn gradient(
        &mut self,
        samples: &Microbatch,
        scale: f32,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Sums, EngineError> {
        assert_eq!(out.len(), self.manifest.len(), "a gradient has the manifest's length");
        let start = Instant::now();
        let hash = of_samples(samples.ids().iter().copied());
        let duration = self.duration(samples, hash);
        let height =
            scale * samples.ids().iter().map(|&id| fraction(mix(u64::from(id))) as f32 - 0.5).sum::<f32>();
        let pull = 0.01 * scale * samples.len() as f32;

        self.gradients += 1;
        let flip = self.deviation.flip > 0 && self.gradients.is_multiple_of(self.deviation.flip);
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

        Ok(self.losses(samples))
    }

    /// Losses as in training. A ratio is the share of samples whose hash says so; other metrics are zeros.
    fn evaluate(&mut self, samples: &Microbatch) -> Result<Sums, EngineError> {
        std::thread::sleep(self.duration(samples, of_samples(samples.ids().iter().copied())));
        let Sums(mut sums) = self.losses(samples);
        for (index, metric) in self.schema.metrics().iter().enumerate() {
            match metric.kind {
                MetricKind::Ratio { .. } => {
                    let counts = |id: &&u32| hashed(**id, METRICS + index as u64) < 0.5;
                    let numerator = samples.ids().iter().filter(counts).count();
                    sums.extend([numerator as f64, samples.len() as f64]);
                }
                ref counts => sums.resize(sums.len() + counts.width(), 0.0),
            }
        }
        Ok(Sums(sums))
    }
}

/// A number in `[0, 1)` for each sample and each thing that is measured of it.
fn hashed(id: u32, what: u64) -> f64 {
    // The three lowest bits are as they were when there were three losses, so that these keep their values.
    fraction(mix((what >> 3) << 35 | u64::from(id) << 3 | what & 7))
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
    use std::borrow::Cow;

    use tally_numerics::schema::{LossSpec, MetricSpec};

    use super::*;

    fn samples(ids: impl IntoIterator<Item = u32>) -> Microbatch {
        Microbatch::new(ids.into_iter().map(|id| (id, Cow::Borrowed(&b"any"[..]))))
    }

    fn schema() -> Schema {
        let loss = |name: &str| LossSpec { name: name.into(), label: name.into() };
        let metric = |name: &str, kind| MetricSpec { name: name.into(), label: name.into(), kind };
        let metrics = vec![
            metric("right", MetricKind::Ratio { higher_is_better: true }),
            metric("errors", MetricKind::Histogram { first: -1, bins: 3 }),
            metric("wrong", MetricKind::Ratio { higher_is_better: false }),
        ];
        Schema::new(["label", "sum", "difference", "more"].map(loss).into(), metrics, None).unwrap()
    }

    fn engine(text: &str) -> SyntheticEngine {
        let mut engine = SyntheticEngine::new(text.parse().unwrap(), schema());
        let parameters = tally_numerics::init::parameters(&engine.manifest, 1);
        engine.load(State::new(parameters, &engine.manifest.clone(), 1));
        engine
    }

    fn gradient(engine: &mut SyntheticEngine, samples: &Microbatch) -> Vec<f32> {
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
    fn sum_1_a_microbatch_has_the_same_gradient_in_every_engine() {
        let (mut one, mut two) = (engine("parameters=300000"), engine("parameters=300000"));
        let eight = samples(0..8);
        let first = gradient(&mut one, &eight);
        gradient(&mut two, &samples(8..16));
        assert_eq!(first, gradient(&mut two, &eight));
        assert_eq!(first, gradient(&mut one, &eight));
    }

    #[test]
    fn other_samples_elements_and_parameters_give_other_gradients() {
        let mut engine = engine("parameters=300000");
        let (one, two) = (gradient(&mut engine, &samples(0..8)), gradient(&mut engine, &samples(8..16)));
        assert!(one.iter().zip(&two).filter(|(a, b)| a == b).count() < 100);
        assert!(one[..30_000].iter().zip(&one[CHUNK..]).filter(|(a, b)| a == b).count() < 100);
        let mut state = engine.state().unwrap();
        state.parameters[77] = f32::from_bits(state.parameters[77].to_bits() ^ (1 << 22));
        engine.load(state);
        let other = gradient(&mut engine, &samples(0..8));
        assert_eq!(one.iter().zip(&other).filter(|(a, b)| a != b).count(), 1);
        assert_ne!(one[77], other[77]);
    }

    #[test]
    fn chunks_are_ready_one_after_the_other_and_losses_are_positive() {
        let elements = 2 * CHUNK + 7;
        let mut engine = engine(&format!("parameters={elements}"));
        let mut out = vec![0.0; elements];
        let mut prefixes = Vec::new();
        let losses =
            engine.gradient(&samples(0..8), 1.0, &mut out, &mut |done| prefixes.push(done.len())).unwrap();
        assert_eq!(prefixes, [CHUNK, 2 * CHUNK, elements]);
        assert!(losses.0.len() == 4 && losses.0.iter().all(|&loss| loss > 0.0), "{losses}");
    }

    /// A second implementation of SplitMix64 computed these values. The first three are those of the engine before losses
    /// had a schema.
    #[test]
    fn the_losses_of_a_sample_are_pinned() {
        let engine = engine("parameters=9");
        let losses = engine.losses(&samples([7]));
        let expect = [1.0556498527526856, 1.749491572380066, 1.9276313781738281, 1.3357000350952148];
        assert_eq!(losses.0, expect);
    }

    #[test]
    fn a_test_pass_has_losses_shares_of_the_samples_and_empty_counts() {
        let mut engine = engine("parameters=9");
        let all = samples(0..1000);
        let sums = engine.evaluate(&all).unwrap();
        assert_eq!(sums.0.len(), schema().width());
        assert_eq!(sums.0[..4], engine.losses(&all).0);
        let [right, of, .., wrong, also_of] = sums.0[4..] else { unreachable!() };
        assert_eq!((of, also_of, &sums.0[6..9]), (1000.0, 1000.0, &[0.0; 3][..]));
        assert!(
            (400.0..600.0).contains(&right) && (400.0..600.0).contains(&wrong) && right != wrong,
            "{sums}"
        );
    }

    #[test]
    fn a_specification_reads_as_it_prints_and_a_wrong_one_is_named() {
        let text = "parameters=7,us-per-sample=20,jitter=0.25";
        assert_eq!(text.parse::<SyntheticSpec>().unwrap().to_string(), text);
        assert_eq!("".parse::<SyntheticSpec>().unwrap(), SyntheticSpec::default());
        for text in ["parameters=0", "jitter=2", "size=3", "us-per-sample"] {
            assert!(text.parse::<SyntheticSpec>().unwrap_err().contains(text), "{text}");
        }
    }

    #[test]
    fn parameters_stay_finite_and_small() {
        let mut engine = engine("parameters=500");
        let update = Update::sgd(0.1, 0.9, 1.0);
        for step in 0..20_000u32 {
            let mut out = vec![0.0; 500];
            let ids = samples([step * 3, step * 3 + 1, step * 3 + 2]);
            engine.gradient(&ids, 1.0 / 3.0, &mut out, &mut |_| ()).unwrap();
            engine.apply(&update, 0, &out);
            engine.commit();
        }
        assert!(engine.state().unwrap().parameters.iter().all(|p| p.abs() < 20.0));
    }

    #[test]
    fn a_microbatch_takes_its_time() {
        let mut engine = engine("parameters=1000,us-per-sample=5000,jitter=0.5");
        let start = Instant::now();
        gradient(&mut engine, &samples(0..8));
        assert!(start.elapsed() >= Duration::from_millis(20));
        let eight = samples(0..8);
        let durations = [1, 2, 3].map(|hash| engine.duration(&eight, hash));
        assert!(durations.iter().all(|d| (20..=60).contains(&d.as_millis())), "{durations:?}");
        assert_ne!(durations[0], durations[1]);
    }
}
