//! Whole connections: what gVisor's tests of its tracker say (`tcpconntrack_test.go`), and defects of its first version.

use crate::kit::*;
use hibernet_netstack::conntrack::proto::Invalid;
use hibernet_netstack::conntrack::tcp::TcpState::{Close, CloseWait, Established, FinWait, LastAck, SynRecv, SynSent, TimeWait};

#[test]
fn connection_refused() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1234, 0).win(10));
    assert_eq!(t.tcp(s("RA", 0, 1235)), KNOWN);
    assert_eq!(t.conn, None);
}

#[test]
fn connection_refused_in_syn_received() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1234, 0));
    t.tcp(s("SA", 789, 1235));
    assert_eq!(t.tcp(s("RA", 790, 1235)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(Close), 10));
}

#[test]
fn connection_reset_in_syn_received() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1234, 0));
    t.tcp(s("SA", 789, 1235));
    assert_eq!(t.tcp(c("RA", 1235, 790)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(Close), 10));
}

#[test]
fn retransmit_on_syn_sent() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1234, 0));
    assert_eq!(t.tcp(c("S", 1234, 0)), New);
    assert_eq!(t.state(), Some(SynSent));
    t.tcp(s("SA", 789, 1235));
    t.tcp(c("A", 1235, 790));
    assert_eq!(t.state(), Some(Established));
}

#[test]
fn retransmit_on_syn_received() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1234, 0));
    t.tcp(s("SA", 789, 1235));
    t.wait(30);
    assert_eq!(t.tcp(s("SA", 789, 1235)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(SynRecv), 30));
    assert_eq!(t.tcp(c("S", 1234, 0)), KNOWN);
    assert_eq!(t.state(), Some(SynRecv));
    t.tcp(c("A", 1235, 790));
    assert_eq!(t.state(), Some(Established));
}

/// One end sends data and a FIN, the other acknowledges, sends data and a FIN, too.
fn close(first: fn(&str, u32, u32) -> Seg, second: fn(&str, u32, u32) -> Seg, a: u32, b: u32) {
    let mut t = Tracker::established();
    for (step, state) in [
        (first("PA", a, b).len(20), Established),
        (second("A", b, a + 20), Established),
        (second("PA", b, a + 20).len(30), Established),
        (first("A", a + 20, b + 30), Established),
        (first("FA", a + 20, b + 30), FinWait),
        (second("A", b + 30, a + 21), CloseWait),
        // The direction that is open still carries data.
        (second("PA", b + 30, a + 21).len(40), CloseWait),
        (first("A", a + 21, b + 70), CloseWait),
        (second("FA", b + 70, a + 21), LastAck),
        (first("A", a + 21, b + 71), TimeWait),
    ] {
        assert_eq!(t.tcp(step.clone()), KNOWN, "{step:?}");
        assert_eq!(t.state(), Some(state), "{step:?}");
    }
    t.wait(120);
    assert_eq!(t.left(), 0);
}

#[test]
fn closed_by_originator_and_by_responder_with_data() {
    close(c, s, 1001, 5001);
    close(s, c, 5001, 1001);
}

#[test]
fn both_fins_at_once() {
    let mut t = Tracker::established();
    t.tcp(c("FA", 1001, 5001));
    t.tcp(s("FA", 5001, 1001));
    assert_eq!(t.state(), Some(LastAck));
    t.tcp(c("A", 1002, 5002));
    t.tcp(s("A", 5002, 1002));
    assert_eq!(t.state(), Some(TimeWait));
}

#[test]
fn ignore_bad_reset_on_syn_sent() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1234, 0));
    assert_eq!(t.tcp(s("RA", 0, 1237)), NOT_SENT);
    assert_eq!(t.state(), Some(SynSent));
    t.tcp(s("SA", 789, 1235));
    t.tcp(c("A", 1235, 790));
    assert_eq!(t.state(), Some(Established));
}

/// Row 16: the direction comes from the tuples, wherever the packets came in.
#[test]
fn row_16_a_forwarded_connection_lives_on_when_idle() {
    let mut t = Tracker::established();
    t.wait(121);
    assert_eq!(t.tcp(s("PA", 5001, 1001).len(5)), KNOWN);
    assert_eq!(t.tcp(c("A", 1001, 5006)), KNOWN);
    assert_eq!(t.left(), 432_000);
}

/// Row 20.
#[test]
fn row_20_truncated_segments_change_nothing() {
    let mut t = Tracker::established();
    let before = t.conn;
    for (at, value) in [(12, 0x40), (12, 0x00), (12, 0xf0)] {
        let mut b = c("RA", 1001, 5001).bytes();
        b.l4[at] = value;
        assert_eq!(t.packet(&b), State::Invalid(Invalid::Truncated), "data offset {value:#x}");
    }
    for len in 0..20 {
        let mut b = c("RA", 1001, 5001).bytes();
        b.l4.truncate(len);
        assert_eq!(t.packet(&b), State::Invalid(Invalid::Truncated), "{len} bytes");
    }
    assert_eq!(t.conn, before);
    let mut t = Tracker::default();
    let mut b = c("S", 1000, 0).bytes();
    b.l4.truncate(19);
    assert_eq!(t.packet(&b), State::Invalid(Invalid::Truncated));
    assert_eq!(t.conn, None);
}

/// Row 22.
#[test]
fn row_22_what_was_reset_stays_so_and_is_gone_soon() {
    let mut t = Tracker::established();
    t.tcp(c("R", 1001, 0));
    for _ in 0..5 {
        assert_eq!(t.tcp(s("A", 5001, 1001)), KNOWN);
        assert_eq!((t.state(), t.left()), (Some(Close), 10));
    }
    t.wait(10);
    assert_eq!(t.left(), 0);
    assert_eq!(t.tcp(s("R", 5001, 0)), State::Invalid(Invalid::TcpStart), "and nothing begins with what comes late");
}

/// Row 32.
#[test]
fn row_32_traffic_keeps_a_connection() {
    let mut t = Tracker::with("tcp_timeout_established", 120);
    t.handshake();
    for i in 0..10 {
        t.wait(60);
        assert_eq!(t.tcp(c("PA", 1001 + i, 5001).len(1)), KNOWN);
        assert_eq!(t.tcp(s("A", 5001, 1002 + i)), KNOWN);
        assert_eq!(t.left(), 120);
    }
    t.wait(120);
    assert_eq!(t.left(), 0);
}
