//! Which packets of a connection have the same fate.

use crate::conntrack::{ConnId, Dir, Track};
use crate::iptables::matches::transport;
use crate::iptables::{Hook, Iface, Program, TableName};
use crate::packet::L4;
use crate::skb::Skb;

/// Tables that are asked in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// PREROUTING, behind tracking: mangle.
    PreRouting,
    /// INPUT: mangle, filter, security.
    Input,
    /// FORWARD: mangle, filter, security.
    Forward,
    /// OUTPUT, between tracking and translation: mangle.
    OutputMangle,
    /// OUTPUT, behind translation: filter, security.
    Output,
    /// POSTROUTING: mangle.
    PostRouting,
}

/// Stages that a packet passes at most.
pub(super) const STAGES: usize = 3;

impl Stage {
    /// All of them, by their numbers.
    pub(in crate::iptables) const ALL: [Stage; 6] =
        [Stage::PreRouting, Stage::Input, Stage::Forward, Stage::OutputMangle, Stage::Output, Stage::PostRouting];

    pub(in crate::iptables) const fn hook(self) -> Hook {
        match self {
            Stage::PreRouting => Hook::PreRouting,
            Stage::Input => Hook::Input,
            Stage::Forward => Hook::Forward,
            Stage::OutputMangle | Stage::Output => Hook::Output,
            Stage::PostRouting => Hook::PostRouting,
        }
    }

    pub(in crate::iptables) const fn tables(self) -> &'static [TableName] {
        match self {
            Stage::PreRouting | Stage::OutputMangle | Stage::PostRouting => &[TableName::Mangle],
            Stage::Input | Stage::Forward => &[TableName::Mangle, TableName::Filter, TableName::Security],
            Stage::Output => &[TableName::Filter, TableName::Security],
        }
    }

    /// Which of the stages on a packet's way: no packet passes two of the same number, but those that the router sends to itself, which
    /// ask the rules more often for it.
    const fn number(self) -> usize {
        match self {
            Stage::PreRouting | Stage::OutputMangle => 0,
            Stage::Input | Stage::Forward | Stage::Output => 1,
            Stage::PostRouting => 2,
        }
    }
}

/// What rules see of a connection's packet besides what is the same for all packets of its direction (addresses, ports, ICMP type and code,
/// zone, family). Source MAC address and connection mark are compared only where rules ask for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Stage, state, interfaces, status.
    place: u64,
    /// Flag class, mark.
    packet: u64,
}

/// A connection, and which of its paths.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whose {
    pub(super) id: ConnId,
    /// By direction and number of the stage.
    pub(super) place: usize,
}

impl Key {
    /// Of a packet; `None` for packets that ask the rules each time: of no connection or a new one, ICMP errors, protocols of which not
    /// all that rules see is in the tuple, packets of which it is known who made them.
    #[inline]
    pub(super) fn of(stage: Stage, program: &Program, skb: &Skb<'_>) -> Option<(Whose, Key)> {
        let Track::Known { id, info, status } = skb.track else { return None };
        let flags = match skb.l4 {
            L4::Tcp(..) => program.flags.class(transport::flags(skb)),
            L4::Udp(_) | L4::Icmp(_) | L4::Icmpv6(_) => 0,
            L4::Other => return None,
        };
        if info.is_related() || skb.owner.is_some() {
            return None;
        }
        let place = u64::from(stage as u8)
            | u64::from(info as u8) << 8
            | u64::from(iface(skb.input)) << 16
            | u64::from(iface(skb.output)) << 32
            | u64::from(status.0) << 48;
        let key = Key { place, packet: u64::from(flags) << 32 | u64::from(skb.mark) };
        let dir = match info.dir() {
            Dir::Original => 0,
            Dir::Reply => STAGES,
        };
        Some((Whose { id, place: dir + stage.number() }, key))
    }

    /// The stage.
    pub(super) fn stage(self) -> Stage {
        Stage::ALL[usize::from(self.place as u8) % Stage::ALL.len()]
    }

    /// For hashing.
    pub(super) const fn words(self) -> [u64; 2] {
        [self.place, self.packet]
    }
}

const fn iface(i: Option<Iface>) -> u16 {
    match i {
        None => 0,
        Some(Iface::Host0) => 1,
        Some(Iface::Lo) => 2,
        Some(Iface::Link(l)) => 3 + l.0 as u16,
    }
}
