//! Weights to start from: any safetensors file that has the network's tensors.
//!
//! Such a file can come from any source, so nothing in it is trusted. Sizes are compared with the length of the file
//! before memory is allocated. A value that is not a finite `f32` is an error here, instead of a diverged run an hour
//! later.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::tensor::Dtype;
use tally_numerics::manifest::Manifest;

use crate::error::CheckpointError;
use crate::tensors::{AT_A_TIME, Fault, decode_header};
use crate::{MODEL, files, store};

/// Weights to start from.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// A flat vector in the manifest's order.
    pub values: Vec<f32>,
    /// The tensors of the file that the network does not have, in the file's order. They were not read; the caller
    /// should report them.
    pub unknown: Vec<String>,
    /// What was taken off the file's names to find the network's, as `module.` is; empty if nothing was.
    pub taken_off: String,
}

/// What PyTorch's wrappers add to the names of what they wrap: data parallelism, `torch.compile`, sharding and
/// activation checkpointing.
const WRAPPERS: [&str; 4] = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// Names of a file that an error shows.
const SHOWN: usize = 4;

/// Reads the network's tensors, by PyTorch's names, from a safetensors file, or from a
/// checkpoint's directory, which is verified as [`read`](crate::read()) does (**CKPT-1**).
///
/// `F64` is rounded to the nearest `f32`; `F16` and `BF16` are converted exactly. Names may be those of a network that
/// was wrapped for data parallelism or compiled (`module.…`, `_orig_mod.…`), or that is part of a larger one
/// under one name (`model.…`): what they have more than the network's is taken off.
///
/// # Errors
/// [`CheckpointError`] in one line: the file is none of safetensors, or a tensor is
/// missing, has another shape, is not of floats, or holds a NaN, an infinity or a number
/// beyond `f32`.
pub fn read_weights(path: &Path, manifest: &Manifest) -> Result<Weights, CheckpointError> {
    let mut file = files::follow(path);
    if file.is_dir() {
        // Reading it whole is what verifies it. Its tensors may be in another order than
        // `manifest` has them, or be other tensors, so they are then read by name.
        store::read(&file)?;
        file.push(MODEL);
    }
    let io = |source| CheckpointError::Io { doing: "read", path: file.clone(), source };
    let open = File::open(&file).map_err(io)?;
    let length = open.metadata().map_err(io)?.len();
    read_weights_from(&file, BufReader::new(open), length, manifest)
}

/// The same for an open safetensors file of `length` bytes; `path` is for error messages
/// alone. Memory follows `manifest` and `length`, never what the file claims.
///
/// # Errors
/// As for [`read_weights`].
pub fn read_weights_from(
    path: &Path,
    mut from: impl Read + Seek,
    length: u64,
    manifest: &Manifest,
) -> Result<Weights, CheckpointError> {
    let fault = |fault| match fault {
        Fault::Io(source) => CheckpointError::Io { doing: "read", path: path.into(), source },
        Fault::Why(why) => CheckpointError::NotSafetensors { path: path.into(), why },
    };
    let (metadata, data) = decode_header(&mut from, length).map_err(fault)?;

    // All tensors are checked before memory is taken for them: after this, `manifest`'s
    // elements are known to be in the file.
    let mut places = Vec::with_capacity(manifest.tensors().len());
    let of_file = metadata.offset_keys();
    let named = names(&of_file, manifest);
    let mut known: HashSet<&str> = HashSet::new();
    let mut taken_off = String::new();
    for (index, tensor) in manifest.tensors().iter().enumerate() {
        let (path, name, wanted) = (path.to_path_buf(), tensor.name.clone(), tensor.shape.clone());
        let named = named.as_ref().map_or(tensor.name.as_str(), |named| named[index]);
        let Some(info) = metadata.info(named) else {
            let instead = instead(&of_file, &name);
            return Err(CheckpointError::MissingTensor { path, tensor: name, wanted, instead });
        };
        known.insert(named);
        if taken_off.is_empty() {
            taken_off = named.strip_suffix(&name).unwrap_or(named).to_owned();
        }
        if !info.shape.iter().copied().eq(wanted.iter().map(|&d| d as usize)) {
            return Err(CheckpointError::Shape { path, tensor: name, found: info.shape.clone(), wanted });
        }
        let Some(convert) = Convert::from_type(info.dtype) else {
            return Err(CheckpointError::Type { path, tensor: name, found: info.dtype.to_string() });
        };
        places.push((data + info.data_offsets.0 as u64, convert));
    }

    let mut values = vec![0f32; manifest.len()];
    let mut bytes = Vec::new();
    for (index, (at, convert)) in places.into_iter().enumerate() {
        from.seek(SeekFrom::Start(at)).map_err(|error| fault(error.into()))?;
        let range = manifest.range(index);
        let mut element = 0;
        for part in values[range].chunks_mut(AT_A_TIME) {
            bytes.resize(part.len() * convert.size, 0);
            from.read_exact(&mut bytes).map_err(|error| fault(error.into()))?;
            for (value, bytes) in part.iter_mut().zip(bytes.chunks_exact(convert.size)) {
                let wide = (convert.widen)(bytes);
                *value = wide as f32;
                if !value.is_finite() {
                    let tensor = manifest.tensors()[index].name.clone();
                    return Err(CheckpointError::NotFinite {
                        path: path.into(),
                        tensor,
                        index: element,
                        value: wide,
                    });
                }
                element += 1;
            }
        }
    }

    let unknown = of_file.iter().filter(|name| !known.contains(name.as_str())).cloned().collect();
    Ok(Weights { values, unknown, taken_off })
}

/// What the file calls each tensor of the network; none if some are missing, whatever is taken off.
fn names<'a>(of_file: &'a [String], manifest: &Manifest) -> Option<Vec<&'a str>> {
    let own: HashSet<&str> = of_file.iter().map(String::as_str).collect();
    let tensors = || manifest.tensors().iter().map(|tensor| tensor.name.as_str());
    if let Some(names) = tensors().map(|name| own.get(name).copied()).collect() {
        return Some(names);
    }
    // Two names that come to one are none: which is meant is not for us to say.
    let mut bare: BTreeMap<String, Option<&str>> = BTreeMap::new();
    for name in of_file {
        let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
        bare.entry(parts.join(".")).and_modify(|both| *both = None).or_insert(Some(name));
    }
    let below = |prefix: &str| -> Option<Vec<&'a str>> {
        tensors().map(|name| bare.get(&format!("{prefix}{name}")).copied().flatten()).collect()
    };
    let first = tensors().next()?;
    let prefixes: BTreeSet<&str> = bare.keys().filter_map(|name| name.strip_suffix(first)).collect();
    let mut found =
        prefixes.into_iter().filter(|prefix| prefix.is_empty() || prefix.ends_with('.')).filter_map(below);
    match (found.next(), found.next()) {
        (Some(names), None) => Some(names),
        _ => None,
    }
}

/// What a file has in the place of a tensor, for whoever has to rename something.
fn instead(of_file: &[String], name: &str) -> String {
    let alike: Vec<&str> =
        of_file.iter().map(String::as_str).filter(|other| other.ends_with(&format!(".{name}"))).collect();
    let (what, names) = match alike.is_empty() {
        true => ("it has", of_file.iter().map(String::as_str).collect()),
        false => ("more than one may be meant:", alike),
    };
    let more = names.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    match names.is_empty() {
        true => "it has none at all".into(),
        false => format!("{what} {}{more}", names[..names.len().min(SHOWN)].join(", ")),
    }
}

/// How a floating-point type's little-endian bytes become `f64`, which holds every value
/// of all four exactly.
#[derive(Clone, Copy)]
struct Convert {
    size: usize,
    widen: fn(&[u8]) -> f64,
}

impl Convert {
    fn from_type(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F32 => Self { size: 4, widen: |b| f32::from_le_bytes(array(b)).into() },
            Dtype::F64 => Self { size: 8, widen: |b| f64::from_le_bytes(array(b)) },
            Dtype::F16 => Self { size: 2, widen: |b| f16(u16::from_le_bytes(array(b))) },
            // The upper half of an `f32`.
            Dtype::BF16 => Self {
                size: 2,
                widen: |b| f32::from_bits(u32::from(u16::from_le_bytes(array(b))) << 16).into(),
            },
            _ => return None,
        })
    }
}

/// The first `N` bytes; zeros in the place of what is missing, which nothing here is.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

/// An IEEE 754 binary16: 1 bit of sign, 5 of exponent with a bias of 15, 10 of fraction.
fn f16(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-24),
        0x1f if fraction == 0.0 => f64::INFINITY,
        0x1f => f64::NAN,
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use safetensors::tensor::TensorView;
    use tally_numerics::manifest::TensorSpec;

    use super::*;

    fn manifest(tensors: &[(&str, &[u32])]) -> Manifest {
        Manifest::new(tensors.iter().map(|(name, shape)| TensorSpec::with_fan_in(*name, shape, 1)).collect())
            .unwrap()
    }

    /// The network of these tests.
    fn network() -> Manifest {
        manifest(&[("w", &[2, 2]), ("b", &[2])])
    }

    /// A file as the safetensors crate writes it.
    fn file(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn weights(bytes: &[u8], manifest: &Manifest) -> Result<Weights, CheckpointError> {
        read_weights_from(Path::new("init.safetensors"), Cursor::new(bytes), bytes.len() as u64, manifest)
    }

    #[test]
    fn a_file_of_another_program_is_read_by_name() {
        let (w, b) = (f32s(&[1.0, 2.0, 3.0, -0.0]), f32s(&[5.0, 6.0]));
        let file = file(&[("b", Dtype::F32, &[2], &b), ("w", Dtype::F32, &[2, 2], &w)]);
        let read = weights(&file, &network()).unwrap();
        assert_eq!(read.values, [1.0, 2.0, 3.0, -0.0, 5.0, 6.0]);
        assert!(read.values[3].is_sign_negative());
        assert!(read.unknown.is_empty());
    }

    #[test]
    fn other_float_types_are_converted() {
        let w: Vec<u8> = [0.1f64, 1e-60, -3.5, 16_777_217.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let b = [0x3C00u16, 0x8001].map(u16::to_le_bytes).concat();
        let file16 = file(&[("b", Dtype::F16, &[2], &b), ("w", Dtype::F64, &[2, 2], &w)]);
        let read = weights(&file16, &network()).unwrap();
        assert_eq!(read.values, [0.1, 0.0, -3.5, 16_777_216.0, 1.0, -(2f32.powi(-24))]);
        let b = [0x3F80u16, 0xC048].map(u16::to_le_bytes).concat();
        let file_b16 = file(&[("b", Dtype::BF16, &[2], &b), ("w", Dtype::F64, &[2, 2], &w)]);
        assert_eq!(weights(&file_b16, &network()).unwrap().values[4..], [1.0, -3.125]);
    }

    #[test]
    fn half_precision_is_exact() {
        // Values from IEEE 754-2008 and its usual tables.
        for (bits, value) in [
            (0x0000, 0.0),
            (0x0001, 5.960_464_477_539_063e-8),
            (0x03ff, 6.097_555_160_522_461e-5),
            (0x0400, 6.103_515_625e-5),
            (0x3555, 0.333_251_953_125),
            (0x3c01, 1.000_976_562_5),
            (0x7bff, 65504.0),
            (0xc000, -2.0),
            (0x7c00, f64::INFINITY),
            (0xfc00, f64::NEG_INFINITY),
        ] {
            assert_eq!(f16(bits), value, "{bits:#06x}");
        }
        assert!(f16(0x7e00).is_nan() && f16(0x8000).is_sign_negative());
    }

    #[test]
    fn extra_tensors_are_named_and_not_read() {
        let (w, b) = (f32s(&[1.0; 4]), f32s(&[2.0; 2]));
        let nan = f32s(&[f32::NAN]);
        let file = file(&[
            ("b", Dtype::F32, &[2], &b),
            ("extra", Dtype::F32, &[1], &nan),
            ("w", Dtype::F32, &[2, 2], &w),
            ("steps", Dtype::I64, &[], &[0; 8]),
        ]);
        let read = weights(&file, &network()).unwrap();
        assert_eq!(read.values, [1.0, 1.0, 1.0, 1.0, 2.0, 2.0]);
        assert_eq!(read.unknown, ["steps", "extra"]);
    }

    /// As PyTorch saves them: wrapped for data parallelism, compiled, both, in parts, and within something larger.
    #[test]
    fn names_of_a_wrapped_network_are_read_as_its_own() {
        let (w, b) = (f32s(&[1.0; 4]), f32s(&[2.0; 2]));
        let read = |w_name: &str, b_name: &str| {
            let file = file(&[
                (b_name, Dtype::F32, &[2], &b),
                (w_name, Dtype::F32, &[2, 2], &w),
                ("n_averaged", Dtype::I64, &[], &[0; 8]),
            ]);
            weights(&file, &network())
        };
        for (w_name, b_name, taken_off) in [
            ("module.w", "module.b", "module."),
            ("_orig_mod.w", "_orig_mod.b", "_orig_mod."),
            ("module._orig_mod.w", "module._orig_mod.b", "module._orig_mod."),
            ("w", "_orig_mod.b", "_orig_mod."),
            ("model.net.w", "model.net.b", "model.net."),
            ("model.module.w", "model.b", "model.module."),
        ] {
            let read = read(w_name, b_name).unwrap();
            assert_eq!(read.values, [1.0, 1.0, 1.0, 1.0, 2.0, 2.0], "{w_name}");
            assert_eq!((&read.unknown[..], &read.taken_off[..]), (&["n_averaged".to_owned()][..], taken_off));
        }
        for (w_name, b_name) in [("module.w", "other.b"), ("tow", "tob"), ("W", "b")] {
            let error = read(w_name, b_name).unwrap_err().to_string();
            assert!(error.contains("has no tensor w") && error.contains(w_name), "{error}");
        }
    }

    /// The averaged weights or the last ones: whoever saved both has to say which.
    #[test]
    fn what_may_mean_two_things_is_refused_with_both() {
        let (w, b) = (f32s(&[1.0; 4]), f32s(&[2.0; 2]));
        let all =
            [("ema.b", &b), ("model.b", &b)].map(|(name, data)| (name, Dtype::F32, &[2usize][..], &data[..]));
        let more = [("ema.w", &w), ("model.w", &w)]
            .map(|(name, data)| (name, Dtype::F32, &[2usize, 2][..], &data[..]));
        let error = weights(&file(&[all, more].concat()), &network()).unwrap_err().to_string();
        assert!(error.contains("more than one may be meant: ema.w, model.w"), "{error}");
    }

    #[test]
    fn a_wrong_tensor_is_named_in_one_line() {
        let (w, b) = (f32s(&[1.0, 2.0, f32::INFINITY, 4.0]), f32s(&[5.0, 6.0]));
        let large: Vec<u8> = [1e39f64; 4].iter().flat_map(|x| x.to_le_bytes()).collect();
        let good_b = ("b", Dtype::F32, &[2usize][..], b.as_slice());
        for (file, wanted) in [
            (file(&[good_b]), "init.safetensors has no tensor w, which the network has in shape [2, 2]"),
            (
                file(&[good_b, ("w", Dtype::F32, &[4], &w)]),
                "init.safetensors: tensor w has shape [4], and the network wants [2, 2]",
            ),
            (
                file(&[good_b, ("w", Dtype::U32, &[2, 2], &w)]),
                "init.safetensors: tensor w is of type U32, not F32, F64, F16 or BF16",
            ),
            (
                file(&[good_b, ("w", Dtype::F32, &[2, 2], &w)]),
                "init.safetensors: element 2 of tensor w is inf, which is no finite float32",
            ),
            (
                file(&[good_b, ("w", Dtype::F64, &[2, 2], &large)]),
                "init.safetensors: element 0 of tensor w is 1000000",
            ),
            (
                b"PK\x03\x04 a zip file of PyTorch".to_vec(),
                "init.safetensors is no whole safetensors file: it has",
            ),
            (vec![], "init.safetensors is no whole safetensors file: it ends too early"),
        ] {
            let text = weights(&file, &network()).unwrap_err().to_string();
            assert!(text.starts_with(wanted), "{text}");
            assert!(!text.contains('\n'), "{text}");
        }
    }

    /// A shape that overflows, or a network larger than the file, takes no memory.
    #[test]
    fn claims_beyond_the_file_are_refused() {
        let huge = manifest(&[("w", &[1 << 15, 1 << 15])]);
        for header in [
            r#"{"w":{"dtype":"F32","shape":[32768,32768],"data_offsets":[0,4294967296]}}"#,
            r#"{"w":{"dtype":"F32","shape":[32768,32768],"data_offsets":[0,16]}}"#,
            r#"{"w":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,16]}}"#,
            r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#,
            r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,18446744073709551615]}}"#,
        ] {
            let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 16]].concat();
            let error = weights(&file, &huge).unwrap_err();
            assert!(matches!(error, CheckpointError::NotSafetensors { .. }), "{error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_weights(Path::new("no/such.safetensors"), &network()).unwrap_err();
        assert!(error.to_string().starts_with("cannot read no/such.safetensors: "), "{error}");
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), header: u8, honest: bool,
        ) {
            let mut bytes = bytes;
            if honest && bytes.len() > 8 {
                bytes[..8].copy_from_slice(&u64::from(header).to_le_bytes());
            }
            prop_assert!(weights(&bytes, &network()).is_err());
        }

        /// What is mutated is read as something whole or refused.
        #[test]
        fn a_mutated_file_never_panics(
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let (w, b) = (f32s(&[1.0; 4]), f32s(&[2.0; 2]));
            let mut file = file(&[("b", Dtype::F32, &[2], &b), ("w", Dtype::F32, &[2, 2], &w)]);
            for (at, byte) in flips {
                let at = at.index(file.len());
                file[at] = byte;
            }
            if let Some(cut) = cut {
                file.truncate(cut.index(file.len()));
            }
            if let Ok(read) = weights(&file, &network()) {
                prop_assert_eq!(read.values.len(), 6);
                prop_assert!(read.values.iter().all(|x| x.is_finite()));
            }
        }

        /// The header's JSON is mutated token by token, so that more of it stays JSON.
        #[test]
        fn a_mutated_header_never_panics(
            start in any::<u64>(), end in any::<u64>(), dims in proptest::collection::vec(any::<u64>(), 0..4),
            small in any::<bool>(), data in 0usize..64,
        ) {
            let modulo = if small { 32 } else { u64::MAX };
            let (start, end) = (start % modulo, end % modulo);
            let dims: Vec<u64> = dims.into_iter().map(|d| d % modulo).collect();
            let header = format!(
                r#"{{"b":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},"w":{{"dtype":"F32","shape":{dims:?},"data_offsets":[{start},{end}]}}}}"#
            );
            let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat();
            if let Ok(read) = weights(&file, &network()) {
                prop_assert_eq!(read.values, vec![0.0; 6]);
            }
        }
    }
}
