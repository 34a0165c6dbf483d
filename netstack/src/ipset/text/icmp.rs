//! Names of ICMP types and codes, as ipset knows them.

use crate::tuple::proto;

/// Name, type, code. The first name of a type and code is the one that is printed.
type Name = (&'static str, u8, u8);

#[rustfmt::skip]
const V4: &[Name] = &[
    ("echo-reply", 0, 0), ("pong", 0, 0),
    ("network-unreachable", 3, 0), ("host-unreachable", 3, 1), ("protocol-unreachable", 3, 2), ("port-unreachable", 3, 3),
    ("fragmentation-needed", 3, 4), ("source-route-failed", 3, 5), ("network-unknown", 3, 6), ("host-unknown", 3, 7),
    ("network-prohibited", 3, 9), ("host-prohibited", 3, 10), ("TOS-network-unreachable", 3, 11),
    ("TOS-host-unreachable", 3, 12), ("communication-prohibited", 3, 13), ("host-precedence-violation", 3, 14),
    ("precedence-cutoff", 3, 15),
    ("source-quench", 4, 0),
    ("network-redirect", 5, 0), ("host-redirect", 5, 1), ("TOS-network-redirect", 5, 2), ("TOS-host-redirect", 5, 3),
    ("echo-request", 8, 0), ("ping", 8, 0), ("router-advertisement", 9, 0), ("router-solicitation", 10, 0),
    ("ttl-zero-during-transit", 11, 0), ("ttl-zero-during-reassembly", 11, 1),
    ("ip-header-bad", 12, 0), ("required-option-missing", 12, 1),
    ("timestamp-request", 13, 0), ("timestamp-reply", 14, 0), ("address-mask-request", 17, 0), ("address-mask-reply", 18, 0),
];

#[rustfmt::skip]
const V6: &[Name] = &[
    ("no-route", 1, 0), ("communication-prohibited", 1, 1), ("address-unreachable", 1, 3), ("port-unreachable", 1, 4),
    ("packet-too-big", 2, 0), ("ttl-zero-during-transit", 3, 0), ("ttl-zero-during-reassembly", 3, 1),
    ("bad-header", 4, 0), ("unknown-header-type", 4, 1), ("unknown-option", 4, 2),
    ("echo-request", 128, 0), ("ping", 128, 0), ("echo-reply", 129, 0), ("pong", 129, 0),
    ("router-solicitation", 133, 0), ("router-advertisement", 134, 0),
    ("neighbour-solicitation", 135, 0), ("neigbour-solicitation", 135, 0),
    ("neighbour-advertisement", 136, 0), ("neigbour-advertisement", 136, 0), ("redirect", 137, 0),
];

fn names(protocol: u8) -> &'static [Name] {
    if protocol == proto::ICMP { V4 } else { V6 }
}

/// Type and code of a name.
pub(super) fn number(protocol: u8, name: &str) -> Option<u16> {
    names(protocol).iter().find(|n| n.0 == name).map(|n| u16::from(n.1) << 8 | u16::from(n.2))
}

/// Name of a type and code.
pub(super) fn name(protocol: u8, number: u16) -> Option<&'static str> {
    names(protocol).iter().find(|n| u16::from(n.1) << 8 | u16::from(n.2) == number).map(|n| n.0)
}
