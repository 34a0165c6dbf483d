//! The safe reach, packet by packet: TCP, UDP and ICMP to every kind of address.
//!
//! The table of addresses itself is tested beside the code; here it is what the guest and the host notice.

use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::config::{AllowHost, Egress, Reach};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::{Config, DropReason};
use hibernet_tests::World;
use hibernet_tests::wire::{self, Ip, TcpSegment, flags};

const HOST: [&str; 4] = ["192.168.1.5", "203.0.113.9", "2001:db8::5", "fe80::5"];

const DENIED: &[&str] = &[
    "127.0.0.1",
    "127.0.0.53",
    "0.0.0.0",
    "0.1.2.3",
    "192.168.1.5",
    "203.0.113.9",
    "169.254.1.1",
    "169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "240.0.0.1",
    "::",
    "::1",
    "2001:db8::5",
    "fe80::5",
    "fd00:ec2::254",
    "fd20:ce::254",
    "::ffff:8.8.8.8",
    "::ffff:127.0.0.1",
    "::127.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::192.168.1.5",
    "64:ff9b:1::169.254.169.254",
    "2002:7f00:1::1",
    "2002:cb00:7109::1",
    "2001:0:7f00:1::1",
    "2001:0:808:808::80ff:fffe",
    "2001:db8::5efe:127.0.0.1",
    "2001:db8::200:5efe:203.0.113.9",
];

const OPEN: &[&str] = &["8.8.8.8", "192.168.1.6", "2606:4700::1111", "64:ff9b::8.8.8.8", "2002:808:808::1"];

fn ip(a: &str) -> IpAddr {
    a.parse().unwrap()
}

fn world(reach: Reach) -> World {
    let mut w = World::new(Config { reach, ..Config::default() });
    w.stack.set_host_addresses(HOST.map(ip).into());
    w
}

/// A SYN, a datagram and an echo request to an address and port.
fn knock(w: &World, to: IpAddr, port: u16) -> [(u8, Vec<u8>); 3] {
    let guest = w.guest_addr(to);
    let syn = TcpSegment { src_port: 1000, dst_port: port, flags: flags::SYN, window: 1000, ..TcpSegment::default() };
    let icmp = if to.is_ipv4() { 1 } else { 58 };
    [(6, syn.bytes(guest, to)), (17, wire::udp(guest, to, 1000, port, b"x")), (icmp, wire::echo(guest, to, 1, 1, b"x"))]
}

/// Sends one packet and says whether the host heard of it; if it did not, the guest must have been told so at once.
fn reaches(w: &mut World, to: IpAddr, protocol: u8, packet: &[u8]) -> bool {
    let (before, denied) = (w.edge.host.open_sockets(), w.dropped(DropReason::ReachDenied));
    // Bursts of ICMP errors are limited, which is not at issue here.
    w.run(Duration::from_millis(10));
    w.inbox.clear();
    let header = Ip::new(w.guest_addr(to), to);
    let frame = header.frame(w.gateway_mac(), wire::GUEST_MAC, protocol, packet);
    w.receive(&frame);
    if w.edge.host.open_sockets() > before {
        assert_eq!(w.dropped(DropReason::ReachDenied), denied, "{to}: counted as denied");
        return true;
    }
    w.collect();
    assert_eq!(w.dropped(DropReason::ReachDenied), denied + 1, "{to}, protocol {protocol}: not counted");
    let (src, ty, code, _, quoted) = w.take_icmp().unwrap_or_else(|| panic!("{to}, protocol {protocol}: the guest was not told"));
    let prohibited = if to.is_ipv4() { ("10.0.2.2", 3, 13) } else { ("fd68:6962:6e65:7400::2", 1, 1) };
    assert_eq!((src, ty, code), (ip(prohibited.0), prohibited.1, prohibited.2));
    // As a router has it when FORWARD rejects it: with one hop less.
    let forwarded = Ip { ttl: header.ttl - 1, ..header };
    assert_eq!(quoted, forwarded.packet(protocol, packet), "quotes something else");
    false
}

fn check(w: &mut World, to: &str, port: u16, want: bool) {
    for (protocol, packet) in knock(w, ip(to), port) {
        assert_eq!(reaches(w, ip(to), protocol, &packet), want, "{to} port {port}, protocol {protocol}");
    }
}

#[test]
fn denied_addresses_are_refused_at_once_and_counted_and_the_host_hears_nothing() {
    let mut w = world(Reach::default());
    for a in DENIED {
        check(&mut w, a, 80, false);
    }
    assert_eq!((w.edge.host.open_sockets(), w.stack.flow_counts()), (0, (0, 0, 0)));
    assert_eq!(w.dropped_total(), 3 * DENIED.len() as u64);
}

#[test]
fn the_rest_of_the_world_is_open() {
    let mut w = world(Reach::default());
    for a in OPEN {
        check(&mut w, a, 80, true);
    }
}

#[test]
fn multicast_and_broadcast_never_reach_the_host() {
    let mut w = world(Reach { allow_host: vec![AllowHost::Any], allow_metadata: true, ..Reach::default() });
    for a in ["224.0.0.251", "239.255.255.250", "255.255.255.255", "10.0.2.255", "ff02::fb", "ff0e::1"] {
        for (protocol, packet) in knock(&w, ip(a), 1900) {
            w.inject_ip(&Ip::new(w.guest_addr(ip(a)), ip(a)), protocol, &packet);
        }
    }
    assert_eq!(w.edge.host.open_sockets(), 0);
}

#[test]
fn each_option_opens_what_it_says() {
    let mut w = world(Reach { allow_metadata: true, ..Reach::default() });
    for a in ["169.254.169.254", "169.254.1.1", "fe80::77", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"] {
        check(&mut w, a, 80, true);
    }
    for a in ["fe80::5", "127.0.0.1", "203.0.113.9"] {
        check(&mut w, a, 80, false);
    }

    let mut w = world(Reach { allow_host: vec![AllowHost::Addr(ip(HOST[1]))], ..Reach::default() });
    check(&mut w, HOST[1], 80, true);
    check(&mut w, HOST[0], 80, false);

    let mut w = world(Reach { allow_host: vec![AllowHost::Any], ..Reach::default() });
    for a in &HOST[..3] {
        check(&mut w, a, 80, true);
    }
    check(&mut w, "127.0.0.1", 80, false);

    // A port is opened to TCP and UDP, not to ping.
    let mut w = world(Reach { allow_host: vec![AllowHost::Port(Endpoint::new(ip(HOST[2]), 80))], ..Reach::default() });
    let [tcp, udp, icmp] = knock(&w, ip(HOST[2]), 80);
    assert!(reaches(&mut w, ip(HOST[2]), tcp.0, &tcp.1));
    assert!(reaches(&mut w, ip(HOST[2]), udp.0, &udp.1));
    assert!(!reaches(&mut w, ip(HOST[2]), icmp.0, &icmp.1));
    check(&mut w, HOST[2], 81, false);

    let mut w = world(Reach { map_host_loopback: vec![ip("10.9.9.9"), ip("fd99::9")], ..Reach::default() });
    check(&mut w, "10.9.9.9", 80, true);
    check(&mut w, "fd99::9", 80, true);
    check(&mut w, "127.0.0.1", 80, false);
}

#[test]
fn public_and_none_deny_more() {
    let mut w = world(Reach { egress: Egress::Public, ..Reach::default() });
    for a in ["10.1.2.3", "172.16.0.1", "192.168.1.6", "100.64.0.1", "198.18.0.1", "fc00::1", "fec0::1", "64:ff9b::10.1.2.3"] {
        check(&mut w, a, 80, false);
    }
    for a in ["8.8.8.8", "2606:4700::1111"] {
        check(&mut w, a, 80, true);
    }
    let mut w = world(Reach { egress: Egress::None, map_host_loopback: vec![ip("10.9.9.9")], ..Reach::default() });
    for a in OPEN.iter().chain(DENIED) {
        check(&mut w, a, 80, false);
    }
    check(&mut w, "10.9.9.9", 80, true);
}

#[test]
fn an_address_that_the_host_gets_later_is_denied_from_then_on() {
    let mut w = world(Reach::default());
    check(&mut w, "198.51.100.1", 80, true);
    w.stack.set_host_addresses(vec![ip("::ffff:198.51.100.2"), ip("198.51.100.1")]);
    for a in ["198.51.100.1", "198.51.100.2"] {
        check(&mut w, a, 81, false);
    }
    check(&mut w, HOST[1], 80, true);
}
