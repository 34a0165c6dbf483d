//! The guest's memory, as far as the front end shares it.

use super::log::{DirtyLog, LogError};
use super::message::Region;
use crate::sys::vanished::Watched;
use rustix::fs::{FileType, fstat};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion, VolatileSlice,
};

/// Most regions, when they come one by one.
pub const MAX_SLOTS: usize = 32;

/// Why memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A region of nothing, or one that wraps around.
    #[error("region {0:?} is empty or has no end")]
    Impossible(Region),
    /// Regions overlap, in the guest or in the front end.
    #[error("region {0:?} overlaps another one")]
    Overlaps(Region),
    /// Its file is shorter; touching what is missing would be fatal.
    #[error("region {region:?} goes beyond its file's {len} bytes")]
    BeyondFile {
        /// Which one.
        region: Region,
        /// Length of the file.
        len: u64,
    },
    /// The file cannot be looked at.
    #[error("cannot look at the file of region {region:?}: {why}")]
    File {
        /// Which one.
        region: Region,
        /// The reason.
        why: io::Error,
    },
    /// Too many.
    #[error("more than {MAX_SLOTS} regions of memory")]
    TooMany,
    /// The log has no bits for it.
    #[error(transparent)]
    Log(#[from] LogError),
    /// There is none like this.
    #[error("no such region of memory: {0:?}")]
    NotThere(Region),
    /// The kernel refused to map it.
    #[error("cannot map region {region:?}: {why}")]
    Map {
        /// Which one.
        region: Region,
        /// The reason.
        why: vm_memory::mmap::MmapRegionError,
    },
}

/// Regions of the guest's memory, mapped. Other processes change it at any time: what is read is copied before it is looked at.
///
/// Of a region whose file the front end shortens, other memory takes the place when it is touched ([`Memory::has_vanished`]), in a process that asked for that
/// ([`vanished::survive`](crate::sys::vanished::survive)).
#[derive(Clone, Default)]
pub struct Memory {
    map: Arc<GuestMemoryMmap>,
    regions: Vec<Region>,
    watched: Vec<Arc<Watched>>,
    log: Option<Arc<DirtyLog>>,
    /// What is written is logged, if there is a log.
    pub logging: bool,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.regions).finish()
    }
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}

impl Memory {
    /// Takes a whole table in place of what is there.
    pub fn replace(&mut self, regions: &[Region], files: Vec<OwnedFd>) -> Result<(), MemoryError> {
        let mut new = Memory::default();
        for (r, f) in regions.iter().zip(files) {
            new.add(*r, f)?;
        }
        if let Some(log) = &self.log {
            log.covers(new.end())?;
        }
        (self.map, self.regions, self.watched) = (new.map, new.regions, new.watched);
        Ok(())
    }

    /// Uses memory that is mapped already.
    pub fn share(&mut self, map: GuestMemoryMmap) {
        *self = Memory { map: Arc::new(map), ..Memory::default() };
    }

    /// Logs into this from now on, or no more.
    pub fn set_log(&mut self, log: DirtyLog) -> Result<(), LogError> {
        log.covers(self.end())?;
        self.log = Some(Arc::new(log));
        Ok(())
    }

    /// The log.
    pub fn log(&self) -> Option<&DirtyLog> {
        self.log.as_deref()
    }

    /// Whether something was missing of a file, of which the front end had said how long it is: then a region of it is other memory, of which the guest knows nothing.
    pub fn has_vanished(&self) -> bool {
        self.watched.iter().any(|w| w.has_vanished()) || self.log.as_ref().is_some_and(|l| l.has_vanished())
    }

    /// Behind the last of the guest's addresses.
    fn end(&self) -> u64 {
        self.regions.iter().map(|r| r.guest + r.size).max().unwrap_or(0)
    }

    /// Logs that something was written.
    pub fn mark(&self, at: u64, len: usize) {
        if self.logging
            && let Some(log) = &self.log
        {
            log.mark(at, len);
        }
    }

    /// Adds a region.
    pub fn add(&mut self, r: Region, file: OwnedFd) -> Result<(), MemoryError> {
        if self.regions.len() == MAX_SLOTS {
            return Err(MemoryError::TooMany);
        }
        let ends = [r.guest, r.user, r.offset].map(|start| start.checked_add(r.size));
        let size = usize::try_from(r.size).ok().filter(|&n| n > 0 && ends.iter().all(Option::is_some));
        let size = size.ok_or(MemoryError::Impossible(r))?;
        let clash = |o: &Region| overlap((o.guest, o.size), (r.guest, r.size)) || overlap((o.user, o.size), (r.user, r.size));
        if self.regions.iter().any(clash) {
            return Err(MemoryError::Overlaps(r));
        }
        if let (Some(log), Some(end)) = (&self.log, ends[0]) {
            log.covers(end)?;
        }
        let about = fstat(&file).map_err(|e| MemoryError::File { region: r, why: e.into() })?;
        let len = about.st_size.max(0) as u64;
        // Devices have no length that one could ask for.
        if FileType::from_raw_mode(about.st_mode) == FileType::RegularFile && len < r.offset + r.size {
            return Err(MemoryError::BeyondFile { region: r, len });
        }
        let mapped = MmapRegion::from_file(FileOffset::new(File::from(file), r.offset), size);
        let mapped = mapped.map_err(|why| MemoryError::Map { region: r, why })?;
        let mapped = Arc::new(GuestRegionMmap::new(mapped, GuestAddress(r.guest)).ok_or(MemoryError::Impossible(r))?);
        let watched = Watched::region(&mapped).map_err(|_| MemoryError::TooMany)?;
        self.map = Arc::new(self.map.insert_region(mapped).map_err(|_| MemoryError::Overlaps(r))?);
        self.regions.push(r);
        self.watched.push(Arc::new(watched));
        Ok(())
    }

    /// Takes a region away: the one at these addresses.
    pub fn remove(&mut self, r: Region) -> Result<(), MemoryError> {
        let same = |o: &Region| (o.guest, o.user, o.size) == (r.guest, r.user, r.size);
        let at = self.regions.iter().position(same).ok_or(MemoryError::NotThere(r))?;
        let (map, _) = self.map.remove_region(GuestAddress(r.guest), r.size).map_err(|_| MemoryError::NotThere(r))?;
        self.map = Arc::new(map);
        self.regions.remove(at);
        self.watched.remove(at);
        Ok(())
    }

    /// The guest's address of something that the front end has at `user`.
    pub fn guest_address(&self, user: u64) -> Option<u64> {
        let r = self.regions.iter().find(|r| user >= r.user && user - r.user < r.size)?;
        Some(r.guest + (user - r.user))
    }

    /// The regions as they are now, for who refers to them beyond the next request.
    pub fn regions(&self) -> &Arc<GuestMemoryMmap> {
        &self.map
    }

    /// `len` bytes of the guest's memory at `at`, which lie in one region; `None` if they do not.
    pub fn slice(&self, at: u64, len: usize) -> Option<VolatileSlice<'_>> {
        self.map.get_slice(GuestAddress(at), len).ok()
    }

    /// `len` bytes of the guest's memory at `at`, a piece for each region that they lie in; `None` in place of what is not there.
    pub fn slices(&self, at: u64, len: usize) -> impl Iterator<Item = Option<VolatileSlice<'_>>> {
        self.map.get_slices(GuestAddress(at), len).map(Result::ok)
    }

    /// Copies what the guest has at `at`. False if not all of that is there.
    pub fn read(&self, at: u64, out: &mut [u8]) -> bool {
        self.map.read_slice(out, GuestAddress(at)).is_ok()
    }

    /// Copies bytes to where the guest has `at`. False if not all of that is there; then some of them may have been copied.
    pub fn write(&self, at: u64, bytes: &[u8]) -> bool {
        let written = self.map.write_slice(bytes, GuestAddress(at)).is_ok();
        self.mark(at, bytes.len());
        written
    }
}
