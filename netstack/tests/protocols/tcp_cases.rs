//! What goes beyond the tables: special cases 2-10, and the choice of time-outs.

use crate::kit::*;
use hibernet_netstack::conntrack::proto::Invalid;
use hibernet_netstack::conntrack::tcp::TcpState::{
    Close, CloseWait, Established, FinWait, LastAck, SynRecv, SynSent, SynSent2, TimeWait,
};
use hibernet_netstack::conntrack::tcp::side;

const RESET_TOO_LOW: State = State::Invalid(Invalid::TcpRst);

/// Both sides have sent data that was acknowledged, and every state is left as in real life.
fn closed_by_client(t: &mut Tracker) {
    assert_eq!(t.tcp(c("FA", 1001, 5001)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(FinWait), 120));
    assert_eq!(t.tcp(s("A", 5001, 1002)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(CloseWait), 60));
    assert_eq!(t.tcp(s("FA", 5001, 1002)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(LastAck), 30));
    assert_eq!(t.tcp(c("A", 1002, 5002)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(TimeWait), 120));
}

// Case 2.

#[test]
fn a_connection_found_in_its_middle_is_short_until_it_is_answered() {
    let mut t = Tracker::default();
    assert_eq!(t.tcp(c("PA", 70_000, 90_000).len(100)), New);
    assert_eq!((t.state(), t.left()), (Some(Established), 300));
    let track = t.track().unwrap();
    for sender in track.sides {
        assert_eq!(sender.flags & (side::BE_LIBERAL | side::SACK_PERM), side::BE_LIBERAL | side::SACK_PERM);
    }
    assert_eq!(t.tcp(c("A", 70_100, 90_000)), New);
    assert_eq!(t.left(), 300);
    assert_eq!(t.tcp(s("A", 90_000, 70_100)), KNOWN);
    assert_eq!((t.left(), t.assured()), (300, false), "the answer itself does not see that it is one");
    assert_eq!(t.tcp(c("A", 70_100, 90_000)), KNOWN);
    assert_eq!((t.left(), t.assured()), (432_000, true));
}

#[test]
fn strict_tracking_takes_no_connection_in_its_middle() {
    let mut t = Tracker::with("tcp_loose", 0);
    assert_eq!(t.tcp(c("A", 70_000, 90_000)), State::Invalid(Invalid::TcpStart));
    assert_eq!(t.conn, None);
    t.handshake();
}

// Case 3; rows 22 of the defects: reuse after close.

#[test]
fn a_syn_after_the_end_begins_another_connection() {
    let mut t = Tracker::established();
    closed_by_client(&mut t);
    assert_eq!(t.tcp(c("S", 1500, 0)), New);
    assert_eq!((t.state(), t.left(), t.assured()), (Some(SynSent), 120, false));

    let mut t = Tracker::established();
    closed_by_client(&mut t);
    assert_eq!(t.tcp(s("S", 9500, 0)), New, "from the other end, too");
    assert_eq!(t.conn.unwrap().tuples[0].sport, 80, "whose packet is the first now");
}

#[test]
fn a_syn_after_a_reset_begins_another_connection_only_for_who_sent_it() {
    let reset = || {
        let mut t = Tracker::established();
        assert_eq!(t.tcp(c("R", 1001, 0)), KNOWN);
        assert_eq!((t.state(), t.left()), (Some(Close), 10));
        t
    };
    let mut t = reset();
    assert_eq!(t.tcp(c("S", 1500, 0)), New);
    assert_eq!(t.state(), Some(SynSent));

    // After the server's reset, the client's SYN is let through, and its answer brings us in step.
    let mut t = Tracker::established();
    assert_eq!(t.tcp(s("R", 5001, 0)), KNOWN);
    assert_eq!(t.tcp(c("S", 1500, 0)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(Close), 10));
    assert_eq!(t.tcp(s("SA", 9000, 1501)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(SynRecv), 60));
    assert_eq!(t.tcp(c("A", 1501, 9001)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(Established), 432_000));
}

// Case 4.

#[test]
fn an_ignored_syn_and_its_answer_bring_the_tracker_in_step() {
    let mut t = Tracker::established();
    t.wait(10);
    // The client lost its state and begins anew; we think that the old connection goes on.
    assert_eq!(t.tcp(c("S", 800_000, 0).win(500).scale(4).sack_permitted()), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(Established), 431_990), "passes, and refreshes nothing");
    assert_eq!(t.tcp(s("SA", 900_000, 800_001).scale(2).win(700)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(SynRecv), 60));
    let [client, server] = t.track().unwrap().sides;
    assert_eq!((client.scale, server.scale), (4, 2));
    assert_eq!((client.end, client.max_win, server.end), (800_001, 500, 900_001));
    assert_ne!(client.flags & side::SACK_PERM, 0);
    assert_eq!(t.tcp(c("A", 800_001, 900_001)), KNOWN);
    assert_eq!(t.state(), Some(Established));
    let track = *t.track().unwrap();
    assert_eq!(t.tcp(c("PA", 1001, 5001).len(10)), KNOWN);
    assert_eq!(t.track(), Some(&track), "what comes late of the old connection changes nothing");
}

#[test]
fn an_answer_to_another_syn_changes_nothing() {
    let mut t = Tracker::established();
    assert_eq!(t.tcp(c("S", 800_000, 0)), KNOWN);
    assert_eq!(t.tcp(s("SA", 900_000, 800_002)), KNOWN);
    assert_eq!(t.state(), Some(Established));
    assert_eq!(t.tcp(s("PA", 5001, 1001).len(10)), KNOWN);
}

#[test]
fn the_answer_to_an_ignored_syn_leaves_its_sender_liberal() {
    let mut t = Tracker::default();
    t.tcp(c("A", 1001, 5001));
    assert_eq!(t.tcp(c("S", 800_000, 0)), New);
    assert_eq!(t.tcp(s("SA", 900_000, 800_001)), KNOWN);
    assert_eq!(t.state(), Some(SynRecv));
    assert_eq!(t.track().unwrap().sides.map(|s| s.flags & side::BE_LIBERAL), [0, side::BE_LIBERAL]);
}

#[test]
fn a_challenge_ack_does_not_acknowledge_the_last_fin() {
    let last_ack = || {
        let mut t = Tracker::established();
        assert_eq!(t.tcp(c("FA", 1001, 5001)), KNOWN);
        assert_eq!(t.tcp(s("FA", 5001, 1002)), KNOWN);
        assert_eq!(t.state(), Some(LastAck));
        t
    };
    let mut t = last_ack();
    t.wait(5);
    assert_eq!(t.tcp(c("S", 800_000, 0)), KNOWN);
    assert_eq!(t.tcp(s("A", 5002, 1002)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(LastAck), 25), "the server challenges the SYN");
    assert_eq!(t.tcp(s("A", 5002, 1002)), KNOWN);
    assert_eq!(t.state(), Some(TimeWait), "but only once");

    let mut t = last_ack();
    assert_eq!(t.tcp(s("A", 5002, 1002)), KNOWN);
    assert_eq!(t.state(), Some(TimeWait), "without a SYN before, it is an ordinary acknowledgement");

    let mut t = last_ack();
    assert_eq!(t.tcp(c("S", 800_000, 0)), KNOWN);
    assert_eq!(t.tcp(c("A", 1002, 5002)), KNOWN);
    assert_eq!(t.state(), Some(TimeWait), "so is one of who sent the SYN");
}

// Case 5.

#[test]
fn both_ends_may_open_at_once() {
    let mut t = Tracker::default();
    assert_eq!(t.tcp(c("S", 1000, 0).scale(3)), New);
    assert_eq!(t.tcp(s("S", 5000, 0).scale(5)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(SynSent2), 120));
    assert_eq!(t.tcp(c("SA", 1000, 5001)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(SynRecv), 60));
    assert_eq!(t.tcp(s("SA", 5000, 1001)), KNOWN);
    assert_eq!(t.state(), Some(SynRecv));
    assert_eq!(t.tcp(s("A", 5001, 1001)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(Established), 432_000));
    assert_eq!(t.track().unwrap().sides.map(|s| s.scale), [3, 5]);
}

#[test]
fn an_ack_of_the_server_alone_makes_no_connection() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1000, 0));
    t.tcp(s("SA", 5000, 1001));
    assert_eq!(t.tcp(s("A", 5001, 1001)), KNOWN);
    assert_eq!(t.state(), Some(SynRecv));
}

// Case 6.

#[test]
fn a_reset_is_believed_only_at_the_expected_byte() {
    let mut t = Tracker::established();
    assert_eq!(t.tcp(s("R", 5000, 0)), RESET_TOO_LOW);
    assert_eq!((t.state(), t.left()), (Some(Established), 432_000));
    assert_eq!(t.tcp(s("R", 5002, 0)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(Established), 10), "perhaps the client will challenge it");
    assert_eq!(t.tcp(c("A", 1001, 5001)), KNOWN);
    assert!(t.left() >= 300, "which shows that the connection lives");
    assert_eq!(t.tcp(s("R", 5001, 0)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(Close), 10));
}

#[test]
fn resets_too_low_can_be_let_through() {
    let mut t = Tracker::with("tcp_ignore_invalid_rst", 1);
    t.handshake();
    assert_eq!(t.tcp(s("R", 5000, 0)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(Established), 10));
}

#[test]
fn a_connection_found_in_its_middle_is_reset_more_easily() {
    let mut t = Tracker::default();
    t.tcp(c("A", 1001, 5001));
    t.tcp(s("A", 5001, 1001));
    assert_eq!((t.state(), t.assured()), (Some(Established), false));
    assert_eq!(t.tcp(c("R", 1500, 0)), KNOWN);
    assert_eq!(t.state(), Some(Close), "it is not assured yet");
}

#[test]
fn a_reset_of_a_connection_not_assured_may_answer_an_ack_wherever_it_is() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1000, 0));
    t.tcp(s("SA", 5000, 1001));
    t.tcp(s("A", 5001, 1001));
    assert_eq!(t.tcp(s("R", 900_000, 5002)), BEYOND);
    assert_eq!(t.tcp(s("R", 900_000, 5001)), KNOWN);
    assert_eq!(t.state(), Some(Close));
}

#[test]
fn a_reset_right_behind_its_data_is_believed() {
    let mut t = Tracker::established();
    assert_eq!(t.tcp(s("PA", 5001, 1001).len(19)), KNOWN);
    assert_eq!(t.tcp(s("R", 5020, 0)), KNOWN);
    assert_eq!(t.state(), Some(Close));
}

#[test]
fn before_there_is_a_connection_a_reset_may_have_sequence_number_zero() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1000, 0));
    t.tcp(s("SA", 5000, 1001));
    assert_eq!(t.tcp(c("R", 1000, 0)), RESET_TOO_LOW);
    assert_eq!(t.tcp(c("R", 0, 0)), KNOWN, "it answers a SYN that passed by");
    assert_eq!((t.state(), t.left()), (Some(SynRecv), 60), "but lies below the window");
    assert_eq!(t.tcp(c("R", 1001, 0)), KNOWN);
    assert_eq!(t.state(), Some(Close));
}

#[test]
fn resets_of_a_closing_connection_are_not_looked_at_closely() {
    let mut t = Tracker::established();
    closed_by_client(&mut t);
    assert_eq!(t.tcp(s("R", 77, 0)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(Close), 10));
}

#[test]
fn a_reset_that_answers_an_ignored_syn_is_believed_wherever_it_is() {
    let mut t = Tracker::established();
    assert_eq!(t.tcp(c("S", 800_000, 0)), KNOWN);
    assert_eq!(t.tcp(s("RA", 0, 800_001)), KNOWN);
    assert_eq!(t.state(), Some(Close));

    let mut t = Tracker::established();
    assert_eq!(t.tcp(c("S", 800_000, 0)), KNOWN);
    assert_eq!(t.tcp(s("RA", 5001, 800_002)), NOT_SENT, "this one answers something else");

    let mut t = Tracker::established();
    assert_eq!(t.tcp(c("S", 800_000, 0)), KNOWN);
    assert_eq!(t.tcp(c("RA", 990_000, 800_001)), BEYOND, "and the sender of the SYN answers nothing");
}

#[test]
fn a_half_open_connection_ends_with_the_clients_reset() {
    // The server still has an old connection, and answers the SYN by an ACK for it; the client resets that.
    let mut t = Tracker::default();
    assert_eq!(t.tcp(c("S", 1000, 0)), New);
    assert_eq!(t.tcp(s("A", 700_000, 600_000)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(SynSent), 120));
    assert_eq!(t.tcp(c("R", 600_000, 0)), KNOWN);
    assert_eq!((t.state(), t.left()), (Some(Close), 10));
    assert_eq!(t.tcp(c("S", 1000, 0)), New);
    assert_eq!(t.tcp(s("SA", 5000, 1001)), KNOWN);
}

// Case 7.

#[test]
fn a_reset_before_any_answer_leaves_nothing() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1000, 0));
    assert_eq!(t.tcp(s("RA", 0, 1001)), KNOWN);
    assert_eq!(t.conn, None);
    t.tcp(c("S", 1000, 0));
    assert_eq!(t.tcp(c("R", 1001, 0)), New);
    assert_eq!(t.conn, None);
}

// Case 8.

#[test]
fn a_repeated_syn_does_not_keep_the_connection() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1000, 0));
    t.wait(100);
    assert_eq!(t.tcp(c("S", 1000, 0)), New);
    assert_eq!((t.state(), t.left()), (Some(SynSent), 20));
    t.wait(20);
    assert_eq!(t.tcp(c("S", 1000, 0)), New);
    assert_eq!(t.left(), 120, "this is another one");
}

#[test]
fn a_later_syn_may_differ() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1000, 0).scale(2).sack_permitted());
    assert_eq!(t.tcp(c("S", 61_000, 0).scale(9)), New);
    let client = t.track().unwrap().sides[0];
    assert_eq!((client.end, client.scale, client.flags & side::SACK_PERM), (61_001, 9, 0));
    assert_eq!(t.tcp(c("S", 71_000, 0)), New);
    assert_eq!(t.track().unwrap().sides[0].scale, 9, "one without options leaves them");
    assert_eq!(t.tcp(s("SA", 5000, 71_001)), KNOWN);
}

// Case 9.

#[test]
fn assured_is_a_connection_that_went_on_after_the_handshake() {
    let mut t = Tracker::default();
    t.tcp(c("S", 1000, 0));
    assert!(!t.assured());
    t.tcp(s("SA", 5000, 1001));
    assert!(!t.assured());
    t.tcp(c("A", 1001, 5001));
    assert!(t.assured());
    closed_by_client(&mut t);
    assert!(t.assured(), "it stays so");
}

// Case 10.

#[test]
fn a_connection_that_both_ends_believe_over_does_not_live_for_days() {
    let mut t = Tracker::established();
    assert_eq!(t.tcp(c("FA", 800_000, 5001)), BEYOND);
    assert_eq!(t.left(), 432_000);
    assert_eq!(t.tcp(c("FA", 800_000, 5001)), BEYOND);
    assert_eq!(t.left(), 432_000, "one end alone does not count");
    assert_eq!(t.tcp(s("FA", 900_000, 1001)), BEYOND);
    assert_eq!((t.state(), t.left()), (Some(Established), 300));
}

#[test]
fn a_connection_that_ends_soon_need_not_end_sooner() {
    let mut t = Tracker::established();
    t.tcp(c("FA", 800_000, 5001));
    t.wait(432_000 - 119);
    t.tcp(s("FA", 900_000, 1001));
    assert_eq!(t.left(), 119);

    for (left, then) in [(119, 119), (120, 50)] {
        let mut t = Tracker::with("tcp_timeout_unacknowledged", 50);
        t.handshake();
        t.tcp(c("FA", 800_000, 5001));
        t.wait(432_000 - left);
        t.tcp(s("FA", 900_000, 1001));
        assert_eq!(t.left(), then);
    }
}

#[test]
fn a_connection_that_is_not_assured_is_left_alone() {
    let mut t = Tracker::with("tcp_timeout_syn_recv", 250);
    t.cfg.set("tcp_timeout_unacknowledged", 50).unwrap();
    t.tcp(c("S", 1000, 0));
    t.tcp(s("SA", 5000, 1001));
    assert_eq!(t.tcp(c("FA", 800_000, 5001)), BEYOND);
    assert_eq!(t.tcp(s("FA", 900_000, 1001)), BEYOND);
    assert_eq!(t.left(), 250);
}

// Time-outs.

#[test]
fn the_time_out_of_each_state_can_be_set() {
    let mut t = Tracker::default();
    for (i, name) in
        ["syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack", "time_wait", "close"].iter().enumerate()
    {
        t.cfg.set(&format!("nf_conntrack_tcp_timeout_{name}"), 11 + i as u64).unwrap();
    }
    let steps = [c("S", 1000, 0), s("SA", 5000, 1001), c("A", 1001, 5001), c("FA", 1001, 5001), s("A", 5001, 1002)];
    for (i, step) in steps.into_iter().chain([s("FA", 5001, 1002), c("A", 1002, 5002), s("R", 5002, 0)]).enumerate() {
        t.tcp(step);
        assert_eq!(t.left(), 11 + i as u64, "step {i}");
    }
    let mut t = Tracker::with("tcp_timeout_syn_sent2", 7);
    t.tcp(c("S", 1000, 0));
    t.tcp(s("S", 5000, 0));
    assert_eq!((t.state(), t.left()), (Some(SynSent2), 120), "the first answer, if it is a SYN, renews nothing");
    t.tcp(s("S", 5000, 0));
    assert_eq!((t.state(), t.left()), (Some(SynSent2), 7));
}

#[test]
fn unacknowledged_data_shortens_the_time_out() {
    let mut t = Tracker::established();
    assert_eq!(t.tcp(c("PA", 1001, 5001).len(10)), KNOWN);
    assert_eq!(t.left(), 300);
    assert_eq!(t.tcp(s("A", 5001, 1006)), KNOWN);
    assert_eq!(t.left(), 300, "not all of it");
    assert_eq!(t.tcp(s("A", 5001, 1011)), KNOWN);
    assert_eq!(t.left(), 432_000);
    let mut t = Tracker::with("tcp_timeout_unacknowledged", 50);
    t.handshake();
    t.tcp(s("PA", 5001, 1001).len(10));
    assert_eq!(t.left(), 50);
    t.tcp(s("FA", 5011, 1001));
    assert_eq!(t.left(), 50, "the state's own would be 120");
}

#[test]
fn repeated_acknowledgements_shorten_the_time_out() {
    let mut t = Tracker::established();
    for i in 1..=2 {
        assert_eq!(t.tcp(c("A", 1001, 5001)), KNOWN);
        assert_eq!(t.left(), 432_000, "repetition {i}");
    }
    for _ in 3..600 {
        assert_eq!(t.tcp(c("A", 1001, 5001)), KNOWN);
        assert_eq!(t.left(), 300);
    }
    assert_eq!(t.tcp(c("A", 1001, 5001).win(999)), KNOWN);
    assert_eq!(t.left(), 432_000, "it says something else");
    let mut t = Tracker::with("tcp_max_retrans", 1);
    t.cfg.set("tcp_timeout_max_retrans", 20).unwrap();
    t.handshake();
    assert_eq!(t.left(), 432_000);
    t.tcp(c("A", 1001, 5001));
    assert_eq!(t.left(), 20);
}

#[test]
fn a_closed_window_shortens_the_time_out() {
    let mut t = Tracker::established();
    assert_eq!(t.tcp(s("A", 5001, 1001).win(0)), KNOWN);
    assert_eq!(t.left(), 300);
    assert_eq!(t.tcp(s("A", 5001, 1001).win(1)), KNOWN);
    assert_eq!(t.left(), 432_000);
}
