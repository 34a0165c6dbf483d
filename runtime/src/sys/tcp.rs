//! What the kernel tells of a TCP connection.

use super::{check, socket};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Parts of `struct tcp_info` (linux/tcp.h). The kernel's struct has grown over time; what an older one lacks is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// State, as `TCP_ESTABLISHED` and so on of the kernel.
    pub state: u8,
    /// MSS towards the peer in bytes.
    pub snd_mss: u32,
    /// Smoothed round-trip time in microseconds.
    pub rtt_us: u32,
    /// Window that the peer offers in bytes (Linux 5.3).
    pub snd_wnd: Option<u32>,
    /// Of a listener: how many connections may wait in it.
    pub backlog: u32,
    /// Options agreed upon, as `TCPI_OPT_*` of the kernel.
    pub options: u8,
    /// Shift of the windows that the peer sends, and of ours.
    pub window_scale: (u8, u8),
    /// Bytes that the peer has acknowledged since the socket was made, a FIN and the SYN of a connect included (Linux 4.1).
    pub bytes_acked: u64,
    /// Bytes received in order since the socket was made, a FIN included (Linux 4.1).
    pub bytes_received: u64,
}

/// State of an established connection, and of one whose peer has sent FIN.
pub const ESTABLISHED: u8 = 1;
/// A connect is under way.
pub const SYN_SENT: u8 = 2;
/// We have sent FIN, which is not acknowledged.
pub const FIN_WAIT1: u8 = 4;
/// We have sent FIN, which is acknowledged.
pub const FIN_WAIT2: u8 = 5;
/// Both sides have sent FIN and acknowledged that of the other.
pub const TIME_WAIT: u8 = 6;
/// Not connected, or no longer.
pub const CLOSE: u8 = 7;
/// See [`ESTABLISHED`].
pub const CLOSE_WAIT: u8 = 8;
/// As [`CLOSE_WAIT`], and we have sent FIN, too.
pub const LAST_ACK: u8 = 9;
/// A listener.
pub const LISTEN: u8 = 10;
/// Both sides have sent FIN, ours is not acknowledged.
pub const CLOSING: u8 = 11;

/// Whether the peer's FIN (or RST) has come in this state: all but those before and ESTABLISHED, FIN_WAIT1, FIN_WAIT2.
pub fn peer_finished(state: u8) -> bool {
    matches!(state, TIME_WAIT | CLOSE | CLOSE_WAIT | LAST_ACK | CLOSING)
}

const STATE: usize = 0;
const OPTIONS: usize = 5;
const WINDOW_SCALE: usize = 6;
const SND_MSS: usize = 16;
const BACKLOG: usize = 28;
const RTT: usize = 68;
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;
const SND_WND: usize = 228;

impl TcpInfo {
    /// Reads the state of a connection.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<TcpInfo> {
        let mut raw = [0u8; 232];
        let len = socket::get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut raw)?;
        Ok(TcpInfo::parse(&raw[..len]))
    }

    fn parse(raw: &[u8]) -> TcpInfo {
        let word = |at: usize| raw.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let long = |at: usize| raw.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
        let byte = |at: usize| raw.get(at).copied().unwrap_or(0);
        // Two bit-fields of four bits: the compiler of a little-endian machine puts the first into the lower half.
        let (low, high) = (byte(WINDOW_SCALE) & 15, byte(WINDOW_SCALE) >> 4);
        TcpInfo {
            state: byte(STATE),
            // A listener has it in the place of the number of segments that were selectively acknowledged.
            backlog: if byte(STATE) == LISTEN { word(BACKLOG).unwrap_or(0) } else { 0 },
            options: byte(OPTIONS),
            window_scale: if cfg!(target_endian = "little") { (low, high) } else { (high, low) },
            bytes_acked: long(BYTES_ACKED),
            bytes_received: long(BYTES_RECEIVED),
            snd_mss: word(SND_MSS).unwrap_or(0),
            rtt_us: word(RTT).unwrap_or(0),
            snd_wnd: word(SND_WND),
        }
    }
}

/// Memory of a socket's sending side, from `SO_MEMINFO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendMemory {
    /// Limit (`SO_SNDBUF`, which the kernel tunes while data flow).
    pub limit: u32,
    /// What the send queue occupies, the kernel's own overhead included.
    pub queued: u32,
}

impl SendMemory {
    /// Reads it. Takes no lock of the socket.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<SendMemory> {
        /// `SK_MEMINFO_SNDBUF` and `SK_MEMINFO_WMEM_QUEUED` of linux/sock_diag.h.
        const SNDBUF: usize = 3;
        const WMEM_QUEUED: usize = 5;
        let mut raw = [0u8; 36];
        let len = socket::get_option(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut raw)?;
        let word = |i: usize| raw[..len].get(i * 4..i * 4 + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        match (word(SNDBUF), word(WMEM_QUEUED)) {
            (Some(limit), Some(queued)) => Ok(SendMemory { limit, queued }),
            _ => Err(io::Error::from_raw_os_error(libc::ENOPROTOOPT)),
        }
    }
}

/// Bytes that were received and not read (`SIOCINQ`), with `SO_OOBINLINE` those behind an urgent mark too. A FIN does not count.
pub fn unread(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut n: libc::c_int = 0;
    // SAFETY: SIOCINQ (the same number as FIONREAD) writes one int, to `n`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut n) })?;
    Ok(u32::try_from(n).unwrap_or(0))
}

/// Bytes that were sent or wait for it and are not acknowledged by the peer (`SIOCOUTQ`), a FIN included.
pub fn unacknowledged(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut n: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int, to `n`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut n) })?;
    Ok(u32::try_from(n).unwrap_or(0))
}

/// Bytes that were written and never sent (`SIOCOUTQNSD`), an unsent FIN included.
pub fn unsent(fd: BorrowedFd<'_>) -> io::Result<u32> {
    /// From linux/sockios.h; not in the `libc` crate.
    const SIOCOUTQNSD: libc::Ioctl = 0x894b;
    let mut n: libc::c_int = 0;
    // SAFETY: SIOCOUTQNSD writes one int, to `n`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCOUTQNSD, &raw mut n) })?;
    Ok(u32::try_from(n).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_info_of_an_old_kernel() {
        let mut raw = [0u8; 232];
        raw[0] = ESTABLISHED;
        raw[16..20].copy_from_slice(&1448u32.to_ne_bytes());
        raw[228..232].copy_from_slice(&65_535u32.to_ne_bytes());
        assert_eq!(TcpInfo::parse(&raw).snd_wnd, Some(65_535));
        let old = TcpInfo::parse(&raw[..192]);
        assert_eq!((old.state, old.snd_mss, old.snd_wnd), (ESTABLISHED, 1448, None));
        assert_eq!(TcpInfo::parse(&[]).snd_mss, 0);
    }
}
