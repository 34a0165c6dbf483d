//! Rules that look into packets and change them, in the way of flows to the host.

use hibernet_netstack::iptables::{Family, text};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::{Config, DropReason, admin::Recheck};
use hibernet_tests::wire::{self, Ip};
use hibernet_tests::{TcpGuest, World};
use std::time::Duration;

const UDP: u8 = 17;

fn at(addr: &str, port: u16) -> Endpoint {
    Endpoint::new(addr.parse().unwrap(), port)
}

fn world(rules: &str) -> World {
    let mut w = World::new(Config::default());
    w.stack.set_host_addresses(vec!["203.0.113.9".parse().unwrap()]);
    let rules = text::parse(Family::V4, rules).unwrap_or_else(|e| panic!("{e}"));
    let now = w.now();
    w.stack.set_rules(now, rules, Recheck::Keep, &mut w.edge).unwrap_or_else(|e| panic!("{e}"));
    w.settle();
    w
}

fn udp_out(w: &mut World, port: u16, to: Endpoint, ip: impl FnOnce(&mut Ip), data: &[u8]) {
    let guest = w.guest_addr(to.addr);
    let mut header = Ip::new(guest, to.addr);
    ip(&mut header);
    w.inject_ip(&header, UDP, &wire::udp(guest, to.addr, port, to.port, data));
}

#[test]
fn a_clamped_segment_size_holds_in_both_directions() {
    for (rule, guest_says, want) in [
        ("--set-mss 700", Some(1460), 700),
        ("--set-mss 700", Some(600), 600),
        ("--set-mss 700", None, 536),
        ("--clamp-mss-to-pmtu", Some(9000), 1460),
    ] {
        let mut w = world(&format!("*mangle\n-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS {rule}\nCOMMIT\n"));
        let mut g = TcpGuest::new(&w, 5000, at("198.51.100.1", 80));
        g.mss = guest_says;
        g.handshake(&mut w);
        let sock = w.edge.host.last();
        w.edge.host.peer(sock).send(&[7; 5000]);
        w.settle();
        let longest = g.drain(&mut w).iter().map(|s| s.data.len()).max();
        assert_eq!(longest, Some(want), "{rule}, {guest_says:?}");
        let said = if rule.starts_with("--set") { 700 } else { 1460 };
        assert_eq!(g.their_mss, Some(said), "{rule}");
    }
}

/// What a guest could still change is not judged.
#[test]
fn rules_that_look_at_payload_see_what_is_sent_or_it_is_dropped() {
    let string = "-m string --string needle --algo bm";
    for (rule, looks) in [("-m length --length 9000", false), (string, true), ("-m u32 --u32 0=0", true)] {
        let mut w = world(&format!("*filter\n-A FORWARD -p udp {rule} -j DROP\nCOMMIT\n"));
        w.edge.stays_shared = true;
        udp_out(&mut w, 5000, at("198.51.100.1", 53), |_| (), b"hay");
        assert_eq!(w.dropped(DropReason::HostResources), u64::from(looks), "{rule}");
        w.edge.stays_shared = false;
        udp_out(&mut w, 5000, at("198.51.100.1", 53), |_| (), b"hay");
        let sock = w.edge.host.last();
        assert_eq!(w.edge.host.udp(sock).sent.len(), 2 - usize::from(looks), "{rule}");
    }
}

#[test]
fn what_is_looked_for_is_found_anywhere_in_a_packet_and_in_both_directions() {
    let mut w = world(
        "*filter\n-A FORWARD -p udp -m string --string needle --algo bm -j DROP\n\
         -A FORWARD -i host0 -p tcp -m string --string needle --algo kmp -j DROP\nCOMMIT\n",
    );
    let to = at("198.51.100.1", 53);
    for hidden in [0, 180, 250, 700, 1390] {
        let mut data = vec![b'.'; 1400];
        udp_out(&mut w, 5000, to, |_| (), &data);
        data[hidden..hidden + 6].copy_from_slice(b"needle");
        udp_out(&mut w, 5000, to, |_| (), &data);
    }
    let sock = w.edge.host.last();
    assert_eq!((w.edge.host.udp(sock).sent.len(), w.dropped(DropReason::Rule)), (5, 5));
    let mut g = TcpGuest::connect(&mut w, 5001, at("198.51.100.1", 80));
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).send(b"hay");
    w.settle();
    g.expect_data(&mut w, b"hay");
    w.edge.host.peer(sock).send(b"hay and a needle");
    w.settle();
    assert!(g.drain(&mut w).iter().all(|s| s.data.is_empty()));
}

#[test]
fn time_to_live_and_type_of_service_go_with_a_datagram_to_the_host() {
    let mut w = world(
        "*mangle\n-A FORWARD -p udp --dport 53 -j TTL --ttl-set 7\n-A FORWARD -p udp -j DSCP --set-dscp-class EF\n\
         -A PREROUTING -p udp --dport 99 -j TTL --ttl-set 1\nCOMMIT\n",
    );
    udp_out(&mut w, 5000, at("198.51.100.1", 53), |ip| ip.tos = 1, b"x");
    let sock = w.edge.host.last();
    let opts = w.edge.host.udp(sock).sent[0].opts;
    assert_eq!((opts.hop_limit, opts.tos), (7, 0x2e << 2 | 1));
    udp_out(&mut w, 5001, at("198.51.100.1", 54), |ip| ip.ttl = 20, b"x");
    let sock = w.edge.host.last();
    assert_eq!(w.edge.host.udp(sock).sent[0].opts.hop_limit, 19);
    udp_out(&mut w, 5002, at("198.51.100.1", 99), |_| (), b"x");
    let (_, ty, code, ..) = w.take_icmp().expect("time exceeded");
    assert_eq!((ty, code), (11, 0));
}

#[test]
fn nflog_is_a_line_that_says_the_group() {
    let mut w = world("*filter\n-A FORWARD -p udp -j NFLOG --nflog-group 5 --nflog-prefix \"to the host\"\nCOMMIT\n");
    udp_out(&mut w, 5000, at("198.51.100.1", 53), |_| (), b"x");
    let (lines, _) = w.stack.take_log();
    assert!(lines.len() == 1 && lines[0].starts_with("NFLOG: group=5 to the host IN=tap0 OUT=host0 "), "{lines:?}");
}

#[test]
fn rules_of_a_time_need_a_clock_and_go_by_it() {
    let mut w = world("*filter\n-A FORWARD -p udp -m time --timestart 10:00 --timestop 11:00 -j DROP\nCOMMIT\n");
    let passes = |w: &mut World| {
        let before = w.dropped(DropReason::Rule);
        udp_out(w, 5000, at("198.51.100.1", 53), |_| (), b"x");
        w.dropped(DropReason::Rule) == before
    };
    assert!(passes(&mut w), "nobody said what time it is");
    let now = w.now();
    w.stack.set_wall_clock(now, Duration::from_secs(1_000 * 86_400 + 10 * 3_600 - 5));
    assert!(passes(&mut w));
    w.run(Duration::from_secs(6));
    assert!(!passes(&mut w));
}
