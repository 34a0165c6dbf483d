//! A split virtqueue, seen from the device (virtio 1.3 section 2.7).
//!
//! The rings are in memory that the guest changes as it likes. An index or a descriptor is read once, into private memory, and checked there;
//! the loops that follow it end by counts of our own.

use super::inflight::Inflight;
use super::memory::Memory;
use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, VolatileSlice};

/// Most entries of a ring.
pub const MAX_SIZE: u16 = 1024;
/// Length of a descriptor, and of an entry of an indirect table.
const DESCRIPTOR: usize = 16;
/// Length of the rings' heads: flags and index.
const HEAD: usize = 4;
/// Length of an entry of the used ring.
const USED: usize = 8;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Flag of the used ring: do not kick.
const NO_NOTIFY: u16 = 1;
/// Flag of the available ring: do not interrupt.
const NO_INTERRUPT: u16 = 1;

/// A queue that makes no sense as a whole: it is not looked at any more until the guest sets it up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Not all of a ring is in the guest's memory.
    #[error("the ring is not in the guest's memory")]
    NotMapped,
    /// More new entries than the ring has.
    #[error("the available ring claims {0} new entries")]
    Overrun(u16),
    /// A buffer for what the guest receives is none: it is not all for us to write, or not in the guest's memory.
    #[error("a buffer to receive into cannot be written to")]
    BadBuffer,
}

/// A piece of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where the guest has it.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// It is for us to write, else to read.
    pub writable: bool,
}

/// A buffer that the guest has made available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its number, with which it is given back.
    pub head: u16,
    /// Its descriptors make sense. One that does not is given back unused.
    pub good: bool,
}

/// Where a queue stands.
#[derive(Debug, Default)]
pub struct Queue {
    /// Entries, a power of two, at most [`MAX_SIZE`].
    pub size: u16,
    /// The guest's address of the descriptors.
    pub desc: u64,
    /// The guest's address of the available ring.
    pub avail: u64,
    /// The guest's address of the used ring.
    pub used: u64,
    /// Where what is written to the used ring is logged, if it is.
    pub log: Option<u64>,
    /// Each side says from which entry on it wants to be told (`VIRTIO_F_EVENT_IDX`).
    pub event_idx: bool,
    /// Descriptors may refer to tables (`VIRTIO_F_INDIRECT_DESC`).
    pub indirect: bool,
    /// Next entry of the available ring.
    pub next_avail: u16,
    /// Next entry of the used ring.
    pub next_used: u16,
    /// What the used ring's index was when the guest was last told.
    told: u16,
    /// Where it is noted which buffers were taken, if it is.
    pub inflight: Option<Inflight>,
    /// Buffers that another back end had taken and not given back, the next of which is at `again_at`: they come before those of the available ring.
    again: Vec<u16>,
    again_at: usize,
}

/// Where a queue stood before buffers were taken.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    next_avail: u16,
    again_at: usize,
}

/// The rings of a queue, for as long as the memory is borrowed.
pub struct Rings<'m> {
    memory: &'m Memory,
    desc: VolatileSlice<'m>,
    avail: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    log: Option<u64>,
}

impl Rings<'_> {
    /// Logs that something was written to the used ring.
    fn mark(&self, at: usize, len: usize) {
        if let Some(log) = self.log {
            self.memory.mark(log.saturating_add(at as u64), len);
        }
    }

    /// Writes a number to the used ring.
    fn store(&self, at: usize, v: u16, order: Ordering) -> Result<(), Broken> {
        self.used.store(v.to_le(), at, order).map_err(|_| Broken::NotMapped)?;
        self.mark(at, size_of::<u16>());
        Ok(())
    }
}

fn load(ring: &VolatileSlice<'_>, at: usize, order: Ordering) -> Result<u16, Broken> {
    ring.load(at, order).map(u16::from_le).map_err(|_| Broken::NotMapped)
}

/// A descriptor, copied.
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn parse(b: [u8; DESCRIPTOR]) -> Descriptor {
        let v = u128::from_le_bytes(b);
        Descriptor { addr: v as u64, len: (v >> 64) as u32, flags: (v >> 96) as u16, next: (v >> 112) as u16 }
    }
}

impl Queue {
    /// Back to the state after power-on; what was negotiated stays.
    pub fn reset(&mut self) {
        *self = Queue { event_idx: self.event_idx, indirect: self.indirect, ..Queue::default() };
    }

    /// The rings, if all of them are in the guest's memory.
    pub fn rings<'m>(&self, memory: &'m Memory) -> Result<Rings<'m>, Broken> {
        let n = usize::from(self.size);
        let slice = |at, len| memory.slice(at, len).ok_or(Broken::NotMapped);
        if n == 0 {
            return Err(Broken::NotMapped);
        }
        Ok(Rings {
            memory,
            desc: slice(self.desc, n * DESCRIPTOR)?,
            avail: slice(self.avail, HEAD + 2 * n + 2)?,
            used: slice(self.used, self.used_len())?,
            log: self.log,
        })
    }

    /// Length of the used ring.
    pub fn used_len(&self) -> usize {
        HEAD + USED * usize::from(self.size) + 2
    }

    /// Goes on behind the last buffer that was given back, as one does who begins with a ring that another has used.
    pub fn resume(&mut self, rings: &Rings<'_>) -> Result<(), Broken> {
        self.next_used = load(&rings.used, 2, Ordering::Acquire)?;
        self.told = self.next_used;
        let left = self.inflight.as_mut().and_then(|i| i.recover(self.next_used));
        if let Some(left) = &left {
            // Whoever took them looked at as many entries of the available ring.
            self.next_avail = self.next_used.wrapping_add(left.len() as u16);
        }
        (self.again, self.again_at) = (left.unwrap_or_default(), 0);
        Ok(())
    }

    fn left(&self) -> &[u16] {
        &self.again[self.again_at..]
    }

    /// The next entry of the available ring that is to be looked at. Of one that was stopped before what was left of another back end came to its turn, those
    /// are counted as not taken: buffers are used in their order.
    pub fn base(&self) -> u16 {
        self.next_avail.wrapping_sub(self.left().len() as u16)
    }

    /// Has it begin at this entry of the available ring.
    pub fn set_base(&mut self, base: u16) {
        (self.next_avail, self.again, self.again_at) = (base, Vec::new(), 0);
    }

    /// Begins behind the last buffer that was given back: whoever served it before gave all back that were taken.
    pub fn begin(&mut self, rings: &Rings<'_>) -> Result<(), Broken> {
        self.resume(rings)?;
        self.next_avail = self.next_used;
        Ok(())
    }

    fn entry(&self, n: u16) -> usize {
        usize::from(n & (self.size - 1))
    }

    /// How many buffers are available.
    pub fn available(&self, rings: &Rings<'_>) -> Result<u16, Broken> {
        let n = load(&rings.avail, 2, Ordering::Acquire)?.wrapping_sub(self.next_avail);
        // Of a ring that makes sense not more are left than it has entries.
        if n > self.size { Err(Broken::Overrun(n)) } else { Ok(n.saturating_add(self.left().len() as u16)) }
    }

    /// Takes the next buffer, if there is one, and appends its segments to `out`, of which there are at most as many as the queue has entries.
    pub fn take(&mut self, rings: &Rings<'_>, out: &mut Vec<Segment>) -> Result<Option<Chain>, Broken> {
        if self.available(rings)? == 0 {
            return Ok(None);
        }
        let head = match self.left().first() {
            Some(&head) => {
                self.again_at += 1;
                head
            }
            None => {
                let head = load(&rings.avail, HEAD + 2 * self.entry(self.next_avail), Ordering::Relaxed)?;
                self.next_avail = self.next_avail.wrapping_add(1);
                if let Some(i) = &mut self.inflight {
                    i.take(head);
                }
                head
            }
        };
        let start = out.len();
        let good = self.walk(rings, head, out).is_some();
        if !good {
            out.truncate(start);
        }
        Ok(Some(Chain { head, good }))
    }

    /// Where it stands, for [`Queue::untake`].
    pub fn mark(&self) -> Mark {
        Mark { next_avail: self.next_avail, again_at: self.again_at }
    }

    /// Makes the buffers that were taken since then available again.
    pub fn untake(&mut self, mark: Mark, heads: impl Iterator<Item = u16>) {
        let again = self.again_at - mark.again_at;
        (self.next_avail, self.again_at) = (mark.next_avail, mark.again_at);
        if let Some(i) = &mut self.inflight {
            // Those that were left of another back end stay what they were.
            heads.skip(again).for_each(|head| i.untake(head));
        }
    }

    /// Follows a chain; `None` if it makes no sense.
    fn walk(&self, rings: &Rings<'_>, head: u16, out: &mut Vec<Segment>) -> Option<()> {
        let mut table: Option<(u64, u16)> = None;
        let mut index = head;
        let mut read_on = true;
        for _ in 0..=self.size {
            let mut b = [0; DESCRIPTOR];
            match table {
                None if index >= self.size => return None,
                None => rings.desc.read_slice(&mut b, usize::from(index) * DESCRIPTOR).ok()?,
                Some((_, n)) if index >= n => return None,
                Some((at, _)) => {
                    if !rings.memory.read(at.checked_add(u64::from(index) * DESCRIPTOR as u64)?, &mut b) {
                        return None;
                    }
                }
            }
            let d = Descriptor::parse(b);
            if d.flags & INDIRECT != 0 {
                let entries = d.len / DESCRIPTOR as u32;
                let fits = d.len.is_multiple_of(DESCRIPTOR as u32) && entries > 0 && entries <= u32::from(MAX_SIZE);
                // No table in a table, nor one with something behind it.
                if !self.indirect || table.is_some() || d.flags & NEXT != 0 || !fits {
                    return None;
                }
                table = Some((d.addr, entries as u16));
                index = 0;
                continue;
            }
            let writable = d.flags & WRITE != 0;
            // What is to be read comes first.
            if !writable && !read_on {
                return None;
            }
            read_on = !writable;
            if out.len() == out.capacity() {
                return None;
            }
            out.push(Segment { addr: d.addr, len: d.len, writable });
            if d.flags & NEXT == 0 {
                return Some(());
            }
            index = d.next;
        }
        None
    }

    /// Gives a buffer back, with `len` bytes written to it. The guest sees it after [`Queue::publish`].
    pub fn give(&mut self, rings: &Rings<'_>, head: u16, len: u32) -> Result<(), Broken> {
        let entry = u64::from(head) | u64::from(len) << 32;
        let at = HEAD + USED * self.entry(self.next_used);
        rings.used.write_slice(&entry.to_le_bytes(), at).map_err(|_| Broken::NotMapped)?;
        rings.mark(at, USED);
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(i) = &mut self.inflight {
            i.give(head);
        }
        Ok(())
    }

    /// Shows the guest what was given back.
    pub fn publish(&mut self, rings: &Rings<'_>) -> Result<(), Broken> {
        rings.store(2, self.next_used, Ordering::Release)?;
        if let Some(i) = &mut self.inflight {
            i.publish(self.next_used);
        }
        Ok(())
    }

    /// Whether the guest wants to hear of what was published since the last time that this was true.
    pub fn wants_call(&mut self, rings: &Rings<'_>) -> Result<bool, Broken> {
        if self.told == self.next_used {
            return Ok(false);
        }
        // Between showing the index and asking whether to tell; the guest does the reverse.
        fence(Ordering::SeqCst);
        let wants = if self.event_idx {
            let event = load(&rings.avail, HEAD + 2 * usize::from(self.size), Ordering::Relaxed)?;
            self.next_used.wrapping_sub(event).wrapping_sub(1) < self.next_used.wrapping_sub(self.told)
        } else {
            load(&rings.avail, 0, Ordering::Relaxed)? & NO_INTERRUPT == 0
        };
        self.told = self.next_used;
        Ok(wants)
    }

    /// Asks for a kick when there are more buffers than the `known` ones that are available; returns whether there are by now.
    pub fn want_kicks(&self, rings: &Rings<'_>, known: u16) -> Result<bool, Broken> {
        if self.event_idx {
            let next = self.next_avail.wrapping_add(known.saturating_sub(self.left().len() as u16));
            rings.store(HEAD + USED * usize::from(self.size), next, Ordering::Relaxed)?;
        } else {
            rings.store(0, 0, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        Ok(self.available(rings)? > known)
    }

    /// Asks for no kicks. The guest may kick all the same.
    pub fn refuse_kicks(&self, rings: &Rings<'_>) -> Result<(), Broken> {
        // With event indices, the one that was asked for last has been passed.
        if self.event_idx { Ok(()) } else { rings.store(0, NO_NOTIFY, Ordering::Relaxed) }
    }
}
