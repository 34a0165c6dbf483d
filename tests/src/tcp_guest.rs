//! A guest's TCP, segment by segment.

use crate::World;
use crate::wire::flags::{ACK, FIN, PSH, RST, SYN};
use crate::wire::{GUEST_MAC, Ip, TcpSegment};
use core::time::Duration;
use hibernet_netstack::edge::Gso;
use hibernet_netstack::edge::RxChecksum;
use hibernet_netstack::tuple::Endpoint;

/// One connection of the guest's, by script. It does nothing by itself: no acknowledgement, no retransmission.
///
/// ```
/// use hibernet_netstack::{Config, tuple::Endpoint};
/// use hibernet_tests::{TcpGuest, World};
///
/// let mut w = World::new(Config::default());
/// let remote = Endpoint::new("198.51.100.9".parse().unwrap(), 80);
/// let mut g = TcpGuest::connect(&mut w, 40_000, remote);
/// let sock = w.edge.host.last();
/// g.send(&mut w, b"hello");
/// w.edge.host.peer(sock).send(b"welcome");
/// w.settle();
/// g.expect_data(&mut w, b"welcome");
/// assert_eq!(w.edge.host.tcp(sock).received, b"hello");
/// ```
#[derive(Clone, Debug)]
pub struct TcpGuest {
    /// The guest's end.
    pub local: Endpoint,
    /// The other end, as the guest sees it.
    pub remote: Endpoint,
    /// Our initial sequence number.
    pub iss: u32,
    /// Their initial sequence number, once seen.
    pub irs: u32,
    /// Next sequence number of ours.
    pub snd_nxt: u32,
    /// Next sequence number expected of them; moved by the `expect_…` methods.
    pub rcv_nxt: u32,
    /// Window on the wire in segments after the SYN.
    pub window: u16,
    /// MSS option in our SYN.
    pub mss: Option<u16>,
    /// Window scale option in our SYN.
    pub scale: Option<u8>,
    /// Window scale option in theirs.
    pub their_scale: Option<u8>,
    /// MSS option in theirs.
    pub their_mss: Option<u16>,
    /// Window that they offered last, in bytes.
    pub their_window: u32,
    /// Segments of theirs that were looked at.
    pub seen: u64,
}

impl TcpGuest {
    /// How long a small segment's acknowledgement may wait for something to go with.
    pub const ACK_WITHIN: Duration = Duration::from_millis(5);

    /// A connection to be, from `port` of the guest's address. MSS 1460, window scale 7, window of 8 MiB.
    pub fn new(w: &World, port: u16, remote: Endpoint) -> Self {
        let local = Endpoint::new(w.guest_addr(remote.addr), port);
        let iss = 0x1000_0000u32.wrapping_add(u32::from(port) << 8);
        TcpGuest {
            local,
            remote,
            iss,
            irs: 0,
            snd_nxt: iss,
            rcv_nxt: 0,
            window: 0xffff,
            mss: Some(1460),
            scale: Some(7),
            their_scale: None,
            their_mss: None,
            their_window: 0,
            seen: 0,
        }
    }

    /// Connects out, with the whole handshake. The host's connect must succeed at once.
    pub fn connect(w: &mut World, port: u16, remote: Endpoint) -> Self {
        let mut g = TcpGuest::new(w, port, remote);
        g.handshake(w);
        g
    }

    /// Does the handshake of an outbound connection.
    pub fn handshake(&mut self, w: &mut World) {
        self.syn(w);
        self.expect_synack(w);
        self.ack(w);
    }

    /// Takes the SYN of an inbound connection to guest port `port`, from `client` as the guest sees it.
    ///
    /// # Panics
    /// If there is none.
    pub fn expect_syn(w: &mut World, port: u16, client: Endpoint) -> Self {
        let mut g = TcpGuest::new(w, port, client);
        let s = g.expect(w);
        assert_eq!(s.flags, SYN, "not a SYN: {s:?}");
        g.note_syn(&s);
        g
    }

    /// Answers the SYN of an inbound connection, and takes the acknowledgement.
    pub fn complete(&mut self, w: &mut World) {
        self.synack(w);
        self.expect_ack(w);
    }

    /// A segment of ours with the current numbers, to be changed at will and [sent](TcpGuest::inject).
    pub fn segment(&self, flags: u8, data: &[u8]) -> TcpSegment {
        TcpSegment {
            src_port: self.local.port,
            dst_port: self.remote.port,
            seq: self.snd_nxt,
            ack: if flags & ACK == 0 { 0 } else { self.rcv_nxt },
            flags,
            window: self.window,
            data: data.to_vec(),
            ..TcpSegment::default()
        }
    }

    /// The frame of a segment.
    pub fn frame(&self, w: &World, s: &TcpSegment) -> Vec<u8> {
        let (src, dst) = (self.local.addr, self.remote.addr);
        Ip::new(src, dst).frame(w.gateway_mac(), GUEST_MAC, 6, &s.bytes(src, dst))
    }

    /// Injects a segment as it is; our numbers do not move.
    pub fn inject(&self, w: &mut World, s: &TcpSegment) {
        let frame = self.frame(w, s);
        w.inject(&frame);
    }

    /// Injects a super-segment, as a link with segmentation offload delivers it; moves our numbers.
    pub fn send_gso(&mut self, w: &mut World, data: &[u8], gso: Gso) {
        let s = self.segment(ACK | PSH, data);
        self.snd_nxt = self.snd_nxt.wrapping_add(data.len() as u32);
        let frame = self.frame(w, &s);
        w.receive_as(&frame, RxChecksum::Trusted, Some(gso));
        w.settle();
    }

    fn options(&self) -> Vec<u8> {
        let mut o = Vec::new();
        if let Some(mss) = self.mss {
            o.extend([2, 4]);
            o.extend(mss.to_be_bytes());
        }
        if let Some(scale) = self.scale {
            o.extend([1, 3, 3, scale]);
        }
        o
    }

    /// Our SYN with its options; the window in it is unscaled.
    pub fn syn_segment(&self) -> TcpSegment {
        TcpSegment { options: self.options(), seq: self.iss, ..self.segment(SYN, &[]) }
    }

    /// Sends our SYN (again).
    pub fn syn(&mut self, w: &mut World) {
        self.snd_nxt = self.iss.wrapping_add(1);
        self.inject(w, &self.syn_segment());
    }

    /// Sends our SYN-ACK (again).
    pub fn synack(&mut self, w: &mut World) {
        self.snd_nxt = self.iss.wrapping_add(1);
        let s = TcpSegment { options: self.options(), seq: self.iss, ..self.segment(SYN | ACK, &[]) };
        self.inject(w, &s);
    }

    /// Sends data, moves our numbers.
    pub fn send(&mut self, w: &mut World, data: &[u8]) {
        let s = self.segment(ACK | PSH, data);
        self.snd_nxt = self.snd_nxt.wrapping_add(data.len() as u32);
        self.inject(w, &s);
    }

    /// Sends data in segments of at most `size` bytes.
    pub fn send_all(&mut self, w: &mut World, data: &[u8], size: usize) {
        data.chunks(size).for_each(|c| self.send(w, c));
    }

    /// Sends data that starts `at` bytes after our initial sequence number plus one; our numbers do not move.
    pub fn send_at(&self, w: &mut World, at: u32, data: &[u8]) {
        let s = TcpSegment { seq: self.iss.wrapping_add(1).wrapping_add(at), ..self.segment(ACK | PSH, data) };
        self.inject(w, &s);
    }

    /// Sends a pure acknowledgement of all that was expected so far.
    pub fn ack(&self, w: &mut World) {
        self.inject(w, &self.segment(ACK, &[]));
    }

    /// Sends an acknowledgement of the first `n` bytes of their stream.
    pub fn ack_at(&self, w: &mut World, n: u32) {
        let s = TcpSegment { ack: self.irs.wrapping_add(1).wrapping_add(n), ..self.segment(ACK, &[]) };
        self.inject(w, &s);
    }

    /// Sends FIN; it takes a sequence number.
    pub fn fin(&mut self, w: &mut World) {
        let s = self.segment(ACK | FIN, &[]);
        self.snd_nxt = self.snd_nxt.wrapping_add(1);
        self.inject(w, &s);
    }

    /// Sends RST.
    pub fn rst(&self, w: &mut World) {
        self.inject(w, &self.segment(RST, &[]));
    }

    /// Next segment for this connection, if there is one. No number moves but the window.
    pub fn next(&mut self, w: &mut World) -> Option<TcpSegment> {
        let s = w.take_tcp(self.remote, self.local)?;
        self.seen += 1;
        let scale = if s.flags & SYN != 0 { 0 } else { self.scale.and(self.their_scale).unwrap_or(0).min(14) };
        self.their_window = u32::from(s.window) << scale;
        Some(s)
    }

    /// All segments that are there.
    pub fn drain(&mut self, w: &mut World) -> Vec<TcpSegment> {
        std::iter::from_fn(|| self.next(w)).collect()
    }

    /// Next segment.
    ///
    /// # Panics
    /// If there is none.
    pub fn expect(&mut self, w: &mut World) -> TcpSegment {
        self.next(w).unwrap_or_else(|| panic!("no segment from {} to {}", self.remote, self.local))
    }

    /// Next segment, waiting for it.
    ///
    /// # Panics
    /// If none comes within `limit`.
    pub fn expect_within(&mut self, w: &mut World, limit: Duration) -> TcpSegment {
        let mut got = None;
        w.run_until(limit, |w| {
            got = self.next(w);
            got.is_some()
        });
        got.unwrap_or_else(|| panic!("no segment from {} to {} within {limit:?}", self.remote, self.local))
    }

    /// # Panics
    /// If a segment is there.
    pub fn expect_nothing(&mut self, w: &mut World) {
        if let Some(s) = self.next(w) {
            panic!("unexpected segment: {s:?}");
        }
    }

    fn note_syn(&mut self, s: &TcpSegment) {
        self.irs = s.seq;
        self.rcv_nxt = s.seq.wrapping_add(1);
        self.their_mss = None;
        self.their_scale = None;
        let mut o = &s.options[..];
        while let [kind, rest @ ..] = o {
            o = match (kind, rest) {
                (0, _) => break,
                (1, rest) => rest,
                (2, [4, a, b, rest @ ..]) => {
                    self.their_mss = Some(u16::from_be_bytes([*a, *b]));
                    rest
                }
                (3, [3, n, rest @ ..]) => {
                    self.their_scale = Some(*n);
                    rest
                }
                (_, [n, ..]) if *n >= 2 && usize::from(*n) - 1 <= rest.len() => &rest[usize::from(*n) - 1..],
                _ => panic!("malformed options: {:02x?}", s.options),
            };
        }
    }

    /// Takes the SYN-ACK, and notes its options.
    ///
    /// # Panics
    /// If the next segment is anything else.
    pub fn expect_synack(&mut self, w: &mut World) -> TcpSegment {
        let s = self.expect(w);
        assert_eq!(s.flags, SYN | ACK, "not a SYN-ACK: {s:?}");
        assert_eq!(s.ack, self.iss.wrapping_add(1), "the SYN-ACK acknowledges something else: {s:?}");
        assert!(s.data.is_empty(), "data in the SYN-ACK: {s:?}");
        self.note_syn(&s);
        s
    }

    /// Takes all segments that are there; none may carry data or FIN, the last must acknowledge all that we sent. An
    /// acknowledgement may take its time, [`TcpGuest::ACK_WITHIN`].
    ///
    /// # Panics
    /// If it is not so, or there is none.
    pub fn expect_ack(&mut self, w: &mut World) -> TcpSegment {
        let mut all = self.drain(w);
        if all.last().is_none_or(|s| s.ack != self.snd_nxt) {
            w.run(Self::ACK_WITHIN);
            all.extend(self.drain(w));
        }
        for s in &all {
            assert!(s.data.is_empty() && s.flags & !PSH == ACK, "not a pure acknowledgement: {s:?}");
            assert_eq!(s.seq, self.rcv_nxt, "acknowledgement out of sequence: {s:?}");
        }
        let last = all.into_iter().next_back().expect("no acknowledgement");
        assert_eq!(last.ack, self.snd_nxt, "{} bytes are not acknowledged: {last:?}", self.snd_nxt.wrapping_sub(last.ack));
        last
    }

    /// Takes all segments that are there. Their data must be `want`, whole and in order; the numbers move, nothing is sent.
    ///
    /// # Panics
    /// If it is not so.
    pub fn expect_data(&mut self, w: &mut World, want: &[u8]) -> Vec<TcpSegment> {
        let all = self.drain(w);
        let mut got = Vec::new();
        for s in &all {
            assert_eq!(s.flags & (SYN | RST | FIN), 0, "not a data segment: {s:?}");
            if !s.data.is_empty() {
                assert_eq!(s.seq, self.rcv_nxt, "data out of sequence");
                self.rcv_nxt = self.rcv_nxt.wrapping_add(s.data.len() as u32);
                got.extend_from_slice(&s.data);
            }
        }
        assert_eq!(got.len(), want.len(), "bytes received");
        assert!(got == want, "the data differ");
        all
    }

    /// Reads `len` bytes like a simple receiver: acknowledges what comes in order, lets time pass. What FIN comes is left for
    /// [`TcpGuest::expect_fin`].
    ///
    /// # Panics
    /// If they do not come within `limit`, or the connection is reset.
    pub fn read(&mut self, w: &mut World, len: usize, limit: Duration) -> Vec<u8> {
        let mut got = Vec::new();
        let done = w.run_until(limit, |w| {
            loop {
                let before = got.len();
                while got.len() < len {
                    let Some(s) = self.next(w) else { break };
                    assert_eq!(s.flags & (SYN | RST), 0, "after {} bytes: {s:?}", got.len());
                    let skip = self.rcv_nxt.wrapping_sub(s.seq);
                    if skip < s.data.len() as u32 {
                        let new = &s.data[skip as usize..];
                        got.extend_from_slice(new);
                        self.rcv_nxt = self.rcv_nxt.wrapping_add(new.len() as u32);
                    }
                    if s.flags & FIN != 0 && got.len() >= len {
                        let fin = TcpSegment { data: Vec::new(), seq: self.rcv_nxt, ..s };
                        let frame = self.mirrored(w, &fin);
                        w.inbox.push_front((w.now(), frame));
                        break;
                    }
                }
                if got.len() == before {
                    break;
                }
                self.ack(w);
            }
            got.len() >= len
        });
        assert!(done.is_some(), "only {} of {len} bytes came within {limit:?}", got.len());
        got
    }

    /// Writes `data` like a simple sender: segments of at most `mss` bytes within the window that was offered, and after a
    /// second without progress everything again from the first byte that was not acknowledged. Returns how many segments were
    /// sent again. What comes back besides acknowledgements is thrown away.
    ///
    /// # Panics
    /// If not all is acknowledged within `limit`, the window's right edge moves back, or the connection is reset.
    pub fn write(&mut self, w: &mut World, data: &[u8], mss: usize, limit: Duration) -> u64 {
        let (start, end) = (self.snd_nxt, w.now() + limit);
        let at = |seq: u32| seq.wrapping_sub(start) as usize;
        // From the last segment seen: what is acknowledged, and how far we may send.
        let (mut una, mut edge, mut highest, mut resent) = (0, self.their_window as usize, 0, 0);
        let mut moved = w.now();
        while una < data.len() {
            assert!(w.now() < end, "{una} of {} bytes were taken within {limit:?}; the window reaches to {edge}", data.len());
            for s in self.drain(w) {
                assert_eq!(s.flags & (SYN | RST), 0, "after {una} bytes: {s:?}");
                if at(s.ack) < una || at(s.ack) > data.len() {
                    continue;
                }
                if at(s.ack) > una {
                    moved = w.now();
                }
                una = at(s.ack);
                let right = una + self.their_window as usize;
                // Rounding to the unit of the scale may move the edge by less than one unit (RFC 7323 section 2.4).
                assert!(right + (1 << self.their_scale.unwrap_or(0)) > edge, "the window shrank from {edge} to {right}");
                edge = right.max(edge);
            }
            if w.now().since(moved) >= Duration::from_secs(1) && una < highest {
                resent += at(self.snd_nxt).saturating_sub(una).div_ceil(mss) as u64;
                self.snd_nxt = start.wrapping_add(una as u32);
                moved = w.now();
            }
            let from = at(self.snd_nxt);
            let n = data.len().min(edge).saturating_sub(from).min(mss);
            if n > 0 {
                self.send(w, &data[from..from + n]);
                highest = highest.max(from + n);
            } else if una < data.len() {
                w.run(Duration::from_millis(1));
            }
        }
        resent
    }

    /// A frame with a segment of theirs.
    fn mirrored(&self, w: &World, s: &TcpSegment) -> Vec<u8> {
        let (src, dst) = (self.remote.addr, self.local.addr);
        Ip::new(src, dst).frame(GUEST_MAC, w.gateway_mac(), 6, &s.bytes(src, dst))
    }

    /// Takes segments up to FIN, which must stand right after the data expected so far; it is not acknowledged yet.
    ///
    /// # Panics
    /// If it is not there, or out of sequence.
    pub fn expect_fin(&mut self, w: &mut World) -> TcpSegment {
        loop {
            let s = self.expect(w);
            assert_eq!(s.flags & (SYN | RST), 0, "not a FIN: {s:?}");
            assert!(s.data.is_empty(), "data before the FIN: {s:?}");
            if s.flags & FIN != 0 {
                assert_eq!(s.seq, self.rcv_nxt, "FIN out of sequence: {s:?}");
                self.rcv_nxt = self.rcv_nxt.wrapping_add(1);
                return s;
            }
        }
    }

    /// Takes segments up to RST, and checks that this guest would believe it (RFC 9293 section 3.10.7.3, RFC 5961):
    /// with ACK of our SYN while connecting, at exactly the next sequence number later.
    ///
    /// # Panics
    /// If there is none, or it would be ignored.
    pub fn expect_rst(&mut self, w: &mut World) -> TcpSegment {
        loop {
            let s = self.expect(w);
            if s.flags & RST == 0 {
                continue;
            }
            if self.rcv_nxt == 0 {
                assert!(s.flags & ACK != 0 && s.ack == self.snd_nxt, "this RST is ignored in SYN-SENT: {s:?}");
            } else {
                assert_eq!(s.seq, self.rcv_nxt, "this RST is only challenged: {s:?}");
            }
            return s;
        }
    }

    /// Closes from the guest's side first, and sees the whole exchange through.
    pub fn close(&mut self, w: &mut World, sock: hibernet_netstack::edge::SockId) {
        self.fin(w);
        self.expect_ack(w);
        w.edge.host.peer(sock).fin();
        w.settle();
        self.expect_fin(w);
        self.ack(w);
    }
}
