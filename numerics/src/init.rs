//! Initial parameters, drawn on the host so that they are the same on every device.

use crate::digest::fnv1a;
use crate::manifest::Manifest;
use crate::random::{Purpose, Stream};

/// A flat vector of initial parameters: element `i` of a tensor is `bound·(2u − 1)` with
/// `u` the `i`-th fraction of the tensor's stream, in double, rounded to `f32` at the end.
///
/// A tensor's values depend only on the seed, its name and its bound, so another order of the manifest does not
/// change them.
#[must_use]
pub fn parameters(manifest: &Manifest, seed: u64) -> Vec<f32> {
    let mut values = Vec::with_capacity(manifest.len());
    for tensor in manifest.tensors() {
        let mut stream = Stream::new(seed, Purpose::Initial { name: fnv1a(tensor.name.bytes()) });
        values
            .extend((0..tensor.elements()).map(|_| (tensor.bound * (2.0 * stream.fraction() - 1.0)) as f32));
    }
    values
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::manifest::TensorSpec;

    #[test]
    fn values_fill_their_bound_and_nothing_more() {
        let manifest = Manifest::new(vec![TensorSpec::with_fan_in("w", &[100, 100], 25)]).unwrap();
        let values = parameters(&manifest, 3);
        assert!(values.iter().all(|x| x.abs() <= 0.2));
        assert!(values.iter().any(|x| *x > 0.199) && values.iter().any(|x| *x < -0.199));
        let mean: f32 = values.iter().sum::<f32>() / 10_000.0;
        // The mean of 10 000 uniform draws in ±0.2 has a standard deviation of 0.0012.
        assert!(mean.abs() < 0.007, "{mean}");
    }

    #[test]
    fn a_tensors_values_follow_its_name_not_its_place() {
        let (a, b) = (TensorSpec::with_fan_in("a", &[5], 1), TensorSpec::with_fan_in("b", &[3], 1));
        let one = parameters(&Manifest::new(vec![a.clone(), b.clone()]).unwrap(), 9);
        let two = parameters(&Manifest::new(vec![b, a]).unwrap(), 9);
        assert_eq!((&one[..5], &one[5..]), (&two[3..], &two[..3]));
    }
}
