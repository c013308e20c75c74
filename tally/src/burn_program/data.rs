//! The samples of a program: Burn's `Dataset`, opened when it is needed, and its items as bytes.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, anyhow, ensure};
use burn::data::dataset::Dataset;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tally_numerics::manifest::hex;

use super::Result;

/// Items whose bytes go into a data set's fingerprint, spread over all of it.
const FINGERPRINTED: usize = 256;

type Open<I> = dyn Fn() -> Result<Arc<dyn Dataset<I>>> + Send + Sync;

/// A data set that is opened when it is first needed.
pub(super) struct Data<I> {
    open: Box<Open<I>>,
    opened: Mutex<Option<Arc<dyn Dataset<I>>>>,
}

impl<I> Data<I> {
    /// The data set that `open` returns.
    pub fn new<D: Dataset<I> + 'static>(open: impl Fn() -> Result<D> + Send + Sync + 'static) -> Self {
        let open = Box::new(move || Ok(Arc::new(open()?) as Arc<dyn Dataset<I>>));
        Self { open, opened: Mutex::new(None) }
    }

    /// The data set, opened.
    ///
    /// # Errors
    /// What `open` says.
    pub(super) fn dataset(&self) -> anyhow::Result<Arc<dyn Dataset<I>>> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        match &*opened {
            Some(dataset) => Ok(dataset.clone()),
            None => {
                let dataset = (self.open)().map_err(|error| anyhow!(error))?;
                Ok(opened.insert(dataset).clone())
            }
        }
    }
}

/// The samples of a data set, as the coordinator deals them.
pub(super) struct Items<I> {
    dataset: Arc<dyn Dataset<I>>,
    /// Workers have the data set as well, and are sent numbers only.
    local: bool,
}

impl<I: Serialize + DeserializeOwned> Items<I> {
    pub fn new(dataset: Arc<dyn Dataset<I>>, local: bool) -> Self {
        Self { dataset, local }
    }
}

impl<I: Serialize + DeserializeOwned> tally_coordinator::dataset::Dataset for Items<I> {
    fn len(&self) -> usize {
        self.dataset.len()
    }

    fn item(&self, id: u32) -> anyhow::Result<Cow<'_, [u8]>> {
        if self.local {
            return Ok(Cow::Borrowed(&[]));
        }
        Ok(Cow::Owned(encode(&get(&*self.dataset, id)?)?))
    }
}

/// Item `id` of a data set.
///
/// # Errors
/// If there is none.
pub(super) fn get<I>(dataset: &dyn Dataset<I>, id: u32) -> anyhow::Result<I> {
    let len = dataset.len();
    dataset.get(id as usize).with_context(|| {
        format!("the data set has no item {id}, though its `len` is {len}: `get` must return one for each number below it")
    })
}

/// The bytes of an item on the wire.
///
/// # Errors
/// If it cannot be serialised.
pub(super) fn encode<I: Serialize>(item: &I) -> anyhow::Result<Vec<u8>> {
    postcard::to_stdvec(item)
        .with_context(|| format!("an item of type {} cannot be serialised", std::any::type_name::<I>()))
}

/// An item from its bytes.
///
/// # Errors
/// If the bytes are none of this type.
pub(super) fn decode<I: DeserializeOwned>(bytes: &[u8]) -> anyhow::Result<I> {
    postcard::from_bytes(bytes)
        .with_context(|| format!("{} bytes are no item of type {}", bytes.len(), std::any::type_name::<I>()))
}

/// What tells a data set from another: its number of items, and SHA-256 over the bytes of up to 256 of them, which are
/// spread over all of it.
///
/// # Errors
/// If an item cannot be read or serialised, or if there is none.
pub(super) fn fingerprint<I: Serialize>(dataset: &dyn Dataset<I>) -> anyhow::Result<String> {
    let len = dataset.len();
    ensure!(len > 0, "the data set is empty");
    ensure!(u32::try_from(len).is_ok(), "the data set has {len} items; the most is {}", u32::MAX);
    let mut hash = Sha256::new();
    hash.update((len as u64).to_le_bytes());
    let count = len.min(FINGERPRINTED);
    for index in 0..count {
        // The first and the last are always among them.
        let id = if count == 1 { 0 } else { (index * (len - 1)) / (count - 1) };
        let bytes = encode(&get(dataset, id as u32)?)?;
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    Ok(hex(&hash.finalize()))
}
