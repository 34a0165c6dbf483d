//! The kernel's netfilter and ours, side by side: the same rules, the same frames, the same answers.
//!
//! Three nodes in a row: a client, a router, a server. The [`Kernel`] is the router as Linux has it, in namespaces of a
//! [`Lab`](crate::lab::Lab); [`Ours`] is a [`Stack`](hibernet_netstack::Stack) with two guest links that route between each
//! other. Both have the interfaces `tap0` (client's side) and `tap1` (server's side), the same addresses and MAC addresses. A
//! [`Scenario`] is a ruleset and frames in their order; [`run`] plays it on both and compares after every frame what came out,
//! and at the end rules with their counters and the tracked connections.
//!
//! What the kernel makes up by chance is compared by predicate: see [`compare`].
//!
//! Left out, because we do otherwise on purpose:
//! - packets whose transport header is not all there: dropped at once, not at the first rule that would test it;
//! - tracking of wrong checksums (`nf_conntrack_checksum=0`): there is no such switch;
//! - TCPMSS where the option stands at an odd place: the kernel makes a wrong checksum then;
//! - UDP over IPv6 to the router, longer than 76 bytes, whose IP header rules changed: the kernel finds its checksum wrong then;
//! - trackers of SCTP and DCCP: to us they are protocols without ports;
//! - `owner --socket-exists`: our own packets have no socket;
//! - `--ctexpire` of a connection that is not confirmed yet: the kernel takes its time-out for a moment, so the answer depends on how long
//!   the machine is up;
//! - CT rules in OUTPUT on answers to what is not tracked; the order in which a rule finds a TCP header broken;
//! - `connlimit` where all connections that a rule counted are over, and a packet comes of one that was ASSURED before: 6.18 drops it;
//! - `connlimit` of a first packet sent again, which 6.18 finds in its list and looks no further for connections that are over;
//! - REJECT by ICMP of protocols without a checksum (but ESP, AH, SCTP, UDP-Lite, DCCP): Linux answers only if their bytes happen to have the sum;
//! - clamping by what Linux learnt of a path from ICMP;
//! - zones of one direction that overlap with others;
//! - ICMP timestamp requests to the router, which the kernel answers;
//! - IPv4 options that a router fills in (record route, timestamp), redirects, sources that are not behind the link.

pub mod compare;
mod frames;
pub mod generate;
mod kernel;
mod ours;
mod record;
mod rules;
mod run;
mod scenario;
mod show;
mod sockets;
mod talk;

pub use frames::{Body, Ends, IpFields, Packet, Quote, Tcp, icmp_rest};
pub use kernel::Kernel;
pub use ours::Ours;
pub use record::{Entry, Seen, tables};
pub use rules::{sets, whole};
pub use run::{Difference, Router, Summary, run, run_alone};
pub use scenario::{Change, Scenario, Step, StepId};
pub use talk::Talk;

use core::net::IpAddr;

/// Where a frame goes in or comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// The client's: behind `tap0`.
    Client,
    /// The server's: behind `tap1`.
    Server,
}

impl Side {
    /// Both, by number.
    pub const BOTH: [Side; 2] = [Side::Client, Side::Server];

    /// 0 or 1.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }

    /// MAC address of the node behind the router's interface.
    pub const fn mac(self) -> [u8; 6] {
        [0x52, 0x54, 0, 0x12, 0x34, 0x56 + self as u8]
    }
}

/// MAC address of the router, on both sides.
pub const ROUTER_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02];

/// Address of the node on a side.
pub fn node(side: Side, v6: bool) -> IpAddr {
    addr(side, v6, 0x15, 15)
}

/// The router's (primary) address on a side.
pub fn router(side: Side, v6: bool) -> IpAddr {
    addr(side, v6, 2, 2)
}

/// The router's second address on the client's side (where hibernet serves DNS).
pub fn second(v6: bool) -> IpAddr {
    addr(Side::Client, v6, 3, 3)
}

/// Address of another station on a side, with the MAC address of the node: a router on the way to it.
pub fn beyond(side: Side, v6: bool) -> IpAddr {
    addr(side, v6, 0x99, 99)
}

/// An address that nobody has, in a network to which there is no route: only translation makes something of it.
pub fn elsewhere(n: u8, v6: bool) -> IpAddr {
    if v6 { format!("2001:db8::{n:x}").parse() } else { format!("203.0.113.{n}").parse() }.expect("an address")
}

fn addr(side: Side, v6: bool, low6: u16, low4: u8) -> IpAddr {
    let net = side.index();
    if v6 {
        IpAddr::from([0xfd68, 0x6962, 0x6e65, 0x7400 + net as u16, 0, 0, 0, low6])
    } else {
        IpAddr::from([10, 0, 2 + net as u8, low4])
    }
}
