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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tcp;
    use hibernet_netstack::edge::SockId;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};

    /// Connections and what is held of them: as a watch, and the peers' ends.
    fn watched(interests: &[Interest]) -> (Watch, Held, Vec<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut held, mut peers, mut all) = (Held::default(), Vec::new(), Vec::new());
        for (sock, interest) in (0..).zip(interests) {
            let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            peers.push(listener.accept().unwrap().0);
            held.sockets.push((SockId(sock), ours.into()));
            all.push(Watched { sock, subject: Subject::Query, interest: *interest });
        }
        (Watch::new(&held, all).unwrap(), held, peers)
    }

    /// Waits for so many milliseconds whether something happens.
    fn happens(watch: &Watch, ms: i64) -> bool {
        let time = Timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 };
        poll(&mut [PollFd::from_borrowed_fd(watch.fd(), PollFlags::IN)], Some(&time)).unwrap() > 0
    }

    #[test]
    fn nothing_is_taken_and_nothing_announced_twice() {
        let (mut watch, held, mut peers) = watched(&[Interest::Data, Interest::Data]);
        assert!(!happens(&watch, 0));
        peers[1].write_all(b"x").unwrap();
        assert!(happens(&watch, 5000));
        assert_eq!(watch.look().unwrap(), [News { event: Event::Readable, subject: Subject::Query }]);
        peers[1].write_all(b"y").unwrap();
        let mut stream = TcpStream::from(held.sockets[1].1.try_clone().unwrap());
        let mut both = [0; 2];
        stream.read_exact(&mut both).unwrap();
        assert_eq!((&both, happens(&watch, 0)), (b"xy", false));
        // Another connection's news is nothing new.
        peers[0].write_all(b"x").unwrap();
        assert!(happens(&watch, 5000) && watch.look().unwrap().is_empty());
        assert_eq!(watch.news().len(), 1);
    }

    #[test]
    fn keep_alives_are_no_news() {
        let (watch, held, peers) = watched(&[Interest::Data]);
        // Sent by either side, every second.
        let fds = held.sockets.iter().map(|(_, fd)| fd.as_fd()).chain(peers.iter().map(AsFd::as_fd));
        for fd in fds.clone() {
            for (level, name) in [(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE), (libc::SOL_SOCKET, libc::SO_KEEPALIVE)] {
                socket::set_option(fd, level, name, 1).unwrap();
            }
        }
        assert!(!happens(&watch, 3500));
        for fd in fds {
            let mut info = [0; 60];
            socket::get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).unwrap();
            // tcpi_last_ack_recv, in milliseconds.
            let heard = u32::from_ne_bytes(info[56..60].try_into().unwrap());
            assert!(heard < 3500, "the peer was heard last {heard} ms ago");
        }
    }

    #[test]
    fn an_end_that_is_known_is_no_news_but_a_reset_is() {
        let (mut watch, held, peers) = watched(&[Interest::Error, Interest::Data]);
        for p in &peers {
            p.shutdown(std::net::Shutdown::Write).unwrap();
        }
        assert!(happens(&watch, 5000));
        assert_eq!(watch.look().unwrap().len(), 1);
        assert!(!happens(&watch, 0));
        assert_eq!(tcp::unread(held.sockets[0].1.as_fd()).unwrap(), 0);
        socket::set_linger_reset(peers[0].as_fd()).unwrap();
        drop(peers);
        assert!(happens(&watch, 5000));
    }

    #[test]
    fn what_was_there_before_and_a_connect_that_ends_are_news() {
        let (_, held, mut peers) = watched(&[Interest::Data, Interest::Data]);
        let of = |sock, interest| vec![Watched { sock, subject: Subject::Query, interest }];
        assert!(happens(&Watch::new(&held, of(1, Interest::Connect)).unwrap(), 0));
        peers[0].write_all(b"x").unwrap();
        assert!(happens(&Watch::new(&held, of(0, Interest::Data)).unwrap(), 5000));
    }

    #[test]
    fn clients_and_datagrams_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, at) = (UdpSocket::bind("127.0.0.1:0").unwrap(), listener.local_addr().unwrap());
        let bound = port.local_addr().unwrap();
        let subject = Subject::Udp(Endpoint::new(bound.ip(), bound.port()));
        let mut held = Held { tcp_listeners: vec![(0, listener.into())], ..Held::default() };
        held.sockets.push((SockId(9), port.into()));
        let udp = Watched { sock: 9, subject: subject.clone(), interest: Interest::Data };
        let mut watch = Watch::new(&held, vec![udp]).unwrap();
        assert!(!happens(&watch, 0));
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", bound).unwrap();
        assert!(happens(&watch, 5000));
        assert_eq!(watch.look().unwrap(), [News { event: Event::Udp, subject }]);
        let _client = TcpStream::connect(at).unwrap();
        assert!(happens(&watch, 5000));
        let accept = News { event: Event::Accept, subject: Subject::Tcp(Endpoint::new(at.ip(), at.port())) };
        assert_eq!(watch.look().unwrap(), [accept]);
        assert_eq!(watch.news().len(), 2);
    }
}
