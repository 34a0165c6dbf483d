//! What goes through the demo's connections: bytes that either end can foretell, so that each of them is verified.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Bytes sent at a time.
pub(super) const PIECE: usize = 16 << 10;
/// Time between two pieces: a few MiB per second and connection.
pub(super) const PACE: Duration = Duration::from_millis(5);
/// Bytes of a record's head.
const HEAD: usize = 16;

/// An endless sequence of bytes, another one for each connection and direction.
#[derive(Clone, Debug)]
pub(super) struct Pattern(u64);

impl Pattern {
    /// What the guest sends through connection `n`.
    pub(super) fn from_guest(n: u64) -> Pattern {
        Pattern(2 * n)
    }

    /// What the host sends.
    pub(super) fn from_host(n: u64) -> Pattern {
        Pattern(2 * n + 1)
    }

    /// The next bytes, as many as `out` holds: a multiple of 8.
    pub(super) fn fill(&mut self, out: &mut [u8]) {
        for word in out.chunks_mut(8) {
            // SplitMix64.
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut x = self.0;
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(x ^ (x >> 31)).to_le_bytes()[..word.len()]);
        }
    }
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Reads until `out` is full; whether there was anything before the end of the stream.
fn read_all(mut from: &TcpStream, out: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < out.len() {
        match from.read(&mut out[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(wrong("the stream ends in the middle of a piece")),
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

/// Reads pieces of a pattern until the stream ends, and says after each how many bytes were right so far.
pub(super) fn verify(from: &TcpStream, mut pattern: Pattern, mut verified: impl FnMut(u64)) -> io::Result<()> {
    let (mut got, mut expected, mut total) = (vec![0; PIECE], vec![0; PIECE], 0);
    while read_all(from, &mut got)? {
        pattern.fill(&mut expected);
        if got != expected {
            return Err(wrong(format!("wrong bytes behind the first {total}")));
        }
        total += PIECE as u64;
        verified(total);
    }
    Ok(())
}

/// Sends a record: how many bytes of the other direction were verified, which record this is, and a piece of the pattern.
pub(super) fn send_record(mut to: &TcpStream, number: u64, verified: u64, pattern: &mut Pattern) -> io::Result<()> {
    let mut record = [verified.to_le_bytes(), number.to_le_bytes()].concat();
    record.resize(PIECE, 0);
    pattern.fill(&mut record[HEAD..]);
    to.write_all(&record)
}

/// Reads records until the stream ends, and says after each how many bytes have come, and how many the other end has verified.
pub(super) fn verify_records(from: &TcpStream, mut pattern: Pattern, mut verified: impl FnMut(u64, u64)) -> io::Result<()> {
    let (mut got, mut expected, mut number) = (vec![0; PIECE], vec![0; PIECE - HEAD], 0_u64);
    while read_all(from, &mut got)? {
        pattern.fill(&mut expected);
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| got[at + i]));
        if word(8) != number || got[HEAD..] != expected {
            return Err(wrong(format!("wrong bytes in record {number}")));
        }
        number += 1;
        verified(number * PIECE as u64, word(0));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn what_is_sent_is_verified() {
        let (one, two) = pair();
        let sender = std::thread::spawn(move || {
            let mut pattern = Pattern::from_guest(3);
            (0..4).for_each(|n| send_record(&one, n, 10 * n, &mut pattern).unwrap());
        });
        let mut last = (0, 0);
        verify_records(&two, Pattern::from_guest(3), |bytes, theirs| last = (bytes, theirs)).unwrap();
        sender.join().unwrap();
        assert_eq!(last, (4 * PIECE as u64, 30));
    }

    #[test]
    fn a_wrong_byte_a_missing_piece_and_an_early_end_are_found() {
        let mut bytes = vec![0; PIECE];
        Pattern::from_host(1).fill(&mut bytes);
        bytes[777] ^= 1;
        let short = vec![0; 100];
        for sent in [bytes, short] {
            let (mut one, two) = pair();
            one.write_all(&sent).unwrap();
            drop(one);
            verify(&two, Pattern::from_host(1), |_| panic!("verified")).unwrap_err();
        }
        let (one, two) = pair();
        send_record(&one, 1, 0, &mut Pattern::from_guest(1)).unwrap();
        verify_records(&two, Pattern::from_guest(1), |_, _| panic!("verified")).unwrap_err();
    }
}
