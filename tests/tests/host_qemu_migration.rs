//! QEMU moves a stock guest, and its network rides along in QEMU's own stream of state: into a file, to another QEMU, and not at all. Through it go TCP and UDP, both
//! ways, under rules that translate all of it.

use hibernet_tests::lab::{DNS4, Family, GUEST4, GUEST6, Guest, Lab, Place, Proc, bracketed, moving_qemu, wait_until};
use serde_json::json;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);
/// What is moved over each connection, and how fast in all moves together, bytes a second: slower than the machine moves.
const BYTES: &str = "12000000";
const RATE: usize = 2_000_000;

/// An address that is translated to that of a server outside; the sources of all that leave, to ports that can be told from others.
const RULES4: &str = "*nat\n\
    -A PREROUTING -d 10.77.0.1/32 -p tcp --dport 8010 -j DNAT --to-destination 10.99.0.1:8004\n\
    -A POSTROUTING -o host0 -p tcp -m tcp --dport 8004 -m conntrack --ctorigdst 10.77.0.1 -j SNAT --to-source 10.99.0.2:43000-43999\n\
    -A POSTROUTING -o host0 -p tcp -m tcp --dport 8004 -j MASQUERADE --to-ports 42000-42999\n\
    -A POSTROUTING -o host0 -p udp -m udp --dport 7200 -j SNAT --to-source 10.99.0.2:44000-44999\n\
    COMMIT\n";
/// Servers outside, as the guest names them.
const SERVERS: [(&str, &str); 3] = [("v4", "10.99.0.1:8004"), ("v6", "[fd99::1]:8006"), ("nat", "10.77.0.1:8010")];
const RULES6: &str = "*nat\n-A POSTROUTING -o host0 -p tcp -m tcp --dport 8006 -j MASQUERADE --to-ports 42000-42999\nCOMMIT\n";

/// Numbers, a line each, to a socat that sends them as datagrams; what comes back goes to its output. Until a file exists, and then for as long as answers may take.
fn pulse(stop: &str, to: &str) -> String {
    format!("(i=0; while [ ! -e {stop} ]; do echo $i; i=$((i+1)); sleep 0.05; done) | socat -t 3 STDIO UDP4-CONNECT:{to}")
}

/// What came of it: each number came back at most once, and all did but for so many. Before a number may stand from where its datagram came: always from the same.
fn check_pulse(said: &str, may_be_lost: usize) -> Option<u16> {
    let (mut all, mut sources) = (Vec::new(), Vec::new());
    for line in said.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        all.push(words.last().expect("a number").parse::<usize>().unwrap_or_else(|_| panic!("{line}")));
        if let [_, "10.99.0.2", port, ..] = words[..] {
            sources.push(port.parse::<u16>().expect("a port"));
        }
    }
    let got = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), got, "some came back twice");
    let sent = all.last().expect("some came back") + 1;
    assert!(sent > 100 && sent - got <= may_be_lost, "{got} of {sent} datagrams came back");
    sources.dedup();
    assert!(sources.len() <= 1, "the source has changed: {sources:?}");
    sources.first().copied()
}

/// How often the machine moves.
fn moves() -> usize {
    std::env::var("HIBERNET_MOVES").map_or(3, |n| n.parse().expect("HIBERNET_MOVES is a number"))
}

struct World {
    lab: Lab,
    qemu: String,
    digest: String,
    _servers: Vec<Proc>,
    /// Has the datagrams of a client outside end.
    stop: String,
    guest: Guest,
    attach: Proc,
    /// Pairs of queues, and processors that use them.
    pairs: usize,
    number: usize,
    /// How often the guest was stopped to be moved, and for how long it was away in all.
    stops: usize,
    away: Duration,
    /// When it was stopped last, or a little before.
    left: Option<Instant>,
}

fn socket(lab: &Lab, n: usize) -> String {
    lab.path(&format!("vm{n}.sock"))
}

fn network(lab: &Lab, n: usize, pairs: usize) -> Vec<String> {
    let chardev = format!("socket,id=c,path={}", socket(lab, n));
    let netdev = format!("vhost-user,id=n,chardev=c,queues={pairs}");
    let mq = if pairs > 1 { format!(",mq=on,vectors={}", 2 * pairs + 2) } else { String::new() };
    let device = format!("virtio-net-pci,netdev=n,host_mtu=65520{mq}");
    let processors = pairs.to_string();
    [
        ["-smp", &processors],
        ["-object", "memory-backend-memfd,id=m,size=256M,share=on"],
        ["-machine", "memory-backend=m"],
        ["-chardev", &chardev],
        ["-netdev", &netdev],
        ["-device", &device],
    ]
    .concat()
    .into_iter()
    .map(str::to_owned)
    .collect()
}

fn words(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

/// `attach` at the next socket.
fn attach(lab: &Lab, n: usize, pairs: usize, options: &[&str]) -> Proc {
    let (socket, name, pairs) = (socket(lab, n), format!("vm{n}"), pairs.to_string());
    // One that was killed has left its file.
    std::fs::remove_file(&socket).ok();
    let mut attach =
        lab.spawn_hibernet(&[&["attach", "--vhost-user", &socket, "--queues", &pairs, "--name", &name], options].concat());
    wait_until("it listens", SOON, || {
        assert!(attach.running(), "{}", attach.output());
        std::path::Path::new(&socket).exists()
    });
    attach
}

impl World {
    fn new(pairs: usize) -> Option<World> {
        let lab = Lab::new(&["qemu-system-x86_64", "busybox", "curl", "python3", "socat", "ss"])?;
        let qemu = moving_qemu(&lab)?;
        let make = lab.peer("stream.py", &[&lab.path("big"), BYTES]);
        let digest = lab.run(Place::Remote, 60, &make.iter().map(String::as_str).collect::<Vec<_>>()).ok().to_owned();
        let dir = lab.dir().to_string_lossy().into_owned();
        let serve = |(f, port)| lab.serve_peer(Place::Remote, "http_store.py", &[&dir], f, port);
        let mut servers: Vec<_> = Family::BOTH.into_iter().zip([8004, 8006]).map(serve).collect();
        let echo = lab.peer("echo.py", &["udp", "0.0.0.0", "7200"]);
        let mut echo = lab.spawn(Place::Remote, &words(&echo));
        lab.wait_bound(Place::Remote, 7200, &mut echo);
        servers.push(echo);
        let (rules4, rules6, stop) = (lab.path("rules4"), lab.path("rules6"), lab.path("stop"));
        std::fs::write(&rules4, RULES4).expect("file");
        std::fs::write(&rules6, RULES6).expect("file");
        let rules = ["--rules", &rules4, "--rules6", &rules6];
        let attach = attach(&lab, 0, pairs, &[&["-p", "7070:7000", "-p", "7071:7001/udp"], &rules[..]].concat());
        let mut guest = Guest::boot_in(&qemu, &lab, &words(&network(&lab, 0, pairs)))?;
        let said = guest.ok(60, "ip link set eth0 up; udhcpc -i eth0 -f -q -n -t 10 -T 2 -O mtu -s /dhcp");
        assert!(said.contains(&format!("leased {GUEST4}/24 router 10.0.2.2 dns {DNS4} mtu 65520")), "{said}");
        assert_eq!(guest.ok(5, "ls -d /sys/class/net/eth0/queues/tx-* | wc -l").trim(), pairs.to_string());
        let end = Instant::now() + SOON;
        while !guest.ok(5, "ip -6 route").contains("default via fe80::") {
            assert!(Instant::now() < end, "no route");
        }
        // Where published ports lead; it has another of its own making.
        guest.ok(5, &format!("echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip -6 addr add {GUEST6}/64 dev eth0"));
        guest.ok(60, "curl -sSf -o /tmp/big http://10.99.0.1:8004/big && httpd -p 7000 -h /tmp");
        // What is posted to it is answered by its digest.
        let script = r"#!/bin/sh\necho Content-Type: text/plain\necho\nhead -c $CONTENT_LENGTH | sha256sum\n";
        guest.ok(5, &format!("mkdir /tmp/cgi-bin && printf '{script}' >/tmp/cgi-bin/sum && chmod 755 /tmp/cgi-bin/sum"));
        guest.ok(5, "(socat UDP4-LISTEN:7001 PIPE) >/dev/null 2>&1 &");
        let mut world = World {
            lab,
            qemu,
            digest,
            _servers: servers,
            stop,
            guest,
            attach,
            pairs,
            number: 0,
            stops: 0,
            away: Duration::ZERO,
            left: None,
        };
        world.reachable();
        Some(world)
    }

    /// Waits until the guest reaches its gateway. Beside all that moves one echo may be lost.
    fn reachable(&mut self) {
        self.guest.ok(30, "for n in 1 2 3 4 5; do ping -c 1 -W 4 10.0.2.2 && exit; done; exit 1");
        self.away += self.left.take().map_or(Duration::ZERO, |left| left.elapsed());
    }

    /// Downloads and uploads over both families and to a translated address, of a client outside from and to the guest, and datagrams both ways: in the
    /// background, slowly.
    fn begin(&mut self) -> Vec<Proc> {
        let slowly = format!("curl -sSf --limit-rate {} --max-time 300", RATE / (moves() + 2));
        for (name, at) in SERVERS {
            let url = format!("http://{at}/big");
            let (down, up) = (format!("/tmp/down-{name}"), format!("/tmp/up-{name}"));
            self.guest.ok(5, &format!("({slowly} -o {down} {url}; echo $? >{down}.status) >/dev/null 2>{down}.said &"));
            self.guest.ok(5, &format!("({slowly} -T /tmp/big {url} >{up}; echo $? >{up}.status) >/dev/null 2>{up}.said &"));
        }
        let pulses = pulse("/tmp/stop", "10.99.0.1:7200");
        self.guest.ok(5, &format!("({pulses} >/tmp/pulse; echo $? >/tmp/pulse.status) >/dev/null 2>/tmp/pulse.said &"));
        let mut outside = Vec::new();
        for host in Family::BOTH.map(|f| bracketed(f.host())) {
            let big = self.lab.path("big");
            let post = format!("{slowly} -H Expect: --data-binary @{big} http://{host}:7070/cgi-bin/sum");
            for transfer in [format!("{slowly} http://{host}:7070/big | sha256sum"), post] {
                let command = format!("{transfer}; echo status ${{PIPESTATUS[0]}}");
                outside.push(self.lab.spawn(Place::Remote, &["bash", "-c", &command]));
            }
        }
        outside.push(self.lab.spawn(Place::Remote, &["bash", "-c", &pulse(&self.stop, "10.99.0.2:7071")]));
        self.translated();
        outside
    }

    /// The sources of the guest's connections are those that the rules say.
    fn translated(&self) {
        let mut ports = Vec::new();
        wait_until("all are connected", SOON, || {
            let table = self.lab.sh(Place::Remote, 5, "ss -Htn state established '( sport = :8004 or sport = :8006 )'");
            let port = |line: &str| line.rsplit_once(':').expect("a port").1.trim().parse::<u16>().expect("a port");
            ports = table.ok().lines().map(port).collect();
            ports.len() == 6
        });
        let of = |range: std::ops::Range<u16>| ports.iter().filter(|p| range.contains(p)).count();
        assert_eq!((of(42_000..43_000), of(43_000..44_000)), (4, 2), "{ports:?}");
    }

    /// Waits for all of that: nothing is missing.
    fn finish(&mut self, mut outside: Vec<Proc>) {
        for (name, _) in SERVERS {
            for what in ["down", "up"] {
                let f = format!("/tmp/{what}-{name}");
                self.guest.ok(300, &format!("while [ ! -e {f}.status ]; do sleep 1; done"));
                let status = self.guest.ok(5, &format!("cat {f}.status {f}.said"));
                assert_eq!(status, "0\n", "{f}");
            }
            assert!(self.guest.ok(30, &format!("sha256sum /tmp/down-{name}")).starts_with(&self.digest), "download {name}");
            assert_eq!(self.guest.ok(5, &format!("cat /tmp/up-{name}")).trim(), self.digest, "upload {name}");
        }
        let mut pulses = outside.pop().expect("the client of the published UDP port");
        for mut transfer in outside {
            transfer.wait(Duration::from_secs(300));
            assert_eq!(transfer.output(), format!("{}  -\nstatus 0\n", self.digest), "through the published port");
        }
        self.guest.ok(5, "touch /tmp/stop");
        std::fs::write(&self.stop, "").expect("file");
        assert_eq!(pulses.wait(SOON), 0, "{}", pulses.output());
        // Those on their way in a stop may be lost, and those that come while nobody is there.
        let on_their_way = 5 * self.stops;
        check_pulse(&pulses.output(), on_their_way + self.away.as_millis() as usize / 50);
        self.guest.ok(20, "while [ ! -e /tmp/pulse.status ]; do sleep 1; done");
        let said = self.guest.ok(20, "cat /tmp/pulse");
        let source = check_pulse(&said, on_their_way).expect("sources are told");
        assert!((44_000..45_000).contains(&source), "{source}");
    }

    /// Has QEMU give its state away, and waits until it has; for how long the guest stood still, as QEMU has it, in milliseconds.
    fn migrate(&mut self, uri: &str) -> u64 {
        self.stops += 1;
        self.left = Some(Instant::now());
        let guest = &self.guest;
        guest.monitor("migrate", &json!({ "uri": uri }));
        let mut downtime = 0;
        wait_until("QEMU has given its state away", Duration::from_secs(120), || {
            let state = guest.monitor("query-migrate", &json!({}));
            let status = state["status"].as_str().expect("a status").to_owned();
            assert!(!matches!(&*status, "failed" | "cancelled"), "{state}\n{}", guest.qemu.output());
            downtime = state["downtime"].as_u64().unwrap_or(0);
            status == "completed"
        });
        downtime
    }

    /// What `list` says of a network.
    fn state(&self, n: usize) -> String {
        let list = self.lab.hibernet(10, &["list", "--json"]);
        let list: serde_json::Value = serde_json::from_str(list.ok()).expect("JSON");
        let name = format!("vm{n}");
        let entry = list.as_array().expect("a list").iter().find(|e| e["name"] == name.as_str());
        entry.map_or("none", |e| e["state"].as_str().expect("a state")).to_owned()
    }

    /// Another hibernet and another QEMU, which waits; with more options for that.
    fn heir(&self, options: &[&str]) -> (Proc, Guest) {
        let n = self.number + 1;
        let attach = attach(&self.lab, n, self.pairs, &[]);
        let network = network(&self.lab, n, self.pairs);
        (attach, Guest::await_state(&self.qemu, &self.lab, &[&words(&network), options].concat()))
    }

    /// The machine runs in the other one, and this one ends; hibernet ends with it.
    fn hand_over(&mut self, attach: Proc, guest: Guest) {
        wait_until("the other QEMU runs", Duration::from_secs(60), || {
            let state = guest.monitor("query-status", &json!({}));
            state["running"] == true
        });
        let mut old = std::mem::replace(&mut self.guest, guest);
        let mut left = std::mem::replace(&mut self.attach, attach);
        self.number += 1;
        if old.qemu.running() {
            old.monitor("quit", &json!({}));
            old.qemu.wait(SOON);
        }
        assert_eq!(left.wait(SOON), 0, "{}", left.output());
        self.reachable();
        assert!(self.attach.running(), "{}", self.attach.output());
    }
}

#[test]
fn to_another_qemu() {
    let Some(mut w) = World::new(2) else { return };
    let outside = w.begin();
    for n in 0..moves() {
        let (attach, heir) = w.heir(&[]);
        let uri = format!("unix:{}", w.lab.path(&format!("state-{n}")));
        heir.monitor("migrate-incoming", &json!({ "uri": uri }));
        let downtime = w.migrate(&uri);
        eprintln!("to another QEMU, move {n}: {downtime} ms");
        w.hand_over(attach, heir);
    }
    w.finish(outside);
}

#[test]
fn into_a_file_and_back() {
    let Some(mut w) = World::new(1) else { return };
    let outside = w.begin();
    for n in 0..moves() {
        let file = format!("file:{}", w.lab.path(&format!("state-{n}")));
        // A copy, after which it goes on here.
        w.migrate(&file);
        w.guest.monitor("cont", &json!({}));
        w.reachable();
        let downtime = w.migrate(&file);
        eprintln!("into a file, time {n}: {downtime} ms");
        w.guest.monitor("quit", &json!({}));
        w.guest.qemu.wait(SOON);
        let (attach, heir) = w.heir(&[]);
        heir.monitor("migrate-incoming", &json!({ "uri": file }));
        w.hand_over(attach, heir);
    }
    w.finish(outside);
}

/// The other side has it and does not begin, or has not got it: the machine goes on where it was.
#[test]
fn a_move_that_fails() {
    let Some(mut w) = World::new(1) else { return };
    let outside = w.begin();
    for n in 0..moves() {
        let taken = n % 2 == 0;
        let (mut attach, mut heir) = w.heir(if taken { &["-S"] } else { &[] });
        let uri = format!("unix:{}", w.lab.path(&format!("state-{n}")));
        heir.monitor("migrate-incoming", &json!({ "uri": uri }));
        if taken {
            w.migrate(&uri);
            wait_until("the other side waits for the machine", SOON, || w.state(w.number + 1) == "moving");
            assert_eq!(w.state(w.number), "moving");
        } else {
            w.guest.monitor("migrate", &json!({ "uri": uri }));
            w.guest.monitor("migrate_cancel", &json!({}));
            // Until then it may still stop the machine for a moment.
            wait_until("the move is over", SOON, || {
                let state = w.guest.monitor("query-migrate", &json!({}));
                matches!(state["status"].as_str(), Some("cancelled" | "failed" | "completed"))
            });
        }
        heir.qemu.signal("KILL");
        heir.qemu.wait(SOON);
        wait_until("the other side waits no more", SOON, || w.state(w.number + 1) == "running");
        attach.signal("TERM");
        assert_eq!(attach.wait(SOON), 0, "{}", attach.output());
        // QEMU lets the machine go on by itself unless all was given away.
        wait_until("the machine is told to go on", SOON, || {
            let status = w.guest.monitor("query-status", &json!({}));
            if status["status"] == "postmigrate" {
                w.guest.monitor("cont", &json!({}));
            }
            status["running"] == true
        });
        w.reachable();
        assert!(w.attach.running(), "{}", w.attach.output());
        assert_eq!(w.state(w.number), "running");
    }
    w.finish(outside);
}
