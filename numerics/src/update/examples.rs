//! Updates that a device must compute as the host does, with what comes out (**REP-1**).

use super::Update;
use super::rule::{Adam, Lion, RmsProp, Rule, Sgd};
use crate::digest::Digest;
use crate::manifest::{Manifest, Segments, TensorSpec};
use crate::state::State;

/// Elements of the states: no multiple of anything.
pub const ELEMENTS: usize = 1021;

/// An update of a state.
#[derive(Clone, Debug)]
pub struct Example {
    /// What is special about it, for messages.
    pub name: &'static str,
    /// The update.
    pub update: Update,
    /// The state before it.
    pub before: State,
    /// The gradient.
    pub gradient: Vec<f32>,
    /// The state after it, as the host computes it.
    pub after: State,
    /// The digest of that.
    pub digest: Digest,
}

impl Example {
    fn new(name: &'static str, update: Update) -> Self {
        // From −1 to 1. A product that is rounded on its own before it is added changes a third of the results.
        let numbers = |seed: usize| -> Vec<f32> {
            let bits = (0..ELEMENTS).map(|i| ((i + ELEMENTS * seed) as u32).wrapping_mul(2_654_435_761));
            bits.map(|bits| bits as f32 / 2f32.powi(31) - 1.0).collect()
        };
        let gradient = numbers(0);
        // Mean squares are not negative.
        let moment = |k: usize| numbers(k + 2).into_iter().map(f32::abs).collect();
        let before = State { parameters: numbers(1), moments: (0..update.moments()).map(moment).collect() };
        let mut after = before.clone();
        let mut moments: Vec<&mut [f32]> = after.moments.iter_mut().map(Vec::as_mut_slice).collect();
        let digest = update.apply(0, &gradient, &mut after.parameters, &mut moments);
        Self { name, update, before, gradient, after, digest }
    }
}

/// An update by each rule, and one of two groups and a running statistic with clipped elements.
#[must_use]
pub fn examples() -> Vec<Example> {
    let mut examples: Vec<Example> =
        rules().into_iter().map(|(name, rule)| Example::new(name, Update::of(rule, 0.7312))).collect();
    if let Some(segments) = two_groups_and_a_statistic() {
        let groups =
            [Rule::Adam(ADAM), Rule::Adam(Adam { step_size: 0.5 * ADAM.step_size, keep: 0.9, ..ADAM })];
        let update = Update::new(groups, segments, 0.7312, 0.25);
        examples.push(Example::new("two groups and a running statistic", update));
    }
    examples
}

fn two_groups_and_a_statistic() -> Option<Segments> {
    let spec = |name: &str, elements: usize| TensorSpec::new(name, &[elements as u32], 0.0);
    let tensors = vec![
        TensorSpec { group: 1, ..spec("a", 77) },
        spec("b", 224),
        TensorSpec { buffer: true, ..spec("c", ELEMENTS - 301) },
    ];
    Manifest::new(tensors).ok().map(|manifest| manifest.segments().clone())
}

const ADAM: Adam = Adam {
    step_size: 0.0171,
    beta1: 0.9,
    gradient1: 0.1,
    beta2: 0.99,
    gradient2: 0.01,
    correction: 1.7,
    epsilon: 1e-8,
    weight_decay: 0.0,
    keep: 1.0,
    cautious: false,
    amsgrad: false,
};

/// A rule of each kind, with every one of its options at least once.
#[must_use]
pub fn rules() -> Vec<(&'static str, Rule)> {
    let sgd = Sgd { learning_rate: 0.0371, momentum: 0.9, gradient: 1.0, weight_decay: 0.0, nesterov: false };
    let rms_prop = RmsProp {
        learning_rate: 0.0171,
        alpha: 0.9,
        gradient: 0.1,
        epsilon: 1e-8,
        momentum: 0.0,
        weight_decay: 0.0,
        centered: false,
    };
    let lion = Lion {
        learning_rate: 0.0171,
        beta1: 0.9,
        gradient1: 0.1,
        beta2: 0.99,
        gradient2: 0.01,
        keep: 0.9991,
    };
    vec![
        ("SGD", Rule::Sgd(sgd)),
        (
            "SGD with Nesterov's momentum",
            Rule::Sgd(Sgd { gradient: 0.7, weight_decay: 0.013, nesterov: true, ..sgd }),
        ),
        ("Adam", Rule::Adam(ADAM)),
        ("AMSGrad", Rule::Adam(Adam { weight_decay: 0.013, amsgrad: true, ..ADAM })),
        ("AdamW with a cautious decay", Rule::Adam(Adam { keep: 0.991, cautious: true, ..ADAM })),
        ("RMSProp", Rule::RmsProp(rms_prop)),
        ("RMSProp with momentum", Rule::RmsProp(RmsProp { momentum: 0.9, weight_decay: 0.013, ..rms_prop })),
        ("centered RMSProp", Rule::RmsProp(RmsProp { centered: true, ..rms_prop })),
        (
            "centered RMSProp with momentum",
            Rule::RmsProp(RmsProp { momentum: 0.9, centered: true, ..rms_prop }),
        ),
        ("Lion", Rule::Lion(lion)),
    ]
}
