//! Who may do what, and how much of it (**TRUST-1**).
//!
//! Both of the coordinator's ports are served by one loop ([`serve`]). A connection is counted
//! among all ([`crowd`]) and watched from its first byte ([`guard`]): it has to make a whole,
//! allowed request soon, may send only so much before it takes part, and ends when it is idle or
//! does not take its answers. TLS is spoken with what [`credentials`] has read last, and
//! every request passes the [`gate`], which knows what may be done without a token, with one
//! that may look, and with one that may train. [`joins`] bounds how fast workers come in.
//! [`health`] answers those who only want to know whether the coordinator is well.

pub mod credentials;
pub mod crowd;
pub mod gate;
pub mod guard;
pub mod health;
pub mod joins;
pub mod options;
pub mod serve;
#[cfg(test)]
mod tests;
mod words;

pub use words::greet;
