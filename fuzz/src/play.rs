//! Plays a story to a stack.

use crate::script::{Op, Reader};
use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::config::{Config, Limits, Publish};
use hibernet_netstack::edge::{Gso, GsoKind, RxChecksum, SockError};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::wire::IcmpQuote;
use hibernet_tests::host::{Incoming, Report};
use hibernet_tests::wire::{self, GUEST_MAC, Ip, L4, Net, TcpSegment};
use hibernet_tests::{ConnectPlan, World};
use std::collections::HashMap;

/// Limits so low that a story reaches them.
const LIMITS: Limits = Limits {
    tcp_flows: 12,
    tcp_half_open: 6,
    udp_flows: 8,
    icmp_flows: 4,
    tcp_hold: 16 << 10,
    tcp_out_of_order: 8 << 10,
    tcp_hold_total: 64 << 10,
    reassembly: 4,
    reassembly_bytes: 16 << 10,
    dns_queries: 4,
};

/// What the stack sent last for a flow, from its end.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Sequence number after the last segment.
    next: u32,
    /// What it acknowledged.
    acked: u32,
}

struct Play {
    w: World,
    flows: HashMap<(Endpoint, Endpoint), Seen>,
}

/// Plays a story. Panics if the stack does what it must not.
pub fn play(story: &[u8]) {
    let mut r = Reader(story);
    let setup = r.u8();
    let publish = |proto| Publish { proto, addr: None, host_ports: (8000, 8001), guest_port: 80 };
    let cfg = Config {
        resolvers: vec!["192.0.2.53".parse().expect("address"), "2001:db8::53".parse().expect("address")],
        search: vec!["example.com".into()],
        hostname: "fuzz".into(),
        publish: vec![publish(6), publish(17)],
        limits: LIMITS,
        ..Config::default()
    };
    let link = match setup & 3 {
        0 => World::plain_link(),
        1 => World::offload_link(1500),
        _ => World::offload_link(65520),
    };
    let mut w = World::with_link(cfg, link);
    w.stack.set_host_addresses(vec!["198.51.100.7".parse().expect("address")]);
    w.edge.host.plan(Endpoint::new("203.0.113.2".parse().expect("address"), 80), ConnectPlan::REFUSE);
    w.edge.host.plan(Endpoint::new("203.0.113.3".parse().expect("address"), 80), ConnectPlan::Blackhole);
    w.listen_udp(Endpoint::new("0.0.0.0".parse().expect("address"), 8000));
    if setup & 4 != 0 {
        w.edge.host.tcp_defaults.sndbuf = 4096;
        w.edge.host.tcp_defaults.max_write = 1000;
    }
    if setup & 8 != 0 {
        w.edge.host.tcp_defaults.drain = hibernet_tests::Drain::STOPPED;
    }
    w.link_up();
    let mut p = Play { w, flows: HashMap::new() };
    let mut steps = 0;
    while !r.is_empty() && steps < 200 {
        steps += 1;
        p.step(&mut r);
    }
    p.w.run(Duration::from_secs(120));
    p.look();
    let (tcp, udp, icmp) = p.w.stack.flow_counts();
    assert!(tcp <= LIMITS.tcp_flows as usize && udp <= LIMITS.udp_flows as usize && icmp <= LIMITS.icmp_flows as usize);
}

impl Play {
    fn step(&mut self, r: &mut Reader<'_>) {
        match Op::ALL[usize::from(r.u8()) % Op::ALL.len()] {
            Op::Raw => {
                let (checksum, gso) = offload(r);
                let mut frame = r.string().to_vec();
                if frame.len() >= 12 && r.u8() & 1 == 0 {
                    frame[..6].copy_from_slice(&self.w.gateway_mac());
                    frame[6..12].copy_from_slice(&GUEST_MAC);
                }
                self.w.receive_as(&frame, checksum, gso);
                self.w.settle();
            }
            Op::Packet => {
                let (src, dst) = self.addresses(r);
                let (protocol, ttl, extra) = (r.u8(), r.u8(), r.string());
                let mut body = r.string().to_vec();
                let mut ip = Ip::new(src, dst);
                (ip.ttl, ip.dont_fragment) = (ttl, ttl & 1 == 0);
                if src.is_ipv4() {
                    ip.options = extra[..extra.len().min(40) / 4 * 4].to_vec();
                } else if extra.len() >= 8 {
                    ip.extensions = vec![(extra[0], extra[..extra.len().min(64) / 8 * 8].to_vec())];
                }
                let at = match protocol {
                    6 => 16,
                    17 => 6,
                    1 | 58 => 2,
                    _ => usize::MAX,
                };
                if body.len() >= at.saturating_add(2) {
                    body[at..at + 2].fill(0);
                    let sum = wire::transport_checksum(src, dst, protocol, &body);
                    body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
                }
                self.w.inject_ip(&ip, protocol, &body);
            }
            Op::Tcp => self.tcp(r),
            Op::Udp => {
                let (src, dst) = self.addresses(r);
                let (sport, dport) = (port(r), port(r));
                let data = wire::udp(src, dst, sport, dport, r.string());
                self.w.inject_ip(&Ip::new(src, dst), 17, &data);
            }
            Op::Fragment => {
                let (src, dst) = self.addresses(r);
                let (protocol, offset, flags, ident) = (r.u8(), r.u16() % 2048, r.u8(), r.u8());
                let mut ip = Ip::new(src, dst);
                ip.ident = u32::from(ident & 7);
                let packet = ip.fragment(protocol, r.string(), offset * 8, flags & 1 != 0);
                let frame = wire::ethernet(self.w.gateway_mac(), GUEST_MAC, ip.ethertype(), &packet);
                self.w.inject(&frame);
            }
            Op::Peer => self.peer(r),
            Op::Accept => {
                let v4 = r.u8() & 1 == 0;
                let (peer, local) = if v4 { ("203.0.113.9", "198.51.100.7") } else { ("2001:db8::9", "2001:db8::7") };
                let port = 1024 + u16::from(r.u8() & 7);
                let peer = Endpoint::new(peer.parse().expect("address"), port);
                self.w.accept(peer, Endpoint::new(local.parse().expect("address"), 8000));
            }
            Op::Time => {
                let ms = r.u16();
                self.w.run(Duration::from_millis(u64::from(ms)));
            }
        }
        self.look();
    }

    /// The guest's address and a destination of the same family.
    fn addresses(&self, r: &mut Reader<'_>) -> (IpAddr, IpAddr) {
        const V4: [&str; 8] = [
            "10.0.2.2",
            "10.0.2.3",
            "203.0.113.1",
            "203.0.113.2",
            "203.0.113.3",
            "255.255.255.255",
            "203.0.113.9",
            "198.51.100.7",
        ];
        const V6: [&str; 8] = [
            "fd68:6962:6e65:7400::2",
            "fd68:6962:6e65:7400::3",
            "2001:db8::1",
            "2001:db8::2",
            "ff02::1:2",
            "ff02::2",
            "2001:db8::9",
            "64:ff9b::c633:6407",
        ];
        let choice = r.u8();
        let table = if choice & 0x80 == 0 { V4 } else { V6 };
        let dst: IpAddr = table[usize::from(choice & 7)].parse().expect("address");
        let src = match (choice >> 3) & 7 {
            7 if dst.is_ipv4() => "0.0.0.0".parse().expect("address"),
            7 => "fe80::1234".parse().expect("address"),
            6 => dst,
            _ => self.w.guest_addr(dst),
        };
        (src, dst)
    }

    fn tcp(&mut self, r: &mut Reader<'_>) {
        let (src, dst) = self.addresses(r);
        let which = r.u8();
        let (sport, dport) =
            if which & 0x80 != 0 { (80, 1024 + u16::from(which & 7)) } else { (2000 + u16::from(which & 7), 80) };
        let seen = self.flows.get(&(Endpoint::new(dst, dport), Endpoint::new(src, sport))).copied().unwrap_or_default();
        let (flags, how) = (r.u8(), r.u8());
        // Near where the flow is, mostly; sometimes anywhere.
        let near = |r: &mut Reader<'_>, base: u32, how: u8| match how & 3 {
            0 | 1 => base,
            2 => base.wrapping_add_signed(i32::from(r.u16() as i16)),
            _ => r.u32(),
        };
        let seq = near(r, seen.acked, how);
        let ack = near(r, seen.next, how >> 2);
        let segment = TcpSegment {
            src_port: sport,
            dst_port: dport,
            seq,
            ack,
            flags,
            window: r.u16(),
            urgent: if flags & 0x20 != 0 { r.u16() } else { 0 },
            options: if how & 0x10 != 0 { r.bytes(usize::from(how >> 5) * 4).to_vec() } else { Vec::new() },
            data: r.string().to_vec(),
        };
        let bytes = segment.bytes(src, dst);
        let frame = Ip::new(src, dst).frame(self.w.gateway_mac(), GUEST_MAC, 6, &bytes);
        self.w.inject(&frame);
    }

    fn peer(&mut self, r: &mut Reader<'_>) {
        let (kind, which, deed) = (r.u8(), usize::from(r.u8()), r.u8());
        let host = &mut self.w.edge.host;
        let open: Vec<_> = match kind % 3 {
            0 => host.tcp_sockets(),
            1 => host.udp_sockets(),
            _ => host.ping_sockets(),
        };
        let open: Vec<_> = open.into_iter().filter(|s| host.is_open(*s)).collect();
        let Some(&sock) = open.get(which % open.len().max(1)) else { return };
        match kind % 3 {
            0 => {
                let t = host.tcp(sock);
                let (connecting, established, closed) = (t.is_connecting(), t.is_established(), t.is_peer_closed());
                match deed % 7 {
                    0 if established && !closed => {
                        let n = usize::from(r.u16());
                        host.peer(sock).send(&vec![7; n]);
                    }
                    1 if established => {
                        host.peer(sock).fin();
                    }
                    2 if established => {
                        host.peer(sock).reset();
                    }
                    3 => {
                        host.peer(sock).fail(SockError::TimedOut);
                    }
                    4 => {
                        let (bytes, window) = (usize::from(r.u16()), u32::from(r.u16()));
                        host.peer(sock).tune(|t| {
                            t.drain = hibernet_tests::Drain { bytes, every: Duration::from_millis(u64::from(window % 100)) };
                            t.peer_window = (window & 1 == 0).then_some(window);
                            t.max_peek = bytes.max(1);
                        });
                    }
                    5 if connecting => {
                        host.peer(sock).finish_connect(Err(SockError::Refused));
                    }
                    _ => host.notify(sock),
                }
            }
            1 => {
                let data = r.string();
                let to = host.udp(sock).to;
                let from = to.unwrap_or(Endpoint::new("203.0.113.9".parse().expect("address"), 1024 + u16::from(deed & 7)));
                match deed % 4 {
                    0 => host.report(sock, report(r, Some(from), data)),
                    1 => {
                        // The kernel never says that pieces of nothing were merged.
                        let segment = (!data.is_empty()).then(|| 1 + u16::from(r.u8()));
                        host.udp_arrives(
                            sock,
                            Incoming { data: data.to_vec(), from, to: None, segment, hop_limit: Some(r.u8()) },
                        );
                    }
                    _ => host
                        .udp_arrives(sock, Incoming { data: data.to_vec(), from, to: None, segment: None, hop_limit: Some(64) }),
                }
            }
            _ => {
                let (seq, data) = (r.u16(), r.string());
                if deed & 1 == 0 {
                    host.ping_reply(sock, seq, data);
                } else {
                    let to = Endpoint::new(host.ping(sock).to, 0);
                    host.report(sock, report(r, Some(to), data));
                }
            }
        }
        self.w.settle();
    }

    /// Reads what the stack sent: every frame must be well-formed; where flows are is remembered.
    fn look(&mut self) {
        self.w.collect();
        for (_, frame) in self.w.inbox.drain(..) {
            let frame = wire::parse(&frame).unwrap_or_else(|e| panic!("the stack sent a bad frame: {}: {frame:02x?}", e.0));
            if let Net::Ip { src, dst, l4: L4::Tcp(t), .. } = frame.net {
                let len = t.data.len() as u32 + u32::from(t.flags & 2 != 0) + u32::from(t.flags & 1 != 0);
                let flow = (Endpoint::new(src, t.src_port), Endpoint::new(dst, t.dst_port));
                self.flows.insert(flow, Seen { next: t.seq.wrapping_add(len), acked: t.ack });
            }
        }
    }
}

fn port(r: &mut Reader<'_>) -> u16 {
    const PORTS: [u16; 12] = [53, 67, 68, 546, 547, 80, 123, 2000, 2001, 1024, 1025, 0];
    let n = usize::from(r.u8());
    PORTS.get(n).copied().unwrap_or(n as u16 * 200)
}

fn report(r: &mut Reader<'_>, destination: Option<Endpoint>, payload: &[u8]) -> Report {
    let icmp = IcmpQuote { ty: r.u8(), code: r.u8(), rest: r.u32() };
    let offender = destination.map(|d| d.addr);
    Report { icmp, offender, destination, payload: payload.to_vec() }
}

/// What the link says about a frame.
fn offload(r: &mut Reader<'_>) -> (RxChecksum, Option<Gso>) {
    let flags = r.u8();
    let checksum = if flags & 1 == 0 { RxChecksum::Unverified } else { RxChecksum::Trusted };
    let kind = match (flags >> 1) & 7 {
        1 => GsoKind::Tcp4,
        2 => GsoKind::Tcp6,
        3 => GsoKind::Udp,
        _ => return (checksum, None),
    };
    (checksum, Some(Gso { kind, size: r.u16() }))
}
