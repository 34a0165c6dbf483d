//! Copying a table while packets go on.

use super::records::Copies;
use super::{Family, Head, Image};
use crate::conntrack::changed::ones;
use crate::conntrack::conn::{ConnId, Status};
use crate::conntrack::sync::Ordering::Relaxed;
use crate::conntrack::table::{Conntrack, Tables};
use crate::edge::Token;

/// Slots whose memory is got on its way together.
const BATCH: usize = 16;

/// A table being copied. Whoever wants no image after all drops it: the table needs no notice of that.
///
/// While it lives each connection's first change after it was copied costs the packet a few nanoseconds more; the table is not
/// locked, and whatever may be done to it may be done meanwhile. A copy is behind by the last changes, and by less than a second in
/// what packets that change nothing else do to a connection's life; [`Capture::finish`] makes good for the former.
#[derive(Debug)]
pub struct Capture {
    number: u32,
    copies: Copies,
    /// Slots below were copied at least once.
    walked: u32,
    /// Where the search for slots that changed goes on.
    group: u32,
    /// Largest even generation that a slot had.
    generation: u32,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Slots that it copied, or found empty.
    pub slots: u32,
    /// Every slot was copied once. Further steps copy what changed since; how much that is, [`Capture::remaining`] says.
    pub complete: bool,
}

/// Why a capture cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    /// Another one was begun, which hears of the changes now.
    #[error("another capture of the same table was begun")]
    Superseded,
}

impl Capture {
    /// Begins; nothing is copied yet, nor allocated. A capture of the same table that was begun before is over.
    #[must_use]
    pub fn begin(table: &Conntrack) -> Self {
        let number = table.captures.fetch_add(1, Relaxed).wrapping_add(1);
        Capture { number, copies: Copies::default(), walked: 0, group: 0, generation: 0 }
    }

    /// Copies about so many slots: all of them once, in their order, then those that changed since they were copied, in rounds without end. At most
    /// 64 more than `slots` are copied, and a round's end ends the step.
    ///
    /// # Errors
    /// Another capture was begun.
    pub fn step(&mut self, table: &Conntrack, slots: u32) -> Result<Progress, CaptureError> {
        self.check(table)?;
        let Some(t) = table.tables() else { return Ok(Progress { slots: 0, complete: true }) };
        let walked = self.walk(table, t, slots);
        let complete = self.walked == t.arena.used();
        let changed = if complete && walked < slots { self.follow(table, t, slots - walked) } else { 0 };
        Ok(Progress { slots: walked + changed, complete })
    }

    /// How many slots [`Capture::finish`] would have to copy now. It takes a few microseconds to find out.
    #[must_use]
    pub fn remaining(&self, table: &Conntrack) -> u32 {
        table.tables().map_or(0, |t| t.arena.used() - self.walked + t.arena.changes().count())
    }

    /// Copies what is left. Nobody may use the table meanwhile: the image is of this moment. The table is as it was afterwards; nothing of it was
    /// taken away.
    ///
    /// # Errors
    /// Another capture was begun.
    pub fn finish(mut self, table: &Conntrack) -> Result<Image, CaptureError> {
        self.check(table)?;
        let mut head = Head {
            counters: table.counters(),
            reaper: table.reaping(),
            condemned: table.condemned.list().iter().map(|id| (id.index, id.generation)).collect(),
            closed: table.closed.all().into_iter().map(Token::bits).collect(),
            ..Head::default()
        };
        if let Some(t) = table.tables() {
            self.walk(table, t, u32::MAX);
            // From its first group on, it passes all of them.
            self.group = 0;
            self.follow(table, t, u32::MAX);
            head.slots = t.arena.used();
            head.generation = self.generation;
            head.numbered = t.sources.numbered();
        }
        head.v4 = self.copies.count(Family::V4);
        head.v6 = self.copies.count(Family::V6);
        Ok(Image::new(head, self.copies, table.accounts()))
    }

    fn check(&self, table: &Conntrack) -> Result<(), CaptureError> {
        if table.captures.load(Relaxed) == self.number { Ok(()) } else { Err(CaptureError::Superseded) }
    }

    /// Copies slots that were never copied.
    fn walk(&mut self, table: &Conntrack, t: &Tables, slots: u32) -> u32 {
        let end = t.arena.used().min(self.walked.saturating_add(slots));
        let from = self.walked;
        while self.walked < end {
            if self.walked.is_multiple_of(64) {
                // Noted for an earlier capture, if at all: all of them are copied now.
                t.arena.changes().take(self.walked / 64);
            }
            let next = end.min((self.walked / 64 + 1) * 64);
            for slot in self.walked..next {
                self.copy(table, t, slot);
            }
            self.walked = next;
        }
        end - from
    }

    /// Copies slots that changed, up to the end of the round.
    fn follow(&mut self, table: &Conntrack, t: &Tables, slots: u32) -> u32 {
        let changes = t.arena.changes();
        let mut copied = 0;
        while self.group < changes.groups() {
            let mut words = changes.take_group(self.group);
            while words != 0 {
                if copied >= slots {
                    changes.put_back(self.group, words);
                    return copied;
                }
                let word = self.group * 64 + words.trailing_zeros();
                words &= words - 1;
                copied += self.copy_word(table, t, word, changes.take(word));
            }
            self.group += 1;
        }
        self.group = 0;
        copied
    }

    fn copy_word(&mut self, table: &Conntrack, t: &Tables, word: u32, bits: u64) -> u32 {
        let mut slots = ones(bits).map(|bit| word * 64 + bit);
        loop {
            let mut batch = [0; BATCH];
            let mut n = 0;
            for (place, slot) in batch.iter_mut().zip(&mut slots) {
                *place = slot;
                n += 1;
            }
            if n == 0 {
                return bits.count_ones();
            }
            for &slot in &batch[..n] {
                t.arena.prefetch(slot);
                self.copies.prefetch(slot);
            }
            batch[..n].iter().for_each(|&slot| self.copy(table, t, slot));
        }
    }

    fn copy(&mut self, table: &Conntrack, t: &Tables, slot: u32) {
        let generation = t.arena.watch(slot, |generation, conn| {
            match conn {
                Some(conn) => {
                    let translated = conn.status.has(Status::SRC_NAT);
                    let number = if translated { t.sources.number_of(slot) } else { 0 };
                    let id = ConnId { index: slot, generation };
                    self.copies.set(id, conn, number);
                    if table.accounts() {
                        self.copies.set_counts(slot, table.counts(id));
                    }
                }
                None => self.copies.clear(slot),
            }
            generation
        });
        self.generation = self.generation.max(generation & !1);
    }
}

impl Conntrack {
    /// Captures all at once. Nobody may use the table meanwhile.
    #[must_use]
    pub fn save(&self) -> Image {
        loop {
            // The last capture is the one that goes on, whoever began it.
            if let Ok(image) = Capture::begin(self).finish(self) {
                return image;
            }
        }
    }
}
