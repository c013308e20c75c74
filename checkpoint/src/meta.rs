//! `manifest.json`: the description of a checkpoint, and its checksum.
//!
//! The first line holds the SHA-256 of all that follows its closing quote, so that a
//! flipped bit in the manifest is found like one in the tensors. The file is plain JSON
//! for every other reader.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tally_numerics::digest::Digest;
use tally_numerics::manifest::{Manifest, hex};

/// The format that this crate writes and reads.
pub const VERSION: u32 = 1;

/// The largest `manifest.json` that is read: 64 MiB, ten times what the longest list of
/// tensors takes.
pub(crate) const MAX_MANIFEST: u64 = 64 << 20;

/// What is trained: a program, with its arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramConfig {
    /// The program's name, which coordinator and workers must share: `mnist`.
    pub name: String,
    /// Which of its models, for people: `reference`.
    pub variant: String,
    /// Its arguments, as it reads them.
    pub arguments: serde_json::Value,
}

/// The description of a checkpoint, without its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// The checkpoint's format: [`VERSION`].
    pub version: u32,
    /// The run's name.
    pub run: String,
    /// What was trained.
    pub program: ProgramConfig,
    /// The last committed step that the tensors contain, from 1; 0 before the first.
    pub step: u64,
    /// The epoch of that step, from 1, begun and perhaps completed; 0 before the first.
    pub epoch: u32,
    /// The digest of parameters and moments, as the journal has it for the step.
    pub digest: Digest,
    /// [`Manifest::sha256`] of the parameters, as a summary has it.
    pub parameters_sha256: String,
    /// The tensors in the order of the flat vectors.
    pub tensors: Manifest,
    /// The names of the optimizer's moments, as PyTorch calls them: `momentum_buffer`, or `exp_avg` and `exp_avg_sq`.
    #[serde(default = "one_velocity")]
    pub moments: Vec<String>,
    /// The run's configuration; opaque to this crate.
    pub config: serde_json::Value,
}

/// The moments of a checkpoint from before there were several optimizers: SGD's. Then there were no constant tensors
/// either, except in programs that were never released.
fn one_velocity() -> Vec<String> {
    vec!["momentum_buffer".to_owned()]
}

/// A file of a checkpoint as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its content, in hex.
    pub sha256: String,
}

/// The files of a checkpoint beside the manifest, by name.
pub(crate) type Files = BTreeMap<String, FileEntry>;

const OPENING: &[u8] = b"{\n  \"manifest_sha256\": \"";
const HEX: usize = 64;

/// The bytes of `manifest.json`.
pub(crate) fn seal(meta: &Meta, files: &Files) -> serde_json::Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Whole<'a> {
        #[serde(flatten)]
        meta: &'a Meta,
        files: &'a Files,
    }
    let body = serde_json::to_string_pretty(&Whole { meta, files })?;
    // The body is an object, so behind its brace comes a line break and the first field.
    let sealed = format!("\",{}\n", body.trim_start_matches('{'));
    let seal = hex(&Sha256::digest(&sealed));
    Ok([OPENING, seal.as_bytes(), sealed.as_bytes()].concat())
}

/// Why a manifest cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadSeal {
    /// Not the bytes that were written.
    Damaged(String),
    /// Whole, but of another format.
    Version(u32),
}

/// Checks the bytes of `manifest.json` and reads them.
pub(crate) fn unseal(bytes: &[u8]) -> Result<(Meta, Files), BadSeal> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    #[derive(Deserialize)]
    struct Listed {
        files: Files,
    }
    let damaged = |error: serde_json::Error| BadSeal::Damaged(format!("cannot be understood ({error})"));
    let (seal, sealed) = bytes
        .strip_prefix(OPENING)
        .and_then(|rest| rest.split_at_checked(HEX))
        .ok_or_else(|| BadSeal::Damaged("does not begin with its own checksum".into()))?;
    if hex(&Sha256::digest(sealed)).as_bytes() != seal {
        return Err(BadSeal::Damaged("does not match its own checksum".into()));
    }
    // The version first: another format may have other fields.
    let Version { version } = serde_json::from_slice(bytes).map_err(damaged)?;
    if version != VERSION {
        return Err(BadSeal::Version(version));
    }
    let meta = serde_json::from_slice(bytes).map_err(damaged)?;
    let Listed { files } = serde_json::from_slice(bytes).map_err(damaged)?;
    Ok((meta, files))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use tally_numerics::manifest::TensorSpec;

    use super::*;

    /// A meta with values that a careless writer or reader of JSON would change.
    pub(crate) fn meta() -> Meta {
        let tensors = vec![
            TensorSpec::with_fan_in("conv2.weight", &[2, 3], 7),
            TensorSpec::with_fan_in("conv1.bias", &[4], 3),
        ];
        Meta {
            version: VERSION,
            run: "a \"run\"\nof two lines".into(),
            program: ProgramConfig {
                name: "mnist".into(),
                variant: "a \"model\"".into(),
                arguments: serde_json::json!({ "third": 1.0 / 3.0 }),
            },
            step: u64::MAX - 1,
            epoch: 3,
            digest: Digest(0xfedc_ba98_7654_3210),
            parameters_sha256: "00".repeat(32),
            tensors: Manifest::new(tensors).unwrap(),
            moments: one_velocity(),
            config: serde_json::json!({ "learning_rate": 0.1f32, "third": 1.0 / 3.0, "tiny": 1e-300, "seed": u64::MAX }),
        }
    }

    fn files() -> Files {
        let entry = FileEntry { bytes: 1 << 40, sha256: "ab".repeat(32) };
        [("model.safetensors".to_owned(), entry)].into()
    }

    #[test]
    fn a_manifest_comes_back_bit_for_bit() {
        let sealed = seal(&meta(), &files()).unwrap();
        assert_eq!(unseal(&sealed).unwrap(), (meta(), files()));
    }

    #[test]
    fn a_manifest_is_plain_json_for_others() {
        let sealed = seal(&meta(), &files()).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&sealed).unwrap();
        assert_eq!(value["step"], u64::MAX - 1);
        assert_eq!(value["digest"], "fedcba9876543210");
        assert_eq!(value["tensors"][1]["name"], "conv1.bias");
        assert_eq!(value["files"]["model.safetensors"]["bytes"], 1u64 << 40);
        assert_eq!(value["manifest_sha256"].as_str().unwrap().len(), HEX);
    }

    /// CKPT-1 for the manifest: no bit can flip and no byte can go missing unnoticed.
    #[test]
    fn ckpt_1_every_flipped_bit_and_every_truncation_of_a_manifest_is_found() {
        let sealed = seal(&meta(), &files()).unwrap();
        for end in 0..sealed.len() {
            assert!(matches!(unseal(&sealed[..end]), Err(BadSeal::Damaged(_))), "cut at {end}");
        }
        for bit in 0..8 * sealed.len() {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(unseal(&flipped), Err(BadSeal::Damaged(_))), "bit {bit}");
        }
        let longer = [sealed.as_slice(), b" "].concat();
        assert!(matches!(unseal(&longer), Err(BadSeal::Damaged(_))));
    }

    #[test]
    fn another_format_is_told_from_damage() {
        let newer = seal(&Meta { version: 2, ..meta() }, &files()).unwrap();
        assert_eq!(unseal(&newer), Err(BadSeal::Version(2)));
    }
}
