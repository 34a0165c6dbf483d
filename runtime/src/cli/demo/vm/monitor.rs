//! QEMU's monitor (QMP): commands and their answers.

use crate::sandbox::failure::{Failure, Status};
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to the monitor.
#[derive(Debug)]
pub(super) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// Connects, if QEMU listens yet.
    pub(super) fn connect(path: &Path) -> io::Result<Monitor> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut monitor = Monitor(BufReader::new(stream));
        // Its greeting.
        monitor.hear()?;
        monitor.say("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Has it do something; its answer.
    pub(super) fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, Failure> {
        self.say(command, arguments).map_err(|e| Failure::os(Status::Internal, format_args!("QEMU's monitor, {command}"), e))
    }

    fn say(&mut self, command: &str, arguments: &Value) -> io::Result<Value> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.0.get_mut().write_all(line.as_bytes())?;
        self.hear()
    }

    /// What it answers; what else it tells is passed over.
    fn hear(&mut self) -> io::Result<Value> {
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut said: Value = serde_json::from_str(&line)?;
            if said.get("event").is_some() {
                continue;
            }
            if let Some(e) = said.get("error") {
                return Err(io::Error::other(e["desc"].as_str().unwrap_or("it refuses").to_owned()));
            }
            return Ok(said["return"].take());
        }
    }
}
