//! `hibernet attach --qemu`: links over the stream socket of QEMU. A stand-in plays QEMU's side, with a namespace as the guest.

use hibernet_tests::lab::{Family, Lab, Place, Proc, bracketed, skip, wait_until};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

/// Where the sockets are: in a lab, every path is short enough.
const SOCKET: &str = "/run/vm.sock";

fn strings(argv: &[String]) -> Vec<&str> {
    argv.iter().map(String::as_str).collect()
}

/// A lab with a namespace *guest* that has no network yet, and web servers outside.
struct World {
    lab: Lab,
    servers: Vec<Proc>,
    digest: String,
}

impl World {
    fn new() -> Option<World> {
        let lab = Lab::new(&["ip", "curl", "python3", "sha256sum", "ping"])?;
        if std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_err() {
            skip("/dev/net/tun cannot be opened");
            return None;
        }
        lab.sh(Place::Host, 5, "ip netns add guest && ip -n guest link set lo up").ok();
        let file = lab.path("big");
        let digest = lab.run(Place::Remote, 60, &strings(&lab.peer("stream.py", &[&file, "20000000"]))).ok().to_owned();
        let dir = lab.dir().to_string_lossy().into_owned();
        let serve = |(f, port)| lab.serve_peer(Place::Remote, "http_store.py", &[&dir], f, port);
        let servers = Family::BOTH.into_iter().zip([8004, 8006]).map(serve).collect();
        Some(World { lab, servers, digest })
    }

    fn attach(&self, options: &[&str]) -> Proc {
        self.lab.spawn_hibernet(&[&["attach"], options].concat())
    }

    /// The stand-in for QEMU.
    fn qemu(&self, how: &str) -> Proc {
        let argv = self.lab.peer("qemu.py", &[how, SOCKET, "eth0"]);
        let qemu = self.lab.spawn(Place::Host, &[&["nsenter", "--net=/run/netns/guest"], &strings(&argv)[..]].concat());
        wait_until("the guest has an interface", SOON, || self.guest(5, "ip link show eth0").code == 0);
        qemu
    }

    fn guest(&self, seconds: u32, script: &str) -> hibernet_tests::lab::Done {
        self.lab.run(Place::Host, seconds, &["nsenter", "--net=/run/netns/guest", "bash", "-c", script])
    }

    fn configure(&self, mtu: u32) {
        self.guest(
            10,
            &format!(
                "set -e; ip link set eth0 mtu {mtu} up; ip addr add 10.0.2.15/24 dev eth0
                 ip addr add fd68:6962:6e65:7400::15/64 dev eth0 nodad
                 ip route add default via 10.0.2.2; ip -6 route add default via fd68:6962:6e65:7400::2"
            ),
        )
        .ok();
    }

    fn wait_served(&self, attach: &mut Proc) {
        wait_until("the guest has a network", SOON, || {
            assert!(attach.running(), "attach ended early:\n{}", attach.output());
            self.guest(5, "ping -c1 -W1 10.0.2.2").code == 0
        });
    }

    /// Fetches and uploads, with sums.
    fn transfer(&self) {
        for (family, port) in Family::BOTH.into_iter().zip([8004, 8006]) {
            let url = format!("http://{}:{port}/big", bracketed(family.remote()));
            let big = self.lab.path("big");
            let script =
                format!("set -o pipefail; curl -sSf --max-time 60 {url} | sha256sum; curl -sSf --max-time 60 -T {big} {url}");
            let done = self.guest(150, &script);
            assert_eq!(done.ok(), format!("{0}  -\n{0}", self.digest), "{family:?}: {done}");
        }
    }
}

#[test]
fn bulk_data_both_ways_published_ports_and_rules() {
    for mtu in ["1500", "65520"] {
        let Some(w) = World::new() else { return };
        assert_eq!(w.servers.len(), 2);
        let rules = w.lab.path("rules");
        std::fs::write(&rules, "*filter\n-A FORWARD -p tcp --dport 8999 -j REJECT --reject-with tcp-reset\nCOMMIT\n")
            .expect("file");
        let mut attach =
            w.attach(&["--qemu", SOCKET, "--mtu", mtu, "-p", "7070:7000", "--rules", &rules, "--rules6", "/dev/null"]);
        let _qemu = w.qemu("connect");
        w.configure(mtu.parse().expect("a number"));
        w.wait_served(&mut attach);
        w.transfer();
        let argv = w.lab.peer("http_store.py", &[&w.lab.dir().to_string_lossy(), "0.0.0.0", "7000"]);
        let _server = w.lab.spawn(Place::Host, &[&["nsenter", "--net=/run/netns/guest"], &strings(&argv)[..]].concat());
        wait_until("the server in the guest answers", SOON, || {
            let fetch = "curl -sS --max-time 20 http://10.99.0.2:7070/big | sha256sum";
            w.lab.sh(Place::Remote, 30, fetch).stdout.starts_with(&w.digest)
        });
        let refused = w.guest(10, "curl -sS --max-time 5 http://10.99.0.1:8999/");
        assert_eq!(refused.code, 7, "a reset, at once: {refused}");
        let all = (0..10).map(|_| "curl -sSf --max-time 60 http://10.99.0.1:8004/big | sha256sum &").collect::<String>();
        let done = w.guest(120, &format!("{all} wait"));
        assert_eq!(done.ok().lines().filter(|l| l.starts_with(&w.digest)).count(), 10, "{done}");
    }
}

/// A download that goes on while `disturb` does something, several times; what arrives is right.
fn undisturbed(w: &World, times: usize, mut disturb: impl FnMut(usize)) {
    let url = "http://10.99.0.1:8004/big";
    let argv = ["nsenter", "--net=/run/netns/guest", "bash", "-c"];
    let fetch = format!("curl -sSf --limit-rate 4M --max-time 60 {url} | sha256sum; echo status ${{PIPESTATUS[0]}}");
    let mut fetching = w.lab.spawn(Place::Host, &[&argv[..], &[&fetch]].concat());
    for n in 0..times {
        std::thread::sleep(Duration::from_millis(500));
        assert!(fetching.running(), "it was over before it was disturbed {n} times: {}", fetching.output());
        disturb(n);
    }
    fetching.wait(Duration::from_secs(60));
    assert_eq!(fetching.output(), format!("{}  -\nstatus 0\n", w.digest));
}

#[test]
fn flows_outlive_the_connection() {
    let Some(w) = World::new() else { return };
    let log = w.lab.path("log");
    let mut attach = w.attach(&["--qemu", SOCKET, "--mtu", "1500", "--name", "vm", "--log-level", "info", "--log-file", &log]);
    let qemu = w.qemu("connect");
    w.configure(1500);
    w.wait_served(&mut attach);
    let connected = || qemu.output().matches("connected\n").count() - qemu.output().matches("disconnected").count();
    let logged = |what: &str| std::fs::read_to_string(&log).unwrap_or_default().matches(what).count();
    assert_eq!(connected(), 1);
    // The connection ends, and the stand-in makes another.
    undisturbed(&w, 4, |n| {
        qemu.signal("USR1");
        wait_until("it connects again", SOON, || connected() == n + 2);
    });
    wait_until("the log tells of each", SOON, || logged("the link has a peer") == 5 && logged("peer has left") == 4);
    // A length that cannot be true ends it too.
    qemu.signal("USR2");
    wait_until("it connects again", SOON, || connected() == 6);
    wait_until("the log says why", SOON, || logged("a frame of 70000 bytes was announced") == 1);
    let stats = w.lab.hibernet(10, &["stats", "vm"]).ok().to_owned();
    assert!(stats.contains("rx_too_long"), "{stats}");
    // Sleep, wake and upgrade keep it.
    let image = w.lab.path("vm.img");
    undisturbed(&w, 4, |n| {
        if n % 2 == 0 {
            w.lab.hibernet(30, &["checkpoint", "vm", &image]).ok();
            w.lab.hibernet(30, &["restore", &image]).ok();
        } else {
            w.lab.hibernet(30, &["upgrade", "vm"]).ok();
        }
    });
    assert_eq!(connected(), 6, "{}", qemu.output());
    // A guest that connects while the network sleeps is served when it wakes.
    w.lab.hibernet(30, &["checkpoint", "vm", &image]).ok();
    qemu.signal("USR1");
    wait_until("it connects to nobody", SOON, || connected() == 7);
    w.lab.hibernet(30, &["restore", &image]).ok();
    w.wait_served(&mut attach);
    w.transfer();
    attach.signal("TERM");
    assert_eq!(attach.wait(SOON), 0, "{}", attach.output());
    assert!(w.lab.sh(Place::Host, 5, &format!("test -e {SOCKET}")).code != 0, "the socket's file is left");
}

#[test]
fn either_side_is_killed_and_begins_anew() {
    let Some(w) = World::new() else { return };
    let mut attach = w.attach(&["--qemu", SOCKET]);
    let qemu = w.qemu("connect");
    w.configure(65_520);
    w.wait_served(&mut attach);
    // Nobody else takes the path from it.
    let second = w.lab.hibernet(10, &["attach", "--qemu", SOCKET]);
    assert!(second.code == 72 && second.stderr.contains("somebody listens there already"), "{second}");
    attach.signal("KILL");
    attach.wait(SOON);
    // The path is left behind, and gives way.
    let mut attach = w.attach(&["--qemu", SOCKET]);
    w.wait_served(&mut attach);
    w.transfer();
    assert!(qemu.output().contains("disconnected"));
    drop(qemu);
    wait_until("the guest's interface is gone", SOON, || w.guest(5, "ip link show eth0").code != 0);
    let _qemu = w.qemu("connect");
    w.configure(65_520);
    w.wait_served(&mut attach);
    w.transfer();
    let file = w.lab.path("big");
    for (path, why) in [(file.as_str(), "a file is there that is no socket"), ("/nowhere/vm.sock", "No such file or directory")] {
        let refused = w.lab.hibernet(10, &["attach", "--qemu", path]);
        assert!(refused.code == 72 && refused.stderr.contains(why), "{refused}");
    }
}

/// QEMU that listens: hibernet connects, and ends with it; another one connects again.
#[test]
fn qemu_as_server() {
    let Some(w) = World::new() else { return };
    let early = w.lab.hibernet(10, &["attach", "--qemu-connect", SOCKET]);
    assert!(early.code == 72 && early.stderr.contains("cannot connect to /run/vm.sock"), "{early}");
    let qemu = w.qemu("listen");
    w.configure(1500);
    let mut attach = w.attach(&["--qemu-connect", SOCKET, "--mtu", "1500", "--name", "vm"]);
    w.wait_served(&mut attach);
    let image = w.lab.path("vm.img");
    undisturbed(&w, 2, |_| {
        w.lab.hibernet(30, &["checkpoint", "vm", &image]).ok();
        w.lab.hibernet(30, &["restore", &image]).ok();
        w.lab.hibernet(30, &["upgrade", "vm"]).ok();
    });
    qemu.signal("USR1");
    assert_eq!(attach.wait(SOON), 0, "{}", attach.output());
    let mut attach = w.attach(&["--qemu-connect", SOCKET, "--mtu", "1500"]);
    w.wait_served(&mut attach);
    w.transfer();
}

/// As libvirt starts passt: a program of that name that goes to the background, for one VM.
#[test]
fn under_the_name_of_passt() {
    let Some(w) = World::new() else { return };
    let (passt, pid) = (w.lab.path("passt"), w.lab.path("pid"));
    std::os::unix::fs::symlink(w.lab.binary(), &passt).expect("link");
    let options = ["--one-off", "--socket", SOCKET, "--pid", &pid, "--mac-addr", "52:54:00:12:34:56", "-t", "7070:7000", "-q"];
    let begun = w.lab.run(Place::Host, 20, &[&[passt.as_str()], &options[..]].concat());
    begun.ok();
    assert!(begun.stderr.contains(SOCKET), "{begun}");
    let number = std::fs::read_to_string(&pid).expect("the process id").trim().to_owned();
    let runs = || w.lab.sh(Place::Host, 5, &format!("kill -0 {number}")).code == 0;
    assert!(runs());
    let qemu = w.qemu("connect");
    w.configure(65_520);
    wait_until("the guest has a network", SOON, || w.guest(5, "ping -c1 -W1 10.0.2.2").code == 0);
    w.transfer();
    drop(qemu);
    wait_until("it ends with the VM", SOON, || !runs());
    let refused = w.lab.run(Place::Host, 10, &[&passt, "--no-tcp"]);
    assert_eq!(refused.code, 2, "{refused}");
}
