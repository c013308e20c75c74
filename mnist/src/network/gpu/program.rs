//! The kernels' source, put together for a precision and a GPU.
//!
//! What the host knows of the network is written before the kernels as constants, so that it
//! stands in one place and the compiler can count on it. A convolution's kernels are compiled once for
//! each layer.

use std::fmt::{self, Write as _};
use std::fs;
use std::path::{Path, PathBuf};

use tally_numerics::manifest::Manifest;
use tally_worker::device::Precision;

use super::layers::{CONVOLUTIONS, Convolution, HEADS_GROUP, LOGITS_GROUP, RECORD, Shape, Variant};

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

macro_rules! files {
    ($($name:literal),* $(,)?) => { [$(($name, include_str!(concat!("kernels/", $name, ".cu")))),*] };
}
/// The names of the kernels' sources, without `.cu`, and their text.
const FILES: [(&str, &str); 12] = files![
    "common",
    "product",
    "group",
    "convolution",
    "warpgroups",
    "by_weights",
    "first",
    "pool",
    "heads",
    "sums",
    "pack",
    "update",
];

/// The environment variable that names a folder with the kernels' sources. They replace those in this program, so that changed
/// kernels can be tried on a machine without Rust.
pub const KERNELS: &str = "TALLY_KERNELS";

/// The place of the kernels' sources: a folder, or this program.
#[derive(Clone, Debug, Default)]
pub struct Sources(Option<PathBuf>);

impl Sources {
    /// The folder that [`KERNELS`] names, or else this program.
    #[must_use]
    pub fn of_the_environment() -> Self {
        Self(std::env::var_os(KERNELS).filter(|folder| !folder.is_empty()).map(PathBuf::from))
    }

    /// Writes the sources in this program to a folder.
    ///
    /// # Errors
    /// If a file or the folder cannot be written.
    pub fn write(folder: &Path) -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        FILES.iter().try_for_each(|(name, text)| fs::write(folder.join(name).with_extension("cu"), text))
    }

    fn read(&self, name: &str) -> Result<String, String> {
        match &self.0 {
            None => Ok(FILES.iter().find(|(own, _)| *own == name).map_or("", |(_, text)| text).to_owned()),
            Some(folder) => {
                let file = folder.join(name).with_extension("cu");
                fs::read_to_string(&file).map_err(|error| {
                    format!(
                        "{KERNELS}: cannot read {}: {error}; `gpu-check --sources DIR` writes them all",
                        file.display()
                    )
                })
            }
        }
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Sources of a folder may compute other bits, whatever its name is.
        f.write_str(if self.0.is_some() { "kernels of a folder" } else { "" })
    }
}

/// The program for a network, in a precision and a variant, on processors with so many bytes of shared memory.
///
/// # Errors
/// If a source cannot be read.
pub fn source(
    sources: &Sources,
    manifest: &Manifest,
    precision: Precision,
    how: Variant,
    shared: usize,
) -> Result<String, String> {
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
    define(&mut text, "HALF", usize::from(how.half));
    define(&mut text, "MATRIX_LOADS", usize::from(how.half || how.ldmatrix));
    for (name, tensor) in PLACES {
        define(&mut text, name, manifest.find(tensor).map_or(0, |index| manifest.range(index).start));
    }
    for (name, value) in [("RECORD", RECORD), ("LOGITS_GROUP", LOGITS_GROUP), ("HEADS_GROUP", HEADS_GROUP)] {
        define(&mut text, name, value);
    }
    let [convolution, warpgroups, weights] =
        ["convolution", "warpgroups", "by_weights"].map(|name| sources.read(name));
    let (convolution, warpgroups, weights) = (convolution?, warpgroups?, weights?);
    text.push_str(&sources.read("common")?);
    text.push_str(&sources.read("product")?);
    if how.wgmma {
        text.push_str(&sources.read("group")?);
    }
    let mut instance = |kernel: &str, name: String, layer: Convolution, shape: Shape, after: After| {
        let Convolution { inputs, outputs, side_in, padding, .. } = layer;
        let values = [
            ("INPUTS", inputs),
            ("OUTPUTS", outputs),
            ("SIDE_IN", side_in),
            ("SIDE_OUT", layer.side_out()),
            ("PADDING", padding),
            ("WARPS_M", shape.rows),
            ("WARPS_N", shape.columns),
            ("WARP_COLUMNS", shape.across),
            ("STAGES", shape.stages(shared)),
            ("BLOCKS", shape.bound()),
            ("AFTER", after as usize),
        ];
        let _ = writeln!(text, "#define NAME {name}");
        values.iter().for_each(|(name, value)| define(&mut text, name, *value));
        text.push_str(kernel);
        let names = values.iter().map(|(name, _)| *name).chain(["NAME"]);
        names.for_each(|name| text.extend(["#undef ", name, "\n"]));
    };
    for layer in CONVOLUTIONS {
        let back = layer.backward();
        // Before a pool there is a ReLU too, but the pool's way back goes through it.
        let after = if matches!(layer.name, "conv3" | "conv5") { After::Nothing } else { After::ReluBack };
        for (name, way, after) in [(forward(&layer), layer, After::BiasRelu), (backward(&layer), back, after)]
        {
            let shape = way.shape(how);
            instance(if shape.warpgroups { &warpgroups } else { &convolution }, name, way, shape, after);
        }
        instance(&weights, by_weights(&layer), layer, layer.shape_by_weights(how), After::Nothing);
    }
    for rest in ["first", "pool", "heads", "sums", "pack", "update"] {
        text.push_str(&sources.read(rest)?);
    }
    Ok(text)
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::network::burn::Network as _;
    use crate::network::burn::networks::Reference;

    fn program(precision: Precision, how: &str) -> String {
        let how = Variant::parse(how).unwrap();
        source(&Sources::default(), &Reference.manifest(), precision, how, 227 * 1024).unwrap()
    }

    #[test]
    fn the_program_has_every_kernel_that_is_started_and_no_other() {
        for how in ["", "half,wgmma"] {
            let source = program(Precision::Bf16, how);
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
    }

    #[test]
    fn the_dense_layers_come_first_and_without_a_gap() {
        let source = program(Precision::F32, "");
        let manifest = Reference.manifest();
        let value = |name: &str| {
            let line = source.lines().find_map(|line| line.strip_prefix(&format!("#define {name} ")));
            line.and_then(|value| value.parse::<usize>().ok())
        };
        assert_eq!((value("SUM3"), value("DIFF3"), value("PRECISION")), (Some(0), Some(129), Some(0)));
        assert_eq!(value("HEADS"), manifest.find("conv7.weight").map(|index| manifest.range(index).start));
    }

    #[test]
    fn sources_are_taken_from_a_folder_and_what_is_missing_there_is_said() {
        let folder = tempfile::tempdir().unwrap();
        Sources::write(folder.path()).unwrap();
        let sources = Sources(Some(folder.path().to_owned()));
        let made = |sources: &Sources| {
            source(sources, &Reference.manifest(), Precision::Tf32, Variant::default(), 227 * 1024)
        };
        assert_eq!(made(&sources), made(&Sources::default()));
        let file = folder.path().join("pool.cu");
        fs::write(&file, "// mine\n").unwrap();
        assert!(made(&sources).unwrap().contains("// mine\n"));
        fs::remove_file(&file).unwrap();
        let error = made(&sources).unwrap_err();
        assert!(error.contains("TALLY_KERNELS") && error.contains("pool.cu"), "{error}");
    }
}
