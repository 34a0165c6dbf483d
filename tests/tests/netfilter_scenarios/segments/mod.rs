//! TCP, number by number: the special cases of the state machine and the bounds of the windows, and segments by chance.

mod by_chance;

use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::netfilter::{Body, Scenario, Tcp};

use crate::STATES;
use by_chance::by_chance;

/// One connection per paragraph. `>` is the client's segment, `<` the server's: flags, sequence number, acknowledgement,
/// then `+` payload, `w` window (1000 otherwise), options. `open` is a handshake, after which the client's next byte is 1001
/// and the server's 5001; `close` is the client's FIN and all that follows from it.
const CASES: &str = include_str!("cases.txt");

fn flags(word: &str) -> u8 {
    word.chars().map(|c| 1 << "FSRPAUEC".find(c).unwrap_or_else(|| panic!("no flag {c}"))).sum()
}

/// Reads what stands behind `>` or `<`.
fn segment(line: &str) -> Tcp {
    let mut words = line.split_whitespace();
    let mut next = || words.next().unwrap_or_else(|| panic!("{line}"));
    let number = |s: &str| s.parse::<u32>().unwrap_or_else(|_| panic!("{line}"));
    let mut t = Tcp { flags: flags(next()), seq: number(next()), ack: number(next()), window: 1000, ..Tcp::default() };
    for word in words {
        if let Some(n) = word.strip_prefix('+') {
            t.data = number(n) as usize;
        } else if let Some(n) = word.strip_prefix('w') {
            t.window = number(n) as u16;
        } else if let Some(n) = word.strip_prefix("scale") {
            t.options.extend([3, 3, number(n) as u8, 1]);
        } else if word == "sackok" {
            t.options.extend([4, 2, 1, 1]);
        } else if word == "stamp" {
            t.options.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        } else if let Some((left, right)) = word.strip_prefix("sack").and_then(|n| n.split_once('-')) {
            t.options.extend([1, 1, 5, 10]);
            t.options.extend(number(left).to_be_bytes());
            t.options.extend(number(right).to_be_bytes());
        } else {
            panic!("{line}");
        }
    }
    t
}

fn cases(name: &str, v6: bool, settings: &[(&'static str, u32)]) -> Scenario {
    let mut s = Scenario::new(name, v6, STATES);
    s.settings = settings.to_vec();
    for (i, case) in CASES.split("\n\n").enumerate() {
        let port = 20_000 + i as u16;
        for line in case.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let lines = match line {
                "open" => &["> S 1000 0", "< SA 5000 1001", "> A 1001 5001"][..],
                "close" => &["> FA 1001 5001", "< A 5001 1002", "< FA 5001 1002", "> A 1002 5002"],
                _ => &[line],
            };
            for line in lines {
                let (end, rest) = line.split_at(1);
                send(&mut s, end == ">", port, segment(rest));
            }
        }
        if i % 4 == 3 {
            s.check();
        }
    }
    s
}

fn send(s: &mut Scenario, client: bool, port: u16, t: Tcp) {
    match client {
        true => s.across(Client, port, 80, Body::Tcp(t)),
        false => s.across(Server, 80, port, Body::Tcp(t)),
    };
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        cases("tcp-segments-cases", false, &[]),
        cases("tcp-segments-cases-v6", true, &[]),
        cases("tcp-segments-cases-liberal", false, &[("tcp_be_liberal", 1)]),
        cases("tcp-segments-cases-strict", false, &[("tcp_loose", 0)]),
        cases("tcp-segments-cases-resets", false, &[("tcp_ignore_invalid_rst", 1), ("tcp_max_retrans", 1)]),
        by_chance("tcp-segments-by-chance-1", 1, 150, &[]),
        by_chance("tcp-segments-by-chance-4", 4, 150, &[]),
        by_chance("tcp-segments-by-chance-liberal", 2, 100, &[("tcp_be_liberal", 1)]),
        by_chance("tcp-segments-by-chance-strict", 3, 100, &[("tcp_loose", 0)]),
        by_chance("tcp-segments-by-chance-resets", 5, 100, &[("tcp_ignore_invalid_rst", 1), ("tcp_max_retrans", 1)]),
        by_chance(
            "tcp-segments-by-chance-times",
            6,
            100,
            &[
                ("tcp_timeout_unacknowledged", 50),
                ("tcp_timeout_max_retrans", 20),
                ("tcp_timeout_close", 33),
                ("tcp_timeout_syn_sent", 44),
            ],
        ),
    ]
}
