//! Matches that look at the packet alone, and targets that change it, at random.

use crate::generate::{inv, ordered, tested_ports};
use hibernet_netstack::iptables::{
    Alter, ChunkRule, EcnMatch, ExtMatch, Family, FieldMatch, FragMatch, HopChange, HopTest, Inv, Match, NflogTarget,
    OptionsMatch, RouteMatch, RpFilter, SctpChunks, SctpMatch, StringMatch, Target, TimeMatch, U32Step, U32Test,
};
use hibernet_netstack::skb::Cast;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// A range that is not everything, unless inverted.
fn spi() -> impl Strategy<Value = Option<Inv<(u32, u32)>>> {
    option::of(inv(ordered(any::<u32>()))).prop_map(|r| r.filter(|r| r.not || r.value != (0, u32::MAX)))
}

fn field(family: Family) -> impl Strategy<Value = FieldMatch> {
    let cast = prop_oneof![Just(Cast::Unicast), Just(Cast::Broadcast), Just(Cast::Multicast), Just(Cast::OtherHost)];
    let hop = any::<(u8, u8)>().prop_map(|(how, n)| match how % 4 {
        0 => HopTest::Is(n),
        1 => HopTest::IsNot(n),
        2 => HopTest::Below(n),
        _ => HopTest::Above(n),
    });
    let ecn = (option::of(any::<bool>()), option::of(any::<bool>()), inv(0u8..4)).prop_map(|(ece, cwr, ect)| EcnMatch {
        ece,
        cwr,
        ect: Some(ect),
    });
    prop_oneof![
        inv(cast).prop_map(FieldMatch::Pkttype),
        hop.prop_map(FieldMatch::HopLimit),
        inv(any::<(u16, u16)>()).prop_map(FieldMatch::Length),
        inv(any::<(u8, u8)>()).prop_map(FieldMatch::Tos),
        inv(0u8..64).prop_map(FieldMatch::Dscp),
        ecn.prop_map(FieldMatch::Ecn),
        inv(ordered(any::<u16>())).prop_map(FieldMatch::TcpMss),
        spi().prop_map(FieldMatch::Esp),
        spi().prop_map(FieldMatch::Ipcomp),
        spi().prop_map(move |r| if family == Family::V4 { FieldMatch::Ah(r) } else { FieldMatch::Esp(r) }),
    ]
}

fn sctp() -> impl Strategy<Value = Match> {
    let how = prop_oneof![Just(ChunkRule::Any), Just(ChunkRule::All), Just(ChunkRule::Only)];
    let types = prop::sample::subsequence(vec![0u8, 1, 3, 6, 14, 64, 128, 194], 1..=8);
    let chunks = (how, types, any::<(u8, u8)>()).prop_map(|(how, types, (mask, set))| {
        let mut chunks = SctpChunks { how, types: [0; 4], flags: Vec::new() };
        types.iter().for_each(|ty| chunks.add(*ty));
        let mask = mask & 7;
        if types.contains(&0) && mask != 0 {
            chunks.flags.push((0, mask, set & mask));
        }
        chunks
    });
    (tested_ports(), tested_ports(), option::of(inv(chunks)))
        .prop_map(|(sport, dport, chunks)| Match::Sctp(Box::new(SctpMatch { sport, dport, chunks })))
}

fn time() -> impl Strategy<Value = Match> {
    let head = (any::<(u32, u32)>(), 0u32..86_400, 0u32..86_400);
    (head, 1u32.., 1u8.., any::<bool>()).prop_map(|((dates, start, stop), monthdays, weekdays, contiguous)| {
        Match::Time(Box::new(TimeMatch {
            dates: (dates.0 & TimeMatch::LAST_DATE, dates.1 & TimeMatch::LAST_DATE),
            day: (start, stop),
            monthdays: monthdays & TimeMatch::ALL_MONTHDAYS | 2,
            weekdays: weekdays & TimeMatch::ALL_WEEKDAYS | 2,
            contiguous: contiguous && start >= stop,
        }))
    })
}

fn u32_test() -> impl Strategy<Value = U32Test> {
    let step = (any::<u8>(), any::<u32>()).prop_map(|(how, n)| match how % 4 {
        0 => U32Step::And(n),
        1 => U32Step::Left(n % 32),
        2 => U32Step::Right(n % 32),
        _ => U32Step::At(n),
    });
    (any::<u32>(), vec(step, 0..9), vec(any::<(u32, u32)>(), 1..=10)).prop_map(|(start, steps, values)| U32Test {
        start,
        steps,
        values,
    })
}

fn string() -> impl Strategy<Value = Match> {
    let pattern = prop_oneof![vec(any::<u8>(), 1..=128), "[ -~]{1,128}".prop_map(String::into_bytes)];
    (any::<[bool; 3]>(), pattern, ordered(any::<u16>()))
        .prop_map(|([not, kmp, icase], pattern, span)| Match::String(Box::new(StringMatch { not, pattern, kmp, icase, span })))
}

fn extension() -> impl Strategy<Value = ExtMatch> {
    let number = || option::of(inv(any::<u32>()));
    let flags = any::<[bool; 3]>;
    let options = vec((any::<u8>(), option::of(0u8..255)), 0..=16);
    let route = (number(), spi(), number(), vec(any::<u128>(), 0..=16), flags()).prop_map(
        |(ty, left, len, addrs, [zero, reserved, loose])| {
            let addrs: Vec<_> = if zero { addrs.into_iter().map(Into::into).collect() } else { Vec::new() };
            RouteMatch {
                ty: if zero { Some(Inv { not: false, value: 0 }) } else { ty },
                left,
                len,
                reserved: zero && reserved,
                not_strict: loose && !addrs.is_empty(),
                addrs,
            }
        },
    );
    prop_oneof![
        (spi(), number(), any::<bool>()).prop_map(|(spi, len, reserved)| ExtMatch::Ah { spi, len, reserved }),
        (spi(), number(), flags(), option::of(any::<bool>()))
            .prop_map(|(id, len, [reserved, first, _], more)| ExtMatch::Frag(FragMatch { id, len, reserved, first, more })),
        (any::<bool>(), number(), options).prop_map(|(dest, len, options)| ExtMatch::Options(OptionsMatch {
            dest,
            len,
            options
        })),
        route.prop_map(ExtMatch::Route),
        (inv(1u8..), any::<bool>()).prop_map(|(bits, soft)| ExtMatch::Headers { bits, soft }),
        Just(ExtMatch::Eui64),
        option::of(inv(ordered(any::<u8>()))).prop_map(|t| ExtMatch::Mobility(t.filter(|t| t.not || t.value != (0, u8::MAX)))),
    ]
}

/// Any of them.
pub fn any_match(family: Family) -> BoxedStrategy<Match> {
    let rpfilter = any::<[bool; 4]>().prop_map(|[loose, valid_mark, accept_local, invert]| {
        Match::Rpfilter(RpFilter { loose, valid_mark, accept_local, invert })
    });
    let both = prop_oneof![
        2 => field(family).prop_map(Match::Field),
        1 => sctp(),
        1 => time(),
        1 => rpfilter,
        1 => string(),
        1 => inv(vec(u32_test(), 1..=10)).prop_map(Match::U32),
    ];
    match family {
        Family::V4 => both.boxed(),
        Family::V6 => prop_oneof![3 => both, 1 => extension().prop_map(|m| Match::Extension(Box::new(m)))].boxed(),
    }
}

/// Any target of them.
pub fn any_target() -> BoxedStrategy<Target> {
    let alter = prop_oneof![
        any::<u8>().prop_map(|n| Alter::HopLimit(HopChange::Set(n))),
        (1u8..).prop_map(|n| Alter::HopLimit(HopChange::Add(n))),
        (1u8..).prop_map(|n| Alter::HopLimit(HopChange::Subtract(n))),
        any::<(u8, u8)>().prop_map(|(value, mask)| Alter::Tos { value, mask }),
        (0u8..64).prop_map(Alter::Dscp),
        option::of(0u16..u16::MAX).prop_map(Alter::Mss),
        Just(Alter::Checksum),
    ];
    let nflog = ("[ -~]{0,63}", any::<(u16, u32, u16)>(), option::of(any::<u32>())).prop_map(
        |(prefix, (group, range, threshold), size)| {
            let range = if size.is_some() { 0 } else { range };
            Target::Nflog(Box::new(NflogTarget { prefix, group, range, size, threshold }))
        },
    );
    prop_oneof![4 => alter.prop_map(Target::Alter), 1 => nflog, 1 => Just(Target::Trace)].boxed()
}
