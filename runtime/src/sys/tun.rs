//! TAP interfaces through `/dev/net/tun`.

use super::check;
use super::interface::{self, Interfaces};
use super::socket::set_nonblocking;
use hibernet_netstack::wire::Mac;
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Why a TAP could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel has no TUN driver, or the device node is missing.
    #[error("/dev/net/tun is not there (load the tun module, pass the device into the container, or use a packet link)")]
    NoDevice,
    /// The device node is closed to this user.
    #[error("/dev/net/tun may not be opened by this user (grant access to it, or use a packet link)")]
    DevicePermission,
    /// CAP_NET_ADMIN is missing in the network namespace, or the interface belongs to another user.
    #[error("no permission for TAP {0} (CAP_NET_ADMIN is needed in its network namespace)")]
    Permission(String),
    /// An interface of that name exists (when creating), or has no free queue (when attaching).
    #[error("the interface name {0} is taken")]
    NameTaken(String),
    /// No interface can have that name.
    #[error("{0:?} cannot be the name of an interface (1 to 15 characters, no '/', ':' or spaces)")]
    BadName(String),
    /// No interface of that name exists (when attaching).
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// It exists but is no TAP, or its queue mode differs.
    #[error("the interface {0} is no TAP that can be used this way")]
    NotTap(String),
    /// The process or the system has no descriptor left.
    #[error("no file descriptor left for a TAP (raise the limit on open files)")]
    TooManyFiles,
    /// The interface refuses the MTU.
    #[error("the MTU {mtu} is not possible on {name}")]
    BadMtu {
        /// The interface.
        name: String,
        /// What was asked for.
        mtu: u32,
    },
    /// Anything else.
    #[error("{step} failed: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

impl TunError {
    fn io(step: &'static str) -> impl Fn(io::Error) -> TunError {
        move |source| match source.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => TunError::TooManyFiles,
            _ => TunError::Io { step, source },
        }
    }
}

/// What the kernel may leave undone in frames that it hands to us, and does in ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offloads {
    /// Transport checksums.
    pub checksum: bool,
    /// TCP segmentation, both families.
    pub tso: bool,
    /// UDP segmentation, both families.
    pub uso: bool,
}

/// Which TAP to open.
#[derive(Clone, Copy, Debug)]
pub struct TunOptions<'a> {
    /// Its name; when creating, a `%d` is replaced by the first free number.
    pub name: &'a str,
    /// Create it (and fail if it exists) instead of attaching to one that exists.
    pub create: bool,
    /// Set its MTU.
    pub mtu: Option<u32>,
    /// One of several queues.
    pub multi_queue: bool,
}

/// An open queue of a TAP.
#[derive(Debug)]
pub struct Tun {
    /// The queue. Non-blocking, close-on-exec; frames carry a 10-byte virtio-net header.
    pub fd: OwnedFd,
    /// Name of the interface.
    pub name: String,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// MAC address of the network interface; the guest's address when the guest is the namespace it is in.
    pub mac: Mac,
    /// What was agreed with the kernel.
    pub offloads: Offloads,
}

/// Bytes of the virtio-net header before each frame.
pub const VNET_HDR_LEN: libc::c_int = 10;

/// Creates a TAP in the current network namespace, or attaches to one there, and turns on all offloads that the kernel has.
/// A created TAP lives as long as the descriptor.
pub fn open(options: &TunOptions<'_>) -> Result<Tun, TunError> {
    let name = options.name;
    if !interface::is_valid_name(name) {
        return Err(TunError::BadName(name.into()));
    }
    let interfaces = Interfaces::current().map_err(TunError::io("opening a socket"))?;
    if !options.create {
        interfaces.index(name).map_err(|e| match e.raw_os_error() {
            Some(libc::ENODEV) => TunError::NoInterface(name.into()),
            _ => TunError::io("looking up the interface")(e),
        })?;
    }
    let fd = open_device()?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if options.create {
        flags |= libc::IFF_TUN_EXCL;
    }
    if options.multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let name = set_interface(fd.as_fd(), name, flags)?;
    if let Some(mtu) = options.mtu {
        interfaces.set_mtu(&name, mtu).map_err(|_| TunError::BadMtu { name: name.clone(), mtu })?;
    }
    let mtu = interfaces.mtu(&name).map_err(TunError::io("reading the MTU"))?;
    let (mac, offloads) = prepare(fd.as_fd())?;
    Ok(Tun { fd, name, mtu, mac, offloads })
}

/// Takes over a TAP's descriptor that somebody else opened. `mtu` is that of its interface, which cannot be asked through
/// the descriptor. It must carry Ethernet frames with virtio-net headers (`IFF_TAP`, `IFF_NO_PI`, `IFF_VNET_HDR`); the
/// header's length and the offloads are set here.
pub fn adopt(fd: OwnedFd, mtu: u32) -> Result<Tun, TunError> {
    // SAFETY: `ifreq` is plain old data for which zero is a valid value.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes an `ifreq`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &mut req) })
        .map_err(TunError::io("asking for the TAP's kind"))?;
    let name = interface::name_of(&req);
    // SAFETY: the kernel has filled in the flags; any bits are valid.
    let flags = libc::c_int::from(unsafe { req.ifr_ifru.ifru_flags });
    let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if flags & wanted != wanted {
        return Err(TunError::NotTap(name));
    }
    set_nonblocking(fd.as_fd()).map_err(TunError::io("making the TAP non-blocking"))?;
    let (mac, offloads) = prepare(fd.as_fd())?;
    Ok(Tun { fd, name, mtu, mac, offloads })
}

fn open_device() -> Result<OwnedFd, TunError> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    match file {
        Ok(f) => Ok(f.into()),
        Err(e) => Err(match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoDevice,
            Some(libc::EACCES | libc::EPERM) => TunError::DevicePermission,
            _ => TunError::io("opening /dev/net/tun")(e),
        }),
    }
}

/// TUNSETIFF; returns the interface's name.
fn set_interface(fd: BorrowedFd<'_>, name: &str, flags: libc::c_int) -> Result<String, TunError> {
    let mut req = interface::request(name).map_err(|_| TunError::BadName(name.into()))?;
    // The flags are 16 bits wide; IFF_TUN_EXCL is the topmost.
    req.ifr_ifru.ifru_flags = flags as u16 as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an `ifreq`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &mut req) }).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST | libc::E2BIG) => TunError::NameTaken(name.into()),
        Some(libc::EPERM | libc::EACCES) => TunError::Permission(name.into()),
        Some(libc::EINVAL) if flags & libc::IFF_TUN_EXCL != 0 => TunError::NameTaken(name.into()),
        Some(libc::EINVAL) => TunError::NotTap(name.into()),
        _ => TunError::io("setting up the TAP")(e),
    })?;
    Ok(interface::name_of(&req))
}

/// Header length and offloads; returns what was agreed.
fn prepare(fd: BorrowedFd<'_>) -> Result<(Mac, Offloads), TunError> {
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &VNET_HDR_LEN) })
        .map_err(TunError::io("setting the length of the virtio-net header"))?;
    // SAFETY: `ifreq` is plain old data for which zero is a valid value.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: SIOCGIFHWADDR writes an `ifreq`; on this descriptor it is about the TAP's own interface.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFHWADDR as libc::Ioctl, &mut req) })
        .map_err(TunError::io("reading the MAC address"))?;
    let mac = interface::mac_of(&req).ok_or_else(|| TunError::NotTap(interface::name_of(&req)))?;
    Ok((mac, negotiate(fd)))
}

/// Turns on the most that the kernel accepts.
fn negotiate(fd: BorrowedFd<'_>) -> Offloads {
    let tso = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let steps = [
        (tso | libc::TUN_F_TSO_ECN | libc::TUN_F_USO4 | libc::TUN_F_USO6, Offloads { checksum: true, tso: true, uso: true }),
        (tso | libc::TUN_F_TSO_ECN, Offloads { checksum: true, tso: true, uso: false }),
        (tso, Offloads { checksum: true, tso: true, uso: false }),
        (libc::TUN_F_CSUM, Offloads { checksum: true, tso: false, uso: false }),
    ];
    let accepted = steps.into_iter().find(|&(flags, _)| set_offload(fd, flags).is_ok());
    accepted.map_or_else(Offloads::default, |(_, offloads)| offloads)
}

/// TUNSETOFFLOAD: what the kernel may leave undone in frames that it hands to this side.
pub fn set_offload(fd: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) }).map(drop)
}

/// Lets a TAP live on when its last descriptor is closed, until its network namespace goes.
pub fn keep_interface(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(true)) }).map(drop)
}
