//! Fragments from the guest: put together whatever their order, thrown away where they do not fit, and bounded.

use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::config::Limits;
use hibernet_netstack::{Config, DropReason};
use hibernet_tests::wire::{self, GUEST_MAC, Ip};
use hibernet_tests::{SlotKind, World};
use proptest::prelude::*;

const UDP: u8 = 17;
const REMOTES: [&str; 2] = ["198.51.100.7", "2001:db8:7::7"];

fn ip(a: &str) -> IpAddr {
    a.parse().unwrap()
}

fn world() -> World {
    World::new(Config::default())
}

fn limited(limits: Limits) -> World {
    World::new(Config { limits, ..Config::default() })
}

fn header(w: &World, to: IpAddr) -> Ip {
    Ip { ident: 77, ..Ip::new(w.guest_addr(to), to) }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 256) as u8).collect()
}

fn inject(w: &mut World, h: &Ip, packet: &[u8]) {
    let frame = wire::ethernet(w.gateway_mac(), GUEST_MAC, h.ethertype(), packet);
    w.inject(&frame);
}

/// A piece of a datagram, by offset and length.
fn piece(w: &mut World, h: &Ip, datagram: &[u8], at: usize, len: usize) {
    let packet = h.fragment(UDP, &datagram[at..at + len], at as u16, at + len < datagram.len());
    inject(w, h, &packet);
}

fn datagram(h: &Ip, data: &[u8]) -> Vec<u8> {
    wire::udp(h.src, h.dst, 1000, 2000, data)
}

/// Data of the datagrams that reached the host, over all sockets.
fn arrived(w: &mut World) -> Vec<Vec<u8>> {
    let socks = w.edge.host.udp_sockets();
    socks.into_iter().flat_map(|s| core::mem::take(&mut w.edge.host.udp(s).sent)).map(|s| s.data).collect()
}

/// Nothing is held any more: no timer, no payload.
fn assert_nothing_held(w: &mut World) {
    assert_eq!(w.edge.pool.live(SlotKind::Stash), 0);
    w.run(Duration::from_secs(61));
    assert_eq!(w.next_deadline(), None);
}

#[derive(Clone, Debug)]
struct Split {
    v6: bool,
    len: usize,
    /// Where it is cut, in units of eight bytes.
    cuts: Vec<usize>,
    /// Order in which the pieces come: indices to be taken modulo those left; every piece at least once.
    order: Vec<prop::sample::Index>,
    /// Pieces that come again, after so many others.
    again: Vec<(prop::sample::Index, prop::sample::Index)>,
}

fn split() -> impl Strategy<Value = Split> {
    let cuts = prop::collection::vec(1usize..8190, 1..30);
    let order = prop::collection::vec(any::<prop::sample::Index>(), 40);
    let again = prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 0..6);
    (any::<bool>(), 16usize..65_500, cuts, order, again).prop_map(|(v6, len, cuts, order, again)| Split {
        v6,
        len,
        cuts,
        order,
        again,
    })
}

impl Split {
    /// Offset and length of the pieces, in the order in which they come.
    fn pieces(&self, total: usize) -> Vec<(usize, usize)> {
        let mut at: Vec<usize> = self.cuts.iter().map(|c| c * 8 % total / 8 * 8).chain([0, total]).collect();
        at.sort_unstable();
        at.dedup();
        let mut left: Vec<_> = at.windows(2).map(|w| (w[0], w[1] - w[0])).collect();
        let mut out = Vec::new();
        for i in &self.order {
            if !left.is_empty() {
                out.push(left.swap_remove(i.index(left.len())));
            }
        }
        out
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_split_in_any_order_with_duplicates_gives_the_datagram(splits in prop::collection::vec(split(), 1..4)) {
        let mut w = world();
        // Several datagrams at once, their pieces interleaved.
        let mut queues = Vec::new();
        let (mut want, mut cut) = (Vec::new(), 0);
        for (n, s) in splits.iter().enumerate() {
            let h = Ip { ident: n as u32, ..header(&w, ip(REMOTES[usize::from(s.v6)])) };
            let data = bytes(s.len);
            let whole = datagram(&h, &data);
            let mut pieces = s.pieces(whole.len());
            cut += u64::from(pieces.len() > 1);
            for (which, later) in s.again.iter().take(pieces.len() - 1) {
                // Not the last one, and not behind it: that would begin a datagram of its own.
                let from = which.index(pieces.len() - 1);
                let to = from + later.index(pieces.len() - from);
                pieces.insert(to, pieces[from]);
            }
            queues.push((h, whole, pieces.into_iter()));
            want.push(data);
        }
        loop {
            let mut any = false;
            for (h, whole, pieces) in &mut queues {
                if let Some((at, len)) = pieces.next() {
                    any = true;
                    piece(&mut w, h, whole, at, len);
                }
            }
            if !any {
                break;
            }
        }
        let mut got = arrived(&mut w);
        got.sort();
        want.sort();
        prop_assert!(got == want, "{} datagrams arrived instead of {}", got.len(), want.len());
        prop_assert_eq!(w.stack.stats().reassembled, cut);
        prop_assert_eq!(w.dropped_total(), 0);
        assert_nothing_held(&mut w);
    }

    #[test]
    fn whatever_comes_is_survived_and_bounded(
        pieces in prop::collection::vec((any::<bool>(), 0u32..4, 0u16..8192, 0usize..1400, any::<bool>(), 0u8..60), 1..200)
    ) {
        let mut w = limited(Limits { reassembly: 3, reassembly_bytes: 8000, ..Limits::default() });
        let count = pieces.len() as u64;
        for (v6, ident, at, len, more, protocol) in pieces {
            let h = Ip { ident, ..header(&w, ip(REMOTES[usize::from(v6)])) };
            let packet = h.fragment(protocol, &bytes(len), at.wrapping_mul(8), more);
            inject(&mut w, &h, &packet);
        }
        prop_assert!(w.dropped_total() <= 2 * count);
        assert_nothing_held(&mut w);
    }
}

#[test]
fn the_whole_datagram_has_the_first_fragments_header() {
    for remote in REMOTES.map(ip) {
        let mut w = world();
        let h = Ip { ttl: 40, tos: 8, ..header(&w, remote) };
        let whole = datagram(&h, &bytes(3000));
        let late = Ip { ttl: 20, tos: 0, ..h.clone() };
        piece(&mut w, &late, &whole, 1480, whole.len() - 1480);
        piece(&mut w, &h, &whole, 0, 1480);
        let sock = w.edge.host.last();
        let sent = w.edge.host.udp(sock).sent.pop().unwrap();
        assert_eq!((sent.opts.hop_limit, sent.opts.tos), (39, 8));
        // Who sends fragments does not object to fragments.
        assert!(!sent.opts.dont_fragment);
    }
}

#[test]
fn options_and_extension_headers_do_not_confuse() {
    let mut w = world();
    let h = Ip { options: vec![1; 8], ..header(&w, ip(REMOTES[0])) };
    let whole = datagram(&h, &bytes(2000));
    piece(&mut w, &h, &whole, 1000, whole.len() - 1000);
    // RFC 791: some options are in the first fragment only.
    piece(&mut w, &Ip { options: vec![], ..h.clone() }, &whole, 0, 1000);
    assert_eq!(arrived(&mut w), [bytes(2000)]);

    // Before the fragment header, in every fragment; and behind it, where they are a part of the first fragment.
    let hop_by_hop = (0, vec![0, 0, 1, 4, 0, 0, 0, 0]);
    let h = Ip { extensions: vec![hop_by_hop], ..header(&w, ip(REMOTES[1])) };
    let whole = datagram(&h, &bytes(2000));
    for (at, len) in [(1000, whole.len() - 1000), (0, 1000)] {
        piece(&mut w, &h, &whole, at, len);
    }
    assert_eq!(arrived(&mut w), [bytes(2000)]);
    let options = [UDP, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let fragmentable = [&options[..], &whole].concat();
    for (at, len) in [(504, fragmentable.len() - 504), (0, 504)] {
        let packet = h.fragment(60, &fragmentable[at..at + len], at as u16, at == 0);
        inject(&mut w, &h, &packet);
    }
    assert_eq!((arrived(&mut w), w.dropped_total()), (vec![bytes(2000)], 0));
    // A fragment that is the whole datagram, RFC 6946.
    let packet = h.fragment(UDP, &whole[..], 0, false);
    inject(&mut w, &h, &packet);
    assert_eq!(arrived(&mut w), [bytes(2000)]);
    assert_nothing_held(&mut w);
}

#[test]
fn an_overlap_spoils_the_datagram_and_what_comes_of_it_later() {
    for remote in REMOTES.map(ip) {
        for (at, len) in
            [(0, 808), (792, 16), (800, 16), (400, 800), (1600, 400), (792, 816), (1000, 200), (1200, 400), (0, 2000)]
        {
            let mut w = world();
            let h = header(&w, remote);
            let whole = datagram(&h, &bytes(2000));
            piece(&mut w, &h, &whole, 800, 800);
            piece(&mut w, &h, &whole, 1600, 408);
            piece(&mut w, &h, &whole, at, len);
            assert_eq!(w.dropped(DropReason::FragmentBad), 1, "{len} bytes at {at}");
            piece(&mut w, &h, &whole, 0, 800);
            assert_eq!((w.dropped(DropReason::FragmentBad), arrived(&mut w)), (2, vec![]));
            // Another datagram is not concerned; the name is free again after a while.
            let other = Ip { ident: 78, ..h.clone() };
            for (h, secs) in [(&other, 61), (&h, 0)] {
                piece(&mut w, h, &whole, 0, 1600);
                piece(&mut w, h, &whole, 1600, 408);
                assert_eq!(arrived(&mut w), [bytes(2000)]);
                w.run(Duration::from_secs(secs));
            }
            assert_eq!((w.dropped_total(), w.take_icmp()), (2, None));
        }
    }
}

#[test]
fn fragments_that_contradict_each_other_spoil_the_datagram() {
    // Offset, length, more, and a byte that makes the data differ.
    type Part = (usize, usize, bool, u8);
    let cases: [[Part; 2]; 7] = [
        // A duplicate of other content.
        [(800, 800, true, 0), (800, 800, true, 1)],
        // Two ends.
        [(800, 800, false, 0), (1600, 800, false, 0)],
        [(1600, 800, false, 0), (800, 800, false, 0)],
        // Something behind the end, whichever comes first.
        [(800, 800, false, 0), (1600, 800, true, 0)],
        [(1600, 800, true, 0), (800, 800, false, 0)],
        // The end says that there is more.
        [(800, 800, false, 0), (800, 800, true, 0)],
        [(1600, 800, false, 0), (800, 1600, true, 0)],
    ];
    for remote in REMOTES.map(ip) {
        for parts in cases {
            let mut w = world();
            let h = header(&w, remote);
            for (at, len, more, flip) in parts {
                let data: Vec<u8> = bytes(len).into_iter().map(|b| b ^ flip).collect();
                let packet = h.fragment(UDP, &data, at as u16, more);
                inject(&mut w, &h, &packet);
            }
            assert_eq!((w.dropped(DropReason::FragmentBad), w.dropped_total()), (1, 1), "{parts:?}");
            w.run(Duration::from_secs(61));
            assert_eq!(w.dropped_total(), 1, "a spoiled datagram counts once");
        }
    }
}

#[test]
fn bytes_behind_the_end_do_not_fill_a_hole_before_it() {
    let mut w = world();
    let h = header(&w, ip(REMOTES[0]));
    let whole = datagram(&h, &bytes(2000));
    for (at, len, more) in [(0, 400, true), (1200, 400, true), (800, 400, false)] {
        let packet = h.fragment(UDP, &whole[at..at + len], at as u16, more);
        inject(&mut w, &h, &packet);
    }
    assert_eq!((arrived(&mut w), w.dropped(DropReason::FragmentBad), w.dropped_total()), (vec![], 1, 1));
}

#[test]
fn fragments_that_cannot_be_are_dropped() {
    let (udp, tcp, icmp, icmp6) = (17, 6, 1, 58);
    // Protocol, offset, length, more.
    let rows = [
        // Not a multiple of eight, and more to come.
        (udp, 0, 1001, true),
        (udp, 8, 7, true),
        // Nothing.
        (udp, 8, 0, true),
        (udp, 8, 0, false),
        // The ping of death.
        (icmp, 65_528, 1000, false),
        (udp, 65_528, 8, false),
        (udp, 64_800, 800, true),
        // Too short for the transport header.
        (tcp, 0, 8, true),
        (tcp, 0, 16, true),
    ];
    for remote in REMOTES.map(ip) {
        for (protocol, at, len, more) in rows {
            let mut w = world();
            let protocol = if protocol == icmp && remote.is_ipv6() { icmp6 } else { protocol };
            let h = header(&w, remote);
            let packet = h.fragment(protocol, &vec![0x50; len], at, more);
            inject(&mut w, &h, &packet);
            assert_eq!((w.dropped(DropReason::FragmentBad), w.dropped_total()), (1, 1), "{len} bytes at {at}");
            assert_nothing_held(&mut w);
        }
        // A TCP header that says it is longer than the fragment.
        let mut w = world();
        let h = header(&w, remote);
        let packet = h.fragment(tcp, &[0xf0; 32], 0, true);
        inject(&mut w, &h, &packet);
        assert_eq!(w.dropped(DropReason::FragmentBad), 1);
    }
}

#[test]
fn the_largest_datagram_fits_and_no_larger_one() {
    for (remote, len) in REMOTES.map(ip).into_iter().zip([65_507, 65_527]) {
        for (over, want) in [(0, 1), (1, 0)] {
            let mut w = world();
            let h = header(&w, remote);
            let mut whole = datagram(&h, &bytes(len));
            whole.resize(whole.len() + over, 0);
            for p in h.fragments(UDP, &whole, 1400) {
                inject(&mut w, &h, &p);
            }
            assert_eq!(arrived(&mut w).len(), want);
            assert_eq!(w.dropped(DropReason::FragmentBad), over as u64);
        }
    }
}

#[test]
fn time_runs_out_and_the_sender_is_told_if_the_first_fragment_came() {
    for (remote, secs, want) in [(REMOTES[0], 30, (11, 1, 0)), (REMOTES[1], 60, (3, 1, 0))] {
        for first in [true, false] {
            let mut w = world();
            let h = header(&w, ip(remote));
            let whole = datagram(&h, &bytes(3000));
            let (at, len) = if first { (0, 1400) } else { (1400, whole.len() - 1400) };
            piece(&mut w, &h, &whole, at, len);
            w.run(Duration::from_secs(secs / 2));
            // More of it does not prolong its time.
            piece(&mut w, &h, &whole, if first { 1400 } else { 1200 }, 200);
            w.run(Duration::from_secs(secs / 2) - Duration::from_millis(1));
            assert_eq!(w.dropped(DropReason::FragmentTimeout), 0);
            w.run(Duration::from_millis(1));
            assert_eq!((w.dropped(DropReason::FragmentTimeout), w.dropped_total()), (1, 1));
            match w.take_icmp() {
                Some((_, ty, code, rest, quoted)) => {
                    assert!(first, "nobody can say which datagram it was");
                    assert_eq!((ty, code, rest), want);
                    let sent = h.fragment(UDP, &whole[..1400], 0, true);
                    assert_eq!(quoted, sent[..quoted.len()]);
                    assert!(quoted.len() > 500);
                }
                None => assert!(!first),
            }
            let (at, len) = if first { (1600, whole.len() - 1600) } else { (0, 1200) };
            piece(&mut w, &h, &whole, at, len);
            assert_eq!(arrived(&mut w).len(), 0, "complete after its end");
        }
    }
}

#[test]
fn number_and_bytes_are_bounded_and_the_oldest_goes_first() {
    for (limits, fits) in
        [(Limits { reassembly: 4, ..Limits::default() }, 4), (Limits { reassembly_bytes: 4 * 1500, ..Limits::default() }, 4)]
    {
        let mut w = limited(limits);
        let h = header(&w, ip(REMOTES[0]));
        let whole = datagram(&h, &bytes(2000));
        let named = |ident| Ip { ident, ..h.clone() };
        for ident in 0..10 {
            piece(&mut w, &named(ident), &whole, 0, 1400);
        }
        assert_eq!(w.dropped(DropReason::FragmentLimit), 10 - fits);
        // The last came through, the one before the first of them did not.
        for ident in [9, 7, 6, 5] {
            piece(&mut w, &named(ident), &whole, 1400, whole.len() - 1400);
        }
        assert_eq!(arrived(&mut w).len() as u64, 3);
        assert_nothing_held(&mut w);
    }
    // One datagram alone may not be larger than all may be together.
    let mut w = limited(Limits { reassembly_bytes: 3000, ..Limits::default() });
    let h = header(&w, ip(REMOTES[1]));
    let whole = datagram(&h, &bytes(6000));
    for (at, len) in [(0, 1400), (1400, 1400), (2800, 1400)] {
        piece(&mut w, &h, &whole, at, len);
    }
    assert_eq!((w.dropped(DropReason::FragmentLimit), w.dropped_total()), (1, 1));
}

#[test]
fn without_memory_for_the_whole_it_is_dropped_and_counted() {
    let mut w = world();
    w.edge.pool.stash_limit = Some(1000);
    let h = header(&w, ip(REMOTES[0]));
    let whole = datagram(&h, &bytes(2000));
    piece(&mut w, &h, &whole, 0, 1000);
    piece(&mut w, &h, &whole, 1000, whole.len() - 1000);
    assert_eq!((w.dropped(DropReason::HostResources), w.dropped_total()), (1, 1));
    assert_nothing_held(&mut w);
}

#[test]
fn fragments_of_others_are_not_even_held() {
    for (guest, remote) in [("10.0.2.16", REMOTES[0]), ("2001:db8:bad::1", REMOTES[1])] {
        let mut w = world();
        let h = Ip::new(ip(guest), ip(remote));
        let whole = datagram(&h, &bytes(2000));
        piece(&mut w, &h, &whole, 0, 1000);
        assert_eq!((w.dropped(DropReason::SpoofedSource), w.next_deadline()), (1, None));
    }
}

#[test]
fn a_whole_with_a_wrong_checksum_is_dropped() {
    let mut w = world();
    let h = header(&w, ip(REMOTES[0]));
    let mut whole = datagram(&h, &bytes(2000));
    whole[1900] ^= 1;
    piece(&mut w, &h, &whole, 0, 1000);
    piece(&mut w, &h, &whole, 1000, whole.len() - 1000);
    assert_eq!((w.dropped(DropReason::BadL4Checksum), w.dropped_total()), (1, 1));
    assert_nothing_held(&mut w);
}

#[test]
fn datagrams_that_differ_in_anything_are_kept_apart() {
    let mut w = world();
    let h = header(&w, ip(REMOTES[0]));
    let other = Ip { dst: ip("198.51.100.8"), ..h.clone() };
    let (a, b) = (datagram(&h, &bytes(2000)), datagram(&other, &bytes(2000)));
    piece(&mut w, &h, &a, 0, 1000);
    piece(&mut w, &other, &b, 1000, b.len() - 1000);
    // For IPv4 the protocol is a part of the name.
    let icmp = h.fragment(1, &a[1000..], 1000, false);
    inject(&mut w, &h, &icmp);
    assert_eq!(arrived(&mut w).len(), 0);
    piece(&mut w, &other, &b, 0, 1000);
    piece(&mut w, &h, &a, 1000, a.len() - 1000);
    assert_eq!((arrived(&mut w).len(), w.dropped_total()), (2, 0));
}
