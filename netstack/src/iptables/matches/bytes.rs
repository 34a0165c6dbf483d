//! A packet as one run of bytes, as it is by now: what `string`, `u32` and `sctp` read.

use crate::edge::HEAD_MAX;
use crate::iptables::Bulk;
use crate::nat::{self, L4Checksum};
use crate::skb::{NewMss, Skb};
use crate::wire::{ipv4, ipv6};
use core::net::IpAddr;

/// Bytes that are read of the payload at a time.
const WINDOW: usize = 512;

/// A packet's bytes. The headers are written as translated so far; the rest is read from the payload through a window, so a reader that moves on
/// steadily causes few reads.
pub(super) struct Bytes<'a> {
    head: [u8; HEAD_MAX],
    head_len: usize,
    /// Where the bytes behind the IP header begin, and where those of them end that are at hand.
    l4: (usize, usize),
    skb: &'a Skb<'a>,
    bulk: &'a dyn Bulk,
    window: [u8; WINDOW],
    /// Where in the packet the window begins, and how much of it is there.
    at: usize,
    filled: usize,
}

impl<'a> Bytes<'a> {
    pub(super) fn new(skb: &'a Skb<'a>, bulk: &'a dyn Bulk) -> Self {
        let mut head = [0; HEAD_MAX];
        let (ip_len, head_len) = write_head(skb, &mut head);
        let l4 = (ip_len, (ip_len + skb.l4_bytes.len()).max(head_len));
        Bytes { head, head_len, l4, skb, bulk, window: [0; WINDOW], at: 0, filled: 0 }
    }

    /// Length of the packet.
    pub(super) fn len(&self) -> usize {
        self.skb.len as usize
    }

    /// A byte; `None` behind the end.
    #[inline]
    pub(super) fn get(&mut self, at: usize) -> Option<u8> {
        if let Some(b) = self.head[..self.head_len].get(at) {
            return Some(*b);
        }
        if at >= self.at && at < self.at + self.filled {
            return Some(self.window[at - self.at]);
        }
        if at >= self.len() {
            return None;
        }
        if at < self.l4.1 {
            return self.skb.l4_bytes.get(at - self.l4.0).copied();
        }
        self.at = at;
        let body = self.skb.body.slice(at - self.l4.1, WINDOW);
        self.filled = self.bulk.read(body, &mut self.window).min(WINDOW);
        self.window[..self.filled].first().copied()
    }

    /// Four bytes, as a number.
    pub(super) fn be32(&mut self, at: usize) -> Option<u32> {
        let mut word = [0; 4];
        for (i, b) in word.iter_mut().enumerate() {
            *b = self.get(at.checked_add(i)?)?;
        }
        Some(u32::from_be_bytes(word))
    }
}

/// Writes the headers at hand, as they are by now. What has no IP header yet gets one, without identification. Returns the length of the IP header
/// and of all.
fn write_head(skb: &Skb<'_>, out: &mut [u8; HEAD_MAX]) -> (usize, usize) {
    let ip_len = match skb.ip_bytes.len() {
        0 => emit_ip(skb, out),
        n => {
            let n = n.min(out.len());
            out[..n].copy_from_slice(&skb.ip_bytes[..n]);
            n
        }
    };
    let l4 = &skb.l4_bytes[..skb.l4_bytes.len().min(out.len() - ip_len)];
    out[ip_len..ip_len + l4.len()].copy_from_slice(l4);
    let mut end = ip_len + l4.len();
    if let Some(NewMss { added: true, .. }) = skb.altered.mss
        && end + nat::MSS_LEN <= out.len()
        && nat::insert_mss(&mut out[..end + nat::MSS_LEN], ip_len, L4Checksum::Complete).is_ok()
    {
        end += nat::MSS_LEN;
    }
    // A packet that is cut off stays as it is.
    let _ = nat::rewrite(skb, &mut out[..end], ip_len, L4Checksum::Complete);
    (ip_len, end)
}

fn emit_ip(skb: &Skb<'_>, out: &mut [u8; HEAD_MAX]) -> usize {
    match (skb.src, skb.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ipv4::Header {
                header_len: ipv4::HEADER_LEN as u8,
                tos: skb.tos,
                total_len: skb.len.min(65_535) as u16,
                ident: 0,
                dont_fragment: true,
                more_fragments: false,
                fragment_offset: 0,
                ttl: skb.hop_limit,
                protocol: skb.protocol,
                src,
                dst,
            }
            .emit(out);
            ipv4::HEADER_LEN
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            ipv6::Header {
                header_len: ipv6::HEADER_LEN as u16,
                traffic_class: skb.tos,
                flow_label: 0,
                payload_len: skb.l4_len.min(65_535) as u16,
                hop_limit: skb.hop_limit,
                protocol: skb.protocol,
                src,
                dst,
                fragment: None,
            }
            .emit(out);
            ipv6::HEADER_LEN
        }
        _ => 0,
    }
}
