//! The samples of a run, as the coordinator sees them: numbered, and opaque.

use std::borrow::Cow;

use tally_proto::convert::Microbatch;

/// Samples that can be read by their number.
#[allow(clippy::len_without_is_empty)] // A run has at least one sample.
pub trait Dataset: Send + Sync {
    /// How many samples.
    fn len(&self) -> usize;

    /// The bytes of sample `id`, as a worker of the same program reads them.
    ///
    /// # Errors
    /// If there is no such sample, or it cannot be read.
    fn item(&self, id: u32) -> anyhow::Result<Cow<'_, [u8]>>;
}

/// The samples of these ids.
///
/// # Errors
/// If one cannot be read.
pub fn microbatch(dataset: &dyn Dataset, ids: &[u32]) -> anyhow::Result<Microbatch> {
    let samples = ids.iter().map(|&id| Ok((id, dataset.item(id)?)));
    Ok(Microbatch::new(samples.collect::<anyhow::Result<Vec<_>>>()?))
}
