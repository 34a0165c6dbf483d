//! Several workers of one network: each flow has one owner, whatever queue its frames come by.

use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::admin::Recheck;
use hibernet_netstack::config::Publish;
use hibernet_netstack::iptables::{Family, text};
use hibernet_netstack::state::{GoesOn, Randomness};
use hibernet_netstack::tuple::{Endpoint, proto};
use hibernet_netstack::{Config, DropReason};
use hibernet_tests::wire::flags::ACK;
use hibernet_tests::wire::{self, GUEST_MAC, Ip};
use hibernet_tests::{ConnectPlan, TcpGuest, World, image};

const LIMIT: Duration = Duration::from_secs(5);
const REMOTES: [&str; 2] = ["198.51.100.9", "2001:db8::9"];

fn remote(addr: &str) -> Endpoint {
    Endpoint::new(addr.parse().unwrap(), 80)
}

fn two(cfg: Config) -> [World; 2] {
    let mut first = World::new(cfg);
    let second = first.share(1);
    [first, second]
}

fn flows(workers: &[World]) -> Vec<(usize, usize, usize)> {
    workers.iter().map(|w| w.stack.flow_counts()).collect()
}

/// A datagram of the guest's, by a worker's queue.
fn datagram(workers: &mut [World], by: usize, to: IpAddr, data: &[u8]) {
    let w = &mut workers[by];
    let ip = Ip::new(w.guest_addr(to), to);
    let udp = wire::udp(ip.src, ip.dst, 1000, 2000, data);
    w.inject_ip(&ip, proto::UDP, &udp);
    World::exchange(workers);
}

fn sent(w: &mut World) -> Vec<Vec<u8>> {
    let socks = w.edge.host.udp_sockets();
    socks.into_iter().flat_map(|s| core::mem::take(&mut w.edge.host.udp(s).sent)).map(|s| s.data).collect()
}

#[test]
fn a_tcp_flow_stays_where_its_first_segment_came() {
    for addr in REMOTES {
        let mut workers = two(Config::default());
        let mut g = TcpGuest::connect(&mut workers[1], 40_000, remote(addr));
        let sock = workers[1].edge.host.last();
        let segment = g.segment(ACK, b"by the other queue");
        let frame = g.frame(&workers[0], &segment);
        workers[0].inject(&frame);
        World::exchange(&mut workers);
        assert_eq!(workers[1].edge.host.peer(sock).take_received(), b"by the other queue");
        g.snd_nxt = g.snd_nxt.wrapping_add(18);
        g.expect_ack(&mut workers[1]);
        assert_eq!(flows(&workers), [(0, 0, 0), (1, 0, 0)]);
        assert_eq!(workers[0].inbox.len(), 0, "the other worker says nothing to the guest");
        g.close(&mut workers[1], sock);
        workers.iter_mut().for_each(World::assert_clean);
    }
}

#[test]
fn datagrams_of_a_flow_leave_by_one_socket() {
    for addr in REMOTES {
        let (mut workers, to) = (two(Config::default()), addr.parse().unwrap());
        datagram(&mut workers, 1, to, b"first");
        datagram(&mut workers, 0, to, b"second");
        datagram(&mut workers, 1, to, b"third");
        assert_eq!(sent(&mut workers[1]), [b"first".to_vec(), b"second".into(), b"third".into()]);
        assert_eq!(flows(&workers), [(0, 0, 0), (0, 1, 0)]);
        let sock = workers[1].edge.host.last();
        workers[1].edge.host.udp_reply(sock, b"answer");
        workers[1].settle();
        assert_eq!(workers[1].take_udp(1000).map(|(_, data)| data), Some(b"answer".to_vec()));
        // A flow whose connection ends is closed by its own worker.
        let ids: Vec<_> = connections(&workers[0]);
        for w in workers.iter_mut().rev() {
            w.stack.delete_connections(w.now(), &ids, &mut w.edge);
        }
        workers.iter_mut().for_each(World::assert_clean);
        assert_eq!(workers[0].stack.conntrack().len(), 0);
    }
}

fn connections(w: &World) -> Vec<hibernet_netstack::conntrack::ConnId> {
    let mut ids = Vec::new();
    w.stack.conntrack().dump(w.now(), 0, u32::MAX, |id, _| ids.push(id));
    ids
}

#[test]
fn what_is_no_flow_of_the_guests_is_the_leaders() {
    let publish = Publish { proto: proto::TCP, addr: None, host_ports: (8080, 8080), guest_port: 80 };
    let mut workers = two(Config { publish: vec![publish], ..Config::default() });
    // A ping, by the other queue.
    let to: IpAddr = REMOTES[0].parse().unwrap();
    let ip = Ip::new(workers[1].guest_addr(to), to);
    let echo = wire::echo(ip.src, ip.dst, 7, 1, b"ping");
    workers[1].inject_ip(&ip, proto::ICMP, &echo);
    // Neighbour resolution.
    let gateway = workers[1].stack.config().v4.unwrap().gateway;
    let IpAddr::V4(guest) = ip.src else { unreachable!() };
    let arp = wire::arp(wire::Arp { op: 1, sender: (GUEST_MAC, guest.octets()), target: ([0; 6], gateway.octets()) });
    let arp = wire::ethernet([0xff; 6], GUEST_MAC, wire::ethertype::ARP, &arp);
    workers[1].inject(&arp);
    World::exchange(&mut workers);
    assert_eq!(flows(&workers), [(0, 0, 1), (0, 0, 0)]);
    assert_eq!(workers[0].inbox.len(), 1, "ARP is answered once");
    workers[0].inbox.clear();
    assert_eq!(workers[1].inbox.len(), 0);
    // A client of a published port; the guest's answers come by the other queue.
    let client = Endpoint::new("203.0.113.5".parse().unwrap(), 5555);
    let sock = workers[0].accept(client, Endpoint::new("192.0.2.1".parse().unwrap(), 8080));
    let mut g = TcpGuest::expect_syn(&mut workers[0], 80, client);
    let synack = wire::TcpSegment { flags: wire::flags::SYN | ACK, ..g.segment(ACK, b"") };
    let frame = g.frame(&workers[1], &synack);
    workers[1].inject(&frame);
    World::exchange(&mut workers);
    g.snd_nxt = g.snd_nxt.wrapping_add(1);
    g.expect_ack(&mut workers[0]);
    workers[0].edge.host.peer(sock).send(b"request");
    workers[0].settle();
    g.expect_data(&mut workers[0], b"request");
    assert_eq!(workers[1].stack.flow_counts(), (0, 0, 0));
}

#[test]
fn fragments_are_put_together_for_whoever_has_the_flow() {
    for addr in REMOTES {
        let (mut workers, to) = (two(Config::default()), addr.parse::<IpAddr>().unwrap());
        datagram(&mut workers, 1, to, b"opens it");
        sent(&mut workers[1]);
        let data: Vec<u8> = (0..4000).map(|i| (i % 251) as u8).collect();
        let ip = Ip { ident: 9, ..Ip::new(workers[0].guest_addr(to), to) };
        let whole = wire::udp(ip.src, ip.dst, 1000, 2000, &data);
        for (n, packet) in ip.fragments(proto::UDP, &whole, 1480).into_iter().enumerate() {
            let w = &mut workers[n % 2];
            let frame = wire::ethernet(w.gateway_mac(), GUEST_MAC, ip.ethertype(), &packet);
            w.inject(&frame);
            World::exchange(&mut workers);
        }
        assert_eq!(sent(&mut workers[1]), [data]);
        assert_eq!(workers[0].stack.flow_counts(), (0, 0, 0));
    }
}

#[test]
fn a_full_queue_is_a_counted_drop() {
    let (mut workers, to) = (two(Config::default()), REMOTES[0].parse().unwrap());
    datagram(&mut workers, 1, to, b"first");
    workers[0].edge.handed_room = 0;
    datagram(&mut workers, 0, to, b"lost");
    assert_eq!(sent(&mut workers[1]), [b"first".to_vec()]);
    assert_eq!(workers[0].dropped(DropReason::WorkerBusy), 1);
}

#[test]
fn an_icmp_error_of_the_guests_finds_the_flow_that_it_is_about() {
    let (mut workers, to) = (two(Config::default()), REMOTES[0].parse::<IpAddr>().unwrap());
    datagram(&mut workers, 1, to, b"first");
    let sock = workers[1].edge.host.last();
    workers[1].edge.host.udp_reply(sock, b"nobody listens");
    workers[1].settle();
    let guest = workers[1].guest_addr(to);
    let quoted = Ip::new(to, guest).packet(proto::UDP, &wire::udp(to, guest, 2000, 1000, b"nobody listens"));
    let error = wire::icmp(guest, to, 3, 3, 0, &quoted);
    let before = workers[1].stack.stats().rx_frames;
    workers[0].inject_ip(&Ip::new(guest, to), proto::ICMP, &error);
    assert_eq!(workers[0].edge.handed.front().map(|h| h.to), Some(1));
    World::exchange(&mut workers);
    assert_eq!(workers[1].stack.stats().rx_frames, before, "a frame is counted where it came in");
}

#[test]
fn rules_hold_for_all_and_count_for_all() {
    let mut workers = two(Config::default());
    let rules = "*filter\n-A FORWARD -p udp -m udp --dport 2000\nCOMMIT\n";
    follow(&mut workers, rules, Recheck::Keep);
    let to: IpAddr = REMOTES[0].parse().unwrap();
    let other: IpAddr = "198.51.100.10".parse().unwrap();
    for n in 0..3 {
        datagram(&mut workers, 0, to, &[n]);
        datagram(&mut workers, 1, other, &[n]);
    }
    let [first, second] = &mut workers;
    first.stack.absorb(&mut second.stack);
    let print = |w: &World| text::print(&w.stack.rules(Family::V4), text::PrintOptions { counters: true, date: None });
    assert!(print(first).contains("[6:174] -A FORWARD -p udp -m udp --dport 2000"), "{}", print(first));
    assert_eq!(first.stack.stats().rx_frames, 6);
    first.stack.absorb(&mut second.stack);
    assert_eq!(first.stack.stats().rx_frames, 6, "nothing is taken over twice");
    // What is forbidden from now on ends with whoever has it.
    let g = TcpGuest::connect(&mut workers[1], 40_000, remote(REMOTES[0]));
    let cut = follow(&mut workers, "*filter\n-A FORWARD -p tcp -j DROP\nCOMMIT\n", Recheck::Cut);
    assert_eq!(cut, 1);
    assert_eq!(workers[1].stack.flow_counts().0, 0);
    let late = g.frame(&workers[1], &g.segment(ACK, b"late"));
    workers[1].inject(&late);
    assert_eq!(workers[1].dropped(DropReason::Rule), 1);
}

/// Puts rules in force for all workers; how many flows were cut.
fn follow(workers: &mut [World; 2], rules: &str, recheck: Recheck) -> usize {
    let [first, second] = workers;
    first.stack.absorb(&mut second.stack);
    let rules = text::parse(Family::V4, rules).unwrap();
    let report = first.stack.set_rules(first.now(), rules, recheck, &mut first.edge).unwrap();
    let mut cut = report.cut;
    if recheck == Recheck::Cut {
        cut += second.stack.cut(second.now(), &first.stack, Family::V4, &mut second.edge);
    }
    second.stack.follow(&first.stack);
    workers.iter_mut().for_each(World::settle);
    cut
}

#[test]
fn while_rules_decide_what_belongs_together_new_flows_are_the_leaders() {
    let mut workers = two(Config::default());
    let mut g = TcpGuest::connect(&mut workers[1], 40_000, remote(REMOTES[0]));
    let sock = workers[1].edge.host.last();
    follow(&mut workers, "*raw\n-A PREROUTING -p udp -j CT --notrack\nCOMMIT\n", Recheck::Keep);
    datagram(&mut workers, 1, REMOTES[0].parse().unwrap(), b"untracked");
    datagram(&mut workers, 0, REMOTES[0].parse().unwrap(), b"too");
    assert_eq!(flows(&workers), [(0, 1, 0), (1, 0, 0)]);
    assert_eq!(sent(&mut workers[0]), [b"untracked".to_vec(), b"too".into()]);
    // What there was stays where it is.
    g.send(&mut workers[1], b"still here");
    assert_eq!(workers[1].edge.host.peer(sock).take_received(), b"still here");
}

#[test]
fn two_workers_sleep_and_wake_with_their_flows() {
    let mut workers = two(Config::default());
    let mut kept = [
        TcpGuest::connect(&mut workers[0], 40_000, remote(REMOTES[0])),
        TcpGuest::connect(&mut workers[1], 40_001, remote(REMOTES[1])),
    ];
    datagram(&mut workers, 1, REMOTES[0].parse().unwrap(), b"before");
    gather(&mut workers);
    assert_eq!(flows(&workers), [(2, 1, 0), (0, 0, 0)]);
    let [first, second] = &mut workers;
    let now = first.now();
    let bytes = image::save(&first.stack, now);
    first.stack = image::restore(&bytes, Randomness::Fresh([8; 16]), &[]).unwrap();
    second.stack = first.stack.share(1, [9; 16]);
    for w in workers.iter_mut() {
        let lost = w.stack.thaw(w.now(), Duration::ZERO, &|_| GoesOn::Yes, &mut w.edge);
        assert_eq!(lost, []);
        w.settle();
        w.inbox.clear();
    }
    assert_eq!(flows(&workers), [(2, 1, 0), (0, 0, 0)]);
    for (n, g) in kept.iter_mut().enumerate() {
        let segment = g.segment(ACK, b"after");
        let frame = g.frame(&workers[1], &segment);
        workers[1].inject(&frame);
        World::exchange(&mut workers);
        let w = &mut workers[0];
        let socks: Vec<_> = w.edge.host.tcp_sockets();
        let got: Vec<_> = socks.iter().filter(|s| w.edge.host.peer(**s).take_received() == b"after").collect();
        let [sock] = got[..] else { panic!("connection {n}: {got:?}") };
        g.snd_nxt = g.snd_nxt.wrapping_add(5);
        w.edge.host.peer(*sock).send(b"answer");
        w.settle();
        assert_eq!(g.read(w, 6, LIMIT), b"answer");
    }
    datagram(&mut workers, 1, REMOTES[0].parse().unwrap(), b"later");
    assert_eq!(sent(&mut workers[0]).last().unwrap(), b"later");
    // New ones are spread as ever.
    let _new = TcpGuest::connect(&mut workers[1], 40_002, remote(REMOTES[0]));
    assert_eq!(flows(&workers), [(2, 1, 0), (1, 0, 0)]);
}

/// The leader takes over everything, sockets too.
fn gather(workers: &mut [World; 2]) {
    let [first, second] = workers;
    first.stack.absorb(&mut second.stack);
    let (mine, theirs) = (&mut first.edge.host, &mut second.edge.host);
    first.stack.take_over(&mut second.stack, &mut |sock, token| Some(mine.adopt_from(theirs, sock, token)));
    workers.iter_mut().for_each(World::settle);
}

#[test]
fn the_leader_takes_over_flows_in_the_middle_of_what_they_do() {
    let mut workers = two(Config::default());
    let mut g = TcpGuest::connect(&mut workers[1], 40_000, remote(REMOTES[0]));
    let sock = workers[1].edge.host.last();
    // A gap, and data that the guest has not acknowledged.
    g.send_at(&mut workers[1], 5, b"behind");
    workers[1].edge.host.peer(sock).send(b"unacknowledged");
    workers[1].settle();
    g.expect_data(&mut workers[1], b"unacknowledged");
    // One that is not connected yet.
    let slow = Endpoint::new("198.51.100.77".parse().unwrap(), 80);
    workers[1].edge.host.plan(slow, ConnectPlan::Blackhole);
    let mut half = TcpGuest::new(&workers[1], 40_001, slow);
    half.syn(&mut workers[1]);
    gather(&mut workers);
    assert_eq!(flows(&workers), [(2, 0, 0), (0, 0, 0)]);
    workers[1].assert_clean();
    workers[1].inbox.clear();
    workers[1].run(LIMIT);
    assert_eq!(workers[1].inbox.len(), 0, "nobody there knows the flows any more");
    let w = &mut workers[0];
    w.run(Duration::from_secs(2));
    let guest = Endpoint::new(w.guest_addr(slow.addr), 40_000);
    let again = w.take_tcp(remote(REMOTES[0]), guest).expect("it is sent again");
    assert_eq!(again.data, b"unacknowledged");
    g.drain(w);
    g.ack(w);
    g.send(w, b"first");
    let socks = w.edge.host.tcp_sockets();
    let all: Vec<Vec<u8>> = socks.iter().map(|s| w.edge.host.peer(*s).take_received()).collect();
    assert!(all.contains(&b"firstbehind".to_vec()), "{all:?}");
    let connecting = socks.iter().find(|s| w.edge.host.tcp(**s).is_connecting()).copied().unwrap();
    w.edge.host.peer(connecting).finish_connect(Ok(()));
    w.settle();
    half.expect_synack(w);
}
