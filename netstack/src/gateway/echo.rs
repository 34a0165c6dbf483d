//! ICMP and ICMPv6 echo to our own addresses: RFC 792, RFC 4443 section 4.

use crate::edge::Edge;
use crate::packet::Packet;
use crate::router::{Attach, Outgoing, Router};
use crate::tuple::{Endpoint, Tuple};
use crate::verdict::DropReason;
use crate::wire::{icmp, ndp};
use core::net::IpAddr;

/// An ICMP message other than neighbour discovery for one of our addresses or groups.
pub(super) fn input<E: Edge>(r: &mut Router, p: &Packet<'_>, h: &icmp::Header, edge: &mut E) -> Result<(), DropReason> {
    let (request, reply) = match p.ip.src {
        IpAddr::V4(_) => (icmp::v4::ECHO_REQUEST, icmp::v4::ECHO_REPLY),
        IpAddr::V6(_) => (icmp::v6::ECHO_REQUEST, icmp::v6::ECHO_REPLY),
    };
    if h.ty != request || h.code != 0 || p.ip.src.is_unspecified() {
        return Err(DropReason::IcmpUnhandled);
    }
    let from = answering_address(r, p).ok_or(DropReason::IcmpUnhandled)?;
    let mut l4 = [0; icmp::HEADER_LEN];
    icmp::Header { ty: reply, code: 0, checksum: 0, rest: h.rest }.emit(&mut l4);
    let out = Outgoing {
        input: None,
        tuple: Tuple { src: Endpoint::new(from, 0), dst: Endpoint::new(p.ip.src, h.ident()), proto: p.ip.protocol },
        hop_limit: super::HOP_LIMIT,
        tos: p.ip.tos,
        dont_fragment: false,
        l4: &l4,
        body: p.payload,
        keep_body: true,
        gso: None,
        attach: Attach::LookUp,
    };
    // A drop is counted by the router.
    let _ = r.send(edge, &out);
    Ok(())
}

/// Where the reply comes from: the address that was asked; where a group of IPv6 was asked, ours of the asker's scope.
/// IPv4 broadcasts are not answered (as Linux: icmp_echo_ignore_broadcasts).
fn answering_address(r: &Router, p: &Packet<'_>) -> Option<IpAddr> {
    if r.is_ours(p.ip.dst) {
        return Some(p.ip.dst);
    }
    match (p.ip.dst, p.ip.src) {
        (IpAddr::V6(dst), IpAddr::V6(src)) if dst == ndp::ALL_NODES || dst == ndp::ALL_ROUTERS => {
            if src.is_unicast_link_local() {
                Some(r.link_local().into())
            } else {
                r.addrs().gateway_on(p.link, true)
            }
        }
        _ => None,
    }
}
