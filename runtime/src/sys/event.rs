//! An event that makes a descriptor readable.

use super::check;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// Whether a descriptor is readable now, or has an end to be read: a process's that it has ended.
pub fn is_readable(fd: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::default())).is_ok_and(|n| n > 0)
}

/// Readable from [`Event::signal`] until [`Event::clear`]. Shared by reference between threads.
#[derive(Debug)]
pub struct Event(std::fs::File);

impl Event {
    /// Not signalled.
    pub fn new() -> io::Result<Event> {
        // SAFETY: eventfd() takes no pointers.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the kernel just made this descriptor for us alone.
        Ok(Event(unsafe { OwnedFd::from_raw_fd(fd) }.into()))
    }

    /// Makes it readable.
    pub fn signal(&self) {
        // The one error, a counter at its limit of 2^64 - 2, leaves the event signalled.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    /// Makes it unreadable; returns whether it was readable.
    pub fn clear(&self) -> bool {
        (&self.0).read(&mut [0; 8]).is_ok()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_add_up_to_one() {
        let e = Event::new().unwrap();
        assert!(!e.clear());
        e.signal();
        e.signal();
        assert!(e.clear());
        assert!(!e.clear());
    }
}
