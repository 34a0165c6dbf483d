//! Host sockets that are carried over in the image: what is written down of them at the freeze, and making them again at the thaw.

use super::datagram::{self, DatagramImage, Drain, ListenerImage};
use super::helper::Helper;
use super::image::TcpSocketImage;
use super::rebuild::{self, RestoreOptions};
use super::repair::{self, RepairError, Undo};
use crate::sock::{SocketKind, Sockets, SocketsState};
use crate::sys::socket;
use crate::sys::tcp::{SYN_SENT, TcpInfo};
use hibernet_netstack::edge::SockId;
use hibernet_netstack::image::kind;
use hibernet_snapshot::{SectionKind, SectionState};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What an image has of sockets that nobody holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// TCP connections.
    pub tcp: Vec<(SockId, TcpSocketImage)>,
    /// UDP and ping sockets.
    pub datagram: Vec<(SockId, DatagramImage)>,
    /// Listeners of published TCP ports, with their index in the configuration.
    pub listeners: Vec<(u32, ListenerImage)>,
}

impl SectionState for Carried {
    const KIND: SectionKind = SectionKind(kind::OTHERS.0 + 2);
    const VERSION: u16 = 1;
}

/// Sockets that were written down. Their connections are in repair mode: closed, they end quietly.
#[derive(Debug, Default)]
pub(crate) struct Dumped {
    pub(crate) carried: Carried,
    /// Those that cannot be carried over, and why.
    pub(crate) failed: HashMap<SockId, String>,
    undo: Vec<(SockId, Undo)>,
}

/// Writes everything down that can be; the packets of connections are locked first, so that their peers hear nothing while nobody is there.
pub(crate) fn dump(
    sockets: &Sockets,
    state: &mut SocketsState,
    listeners: &[(usize, BorrowedFd<'_>)],
    lock: Option<&str>,
    helper: &mut Helper,
) -> Result<Dumped, String> {
    let kinds: HashMap<SockId, &SocketKind> = state.kinds().collect();
    let mut tcp = Vec::new();
    let mut others: Vec<(SockId, BorrowedFd<'_>, Option<IpAddr>)> = Vec::new();
    for (id, fd) in sockets.descriptors() {
        match kinds.get(&id) {
            Some(SocketKind::Tcp(_)) => tcp.push((id, fd)),
            Some(SocketKind::Ping(p)) => others.push((id, fd, Some(p.to))),
            _ => others.push((id, fd, None)),
        }
    }
    let mut dumped = Dumped::default();
    // That nobody answers an echo is no news for anybody; of a closed port the kernel tells.
    let ports: Vec<_> = others.iter().filter(|(.., to)| to.is_none()).map(|(_, fd, _)| *fd).collect();
    let ports = [ports, listeners.iter().map(|(_, fd)| *fd).collect()].concat();
    let (tcp, unconnected) = lock_packets(tcp, &ports, lock, helper)?;
    for (id, fd) in unconnected {
        match connect_under_way(fd) {
            Ok(image) => dumped.carried.tcp.push((id, image)),
            Err(e) => drop(dumped.failed.insert(id, e.to_string())),
        }
    }
    let fds: Vec<_> = tcp.iter().map(|(_, fd)| *fd).collect();
    for ((id, _), done) in tcp.iter().zip(repair::dump(&fds, helper)) {
        match done {
            Ok((image, undo)) => {
                dumped.carried.tcp.push((*id, image));
                dumped.undo.push((*id, undo));
            }
            Err(e) => drop(dumped.failed.insert(*id, e.to_string())),
        }
    }
    let (mut waiting, mut drain) = (HashMap::new(), Drain::default());
    for (id, fd, to) in others {
        match datagram::dump(fd, to) {
            Ok(image) => {
                dumped.carried.datagram.push((id, image));
                if to.is_none() {
                    waiting.insert(id, drain.take(fd));
                }
            }
            Err(e) => drop(dumped.failed.insert(id, e.to_string())),
        }
    }
    state.set_waiting(waiting);
    for (index, fd) in listeners {
        match datagram::dump_listener(*fd) {
            Ok(image) => dumped.carried.listeners.push((*index as u32, image)),
            Err(e) => {
                roll_back(dumped, sockets, helper);
                return Err(e.to_string());
            }
        }
    }
    Ok(dumped)
}

type Socket<'a> = (SockId, BorrowedFd<'a>);

/// Locks the packets of the sockets that are connected, and of ports; gives those that are connected and the others. A connection may end at any time.
fn lock_packets<'a>(
    all: Vec<Socket<'a>>,
    ports: &[BorrowedFd<'a>],
    lock: Option<&str>,
    helper: &mut Helper,
) -> Result<(Vec<Socket<'a>>, Vec<Socket<'a>>), String> {
    let is_connected = |(_, fd): &Socket<'_>| socket::peer_addr(*fd).is_ok();
    let (mut connected, mut others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_connected);
    let Some(name) = lock else { return Ok((connected, others)) };
    loop {
        let fds: Vec<_> = connected.iter().map(|(_, fd)| *fd).chain(ports.iter().copied()).collect();
        let Err(e) = helper.lock(name, &fds) else { return Ok((connected, others)) };
        // Parts of it may be there.
        let _ = helper.unlock(name);
        let (still, ended): (Vec<_>, Vec<_>) = connected.into_iter().partition(is_connected);
        if ended.is_empty() {
            return Err(e.to_string());
        }
        connected = still;
        others.extend(ended);
    }
}

/// What is not connected may be on its way.
fn connect_under_way(fd: BorrowedFd<'_>) -> Result<TcpSocketImage, RepairError> {
    let state = TcpInfo::of(fd).map_err(repair::at("read the state of a connection"))?.state;
    if state != SYN_SENT {
        return Err(RepairError::State(state));
    }
    repair::connecting(fd, socket::destination(fd).map_err(repair::at("read where a connect goes"))?)
}

/// Leaves the connections as they were.
fn roll_back(dumped: Dumped, sockets: &Sockets, helper: &mut Helper) {
    let fds: HashMap<SockId, BorrowedFd<'_>> = sockets.descriptors().collect();
    let undo: Vec<_> = dumped.undo.into_iter().filter_map(|(id, u)| Some((*fds.get(&id)?, u))).collect();
    repair::roll_back(&undo, helper);
}

/// Takes everything back: connections go on, and what was taken out of datagram sockets is handed out all the same.
pub(crate) fn undo(dumped: Dumped, state: &SocketsState, sockets: &mut Sockets, lock: Option<&str>, helper: &mut Helper) {
    roll_back(dumped, sockets, helper);
    for (id, datagrams) in state.waiting() {
        sockets.udp_requeue(id, datagrams.to_vec());
    }
    if let Some(name) = lock {
        // It ends by itself, too.
        let _ = helper.unlock(name);
    }
}

/// What was made again, and what could not be.
#[derive(Debug, Default)]
pub(crate) struct Rebuilt {
    pub(crate) sockets: HashMap<SockId, OwnedFd>,
    pub(crate) listeners: Vec<(usize, OwnedFd)>,
    pub(crate) failed: HashMap<SockId, String>,
}

/// Opens a datagram socket anew, unless it is among the ports that are open.
fn reopen(image: &DatagramImage, ports: &mut Vec<(usize, OwnedFd)>) -> Result<OwnedFd, RepairError> {
    let at = SocketAddr::from(image.local);
    let is_it = |(_, fd): &(usize, OwnedFd)| image.peer.is_none() && socket::local_addr(fd.as_fd()).is_ok_and(|a| a == at);
    match ports.iter().position(is_it) {
        Some(i) => datagram::adopt(image, ports.swap_remove(i).1),
        None => datagram::restore(image),
    }
}

/// Those of these sockets that surely cannot be made again here, as things are.
pub(crate) fn hopeless(carried: &Carried, has_helper: bool) -> HashSet<SockId> {
    let mut known: HashMap<IpAddr, bool> = HashMap::new();
    let mut is_here = |at: SocketAddr| {
        *known.entry(at.ip()).or_insert_with(|| {
            // A port of the kernel's choice, which nobody else has.
            let mut at = at;
            at.set_port(0);
            UdpSocket::bind(at).is_ok()
        })
    };
    let tcp = carried.tcp.iter().map(|(id, image)| (*id, image.local.into(), has_helper));
    let datagram = carried.datagram.iter().map(|(id, image)| (*id, image.local.into(), true));
    tcp.chain(datagram).filter(|(_, local, can_be)| !(*can_be && is_here(*local))).map(|(id, ..)| id).collect()
}

/// Makes sockets again. Without a helper there are no TCP connections among them. Those of published UDP ports that are open already are taken from
/// `ports`.
pub(crate) fn rebuild(carried: &Carried, ports: &mut Vec<(usize, OwnedFd)>, lock: &str, helper: Option<&mut Helper>) -> Rebuilt {
    let mut all = Rebuilt::default();
    for (id, image) in &carried.datagram {
        match reopen(image, ports) {
            Ok(fd) => drop(all.sockets.insert(*id, fd)),
            Err(e) => drop(all.failed.insert(*id, e.to_string())),
        }
    }
    for (index, image) in &carried.listeners {
        // A port that is taken meanwhile is found out about by whoever looks for its listener.
        if let Ok(fd) = datagram::restore_listener(image) {
            all.listeners.push((*index as usize, fd));
        }
    }
    let Some(helper) = helper else {
        let why = "nobody is there who may switch TCP repair on: --repair, as root or with --repair-helper";
        all.failed.extend(carried.tcp.iter().map(|(id, _)| (*id, why.to_owned())));
        return all;
    };
    let images: Vec<&TcpSocketImage> = carried.tcp.iter().map(|(_, image)| image).collect();
    let loaded = rebuild::load(&images, &RestoreOptions::default(), helper);
    // From here on somebody is there for every packet.
    let _ = helper.unlock(lock);
    let (mut ids, mut ready) = (Vec::new(), Vec::new());
    for ((id, image), made) in carried.tcp.iter().zip(loaded) {
        match made {
            Ok(fd) => {
                ids.push(*id);
                ready.push((fd, image));
            }
            Err(e) => drop(all.failed.insert(*id, e.to_string())),
        }
    }
    for (id, started) in ids.into_iter().zip(rebuild::start(ready, helper)) {
        match started {
            Ok(fd) => drop(all.sockets.insert(id, fd)),
            Err(e) => drop(all.failed.insert(id, e.to_string())),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_made_here_is_known_before() {
        let image = |local: &str| DatagramImage {
            protocol: libc::IPPROTO_UDP as u8,
            local: local.parse::<SocketAddr>().unwrap().into(),
            peer: None,
            options: Vec::new(),
            buffers: (0, 0),
        };
        // RFC 5737 and RFC 3849: nobody's.
        let all = ["127.0.0.1:7", "192.0.2.1:7", "0.0.0.0:7", "192.0.2.1:8", "[2001:db8::1]:7"];
        let datagram = (0..).map(SockId).zip(all.map(image)).collect();
        let carried = Carried { datagram, ..Carried::default() };
        assert_eq!(hopeless(&carried, false), [1, 3, 4].map(SockId).into());
    }
}
