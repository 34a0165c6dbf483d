//! What every link to a kernel's stack must carry, each way.

use crate::frames::{self, OURS, TCP, UDP, pattern, pseudo};
use crate::ns;
use hibernet::link::{Link, LinkError, Received, RxBatch};
use hibernet::slots::Slots;
use hibernet_netstack::edge::{Gso, GsoKind, Payload, RxChecksum, TxChecksum, TxError, TxFrame};
use hibernet_netstack::wire::Mac;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Guest and gateway addresses, per family.
pub fn addresses(v6: bool) -> (IpAddr, IpAddr) {
    if v6 {
        ("fd00::15".parse().unwrap(), "fd00::2".parse().unwrap())
    } else {
        ("10.0.2.15".parse().unwrap(), "10.0.2.2".parse().unwrap())
    }
}

/// Makes `device` the guest's interface.
pub fn configure(device: &str) {
    ns::ip(&format!("addr add 10.0.2.15/24 dev {device}"));
    ns::ip(&format!("neigh add 10.0.2.2 lladdr {OURS} dev {device}"));
    if ns::has_ipv6() {
        ns::ip(&format!("-6 addr add fd00::15/64 dev {device} nodad"));
    }
    ns::ip(&format!("link set {device} up"));
    if ns::has_ipv6() {
        ns::ip(&format!("-6 neigh add fd00::2 lladdr {OURS} dev {device}"));
    }
}

/// Longer than anything takes, also on a machine that has much else to do.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A frame that was received, copied out.
#[derive(Debug)]
pub struct Frame {
    pub bytes: Vec<u8>,
    pub checksum: RxChecksum,
    pub gso: Option<Gso>,
}

/// A link with its slots and an epoll on it.
pub struct Bench {
    pub link: Box<dyn Link>,
    pub slots: Slots,
    epoll: Epoll,
    waiting: std::collections::VecDeque<Frame>,
    guest: Mac,
}

impl Bench {
    pub fn new(link: Box<dyn Link>, guest: Mac) -> Bench {
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, link.fd().as_fd().as_raw_fd(), event).unwrap();
        Bench { link, slots: Slots::new(256).unwrap(), epoll, waiting: Default::default(), guest }
    }

    /// Waits until the link's descriptor reports something.
    pub fn wait(&self, limit: Duration) -> bool {
        let mut events = [EpollEvent::default()];
        self.epoll.wait(limit.as_millis() as i32, &mut events).unwrap() > 0
    }

    /// Receives with these slots, none of which is free, until so many frames were dropped for want of one.
    pub fn receive_without_slots(&mut self, slots: &mut Slots, dropped: u64) {
        let mut batch = RxBatch::default();
        while self.link.stats().rx_no_slot < dropped {
            assert!(self.wait(PATIENCE), "{:?}", self.link.stats());
            self.link.recv_batch(slots, &mut batch).unwrap();
        }
        assert!(batch.is_empty());
    }

    /// One call to the link.
    pub fn receive(&mut self) -> Result<(), LinkError> {
        let mut batch = RxBatch::default();
        let result = self.link.recv_batch(&mut self.slots, &mut batch);
        for Received { slot, frame, checksum, gso } in batch.drain() {
            assert_eq!(slot, frame.slot);
            self.waiting.push_back(Frame { bytes: self.slots.bytes(frame).to_vec(), checksum, gso });
            self.slots.give(slot);
        }
        result
    }

    /// Frames that were received and not looked at.
    pub fn take(&mut self) -> Vec<Frame> {
        self.waiting.drain(..).collect()
    }

    /// The next frame for which `wanted` holds; others (neighbour discovery and the like) are passed over.
    pub fn next(&mut self, wanted: impl FnMut(&frames::Ip) -> bool) -> Option<(Frame, frames::Ip)> {
        self.next_within(PATIENCE, wanted)
    }

    /// As [`Bench::next`], for so long.
    fn next_within(&mut self, limit: Duration, mut wanted: impl FnMut(&frames::Ip) -> bool) -> Option<(Frame, frames::Ip)> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            while let Some(f) = self.waiting.pop_front() {
                assert_ne!(&f.bytes[6..12], &OURS.0, "a frame that we sent came back");
                if let Some(ip) = frames::parse(&f.bytes).filter(&mut wanted) {
                    return Some((f, ip));
                }
            }
            if self.wait(Duration::from_millis(100)) {
                self.receive().unwrap();
            }
        }
        None
    }

    /// Sends a transport packet to the guest, its checksum left to the link or not.
    pub fn send(
        &mut self,
        v6: bool,
        proto: u8,
        l4_head: &[u8],
        data: &[u8],
        gso: Option<u16>,
        offload: bool,
    ) -> Result<(), TxError> {
        let (guest, gateway) = addresses(v6);
        let len = l4_head.len() + data.len();
        let mut head = frames::headers(self.guest, gateway, guest, proto, len);
        let start = head.len();
        let offset = if proto == TCP { 16 } else { 6 };
        head.extend(l4_head);
        let partial = pseudo(gateway, guest, proto, len);
        let value = if offload { partial } else { !frames::sum(&[l4_head, &partial.to_be_bytes(), data]) };
        head[start + offset..start + offset + 2].copy_from_slice(&value.to_be_bytes());
        let checksum = offload.then_some(TxChecksum { start: start as u16, offset: offset as u16 });
        let kind = match (proto, v6) {
            (TCP, false) => GsoKind::Tcp4,
            (TCP, true) => GsoKind::Tcp6,
            _ => GsoKind::Udp,
        };
        let body = self.payload(data);
        let gso = gso.map(|size| Gso { kind, size });
        self.link.send(&mut self.slots, TxFrame { head: &head, body, keep_body: false, checksum, gso })?;
        self.flush();
        assert_eq!(self.slots.in_use(), 0, "a slot was kept");
        Ok(())
    }

    /// Sends what was gathered, as the kernel takes it: it may not yet have worked off what it has.
    fn flush(&mut self) {
        self.link.flush(&mut self.slots).unwrap();
        if !self.link.waits() {
            return;
        }
        let writable = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::OUT, 0);
        writable.ctl(ControlOperation::Add, self.link.fd().as_fd().as_raw_fd(), event).unwrap();
        while self.link.waits() {
            let n = writable.wait(PATIENCE.as_millis() as i32, &mut [EpollEvent::default()]).unwrap();
            assert!(n > 0, "the link takes nothing more");
            self.link.flush(&mut self.slots).unwrap();
        }
    }

    pub fn payload(&mut self, data: &[u8]) -> Payload {
        if data.is_empty() {
            return Payload::EMPTY;
        }
        let slot = self.slots.take().unwrap();
        self.slots.slot_mut(slot)[100..100 + data.len()].copy_from_slice(data);
        Payload { slot, offset: 100, len: data.len() as u32 }
    }
}

fn udp_head(from: u16, to: u16, len: usize) -> Vec<u8> {
    [from, to, (len + 8) as u16, 0].map(u16::to_be_bytes).concat()
}

/// Datagrams both ways, with and without the link's help, and in bundles.
pub fn udp(b: &mut Bench, v6: bool) {
    let (guest, gateway) = addresses(v6);
    let socket = UdpSocket::bind(SocketAddr::new(guest, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let to = SocketAddr::new(gateway, 9999);
    let ours = |ip: &frames::Ip| ip.proto == UDP && ip.l4[2..4] == 9999u16.to_be_bytes();

    socket.send_to(b"from the guest", to).unwrap();
    let (f, ip) = b.next(ours).expect("the datagram");
    assert_eq!((&ip.l4[8..], f.gso), (&b"from the guest"[..], None));
    assert!(f.checksum == RxChecksum::Trusted || ip.checksum_is_right());

    for (offload, data) in [(true, &b"partial checksum"[..]), (false, b"whole checksum, odd"), (true, b"")] {
        b.send(v6, UDP, &udp_head(9999, port, data.len()), data, None, offload).unwrap();
        let mut buf = [0; 100];
        let (n, from) = socket.recv_from(&mut buf).unwrap();
        assert_eq!((&buf[..n], from), (data, to));
    }

    if b.link.info().uso {
        const SOL_UDP: i32 = 17;
        const UDP_SEGMENT: i32 = 103;
        hibernet::sys::socket::set_option(socket.as_fd(), SOL_UDP, UDP_SEGMENT, 1400).unwrap();
        let data = pattern(0, 14_000 - 100);
        socket.send_to(&data, to).unwrap();
        let (f, ip) = b.next(ours).expect("the bundle");
        assert_eq!(f.gso, Some(Gso { kind: GsoKind::Udp, size: 1400 }));
        assert_eq!((f.checksum, &ip.l4[8..]), (RxChecksum::Trusted, &data[..]));

        b.send(v6, UDP, &udp_head(9999, port, data.len()), &data, Some(1400), true).unwrap();
        for piece in data.chunks(1400) {
            let mut buf = [0; 2000];
            let (n, from) = socket.recv_from(&mut buf).unwrap();
            assert_eq!((&buf[..n], from), (piece, to));
        }
    }
}

/// An echo to the guest and its answer.
pub fn icmp(b: &mut Bench, v6: bool) {
    let (guest, gateway) = addresses(v6);
    let (proto, request, reply) = if v6 { (58, 128, 129) } else { (1, 8, 0) };
    let mut l4 = vec![request, 0, 0, 0, 0x12, 0x34, 0, 7];
    l4.extend(b"echo me!");
    let pseudo = if v6 { pseudo(gateway, guest, proto, l4.len()) } else { 0 };
    let c = !frames::sum(&[&l4, &pseudo.to_be_bytes()]);
    l4[2..4].copy_from_slice(&c.to_be_bytes());
    let mut head = frames::headers(b.guest, gateway, guest, proto, l4.len());
    head.extend(&l4);
    let frame = TxFrame { head: &head, body: Payload::EMPTY, keep_body: false, checksum: None, gso: None };
    b.link.send(&mut b.slots, frame).unwrap();
    b.flush();
    let (_, ip) = b.next(|ip| ip.proto == proto && ip.l4[0] == reply).expect("the echo reply");
    assert_eq!(ip.l4[4..], l4[4..]);
}

/// Scale of our window.
const SCALE: u8 = 7;

/// A segment's header; `window` is the field, as it stands there.
fn tcp_head(port: u16, seq: u32, ack: u32, flags: u8, window: u16, options: &[u8]) -> Vec<u8> {
    let mut h = [80u16.to_be_bytes(), port.to_be_bytes()].concat();
    h.extend(seq.to_be_bytes());
    h.extend(ack.to_be_bytes());
    h.extend([(((20 + options.len()) / 4) << 4) as u8, flags]);
    h.extend([window, 0, 0].map(u16::to_be_bytes).concat());
    h.extend(options);
    h
}

const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// A connection of the guest's with bulk data both ways: super-segments of the right size, every byte once.
pub fn tcp(b: &mut Bench, v6: bool) {
    const BYTES: usize = 4 << 20;
    const MSS: u16 = 1400;
    let (_, gateway) = addresses(v6);
    let guest = std::thread::spawn(move || {
        let mut s = TcpStream::connect_timeout(&SocketAddr::new(gateway, 80), PATIENCE).unwrap();
        s.set_read_timeout(Some(PATIENCE)).unwrap();
        s.set_write_timeout(Some(PATIENCE)).unwrap();
        s.write_all(&pattern(0, BYTES)).unwrap();
        let mut got = vec![0; BYTES];
        s.read_exact(&mut got).unwrap();
        assert!(got == pattern(7, BYTES), "bytes to the guest");
    });

    // No more than waits in the link while we have no processor: what falls out comes again only after ever longer time-outs.
    let window = |scale: u8| (b.link.info().in_flight >> scale).min(u16::MAX.into()) as u16;
    let (first_offered, offered) = (window(0), window(SCALE));
    let word = |l4: &[u8], at: usize| u32::from_be_bytes(l4[at..at + 4].try_into().unwrap());
    let (_, syn) = b.next(|ip| ip.proto == TCP && ip.l4[13] == SYN && ip.l4[2..4] == [0, 80]).expect("the SYN");
    let port = u16::from_be_bytes([syn.l4[0], syn.l4[1]]);
    let scale = |options: &[u8]| {
        let mut o = options;
        loop {
            match *o {
                [1, ref rest @ ..] => o = rest,
                [3, 3, shift, ..] => return shift,
                [0, ..] | [] | [_] => return 0,
                [_, n, ..] => o = &o[usize::from(n)..],
            }
        }
    };
    let shift = scale(&syn.l4[20..usize::from(syn.l4[12] >> 4) * 4]);
    let first = word(&syn.l4, 4).wrapping_add(1);
    let mut seq = 1000u32;
    let options = [2, 4, (MSS >> 8) as u8, MSS as u8, 1, 3, 3, SCALE];
    b.send(v6, TCP, &tcp_head(port, seq, first, SYN | ACK, first_offered, &options), &[], None, true).unwrap();
    seq += 1;

    let from_peer = |ip: &frames::Ip| ip.proto == TCP && ip.l4[0..2] == port.to_be_bytes();
    let (mut got, mut held, mut longest, mut supers) = (Vec::new(), BTreeMap::new(), 0, 0);
    while got.len() < BYTES {
        let (f, ip) = b.next(from_peer).expect("a segment");
        let data = &ip.l4[usize::from(ip.l4[12] >> 4) * 4..];
        if data.is_empty() {
            continue;
        }
        assert!(f.checksum == RxChecksum::Trusted || ip.checksum_is_right());
        match f.gso {
            Some(gso) => {
                let kind = if v6 { GsoKind::Tcp6 } else { GsoKind::Tcp4 };
                assert_eq!(gso, Gso { kind, size: MSS });
                supers += 1;
            }
            None => assert!(data.len() <= usize::from(MSS), "{} bytes in a plain segment", data.len()),
        }
        longest = longest.max(data.len());
        // Segments overtake each other when the guest's stack runs on several processors.
        held.insert(word(&ip.l4, 4).wrapping_sub(first) as usize, data.to_vec());
        while let Some((at, data)) = held.pop_first() {
            if at > got.len() {
                held.insert(at, data);
                break;
            }
            let new = data.get(got.len() - at..).unwrap_or_default();
            got.extend_from_slice(new);
        }
        let expected = first.wrapping_add(got.len() as u32);
        b.send(v6, TCP, &tcp_head(port, seq, expected, ACK, offered, &[]), &[], None, true).unwrap();
    }
    assert!(got == pattern(0, BYTES), "bytes from the guest");
    assert!(supers > 10 && longest > 30_000, "{supers} super-segments, the longest of {longest} bytes");

    let expected = first.wrapping_add(BYTES as u32);
    let data = pattern(7, BYTES);
    let piece = usize::from(MSS) * 45;
    // That of the SYN is not scaled.
    let mut window = usize::from(u16::from_be_bytes([syn.l4[14], syn.l4[15]]));
    let (mut acked, mut sent, mut moved) = (0, 0, Instant::now());
    while acked < BYTES {
        while sent < BYTES && sent - acked < window {
            let n = piece.min(BYTES - sent).min(window - (sent - acked));
            let head = tcp_head(port, seq.wrapping_add(sent as u32), expected, ACK | PSH, offered, &[]);
            let gso = (n > usize::from(MSS)).then_some(MSS);
            b.send(v6, TCP, &head, &data[sent..sent + n], gso, true).unwrap();
            sent += n;
        }
        let Some((_, ip)) = b.next_within(Duration::from_millis(300), from_peer) else {
            // Lost, or the window is closed: again, or a byte to probe it.
            assert!(moved.elapsed() < PATIENCE, "no acknowledgement beyond {acked} of {sent}");
            (sent, window) = (acked, window.max(1));
            continue;
        };
        let acknowledged = word(&ip.l4, 8).wrapping_sub(seq) as usize;
        if acknowledged > acked {
            (acked, moved) = (acknowledged, Instant::now());
        }
        sent = sent.max(acked);
        window = usize::from(u16::from_be_bytes([ip.l4[14], ip.l4[15]])) << shift;
    }
    guest.join().unwrap();
}

/// All of the above in both families.
pub fn everything(b: &mut Bench) {
    for v6 in [false, true] {
        if v6 && !ns::has_ipv6() {
            ns::skip("IPv6", "the kernel has none");
            continue;
        }
        udp(b, v6);
        icmp(b, v6);
        tcp(b, v6);
    }
    let stats = b.link.stats();
    assert!(stats.rx_frames > 0 && stats.tx_frames > 0);
    assert_eq!((stats.rx_bad_header, stats.rx_errors, stats.tx_errors, stats.tx_full), (0, 0, 0, 0), "{stats:?}");
}
