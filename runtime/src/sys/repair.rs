//! TCP sockets in repair mode: the kernel sends nothing by itself, lets the queues be read, and on a new socket numbers, options and queues be set.

use super::socket::{get_int, get_option, set_option, set_option_bytes};
use std::io;
use std::os::fd::BorrowedFd;

/// What is done with the mode. Only this needs `CAP_NET_ADMIN`, in the user namespace of the socket's network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Begin.
    On,
    /// End, and ask the peer for its window, which also tells it ours.
    Off,
    /// End as if nothing had been (Linux 4.14).
    OffSilently,
}

/// Switches the mode.
pub fn set(fd: BorrowedFd<'_>, to: Repair) -> io::Result<()> {
    let value = match to {
        Repair::On => 1,
        Repair::Off => 0,
        Repair::OffSilently => -1,
    };
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR, value)
}

/// A queue of a socket in repair mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// What was received and not read.
    Receive = 1,
    /// What was written and not acknowledged.
    Send = 2,
}

/// Chooses the queue that reading, writing and sequence numbers are about.
pub fn select(fd: BorrowedFd<'_>, queue: Queue) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, queue as libc::c_int)
}

/// Sequence number behind the last byte of the queue that is chosen.
pub fn sequence(fd: BorrowedFd<'_>) -> io::Result<u32> {
    get_int(fd, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ).map(|n| n as u32)
}

/// Sets the sequence number at which the queue that is chosen begins. Only before the connect.
pub fn set_sequence(fd: BorrowedFd<'_>, seq: u32) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, seq as libc::c_int)
}

/// `struct tcp_repair_window` of linux/tcp.h, its fields in their order: `snd_wl1`, `snd_wnd`, `max_window`, `rcv_wnd`, `rcv_wup`.
pub type Window = [u32; 5];

/// Reads the windows.
pub fn window(fd: BorrowedFd<'_>) -> io::Result<Window> {
    let mut raw = [[0; 4]; 5];
    match get_option(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, raw.as_flattened_mut())? {
        20 => Ok(raw.map(u32::from_ne_bytes)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Sets the windows.
pub fn set_window(fd: BorrowedFd<'_>, window: &Window) -> io::Result<()> {
    let raw = window.map(u32::to_ne_bytes);
    set_option_bytes(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, raw.as_flattened())
}

/// The clock that the socket's time stamps show, in the kernel's own form.
pub fn timestamp(fd: BorrowedFd<'_>) -> io::Result<u32> {
    get_int(fd, libc::IPPROTO_TCP, libc::TCP_TIMESTAMP).map(|n| n as u32)
}

/// Sets the clock of the time stamps.
pub fn set_timestamp(fd: BorrowedFd<'_>, to: u32) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_TIMESTAMP, to as libc::c_int)
}

/// Longest segment that the peer takes. In repair mode the option has this meaning.
pub fn max_segment(fd: BorrowedFd<'_>) -> io::Result<u32> {
    get_int(fd, libc::IPPROTO_TCP, libc::TCP_MAXSEG).map(|n| n as u32)
}

/// An option that both sides agreed upon when they connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreed {
    /// Longest segment that the peer takes.
    MaxSegment(u16),
    /// Shifts of the peer's windows, and of ours.
    WindowScale(u8, u8),
    /// Selective acknowledgements.
    Sack,
    /// Time stamps.
    Timestamps,
}

/// Sets what was agreed upon. Only on an established connection.
pub fn set_agreed(fd: BorrowedFd<'_>, all: &[Agreed]) -> io::Result<()> {
    // The codes are those of the options in a TCP header.
    let words = all.iter().flat_map(|o| match *o {
        Agreed::MaxSegment(mss) => [2, u32::from(mss)],
        Agreed::WindowScale(send, receive) => [3, u32::from(send) | u32::from(receive) << 16],
        Agreed::Sack => [4, 0],
        Agreed::Timestamps => [8, 0],
    });
    let raw: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
    set_option_bytes(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR_OPTIONS, &raw)
}
