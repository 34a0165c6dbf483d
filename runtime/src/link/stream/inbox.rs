//! What was received of a stream of frames, each behind its length.

use crate::link::MAX_FRAME;
use crate::slots::{SLOT_SIZE, Slots};
use hibernet_netstack::edge::Payload;
use hibernet_netstack::wire::ethernet;
use std::ops::Range;

/// Bytes of a frame's length, big-endian.
pub(super) const PREFIX: usize = 4;

/// A frame of this length is long: to move one costs more than to read it by itself.
const LONG: usize = 8 * 1024;

/// The longest frame fits into a slot, whatever was received before it.
const _: () = assert!(2 * PREFIX + MAX_FRAME <= SLOT_SIZE);

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A frame, with an owner of its slot more.
    Frame(Payload),
    /// One that is shorter than an Ethernet header: skipped.
    Short,
    /// One of this length, which is longer than any can be: where the next begins is not known.
    TooLong(u32),
    /// Nothing that is whole.
    Nothing,
}

/// Bytes received: whole frames are handed out where they stand, so that they are copied only if they do not end where they begin.
#[derive(Debug)]
pub(super) struct Inbox {
    /// The slot, of which this is an owner.
    slot: u32,
    /// Bytes that were not handed out.
    start: usize,
    end: usize,
}

impl Inbox {
    /// Nothing.
    pub(super) const fn new() -> Inbox {
        Inbox { slot: Payload::NO_SLOT, start: 0, end: 0 }
    }

    /// Where in the slots' memory more can be received, behind what is there. `None` if there is no slot for it. Whole frames are to be handed out before.
    pub(super) fn room(&mut self, slots: &mut Slots) -> Option<Range<usize>> {
        let (len, at) = (self.end - self.start, |slot: u32| slot as usize * SLOT_SIZE);
        // Frames that were handed out may still be in use; what stands before them is not needed any more.
        if self.slot == Payload::NO_SLOT || slots.is_shared(self.slot) {
            let fresh = slots.take()?;
            if len > 0 {
                let from = at(self.slot) + self.start;
                slots.memory_mut().copy_within(from..from + len, at(fresh));
            }
            slots.give(self.slot);
            self.slot = fresh;
        } else if self.start > 0 {
            slots.slot_mut(self.slot).copy_within(self.start..self.end, 0);
        }
        (self.start, self.end) = (0, len);
        Some(at(self.slot) + len..at(self.slot) + self.most(slots))
    }

    /// How many bytes are to be there after the next reading. Behind the rest of a long frame, for which it is known where the next begins, not more than the length of
    /// that: whatever is received of it would have to be moved.
    fn most(&self, slots: &Slots) -> usize {
        let len = self.bytes(slots).first_chunk().map_or(0, |p| u32::from_be_bytes(*p) as usize);
        let long = (LONG..=MAX_FRAME).contains(&len);
        if long { 2 * PREFIX + len } else { SLOT_SIZE }
    }

    /// So many bytes were received there.
    pub(super) fn received(&mut self, n: usize) {
        self.end = (self.end + n).min(SLOT_SIZE);
    }

    /// Hands out what comes next.
    pub(super) fn next(&mut self, slots: &mut Slots) -> Next {
        let whole = Payload { slot: self.slot, offset: self.start as u32, len: (self.end - self.start) as u32 };
        let Some(prefix) = slots.bytes(whole).first_chunk::<PREFIX>() else { return Next::Nothing };
        let len = u32::from_be_bytes(*prefix);
        if len as usize > MAX_FRAME {
            return Next::TooLong(len);
        }
        let frame = whole.slice(PREFIX, len as usize);
        if frame.len < len {
            return Next::Nothing;
        }
        self.start += PREFIX + len as usize;
        if frame.len() < ethernet::HEADER_LEN {
            return Next::Short;
        }
        slots.hold(self.slot);
        Next::Frame(frame)
    }

    /// Whether something whole is there.
    pub(super) fn has_more(&self, slots: &Slots) -> bool {
        let rest = self.bytes(slots);
        rest.first_chunk::<PREFIX>().is_some_and(|p| {
            let len = u32::from_be_bytes(*p) as usize;
            len > MAX_FRAME || rest.len() >= PREFIX + len
        })
    }

    /// What was not handed out.
    pub(super) fn bytes<'a>(&self, slots: &'a Slots) -> &'a [u8] {
        slots.bytes(Payload { slot: self.slot, offset: self.start as u32, len: (self.end - self.start) as u32 })
    }

    /// Begins with what another had received. More than a slot holds is no such thing: false, and nothing is done.
    pub(super) fn begin(&mut self, slots: &mut Slots, received: &[u8]) -> bool {
        self.clear(slots);
        let Some(room) = self.room(slots).filter(|r| r.len() >= received.len()) else { return false };
        slots.memory_mut()[room][..received.len()].copy_from_slice(received);
        self.received(received.len());
        true
    }

    /// Throws everything away. Whether there was something.
    pub(super) fn clear(&mut self, slots: &mut Slots) -> bool {
        slots.give(self.slot);
        self.end > std::mem::replace(self, Inbox::new()).start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Receives `bytes` in pieces of `piece`, and hands out what comes; returns the frames.
    fn run(bytes: &[u8], piece: usize, keep: bool) -> (Vec<Vec<u8>>, u32) {
        let mut slots = Slots::new(64).unwrap();
        let mut inbox = Inbox::new();
        let (mut frames, mut short, mut kept) = (Vec::new(), 0, Vec::new());
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = inbox.room(&mut slots).expect("a slot");
            let n = piece.min(rest.len()).min(room.len());
            slots.memory_mut()[room][..n].copy_from_slice(&rest[..n]);
            inbox.received(n);
            rest = &rest[n..];
            loop {
                match inbox.next(&mut slots) {
                    Next::Frame(p) => {
                        frames.push(slots.bytes(p).to_vec());
                        kept.push(p.slot);
                        if !keep || kept.len() > 40 {
                            slots.give(kept.remove(0));
                        }
                    }
                    Next::Short => short += 1,
                    Next::Nothing => break,
                    Next::TooLong(n) => panic!("{n}"),
                }
            }
            assert!(!inbox.has_more(&slots));
        }
        kept.drain(..).for_each(|s| slots.give(s));
        assert!(!inbox.clear(&mut slots));
        assert_eq!(slots.in_use(), 0);
        (frames, short)
    }

    #[test]
    fn frames_come_whole_however_the_stream_is_cut() {
        let lens = [14, 60, 1514, 3, MAX_FRAME, 0, 100, 65_534, MAX_FRAME, MAX_FRAME, 14];
        let frames: Vec<Vec<u8>> = lens.iter().zip(1..).map(|(n, fill)| vec![fill; *n]).collect();
        let stream: Vec<u8> = frames.iter().flat_map(|f| [&(f.len() as u32).to_be_bytes()[..], f].concat()).collect();
        let good: Vec<Vec<u8>> = frames.into_iter().filter(|f| f.len() >= 14).collect();
        for keep in [false, true] {
            for piece in [1, 3, 4, 5, 1000, 1518, 4096, 65_536, 69_632, 1 << 20] {
                assert_eq!(run(&stream, piece, keep), (good.clone(), 2), "pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_told_before_it_is_there() {
        let mut slots = Slots::new(2).unwrap();
        let mut inbox = Inbox::new();
        for len in [MAX_FRAME as u32 + 1, u32::MAX] {
            assert!(inbox.begin(&mut slots, &len.to_be_bytes()));
            assert!(inbox.has_more(&slots));
            assert_eq!(inbox.next(&mut slots), Next::TooLong(len));
        }
        assert!(inbox.begin(&mut slots, &[0, 0, 0]));
        assert_eq!((inbox.next(&mut slots), inbox.bytes(&slots)), (Next::Nothing, &[0, 0, 0][..]));
        assert!(!inbox.begin(&mut slots, &vec![0; SLOT_SIZE + 1]));
        inbox.clear(&mut slots);
        assert_eq!(slots.in_use(), 0);
    }

    #[test]
    fn behind_a_long_frame_only_the_next_length_is_received() {
        let mut slots = Slots::new(2).unwrap();
        let mut inbox = Inbox::new();
        for (len, end) in [(LONG as u32, 2 * PREFIX + LONG), (LONG as u32 - 1, SLOT_SIZE)] {
            assert!(inbox.begin(&mut slots, &[&len.to_be_bytes()[..], &[1; 100]].concat()));
            assert_eq!(inbox.next(&mut slots), Next::Nothing);
            let room = inbox.room(&mut slots).unwrap();
            assert_eq!((room.len(), inbox.bytes(&slots).len()), (end - 104, 104));
        }
    }

    #[test]
    fn without_a_slot_nothing_is_lost() {
        let mut slots = Slots::new(1).unwrap();
        let mut inbox = Inbox::new();
        let stream = [&20u32.to_be_bytes()[..], &[7; 20], &30u32.to_be_bytes()].concat();
        assert!(inbox.begin(&mut slots, &stream));
        let Next::Frame(p) = inbox.next(&mut slots) else { panic!("no frame") };
        assert_eq!(inbox.room(&mut slots), None, "the frame still stands in the only slot");
        slots.give(p.slot);
        assert_eq!(inbox.room(&mut slots), Some(4..SLOT_SIZE));
        assert_eq!(inbox.bytes(&slots), &30u32.to_be_bytes());
    }
}
