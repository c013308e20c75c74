//! Who may do what, and how much of it (**TRUST-1**).
//!
//! Both of the coordinator's ports are served by one loop ([`serve`]). A connection is counted
//! among all ([`connection_limiter`]) and watched from its first byte ([`connection_monitor`]): it has to make a whole,
//! allowed request soon, may send only so much before it takes part, and ends when it is idle or
//! does not take its answers. TLS is spoken with what [`credentials`] has read last, and
//! every request passes the [`permissions`], which knows what may be done without a token, with one
//! that may look, and with one that may train. [`join_rate_limiter`] bounds how fast workers come in.

mod banner;
pub mod connection;
pub mod connection_limiter;
pub mod connection_monitor;
pub mod credentials;
pub mod join_rate_limiter;
pub mod options;
pub mod permissions;
pub mod serve;
#[cfg(test)]
mod tests;

pub use banner::banner;
