//! The thin shell around the core: sockets, floats, files, threads.
//!
//! [`service`] turns what workers send into inputs; one thread, the [`driver`], feeds them
//! to the core and performs its actions; [`outbox`] holds what waits to be sent, [`board`] what
//! workers of this machine read without its being sent. Tokio's
//! threads only move bytes, and nothing they do can block the driver.

pub mod arena;
pub mod board;
pub mod driver;
mod lookers;
pub mod outbox;
pub mod pulse;
pub mod referee;
mod returns;
pub mod service;
mod versions;
