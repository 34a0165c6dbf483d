//! ICMP and ICMPv6: queries, errors and what they quote, what is not tracked.

use crate::kit::*;
use hibernet_netstack::conntrack::proto::Invalid;
use hibernet_netstack::conntrack::{Dir, Quote};

const CLIENT6: &str = "fd01::2";
const SERVER6: &str = "fd02::2";
const NOT_A_QUERY: State = State::Invalid(Invalid::IcmpType);
const NO_QUOTE: State = State::Invalid(Invalid::Quote);

fn message(src: &str, dst: &str, ty: u8, code: u8, id: u16, rest: &[u8]) -> Bytes {
    let mut b = vec![ty, code, 0, 0, (id >> 8) as u8, id as u8, 0, 1];
    b.extend_from_slice(rest);
    Bytes::new(src, dst, if src.contains(':') { 58 } else { 1 }, b)
}

fn query(ty: u8, id: u16) -> Bytes {
    message(CLIENT, SERVER, ty, 0, id, b"data")
}

fn answer(ty: u8, id: u16) -> Bytes {
    message(SERVER, CLIENT, ty, 0, id, b"data")
}

fn query6(ty: u8) -> Bytes {
    message(CLIENT6, SERVER6, ty, 0, 7, b"data")
}

fn answer6(ty: u8) -> Bytes {
    message(SERVER6, CLIENT6, ty, 0, 7, b"data")
}

#[test]
fn queries_and_their_answers_are_connections() {
    for (ask, say) in [(8, 0), (13, 14), (15, 16), (17, 18)] {
        let mut t = Tracker::default();
        assert_eq!(t.packet(&answer(say, 7)), NOT_A_QUERY, "an answer to nothing");
        assert_eq!(t.packet(&query(ask, 7)), New);
        assert_eq!(t.left(), 30);
        assert_eq!(t.packet(&answer(say, 8)), NOT_A_QUERY, "another identifier");
        t.wait(10);
        assert_eq!(t.packet(&answer(say, 7)), KNOWN);
        assert_eq!((t.left(), t.assured()), (30, false));
        assert_eq!(t.packet(&query(ask, 7)), KNOWN);
        let other_code = message(SERVER, CLIENT, say, 1, 7, b"");
        assert_eq!(t.packet(&other_code), NOT_A_QUERY);
    }
    for (ask, say) in [(128, 129), (139, 140)] {
        let mut t = Tracker::default();
        assert_eq!(t.packet(&answer6(say)), NOT_A_QUERY);
        assert_eq!(t.packet(&query6(ask)), New);
        assert_eq!(t.packet(&answer6(say)), KNOWN);
        assert_eq!(t.left(), 30);
    }
}

#[test]
fn the_time_outs_of_queries_can_be_set() {
    let mut t = Tracker::with("icmp_timeout", 3);
    t.cfg.set("icmpv6_timeout", 4).unwrap();
    t.packet(&query(8, 7));
    assert_eq!(t.left(), 3);
    t.packet(&query6(128));
    assert_eq!(t.left(), 4);
    t.packet(&answer6(129));
    assert_eq!(t.left(), 4);
}

/// All 256 types of both families, as a fresh namespace of Linux 6.18 took them.
#[test]
fn every_type_is_what_linux_says() {
    for ty in 0..=255u8 {
        let expected = match ty {
            8 | 13 | 15 | 17 => New,
            3 | 4 | 5 | 11 | 12 => NO_QUOTE,
            _ => NOT_A_QUERY,
        };
        assert_eq!(Tracker::default().packet(&query(ty, 7)), expected, "ICMP {ty}");
        let expected = match ty {
            128 | 139 => New,
            0..=127 => NO_QUOTE,
            130..=136 | 143 | 151 | 152 => State::Untracked,
            _ => NOT_A_QUERY,
        };
        assert_eq!(Tracker::default().packet(&query6(ty)), expected, "ICMPv6 {ty}");
    }
}

#[test]
fn messages_of_the_other_family_and_short_ones_are_invalid() {
    let truncated = State::Invalid(Invalid::Truncated);
    let mut b = query(8, 7);
    b.protocol = 58;
    assert_eq!(Tracker::default().packet(&b), truncated);
    let mut b = query6(128);
    b.protocol = 1;
    assert_eq!(Tracker::default().packet(&b), truncated);
    let mut b = query(8, 7);
    b.l4.truncate(7);
    assert_eq!(Tracker::default().packet(&b), truncated);
}

/// An IPv4 packet around transport bytes, with options.
fn ip4(src: &str, dst: &str, protocol: u8, options: &[u8], l4: &[u8]) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let len = words * 4 + l4.len();
    let mut p = vec![0x40 | words as u8, 0, (len >> 8) as u8, len as u8, 0, 1, 0, 0, 1, protocol, 0xde, 0xad];
    for end in [src, dst] {
        p.extend_from_slice(&end.parse::<std::net::Ipv4Addr>().unwrap().octets());
    }
    p.extend_from_slice(options);
    p.extend_from_slice(l4);
    p
}

/// An IPv6 packet; `headers` are (kind, bytes without the first, which is filled in).
fn ip6(src: &str, dst: &str, protocol: u8, headers: &[(u8, &[u8])], l4: &[u8]) -> Vec<u8> {
    let len: usize = headers.iter().map(|h| h.1.len() + 1).sum::<usize>() + l4.len();
    let mut p = vec![0x60, 0, 0, 0, 0, len as u8, headers.first().map_or(protocol, |h| h.0), 1];
    for end in [src, dst] {
        p.extend_from_slice(&end.parse::<std::net::Ipv6Addr>().unwrap().octets());
    }
    for (i, (_, rest)) in headers.iter().enumerate() {
        p.push(headers.get(i + 1).map_or(protocol, |h| h.0));
        p.extend_from_slice(rest);
    }
    p.extend_from_slice(l4);
    p
}

fn error(src: &str, dst: &str, quoted: &[u8]) -> Bytes {
    message(src, dst, if src.contains(':') { 1 } else { 3 }, 3, 0, quoted)
}

fn tcp_known() -> Tracker {
    let mut t = Tracker::established();
    t.wait(7);
    t
}

#[test]
fn an_error_is_related_to_what_it_quotes() {
    let mut t = tcp_known();
    let before = t.conn;
    let segment = c("PA", 1001, 5001).bytes().l4;
    for options in [&[][..], &[1, 1, 1, 0], &[0x94, 4, 0, 0, 7, 3, 4, 0]] {
        for kept in [8, 12, 20] {
            let quoted = ip4(CLIENT, SERVER, 6, options, &segment[..kept]);
            // From the server, or from any router on the way.
            for from in [SERVER, "172.16.0.1"] {
                assert_eq!(t.packet(&error(from, CLIENT, &quoted)), State::Related(Dir::Reply));
            }
        }
    }
    let quoted = ip4(SERVER, CLIENT, 6, &[], &s("A", 5001, 1001).bytes().l4[..8]);
    assert_eq!(t.packet(&error(CLIENT, SERVER, &quoted)), State::Related(Dir::Original));
    assert_eq!(t.conn, before, "errors refresh nothing");
}

#[test]
fn an_error_must_go_where_the_quoted_packet_came_from() {
    let mut t = tcp_known();
    let quoted = ip4(CLIENT, SERVER, 6, &[], &c("A", 1001, 5001).bytes().l4);
    assert_eq!(t.packet(&error(SERVER, "10.1.0.3", &quoted)), NO_QUOTE);
    assert_eq!(t.packet(&error(CLIENT, SERVER, &quoted)), NO_QUOTE);
}

#[test]
fn an_error_about_nothing_known_is_invalid() {
    let mut t = tcp_known();
    let mut segment = c("A", 1001, 5001).bytes().l4;
    segment[1] ^= 1;
    assert_eq!(t.packet(&error(SERVER, CLIENT, &ip4(CLIENT, SERVER, 6, &[], &segment))), NO_QUOTE, "another port");
    segment[1] ^= 1;
    assert_eq!(t.packet(&error(SERVER, CLIENT, &ip4(CLIENT, SERVER, 17, &[], &segment))), NO_QUOTE, "another protocol");
    t.wait(500_000);
    assert_eq!(t.packet(&error(SERVER, CLIENT, &ip4(CLIENT, SERVER, 6, &[], &segment))), NO_QUOTE, "it has expired");
}

#[test]
fn short_and_broken_quotes_are_invalid() {
    let mut t = tcp_known();
    let segment = c("A", 1001, 5001).bytes().l4;
    let whole = ip4(CLIENT, SERVER, 6, &[1, 1, 1, 0], &segment);
    for len in 0..whole.len() {
        // Addresses, options and ports are needed.
        let expected = if len >= 24 + 4 { State::Related(Dir::Reply) } else { NO_QUOTE };
        assert_eq!(t.packet(&error(SERVER, CLIENT, &whole[..len])), expected, "{len} bytes");
    }
    let change = |at: usize, value: u8| {
        let mut b = whole.clone();
        b[at] = value;
        error(SERVER, CLIENT, &b)
    };
    assert_eq!(t.packet(&change(7, 1)), NO_QUOTE, "a further fragment has no ports");
    assert_eq!(t.packet(&change(6, 0x20)), State::Related(Dir::Reply), "the first one has");
    assert_eq!(t.packet(&change(0, 0x44)), NO_QUOTE, "header too short");
    assert_eq!(t.packet(&change(0, 0x4f)), NO_QUOTE, "header too long");
    assert_eq!(t.packet(&change(10, 0)), State::Related(Dir::Reply), "checksums of quotes are not looked at");
}

#[test]
fn errors_about_queries_are_related() {
    let mut t = Tracker::default();
    t.packet(&query(8, 7));
    let quoted = ip4(CLIENT, SERVER, 1, &[], &query(8, 7).l4[..8]);
    assert_eq!(t.packet(&error("172.16.0.1", CLIENT, &quoted)), State::Related(Dir::Reply));
    assert_eq!(t.packet(&error("172.16.0.1", CLIENT, &quoted[..27])), NO_QUOTE, "a query is known by its identifier");
    let about_error = ip4(CLIENT, SERVER, 1, &[], &error(CLIENT, SERVER, &quoted).l4);
    assert_eq!(t.packet(&error("172.16.0.1", CLIENT, &about_error)), NO_QUOTE, "there are no errors about errors");
}

#[test]
fn errors_about_ipv6_packets_with_extension_headers() {
    let udp = [0x07, 0xd0, 0, 53, 0, 9, 0, 0, 1];
    let sent = Bytes::of_ip(&ip6(CLIENT6, SERVER6, 17, &[], &udp));
    let options: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
    let long: &[u8] = &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let routing: &[u8] = &[0, 0, 3, 0, 0, 0, 0];
    let first_fragment: &[u8] = &[0, 0, 1, 0, 0, 0, 9];
    let second_fragment: &[u8] = &[0, 0, 8, 0, 0, 0, 9];
    let auth: &[u8] = &[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
    type Chain<'a> = &'a [(u8, &'a [u8])];
    let chains: [(Chain<'_>, State); 8] = [
        (&[], State::Related(Dir::Reply)),
        (&[(0, options), (60, options)], State::Related(Dir::Reply)),
        (&[(60, long)], State::Related(Dir::Reply)),
        (&[(43, routing)], State::Related(Dir::Reply)),
        (&[(44, first_fragment)], State::Related(Dir::Reply)),
        (&[(44, second_fragment)], NO_QUOTE),
        (&[(51, auth), (60, options)], State::Related(Dir::Reply)),
        (&[(59, options)], NO_QUOTE),
    ];
    for (chain, expected) in chains {
        let mut t = Tracker::default();
        assert_eq!(t.packet(&sent), New);
        let quoted = ip6(CLIENT6, SERVER6, 17, chain, &udp);
        let e = error("fd99::1", CLIENT6, &quoted);
        assert_eq!(t.packet(&e), expected, "{chain:?}");
        if let Ok(q) = Quote::of(&e.skb()) {
            assert_eq!(e.l4[q.l4_at..q.l4_at + 4], udp[..4], "{chain:?}");
        }
        for len in 0..quoted.len() - udp.len() + 4 {
            assert_eq!(t.packet(&error("fd99::1", CLIENT6, &quoted[..len])), NO_QUOTE, "{chain:?} {len} bytes");
        }
    }
}
