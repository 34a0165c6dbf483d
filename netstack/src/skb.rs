//! What tables, tracking and address translation see of a packet, and what they may change.

use crate::conntrack::Track;
use crate::edge::Payload;
use crate::iptables::Iface;
use crate::packet::L4;
use crate::tuple::{Endpoint, Tuple};
use crate::wire::Mac;
use core::net::IpAddr;

/// A packet on its way through the hooks.
///
/// Headers are those that were received or are about to be sent; translation changes `src`, `dst`, `sport`, `dport` and
/// `quoted` only, targets `tos`, `hop_limit` and `altered`, and whoever sends the packet puts them into the bytes. So `l4` and `l4_bytes` keep
/// what there was.
#[derive(Clone, Debug)]
pub struct Skb<'a> {
    /// Where it came from; `None` if we made it.
    pub input: Option<Iface>,
    /// Where it leaves; `None` before routing, or for us.
    pub output: Option<Iface>,
    /// MAC address of the sender, if it came over a link.
    pub src_mac: Option<Mac>,
    /// Source address, as translated so far.
    pub src: IpAddr,
    /// Destination address, as translated so far.
    pub dst: IpAddr,
    /// IP protocol of `l4`.
    pub protocol: u8,
    /// Source port as translated so far; of ICMP queries and their replies the identifier; else 0.
    pub sport: u16,
    /// Destination port as translated so far; 0 for protocols without.
    pub dport: u16,
    /// Transport header.
    pub l4: L4,
    /// The bytes at hand from the transport header on: all of it, and of what follows as much as was copied (what an ICMP error quotes).
    pub l4_bytes: &'a [u8],
    /// Bytes of the packet behind the IP header.
    pub l4_len: u32,
    /// Length of the IP packet in bytes.
    pub len: u32,
    /// Type of service or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Packet mark.
    pub mark: u32,
    /// Zones in which tracking looks for it, by direction; 0 is the default one. Set by rules of the raw table.
    pub zones: [u16; 2],
    /// What connection tracking knows of it.
    pub track: Track,
    /// Ends that the packet quoted by an ICMP error must have, in the quoted packet's own direction; `None` to leave it as it is.
    pub quoted: Option<Tuple>,
    /// Made by us, for a user's process or for the stack itself (uid and gid 0).
    pub owner: Option<Owner>,
    /// To how many stations its link carried it.
    pub cast: Cast,
    /// The IP header as it was received, with options or extension headers; empty for a packet of ours, which gets it when it is sent.
    pub ip_bytes: &'a [u8],
    /// What follows `l4_bytes`.
    pub body: Payload,
    /// A TRACE rule wants its way recorded.
    pub traced: bool,
    /// What targets changed behind the IP header.
    pub altered: Altered,
}

/// To whom a link carried a packet; `pkttype` asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cast {
    /// To us, or by us.
    #[default]
    Unicast,
    /// To all stations.
    Broadcast,
    /// To a group.
    Multicast,
    /// To another station: such packets do not come this far.
    OtherHost,
}

/// What targets changed of a packet's transport header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Altered {
    /// TCPMSS: the maximum segment size that the header is to say.
    pub mss: Option<NewMss>,
    /// CHECKSUM: the checksum is to be whole, even if the link could complete it.
    pub whole_checksum: bool,
}

/// A maximum segment size in place of the one that a TCP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewMss {
    /// In bytes.
    pub value: u16,
    /// The header has no such option, and gets one.
    pub added: bool,
}

/// On whose behalf the stack made a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Skb<'_> {
    /// Whether it is an IPv6 packet.
    pub const fn is_v6(&self) -> bool {
        self.src.is_ipv6()
    }

    /// Who talks to whom, as translated so far.
    pub const fn tuple(&self) -> Tuple {
        Tuple { src: Endpoint::new(self.src, self.sport), dst: Endpoint::new(self.dst, self.dport), proto: self.protocol }
    }
}
