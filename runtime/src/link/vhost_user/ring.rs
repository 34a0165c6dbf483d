//! A queue and what belongs to it: the descriptors by which both sides tell each other that something is there.

use super::device::DeviceError;
use super::memory::Memory;
use super::queue::{Broken, Queue};
use crate::link::poll::Poll;
use crate::slots::Slots;
use crate::sys::socket::set_nonblocking;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Ring {
    /// Where it stands.
    pub queue: Queue,
    kick: Option<Kick>,
    call: Option<File>,
    error: Option<File>,
    /// Frames may go through it.
    pub enabled: bool,
    /// Started, and not used since.
    fresh: bool,
    /// It makes no sense, and waits for being set up anew.
    broken: bool,
    /// Why, if that was not told yet.
    trouble: Option<Broken>,
    /// The guest was asked to kick, and nothing was taken since.
    pub wants_kicks: bool,
    /// Buffers that were taken and not given back, in their order: the first was lent under its slot number, as were others behind it. They are
    /// given back before the next request, so that whatever becomes of the ring or of the memory, none is lent.
    pub lent: Vec<(u16, u32)>,
}

/// What says that the guest has put something there, and where that is heard.
#[derive(Debug)]
struct Kick {
    event: File,
    poll: Arc<Poll>,
}

impl Drop for Kick {
    fn drop(&mut self) {
        // The front end has it too, so that closing it here would not end it.
        self.poll.remove(&self.event);
    }
}

impl Ring {
    /// Whether buffers can be taken and given. A disabled one that is started is used only to throw frames away.
    pub fn is_running(&self) -> bool {
        self.kick.is_some() && !self.broken
    }

    /// Interrupts the guest.
    pub fn call(&self) {
        signal(self.call.as_ref());
    }

    /// What tells the guest, from now on.
    pub fn set_call(&mut self, call: Option<File>) {
        self.call = call;
        // What it was to be told meanwhile.
        self.call();
    }

    /// What tells the front end of a ring that makes no sense.
    pub fn set_error(&mut self, error: Option<File>) {
        self.error = error;
    }

    /// Starts it where it stands, with this descriptor for kicks, whose event word is `word`.
    pub fn start(&mut self, event: File, poll: &Arc<Poll>, word: u64) -> io::Result<()> {
        let (call, error) = (self.call.take(), self.error.take());
        self.stop();
        poll.add_edge(&event, word)?;
        let kick = Kick { event, poll: poll.clone() };
        (self.kick, self.call, self.error, self.fresh) = (Some(kick), call, error, true);
        Ok(())
    }

    /// Stops it. What was negotiated, and where it stands, stays.
    pub fn stop(&mut self) {
        debug_assert!(self.lent.is_empty(), "a ring is stopped while its buffers are lent");
        (self.kick, self.call, self.error, self.broken, self.fresh, self.wants_kicks) = (None, None, None, false, false, false);
    }

    /// Begins with a ring that was started: goes on where it stands. Asked before each use; `false` if it cannot be used.
    pub fn ready(&mut self, memory: &Memory) -> bool {
        if !self.is_running() {
            return false;
        }
        if std::mem::take(&mut self.fresh) {
            let resumed = self.queue.rings(memory).and_then(|r| self.queue.resume(&r));
            if let Err(e) = resumed {
                self.break_off(e);
            }
        }
        self.is_running()
    }

    /// Gives back what was lent; whether there was something.
    pub fn end_lent(&mut self, memory: &Memory, slots: &mut Slots) -> bool {
        if self.lent.is_empty() {
            return false;
        }
        let mut given = if self.is_running() { self.queue.rings(memory).map(Some) } else { Ok(None) };
        for (head, slot) in self.lent.drain(..) {
            slots.end_lent(slot);
            given = given.and_then(|rings| {
                rings.as_ref().map_or(Ok(()), |r| self.queue.give(r, head, 0))?;
                Ok(rings)
            });
        }
        if let Err(e) = given {
            self.break_off(e);
        }
        true
    }

    /// Stops a ring that makes no sense, until it is set up again.
    pub fn break_off(&mut self, why: Broken) {
        self.broken = true;
        self.trouble = Some(why);
        signal(self.error.as_ref());
    }

    /// Why it makes no sense, once.
    pub fn take_trouble(&mut self) -> Option<Broken> {
        self.trouble.take()
    }

    /// Shows the guest what it was given or what was taken from it, and interrupts it if it wants to know.
    pub fn tell(&mut self, memory: &Memory) {
        if !self.ready(memory) {
            return;
        }
        let told = self.queue.rings(memory).and_then(|rings| {
            self.queue.publish(&rings)?;
            self.queue.wants_call(&rings)
        });
        match told {
            Ok(true) => self.call(),
            Ok(false) => {}
            Err(e) => self.break_off(e),
        }
    }
}

/// Adds one to what an eventfd says.
pub(super) fn signal(event: Option<&File>) {
    if let Some(mut e) = event {
        // Its counter at its limit is as good as one more.
        let _ = e.write(&1u64.to_ne_bytes());
    }
}

/// An eventfd, made non-blocking. Anything else could block us, or is not what it is for.
pub(super) fn event(fd: Option<OwnedFd>, wrong: DeviceError) -> Result<File, DeviceError> {
    let Some(fd) = fd else { return Err(wrong) };
    // Anonymous files alone have no type; of those, only eventfds take and give eight bytes.
    let stat = rustix::fs::fstat(&fd).map_err(io::Error::from)?;
    if stat.st_mode & libc::S_IFMT != 0 {
        return Err(wrong);
    }
    set_nonblocking(&fd)?;
    Ok(File::from(fd))
}
