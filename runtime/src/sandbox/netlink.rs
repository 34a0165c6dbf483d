//! Interfaces, addresses and routes, by rtnetlink in the network namespace of the calling process.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvFlags, SocketFlags, SocketType, socket_with};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// A connection to the rtnetlink of one network namespace; it stays with that namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// What is asked about an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) index: u32,
    pub(crate) mtu: u32,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) up: bool,
}

impl Netlink {
    /// Opens a connection in the namespace in which the caller is now.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Sends a request and hands every answer to `each`, until the kernel says that it is done.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            let (answer, _) = self.socket.recv_from_full()?;
            let mut rest = &answer[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                let len = (message.header.length as usize).next_multiple_of(4).clamp(16, rest.len().max(16));
                rest = rest.get(len..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(e) if e.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(e) => return Err(io::Error::from_raw_os_error(-e.raw_code())),
                    NetlinkPayload::InnerMessage(m) => each(m),
                    _ => {}
                }
            }
        }
    }

    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(message, NLM_F_ACK | flags, |_| {})
    }

    /// Looks an interface up by its name.
    ///
    /// # Errors
    ///
    /// `ENODEV` if there is none of that name.
    pub(crate) fn interface(&mut self, name: &str) -> io::Result<Interface> {
        let mut m = LinkMessage::default();
        m.attributes.push(LinkAttribute::IfName(name.into()));
        let mut found = None;
        self.request(RouteNetlinkMessage::GetLink(m), NLM_F_ACK, |answer| {
            if let RouteNetlinkMessage::NewLink(l) = answer {
                let mut i = Interface { index: l.header.index, mtu: 0, mac: None, up: l.header.flags.contains(LinkFlags::Up) };
                for a in l.attributes {
                    match a {
                        LinkAttribute::Mtu(mtu) => i.mtu = mtu,
                        LinkAttribute::Address(mac) => i.mac = mac.try_into().ok(),
                        _ => {}
                    }
                }
                found = Some(i);
            }
        })?;
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// Makes a veth pair: `near` (with the namespace in which it is to be, if not this one) and `far`, which stays here.
    pub(crate) fn add_veth(&mut self, near: &str, near_ns: BorrowedFd<'_>, far: &str, mtu: u32) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(near.into()));
        peer.attributes.push(LinkAttribute::Mtu(mtu));
        peer.attributes.push(LinkAttribute::NetNsFd(near_ns.as_raw_fd()));
        let mut m = LinkMessage::default();
        m.attributes.push(LinkAttribute::IfName(far.into()));
        m.attributes.push(LinkAttribute::Mtu(mtu));
        m.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.change(RouteNetlinkMessage::NewLink(m), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Sets an interface up, and its MTU if given.
    pub(crate) fn set_up(&mut self, index: u32, mtu: Option<u32>) -> io::Result<()> {
        let mut m = LinkMessage::default();
        m.header.index = index;
        m.header.flags = LinkFlags::Up;
        m.header.change_mask = LinkFlags::Up;
        m.attributes.extend(mtu.map(LinkAttribute::Mtu));
        self.change(RouteNetlinkMessage::SetLink(m), 0)
    }

    /// Sets how many frames may wait to be sent. The queue of a TAP is what waits to be read from its descriptor.
    pub(crate) fn set_queue_len(&mut self, index: u32, frames: u32) -> io::Result<()> {
        let mut m = LinkMessage::default();
        m.header.index = index;
        m.attributes.push(LinkAttribute::TxQueueLen(frames));
        self.change(RouteNetlinkMessage::SetLink(m), 0)
    }

    /// Adds an address, usable at once (no duplicate address detection over IPv6).
    pub(crate) fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut m = AddressMessage::default();
        m.header.family = family(address);
        m.header.prefix_len = prefix;
        m.header.index = index;
        m.header.scope = AddressScope::Universe;
        m.attributes.push(AddressAttribute::Local(address));
        m.attributes.push(AddressAttribute::Address(address));
        match address {
            IpAddr::V4(a) if prefix < 31 => {
                let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                m.attributes.push(AddressAttribute::Broadcast((a.to_bits() | host).into()));
            }
            IpAddr::V4(_) => {}
            IpAddr::V6(_) => {
                m.header.flags = AddressHeaderFlags::Nodad;
                m.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
        }
        self.change(RouteNetlinkMessage::NewAddress(m), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Adds the default route through `gateway`, which must be on the link.
    pub(crate) fn add_default_route(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let mut m = RouteMessage::default();
        m.header.address_family = family(gateway);
        m.header.table = RouteHeader::RT_TABLE_MAIN;
        m.header.protocol = RouteProtocol::Static;
        m.header.scope = RouteScope::Universe;
        m.header.kind = RouteType::Unicast;
        m.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        m.attributes.push(RouteAttribute::Oif(index));
        self.change(RouteNetlinkMessage::NewRoute(m), NLM_F_CREATE | NLM_F_EXCL)
    }
}

/// Tells when an interface is removed. A packet socket alone does not: it reports that the interface went down, which
/// happens a moment before, and nothing after.
#[derive(Debug)]
pub(crate) struct RemovalWatch {
    socket: OwnedFd,
    index: u32,
}

impl RemovalWatch {
    /// Begins to watch an interface of the network namespace in which the caller is.
    pub(crate) fn new(index: u32) -> io::Result<Self> {
        const RTMGRP_LINK: u32 = 1;
        // NETLINK_ROUTE is protocol 0.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(rustix::net::AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, RTMGRP_LINK))?;
        Ok(RemovalWatch { socket, index })
    }

    /// From its parts, which may have come from another process.
    pub(crate) fn from_parts(socket: OwnedFd, index: u32) -> Self {
        RemovalWatch { socket, index }
    }

    /// The interface's number.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// The socket, readable when something may have happened.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.socket
    }

    /// Takes what is pending; whether the interface was removed.
    pub(crate) fn is_removed(&self) -> bool {
        let mut removed = false;
        let mut buf = vec![0; 32 << 10];
        while let Ok((n, _)) = rustix::net::recv(&self.socket, &mut buf[..], RecvFlags::DONTWAIT) {
            let mut rest = &buf[..n];
            while let Ok(m) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
                let len = (m.header.length as usize).next_multiple_of(4).max(16);
                rest = rest.get(len..).unwrap_or_default();
                if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(l)) = m.payload {
                    removed |= l.header.index == self.index;
                }
            }
        }
        removed
    }
}

fn family(a: IpAddr) -> AddressFamily {
    if a.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
