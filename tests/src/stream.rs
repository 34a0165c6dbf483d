//! Self-verifying streams: each byte follows from the stream's number and its position.

use crate::SplitMix;

/// Byte of stream `id` at position `at`. A byte lost, doubled, moved or of another stream shows at once or within a few bytes.
pub fn byte(id: u64, at: u64) -> u8 {
    word(id, at).to_le_bytes()[(at & 7) as usize]
}

fn word(id: u64, at: u64) -> u64 {
    SplitMix::new(id.wrapping_mul(0x1_0000_0001) ^ (at >> 3)).u64()
}

/// Bytes `from..from + len` of a stream.
pub fn bytes(id: u64, from: u64, len: usize) -> Vec<u8> {
    let first = from >> 3 << 3;
    let words = (first..from + len as u64).step_by(8).flat_map(|at| word(id, at).to_le_bytes());
    words.skip((from - first) as usize).take(len).collect()
}

/// The receiving end of a stream: takes what comes and knows whether it is right.
#[derive(Clone, Debug)]
pub struct Checker {
    id: u64,
    /// Bytes taken so far.
    pub at: u64,
}

impl Checker {
    /// Expects the stream `id` from its start.
    pub fn new(id: u64) -> Self {
        Checker { id, at: 0 }
    }

    /// Takes the next bytes.
    ///
    /// # Panics
    /// If they are not the ones that come next.
    pub fn take(&mut self, data: &[u8]) {
        let want = bytes(self.id, self.at, data.len());
        if let Some(i) = data.iter().zip(&want).position(|(a, b)| a != b) {
            panic!("stream {:#x}: wrong byte at position {}", self.id, self.at + i as u64);
        }
        self.at += data.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_is_the_same_as_byte_by_byte() {
        for from in 0..20 {
            let singly: Vec<u8> = (from..from + 30).map(|at| byte(5, at)).collect();
            assert_eq!(bytes(5, from, 30), singly);
        }
        assert!(bytes(5, 9, 0).is_empty());
    }

    #[test]
    fn a_shifted_or_foreign_stream_is_noticed() {
        let data = bytes(7, 0, 4096);
        let mut ok = Checker::new(7);
        ok.take(&data[..100]);
        ok.take(&data[100..]);
        assert_eq!(ok.at, 4096);
        for (id, bad) in [(7, &data[1..64]), (8, &data[..64])] {
            let bad = bad.to_vec();
            assert!(std::panic::catch_unwind(move || Checker::new(id).take(&bad)).is_err());
        }
    }
}
