//! Control messages: what comes along with a datagram.

use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Length of a control message's header, which is also the alignment that follows from it on 64-bit machines.
const HEADER: usize = size_of::<libc::cmsghdr>();
/// Control messages start at multiples of this.
const ALIGN: usize = size_of::<usize>();
/// Room of a [`Control`] in bytes: packet info of IPv6, TTL, TOS, GRO size and a queued error together.
const ROOM: usize = 256;

/// A buffer of control messages.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Control {
    buf: [u8; ROOM],
    len: usize,
}

impl Default for Control {
    fn default() -> Self {
        Control { buf: [0; ROOM], len: 0 }
    }
}

impl Control {
    /// Appends a message. Ignored if there is no room, which the messages made here never need.
    fn push(&mut self, level: libc::c_int, ty: libc::c_int, value: &[u8]) {
        let start = self.len;
        let end = start + (HEADER + value.len()).next_multiple_of(ALIGN);
        if end > ROOM {
            debug_assert!(false, "control messages do not fit");
            return;
        }
        // SAFETY: `cmsghdr` is plain data for which all zeroes are valid.
        let mut h: libc::cmsghdr = unsafe { mem::zeroed() };
        h.cmsg_len = (HEADER + value.len()) as _;
        h.cmsg_level = level;
        h.cmsg_type = ty;
        // SAFETY: `start + HEADER <= end <= ROOM`, so the header lies in the buffer; it may be unaligned.
        unsafe { self.buf.as_mut_ptr().add(start).cast::<libc::cmsghdr>().write_unaligned(h) };
        self.buf[start + HEADER..start + HEADER + value.len()].copy_from_slice(value);
        self.len = end;
    }

    /// Asks the kernel to cut the data into datagrams of `size` bytes (UDP GSO).
    pub fn push_segment(&mut self, size: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
    }

    /// Asks the kernel to send from this local address.
    pub fn push_source(&mut self, from: IpAddr) {
        match from {
            IpAddr::V4(a) => {
                // struct in_pktinfo: interface index, local address (the one that counts for sending), header destination.
                let mut v = [0; 12];
                v[4..8].copy_from_slice(&a.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &v);
            }
            IpAddr::V6(a) => {
                // struct in6_pktinfo: address, interface index.
                let mut v = [0; 20];
                v[..16].copy_from_slice(&a.octets());
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &v);
            }
        }
    }

    /// Has the packet sent with this TTL (hop limit) and type of service (traffic class).
    pub fn push_header(&mut self, v6: bool, hop_limit: u8, tos: u8) {
        let (level, ttl_type, tos_type) = if v6 {
            (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, libc::IPV6_TCLASS)
        } else {
            (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_TOS)
        };
        self.push(level, ttl_type, &i32::from(hop_limit).to_ne_bytes());
        self.push(level, tos_type, &i32::from(tos).to_ne_bytes());
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// For a call that reads the messages: pointer and length.
    pub(crate) fn parts(&self) -> (*const libc::c_void, usize) {
        (self.buf.as_ptr().cast(), self.len)
    }

    /// For a call that writes messages: pointer and room.
    pub(crate) fn room_mut(&mut self) -> (*mut libc::c_void, usize) {
        (self.buf.as_mut_ptr().cast(), ROOM)
    }

    /// Takes over the length that a call has reported.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = len.min(ROOM);
    }

    /// The messages: level, type, value.
    pub fn iter(&self) -> impl Iterator<Item = (libc::c_int, libc::c_int, &[u8])> {
        let mut rest = &self.buf[..self.len];
        std::iter::from_fn(move || {
            if rest.len() < HEADER {
                return None;
            }
            // SAFETY: at least HEADER initialised bytes are there, and every bit pattern is a valid `cmsghdr`.
            let h = unsafe { rest.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
            let len: usize = h.cmsg_len as _;
            if len < HEADER || len > rest.len() {
                return None;
            }
            let value = &rest[HEADER..len];
            rest = &rest[len.next_multiple_of(ALIGN).min(rest.len())..];
            Some((h.cmsg_level, h.cmsg_type, value))
        })
    }

    /// What the messages say of a received datagram.
    pub fn meta(&self) -> Meta {
        let mut m = Meta::default();
        for (level, ty, v) in self.iter() {
            match (level, ty) {
                (libc::SOL_UDP, libc::UDP_GRO) => m.segment = int(v).and_then(|n| u16::try_from(n).ok()),
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    m.hop_limit = int(v).and_then(|n| u8::try_from(n).ok());
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) if v.len() >= 12 => {
                    m.to = Some(IpAddr::V4(Ipv4Addr::new(v[8], v[9], v[10], v[11])));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let octets = v.get(..16).and_then(|b| <[u8; 16]>::try_from(b).ok());
                    m.to = octets.map(|o| IpAddr::V6(Ipv6Addr::from(o)).to_canonical());
                }
                _ => {}
            }
        }
        m
    }
}

/// What the kernel says of a received datagram, where it was asked to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Equal datagrams were merged; this is the length of each but the last.
    pub segment: Option<u16>,
    /// The address in the header's destination field.
    pub to: Option<IpAddr>,
    /// TTL or hop limit.
    pub hop_limit: Option<u8>,
}

fn int(v: &[u8]) -> Option<i32> {
    v.get(..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_back() {
        let mut c = Control::default();
        assert!(c.is_empty());
        c.push_segment(1400);
        c.push_source("192.0.2.1".parse().unwrap());
        c.push_source("2001:db8::1".parse().unwrap());
        let all: Vec<_> = c.iter().map(|(l, t, v)| (l, t, v.len())).collect();
        assert_eq!(
            all,
            [
                (libc::SOL_UDP, libc::UDP_SEGMENT, 2),
                (libc::IPPROTO_IP, libc::IP_PKTINFO, 12),
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, 20)
            ]
        );
    }

    #[test]
    fn a_cut_or_impossible_message_ends_the_list() {
        let mut c = Control::default();
        c.push(libc::IPPROTO_IP, libc::IP_TTL, &64i32.to_ne_bytes());
        assert_eq!(c.meta().hop_limit, Some(64));
        c.set_len(HEADER + 3);
        assert_eq!(c.meta(), Meta::default());
        c.set_len(HEADER + 8);
        c.buf[0] = 1;
        assert_eq!(c.iter().count(), 0);
    }
}
