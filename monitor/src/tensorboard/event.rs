//! The few messages of TensorBoard's `event.proto` and `summary.proto` that scalars need, by
//! their field numbers; readers skip what they do not know, and nothing else is required.

/// `tensorflow.Event`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    /// The step.
    #[prost(int64, tag = "2")]
    pub step: i64,
    /// What happened.
    #[prost(oneof = "What", tags = "3, 5, 7")]
    pub what: Option<What>,
}

/// What happened.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum What {
    /// A file begins.
    #[prost(string, tag = "3")]
    FileVersion(String),
    /// Values of a step.
    #[prost(message, tag = "5")]
    Summary(Summary),
    /// A program has started.
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

/// `tensorflow.Summary`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Summary {
    /// The values.
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<Value>,
}

/// `tensorflow.Summary.Value`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Value {
    /// The curve's name; a part before a slash groups curves.
    #[prost(string, tag = "1")]
    pub tag: String,
    /// The number. Written even where it is 0, as a member of a oneof is.
    #[prost(float, optional, tag = "2")]
    pub simple_value: Option<f32>,
}

/// `tensorflow.SessionLog`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionLog {
    /// [`Self::START`].
    #[prost(int32, tag = "1")]
    pub status: i32,
}

impl SessionLog {
    /// A program has started: earlier files' events of this step and later ones are void.
    pub const START: i32 = 1;
}
