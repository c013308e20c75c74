//! Tally on the wire: the messages of `proto/tally/v1`, and checked conversions.
//!
//! Messages of a peer are not trusted to be well-formed. Everything that becomes a type of another crate is checked
//! in [`convert`], whose errors say what was wrong (**TRUST-1**).

#![forbid(unsafe_code)]

pub mod convert;
pub mod floats;
pub mod partial_sums;
pub mod peer_frame;
pub mod pool;
pub mod segment;
pub mod span;
pub mod update;
pub mod version;

/// The generated messages and service.
#[allow(missing_docs, clippy::all, rust_2018_idioms, rustdoc::all)]
pub mod v1 {
    include!("generated/tally.v1.rs");
}

/// The descriptions of all messages and services, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");

pub use version::PROTOCOL;

use tally_numerics::wire::WireDtype;

/// The capability of a worker whose gradients can travel as bfloat16.
pub const BF16: &str = "bf16";

/// The capability that a worker needs to send gradients of this type; `None` if every worker can.
#[must_use]
pub fn capability_of(dtype: WireDtype) -> Option<&'static str> {
    match dtype {
        WireDtype::F32 => None,
        WireDtype::Bf16 => Some(BF16),
    }
}

/// The capability of a worker that reports spans of its time, and answers with its clock.
pub const TIMELINE: &str = "timeline";

/// The capability of a worker that can have links to other workers.
pub const LINKS: &str = "links";

/// The largest message the coordinator takes from a worker, in bytes: a chunk of 1 MiB, or 2¹⁴ tensors with names of
/// 64 bytes, and what is around them. A message of empty elements takes up to 28 times its length in memory, so the
/// limit is no larger than necessary.
pub const MAX_FROM_WORKER: usize = 2 << 20;
/// The largest message a worker takes from the coordinator, in bytes.
pub const MAX_FROM_COORDINATOR: usize = 64 << 20;
/// The most samples of a microbatch, so that it fits a message.
pub const MAX_MICROBATCH: usize = 1 << 15;
