//! TCP segments without data or options.

use super::{Attach, Outgoing, Router};
use crate::edge::{Edge, Payload};
use crate::iptables::Iface;
use crate::tuple::Tuple;
use crate::wire::tcp::{self, Flags, Seq};

/// Bits of the type of service that are not to be reflected: RFC 3168.
const ECN: u8 = 3;

/// A segment without data or options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bare {
    pub(crate) tuple: Tuple,
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    pub(crate) flags: Flags,
    pub(crate) tos: u8,
}

impl Bare {
    /// The reset that answers a segment with `len` bytes of data that nobody takes, unless it is one itself: RFC 9293 section 3.10.7.1.
    pub(crate) fn reset_for(tuple: Tuple, h: &tcp::Header, len: u32, tos: u8) -> Option<Self> {
        if h.flags.has(Flags::RST) {
            return None;
        }
        let (seq, ack, flags) = if h.flags.has(Flags::ACK) {
            (h.ack, Seq(0), Flags::RST)
        } else {
            let len = len + u32::from(h.flags.has(Flags::SYN)) + u32::from(h.flags.has(Flags::FIN));
            (Seq(0), h.seq + len, Flags::RST | Flags::ACK)
        };
        Some(Bare { tuple: tuple.reversed(), seq, ack, flags, tos: tos & !ECN })
    }

    /// Sends it. A drop is counted; nothing more can be done for a segment that the link does not take.
    pub(crate) fn send<E: Edge>(self, r: &mut Router, edge: &mut E, input: Option<Iface>, attach: Attach<'_>) {
        let Bare { tuple, seq, ack, flags, tos } = self;
        let mut l4 = [0; tcp::HEADER_LEN];
        tcp::Header {
            src_port: tuple.src.port,
            dst_port: tuple.dst.port,
            seq,
            ack,
            header_len: tcp::HEADER_LEN as u8,
            flags,
            window: 0,
            checksum: 0,
            urgent: 0,
        }
        .emit(&mut l4);
        let out = Outgoing {
            input,
            tuple,
            hop_limit: 64,
            tos,
            dont_fragment: true,
            l4: &l4,
            body: Payload::EMPTY,
            keep_body: false,
            gso: None,
            attach,
        };
        let _ = r.send(edge, &out);
    }
}
