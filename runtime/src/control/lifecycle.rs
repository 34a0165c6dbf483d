//! What is said over the supervisor's socket: requests that change whether, and by which process, a sandbox's network is served.
//!
//! A client says one line of JSON, with descriptors where a request needs them. The supervisor says lines of JSON too, the last of which
//! is an [`Answer`], and closes. A client that closes before has given up what it asked for.

use super::protocol::{Answer, MAX_ANSWER, Problem, Recheck};
use super::registry::Registry;
use crate::checkpoint::news;
use crate::checkpoint::report::{FlowTier, FreezeReport, ThawReport};
use crate::sandbox::channel::send_with_fds;
use crate::sandbox::failure::{Failure, Status};
use crate::sandbox::guest::LinkEnd;
use crate::worker::{Mode, Prepare, RestorePolicy};
use hibernet_netstack::config::{GuestNet, V4Config, V6Config};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
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
    /// There is no worker: its state is in an image, its sockets are held.
    Asleep,
    /// Its virtual machine is on its way: its state is saved and it stands still, or it is loaded and has not begun.
    Moving,
}

impl State {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Paused => "paused",
            State::Asleep => "asleep",
            State::Moving => "moving",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A request. Variants without fields have braces: else what they do not know would be ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Stand still: a [`Changed`].
    Pause {},
    /// Go on: a [`Changed`].
    Resume {},
    /// Which tier each flow would take: a [`Tiers`].
    Tiers {
        /// What a checkpoint would do with the sockets.
        mode: Mode,
    },
    /// Freeze, and write the image into the descriptor that comes along (with [`Mode::Repair`], behind it a connection to a helper): [`Event`]s, then a [`FreezeReport`]. Unless the network is to go on it stands still
    /// behind [`Event::Written`] until the client says [`Request::Commit`]; one who leaves has given up.
    Checkpoint {
        /// How.
        #[serde(flatten)]
        how: Prepare,
        /// With [`Mode::Hold`]: what is run when the first thing happens.
        #[serde(default)]
        wake: Option<WakeExec>,
    },
    /// In the middle of a checkpoint: the image is safe, the worker may end.
    Commit {},
    /// Go on from the image in the descriptor that comes along, with the sockets that are held: a [`ThawReport`].
    Restore(Box<Restore>),
    /// Another worker in place of the one that serves, executed from the descriptor that comes along: a [`Upgraded`].
    Upgrade {},
    /// While the network is asleep, or as soon as it is: what happens first to what is held for it, a [`News`](crate::checkpoint::news::News). It may
    /// have happened before this is asked.
    Wait {
        /// Only this.
        #[serde(default)]
        event: Option<news::Event>,
    },
    /// Serve one more sandbox, whose supervisor the client is: an [`Event::Granted`]. It is a member for as long as it stays: it brings its link
    /// with [`Request::Link`], and hears [`Event::Asleep`] and [`Event::Awake`].
    Join(Box<Join>),
    /// In the middle of a [`Request::Join`]: the link in the descriptor that comes along is the new sandbox's. An [`Event::Served`].
    Link {
        /// What it is.
        end: LinkEnd,
    },
    /// When the network is awake, nothing is under way and nothing has moved for so long: an [`Idle`].
    Idle {
        /// For how long, nanoseconds.
        after_ns: u64,
    },
}

/// A command that wakes a sleeping network when the first thing happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WakeExec {
    /// For `sh -c`.
    pub command: String,
    /// Where it runs.
    pub directory: String,
    /// Where it finds programs; if not told, where the supervisor does.
    #[serde(default)]
    pub path: Option<String>,
    /// The image that it wakes the network with, if that is a file.
    #[serde(default)]
    pub image: Option<String>,
}

/// A sandbox that joins another one's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// Its name.
    pub name: String,
    /// Its IPv4 addresses, if it has a wish.
    #[serde(default)]
    pub v4: Option<V4Config>,
    /// Its IPv6 addresses, likewise.
    #[serde(default)]
    pub v6: Option<V6Config>,
    /// It wants no IPv4.
    #[serde(default)]
    pub no_v4: bool,
    /// It wants no IPv6.
    #[serde(default)]
    pub no_v6: bool,
}

/// A network is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// Nothing has moved for so long, nanoseconds.
    pub idle_ns: u64,
}

/// How to go on from an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// What becomes of flows, and which freeze is expected.
    #[serde(default)]
    pub policy: RestorePolicy,
    /// IPv4 rules in place of the image's.
    #[serde(default)]
    pub rules4: Option<String>,
    /// IPv6 rules in place of the image's.
    #[serde(default)]
    pub rules6: Option<String>,
    /// Sets in place of the image's.
    #[serde(default)]
    pub sets: Option<String>,
    /// What becomes of flows that these rules forbid.
    #[serde(default)]
    pub recheck: Recheck,
    /// A connection to a helper comes along too, behind the image.
    #[serde(default)]
    pub helper: bool,
}

/// Which tier each flow would take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiers {
    /// All flows.
    pub flows: Vec<FlowTier>,
}

/// What happens in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// It is frozen.
    Frozen(Box<FreezeReport>),
    /// So many bytes, of so many, are written.
    Progress(u64, u64),
    /// All is written: so many bytes.
    Written(u64),
    /// In a [`Request::Join`]: these are its addresses.
    Granted(Box<GuestNet>),
    /// Its link is served, under this number.
    Served(u8),
    /// The network that it joined has fallen asleep.
    Asleep,
    /// That network is awake again.
    Awake,
}

/// A worker has taken another one's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// What became of the flows.
    pub thawed: ThawReport,
    /// For how long nothing was served, nanoseconds.
    pub gap_ns: u64,
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
    /// A line that was looked at only.
    next: Option<Vec<u8>>,
}

impl Asking {
    /// Asks the supervisor of this sandbox; the descriptors go along.
    ///
    /// # Errors
    ///
    /// [`Status::Name`] if there is no such sandbox; else if its supervisor cannot be reached.
    pub fn new(name: &str, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Asking, Failure> {
        let registry = Registry::open()?;
        // Those that joined a network are asked where it is.
        let name = &registry.get(name)?.network();
        let fail = |e: io::Error| Failure::os(Status::File, format_args!("cannot ask the supervisor of '{name}'"), e);
        let stream = UnixStream::connect(registry.lifecycle_socket(name)).map_err(fail)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(fail)?;
        let mut asking = Asking { name: name.clone(), stream: BufReader::new(stream), next: None };
        // One who refuses does not read everything first: what is said counts, not how the writing ended.
        let _ = asking.say(request, fds);
        Ok(asking)
    }

    /// Says something more.
    ///
    /// # Errors
    ///
    /// If the supervisor does not hear it.
    pub fn say(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(request).map_err(|e| Failure::new(Status::Internal, e.to_string()))?;
        line.push(b'\n');
        let stream = self.stream.get_mut();
        let sent = send_with_fds(&*stream, &line, fds).and_then(|n| stream.write_all(&line[n..]));
        sent.map_err(|e| Failure::os(Status::File, format_args!("cannot ask the supervisor of '{}'", self.name), e))
    }

    /// Waits for as long as it takes, from now on.
    pub fn be_patient(&self) {
        // Fails only for no time at all.
        let _ = self.stream.get_ref().set_read_timeout(None);
    }

    /// What happens next, if it is not the end yet: then [`Asking::answer`] has it.
    ///
    /// # Errors
    ///
    /// If what the supervisor says cannot be understood, or it says nothing.
    pub fn event(&mut self) -> Result<Option<Event>, Failure> {
        let line = self.line(true)?;
        match serde_json::from_slice::<Event>(&line) {
            Ok(event) => {
                self.line(false)?;
                Ok(Some(event))
            }
            // An answer; or nothing at all, which the one who reads it says better.
            Err(_) => Ok(None),
        }
    }

    /// The next line; it stays to be read again if it is only looked at.
    fn line(&mut self, look: bool) -> Result<Vec<u8>, Failure> {
        let name = &self.name;
        if self.next.is_none() {
            let mut line = Vec::new();
            match (&mut self.stream).take(MAX_ANSWER as u64).read_until(b'\n', &mut line) {
                Ok(0) => {
                    return Err(Failure::new(Status::Internal, format!("the supervisor of '{name}' ended before it answered")));
                }
                Ok(_) => self.next = Some(line),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Failure::new(Status::Internal, format!("the supervisor of '{name}' does not answer")));
                }
                Err(e) => return Err(Failure::os(Status::File, format_args!("cannot hear the supervisor of '{name}'"), e)),
            }
        }
        Ok(if look { self.next.clone() } else { self.next.take() }.unwrap_or_default())
    }

    /// What is readable when there is an event or an answer.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }

    /// Whether something was received that was not looked at yet.
    pub fn has_more(&self) -> bool {
        !self.stream.buffer().is_empty() || self.next.is_some()
    }

    /// The answer to what may take as long as it likes; `None` if it has not come within `limit`.
    ///
    /// # Errors
    ///
    /// What the supervisor says, or that the sandbox has ended.
    pub fn answer_within<T: DeserializeOwned>(mut self, limit: Option<Duration>) -> Result<Option<T>, Failure> {
        // No time at all is refused.
        let limit = limit.map(|l| l.max(Duration::from_millis(1)));
        let set = self.stream.get_ref().set_read_timeout(limit);
        set.map_err(|e| Failure::new(Status::Usage, format!("not a time that can be waited: {e}")))?;
        match self.stream.fill_buf() {
            Ok([]) => Err(Failure::new(Status::Name, format!("the sandbox '{}' has ended", self.name))),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // Whatever else is wrong the reader of it says.
            Ok(_) | Err(_) => self.answer().map(Some),
        }
    }

    /// The answer.
    ///
    /// # Errors
    ///
    /// What the supervisor says, or that it says nothing.
    pub fn answer<T: DeserializeOwned>(mut self) -> Result<T, Failure> {
        let line = self.line(false)?;
        let name = &self.name;
        match serde_json::from_slice(&line) {
            Ok(Answer::Ok(value)) => Ok(value),
            Ok(Answer::Error(p)) => Err(failure(name, &p)),
            Err(e) => {
                Err(Failure::new(Status::Internal, format!("the supervisor of '{name}' gave an answer that cannot be read: {e}")))
            }
        }
    }
}

fn failure(name: &str, p: &Problem) -> Failure {
    Failure::new(p.kind.into(), format!("the sandbox '{name}': {}", p.message))
}
