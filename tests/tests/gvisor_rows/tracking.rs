//! Connections as packets make and end them: rows 5, 16, 19, 20, 22, 28, 31, 32.

use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::Config;
use hibernet_netstack::conntrack::{Proto, tcp::TcpState};
use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::wire::{self, Ip, L4, TcpSegment, flags};
use hibernet_tests::{Out, Pair, Probe};

const NAT: &str = "*nat\n-A PREROUTING -d {e} -j DNAT --to-destination {s}\nCOMMIT\n";

/// A segment of the client's to the translated address.
fn segment(p: &mut Pair, flags: u8, seq: u32, ack: u32, data: &[u8]) -> Option<Out> {
    let (src, dst) = (p.node(Client), p.elsewhere());
    let s =
        TcpSegment { src_port: 5000, dst_port: 80, seq, ack, flags, window: 4096, data: data.to_vec(), ..TcpSegment::default() };
    p.send(Client, &Ip::new(src, dst), 6, &s.bytes(src, dst));
    p.next(Server)
}

/// The client's next number is 1001, the server's 7001.
fn established(p: &mut Pair) {
    let to = p.elsewhere();
    p.probe(Client, to, Probe::Tcp(5000, 80));
    let syn = p.expect(Server);
    p.answer(Server, &syn);
    p.expect(Client);
    segment(p, flags::ACK, 1001, 7001, b"").expect("translated");
    assert_eq!(state(p), TcpState::Established);
}

fn state(p: &Pair) -> TcpState {
    match p.connection().proto {
        Proto::Tcp(t) => t.state,
        other => panic!("{other:?}"),
    }
}

/// Row 5: tuples of connections that timed out are free at once, before any reaper came by: the new flow is tracked and redirected.
#[test]
fn row_05_a_tuple_that_timed_out_begins_anew_and_is_translated() {
    Pair::each(NAT, |mut p| {
        let to = p.elsewhere();
        p.w.stack.conntrack().quiesce();
        for _ in 0..2 {
            for port in 1000..1200 {
                p.probe(Client, to, Probe::Udp(port, 80));
                let got = p.expect(Server);
                assert_eq!((got.dst, got.ports()), (p.node(Server), (port, 80)));
            }
            assert_eq!(p.connections().len(), 200);
            p.w.freeze(Duration::from_secs(31));
        }
        assert_eq!(p.w.stack.conntrack().counters().insert, 400, "a connection that timed out went on");
        assert_eq!(p.drops(), []);
    });
}

/// Row 16: a forwarded connection, both of whose directions come in by PREROUTING, is established and keeps its translation when it
/// idles for longer than a half-open one may.
#[test]
fn row_16_a_forwarded_connection_idles_and_is_still_translated() {
    Pair::each(NAT, |mut p| {
        established(&mut p);
        p.run(Duration::from_secs(250));
        let got = segment(&mut p, flags::ACK | flags::PSH, 1001, 7001, b"still here").expect("translated");
        assert_eq!(got.dst, p.node(Server));
        let (src, dst) = (p.node(Server), p.node(Client));
        let s = TcpSegment {
            src_port: 80,
            dst_port: 5000,
            seq: 7001,
            ack: 1011,
            flags: flags::ACK,
            window: 4096,
            ..TcpSegment::default()
        };
        p.send(Server, &Ip::new(src, dst), 6, &s.bytes(src, dst));
        assert_eq!(p.expect(Client).src, p.elsewhere());
    });
}

/// Row 19: extension headers hide nothing: what is behind them is matched, tracked and translated.
#[test]
fn row_19_a_syn_behind_extension_headers_is_matched_and_translated() {
    let rules = "*nat\n-A PREROUTING -d {e} -p tcp --dport 80 -j DNAT --to-destination {s}\nCOMMIT\n\
                 *filter\n-A FORWARD -p tcp --dport 81 -j DROP\nCOMMIT\n";
    let options = vec![0, 0, 1, 4, 0, 0, 0, 0];
    for extensions in [
        vec![(0, options.clone())],
        vec![(60, options.clone())],
        vec![(0, options.clone()), (60, options.clone())],
        vec![(43, vec![0, 0, 0, 0, 0, 0, 0, 0]), (60, options.clone())],
    ] {
        let mut p = Pair::new(true, rules);
        let (src, to, server) = (p.node(Client), p.elsewhere(), p.node(Server));
        let (protocol, l4) = Probe::Tcp(5000, 80).l4(src, to);
        let ip = |dst| Ip { extensions: extensions.clone(), ..Ip::new(src, dst) };
        p.send(Client, &ip(to), protocol, &l4);
        let frame = p.next_bytes(Server).unwrap_or_else(|| panic!("{extensions:?}: {:?}", p.drops()));
        let packet = &frame[14..];
        assert_eq!(IpAddr::from(<[u8; 16]>::try_from(&packet[24..40]).unwrap()), server);
        let tcp = &packet[40 + 8 * extensions.len()..];
        assert_eq!(wire::transport_checksum(src, server, 6, tcp), 0);
        assert_eq!(p.connection().tuples[0].dport, 80);
        let (protocol, l4) = Probe::Tcp(5001, 81).l4(src, server);
        p.send(Client, &ip(server), protocol, &l4);
        assert_eq!(p.next_bytes(Server), None, "the filter was passed by");
    }
}

/// Row 20: what is damaged changes nothing: neither state nor time-outs, and it makes no connection.
#[test]
fn row_20_damaged_segments_change_nothing() {
    Pair::each(NAT, |mut p| {
        established(&mut p);
        let before = p.connection();
        let (src, dst) = (p.node(Client), p.elsewhere());
        for flags in [flags::RST, flags::FIN | flags::ACK, flags::RST | flags::ACK] {
            let s =
                TcpSegment { src_port: 5000, dst_port: 80, seq: 1001, ack: 7001, flags, window: 4096, ..TcpSegment::default() };
            let mut b = s.bytes(src, dst);
            b[16] ^= 0x55;
            p.send(Client, &Ip::new(src, dst), 6, &b);
            // Cut off, its checksum right for what is left.
            p.send(Client, &Ip::new(src, dst), 6, &b[..12]);
        }
        let (_, mut udp) = Probe::Udp(1, 2).l4(src, dst);
        udp[6] ^= 0x55;
        p.send(Client, &Ip::new(src, dst), 17, &udp);
        assert_eq!(p.connection(), before);
        assert_eq!(state(&p), TcpState::Established);
        assert!(segment(&mut p, flags::ACK, 1001, 7001, b"data").is_some());
    });
}

/// Row 22: a reset connection stays so whatever comes later, and is soon gone; its tuple begins anew with a SYN, translated by the rules
/// that hold then; who is picked up in the middle is treated by policy.
#[test]
fn row_22_reset_is_reset_and_a_syn_begins_anew() {
    Pair::each(NAT, |mut p| {
        established(&mut p);
        segment(&mut p, flags::RST, 1001, 0, b"");
        assert_eq!(state(&p), TcpState::Close);
        segment(&mut p, flags::ACK, 1001, 7001, b"zombie");
        assert_eq!(state(&p), TcpState::Close);
        p.run(Duration::from_secs(11 + 61));
        assert!(p.connections().is_empty() && p.w.stack.conntrack().is_empty());

        established(&mut p);
        segment(&mut p, flags::RST, 1001, 0, b"");
        let first = p.connections()[0].0;
        let got = segment(&mut p, flags::SYN, 900_000, 0, b"").expect("translated");
        assert_eq!(got.dst, p.node(Server));
        assert_ne!(p.connections()[0].0, first);
        assert_eq!(state(&p), TcpState::SynSent);
    });
    for (loose, tracked) in [(true, 1), (false, 0)] {
        let mut cfg = Config::default();
        cfg.conntrack.tcp_loose = loose;
        let mut p = Pair::with(cfg, false, NAT);
        segment(&mut p, flags::ACK, 5, 6, b"");
        assert_eq!(p.connections().len(), tracked, "picked up in the middle");
        p.run(Duration::from_secs(301 + 61));
        assert!(p.w.stack.conntrack().is_empty(), "picked up and never answered, yet it stays for days");
    }
}

/// Row 28: asked before anything was ever tracked.
#[test]
fn row_28_original_destination_of_a_fresh_stack() {
    let p = Pair::bare(Config::default(), false);
    let asked = p.w.stack.conntrack().original_dst(p.w.now(), &Default::default());
    assert_eq!(asked, Err(hibernet_netstack::conntrack::OriginalDstError::NotConnected));
}

/// Row 31: a packet that is dropped behind its translation leaves no connection, wherever that is.
#[test]
fn row_31_dropped_after_translation_leaves_nothing() {
    let drops = [
        "*filter\n-A FORWARD -j DROP\nCOMMIT\n",
        "*filter\n-A FORWARD -j REJECT\nCOMMIT\n",
        "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n",
        "*mangle\n-A PREROUTING -j DROP\nCOMMIT\n",
        "*mangle\n-A POSTROUTING -o tap1 -j DROP\nCOMMIT\n",
        "*security\n-A FORWARD -j DROP\nCOMMIT\n",
        "*raw\n-A PREROUTING -j DROP\nCOMMIT\n",
    ];
    for drop in drops {
        Pair::each(&[NAT, drop].concat(), |mut p| {
            let to = p.elsewhere();
            for n in 0..100 {
                for probe in [Probe::Udp(n, 80), Probe::Tcp(n, 80), Probe::Ping(n)] {
                    p.probe(Client, to, probe);
                    assert_eq!(p.next(Server), None, "{drop}");
                }
            }
            assert_eq!(p.w.stack.conntrack().len(), 0, "{drop}");
            assert_eq!(p.w.stack.conntrack().counters().insert, 0);
        });
    }
    // INPUT, behind REDIRECT.
    let rules = "*nat\n-A PREROUTING -i tap0 -j REDIRECT\nCOMMIT\n*filter\n-A INPUT -j DROP\nCOMMIT\n";
    Pair::each(rules, |mut p| {
        let to = p.elsewhere();
        p.probe(Client, to, Probe::Ping(1));
        p.silent();
        assert_eq!(p.w.stack.conntrack().len(), 0);
    });
}

/// Row 32: packets renew connections that nothing translates.
#[test]
fn row_32_keep_alives_keep_untranslated_connections() {
    for v6 in [false, true] {
        let mut cfg = Config::default();
        cfg.conntrack.timeouts.tcp.established = Duration::from_secs(90);
        let mut p = Pair::with(cfg, v6, "*filter\nCOMMIT\n");
        let (src, dst) = (p.node(Client), p.node(Server));
        p.probe(Client, dst, Probe::Tcp(5000, 80));
        let syn = p.expect(Server);
        p.answer(Server, &syn);
        let ack = |seq| TcpSegment {
            src_port: 5000,
            dst_port: 80,
            seq,
            ack: 7001,
            flags: flags::ACK,
            window: 4096,
            ..TcpSegment::default()
        };
        let Some(Out { l4: L4::Tcp(_), .. }) = p.next(Client) else { panic!() };
        for _ in 0..20 {
            p.send(Client, &Ip::new(src, dst), 6, &ack(1001).bytes(src, dst));
            p.expect(Server);
            assert_eq!(state(&p), TcpState::Established);
            p.run(Duration::from_secs(60));
        }
        p.run(Duration::from_secs(31 + 61));
        assert!(p.w.stack.conntrack().is_empty());
    }
}
