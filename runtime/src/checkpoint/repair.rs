//! TCP connections into an image, by the kernel's repair mode. Out of it: [`super::rebuild`].
//!
//! Reading is harmless until the sockets are closed: [`roll_back`] leaves them as they were. A socket in repair mode still receives and
//! acknowledges, so what comes in between reading and closing would be lost: a packet lock belongs before [`dump`].

use super::image::{AgreedImage, Bytes, HostAddr, MAX_QUEUE, TcpOptions, TcpSocketImage};
use super::switch::{Switch, set_each};
use crate::sys::repair::{self, Queue, Repair};
use crate::sys::socket::{self, get_int, set_option};
use crate::sys::tcp::{self, CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, SYN_SENT, TcpInfo};
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

/// How often queues are read again because they changed meanwhile, which they do where there is no packet lock.
const ATTEMPTS: usize = 16;
/// Room beyond the queue's length: a kernel's buffer that is acknowledged in part is read whole.
const SLACK: usize = 128 << 10;
/// `SO_BUF_LOCK` of asm-generic/socket.h (Linux 5.15), and its bits.
const SO_BUF_LOCK: libc::c_int = 72;
const SEND_LOCKED: libc::c_int = 1;
const RECEIVE_LOCKED: libc::c_int = 2;
/// `TCPI_OPT_*` of linux/tcp.h.
const TIMESTAMPS: u8 = 1;
const SACK: u8 = 2;
const WINDOW_SCALE: u8 = 4;

/// Why a connection cannot be carried over. The flow is to be reset then.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Nobody may switch the repair mode.
    #[error(
        "TCP repair is not permitted: {0}; it needs CAP_NET_ADMIN in the user namespace of the sockets' network namespace, \
         or a `hibernet repair-helper`"
    )]
    NotPermitted(io::Error),
    /// A connection in this state has nothing that could be carried over.
    #[error("the connection is {}, which cannot be carried over", state_name(*.0))]
    State(u8),
    /// Something came in all the time.
    #[error("the connection did not keep still while it was read; hold it with a packet lock (--lock nft)")]
    Moving,
    /// Unread urgent data, on a kernel that cannot read beyond their mark.
    #[error("unread data stand behind an urgent mark, which this kernel does not read beyond (Linux 6.9 does)")]
    Urgent,
    /// A queue is longer than an image may hold.
    #[error("{0} bytes wait in a queue; an image takes {MAX_QUEUE}")]
    TooLong(usize),
    /// Fields of the image contradict each other.
    #[error("the image of the connection is damaged: {0}")]
    Invalid(&'static str),
    /// The local address cannot be had.
    #[error("the local address {addr} cannot be had: {error}; it must be this host's, and nobody else may have the connection")]
    Address {
        /// The address.
        addr: SocketAddr,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The kernel did not take all of a queue.
    #[error("the kernel took {taken} of {of} queued bytes; raise net.core.wmem_max and net.core.rmem_max")]
    NoRoom {
        /// Bytes that it took.
        taken: usize,
        /// Bytes that there are.
        of: usize,
    },
    /// The kernel refused something.
    #[error("cannot {step}: {error}")]
    Os {
        /// What was to be done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

pub(super) fn at(step: &'static str) -> impl FnOnce(io::Error) -> RepairError {
    move |error| RepairError::Os { step, error }
}

/// The name of a state, as `ss` and `netstat` have it.
pub fn state_name(state: u8) -> &'static str {
    const NAMES: [&str; 13] = [
        "unknown",
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT1",
        "FIN_WAIT2",
        "TIME_WAIT",
        "CLOSED",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "CLOSING",
        "SYN_RECV",
    ];
    NAMES.get(usize::from(state)).copied().unwrap_or("unknown")
}

/// Whether a connection in this state can be dumped. For one in SYN_SENT there is [`connecting`].
pub fn is_dumpable(state: u8) -> bool {
    matches!(state, ESTABLISHED | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT | LAST_ACK | CLOSING)
}

/// What a socket had before it was dumped.
#[derive(Clone, Copy, Debug)]
pub struct Undo {
    peek_offset: Option<libc::c_int>,
    reuse_address: libc::c_int,
}

/// Dumps connections. Those that were dumped stay in repair mode; then either they are closed, of which the peer hears nothing, or
/// [`roll_back`] undoes it. The others are as they were.
pub fn dump(sockets: &[BorrowedFd<'_>], switch: &mut dyn Switch) -> Vec<Result<(TcpSocketImage, Undo), RepairError>> {
    let mut before: Vec<Result<(Undo, TcpInfo), RepairError>> = sockets.iter().map(|fd| look(*fd)).collect();
    let to_repair: Vec<usize> = (0..sockets.len()).filter(|&i| before[i].is_ok()).collect();
    let fds: Vec<_> = to_repair.iter().map(|&i| sockets[i]).collect();
    set_each(switch, &fds, Repair::On, &mut |at, e| before[to_repair[at]] = Err(not_permitted(e)));
    let mut scratch = Vec::new();
    let mut failed = Vec::new();
    let all = sockets.iter().zip(before).map(|(&fd, undo)| {
        let (undo, info) = undo?;
        match read(fd, &undo, info, &mut scratch) {
            Ok(image) => Ok((image, undo)),
            Err(e) => {
                failed.push((fd, undo));
                Err(e)
            }
        }
    });
    let all = all.collect();
    roll_back(&failed, switch);
    all
}

pub(super) fn not_permitted(e: io::Error) -> RepairError {
    match e.kind() {
        io::ErrorKind::PermissionDenied => RepairError::NotPermitted(e),
        _ => RepairError::Os { step: "switch TCP repair on", error: e },
    }
}

/// Finds out what must be remembered, before anything is changed.
fn look(fd: BorrowedFd<'_>) -> Result<(Undo, TcpInfo), RepairError> {
    let info = TcpInfo::of(fd).map_err(at("read the state of a connection"))?;
    if !is_dumpable(info.state) {
        return Err(RepairError::State(info.state));
    }
    // The repair mode overwrites it.
    let reuse_address = get_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR).map_err(at("read an option"))?;
    let peek_offset = get_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF).ok();
    Ok((Undo { peek_offset, reuse_address }, info))
}

/// Leaves sockets as they were before they were dumped. What cannot be undone for one of them is its connection's end.
pub fn roll_back(sockets: &[(BorrowedFd<'_>, Undo)], switch: &mut dyn Switch) {
    let fds: Vec<_> = sockets.iter().map(|(fd, _)| *fd).collect();
    set_each(switch, &fds, Repair::OffSilently, &mut |_, _| {});
    for (fd, undo) in sockets {
        // Neither can fail where it succeeded before.
        if let Some(offset) = undo.peek_offset {
            let _ = set_option(*fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset);
        }
        let _ = set_option(*fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, undo.reuse_address);
    }
}

/// An image without queues.
fn bare(local: HostAddr, peer: HostAddr, options: TcpOptions) -> TcpSocketImage {
    TcpSocketImage {
        local,
        peer,
        state: SYN_SENT,
        send_seq: 0,
        receive_seq: 0,
        send: Bytes::default(),
        unsent: 0,
        receive: Bytes::default(),
        agreed: AgreedImage::default(),
        window: [0; 5],
        options,
    }
}

/// The image of a connect to `peer` that is under way: it is begun again when it is restored, for which nobody needs a capability.
pub fn connecting(fd: BorrowedFd<'_>, peer: SocketAddr) -> Result<TcpSocketImage, RepairError> {
    let step = || at("read the options of a connection");
    let local = socket::local_addr(fd).map_err(step())?;
    let reuse_address = get_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR).map_err(step())?;
    Ok(bare(local.into(), peer.into(), read_options(fd, reuse_address).map_err(step())?))
}

fn read(fd: BorrowedFd<'_>, undo: &Undo, mut info: TcpInfo, scratch: &mut Vec<u8>) -> Result<TcpSocketImage, RepairError> {
    let local = socket::local_addr(fd).map_err(at("read a local address"))?;
    let peer = socket::peer_addr(fd).map_err(at("read a peer's address"))?;
    let options = read_options(fd, undo.reuse_address).map_err(at("read the options of a connection"))?;
    let mut image = bare(local.into(), peer.into(), options);
    for _ in 0..ATTEMPTS {
        if !is_dumpable(info.state) {
            return Err(RepairError::State(info.state));
        }
        let is_whole = read_queues(fd, &info, &mut image, undo, scratch)?;
        let window = repair::window(fd).map_err(at("read the windows of a connection"))?;
        let now = TcpInfo::of(fd).map_err(at("read the state of a connection"))?;
        let is_still = (now.bytes_acked, now.bytes_received, now.state) == (info.bytes_acked, info.bytes_received, info.state);
        if is_whole && is_still {
            let mss = repair::max_segment(fd).map_err(at("read the segment size of a connection"))?;
            let has = |option| info.options & option != 0;
            image.state = info.state;
            image.window = window;
            image.agreed = AgreedImage {
                mss: u16::try_from(mss).unwrap_or(u16::MAX),
                window_scale: has(WINDOW_SCALE).then_some(info.window_scale),
                sack: has(SACK),
                timestamp: has(TIMESTAMPS).then(|| repair::timestamp(fd)).transpose().map_err(at("read a time stamp"))?,
            };
            return Ok(image);
        }
        info = now;
    }
    Err(RepairError::Moving)
}

/// Reads both queues; whether each had the length that it was said to have.
fn read_queues(
    fd: BorrowedFd<'_>,
    info: &TcpInfo,
    image: &mut TcpSocketImage,
    undo: &Undo,
    scratch: &mut Vec<u8>,
) -> Result<bool, RepairError> {
    let step = || at("read the queues of a connection");
    let (fin_waits, fin_acked) = (matches!(info.state, FIN_WAIT1 | LAST_ACK | CLOSING), info.state == FIN_WAIT2);

    repair::select(fd, Queue::Send).map_err(step())?;
    let end = repair::sequence(fd).map_err(step())?;
    let queued = tcp::unacknowledged(fd).map_err(step())?;
    let unsent = tcp::unsent(fd).map_err(step())?;
    let len = queued.saturating_sub(u32::from(fin_waits)) as usize;
    // An acknowledged FIN is counted as sent, but will be sent again.
    image.send_seq = end.wrapping_sub(queued).wrapping_sub(u32::from(fin_acked));
    image.unsent = unsent.saturating_sub(u32::from(fin_waits && unsent > 0));
    let mut is_whole = true;
    image.send.0.clear();
    if len > 0 {
        let room = prepare(scratch, len)?;
        let n = socket::recv(fd, room, libc::MSG_PEEK).map_err(step())?;
        is_whole &= n >= len;
        image.send.0.extend_from_slice(&room[n.saturating_sub(len)..n]);
    }

    repair::select(fd, Queue::Receive).map_err(step())?;
    let end = repair::sequence(fd).map_err(step())?;
    let len = tcp::unread(fd).map_err(step())? as usize;
    image.receive_seq = end.wrapping_sub(len as u32).wrapping_sub(u32::from(tcp::peer_finished(info.state)));
    image.receive.0.clear();
    if undo.peek_offset.is_some() {
        // Peeks go on from each other, so that an urgent mark, at which each stops, is passed.
        set_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0).map_err(step())?;
    }
    while image.receive.0.len() < len {
        let room = prepare(scratch, len - image.receive.0.len())?;
        match socket::recv(fd, room, libc::MSG_PEEK) {
            Ok(0) => break,
            Ok(n) => image.receive.0.extend_from_slice(&room[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => return Err(step()(e)),
        }
        if undo.peek_offset.is_none() && image.receive.0.len() < len {
            return Err(RepairError::Urgent);
        }
    }
    Ok(is_whole && image.receive.0.len() == len)
}

/// Room for a queue of `len` bytes and what may come along.
fn prepare(scratch: &mut Vec<u8>, len: usize) -> Result<&mut [u8], RepairError> {
    if len > MAX_QUEUE {
        return Err(RepairError::TooLong(len));
    }
    if scratch.len() < len + SLACK {
        scratch.resize(len + SLACK, 0);
    }
    Ok(&mut scratch[..len + SLACK])
}

fn read_options(fd: BorrowedFd<'_>, reuse_address: libc::c_int) -> io::Result<TcpOptions> {
    let tcp = |name| get_int(fd, libc::IPPROTO_TCP, name);
    let sol = |name| get_int(fd, libc::SOL_SOCKET, name);
    let keep_alive = if sol(libc::SO_KEEPALIVE)? != 0 {
        Some((tcp(libc::TCP_KEEPIDLE)? as u32, tcp(libc::TCP_KEEPINTVL)? as u32, tcp(libc::TCP_KEEPCNT)? as u32))
    } else {
        None
    };
    let locked = sol(SO_BUF_LOCK).unwrap_or(0);
    let buffer = |bit, name| if locked & bit != 0 { sol(name).map(|n| Some(n as u32)) } else { Ok(None) };
    Ok(TcpOptions {
        nodelay: tcp(libc::TCP_NODELAY)? != 0,
        oob_inline: sol(libc::SO_OOBINLINE)? != 0,
        reuse_address: reuse_address != 0,
        keep_alive,
        send_buffer: buffer(SEND_LOCKED, libc::SO_SNDBUF)?,
        receive_buffer: buffer(RECEIVE_LOCKED, libc::SO_RCVBUF)?,
    })
}
