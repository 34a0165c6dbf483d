//! What a set is made as.

use super::{MAX_ELEMENTS, MAX_NAME};
use crate::iptables::Family;
use serde::{Deserialize, Serialize};

/// What a set's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// `hash:ip`: addresses.
    Ip,
    /// `hash:net`: nets.
    Net,
    /// `hash:ip,port`: an address, a protocol and a port each.
    IpPort,
    /// `hash:net,port`: a net, a protocol and a port each.
    NetPort,
    /// `bitmap:port`: ports.
    Port,
    /// `list:set`: other sets.
    List,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 6] = [Kind::Ip, Kind::Net, Kind::IpPort, Kind::NetPort, Kind::Port, Kind::List];

    /// The name of the type.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Ip => "hash:ip",
            Kind::Net => "hash:net",
            Kind::IpPort => "hash:ip,port",
            Kind::NetPort => "hash:net,port",
            Kind::Port => "bitmap:port",
            Kind::List => "list:set",
        }
    }

    /// Of how many parts an element is: so many `src` or `dst` a rule must give at least.
    pub const fn dimension(self) -> u8 {
        match self {
            Kind::Ip | Kind::Net | Kind::Port | Kind::List => 1,
            Kind::IpPort | Kind::NetPort => 2,
        }
    }

    /// Whether elements are nets, which may also be exceptions (`nomatch`).
    pub const fn is_net(self) -> bool {
        matches!(self, Kind::Net | Kind::NetPort)
    }

    /// Whether it is a hash, of one family.
    pub const fn is_hash(self) -> bool {
        !matches!(self, Kind::Port | Kind::List)
    }
}

/// How a set was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its name, at most [`MAX_NAME`] bytes.
    pub name: String,
    /// What its elements are.
    pub kind: Kind,
    /// Of hashes: their addresses are IPv6.
    pub v6: bool,
    /// `hashsize`: kept and printed. What there is grows as it must.
    pub hashsize: u32,
    /// `maxelem`, of hashes; `size` of lists.
    pub maxelem: u32,
    /// `netmask` of `hash:ip`: how many bits of an address count.
    pub netmask: u8,
    /// `range` of `bitmap:port`: first and last.
    pub range: (u16, u16),
    /// `timeout`: elements have one, this unless something else is said, in seconds; 0 for none.
    pub timeout: Option<u32>,
    /// `counters`.
    pub counters: bool,
    /// `comment`: elements may have one.
    pub comment: bool,
    /// `forceadd`: a full set loses an element for a new one.
    pub forceadd: bool,
    /// `bucketsize`: kept and printed.
    pub bucketsize: u8,
    /// `initval`: kept and printed.
    pub initval: Option<u32>,
}

impl Head {
    /// Longest time-out in seconds.
    pub const MAX_TIMEOUT: u32 = 2_147_483;
    pub(super) const HASHSIZE: u32 = 1024;
    pub(super) const BUCKETSIZE: u8 = 12;
    /// Members of a list unless it says.
    pub(super) const LIST_SIZE: u32 = 8;
    const MAX_LIST: u32 = 65_536;

    /// A set with nothing special about it.
    pub fn new(name: &str, kind: Kind, v6: bool) -> Head {
        Head {
            name: name.to_owned(),
            kind,
            v6,
            hashsize: Head::HASHSIZE,
            maxelem: if kind == Kind::List { Head::LIST_SIZE } else { 65_536 },
            netmask: if v6 { 128 } else { 32 },
            range: (0, u16::MAX),
            timeout: None,
            counters: false,
            comment: false,
            forceadd: false,
            bucketsize: Head::BUCKETSIZE,
            initval: None,
        }
    }

    /// Whether it is a list of other sets.
    pub fn is_list(&self) -> bool {
        self.kind == Kind::List
    }

    /// Bits of an address.
    pub(super) const fn bits(&self) -> u8 {
        if self.v6 { 128 } else { 32 }
    }

    /// Whether packets of a family can be in it.
    pub fn takes(&self, family: Family) -> bool {
        !self.kind.is_hash() || self.v6 == (family == Family::V6)
    }

    /// Whether this can have been made.
    pub(super) fn is_valid(&self) -> bool {
        let name = !self.name.is_empty() && self.name.len() <= MAX_NAME && !self.name.contains(char::is_whitespace);
        let most = if self.is_list() { Head::MAX_LIST } else { MAX_ELEMENTS };
        let mask = (1..=self.bits()).contains(&self.netmask) && (self.kind == Kind::Ip || self.netmask == self.bits());
        name && self.maxelem <= most
            && mask
            && self.range.0 <= self.range.1
            && self.timeout.is_none_or(|t| t <= Head::MAX_TIMEOUT)
            && (self.kind.is_hash() || !self.v6)
    }
}
