//! Segments by chance, near what they should be.

use super::{flags, send};
use crate::STATES;
use hibernet_tests::SplitMix;
use hibernet_tests::netfilter::{Scenario, Tcp};

/// What one end knows.
struct End {
    /// First number, next number, and numbers that mattered before.
    first: u32,
    next: u32,
    before: Vec<u32>,
    window: u16,
}

impl End {
    fn new(r: &mut SplitMix) -> End {
        let first = [r.u64() as u32, 0xffff_fff0, 0x7fff_fff0, 0][r.below(4) as usize];
        End { first, next: first, before: vec![first], window: pick(r, &[0, 1, 100, 1000, 5000, 65_535]) }
    }
}

fn pick<T: Copy>(r: &mut SplitMix, of: &[T]) -> T {
    of[r.below(of.len() as u64) as usize]
}

/// How most connections begin, so that the rest meets them in every state.
const BEGINNINGS: [&[(bool, &str)]; 5] = [
    &[(true, "S"), (false, "SA"), (true, "A")],
    &[(true, "S"), (false, "S"), (true, "SA"), (false, "A")],
    &[(true, "A"), (false, "A")],
    &[(true, "S"), (false, "SA"), (true, "A"), (true, "FA"), (false, "A"), (false, "FA"), (true, "A")],
    &[],
];

/// Connections whose segments are near what they should be, or at the edges of the windows, or anywhere.
pub(super) fn by_chance(name: &str, seed: u64, connections: u16, settings: &[(&'static str, u32)]) -> Scenario {
    let mut s = Scenario::new(name, seed.is_multiple_of(4), STATES);
    s.settings = settings.to_vec();
    let mut r = SplitMix::new(seed).fork();
    for port in 0..connections {
        let mut ends = [End::new(&mut r), End::new(&mut r)];
        let beginning = pick(&mut r, &[0, 0, 0, 0, 1, 2, 3, 4]);
        for i in 0..r.range(3, 24) as usize {
            let any = ["A", "A", "A", "PA", "PA", "FA", "FA", "S", "S", "SA", "R", "R", "RA", "AU", "SEC", "F", "SF"];
            let (client, kind) = match BEGINNINGS[beginning].get(i) {
                Some(&step) if r.chance(92) => step,
                _ => (r.chance(50), pick(&mut r, &any)),
            };
            let t = near(&mut r, &mut ends, client, flags(kind));
            send(&mut s, client, 30_000 + port, t);
        }
        if port % 16 == 15 {
            s.check();
        }
    }
    s
}

fn near(r: &mut SplitMix, ends: &mut [End; 2], client: bool, flags: u8) -> Tcp {
    let [me, peer] = if client { [0, 1] } else { [1, 0] };
    let is_syn = flags & 2 != 0;
    let data = match r.below(100) {
        0..40 if !is_syn => pick(r, &[1, 1, 10, 100, 1000, 1400]),
        0..3 => 5,
        _ => 0,
    };
    let by = |r: &mut SplitMix, end: &End, other: u16| {
        let w = u32::from(other);
        let steps = [1, 2, 10, 100, w, w + 1, w.wrapping_sub(1), w << 7, 66_000, 66_001, 66_002, 1 << 31];
        let step = pick(r, &steps);
        end.next.wrapping_add(if r.chance(50) { step } else { step.wrapping_neg() })
    };
    let seq = match r.below(100) {
        _ if is_syn && r.chance(70) => ends[me].first,
        0..65 => ends[me].next,
        65..78 => pick(r, &ends[me].before),
        78..82 => 0,
        82..96 => by(r, &ends[me], ends[peer].window),
        _ => r.u64() as u32,
    };
    let ack = match r.below(100) {
        _ if flags & 0x10 == 0 && r.chance(80) => 0,
        0..65 => ends[peer].next,
        65..75 => pick(r, &ends[peer].before),
        75..78 => 0,
        78..93 => by(r, &ends[peer], ends[me].window),
        _ => r.u64() as u32,
    };
    let window = if r.chance(70) { ends[me].window } else { pick(r, &[0, 1, 2, 100, 65_535]) };
    let mut options = Vec::new();
    if is_syn {
        if r.chance(60) {
            options.extend([3, 3, pick(r, &[0, 1, 2, 7, 14, 15, 20]), 1]);
        }
        if r.chance(60) {
            options.extend([4, 2, 1, 1]);
        }
    } else if flags & 0x10 != 0 && r.chance(25) {
        if r.chance(40) {
            options.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        }
        let blocks = r.range(1, 3) as u8;
        options.extend([1, 1, 5, 2 + 8 * blocks]);
        for _ in 0..blocks {
            let right = ends[peer].next.wrapping_add(pick(r, &[0, 0, 1, 10, 100]));
            options.extend(right.wrapping_sub(10).to_be_bytes());
            options.extend(right.to_be_bytes());
        }
    }
    let end = seq.wrapping_add(data as u32 + u32::from(is_syn) + u32::from(flags & 1));
    if is_syn || r.chance(85) && end.wrapping_sub(ends[me].next) < 1 << 17 {
        ends[me].next = end;
        ends[me].before.push(end);
    }
    Tcp { seq, ack, flags, window, options, data }
}
