//! Datagrams that wait to be sent with one call.

use super::error::{is_about_the_past, sock_error};
use super::udp::{FITS_ANYWHERE, Udp};
use super::{SocketStats, Sockets};
use crate::slots::Slots;
use crate::sys::addr::SockAddr;
use crate::sys::cmsg::Control;
use crate::sys::datagram::{self, BATCH};
use hibernet_netstack::edge::{Payload, Ready, SendOpts, SockError, SockId};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

/// Most segments of one call with UDP GSO: what every kernel that has it takes.
const MAX_SEGMENTS: usize = 64;
/// Most bytes of one call with UDP GSO: the largest datagram of IPv4.
const MAX_SEGMENTED: usize = 65_507;

/// Consecutive datagrams of one socket, with one destination and one source.
#[derive(Debug, Default)]
pub(super) struct Gather {
    sock: Option<SockId>,
    to: Option<SockAddr>,
    from: Option<IpAddr>,
    opts: Option<(u8, u8, bool)>,
    data: Vec<Payload>,
}

impl Gather {
    /// Whether something of this socket waits.
    pub(super) fn is_for(&self, id: SockId) -> bool {
        self.sock == Some(id)
    }

    /// Whether a datagram may join those that wait.
    fn fits(&self, id: SockId, to: Option<&SockAddr>, opts: &SendOpts) -> bool {
        self.is_for(id)
            && self.data.len() < BATCH
            && self.from == opts.from
            && self.opts == Some(key(opts))
            && self.to.as_ref().and_then(SockAddr::get) == to.and_then(SockAddr::get)
    }
}

/// Options that are set on the socket.
fn key(opts: &SendOpts) -> (u8, u8, bool) {
    (opts.hop_limit, opts.tos, opts.dont_fragment)
}

impl Sockets {
    /// See [`HostSockets::udp_send`](hibernet_netstack::edge::HostSockets::udp_send). The payload's slot is held until the
    /// datagram is sent.
    pub fn udp_send(&mut self, slots: &mut Slots, id: SockId, data: Payload, opts: &SendOpts) -> Result<(), SockError> {
        let s = self.udp(id)?;
        let to = opts.to.map(|to| s.address(to));
        let segment = opts.segment.map(usize::from).filter(|n| *n > 0 && *n < data.len());
        if segment.is_none() && self.gather.fits(id, to.as_ref(), opts) {
            slots.hold(data.slot);
            self.gather.data.push(data);
            return Ok(());
        }
        self.flush(slots);
        let s = self.udp(id)?;
        s.apply(opts, data.len()).map_err(|e| sock_error(&e))?;
        if let Some(segment) = segment {
            let pieces = cut(data, segment);
            let mut stats = self.stats;
            let sent = self.udp(id).and_then(|s| deliver(s, slots, pieces, to.as_ref(), opts.from, &mut stats));
            self.stats = stats;
            if sent.is_err() {
                self.expect_reports(id);
            }
            return sent;
        }
        slots.hold(data.slot);
        self.gather.sock = Some(id);
        self.gather.to = to;
        self.gather.from = opts.from;
        self.gather.opts = Some(key(opts));
        self.gather.data.push(data);
        Ok(())
    }

    /// See [`HostSockets::flush`](hibernet_netstack::edge::HostSockets::flush).
    pub fn flush(&mut self, slots: &mut Slots) {
        let Some(id) = self.gather.sock.take() else { return };
        let mut data = std::mem::take(&mut self.gather.data);
        let (to, from) = (self.gather.to.take(), self.gather.from.take());
        let mut stats = self.stats;
        let sent = self.udp(id).and_then(|s| deliver(s, slots, data.iter().copied(), to.as_ref(), from, &mut stats));
        self.stats = stats;
        if let Err(e) = sent
            && let Ok(s) = self.udp(id)
        {
            s.pending = Some(e);
            self.notice(id, Ready { error: true, ..Ready::default() });
        }
        for p in data.drain(..) {
            slots.give(p.slot);
        }
        self.gather.data = data;
    }
}

/// A super-datagram in its pieces.
fn cut(data: Payload, segment: usize) -> impl Iterator<Item = Payload> {
    (0..data.len().div_ceil(segment)).map(move |i| data.slice(i * segment, segment))
}

/// Sends datagrams of one socket in order. An error is the last one that concerned one of them and that the kernel does not report
/// in the error queue.
fn deliver(
    s: &mut Udp,
    slots: &Slots,
    mut data: impl Iterator<Item = Payload>,
    to: Option<&SockAddr>,
    from: Option<IpAddr>,
    stats: &mut SocketStats,
) -> Result<(), SockError> {
    let mut result = Ok(());
    loop {
        let mut pieces: [&[u8]; BATCH] = [&[]; BATCH];
        let mut n = 0;
        for (piece, p) in pieces.iter_mut().zip(data.by_ref()) {
            *piece = slots.bytes(p);
            n += 1;
        }
        if n == 0 {
            return result;
        }
        if let Err(e) = send_all(s, &pieces[..n], to, from, stats) {
            result = Err(e);
        }
    }
}

fn send_all(
    s: &mut Udp,
    mut pieces: &[&[u8]],
    to: Option<&SockAddr>,
    from: Option<IpAddr>,
    stats: &mut SocketStats,
) -> Result<(), SockError> {
    let mut control = Control::default();
    if let Some(from) = from {
        control.push_source(s.local(from));
    }
    let mut result = Ok(());
    let mut repeated = false;
    while !pieces.is_empty() {
        let run = if s.segments { run(pieces) } else { 1 };
        let sent = if run > 1 {
            let mut segmented = control;
            segmented.push_segment(pieces[0].len() as u16);
            datagram::send_pieces(s.fd.as_fd(), &pieces[..run], to, &segmented).map(|_| run)
        } else {
            datagram::send_each(s.fd.as_fd(), &pieces[..singles(pieces, s.segments)], to, &control)
        };
        match sent {
            Ok(n) => {
                let n = n.clamp(1, pieces.len());
                stats.sent_together += if n > 1 { n as u64 } else { 0 };
                pieces = &pieces[n..];
                repeated = false;
            }
            // The error of an earlier datagram: it is cleared now, and stands in the error queue.
            Err(e) if !repeated && is_about_the_past(&e) && !is_too_long(&e, pieces[0].len()) => repeated = true,
            // The interface cannot segment, or the segments are longer than its MTU.
            Err(e) if run > 1 && !is_full(&e) => s.segments = false,
            // As a router whose queue is full would.
            Err(e) if is_full(&e) => {
                stats.send_full += pieces.len() as u64;
                return result;
            }
            Err(e) => {
                stats.send_failed += 1;
                // Too long for the path: the kernel has put that into the error queue, with the MTU.
                if e.raw_os_error() != Some(libc::EMSGSIZE) {
                    result = Err(sock_error(&e));
                }
                pieces = &pieces[1..];
                repeated = false;
            }
        }
    }
    result
}

fn is_full(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::WouldBlock || matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}

/// Whether the error is surely about the datagram that was to be sent: tried again, it would be reported twice.
fn is_too_long(e: &io::Error, len: usize) -> bool {
    e.raw_os_error() == Some(libc::EMSGSIZE) && len > FITS_ANYWHERE
}

/// How many datagrams at the start can go as one: equal ones, and a shorter one at the end.
fn run(pieces: &[&[u8]]) -> usize {
    let size = pieces[0].len();
    if size == 0 {
        return 1;
    }
    let most = pieces.len().min(MAX_SEGMENTS).min(MAX_SEGMENTED / size).max(1);
    let equal = pieces[..most].iter().take_while(|p| p.len() == size).count();
    match pieces[..most].get(equal) {
        Some(last) if !last.is_empty() && last.len() < size => equal + 1,
        _ => equal,
    }
}

/// How many datagrams at the start do not belong to a run; at least one.
fn singles(pieces: &[&[u8]], segments: bool) -> usize {
    if !segments {
        return pieces.len();
    }
    (1..pieces.len()).find(|&i| run(&pieces[i..]) > 1).unwrap_or(pieces.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_equal_datagrams() {
        let b = [0u8; 1500];
        let of = |lens: &[usize]| lens.iter().map(|&n| &b[..n]).collect::<Vec<_>>();
        assert_eq!(run(&of(&[100, 100, 100])), 3);
        assert_eq!(run(&of(&[100, 100, 50, 50])), 3);
        assert_eq!(run(&of(&[100, 120])), 1);
        assert_eq!(run(&of(&[100, 0])), 1);
        assert_eq!(run(&of(&[0, 0])), 1);
        assert_eq!(run(&of(&[1400; 64])), 46);
        assert_eq!(singles(&of(&[10, 20, 30, 30, 30]), true), 2);
        assert_eq!(singles(&of(&[10, 20, 30]), true), 3);
        assert_eq!(singles(&of(&[30, 30]), false), 2);
    }

    #[test]
    fn a_super_datagram_is_cut_to_the_byte() {
        let p = Payload { slot: 1, offset: 10, len: 25 };
        let all: Vec<_> = cut(p, 10).map(|p| (p.offset, p.len)).collect();
        assert_eq!(all, [(10, 10), (20, 10), (30, 5)]);
    }
}
