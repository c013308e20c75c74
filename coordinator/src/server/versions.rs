//! Workers of other versions are refused, and the coordinator logs each version once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tally_proto::v1;
use tally_proto::version::{self, Speaker};
use tonic::Status;

/// Different versions that are told of; of more nothing is said (**TRUST-1**).
const MOST: usize = 8;

/// The versions that were told of already: a worker that is refused may come again and again.
#[derive(Clone, Debug, Default)]
pub struct Versions(Arc<Mutex<BTreeSet<Speaker>>>);

impl Versions {
    /// Whether a worker that says this can take part.
    ///
    /// # Errors
    /// [`Status::failed_precondition`], with which side is to be upgraded.
    pub fn check(&self, hello: &v1::Hello) -> Result<(), Status> {
        let worker = Speaker::new(&hello.build, hello.protocol);
        version::check(Speaker::this(), worker.clone()).map_err(|mismatch| {
            if self.is_new(worker) {
                tracing::warn!("a worker is refused: {mismatch}");
            }
            Status::failed_precondition(mismatch.to_string())
        })
    }

    fn is_new(&self, worker: Speaker) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.len() < MOST && told.insert(worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_1_each_version_is_told_of_once_and_not_for_ever() {
        let versions = Versions::default();
        let told = |n: u32| versions.is_new(Speaker::new(&n.to_string(), 99));
        assert!(told(1) && !told(1) && told(2));
        assert_eq!((0..1000).filter(|&n| told(n)).count(), MOST - 2);
    }
}
