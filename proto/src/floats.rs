//! Vectors of `f32` as the bytes of a message, without a copy where possible.

use bytes::Bytes;
use tally_numerics::wire::WireDtype;
use thiserror::Error;

use crate::pool::{Chunk, Pool};
use crate::segment::Segment;

#[cfg(target_endian = "big")]
compile_error!("floats travel little-endian and are not converted; big-endian machines are not supported");

/// A stretch of floats whose length is not the expected one.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{got} bytes of floats where {wanted} were expected")]
pub struct BadLength {
    /// Bytes that came.
    pub got: usize,
    /// Bytes that were expected.
    pub wanted: usize,
}

/// Memory that can be read as floats and shared as bytes.
struct Owner<T>(T);

impl<T: AsRef<[f32]>> AsRef<[u8]> for Owner<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(self.0.as_ref())
    }
}

/// Floats as bytes that share the owner's memory, for as long as a message needs it.
pub fn share<T: AsRef<[f32]> + Send + 'static>(owner: T) -> Bytes {
    Bytes::from_owner(Owner(owner))
}

/// A copy of floats as bytes.
#[must_use]
pub fn copy(values: &[f32]) -> Bytes {
    Bytes::copy_from_slice(bytemuck::cast_slice(values))
}

/// Copies a message's floats to where they belong.
///
/// # Errors
/// [`BadLength`] if there are more or fewer than `into` holds.
pub fn read(bytes: &[u8], into: &mut [f32]) -> Result<(), BadLength> {
    if bytes.len() != 4 * into.len() {
        return Err(BadLength { got: bytes.len(), wanted: 4 * into.len() });
    }
    // A message's bytes can have any alignment, so they are copied as bytes.
    bytemuck::cast_slice_mut::<f32, u8>(into).copy_from_slice(bytes);
    Ok(())
}

/// A chunk of a gradient, rounded already, as the bytes of a message.
#[must_use]
pub fn encode<T>(dtype: WireDtype, chunk: T, pool: &Pool) -> Bytes
where
    T: AsRef<[f32]> + Send + 'static,
{
    match dtype {
        WireDtype::F32 => share(chunk),
        WireDtype::Bf16 => pack(dtype, chunk.as_ref(), pool),
    }
}

/// Packed values in a buffer of the pool.
fn pack(dtype: WireDtype, values: &[f32], pool: &Pool) -> Bytes {
    let bytes = dtype.bytes() * values.len();
    let mut packed = pool.take(bytes.div_ceil(4));
    dtype.pack(values, &mut bytemuck::cast_slice_mut(&mut packed)[..bytes]);
    share(packed).slice(..bytes)
}

/// The floats of a chunk of `wanted` elements where they lie, if they can be used there.
#[must_use]
pub fn view(dtype: WireDtype, bytes: &[u8], wanted: usize) -> Option<&[f32]> {
    let values: &[f32] = bytemuck::try_cast_slice(bytes).ok()?;
    (dtype == WireDtype::F32 && values.len() == wanted).then_some(values)
}

/// The floats of a chunk of `wanted` elements.
///
/// # Errors
/// [`BadLength`] if there are more or fewer.
pub fn decode(dtype: WireDtype, bytes: &[u8], wanted: usize, pool: &Pool) -> Result<Chunk, BadLength> {
    if bytes.len() != dtype.bytes() * wanted {
        return Err(BadLength { got: bytes.len(), wanted: dtype.bytes() * wanted });
    }
    let mut chunk = pool.take(wanted);
    match dtype {
        WireDtype::F32 => read(bytes, &mut chunk)?,
        WireDtype::Bf16 => dtype.unpack(bytes, &mut chunk),
    }
    Ok(chunk)
}

/// The floats of a chunk of `wanted` elements that lies in a slot of shared memory.
///
/// # Errors
/// If there is no such slot.
pub fn fetch(
    dtype: WireDtype,
    memory: &Segment,
    slot: u32,
    wanted: usize,
    pool: &Pool,
) -> std::io::Result<Chunk> {
    let mut raw = pool.take((dtype.bytes() * wanted).div_ceil(4));
    let bytes = &mut bytemuck::cast_slice_mut(&mut raw)[..dtype.bytes() * wanted];
    memory.read(slot, bytes)?;
    match dtype {
        WireDtype::F32 => Ok(raw),
        WireDtype::Bf16 => {
            let mut chunk = pool.take(wanted);
            dtype.unpack(bytes, &mut chunk);
            Ok(chunk)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn floats_survive_the_wire_at_any_alignment() {
        let values = vec![1.5f32, -0.0, f32::NAN, 3e-40];
        let sent = share(values.clone());
        assert_eq!(sent, copy(&values));
        let mut shifted = vec![0u8];
        shifted.extend_from_slice(&sent);
        let back = decode(WireDtype::F32, &shifted[1..], 4, &Pool::default()).unwrap();
        assert!(back.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn a_chunk_is_read_as_it_was_written() {
        let pool = Pool::default();
        let values = [1.5f32, -0.0, 3.0];
        for dtype in [WireDtype::F32, WireDtype::Bf16] {
            let mut chunk = pool.take(3);
            chunk.copy_from_slice(&values);
            let bytes = encode(dtype, chunk, &pool);
            assert_eq!(bytes.len(), 3 * dtype.bytes());
            assert_eq!(bytes, encode(dtype, values.to_vec(), &pool));
            assert_eq!(*decode(dtype, &bytes, 3, &pool).unwrap(), values);
            let wanted = 4 * dtype.bytes();
            let error = decode(dtype, &bytes, 4, &pool).unwrap_err();
            assert_eq!(error, BadLength { got: bytes.len(), wanted });
        }
    }

    #[test]
    fn a_wrong_length_is_refused() {
        let error = decode(WireDtype::F32, &[0; 7], 2, &Pool::default()).unwrap_err();
        assert_eq!(error, BadLength { got: 7, wanted: 8 });
        assert!(read(&[0; 8], &mut [0.0; 3]).is_err());
    }
}
