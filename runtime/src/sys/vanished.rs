//! Memory of another process's file, that may become shorter while we use it.
//!
//! Touching what is missing is a `SIGBUS`, which would end this process, and the networks of others with it. Once [`survive`] was called, all of a [`Watched`] mapping is
//! zeroed private memory in its place instead, and the fault is noted: whoever uses it asks [`Watched::has_vanished`] in good time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use vm_memory::{GuestRegionMmap, MmapRegion};

/// Most mappings that can be watched at a time, in the whole process.
const MOST: usize = 512;

/// A mapping, as the signal handler finds it: it can wait for nobody, so that it has to see whether what it reads belongs together.
struct Place {
    /// Odd while the place changes.
    generation: AtomicUsize,
    /// 0: nothing is here.
    start: AtomicUsize,
    len: AtomicUsize,
    taken: AtomicBool,
    vanished: AtomicBool,
}

impl Place {
    const fn new() -> Place {
        Place {
            generation: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            taken: AtomicBool::new(false),
            vanished: AtomicBool::new(false),
        }
    }

    /// Where it is, if this address is in it.
    fn around(&self, address: usize) -> Option<(usize, usize)> {
        let generation = self.generation.load(Ordering::Acquire);
        let (start, len) = (self.start.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        // One that changes now is not the mapping that is being touched: that lives as long as who touches it has it.
        let whole = generation.is_multiple_of(2) && self.generation.load(Ordering::Relaxed) == generation;
        (whole && start != 0 && address.checked_sub(start)? < len).then_some((start, len))
    }

    /// By who has taken it.
    fn set(&self, start: usize, len: usize) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Release);
    }
}

static PLACES: [Place; MOST] = [const { Place::new() }; MOST];

/// Something has vanished, at some time.
static EVER: AtomicBool = AtomicBool::new(false);

/// Whether any mapping has ever vanished: mostly it is enough to ask this.
pub fn has_any() -> bool {
    EVER.load(Ordering::Relaxed)
}

/// A mapping that may vanish, which lives as long as this.
pub struct Watched {
    place: &'static Place,
    _map: Arc<dyn Send + Sync>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").field("vanished", &self.has_vanished()).finish_non_exhaustive()
    }
}

impl Watched {
    /// Watches a mapping.
    ///
    /// # Errors
    /// `OutOfMemory` if 512 mappings are watched already.
    pub fn new(map: &Arc<MmapRegion>) -> io::Result<Watched> {
        Watched::at(map, map.clone())
    }

    /// Watches a region of a guest's memory.
    ///
    /// # Errors
    /// As [`Watched::new`].
    pub fn region(region: &Arc<GuestRegionMmap>) -> io::Result<Watched> {
        Watched::at(region, region.clone())
    }

    /// Only for what is reached by raw pointers and volatile accesses alone, as all of `vm_memory`'s is: so its bytes may change at any time.
    fn at(map: &MmapRegion, keep: Arc<dyn Send + Sync>) -> io::Result<Watched> {
        let take = |p: &&Place| p.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        let place = PLACES.iter().find(take).ok_or(io::ErrorKind::OutOfMemory)?;
        place.vanished.store(false, Ordering::Relaxed);
        place.set(map.as_ptr() as usize, map.size());
        Ok(Watched { place, _map: keep })
    }

    /// Whether something of it was missing, so that all of it is other memory now.
    pub fn has_vanished(&self) -> bool {
        self.place.vanished.load(Ordering::Acquire)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Before it is unmapped.
        self.place.set(0, 0);
        self.place.taken.store(false, Ordering::Release);
    }
}

/// Has this process survive that memory which is watched vanishes. For the whole process: `SIGBUS` is handled from now on, and ends it as ever where it is for anything else.
///
/// # Errors
/// The kernel's.
pub fn survive() -> io::Result<()> {
    // SAFETY: all zeroes are a valid value of this plain structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is initialised and outlives the call; the handler is a function of the type that SA_SIGINFO asks for, and async-signal-safe: it uses
    // atomics and three system calls.
    super::check(unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) }).map(drop)
}

/// The signal's handler.
extern "C" fn handle(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo_t to a handler with SA_SIGINFO; of a SIGBUS it has an address, which is
    // one only if the kernel itself has sent it.
    let (address, from_kernel) = unsafe { ((*info).si_addr() as usize, (*info).si_code > 0) };
    // SAFETY: the calling thread's own errno, which what was interrupted may be about to read.
    let errno = unsafe { *libc::__errno_location() };
    let replaced = from_kernel && PLACES.iter().any(|p| p.around(address).is_some_and(|(start, len)| replace(p, start, len)));
    if replaced {
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
        return;
    }
    // SAFETY: the default action installs no code of ours; the access is repeated when we return, and ends the process.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

/// Puts private memory where the mapping is.
fn replace(place: &Place, start: usize, len: usize) -> bool {
    let (prot, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED);
    place.vanished.store(true, Ordering::Release);
    EVER.store(true, Ordering::Relaxed);
    // SAFETY: the range is a mapping that is watched, so it is one of `vm_memory`'s that lives still ([`Watched`]), of which no reference can be had.
    let p = unsafe { libc::mmap(start as *mut libc::c_void, len, prot, flags, -1, 0) };
    p != libc::MAP_FAILED
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mmap::page_size;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

    #[test]
    fn memory_that_vanishes_is_zeroes_and_is_told() {
        survive().unwrap();
        let file = std::fs::File::from(memfd_create("vanishes", MemfdFlags::CLOEXEC).unwrap());
        let len = 4 * page_size();
        ftruncate(&file, len as u64).unwrap();
        let map = Arc::new(MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), len).unwrap());
        let watched = Watched::new(&map).unwrap();
        let all = map.as_volatile_slice();
        all.write_slice(&[7; 100], 2 * page_size()).unwrap();
        assert!(!watched.has_vanished());
        ftruncate(&file, page_size() as u64).unwrap();
        let mut read = [1; 100];
        all.read_slice(&mut read, 2 * page_size()).unwrap();
        assert!(watched.has_vanished());
        assert_eq!(read, [0; 100]);
        // Nothing of it is the file's any more, so that nothing more can vanish.
        all.write_slice(&[9; 100], 0).unwrap();
        all.write_slice(&[9; 100], 3 * page_size()).unwrap();
        assert_eq!(map.get_slice(0, 1).unwrap().read_obj::<u8>(0).unwrap(), 9);
    }

    #[test]
    fn places_are_used_again() {
        let map = Arc::new(MmapRegion::new(page_size()).unwrap());
        for _ in 0..2 * MOST {
            drop(Watched::new(&map).unwrap());
        }
        assert_eq!(Arc::strong_count(&map), 1);
    }
}
