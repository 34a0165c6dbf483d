//! What holds for any input.

use crate::kit::*;
use hibernet_netstack::conntrack::tcp::{SegKind, TcpSide, TcpState, TcpTrack};
use hibernet_netstack::conntrack::{Dir, Proto, Quote, Status};
use proptest::prelude::*;

/// A segment by its place relative to what its sender and the other end sent first.
#[derive(Clone, Debug)]
struct Step {
    client: bool,
    flags: &'static str,
    seq: u32,
    ack: u32,
    win: u16,
    len: u32,
}

fn step() -> impl Strategy<Value = Step> {
    let near =
        || prop_oneof![8 => 0..4000u32, 1 => 60_000..70_000u32, 1 => any::<u32>(), 1 => (1..3000u32).prop_map(u32::wrapping_neg)];
    let flags = prop::sample::select(vec!["A", "A", "PA", "FA", "S", "SA", "RA", "R"]);
    let win = prop_oneof![Just(0u16), Just(1000), any::<u16>()];
    (any::<bool>(), flags, near(), near(), win, prop_oneof![Just(0u32), 1..3000u32])
        .prop_map(|(client, flags, seq, ack, win, len)| Step { client, flags, seq, ack, win, len })
}

/// What becomes of segments after a handshake with these first sequence numbers; `None` if one of them is the zero that
/// has a meaning in resets.
fn run(isn: [u32; 2], steps: &[Step]) -> Option<Vec<(State, Option<TcpState>, u64)>> {
    let mut t = Tracker::default();
    t.tcp(c("S", isn[0], 0).scale(1).sack_permitted());
    t.tcp(s("SA", isn[1], isn[0].wrapping_add(1)).scale(2).sack_permitted());
    t.tcp(c("A", isn[0].wrapping_add(1), isn[1].wrapping_add(1)));
    let mut seen = Vec::new();
    for step in steps {
        let (dir, own, other) = if step.client { (Dir::Original, isn[0], isn[1]) } else { (Dir::Reply, isn[1], isn[0]) };
        let (seq, ack) = (own.wrapping_add(step.seq), other.wrapping_add(step.ack));
        if seq == 0 || ack == 0 {
            return None;
        }
        let ack = if step.flags.contains('A') { ack } else { 1 };
        let state = t.tcp(seg(dir, step.flags, seq, ack).win(step.win).len(step.len));
        seen.push((state, t.state(), t.left()));
        // Another connection begins: of its other end nothing is known yet, and what it acknowledges is taken as it is.
        if state == New || !matches!(t.state(), Some(s) if s != TcpState::SynSent) {
            break;
        }
    }
    Some(seen)
}

fn any_side() -> impl Strategy<Value = TcpSide> {
    (any::<[u32; 4]>(), 0..=14u8, any::<u8>()).prop_map(|([end, max_end, max_win, max_ack], scale, flags)| TcpSide {
        end,
        max_end,
        max_win,
        max_ack,
        scale,
        flags: flags & 0x3f,
    })
}

fn any_track() -> impl Strategy<Value = TcpTrack> {
    let kinds = [SegKind::Syn, SegKind::SynAck, SegKind::Fin, SegKind::Ack, SegKind::Rst, SegKind::None];
    let small = (1..10usize, any::<bool>(), 0..6usize, any::<[u8; 3]>());
    (any_side(), any_side(), small, any::<[u32; 3]>(), any::<u16>()).prop_map(
        move |(a, b, (state, reply, kind, bytes), last, last_win)| TcpTrack {
            sides: [a, b],
            state: TcpState::ALL[state],
            last_dir: if reply { Dir::Reply } else { Dir::Original },
            last_kind: kinds[kind],
            retrans: bytes[0],
            last_seq: last[0],
            last_ack: last[1],
            last_end: last[2],
            last_win,
            noted_scale: bytes[1] % 15,
            notes: bytes[2],
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Only differences of sequence numbers count.
    #[test]
    fn where_sequence_numbers_begin_does_not_matter(
        steps in prop::collection::vec(step(), 1..20),
        a in any::<[u32; 2]>(),
        b in prop_oneof![any::<[u32; 2]>(), (0..3000u32, 0..3000u32).prop_map(|(x, y)| [x.wrapping_neg(), y.wrapping_neg()])],
    ) {
        if let (Some(one), Some(other)) = (run(a, &steps), run(b, &steps)) {
            prop_assert_eq!(one, other);
        }
    }

    /// Any segment in any state, be it one that a hostile image holds.
    #[test]
    fn no_segment_and_no_state_panics(
        track in any_track(),
        status in any::<u16>(),
        segments in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 16), 0..64u8, 5..16usize, any::<u32>()), 1..6),
    ) {
        let mut t = Tracker::established();
        if let Some(conn) = &mut t.conn {
            conn.status = Status(status);
            conn.proto = Proto::Tcp(track);
        }
        for (client, bytes, flags, words, more) in segments {
            let mut b = if client { c("A", 0, 0).bytes() } else { s("A", 0, 0).bytes() };
            b.l4[4..12].copy_from_slice(&bytes[..8]);
            b.l4[13] = flags;
            b.l4[14..16].copy_from_slice(&bytes[8..10]);
            b.l4.extend(bytes.iter().cycle().take(words * 4 - 20));
            b.l4[12] = (words as u8) << 4;
            b.more = more >> 15;
            t.packet(&b);
        }
    }

    /// Any bytes as a packet, also as what an error quotes.
    #[test]
    fn no_bytes_panic(
        protocol in prop_oneof![Just(1u8), Just(6), Just(17), Just(58), any::<u8>()],
        v6 in any::<bool>(),
        ty in prop_oneof![Just(3u8), Just(1), Just(8), Just(128), any::<u8>()],
        mut bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(vec![0u8, 1, 6, 17, 43, 44, 51, 58, 60, 0x45, 0x60])], 0..200),
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = ty;
        }
        let (src, dst) = if v6 { ("fd01::2", "fd02::2") } else { (CLIENT, SERVER) };
        let b = Bytes::new(src, dst, protocol, bytes);
        let mut t = Tracker::default();
        t.packet(&b);
        t.packet(&b);
        if let Ok(quote) = Quote::of(&b.skb()) {
            prop_assert!(quote.l4_at <= b.l4.len());
        }
    }
}
