//! Packet sockets.

use super::check;
use super::interface::{self, Interfaces};
use super::packet_ring;
use super::socket::{get_int, get_option, set_option, set_option_bytes, socket};
use hibernet_netstack::wire::Mac;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Why a packet socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// CAP_NET_RAW is missing in the network namespace.
    #[error("no permission for a packet socket (CAP_NET_RAW is needed in the interface's network namespace)")]
    Permission,
    /// No interface can have that name.
    #[error("{0:?} cannot be the name of an interface (1 to 15 characters, no '/', ':' or spaces)")]
    BadName(String),
    /// No interface of that name.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// It carries no Ethernet frames.
    #[error("{0} is no Ethernet interface")]
    NotEthernet(String),
    /// The process or the system has no descriptor left.
    #[error("no file descriptor left for a packet socket (raise the limit on open files)")]
    TooManyFiles,
    /// The kernel has no packet sockets, or lacks an option that is needed.
    #[error("the kernel lacks {0} (Linux 4.20 or newer with AF_PACKET is needed)")]
    Unsupported(&'static str),
    /// It can have no receive ring.
    #[error("the kernel gives no receive ring: {0}")]
    Ring(io::Error),
    /// Anything else.
    #[error("{step} failed: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

impl PacketError {
    pub(crate) fn io(step: &'static str) -> impl Fn(io::Error) -> PacketError {
        move |source| match source.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => PacketError::TooManyFiles,
            Some(libc::EPERM | libc::EACCES) => PacketError::Permission,
            Some(libc::EAFNOSUPPORT) => PacketError::Unsupported("packet sockets"),
            _ => PacketError::Io { step, source },
        }
    }
}

/// A packet socket bound to one interface.
#[derive(Debug)]
pub struct PacketSocket {
    /// The socket. Close-on-exec; frames carry a 10-byte virtio-net header; our own frames do not come back.
    pub fd: OwnedFd,
    /// Name of the interface.
    pub name: String,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// MAC address of the interface that the socket is bound to (not that of the guest behind it).
    pub mac: Mac,
    /// Bytes that may wait to be read, as the kernel counts them.
    pub receive_buffer: u32,
    /// Slots of the receive ring; 0 if there is none.
    pub ring: u32,
    /// More sockets, among which the kernel divides what comes: all frames of a flow go to the same.
    pub queues: Vec<OwnedFd>,
}

/// How a packet socket is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketOptions {
    /// Slots of the receive ring of each socket; 0 for none.
    pub ring: u32,
    /// Number of sockets, at least one.
    pub queues: u32,
}

impl Default for PacketOptions {
    fn default() -> Self {
        PacketOptions { ring: 0, queues: 1 }
    }
}

/// Not in the `libc` crate for every C library: from `linux/if_packet.h`.
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_FANOUT: libc::c_int = 18;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_STATISTICS: libc::c_int = 6;
/// By the hash of a packet's addresses and ports, whichever way it goes.
const PACKET_FANOUT_HASH: u32 = 0;
/// The kernel picks a number for the group that no other has.
const PACKET_FANOUT_FLAG_UNIQUEID: u32 = 0x2000;
/// What leaves by the interface does not come: the group does not ask its sockets. Kernels that do not know this bring it.
const PACKET_FANOUT_FLAG_IGNORE_OUTGOING: u32 = 0x4000;
/// IPv4 fragments are put together first: only one of them has the ports.
const PACKET_FANOUT_FLAG_DEFRAG: u32 = 0x8000;

/// Bytes of frames that may wait: more than a hundred super-segments.
const RECEIVE_BUFFER: libc::c_int = 16 << 20;

/// Opens a packet socket on an interface of the current network namespace.
///
/// # Errors
/// [`PacketError`]
pub fn open(name: &str) -> Result<PacketSocket, PacketError> {
    open_with(name, PacketOptions::default())
}

/// As [`open`], with a receive ring or several sockets.
///
/// # Errors
/// [`PacketError`]; [`PacketError::Ring`] if all is well but for the ring.
pub fn open_with(name: &str, options: PacketOptions) -> Result<PacketSocket, PacketError> {
    if !interface::is_valid_name(name) {
        return Err(PacketError::BadName(name.into()));
    }
    let interfaces = Interfaces::current().map_err(PacketError::io("opening a socket"))?;
    let index = interfaces.index(name).map_err(|e| match e.raw_os_error() {
        Some(libc::ENODEV) => PacketError::NoInterface(name.into()),
        _ => PacketError::io("looking up the interface")(e),
    })?;
    let mtu = interfaces.mtu(name).map_err(PacketError::io("reading the MTU"))?;
    let mac = interfaces.mac(name).map_err(PacketError::io("reading the MAC address"))?;
    let mac = mac.ok_or_else(|| PacketError::NotEthernet(name.into()))?;
    let (mut receive_buffer, mut ring) = (u32::MAX, 0);
    let mut sockets = Vec::new();
    for _ in 0..options.queues.max(1) {
        // With protocol 0 nothing is received until the socket is bound, so nothing comes without its virtio-net header.
        let fd = socket(libc::AF_PACKET, libc::SOCK_RAW, 0).map_err(PacketError::io("opening a packet socket"))?;
        receive_buffer = receive_buffer.min(prepare(fd.as_fd())?);
        if options.ring > 0 {
            ring = packet_ring::install(fd.as_fd(), options.ring).map_err(PacketError::Ring)?;
        }
        sockets.push(fd);
    }
    if let [only] = &sockets[..] {
        bind(only.as_fd(), index).map_err(PacketError::io("binding the packet socket"))?;
    } else {
        let group: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        fan_out(&group, index)?;
    }
    let fd = sockets.remove(0);
    Ok(PacketSocket { fd, name: name.into(), mtu, mac, receive_buffer, ring, queues: sockets })
}

/// Binds sockets to an interface, among which what comes is divided. None of them gets anything twice: before all are in the group they receive nothing.
fn fan_out(sockets: &[BorrowedFd<'_>], index: u32) -> Result<(), PacketError> {
    let joining = PacketError::io("dividing what comes among packet sockets");
    for fd in sockets {
        refuse_all(*fd).map_err(&joining)?;
        bind(*fd, index).map_err(PacketError::io("binding the packet socket"))?;
    }
    let how = PACKET_FANOUT_HASH | PACKET_FANOUT_FLAG_DEFRAG | PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
    let mut group = (how | PACKET_FANOUT_FLAG_UNIQUEID) << 16;
    for fd in sockets {
        set_option_bytes(*fd, libc::SOL_PACKET, PACKET_FANOUT, &group.to_ne_bytes()).map_err(&joining)?;
        // The kernel has picked the number for the first one; the others name it.
        let id = get_int(*fd, libc::SOL_PACKET, PACKET_FANOUT).map_err(&joining)? as u32 & 0xffff;
        group = how << 16 | id;
    }
    for fd in sockets {
        set_option(*fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0).map_err(&joining)?;
    }
    Ok(())
}

/// Has a socket receive nothing, until its filter is detached.
fn refuse_all(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut nothing = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut nothing };
    let len = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: pointer and length describe `program`, and its pointer the one instruction; both outlive the call, which copies them.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const program).cast(), len) }).map(drop)
}

/// Takes over a bound packet socket that somebody else opened. `mtu` is that of its interface, which may be in another
/// network namespace, so that neither it nor the MAC address can be asked for. Frames that wait already are lost: they came without a
/// virtio-net header. It gets a ring of so many slots, unless that is 0.
///
/// # Errors
/// [`PacketError`]; [`PacketError::Ring`] if all is well but for the ring.
pub fn adopt(fd: OwnedFd, mtu: u32, ring: u32) -> Result<PacketSocket, PacketError> {
    super::socket::set_nonblocking(&fd).map_err(PacketError::io("making the packet socket non-blocking"))?;
    let mut frame = [0; 1];
    while super::socket::recv(fd.as_fd(), &mut frame, libc::MSG_DONTWAIT).is_ok() {}
    let receive_buffer = prepare(fd.as_fd())?;
    let ring = match ring {
        0 => 0,
        n => packet_ring::install(fd.as_fd(), n).map_err(PacketError::Ring)?,
    };
    Ok(PacketSocket { fd, name: String::new(), mtu, mac: Mac([0; 6]), receive_buffer, ring, queues: Vec::new() })
}

/// Sets the options that a link needs; returns the size of the receive buffer.
fn prepare(fd: BorrowedFd<'_>) -> Result<u32, PacketError> {
    let option = |name, what| {
        set_option(fd, libc::SOL_PACKET, name, 1).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOPROTOOPT | libc::EINVAL) => PacketError::Unsupported(what),
            _ => PacketError::io(what)(e),
        })
    };
    option(PACKET_VNET_HDR, "PACKET_VNET_HDR")?;
    option(PACKET_IGNORE_OUTGOING, "PACKET_IGNORE_OUTGOING")?;
    // Beyond the system's limit only for the privileged; others get as much as the limit allows.
    if set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER).is_err() {
        set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BUFFER)
            .map_err(PacketError::io("setting the receive buffer"))?;
    }
    let receive_buffer = get_int(fd, libc::SOL_SOCKET, libc::SO_RCVBUF).map_err(PacketError::io("reading the receive buffer"))?;
    Ok(receive_buffer.max(0) as u32)
}

fn bind(fd: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    // SAFETY: plain old data for which zero is a valid value.
    let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    addr.sll_family = libc::AF_PACKET as u16;
    addr.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    addr.sll_ifindex = index as libc::c_int;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is alive during the call and `len` long.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), len) }).map(drop)
}

/// Whether the interface that a packet socket is bound to still exists. The kernel sets the number to -1 when it goes.
pub fn is_bound(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: plain old data for which zero is a valid value.
    let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes of the address, and the length.
    let ok = unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut addr).cast(), &mut len) } == 0;
    ok && addr.sll_ifindex > 0
}

/// Frames dropped because the receive buffer was full, since the last call.
pub fn take_dropped(fd: BorrowedFd<'_>) -> u32 {
    // The kernel's `struct tpacket_stats`: packets, drops. Reading clears both.
    let mut stats = [0; 8];
    match get_option(fd, libc::SOL_PACKET, PACKET_STATISTICS, &mut stats) {
        Ok(8) => u32::from_ne_bytes([stats[4], stats[5], stats[6], stats[7]]),
        _ => 0,
    }
}
