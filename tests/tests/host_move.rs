//! Tier *repair* between hosts: a virtual machine's network is frozen on one, its address moves, and it goes on at another.

#[path = "host_freeze/kit.rs"]
#[allow(dead_code)]
mod kit;

use hibernet_tests::lab::{Family, Lab, Place, Proc, wait_until};
use kit::{SOON, Streams, json, outcomes};
use std::time::Duration;

/// A namespace *guest* at the end of a veth whose other end is here, as a machine at a TAP is; and *other*, a second host that is to have the address
/// of this one. *remote* sends to whoever it is told.
const SET_UP: &str = "
set -e
ip netns add guest; ip -n guest link set lo up
ip link add vm0 type veth peer name eth0 netns guest
ip -n guest link set eth0 up
ip -n guest addr add 10.0.2.15/24 dev eth0; ip -n guest addr add fd68:6962:6e65:7400::15/64 dev eth0 nodad
ip -n guest route add default via 10.0.2.2; ip -n guest -6 route add default via fd68:6962:6e65:7400::2
ip netns add other; ip -n other link set lo up
ip link add re1 netns remote type veth peer name up1 netns other
ip -n remote link set re1 up; ip -n other link set up1 up
ip -n remote addr add fd99::1/128 dev re1 nodad
ip -n other addr add 10.99.0.9/24 dev up1; ip -n other addr add fd99::9/64 dev up1 nodad
ip -n other route add default via 10.99.0.1; ip -n other -6 route add default via fd99::1
";

/// The address leaves this host, and nobody sends to it any more: what comes for it is lost until somebody has it.
const LEAVE: &str = "
set -e
ip -n remote route add blackhole 10.99.0.2/32; ip -n remote -6 route add blackhole fd99::2/128
ip addr del 10.99.0.2/24 dev up0; ip addr del fd99::2/64 dev up0
ip link set vm0 netns other; ip -n other link set vm0 up
";

/// The other host takes it over.
const TAKE: &str = "
set -e
ip -n other addr add 10.99.0.2/24 dev up1; ip -n other addr add fd99::2/64 dev up1 nodad
";

/// Packets for it come there.
const ANNOUNCE: &str = "
set -e
ip -n remote route replace 10.99.0.2/32 dev re1; ip -n remote -6 route replace fd99::2/128 dev re1
";

struct World {
    lab: Lab,
    attach: Proc,
    streams: Vec<Streams>,
    image: String,
}

const NAME: &str = kit::NAME;
const CONNS: usize = 20;

fn in_guest<'a>(argv: &[&'a str]) -> Vec<&'a str> {
    [&["nsenter", "--net=/run/netns/guest"], argv].concat()
}

fn in_other<'a>(argv: &[&'a str]) -> Vec<&'a str> {
    [&["nsenter", "--net=/run/netns/other"], argv].concat()
}

impl World {
    /// Connections out of the machine and into a published port of it, both families, all of which move data.
    fn new() -> Option<World> {
        let lab = Lab::new(&["ip", "nft"])?;
        lab.sh(Place::Host, 10, SET_UP).ok();
        let mut attach = lab.spawn_hibernet(&["attach", "--packet", "vm0", "--name", NAME, "-p", "7100-7101:7100"]);
        wait_until("the machine has a network", SOON, || {
            assert!(attach.running(), "{}", attach.output());
            let ping = |a| lab.run(Place::Host, 5, &in_guest(&["ping", "-c1", "-W1", a])).code == 0;
            Family::BOTH.iter().all(|f| ping(f.gateway()))
        });
        let mut streams = Vec::new();
        for (i, family) in Family::BOTH.into_iter().enumerate() {
            streams.push(World::open(&lab, family, Place::Remote, family.remote(), 7000 + i as u16));
            streams.push(World::open(&lab, family, Place::Host, family.host(), 7100 + i as u16));
        }
        let image = lab.path("image");
        Some(World { lab, attach, streams, image })
    }

    /// `server` is where the server is: outside, or (of a published port) in the machine.
    fn open(lab: &Lab, family: Family, server: Place, to: &str, port: u16) -> Streams {
        let (stop, conns, port_text) = (Streams::stop_file(lab), format!("conns={CONNS}"), port.to_string());
        let stop_option = format!("stop={stop}");
        let program = env!("CARGO_BIN_EXE_streams");
        let pace = ["chunk=2000", "every=10", &conns, &stop_option];
        let serve = [&[program, "serve", family.any(), &port_text], &pace[..]].concat();
        let connect = [&[program, "connect", to, &port_text], &pace[..]].concat();
        let streams = if server == Place::Remote {
            let server = lab.serve(Place::Remote, port, &serve);
            Streams::of(lab.spawn(Place::Host, &in_guest(&connect)), server, stop)
        } else {
            let server = lab.spawn(Place::Host, &in_guest(&serve));
            wait_until("the machine's server listens", SOON, || {
                let table = lab.run(Place::Host, 5, &in_guest(&["cat", "/proc/self/net/tcp", "/proc/self/net/tcp6"])).stdout;
                table.lines().any(|l| l.contains(&format!(":{port:04X} ")) && l.contains(" 0A "))
            });
            Streams::of(lab.spawn(Place::Remote, &connect), server, stop)
        };
        streams.wait_up(CONNS as u32);
        streams
    }

    /// Puts the network to sleep, its sockets in the image; the source ends.
    fn leave(&mut self) {
        let tiers = |report: &serde_json::Value| {
            let flows = report["flows"].as_array().expect("flows").iter();
            flows.filter(|f| f["kind"] == "tcp").map(|f| f["tier"].as_str().expect("a tier").to_owned()).collect::<Vec<_>>()
        };
        let report = json(&self.lab.hibernet(60, &["checkpoint", NAME, &self.image, "--repair", "--require", "all", "--json"]));
        assert_eq!(tiers(&report), vec!["repair"; 4 * CONNS], "{report:#}");
        self.lab.sh(Place::Host, 10, LEAVE).ok();
        self.attach.signal("TERM");
        assert_eq!(self.attach.wait(SOON), 0, "{}", self.attach.output());
    }

    /// Thaws it at the other host; what it says, and the process that serves it.
    fn arrive(&self) -> (serde_json::Value, Proc) {
        let bin = self.lab.binary();
        let argv = [&bin, "restore", &self.image, "--repair", "--packet", "vm0", "--name", "there", "--json"];
        let mut there = self.lab.spawn(Place::Host, &in_other(&argv));
        let mut report = None;
        wait_until("it says what became of the flows", SOON, || {
            report = serde_json::from_str(&there.output()).ok();
            assert!(report.is_some() || there.running(), "{}", there.output());
            report.is_some()
        });
        (report.expect("a report"), there)
    }
}

#[test]
fn to_another_host_that_takes_the_address_over() {
    let Some(mut w) = World::new() else { return };
    w.streams.iter().for_each(|s| s.wait_moved(1));
    w.leave();
    w.lab.sh(Place::Host, 10, TAKE).ok();
    let (report, there) = w.arrive();
    assert_eq!(outcomes(&report), [4 * CONNS, 0, 0], "{report:#}");
    w.lab.sh(Place::Host, 10, ANNOUNCE).ok();
    w.streams.iter().for_each(|s| s.wait_moved(1));
    let list = json(&w.lab.hibernet(10, &["list", "--json"]));
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list:#}");
    let moved: Vec<_> = w.streams.into_iter().map(Streams::finish).collect();
    eprintln!(
        "repair, to another host: bytes of clients and servers {moved:?}; thawed in {} us",
        report["took_ns"].as_u64().unwrap_or(0) / 1000
    );
    drop(there);
}

/// The address did not come along: both the machine and whoever reads the report learn it.
#[test]
fn to_another_host_with_another_address() {
    let Some(mut w) = World::new() else { return };
    w.leave();
    let (report, there) = w.arrive();
    assert_eq!(outcomes(&report), [0, 4 * CONNS, 0], "{report:#}");
    let why = report["flows"][0]["why"].as_str().expect("a reason").to_owned();
    assert!(why.contains("ddress"), "{why}");
    // The machine's own ends; of the others nobody can tell.
    for (i, s) in w.streams.iter().enumerate() {
        let machine = if i % 2 == 0 { &s.client } else { &s.server };
        wait_until("the machine's connections are reset", Duration::from_secs(10), || {
            machine.output().lines().filter(|l| l.contains("reset by peer")).count() == CONNS
        });
    }
    // What it opens now works.
    let done = w.lab.sh(Place::Host, 20, "exec nsenter --net=/run/netns/guest ping -c1 -W5 10.0.2.2");
    done.ok();
    drop(there);
}
