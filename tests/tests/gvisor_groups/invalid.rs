//! TestInvalidTransportHeader: headers that cannot be. Nothing panics or is tracked; rules can tell.

use super::table;
use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::wire::{self, Ip, TcpSegment, flags};
use hibernet_tests::{Pair, Probe};

/// Everything that rules and translation look at.
fn rules() -> String {
    table("raw", &["-A PREROUTING -p tcp --dport 1 -j CT --notrack"])
        + &table("mangle", &["-A PREROUTING -p udp -m multiport --ports 80 -j MARK --set-mark 1"])
        + &table("nat", &["-A PREROUTING -d {e} -j DNAT --to-destination {s}", "-A POSTROUTING -j MASQUERADE"])
        + &table(
            "filter",
            &[
                "-A FORWARD -p tcp --tcp-option 3 -j LOG",
                "-A FORWARD -p {icmp} -j LOG",
                "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
                "-A INPUT -j LOG",
            ],
        )
}

fn fix(src: core::net::IpAddr, dst: core::net::IpAddr, protocol: u8, at: usize, b: &mut [u8]) {
    if b.len() >= at + 2 {
        b[at..at + 2].fill(0);
        let sum = wire::transport_checksum(src, dst, protocol, b);
        b[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

#[test]
fn lengths_and_offsets_that_cannot_be() {
    Pair::each(&rules(), |mut p| {
        let src = p.node(Client);
        for dst in [p.node(Server), p.elsewhere(), p.router(Client)] {
            let ip = Ip::new(src, dst);
            let syn = TcpSegment { src_port: 5000, dst_port: 80, flags: flags::SYN, ..TcpSegment::default() };
            // TCP: data offsets below five words and behind the end, headers cut off anywhere.
            for doff in (0..5).chain(6..16) {
                let mut b = syn.bytes(src, dst);
                b[12] = doff << 4;
                fix(src, dst, 6, 16, &mut b);
                p.send(Client, &ip, 6, &b);
            }
            for len in 0..20 {
                let mut b = syn.bytes(src, dst)[..len].to_vec();
                fix(src, dst, 6, 16, &mut b);
                p.send(Client, &ip, 6, &b);
            }
            // UDP: lengths below eight and behind the end.
            for len in (0..8).chain([14, 1000, 65535]) {
                let mut b = wire::udp(src, dst, 5000, 80, b"hello");
                b[4..6].copy_from_slice(&u16::to_be_bytes(len));
                fix(src, dst, 17, 6, &mut b);
                p.send(Client, &ip, 17, &b);
            }
            for len in 0..8 {
                let b = wire::udp(src, dst, 5000, 80, b"hello")[..len].to_vec();
                p.send(Client, &ip, 17, &b);
            }
            // ICMP: cut off.
            let (protocol, echo) = Probe::Ping(1).l4(src, dst);
            for len in 0..8 {
                p.send(Client, &ip, protocol, &echo[..len]);
            }
            p.silent();
        }
        assert_eq!(p.connections(), []);
        let dropped: u64 = p.drops().iter().map(|d| d.1).sum();
        assert_eq!(dropped, 3 * (15 + 20 + 11 + 8 + 8), "{:?}", p.drops());
        // It goes on.
        let to = p.elsewhere();
        p.probe(Client, to, Probe::Tcp(5000, 80));
        assert_eq!(p.expect(Server).dst, p.node(Server));
    });
}

/// Flags that no TCP sends together: INVALID, which rules can tell, and no connection.
#[test]
fn flags_that_cannot_be() {
    let lines = ["-A FORWARD -m conntrack --ctstate INVALID -j DROP"];
    Pair::each(&table("filter", &lines), |mut p| {
        use flags::{ACK, FIN, PSH, RST, SYN, URG};
        let (src, dst) = (p.node(Client), p.node(Server));
        let bad = [0, FIN, SYN | FIN, SYN | RST, FIN | PSH | URG, SYN | FIN | ACK | RST, RST | FIN, URG, PSH];
        for flags in bad {
            let s = TcpSegment { src_port: 5000, dst_port: 80, flags, ..TcpSegment::default() };
            p.send(Client, &Ip::new(src, dst), 6, &s.bytes(src, dst));
            p.silent();
        }
        assert_eq!(p.w.dropped(hibernet_netstack::DropReason::Rule), bad.len() as u64);
        assert_eq!(p.connections(), []);
    });
}
