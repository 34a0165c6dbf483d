//! Connections that would look the same behind translation.

use super::Build;
use super::flows::{SYN, V4, V6, answer, rule, to};
use super::world::*;
use crate::conntrack::tcp::TcpState;
use crate::conntrack::{Proto, Status};
use crate::iptables::Hook;
use crate::nat::{Manip, NatRange, bind, masquerade};
use crate::tuple::proto;
use crate::verdict::DropReason;
use core::net::IpAddr;
use core::time::Duration;

/// gVisor defect 14, its TestSNATHandlePortOrIdentConflicts: two clients with one source port. The second gets another one of the same class.
#[test]
fn two_clients_with_one_port() {
    for f in [V4, V6] {
        for protocol in [proto::TCP, proto::UDP, f.icmp] {
            for kind in ["snat", "masquerade"] {
                for (port, class) in [(0, 1..=511), (511, 1..=511), (512, 600..=1023), (1023, 600..=1023), (1024, 1024..=65_535)]
                {
                    let mut w = World::new();
                    let rules: Rules<'_> = &|nat, skb, hook| rule(kind, &f, nat, skb, hook);
                    let to = if protocol == f.icmp { port } else { 80 };
                    let packets = [f.client, f.other].map(|c| Build::new(protocol, (c, port), (f.server, to)));
                    let left = [0, 1].map(|i| w.send(&packets[i], FORWARD, rules).unwrap());
                    assert_eq!(left[0].src.1, port);
                    assert_ne!(left[1].src, left[0].src);
                    assert!(protocol == f.icmp || class.contains(&left[1].src.1), "{port} became {}", left[1].src.1);
                    for i in [1, 0] {
                        let back = w.send(&answer(&packets[i], left[i]), FORWARD, rules).unwrap();
                        assert_eq!(back.dst, (packets[i].src, port), "the answer is the client's own");
                    }
                }
            }
        }
    }
}

/// The same behind one REDIRECT: clients differ by address.
#[test]
fn two_clients_of_a_redirect() {
    let mut w = World::new();
    let rules: Rules<'_> = &|nat, skb, hook| rule("redirect", &V4, nat, skb, hook);
    // One client's two connections to different servers from one port clash; its source port gives way (as on Linux).
    let a = Build::new(proto::UDP, (V4.client, 4000), (V4.vip, 80));
    let b = Build::new(proto::UDP, (V4.client, 4000), (V4.server, 80));
    let c = Build::new(proto::UDP, (V4.other, 4000), (V4.vip, 80));
    let left = [&a, &b, &c].map(|p| w.send(p, INPUT, rules).unwrap());
    assert_eq!((left[0].src.1, left[2].src.1), (4000, 4000));
    assert_ne!(left[1].src.1, 4000);
    for (packet, left) in [(&a, left[0]), (&b, left[1]), (&c, left[2])] {
        let back = w.send(&answer(packet, left), OUTPUT, &none).unwrap();
        assert_eq!(back, Ends { src: (packet.dst, 80), dst: (packet.src, 4000) });
    }
}

/// gVisor's TestNATConflict: where the rule leaves no choice, the second connection is dropped and leaves nothing behind.
#[test]
fn no_choice_left() {
    for keep in [false, true] {
        let mut w = World::new();
        let ports = Some(if keep { (4000, 4000) } else { (40_000, 40_001) });
        let rules: Rules<'_> = &|nat, skb, hook| match hook {
            Hook::PostRouting => bind(nat, skb, Manip::Source, &NatRange { ports, ..to(V4.out) }),
            _ => Ok(()),
        };
        let room = if keep { 1 } else { 2 };
        for i in 0..4u16 {
            let packet = Build::new(proto::TCP, ("10.0.2.15", 4000 + i), (V4.server, 80));
            let sent = w.send(&packet, FORWARD, rules);
            if i < room {
                assert!((40_000..=40_001).contains(&sent.unwrap().src.1) || keep);
            } else {
                assert_eq!(sent, Err(DropReason::NatExhausted));
            }
        }
        assert_eq!(w.ct.len(), usize::from(room));
        // Elsewhere the same ports are free.
        assert!(w.send(&Build::new(proto::TCP, ("10.0.2.15", 4009), (V4.server, 81)), FORWARD, rules).is_ok());
    }
}

/// A connection whose own packets look like those of a translated one: its source port changes although no rule says so.
#[test]
fn an_untranslated_connection_gives_way() {
    let mut w = World::new();
    let rules: Rules<'_> = &|nat, skb, hook| match (hook, skb.src == V4.client.parse::<IpAddr>().unwrap()) {
        (Hook::PostRouting, true) => bind(nat, skb, Manip::Source, &to(V4.other)),
        _ => Ok(()),
    };
    let first = Build::new(proto::UDP, (V4.client, 5000), (V4.server, 80));
    assert_eq!(w.send(&first, FORWARD, rules).unwrap().src, (V4.other.parse().unwrap(), 5000));
    let own = Build::new(proto::UDP, (V4.other, 5000), (V4.server, 80));
    let left = w.send(&own, FORWARD, rules).unwrap();
    assert_eq!(left.src.0, own.src);
    assert!((1024..).contains(&left.src.1) && left.src.1 != 5000);
    assert!(w.conn(&own).status.has(Status::SRC_NAT));
    assert_eq!(w.send(&answer(&own, left), FORWARD, rules).unwrap().dst, (own.src, 5000));
}

/// A source keeps its mapping towards other servers, where that is free.
#[test]
fn a_source_keeps_its_mapping() {
    for protocol in [proto::UDP, proto::ICMP] {
        let mut w = World::new();
        let rules: Rules<'_> = &|nat, skb, hook| rule("masquerade", &V4, nat, skb, hook);
        let port = |p| if protocol == proto::ICMP { 5000 } else { p };
        let clients = [V4.client, V4.other].map(|c| move |to: &str, p| Build::new(protocol, (c, 5000), (to, port(p))));
        assert_eq!(w.send(&clients[0](V4.server, 80), FORWARD, rules).unwrap().src.1, 5000);
        let second = w.send(&clients[1](V4.server, 80), FORWARD, rules).unwrap().src;
        assert_ne!(second.1, 5000);
        assert_eq!(w.send(&clients[1](V4.vip, 81), FORWARD, rules).unwrap().src, second);
    }
}

/// Where destinations clash, the source port gives way: as seen on Linux, also for a single port and for a full range.
#[test]
fn clashing_destinations_change_the_source() {
    for ports in [None, Some((80, 80)), Some((80, 81))] {
        let mut w = World::new();
        let rules: Rules<'_> = &|nat, skb, hook| match hook {
            Hook::PreRouting => bind(nat, skb, Manip::Destination, &NatRange { ports, ..to(V4.server) }),
            _ => Ok(()),
        };
        let free = if ports == Some((80, 81)) { 2 } else { 1 };
        for i in 0..5 {
            let packet = Build::new(proto::UDP, (V4.client, 5000), (&format!("198.51.100.{i}"), 80));
            let left = w.send(&packet, FORWARD, rules).unwrap();
            assert_eq!(left.src.1 == 5000, i < free, "{ports:?} {i}: {left:?}");
            let back = w.send(&answer(&packet, left), FORWARD, rules).unwrap();
            assert_eq!(back, Ends { src: (packet.dst, 80), dst: (packet.src, 5000) });
        }
    }
}

/// A closed connection gives its port up to one whose sequence numbers are ahead: a client that connects faster than TIME_WAIT passes.
#[test]
fn a_closed_connection_gives_its_port_up() {
    for (state, seq, free) in [
        (TcpState::TimeWait, 1000, true),
        (TcpState::Close, 1000, true),
        (TcpState::TimeWait, 0, false),
        (TcpState::Established, 1000, false),
    ] {
        let mut w = World::new();
        let rules: Rules<'_> = &|nat, skb, hook| match hook {
            // Few enough ports for the last attempts to be reached.
            Hook::PostRouting => masquerade(nat, skb, &NatRange { ports: Some((40_000, 40_001)), ..NatRange::default() }),
            _ => Ok(()),
        };
        for (i, client) in [V4.client, V4.other].into_iter().enumerate() {
            let old = Build { tcp: (SYN, 500, 0), ..Build::new(proto::TCP, (client, 4000 + i as u16), (V4.server, 80)) };
            w.send(&old, FORWARD, rules).unwrap();
        }
        let closed = Build::new(proto::TCP, (V4.other, 4001), (V4.server, 80));
        let (id, _) = w.ct.find(w.now, &w.conn(&closed).tuples[0]).unwrap();
        w.ct.modify(id, |c| match &mut c.proto {
            Proto::Tcp(t) => t.state = state,
            _ => unreachable!(),
        });
        let new = Build { tcp: (SYN, seq, 0), ..Build::new(proto::TCP, ("10.0.2.99", 4002), (V4.server, 80)) };
        let sent = w.send(&new, FORWARD, rules);
        assert_eq!(sent.is_ok(), free, "{state:?} {seq}");
        assert_eq!(w.ct.len(), 2);
        assert_eq!(w.ct.get(id).is_none(), free);
    }
}

/// Neither the expired nor the dying are in the way (gVisor defect 5).
#[test]
fn an_expired_connection_gives_its_port_up() {
    let mut w = World::new();
    let rules: Rules<'_> = &|nat, skb, hook| rule("masquerade", &V4, nat, skb, hook);
    w.send(&Build::new(proto::UDP, (V4.client, 4000), (V4.server, 80)), FORWARD, rules).unwrap();
    w.now = w.now + Duration::from_secs(31);
    let left = w.send(&Build::new(proto::UDP, (V4.other, 4000), (V4.server, 80)), FORWARD, rules).unwrap();
    assert_eq!(left.src.1, 4000);
}
