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
        client.write_all(format!("{request}\n").as_bytes()).unwrap();
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
