//! Buffers of one chunk, used again and again, so that the steady state allocates nothing.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use tally_numerics::CHUNK;

/// Free buffers kept for later; more than this are given back to the allocator.
const KEEP: usize = 1024;

/// A source of buffers of up to [`CHUNK`] floats.
#[derive(Clone, Debug, Default)]
pub struct Pool(Arc<Mutex<Vec<Vec<f32>>>>);

impl Pool {
    /// A buffer of `len` floats with arbitrary finite contents.
    #[must_use]
    pub fn take(&self, len: usize) -> Chunk {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut values = free.unwrap_or_else(|| Vec::with_capacity(CHUNK));
        values.resize(len, 0.0);
        Chunk { values, pool: self.clone() }
    }
}

/// A buffer that goes back to its pool when it is dropped.
#[derive(Debug)]
pub struct Chunk {
    values: Vec<f32>,
    pool: Pool,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEEP {
            free.push(std::mem::take(&mut self.values));
        }
    }
}

impl Deref for Chunk {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl DerefMut for Chunk {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

impl AsRef<[f32]> for Chunk {
    fn as_ref(&self) -> &[f32] {
        &self.values
    }
}
