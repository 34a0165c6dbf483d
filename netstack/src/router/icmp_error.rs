//! ICMP errors to the guest: RFC 792, RFC 1812 section 4.3.2, RFC 4443 section 2.4.

use super::{Attach, Outgoing, Router};
use crate::conntrack::Track;
use crate::edge::{Edge, Payload, PayloadStore};
use crate::iptables::Iface;
use crate::nat::{self, L4Checksum};
use crate::packet::{L4, Packet};
use crate::skb::Skb;
use crate::tuple::{Endpoint, Tuple, proto};
use crate::verdict::DropReason;
use crate::wire::icmp::{self, IcmpError};
use crate::wire::{IcmpQuote, icmp::v6};
use core::net::IpAddr;

/// Longest quote: RFC 1812 wants IPv4 errors within 576 bytes, RFC 4443 IPv6 ones within 1280.
const QUOTE_V4: usize = 576 - 20 - 8;
const QUOTE_V6: usize = 1280 - 40 - 8;

/// RFC 1812 section 4.3.2.5: errors have the precedence of internetwork control, and the type of service of what they are about.
const INTERNETWORK_CONTROL: u8 = 0xc0;
const TOS_MASK: u8 = 0x1e;

impl Router {
    /// Tells the sender of `cause`, which was for us, that nobody takes it.
    pub(crate) fn icmp_error<E: Edge>(&mut self, edge: &mut E, cause: &Packet<'_>, error: IcmpError) {
        // If its connection is gone it is quoted as it came, since nothing would translate it back.
        let track = match cause.conn {
            None => Some(Track::None),
            Some((id, info)) => self.netfilter.conntrack.get(id).map(|conn| Track::Known { id, info, status: conn.status }),
        };
        let skb = track.map(|track| Skb { track, ..cause.skb() });
        // As Linux: a packet that a protocol took has left its connection, and the error is tracked as any other packet.
        let attach = match (&skb, error) {
            (Some(skb), IcmpError::ProtocolUnreachable) if cause.conn.is_some() => Attach::About(&skb.track),
            _ => Attach::LookUp,
        };
        self.icmp_quote(edge, cause, error.quote(cause.ip.src.is_ipv6()), skb.as_ref(), attach);
    }

    /// Tells the sender of `cause` why it went no further, unless the rules for ICMP errors forbid it. `skb` is what the hooks
    /// made of the packet so far.
    pub(crate) fn icmp_error_about<E: Edge>(&mut self, edge: &mut E, cause: &Packet<'_>, error: IcmpError, skb: &Skb<'_>) {
        self.icmp_quote_about(edge, cause, error.quote(cause.ip.src.is_ipv6()), skb);
    }

    /// As [`Router::icmp_error_about`], with a message of the caller's choice.
    pub(super) fn icmp_quote_about<E: Edge>(&mut self, edge: &mut E, cause: &Packet<'_>, what: IcmpQuote, skb: &Skb<'_>) {
        self.icmp_quote(edge, cause, what, Some(skb), Attach::About(&skb.track));
    }

    fn icmp_quote<E: Edge>(
        &mut self,
        edge: &mut E,
        cause: &Packet<'_>,
        what: IcmpQuote,
        skb: Option<&Skb<'_>>,
        attach: Attach<'_>,
    ) {
        if !may_answer(cause) {
            return;
        }
        let (sender, target) = skb.map_or(cause.received, |s| (s.src, s.dst));
        // Where the packet was for one of our own addresses, that one answers (a closed port).
        let from = if self.is_ours(target) { Some(target) } else { self.addrs().gateway_on(cause.link, sender.is_ipv6()) };
        let Some(from) = from else { return };
        let mut quoted = [0; QUOTE_V6];
        let n = quote(cause, edge, &mut quoted);
        if let Some(skb) = skb {
            // The packet as it is by now; the hooks translate the quote back with the error.
            if nat::rewrite(skb, &mut quoted[..n], usize::from(cause.ip.header_len), L4Checksum::Complete).is_err() {
                return;
            }
        }
        let asked = skb.map_or(cause.ip.tos, |s| s.tos);
        let tos = if sender.is_ipv4() { asked & TOS_MASK | INTERNETWORK_CONTROL } else { 0 };
        self.send_error(edge, None, from, sender, what, &quoted[..n], attach, tos);
    }

    /// Sends an error of `from` to the guest about a packet that starts with `quoted`, IP header first.
    pub(crate) fn send_icmp_error<E: Edge>(
        &mut self,
        edge: &mut E,
        input: Option<Iface>,
        from: IpAddr,
        to: IpAddr,
        what: IcmpQuote,
        quoted: &[u8],
    ) {
        self.send_error(edge, input, from, to, what, quoted, Attach::LookUp, 0);
    }

    #[allow(clippy::too_many_arguments)]
    fn send_error<E: Edge>(
        &mut self,
        edge: &mut E,
        input: Option<Iface>,
        from: IpAddr,
        to: IpAddr,
        what: IcmpQuote,
        quoted: &[u8],
        attach: Attach<'_>,
        tos: u8,
    ) {
        if self.icmp_limit.take(self.now) {
            self.emit_error(edge, input, from, to, what, quoted, attach, tos);
        } else {
            self.drop(DropReason::IcmpRateLimited);
        }
    }

    /// As [`Router::send_icmp_error`], without the limit: for errors that are not about what somebody sends.
    pub(crate) fn send_unlimited_error<E: Edge>(
        &mut self,
        edge: &mut E,
        from: IpAddr,
        to: IpAddr,
        what: IcmpQuote,
        quoted: &[u8],
    ) {
        self.emit_error(edge, None, from, to, what, quoted, Attach::LookUp, 0);
    }

    #[allow(clippy::too_many_arguments)]
    fn emit_error<E: Edge>(
        &mut self,
        edge: &mut E,
        input: Option<Iface>,
        from: IpAddr,
        to: IpAddr,
        what: IcmpQuote,
        quoted: &[u8],
        attach: Attach<'_>,
        tos: u8,
    ) {
        let (protocol, max) = if to.is_ipv4() { (proto::ICMP, QUOTE_V4) } else { (proto::ICMPV6, QUOTE_V6) };
        let n = quoted.len().min(max);
        let mut message = [0; icmp::HEADER_LEN + QUOTE_V6];
        icmp::Header { ty: what.ty, code: what.code, checksum: 0, rest: what.rest }.emit(&mut message);
        message[icmp::HEADER_LEN..icmp::HEADER_LEN + n].copy_from_slice(&quoted[..n]);
        let out = Outgoing {
            input,
            tuple: Tuple { src: Endpoint::new(from, 0), dst: Endpoint::new(to, 0), proto: protocol },
            hop_limit: 64,
            tos,
            dont_fragment: false,
            l4: &message[..icmp::HEADER_LEN + n],
            body: Payload::EMPTY,
            keep_body: false,
            gso: None,
            attach,
        };
        if self.send(edge, &out).is_ok() {
            self.stats.icmp_errors += 1;
        }
    }
}

/// Copies the start of a packet, as an ICMP error quotes it. Returns its length.
fn quote(p: &Packet<'_>, store: &impl PayloadStore, out: &mut [u8]) -> usize {
    let max = if p.ip.src.is_ipv4() { QUOTE_V4 } else { QUOTE_V6 };
    let header = usize::from(p.ip.header_len).min(p.head.len());
    out[..header].copy_from_slice(&p.head[..header]);
    header + store.read(p.datagram, &mut out[header..max])
}

/// RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 (e): no error about an error, nor about what was sent to many or by nobody.
fn may_answer(p: &Packet<'_>) -> bool {
    let about_error = match p.l4 {
        // Queries and their replies are none; what is unknown may be one.
        L4::Icmp(h) => !h.is_query(false),
        L4::Icmpv6(h) => h.ty < v6::ECHO_REQUEST,
        _ => false,
    };
    let many = match p.received.1 {
        IpAddr::V4(a) => a.is_multicast() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_multicast(),
    };
    !about_error && !many && !p.received.0.is_unspecified() && p.ip.fragment.is_none_or(|f| f.offset == 0)
}
