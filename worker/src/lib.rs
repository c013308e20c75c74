//! The worker: computes gradients for a Tally cluster.
//!
//! [`engine`] is what it computes with; [`session`] is its life in a cluster: connect, load
//! a state, contribute, apply, commit; [`access`] is what it shows the
//! coordinator. [`scores`] and [`evaluate`] judge a network; [`predict`]
//! asks it, and [`picture`] brings pictures to what it was trained on.

#![deny(unsafe_code)]

pub mod access;
pub mod cli;
pub mod devices;
pub mod engine;
pub mod evaluate;
pub mod logging;
pub mod picture;
pub mod predict;
pub mod scores;
pub mod session;
pub mod signals;
pub mod work;
