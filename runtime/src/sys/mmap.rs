//! Anonymous memory whose pages cost nothing until they are touched.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;

/// A private anonymous mapping, zero at first. Address space only; nothing is reserved, so touching it may fail
/// fatally when the machine is out of memory, as with any memory under overcommit.
#[derive(Debug)]
pub struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory that this value alone owns; nothing in it is tied to a thread.
unsafe impl Send for Mapping {}
// SAFETY: a shared reference gives read access only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes, `len` > 0. Huge pages are declined: one touched byte would cost 2 MiB.
    pub fn anonymous(len: usize) -> io::Result<Mapping> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses touches no existing memory.
        let p = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ptr = NonNull::new(p.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the range is the mapping just made. This is advice; a kernel without huge pages refuses it, which changes nothing.
        unsafe { libc::madvise(p, len, libc::MADV_NOHUGEPAGE) };
        Ok(Mapping { ptr, len })
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable, initialised (zero or written through `bytes_mut`), `len` long and lives as long as `self`;
        // writers need `&mut self`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// All of it, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the mapping is writable and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// Gives the memory of the whole pages within `range` back to the kernel; they read as zero afterwards.
    pub fn discard(&mut self, range: Range<usize>) {
        let page = page_size();
        let start = range.start.min(self.len).next_multiple_of(page);
        let end = range.end.min(self.len) / page * page;
        if start >= end {
            return;
        }
        // SAFETY: `start..end` are whole pages within the mapping, of which `&mut self` is the only user; zero is a valid value.
        unsafe { libc::madvise(self.ptr.as_ptr().add(start).cast(), end - start, libc::MADV_DONTNEED) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that was mapped, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

/// Size of a page of memory in bytes.
pub fn page_size() -> usize {
    // SAFETY: sysconf reads a constant.
    let n = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(n).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discarded_pages_read_as_zero_and_partial_ones_stay() {
        let page = page_size();
        let mut m = Mapping::anonymous(4 * page).unwrap();
        m.bytes_mut().fill(7);
        m.discard(1..3 * page);
        assert!(m.bytes()[..page].iter().all(|&b| b == 7));
        assert!(m.bytes()[page..3 * page].iter().all(|&b| b == 0));
        assert!(m.bytes()[3 * page..].iter().all(|&b| b == 7));
        m.discard(5 * page..9 * page);
        assert_eq!(m.bytes().len(), 4 * page);
    }

    #[test]
    fn impossible_sizes_are_errors() {
        assert!(Mapping::anonymous(0).is_err());
        assert!(Mapping::anonymous(usize::MAX & !4095).is_err());
    }
}
