//! What outlives a freeze: rows 1, 2, 8-12.

use core::time::Duration;
use hibernet_netstack::Config;
use hibernet_netstack::conntrack::tcp::{TcpState, TcpTrack};
use hibernet_netstack::conntrack::{Conn, CtConfig, CtTuple, Proto};
use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::wire::{Ip, TcpSegment, flags};
use hibernet_tests::{Pair, Probe};

const NAT: &str = "*nat\n-A PREROUTING -d {e} -j DNAT --to-destination {s}\nCOMMIT\n";

/// A segment of the client's within [`established`].
fn segment(p: &mut Pair, flags: u8, seq: u32, ack: u32) {
    let (src, dst) = (p.node(Client), p.elsewhere());
    let s = TcpSegment { src_port: 5000, dst_port: 80, seq, ack, flags, window: 4096, ..TcpSegment::default() };
    p.send(Client, &Ip::new(src, dst), 6, &s.bytes(src, dst));
}

/// A translated connection: the client's next number is 1001, the server's 7001.
fn established(p: &mut Pair) {
    let to = p.elsewhere();
    p.probe(Client, to, Probe::Tcp(5000, 80));
    let syn = p.expect(Server);
    p.answer(Server, &syn);
    p.expect(Client);
    segment(p, flags::ACK, 1001, 7001);
    p.expect(Server);
}

fn state(c: &Conn) -> TcpState {
    match &c.proto {
        Proto::Tcp(t) => t.state,
        other => panic!("{other:?}"),
    }
}

/// Through serde and back.
macro_rules! again {
    ($v:expr, $t:ty) => {
        serde_json::from_str::<$t>(&serde_json::to_string(&$v).unwrap()).unwrap()
    };
}

/// Row 11 (and 1): the plain states come back as they were, and the machine goes on with the next segment. Records of whole
/// connections, rules and their states, and images belong to the freezing of a stack.
#[test]
fn row_11_states_come_back_and_go_on() {
    Pair::each(NAT, |mut p| {
        established(&mut p);
        let (id, conn) = p.connections()[0];
        let Proto::Tcp(track) = conn.proto else { panic!() };
        assert_eq!(conn.tuples.map(|t| again!(t, CtTuple)), conn.tuples);
        let restored = Proto::Tcp(again!(track, TcpTrack));
        assert_eq!(restored, conn.proto);
        p.w.stack.conntrack().modify(id, |c| c.proto = restored).unwrap();
        assert_eq!(state(&p.connection()), TcpState::Established);
        segment(&mut p, flags::FIN | flags::ACK, 1001, 7001);
        assert_eq!(p.expect(Server).dst, p.node(Server));
        assert_eq!(state(&p.connection()), TcpState::FinWait);
        // Windows as well: far beyond is still INVALID, and not translated.
        segment(&mut p, flags::ACK, 1001 + 1_000_000, 7001);
        assert_eq!(p.next(Server), None);
    });
}

/// Row 1: times are spans of stack time, exact to what is written.
#[test]
fn row_01_times_come_back_as_they_were() {
    let mut rng = hibernet_tests::SplitMix::new(1);
    for _ in 0..1000 {
        let mut cfg = CtConfig { max: rng.u64() as u32, ..CtConfig::default() };
        cfg.timeouts.udp = Duration::from_nanos(rng.u64());
        cfg.timeouts.tcp.established = Duration::from_nanos(rng.u64());
        assert_eq!(again!(cfg, CtConfig), cfg);
        let t = CtTuple { sport: rng.u64() as u16, zone: rng.u64() as u16, ..CtTuple::default() };
        assert_eq!(again!(t, CtTuple), t);
    }
}

/// Row 2: a connection is as old as stack time says; a stop of the process in which that stands still does not age it, one in which
/// it goes on does.
#[test]
fn row_02_only_stack_time_ages() {
    Pair::each(NAT, |mut p| {
        let to = p.elsewhere();
        p.probe(Client, to, Probe::Udp(5000, 80));
        p.expect(Server);
        let before = p.connection();
        for _ in 0..10 {
            p.w.stack.conntrack().quiesce();
            let now = p.w.now();
            p.w.stack.conntrack().restart(now);
            p.w.settle();
        }
        assert_eq!(p.connection(), before);
        p.w.freeze(Duration::from_millis(29_999));
        assert_eq!(p.connection(), before);
        p.w.freeze(Duration::from_millis(1));
        assert!(p.connections().is_empty());
    });
}

/// Rows 8, 9, 10: the reaper is stopped and goes on any number of times, before it ever ran and while the stack works on.
#[test]
fn row_08_09_10_quiesce_and_restart_while_the_stack_runs() {
    Pair::each(NAT, |mut p| {
        let ct = p.w.stack.conntrack().clone();
        for _ in 0..3 {
            ct.quiesce();
            p.w.settle();
        }
        ct.restart(p.w.now());
        for round in 0..3_u16 {
            let to = p.elsewhere();
            p.probe(Client, to, Probe::Udp(5000 + round, 80));
            assert_eq!(p.expect(Server).dst, p.node(Server));
            ct.quiesce();
            p.w.settle();
            // Packets pass, in old connections and new ones.
            for port in [5000 + round, 6000 + round] {
                p.probe(Client, to, Probe::Udp(port, 80));
                let got = p.expect(Server);
                p.answer(Server, &got);
                assert_eq!(p.expect(Client).src, to);
            }
            p.run(Duration::from_secs(200));
            assert_eq!(ct.len(), 2, "round {round}: reaped though it is quiesced");
            ct.restart(p.w.now());
            p.w.settle();
            p.run(Duration::from_secs(70));
            assert_eq!(ct.len(), 0, "round {round}: not reaped after the restart");
        }
        p.silent();
    });
}

/// Row 12: nothing runs that was not needed before.
#[test]
fn row_12_a_stack_that_never_tracked_has_no_reaper_after_a_restart() {
    for rules in [false, true] {
        let mut p = Pair::bare(Config::default(), false);
        if rules {
            p.load(NAT);
        }
        let ct = p.w.stack.conntrack().clone();
        ct.quiesce();
        ct.restart(p.w.now());
        p.w.settle();
        assert_eq!((p.w.stack.next_deadline(), ct.reap_due()), (None, None));
        if !rules {
            assert!(p.forwards(Client, Probe::Udp(1, 2)));
            assert_eq!((p.w.stack.next_deadline(), ct.len()), (None, 0), "without rules nothing is tracked");
        }
    }
}
