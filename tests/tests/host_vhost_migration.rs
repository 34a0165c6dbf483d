//! A virtual machine moves, and its network rides along over vhost-user. A stand-in plays its monitor at both ends, with a namespace as the guest.

#[path = "host_freeze/kit.rs"]
#[allow(dead_code)]
mod kit;

use hibernet_tests::lab::{Family, GuestLab, Place, Proc, wait_until};
use kit::{SOON, Streams, json, numbers};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const FRONT_END: &str = env!("CARGO_BIN_EXE_front_end");
const STREAMS: &str = env!("CARGO_BIN_EXE_streams");
const CONNS: usize = 8;

/// An address that is translated to that of a server outside.
const RULES: &str = "*nat\n-A PREROUTING -d 10.77.0.1/32 -p tcp --dport 7003 -j DNAT --to-destination 10.99.0.1:7002\nCOMMIT\n";

/// How often the machine moves.
fn moves() -> usize {
    std::env::var("HIBERNET_MOVES").map_or(3, |n| n.parse().expect("HIBERNET_MOVES is a number"))
}

fn socket(n: usize) -> String {
    format!("/run/vm{n}.sock")
}

struct World {
    w: GuestLab,
    monitor: Proc,
    orders: String,
    attach: Proc,
    /// Connections out of the machine, into a published port of it, and through a translation, all of which move data.
    streams: Vec<Streams>,
    pulse: Proc,
    pulse_stop: String,
    _echo: Proc,
}

impl World {
    /// `options` are those of the first `attach` beside all others.
    fn new(options: &[&str]) -> Option<World> {
        World::with_pairs(1, options)
    }

    /// The same with so many pairs of queues.
    fn with_pairs(pairs: usize, options: &[&str]) -> Option<World> {
        let w = GuestLab::new()?;
        let rules = w.lab.path("rules");
        std::fs::write(&rules, RULES).expect("file");
        let ports = ["-p", "7100-7101:7100", "-p", "7070:7000"];
        let (queues, pairs) = (pairs.to_string(), format!("pairs={pairs}"));
        let all = ["--vhost-user", &socket(0), "--queues", &queues, "--name", "vm0", "--rules", &rules, "--rules6", "/dev/null"];
        let mut attach = w.attach(&[&all, &ports[..], options].concat());
        let orders = w.lab.path("orders");
        let monitor = w.monitor(&[FRONT_END, &socket(0), "eth0", &format!("orders={orders}"), &pairs]);
        w.configure(65_520);
        w.wait_served(&mut attach);
        let mut streams = Vec::new();
        for (i, family) in Family::BOTH.into_iter().enumerate() {
            streams.push(World::open(&w, family, Some((family.remote(), 7000 + i as u16)), 7000 + i as u16));
            streams.push(World::open(&w, family, None, 7100 + i as u16));
        }
        streams.push(World::open(&w, Family::V4, Some(("10.77.0.1", 7003)), 7002));
        let echo = w.lab.peer("echo.py", &["udp", "0.0.0.0", "7200"]);
        let mut echo = w.lab.spawn(Place::Remote, &echo.iter().map(String::as_str).collect::<Vec<_>>());
        w.lab.wait_bound(Place::Remote, 7200, &mut echo);
        let pulse_stop = w.lab.path("pulse-stop");
        let pulse = w.lab.peer("pulse.py", &["10.99.0.1", "7200", &pulse_stop]);
        let pulse = w.spawn(&pulse.iter().map(String::as_str).collect::<Vec<_>>());
        Some(World { w, monitor, orders, attach, streams, pulse, pulse_stop, _echo: echo })
    }

    /// Out of the machine to an address, if one is given, with a server outside at `port`; else into the machine's published port.
    fn open(w: &GuestLab, family: Family, to: Option<(&str, u16)>, port: u16) -> Streams {
        let (stop, conns, text) = (Streams::stop_file(&w.lab), format!("conns={CONNS}"), port.to_string());
        let stop_option = format!("stop={stop}");
        let pace = ["chunk=2000", "every=10", &conns, &stop_option];
        let serve = [&[STREAMS, "serve", family.any(), &text], &pace[..]].concat();
        let streams = if let Some((to, port)) = to {
            let at = port.to_string();
            let server = w.lab.serve(Place::Remote, text.parse().expect("a port"), &serve);
            Streams::of(w.spawn(&[&[STREAMS, "connect", to, &at], &pace[..]].concat()), server, stop)
        } else {
            let server = w.spawn(&serve);
            wait_until("the machine's server listens", SOON, || {
                let table = w.sh(5, "cat /proc/self/net/tcp /proc/self/net/tcp6").stdout;
                table.lines().any(|l| l.contains(&format!(":{port:04X} ")) && l.contains(" 0A "))
            });
            let connect = [&[STREAMS, "connect", family.host(), &text], &pace[..]].concat();
            Streams::of(w.lab.spawn(Place::Remote, &connect), server, stop)
        };
        streams.wait_up(CONNS as u32);
        streams
    }

    /// Another `attach`, which waits for a machine.
    fn other(&self, n: usize, options: &[&str]) -> Proc {
        let (socket, name) = (socket(n), format!("vm{n}"));
        let mut attach = self.w.attach(&[&["--vhost-user", &socket, "--name", &name], options].concat());
        wait_until("it listens", SOON, || {
            assert!(attach.running(), "{}", attach.output());
            self.w.lab.sh(Place::Host, 5, &format!("test -S {socket}")).code == 0
        });
        attach
    }

    /// Gives the monitor an order, which it can carry out; what it says.
    fn order(&mut self, order: &str) -> String {
        let said = self.asked(order);
        assert!(!said.starts_with("error"), "{order}: {said}\n{}", self.attach.output());
        said
    }

    fn asked(&mut self, order: &str) -> String {
        let mut stream = UnixStream::connect(&self.orders).expect("the monitor listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("time-out");
        writeln!(stream, "{order}").expect("order");
        let mut said = String::new();
        BufReader::new(stream).read_line(&mut said).expect("an answer");
        assert!(self.monitor.running(), "the monitor has ended: {}", self.monitor.output());
        said
    }

    fn all_move(&self) {
        self.streams.iter().for_each(|s| s.wait_moved(1));
    }

    fn state(&self, name: &str) -> String {
        let list = json(&self.w.lab.hibernet(10, &["list", "--json"]));
        let entry = list.as_array().expect("a list").iter().find(|e| e["name"] == name);
        entry.map_or("none", |e| e["state"].as_str().expect("a state")).to_owned()
    }

    /// Ends all connections: not a byte is missing. Datagrams on their way in `moves` moves may be.
    fn finish(mut self, moves: u64) {
        std::fs::write(&self.pulse_stop, "").expect("file");
        assert_eq!(self.pulse.wait(SOON), 0, "{}", self.pulse.output());
        let said = self.pulse.output();
        let done = numbers(&said, "done").unwrap_or_else(|| panic!("no end: {said}"));
        assert_eq!(done["ports"], 1, "its source has changed");
        assert!(done["sent"] - done["got"] <= 5 * moves, "{} of {} datagrams came back", done["got"], done["sent"]);
        let bytes: Vec<_> = self.streams.drain(..).map(Streams::finish).collect();
        eprintln!("bytes of clients and servers {bytes:?}; datagrams {} of {}", done["got"], done["sent"]);
    }
}

#[test]
fn connections_move_along() {
    connections_move_along_with(1, 1);
}

#[test]
fn connections_move_along_over_several_queues() {
    connections_move_along_with(3, 1);
}

#[test]
fn connections_move_along_that_several_workers_carry() {
    connections_move_along_with(2, 2);
}

fn connections_move_along_with(pairs: usize, workers: usize) {
    let (queues, workers) = (pairs.to_string(), workers.to_string());
    let Some(mut w) = World::with_pairs(pairs, &["--workers", &workers]) else { return };
    let moves = moves();
    let carried = json(&w.w.lab.hibernet(10, &["stats", "vm0", "--json"]));
    let carried: Vec<_> = carried["workers"].as_array().into_iter().flatten().filter_map(|w| w["tcp"].as_u64()).collect();
    assert!(carried.iter().all(|n| *n > 0) && carried.iter().sum::<u64>() == (5 * CONNS) as u64, "{carried:?}");
    for n in 1..=moves {
        w.all_move();
        let next = w.other(n, &["--queues", &queues, "--workers", &workers]);
        let said = w.order(&format!("move {}", socket(n)));
        eprint!("move {n}: {said}");
        let mut before = std::mem::replace(&mut w.attach, next);
        assert_eq!(before.wait(SOON), 0, "{}", before.output());
        w.all_move();
        wait_until("it is known to run", SOON, || w.state(&format!("vm{n}")) == "running");
        assert_eq!(w.state(&format!("vm{}", n - 1)), "none");
    }
    // What is in force came along: a new connection through the published port and through the translation.
    let nat = w.w.lab.hibernet(10, &["rules", "save", &format!("vm{moves}")]);
    assert!(nat.ok().contains("--to-destination 10.99.0.1:7002"), "{nat}");
    w.w.transfer();
    w.w.published(7070, 7000);
    assert!(w.attach.running(), "{}", w.attach.output());
    w.finish(moves as u64);
}

#[test]
fn a_machine_that_stays_loses_nothing() {
    let Some(mut w) = World::new(&[]) else { return };
    let mut other = w.other(1, &[]);
    let spoil = format!("spoil {}", socket(1));
    for order in ["stay", "break 0", &spoil, "return", "break 1000", "stay"] {
        w.all_move();
        let said = w.order(order);
        eprint!("{order}: {said}");
        w.all_move();
        wait_until("it is known to run", SOON, || w.state("vm0") == "running");
        assert!(w.attach.running(), "{}", w.attach.output());
    }
    assert!(other.running() && other.output().contains("cannot be loaded"), "{}", other.output());
    w.w.published(7070, 7000);
    // The other one is as it was before.
    w.order(&format!("move {}", socket(1)));
    assert_eq!(w.attach.wait(SOON), 0, "{}", w.attach.output());
    w.attach = other;
    w.all_move();
    w.finish(7);
}

/// Neither side may take connections over, or only the one that they leave.
#[test]
fn where_connections_cannot_move_the_machine_does_and_they_are_reset() {
    let none = ["--repair-helper", "/nonexistent"];
    for before in [&[][..], &none[..]] {
        let Some(mut w) = World::new(before) else { return };
        let next = w.other(1, &none);
        w.all_move();
        // It stays; then nothing is lost.
        w.order("stay");
        w.all_move();
        w.w.published(7070, 7000);
        w.order(&format!("move {}", socket(1)));
        assert_eq!(w.attach.wait(SOON), 0, "{}", w.attach.output());
        w.attach = next;
        for s in &w.streams {
            wait_until("the machine's connections are reset", SOON, || {
                [&s.client, &s.server].iter().any(|p| p.output().lines().filter(|l| l.contains("reset by peer")).count() == CONNS)
            });
        }
        w.w.wait_served(&mut w.attach);
        w.w.transfer();
        // Else the port's packets stay locked for a minute: who could unlock them was to be at the other side.
        if !before.is_empty() {
            w.w.published(7070, 7000);
        }
        assert!(w.attach.output().contains("its connections do not come along"), "{}", w.attach.output());
    }
}

/// What was required keeps a machine where its connections are: either side may say so.
#[test]
fn a_machine_that_may_lose_nothing_stays_where_it_would() {
    let (strict, none) = (["--require", "all"], ["--require", "all", "--repair-helper", "/nonexistent"]);
    for before in [&none[..], &strict] {
        let Some(mut w) = World::new(before) else { return };
        let other = w.other(1, &none);
        for _ in 0..2 {
            w.all_move();
            let said = w.asked(&format!("move {}", socket(1)));
            // The side that cannot carry them over is the one that refuses.
            let (whose, what) = if before == none { (&w.attach, "be saved") } else { (&other, "does not take the state") };
            assert!(said.starts_with("error") && said.contains(what), "{said}");
            wait_until("it says why", SOON, || whose.output().contains("100 % are required"));
            w.all_move();
            wait_until("it is known to run", SOON, || w.state("vm0") == "running");
        }
        w.w.published(7070, 7000);
        if before != none {
            let next = w.other(2, &strict);
            w.order(&format!("move {}", socket(2)));
            assert_eq!(w.attach.wait(SOON), 0, "{}", w.attach.output());
            w.attach = next;
            w.all_move();
        }
        w.finish(3);
    }
}

/// What an older hibernet could not read keeps a machine where it is; without that it moves.
#[test]
fn a_machine_moves_as_an_image_of_an_older_level() {
    let Some(mut w) = World::new(&["--compat", "1"]) else { return };
    let next = w.other(1, &[]);
    let rules = |w: &World, text: &str| {
        let path = w.w.lab.path("others");
        std::fs::write(&path, text).expect("file");
        w.w.lab.hibernet(10, &["rules", "restore", "vm0", &path]).ok();
    };
    rules(&w, &format!("{RULES}*filter\n-A FORWARD -p tcp -m connlimit --connlimit-above 100 -j DROP\nCOMMIT\n"));
    w.all_move();
    let said = w.asked(&format!("move {}", socket(1)));
    assert!(said.starts_with("error") && said.contains("be saved"), "{said}");
    wait_until("it says why", SOON, || w.attach.output().contains("level 1") && w.attach.output().contains("-m connlimit"));
    wait_until("it is known to run", SOON, || w.state("vm0") == "running");
    w.all_move();
    rules(&w, &format!("{RULES}*filter\nCOMMIT\n"));
    let image = w.w.lab.path("image");
    w.order(&format!("keep {image}"));
    let inventory = json(&w.w.lab.hibernet(10, &["inspect", &image, "--json"]));
    assert_eq!(inventory["level"], 1, "{inventory}");
    w.all_move();
    w.order(&format!("move {}", socket(1)));
    assert_eq!(w.attach.wait(SOON), 0, "{}", w.attach.output());
    w.attach = next;
    w.all_move();
    w.finish(3);
}
