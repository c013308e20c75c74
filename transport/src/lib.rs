//! How to reach a coordinator, for workers and for tools such as `coordinator status`.
//!
//! [`connect`] opens a connection over the network; [`local`] opens one to a coordinator in the same process.
//! [`client`] holds the options that every client of a coordinator has: a token and TLS. [`token`] and [`mod@pem`]
//! read secrets and certificates from [files](option_file); the coordinator reads its own with them too (**TRUST-1**).
//! [`link`] opens links between workers. [`tls`] decides which certificates are trusted, and says why TLS failed. [`slow_link`] has the explanation that
//! both sides give for sessions that end too soon.

#![forbid(unsafe_code)]

pub mod client;
pub mod connect;
pub mod link;
pub mod local;
pub mod option_file;
pub mod pem;
pub mod slow_link;
pub mod tls;
pub mod token;
