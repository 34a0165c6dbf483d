//! Whatever comes from the guest: no panic, no leak, no unbounded memory, and nothing vanishes uncounted.
//!
//! Valid frames of every kind, changed at random, and bare noise, in sequences against one stack. Payload balance is
//! checked by the kit after every call.

use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::config::{Config, Limits, Publish};
use hibernet_netstack::edge::{Gso, GsoKind, RxChecksum, TxError};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::{DropReason, Stack};
use hibernet_tests::wire::flags::{ACK, FIN, PSH, RST, SYN};
use hibernet_tests::wire::{self, Arp, GUEST_MAC, Ip, L4, Net, TcpSegment};
use hibernet_tests::{Drain, SplitMix, TcpGuest, World};
use proptest::prelude::*;

fn config() -> Config {
    let limits = Limits {
        tcp_flows: 64,
        tcp_half_open: 16,
        udp_flows: 64,
        icmp_flows: 16,
        tcp_hold: 32 << 10,
        tcp_out_of_order: 32 << 10,
        tcp_hold_total: 256 << 10,
        reassembly: 16,
        reassembly_bytes: 64 << 10,
        dns_queries: 16,
    };
    let publish = vec![Publish { proto: 6, addr: None, host_ports: (8000, 8000), guest_port: 80 }];
    Config { limits, publish, resolvers: vec![IpAddr::from([192, 0, 2, 53])], ..Config::default() }
}

/// Everything held for the guest must fit into this: the sums of the limits above.
const HELD_MAX: usize = (256 << 10) + (64 << 10) + 64 * (32 << 10);

fn tcp(rng: &mut SplitMix, src: IpAddr, dst: IpAddr) -> Vec<u8> {
    let flags = [SYN, SYN | ACK, ACK, ACK | PSH, FIN | ACK, RST, SYN | FIN, 0, rng.u64() as u8][rng.below(9) as usize];
    let options: &[&[u8]] =
        &[&[], &[2, 4, 5, 0xb4, 1, 3, 3, 7], &[2, 0], &[2, 255, 1, 1], &[3], &[2, 6, 0, 1, 0, 0], &[2, 4, 0, 0], &[0, 0, 0, 0]];
    let mut data = vec![0; rng.below(600) as usize * rng.below(2) as usize];
    rng.fill(&mut data);
    let t = TcpSegment {
        src_port: rng.range(1, 20) as u16,
        dst_port: rng.range(1, 4) as u16,
        seq: rng.below(2000) as u32,
        ack: rng.u64() as u32,
        flags,
        window: rng.u64() as u16,
        urgent: rng.below(3) as u16,
        options: options[rng.below(options.len() as u64) as usize].to_vec(),
        data,
    };
    t.bytes(src, dst)
}

/// A valid frame of some kind.
fn valid(rng: &mut SplitMix, w: &World) -> Vec<u8> {
    let cfg = w.stack.config();
    let (v4, v6) = (cfg.v4.unwrap(), cfg.v6.unwrap());
    let gateway = w.gateway_mac();
    if rng.chance(8) {
        let op = rng.range(1, 2) as u16;
        let a = Arp { op, sender: (GUEST_MAC, v4.guest.octets()), target: ([0; 6], v4.gateway.octets()) };
        return wire::ethernet(gateway, GUEST_MAC, wire::ethertype::ARP, &wire::arp(a));
    }
    let six = rng.chance(50);
    let src: IpAddr = if six { v6.guest.into() } else { v4.guest.into() };
    let dst: IpAddr = match (rng.below(8), six) {
        (0, false) => v4.gateway.into(),
        (0, true) => v6.gateway.into(),
        (1, false) => v4.dns.into(),
        (1, true) => v6.dns.into(),
        (2, false) => IpAddr::from([127, 0, 0, 1]),
        (2, true) => "::1".parse().unwrap(),
        (3, false) => IpAddr::from([255; 4]),
        (3, true) => "ff02::2".parse().unwrap(),
        (_, false) => IpAddr::from([203, 0, 113, rng.below(4) as u8]),
        (_, true) => IpAddr::from([0x2600, 0, 0, 0, 0, 0, 0, rng.below(4) as u16]),
    };
    let mut ip = Ip::new(src, dst);
    ip.ttl = [64, 64, 64, 1, 0, 255][rng.below(6) as usize];
    ip.tos = rng.u64() as u8;
    if !six && rng.chance(10) {
        ip.options = vec![1, 1, 1, 0];
    }
    if six && rng.chance(15) {
        ip.extensions = vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0])];
    }
    let (protocol, payload) = match rng.below(5) {
        0 | 1 => (6, tcp(rng, src, dst)),
        2 => {
            let port = [53, 67, 547, 9][rng.below(4) as usize];
            let mut data = vec![0; rng.below(300) as usize];
            rng.fill(&mut data);
            (17, wire::udp(src, dst, rng.range(1, 9) as u16, port, &data))
        }
        3 if six => {
            let ty = [128, 129, 1, 133, 134, 135, 136][rng.below(7) as usize];
            (58, wire::icmp(src, dst, ty, 0, rng.below(4) as u32, &[0; 40]))
        }
        3 => (1, wire::icmp(src, dst, [8, 0, 3, 13][rng.below(4) as usize], 0, rng.below(4) as u32, &[0; 40])),
        _ => (rng.u64() as u8, vec![1, 2, 3, 4, 5, 6, 7, 8]),
    };
    let packet = if rng.chance(12) {
        ip.ident = rng.below(40) as u32;
        let pieces = ip.fragments(protocol, &payload, 8 * rng.range(1, 20) as usize);
        pieces[rng.below(pieces.len() as u64) as usize].clone()
    } else {
        ip.packet(protocol, &payload)
    };
    wire::ethernet(gateway, GUEST_MAC, ip.ethertype(), &packet)
}

/// A segment of a connection that stands, its numbers near the right ones.
fn of_flow(rng: &mut SplitMix, w: &World, guests: &[TcpGuest]) -> Vec<u8> {
    let g = &guests[rng.below(guests.len() as u64) as usize];
    let flags = [ACK, ACK | PSH, ACK | FIN, ACK, RST, SYN, SYN | ACK, rng.u64() as u8][rng.below(8) as usize];
    let mut data = vec![0; rng.below(1400) as usize];
    rng.fill(&mut data);
    let mut s = g.segment(flags, &data);
    if rng.chance(60) {
        s.seq = s.seq.wrapping_add(rng.below(8000) as u32).wrapping_sub(3000);
    }
    if rng.chance(40) {
        s.ack = s.ack.wrapping_add(rng.below(4000) as u32).wrapping_sub(2000);
    }
    if rng.chance(30) {
        s.window = rng.u64() as u16;
    }
    g.frame(w, &s)
}

/// The host's side does something too.
fn move_peer(rng: &mut SplitMix, w: &mut World) {
    let socks = w.edge.host.tcp_sockets();
    let sock = socks[rng.below(socks.len() as u64) as usize];
    if !w.edge.host.is_open(sock) || !w.edge.host.tcp(sock).is_established() {
        return;
    }
    let mut peer = w.edge.host.peer(sock);
    match rng.below(8) {
        0 => _ = peer.reset(),
        1 => _ = peer.fin(),
        2 => _ = peer.tune(|t| t.drain = Drain::STOPPED),
        3 => _ = peer.tune(|t| t.drain = Drain::FAST),
        _ if peer.socket().peer_ended() => {}
        _ => _ = peer.send(&vec![7; rng.below(20_000) as usize]),
    }
}

fn mutate(rng: &mut SplitMix, frame: &mut Vec<u8>) {
    match rng.below(6) {
        0 => {}
        1 => frame.truncate(rng.below(frame.len() as u64 + 1) as usize),
        2 => frame.resize(frame.len() + rng.below(100) as usize, rng.u64() as u8),
        _ => {
            for _ in 0..rng.range(1, 4) {
                let at = rng.below(frame.len() as u64) as usize;
                frame[at] = rng.u64() as u8;
            }
        }
    }
}

/// What can be seen of a stack from outside, beside drops.
#[derive(PartialEq)]
struct Visible {
    counters: Vec<(&'static str, u64)>,
    flows: (usize, usize, usize),
    stashed: usize,
    /// What it did to sockets and tried to send.
    actions: u64,
}

fn visible(w: &World) -> Visible {
    Visible {
        counters: w.stack.stats().counters().filter(|(n, _)| !n.starts_with("rx_")).collect(),
        flows: w.stack.flow_counts(),
        stashed: w.edge.pool.stashed(),
        actions: w.edge.host.actions + w.edge.links[0].refused,
    }
}

/// Drops of packets of the guest's; those of our own answers, which the link or the rate limit refused, are another packet's.
fn guest_drops(s: &Stack) -> u64 {
    let answers = [DropReason::IcmpRateLimited, DropReason::LinkFull, DropReason::LinkDown];
    s.stats().drops().filter(|(r, _)| !answers.contains(r)).map(|(_, n)| n).sum()
}

/// Whether a frame may be consumed without a trace outside: it taught us an address, advanced a flow, or waits for more fragments.
fn may_be_silent(frame: &[u8], flows: (usize, usize, usize)) -> bool {
    match wire::parse(frame).map(|f| f.net) {
        Ok(Net::Arp(_)) => true,
        Ok(Net::Ip { fragment: Some(_), .. }) => true,
        Ok(Net::Ip { l4: L4::Tcp(_), .. }) => flows.0 > 0,
        Ok(Net::Ip { l4: L4::Icmp { ty, .. }, src, .. }) => src.is_ipv6() && (133..=137).contains(&ty),
        // The chain of extension headers is not followed by the kit.
        Ok(Net::Ip { l4: L4::Other(..), src, .. }) => src.is_ipv6(),
        _ => false,
    }
}

fn barrage(seed: u64, count: usize, noise: bool) {
    let mut rng = SplitMix::new(seed);
    let offload = rng.chance(50);
    let info = if offload { World::offload_link(1500) } else { World::plain_link() };
    let mut w = World::seeded(config(), info, seed);
    let guests: Vec<TcpGuest> = (0..4)
        .map(|n| {
            let remote = ["203.0.113.77", "2600::77"][n as usize % 2].parse().unwrap();
            TcpGuest::connect(&mut w, 30_000 + n, Endpoint::new(remote, 443))
        })
        .collect();
    w.edge.host.tcp_defaults.sndbuf = 4096;
    for n in 0..count {
        if rng.chance(15) {
            move_peer(&mut rng, &mut w);
        }
        let mut frame = if !noise && rng.chance(40) {
            of_flow(&mut rng, &w, &guests)
        } else if noise {
            let mut f = vec![0; rng.below(200) as usize];
            rng.fill(&mut f);
            f
        } else {
            valid(&mut rng, &w)
        };
        let whole = frame.clone();
        if !noise && !frame.is_empty() {
            mutate(&mut rng, &mut frame);
        }
        if rng.chance(3) {
            w.edge.links[0].fail.push_back([TxError::Full, TxError::Down][rng.below(2) as usize]);
        }
        let trust = if offload && rng.chance(50) { RxChecksum::Trusted } else { RxChecksum::Unverified };
        let gso = (offload && rng.chance(20)).then(|| Gso {
            kind: [GsoKind::Tcp4, GsoKind::Tcp6, GsoKind::Udp][rng.below(3) as usize],
            size: rng.range(1, 1500) as u16,
        });
        let (before, drops) = (visible(&w), guest_drops(&w.stack));
        w.receive_as(&frame, trust, gso);
        let dropped = guest_drops(&w.stack) - drops;
        // A super-segment is many datagrams.
        let most = gso.map_or(1, |g| frame.len().div_ceil(usize::from(g.size)).max(1) as u64);
        assert!(
            dropped <= most,
            "seed {seed}, frame {n}: {dropped} drops counted for one frame: {:?}: {frame:02x?}",
            w.stack.stats().drops().filter(|(_, n)| *n > 0).collect::<Vec<_>>()
        );
        let silent = visible(&w) == before;
        let excused = may_be_silent(&frame, before.flows) || trust == RxChecksum::Trusted && may_be_silent(&whole, before.flows);
        assert!(dropped > 0 || !silent || excused, "seed {seed}, frame {n} vanished: neither an effect nor a drop: {frame:02x?}");
        assert!(w.edge.pool.stash_peak <= HELD_MAX, "seed {seed}: {} bytes held", w.edge.pool.stash_peak);
        if rng.chance(30) {
            w.settle();
            w.inbox.clear();
        }
        if rng.chance(5) {
            w.run(Duration::from_millis(rng.below(5000)));
            w.inbox.clear();
        }
    }
    // All that a guest left half-done ends by itself.
    w.run(Duration::from_secs(4 * 3600));
    w.inbox.clear();
    w.assert_clean();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_frames_are_counted_and_leave_nothing(seed in any::<u64>()) {
        barrage(seed, 120, false);
    }

    #[test]
    fn noise_is_counted_and_leaves_nothing(seed in any::<u64>()) {
        barrage(seed, 60, true);
    }
}
