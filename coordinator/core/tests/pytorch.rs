//! The optimizers are PyTorch's: the parameters after 50 steps are as near to its results in double precision as its own in
//! single precision are. `tests/pytorch/optimizers.py` wrote the values.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use tally_core::optimizer::OptimizerConfig;
use tally_numerics::manifest::{Manifest, TensorSpec};
use tally_numerics::norm;
use tally_numerics::state::State;

/// How many times PyTorch's own distance ours may be: both are a handful of roundings in another order.
const TIMES: f64 = 3.0;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn single(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|number| number as f32).collect()
}

fn settings(case: &Value) -> OptimizerConfig {
    let mut settings = serde_json::json!({ "momentum": 0.0, "warmup_steps": 0, "lr_schedule": "constant" });
    settings.as_object_mut().unwrap().extend(case["settings"].as_object().unwrap().clone());
    serde_json::from_value(settings).unwrap()
}

/// The parameters after all gradients.
fn train(golden: &Value, config: &OptimizerConfig) -> Vec<f32> {
    let start = single(&golden["start"]);
    let first = golden["first_tensor"].as_u64().unwrap() as usize;
    let second = u32::from(!config.groups.is_empty());
    let tensor = |name: &str, elements: usize, group| TensorSpec {
        group,
        ..TensorSpec::new(name, &[elements as u32], 0.0)
    };
    let tensors = vec![tensor("a", first, 0), tensor("b", start.len() - first, second)];
    let manifest = Manifest::new(tensors).unwrap();
    config.check(str::to_owned).unwrap();
    config.check_groups(&manifest).unwrap();
    let mut state = State::new(start, &manifest, config.moments().len());
    let gradients = golden["gradients"].as_array().unwrap();
    for (step, gradient) in (1..).zip(gradients) {
        let gradient = single(gradient);
        let clip = norm::clip_factor(norm::sum_of_squares(&gradient), config.clip_norm);
        let rate = config.rate(step, gradients.len() as u64);
        let update = config.update(step, rate, clip, manifest.segments());
        let State { parameters, moments } = &mut state;
        let mut moments: Vec<&mut [f32]> = moments.iter_mut().map(Vec::as_mut_slice).collect();
        update.apply(0, &gradient, parameters, &mut moments);
    }
    state.parameters
}

fn distance(ours: &[f32], theirs: &[f64]) -> f64 {
    ours.iter().zip(theirs).map(|(ours, theirs)| (f64::from(*ours) - theirs).abs()).fold(0.0, f64::max)
}

#[test]
fn fifty_steps_of_every_optimizer_are_pytorchs() {
    let golden: Value = serde_json::from_str(include_str!("optimizers.json")).unwrap();
    let cases = golden["cases"].as_object().unwrap();
    assert_eq!((cases.len(), golden["gradients"].as_array().unwrap().len()), (19, 50));
    for (name, case) in cases {
        let config = settings(case);
        let (wanted, spread) = (numbers(&case["parameters"]), case["spread"].as_f64().unwrap());
        let error = distance(&train(&golden, &config), &wanted);
        assert!(error <= TIMES * spread, "{name}: off by {error:e} where PyTorch is by {spread:e}");
    }
}

/// A setting that has no effect would pass unseen above if PyTorch's had none either.
#[test]
fn every_setting_changes_the_result() {
    let golden: Value = serde_json::from_str(include_str!("optimizers.json")).unwrap();
    for (name, case) in golden["cases"].as_object().unwrap() {
        let (wanted, spread) = (numbers(&case["parameters"]), case["spread"].as_f64().unwrap());
        let neutral = [
            ("momentum", serde_json::json!(0.0)),
            ("dampening", serde_json::json!(0.0)),
            ("nesterov", serde_json::json!(false)),
            ("maximize", serde_json::json!(false)),
            ("amsgrad", serde_json::json!(false)),
            ("centered", serde_json::json!(false)),
            ("weight_decay", serde_json::json!(0.0)),
            ("betas", serde_json::json!([0.5, 0.6])),
            ("alpha", serde_json::json!(0.5)),
            ("epsilon", serde_json::json!(1e-2)),
            ("clip_norm", Value::Null),
            ("clip_value", Value::Null),
        ];
        for (setting, value) in neutral {
            let given = case["settings"].get(setting);
            if given.is_none_or(|given| *given == value || given.as_f64() == Some(0.0)) {
                continue;
            }
            let mut other = case.clone();
            other["settings"][setting] = value;
            if setting == "momentum" {
                other["settings"]["nesterov"] = false.into();
            }
            let error = distance(&train(&golden, &settings(&other)), &wanted);
            assert!(error > 20.0 * spread, "{name}: without {setting} it is off by {error:e} only");
        }
    }
}
