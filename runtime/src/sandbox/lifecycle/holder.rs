//! A sleeping network: its host sockets, kept alive by whoever holds them.

use crate::checkpoint::Held;
use crate::control::registry::Asleep;
use crate::sys::socket;
use std::os::fd::{AsFd, BorrowedFd};

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
}

impl Holder {
    /// Holds these sockets from now on.
    pub(super) fn new(held: Held, generation: String) -> Holder {
        let mut options = Vec::new();
        for (i, (_, fd)) in held.sockets.iter().enumerate() {
            // One that refuses has been reset, and needs nothing any more.
            options.extend(keep_alive(fd.as_fd()).map(|before| (i as u32, before)));
        }
        options.shrink_to_fit();
        let about = Asleep { generation, held: held.sockets.len() as u64 };
        Holder { held, options, about }
    }

    /// The sockets.
    pub(super) fn held(&self) -> &Held {
        &self.held
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
        let holder = Holder::new(Held { sockets, ..Held::default() }, "00".into());
        assert_eq!(holder.about.held, 3);
        for s in [&plain, &special] {
            assert_eq!(options(s.as_fd()), [60, 60, 127, 1]);
        }
        holder.let_go();
        assert_eq!([&plain, &special].map(|s| options(s.as_fd())), before);
    }
}
