//! How a cluster knows who may do what: certificates and tokens, on both sides (**TRUST-1**).
//!
//! [`token`] and [`pem`] read what both sides are given; [`client`] is what a worker and
//! `coordinator status` show. The coordinator's side is a module of its own crate.

pub mod client;
pub mod pem;
pub mod token;
