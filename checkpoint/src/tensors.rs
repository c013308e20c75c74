//! A flat vector as a safetensors file, and back.
//!
//! The `safetensors` crate makes and checks the header. The tensors are streamed separately, because the crate's own
//! functions need the whole file in memory. A test reads with the crate what is written here.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use sha2::{Digest as _, Sha256};
use tally_numerics::manifest::{Manifest, hex};

use crate::meta::FileEntry;

/// The longest header that is read: 16 MiB, twice what the longest manifest takes.
pub(crate) const MAX_HEADER: u64 = 16 << 20;
/// Floats that are converted at a time: 1 MiB of `F32`.
pub(crate) const AT_A_TIME: usize = 1 << 18;

/// Why a safetensors file could not be read.
#[derive(Debug)]
pub(crate) enum Fault {
    /// A file operation failed.
    Io(io::Error),
    /// The file is wrong: "it …".
    Why(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Why("ends too early".into()),
            _ => Self::Io(error),
        }
    }
}

/// Passes bytes on, counting and hashing them.
struct Hashing<T> {
    inner: T,
    hash: Sha256,
    bytes: u64,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    fn entry(self) -> FileEntry {
        FileEntry { bytes: self.bytes, sha256: hex(&self.hash.finalize()) }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.passed(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        self.passed(&into[..n]);
        Ok(n)
    }
}

/// The tensors' names, shapes and places, in the order of their names, padded so that
/// the tensors begin at a multiple of 8 bytes.
fn encode_header(manifest: &Manifest) -> io::Result<Vec<u8>> {
    let mut at = 0;
    let mut infos = Vec::new();
    for index in manifest.by_name() {
        let tensor = &manifest.tensors()[index];
        let shape = tensor.shape.iter().map(|&d| d as usize).collect();
        let data_offsets = (at, at + 4 * tensor.elements());
        at = data_offsets.1;
        infos.push((tensor.name.clone(), TensorInfo { dtype: Dtype::F32, shape, data_offsets }));
    }
    // Some loaders of PyTorch weights ask for this entry.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos).map_err(io::Error::other)?;
    let mut json = serde_json::to_vec(&metadata)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

/// Writes a flat vector as a safetensors file and returns its size and SHA-256.
pub(crate) fn write(into: impl Write, manifest: &Manifest, values: &[f32]) -> io::Result<FileEntry> {
    let mut into = Hashing::new(into);
    into.write_all(&encode_header(manifest)?)?;
    let mut bytes = Vec::new();
    for index in manifest.by_name() {
        for part in values[manifest.range(index)].chunks(AT_A_TIME) {
            bytes.clear();
            bytes.extend(part.iter().flat_map(|x| x.to_le_bytes()));
            into.write_all(&bytes)?;
        }
    }
    into.flush()?;
    Ok(into.entry())
}

/// Reads the header of a safetensors file of `length` bytes and checks that its tensors
/// fill the rest of the file without gaps. Returns the tensors' places and where in the
/// file they begin. Memory is in proportion to the header that is there.
pub(crate) fn decode_header(mut from: impl Read, length: u64) -> Result<(Metadata, u64), Fault> {
    let mut size = [0; 8];
    from.read_exact(&mut size)?;
    let size = u64::from_le_bytes(size);
    let data = size.saturating_add(8);
    if size > MAX_HEADER || data > length {
        return Err(Fault::Why(format!("has no header of {size} bytes")));
    }
    let mut json = Vec::new();
    if from.take(size).read_to_end(&mut json)? as u64 != size {
        return Err(Fault::Why("ends in its header".into()));
    }
    let metadata: Metadata = serde_json::from_slice(&json)
        .map_err(|error| Fault::Why(format!("has a header that is none of safetensors ({error})")))?;
    let tensors = metadata.data_len() as u64;
    if data.checked_add(tensors) != Some(length) {
        let rest = length - data;
        return Err(Fault::Why(format!("has {rest} bytes of tensors where its header has {tensors}")));
    }
    Ok((metadata, data))
}

/// Reads a file that [`write`] wrote: its size, content and order must be exactly that.
/// Nothing is allocated for the tensors before the file is known to have them.
pub(crate) fn read(
    from: impl Read,
    length: u64,
    manifest: &Manifest,
    entry: &FileEntry,
) -> Result<Vec<f32>, Fault> {
    if length != entry.bytes {
        return Err(Fault::Why(format!("has {length} bytes, not the {} it was written with", entry.bytes)));
    }
    let mut from = Hashing::new(from);
    let (metadata, _) = decode_header(&mut from, length)?;
    let order = manifest.by_name();
    let names = metadata.offset_keys();
    if names.len() != order.len() {
        return Err(Fault::Why(format!("has {} tensors, not the manifest's {}", names.len(), order.len())));
    }
    for (&index, name) in order.iter().zip(&names) {
        let tensor = &manifest.tensors()[index];
        let fits = metadata.info(name).is_some_and(|info| {
            info.dtype == Dtype::F32
                && info.shape.iter().copied().eq(tensor.shape.iter().map(|&d| d as usize))
        });
        if *name != tensor.name || !fits {
            let wanted = format!("{} of shape {:?} as F32", tensor.name, tensor.shape);
            return Err(Fault::Why(format!("has {name} where the manifest has {wanted}")));
        }
    }
    let mut values = vec![0f32; manifest.len()];
    let mut bytes = vec![0; 4 * AT_A_TIME.min(manifest.len())];
    for index in order {
        for part in values[manifest.range(index)].chunks_mut(AT_A_TIME) {
            let bytes = &mut bytes[..4 * part.len()];
            from.read_exact(bytes)?;
            for (value, bytes) in part.iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
    }
    if from.entry() != *entry {
        return Err(Fault::Why("does not match its checksum in the manifest".into()));
    }
    Ok(values)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;
    use safetensors::SafeTensors;
    use tally_numerics::manifest::TensorSpec;

    use super::*;

    fn manifest(tensors: &[(&str, &[u32])]) -> Manifest {
        Manifest::new(tensors.iter().map(|(name, shape)| TensorSpec::with_fan_in(*name, shape, 1)).collect())
            .unwrap()
    }

    fn small() -> (Manifest, Vec<f32>) {
        let manifest = manifest(&[("b.weight", &[2, 3]), ("a.bias", &[]), ("a.weight", &[4])]);
        let values = (0..11).map(|i| i as f32 - 0.5).collect();
        (manifest, values)
    }

    #[test]
    fn the_safetensors_crate_reads_names_shapes_and_values() {
        let (manifest, values) = small();
        let mut file = Vec::new();
        let entry = write(&mut file, &manifest, &values).unwrap();
        assert_eq!(entry.bytes, file.len() as u64);
        assert_eq!(entry.sha256, hex(&Sha256::digest(&file)));
        let header = u64::from_le_bytes(file[..8].try_into().unwrap());
        assert_eq!(header % 8, 0, "tensors are aligned to 8 bytes");

        let (_, metadata) = SafeTensors::read_metadata(&file).unwrap();
        assert_eq!(metadata.offset_keys(), ["a.bias", "a.weight", "b.weight"]);
        let theirs = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(theirs.len(), 3);
        for (index, tensor) in manifest.tensors().iter().enumerate() {
            let view = theirs.tensor(&tensor.name).unwrap();
            assert_eq!(view.dtype(), Dtype::F32);
            assert!(view.shape().iter().copied().eq(tensor.shape.iter().map(|&d| d as usize)));
            let bytes: Vec<u8> = values[manifest.range(index)].iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(view.data(), bytes);
        }
    }

    #[test]
    fn tensors_larger_than_a_buffer_come_back() {
        let manifest = manifest(&[("big", &[3, AT_A_TIME as u32 / 2 + 1]), ("small", &[5])]);
        let values: Vec<f32> = (0..manifest.len()).map(|i| (i as f32).sin()).collect();
        let mut file = Vec::new();
        let entry = write(&mut file, &manifest, &values).unwrap();
        assert_eq!(read(file.as_slice(), entry.bytes, &manifest, &entry).unwrap(), values);
    }

    /// A disk that is full after any number of bytes is an error, never a short file
    /// taken for a whole one.
    #[test]
    fn a_full_disk_is_an_error_wherever_it_strikes() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let n = bytes.len().min(self.0);
                self.0 -= n;
                if n == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(n) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (manifest, values) = small();
        let size = write(io::sink(), &manifest, &values).unwrap().bytes as usize;
        for room in 0..size {
            let error = write(Full(room), &manifest, &values).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "room for {room} bytes");
        }
        assert!(write(Full(size), &manifest, &values).is_ok());
    }

    #[test]
    fn a_header_that_claims_the_world_costs_no_memory() {
        for claim in [MAX_HEADER, MAX_HEADER + 1, u64::MAX - 7, u64::MAX] {
            let file = [&claim.to_le_bytes()[..], b"{}"].concat();
            assert!(matches!(decode_header(file.as_slice(), 10), Err(Fault::Why(_))));
            // Even when the file pretends to be that long.
            assert!(matches!(decode_header(file.as_slice(), u64::MAX), Err(Fault::Why(_))));
        }
    }

    #[test]
    fn another_order_type_or_shape_than_the_manifests_is_refused() {
        let (ours, values) = small();
        let mut file = Vec::new();
        let entry = write(&mut file, &ours, &values).unwrap();
        for other in [
            manifest(&[("b.weight", &[3, 2]), ("a.bias", &[]), ("a.weight", &[4])]),
            manifest(&[("b.weight", &[2, 3]), ("c.bias", &[]), ("a.weight", &[4])]),
            manifest(&[("b.weight", &[2, 3]), ("a.bias", &[])]),
        ] {
            match read(file.as_slice(), entry.bytes, &other, &entry) {
                Err(Fault::Why(why)) => assert!(why.contains("manifest"), "{why}"),
                other => panic!("{other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn every_bit_pattern_comes_back(bits in proptest::collection::vec(any::<u32>(), 1..300)) {
            let manifest = manifest(&[("t", &[bits.len() as u32])]);
            let values: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
            let mut file = Vec::new();
            let entry = write(&mut file, &manifest, &values).unwrap();
            let back = read(file.as_slice(), entry.bytes, &manifest, &entry).unwrap();
            prop_assert_eq!(back.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), bits);
        }
    }
}
