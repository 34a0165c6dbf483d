//! What is said over the supervisor's socket: requests that change whether, and by which process, a sandbox's network is served.
//!
//! A client says one line of JSON, with descriptors where a request needs them. The supervisor says lines of JSON too, the last of which
//! is an [`Answer`](super::protocol::Answer), and closes. A client that closes before has given up what it asked for.

use super::protocol::{Answer, MAX_ANSWER, Problem, ProblemKind};
use super::registry::Registry;
use crate::sandbox::failure::{Failure, Status};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Whether a sandbox's network is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Packets pass.
    #[default]
    Running,
    /// The worker stands still; what comes waits.
    Paused,
}

impl State {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Paused => "paused",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Stand still: a [`Changed`].
    Pause,
    /// Go on: a [`Changed`].
    Resume,
}

/// What a request has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The state now.
    pub state: State,
    /// Whether it was another one before.
    pub changed: bool,
}

/// How long a supervisor may take to answer what takes no time.
const PATIENCE: Duration = Duration::from_secs(20);

/// The asking end of a supervisor's socket.
#[derive(Debug)]
pub struct Asking {
    name: String,
    stream: BufReader<UnixStream>,
}

impl Asking {
    /// Asks the supervisor of this sandbox.
    ///
    /// # Errors
    ///
    /// [`Status::Name`] if there is no such sandbox; else if its supervisor cannot be reached.
    pub fn new(name: &str, request: &Request) -> Result<Asking, Failure> {
        let registry = Registry::open()?;
        registry.get(name)?;
        let fail = |e: io::Error| Failure::os(Status::File, format_args!("cannot ask the supervisor of '{name}'"), e);
        let mut line = serde_json::to_vec(request).map_err(|e| Failure::new(Status::Internal, e.to_string()))?;
        line.push(b'\n');
        let mut stream = UnixStream::connect(registry.lifecycle_socket(name)).map_err(fail)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(fail)?;
        // One who refuses does not read everything first: what is said counts, not how the writing ended.
        let _ = stream.write_all(&line);
        Ok(Asking { name: name.into(), stream: BufReader::new(stream) })
    }

    /// The answer.
    ///
    /// # Errors
    ///
    /// What the supervisor says, or that it says nothing.
    pub fn answer<T: DeserializeOwned>(mut self) -> Result<T, Failure> {
        let name = &self.name;
        let mut line = Vec::new();
        let read = (&mut self.stream).take(MAX_ANSWER as u64).read_until(b'\n', &mut line);
        match serde_json::from_slice(&line) {
            Ok(Answer::Ok(value)) => Ok(value),
            Ok(Answer::Error(p)) => Err(failure(name, &p)),
            Err(_) if line.is_empty() => Err(match read {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    Failure::new(Status::Internal, format!("the supervisor of '{name}' does not answer"))
                }
                Err(e) => Failure::os(Status::File, format_args!("cannot hear the supervisor of '{name}'"), e),
                Ok(_) => Failure::new(Status::Internal, format!("the supervisor of '{name}' ended before it answered")),
            }),
            Err(e) => {
                Err(Failure::new(Status::Internal, format!("the supervisor of '{name}' gave an answer that cannot be read: {e}")))
            }
        }
    }
}

fn failure(name: &str, p: &Problem) -> Failure {
    let status = match p.kind {
        ProblemKind::Request => Status::Usage,
        ProblemKind::Syntax | ProblemKind::Meaning => Status::Rules,
        ProblemKind::Busy => Status::Resources,
        ProblemKind::Denied => Status::File,
        ProblemKind::State => Status::State,
        ProblemKind::Internal => Status::Internal,
    };
    Failure::new(status, format!("the sandbox '{name}': {}", p.message))
}
