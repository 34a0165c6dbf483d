//! TCP: the state table, windows, resets, pick-up.

use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::netfilter::{Body, Scenario, StepId, Talk, Tcp};
use hibernet_tests::wire::flags::{ACK, FIN, PSH, RST, SYN, URG};

use crate::STATES;

/// States of the table, and how a connection gets there.
const TABLE: [&str; 10] =
    ["none", "syn-sent", "syn-recv", "established", "fin-wait", "close-wait", "last-ack", "time-wait", "close", "syn-sent2"];

/// Brings a connection into a state.
fn reach(s: &mut Scenario, t: &mut Talk, state: &str) {
    match state {
        "none" => {}
        "syn-sent" => drop(t.syn(s)),
        "syn-recv" => {
            t.syn(s);
            t.say(s, 1, SYN | ACK, 0);
        }
        "established" => drop(t.open(s)),
        "fin-wait" => {
            t.open(s);
            t.fin(s, 0);
        }
        "close-wait" => {
            t.open(s);
            t.fin(s, 0);
            t.ack(s, 1);
        }
        "last-ack" => {
            t.open(s);
            t.fin(s, 0);
            t.ack(s, 1);
            t.fin(s, 1);
        }
        "time-wait" => {
            t.open(s);
            t.close(s, 0);
        }
        "close" => {
            t.open(s);
            t.rst(s, 0);
        }
        "syn-sent2" => {
            t.syn(s);
            t.say(s, 1, SYN, 0);
        }
        other => panic!("no such state: {other}"),
    }
}

/// Every kind of segment, from both ends, in one state; and what both say afterwards.
fn table(state: &str, v6: bool) -> Scenario {
    let mut s = Scenario::new(&format!("tcp-table-{state}"), v6, STATES);
    let kinds = [
        SYN,
        SYN | ACK,
        FIN | ACK,
        ACK,
        PSH | ACK,
        RST,
        RST | ACK,
        0,
        FIN,
        SYN | FIN,
        SYN | RST,
        SYN | URG,
        FIN | PSH | URG,
        PSH,
    ];
    for end in [0, 1] {
        for (i, &flags) in kinds.iter().enumerate() {
            let mut t = Talk::new(&s, Client, 1000 + 100 * end as u16 + i as u16, 80);
            reach(&mut s, &mut t, state);
            let data = if flags & PSH != 0 { 20 } else { 0 };
            t.say(&mut s, end, flags, data);
            t.ack(&mut s, 1 - end);
            t.ack(&mut s, end);
        }
    }
    s
}

/// A segment beside the row of numbers: offsets from the next sequence number and from the right acknowledgement.
fn off(s: &mut Scenario, t: &mut Talk, end: usize, flags: u8, by: (i64, i64), data: usize) -> StepId {
    let mut g = t.next_segment(end, flags, data);
    g.seq = g.seq.wrapping_add(by.0 as u32);
    g.ack = g.ack.wrapping_add(by.1 as u32);
    t.segment(s, end, g)
}

/// Segments at and beyond each of the four limits of the window check.
fn windows(name: &str, v6: bool, scale: Option<[u8; 2]>, settings: &[(&'static str, u32)]) -> Scenario {
    let mut s = Scenario::new(name, v6, STATES);
    s.settings = settings.to_vec();
    let mut port = 2000;
    for end in [0, 1] {
        let window = |t: &Talk| i64::from(t.window[1 - end]) << scale.map_or(0, |s| s[1 - end]);
        for edge in -2..=2 {
            for case in 0..6 {
                let mut t = Talk::new(&s, Client, port, 80);
                t.window = [8000, 9000];
                if let Some(scale) = scale {
                    t = t.scaled(scale);
                }
                port += 1;
                t.open(&mut s);
                t.data(&mut s, 0, 100);
                t.ack(&mut s, 1);
                t.data(&mut s, 1, 200);
                t.ack(&mut s, 0);
                let w = window(&t);
                let (by, data) = match case {
                    0 => ((w + edge, 0), 0),
                    1 => ((w - 10 + edge, 0), 10),
                    2 => ((-w - 1 + edge, 0), 0),
                    3 => ((0, edge), 5),
                    4 => ((0, -66_001 + edge), 0),
                    _ => ((w + 400 + edge, 0), 100),
                };
                off(&mut s, &mut t, end, ACK, by, data);
                t.data(&mut s, end, 7);
                t.ack(&mut s, 1 - end);
            }
        }
        s.check();
    }
    s
}

/// Resets at many numbers.
fn resets(name: &str, v6: bool, settings: &[(&'static str, u32)]) -> Scenario {
    let mut s = Scenario::new(name, v6, STATES);
    s.settings = settings.to_vec();
    let mut port = 3000;
    for state in ["syn-sent", "syn-recv", "established", "fin-wait", "time-wait"] {
        for end in [0, 1] {
            for by in [-100_000, -1, 0, 1, 100, 100_000] {
                for flags in [RST, RST | ACK] {
                    let mut t = Talk::new(&s, Client, port, 80);
                    port += 1;
                    reach(&mut s, &mut t, state);
                    off(&mut s, &mut t, end, flags, (by, 0), 0);
                    t.ack(&mut s, 1 - end);
                    t.data(&mut s, end, 3);
                }
            }
        }
    }
    for seq in [0, 1] {
        let mut t = Talk::new(&s, Client, port, 80);
        port += 1;
        t.open(&mut s);
        t.data(&mut s, 0, 10);
        t.segment(&mut s, 1, Tcp { seq, flags: RST, ..Tcp::default() });
        t.ack(&mut s, 1);
    }
    // Following the own end rather than what was acknowledged.
    let mut t = Talk::new(&s, Client, port, 80);
    t.open(&mut s);
    t.data(&mut s, 0, 500);
    t.rst(&mut s, 0);
    t.ack(&mut s, 1);
    s
}

fn opening(v6: bool) -> Vec<Scenario> {
    let mut all = Vec::new();

    let mut s = Scenario::new("tcp-simultaneous-open", v6, STATES);
    let mut t = Talk::new(&s, Client, 4000, 4000);
    t.syn(&mut s);
    t.say(&mut s, 1, SYN, 0);
    t.next[0] = 1000;
    t.next[1] = 5001;
    t.say(&mut s, 0, SYN | ACK, 0);
    s.check();
    t.next[1] = 5000;
    t.say(&mut s, 1, SYN | ACK, 0);
    s.check();
    t.ack(&mut s, 0);
    t.ack(&mut s, 1);
    t.data(&mut s, 0, 100);
    t.ack(&mut s, 1);
    t.close(&mut s, 1);
    all.push(s);

    let mut s = Scenario::new("tcp-syn-again", v6, STATES).with("tcp_timeout_syn_sent", 10);
    let mut t = Talk::new(&s, Client, 4001, 80);
    let syn = t.syn(&mut s);
    s.wait(3200);
    s.again(syn, s.syn(1000));
    s.check();
    s.again(syn, s.syn(777_000));
    t.say(&mut s, 1, SYN | ACK, 0);
    t.ack(&mut s, 0);
    all.push(s);

    let mut s = Scenario::new("tcp-refused", v6, STATES);
    let syn = s.across(Client, 4002, 80, s.syn(1000));
    s.answer(syn, s.tcp(RST | ACK, 0, 1001, 0));
    s.check();
    s.again(syn, s.syn(1000));
    s.answer(syn, s.tcp(RST | ACK, 0, 1001, 0));
    s.again(syn, s.syn(2000));
    s.answer(syn, s.tcp(RST | ACK, 0, 7, 0));
    s.answer(syn, s.tcp(SYN | ACK, 100, 2001, 0));
    all.push(s);

    let mut s = Scenario::new("tcp-reset-before-reply", v6, STATES);
    let syn = s.across(Client, 4003, 80, s.syn(1000));
    s.again(syn, s.tcp(RST, 1001, 0, 0));
    s.check();
    s.answer(syn, s.tcp(SYN | ACK, 5000, 1001, 0));
    all.push(s);

    let mut s = Scenario::new("tcp-pick-up", v6, STATES);
    let mut t = Talk::new(&s, Client, 4004, 80);
    t.data(&mut s, 0, 100);
    s.check();
    t.ack(&mut s, 1);
    s.check();
    off(&mut s, &mut t, 0, ACK, (5_000_000, 0), 10);
    off(&mut s, &mut t, 1, ACK, (-5_000_000, 9_000_000), 10);
    t.close(&mut s, 1);
    let mut t = Talk::new(&s, Server, 4004, 81);
    t.fin(&mut s, 0);
    t.rst(&mut s, 0);
    all.push(s);

    let mut s = Scenario::new("tcp-strict", v6, STATES).with("tcp_loose", 0);
    let mut t = Talk::new(&s, Client, 4005, 80);
    t.data(&mut s, 0, 100);
    t.ack(&mut s, 1);
    t.next = [1000, 5000];
    t.open(&mut s);
    all.push(s);
    all
}

fn reuse(v6: bool) -> Vec<Scenario> {
    let mut all = Vec::new();
    for (state, end) in [("time-wait", 0), ("time-wait", 1), ("close", 0), ("close", 1), ("last-ack", 0), ("fin-wait", 0)] {
        let mut s = Scenario::new(&format!("tcp-reopen-{state}-{end}"), v6, STATES);
        let mut t = Talk::new(&s, Client, 4100, 80);
        reach(&mut s, &mut t, state);
        t.next = [900_000, 800_000];
        t.say(&mut s, end, SYN, 0);
        s.check();
        t.say(&mut s, 1 - end, SYN | ACK, 0);
        s.check();
        t.ack(&mut s, end);
        t.data(&mut s, end, 10);
        t.ack(&mut s, 1 - end);
        all.push(s);
    }

    let mut s = Scenario::new("tcp-half-open", v6, STATES);
    let mut t = Talk::new(&s, Client, 4101, 80);
    t.open(&mut s);
    t.data(&mut s, 0, 10);
    t.ack(&mut s, 1);
    // The client forgot the connection: it says SYN, hears a challenge, says RST, and opens anew.
    let first = t.segment(&mut s, 0, Tcp { seq: 77_000, flags: SYN, window: 64_240, ..Tcp::default() });
    t.ack(&mut s, 1);
    t.segment(&mut s, 0, Tcp { seq: t.next[0], flags: RST, ..Tcp::default() });
    s.check();
    s.again(first, s.syn(77_000));
    t.next = [77_001, 99_000];
    t.say(&mut s, 1, SYN | ACK, 0);
    t.ack(&mut s, 0);
    all.push(s);

    let mut s = Scenario::new("tcp-resynchronise", v6, STATES);
    let mut t = Talk::new(&s, Client, 4102, 80);
    t.open(&mut s);
    t.data(&mut s, 1, 100);
    // Ignored, and then answered by the other end: both know better than we.
    t.next = [50_000, 60_000];
    t.say(&mut s, 0, SYN, 0);
    s.check();
    t.say(&mut s, 1, SYN | ACK, 0);
    s.check();
    t.ack(&mut s, 0);
    t.data(&mut s, 0, 100);
    t.ack(&mut s, 1);
    all.push(s);

    let mut s = Scenario::new("tcp-challenge-in-last-ack", v6, STATES);
    let mut t = Talk::new(&s, Client, 4103, 80);
    reach(&mut s, &mut t, "last-ack");
    t.segment(&mut s, 0, Tcp { seq: 5, flags: SYN, window: 1000, ..Tcp::default() });
    t.ack(&mut s, 1);
    s.check();
    t.ack(&mut s, 0);
    all.push(s);
    all
}

fn timeouts(v6: bool) -> Vec<Scenario> {
    let mut all = Vec::new();

    let mut s = Scenario::new("tcp-unacknowledged", v6, STATES);
    let mut t = Talk::new(&s, Client, 4200, 80);
    t.open(&mut s);
    s.check();
    t.data(&mut s, 0, 100);
    s.check();
    t.ack(&mut s, 1);
    s.check();
    t.data(&mut s, 1, 100);
    s.check();
    t.ack(&mut s, 0);
    all.push(s);

    for (name, max) in [("tcp-retransmits", 3), ("tcp-retransmits-1", 1)] {
        let mut s = Scenario::new(name, v6, STATES).with("tcp_max_retrans", max);
        let mut t = Talk::new(&s, Client, 4201, 80);
        t.open(&mut s);
        let g = t.next_segment(0, PSH | ACK, 100);
        for _ in 0..5 {
            t.segment(&mut s, 0, g.clone());
            s.check();
        }
        t.next[0] += 100;
        t.ack(&mut s, 1);
        all.push(s);
    }

    let mut s = Scenario::new("tcp-zero-window", v6, STATES);
    let mut t = Talk::new(&s, Client, 4202, 80);
    t.open(&mut s);
    t.data(&mut s, 0, 100);
    t.window[1] = 0;
    t.ack(&mut s, 1);
    s.check();
    t.data(&mut s, 0, 1);
    t.ack(&mut s, 1);
    t.window[1] = 20_000;
    t.ack(&mut s, 1);
    all.push(s);

    for (state, setting) in [
        ("syn-sent", "tcp_timeout_syn_sent"),
        ("syn-recv", "tcp_timeout_syn_recv"),
        ("established", "tcp_timeout_established"),
        ("fin-wait", "tcp_timeout_fin_wait"),
        ("last-ack", "tcp_timeout_last_ack"),
        ("close", "tcp_timeout_close"),
    ] {
        let mut s = Scenario::new(&format!("tcp-timeout-{state}"), v6, STATES).with(setting, 1);
        let mut t = Talk::new(&s, Client, 4203, 80);
        reach(&mut s, &mut t, state);
        s.wait(1300);
        t.ack(&mut s, 1);
        t.data(&mut s, 0, 10);
        t.syn(&mut s);
        all.push(s);
    }
    all
}

fn broken(v6: bool) -> Vec<Scenario> {
    let mut all = Vec::new();
    let mut s = Scenario::new("tcp-wrong-checksums", v6, STATES);
    let wrong = |b: Body| Body::Broken(Box::new(b), 5);
    s.across(Client, 4300, 80, wrong(s.syn(1)));
    let mut t = Talk::new(&s, Client, 4301, 80);
    let first = t.open(&mut s);
    s.again(first, wrong(s.tcp(RST, t.next[0], 0, 0)));
    s.answer(first, wrong(s.tcp(FIN | ACK, t.next[1], t.next[0], 0)));
    t.ack(&mut s, 0);
    all.push(s);

    let mut s = Scenario::new("tcp-malformed", v6, STATES);
    let a = (s.node(Client), 0);
    let b = (s.node(Server), 0);
    let mut header = vec![0x10, 0xce, 0, 80, 0, 0, 3, 0xe8, 0, 0, 0, 0, 0x50, SYN, 0xfa, 0xf0, 0, 0, 0, 0];
    for doff in [0x00, 0x40, 0x60, 0xf0] {
        header[12] = doff;
        s.send(Client, a, b, Body::Raw(6, header.clone()));
    }
    s.across(Client, 4302, 80, s.syn(1));
    all.push(s);
    all
}

fn sack(v6: bool) -> Scenario {
    let mut s = Scenario::new("tcp-selective-acknowledgement", v6, STATES);
    let mut t = Talk::new(&s, Client, 4400, 80).scaled([2, 3]);
    for o in &mut t.options {
        o.extend([1, 1, 4, 2]);
    }
    t.open(&mut s);
    t.data(&mut s, 0, 1000);
    t.next[0] += 500;
    t.data(&mut s, 0, 1000);
    for (right, stamps) in [(0_i64, false), (0, true), (1, false), (100_000, false)] {
        let mut g = t.next_segment(1, ACK, 0);
        let end = t.next[0].wrapping_add(right as u32);
        g.ack = t.next[0] - 1500;
        g.options = Vec::new();
        if stamps {
            g.options.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        }
        g.options.extend([1, 1, 5, 10]);
        g.options.extend((end - 1000).to_be_bytes());
        g.options.extend(end.to_be_bytes());
        t.segment(&mut s, 1, g);
        s.check();
    }
    t.ack(&mut s, 1);
    s
}

/// Out-of-window FIN and RST from both directions in turn lower the time-out.
fn out_of_window_ends(v6: bool) -> Scenario {
    let mut s = Scenario::new("tcp-ends-out-of-window", v6, STATES);
    for (port, flags) in [(4500, FIN | ACK), (4501, RST)] {
        let mut t = Talk::new(&s, Client, port, 80);
        t.open(&mut s);
        t.data(&mut s, 0, 10);
        t.ack(&mut s, 1);
        off(&mut s, &mut t, 0, flags, (5_000_000, 0), 0);
        s.check();
        off(&mut s, &mut t, 1, flags, (5_000_000, 0), 0);
        s.check();
        off(&mut s, &mut t, 0, flags, (5_000_000, 0), 0);
        off(&mut s, &mut t, 1, flags, (5_000_000, 0), 0);
        t.ack(&mut s, 0);
    }
    s
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut all: Vec<Scenario> = TABLE.iter().map(|state| table(state, false)).collect();
    all.push(table("established", true));
    all.push(table("none", true));
    all.push(windows("tcp-window", false, None, &[]));
    all.push(windows("tcp-window-scaled", false, Some([2, 5]), &[]));
    all.push(windows("tcp-window-scaled-15", false, Some([15, 1]), &[]));
    all.push(windows("tcp-window-v6", true, Some([0, 14]), &[]));
    all.push(windows("tcp-liberal", false, None, &[("tcp_be_liberal", 1)]));
    all.push(resets("tcp-resets", false, &[]));
    all.push(resets("tcp-resets-ignored", false, &[("tcp_ignore_invalid_rst", 1)]));
    all.push(resets("tcp-resets-v6", true, &[]));
    for v6 in [false, true] {
        all.extend(opening(v6));
        all.extend(reuse(v6));
        all.extend(broken(v6));
        all.push(sack(v6));
        all.push(out_of_window_ends(v6));
    }
    all.extend(timeouts(false));
    all
}
