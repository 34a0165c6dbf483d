//! Messages between the supervisor and the processes it makes, with descriptors.

use super::failure::{Failure, Status};
use rustix::event::poll;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::time::Timespec;
use serde::{Serialize, de::DeserializeOwned};
use std::cell::RefCell;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most descriptors in one packet: a little less than the kernel takes.
const PACKET_FDS: usize = 250;
/// Most bytes of a message in one packet.
const PACKET: usize = 32 << 10;
/// Longest message in bytes.
const MAX_LEN: usize = 64 << 20;
/// Most descriptors of a message.
const MAX_FDS: usize = 1 << 20;

/// First byte of a packet: whether the message ends with it.
const MORE: u8 = b'+';
const LAST: u8 = b'.';

/// One end of a pair of sockets. A message of any length, with any number of descriptors, goes in as many packets as it takes.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
    /// The beginning of a message, the rest of which has not come yet.
    begun: RefCell<Packet>,
}

#[derive(Debug, Default)]
struct Packet {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// What came of listening without waiting.
#[derive(Debug)]
pub(crate) enum Heard<T> {
    /// A message and its descriptors.
    Message(T, Vec<OwnedFd>),
    /// Nothing yet.
    Nothing,
    /// Nothing ever again: the other end is closed.
    Closed,
}

impl Channel {
    /// Both ends. Each message arrives whole, with its descriptors; a closed other end is told.
    pub(crate) fn pair() -> Result<(Channel, Channel), Failure> {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|e| Failure::os(Status::Internal, "cannot make a pair of sockets", e))?;
        Ok((Channel::from(a), Channel::from(b)))
    }

    /// Sends a message with its descriptors. Waits if the other end is behind.
    pub(crate) fn send(&self, message: &impl Serialize, mut fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let bytes = serde_json::to_vec(message).map_err(|e| Failure::new(Status::Internal, e.to_string()))?;
        let mut rest = &bytes[..];
        loop {
            let (now, later) = rest.split_at(rest.len().min(PACKET));
            let (fds_now, fds_later) = fds.split_at(fds.len().min(PACKET_FDS));
            let last = later.is_empty() && fds_later.is_empty();
            self.send_packet(if last { LAST } else { MORE }, now, fds_now)
                .map_err(|e| Failure::os(Status::Internal, "cannot send to another process of the sandbox", e))?;
            if last {
                return Ok(());
            }
            (rest, fds) = (later, fds_later);
        }
    }

    fn send_packet(&self, mark: u8, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        /// How often descriptors that are too many on their way are offered again, a millisecond apart.
        const TRIES: usize = 5000;
        for _ in 0..TRIES {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(Errno::TOOBIG);
            }
            match sendmsg(&self.socket, &[IoSlice::new(&[mark]), IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                // The kernel bounds how many of a user's descriptors are on their way, and no event tells that some arrived.
                Err(Errno::TOOMANYREFS) => drop(poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 }))),
                Err(e) => return Err(e),
            }
        }
        Err(Errno::TOOMANYREFS)
    }

    /// Waits for a message; `None` when the other end is closed.
    pub(crate) fn recv<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, Failure> {
        loop {
            match self.hear(RecvFlags::empty())? {
                Heard::Message(m, fds) => return Ok(Some((m, fds))),
                Heard::Closed => return Ok(None),
                Heard::Nothing => {}
            }
        }
    }

    /// A message, if one is there.
    pub(crate) fn try_recv<T: DeserializeOwned>(&self) -> Result<Heard<T>, Failure> {
        self.hear(RecvFlags::DONTWAIT)
    }

    fn hear<T: DeserializeOwned>(&self, flags: RecvFlags) -> Result<Heard<T>, Failure> {
        let fail = |e| Failure::os(Status::Internal, "cannot hear another process of the sandbox", e);
        let mut packet = vec![0; PACKET + 1];
        let begun = &mut *self.begun.borrow_mut();
        loop {
            let n = match recv_packet(&self.socket, &mut packet, &mut begun.fds, flags) {
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(Heard::Nothing),
                Err(Errno::CONNRESET) => return Ok(Heard::Closed),
                Err(e) => return Err(fail(e)),
            };
            let Some((mark, bytes)) = packet[..n].split_first() else { return Ok(Heard::Closed) };
            begun.bytes.extend_from_slice(bytes);
            if begun.bytes.len() > MAX_LEN || begun.fds.len() > MAX_FDS {
                return Err(Failure::new(Status::Internal, "another process of the sandbox sends without end"));
            }
            if *mark == LAST {
                break;
            }
        }
        let Packet { bytes, fds } = std::mem::take(begun);
        let message = serde_json::from_slice(&bytes)
            .map_err(|e| Failure::new(Status::Internal, format!("message of another process of the sandbox: {e}")))?;
        Ok(Heard::Message(message, fds))
    }
}

/// Sends bytes over a socket of bytes, with descriptors: how many it took. The descriptors go with the first of them.
pub(crate) fn send_with_fds(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG.into());
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            r => return Ok(r?),
        }
    }
}

/// Receives from a socket of messages or of bytes: how many bytes, and the descriptors that came along.
pub(crate) fn recv_packet(
    socket: &impl AsFd,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    flags: RecvFlags,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags | RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(f) = message {
            fds.extend(f);
        }
    }
    // Those for which there was no room in the table of descriptors are gone.
    if got.flags.contains(ReturnFlags::CTRUNC) { Err(Errno::MFILE) } else { Ok(got.bytes) }
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Channel {
        Channel { socket, begun: RefCell::default() }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::event::Event;

    #[test]
    fn messages_arrive_whole_whatever_their_size() {
        let (mut a, b) = Channel::pair().unwrap();
        for (len, fds) in [(0, 0), (10, 3), (PACKET, PACKET_FDS), (3 * PACKET + 1, 0), (5, 2 * PACKET_FDS + 7)] {
            // More than a socket's buffer takes: both ends work at a time.
            let sender = std::thread::spawn(move || {
                let one = Event::new().unwrap();
                a.send(&"x".repeat(len), &vec![one.as_fd(); fds]).unwrap();
                a
            });
            let (got, got_fds) = b.recv::<String>().unwrap().unwrap();
            assert_eq!((got.len(), got_fds.len()), (len, fds));
            a = sender.join().unwrap();
        }
        assert!(matches!(b.try_recv::<String>().unwrap(), Heard::Nothing));
        drop(a);
        assert!(matches!(b.try_recv::<String>().unwrap(), Heard::Closed));
        assert!(b.recv::<String>().unwrap().is_none());
    }

    #[test]
    fn the_beginning_of_a_message_waits_for_its_end() {
        let (a, b) = Channel::pair().unwrap();
        let event = Event::new().unwrap();
        a.send_packet(MORE, b"\"he", &[event.as_fd()]).unwrap();
        assert!(matches!(b.try_recv::<String>().unwrap(), Heard::Nothing));
        a.send_packet(LAST, b"llo\"", &[event.as_fd()]).unwrap();
        match b.try_recv::<String>().unwrap() {
            Heard::Message(text, fds) => assert_eq!((text.as_str(), fds.len()), ("hello", 2)),
            other => panic!("{other:?}"),
        }
    }
}
