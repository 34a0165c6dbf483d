//! A hostile guest: ten times as many connections as fit.

use super::kit::*;
use crate::conntrack::{CtInfo, Track};
use crate::edge::{Token, TokenKind};
use crate::packet::L4;
use crate::skb::Skb;
use crate::tuple::proto;
use crate::verdict::DropReason;
use crate::wire::icmp;
use crate::wire::tcp::Flags;

const MAX: u32 = 4096;

/// Connections that were there before the flood: a quarter of the table.
const OLD: u32 = MAX / 4;

fn echo(n: u32) -> Skb<'static> {
    let mut skb = datagram(client(n), server());
    skb.protocol = proto::ICMP;
    skb.sport = n as u16;
    skb.dport = 0;
    skb.l4 = L4::Icmp(icmp::Header { ty: 8, code: 0, checksum: 0, rest: (n & 0xffff) << 16 });
    skb
}

/// Floods a table that has established connections, and checks that those live, that there are never more connections than
/// are allowed, and that new ones still get in.
fn flood(first: impl Fn(u32) -> Skb<'static>) {
    let ct = table(MAX);
    for n in 0..OLD {
        establish(&ct, secs(0), client(n), server());
    }
    let mut entered = 0;
    for n in 0..10 * MAX {
        // A minute in all: time-outs hardly help.
        let now = crate::Time::from_millis(u64::from(n) * 60_000 / u64::from(10 * MAX));
        match pass(&ct, now, first(100_000 + n)) {
            Ok(Track::Known { .. }) => entered += 1,
            other => assert_eq!(other, Err(DropReason::ConntrackFull)),
        }
        assert!(ct.len() <= MAX as usize);
        if let Some(due) = ct.reap_due().filter(|&d| d <= now) {
            ct.reap(due);
        }
    }
    assert!(entered > 9 * MAX, "{entered} of {} got in", 10 * MAX);
    assert!(ct.counters().early_drop > 0);
    assert!(ct.tables().unwrap().arena.used() <= MAX + 256);
    for n in 0..OLD {
        let data = segment(client(n), server(), Flags::ACK, 101, 501, 100);
        assert_eq!(known(&ct, secs(60), data).1, CtInfo::Established);
    }
    // When it is over, all that is left of it goes.
    reap_until(&ct, secs(60 + 120 + 61));
    assert_eq!(ct.len(), OLD as usize);
}

#[test]
fn syn_flood() {
    flood(|n| segment(client(n), server(), Flags::SYN, n, 0, 0));
}

#[test]
fn udp_flood() {
    flood(|n| datagram(client(n), server()));
}

#[test]
fn icmp_flood() {
    flood(echo);
}

/// What a live flow pins is never dropped early, answered or not; when nothing else is left, new ones are refused, and counted.
#[test]
fn pinned_connections_survive_a_flood() {
    let ct = table(64);
    let ids: Vec<_> = (0..64).map(|n| known(&ct, secs(0), segment(client(n), server(), Flags::SYN, 1, 0, 0)).0).collect();
    for (n, &id) in ids.iter().enumerate() {
        assert!(ct.pin(id, Token::new(TokenKind::Tcp, n as u32, 1)));
    }
    for n in 0..640 {
        assert_eq!(pass(&ct, secs(1), datagram(client(1000 + n), server())), Err(DropReason::ConntrackFull));
    }
    assert_eq!((ct.counters().drop, ct.counters().early_drop), (640, 0));
    // Nor do they time out.
    reap_until(&ct, secs(1000));
    assert!(ids.iter().all(|&id| ct.get(id).is_some()));
    assert_eq!(
        conn_of(&ct, secs(1000), &segment(server(), client(3), Flags::ACK, 1, 1, 0)).map(|c| c.0.flow.is_some()),
        Some(true)
    );
    // When their flows end they age from their last packet on.
    ids.iter().for_each(|&id| ct.unpin(secs(1000), id));
    reap_until(&ct, secs(1061));
    assert!(ct.is_empty());
    let mut closed = Vec::new();
    ct.take_closed(0, &mut closed);
    assert_eq!(closed, []);
}

/// A table full of connections that timed out takes new ones at once, wherever the old ones are.
#[test]
fn expired_connections_keep_nobody_out() {
    let ct = table(512);
    for n in 0..512 {
        establish(&ct, secs(0), client(n), server());
    }
    for n in 0..512 {
        ct.modify(conn_id(&ct, n), |c| c.expires = secs(10)).unwrap();
    }
    for n in 0..512 {
        establish(&ct, secs(20), client(1000 + n), server());
    }
    assert_eq!((ct.len(), ct.counters().early_drop, ct.counters().drop), (512, 0, 0));
}

fn conn_id(ct: &crate::conntrack::Conntrack, n: u32) -> crate::conntrack::ConnId {
    let t = crate::conntrack::tuple::of(&segment(client(n), server(), Flags::ACK, 1, 1, 0)).unwrap();
    ct.find(secs(0), &t).unwrap().0
}

/// At 95 % and pressed, the reaper makes room: closing connections go, established ones stay.
#[test]
fn the_reaper_makes_room_in_a_table_that_is_pressed() {
    let ct = table(1000);
    for n in 0..1000 {
        establish(&ct, secs(0), client(n), server());
        if n % 2 == 0 {
            known(&ct, secs(0), segment(client(n), server(), Flags::FIN | Flags::ACK, 101, 501, 0));
        }
    }
    reap_until(&ct, secs(6));
    assert_eq!(ct.len(), 1000);
    assert_eq!(pass(&ct, secs(6), datagram(client(5000), server())), Err(DropReason::ConntrackFull));
    assert_eq!(ct.reap_due(), Some(crate::Time::from_millis(6010)));
    reap_until(&ct, secs(9));
    assert_eq!(ct.len(), 949, "no further than just below 95 %");
    known(&ct, secs(9), datagram(client(5000), server()));
    for n in (1..1000).step_by(2) {
        assert!(conn_of(&ct, secs(9), &segment(client(n), server(), Flags::ACK, 101, 501, 0)).is_some());
    }
}

/// Flows hear of their connection's end, whatever the reason: they are to be closed.
#[test]
fn flows_hear_when_their_connection_goes() {
    let ct = table(16);
    let token = |n: u32| Token::new(TokenKind::Udp, n, 1);
    let ids: Vec<_> = (0..4).map(|n| known(&ct, secs(u64::from(n)), datagram(client(n), server())).0).collect();
    for (n, &id) in ids.iter().enumerate() {
        assert!(ct.pin(id, token(n as u32)));
    }
    let closed = || {
        let mut out = Vec::new();
        ct.take_closed(0, &mut out);
        out
    };
    // A datagram's flow does not keep its connection.
    reap_until(&ct, crate::Time::from_millis(30_500));
    assert!(conn_of(&ct, crate::Time::from_millis(30_500), &datagram(client(0), server())).is_none());
    assert_eq!(closed(), [token(0)]);
    ct.remove(ids[1]);
    assert_eq!((closed(), closed()), (vec![token(1)], vec![]));
    assert_eq!(ct.remove_if(crate::Time::from_millis(30_500), |c| c.tuples[0].sport == client(2).port), 1);
    assert_eq!(ct.flush(), 1);
    assert_eq!(closed(), [token(2), token(3)]);
    assert!(!ct.pin(ids[3], token(3)));
}

/// Someone who knew the key would get no further than 80 connections in a bucket; those that timed out do not count.
#[test]
fn chains_are_limited() {
    let ct = table(256);
    let bucket_of = |skb: &Skb<'_>| ct.bucket_of(ct.hash(&crate::conntrack::tuple::of(skb).unwrap()) as u32);
    let mut same = (0..).map(|n| datagram(client(n), server())).filter(|skb| bucket_of(skb) == 0);
    let mut entered = 0;
    while let Ok(track) = pass(&ct, secs(0), same.next().unwrap()) {
        assert!(matches!(track, Track::Known { .. }));
        entered += 1;
        assert!(entered < 100);
    }
    assert!(entered >= 45, "{entered}, besides the replies that happen to be there");
    assert_eq!((ct.counters().chaintoolong, ct.len()), (1, entered));
    known(&ct, secs(31), same.next().unwrap());
    assert_eq!(ct.counters().chaintoolong, 1);
}
