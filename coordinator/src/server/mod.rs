//! The server around the core: sockets, floats, files, threads.
//!
//! [`service`] turns what workers send into inputs; one thread, the [`driver`], feeds them to the core and performs
//! its actions; [`outbox`] queues messages to workers; [`shared_sums`] is the memory from which workers of this
//! machine read sums. Tokio's threads only move bytes, and cannot block the driver.

mod checkpointer;
pub mod driver;
pub mod driver_heartbeat;
pub mod health;
pub mod input;
pub mod master_state;
pub mod outbox;
pub mod reduction_buffers;
mod rejoin_history;
pub mod service;
pub mod shared_sums;
mod status_cache;
mod versions;
