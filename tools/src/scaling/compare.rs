//! A measured case as `coordinator plan` sees it, and how far apart they are.

use serde::{Deserialize, Serialize};
use tally_capacity::{Cluster, Computing, Network, predict};
use tally_mnist::program::SAMPLE_BYTES;
use tally_mnist::{ModelSpec, manifest};
use tally_numerics::CHUNK;
use tally_numerics::tree::Tree;

use super::calibrate::Calibration;
use super::measure::{Case, Measured};

/// A case, what was predicted and what was seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// The case.
    pub case: Case,
    /// Seconds of a step, predicted.
    pub step: f64,
    /// Seconds of a processor that the coordinator needs for a step, predicted.
    pub cpu: f64,
    /// Bytes of the coordinator's memory, predicted.
    pub memory: f64,
    /// What was seen.
    pub measured: Measured,
}

impl Compared {
    /// Predicts a case that was measured.
    #[must_use]
    pub fn new(case: Case, calibration: &Calibration, measured: Measured) -> Self {
        let predicted = predict(&cluster(&case, calibration));
        Self {
            case,
            step: predicted.step_seconds,
            cpu: predicted.cpu_seconds,
            memory: predicted.memory.total() as f64,
            measured,
        }
    }

    /// By how much the step was predicted too long, as a share of what it was.
    #[must_use]
    pub fn error(&self) -> f64 {
        self.step / self.measured.step - 1.0
    }

    /// The same of the coordinator's processor time.
    #[must_use]
    pub fn cpu_error(&self) -> f64 {
        self.cpu / self.measured.cpu.coordinators() - 1.0
    }

    /// The same of the coordinator's memory.
    #[must_use]
    pub fn memory_error(&self) -> f64 {
        self.memory / self.measured.memory - 1.0
    }
}

/// Bytes of MNIST as the coordinator holds it, with one test sample: pixels, label, number.
const DATA: usize = 60_001 * 786;

/// The cluster of a case: on this machine, whose cores everybody shares.
///
/// # Panics
/// If the case's model or microbatches are none.
#[must_use]
pub fn cluster(case: &Case, calibration: &Calibration) -> Cluster {
    let model: ModelSpec = case.model.parse().expect("the case has a model");
    let ModelSpec::Synthetic(spec) = &model else { panic!("{model} is no synthetic model") };
    let network =
        case.link.map_or_else(Network::unlimited, |bits| Network::of_bits(bits, f64::INFINITY, 0.0));
    Cluster {
        workers: case.workers,
        parameters: manifest(&model).len(),
        wire_dtype: case.wire_dtype,
        batch_size: case.batch_size,
        tree: Tree::new(case.microbatches).expect("the case has microbatches"),
        clipped: true,
        computing: Computing {
            sample: spec.per_sample.as_secs_f64(),
            subtree: 0.0,
            at_once: false,
            first_chunk: 0.0,
            uses_core: false,
            element: if spec.parameters <= CHUNK {
                calibration.make_small_element
            } else {
                calibration.make_element
            },
            oversleep: calibration.oversleep,
        },
        network,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        one_machine: true,
        per_machine: 1,
        sample_bytes: SAMPLE_BYTES,
        moments: 1,
        data_bytes: DATA,
        costs: calibration.costs,
    }
}
