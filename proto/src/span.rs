//! Spans of a worker's time, which it reports with each commit, and the clocks that measure them.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::convert::BadMessage;
use crate::v1;

/// The most spans of a message.
pub const MAX_SPANS: usize = 256;

/// No clock shows more seconds since 1970 than this, before or after.
const FARTHEST: f64 = 1e11;

/// Seconds since 1970 that advance evenly, even if the machine's clock is set.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    unix: f64,
}

impl Clock {
    /// A clock that is right now.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: Instant::now(), unix: Self::wall() }
    }

    /// Seconds since 1970 by the machine's clock, for people. It runs while the machine sleeps and can be set, so it
    /// does not measure durations.
    #[must_use]
    pub fn wall() -> f64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn unix(&self) -> f64 {
        self.at(Instant::now())
    }

    /// What it showed then; times before its start are its start.
    #[must_use]
    pub fn at(&self, then: Instant) -> f64 {
        self.unix + then.saturating_duration_since(self.origin).as_secs_f64()
    }

    /// When the clock was started, in seconds since 1970.
    #[must_use]
    pub fn origin(&self) -> f64 {
        self.unix
    }
}

/// What a worker did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpanKind {
    /// It computed a gradient.
    Compute,
    /// Gradients left it, while it did something else.
    Send,
    /// It had nothing to do.
    Wait,
    /// It applied the update.
    Apply,
    /// It computed a node that was first assigned to another worker.
    Takeover,
    /// It computed a node that another worker contributed, to compare the bits.
    Audit,
    /// It computed a microbatch of the test pass.
    Test,
}

impl SpanKind {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Compute, Self::Send, Self::Wait, Self::Apply, Self::Takeover, Self::Audit, Self::Test];

    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Send => "send",
            Self::Wait => "wait",
            Self::Apply => "apply",
            Self::Takeover => "takeover",
            Self::Audit => "audit",
            Self::Test => "test",
        }
    }

    fn to_message(self) -> v1::SpanKind {
        match self {
            Self::Compute => v1::SpanKind::Compute,
            Self::Send => v1::SpanKind::Send,
            Self::Wait => v1::SpanKind::Wait,
            Self::Apply => v1::SpanKind::Apply,
            Self::Takeover => v1::SpanKind::Takeover,
            Self::Audit => v1::SpanKind::Audit,
            Self::Test => v1::SpanKind::Test,
        }
    }

    /// `None` for a kind that only newer workers have.
    fn from_message(kind: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.to_message() as i32 == kind)
    }
}

/// A stretch of time, in seconds since 1970 by some clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// What was done.
    pub kind: SpanKind,
    /// Leaves computed in it.
    pub leaves: u32,
    /// From.
    pub start: f64,
    /// To.
    pub end: f64,
}

impl Span {
    /// Its length in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.end - self.start
    }

    /// As a message.
    #[must_use]
    pub fn to_message(&self) -> v1::Span {
        v1::Span {
            kind: self.kind.to_message().into(),
            leaves: self.leaves,
            start: self.start,
            end: self.end,
        }
    }
}

/// Whether a clock can show this.
fn is_time(seconds: f64) -> bool {
    seconds.abs() <= FARTHEST
}

/// The spans of a message: none ends before it starts, and of those that a worker does one after
/// the other none starts before the one before it has ended. Kinds that are not known are left out.
///
/// # Errors
/// [`BadMessage::Spans`] if they are not so, too many, or of no time that a clock shows.
pub fn spans(message: &[v1::Span]) -> Result<Vec<Span>, BadMessage> {
    if message.len() > MAX_SPANS {
        return Err(BadMessage::Spans);
    }
    let mut spans = Vec::with_capacity(message.len());
    let (mut sent, mut done) = (f64::MIN, f64::MIN);
    for &v1::Span { kind, leaves, start, end } in message {
        let Some(kind) = SpanKind::from_message(kind) else { continue };
        let before = if kind == SpanKind::Send { &mut sent } else { &mut done };
        // NaN compares with nothing.
        if !(is_time(start) && is_time(end) && *before <= start && start <= end) {
            return Err(BadMessage::Spans);
        }
        *before = end;
        spans.push(Span { kind, leaves, start, end });
    }
    Ok(spans)
}

/// When a question came to a worker and when its answer left, by its clock.
///
/// # Errors
/// [`BadMessage::Clock`] if that is no time, or the answer was there before the question.
pub fn clock(answer: &v1::ClockAnswer) -> Result<(f64, f64), BadMessage> {
    let (received, sent) = (answer.received, answer.sent);
    let sound = is_time(received) && is_time(sent) && received <= sent;
    if sound { Ok((received, sent)) } else { Err(BadMessage::Clock) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(kind: SpanKind, start: f64, end: f64) -> Span {
        Span { kind, leaves: 3, start, end }
    }

    fn read(list: &[Span]) -> Result<Vec<Span>, BadMessage> {
        spans(&list.iter().map(Span::to_message).collect::<Vec<_>>())
    }

    #[test]
    fn spans_survive_the_wire() {
        let list: Vec<Span> = (0..7).map(|i| span(SpanKind::ALL[i], i as f64, i as f64 + 1.0)).collect();
        assert_eq!(read(&list), Ok(list));
        // A gradient leaves while the next is computed.
        let both = [span(SpanKind::Compute, 1.0, 3.0), span(SpanKind::Send, 2.0, 4.0)];
        assert_eq!(read(&both).map(|spans| spans.len()), Ok(2));
    }

    #[test]
    fn what_a_newer_worker_does_is_left_out() {
        let unknown = v1::Span { kind: 99, ..span(SpanKind::Wait, 1.0, 2.0).to_message() };
        assert_eq!(spans(&[unknown, v1::Span::default()]), Ok(Vec::new()));
    }

    #[test]
    fn trust_1_spans_that_cannot_be_are_refused() {
        use SpanKind::{Compute, Wait};
        for bad in [
            vec![span(Compute, f64::NAN, 1.0)],
            vec![span(Compute, 1.0, f64::NAN)],
            vec![span(Compute, 1.0, f64::INFINITY)],
            vec![span(Compute, -1e300, 1.0)],
            vec![span(Compute, 2.0, 1.0)],
            vec![span(Compute, 1.0, 3.0), span(Wait, 2.0, 4.0)],
            vec![span(Compute, 1.0, 2.0); MAX_SPANS + 1],
        ] {
            assert_eq!(read(&bad), Err(BadMessage::Spans), "{bad:?}");
        }
        for (received, sent) in [(2.0, 1.0), (f64::NAN, 1.0), (1.0, f64::INFINITY)] {
            assert_eq!(clock(&v1::ClockAnswer { number: 1, received, sent }), Err(BadMessage::Clock));
        }
    }
}
