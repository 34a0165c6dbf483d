//! What the guest is told when the host does not take a datagram, or reports an error about one.

use crate::edge::{Edge, SockError};
use crate::packet::Packet;
use crate::router::Router;
use crate::tuple::Tuple;
use crate::verdict::DropReason;
use crate::wire::icmp::{IcmpError, v4, v6};
use crate::wire::{IcmpQuote, ipv4, ipv6};
use core::net::IpAddr;

/// The ICMP error that says to the guest what a host socket said to us; `None` if it is of no concern to it.
pub(crate) fn icmp_for(e: SockError, v6: bool) -> Option<IcmpError> {
    Some(match e {
        SockError::Refused | SockError::Reset => IcmpError::PortUnreachable,
        SockError::NetUnreachable | SockError::NotAvailable => IcmpError::NetUnreachable,
        SockError::HostUnreachable | SockError::TimedOut | SockError::Other(_) => IcmpError::HostUnreachable,
        SockError::Prohibited => IcmpError::Prohibited,
        // Of an unknown path the least that every path carries: RFC 8200 section 5, RFC 791 section 3.1. (A zero, which
        // RFC 1191 has for "unknown", makes Linux give up on path MTU discovery.)
        SockError::TooBig(mtu) => IcmpError::TooBig(mtu.unwrap_or(if v6 { 1280 } else { 576 })),
        SockError::NoResources => return None,
    })
}

/// Tells the guest why its datagram went no further. Returns the reason to count.
pub(crate) fn refuse<E: Edge>(r: &mut Router, p: &Packet<'_>, e: SockError, edge: &mut E) -> DropReason {
    match icmp_for(e, p.ip.src.is_ipv6()) {
        Some(icmp) => {
            r.icmp_error(edge, p, icmp);
            DropReason::HostRefused
        }
        None => DropReason::HostResources,
    }
}

/// Whether an error that a host socket reports means something to a guest.
pub(crate) fn passes(icmp: IcmpQuote, is_v6: bool) -> bool {
    match is_v6 {
        false => matches!(icmp.ty, v4::UNREACHABLE | v4::TIME_EXCEEDED | v4::PARAMETER),
        true => matches!(icmp.ty, v6::UNREACHABLE | v6::TOO_BIG | v6::TIME_EXCEEDED | v6::PARAMETER),
    }
}

/// Under which address the guest sees the sender of an error: the far end of the flow, which is `remote` on the host and
/// `far` to the guest; the router on the way; or, for the host itself, the gateway. `None` if the family is switched off.
pub(crate) fn offender_for(r: &Router, offender: Option<IpAddr>, remote: IpAddr, far: IpAddr) -> Option<IpAddr> {
    match offender {
        Some(a) if a == remote => Some(far),
        Some(a) if a.is_ipv4() == far.is_ipv4() && !r.hides(a) => Some(a),
        _ => r.gateway_of(far),
    }
}

/// Writes the IP header that a packet of the guest had, of `l4_len` bytes behind it, as an ICMP error quotes it. Returns
/// its length.
pub(crate) fn quoted_ip(b: &mut [u8], tuple: &Tuple, icmp: IcmpQuote, hop_limit: u8, tos: u8, l4_len: usize) -> usize {
    match (tuple.src.addr, tuple.dst.addr) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ipv4::Header {
                header_len: ipv4::HEADER_LEN as u8,
                tos,
                total_len: (ipv4::HEADER_LEN + l4_len).min(65_535) as u16,
                ident: 0,
                dont_fragment: icmp == IcmpQuote { ty: v4::UNREACHABLE, code: v4::unreachable::FRAGMENTATION, ..icmp },
                more_fragments: false,
                fragment_offset: 0,
                ttl: if icmp.ty == v4::TIME_EXCEEDED { 1 } else { hop_limit },
                protocol: tuple.proto,
                src,
                dst,
            }
            .emit(b);
            ipv4::HEADER_LEN
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            ipv6::Header {
                header_len: ipv6::HEADER_LEN as u16,
                traffic_class: tos,
                flow_label: 0,
                payload_len: l4_len.min(65_535) as u16,
                hop_limit: if icmp.ty == v6::TIME_EXCEEDED { 1 } else { hop_limit },
                protocol: tuple.proto,
                src,
                dst,
                fragment: None,
            }
            .emit(b);
            ipv6::HEADER_LEN
        }
        _ => 0,
    }
}
