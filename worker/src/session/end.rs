//! How a session ends, and what a worker keeps for the next one.

use tally_numerics::digest::Digest;
use tally_proto::v1::coordinator_message;
use tonic::{Code, Status};

use crate::engine::Engine;

/// How a session ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// The run is over, or was stopped before its end.
    Finished {
        /// In words.
        reason: String,
        /// The run was stopped.
        stopped: bool,
    },
    /// The coordinator will never take this worker.
    Refused(String),
    /// The coordinator, or a proxy on the way to it, does not accept this worker's token or certificate. Either may
    /// change.
    Denied(String),
    /// This worker can never compute.
    Failed(String),
    /// The connection or the coordinator is gone. The worker tries again.
    Lost(String),
    /// The coordinator sent this worker away, for this reason. The worker tries again.
    Evicted(String),
    /// The user asked this worker to leave.
    Left,
}

impl SessionEnd {
    /// The end of a session whose stream broke with this status. An answer that a proxy may have given in the
    /// coordinator's place is never final: with nothing behind it, a proxy answers 404, and 401 or 403 while its own
    /// rules change.
    #[must_use]
    pub fn of_status(status: &Status) -> Self {
        let reason = match status.message() {
            "" => status.code().description().into(),
            // Tonic's words for an answer that is not gRPC.
            words if words.starts_with("grpc-status header missing") => {
                format!("{words}: it is no coordinator that answers; is a proxy in between?")
            }
            words => words.into(),
        };
        match status.code() {
            Code::FailedPrecondition | Code::InvalidArgument => Self::Refused(reason),
            Code::Unauthenticated | Code::PermissionDenied => Self::Denied(reason),
            _ => Self::Lost(reason),
        }
    }

    /// The end of the session, if this message ends it.
    #[must_use]
    pub fn of_message(body: &coordinator_message::Body) -> Option<Self> {
        match body {
            coordinator_message::Body::Finished(f) => {
                Some(Self::Finished { reason: f.reason.clone(), stopped: f.stopped })
            }
            coordinator_message::Body::Refused(r) => Some(Self::Refused(r.reason.clone())),
            coordinator_message::Body::Evicted(e) => Some(Self::Evicted(e.reason.clone())),
            _ => None,
        }
    }
}

/// The engine of the last session, which the next session uses if it fits (**RESUME-1**).
#[derive(Default)]
pub struct RetainedWorker {
    /// The program's arguments that the engine was built for.
    pub arguments: Option<String>,
    /// The engine.
    pub engine: Option<Box<dyn Engine>>,
    /// The run of the last session, and the newest incarnation of its coordinator.
    pub run: Option<(u64, u64)>,
    /// Steps of that run whose state the engine still has, newest first, with their digests.
    pub states: Vec<(u64, Digest)>,
    /// The number of steps that the engine confirmed in the last session.
    pub steps: u64,
}
