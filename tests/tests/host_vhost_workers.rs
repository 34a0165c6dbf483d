//! `attach --vhost-user --workers`: several workers serve the pairs of queues of a virtual machine. A stand-in plays its monitor, with a namespace as the guest.

#[path = "host_freeze/kit.rs"]
#[allow(dead_code)]
mod kit;

use hibernet_tests::lab::{Family, GuestLab, Proc, wait_until};
use kit::{SOON, Streams, json};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const FRONT_END: &str = env!("CARGO_BIN_EXE_front_end");
const STREAMS: &str = env!("CARGO_BIN_EXE_streams");
const SOCKET: &str = "/run/vm.sock";

/// A machine with its network.
struct World {
    w: GuestLab,
    attach: Proc,
    monitor: Proc,
    orders: String,
}

impl World {
    /// `pairs` are those that the machine has.
    fn new(pairs: usize, options: &[&str]) -> Option<World> {
        let w = GuestLab::new()?;
        let mut attach = w.attach(&[&["--vhost-user", SOCKET, "--mtu", "1500", "--name", "vm"], options].concat());
        let orders = w.lab.path("orders");
        let monitor = w.monitor(&[FRONT_END, SOCKET, "eth0", &format!("pairs={pairs}"), &format!("orders={orders}")]);
        w.configure(1500);
        w.wait_served(&mut attach);
        Some(World { w, attach, monitor, orders })
    }

    /// Connections from the machine to a server outside, over which data go both ways.
    fn streams(&self, family: Family, port: u16, count: u32) -> Streams {
        let (stop, text, conns) = (Streams::stop_file(&self.w.lab), port.to_string(), format!("conns={count}"));
        let stop_option = format!("stop={stop}");
        // Slow enough to leave room for transfers beside them, where the machine is busy and nothing is optimised.
        let pace = ["chunk=2000", "every=100", &conns, &stop_option];
        let serve = [&[STREAMS, "serve", family.any(), &text], &pace[..]].concat();
        let server = self.w.lab.serve(hibernet_tests::lab::Place::Remote, port, &serve);
        let client = self.w.spawn(&[&[STREAMS, "connect", family.remote(), &text], &pace[..]].concat());
        let streams = Streams::of(client, server, stop);
        streams.wait_up(count);
        streams
    }

    fn stats(&self) -> Value {
        json(&self.w.lab.hibernet(10, &["stats", "vm", "--json"]))
    }

    /// How many TCP flows each worker carries.
    fn carried(&self) -> Vec<u64> {
        let all = self.stats();
        all["workers"].as_array().expect("workers").iter().map(|w| w["tcp"].as_u64().expect("a number")).collect()
    }

    fn number(&self, of: &str, what: &str) -> u64 {
        self.stats()[of][what].as_u64().expect("a number")
    }

    /// Gives the monitor an order, which it can carry out.
    fn order(&mut self, order: &str) {
        let mut stream = UnixStream::connect(&self.orders).expect("the monitor listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("time-out");
        writeln!(stream, "{order}").expect("order");
        let mut said = String::new();
        BufReader::new(stream).read_line(&mut said).expect("an answer");
        assert!(said.starts_with("done"), "{order}: {said}\n{}", self.attach.output());
        assert!(self.monitor.running(), "the monitor has ended: {}", self.monitor.output());
    }

    fn end(mut self) {
        assert!(self.attach.running(), "{}", self.attach.output());
        self.attach.signal("TERM");
        assert_eq!(self.attach.wait(SOON), 0, "{}", self.attach.output());
        assert!(!self.attach.output().contains("trouble"), "{}", self.attach.output());
    }
}

#[test]
fn flows_are_spread_and_all_work() {
    for (pairs, options) in [(2, ["--workers", "2", "--queues", "2"]), (4, ["--workers", "3", "--queues", "4"])] {
        let Some(w) = World::new(pairs, &[&options[..], &["-p", "7070:7000"]].concat()) else { return };
        let all = Family::BOTH.map(|f| w.streams(f, if f == Family::V4 { 7001 } else { 7002 }, 40));
        let carried = w.carried();
        eprintln!("connections of each worker: {carried:?}");
        assert_eq!(carried.iter().sum::<u64>(), 80, "{carried:?}");
        assert!(carried.iter().all(|n| *n >= 5), "some workers have next to none: {carried:?}");
        all.iter().for_each(|s| s.wait_moved(2000));
        w.w.transfer();
        w.w.published(7070, 7000);
        assert_eq!(w.number("drops", "worker_busy"), 0);
        all.into_iter().for_each(Streams::end);
        w.end();
    }
}

/// A guest that knows of one pair, of processors or of queues.
#[test]
fn a_machine_with_one_pair_is_served_by_one_of_several() {
    let Some(w) = World::new(1, &["--workers", "2", "-p", "7070:7000"]) else { return };
    let streams = w.streams(Family::V4, 7001, 20);
    assert_eq!(w.carried(), [20, 0]);
    w.w.transfer();
    w.w.published(7070, 7000);
    streams.end();
    w.end();
}

/// As `ethtool -L` does it: frames come elsewhere than the flow is, and its owner has no pair of its own by which the guest receives.
#[test]
fn flows_go_on_when_the_guest_changes_its_pairs() {
    let Some(mut w) = World::new(2, &["--workers", "2", "-p", "7070:7000"]) else { return };
    let all = Family::BOTH.map(|f| w.streams(f, if f == Family::V4 { 7001 } else { 7002 }, 30));
    assert!(w.carried().iter().all(|n| *n >= 5), "{:?}", w.carried());
    for used in ["1", "2", "1", "2"] {
        let before = w.number("stack", "handed_over");
        w.order(&format!("use {used}"));
        all.iter().for_each(|s| s.wait_moved(4000));
        if used == "1" {
            assert!(w.number("stack", "handed_over") > before, "frames do not come elsewhere");
            w.w.transfer();
            w.w.published(7070, 7000);
        }
    }
    all.into_iter().for_each(Streams::end);
    w.end();
}

#[test]
fn the_monitor_may_say_what_it_likes_meanwhile() {
    let Some(mut w) = World::new(2, &["--workers", "2"]) else { return };
    let all = Family::BOTH.map(|f| w.streams(f, if f == Family::V4 { 7001 } else { 7002 }, 30));
    assert!(w.carried().iter().all(|n| *n >= 5), "{:?}", w.carried());
    for order in ["remap 50", "again", "remap 50", "again", "again", "stay", "remap 50"] {
        w.order(order);
        all.iter().for_each(|s| s.wait_moved(2000));
    }
    w.w.transfer();
    all.into_iter().for_each(Streams::end);
    w.end();
}

#[test]
fn flows_outlive_sleep_and_upgrade() {
    let Some(w) = World::new(2, &["--workers", "2"]) else { return };
    let old = w.streams(Family::V4, 7001, 40);
    assert!(w.carried().iter().all(|n| *n >= 5), "{:?}", w.carried());
    w.w.undisturbed_by_sleep_and_upgrade(4);
    old.wait_moved(2000);
    // They are the first worker's now, and new ones are spread.
    let carried = w.carried();
    assert_eq!(carried, [40, 0]);
    let new = w.streams(Family::V6, 7002, 40);
    let carried = w.carried();
    assert!(carried[0] >= 45 && carried[1] >= 5 && carried.iter().sum::<u64>() == 80, "{carried:?}");
    w.w.undisturbed_by_sleep_and_upgrade(2);
    [old, new].into_iter().for_each(|s| {
        s.wait_moved(2000);
        s.end();
    });
    w.end();
}

/// A monitor that listens, and is killed.
#[test]
fn monitors_come_and_go() {
    let Some(w) = GuestLab::new() else { return };
    let options = ["--vhost-user-connect", SOCKET, "--mtu", "1500", "--name", "vm", "--workers", "2", "--queues", "4"];
    let mut attach = w.attach(&options);
    for pairs in ["pairs=2", "pairs=1", "pairs=4"] {
        let monitor = w.monitor(&[FRONT_END, SOCKET, "eth0", "listen=1", pairs]);
        w.configure(1500);
        w.wait_served(&mut attach);
        w.transfer();
        let url = w.url(Family::V4);
        let fetch = format!("for i in $(seq 20); do curl -s --limit-rate 2M --max-time 20 {url} >/dev/null & done; wait");
        let fetch = w.spawn(&["bash", "-c", &fetch]);
        wait_until("it is under load", SOON, || {
            let tcp = json(&w.lab.hibernet(10, &["stats", "vm", "--json"]))["flows"]["tcp"].as_u64();
            tcp.is_some_and(|n| n >= 20)
        });
        // In the middle of that.
        drop(monitor);
        wait_until("the guest's interface is gone", SOON, || w.sh(5, "ip link show eth0").code != 0);
        drop(fetch);
    }
    assert!(attach.running(), "{}", attach.output());
    attach.signal("TERM");
    assert_eq!(attach.wait(SOON), 0, "{}", attach.output());
}
