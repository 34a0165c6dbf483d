//! Frames that wait to be written to a stream, each behind its length. What was begun is finished: never half a frame.

use super::inbox::PREFIX;
use crate::link::{BATCH, LinkStats};
use crate::slots::Slots;
use hibernet_netstack::edge::{Payload, TxFrame};
use std::io::{self, ErrorKind, IoSlice};

/// Most frames that are gathered: with a head and a body each, as many pieces as a call may have, less that of a rest.
const FRAMES: usize = 511;
/// Bytes of heads that are gathered.
const HEADS: usize = 64 * 1024;

/// From so many bytes on, what waits is better written: it is in the processor's cache, and its buffers can be used again.
const WORTH: usize = 512 * 1024;

/// A frame that waits: where its head ends in the common buffer, and its body, of which the outbox owns a share.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    head_end: usize,
    body: Payload,
}

/// Frames to be written.
#[derive(Debug)]
pub(super) struct Outbox {
    /// The rest of a frame that a former owner of the connection began to write; before all others.
    rest: Vec<u8>,
    frames: Vec<Waiting>,
    /// Heads of the frames, each behind the frame's length.
    heads: Vec<u8>,
    /// Bytes of the frames.
    bytes: usize,
    /// Bytes of the rest, or else of the first frame, that were written.
    written: usize,
}

/// How writing ended.
#[derive(Debug)]
pub(super) enum Written {
    /// Nothing waits.
    All,
    /// The stream takes no more now.
    Full,
    /// It takes nothing any more.
    Broken,
}

impl Outbox {
    pub(super) fn new() -> Outbox {
        Outbox { rest: Vec::new(), frames: Vec::with_capacity(FRAMES), heads: Vec::with_capacity(HEADS), bytes: 0, written: 0 }
    }

    /// Whether something waits.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.frames.is_empty()
    }

    /// Whether a frame with a head of this length must wait for others to be written. While the stream takes none, `stuck`, only a few are kept.
    pub(super) fn is_full(&self, head: usize, stuck: bool) -> bool {
        self.frames.len() >= if stuck { BATCH } else { FRAMES } || self.heads.len() + PREFIX + head > HEADS
    }

    /// Whether there is enough for a call of its own.
    pub(super) fn is_worth_it(&self) -> bool {
        self.bytes >= WORTH
    }

    /// Adds a frame, whose body has an owner for us.
    pub(super) fn push(&mut self, frame: &TxFrame<'_>) {
        let len = (frame.head.len() + frame.body.len()) as u32;
        self.bytes += PREFIX + len as usize;
        self.heads.extend_from_slice(&len.to_be_bytes());
        self.heads.extend_from_slice(frame.head);
        self.frames.push(Waiting { head_end: self.heads.len(), body: frame.body });
    }

    /// Writes with `send` until it takes no more.
    pub(super) fn write(
        &mut self,
        slots: &mut Slots,
        stats: &mut LinkStats,
        mut send: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> Written {
        let mut first = 0;
        let ended = loop {
            if self.rest.is_empty() && first == self.frames.len() {
                break Written::All;
            }
            match self.send_from(slots, first, &mut send) {
                Ok(0) => break Written::Full,
                Ok(n) => first = self.sent(stats, first, n),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break Written::Full,
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM)) => break Written::Full,
                Err(_) => break Written::Broken,
            }
        };
        self.let_go(slots, first);
        ended
    }

    /// Offers everything from frame number `first` on to one call.
    fn send_from(
        &self,
        slots: &Slots,
        first: usize,
        send: &mut impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut pieces = [IoSlice::new(&[]); 2 * FRAMES + 1];
        let mut count = 0;
        let mut skip = self.written;
        let mut add = |bytes| {
            pieces[count] = IoSlice::new(bytes);
            count += 1;
        };
        if !self.rest.is_empty() {
            add(&self.rest[skip.min(self.rest.len())..]);
            skip = 0;
        }
        let mut start = self.head_start(first);
        for w in &self.frames[first..] {
            let (head, body) = (&self.heads[start..w.head_end], slots.bytes(w.body));
            let of_head = skip.min(head.len());
            add(&head[of_head..]);
            add(&body[(skip - of_head).min(body.len())..]);
            (start, skip) = (w.head_end, 0);
        }
        send(&pieces[..count])
    }

    /// Where the head of frame `n` begins.
    fn head_start(&self, n: usize) -> usize {
        n.checked_sub(1).map_or(0, |i| self.frames[i].head_end)
    }

    /// `n` more bytes were taken, from frame number `first` on; which frame is the first that was not taken whole.
    fn sent(&mut self, stats: &mut LinkStats, mut first: usize, n: usize) -> usize {
        self.written += n;
        if !self.rest.is_empty() {
            if self.written < self.rest.len() {
                return first;
            }
            self.written -= self.rest.len();
            self.rest = Vec::new();
        }
        while let Some(w) = self.frames.get(first) {
            let len = w.head_end - self.head_start(first) + w.body.len();
            if self.written < len {
                break;
            }
            self.written -= len;
            stats.sent(len - PREFIX);
            first += 1;
        }
        first
    }

    /// Lets go of the first `n` frames.
    fn let_go(&mut self, slots: &mut Slots, n: usize) {
        let end = self.head_start(n);
        self.bytes -= end;
        for w in self.frames.drain(..n) {
            self.bytes -= w.body.len();
            slots.give(w.body.slot);
        }
        self.heads.drain(..end);
        for w in &mut self.frames {
            w.head_end -= end;
        }
    }

    /// What has to be written of what was begun.
    pub(super) fn begun(&self, slots: &Slots) -> Vec<u8> {
        if !self.rest.is_empty() {
            return self.rest[self.written..].to_vec();
        }
        match self.frames.first() {
            Some(w) if self.written > 0 => [&self.heads[..w.head_end], slots.bytes(w.body)].concat().split_off(self.written),
            _ => Vec::new(),
        }
    }

    /// Begins with the rest of what another began.
    pub(super) fn begin(&mut self, slots: &mut Slots, rest: Vec<u8>) {
        self.clear(slots);
        self.rest = rest;
    }

    /// Throws everything away; returns how many frames that were.
    pub(super) fn clear(&mut self, slots: &mut Slots) -> usize {
        let n = self.frames.len();
        self.let_go(slots, n);
        (self.rest, self.written) = (Vec::new(), 0);
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(slots: &mut Slots, fill: u8, len: usize) -> Payload {
        let slot = slots.take().unwrap();
        slots.slot_mut(slot)[..len].fill(fill);
        Payload { slot, offset: 0, len: len as u32 }
    }

    fn frame(head: &[u8], body: Payload) -> TxFrame<'_> {
        TxFrame { head, body, keep_body: false, checksum: None, gso: None }
    }

    /// Whatever a call takes, the stream is the same; also if another goes on with what was begun.
    #[test]
    fn partial_writes_are_finished_and_can_be_handed_over() {
        for most in [1, 2, 3, 5, 17, 40, 1000] {
            for hand_over in [false, true] {
                let mut slots = Slots::new(8).unwrap();
                let mut stats = LinkStats::default();
                let (mut out, mut stream, mut calls) = (Outbox::new(), Vec::<u8>::new(), 0);
                let mut expected = Vec::new();
                for n in 0..6u8 {
                    let b = body(&mut slots, n, 10 * usize::from(n));
                    let head = [n; 14];
                    expected.extend((14 + 10 * u32::from(n)).to_be_bytes());
                    expected.extend(head);
                    expected.extend(vec![n; 10 * usize::from(n)]);
                    out.push(&frame(&head, b));
                }
                // Every other call is refused.
                let mut send = |pieces: &[IoSlice<'_>]| {
                    calls += 1;
                    if calls % 2 == 0 {
                        return Err(ErrorKind::WouldBlock.into());
                    }
                    let all = pieces.iter().flat_map(|p| p.iter().copied()).collect::<Vec<u8>>();
                    let n = all.len().min(most);
                    stream.extend(&all[..n]);
                    Ok(n)
                };
                loop {
                    match out.write(&mut slots, &mut stats, &mut send) {
                        Written::All => break,
                        Written::Full if hand_over => {
                            let (begun, waiting) = (out.begun(&slots), out.frames.len());
                            let mut next = Outbox::new();
                            // What was not begun is written by the first owner here, so that the stream can be compared.
                            let skip = usize::from(!begun.is_empty() && out.rest.is_empty());
                            next.begin(&mut slots, begun);
                            let mut start = out.head_start(skip);
                            for w in &out.frames[skip..] {
                                slots.hold(w.body.slot);
                                next.push(&frame(&out.heads[start + PREFIX..w.head_end], w.body));
                                start = w.head_end;
                            }
                            assert_eq!(out.clear(&mut slots), waiting);
                            out = next;
                        }
                        Written::Full => {}
                        Written::Broken => panic!("it is not broken"),
                    }
                }
                assert_eq!(stream, expected, "{most} bytes at a time");
                assert_eq!((slots.in_use(), out.is_empty()), (0, true));
                if !hand_over {
                    assert_eq!((stats.tx_frames, stats.tx_bytes), (6, expected.len() as u64 - 24));
                }
            }
        }
    }
}
