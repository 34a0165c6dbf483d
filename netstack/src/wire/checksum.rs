//! The Internet checksum, RFC 1071.

use crate::tuple::proto;
use core::net::IpAddr;

/// A one's-complement sum in progress, of 16-bit big-endian words.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes as big-endian words; an odd last byte is padded with zero, so only the last part may be odd.
    #[must_use]
    pub fn bytes(self, data: &[u8]) -> Sum {
        // RFC 1071 section 2 (B): in the machine's order of bytes, exchanged in the end. Lanes that do not depend on each other become vectors.
        let mut lanes = [0u64; 8];
        let (blocks, rest) = data.as_chunks::<32>();
        for block in blocks {
            let (words, _) = block.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        // A lane stays below 2^32 words of 32 bits.
        let mut sum = lanes.iter().fold(0, |sum, lane| sum + (lane >> 32) + (lane & 0xffff_ffff));
        let (pairs, last) = rest.as_chunks::<2>();
        sum = pairs.iter().fold(sum, |sum, p| sum + u64::from(u16::from_ne_bytes(*p)));
        if let [last] = last {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Sum(self.0 + u64::from(u16::from_be(Sum(sum).fold())))
    }

    /// Adds one word.
    #[must_use]
    pub const fn word(self, v: u16) -> Sum {
        Sum(self.0 + v as u64)
    }

    /// Adds the pseudo-header of RFC 9293 section 3.1 or RFC 8200 section 8.1.
    #[must_use]
    pub fn pseudo(self, src: IpAddr, dst: IpAddr, protocol: u8, len: u32) -> Sum {
        let s = match (src, dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => self.bytes(&s.octets()).bytes(&d.octets()),
            (IpAddr::V6(s), IpAddr::V6(d)) => self.bytes(&s.octets()).bytes(&d.octets()),
            _ => self,
        };
        Sum(s.0 + u64::from(len >> 16) + u64::from(len & 0xffff) + u64::from(protocol))
    }

    /// Folded to 16 bits, not inverted.
    pub const fn fold(self) -> u16 {
        let mut s = self.0;
        while s >> 16 != 0 {
            s = (s >> 16) + (s & 0xffff);
        }
        s as u16
    }

    /// The checksum: folded and inverted.
    pub const fn finish(self) -> u16 {
        !self.fold()
    }

    /// The checksum as the protocol sends it: UDP sends zero as 0xffff, since zero means "none".
    pub const fn finish_for(self, protocol: u8) -> u16 {
        match (protocol, self.finish()) {
            (proto::UDP, 0) => 0xffff,
            (_, c) => c,
        }
    }
}

/// What a change of bytes does to a checksum over them, RFC 1624.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delta(u64);

impl Delta {
    /// Puts `new`, of an even length, at an even place of `b` and takes account of it. Nothing happens if the place is not all there.
    #[inline]
    pub fn put<const N: usize>(&mut self, b: &mut [u8], at: usize, new: [u8; N]) {
        const { assert!(N.is_multiple_of(2)) };
        let Some(old) = b.get_mut(at..).and_then(|b| b.first_chunk_mut::<N>()) else { return };
        if *old != new {
            // Inverting first and summing then is as good for words of any even length, modulo 2^16 - 1.
            let inverted = old.map(|b| !b);
            self.0 += Sum::default().bytes(&inverted).0 + Sum::default().bytes(&new).0;
            *old = new;
        }
    }

    /// Adds what another change does.
    #[inline]
    pub const fn add(&mut self, other: Delta) {
        self.0 += other.0;
    }

    /// Corrects the checksum at an even place of `b`; returns what that does to a checksum over it. An unchanged checksum keeps its
    /// form; a new one is never 0xffff.
    #[inline]
    pub fn correct(self, b: &mut [u8], at: usize) -> Delta {
        self.correct_with(b, at, |old, delta| !Sum(0xffff + u64::from(!old) + delta).fold())
    }

    /// As [`Delta::correct`] for UDP: zero ("none") stays zero, and a sum of zero is sent as 0xffff.
    #[inline]
    pub fn correct_udp(self, b: &mut [u8], at: usize) -> Delta {
        self.correct_with(b, at, |old, delta| match old {
            0 => 0,
            _ => match !Sum(0xffff + u64::from(!old) + delta).fold() {
                0 => 0xffff,
                sum => sum,
            },
        })
    }

    /// Corrects a sum that is not inverted, that of a pseudo-header which is to be completed later.
    #[inline]
    pub fn correct_partial(self, b: &mut [u8], at: usize) -> Delta {
        self.correct_with(b, at, |old, delta| Sum(u64::from(old) + delta).fold())
    }

    #[inline]
    fn correct_with(self, b: &mut [u8], at: usize, new: impl FnOnce(u16, u64) -> u16) -> Delta {
        let mut done = Delta::default();
        if self.0 != 0
            && let Some(&[hi, lo]) = b.get(at..at + 2)
        {
            done.put(b, at, new(u16::from_be_bytes([hi, lo]), self.0).to_be_bytes());
        }
        done
    }
}

/// The checksum of `data`.
pub fn of(data: &[u8]) -> u16 {
    Sum::default().bytes(data).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reference(data: &[u8]) -> u16 {
        let mut s: u32 = 0;
        for c in data.chunks(2) {
            s += u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0));
            s = (s & 0xffff) + (s >> 16);
        }
        !(s as u16)
    }

    proptest! {
        #[test]
        fn equals_the_reference(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(of(&data), reference(&data));
        }

        #[test]
        fn even_parts_add_up(a in proptest::collection::vec(any::<u8>(), 0..64), b in proptest::collection::vec(any::<u8>(), 0..65)) {
            let a = &a[..a.len() & !1];
            let whole: Vec<u8> = a.iter().chain(&b).copied().collect();
            prop_assert_eq!(Sum::default().bytes(a).bytes(&b).finish(), of(&whole));
            prop_assert_eq!(Sum::default().bytes(a).word(Sum::default().bytes(&b).fold()).finish(), of(&whole));
        }
    }
}
