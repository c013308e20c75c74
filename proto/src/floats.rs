//! Vectors of `f32` as the bytes of a message, without a copy where that can be.

use bytes::Bytes;
use thiserror::Error;

#[cfg(target_endian = "big")]
compile_error!("floats travel little-endian and are not converted; big-endian machines are not supported");

/// A stretch of floats whose length is not the expected one.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{got} bytes of floats where {} were expected", 4 * .wanted)]
pub struct BadLength {
    /// Bytes that came.
    pub got: usize,
    /// Floats that were expected.
    pub wanted: usize,
}

/// Something that can be looked at as floats and shared as bytes.
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
        return Err(BadLength { got: bytes.len(), wanted: into.len() });
    }
    // A message's bytes lie at any alignment; copying them as bytes does not mind.
    bytemuck::cast_slice_mut::<f32, u8>(into).copy_from_slice(bytes);
    Ok(())
}

/// A message's floats where they lie, or, if they are not aligned there, copied to `scratch`.
///
/// # Errors
/// [`BadLength`] unless there are `wanted` of them.
pub fn view<'a>(bytes: &'a [u8], wanted: usize, scratch: &'a mut Vec<f32>) -> Result<&'a [f32], BadLength> {
    if bytes.len() != 4 * wanted {
        return Err(BadLength { got: bytes.len(), wanted });
    }
    if let Ok(values) = bytemuck::try_cast_slice(bytes) {
        return Ok(values);
    }
    scratch.resize(wanted, 0.0);
    read(bytes, scratch)?;
    Ok(scratch)
}

/// A message's floats as a new vector of exactly `wanted` elements.
///
/// # Errors
/// [`BadLength`] if there are more or fewer; nothing is allocated then.
pub fn to_vec(bytes: &[u8], wanted: usize) -> Result<Vec<f32>, BadLength> {
    if bytes.len() != 4 * wanted {
        return Err(BadLength { got: bytes.len(), wanted });
    }
    let mut values = vec![0.0; wanted];
    read(bytes, &mut values)?;
    Ok(values)
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
        let back = to_vec(&shifted[1..], 4).unwrap();
        assert!(back.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn a_wrong_length_is_refused() {
        assert_eq!(to_vec(&[0; 7], 2), Err(BadLength { got: 7, wanted: 2 }));
        assert!(read(&[0; 8], &mut [0.0; 3]).is_err());
    }
}
