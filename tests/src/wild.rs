//! A host that knows no sockets, and answers whatever it is asked: for stacks of whose sockets nothing is known.

use crate::SplitMix;
use crate::payload::{PayloadPool, SlotKind};
use crate::wire::{self, GUEST_MAC, Ip, TcpSegment};
use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::edge::{
    Close, Datagram, ErrorReport, FrameSink, HostSockets, LinkId, Payload, PayloadStore, Peek, Ready, RxChecksum, RxFrame,
    SendOpts, SockError, SockId, Source, TcpStatus, Token, TxError, TxFrame,
};
use hibernet_netstack::state::{FlowInfo, GoesOn};
use hibernet_netstack::tuple::{Endpoint, proto};
use hibernet_netstack::{Stack, Time};

/// The edge. What it answers is chance, within the contract.
#[derive(Debug)]
pub struct WildEdge {
    pool: PayloadPool,
    rng: SplitMix,
    /// Frames for the guest so far.
    pub sent: u64,
}

impl WildEdge {
    /// With a seed of its chances.
    pub fn new(seed: u64) -> Self {
        WildEdge { pool: PayloadPool::default(), rng: SplitMix::new(seed), sent: 0 }
    }

    fn bytes(&mut self, most: u32) -> Payload {
        let len = self.rng.below(u64::from(most.min(3000)) + 1) as usize;
        self.pool.put(SlotKind::Socket, vec![0x77; len])
    }

    fn fails(&mut self) -> Result<(), SockError> {
        match self.rng.below(40) {
            0 => Err(SockError::Reset),
            1 => Err(SockError::NoResources),
            2 => Err(SockError::NotAvailable),
            _ => Ok(()),
        }
    }

    fn opened(&mut self) -> Result<SockId, SockError> {
        self.fails().map(|()| SockId(self.rng.u64() as u32))
    }

    fn end(&mut self) -> Endpoint {
        Endpoint::new([203, 0, 113, self.rng.u64() as u8].into(), self.rng.u64() as u16)
    }
}

/// Has a stack go on for a while, whatever its state: it thaws, hears of its sockets, of its guest, and of time. Its own promises are checked: it
/// gives back what it borrows, and comes to rest.
///
/// # Panics
/// If it does not.
pub fn drive(stack: &mut Stack, now: Time, seed: u64, steps: u32) {
    let mut edge = WildEdge::new(seed);
    let mut rng = SplitMix::new(!seed);
    let mut now = now;
    let deaf = rng.below(3);
    let goes_on = |sock: SockId| match (sock.0 % 5, deaf) {
        (0, 1) => GoesOn::No,
        (1, 2) => GoesOn::Behind,
        _ => GoesOn::Yes,
    };
    stack.thaw(now, Duration::from_secs(rng.below(100_000)), &goes_on, &mut edge);
    for _ in 0..steps {
        match rng.below(6) {
            0 | 1 => {
                let flows: Vec<FlowInfo> = stack.flows().collect();
                if let Some(f) = flows.get(rng.below(flows.len() as u64) as usize) {
                    let ready = Ready {
                        readable: rng.chance(70),
                        writable: rng.chance(50),
                        peer_closed: rng.chance(10),
                        error: rng.chance(5),
                    };
                    stack.socket_ready(now, f.token, ready, &mut edge);
                }
            }
            2 | 3 => {
                let flows: Vec<FlowInfo> = stack.flows().collect();
                let flow = flows.get(rng.below(flows.len() as u64) as usize);
                if let Some(frame) = flow.and_then(|f| frame(stack, f, &mut rng)) {
                    let payload = edge.pool.put(SlotKind::Frame, frame.clone());
                    let head = &frame[..frame.len().min(hibernet_netstack::edge::HEAD_MAX)];
                    let rx = RxFrame { link: LinkId(0), head, frame: payload, checksum: RxChecksum::Unverified, gso: None };
                    stack.receive(now, &rx, &mut edge);
                    edge.pool.end_frame(payload);
                }
            }
            4 => {
                let sockets: Vec<(Token, SockId)> = stack.service_sockets().collect();
                for (token, _) in sockets {
                    let ready = Ready { readable: true, writable: true, ..Ready::default() };
                    stack.socket_ready(now, token, ready, &mut edge);
                }
            }
            _ => {
                let next = stack.next_deadline().filter(|t| *t != Time::NEVER);
                now = next.unwrap_or(now).max(now + Duration::from_millis(rng.below(200)));
                stack.tick(now, &mut edge);
            }
        }
        edge.pool.assert_balanced();
        let rounds = (0..1000).take_while(|_| stack.flush(now, &mut edge)).count();
        edge.pool.assert_balanced();
        assert!(rounds < 1000, "the stack does not come to rest");
    }
}

/// A frame of the guest's on a flow, with numbers that are near those of the flow or not.
fn frame(stack: &Stack, f: &FlowInfo, rng: &mut SplitMix) -> Option<Vec<u8>> {
    let (src, dst) = (f.tuple.src, f.tuple.dst);
    if src.addr.is_ipv4() != dst.addr.is_ipv4() {
        return None;
    }
    let data = vec![0x55; rng.below(1200) as usize];
    let payload = match f.tuple.proto {
        proto::TCP => {
            let near =
                |rng: &mut SplitMix| if rng.chance(50) { rng.u64() as u32 } else { 0x1000_0000 + rng.below(10_000_000) as u32 };
            let s = TcpSegment {
                src_port: src.port,
                dst_port: dst.port,
                seq: near(rng),
                ack: near(rng),
                flags: rng.u64() as u8 & 0x1f,
                window: rng.u64() as u16,
                data,
                ..TcpSegment::default()
            };
            s.bytes(src.addr, dst.addr)
        }
        proto::UDP => wire::udp(src.addr, dst.addr, src.port, dst.port, &data),
        _ => wire::echo(src.addr, dst.addr, src.port, rng.u64() as u16, &data),
    };
    Some(Ip::new(src.addr, dst.addr).frame(stack.config().gateway_mac.0, GUEST_MAC, f.tuple.proto, &payload))
}

impl PayloadStore for WildEdge {
    fn read(&self, p: Payload, out: &mut [u8]) -> usize {
        let bytes = self.pool.bytes(p);
        let n = bytes.len().min(out.len());
        out[..n].copy_from_slice(&bytes[..n]);
        n
    }

    fn checksum(&self, p: Payload) -> u16 {
        self.pool.checksum(p)
    }

    fn make_private(&mut self, _: Payload) -> bool {
        true
    }

    fn stash(&mut self, bytes: &[u8]) -> Option<Payload> {
        self.pool.stash(bytes)
    }

    fn append(&mut self, to: &mut Payload, more: Payload) -> bool {
        self.pool.append(to, more)
    }

    fn release(&mut self, p: Payload) {
        self.pool.release(p);
    }
}

impl FrameSink for WildEdge {
    fn transmit(&mut self, _: LinkId, frame: TxFrame<'_>) -> Result<(), TxError> {
        assert!(frame.head.len() + frame.body.len() <= 14 + 65_575, "a frame that no link can carry");
        if !frame.keep_body {
            self.pool.release(frame.body);
        }
        self.sent += 1;
        if self.rng.chance(3) { Err(TxError::Full) } else { Ok(()) }
    }
}

impl HostSockets for WildEdge {
    fn reserve(&mut self, _: u8, _: Endpoint, _: Source) -> bool {
        self.rng.chance(80)
    }

    fn tcp_connect(&mut self, _: Token, _: Endpoint, _: Source) -> Result<SockId, SockError> {
        self.opened()
    }

    fn tcp_adopt(&mut self, _: SockId, _: Token) -> Result<(), SockError> {
        self.fails()
    }

    fn tcp_send(&mut self, _: SockId, data: Payload) -> Result<usize, SockError> {
        self.fails()?;
        Ok(self.rng.below(data.len() as u64 + 1) as usize)
    }

    fn tcp_send_bytes(&mut self, _: SockId, data: &[u8]) -> Result<usize, SockError> {
        self.fails()?;
        Ok(self.rng.below(data.len() as u64 + 1) as usize)
    }

    fn tcp_peek(&mut self, _: SockId, _: u32, max: u32) -> Result<Peek, SockError> {
        self.fails()?;
        Ok(match self.rng.below(8) {
            0 => Peek::Eof,
            1..4 if max > 0 => match self.bytes(max) {
                p if p.is_empty() => {
                    self.pool.release(p);
                    Peek::Empty
                }
                p => Peek::Data(p),
            },
            _ => Peek::Empty,
        })
    }

    fn tcp_consume(&mut self, _: SockId, _: u32) -> Result<(), SockError> {
        self.fails()
    }

    fn tcp_unread(&mut self, _: SockId) -> u32 {
        self.rng.u64() as u32 >> self.rng.below(32)
    }

    fn tcp_shutdown(&mut self, _: SockId) -> Result<(), SockError> {
        self.fails()
    }

    fn tcp_space(&mut self, _: SockId) -> u32 {
        self.rng.u64() as u32 >> self.rng.range(8, 31)
    }

    fn tcp_unacked(&mut self, _: SockId) -> u32 {
        self.rng.u64() as u32 >> self.rng.range(8, 31)
    }

    fn tcp_status(&mut self, _: SockId) -> TcpStatus {
        TcpStatus {
            peer_window: self.rng.chance(50).then_some(70_000),
            rtt: Duration::from_millis(20),
            mss: 1400,
            established: true,
        }
    }

    fn udp_open(&mut self, _: Token, _: Endpoint, _: Source) -> Result<SockId, SockError> {
        self.opened()
    }

    fn udp_send(&mut self, _: SockId, _: Payload, _: &SendOpts) -> Result<(), SockError> {
        self.fails()
    }

    fn udp_recv(&mut self, _: SockId, out: &mut [Option<Datagram>]) -> Result<usize, SockError> {
        self.fails()?;
        let n = self.rng.below(out.len().min(3) as u64 + 1) as usize;
        for place in &mut out[..n] {
            let (payload, from) = (self.bytes(1400), self.end());
            *place = Some(Datagram { payload, from, to: Some([198, 18, 0, 1].into()), segment: None, hop_limit: Some(60) });
        }
        Ok(n)
    }

    fn ping_open(&mut self, _: Token, _: IpAddr, _: u16, _: Option<IpAddr>) -> Result<SockId, SockError> {
        self.opened()
    }

    fn ping_send(&mut self, _: SockId, _: u16, _: Payload, _: &SendOpts) -> Result<(), SockError> {
        self.fails()
    }

    fn ping_recv(&mut self, _: SockId) -> Result<Option<(u16, Datagram)>, SockError> {
        self.fails()?;
        if self.rng.chance(60) {
            return Ok(None);
        }
        let (payload, from) = (self.bytes(1400), self.end());
        Ok(Some((self.rng.u64() as u16, Datagram { payload, from, to: None, segment: None, hop_limit: None })))
    }

    fn take_error(&mut self, _: SockId) -> Option<SockError> {
        self.fails().err()
    }

    fn take_report(&mut self, _: SockId) -> Option<ErrorReport> {
        None
    }

    fn close(&mut self, _: SockId, _: Close) {}

    fn flush(&mut self) {}
}
