//! QEMU moves a stock guest, and its network rides along in QEMU's own stream of state: into a file, to another QEMU, and not at all.

use hibernet_tests::lab::{DNS4, Family, GUEST4, Guest, Lab, Place, Proc, bracketed, moving_qemu, wait_until};
use serde_json::json;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);
/// What is moved over each connection, and how fast in all moves together, bytes a second: slower than the machine moves.
const BYTES: &str = "12000000";
const RATE: usize = 2_000_000;

/// How often the machine moves.
fn moves() -> usize {
    std::env::var("HIBERNET_MOVES").map_or(3, |n| n.parse().expect("HIBERNET_MOVES is a number"))
}

struct World {
    lab: Lab,
    qemu: String,
    digest: String,
    _servers: Vec<Proc>,
    guest: Guest,
    attach: Proc,
    number: usize,
}

fn socket(lab: &Lab, n: usize) -> String {
    lab.path(&format!("vm{n}.sock"))
}

fn network(lab: &Lab, n: usize) -> Vec<String> {
    let chardev = format!("socket,id=c,path={}", socket(lab, n));
    [
        ["-object", "memory-backend-memfd,id=m,size=256M,share=on"],
        ["-machine", "memory-backend=m"],
        ["-chardev", &chardev],
        ["-netdev", "vhost-user,id=n,chardev=c"],
        ["-device", "virtio-net-pci,netdev=n,host_mtu=65520"],
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
fn attach(lab: &Lab, n: usize, options: &[&str]) -> Proc {
    let (socket, name) = (socket(lab, n), format!("vm{n}"));
    // One that was killed has left its file.
    std::fs::remove_file(&socket).ok();
    let mut attach = lab.spawn_hibernet(&[&["attach", "--vhost-user", &socket, "--name", &name], options].concat());
    wait_until("it listens", SOON, || {
        assert!(attach.running(), "{}", attach.output());
        std::path::Path::new(&socket).exists()
    });
    attach
}

impl World {
    fn new() -> Option<World> {
        let lab = Lab::new(&["qemu-system-x86_64", "busybox", "curl", "python3"])?;
        let qemu = moving_qemu(&lab)?;
        let make = lab.peer("stream.py", &[&lab.path("big"), BYTES]);
        let digest = lab.run(Place::Remote, 60, &make.iter().map(String::as_str).collect::<Vec<_>>()).ok().to_owned();
        let dir = lab.dir().to_string_lossy().into_owned();
        let serve = |(f, port)| lab.serve_peer(Place::Remote, "http_store.py", &[&dir], f, port);
        let servers = Family::BOTH.into_iter().zip([8004, 8006]).map(serve).collect();
        let attach = attach(&lab, 0, &["-p", "7070:7000"]);
        let mut guest = Guest::boot_in(&qemu, &lab, &words(&network(&lab, 0)))?;
        let said = guest.ok(60, "ip link set eth0 up; udhcpc -i eth0 -f -q -n -t 10 -T 2 -O mtu -s /dhcp");
        assert!(said.contains(&format!("leased {GUEST4}/24 router 10.0.2.2 dns {DNS4} mtu 65520")), "{said}");
        let end = Instant::now() + SOON;
        while !guest.ok(5, "ip -6 route").contains("default via fe80::") {
            assert!(Instant::now() < end, "no route");
        }
        guest.ok(60, "curl -sSf -o /tmp/big http://10.99.0.1:8004/big && httpd -p 7000 -h /tmp");
        let mut world = World { lab, qemu, digest, _servers: servers, guest, attach, number: 0 };
        world.reachable();
        Some(world)
    }

    /// Waits until the guest reaches its gateway, and says what time it is.
    fn reachable(&mut self) {
        self.guest.ok(20, "ping -c 1 -W 10 10.0.2.2");
    }

    /// Downloads and uploads over both families, and of a client outside from the guest: in the background, slowly.
    fn begin(&mut self) -> Proc {
        let slowly = format!("curl -sSf --limit-rate {} --max-time 300", RATE / (moves() + 2));
        for (family, port) in Family::BOTH.into_iter().zip([8004, 8006]) {
            let url = format!("http://{}:{port}/big", bracketed(family.remote()));
            let (down, up) = (format!("/tmp/down-{port}"), format!("/tmp/up-{port}"));
            self.guest.ok(5, &format!("({slowly} -o {down} {url}; echo $? >{down}.status) >/dev/null 2>{down}.said &"));
            self.guest.ok(5, &format!("({slowly} -T /tmp/big {url} >{up}; echo $? >{up}.status) >/dev/null 2>{up}.said &"));
        }
        let fetch = format!("{slowly} http://10.99.0.2:7070/big | sha256sum; echo status ${{PIPESTATUS[0]}}");
        self.lab.spawn(Place::Remote, &["bash", "-c", &fetch])
    }

    /// Waits for all of that: nothing is missing.
    fn finish(&mut self, mut fetching: Proc) {
        for port in [8004, 8006] {
            for what in ["down", "up"] {
                let f = format!("/tmp/{what}-{port}");
                self.guest.ok(300, &format!("while [ ! -e {f}.status ]; do sleep 1; done"));
                let status = self.guest.ok(5, &format!("cat {f}.status {f}.said"));
                assert_eq!(status, "0\n", "{f}");
            }
            assert!(self.guest.ok(30, &format!("sha256sum /tmp/down-{port}")).starts_with(&self.digest), "download {port}");
            assert_eq!(self.guest.ok(5, &format!("cat /tmp/up-{port}")).trim(), self.digest, "upload {port}");
        }
        fetching.wait(Duration::from_secs(300));
        assert_eq!(fetching.output(), format!("{}  -\nstatus 0\n", self.digest), "from the published port");
    }

    /// Has QEMU give its state away, and waits until it has; for how long the guest stood still, as QEMU has it, in milliseconds.
    fn migrate(guest: &Guest, uri: &str) -> u64 {
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
        let attach = attach(&self.lab, n, &[]);
        let network = network(&self.lab, n);
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
    let Some(mut w) = World::new() else { return };
    let fetching = w.begin();
    for n in 0..moves() {
        let (attach, heir) = w.heir(&[]);
        let uri = format!("unix:{}", w.lab.path(&format!("state-{n}")));
        heir.monitor("migrate-incoming", &json!({ "uri": uri }));
        let downtime = World::migrate(&w.guest, &uri);
        eprintln!("to another QEMU, move {n}: {downtime} ms");
        w.hand_over(attach, heir);
    }
    w.finish(fetching);
}

#[test]
fn into_a_file_and_back() {
    let Some(mut w) = World::new() else { return };
    let fetching = w.begin();
    for n in 0..moves() {
        let file = format!("file:{}", w.lab.path(&format!("state-{n}")));
        // A copy, after which it goes on here.
        World::migrate(&w.guest, &file);
        w.guest.monitor("cont", &json!({}));
        w.reachable();
        let downtime = World::migrate(&w.guest, &file);
        eprintln!("into a file, time {n}: {downtime} ms");
        w.guest.monitor("quit", &json!({}));
        w.guest.qemu.wait(SOON);
        let (attach, heir) = w.heir(&[]);
        heir.monitor("migrate-incoming", &json!({ "uri": file }));
        w.hand_over(attach, heir);
    }
    w.finish(fetching);
}

/// The other side has it and does not begin, or has not got it: the machine goes on where it was.
#[test]
fn a_move_that_fails() {
    let Some(mut w) = World::new() else { return };
    let fetching = w.begin();
    for n in 0..moves() {
        let taken = n % 2 == 0;
        let (mut attach, mut heir) = w.heir(if taken { &["-S"] } else { &[] });
        let uri = format!("unix:{}", w.lab.path(&format!("state-{n}")));
        heir.monitor("migrate-incoming", &json!({ "uri": uri }));
        if taken {
            World::migrate(&w.guest, &uri);
            wait_until("the other side waits for the machine", SOON, || w.state(w.number + 1) == "moving");
            assert_eq!(w.state(w.number), "moving");
        } else {
            w.guest.monitor("migrate", &json!({ "uri": uri }));
            w.guest.monitor("migrate_cancel", &json!({}));
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
    w.finish(fetching);
}
