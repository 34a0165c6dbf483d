//! What is said over a control socket: one request in a line of JSON, one answer in a document of JSON, then the end.

use serde::{Deserialize, Serialize};

/// Longest request in bytes.
pub const MAX_REQUEST: usize = 4 << 20;
/// Longest answer in bytes.
pub const MAX_ANSWER: usize = 16 << 20;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// All counters, as one object.
    Stats,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer<T> {
    /// It was done.
    Ok(T),
    /// It was not.
    Error(Problem),
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind of reason.
    pub kind: ProblemKind,
    /// One line.
    pub message: String,
    /// For rules that cannot be read: where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Place>,
}

impl Problem {
    /// One that is not about a place in a text.
    pub fn new(kind: ProblemKind, message: impl Into<String>) -> Self {
        Problem { kind, message: message.into(), at: None }
    }
}

/// Kinds of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The client may not ask.
    Denied,
    /// Too many ask at once; later it may work.
    Busy,
    /// It is no request.
    Request,
    /// Rules cannot be read.
    Syntax,
    /// Rules can be read but make no sense.
    Meaning,
    /// Something that should not happen.
    Internal,
}

/// A place in a text, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Line.
    pub line: u32,
    /// Character in the line.
    pub column: u32,
}
