//! A sleeping network: its host sockets, kept alive by whoever holds them.

use super::watch::Watch;
use crate::checkpoint::Held;
use crate::checkpoint::news::{News, Watched};
use crate::control::lifecycle::WakeExec;
use crate::control::registry::Asleep;
use crate::sandbox::failure::complain;
use crate::sys::socket;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How often a peer that says nothing is asked whether it is there, in seconds: often enough for what stands between.
const KEEP_ALIVE: libc::c_int = 60;
/// How often in vain. Nothing is gained by giving it up while asleep.
const PROBES: libc::c_int = 127;

/// The options, and what they are while asleep.
const OPTIONS: [(libc::c_int, libc::c_int, libc::c_int); 4] = [
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEP_ALIVE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, KEEP_ALIVE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, PROBES),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
];

/// What is held while a network sleeps.
#[derive(Debug)]
pub(super) struct Holder {
    held: Held,
    /// For a TCP socket, by its index in `held`: the options as they were.
    options: Vec<(u32, [libc::c_int; OPTIONS.len()])>,
    pub(super) about: Asleep,
    /// What happens to them; or why nothing will be heard of that.
    watch: Result<Watch, &'static str>,
    /// What is run when the first thing happens.
    pub(super) wake: Option<WakeExec>,
    /// As long as this connection to a repair helper is open, the packets of sockets that are in the image stay locked.
    _lock: Option<OwnedFd>,
}

impl Holder {
    /// Holds these sockets from now on.
    pub(super) fn new(
        held: Held,
        watched: Vec<Watched>,
        generation: String,
        wake: Option<WakeExec>,
        lock: Option<OwnedFd>,
    ) -> Holder {
        let mut options = Vec::new();
        for (i, (_, fd)) in held.sockets.iter().enumerate() {
            // One that refuses has been reset, and needs nothing any more.
            options.extend(keep_alive(fd.as_fd()).map(|before| (i as u32, before)));
        }
        options.shrink_to_fit();
        let about = Asleep { generation, held: held.sockets.len() as u64 };
        let watch = match held.generation {
            None => Err("it sleeps without its sockets (`--no-hold`, `--repair`), so nothing can come for it"),
            Some(_) => Watch::new(&held, watched).map_err(|e| {
                complain(format_args!("warning: held sockets cannot be watched, wake the network by hand: {e}"));
                "its sockets cannot be watched; see the log of its supervisor"
            }),
        };
        Holder { held, options, about, watch, wake, _lock: lock }
    }

    /// The sockets.
    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    /// What has happened since the sleep began, the first of each kind; or why that is not known.
    pub(super) fn news(&self) -> Result<&[News], &'static str> {
        self.watch.as_ref().map(Watch::news).map_err(|why| *why)
    }

    /// Readable when something has happened.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().ok().map(Watch::fd)
    }

    /// Looks what has happened since the last time. After a failure it is not looked any more.
    pub(super) fn look(&mut self) -> io::Result<Vec<News>> {
        let Ok(watch) = &mut self.watch else { return Ok(Vec::new()) };
        let news = watch.look();
        if news.is_err() {
            self.watch = Err("its sockets cannot be watched any more; see the log of its supervisor");
        }
        news
    }

    /// Somebody else has taken them over: they are as they were before.
    pub(super) fn let_go(self) {
        for (i, before) in self.options {
            let Some((_, fd)) = self.held.sockets.get(i as usize) else { continue };
            for ((level, name, _), value) in OPTIONS.into_iter().zip(before).rev() {
                // Refused only by a socket that was reset.
                let _ = socket::set_option(fd.as_fd(), level, name, value);
            }
        }
    }
}

/// Has the kernel ask the peer of a TCP socket now and then; returns the options as they were.
fn keep_alive(fd: BorrowedFd<'_>) -> Option<[libc::c_int; OPTIONS.len()]> {
    if socket::kind(fd).ok()?.1 != libc::IPPROTO_TCP {
        return None;
    }
    let mut before = [0; OPTIONS.len()];
    for ((level, name, value), before) in OPTIONS.into_iter().zip(&mut before) {
        *before = socket::get_int(fd, level, name).ok()?;
        socket::set_option(fd, level, name, value).ok()?;
    }
    Some(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hibernet_netstack::edge::SockId;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    fn options(fd: BorrowedFd<'_>) -> [libc::c_int; OPTIONS.len()] {
        OPTIONS.map(|(level, name, _)| socket::get_int(fd, level, name).unwrap())
    }

    #[test]
    fn held_sockets_are_kept_alive_and_given_back_as_they_were() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (plain, special, udp) = (connected(), connected(), UdpSocket::bind("127.0.0.1:0").unwrap());
        socket::set_option(special.as_fd(), libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 7).unwrap();
        socket::set_option(special.as_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1).unwrap();
        let before = [&plain, &special].map(|s| options(s.as_fd()));
        let copies = [plain.as_fd(), udp.as_fd(), special.as_fd()].map(|fd| fd.try_clone_to_owned().unwrap());
        let sockets = copies.into_iter().enumerate().map(|(i, fd)| (SockId(i as u32), fd)).collect();
        let holder = Holder::new(Held { sockets, ..Held::default() }, Vec::new(), "00".into(), None, None);
        assert_eq!(holder.about.held, 3);
        for s in [&plain, &special] {
            assert_eq!(options(s.as_fd()), [60, 60, 127, 1]);
        }
        holder.let_go();
        assert_eq!([&plain, &special].map(|s| options(s.as_fd())), before);
    }
}
