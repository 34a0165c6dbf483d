//! Fragments under rules: they are put together before any table sees them.

use super::table;
use hibernet_netstack::DropReason;
use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::wire::{self, Ip, L4, Net};
use hibernet_tests::{Pair, Probe};

const SIZE: usize = 512;

/// A datagram of 3,000 bytes in pieces, to `to`.
fn send(p: &mut Pair, to: core::net::IpAddr, port: u16, order: impl Fn(&mut Vec<Vec<u8>>)) -> Vec<u8> {
    let src = p.node(Client);
    let udp = wire::udp(src, to, 5000, port, &(0..3000).map(|n| n as u8).collect::<Vec<_>>());
    let ip = Ip { ident: 77, ..Ip::new(src, to) };
    let mut pieces = ip.fragments(17, &udp, SIZE);
    order(&mut pieces);
    for piece in pieces {
        p.send_packet(Client, ip.ethertype(), &piece);
    }
    udp
}

/// Puts together what came out at the server: who sent it to whom, and its bytes.
fn received(p: &mut Pair) -> Option<(core::net::IpAddr, core::net::IpAddr, Vec<u8>)> {
    let (mut ends, mut bytes) = (None, Vec::new());
    while let Some(frame) = p.next_bytes(Server) {
        let Net::Ip { src, dst, fragment, l4, .. } = wire::parse(&frame).unwrap_or_else(|e| panic!("{}", e.0)).net else {
            panic!()
        };
        let L4::Other(17, piece) = l4 else { panic!("{l4:?}") };
        let (at, ..) = fragment.expect("a fragment");
        let end = usize::from(at) + piece.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[usize::from(at)..end].copy_from_slice(&piece);
        ends = Some((src, dst));
    }
    ends.map(|(src, dst)| (src, dst, bytes))
}

#[test]
fn rules_about_ports_hold_for_every_piece() {
    let lines = [":FORWARD DROP [0:0]", "-A FORWARD -p udp --dport 80 -j ACCEPT"];
    let orders: [fn(&mut Vec<Vec<u8>>); 3] = [|_| {}, |v| v.reverse(), |v| v.swap(0, 3)];
    for order in orders {
        Pair::each(&table("filter", &lines), |mut p| {
            let to = p.node(Server);
            let sent = send(&mut p, to, 80, order);
            let (src, dst, bytes) = received(&mut p).expect("nothing came out");
            assert_eq!((src, dst), (p.node(Client), to));
            assert_eq!(bytes, sent);
            let len = 3008 + if p.v6 { 40 } else { 20 };
            assert!(p.counted(&format!("[1:{len}] -A FORWARD -p udp -m udp --dport 80 -j ACCEPT")), "counted as one packet");
            send(&mut p, to, 81, order);
            assert_eq!(received(&mut p), None);
            assert_eq!(p.drops(), [(DropReason::Policy, 1)]);
        });
    }
}

#[test]
fn pieces_without_the_first_never_pass() {
    Pair::each(&table("filter", &["-A FORWARD -p udp --dport 81 -j DROP"]), |mut p| {
        let to = p.node(Server);
        send(&mut p, to, 80, |v| drop(v.remove(0)));
        send(&mut p, to, 80, |v| v.truncate(1));
        p.run(core::time::Duration::from_secs(70));
        // The second call's first piece completes the first call's: the datagram is whole.
        assert_eq!(received(&mut p).map(|r| r.2.len()), Some(3008));
        send(&mut p, to, 81, |v| v.truncate(1));
        p.run(core::time::Duration::from_secs(70));
        assert_eq!(received(&mut p), None);
    });
}

#[test]
fn translated_pieces_and_rejected_ones() {
    let rules = table("nat", &["-A PREROUTING -d {e} -j DNAT --to-destination {s}", "-A POSTROUTING -o tap1 -j MASQUERADE"])
        + &table("filter", &["-A FORWARD -p udp --dport 81 -j REJECT"]);
    Pair::each(&rules, |mut p| {
        let to = p.elsewhere();
        send(&mut p, to, 80, |v| v.reverse());
        let (src, dst, bytes) = received(&mut p).expect("nothing came out");
        assert_eq!((src, dst), (p.router(Server), p.node(Server)));
        // Whole, its checksum is right under the new addresses.
        assert_eq!(wire::transport_checksum(src, dst, 17, &bytes), 0);
        send(&mut p, to, 81, |_| {});
        assert_eq!(received(&mut p), None);
        let out = p.expect(Client);
        assert_eq!(out.src, to, "translated like an answer");
        assert!(matches!(out.l4, L4::Icmp { ty: 1 | 3, .. }));
        // One error for the datagram, none for each piece.
        p.silent();
        assert!(p.answers(Client, Probe::Ping(1)));
    });
}
