//! The peer of a datagram socket at a path: found, and let go, by the supervisor, since the worker can reach no path.
//!
//! While there is none, whoever sends the first datagram becomes the peer; the socket then takes nothing from others. It is let go when its process
//! ends, or when the worker found that nobody takes its frames; without that the next one could not even send.

use super::failure::complain;
use crate::link::datagram::{has_peer, has_rung, ring};
use crate::sys::event::is_readable;
use crate::sys::unix::{Sender, peek_sender};
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{RecvFlags, SocketAddrUnix, connect, connect_unspec, recv};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Datagrams of senders that cannot be answered, thrown away in one turn.
const MAX_THROWN_AWAY: usize = 64;

/// The peer of the link.
#[derive(Debug)]
pub(crate) struct DatagramPeer {
    /// The socket that the worker has too.
    socket: OwnedFd,
    /// Rings at the worker, and is rung by it.
    bell: OwnedFd,
    /// What to answer to, whoever sends.
    remote: Option<PathBuf>,
    state: State,
    /// A sender that cannot be answered has been complained of.
    complained: bool,
}

#[derive(Debug)]
enum State {
    /// Nobody is there, and the socket is ours to look at.
    Waiting,
    /// Somebody is, whose end is seen here if that is possible.
    There(Option<OwnedFd>),
}

impl DatagramPeer {
    /// Of a bound socket, with the supervisor's end of the bell.
    ///
    /// # Errors
    /// If the socket cannot ask for who sends.
    pub(crate) fn new(socket: OwnedFd, bell: OwnedFd, remote: Option<PathBuf>) -> io::Result<DatagramPeer> {
        set_socket_passcred(&socket, true)?;
        Ok(DatagramPeer { socket, bell, remote, state: State::Waiting, complained: false })
    }

    /// What to wait for.
    pub(crate) fn fds(&self) -> [Option<&OwnedFd>; 2] {
        let other = match &self.state {
            State::Waiting => Some(&self.socket),
            State::There(process) => process.as_ref(),
        };
        [Some(&self.bell), other]
    }

    /// Does what is to be done now.
    pub(crate) fn turn(&mut self) {
        let rung = has_rung(&self.bell);
        if let State::There(process) = &self.state
            && (rung || process.as_ref().is_some_and(is_readable))
        {
            let _ = connect_unspec(&self.socket);
            self.state = State::Waiting;
            ring(&self.bell);
        }
        if matches!(self.state, State::Waiting) {
            self.find();
        }
    }

    /// Answers to who has sent, from now on.
    fn find(&mut self) {
        for _ in 0..MAX_THROWN_AWAY {
            let Ok(sender) = peek_sender(self.socket.as_fd()) else { return };
            let connected = address(&sender, self.remote.as_deref()).and_then(|a| Ok(connect(&self.socket, &a)?));
            match connected {
                Ok(()) if has_peer(&self.socket) => {
                    let process = sender.pid.and_then(Pid::from_raw);
                    self.state = State::There(process.and_then(|p| pidfd_open(p, PidfdFlags::empty()).ok()));
                    self.complained = false;
                    ring(&self.bell);
                    return;
                }
                // It has gone, or there never was a way to it.
                other => {
                    let _ = recv(&self.socket, &mut [0; 1], RecvFlags::DONTWAIT);
                    if let (Err(e), false) = (other, self.complained) {
                        self.complained = true;
                        complain(format_args!("warning: a frame came from a socket that cannot be answered: {e}"));
                    }
                }
            }
        }
    }
}

/// Where to answer.
fn address(sender: &Sender, remote: Option<&Path>) -> io::Result<SocketAddrUnix> {
    let invalid = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
    let path = match (remote, &sender.name[..]) {
        (Some(path), _) => path,
        (None, []) => return Err(invalid("it is bound to no path (name one with remote=)")),
        (None, [0, name @ ..]) => return Ok(SocketAddrUnix::new_abstract_name(name)?),
        (None, name) => Path::new(OsStr::from_bytes(name)),
    };
    if remote.is_none() && path.is_relative() {
        return Err(invalid("its path is relative to a directory that is not known here (name it with remote=)"));
    }
    Ok(SocketAddrUnix::new(path)?)
}
