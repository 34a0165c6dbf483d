use super::*;
use crate::conntrack::tcp::{TcpState, TcpTrack};
use crate::conntrack::{Conn, CtConfig, Proto, Status, Track, tuple};
use core::net::IpAddr;
use core::time::Duration;

fn rule(above: bool, limit: u32) -> Counted {
    Counted::new(ConnlimitMatch { above, limit, prefix: 24, dest: false }, rng::Key(3, 4))
}

fn table(max: u32) -> Conntrack {
    Conntrack::new(CtConfig { max, ..CtConfig::default() }, rng::Key(1, 2))
}

fn tuple(host: u8, port: u16) -> CtTuple {
    let (src, dst): (IpAddr, IpAddr) = ([10, 0, host, 1].into(), [10, 9, 9, 9].into());
    CtTuple { src: src.into(), dst: dst.into(), sport: port, dport: 80, zone: 0, proto: 6, v6: false }
}

fn at(ms: u64) -> Time {
    Time::from_millis(ms)
}

/// A connection in the table, which ends at a time.
fn open(ct: &Conntrack, host: u8, port: u16, ends: Time) -> crate::conntrack::ConnId {
    let tuples = [tuple(host, port), tuple::invert(&tuple(host, port)).unwrap()];
    let proto = Proto::Tcp(TcpTrack { state: TcpState::Established, ..TcpTrack::default() });
    let conn = Conn { tuples, status: Status::default(), mark: 0, expires: ends, proto, flow: None };
    match ct.adopt(at(0), conn) {
        Ok(Track::Known { id, .. }) => id,
        other => panic!("{other:?}"),
    }
}

fn ask(rule: &Counted, ct: &Conntrack, host: u8, port: u16, ms: u64) -> Answer {
    let mut addr = [0; 16];
    addr[..4].copy_from_slice(&[10, 0, host, port as u8]);
    rule.ask(&Counting { addr, tuple: tuple(host, port), assured: false }, ct, at(ms))
}

#[test]
fn connections_of_a_group_are_counted_while_they_are_open() {
    let ct = table(1000);
    let r = rule(true, 2);
    let mut ids = Vec::new();
    for (port, expected) in [(1, Answer::No), (2, Answer::No), (3, Answer::Yes)] {
        assert_eq!(ask(&r, &ct, 1, port, 0), expected, "port {port}");
        ids.push(open(&ct, 1, port, at(60_000)));
        assert_eq!(ask(&r, &ct, 1, port, 0), expected, "once more, port {port}");
    }
    assert_eq!(ask(&r, &ct, 2, 9, 0), Answer::No, "another group");
    ct.modify(ids[0], |c| c.proto = Proto::Tcp(TcpTrack { state: TcpState::TimeWait, ..TcpTrack::default() }));
    assert_eq!(ask(&r, &ct, 1, 3, 1), Answer::Yes, "nobody looks twice in a tick");
    assert_eq!(ask(&r, &ct, 1, 3, 5), Answer::No, "a closed one does not count");
    assert_eq!(ask(&r, &ct, 1, 4, 10), Answer::Yes);
    assert_eq!(ask(&r, &ct, 1, 5, 20), Answer::Yes, "that of port 4 never came to be");
    ct.remove(ids[1]);
    assert_eq!(ask(&r, &ct, 1, 6, 30), Answer::No);
}

#[test]
fn a_connection_that_was_there_before_the_rule_counts_from_its_next_packet_on() {
    let ct = table(1000);
    let r = rule(false, 1);
    for port in [1, 2] {
        open(&ct, 1, port, at(60_000));
    }
    assert_eq!(ask(&r, &ct, 1, 1, 0), Answer::Yes);
    assert_eq!(ask(&r, &ct, 1, 2, 0), Answer::No);
}

#[test]
fn an_assured_connection_that_the_rule_never_saw_counts_only_alone() {
    let ct = table(1000);
    let r = rule(true, 1);
    let mut addr = [0; 16];
    addr[..4].copy_from_slice(&[10, 0, 1, 1]);
    let assured = |port, ms| r.ask(&Counting { addr, tuple: tuple(1, port), assured: true }, &ct, at(ms));
    let ids = [1, 2, 3].map(|port| open(&ct, 1, port, at(60_000)));
    assert_eq!(assured(1, 0), Answer::No, "the first one");
    assert_eq!(assured(2, 5), Answer::No, "not counted");
    assert_eq!(ask(&r, &ct, 1, 3, 5), Answer::Yes);
    ct.remove(ids[0]);
    ct.remove(ids[2]);
    assert_eq!(assured(2, 10), Answer::No, "it is alone now");
    assert_eq!(r.save().groups[0].1, [tuple(1, 2)]);
}

#[test]
fn what_never_came_to_be_takes_no_memory_for_long() {
    let ct = table(4000);
    let r = rule(true, 1_000_000);
    for n in 0..100_000u32 {
        let answer = ask(&r, &ct, (n >> 8) as u8, n as u16, u64::from(n) / 50);
        assert_ne!(answer, Answer::Yes);
        assert!(r.lock().total <= 4000 && r.lock().groups.len() <= 4001, "{:?}", r.lock().total);
    }
    // The table's worth in a tick, and no more is taken.
    let answers: Vec<_> = (0..9000u32).map(|n| ask(&r, &ct, (n >> 8) as u8, n as u16, 9_000)).collect();
    assert!(answers.contains(&Answer::Broken) && r.lock().total <= 4000);
}

#[test]
fn what_was_counted_goes_on_where_it_stood() {
    let ct = table(1000);
    let r = rule(true, 2);
    for port in 1..=3 {
        open(&ct, 1, port, at(0) + Duration::from_secs(60));
        ask(&r, &ct, 1, port, 0);
    }
    let saved = r.save();
    let again = rule(true, 2);
    again.recall(&saved);
    assert_eq!(again.save(), saved);
    assert_eq!(ask(&again, &ct, 1, 3, 50), Answer::Yes);
    let state = |rules| ConnlimitState { families: [rules, Vec::new()] };
    assert!(state(vec![saved.clone()]).check(1000).is_ok() && state(vec![saved.clone()]).check(2).is_err());
    let mut wrong = saved.clone();
    wrong.groups[0].0.0[3] = 1;
    assert!(state(vec![wrong]).check(1000).is_err());
    let other = Counted::new(ConnlimitMatch { above: true, limit: 2, prefix: 24, dest: true }, rng::Key(3, 4));
    other.recall(&saved);
    assert!(other.save().groups.is_empty(), "another rule's");
}
