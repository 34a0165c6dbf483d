//! A candidate for what a connection's packets look like behind translation.

use super::Manip;
use crate::conntrack::{Addr, Conn, CtTuple, Dir};
use crate::tuple::proto;

/// The original direction's packets as translated, held as the tuple of their replies: that is what must be unique, and
/// it needs no inversion of ICMP types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping(CtTuple);

impl Mapping {
    /// What the connection has so far.
    pub(super) const fn of(conn: &Conn) -> Self {
        Mapping(conn.tuples[Dir::Reply as usize])
    }

    /// What replies look like.
    pub(super) const fn reply(&self) -> &CtTuple {
        &self.0
    }

    /// Address of the end that `manip` translates.
    pub(super) const fn addr(&self, manip: Manip) -> Addr {
        match manip {
            Manip::Source => self.0.dst,
            Manip::Destination => self.0.src,
        }
    }

    pub(super) const fn set_addr(&mut self, manip: Manip, addr: Addr) {
        match manip {
            Manip::Source => self.0.dst = addr,
            Manip::Destination => self.0.src = addr,
        }
    }

    /// Port of the end that `manip` translates, or the identifier, which both ends share; `None` for protocols without.
    pub(super) const fn key(&self, manip: Manip) -> Option<u16> {
        match (self.0.proto, manip) {
            (proto::TCP | proto::UDP, Manip::Source) => Some(self.0.dport),
            (proto::TCP | proto::UDP, Manip::Destination) => Some(self.0.sport),
            (proto::ICMP | proto::ICMPV6, _) => Some(self.0.sport),
            _ => None,
        }
    }

    /// Nothing for protocols without ports and identifiers.
    pub(super) const fn set_key(&mut self, manip: Manip, key: u16) {
        match (self.0.proto, manip) {
            (proto::TCP | proto::UDP, Manip::Source) => self.0.dport = key,
            (proto::TCP | proto::UDP, Manip::Destination) => self.0.sport = key,
            (proto::ICMP | proto::ICMPV6, _) => self.0.sport = key,
            _ => {}
        }
    }

    /// Whether the key is an identifier, not a port.
    pub(super) const fn has_ident(&self) -> bool {
        matches!(self.0.proto, proto::ICMP | proto::ICMPV6)
    }

    pub(super) const fn is_v6(&self) -> bool {
        self.0.v6
    }
}
