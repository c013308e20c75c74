//! Access: what each peer may do, and how much of it (**TRUST-1**).
//!
//! Both of the coordinator's ports are served by one loop ([`serve`]). A connection is counted among all
//! ([`connection_limiter`]) and watched from its first byte ([`connection_monitor`]): it has to complete an allowed
//! request soon, may send only a limited amount before it takes part, and is closed when it is idle or does not read
//! its answers. TLS is spoken with what [`credentials`] has read last, and every request is checked by
//! [`permissions`], which knows what may be done without a token, with a token for viewing, and with a token for
//! training. [`join_rate_limiter`] bounds how fast workers come in.

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
