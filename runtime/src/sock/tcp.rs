//! TCP sockets.

use super::error::{connect_error, from_errno, sock_error};
use super::state::{Fingerprint, TcpState};
use super::unread::PutOff;
use super::{Sock, Sockets};
use crate::lent::LentBytes;
use crate::slots::Slots;
use crate::sys::tcp::{SendMemory, TcpInfo};
use crate::sys::{socket, stream, tcp};
use hibernet_netstack::edge::{Payload, Peek, Ready, SockError, SockId, Source, TcpStatus, Token};
use hibernet_netstack::tuple::{Endpoint, proto};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use vm_memory::VolatileSlice;

/// Most bytes of one peek.
pub const PEEK_MAX: usize = 64 * 1024;
/// Length of the buffer that takes the bytes before an offset where there is no peek offset.
const DISCARD: usize = 64 * 1024;
/// [`Tcp::peek_at`] of a socket whose peek offset is switched off.
const OFF: i64 = -1;

/// A TCP socket.
#[derive(Debug)]
pub(super) struct Tcp {
    pub(super) fd: OwnedFd,
    v6: bool,
    /// Where the kernel's peek offset stands, or [`OFF`]. A peek moves it on, taking moves it back, never below 0.
    peek_at: i64,
    /// Without peek offset: bytes wait behind an urgent mark, which a peek from the start does not pass.
    at_mark: bool,
    /// Urgent data came at some time: a peek may stop at their mark although more is there.
    urgent: bool,
    /// The peer's FIN had come before the socket was rebuilt: behind the last byte stands the end, of which the kernel does not know.
    ended: bool,
    /// See [`super::unread`].
    pub(super) put_off: PutOff,
}

impl Tcp {
    pub(super) fn new(fd: OwnedFd, v6: bool) -> Self {
        Tcp { fd, v6, peek_at: OFF, at_mark: false, urgent: false, ended: false, put_off: PutOff::default() }
    }

    /// Whether the kernel's peek offset is on, and so can stand anywhere.
    pub(super) fn peeks_anywhere(&self) -> bool {
        self.peek_at != OFF && !self.urgent && !self.ended
    }

    /// Has the kernel copy `len` bytes at `offset` to `places`, one after the other.
    ///
    /// # Errors
    /// The kernel's, and `UnexpectedEof` if it copied fewer; some places may be written to then.
    pub(super) fn peek_to<'m>(
        &mut self,
        offset: u32,
        len: usize,
        places: &mut dyn Iterator<Item = VolatileSlice<'m>>,
    ) -> io::Result<()> {
        if self.peek_at != i64::from(offset) {
            self.set_peek_offset(i64::from(offset))?;
            self.peek_at = offset.into();
        }
        let mut left = len;
        while left > 0 {
            let (asked, n) = stream::peek_to(self.fd.as_fd(), places)?;
            self.advance_peek(n);
            if n < asked || asked == 0 || asked > left {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= n;
        }
        Ok(())
    }

    /// Peeks at `offset` and has the peek offset stand where it did. Fails if not all of `out` is filled.
    pub(super) fn peek_aside(&self, offset: u32, out: &mut [u8]) -> io::Result<()> {
        self.set_peek_offset(offset.into())?;
        let n = socket::recv(self.fd.as_fd(), out, libc::MSG_PEEK);
        self.set_peek_offset(self.peek_at)?;
        if n? < out.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn set_peek_offset(&self, offset: i64) -> io::Result<()> {
        let value = libc::c_int::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        socket::set_option(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, value)
    }

    /// So many bytes were peeked.
    pub(super) fn advance_peek(&mut self, n: usize) {
        if self.peek_at != OFF {
            self.peek_at += n as i64;
        }
    }

    pub(super) fn save(&self) -> io::Result<TcpState> {
        let fingerprint = Fingerprint::of(self.fd.as_fd())?;
        let ended = self.ended || tcp::peer_finished(fingerprint.state) && fingerprint.state != tcp::CLOSE;
        Ok(TcpState { v6: self.v6, at_mark: self.at_mark, urgent: self.urgent, ended, fingerprint })
    }

    /// Where the peek offset stands is asked of the kernel: that of a socket that was held goes on, that of a new one is off.
    pub(super) fn restore(fd: OwnedFd, s: &TcpState) -> Self {
        let peek_at = socket::get_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF).map_or(OFF, i64::from);
        Tcp { fd, v6: s.v6, peek_at, at_mark: s.at_mark, urgent: s.urgent, ended: s.ended, put_off: PutOff::default() }
    }
}

/// Sets the options that every flow socket has. An accepted socket inherits them from its listener.
pub fn prepare(fd: BorrowedFd<'_>) -> io::Result<()> {
    // The guest has decided how to segment; waiting for more would only add delay.
    socket::set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    // Urgent data stay in the stream: taken out, they would be lost, and peeks would see them twice.
    socket::set_option(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1)
}

impl Sockets {
    /// See [`HostSockets::tcp_connect`](hibernet_netstack::edge::HostSockets::tcp_connect).
    pub fn tcp_connect(&mut self, token: Token, to: Endpoint, from: Source) -> Result<SockId, SockError> {
        let opened = self.open_tcp(token, to, from);
        opened.map_err(|e| self.failed(e))
    }

    fn open_tcp(&mut self, token: Token, to: Endpoint, from: Source) -> Result<SockId, SockError> {
        let v6 = to.addr.is_ipv6();
        let fd = self.socket_from(proto::TCP, to, from)?;
        // First the connect, so that the peer works while we do: the options matter only once there are data.
        socket::connect(fd.as_fd(), SocketAddr::from(to)).map_err(|e| connect_error(&e, v6 || from != Source::ANY))?;
        prepare(fd.as_fd()).map_err(|e| sock_error(&e))?;
        self.register(token, Sock::Tcp(Tcp::new(fd, v6)))
    }

    /// See [`HostSockets::tcp_adopt`](hibernet_netstack::edge::HostSockets::tcp_adopt).
    pub fn tcp_adopt(&mut self, id: SockId, token: Token) -> Result<(), SockError> {
        self.tcp(id)?;
        if let Some(e) = self.entry_mut(id) {
            e.token = Some(token);
        }
        self.watch(id).map_err(|e| sock_error(&e))
    }

    /// See [`HostSockets::tcp_send`](hibernet_netstack::edge::HostSockets::tcp_send).
    pub fn tcp_send(&mut self, id: SockId, data: &[u8]) -> Result<usize, SockError> {
        if data.is_empty() {
            return Ok(0);
        }
        taken(socket::send(self.tcp(id)?.fd.as_fd(), data))
    }

    /// As [`Sockets::tcp_send`], of bytes that a guest has.
    pub fn tcp_send_lent(&mut self, id: SockId, data: LentBytes<'_>) -> Result<usize, SockError> {
        let fd = self.tcp(id)?.fd.as_fd();
        let mut pieces = data.slices().peekable();
        if pieces.peek().is_none() {
            return Ok(0);
        }
        taken(stream::send_shared(fd, pieces))
    }

    /// See [`HostSockets::tcp_peek`](hibernet_netstack::edge::HostSockets::tcp_peek).
    pub fn tcp_peek(&mut self, slots: &mut Slots, id: SockId, offset: u32, max: u32) -> Result<Peek, SockError> {
        self.tcp(id)?;
        let max = (max as usize).min(PEEK_MAX);
        if max == 0 {
            return Ok(Peek::Empty);
        }
        let Some(slot) = slots.take() else {
            self.retry_read(id);
            return Ok(Peek::Empty);
        };
        let peeked = self.peek_past_mark(id, offset, &mut slots.slot_mut(slot)[..max]);
        match peeked {
            Ok(n) if n > 0 => {
                self.tcp(id)?.put_off.found(n);
                Ok(Peek::Data(Payload { slot, offset: 0, len: n as u32 }))
            }
            Ok(_) => {
                slots.give(slot);
                Ok(Peek::Eof)
            }
            Err(e) => {
                slots.give(slot);
                if e.kind() == io::ErrorKind::WouldBlock { Ok(Peek::Empty) } else { Err(sock_error(&e)) }
            }
        }
    }

    /// See [`HostSockets::tcp_peek_run`](hibernet_netstack::edge::HostSockets::tcp_peek_run).
    /// `in_place`: the bytes may stay in the kernel until the link says where they go.
    pub fn tcp_peek_run(
        &mut self,
        slots: &mut Slots,
        id: SockId,
        offset: u32,
        max: u32,
        more: u32,
        in_place: bool,
    ) -> Result<Peek, SockError> {
        let (len, pieces) = ((max as usize).min(PEEK_MAX), more.checked_div(max).unwrap_or(0) as usize + 1);
        if let Some(piece) = self.ahead.take(id, offset, len) {
            return Ok(Peek::Data(piece));
        }
        if in_place && let Some(unread) = self.put_off(id, offset, len as u32) {
            return Ok(Peek::Data(unread));
        }
        let s = self.tcp(id)?;
        if pieces > 1 && !s.urgent && s.peek_at == i64::from(offset) {
            self.peek_ahead(slots, id, offset, len, pieces);
            if let Some(piece) = self.ahead.take(id, offset, len) {
                return Ok(Peek::Data(piece));
            }
        }
        self.tcp_peek(slots, id, offset, max)
    }

    /// Urgent data came.
    pub(super) fn urgent(&mut self, id: SockId) {
        if let Ok(s) = self.tcp(id) {
            s.urgent = true;
        }
    }

    /// As [`Sockets::peek_into`], and goes on behind the urgent mark, of which a stream has one at a time.
    fn peek_past_mark(&mut self, id: SockId, offset: u32, out: &mut [u8]) -> io::Result<usize> {
        let n = self.peek_into(id, offset, out)?;
        if n == 0 || n == out.len() || !self.tcp(id).is_ok_and(|s| s.urgent) {
            return Ok(n);
        }
        // Whatever stands in the way of the rest is found by the next peek.
        Ok(n + self.peek_into(id, offset + n as u32, &mut out[n..]).unwrap_or(0))
    }

    /// Peeks at `offset`: the number of bytes, 0 at the end of the stream, `WouldBlock` if there are none yet.
    fn peek_into(&mut self, id: SockId, offset: u32, out: &mut [u8]) -> io::Result<usize> {
        match self.peek_kernel(id, offset, out) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => match self.tcp(id) {
                Ok(s) if s.ended && tcp::unread(s.fd.as_fd())? <= offset => Ok(0),
                _ => Err(e),
            },
            r => r,
        }
    }

    fn peek_kernel(&mut self, id: SockId, offset: u32, out: &mut [u8]) -> io::Result<usize> {
        let known = self.peek_offset;
        let stale = |_| io::Error::from_raw_os_error(libc::EBADF);
        let s = self.tcp(id).map_err(stale)?;
        let family = usize::from(s.v6);
        let in_place = s.peek_at == i64::from(offset) || (s.peek_at == OFF && offset == 0);
        if !in_place && known[family] != Some(false) {
            match s.set_peek_offset(offset.into()) {
                Ok(()) => {
                    s.peek_at = i64::from(offset);
                    self.peek_offset[family] = Some(true);
                }
                // Only a socket that never had an offset may do without it; on others a failure is one.
                Err(_) if s.peek_at == OFF => self.peek_offset[family] = Some(false),
                Err(e) => return Err(e),
            }
        }
        if offset > 0 && self.peek_offset[family] == Some(false) {
            return self.peek_behind(id, offset as usize, out);
        }
        let s = self.tcp(id).map_err(stale)?;
        let n = socket::recv(s.fd.as_fd(), out, libc::MSG_PEEK)?;
        s.advance_peek(n);
        Ok(n)
    }

    /// As [`Sockets::peek_into`], without the kernel's peek offset.
    fn peek_behind(&mut self, id: SockId, offset: usize, out: &mut [u8]) -> io::Result<usize> {
        let mut discard = std::mem::take(&mut self.discard);
        discard.resize(DISCARD, 0);
        let peeked = self.peek_behind_with(id, offset, &mut discard, out);
        self.discard = discard;
        peeked
    }

    fn peek_behind_with(&mut self, id: SockId, offset: usize, discard: &mut [u8], out: &mut [u8]) -> io::Result<usize> {
        let s = self.tcp(id).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
        match stream::peek_behind(s.fd.as_fd(), offset, discard, out)? {
            Some(n) if n > 0 => return Ok(n),
            Some(_) => {}
            None => return Err(io::ErrorKind::WouldBlock.into()),
        }
        // Exactly the bytes before the offset are there. The call does not say whether the FIN is: the state does; and what was
        // received before it was looked at is in the queue by now.
        let state = TcpInfo::of(s.fd.as_fd())?.state;
        if tcp::unread(s.fd.as_fd())? as usize > offset {
            s.at_mark = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if !tcp::peer_finished(state) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match stream::peek_behind(s.fd.as_fd(), offset, discard, out)? {
            Some(0) => match socket::get_int(s.fd.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR)? {
                0 => Ok(0),
                errno => Err(io::Error::from_raw_os_error(errno)),
            },
            Some(n) => Ok(n),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// See [`HostSockets::tcp_consume`](hibernet_netstack::edge::HostSockets::tcp_consume).
    pub fn tcp_consume(&mut self, slots: &mut Slots, id: SockId, n: u32) -> Result<(), SockError> {
        self.ahead.consumed(slots, id, n);
        self.unread.forget_of(id);
        let s = self.tcp(id)?;
        let mut left = n as usize;
        while left > 0 {
            match stream::discard(s.fd.as_fd(), left) {
                Ok(0) => return Err(SockError::Reset),
                Ok(gone) => {
                    left -= gone.min(left);
                    s.put_off.consumed(gone);
                    if s.peek_at != OFF {
                        s.peek_at = (s.peek_at - gone as i64).max(0);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(sock_error(&e)),
            }
        }
        if std::mem::take(&mut s.at_mark) {
            self.notice(id, Ready { readable: true, ..Ready::default() });
        }
        Ok(())
    }

    /// See [`HostSockets::tcp_unread`](hibernet_netstack::edge::HostSockets::tcp_unread).
    pub fn tcp_unread(&mut self, id: SockId) -> u32 {
        self.tcp(id).ok().and_then(|s| tcp::unread(s.fd.as_fd()).ok()).unwrap_or(u32::MAX)
    }

    /// See [`HostSockets::tcp_shutdown`](hibernet_netstack::edge::HostSockets::tcp_shutdown).
    pub fn tcp_shutdown(&mut self, id: SockId) -> Result<(), SockError> {
        socket::shutdown_write(self.tcp(id)?.fd.as_fd()).map_err(|e| sock_error(&e))
    }

    /// See [`HostSockets::tcp_space`](hibernet_netstack::edge::HostSockets::tcp_space).
    pub fn tcp_space(&mut self, id: SockId) -> u32 {
        self.tcp(id).ok().and_then(|s| SendMemory::of(s.fd.as_fd()).ok()).map_or(0, payload_room)
    }

    /// See [`HostSockets::tcp_unacked`](hibernet_netstack::edge::HostSockets::tcp_unacked).
    pub fn tcp_unacked(&mut self, id: SockId) -> u32 {
        self.tcp(id).ok().and_then(|s| tcp::unacknowledged(s.fd.as_fd()).ok()).unwrap_or(0)
    }

    /// See [`HostSockets::tcp_status`](hibernet_netstack::edge::HostSockets::tcp_status).
    pub fn tcp_status(&mut self, id: SockId) -> TcpStatus {
        let info = self.tcp(id).ok().and_then(|s| TcpInfo::of(s.fd.as_fd()).ok());
        let Some(info) = info else { return TcpStatus::default() };
        TcpStatus {
            peer_window: info.snd_wnd,
            rtt: Duration::from_micros(u64::from(info.rtt_us)),
            mss: info.snd_mss.min(u32::from(u16::MAX)) as u16,
            established: matches!(info.state, tcp::ESTABLISHED | tcp::CLOSE_WAIT),
        }
    }

    /// See [`HostSockets::take_error`](hibernet_netstack::edge::HostSockets::take_error).
    pub fn take_error(&mut self, id: SockId) -> Option<SockError> {
        let fd = self.entry(id)?.sock.fd()?;
        match socket::get_int(fd, libc::SOL_SOCKET, libc::SO_ERROR) {
            Ok(0) => None,
            Ok(errno) => Some(from_errno(errno)),
            Err(e) => Some(sock_error(&e)),
        }
    }
}

/// What a send says of how many bytes were taken.
fn taken(sent: io::Result<usize>) -> Result<usize, SockError> {
    match sent {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
        sent => sent.map_err(|e| sock_error(&e)),
    }
}

/// How many bytes of data the rest of a send buffer takes for sure.
///
/// The kernel counts an overhead for each of its buffers. It takes data while the queue is below the limit and then fills one
/// buffer whatever its size, so what counts is the overhead of many small sends, not the last one.
fn payload_room(m: SendMemory) -> u32 {
    m.limit.saturating_sub(m.queued) / 4 * 3
}
