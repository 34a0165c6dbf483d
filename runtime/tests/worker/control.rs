//! The control socket: clients of every kind, none of which holds the worker up.

use crate::guest::{PATIENCE, Pair, setup};
use hibernet::worker::ControlSocket;
use hibernet_netstack::Config;
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A worker with a control socket.
struct Asked {
    pair: Pair,
    path: PathBuf,
}

impl Asked {
    fn new(users: Option<Vec<u32>>) -> Asked {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hibernet-control-{}-{n}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let mut s = setup(Config::default());
        s.control = Some(ControlSocket { listener: UnixListener::bind(&path).unwrap(), users });
        let mut pair = Pair::new(s);
        assert!(pair.quiet(Duration::from_millis(50)), "the start does not end");
        Asked { pair, path }
    }

    fn connect(&self) -> UnixStream {
        let s = UnixStream::connect(&self.path).unwrap();
        s.set_nonblocking(true).unwrap();
        s
    }

    /// Lets the worker go on until this client has its whole answer.
    fn answer(&mut self, client: &mut UnixStream) -> Value {
        let mut text = Vec::new();
        let mut buffer = [0; 65536];
        let end = Instant::now() + PATIENCE;
        loop {
            match client.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => text.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    assert!(Instant::now() < end, "no answer");
                    self.pair.manager.run_with_timeout(5).unwrap();
                }
                Err(e) if e.kind() == ErrorKind::ConnectionReset => break,
                Err(e) => panic!("{e}"),
            }
        }
        serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&text)))
    }

    fn ask(&mut self, request: &str) -> Value {
        let mut client = self.connect();
        let text = format!("{request}\n");
        let mut left = text.as_bytes();
        let end = Instant::now() + PATIENCE;
        while !left.is_empty() {
            match client.write(left) {
                Ok(n) => left = &left[n..],
                Err(e) => assert!(e.kind() == ErrorKind::WouldBlock && Instant::now() < end, "{e}"),
            }
            self.pair.manager.run_with_timeout(0).unwrap();
        }
        self.answer(&mut client)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn whoever_asks_gets_the_counters() {
    let mut w = Asked::new(None);
    let answer = w.ask(r#"{"request":"stats"}"#);
    let v = &answer["ok"];
    assert_eq!(v["links"].as_array().unwrap().len(), 1, "{answer}");
    assert!(v["stack"]["tx_frames"].is_u64() && v["drops"]["truncated"].is_u64() && v["flows"]["tcp"].is_u64());
}

#[test]
fn what_is_no_request_is_told_so() {
    let mut w = Asked::new(None);
    let deep = format!(r#"{{"request":{}"#, "[".repeat(100_000));
    let bad = ["", "x", "{}", "[]", r#"{"request":"nonsense"}"#, r#"{"request":"rules-save"}"#, "\u{fffd}\0", &deep];
    for text in bad.into_iter().filter(|t| !t.is_empty()) {
        let answer = w.ask(text);
        assert_eq!(answer["error"]["kind"], "request", "{answer}");
    }
}

/// More clients than are served at a time, among them such that say nothing, stop in the middle, ask but do not read, and leave:
/// the others get their answers meanwhile, or when the time of those has run out.
#[test]
fn clients_that_dawdle_hold_nobody_up_for_long() {
    let mut w = Asked::new(None);
    let mut bad = Vec::new();
    for _ in 0..5 {
        bad.push(w.connect());
        let mut half = w.connect();
        half.write_all(b"{\"request\":").unwrap();
        bad.push(half);
        let mut unread = w.connect();
        unread.write_all(b"{\"request\":\"stats\"}\n").unwrap();
        bad.push(unread);
        let mut left = w.connect();
        left.write_all(b"{\"request\":\"stats\"}\n").unwrap();
        drop(left);
    }
    let begin = Instant::now();
    let mut good = w.connect();
    good.write_all(b"{\"request\":\"stats\"}\n").unwrap();
    // Ten that will never have asked, eight at a time: the socket's queue moves on after 5 s.
    let mut text = Vec::new();
    let mut buffer = [0; 65536];
    let mut longest = Duration::ZERO;
    loop {
        match good.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => text.extend_from_slice(&buffer[..n]),
            Err(_) => {
                assert!(begin.elapsed() < Duration::from_secs(20), "no answer");
                w.pair.manager.run_with_timeout(0).unwrap();
                // Whatever comes at the socket, one turn of the loop is short.
                let turn = Instant::now();
                w.pair.manager.run_with_timeout(0).unwrap();
                longest = longest.max(turn.elapsed());
                w.pair.manager.run_with_timeout(10).unwrap();
            }
        }
    }
    assert!(serde_json::from_slice::<Value>(&text).unwrap()["ok"].is_object());
    assert!(longest < Duration::from_secs(1), "a turn took {longest:?}");
    drop(bad);
    assert!(w.ask(r#"{"request":"stats"}"#)["ok"].is_object());
}

/// Requests without end, from more clients than there may be: told off, and little is held.
#[test]
fn requests_without_end_are_refused() {
    let mut w = Asked::new(None);
    let mut clients: Vec<(UnixStream, bool)> = (0..8).map(|_| (w.connect(), false)).collect();
    let endless = vec![b'x'; 256 << 10];
    let end = Instant::now() + PATIENCE;
    while clients.iter().any(|(_, done)| !done) {
        assert!(Instant::now() < end, "some are never refused");
        for (c, done) in clients.iter_mut().filter(|(_, done)| !done) {
            match c.write(&endless) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => *done = true,
                Ok(_) => {}
            }
        }
        w.pair.manager.run_with_timeout(0).unwrap();
    }
    for (c, _) in &mut clients {
        let answer = w.answer(c);
        let kind = answer["error"]["kind"].as_str().unwrap();
        assert!(kind == "request" || kind == "busy", "{answer}");
    }
    assert!(w.ask(r#"{"request":"stats"}"#)["ok"].is_object());
}

#[test]
fn only_some_users_may_ask() {
    let me = rustix::process::geteuid().as_raw();
    let mut w = Asked::new(Some(vec![me]));
    assert!(w.ask(r#"{"request":"stats"}"#)["ok"].is_object());
    let mut w = Asked::new(Some(vec![me + 1]));
    let mut client = w.connect();
    let answer = w.answer(&mut client);
    assert_eq!(answer["error"]["kind"], "denied", "{answer}");
}

fn restore(text: &str, more: &str) -> String {
    format!(r#"{{"request":"rules-restore","family":"v4","text":{}{more}}}"#, Value::from(text))
}

#[test]
fn rules_are_replaced_as_a_whole_or_not_at_all() {
    let mut w = Asked::new(None);
    let saved = |w: &mut Asked, more: &str| {
        let answer = w.ask(&format!(r#"{{"request":"rules-save","family":"v4"{more}}}"#));
        answer["ok"]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    let own = saved(&mut w, "");
    assert!(own.contains("-A HIBERNET-REACH -d 169.254.0.0/16 -j REJECT"), "{own}");
    let good = "*filter\n:FORWARD DROP [0:0]\n[7:700] -A FORWARD -p tcp -m tcp --dport 443 -j ACCEPT\nCOMMIT\n";
    assert_eq!(w.ask(&restore(good, r#","test":true"#))["ok"]["cut"], 0);
    assert_eq!(saved(&mut w, ""), own, "a test changes nothing");
    let answer = w.ask(&restore(good, ""));
    assert_eq!((&answer["ok"]["cut"], &answer["ok"]["other_dropped"]), (&Value::from(0), &Value::from(true)), "{answer}");
    let now = saved(&mut w, r#","table":"filter","counters":true"#);
    assert!(now.contains("[0:0] -A FORWARD -p tcp -m tcp --dport 443 -j ACCEPT"), "{now}");
    assert!(now.contains(":FORWARD DROP") && now.contains("-A HIBERNET-REACH"), "{now}");
    w.ask(&restore(good, r#","counters":true"#));
    assert!(saved(&mut w, r#","counters":true"#).contains("[7:700] -A FORWARD"));

    let now = saved(&mut w, "");
    let bad = [
        ("*filter\n-A FORWARD -p tcp --dport x -j DROP\nCOMMIT\n", "syntax", (2, 27)),
        ("*filter\n-A NOWHERE -j DROP\nCOMMIT\n", "meaning", (2, 4)),
        ("*filter\n-A INPUT -j DROP\nCOMMIT\n*nat\n-A PREROUTING -j SNAT --to-source 1.2.3.4\nCOMMIT\n", "meaning", (5, 1)),
    ];
    for (text, kind, at) in bad {
        let answer = w.ask(&restore(text, ""));
        let place = (answer["error"]["at"]["line"].as_u64(), answer["error"]["at"]["column"].as_u64());
        assert_eq!((answer["error"]["kind"].as_str(), place), (Some(kind), (Some(at.0), Some(at.1))), "{answer}");
        assert_eq!(saved(&mut w, ""), now);
    }
    let diff = |w: &mut Asked, text: &str| {
        let answer = w.ask(&format!(r#"{{"request":"rules-diff","family":"v4","text":{}}}"#, Value::from(text)));
        answer["ok"]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    assert_eq!(diff(&mut w, &now), "");
    assert_eq!(diff(&mut w, good), "");
    let other = diff(&mut w, &good.replace("443", "80"));
    assert!(
        other.contains("-A FORWARD -p tcp -m tcp --dport 443")
            && other.lines().filter(|l| l.starts_with(['+', '-'])).count() == 2,
        "{other}"
    );

    // Added to what is there.
    w.ask(&restore("*filter\n-I FORWARD -p udp -j DROP\nCOMMIT\n", r#","noflush":true"#));
    let now = saved(&mut w, "");
    assert!(now.contains("-A FORWARD -p udp -j DROP") && now.contains("--dport 443"), "{now}");
}

/// Answers that do not fit into a socket, to clients that do not read them: others are served meanwhile.
#[test]
fn large_answers_wait_for_those_who_read() {
    let mut w = Asked::new(None);
    let rules: String = (0..20_000).map(|i| format!("-A FORWARD -d 10.{}.{}.7/32 -j DROP\n", i / 256, i % 256)).collect();
    let answer = w.ask(&restore(&format!("*filter\n{rules}COMMIT\n"), ""));
    assert!(answer["ok"].is_object(), "{answer}");
    let ask = b"{\"request\":\"rules-save\",\"family\":\"v4\"}\n";
    let mut lazy: Vec<UnixStream> = (0..7).map(|_| w.connect()).collect();
    for c in &mut lazy {
        c.write_all(ask).unwrap();
    }
    for _ in 0..20 {
        assert!(w.ask(r#"{"request":"stats"}"#)["ok"].is_object());
    }
    let mut reader = w.connect();
    reader.write_all(ask).unwrap();
    let text = w.answer(&mut reader)["ok"]["text"].as_str().unwrap().to_owned();
    assert_eq!(text.lines().filter(|l| l.ends_with("-j DROP")).count(), 20_000);
    // Those who come back in time get theirs too.
    let late = w.answer(&mut lazy[0]);
    assert_eq!(late["ok"]["text"].as_str().unwrap(), text);
}

#[test]
fn requests_about_connections() {
    let mut w = Asked::new(None);
    let answer = w.ask(r#"{"request":"conntrack","which":{"proto":"tcp","src_nat":""},"form":"json"}"#);
    assert_eq!(answer["ok"], serde_json::json!({ "items": [], "next": null }), "{answer}");
    assert_eq!(w.ask(r#"{"request":"conntrack-stats"}"#)["ok"]["count"], 0);
    // Any place is no worse than none.
    assert!(w.ask(r#"{"request":"conntrack","from":4294967295}"#)["ok"].is_object());
    for bad in [
        r#"{"request":"conntrack","from":4294967296}"#,
        r#"{"request":"conntrack","which":{"proto":"nonsense"}}"#,
        r#"{"request":"conntrack","which":{"no_such_thing":1}}"#,
        r#"{"request":"conntrack","which":{"sport":70000}}"#,
    ] {
        assert_eq!(w.ask(bad)["error"]["kind"], "request", "{bad}");
    }
}
