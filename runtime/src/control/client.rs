//! The asking end of a control socket.

use super::lifecycle::State;
use super::protocol::{Answer, MAX_ANSWER, Problem, ProblemKind, Request};
use super::registry::Registry;
use crate::sandbox::failure::{Failure, Status};
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// How long the worker may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running sandbox that can be asked.
#[derive(Debug)]
pub struct Client {
    name: String,
    path: PathBuf,
}

impl Client {
    /// The running sandbox of this name.
    ///
    /// # Errors
    ///
    /// [`Status::Name`] if there is none.
    pub fn new(name: &str) -> Result<Client, Failure> {
        let registry = Registry::open()?;
        // Those that joined a network are asked where it is.
        let entry = registry.get(name)?;
        let name = &entry.network();
        if registry.get(name)?.state == State::Asleep {
            let why = format!(
                "the network of '{name}' is asleep; wake it with `hibernet restore IMAGE`, or look into the image with `hibernet inspect`"
            );
            return Err(Failure::new(Status::State, why));
        }
        Ok(Client { name: name.clone(), path: registry.control_socket(name) })
    }

    /// Asks; a problem that the worker has with the request is a value of its own.
    ///
    /// # Errors
    ///
    /// If the worker cannot be reached, or does not answer.
    pub fn try_ask<T: DeserializeOwned>(&self, request: &Request) -> Result<Result<T, Problem>, Failure> {
        let name = &self.name;
        let fail = |e: io::Error| match e.kind() {
            io::ErrorKind::WouldBlock => {
                Failure::new(Status::Internal, format!("the network worker of '{name}' does not answer"))
            }
            _ => Failure::os(Status::File, format_args!("cannot ask the network worker of '{name}'"), e),
        };
        let internal = |e: &dyn std::fmt::Display| {
            Failure::new(Status::Internal, format!("the network worker of '{name}' gave an answer that cannot be read: {e}"))
        };
        let mut line = serde_json::to_vec(request).map_err(|e| Failure::new(Status::Internal, e.to_string()))?;
        line.push(b'\n');
        let mut stream = UnixStream::connect(&self.path).map_err(fail)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(fail)?;
        // A worker that refuses does not read everything first: what it says counts, not how the writing ended.
        let written = stream.write_all(&line);
        let mut text = Vec::new();
        let read = stream.take(MAX_ANSWER as u64 + 1).read_to_end(&mut text);
        if text.is_empty() {
            written.map_err(fail)?;
            read.map_err(fail)?;
            return Err(Failure::new(Status::Internal, format!("the network worker of '{name}' gave no answer")));
        }
        match serde_json::from_slice(&text) {
            Ok(Answer::Ok(value)) => Ok(Ok(value)),
            Ok(Answer::Error(problem)) => Ok(Err(problem)),
            Err(e) => Err(internal(&e)),
        }
    }

    /// Asks.
    ///
    /// # Errors
    ///
    /// As [`Client::try_ask`], or what the worker says.
    pub fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Failure> {
        self.try_ask(request)?.map_err(|p| self.failure(&p))
    }

    /// A problem, as the failure of a command.
    pub fn failure(&self, p: &Problem) -> Failure {
        Failure::new(p.kind.into(), format!("the sandbox '{}': {}", self.name, p.message))
    }
}

impl From<ProblemKind> for Status {
    fn from(kind: ProblemKind) -> Status {
        match kind {
            ProblemKind::Request => Status::Usage,
            ProblemKind::Syntax | ProblemKind::Meaning | ProblemKind::Sets => Status::Rules,
            ProblemKind::Busy => Status::Resources,
            ProblemKind::Denied | ProblemKind::File => Status::File,
            ProblemKind::State => Status::State,
            ProblemKind::Require => Status::Require,
            ProblemKind::Image => Status::Image,
            ProblemKind::Internal => Status::Internal,
        }
    }
}
