//! Answers to requests for the status.
//!
//! The driver makes them, between the inputs of workers. It is asked at most 20 times a second, for all requests
//! together, because requests must not slow training down (**TRUST-1**).

use std::time::{Duration, Instant};

use tally_proto::v1::StatusReply;
use tokio::sync::{Mutex, mpsc, oneshot};
use tonic::Status;

use super::input::Input;

/// How long an answer is as good as new.
const FRESH: Duration = Duration::from_millis(50);
/// How long the driver may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The last answer. Requests for a new one wait here, and not in the driver's queue.
#[derive(Debug, Default)]
pub struct StatusCache(Mutex<Option<(Result<StatusReply, Status>, Instant)>>);

impl StatusCache {
    /// The status of the run, at most a moment old.
    ///
    /// # Errors
    /// [`Status::unavailable`] when it is over, or the driver does not answer.
    pub async fn answer(&self, driver: &mpsc::Sender<Input>) -> Result<StatusReply, Status> {
        self.answer_within(driver, TIMEOUT).await
    }

    async fn answer_within(
        &self,
        driver: &mpsc::Sender<Input>,
        timeout: Duration,
    ) -> Result<StatusReply, Status> {
        let over = || Status::unavailable("the run is over");
        let mut last = self.0.lock().await;
        if let Some((reply, at)) = &*last
            && at.elapsed() < FRESH
        {
            return reply.clone();
        }
        let (reply, answer) = oneshot::channel();
        let asked = async {
            driver.send(Input::Status(reply)).await.map_err(|_| over())?;
            answer.await.map_err(|_| over())
        };
        let stuck = |_| {
            Err(Status::unavailable(format!(
                "its driver has not answered for {timeout:?}; most likely the disk of the run directory does not answer"
            )))
        };
        let reply = tokio::time::timeout(timeout, asked).await.unwrap_or_else(stuck);
        *last = Some((reply.clone(), Instant::now()));
        reply
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_driver_that_does_not_answer_is_reported_to_all_who_asked() {
        let (driver, _inputs) = mpsc::channel(64);
        let (cache, moment) = (StatusCache::default(), Duration::from_millis(100));
        let (one, two) =
            tokio::join!(cache.answer_within(&driver, moment), cache.answer_within(&driver, moment));
        for reply in [one, two] {
            assert!(reply.unwrap_err().message().contains("has not answered for 100ms"));
        }
    }

    #[tokio::test]
    async fn trust_1_whoever_looks_often_is_not_in_the_way_of_workers() {
        let (driver, mut inputs) = mpsc::channel(1);
        let answers = tokio::spawn(async move {
            let mut asked = 0;
            while let Some(Input::Status(reply)) = inputs.recv().await {
                asked += 1;
                let _ = reply.send(StatusReply { step: asked, ..StatusReply::default() });
            }
            asked
        });
        let status_cache = Arc::new(StatusCache::default());
        let ask = || {
            let (status_cache, driver) = (status_cache.clone(), driver.clone());
            tokio::spawn(async move { status_cache.answer(&driver).await })
        };
        let all: Vec<_> = (0..10_000).map(|_| ask()).collect();
        for answer in all {
            assert!(answer.await.unwrap().unwrap().step > 0);
        }
        // A later one is told something new.
        tokio::time::sleep(FRESH).await;
        let late = ask().await.unwrap().unwrap().step;
        drop(driver);
        let asked = answers.await.unwrap();
        assert!(late == asked && asked < 1000, "the driver was asked {asked} times");
    }
}
