//! What the worker answers to requests.

use super::Worker;
use crate::control::protocol::{Answer, MAX_ANSWER, Problem, ProblemKind, Request};
use hibernet_netstack::Time;
use serde::Serialize;

/// An answer as it is sent.
pub(super) fn encode<T: Serialize>(answer: &Answer<T>) -> Vec<u8> {
    let problem = |text: &str| {
        let text = format!(r#"{{"error":{{"kind":"internal","message":"{text}"}}}}"#);
        text.into_bytes()
    };
    let mut bytes = match serde_json::to_vec(answer) {
        Ok(b) if b.len() < MAX_ANSWER => b,
        Ok(_) => problem("the answer is longer than any may be"),
        Err(_) => problem("the answer cannot be written as JSON"),
    };
    bytes.push(b'\n');
    bytes
}

impl Worker {
    /// The answer to a request, as it is sent.
    pub(super) fn answer(&mut self, _now: Time, request: &[u8]) -> Vec<u8> {
        let request = match serde_json::from_slice(request) {
            Ok(r) => r,
            Err(e) => return error(Problem::new(ProblemKind::Request, format!("not a request: {e}"))),
        };
        match request {
            Request::Stats => encode(&Answer::Ok(self.report())),
        }
    }
}

fn error(p: Problem) -> Vec<u8> {
    encode(&Answer::<()>::Error(p))
}
