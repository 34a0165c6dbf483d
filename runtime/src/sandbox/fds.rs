//! Handing thousands of descriptors to another process, each with a number that says which it is.
//!
//! The kernel takes [`BATCH`] descriptors in one message, and lets a user have no more in flight than a process may have open. So
//! they go in batches, few of which are not acknowledged; neither side can fill the other's queue.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketType, recvmsg, sendmsg, sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Most descriptors in one message (`SCM_MAX_FD` of the kernel).
pub const BATCH: usize = 253;
/// Most batches that are on their way.
const WINDOW: usize = 4;
/// When to try again while others of this user have too many in flight, of which nothing tells when they arrive.
const OTHERS: Duration = Duration::from_millis(1);
/// Length of a message's head: how many descriptors there are in all, how many in this message.
const HEAD: usize = 8;

/// Why descriptors did not get across.
#[derive(Debug, thiserror::Error)]
pub enum FdsError {
    /// The other process has closed its end.
    #[error("handing over descriptors: the other process has gone")]
    Closed,
    /// The other process did nothing for too long.
    #[error("handing over descriptors: the other process did not answer in time")]
    TimedOut,
    /// Others of this user have too many in flight.
    #[error("handing over descriptors: too many of this user are on their way; raise the limit of open files (ulimit -n)")]
    InFlight,
    /// The receiving process has no room for them.
    #[error("handing over descriptors: this process may have no more open; raise the limit of open files (ulimit -n)")]
    NoRoom,
    /// More than the receiver wants.
    #[error("handing over descriptors: {0} are offered, which is more than are expected")]
    TooMany(usize),
    /// What came is not what the other side of this module sends.
    #[error("handing over descriptors: the other process speaks another language; both must be hibernet of one version")]
    Garbled,
    /// The kernel refused something.
    #[error("handing over descriptors: {0}")]
    Os(#[from] io::Error),
}

impl From<Errno> for FdsError {
    fn from(e: Errno) -> Self {
        match e {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => FdsError::Closed,
            Errno::MFILE => FdsError::NoRoom,
            Errno::TOOMANYREFS => FdsError::InFlight,
            e => FdsError::Os(e.into()),
        }
    }
}

/// Sends one message with at most [`BATCH`] descriptors, waiting for room until `deadline`.
pub fn send_message(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], deadline: Instant) -> Result<(), FdsError> {
    loop {
        match try_send(socket, bytes, fds) {
            Err(Errno::AGAIN) => wait(socket, PollFlags::OUT, deadline)?,
            Err(Errno::TOOMANYREFS) if Instant::now() < deadline => std::thread::sleep(OTHERS),
            Err(Errno::INTR) => {}
            r => return Ok(r?),
        }
    }
}

fn try_send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).map(drop)
}

/// Receives one message: its length, which is no more than there is room for, and its descriptors.
///
/// # Errors
///
/// [`FdsError::Closed`] if there are no more; [`FdsError::NoRoom`] if some of the descriptors were lost for lack of room.
pub fn receive_message(
    socket: BorrowedFd<'_>,
    out: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    deadline: Instant,
) -> Result<usize, FdsError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(out)], &mut control, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => wait(socket, PollFlags::IN, deadline)?,
            Err(Errno::INTR) => {}
            r => break r?,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(f) = message {
            fds.extend(f);
        }
    }
    match got {
        // Room for all that the kernel can send in one message was there: what is missing did not fit into the table of descriptors.
        m if m.flags.contains(ReturnFlags::CTRUNC) => Err(FdsError::NoRoom),
        m if m.flags.contains(ReturnFlags::TRUNC) => Err(FdsError::Garbled),
        m if m.bytes == 0 => Err(FdsError::Closed),
        m => Ok(m.bytes),
    }
}

fn wait(socket: BorrowedFd<'_>, what: PollFlags, deadline: Instant) -> Result<(), FdsError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left == Duration::ZERO {
        return Err(FdsError::TimedOut);
    }
    let timeout = left.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    match poll(&mut [PollFd::from_borrowed_fd(socket, what)], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn require_messages(socket: BorrowedFd<'_>) -> Result<(), FdsError> {
    match sockopt::socket_type(socket)? {
        SocketType::SEQPACKET => Ok(()),
        _ => Err(io::Error::from(io::ErrorKind::InvalidInput).into()),
    }
}

/// Sends descriptors over a `SOCK_SEQPACKET` socket to a process that calls [`receive`]. When this returns, that process has them all.
pub fn send<'a>(
    socket: impl AsFd,
    fds: impl IntoIterator<Item = (u32, BorrowedFd<'a>), IntoIter: ExactSizeIterator>,
    deadline: Instant,
) -> Result<(), FdsError> {
    let socket = socket.as_fd();
    require_messages(socket)?;
    let mut rest = fds.into_iter();
    let total = u32::try_from(rest.len()).map_err(|_| FdsError::TooMany(rest.len()))?;
    let (mut on_their_way, mut is_first) = (0, true);
    while is_first || rest.len() > 0 {
        is_first = false;
        let (mut bytes, mut batch) = (Vec::with_capacity(HEAD + 4 * BATCH), Vec::with_capacity(BATCH));
        bytes.extend(total.to_le_bytes());
        bytes.extend((rest.len().min(BATCH) as u32).to_le_bytes());
        for (id, fd) in rest.by_ref().take(BATCH) {
            bytes.extend(id.to_le_bytes());
            batch.push(fd);
        }
        while on_their_way >= WINDOW {
            acknowledged(socket, &mut on_their_way, deadline)?;
        }
        loop {
            match try_send(socket, &bytes, &batch) {
                // What the other side takes out of its queue is in flight no longer.
                Err(Errno::AGAIN | Errno::TOOMANYREFS) if on_their_way > 0 => acknowledged(socket, &mut on_their_way, deadline)?,
                Err(Errno::AGAIN) => wait(socket, PollFlags::OUT, deadline)?,
                Err(Errno::TOOMANYREFS) if Instant::now() < deadline => std::thread::sleep(OTHERS),
                Err(Errno::INTR) => {}
                r => break r?,
            }
        }
        on_their_way += 1;
    }
    while on_their_way > 0 {
        acknowledged(socket, &mut on_their_way, deadline)?;
    }
    Ok(())
}

/// Waits for the other side to have taken a batch.
fn acknowledged(socket: BorrowedFd<'_>, on_their_way: &mut usize, deadline: Instant) -> Result<(), FdsError> {
    let mut byte = [0; 2];
    match receive_message(socket, &mut byte, &mut Vec::new(), deadline)? {
        1 => *on_their_way -= 1,
        _ => return Err(FdsError::Garbled),
    }
    Ok(())
}

/// Receives what [`send`] sends, at most `most` descriptors, in its order.
pub fn receive(socket: impl AsFd, most: usize, deadline: Instant) -> Result<Vec<(u32, OwnedFd)>, FdsError> {
    let socket = socket.as_fd();
    require_messages(socket)?;
    let mut all: Vec<(u32, OwnedFd)> = Vec::new();
    let mut expected = None;
    let mut bytes = [0; HEAD + 4 * BATCH];
    let mut batch = Vec::with_capacity(BATCH);
    while expected.is_none_or(|n| all.len() < n) {
        let len = receive_message(socket, &mut bytes, &mut batch, deadline)?;
        let words: Vec<u32> = bytes[..len].as_chunks().0.iter().map(|w| u32::from_le_bytes(*w)).collect();
        let [total, count, ids @ ..] = &words[..] else { return Err(FdsError::Garbled) };
        let (total, count) = (*total as usize, *count as usize);
        if total > most {
            return Err(FdsError::TooMany(total));
        }
        let is_consistent = expected.is_none_or(|n| n == total)
            && len == HEAD + 4 * count
            && ids.len() == count
            && batch.len() == count
            && count <= total - all.len()
            && (count > 0 || total == 0);
        if !is_consistent {
            return Err(FdsError::Garbled);
        }
        expected = Some(total);
        all.extend(ids.iter().copied().zip(batch.drain(..)));
        send_message(socket, &[1], &[], deadline)?;
    }
    Ok(all)
}
