//! The virtio-net header that TAPs and packet sockets put before a frame (virtio 1.3 section 5.1.6; `linux/virtio_net.h`),
//! in its legacy form: 10 bytes, the machine's byte order.

use hibernet_netstack::edge::{Gso, GsoKind, RxChecksum, TxError, TxFrame};
use hibernet_netstack::wire::ethernet;

/// Length of the header.
pub const LEN: usize = 10;

/// The transport checksum is not computed; sum from `csum_start`, put the result `csum_offset` behind it.
const NEEDS_CSUM: u8 = 1;
/// The transport checksum was verified.
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// The super-segment's first segment alone carries CWR.
pub(super) const GSO_ECN: u8 = 0x80;

/// CWR in the flags byte of a TCP header.
const TCP_CWR: u8 = 0x80;

/// A header that contradicts itself or its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHeader;

/// What a header says of a frame of `frame_len` bytes.
pub fn decode(h: &[u8; LEN], frame_len: usize) -> Result<(RxChecksum, Option<Gso>), BadHeader> {
    let word = |at: usize| u16::from_ne_bytes([h[at], h[at + 1]]);
    let (flags, gso_type, gso_size) = (h[0], h[1], word(4));
    let (csum_start, csum_offset) = (usize::from(word(6)), usize::from(word(8)));
    if flags & NEEDS_CSUM != 0 && (csum_start < ethernet::HEADER_LEN || csum_start + csum_offset + 2 > frame_len) {
        return Err(BadHeader);
    }
    let kind = match gso_type & !GSO_ECN {
        GSO_NONE if gso_type == GSO_NONE => None,
        GSO_TCPV4 => Some(GsoKind::Tcp4),
        GSO_TCPV6 => Some(GsoKind::Tcp6),
        GSO_UDP_L4 if gso_type == GSO_UDP_L4 => Some(GsoKind::Udp),
        _ => return Err(BadHeader),
    };
    if kind.is_some() && gso_size == 0 {
        return Err(BadHeader);
    }
    let checksum = if flags & (NEEDS_CSUM | DATA_VALID) != 0 { RxChecksum::Trusted } else { RxChecksum::Unverified };
    Ok((checksum, kind.map(|kind| Gso { kind, size: gso_size })))
}

/// The header for a frame. A super-segment without a checksum to complete, or whose headers are not all in the head, cannot be
/// expressed and is [`TxError::TooBig`].
pub fn encode(frame: &TxFrame<'_>) -> Result<[u8; LEN], TxError> {
    let mut h = [0; LEN];
    let mut put = |at: usize, v: u16| h[at..at + 2].copy_from_slice(&v.to_ne_bytes());
    let mut gso_type = GSO_NONE;
    if let Some(c) = frame.checksum {
        put(6, c.start);
        put(8, c.offset);
    }
    if let Some(gso) = frame.gso {
        let start = usize::from(frame.checksum.ok_or(TxError::TooBig)?.start);
        let l4 = frame.head.get(start..).unwrap_or_default();
        let l4_len = match gso.kind {
            GsoKind::Udp => 8,
            GsoKind::Tcp4 | GsoKind::Tcp6 => usize::from(*l4.get(12).ok_or(TxError::TooBig)? >> 4) * 4,
        };
        if l4_len > l4.len() || gso.size == 0 {
            return Err(TxError::TooBig);
        }
        let ecn = match gso.kind {
            GsoKind::Udp => 0,
            GsoKind::Tcp4 | GsoKind::Tcp6 if l4.get(13).is_some_and(|flags| flags & TCP_CWR != 0) => GSO_ECN,
            GsoKind::Tcp4 | GsoKind::Tcp6 => 0,
        };
        gso_type = ecn
            | match gso.kind {
                GsoKind::Tcp4 => GSO_TCPV4,
                GsoKind::Tcp6 => GSO_TCPV6,
                GsoKind::Udp => GSO_UDP_L4,
            };
        put(2, (start + l4_len) as u16);
        put(4, gso.size);
    } else if !frame.body.is_empty() {
        // The kernel keeps this much in the buffer's linear part; more would need contiguous pages.
        put(2, frame.head.len().min(usize::from(u16::MAX)) as u16);
    }
    h[0] = if frame.checksum.is_some() { NEEDS_CSUM } else { 0 };
    h[1] = gso_type;
    Ok(h)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hibernet_netstack::edge::{Payload, TxChecksum};
    use proptest::prelude::*;

    fn header(flags: u8, gso_type: u8, gso_size: u16, start: u16, offset: u16) -> [u8; LEN] {
        let mut h = [0; LEN];
        (h[0], h[1]) = (flags, gso_type);
        h[4..6].copy_from_slice(&gso_size.to_ne_bytes());
        h[6..8].copy_from_slice(&start.to_ne_bytes());
        h[8..10].copy_from_slice(&offset.to_ne_bytes());
        h
    }

    #[test]
    fn plain_and_checksum_flags() {
        assert_eq!(decode(&header(0, 0, 0, 0, 0), 60), Ok((RxChecksum::Unverified, None)));
        assert_eq!(decode(&header(DATA_VALID, 0, 0, 0, 0), 60), Ok((RxChecksum::Trusted, None)));
        assert_eq!(decode(&header(NEEDS_CSUM, 0, 0, 34, 6), 42), Ok((RxChecksum::Trusted, None)));
    }

    #[test]
    fn contradictions_are_refused() {
        assert_eq!(decode(&header(NEEDS_CSUM, 0, 0, 34, 6), 41), Err(BadHeader), "sum behind the frame");
        assert_eq!(decode(&header(NEEDS_CSUM, 0, 0, 13, 6), 60), Err(BadHeader), "sum within the Ethernet header");
        assert_eq!(decode(&header(NEEDS_CSUM, 0, 0, u16::MAX, u16::MAX), 60_000), Err(BadHeader));
        assert_eq!(decode(&header(NEEDS_CSUM, GSO_TCPV4, 0, 34, 16), 60_000), Err(BadHeader), "segments of nothing");
        for kind in [2, 3, 6, 0x7f, GSO_ECN, GSO_ECN | GSO_UDP_L4, 0xff] {
            assert_eq!(decode(&header(NEEDS_CSUM, kind, 1448, 34, 16), 60_000), Err(BadHeader), "type {kind}");
        }
    }

    fn tcp_frame(head: &[u8], gso: Option<Gso>) -> TxFrame<'_> {
        let body = Payload { slot: 0, offset: 0, len: 10_000 };
        TxFrame { head, body, keep_body: false, checksum: Some(TxChecksum { start: 34, offset: 16 }), gso }
    }

    #[test]
    fn super_segments_carry_lengths_and_ecn() {
        let mut head = [0; 66];
        head[34 + 12] = 8 << 4;
        for (flags, kind, expected) in
            [(0x10, GsoKind::Tcp4, GSO_TCPV4), (0x90, GsoKind::Tcp4, GSO_TCPV4 | GSO_ECN), (0x18, GsoKind::Tcp6, GSO_TCPV6)]
        {
            head[34 + 13] = flags;
            let gso = Gso { kind, size: 1448 };
            let h = encode(&tcp_frame(&head, Some(gso))).unwrap();
            assert_eq!((h[0], h[1]), (NEEDS_CSUM, expected));
            assert_eq!(u16::from_ne_bytes([h[2], h[3]]), 66);
            assert_eq!(decode(&h, 10_066), Ok((RxChecksum::Trusted, Some(gso))));
        }
    }

    #[test]
    fn what_cannot_be_expressed_is_refused() {
        let mut head = [0; 60];
        head[34 + 12] = 8 << 4;
        let gso = Some(Gso { kind: GsoKind::Tcp4, size: 1448 });
        assert_eq!(encode(&tcp_frame(&head, gso)), Err(TxError::TooBig), "header longer than the head");
        assert_eq!(encode(&tcp_frame(&head[..40], gso)), Err(TxError::TooBig));
        assert_eq!(encode(&TxFrame { checksum: None, ..tcp_frame(&head, gso) }), Err(TxError::TooBig));
        let zero = Some(Gso { kind: GsoKind::Udp, size: 0 });
        assert_eq!(encode(&tcp_frame(&head, zero)), Err(TxError::TooBig));
    }

    proptest! {
        #[test]
        fn any_header_is_judged_without_panic(h in any::<[u8; LEN]>(), len in 0usize..70_000) {
            if let Ok((_, Some(gso))) = decode(&h, len) {
                prop_assert!(gso.size > 0);
            }
        }

        #[test]
        fn what_is_encoded_is_decoded(
            head in proptest::collection::vec(any::<u8>(), 14..200),
            len in 0u32..66_000,
            start in 14u16..200,
            offset in prop_oneof![Just(6u16), Just(16)],
            partial in any::<bool>(),
            gso in proptest::option::of((prop_oneof![Just(GsoKind::Tcp4), Just(GsoKind::Tcp6), Just(GsoKind::Udp)], 0u16..9000)),
        ) {
            let gso = gso.map(|(kind, size)| Gso { kind, size });
            let checksum = partial.then_some(TxChecksum { start, offset });
            let body = Payload { slot: 0, offset: 0, len };
            let frame = TxFrame { head: &head, body, keep_body: false, checksum, gso };
            if let Ok(h) = encode(&frame) {
                let total = head.len() + len as usize;
                let fits = !partial || usize::from(start + offset) + 2 <= total;
                let expected = if partial { RxChecksum::Trusted } else { RxChecksum::Unverified };
                prop_assert_eq!(decode(&h, total), if fits { Ok((expected, gso)) } else { Err(BadHeader) });
            }
        }
    }
}
