//! UDP, protocols without ports, settings.

use crate::kit::*;
use hibernet_netstack::conntrack::config::SettingError;
use hibernet_netstack::conntrack::proto::Invalid;
use hibernet_netstack::conntrack::{CtConfig, Dir, tuple};
use std::time::Duration;

fn udp(dir: Dir, payload: u16) -> Bytes {
    let (mut src, mut dst, mut ports) = (CLIENT, SERVER, [2000u16, 53]);
    if dir == Dir::Reply {
        (src, dst) = (dst, src);
        ports.reverse();
    }
    let mut b = vec![0; 8 + usize::from(payload)];
    b[..2].copy_from_slice(&ports[0].to_be_bytes());
    b[2..4].copy_from_slice(&ports[1].to_be_bytes());
    b[4..6].copy_from_slice(&(8 + payload).to_be_bytes());
    Bytes::new(src, dst, 17, b)
}

#[test]
fn an_exchange_becomes_a_stream_after_two_seconds() {
    let mut t = Tracker::default();
    assert_eq!(t.packet(&udp(Dir::Original, 10)), New);
    assert_eq!((t.left(), t.assured()), (30, false));
    assert_eq!(t.packet(&udp(Dir::Original, 10)), New);
    assert_eq!(t.packet(&udp(Dir::Reply, 0)), KNOWN);
    assert_eq!(t.packet(&udp(Dir::Original, 10)), KNOWN);
    assert_eq!((t.left(), t.assured()), (30, false), "a question and its answer");
    t.wait(2);
    assert_eq!(t.packet(&udp(Dir::Reply, 10)), KNOWN);
    assert_eq!((t.left(), t.assured()), (30, false), "not yet");
    t.now = t.now + Duration::from_nanos(1);
    assert_eq!(t.packet(&udp(Dir::Original, 10)), KNOWN);
    assert_eq!((t.left(), t.assured()), (120, true));
}

#[test]
fn what_is_not_answered_is_no_stream() {
    let mut t = Tracker::default();
    for _ in 0..10 {
        assert_eq!(t.packet(&udp(Dir::Original, 10)), New);
        assert_eq!((t.left(), t.assured()), (30, false));
        t.wait(20);
    }
    // The first answer comes late: only what follows it sees that there was one.
    assert_eq!(t.packet(&udp(Dir::Reply, 10)), KNOWN);
    assert_eq!((t.left(), t.assured()), (30, false));
    assert_eq!(t.packet(&udp(Dir::Reply, 10)), KNOWN);
    assert_eq!((t.left(), t.assured()), (120, true));
}

#[test]
fn the_time_outs_of_datagrams_can_be_set() {
    let mut t = Tracker::with("udp_timeout", 5);
    t.cfg.set("udp_timeout_stream", 7).unwrap();
    t.packet(&udp(Dir::Original, 1));
    assert_eq!(t.left(), 5);
    t.wait(3);
    t.packet(&udp(Dir::Reply, 1));
    t.packet(&udp(Dir::Original, 1));
    assert_eq!(t.left(), 7);
    t.wait(7);
    assert_eq!(t.packet(&udp(Dir::Original, 1)), New);
}

#[test]
fn datagrams_longer_than_their_packet_are_invalid() {
    let mut t = Tracker::default();
    let mut b = udp(Dir::Original, 10);
    b.l4[5] = 19;
    assert_eq!(t.packet(&b), State::Invalid(Invalid::Truncated));
    b.l4[5] = 7;
    assert_eq!(t.packet(&b), State::Invalid(Invalid::Truncated));
    b.l4[5] = 8;
    assert_eq!(t.packet(&b), New, "padding behind them does not matter");
    let mut t = Tracker::default();
    b.l4.truncate(7);
    assert_eq!(t.packet(&b), State::Invalid(Invalid::Truncated));
}

#[test]
fn other_protocols_have_addresses_only() {
    for protocol in [2, 50, 132, 255] {
        let mut t = Tracker::default();
        assert_eq!(t.packet(&Bytes::new(CLIENT, SERVER, protocol, vec![1; 30])), New);
        assert_eq!(t.left(), 600);
        assert_eq!(t.packet(&Bytes::new(CLIENT, SERVER, protocol, vec![2; 3])), New, "{protocol}");
        assert_eq!(t.packet(&Bytes::new(SERVER, CLIENT, protocol, vec![])), KNOWN);
        assert_eq!((t.left(), t.assured()), (600, false));
    }
    let mut t = Tracker::with("generic_timeout", 9);
    t.packet(&Bytes::new(CLIENT, SERVER, 50, vec![]));
    assert_eq!(t.left(), 9);
}

#[test]
fn a_tunnel_that_goes_both_ways_is_a_stream() {
    let plain = |src, dst| Bytes::new(src, dst, 47, vec![0, 0, 8, 0, 1, 2, 3, 4]);
    let mut t = Tracker::default();
    assert_eq!(t.packet(&plain(CLIENT, SERVER)), New);
    assert_eq!(t.left(), 30);
    assert_eq!(t.packet(&plain(SERVER, CLIENT)), KNOWN);
    assert_eq!((t.left(), t.assured()), (30, false));
    assert_eq!(t.packet(&plain(CLIENT, SERVER)), KNOWN);
    assert_eq!((t.left(), t.assured()), (180, true));
    let call = |src, dst, id| Bytes::new(src, dst, 47, vec![0x20, 1, 0x88, 0x0b, 0, 0, 0, id]);
    let mut t = Tracker::default();
    assert_eq!(t.packet(&call(CLIENT, SERVER, 5)), New);
    assert_eq!(t.conn.unwrap().tuples.map(|t| (t.sport, t.dport)), [(0, 5), (5, 0)]);
    assert_eq!(t.packet(&call(CLIENT, SERVER, 6)), New, "another call");
    assert_eq!(t.packet(&call(SERVER, CLIENT, 5)), New, "the other way has an identifier of its own");
    let not_ppp = Bytes::new(CLIENT, SERVER, 47, vec![0x20, 1, 8, 0, 0, 0, 0, 1]);
    assert_eq!(Tracker::default().packet(&not_ppp), State::Invalid(Invalid::Truncated));
}

/// Row 19: what is behind IPv6 extension headers is tracked as if they were not there.
#[test]
fn row_19_extension_headers_hide_nothing() {
    let syn = {
        let mut b = c("S", 1000, 0).bytes().l4;
        b[13] = 2;
        b
    };
    let ip = |headers: &[u8], first: u8| {
        let mut p = vec![0x60, 0, 0, 0, 0, (headers.len() + syn.len()) as u8, first, 64];
        for end in ["fd01::2", "fd02::2"] {
            p.extend_from_slice(&end.parse::<std::net::Ipv6Addr>().unwrap().octets());
        }
        p.extend_from_slice(headers);
        p.extend_from_slice(&syn);
        p
    };
    let plain = Bytes::of_ip(&ip(&[], 6));
    let expected = tuple::of(&plain.skb()).unwrap();
    assert_eq!((expected.sport, expected.dport, expected.proto), (1000, 80, 6));
    let hop_by_hop = [6, 0, 1, 4, 0, 0, 0, 0];
    let destination = [6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let both = [60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0];
    for (headers, first) in [(&hop_by_hop[..], 0), (&destination, 60), (&both, 0)] {
        let b = Bytes::of_ip(&ip(headers, first));
        assert_eq!(tuple::of(&b.skb()), Some(expected));
        let mut t = Tracker::default();
        assert_eq!(t.packet(&b), New);
        assert_eq!(t.packet(&plain), New);
        assert_eq!(t.conn.unwrap().tuples[0], expected);
    }
}

#[test]
fn defaults_are_those_of_a_fresh_network_namespace() {
    let c = CtConfig::default();
    let secs = |d: Duration| d.as_secs();
    let t = &c.timeouts;
    assert_eq!([t.udp, t.udp_stream, t.icmp, t.icmpv6, t.generic].map(secs), [30, 120, 30, 30, 600]);
    assert_eq!([t.gre, t.gre_stream].map(secs), [30, 180]);
    let t = &t.tcp;
    let states = [t.syn_sent, t.syn_recv, t.established, t.fin_wait, t.close_wait, t.last_ack, t.time_wait, t.close, t.syn_sent2];
    assert_eq!(states.map(secs), [120, 60, 432_000, 120, 60, 30, 120, 10, 120]);
    assert_eq!([t.max_retrans, t.unacknowledged].map(secs), [300, 300]);
    assert!(c.tcp_loose && !c.tcp_be_liberal && !c.tcp_ignore_invalid_rst);
    assert_eq!((c.max, c.tcp_max_retrans), (262_144, 3));
}

#[test]
fn every_setting_can_be_set_by_its_name_and_matters() {
    for name in CtConfig::NAMES {
        let mut changed = CtConfig::default();
        changed.set(name, 0).or_else(|_| changed.set(name, 1)).unwrap();
        let mut other = CtConfig::default();
        other.set(&format!("nf_conntrack_{name}"), 1).unwrap();
        assert!(changed != CtConfig::default() || other != CtConfig::default(), "{name}");
        assert!(matches!(other.set(name, u64::MAX), Err(SettingError::TooLarge { .. })), "{name}");
    }
    let mut c = CtConfig::default();
    assert_eq!(c.set("tcp_timeout", 1), Err(SettingError::Unknown("tcp_timeout".into())));
    assert_eq!(c.set("max", 0), Err(SettingError::Zero("max".into())));
    assert_eq!(c, CtConfig::default());
}
