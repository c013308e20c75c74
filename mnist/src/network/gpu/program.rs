//! The kernels' source, put together for a precision and a GPU.
//!
//! What the host knows of the network is written before the kernels as constants, so that it
//! stands in one place and the compiler can count on it. A convolution's kernels are compiled once for
//! each layer.

use std::fmt::Write as _;

use tally_numerics::manifest::Manifest;

use super::layers::{CONVOLUTIONS, Convolution, HEADS_GROUP, LOGITS_GROUP, RECORD, Warps, stages};
use tally_worker::device::Precision;

/// The tensors whose places among the parameters the kernels know, by their names there.
const PLACES: [(&str, &str); 9] = [
    ("SUM3", "sum3.weight"),
    ("DIFF3", "diff3.weight"),
    ("SUM2", "sum2.weight"),
    ("DIFF2", "diff2.weight"),
    ("SUM1", "sum1.weight"),
    ("DIFF1", "diff1.weight"),
    ("DENSE2", "dense2.weight"),
    ("DENSE1", "dense1.weight"),
    ("HEADS", "conv7.weight"),
];

/// What a convolution's sums go through.
#[derive(Clone, Copy)]
enum After {
    Nothing = 0,
    BiasRelu = 1,
    ReluBack = 2,
}

/// The program for a network, in a precision, on processors with so many bytes of shared memory.
#[must_use]
pub fn source(manifest: &Manifest, precision: Precision, shared: usize) -> String {
    let mut text = String::new();
    let define = |text: &mut String, name: &str, value: usize| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "#define {name} {value}");
    };
    let precision = match precision {
        Precision::F32 => 0,
        Precision::Tf32 => 1,
        Precision::Bf16 => 2,
    };
    define(&mut text, "PRECISION", precision);
    for (name, tensor) in PLACES {
        define(&mut text, name, manifest.find(tensor).map_or(0, |index| manifest.range(index).start));
    }
    for (name, value) in [("RECORD", RECORD), ("LOGITS_GROUP", LOGITS_GROUP), ("HEADS_GROUP", HEADS_GROUP)] {
        define(&mut text, name, value);
    }
    text.push_str(include_str!("kernels/common.cu"));
    text.push_str(include_str!("kernels/product.cu"));
    let mut instance =
        |kernel: &str, name: String, layer: Convolution, warps: Warps, tile: usize, after: After| {
            let Convolution { inputs, outputs, side_in, padding, .. } = layer;
            let values = [
                ("INPUTS", inputs),
                ("OUTPUTS", outputs),
                ("SIDE_IN", side_in),
                ("SIDE_OUT", layer.side_out()),
                ("PADDING", padding),
                ("WARPS_M", warps.rows),
                ("WARPS_N", warps.columns),
                ("STAGES", stages(warps, tile, shared)),
                ("AFTER", after as usize),
            ];
            let _ = writeln!(text, "#define NAME {name}");
            values.iter().for_each(|(name, value)| define(&mut text, name, *value));
            text.push_str(kernel);
            let names = values.iter().map(|(name, _)| *name).chain(["NAME"]);
            names.for_each(|name| text.extend(["#undef ", name, "\n"]));
        };
    for layer in CONVOLUTIONS {
        let name = layer.name;
        let convolution = include_str!("kernels/convolution.cu");
        instance(convolution, forward(&layer), layer, layer.warps(), layer.tile(), After::BiasRelu);
        let back = layer.backward();
        // Before a pool there is a ReLU too, but the pool's way back goes through it.
        let after = if matches!(name, "conv3" | "conv5") { After::Nothing } else { After::ReluBack };
        instance(convolution, backward(&layer), back, back.warps(), back.tile(), after);
        let (warps, tile) = (layer.warps_by_weights(), layer.tile_by_weights());
        instance(
            include_str!("kernels/by_weights.cu"),
            by_weights(&layer),
            layer,
            warps,
            tile,
            After::Nothing,
        );
    }
    for rest in [
        include_str!("kernels/first.cu"),
        include_str!("kernels/pool.cu"),
        include_str!("kernels/heads.cu"),
        include_str!("kernels/sums.cu"),
        include_str!("kernels/pack.cu"),
        include_str!("kernels/update.cu"),
    ] {
        text.push_str(rest);
    }
    text
}

/// The kernel of a layer's results.
#[must_use]
pub fn forward(layer: &Convolution) -> String {
    format!("{}_forward", layer.name)
}

/// The kernel of the gradient by its inputs.
#[must_use]
pub fn backward(layer: &Convolution) -> String {
    format!("{}_backward", layer.name)
}

/// The kernel of the gradient by its weights.
#[must_use]
pub fn by_weights(layer: &Convolution) -> String {
    format!("{}_by_weights", layer.name)
}

/// Every kernel that the host starts.
#[must_use]
pub fn kernels() -> Vec<String> {
    let own =
        ["first_forward", "first_by_weights", "pool_forward", "pool_backward", "logits_forward", "heads"]
            .into_iter()
            .chain([
                "heads_by_weights",
                "logits_backward",
                "logits_by_weights",
                "sum_pixels",
                "gather",
                "add_nodes",
            ])
            .chain(["upper_halves", "pack_both", "pack_exact", "update"])
            .map(str::to_owned);
    own.chain(CONVOLUTIONS.iter().flat_map(|layer| [forward(layer), backward(layer), by_weights(layer)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::burn::Network as _;
    use crate::network::burn::networks::Reference;

    #[test]
    fn the_program_has_every_kernel_that_is_started_and_no_other() {
        let source = source(&Reference.manifest(), Precision::Tf32, 227 * 1024);
        let starts: Vec<&str> = source.lines().filter(|line| line.starts_with("KERNEL ")).collect();
        let instances = source.lines().filter_map(|line| line.strip_prefix("#define NAME "));
        let named = |line: &&str| {
            line.split('(').nth(1).and_then(|rest| rest.split_once(") ")).map(|(_, name)| name.to_owned())
        };
        let own = starts.iter().filter_map(named).filter(|name| name != "NAME");
        let mut there: Vec<String> = own.chain(instances.map(str::to_owned)).collect();
        let mut wanted = kernels();
        there.sort();
        wanted.sort();
        assert_eq!(there, wanted);
    }

    #[test]
    fn the_dense_layers_come_first_and_without_a_gap() {
        let manifest = Reference.manifest();
        let source = source(&manifest, Precision::F32, 0);
        let value = |name: &str| {
            let line = source.lines().find_map(|line| line.strip_prefix(&format!("#define {name} ")));
            line.and_then(|value| value.parse::<usize>().ok())
        };
        assert_eq!((value("SUM3"), value("DIFF3"), value("PRECISION")), (Some(0), Some(129), Some(0)));
        assert_eq!(value("HEADS"), manifest.find("conv7.weight").map(|index| manifest.range(index).start));
    }
}
