//! The log of pages that were written to, for a front end that copies the guest's memory elsewhere while we go on (`VHOST_F_LOG_ALL`; QEMU's vhost-user
//! specification, "Migration").
//!
//! A bit for each page of 4 KiB, from the guest's address 0 on, in memory that the front end shares. It takes bits out at any time, so that they are set
//! atomically, and behind what they tell of.

use crate::sys::vanished::Watched;
use rustix::fs::{FileType, SealFlags, fcntl_add_seals, fstat};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Bytes of a page, whatever the machine's are (`VHOST_LOG_PAGE`).
const PAGE: u64 = 4096;
/// Bytes of the guest that a byte of the log is for.
const PER_BYTE: u64 = 8 * PAGE;
/// Longest log: no machine has more than 52 bits of an address.
const MAX_LEN: u64 = (1 << 52) / PER_BYTE;

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It has no length that it could have.
    #[error("a log of {0} bytes: it has at least one and at most {MAX_LEN}")]
    Length(u64),
    /// Its file is shorter, or none.
    #[error("a log of {len} bytes at {offset} is not in its file of {file} bytes")]
    BeyondFile {
        /// Its length.
        len: u64,
        /// Where it begins.
        offset: u64,
        /// Length of the file; 0 if it is no ordinary one.
        file: u64,
    },
    /// Not all that is written to has its bit in it.
    #[error("the log ends at {end:#x} of the guest's memory, which is written to up to {needed:#x}")]
    TooShort {
        /// The first address that has none.
        end: u64,
        /// Behind the last that needs one.
        needed: u64,
    },
    /// The file cannot be looked at.
    #[error("cannot look at the log's file: {0}")]
    File(io::Error),
    /// The kernel refused to map it.
    #[error("cannot map the log: {0}")]
    Map(#[from] MmapRegionError),
    /// There are too many mappings.
    #[error("cannot watch over the log: {0}")]
    Watch(io::Error),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct DirtyLog {
    map: Arc<MmapRegion>,
    watched: Watched,
}

impl DirtyLog {
    /// Maps `len` bytes of a file, from `offset` on. Where the file can be sealed it cannot be shortened any more.
    pub fn map(file: OwnedFd, len: u64, offset: u64) -> Result<DirtyLog, LogError> {
        let size = usize::try_from(len).ok().filter(|_| (1..=MAX_LEN).contains(&len)).ok_or(LogError::Length(len))?;
        // Refused where its maker wanted no seals, or where it has none.
        let _ = fcntl_add_seals(&file, SealFlags::SHRINK);
        let about = fstat(&file).map_err(|e| LogError::File(e.into()))?;
        let is_file = FileType::from_raw_mode(about.st_mode) == FileType::RegularFile;
        let there = if is_file { about.st_size.max(0) as u64 } else { 0 };
        if offset.checked_add(len).is_none_or(|end| end > there) {
            return Err(LogError::BeyondFile { len, offset, file: there });
        }
        let map = Arc::new(MmapRegion::from_file(FileOffset::new(File::from(file), offset), size)?);
        let watched = Watched::new(&map).map_err(LogError::Watch)?;
        Ok(DirtyLog { map, watched })
    }

    /// Whether its file became shorter.
    pub fn has_vanished(&self) -> bool {
        self.watched.has_vanished()
    }

    /// The first address of the guest that has no bit.
    pub fn end(&self) -> u64 {
        self.map.size() as u64 * PER_BYTE
    }

    /// Whether it has a bit for everything below `end`.
    ///
    /// # Errors
    /// [`LogError::TooShort`] if it has not.
    pub fn covers(&self, needed: u64) -> Result<(), LogError> {
        let end = self.end();
        if needed <= end { Ok(()) } else { Err(LogError::TooShort { end, needed }) }
    }

    /// Marks the pages of `len` bytes at `at`. Those that have no bit are left out.
    pub fn mark(&self, at: u64, len: usize) {
        let Some(last) = (len as u64).checked_sub(1).map(|n| at.saturating_add(n)) else { return };
        for page in at / PAGE..=last.min(self.end() - 1) / PAGE {
            if let Ok(byte) = self.map.get_atomic_ref::<AtomicU8>((page / 8) as usize) {
                byte.fetch_or(1 << (page % 8), Ordering::Release);
            }
        }
    }
}
