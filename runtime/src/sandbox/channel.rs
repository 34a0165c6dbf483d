//! Messages between the supervisor and the processes it makes, with descriptors.

use super::failure::{Failure, Status};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Most descriptors in one message.
const MAX_FDS: usize = 8;

/// Longest message in bytes.
const MAX_LEN: usize = 16 << 10;

/// One end of a pair of sockets.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Both ends. Each message arrives whole, with its descriptors; a closed other end is told.
    pub(crate) fn pair() -> Result<(Channel, Channel), Failure> {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|e| Failure::os(Status::Internal, "cannot make a pair of sockets", e))?;
        Ok((Channel(a), Channel(b)))
    }

    /// The descriptor's number.
    pub(crate) fn raw(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Sends a message with at most [`MAX_FDS`] descriptors.
    pub(crate) fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let bytes = serde_json::to_vec(message).map_err(|e| Failure::new(Status::Internal, e.to_string()))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Failure::new(Status::Internal, "too many descriptors in a message"));
        }
        sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
            .map_err(|e| Failure::os(Status::Internal, "cannot send to another process of the sandbox", e))?;
        Ok(())
    }

    /// Waits for a message; `None` when the other end is closed.
    pub(crate) fn recv<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, Failure> {
        let mut bytes = vec![0; MAX_LEN];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(m) => break m,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                Err(e) => return Err(Failure::os(Status::Internal, "cannot hear another process of the sandbox", e)),
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(f) = message {
                fds.extend(f);
            }
        }
        if got.bytes == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&bytes[..got.bytes])
            .map_err(|e| Failure::new(Status::Internal, format!("message of another process of the sandbox: {e}")))?;
        Ok(Some((message, fds)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
