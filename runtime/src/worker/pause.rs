//! Standing still: traffic waits in the kernel while a worker is paused.

use super::{Source, Worker, word};
use event_manager::{EventOps, Events};
use hibernet_netstack::Time;
use hibernet_netstack::state::GoesOn;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

/// Who stood still for longer has to look after those who went on: a guest's kernel sends again after this time.
const NOTICED: Duration = Duration::from_millis(200);

/// Whether a worker stands still, and what it does not watch meanwhile.
#[derive(Debug)]
pub(super) struct Stillness {
    /// Since when it stands still, by the clock that does not stop.
    since: Option<Time>,
    /// Descriptors of traffic that are not watched.
    parked: Vec<(Source, usize, RawFd)>,
    /// Wakes the worker when it goes on.
    kick: EventFd,
}

impl Stillness {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Stillness { since: None, parked: Vec::new(), kick: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)? })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }
}

impl Source {
    /// Whether its events move packets.
    fn is_traffic(self) -> bool {
        matches!(self, Source::Link | Source::Sockets | Source::Listener | Source::Inbox)
    }
}

impl Worker {
    /// Stands still: reads nothing from links and sockets, accepts no connection, and its clock and the reaper stop. What comes waits in the
    /// kernel. Requests at the control socket are still answered. Any number of times.
    pub fn pause(&mut self) {
        if self.is_paused() || self.finished.is_some() {
            return;
        }
        self.stillness.since = Some(self.host_clock.now());
        self.clock.stop();
        self.still_followers(true);
        self.stack.conntrack().quiesce();
        slog::info!(self.log, "paused");
    }

    /// Goes on where it stood. Time that passed meanwhile does not count. Any number of times.
    pub fn resume(&mut self) {
        let Some(since) = self.stillness.since.take() else { return };
        self.clock.go_on();
        let now = self.clock.now();
        self.stack.conntrack().restart(now);
        let asleep = self.host_clock.now().since(since);
        if asleep >= NOTICED {
            self.stack.thaw(now, asleep, &|_| GoesOn::Yes, &mut self.edge);
            self.thaw_followers(now, asleep);
        }
        self.still_followers(false);
        // The event loop has to watch what it does not.
        self.kick();
        slog::info!(self.log, "goes on");
    }

    /// A link is not watched any more, and will not be again.
    pub(super) fn unpark_link(&mut self, index: usize) {
        self.stillness.parked.retain(|&(source, i, _)| (source, i) != (Source::Link, index));
    }

    /// Has the event loop call us, whoever asks for it.
    pub(super) fn kick(&self) {
        // A write of 1 cannot fill the counter.
        let _ = self.stillness.kick.write(1);
    }

    /// Whether it stands still.
    pub fn is_paused(&self) -> bool {
        self.stillness.since.is_some()
    }

    /// An event that is not for now: its descriptor is not watched until the worker goes on. Whether that is so.
    pub(super) fn park(&mut self, source: Source, index: usize, ops: &mut EventOps<'_>) -> bool {
        // Who has moved a machine away is heard of at its link.
        if !self.is_paused() || !source.is_traffic() || source == Source::Link && self.is_moving() {
            return false;
        }
        let found = self.watched().into_iter().find(|&(s, i, _)| (s, i) == (source, index));
        if let Some((source, index, fd)) = found {
            match ops.remove(Events::empty_raw(fd)) {
                Ok(()) => self.stillness.parked.push((source, index, fd)),
                Err(e) => slog::error!(self.log, "cannot stop watching a descriptor"; "for" => ?source, "error" => ?e),
            }
        }
        true
    }

    /// Sockets and listeners are to be closed: they are not watched any more.
    pub(super) fn unwatch_sockets(&mut self, ops: &mut EventOps<'_>) {
        for (source, index, fd) in self.watched() {
            let is_socket = matches!(source, Source::Sockets | Source::Listener);
            let parked = self.stillness.parked.contains(&(source, index, fd));
            if is_socket
                && !parked
                && let Err(e) = ops.remove(Events::empty_raw(fd))
            {
                slog::error!(self.log, "cannot stop watching a descriptor"; "for" => ?source, "error" => ?e);
            }
        }
        self.stillness.parked.retain(|(source, ..)| *source == Source::Link);
    }

    /// There are others.
    pub(super) fn watch_sockets(&mut self, ops: &mut EventOps<'_>) {
        for (source, index, fd) in self.watched() {
            let is_socket = matches!(source, Source::Sockets | Source::Listener);
            if is_socket && let Err(e) = ops.add(Events::with_data_raw(fd, word(source, index), EventSet::IN)) {
                slog::error!(self.log, "cannot watch a descriptor"; "for" => ?source, "error" => ?e);
            }
        }
    }

    /// Was woken to go on.
    pub(super) fn kicked(&mut self, ops: &mut EventOps<'_>) {
        let _ = self.stillness.kick.read();
        self.change_links(ops);
        self.leave(ops);
        self.listen_supplied(ops);
        if self.is_paused() {
            return;
        }
        for (source, index, fd) in std::mem::take(&mut self.stillness.parked) {
            let gone = source == Source::Link && self.links[index].gone;
            let waits = source == Source::Link && self.links[index].waits;
            let set = if waits { EventSet::IN | EventSet::OUT } else { EventSet::IN };
            if gone {
                continue;
            }
            if let Err(e) = ops.add(Events::with_data_raw(fd, word(source, index), set)) {
                slog::error!(self.log, "cannot watch a descriptor again"; "for" => ?source, "error" => ?e);
            }
        }
    }

    /// The end of a wake-up in which nothing moves: only those who ask at the control socket are waited for.
    pub(super) fn settle_still(&mut self, now: Time, ops: &mut EventOps<'_>) {
        self.expire_clients(ops);
        let deadline = self.client_deadline(now);
        self.arm(now, deadline);
    }
}
