//! The state tables, cell by cell.

use crate::kit::*;
use hibernet_netstack::conntrack::proto::Invalid;
use hibernet_netstack::conntrack::tcp::{TcpSide, TcpState, TcpTrack, side};
use hibernet_netstack::conntrack::{Dir, Proto, Status};

/// Rows: kind of segment; columns: state. As netfilter.org's sources print it.
const ORIGINAL: &str = "
    S  sSS sSS sIG sIG sIG sIG sIG sSS sSS sS2
    SA sIV sIV sSR sIV sIV sIV sIV sIV sIV sSR
    FA sIV sIV sFW sFW sLA sLA sLA sTW sCL sIV
    A  sES sIV sES sES sCW sCW sTW sTW sCL sIV
    R  sIV sCL sCL sCL sCL sCL sCL sCL sCL sCL";
const REPLY: &str = "
    S  sIV sS2 sIV sIV sIV sIV sIV sSS sIV sS2
    SA sIV sSR sIG sIG sIG sIG sIG sIG sIG sSR
    FA sIV sIV sFW sFW sLA sLA sLA sTW sCL sIV
    A  sIV sIG sSR sES sCW sCW sTW sTW sCL sIG
    R  sIV sCL sCL sCL sCL sCL sCL sCL sCL sCL";

fn state(code: &str) -> Option<TcpState> {
    Some(match code {
        "sSS" => TcpState::SynSent,
        "sSR" => TcpState::SynRecv,
        "sES" => TcpState::Established,
        "sFW" => TcpState::FinWait,
        "sCW" => TcpState::CloseWait,
        "sLA" => TcpState::LastAck,
        "sTW" => TcpState::TimeWait,
        "sCL" => TcpState::Close,
        "sS2" => TcpState::SynSent2,
        _ => return None,
    })
}

/// A connection in a state, whose windows take anything.
fn in_state(state: TcpState, flags: u8) -> Tracker {
    let mut t = Tracker::established();
    let liberal =
        |end| TcpSide { end, max_end: end + 1000, max_win: 1000, flags: flags | side::BE_LIBERAL, ..TcpSide::default() };
    if let Some(conn) = &mut t.conn {
        conn.status.set(Status::ASSURED);
        let last_win = 1000;
        conn.proto = Proto::Tcp(TcpTrack { state, sides: [liberal(1001), liberal(5001)], last_win, ..TcpTrack::default() });
    }
    t
}

#[test]
fn every_cell_of_both_tables() {
    let mut cells = 0;
    for (dir, table) in [(Dir::Original, ORIGINAL), (Dir::Reply, REPLY)] {
        for row in table.lines().filter(|l| !l.is_empty()) {
            let mut words = row.split_whitespace();
            let flags = words.next().unwrap();
            // No connection is in the first state, NONE.
            for (old, code) in TcpState::ALL.into_iter().zip(words).skip(1) {
                let what = format!("{dir:?} {flags} in {}: {code}", old.name());
                let mut t = in_state(old, 0);
                t.wait(3);
                let (left, before) = (t.left(), *t.track().unwrap());
                let (seq, ack) = if dir == Dir::Original { (1001, 5001) } else { (5001, 1001) };
                let got = t.tcp(seg(dir, flags, seq, if flags.contains('A') { ack } else { 0 }));
                cells += 1;
                match (code, state(code)) {
                    ("sIV", _) => {
                        assert_eq!(got, INVALID_STATE, "{what}");
                        assert_eq!((t.track(), t.left()), (Some(&before), left), "{what}");
                    }
                    // A SYN in TIME_WAIT or CLOSE begins something only if that is surely over.
                    (_, Some(TcpState::SynSent)) if matches!(old, TcpState::TimeWait | TcpState::Close) => {
                        assert_eq!(got, KNOWN, "{what}");
                        assert_eq!((t.state(), t.left()), (Some(old), left), "{what}");
                        let mut t = in_state(old, side::CLOSE_INIT);
                        let reopened = if dir == Dir::Original { c("S", 9000, 0) } else { s("S", 9000, 0) };
                        assert_eq!(t.tcp(reopened), New, "{what}");
                        assert_eq!((t.state(), t.left()), (Some(TcpState::SynSent), 120), "{what}");
                    }
                    ("sIG", _) => {
                        assert_eq!(got, KNOWN, "{what}");
                        assert_eq!((t.state(), t.left()), (Some(old), left), "{what}");
                    }
                    (_, Some(new)) => {
                        assert_eq!(got, KNOWN, "{what}");
                        assert_eq!(t.state(), Some(new), "{what}");
                        assert_ne!(t.left(), left, "{what}: refreshed");
                    }
                    _ => panic!("{what}"),
                }
            }
        }
    }
    assert_eq!(cells, 2 * 5 * 9);
}

#[test]
fn a_connection_begins_with_syn_or_in_its_middle_with_ack() {
    for (flags, state) in [
        ("S", Ok(TcpState::SynSent)),
        ("SU", Ok(TcpState::SynSent)),
        ("SEC", Ok(TcpState::SynSent)),
        ("A", Ok(TcpState::Established)),
        ("PA", Ok(TcpState::Established)),
        ("AU", Ok(TcpState::Established)),
        ("SA", Err(Invalid::TcpStart)),
        ("FA", Err(Invalid::TcpStart)),
        ("R", Err(Invalid::TcpStart)),
        ("RA", Err(Invalid::TcpStart)),
    ] {
        let mut t = Tracker::default();
        let got = t.tcp(c(flags, 1000, 77));
        match state {
            Ok(state) => assert_eq!((got, t.state()), (New, Some(state)), "{flags}"),
            Err(why) => assert_eq!((got, t.state()), (State::Invalid(why), None), "{flags}"),
        }
    }
}

/// Special case 1: all 64 combinations.
#[test]
fn flags_that_no_tcp_sends_together_are_invalid() {
    let valid = ["S", "SU", "SA", "R", "RA", "FA", "FAU", "A", "AU"];
    for bits in 0u8..64 {
        let flags: String = "FSRPAU".chars().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, c)| c).collect();
        let without_push: String = flags.chars().filter(|c| *c != 'P').collect();
        let mut t = Tracker::established();
        let before = t.conn;
        let got = t.tcp(s(&flags, 5001, 1001));
        if valid.contains(&without_push.as_str()) {
            assert_ne!(got, State::Invalid(Invalid::TcpFlags), "{flags}");
        } else {
            assert_eq!(got, State::Invalid(Invalid::TcpFlags), "{flags}");
            assert_eq!(t.conn, before, "{flags}");
        }
    }
}
