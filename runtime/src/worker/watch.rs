//! What changes on the host while the worker runs: its addresses and its resolvers.

use super::Worker;
use crate::sys::netlink::{self, Message};
use crate::sys::socket;
use event_manager::{EventOps, Events};
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Blocks read from the route socket per wake-up.
const MAX_BLOCKS: usize = 64;
/// Longest update of the resolvers.
const MAX_UPDATE: usize = 16 * 1024;

/// Follows the host's addresses.
#[derive(Debug)]
pub(super) struct AddressWatch {
    fd: OwnedFd,
    buf: Vec<u8>,
    sequence: u32,
    found: Vec<IpAddr>,
    /// A list is being read.
    asked: bool,
    /// Something changed since that list was asked for.
    stale: bool,
}

impl AddressWatch {
    /// Over a route socket; the list that is true now comes with it.
    pub(super) fn new(fd: OwnedFd) -> io::Result<(Self, Vec<IpAddr>)> {
        socket::set_nonblocking(&fd)?;
        let buf = vec![0; netlink::BUFFER];
        let mut w = AddressWatch { fd, buf, sequence: 0, found: Vec::new(), asked: false, stale: true };
        let list = w.list()?;
        Ok((w, list))
    }

    /// The list that is true now.
    fn list(&mut self) -> io::Result<Vec<IpAddr>> {
        self.stale = true;
        // The kernel answers within the calls, so there is nothing to wait for.
        for _ in 0..MAX_BLOCKS {
            if let Some(list) = self.ready()? {
                return Ok(list);
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Reads what there is; returns a new list if one is complete.
    pub(super) fn ready(&mut self) -> io::Result<Option<Vec<IpAddr>>> {
        let mut list = None;
        for _ in 0..MAX_BLOCKS {
            if self.stale && !self.asked {
                self.ask()?;
            }
            let n = match netlink::read(self.fd.as_fd(), &mut self.buf) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // Notifications were lost, maybe parts of the list too.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    (self.asked, self.stale) = (false, true);
                    continue;
                }
                Err(e) => return Err(e),
            };
            for m in netlink::messages(&self.buf[..n], self.sequence) {
                match m {
                    Message::Address(a) => self.found.push(a),
                    Message::Changed => self.stale = true,
                    Message::Interrupted => self.stale = true,
                    Message::Done => {
                        self.asked = false;
                        list = Some(std::mem::take(&mut self.found));
                    }
                    Message::Failed(errno) => {
                        self.asked = false;
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                }
            }
        }
        Ok(list)
    }

    fn ask(&mut self) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.found.clear();
        (self.asked, self.stale) = (true, false);
        netlink::request_addresses(self.fd.as_fd(), self.sequence)
    }
}

/// Reads updates of the host's resolvers from whoever may open the files in which they stand.
#[derive(Debug)]
pub(super) struct ResolverUpdates {
    stream: File,
    text: Vec<u8>,
}

/// What came of reading.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Update {
    /// The newest complete update, if any; and lines in it that are no addresses.
    Resolvers(Option<Vec<IpAddr>>, usize),
    /// The other end is gone or misbehaves; nothing more will come.
    End,
}

impl ResolverUpdates {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        socket::set_nonblocking(&fd)?;
        Ok(ResolverUpdates { stream: File::from(fd), text: Vec::new() })
    }

    pub(super) fn fd(&self) -> i32 {
        self.stream.as_raw_fd()
    }

    pub(super) fn ready(&mut self) -> Update {
        let mut newest = (None, 0);
        let mut buf = [0; 4096];
        // At most one longest update per wake-up.
        for _ in 0..MAX_UPDATE / 4096 {
            match self.stream.read(&mut buf) {
                Ok(0) => return Update::End,
                Ok(n) => self.text.extend_from_slice(&buf[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Update::End,
            }
            while let Some(update) = next_update(&mut self.text) {
                newest = update;
            }
            if self.text.len() > MAX_UPDATE {
                return Update::End;
            }
        }
        Update::Resolvers(newest.0, newest.1)
    }
}

/// Takes the first complete update off the text.
fn next_update(text: &mut Vec<u8>) -> Option<(Option<Vec<IpAddr>>, usize)> {
    let end = match text.first() {
        Some(b'\n') => 0,
        _ => text.windows(2).position(|w| w == b"\n\n")? + 1,
    };
    let mut list = Vec::new();
    let mut bad = 0;
    for line in text[..end].split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        match std::str::from_utf8(line).ok().and_then(|l| l.trim().parse().ok()) {
            Some(a) => list.push(a),
            None => bad += 1,
        }
    }
    text.drain(..=end);
    Some((Some(list), bad))
}

impl Worker {
    pub(super) fn addresses_changed(&mut self) {
        match self.addresses.ready() {
            Ok(Some(list)) => {
                slog::info!(self.log, "the host's addresses changed"; "count" => list.len());
                self.stack.set_host_addresses(list);
                self.lead();
            }
            Ok(None) => {}
            Err(e) => slog::error!(self.log, "cannot list the host's addresses; the last list stays in force"; "error" => %e),
        }
    }

    /// Another stack has to hear of the host's addresses.
    pub(super) fn addresses_anew(&mut self) {
        match self.addresses.list() {
            Ok(list) => self.stack.set_host_addresses(list),
            Err(e) => slog::error!(self.log, "cannot list the host's addresses"; "error" => %e),
        }
    }

    pub(super) fn resolvers_changed(&mut self, ops: &mut EventOps<'_>) {
        let Some(r) = &mut self.resolvers else { return };
        match r.ready() {
            Update::Resolvers(list, bad) => {
                if bad > 0 {
                    slog::warn!(self.log, "an update of the resolvers has lines that are no addresses"; "lines" => bad);
                }
                if let Some(list) = list {
                    slog::info!(self.log, "the host's resolvers changed"; "resolvers" => ?list);
                    self.stack.set_resolvers(list);
                    self.lead();
                }
            }
            Update::End => {
                let _ = ops.remove(Events::empty_raw(r.fd()));
                self.resolvers = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::resolver_update;
    use std::io::Write;

    #[test]
    fn updates_come_whole_and_the_newest_counts() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut r = ResolverUpdates::new(reader.into()).unwrap();
        assert_eq!(r.ready(), Update::Resolvers(None, 0));
        let a: IpAddr = "192.0.2.1".parse().unwrap();
        let b: IpAddr = "2001:db8::1".parse().unwrap();
        let text = resolver_update(&[a, b]);
        writer.write_all(&text.as_bytes()[..12]).unwrap();
        assert_eq!(r.ready(), Update::Resolvers(None, 0));
        writer.write_all(&text.as_bytes()[12..]).unwrap();
        assert_eq!(r.ready(), Update::Resolvers(Some(vec![a, b]), 0));
        writer.write_all(resolver_update(&[a]).as_bytes()).unwrap();
        writer.write_all(b"nonsense\n2001:db8::1\n\n").unwrap();
        assert_eq!(r.ready(), Update::Resolvers(Some(vec![b]), 1));
        writer.write_all(resolver_update(&[]).as_bytes()).unwrap();
        assert_eq!(r.ready(), Update::Resolvers(Some(vec![]), 0));
        drop(writer);
        assert_eq!(r.ready(), Update::End);
    }

    #[test]
    fn an_endless_update_ends_the_stream() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut r = ResolverUpdates::new(reader.into()).unwrap();
        let mut last = Update::Resolvers(None, 0);
        for _ in 0..5 {
            writer.write_all(&[b'x'; 4096]).unwrap();
            last = r.ready();
        }
        assert_eq!(last, Update::End);
    }

    #[test]
    fn the_first_list_comes_at_once() {
        let (mut w, list) = AddressWatch::new(netlink::open_address_watch().unwrap()).unwrap();
        assert!(list.contains(&IpAddr::from([127, 0, 0, 1])), "{list:?}");
        assert_eq!(w.ready().unwrap(), None);
    }
}
