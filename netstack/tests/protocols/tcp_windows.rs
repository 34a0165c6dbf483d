//! Windows, each bound at its very edge.

use crate::kit::*;
use hibernet_netstack::conntrack::tcp::TcpState::{Close, Established, FinWait};
use hibernet_netstack::conntrack::tcp::side;

/// After the handshake with windows of 1000: the client's numbers may go up to 2001, the server's to 6001.
fn accepted_unchanged(t: &mut Tracker, seg: Seg) {
    let before = t.conn;
    assert_eq!(t.tcp(seg.clone()), KNOWN, "{seg:?}");
    assert_eq!(t.conn, before, "{seg:?} must change nothing");
}

// Check I.

#[test]
fn sequence_numbers_up_to_the_receivers_room() {
    let mut t = Tracker::established();
    assert_eq!(t.track().unwrap().sides.map(|s| s.max_end), [2001, 6001]);
    assert_eq!(t.tcp(c("A", 2001, 5001)), KNOWN);
    let mut t = Tracker::established();
    assert_eq!(t.tcp(c("A", 3002, 5001)), BEYOND, "beyond, and by more than a window");
    assert_eq!(t.tcp(c("FA", 1_000_000, 5001)), BEYOND);
    assert_eq!(t.state(), Some(Established));
}

#[test]
fn a_segment_that_ends_beyond_the_room_shows_a_larger_window() {
    let mut t = Tracker::established();
    assert_eq!(t.tcp(c("PA", 1500, 5001).len(1000)), KNOWN);
    let [client, server] = t.track().unwrap().sides;
    assert_eq!((client.end, server.max_win), (2500, 1499));
}

#[test]
fn a_little_beyond_passes_and_is_remembered() {
    // Numbers up to 2001 have room, one window of 1000 further is a little.
    let mut t = Tracker::established();
    assert_eq!(t.tcp(c("PA", 2002, 5001).len(998)), KNOWN);
    assert_eq!(t.track().unwrap().sides[0].end, 3000);
    assert_ne!(t.track().unwrap().sides[0].flags & side::DATA_UNACKED, 0);
    assert_eq!(t.left(), 432_000, "it refreshes nothing");
    assert_eq!(t.tcp(s("A", 5001, 3000)), KNOWN, "nor is its acknowledgement wrong");

    let mut t = Tracker::established();
    assert_eq!(t.tcp(c("PA", 2002, 5001).len(999)), BEYOND);
    let mut t = Tracker::established();
    assert_eq!(t.tcp(c("PA", 2002, 5002).len(10)), BEYOND, "if everything else is right");
}

// Check II.

#[test]
fn late_retransmissions_pass_and_change_nothing() {
    let mut t = Tracker::established();
    for i in 0..3 {
        t.tcp(c("PA", 1001 + 1000 * i, 5001).len(1000));
        t.tcp(s("A", 5001, 2001 + 1000 * i));
    }
    // All up to 4001 was sent; the server's window is 1000.
    t.wait(5);
    accepted_unchanged(&mut t, c("PA", 2000, 5001).len(1000));
    accepted_unchanged(&mut t, c("FA", 2000, 5001));
    let left = t.left();
    assert_eq!(t.tcp(c("PA", 2001, 5001).len(1000)), KNOWN);
    assert!(t.left() > left);
}

// Check III.

#[test]
fn acknowledgements_of_what_was_not_sent_are_invalid() {
    let mut t = Tracker::established();
    let before = t.conn;
    assert_eq!(t.tcp(c("A", 1001, 5002)), NOT_SENT);
    assert_eq!(t.conn, before);
    assert_eq!(t.tcp(s("PA", 5001, 1001).len(1)), KNOWN);
    assert_eq!(t.tcp(c("A", 1001, 5002)), KNOWN);
}

#[test]
fn selective_acknowledgements_count() {
    for (permitted, expected) in [(true, NOT_SENT), (false, KNOWN)] {
        let mut t = Tracker::default();
        let syn_ack = s("SA", 5000, 1001);
        t.tcp(c("S", 1000, 0).sack_permitted());
        t.tcp(if permitted { syn_ack.sack_permitted() } else { syn_ack });
        t.tcp(c("A", 1001, 5001));
        t.tcp(s("PA", 5001, 1001).len(100));
        assert_eq!(t.tcp(c("A", 1001, 5001).sack(&[(5050, 5101), (5010, 5020)])), KNOWN);
        assert_eq!(t.tcp(c("A", 1001, 5001).sack(&[(5010, 5020), (5050, 5102)])), expected, "permitted: {permitted}");
    }
}

#[test]
fn what_is_held_selectively_adds_to_the_window() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1000, 0).sack_permitted());
    t.tcp(s("SA", 5000, 1001).sack_permitted());
    t.tcp(c("PA", 1001, 5001).len(1000));
    assert_eq!(t.tcp(s("A", 5001, 1001).sack(&[(1501, 2001)])), KNOWN);
    let [client, server] = t.track().unwrap().sides;
    assert_eq!((server.max_win, client.max_end), (2000, 3001));
    assert_eq!(t.tcp(s("A", 5001, 1001).sack(&[(1501, 2002)])), NOT_SENT);
}

#[test]
fn the_first_of_several_sack_options_counts() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1000, 0).sack_permitted());
    t.tcp(s("SA", 5000, 1001).sack_permitted());
    let good = [5, 10, 0, 0, 0, 0, 0, 0, 0x13, 0x89];
    let bad = [5, 10, 0, 0, 0, 0, 0, 0, 0x13, 0x8a];
    assert_eq!(t.tcp(c("A", 1001, 5001).options(&good).options(&bad)), KNOWN);
    assert_eq!(t.tcp(c("A", 1001, 5001).options(&bad).options(&good)), NOT_SENT);
    assert_eq!(t.tcp(c("A", 1001, 5001).options(&[5, 9, 0, 0, 0, 0, 0xff, 0, 0])), KNOWN, "a malformed one does not");
    assert_eq!(t.tcp(c("A", 1001, 5001).options(&[5, 2]).options(&bad)), NOT_SENT, "nor an empty one");
    assert_eq!(t.tcp(c("A", 1001, 5001).options(&[5, 40, 0xff, 0xff])), KNOWN, "nor one that is cut off");
}

// Check IV.

#[test]
fn acknowledgements_may_lag_but_not_much() {
    let mut t = Tracker::established();
    let mut at = 5001u32;
    for _ in 0..100 {
        assert_eq!(t.tcp(s("PA", at, 1001).len(1000)), KNOWN);
        at += 1000;
        assert_eq!(t.tcp(c("A", 1001, at)), KNOWN);
    }
    t.wait(5);
    // 66,000 at least, as the windows are smaller.
    accepted_unchanged(&mut t, c("A", 1001, at - 66_001));
    let left = t.left();
    assert_eq!(t.tcp(c("A", 1001, at - 66_000)), KNOWN);
    assert!(t.left() > left);
}

#[test]
fn larger_windows_let_acknowledgements_lag_further() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1000, 0).scale(8));
    t.tcp(s("SA", 5000, 1001).scale(0));
    // 1000 << 8 = 256,000.
    t.tcp(c("A", 1001, 5001));
    let mut at = 5001u32;
    for _ in 0..4 {
        assert_eq!(t.tcp(s("PA", at, 1001).len(100_000)), KNOWN);
        at += 100_000;
        assert_eq!(t.tcp(c("A", 1001, at)), KNOWN);
    }
    t.wait(5);
    accepted_unchanged(&mut t, c("A", 1001, at - 256_001));
    let left = t.left();
    assert_eq!(t.tcp(c("A", 1001, at - 256_000)), KNOWN);
    assert!(t.left() > left);
}

// Being liberal.

#[test]
fn liberal_tracking_finds_nothing_outside() {
    let mut t = Tracker::with("tcp_be_liberal", 1);
    t.handshake();
    for seg in [c("PA", 900_000, 5001).len(5), c("A", 1001, 900_000), s("A", 900_000, 900_000)] {
        assert_eq!(t.tcp(seg), KNOWN);
    }
    assert_eq!(t.tcp(s("R", 5000, 0)), State::Invalid(hibernet_netstack::conntrack::proto::Invalid::TcpRst), "but resets");
    assert_eq!(t.tcp(c("FA", 900_000, 0)), KNOWN);
    assert_eq!(t.state(), Some(FinWait), "and what passes counts");
}

#[test]
fn a_connection_found_in_its_middle_has_unknown_windows() {
    let mut t = Tracker::default();
    assert_eq!(t.tcp(c("A", 1001, 5001).win(10)), New);
    assert_eq!(t.tcp(s("PA", 5001, 1001).len(60_000)), KNOWN, "perhaps its window was scaled by 2^14");
    assert_eq!(t.tcp(c("A", 1001, 65_001).win(10)), KNOWN);
}

// Resets and segments without acknowledgement.

#[test]
fn segments_without_an_acknowledgement_have_the_right_one() {
    let mut t = Tracker::established();
    assert_eq!(t.tcp(c("R", 1001, 0xdead_beef)), KNOWN);
    assert_eq!(t.state(), Some(Close));
    let mut t = Tracker::established();
    assert_eq!(t.tcp(c("RA", 1001, 0)), KNOWN, "broken stacks reset so");
    assert_eq!(t.state(), Some(Close));
    let mut t = Tracker::established();
    assert_eq!(t.tcp(c("RA", 1001, 5002)), NOT_SENT);
    assert_eq!(t.tcp(c("PA", 1001, 0)), KNOWN, "an old acknowledgement is only that");

    // Also where zero would lag too far.
    let mut t = Tracker::default();
    t.tcp(c("S", 1000, 0));
    t.tcp(s("SA", 900_000, 1001));
    t.tcp(c("A", 1001, 900_001));
    assert_eq!(t.tcp(c("RA", 1001, 0)), KNOWN);
    assert_eq!(t.state(), Some(Close));
}

#[test]
fn a_reset_that_answers_a_syn_has_no_sequence_number() {
    let mut t = Tracker::default();
    t.tcp(c("S", 0x8000_0000, 0));
    t.tcp(s("A", 700_000, 600_000));
    assert_eq!(t.tcp(s("RA", 0, 0x8000_0001)), KNOWN);
    assert_eq!(t.state(), Some(Close));

    // Whatever the server was seen to say before.
    let mut t = Tracker::default();
    t.tcp(c("S", 1000, 0));
    assert_eq!(t.tcp(s("RA", 700_000, 77_000)), NOT_SENT);
    assert_eq!(t.tcp(s("RA", 0, 1001)), KNOWN);
    assert_eq!(t.conn, None);
}

// Zero windows and keep-alive.

#[test]
fn a_closed_window_is_probed_with_one_byte() {
    let mut t = Tracker::established();
    t.tcp(c("PA", 1001, 5001).len(1000));
    t.tcp(s("A", 5001, 2001).win(0));
    assert_eq!(t.track().unwrap().sides[0].max_end, 2002);
    assert_eq!(t.tcp(c("PA", 2001, 5001).len(1)), KNOWN);
    assert_eq!(t.tcp(s("A", 5001, 2001).win(0)), KNOWN);
    assert_eq!(t.tcp(c("PA", 2002, 5001).len(1)), KNOWN);
}

#[test]
fn a_keep_alive_and_its_answer_pass() {
    let mut t = Tracker::established();
    assert_eq!(t.tcp(c("A", 1000, 5001)), KNOWN);
    assert_eq!(t.tcp(s("A", 5001, 1001)), KNOWN);
    // Found in the middle, by a keep-alive: its sequence number is one too low.
    let mut t = Tracker::default();
    assert_eq!(t.tcp(c("A", 1000, 5001)), New);
    assert_eq!(t.tcp(s("A", 5001, 1001)), KNOWN);
    assert_eq!(t.track().unwrap().sides[0].end, 1001);
}

// Super-segments, wrapping.

#[test]
fn a_super_segment_counts_as_what_it_will_be() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1000, 0).scale(7));
    t.tcp(s("SA", 5000, 1001).scale(7).win(65_535));
    t.tcp(c("A", 1001, 5001));
    t.tcp(s("A", 5001, 1001));
    let mut at = 1001u32;
    for _ in 0..100 {
        assert_eq!(t.tcp(c("PA", at, 5001).len(65_160)), KNOWN);
        at += 65_160;
        assert_eq!(t.track().unwrap().sides[0].end, at);
        assert_eq!(t.tcp(s("A", 5001, at)), KNOWN);
    }
    assert_eq!(t.left(), 432_000, "all of it is acknowledged");
    assert_eq!(t.tcp(c("FA", at, 5001).len(65_160)), KNOWN, "a FIN counts behind it");
    assert_eq!(t.track().unwrap().sides[0].end, at + 65_161);
}

#[test]
fn sequence_numbers_wrap() {
    for (client, server) in [(u32::MAX - 500, 5000), (1000, u32::MAX - 3), (u32::MAX, u32::MAX), (0x7fff_ff00, 0x8000_0000)] {
        let mut t = Tracker::default();
        let (mut a, mut b) = (client.wrapping_add(1), server.wrapping_add(1));
        assert_eq!(t.tcp(c("S", client, 0)), New);
        assert_eq!(t.tcp(s("SA", server, a)), KNOWN);
        assert_eq!(t.tcp(c("A", a, b)), KNOWN);
        for _ in 0..20 {
            assert_eq!(t.tcp(c("PA", a, b).len(700)), KNOWN);
            a = a.wrapping_add(700);
            assert_eq!(t.tcp(s("PA", b, a).len(300)), KNOWN);
            b = b.wrapping_add(300);
            assert_eq!(t.tcp(c("A", a, b)), KNOWN);
            assert_eq!(t.left(), 432_000);
            assert_eq!(t.tcp(c("A", a, b.wrapping_add(1))), NOT_SENT);
            assert_eq!(t.tcp(c("A", a.wrapping_add(5000), b)), BEYOND);
        }
    }
}

// Window scale: gVisor's TestWindowScaling, and shifts beyond 14.

/// A connection with the given shifts (none for no option), whose ends then offer windows of 1000.
fn scaled(client: Option<u8>, server: Option<u8>) -> Tracker {
    let mut t = Tracker::default();
    let with = |seg: Seg, shift: Option<u8>| shift.map_or(seg.clone(), |n| seg.scale(n));
    t.tcp(with(c("S", 1000, 0), client));
    t.tcp(with(s("SA", 5000, 1001), server));
    t.tcp(c("A", 1001, 5001));
    t.tcp(s("A", 5001, 1001));
    t
}

#[test]
fn windows_are_scaled_if_both_sides_say_so() {
    for (client, server, scales) in [
        (None, None, [0, 0]),
        (Some(4), None, [0, 0]),
        (None, Some(4), [0, 0]),
        (Some(0), Some(4), [0, 4]),
        (Some(4), Some(4), [4, 4]),
        (Some(15), Some(15), [14, 14]),
        (Some(255), Some(1), [14, 1]),
    ] {
        let t = scaled(client, server);
        let sides = t.track().unwrap().sides;
        assert_eq!(sides.map(|s| s.scale), scales, "{client:?} {server:?}");
        assert_eq!(sides.map(|s| s.max_win), scales.map(|n| 1000 << n), "{client:?} {server:?}");
        // Each side's numbers may go as far as the other side's scaled window.
        assert_eq!(sides[0].max_end, 1001 + (1000 << scales[1]));
        assert_eq!(sides[1].max_end, 5001 + (1000 << scales[0]));
    }
}

#[test]
fn the_windows_of_syns_are_not_scaled() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1000, 0).scale(7).win(2000));
    t.tcp(s("SA", 5000, 1001).scale(7).win(3000));
    let sides = t.track().unwrap().sides;
    assert_eq!(sides.map(|s| s.max_win), [2000, 3000]);
    assert_eq!(sides[0].max_end, 1001 + 3000);
}

/// A FIN outside of the window does not close, one inside does: with and without scaling, and when it is only partly inside.
#[test]
fn window_scaling_decides_what_closes() {
    for (shift, window) in [(None, 1000), (Some(2), 4000)] {
        let mut t = scaled(shift, shift);
        assert_eq!(t.tcp(c("FA", 1001 + 2 * window + 1, 5001)), BEYOND, "{shift:?}");
        assert_eq!(t.state(), Some(Established));
        assert_eq!(t.tcp(c("FA", 1001 + window, 5001)), KNOWN);
        assert_eq!(t.state(), Some(FinWait), "{shift:?}: at the edge");

        let mut t = scaled(shift, shift);
        assert_eq!(t.tcp(c("FA", 1001 + window, 5001).len(window)), KNOWN);
        assert_eq!(t.state(), Some(FinWait), "{shift:?}: partly inside");
    }
}

#[test]
fn a_syn_with_data_counts_it() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1000, 0).len(50));
    assert_eq!(t.track().unwrap().sides[0].end, 1051);
    assert_eq!(t.tcp(s("SA", 5000, 1051).len(70)), KNOWN);
    assert_eq!(t.tcp(c("A", 1051, 5071)), KNOWN);
    assert_eq!(t.state(), Some(Established));
}
