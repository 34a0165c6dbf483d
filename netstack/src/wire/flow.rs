//! What tells the frames of one flow from those of others, for whoever divides them among queues.

use super::{be16, be32, ethernet};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A number that all frames of a flow have, in both directions: of addresses, protocol, and the ports of TCP and UDP where they stand right behind the IP
/// header and the packet is no fragment. Other flows may have it too. 0 for what is no IP packet.
///
/// It is no check: what it is asked about may be malformed, and then it has any value.
pub fn hash(frame: &[u8]) -> u32 {
    let Some((header, ip)) = frame.split_at_checked(ethernet::HEADER_LEN) else { return 0 };
    let (ends, protocol, transport) = match be16(header, 12) {
        IPV4 if ip.len() >= 20 => {
            let fragment = be16(ip, 6) & 0x3fff != 0;
            let transport = ip.get(usize::from(ip[0] & 15) * 4..).filter(|_| !fragment);
            ([be32(ip, 12), be32(ip, 16)].map(u64::from), ip[9], transport)
        }
        IPV6 if ip.len() >= 40 => {
            let end = |at| {
                mix(u64::from(be32(ip, at)) << 32 | u64::from(be32(ip, at + 4)))
                    ^ (u64::from(be32(ip, at + 8)) << 32 | u64::from(be32(ip, at + 12)))
            };
            ([end(8), end(24)], ip[6], Some(&ip[40..]))
        }
        _ => return 0,
    };
    let ports = match (protocol, transport) {
        (TCP | UDP, Some(t)) if t.len() >= 4 => [be16(t, 0), be16(t, 2)],
        _ => [0, 0],
    };
    let end = |i: usize| mix(ends[i] ^ mix(u64::from(ports[i]) << 8 | u64::from(protocol)));
    // A sum, so that both directions have the same.
    let all = mix(end(0).wrapping_add(end(1)));
    (all >> 32) as u32
}

/// Every bit of the argument in every bit of the result (the finalizer of SplitMix64).
const fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(v6: bool, from: (u8, u16), to: (u8, u16), protocol: u8) -> Vec<u8> {
        let mut f = vec![0; 12];
        let (mut ip, at) = if v6 { (vec![0x60; 40], [8, 24]) } else { (vec![0; 20], [12, 16]) };
        f.extend(if v6 { IPV6 } else { IPV4 }.to_be_bytes());
        if v6 {
            ip[6] = protocol;
        } else {
            (ip[0], ip[9]) = (0x45, protocol);
        }
        let last = if v6 { 15 } else { 3 };
        (ip[at[0] + last], ip[at[1] + last]) = (from.0, to.0);
        f.extend(ip);
        f.extend([from.1.to_be_bytes(), to.1.to_be_bytes()].concat());
        f
    }

    #[test]
    fn both_directions_have_the_same_and_flows_differ() {
        for v6 in [false, true] {
            let mut seen = std::collections::BTreeSet::new();
            for port in 1..2000 {
                let there = hash(&packet(v6, (15, port), (1, 443), TCP));
                assert_eq!(there, hash(&packet(v6, (1, 443), (15, port), TCP)));
                seen.insert(there % 1024);
            }
            assert!(seen.len() > 400, "{} entries of 1024 for 2000 flows", seen.len());
            assert_ne!(hash(&packet(v6, (15, 1), (1, 443), TCP)), hash(&packet(v6, (15, 1), (1, 443), UDP)));
        }
    }

    #[test]
    fn fragments_of_a_datagram_have_one_number() {
        let mut first = packet(false, (15, 1000), (1, 53), UDP);
        first[14 + 6] = 0x20;
        let mut second = packet(false, (15, 7777), (1, 4242), UDP);
        second[14 + 7] = 185;
        assert_eq!(hash(&first), hash(&second));
    }

    #[test]
    fn what_is_no_ip_packet_has_none() {
        assert_eq!(hash(&[0; 60]), 0);
        assert_eq!(hash(&[]), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_will_do(b in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = hash(&b);
        }
    }
}
