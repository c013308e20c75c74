//! What workers send each other: a greeting when a link opens, then frames of a header and the floats of one chunk.
//!
//! A link is plain TCP, or TLS over it, and not gRPC, because floats go straight from the socket into the buffer in which
//! they are added. All numbers are little-endian. Nothing here is trusted: a header is checked in full before a byte of
//! its payload is read (**TRUST-1**).

use tally_numerics::tree::{Node, Tree};
use tally_numerics::wire::WireDtype;
use tally_numerics::{chunk_range, chunks};
use thiserror::Error;

/// The first bytes of a link, with the version of its frames.
const MAGIC: [u8; 8] = *b"tallyln\x01";

/// Bytes of a [`Greeting`].
pub const GREETING: usize = 8 + 4 * 8 + TOKEN;
/// Bytes of a token.
pub const TOKEN: usize = 32;
/// Bytes of a [`Header`].
pub const HEADER: usize = 40;

/// What is wrong with what a peer sent.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadFrame {
    /// No link of a worker, or of another version.
    #[error("it is no worker of this version of Tally")]
    Magic,
    /// No kind of frame.
    #[error("a frame of kind {0}")]
    Kind(u32),
    /// A node that is not in the tree.
    #[error("a partial sum of {0}, which is not in the tree")]
    Node(Node),
    /// A chunk that the gradient does not have.
    #[error("chunk {0} of {1}")]
    Chunk(u32, usize),
    /// A payload that is not a chunk's.
    #[error("{0} bytes for a chunk of {1}")]
    Length(u32, usize),
    /// A payload that was changed on its way.
    #[error("a chunk that was damaged on its way")]
    Damaged,
}

/// The first message of a link, from the worker that dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The run.
    pub run: u64,
    /// The coordinator's incarnation.
    pub incarnation: u64,
    /// The session of the worker that dialled.
    pub from: u64,
    /// The session of the worker that it means.
    pub to: u64,
    /// The token that the coordinator has given it for this.
    pub token: [u8; TOKEN],
}

impl Greeting {
    /// As it is sent.
    #[must_use]
    pub fn encode(&self) -> [u8; GREETING] {
        let mut bytes = [0; GREETING];
        bytes[..8].copy_from_slice(&MAGIC);
        for (place, number) in [self.run, self.incarnation, self.from, self.to].into_iter().enumerate() {
            bytes[8 * (place + 1)..][..8].copy_from_slice(&number.to_le_bytes());
        }
        bytes[GREETING - TOKEN..].copy_from_slice(&self.token);
        bytes
    }

    /// What was sent.
    ///
    /// # Errors
    /// [`BadFrame::Magic`] if it is none.
    pub fn decode(bytes: &[u8; GREETING]) -> Result<Self, BadFrame> {
        if bytes[..8] != MAGIC {
            return Err(BadFrame::Magic);
        }
        let mut token = [0; TOKEN];
        token.copy_from_slice(&bytes[GREETING - TOKEN..]);
        let number = |place: usize| u64_at(bytes, 8 * place);
        Ok(Self { run: number(1), incarnation: number(2), from: number(3), to: number(4), token })
    }
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A chunk of a node, to the chunk's owner.
    Partial(Node),
    /// A chunk of the sum, from its owner.
    Sum,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it carries.
    pub kind: FrameKind,
    /// The step.
    pub step: u64,
    /// The attempt.
    pub attempt: u32,
    /// The chunk.
    pub index: u32,
    /// The digest of the replica that computed a partial sum; 0 for a sum.
    pub digest: u64,
    /// Bytes of the payload.
    pub length: u32,
    /// CRC-32C of the payload.
    pub crc: u32,
}

impl Header {
    /// The header of this payload.
    #[must_use]
    pub fn of(kind: FrameKind, (step, attempt): (u64, u32), index: u32, digest: u64, payload: &[u8]) -> Self {
        let crc = crc32c::crc32c(payload);
        Self { kind, step, attempt, index, digest, length: payload.len() as u32, crc }
    }

    /// As it is sent.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER] {
        let (kind, node) = match self.kind {
            FrameKind::Partial(node) => (1u32, node.0),
            FrameKind::Sum => (2, 0),
        };
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.step.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.digest.to_le_bytes());
        for (place, number) in
            [kind, node, self.attempt, self.index, self.length, self.crc].into_iter().enumerate()
        {
            bytes[16 + 4 * place..][..4].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// What was sent, for gradients of so many elements of this type.
    ///
    /// # Errors
    /// [`BadFrame`] if such a frame does not exist.
    pub fn decode(
        bytes: &[u8; HEADER],
        tree: Tree,
        elements: usize,
        dtype: WireDtype,
    ) -> Result<Self, BadFrame> {
        let [kind, node, attempt, index, length, crc] =
            std::array::from_fn(|place| u64_at(bytes, 16 + 4 * place) as u32);
        let kind = match kind {
            1 if tree.contains(Node(node)) => FrameKind::Partial(Node(node)),
            1 => return Err(BadFrame::Node(Node(node))),
            2 => FrameKind::Sum,
            other => return Err(BadFrame::Kind(other)),
        };
        if index as usize >= chunks(elements) {
            return Err(BadFrame::Chunk(index, chunks(elements)));
        }
        let wanted = dtype.bytes() * chunk_range(elements, index as usize).len();
        if length as usize != wanted {
            return Err(BadFrame::Length(length, wanted));
        }
        Ok(Self { kind, step: u64_at(bytes, 0), attempt, index, digest: u64_at(bytes, 8), length, crc })
    }

    /// Checks that a payload is the one that was sent.
    ///
    /// # Errors
    /// [`BadFrame::Damaged`] if it is not.
    pub fn check(&self, payload: &[u8]) -> Result<(), BadFrame> {
        if crc32c::crc32c(payload) == self.crc { Ok(()) } else { Err(BadFrame::Damaged) }
    }
}

/// The number at a place, of which the last bytes may be missing.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    let there = &bytes[at..bytes.len().min(at + 8)];
    number[..there.len()].copy_from_slice(there);
    u64::from_le_bytes(number)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use tally_numerics::CHUNK;

    use super::*;

    fn tree() -> Tree {
        Tree::new(8).unwrap()
    }

    const ELEMENTS: usize = CHUNK + 5;

    fn decode(bytes: &[u8; HEADER]) -> Result<Header, BadFrame> {
        Header::decode(bytes, tree(), ELEMENTS, WireDtype::F32)
    }

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let payload = [7u8; 20];
        for kind in [FrameKind::Sum, FrameKind::Partial(Node(15))] {
            let header = Header::of(kind, (1 << 40, 3), 1, u64::MAX, &payload);
            assert_eq!(decode(&header.encode()), Ok(header));
            assert_eq!(header.check(&payload), Ok(()));
            assert_eq!(header.check(&[7; 19]), Err(BadFrame::Damaged));
        }
        let greeting = Greeting { run: 1, incarnation: 2, from: 3, to: 4, token: [9; TOKEN] };
        let mut bytes = greeting.encode();
        assert_eq!(Greeting::decode(&bytes), Ok(greeting));
        bytes[7] = 2;
        assert_eq!(Greeting::decode(&bytes), Err(BadFrame::Magic));
    }

    #[test]
    fn trust_1_a_frame_that_cannot_be_is_refused() {
        let good = Header::of(FrameKind::Partial(Node(2)), (1, 1), 1, 0, &[0; 20]);
        let refused = |header: Header| decode(&header.encode()).unwrap_err();
        let node = |node| FrameKind::Partial(Node(node));
        assert_eq!(refused(Header { kind: node(0), ..good }), BadFrame::Node(Node(0)));
        assert_eq!(refused(Header { kind: node(16), ..good }), BadFrame::Node(Node(16)));
        assert_eq!(refused(Header { index: 2, ..good }), BadFrame::Chunk(2, 2));
        assert_eq!(refused(Header { length: 24, ..good }), BadFrame::Length(24, 20));
        assert_eq!(refused(Header { index: 0, ..good }), BadFrame::Length(20, 4 * CHUNK));
    }

    proptest! {
        #[test]
        fn trust_1_any_bytes_are_a_sound_frame_or_none(bytes in proptest::array::uniform32(any::<u8>())) {
            let mut header = [0; HEADER];
            header[..32].copy_from_slice(&bytes);
            if let Ok(header) = decode(&header) {
                prop_assert!((header.index as usize) < 2 && header.length as usize <= 4 * CHUNK);
            }
        }
    }
}
