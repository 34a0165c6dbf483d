//! What happens to held sockets while their network sleeps. Nothing is taken out of them: what woke it is there for whoever goes on.

use crate::checkpoint::Held;
use crate::checkpoint::news::{Event, Interest, News, Subject, Watched};
use crate::sys::socket;
use hibernet_netstack::tuple::Endpoint;
use rustix::event::{Timespec, epoll};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Events taken at a time.
const EVENTS: usize = 64;

/// Waits for every held socket at once. Each is announced once at most: one is enough to wake a network, and a peer that
/// goes on sending costs nothing.
#[derive(Debug)]
pub(super) struct Watch {
    epoll: OwnedFd,
    /// What the number is that comes with an event.
    subjects: Vec<Subject>,
    /// The first news of each kind.
    news: Vec<News>,
}

impl Watch {
    /// Of all that is held. What was there before counts too: it waits for the guest.
    pub(super) fn new(held: &Held, watched: Vec<Watched>) -> io::Result<Watch> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut watch = Watch { epoll, subjects: Vec::with_capacity(watched.len() + held.tcp_listeners.len()), news: Vec::new() };
        let sockets: HashMap<u32, BorrowedFd<'_>> = held.sockets.iter().map(|(id, fd)| (id.0, fd.as_fd())).collect();
        for Watched { sock, subject, interest } in watched {
            if let Some(fd) = sockets.get(&sock) {
                watch.add(*fd, subject, interest)?;
            }
        }
        for (_, fd) in &held.tcp_listeners {
            let at = socket::local_addr(fd.as_fd())?;
            watch.add(fd.as_fd(), Subject::Tcp(Endpoint::new(at.ip(), at.port())), Interest::Data)?;
        }
        Ok(watch)
    }

    fn add(&mut self, fd: BorrowedFd<'_>, subject: Subject, interest: Interest) -> io::Result<()> {
        use epoll::EventFlags as F;
        // Errors are always announced.
        let flags = match interest {
            Interest::Data => F::IN | F::RDHUP,
            Interest::Connect => F::IN | F::RDHUP | F::OUT,
            Interest::Error => F::empty(),
        };
        let data = epoll::EventData::new_u64(self.subjects.len() as u64);
        epoll::add(&self.epoll, fd, data, flags | F::ONESHOT)?;
        self.subjects.push(subject);
        Ok(())
    }

    /// Readable when something has happened.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// What has happened since the sleep began: the first of each kind.
    pub(super) fn news(&self) -> &[News] {
        &self.news
    }

    /// Looks what has happened since the last time; what is the first of its kind.
    pub(super) fn look(&mut self) -> io::Result<Vec<News>> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let known = self.news.len();
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now)) {
                Ok(0) => return Ok(self.news[known..].to_vec()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            for e in events.drain(..) {
                let data = e.data;
                let Some(subject) = self.subjects.get(data.u64() as usize) else { continue };
                let event = subject.event();
                if !self.has(event) {
                    self.news.push(News { event, subject: subject.clone() });
                }
            }
        }
    }

    fn has(&self, event: Event) -> bool {
        self.news.iter().any(|n| n.event == event)
    }
}
