//! The guest's side of the network: the interface in its namespace, and our end of it.

use super::connector::Connector;
use super::datagram_peer::DatagramPeer;
use super::failure::{Failure, Status, complain};
use super::namespaces;
use super::netlink::{Interface, Netlink, RemovalWatch};
use super::plan::{Guest, LinkChoice, RingChoice};
use super::socket_path::{self, SocketPath};
use crate::sys::interface::Interfaces;
use crate::sys::packet::{self, PacketError, PacketOptions, PacketSocket};
use crate::sys::packet_ring;
use crate::sys::tun::{self, TunError, TunOptions};
use crate::sys::{process, socket};
use hibernet_netstack::config::Config;
use hibernet_netstack::wire::Mac;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Our end of a link, as it is handed from process to process beside its descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkEnd {
    /// What the descriptor is.
    pub kind: LinkKind,
    /// Name of the interface.
    pub ifname: String,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// The guest's MAC address, if it is known.
    pub guest_mac: Option<Mac>,
}

/// What the descriptor of a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkKind {
    /// A queue of a TAP.
    Tap,
    /// A packet socket.
    Packet {
        /// MAC address of the interface that it is bound to.
        mac: Mac,
        /// Bytes that may wait to be read.
        receive_buffer: u32,
        /// Slots of its ring; 0 if there is none.
        #[serde(default)]
        ring: u32,
    },
    /// A socket of another kind that keeps message boundaries: bare Ethernet frames.
    Messages,
    /// A listening socket for streams of frames, each behind its length, as QEMU's `-netdev stream` sends them.
    Streams {
        /// The link is gone when the first connection has ended.
        one_off: bool,
    },
    /// Such a stream.
    Stream,
    /// A listening socket for vhost-user front ends.
    VhostUser {
        /// The link is gone when the first has left.
        one_off: bool,
        /// Pairs of queues that there can be.
        #[serde(default = "one")]
        pairs: u32,
    },
    /// A socket over which connections to vhost-user front ends are handed that listen.
    VhostUserHanded {
        /// Pairs of queues that there can be.
        pairs: u32,
    },
    /// A datagram socket bound to a path, bare Ethernet frames; with the worker's end of a bell, by which it hears of peers.
    Datagrams,
}

const fn one() -> u32 {
    1
}

/// A link that was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) end: LinkEnd,
    pub(crate) fd: OwnedFd,
    /// More descriptors of the link: packet sockets among which what comes is divided, the bell of a datagram socket.
    pub(crate) queues: Vec<OwnedFd>,
    /// Where somebody has to: finds its peers.
    pub(crate) peer: Option<Finder>,
    /// For a packet socket: tells when its interface is removed. (The descriptor of a TAP says so itself.)
    pub(crate) removal: Option<RemovalWatch>,
    /// For a socket that listens at a path: removes that in the end.
    pub(crate) path: Option<SocketPath>,
}

/// Finds the peers of a link whose worker can reach no path.
#[derive(Debug)]
pub(crate) enum Finder {
    Datagrams(DatagramPeer),
    Connections(Connector),
}

impl Finder {
    /// What to wait for.
    pub(crate) fn fds(&self) -> [Option<&OwnedFd>; 2] {
        match self {
            Finder::Datagrams(p) => p.fds(),
            Finder::Connections(c) => c.fds(),
        }
    }

    /// Does what is to be done now.
    pub(crate) fn turn(&mut self) {
        match self {
            Finder::Datagrams(p) => p.turn(),
            Finder::Connections(c) => c.turn(),
        }
    }
}

impl Opened {
    fn new(end: LinkEnd, fd: OwnedFd) -> Self {
        Opened { end, fd, queues: Vec::new(), peer: None, removal: None, path: None }
    }
}

/// Frames of the guest that may wait in a TAP that we made. The kernel drops what comes beyond, and no socket of the guest hears of it: with its own
/// default of 500, connections that all send at once would lose most of it whenever we wait for our turn.
const TAP_QUEUE: u32 = 2000;

/// Bytes that may wait in the kernel for the peer of a datagram socket, its bookkeeping included.
const DATAGRAM_BUFFER: libc::c_int = 1 << 20;

/// The far end's name in its own namespace, where nothing else is.
const FAR: &str = "far0";

fn link(what: impl std::fmt::Display, e: io::Error) -> Failure {
    Failure::os(Status::Link, what, e)
}

fn tun_failure(e: TunError) -> Failure {
    let status = if matches!(e, TunError::TooManyFiles) { Status::Resources } else { Status::Link };
    Failure::new(status, format!("cannot make the TAP: {e}"))
}

fn packet_failure(e: PacketError) -> Failure {
    let status = if matches!(e, PacketError::TooManyFiles) { Status::Resources } else { Status::Link };
    Failure::new(status, format!("cannot open the packet link: {e}"))
}

/// Makes the sandbox's network namespace, in which the caller is afterwards, with its link. The caller has just entered a
/// user namespace of its own and is still in the network namespace of its parent.
pub(crate) fn make_namespace(guest: &Guest) -> Result<Opened, Failure> {
    let new = || process::unshare(libc::CLONE_NEWNET).map_err(|e| namespaces::refused("cannot make a network namespace", e));
    if guest.link != LinkChoice::Packet {
        new()?;
        match make_tap(guest) {
            Err(TunError::NoDevice | TunError::DevicePermission) if guest.link == LinkChoice::Any => {}
            other => return other.map_err(tun_failure),
        }
    }
    // The namespace made for a TAP that could not be had serves for the far end, which the guest must not see.
    if guest.link == LinkChoice::Packet {
        new()?;
    }
    let far = namespaces::own("net")?;
    let mut far_netlink = prepare_far()?;
    new()?;
    let near = namespaces::own("net")?;
    far_netlink.add_veth(&guest.ifname, near.as_fd(), FAR, guest.mtu.into()).map_err(veth_failure)?;
    open_far(&mut far_netlink, &far, &near, guest)
}

fn veth_failure(e: io::Error) -> Failure {
    match e.raw_os_error() {
        Some(libc::EOPNOTSUPP) => {
            Failure::new(Status::Link, "cannot make the packet link: this kernel has no veth driver (modprobe veth)")
        }
        Some(libc::EEXIST) => {
            Failure::new(Status::Link, "cannot make the packet link: the interface's name is taken; choose one with --ifname")
        }
        _ => link("cannot make the packet link", e),
    }
}

/// Makes the link in a network namespace that exists already, in which the caller is, and stays.
pub(crate) fn make_in_namespace(guest: &Guest) -> Result<Opened, Failure> {
    if guest.link != LinkChoice::Packet {
        match make_tap(guest) {
            Err(TunError::NoDevice | TunError::DevicePermission) if guest.link == LinkChoice::Any => {}
            other => return other.map_err(tun_failure),
        }
    }
    let near = namespaces::own("net")?;
    process::unshare(libc::CLONE_NEWNET)
        .map_err(|e| namespaces::refused("cannot make a network namespace for the link's far end", e))?;
    let far = namespaces::own("net")?;
    let mut far_netlink = prepare_far()?;
    far_netlink.add_veth(&guest.ifname, near.as_fd(), FAR, guest.mtu.into()).map_err(veth_failure)?;
    let end = open_far(&mut far_netlink, &far, &near, guest);
    namespaces::enter(&near, namespaces::Kind::Net).map_err(|e| link("cannot go back to the namespace", e))?;
    end
}

fn make_tap(guest: &Guest) -> Result<Opened, TunError> {
    let multi_queue = guest.workers > 1;
    let tun = tun::open(&TunOptions { name: &guest.ifname, create: true, mtu: Some(guest.mtu.into()), multi_queue })?;
    let queues = more_queues(&tun.name, guest)?;
    let longer = |name: &str| {
        let mut netlink = Netlink::open()?;
        let index = netlink.interface(name)?.index;
        netlink.set_queue_len(index, TAP_QUEUE)
    };
    longer(&tun.name).map_err(|source| TunError::Io { step: "setting the length of its queue", source })?;
    let end = LinkEnd { kind: LinkKind::Tap, ifname: tun.name, mtu: tun.mtu, guest_mac: Some(tun.mac) };
    Ok(Opened { queues, ..Opened::new(end, tun.fd) })
}

/// Queues of a TAP for workers beside the first. A flow's frames come by the queue over which we sent the last one of it.
fn more_queues(name: &str, guest: &Guest) -> Result<Vec<OwnedFd>, TunError> {
    let more = || tun::open(&TunOptions { name, create: false, mtu: None, multi_queue: true }).map(|tun| tun.fd);
    (1..guest.workers).map(|_| more()).collect()
}

/// In the namespace of the far end: its kernel must send nothing of its own to the guest.
fn prepare_far() -> Result<Netlink, Failure> {
    if let Err(e) = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(link("cannot silence the packet link's far end (is /proc/sys writable?)", e));
    }
    Netlink::open().map_err(|e| link("cannot speak to the kernel about interfaces", e))
}

/// Sets the far end up and opens the packet socket on it. The caller is in `near` afterwards.
fn open_far(netlink: &mut Netlink, far: &OwnedFd, near: &OwnedFd, guest: &Guest) -> Result<Opened, Failure> {
    let enter = |ns: &OwnedFd| {
        namespaces::enter(ns, namespaces::Kind::Net).map_err(|e| link("cannot change to the namespace of the link's far end", e))
    };
    let Interface { index, .. } = netlink.interface(FAR).map_err(|e| link("cannot find the link's far end", e))?;
    netlink.set_up(index, None).map_err(|e| link("cannot set the link's far end up", e))?;
    enter(far)?;
    let socket = open_packet(guest.ring, guest.mtu.into(), |ring| {
        packet::open_with(FAR, PacketOptions { ring, queues: guest.descriptors() })
    });
    let removal = RemovalWatch::new(index).map_err(|e| link("cannot watch the link's far end", e));
    enter(near)?;
    let mut near_netlink = Netlink::open().map_err(|e| link("cannot speak to the kernel about interfaces", e))?;
    let near = near_netlink.interface(&guest.ifname).map_err(|e| link("cannot find the new interface", e))?;
    let mut opened = packet_end(socket?);
    opened.end.guest_mac = near.mac.map(Mac);
    opened.removal = Some(removal?);
    Ok(opened)
}

/// Slots of a packet socket's ring, 4 MiB of the kernel's memory: as many frames as wait in a TAP that we make, for the same reason.
const RING: u32 = 2048;

/// Opens a packet socket with a ring of so many slots, or without one if that is all that is missing. A ring pays for frames that fit into its slots:
/// they cost the reader a tenth, and all that happens to them a tenth less; frames of 9000 bytes cost a quarter more (`benches/packet_link.rs`).
fn open_packet(
    choice: RingChoice,
    mtu: u32,
    open: impl Fn(u32) -> Result<PacketSocket, PacketError>,
) -> Result<PacketSocket, Failure> {
    let wanted = match choice {
        RingChoice::Off => false,
        RingChoice::Auto => mtu <= packet_ring::LARGEST_MTU,
        RingChoice::On => true,
    };
    match open(if wanted { RING } else { 0 }) {
        Err(e @ PacketError::Ring(_)) if choice == RingChoice::Auto => {
            complain(format_args!("notice: {e}; frames are received by calls"));
            open(0)
        }
        opened => opened,
    }
    .map_err(packet_failure)
}

fn packet_end(s: PacketSocket) -> Opened {
    let kind = LinkKind::Packet { mac: s.mac, receive_buffer: s.receive_buffer, ring: s.ring };
    let end = LinkEnd { kind, ifname: s.name, mtu: s.mtu, guest_mac: None };
    Opened { queues: s.queues, ..Opened::new(end, s.fd) }
}

/// Takes a TAP of this network namespace that somebody else made. Sets it up if it is down.
pub(crate) fn attach_tap(name: &str, guest: &Guest) -> Result<Opened, Failure> {
    let fail = |e| Failure::new(Status::Link, format!("cannot attach to the TAP {name}: {e}"));
    let multi_queue = guest.workers > 1;
    let tun = tun::open(&TunOptions { name, create: false, mtu: None, multi_queue }).map_err(|e| match e {
        TunError::NotTap(_) if multi_queue => Failure::new(
            Status::Link,
            format!("cannot attach to the TAP {name}: --workers needs one with queues (ip tuntap add ... multi_queue)"),
        ),
        e => fail(e),
    })?;
    let queues = more_queues(name, guest).map_err(fail)?;
    set_up(name)?;
    // The guest is whatever the interface leads to, not the interface itself: its address is learned.
    let end = LinkEnd { kind: LinkKind::Tap, ifname: tun.name, mtu: tun.mtu, guest_mac: None };
    Ok(Opened { queues, ..Opened::new(end, tun.fd) })
}

/// Sets an interface up if it is down; its number.
fn set_up(name: &str) -> Result<u32, Failure> {
    let mut netlink = Netlink::open().map_err(|e| link("cannot speak to the kernel about interfaces", e))?;
    let i = netlink.interface(name).map_err(|e| link(format_args!("cannot look at {name}"), e))?;
    if !i.up {
        netlink.set_up(i.index, None).map_err(|e| link(format_args!("cannot set {name} up"), e))?;
    }
    Ok(i.index)
}

/// Opens a packet socket on an interface of this network namespace, such as a TAP whose descriptor a VMM holds. Sets the
/// interface up if it is down.
pub(crate) fn attach_packet(name: &str, guest: &Guest) -> Result<Opened, Failure> {
    let open = |ring| packet::open_with(name, PacketOptions { ring, queues: guest.descriptors() });
    // What is wrong with it is said by who opens it.
    let mtu = Interfaces::current().and_then(|i| i.mtu(name)).unwrap_or(0);
    let mut opened = packet_end(open_packet(guest.ring, mtu, open)?);
    let index = set_up(name)?;
    opened.removal = Some(RemovalWatch::new(index).map_err(|e| link(format_args!("cannot watch {name}"), e))?);
    Ok(opened)
}

/// Takes a link whose descriptor was inherited: a TAP's or a packet socket, whichever it is.
pub(crate) fn attach_fd(fd: i32, inherited: &OwnedFd, guest: &Guest) -> Result<Opened, Failure> {
    let mtu = guest.mtu;
    let owned = inherited.try_clone().map_err(|e| link(format_args!("--fd {fd}"), e))?;
    let stat = rustix::fs::fstat(&owned).map_err(|e| link(format_args!("--fd {fd}"), e.into()))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Socket {
        let domain = socket::get_int(owned.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN);
        if domain.is_ok_and(|d| d == libc::AF_PACKET) {
            let copy = || inherited.try_clone().map_err(PacketError::io("copying the descriptor"));
            return open_packet(guest.ring, mtu.into(), |ring| packet::adopt(copy()?, mtu.into(), ring)).map(packet_end);
        }
        let is = |option| socket::get_int(owned.as_fd(), libc::SOL_SOCKET, option);
        let kind = match (is(libc::SO_TYPE), is(libc::SO_ACCEPTCONN)) {
            (Ok(libc::SOCK_STREAM), Ok(0)) => LinkKind::Stream,
            (Ok(libc::SOCK_STREAM), _) => LinkKind::Streams { one_off: false },
            _ => LinkKind::Messages,
        };
        return Ok(Opened::new(LinkEnd { kind, ifname: format!("fd{fd}"), mtu: mtu.into(), guest_mac: None }, owned));
    }
    let tun = tun::adopt(owned, mtu.into()).map_err(|e| {
        Failure::new(Status::Link, format!("--fd {fd} is neither a socket nor a TAP with virtio-net headers: {e}"))
    })?;
    Ok(Opened::new(LinkEnd { kind: LinkKind::Tap, ifname: tun.name, mtu: tun.mtu, guest_mac: None }, tun.fd))
}

/// Listens for QEMU, or another VMM that speaks like it, at a path.
pub(crate) fn listen_at(path: &Path, kind: LinkKind, mtu: u16) -> Result<Opened, Failure> {
    let (fd, path) = socket_path::listen(path)?;
    let end = LinkEnd { kind, ifname: "qemu".into(), mtu: mtu.into(), guest_mac: None };
    Ok(Opened { path: Some(path), ..Opened::new(end, fd) })
}

/// Two ends of which one can be rung at the other.
fn bell() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

/// Takes frames as datagrams at a path, from QEMU's `-netdev dgram`, vfkit and the like. `remote`: where to answer to, whoever sends.
pub(crate) fn datagrams_at(path: &Path, remote: Option<&Path>, mtu: u16) -> Result<Opened, Failure> {
    let (fd, path) = socket_path::datagrams(path)?;
    // The kernel may allow less, with which it works too.
    let _ = socket::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, DATAGRAM_BUFFER);
    let fail = |e: io::Error| link("cannot wait for the link's peer", e);
    let (ours, theirs) = bell().map_err(fail)?;
    let peer = DatagramPeer::new(fd.try_clone().map_err(fail)?, ours, remote.map(Path::to_path_buf)).map_err(fail)?;
    let end = LinkEnd { kind: LinkKind::Datagrams, ifname: "qemu".into(), mtu: mtu.into(), guest_mac: None };
    Ok(Opened { path: Some(path), queues: vec![theirs], peer: Some(Finder::Datagrams(peer)), ..Opened::new(end, fd) })
}

/// Connects to QEMU, or another VMM that speaks like it, that listens at a path.
pub(crate) fn connect_to(path: &Path, mtu: u16) -> Result<Opened, Failure> {
    let fd = socket_path::connect_to(path)?;
    Ok(Opened::new(LinkEnd { kind: LinkKind::Stream, ifname: "qemu".into(), mtu: mtu.into(), guest_mac: None }, fd))
}

/// Connects to vhost-user front ends that listen at a path, now and whenever there is one again.
pub(crate) fn connect_to_front_end(path: &Path, guest: &Guest) -> Result<Opened, Failure> {
    let fail = |e: io::Error| link("cannot wait for the link's peer", e);
    let (ours, theirs) = bell().map_err(fail)?;
    let connector = Connector::new(path, ours)?;
    let end = LinkEnd {
        kind: LinkKind::VhostUserHanded { pairs: guest.descriptors() },
        ifname: "qemu".into(),
        mtu: guest.mtu.into(),
        guest_mac: None,
    };
    Ok(Opened { peer: Some(Finder::Connections(connector)), ..Opened::new(end, theirs) })
}

/// Configures the guest's interface, and loopback, in the current network namespace.
pub(crate) fn configure(guest: &Guest, config: &Config, name: &str) -> Result<(), Failure> {
    let mut netlink = Netlink::open().map_err(|e| link("cannot speak to the kernel about interfaces", e))?;
    let say = |what: &'static str| move |e: io::Error| link(format_args!("cannot configure the sandbox's interface: {what}"), e);
    netlink.set_up(1, None).map_err(say("loopback"))?;
    let i = netlink.interface(name).map_err(say("it is not there"))?;
    if config.v6.is_none() {
        ipv6_setting(name, "disable_ipv6", "1");
    } else if !guest.dhcp {
        // Addresses are ours to give: what a router says is not heard, and nobody else can have them.
        ipv6_setting(name, "accept_ra", "0");
        ipv6_setting(name, "accept_dad", "0");
    }
    netlink.set_up(i.index, None).map_err(say("setting it up"))?;
    if guest.dhcp {
        return Ok(());
    }
    let v4 = config.v4.map(|c| (IpAddr::V4(c.guest), c.prefix, IpAddr::V4(c.gateway)));
    let v6 = config.v6.map(|c| (IpAddr::V6(c.guest), c.prefix, IpAddr::V6(c.gateway)));
    for (address, prefix, gateway) in v4.into_iter().chain(v6) {
        netlink.add_address(i.index, address, prefix).map_err(say("address"))?;
        match netlink.add_default_route(i.index, gateway) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                return Err(Failure::new(Status::Link, "the namespace has a default route already; remove it first"));
            }
            other => other.map_err(say("default route"))?,
        }
    }
    Ok(())
}

/// Best effort: where /proc/sys cannot be written, the kernel's defaults work too, only later.
fn ipv6_setting(ifname: &str, key: &str, value: &str) {
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{ifname}/{key}"), value);
}
