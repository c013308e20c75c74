//! Peers that say anything, against the real code of the other side, in this process
//! (**TRUST-1**).
//!
//! What a peer does is read from a string of bytes, a *script*: any bytes are one. So the
//! tests' random generator and libFuzzer (`fuzz/`) play the same scripts, and one that
//! breaks something replays exactly.

pub mod coordinator;
pub mod peer;
pub mod worker;

use tally_proto::v1::{MessageContext, RetainedState, Span, SumChecksum};

/// A script as it is read. At its end, all numbers are 0.
#[derive(Clone, Copy, Debug)]
pub struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    /// A script of these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next byte, for what is to be done next; `None` at the end.
    pub fn op(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.op().unwrap_or(0)
    }

    /// True for one byte in `n`.
    pub fn rarely(&mut self, n: u8) -> bool {
        self.byte() % n == n - 1
    }

    /// The next few bytes, up to 255.
    pub fn bytes(&mut self) -> &'a [u8] {
        let n = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(n);
        self.0 = rest;
        bytes
    }

    /// Text, perhaps with control characters.
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    fn raw(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// A number: most often (so that scripts get far) `right`, else one that is near it, at an edge, or anything.
    pub fn number(&mut self, right: u64) -> u64 {
        match self.byte() % 128 {
            0 => 0,
            1 => 1,
            2 => right.wrapping_add(1),
            3 => right.wrapping_sub(1),
            4 => u64::MAX,
            5 => u64::from(u32::MAX),
            6 => 1 << 63,
            7 => self.byte().into(),
            8 => self.raw(),
            _ => right,
        }
    }

    /// The same in 32 bits.
    pub fn small(&mut self, right: u32) -> u32 {
        self.number(right.into()) as u32
    }

    /// A floating-point number: most often `right`, else one that is none or absurd.
    pub fn float(&mut self, right: f64) -> f64 {
        match self.byte() % 128 {
            0 => 0.0,
            1 => -1.0,
            2 => f64::NAN,
            3 => f64::INFINITY,
            4 => f64::NEG_INFINITY,
            5 => f64::MAX,
            6 => 1e300,
            7 => f64::MIN_POSITIVE / 4.0,
            8 => f64::from_bits(self.raw()),
            9 => -0.0,
            _ => right,
        }
    }

    /// Sums of losses and metrics: most often `right`, else unsound ones, or more or fewer of them.
    pub fn sums(&mut self, right: &[f64]) -> Vec<f64> {
        let mut sums: Vec<f64> = right.iter().map(|&sum| self.float(sum)).collect();
        match self.byte() % 64 {
            0 => sums.truncate(self.byte().into()),
            1 => sums.extend(self.bytes().iter().map(|&byte| f64::from(byte))),
            _ => {}
        }
        sums
    }

    /// A state that a worker says it holds.
    pub fn retained(&mut self) -> RetainedState {
        RetainedState { run: self.number(coordinator::RUN), step: self.number(0), digest: self.number(0) }
    }

    /// What a worker says it did, most often in order.
    pub fn spans(&mut self) -> Vec<Span> {
        let span = |script: &mut Self, at: f64| Span {
            kind: script.small(1) as i32,
            leaves: script.small(1),
            start: script.float(at),
            end: script.float(at + 0.5),
        };
        let count = if self.rarely(64) { 257 } else { u16::from(self.byte() % 4) };
        (0..count).map(|at| span(self, f64::from(at))).collect()
    }

    /// Checksums of what owners are said to have sent, most often none.
    pub fn checksums(&mut self) -> Vec<SumChecksum> {
        let count = if self.rarely(8) { self.byte() % 4 } else { 0 };
        (0..count).map(|_| SumChecksum { index: self.small(1), crc: self.small(0) }).collect()
    }

    /// A vector's bytes: most often `elements` small floats, else others, or of another length.
    pub fn floats(&mut self, elements: usize) -> Vec<u8> {
        let value = match self.byte() % 64 {
            0 => self.float(f64::NAN) as f32,
            1 => f32::MAX,
            n => f32::from(n) * 0.01,
        };
        let mut bytes: Vec<u8> = (0..elements).flat_map(|_| value.to_le_bytes()).collect();
        match self.byte() % 64 {
            0 => bytes.truncate(self.byte().into()),
            1 => bytes.extend_from_slice(self.bytes()),
            _ => {}
        }
        bytes
    }

    /// A message context that is most often `right`.
    pub fn context(&mut self, right: MessageContext) -> Option<MessageContext> {
        if !self.rarely(32) {
            return Some(right);
        }
        let context = MessageContext {
            run: if self.rarely(8) { self.raw() } else { right.run },
            incarnation: if self.rarely(8) { self.raw() } else { right.incarnation },
            session: if self.rarely(8) { self.raw() } else { right.session },
            step: self.number(right.step),
            attempt: self.small(right.attempt),
        };
        (!self.rarely(16)).then_some(context)
    }
}

/// A message in gRPC's frame: no compression, its length, its bytes.
#[must_use]
pub fn framed(message: &[u8]) -> Vec<u8> {
    [&[0], &(message.len() as u32).to_be_bytes()[..], message].concat()
}
