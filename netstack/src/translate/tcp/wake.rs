//! Waking the guest's kernel after a sleep of the network.
//!
//! A guest that went on while we slept has sent again and again, at ever longer intervals. An ICMP error of "unreachable" that quotes the first
//! byte it lacks an acknowledgement for undoes one doubling (RFC 6069; Linux's `tcp_ld_RTO_revert`), and what is overdue under the shorter
//! interval is sent at once.

use super::flow::{Events, Flow};
use crate::edge::Edge;
use crate::router::Router;
use crate::tuple::proto;
use crate::wire::icmp::IcmpError;
use crate::wire::tcp::{self, Flags, Seq};
use crate::wire::{ipv4, ipv6};
use core::net::IpAddr;
use core::time::Duration;

/// Least time-out of a guest's kernel: Linux's TCP_RTO_MIN.
const RTO_MIN: Duration = Duration::from_millis(200);
/// From this to the longest time-out (TCP_RTO_MAX, two minutes) there are so many doublings, and one for good measure.
const MAX_DOUBLINGS: u32 = 11;

/// Headers of a segment of the guest's, as an ICMP error quotes them.
pub(super) struct Quoted {
    bytes: [u8; ipv6::HEADER_LEN + tcp::HEADER_LEN],
    len: usize,
}

impl Quoted {
    /// Of the guest's segment that begins at `seq`; `None` if the flow's addresses are of two families.
    pub(super) fn new(flow: &Flow, seq: Seq, flags: Flags) -> Option<Self> {
        let mut bytes = [0; ipv6::HEADER_LEN + tcp::HEADER_LEN];
        let l4_at = match (flow.tuple.src.addr, flow.tuple.dst.addr) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let total_len = (ipv4::HEADER_LEN + tcp::HEADER_LEN) as u16;
                ipv4::Header {
                    header_len: ipv4::HEADER_LEN as u8,
                    tos: 0,
                    total_len,
                    ident: 0,
                    dont_fragment: true,
                    more_fragments: false,
                    fragment_offset: 0,
                    ttl: 64,
                    protocol: proto::TCP,
                    src,
                    dst,
                }
                .emit(&mut bytes);
                ipv4::HEADER_LEN
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                ipv6::Header {
                    header_len: ipv6::HEADER_LEN as u16,
                    traffic_class: 0,
                    flow_label: 0,
                    payload_len: tcp::HEADER_LEN as u16,
                    hop_limit: 64,
                    protocol: proto::TCP,
                    src,
                    dst,
                    fragment: None,
                }
                .emit(&mut bytes);
                ipv6::HEADER_LEN
            }
            _ => return None,
        };
        tcp::Header {
            src_port: flow.tuple.src.port,
            dst_port: flow.tuple.dst.port,
            seq,
            ack: Seq(0),
            header_len: tcp::HEADER_LEN as u8,
            flags,
            window: 0,
            checksum: 0,
            urgent: 0,
        }
        .emit(&mut bytes[l4_at..]);
        Some(Quoted { bytes, len: l4_at + tcp::HEADER_LEN })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Flow {
    /// Has the guest's kernel send at once what it may have sent in vain while we slept for so long. A kernel that has nothing to send
    /// again ignores it.
    pub(super) fn undo_back_off<E: Edge>(&self, r: &mut Router, edge: &mut E, asleep: Duration) {
        if !self.events.has(Events::ESTABLISHED) || asleep < RTO_MIN {
            return;
        }
        let doublings = (asleep.as_millis() / RTO_MIN.as_millis()).max(1).ilog2() + 1;
        let to = self.tuple.src.addr;
        let Some(from) = r.addrs().gateway_on(self.via.link, to.is_ipv6()) else { return };
        let Some(quoted) = Quoted::new(self, self.rcv_acked, Flags::ACK) else { return };
        for _ in 0..doublings.min(MAX_DOUBLINGS) {
            r.send_unlimited_error(edge, from, to, IcmpError::NetUnreachable.quote(to.is_ipv6()), quoted.bytes());
        }
    }
}
