//! The connection to a front end: requests come in, answers go out. Nothing here waits.

use super::device::DeviceError;
use super::message::{HEADER, Header, MAX_BODY, MAX_REGIONS, MessageError, Reply, Request};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The front end has gone.
    #[error("the front end has closed the connection")]
    Closed,
    /// It speaks another language.
    #[error("the front end: {0}")]
    Message(#[from] MessageError),
    /// It asks for what cannot be, and does not wait for an answer.
    #[error("the front end asks for what cannot be: {0}")]
    Refused(#[from] DeviceError),
    /// More descriptors than any request has.
    #[error("the front end sent more than {MAX_REGIONS} descriptors")]
    Descriptors,
    /// It has shortened a file that it shares with us.
    #[error("the file behind the guest's memory became shorter than the front end had said")]
    Vanished,
    /// It does not read what it has asked for.
    #[error("the front end does not read its answers")]
    Deaf,
    /// The kernel refused something.
    #[error("the connection to the front end: {0}")]
    Os(#[from] io::Error),
}

/// A request with what came along.
#[derive(Debug)]
pub struct Asked {
    /// Its header.
    pub header: Header,
    /// What it asks for.
    pub request: Request,
    /// Its descriptors, as many as it is to have.
    pub fds: Vec<OwnedFd>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Session {
    socket: OwnedFd,
    bytes: [u8; HEADER + MAX_BODY],
    have: usize,
    fds: Vec<OwnedFd>,
}

impl Session {
    /// Over a connected, non-blocking Unix stream socket.
    pub fn new(socket: OwnedFd) -> Session {
        Session { socket, bytes: [0; HEADER + MAX_BODY], have: 0, fds: Vec::new() }
    }

    /// The connection.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next request; `None` if it is not all there yet.
    pub fn next(&mut self) -> Result<Option<Asked>, SessionError> {
        loop {
            let header = match self.bytes[..self.have].first_chunk() {
                Some(h) => Some(Header::parse(h)?),
                None => None,
            };
            let want = HEADER + header.map_or(0, |h| h.size);
            if let (Some(header), true) = (header, self.have == want) {
                let fds = std::mem::take(&mut self.fds);
                self.have = 0;
                let request = Request::parse(header.request, &self.bytes[HEADER..want], fds.len())?;
                return Ok(Some(Asked { header, request, fds }));
            }
            // Never past the end of a message, so that descriptors that come along are this one's.
            if !self.read(want)? {
                return Ok(None);
            }
        }
    }

    /// Reads on to `want` bytes; false if nothing is there.
    fn read(&mut self, want: usize) -> Result<bool, SessionError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_REGIONS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut self.bytes[self.have..want])];
        let got = match recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT) {
            Ok(got) => got,
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => return Ok(true),
            Err(Errno::CONNRESET | Errno::PIPE) => return Err(SessionError::Closed),
            Err(e) => return Err(SessionError::Os(e.into())),
        };
        for m in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = m {
                self.fds.extend(fds);
            }
        }
        if got.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > MAX_REGIONS {
            return Err(SessionError::Descriptors);
        }
        if got.bytes == 0 {
            return Err(SessionError::Closed);
        }
        self.have += got.bytes;
        Ok(true)
    }

    /// Sends an answer. A front end reads each before it asks on, so that there is room, or something is wrong with it.
    pub fn answer(&self, reply: &Reply) -> Result<(), SessionError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = reply.fd();
        if let Some(fd) = &fds {
            control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(&self.socket, &[IoSlice::new(reply.bytes())], &mut control, flags) {
            Ok(n) if n == reply.bytes().len() => Ok(()),
            Ok(_) | Err(Errno::AGAIN) => Err(SessionError::Deaf),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(SessionError::Closed),
            Err(e) => Err(SessionError::Os(e.into())),
        }
    }
}
