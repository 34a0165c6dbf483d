//! A set of descriptors, itself one that is readable while one of them is.

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most events of one look.
const EVENTS: usize = 8;

/// The word of those links that do not ask what is ready: there is little enough to try.
pub(super) const ANY: u64 = 0;

/// See the module's documentation. Level-triggered.
#[derive(Debug)]
pub(super) struct Poll(OwnedFd);

impl Poll {
    /// Of none.
    pub fn new() -> io::Result<Poll> {
        Ok(Poll(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Adds a descriptor; `word` comes back when it is readable.
    pub fn add(&self, fd: impl AsFd, word: u64) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(word), EventFlags::IN)?)
    }

    /// As [`Poll::add`], and each time that something comes it is reported once, whether it is read or not.
    pub fn add_edge(&self, fd: impl AsFd, word: u64) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(word), EventFlags::IN | EventFlags::ET)?)
    }

    /// Has a descriptor that was added count as readable when it takes more, too, or no longer. Whether that could be done.
    pub fn watch_room(&self, fd: impl AsFd, word: u64, room: bool) -> bool {
        let set = if room { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        epoll::modify(&self.0, fd, EventData::new_u64(word), set).is_ok()
    }

    /// Takes a descriptor out. Needed also where it is closed at once: others may have it too, and then it would go on to be reported.
    pub fn remove(&self, fd: impl AsFd) {
        // The one error is that it is not there.
        let _ = epoll::delete(&self.0, fd);
    }

    /// The words of those that are readable now, at most 8.
    pub fn ready(&self) -> io::Result<impl Iterator<Item = u64> + use<>> {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS];
        let n = match epoll::wait(&self.0, &mut events, Some(&Timespec::default())) {
            Ok(n) => n,
            Err(rustix::io::Errno::INTR) => 0,
            Err(e) => return Err(e.into()),
        };
        Ok(events.into_iter().take(n).map(|e| e.data.u64()))
    }
}

impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
