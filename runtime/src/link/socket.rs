//! Sockets that keep message boundaries: packet sockets, Unix and other datagram and seqpacket sockets.

use super::vnet::{self, BadHeader};
use super::{BATCH, IN_FLIGHT, Link, LinkError, LinkStats, Received, RxBatch, check_size, release};
use crate::slots::{SLOT_SIZE, Slots};
use crate::sys::mmsg::{self, Message};
use crate::sys::packet::{self, PacketSocket};
use crate::sys::packet_ring::{PacketRing, Waiting};
use crate::sys::socket::{get_int, set_nonblocking};
use crate::sys::system;
use hibernet_netstack::edge::{LinkInfo, Payload, RxChecksum, Tso, TxError, TxFrame};
use hibernet_netstack::wire::{Mac, ethernet};
use std::cell::Cell;
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const _: () = assert!(BATCH == mmsg::MAX);

/// Bytes of heads that are gathered before a batch is sent.
const HEADS: usize = 32 * 1024;

/// Fewest buffers offered to one call.
const FEW: usize = 4;

/// From this mean length on, frames are received a few at a time, so that they are processed while they are in the cache.
const LONG: usize = 8 * 1024;

/// First kernel that knows UDP segmentation in a virtio-net header.
const USO_KERNEL: (u32, u32) = (6, 2);

/// The first datagram of vfkit and of those who speak as it does, which makes them known; it is no frame.
const GREETING: &[u8] = b"VFKT";

/// What a socket is, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Bound to an interface; frames carry virtio-net headers.
    Packet,
    /// Datagrams.
    Datagram,
    /// Datagrams over a connection, which has an end.
    Seqpacket,
}

impl Kind {
    const fn header_len(self) -> usize {
        match self {
            Kind::Packet => vnet::LEN,
            Kind::Datagram | Kind::Seqpacket => 0,
        }
    }
}

/// A frame that waits to be sent: where its head ends in the common buffer, and its body, of which the link owns a share.
#[derive(Clone, Copy, Debug)]
struct Gathered {
    head_end: usize,
    body: Payload,
}

/// A link over a socket that carries one frame per message.
#[derive(Debug)]
pub struct SocketLink {
    fd: OwnedFd,
    kind: Kind,
    info: LinkInfo,
    stats: LinkStats,
    /// Where frames come that are not too long for it.
    ring: Option<PacketRing>,
    /// The ring was empty when it was looked at last.
    was_empty: bool,
    /// Frames that the kernel dropped; it forgets its count when asked.
    overrun: Cell<u64>,
    /// Buffers to offer to the next call.
    expected: usize,
    gathered: Vec<Gathered>,
    /// Heads of the gathered frames, each behind its virtio-net header.
    heads: Vec<u8>,
    /// The socket took no more: the gathered frames wait until it is writable.
    waits: bool,
    stopped: bool,
}

impl SocketLink {
    /// Over a packet socket; of several, the first. `guest_mac`: the guest's address, if it is known.
    ///
    /// # Errors
    /// If the socket's ring cannot be mapped.
    pub fn packet(socket: PacketSocket, guest_mac: Option<Mac>) -> io::Result<SocketLink> {
        let ring = if socket.ring > 0 { Some(PacketRing::map(socket.fd.as_fd(), socket.ring)?) } else { None };
        let uso = system::kernel_version() >= USO_KERNEL;
        // The kernel counts what its bookkeeping takes too.
        let in_flight = IN_FLIGHT.min(socket.receive_buffer / 4 * 3);
        let info = LinkInfo { mtu: socket.mtu.min(65_535) as u16, checksum: true, tso: Tso::Both, uso, guest_mac, in_flight };
        Ok(SocketLink { ring, ..SocketLink::with(socket.fd, Kind::Packet, info) })
    }

    /// Over a connected datagram or seqpacket socket that carries bare Ethernet frames. `InvalidInput` if it is another kind of
    /// descriptor.
    pub fn messages(fd: OwnedFd, mtu: u16, guest_mac: Option<Mac>) -> io::Result<SocketLink> {
        let kind = match get_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE)? {
            libc::SOCK_DGRAM => Kind::Datagram,
            libc::SOCK_SEQPACKET => Kind::Seqpacket,
            _ => return Err(io::Error::new(ErrorKind::InvalidInput, "the socket does not keep message boundaries")),
        };
        set_nonblocking(&fd)?;
        Ok(SocketLink::with(
            fd,
            kind,
            LinkInfo { mtu, checksum: false, tso: Tso::None, uso: false, guest_mac, in_flight: IN_FLIGHT },
        ))
    }

    fn with(fd: OwnedFd, kind: Kind, info: LinkInfo) -> SocketLink {
        SocketLink {
            fd,
            kind,
            info,
            stats: LinkStats::default(),
            ring: None,
            was_empty: false,
            overrun: Cell::new(0),
            expected: FEW,
            gathered: Vec::with_capacity(BATCH),
            heads: Vec::with_capacity(HEADS),
            waits: false,
            stopped: false,
        }
    }

    /// Whether the other end or the interface is gone, now that an error made it likely.
    fn is_gone(&self) -> bool {
        self.kind != Kind::Packet || !packet::is_bound(self.fd.as_fd())
    }

    /// Judges a message in a slot.
    fn accept(&mut self, slots: &Slots, slot: u32, m: Message) -> Option<Received> {
        let skip = self.kind.header_len();
        if m.truncated {
            self.stats.rx_too_long += 1;
            return None;
        }
        let len = m.len.saturating_sub(skip);
        if self.kind == Kind::Datagram && slots.bytes(Payload { slot, offset: 0, len: m.len as u32 }) == GREETING {
            return None;
        }
        if len < ethernet::HEADER_LEN {
            self.stats.rx_too_short += 1;
            return None;
        }
        let (checksum, gso) = match self.kind {
            Kind::Packet => {
                let header = slots.bytes(Payload { slot, offset: 0, len: skip as u32 }).first_chunk()?;
                match vnet::decode(header, len) {
                    Ok(known) => known,
                    Err(BadHeader) => {
                        self.stats.rx_bad_header += 1;
                        return None;
                    }
                }
            }
            Kind::Datagram | Kind::Seqpacket => (RxChecksum::Unverified, None),
        };
        self.stats.received(len);
        Some(Received { slot, frame: Payload { slot, offset: skip as u32, len: len as u32 }, checksum, gso })
    }

    fn receive_error(&mut self, e: io::Error) -> Result<(), LinkError> {
        match (e.kind(), e.raw_os_error()) {
            (ErrorKind::WouldBlock | ErrorKind::Interrupted, _) => Ok(()),
            (_, Some(libc::ENETDOWN | libc::ENODEV | libc::ENXIO | libc::ECONNRESET | libc::ENOTCONN | libc::ECONNREFUSED)) => {
                if self.is_gone() {
                    return Err(LinkError::Closed);
                }
                self.stats.rx_down += 1;
                Ok(())
            }
            // The kernel could not express the frame in a virtio-net header and has thrown it away.
            (_, Some(libc::EINVAL)) if self.kind == Kind::Packet => {
                self.stats.rx_bad_header += 1;
                Ok(())
            }
            _ => {
                self.stats.rx_errors += 1;
                Err(LinkError::Io(e))
            }
        }
    }

    /// Receives up to `most` messages. How many came, whatever became of them.
    fn receive(&mut self, slots: &mut Slots, out: &mut RxBatch, most: usize) -> (usize, Result<(), LinkError>) {
        let mut taken = [Payload::NO_SLOT; BATCH];
        let mut offered = 0;
        while offered < out.room().min(most)
            && let Some(slot) = slots.take()
        {
            taken[offered] = slot;
            offered += 1;
        }
        if offered == 0 {
            return if out.room() == 0 { (0, Ok(())) } else { self.discard(most) };
        }
        let buffers: [Range<usize>; BATCH] = std::array::from_fn(|i| match taken[i] {
            Payload::NO_SLOT => 0..0,
            slot => slot as usize * SLOT_SIZE..(slot as usize + 1) * SLOT_SIZE,
        });
        let mut messages = [Message::default(); BATCH];
        let received = mmsg::recv(self.fd.as_fd(), slots.memory_mut(), &buffers[..offered], &mut messages);
        let mut result = Ok(());
        let n = received.unwrap_or_else(|e| {
            result = self.receive_error(e);
            0
        });
        let (mut bytes, mut pushed) = (0, 0);
        // From the end, so that the slots that were offered first, which are the warm ones, are taken first again.
        for &slot in taken[n..offered].iter().rev() {
            slots.give(slot);
        }
        for (&slot, &m) in taken.iter().zip(&messages[..n]) {
            bytes += m.len;
            if self.kind == Kind::Seqpacket && m.len == 0 {
                slots.give(slot);
                result = Err(LinkError::Closed);
                continue;
            }
            match self.accept(slots, slot, m) {
                Some(r) if out.push(r).is_ok() => pushed += 1,
                _ => slots.give(slot),
            }
        }
        self.adapt(n, offered, bytes);
        // Frames received before the end are delivered first; the next call finds the end again.
        (n, if pushed == 0 { result } else { Ok(()) })
    }

    /// Takes what the ring has, in order, also of the frames that are too long for it. They are copied into slots of ours: the stack may keep a frame for
    /// as long as it likes, and the ring is short.
    fn read_ring(&mut self, ring: &mut PacketRing, slots: &mut Slots, out: &mut RxBatch) -> Result<(), LinkError> {
        let mut seen = 0;
        while out.room() > 0
            && let Some(waiting) = ring.waiting()
        {
            seen += 1;
            match waiting {
                Waiting::Frame(len) => match slots.take() {
                    Some(slot) => {
                        ring.copy(slots.slot_mut(slot));
                        match self.accept(slots, slot, Message { len, truncated: false }) {
                            Some(r) if out.push(r).is_ok() => {}
                            _ => slots.give(slot),
                        }
                    }
                    None => self.stats.rx_no_slot += 1,
                },
                Waiting::Message => {
                    let run = (1..FEW).take_while(|ahead| ring.is_message(*ahead as u32)).count() + 1;
                    let mut received = self.receive(slots, out, run);
                    if let (0, Ok(())) = received {
                        // An error of the interface's comes first, once.
                        received = self.receive(slots, out, run);
                    }
                    match received {
                        (0, Ok(())) => self.stats.rx_errors += 1,
                        (n, result) => {
                            (0..n).for_each(|_| ring.release());
                            result?;
                            // They are processed while they are in the cache.
                            if !out.is_empty() {
                                break;
                            }
                            continue;
                        }
                    }
                }
                Waiting::Lost => self.overrun.set(self.overrun.get() + 1),
            }
            ring.release();
        }
        // An error waits in the socket, which is readable as long as it is not asked for: nobody calls it otherwise.
        if seen == 0 && out.room() > 0 && std::mem::replace(&mut self.was_empty, true) {
            return self.take_error();
        }
        self.was_empty &= seen == 0;
        Ok(())
    }

    fn take_error(&mut self) -> Result<(), LinkError> {
        match get_int(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR)? {
            0 => Ok(()),
            e => self.receive_error(io::Error::from_raw_os_error(e)),
        }
    }

    /// Throws waiting frames away, up to `most`. How many.
    fn discard(&mut self, most: usize) -> (usize, Result<(), LinkError>) {
        let buffers: [Range<usize>; FEW] = std::array::from_fn(|_| 0..vnet::LEN);
        let mut messages = [Message::default(); FEW];
        let most = most.min(FEW);
        match mmsg::recv(self.fd.as_fd(), &mut [0; vnet::LEN], &buffers[..most], &mut messages) {
            Ok(n) => {
                self.stats.rx_no_slot += n as u64;
                (n, Ok(()))
            }
            Err(e) => (0, self.receive_error(e)),
        }
    }

    /// How many buffers to offer next, after `n` of `offered` were filled with `bytes` in all.
    fn adapt(&mut self, n: usize, offered: usize, bytes: usize) {
        self.expected = if bytes > n * LONG {
            FEW
        } else if n == offered {
            (offered * 2).clamp(FEW, BATCH)
        } else if n < offered / 4 {
            (offered / 2).max(FEW)
        } else {
            offered
        };
    }

    /// Lets go of the first `n` gathered frames.
    fn drop_gathered(&mut self, slots: &mut Slots, n: usize) {
        let end = n.checked_sub(1).map_or(0, |i| self.gathered[i].head_end);
        for g in self.gathered.drain(..n) {
            slots.give(g.body.slot);
        }
        self.heads.drain(..end);
        for g in &mut self.gathered {
            g.head_end -= end;
        }
    }

    /// Whether a frame with a head of this length must wait for those before it to be sent.
    fn is_full(&self, head: usize) -> bool {
        self.gathered.len() == BATCH || self.heads.len() + vnet::LEN + head > HEADS
    }

    /// Sends the gathered frames from number `from` on; returns how many were taken.
    fn send_gathered(&self, slots: &Slots, from: usize) -> io::Result<usize> {
        let mut start = from.checked_sub(1).map_or(0, |i| self.gathered[i].head_end);
        let mut messages = [[IoSlice::new(&[]); 2]; BATCH];
        for (message, g) in messages.iter_mut().zip(&self.gathered[from..]) {
            *message = [IoSlice::new(&self.heads[start..g.head_end]), IoSlice::new(slots.bytes(g.body))];
            start = g.head_end;
        }
        mmsg::send(self.fd.as_fd(), &messages[..self.gathered.len() - from])
    }

    fn count_sent(&mut self, range: Range<usize>) {
        let mut start = range.start.checked_sub(1).map_or(0, |i| self.gathered[i].head_end);
        for g in &self.gathered[range] {
            self.stats.sent(g.head_end - start - self.kind.header_len() + g.body.len());
            start = g.head_end;
        }
    }

    fn gather(&mut self, slots: &mut Slots, frame: &TxFrame<'_>) -> Result<(), TxError> {
        if self.stopped {
            return Err(TxError::Down);
        }
        check_size(&self.info, frame)?;
        match self.kind {
            Kind::Packet => self.heads.extend_from_slice(&vnet::encode(frame)?),
            Kind::Datagram | Kind::Seqpacket if frame.gso.is_some() || frame.checksum.is_some() => return Err(TxError::TooBig),
            Kind::Datagram | Kind::Seqpacket => {}
        }
        self.heads.extend_from_slice(frame.head);
        if frame.keep_body {
            slots.hold(frame.body.slot);
        }
        self.gathered.push(Gathered { head_end: self.heads.len(), body: frame.body });
        Ok(())
    }
}

impl Link for SocketLink {
    fn info(&self) -> LinkInfo {
        self.info
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn recv_batch(&mut self, slots: &mut Slots, out: &mut RxBatch) -> Result<(), LinkError> {
        if self.stopped {
            return Err(LinkError::Closed);
        }
        match self.ring.take() {
            Some(mut ring) => {
                let received = self.read_ring(&mut ring, slots, out);
                self.ring = Some(ring);
                received
            }
            None => self.receive(slots, out, self.expected).1,
        }
    }

    fn send(&mut self, slots: &mut Slots, frame: TxFrame<'_>) -> Result<(), TxError> {
        if self.is_full(frame.head.len()) && !self.waits {
            // That the link is gone is found again by the flush at the end of the caller's batch.
            let _ = self.flush(slots);
        }
        let taken = if self.is_full(frame.head.len()) { Err(TxError::Full) } else { self.gather(slots, &frame) };
        taken.map_err(|e| {
            release(slots, &frame);
            self.stats.refused(e)
        })
    }

    fn flush(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        let mut done = 0;
        let mut gone = false;
        self.waits = false;
        while done < self.gathered.len() {
            match self.send_gathered(slots, done) {
                Ok(n) => {
                    self.count_sent(done..done + n);
                    done += n;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.waits = true;
                    break;
                }
                Err(e) => {
                    let why = self.stats.failed(&e);
                    done += 1;
                    gone = why == TxError::Down && self.is_gone();
                    // The link is down: the rest would meet the same.
                    if why == TxError::Down {
                        for _ in done..self.gathered.len() {
                            self.stats.refused(why);
                        }
                        done = self.gathered.len();
                    }
                }
            }
        }
        self.drop_gathered(slots, done);
        if gone { Err(LinkError::Closed) } else { Ok(()) }
    }

    fn has_room(&self) -> bool {
        !self.waits && self.kind != Kind::Packet
    }

    fn stop(&mut self, slots: &mut Slots) {
        self.stopped = true;
        self.waits = false;
        self.drop_gathered(slots, self.gathered.len());
    }

    fn waits(&self) -> bool {
        self.waits
    }

    fn stats(&self) -> LinkStats {
        if self.kind == Kind::Packet {
            self.overrun.set(self.overrun.get() + u64::from(packet::take_dropped(self.fd.as_fd())));
        }
        LinkStats { rx_overrun: self.overrun.get(), ..self.stats }
    }
}
