//! What handling a byte, an element or a message costs a processor, in seconds.

use serde::{Deserialize, Serialize};

/// The costs. The defaults are what `scaling` measured on the machine of `docs/scaling.md`, without TLS; it measures
/// them anew on any other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// The coordinator, for each byte of a gradient that comes: the kernel's copies, HTTP/2's, the
    /// message's, and the look for NaN. On any of its cores.
    pub receive_byte: f64,
    /// The coordinator, for each byte of a sum that leaves. On any of its cores.
    pub send_byte: f64,
    /// The coordinator, for each message of either direction. On any of its cores.
    pub message: f64,
    /// The driver, for each message of either direction.
    pub driver_message: f64,
    /// The driver, for each step: the journal, the curves, what pages are shown.
    pub driver_step: f64,
    /// The driver, for each element of an addition.
    pub add_element: f64,
    /// The driver, for each element of the root's norm.
    pub norm_element: f64,
    /// The driver, for each element of the master state's update.
    pub update_element: f64,
    /// A worker, for each byte of a gradient that leaves.
    pub worker_send_byte: f64,
    /// A worker, for each byte of a sum that comes.
    pub worker_receive_byte: f64,
    /// A worker, for each message of either direction.
    pub worker_message: f64,
    /// A worker's compute thread, for each step beside computing and the update.
    pub worker_step: f64,
    /// A worker, for each element of its update.
    pub apply_element: f64,
    /// Whoever sums or sends bfloat16, for each element that is rounded to it.
    pub round_element: f64,
    /// Whoever receives bfloat16, for each element.
    pub unpack_element: f64,
    /// From a message's coming to the waking of the thread that waits for it.
    pub wake: f64,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            receive_byte: 0.46e-9,
            send_byte: 0.26e-9,
            message: 4.9e-6,
            driver_message: 1.2e-6,
            driver_step: 48e-6,
            add_element: 0.26e-9,
            norm_element: 0.11e-9,
            update_element: 0.87e-9,
            worker_send_byte: 0.43e-9,
            worker_receive_byte: 0.35e-9,
            worker_message: 14e-6,
            worker_step: 29e-6,
            apply_element: 1.3e-9,
            round_element: 0.29e-9,
            unpack_element: 0.25e-9,
            wake: 18e-6,
        }
    }
}

impl Costs {
    /// The same with everything that a message costs, however small it is, taken away.
    #[must_use]
    pub fn without_messages(self) -> Self {
        Self {
            message: 0.0,
            driver_message: 0.0,
            driver_step: 0.0,
            worker_message: 0.0,
            worker_step: 0.0,
            wake: 0.0,
            ..self
        }
    }

    /// The same with a coordinator whose processor is infinitely fast.
    #[must_use]
    pub fn without_coordinator(self) -> Self {
        Self {
            receive_byte: 0.0,
            send_byte: 0.0,
            message: 0.0,
            driver_message: 0.0,
            driver_step: 0.0,
            add_element: 0.0,
            norm_element: 0.0,
            update_element: 0.0,
            round_element: 0.0,
            unpack_element: 0.0,
            ..self
        }
    }

    /// The same with workers that need no time but to compute.
    #[must_use]
    pub fn without_workers(self) -> Self {
        Self {
            worker_send_byte: 0.0,
            worker_receive_byte: 0.0,
            worker_message: 0.0,
            worker_step: 0.0,
            apply_element: 0.0,
            ..self
        }
    }

    /// Whether every cost is a number that can be one.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let all = [
            self.receive_byte,
            self.send_byte,
            self.message,
            self.driver_message,
            self.driver_step,
            self.add_element,
            self.norm_element,
            self.update_element,
            self.worker_send_byte,
            self.worker_receive_byte,
            self.worker_message,
            self.worker_step,
            self.apply_element,
            self.round_element,
            self.unpack_element,
            self.wake,
        ];
        all.into_iter().all(|cost| (0.0..1e3).contains(&cost))
    }
}
