//! TCP connections out of their images.
//!
//! Two steps, because a packet lock is to end between them: [`load`] makes the sockets, which are silent; [`start`] lets them speak.

use super::image::{HostAddr, MAX_QUEUE, TcpSocketImage};
use super::repair::{RepairError, at, is_dumpable, not_permitted};
use super::switch::{Switch, set_each};
use crate::sys::repair::{self, Agreed, Queue, Repair};
use crate::sys::socket::{self, set_option};
use crate::sys::tcp::{CLOSING, FIN_WAIT1, FIN_WAIT2, LAST_ACK, SYN_SENT};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes given to the kernel at a time.
const CHUNK: usize = 1 << 20;
/// Pieces are not made smaller than this when the kernel lacks memory.
const LEAST: usize = 1024;
/// A queue of this length fits into the smallest buffers that a new connection has.
const FITS: usize = 4096;
/// `SO_BUF_LOCK` of asm-generic/socket.h (Linux 5.15).
const SO_BUF_LOCK: libc::c_int = 72;

/// How connections are restored.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// The local addresses need not be this host's (yet). Needs `CAP_NET_ADMIN` or `CAP_NET_RAW` over the network namespace.
    pub foreign_address: bool,
}

/// Makes sockets that continue the connections. They are in repair mode: nothing is sent, and closing one ends nothing. [`start`] is next.
pub fn load(images: &[&TcpSocketImage], options: &RestoreOptions, switch: &mut dyn Switch) -> Vec<Result<OwnedFd, RepairError>> {
    let mut all: Vec<_> = images.iter().map(|image| open(image, options)).collect();
    let to_repair: Vec<usize> = (0..all.len()).filter(|&i| all[i].is_ok() && images[i].state != SYN_SENT).collect();
    let fds: Vec<_> = to_repair.iter().filter_map(|&i| all[i].as_ref().ok().map(AsFd::as_fd)).collect();
    let mut failed = Vec::new();
    set_each(switch, &fds, Repair::On, &mut |at, e| failed.push((to_repair[at], not_permitted(e))));
    for (i, e) in failed {
        all[i] = Err(e);
    }
    for (i, made) in all.iter_mut().enumerate() {
        let loaded = match made {
            Ok(fd) if images[i].state == SYN_SENT => bind(fd.as_fd(), images[i].local),
            Ok(fd) => fill(fd.as_fd(), images[i], switch),
            Err(_) => continue,
        };
        if let Err(e) = loaded {
            *made = Err(e);
        }
    }
    all
}

/// Lets sockets that were loaded speak. One that fails is closed, and its peer told.
pub fn start(sockets: Vec<(OwnedFd, &TcpSocketImage)>, switch: &mut dyn Switch) -> Vec<Result<OwnedFd, RepairError>> {
    let to_start: Vec<usize> = (0..sockets.len()).filter(|&i| sockets[i].1.state != SYN_SENT).collect();
    let fds: Vec<_> = to_start.iter().map(|&i| sockets[i].0.as_fd()).collect();
    let mut failed: Vec<Option<RepairError>> = sockets.iter().map(|_| None).collect();
    set_each(switch, &fds, Repair::Off, &mut |at, e| failed[to_start[at]] = Some(not_permitted(e)));
    let finish = |((fd, image), failed): ((OwnedFd, &TcpSocketImage), Option<RepairError>)| {
        if let Some(e) = failed {
            return Err(e);
        }
        match finish(fd.as_fd(), image, switch) {
            Ok(()) => Ok(fd),
            Err(e) => {
                // Bytes would be missing in the middle of the stream.
                let _ = socket::set_linger_reset(fd.as_fd());
                Err(e)
            }
        }
    };
    sockets.into_iter().zip(failed).map(finish).collect()
}

/// [`load`] and [`start`] of one connection, for where there is no packet lock.
pub fn restore(image: &TcpSocketImage, options: &RestoreOptions, switch: &mut dyn Switch) -> Result<OwnedFd, RepairError> {
    let invalid = || RepairError::Invalid("no socket");
    let fd = load(&[image], options, switch).pop().ok_or_else(invalid)??;
    start(vec![(fd, image)], switch).pop().ok_or_else(invalid)?
}

/// Whether an image can be that of a connection.
pub fn validate(image: &TcpSocketImage) -> Result<(), RepairError> {
    let checks = [
        (image.state == SYN_SENT || is_dumpable(image.state), "its state is none that a connection can be carried over in"),
        (image.local.ip.is_ipv4() == image.peer.ip.is_ipv4(), "its addresses are of two families"),
        (image.local.port != 0 && image.peer.port != 0, "a port is 0"),
        (image.send.0.len() <= MAX_QUEUE && image.receive.0.len() <= MAX_QUEUE, "a queue is too long"),
        (image.unsent as usize <= image.send.0.len(), "more bytes are unsent than there are"),
        (image.state != FIN_WAIT2 || image.send.0.is_empty(), "bytes before an acknowledged FIN are not acknowledged"),
        (image.state == SYN_SENT || image.agreed.mss > 0, "the segment size is 0"),
        (image.agreed.window_scale.is_none_or(|(a, b)| a <= 14 && b <= 14), "a window's shift is too large"),
    ];
    match checks.iter().find(|(holds, _)| !holds) {
        Some((_, what)) => Err(RepairError::Invalid(what)),
        None => Ok(()),
    }
}

/// A socket of the right family.
fn open(image: &TcpSocketImage, options: &RestoreOptions) -> Result<OwnedFd, RepairError> {
    validate(image)?;
    let step = || at("make a socket");
    let family = socket::family(image.local.ip);
    let fd = socket::socket(family, libc::SOCK_STREAM, libc::IPPROTO_TCP).map_err(step())?;
    if options.foreign_address {
        let (level, name) = match family {
            libc::AF_INET => (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
            _ => (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
        };
        set_option(fd.as_fd(), level, name, 1).map_err(at("take an address that is not this host's"))?;
    }
    if image.state == SYN_SENT {
        set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).map_err(step())?;
    }
    Ok(fd)
}

fn bind(fd: BorrowedFd<'_>, local: HostAddr) -> Result<(), RepairError> {
    let addr = SocketAddr::from(local);
    socket::bind(fd, addr).map_err(|error| RepairError::Address { addr, error })
}

/// Makes a socket in repair mode the image's connection.
fn fill(fd: BorrowedFd<'_>, image: &TcpSocketImage, switch: &mut dyn Switch) -> Result<(), RepairError> {
    let step = || at("set the numbers of a connection");
    // In repair mode the port may be shared with a listener of ours.
    bind(fd, image.local)?;
    if let Some(t) = image.agreed.timestamp {
        repair::set_timestamp(fd, t).map_err(step())?;
    }
    repair::select(fd, Queue::Send).map_err(step())?;
    repair::set_sequence(fd, image.send_seq).map_err(step())?;
    repair::select(fd, Queue::Receive).map_err(step())?;
    repair::set_sequence(fd, image.receive_seq).map_err(step())?;
    let addr = SocketAddr::from(image.local);
    socket::connect(fd, image.peer.into()).map_err(|error| match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE) => RepairError::Address { addr, error },
        _ => RepairError::Os { step: "connect in repair mode", error },
    })?;
    let mut agreed = vec![Agreed::MaxSegment(image.agreed.mss)];
    agreed.extend(image.agreed.window_scale.map(|(send, receive)| Agreed::WindowScale(send, receive)));
    agreed.extend(image.agreed.sack.then_some(Agreed::Sack));
    agreed.extend(image.agreed.timestamp.map(|_| Agreed::Timestamps));
    repair::set_agreed(fd, &agreed).map_err(at("set what a connection's sides had agreed upon"))?;

    let sent = image.send.0.len() - image.unsent as usize;
    push(fd, &image.receive.0, switch)?;
    repair::select(fd, Queue::Send).map_err(step())?;
    push(fd, &image.send.0[..sent], switch)?;
    repair::set_window(fd, &window(image)).map_err(at("set the windows of a connection"))?;
    if image.state == FIN_WAIT2 {
        // The FIN counts as sent; the peer acknowledges it again when it is asked.
        socket::shutdown_write(fd).map_err(step())?;
    }
    Ok(())
}

/// The windows, moved by the peer's FIN, which the new socket has not received.
fn window(image: &TcpSocketImage) -> repair::Window {
    let [snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup] = image.window;
    if image.peer_finished() {
        return [snd_wl1, snd_wnd, max_window, rcv_wnd.saturating_add(1), rcv_wup.wrapping_sub(1)];
    }
    image.window
}

/// Puts bytes into the queue that is chosen, or sends them.
fn push(fd: BorrowedFd<'_>, bytes: &[u8], switch: &mut dyn Switch) -> Result<(), RepairError> {
    let mut taken = 0;
    let mut chunk = CHUNK;
    let mut is_enlarged = false;
    while taken < bytes.len() {
        let piece = &bytes[taken..bytes.len().min(taken + chunk)];
        match socket::send(fd, piece) {
            Ok(n) => taken += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if is_full(&e) && !is_enlarged => {
                // The kernel counts its own overhead, too.
                switch.enlarge(fd, bytes.len().saturating_mul(2));
                is_enlarged = true;
            }
            Err(e) if is_full(&e) && chunk > LEAST => chunk = (piece.len() / 2).max(LEAST),
            Err(e) if is_full(&e) => return Err(RepairError::NoRoom { taken, of: bytes.len() }),
            Err(error) => return Err(RepairError::Os { step: "fill the queues of a connection", error }),
        }
    }
    Ok(())
}

fn is_full(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM))
}

/// What is done when the socket is an ordinary one.
fn finish(fd: BorrowedFd<'_>, image: &TcpSocketImage, switch: &mut dyn Switch) -> Result<(), RepairError> {
    set_options(fd, image).map_err(at("set the options of a connection"))?;
    if image.state == SYN_SENT {
        return socket::connect(fd, image.peer.into()).map_err(at("begin a connect again"));
    }
    let sent = image.send.0.len() - image.unsent as usize;
    push(fd, &image.send.0[sent..], switch)?;
    if matches!(image.state, FIN_WAIT1 | LAST_ACK | CLOSING) {
        socket::shutdown_write(fd).map_err(at("end a stream again"))?;
    }
    Ok(())
}

fn set_options(fd: BorrowedFd<'_>, image: &TcpSocketImage) -> io::Result<()> {
    let o = &image.options;
    let tcp = |name, value: u32| set_option(fd, libc::IPPROTO_TCP, name, value as libc::c_int);
    let sol = |name, value: u32| set_option(fd, libc::SOL_SOCKET, name, value as libc::c_int);
    // A new socket has neither of them.
    if o.nodelay {
        tcp(libc::TCP_NODELAY, 1)?;
    }
    if o.oob_inline {
        sol(libc::SO_OOBINLINE, 1)?;
    }
    if o.reuse_address {
        sol(libc::SO_REUSEADDR, 1)?;
    }
    if let Some((idle, interval, count)) = o.keep_alive {
        sol(libc::SO_KEEPALIVE, 1)?;
        tcp(libc::TCP_KEEPIDLE, idle)?;
        tcp(libc::TCP_KEEPINTVL, interval)?;
        tcp(libc::TCP_KEEPCNT, count)?;
    }
    // The kernel doubles what is set.
    for (size, name) in [(o.send_buffer, libc::SO_SNDBUF), (o.receive_buffer, libc::SO_RCVBUF)] {
        if let Some(n) = size {
            sol(name, n / 2)?;
        }
    }
    if image.send.0.len().max(image.receive.0.len()) > FITS || o.send_buffer.is_some() || o.receive_buffer.is_some() {
        let locked = u32::from(o.send_buffer.is_some()) | u32::from(o.receive_buffer.is_some()) << 1;
        // Where the kernel does not know it, buffers that were enlarged keep their size.
        let _ = sol(SO_BUF_LOCK, locked);
    }
    Ok(())
}
