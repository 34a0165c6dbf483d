//! Which buffers of a queue were taken and not given back yet, in memory that the front end keeps: whoever goes on with the queue after this process was
//! killed takes those again, and no other (QEMU's vhost-user specification, "Inflight I/O tracking", split virtqueues).
//!
//! The front end may write there what it likes. Every value is read once, and checked.

use super::queue::MAX_SIZE;
use crate::sys::vanished::Watched;
use rustix::fs::{FileType, MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// Length of what stands before the descriptors of a queue, and of what is noted of each.
const HEAD: usize = 16;
const ENTRY: usize = 16;
/// Queues begin at multiples of this, as other back ends have it.
const ALIGNMENT: usize = 64;

/// Where things are in a queue's part.
const VERSION: usize = 8;
const ENTRIES: usize = 10;
const LAST_OF_BATCH: usize = 12;
const USED: usize = 14;
/// And in an entry.
const TAKEN: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// The only version; 0 is memory that nobody has used yet.
const CURRENT: u16 = 1;

/// Why such memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// No device is like this.
    #[error(
        "buffers in flight of {queues} queues of {size} entries: it must be from 1 to {most} queues, and from 1 to {MAX_SIZE} entries"
    )]
    Queues {
        /// How many queues.
        queues: u16,
        /// Entries of each.
        size: u16,
        /// How many there are.
        most: usize,
    },
    /// It is shorter than it has to be.
    #[error("{len} bytes at {offset} for buffers in flight, of a file of {file}: {needed} bytes are needed")]
    TooShort {
        /// Its length.
        len: u64,
        /// Where it begins.
        offset: u64,
        /// Length of the file; 0 if it is no ordinary one.
        file: u64,
        /// What is needed.
        needed: u64,
    },
    /// Another layout.
    #[error("buffers in flight of queue {0} are noted in another version, or for another size of the queue")]
    Layout(usize),
    /// The kernel refused something.
    #[error("memory for buffers in flight: {0}")]
    Os(#[from] io::Error),
    /// The kernel refused to map it.
    #[error("cannot map the memory for buffers in flight: {0}")]
    Map(#[from] MmapRegionError),
}

/// What such memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length.
    pub len: u64,
    /// Where it begins in its file.
    pub offset: u64,
    /// Queues, both directions counted.
    pub queues: u16,
    /// Entries of each.
    pub size: u16,
}

fn part(size: u16) -> usize {
    (HEAD + ENTRY * usize::from(size)).next_multiple_of(ALIGNMENT)
}

impl Extent {
    fn check(&self, most: usize) -> Result<usize, InflightError> {
        let Extent { queues, size, .. } = *self;
        let possible = (1..=most).contains(&usize::from(queues)) && (1..=MAX_SIZE).contains(&size);
        if possible { Ok(part(size) * usize::from(queues)) } else { Err(InflightError::Queues { queues, size, most }) }
    }

    /// Makes memory for the queues of a device that has `most` of them.
    ///
    /// # Errors
    /// [`InflightError::Queues`], and if the kernel has none.
    pub fn make(mut self, most: usize) -> Result<(Extent, OwnedFd), InflightError> {
        (self.len, self.offset) = (self.check(most)? as u64, 0);
        let fd = memfd_create("in flight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(io::Error::from)?;
        ftruncate(&fd, self.len).map_err(io::Error::from)?;
        Ok((self, fd))
    }

    /// The parts of the queues, in memory that was made by us or by who was there before.
    ///
    /// # Errors
    /// [`InflightError`] if it is not what it says.
    pub fn map(self, file: OwnedFd, most: usize) -> Result<Vec<Inflight>, InflightError> {
        let needed = self.check(most)?;
        // Refused where its maker wanted no seals, or where it has none.
        let _ = fcntl_add_seals(&file, SealFlags::SHRINK);
        let about = fstat(&file).map_err(io::Error::from)?;
        let is_file = FileType::from_raw_mode(about.st_mode) == FileType::RegularFile;
        let there = if is_file { about.st_size.max(0) as u64 } else { 0 };
        let Extent { len, offset, .. } = self;
        let end = offset.checked_add(needed as u64);
        if len < needed as u64 || end.is_none_or(|end| end > there) {
            return Err(InflightError::TooShort { len, offset, file: there, needed: needed as u64 });
        }
        let map = Arc::new(MmapRegion::from_file(FileOffset::new(File::from(file), offset), needed)?);
        let watched = Arc::new(Watched::new(&map)?);
        let of_queue = |n: usize| {
            let queue = Inflight {
                map: map.clone(),
                watched: watched.clone(),
                at: n * part(self.size),
                size: self.size,
                counter: 0,
                batch: Vec::with_capacity(self.size.into()),
            };
            let good = match queue.word(VERSION) {
                0 => true,
                version => version == CURRENT && queue.word(ENTRIES) == self.size,
            };
            if good { Ok(queue) } else { Err(InflightError::Layout(n)) }
        };
        (0..usize::from(self.queues)).map(of_queue).collect()
    }
}

/// What is noted of one queue. Its methods are called in the order in which buffers are taken, given back and shown to the guest.
#[derive(Debug)]
pub struct Inflight {
    map: Arc<MmapRegion>,
    watched: Arc<Watched>,
    at: usize,
    size: u16,
    /// The number of the buffer that is taken next.
    counter: u64,
    /// Given back, and not shown to the guest yet; at most as many as there are entries.
    batch: Vec<u16>,
}

/// The part was checked to be there: what cannot be read is 0, what cannot be written is not.
impl Inflight {
    /// Whether the file became shorter.
    pub fn has_vanished(&self) -> bool {
        self.watched.has_vanished()
    }

    fn word(&self, at: usize) -> u16 {
        let mut b = [0; 2];
        let _ = self.map.as_volatile_slice().read_slice(&mut b, self.at + at);
        u16::from_le_bytes(b)
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let _ = self.map.as_volatile_slice().write_slice(bytes, self.at + at);
    }

    fn entry(&self, head: u16) -> Option<usize> {
        (head < self.size).then(|| HEAD + ENTRY * usize::from(head))
    }

    fn set_taken(&self, head: u16, taken: bool) {
        if let Some(at) = self.entry(head) {
            self.write(at + TAKEN, &[taken.into()]);
        }
    }

    /// Begins with a queue whose used ring stands at `used`: the buffers that were taken and not given back, in the order in which they were taken. `None` if
    /// nothing is known of this queue.
    pub fn recover(&mut self, used: u16) -> Option<Vec<u16>> {
        self.batch.clear();
        // What was shown last, perhaps without being noted.
        let shown = used.wrapping_sub(self.word(USED));
        if self.word(VERSION) == 0 || shown > self.size {
            for head in 0..self.size {
                self.set_taken(head, false);
            }
            self.write(ENTRIES, &self.size.to_le_bytes());
            self.write(USED, &used.to_le_bytes());
            fence(Ordering::SeqCst);
            self.write(VERSION, &CURRENT.to_le_bytes());
            return None;
        }
        let mut head = self.word(LAST_OF_BATCH);
        for _ in 0..shown {
            self.set_taken(head, false);
            let Some(at) = self.entry(head) else { break };
            head = self.word(at + NEXT);
        }
        fence(Ordering::SeqCst);
        self.write(USED, &used.to_le_bytes());
        let mut taken = Vec::new();
        for head in 0..self.size {
            let at = HEAD + ENTRY * usize::from(head);
            let mut b = [0; ENTRY];
            let _ = self.map.as_volatile_slice().read_slice(&mut b, self.at + at);
            if b[TAKEN] != 0 {
                let counter = u128::from_le_bytes(b) >> (8 * COUNTER);
                taken.push((counter as u64, head));
            }
        }
        taken.sort_unstable();
        self.counter = taken.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Some(taken.into_iter().map(|(_, head)| head).collect())
    }

    /// A buffer is taken.
    pub fn take(&mut self, head: u16) {
        if let Some(at) = self.entry(head) {
            self.write(at + COUNTER, &self.counter.to_le_bytes());
            self.counter = self.counter.wrapping_add(1);
            fence(Ordering::SeqCst);
            self.set_taken(head, true);
        }
    }

    /// One that was taken from the guest's ring is there again.
    pub fn untake(&mut self, head: u16) {
        self.set_taken(head, false);
    }

    /// One that was taken is given back, and not shown to the guest yet.
    pub fn give(&mut self, head: u16) {
        if let (Some(at), true) = (self.entry(head), self.batch.len() < usize::from(self.size)) {
            self.write(at + NEXT, &self.word(LAST_OF_BATCH).to_le_bytes());
            self.write(LAST_OF_BATCH, &head.to_le_bytes());
            self.batch.push(head);
        }
    }

    /// All that were given back are shown to the guest, whose ring stands at `used`.
    pub fn publish(&mut self, used: u16) {
        if self.batch.is_empty() {
            return;
        }
        fence(Ordering::SeqCst);
        self.batch.iter().for_each(|head| self.set_taken(*head, false));
        self.batch.clear();
        fence(Ordering::SeqCst);
        self.write(USED, &used.to_le_bytes());
    }
}
