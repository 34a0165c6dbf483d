//! A table goes on, and so does one that was made of its image: nobody can tell them apart.

use super::kit::*;
use crate::Time;
use crate::conntrack::image::{COUNTS, Capture, Family, record_size};
use crate::conntrack::tests::kit::{client, datagram, secs, segment, server};
use crate::conntrack::{Conntrack, CtConfig, CtInfo, Status, Track, tuple};
use crate::edge::{Token, TokenKind};
use crate::rng::Key;
use crate::skb::Skb;
use crate::wire::tcp::Flags;
use core::time::Duration;
use proptest::prelude::*;

/// Clients; those whose number divides by three are translated, every other one speaks TCP.
const NAMES: u32 = 30;
const MAX: u32 = 128;

#[derive(Clone, Debug)]
enum Op {
    Packet(u32, bool, u8),
    Remove(u32),
    Pin(u32),
    Unpin(u32),
    Mark(u32, u32),
    Wait(u64),
    Reap,
    Quiesce,
    Restart,
    Flush,
    /// A capture: goes on, is finished, or is thrown away.
    Step(u32),
    Finish,
    Abort,
    /// A new twin.
    Restore(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let name = || 0..NAMES;
    prop_oneof![
        24 => (name(), any::<bool>(), any::<u8>()).prop_map(|(n, back, how)| Op::Packet(n, back, how)),
        2 => name().prop_map(Op::Remove),
        1 => name().prop_map(Op::Pin),
        1 => name().prop_map(Op::Unpin),
        1 => (name(), any::<u32>()).prop_map(|(n, mark)| Op::Mark(n, mark)),
        6 => (1_u64..20_000).prop_map(Op::Wait),
        6 => (1_u64..400).prop_map(Op::Wait),
        4 => Just(Op::Reap),
        1 => Just(Op::Quiesce),
        1 => Just(Op::Restart),
        1 => Just(Op::Flush),
        6 => (1_u32..60).prop_map(Op::Step),
        2 => Just(Op::Finish),
        1 => Just(Op::Abort),
        2 => any::<u64>().prop_map(Op::Restore),
    ]
}

fn packet(n: u32, back: bool, how: u8) -> Skb<'static> {
    let (a, b) = if back { (server(), client(n)) } else { (client(n), server()) };
    if n.is_multiple_of(2) {
        return datagram(a, b);
    }
    let flags = [Flags::SYN, Flags::SYN | Flags::ACK, Flags::ACK, Flags::ACK | Flags::PSH, Flags::FIN | Flags::ACK, Flags::RST];
    segment(a, b, flags[usize::from(how % 6)], 100 + u32::from(how / 64), 101 + u32::from(how / 64), u32::from(how / 32 % 2) * 10)
}

/// What becomes of a packet: how it belongs to its connection, and what that says of it.
fn play(ct: &Conntrack, now: Time, n: u32, skb: &Skb<'static>) -> Result<Option<(CtInfo, Status)>, crate::verdict::DropReason> {
    let mut skb = skb.clone();
    ct.track(now, &mut skb)?;
    if let (Track::Fresh { conn, .. }, 0) = (&mut skb.track, n % 3) {
        conn.tuples[1].dport = 50_000 + n as u16;
        conn.status.set(Status::SRC_NAT);
        conn.status.set(Status::SRC_NAT_DONE);
    }
    // Nothing is left to translate if the other end began.
    if let Track::Fresh { conn, .. } = &mut skb.track
        && conn.tuples[1].dport == conn.tuples[0].sport
    {
        conn.status.clear(Status::SRC_NAT);
    }
    ct.confirm(now, &mut skb)?;
    Ok(match skb.track {
        Track::Known { info, status, .. } => Some((info, status)),
        _ => None,
    })
}

/// Records of connections that live, without slot and generation, and what was counted. When one goes that lives no longer depends on the key.
fn canonical(ct: &Conntrack, now: Time) -> (Vec<Vec<u8>>, u64, u64, u64) {
    let saved = Saved::of(ct);
    let lives = |r: &[u8]| {
        let word = |at: usize| u64::from_le_bytes(r[at..at + 8].try_into().unwrap());
        let pinned = Token::from_bits(word(16)).is_some_and(|t| t.kind() == TokenKind::Tcp);
        word(8) > now.as_nanos() || pinned
    };
    let records = |bytes: &[u8], family| bytes.chunks(record_size(family)).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut all = records(&saved.v4, Family::V4);
    all.append(&mut records(&saved.v6, Family::V6));
    all.retain(|r| lives(r));
    for r in &mut all {
        let counts = saved.counts.iter().flat_map(|c| c.chunks(COUNTS)).find(|c| c[..8] == r[..8]).map(|c| c[8..].to_vec());
        r.extend(counts.unwrap_or_default());
        r[..8].fill(0);
    }
    all.sort();
    let c = saved.head.counters;
    (all, c.insert, c.invalid, c.drop)
}

/// Whether an image differs from another only in lives that are less than a second longer there.
fn close(live: &Saved, exact: &Saved) -> bool {
    let same = |a: &[u8], b: &[u8]| {
        let expires = |r: &[u8]| u64::from_le_bytes(r[8..16].try_into().unwrap());
        a[..8] == b[..8] && a[16..] == b[16..] && (expires(a)..expires(a) + 1_000_000_000).contains(&expires(b))
    };
    let all = |a: &[u8], b: &[u8], family| {
        let size = record_size(family);
        a.len() == b.len() && a.chunks(size).zip(b.chunks(size)).all(|(a, b)| same(a, b))
    };
    live.counts == exact.counts
        && live.head == exact.head
        && all(&live.v4, &exact.v4, Family::V4)
        && all(&live.v6, &exact.v6, Family::V6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_restored_table_goes_on_as_the_other(ops in prop::collection::vec(op(), 1..200), counting in any::<bool>()) {
        let cfg = CtConfig { max: MAX, ..CtConfig::default() };
        let a = Conntrack::new(cfg.clone(), Key(1, 2));
        let mut b = Conntrack::new(cfg.clone(), Key(3, 4));
        if counting {
            a.account();
            b.account();
        }
        let mut now = secs(10);
        let mut capture = Capture::begin(&a);
        for op in ops {
            let both = [&a, &b];
            let compare = matches!(op, Op::Wait(ms) if ms > 10_000);
            let find = |ct: &Conntrack, n| ct.find(now, &tuple::of(&packet(n, false, 0)).unwrap()).map(|(id, _)| id);
            match op {
                Op::Packet(n, back, how) => {
                    let skb = packet(n, back, how);
                    prop_assert_eq!(play(&a, now, n, &skb), play(&b, now, n, &skb));
                }
                Op::Remove(n) => {
                    let [a, b] = both.map(|ct| find(ct, n).and_then(|id| ct.remove(id)));
                    prop_assert_eq!(a, b);
                }
                Op::Pin(n) => both.iter().for_each(|ct| {
                    let kind = if n.is_multiple_of(2) { TokenKind::Udp } else { TokenKind::Tcp };
                    find(ct, n).map(|id| ct.pin(id, Token::new(kind, n, 0)));
                }),
                Op::Unpin(n) => both.iter().for_each(|ct| {
                    if let Some(id) = find(ct, n) {
                        ct.unpin(now, id);
                    }
                }),
                Op::Mark(n, mark) => both.iter().for_each(|ct| {
                    find(ct, n).map(|id| ct.modify(id, |c| c.mark = mark));
                }),
                Op::Wait(ms) => now = now + Duration::from_millis(ms),
                Op::Reap => both.iter().for_each(|ct| {
                    ct.reap(now);
                }),
                Op::Quiesce => both.iter().for_each(|ct| ct.quiesce()),
                Op::Restart => both.iter().for_each(|ct| ct.restart(now)),
                Op::Flush => both.iter().for_each(|ct| {
                    ct.flush();
                }),
                Op::Step(slots) => drop(capture.step(&a, slots).unwrap()),
                Op::Finish => {
                    let live = Saved::from(&capture.finish(&a).unwrap());
                    prop_assert!(close(&live, &Saved::of(&a)));
                    prop_assert!(live.load_at(MAX, Key(9, 9), now).is_ok());
                    capture = Capture::begin(&a);
                }
                Op::Abort => capture = Capture::begin(&a),
                Op::Restore(key) => {
                    // The reaper of a table that was loaded runs.
                    a.restart(now);
                    let saved = Saved::of(&a);
                    b = saved.load_at(MAX, Key(key, 5), now).unwrap();
                    prop_assert!(Saved::of(&b) == saved);
                    capture = Capture::begin(&a);
                }
            }
            // Saving ends a capture that is on its way, so it is not done all the time.
            if compare {
                prop_assert!(canonical(&a, now) == canonical(&b, now));
                capture = Capture::begin(&a);
            }
        }
        prop_assert!(canonical(&a, now) == canonical(&b, now));
    }
}

#[test]
fn a_later_capture_is_the_one_that_hears() {
    let ct = Conntrack::new(CtConfig { max: MAX, ..CtConfig::default() }, Key(1, 2));
    let mut first = Capture::begin(&ct);
    assert!(first.step(&ct, 1).is_ok());
    let second = Capture::begin(&ct);
    assert!(first.step(&ct, 1).is_err() && first.finish(&ct).is_err());
    assert!(second.finish(&ct).is_ok());
}
