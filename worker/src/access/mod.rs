//! How a cluster knows who may do what: certificates and tokens, on both sides (**TRUST-1**).
//!
//! [`token`], [`pem`] and [`file`](mod@file) read what both sides are given; [`tls`] is whom they believe, and what failures
//! mean; [`client`] is what a worker and `coordinator status` show. The coordinator's side is a module of its own crate.

pub mod client;
pub mod file;
pub mod pem;
pub mod tls;
pub mod token;
