//! A lab with a guest that hibernet did not make: a namespace, whose interface a stand-in for a virtual machine's monitor makes.

use super::net::{Lab, Place};
use super::proc::{Done, Proc};
use super::{Family, bracketed, skip, wait_until};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);
/// Ports of the web servers outside, by family.
const PORTS: [u16; 2] = [8004, 8006];

/// See the module's documentation. Outside are web servers with a file `big`, which take uploads and answer with their digest.
#[derive(Debug)]
pub struct GuestLab {
    /// The lab.
    pub lab: Lab,
    /// Digest of the file.
    pub digest: String,
    _servers: Vec<Proc>,
}

impl GuestLab {
    /// None, and that is told, if something is missing here. The guest has no network yet.
    pub fn new() -> Option<GuestLab> {
        let lab = Lab::new(&["ip", "curl", "python3", "sha256sum", "ping"])?;
        if std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_err() {
            skip("/dev/net/tun cannot be opened");
            return None;
        }
        lab.sh(Place::Host, 5, "ip netns add guest && ip -n guest link set lo up").ok();
        let file = lab.path("big");
        let make = lab.peer("stream.py", &[&file, "20000000"]);
        let digest = lab.run(Place::Remote, 60, &make.iter().map(String::as_str).collect::<Vec<_>>()).ok().to_owned();
        let dir = lab.dir().to_string_lossy().into_owned();
        let serve = |(f, port)| lab.serve_peer(Place::Remote, "http_store.py", &[&dir], f, port);
        let servers = Family::BOTH.into_iter().zip(PORTS).map(serve).collect();
        Some(GuestLab { lab, digest, _servers: servers })
    }

    /// `hibernet attach`, in the background.
    pub fn attach(&self, options: &[&str]) -> Proc {
        self.lab.spawn_hibernet(&[&["attach"], options].concat())
    }

    /// Starts a program in the guest's namespace, which makes the interface `eth0` there.
    pub fn monitor(&self, argv: &[&str]) -> Proc {
        let mut monitor = self.spawn(argv);
        wait_until("the guest has an interface", SOON, || {
            assert!(monitor.running(), "{argv:?} ended early:\n{}", monitor.output());
            self.sh(5, "ip link show eth0").code == 0
        });
        monitor
    }

    /// Starts a program in the guest.
    pub fn spawn(&self, argv: &[&str]) -> Proc {
        self.lab.spawn(Place::Host, &[&["nsenter", "--net=/run/netns/guest"], argv].concat())
    }

    /// Runs a script in the guest.
    pub fn sh(&self, seconds: u32, script: &str) -> Done {
        self.lab.run(Place::Host, seconds, &["nsenter", "--net=/run/netns/guest", "bash", "-c", script])
    }

    /// Gives the guest addresses and routes: these and no others, whatever the router advertises meanwhile.
    pub fn configure(&self, mtu: u32) {
        self.sh(
            10,
            &format!(
                "set -e; echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_ra
                 ip link set eth0 mtu {mtu} up; ip addr add 10.0.2.15/24 dev eth0
                 ip addr add fd68:6962:6e65:7400::15/64 dev eth0 nodad
                 ip route add default via 10.0.2.2; ip -6 route add default via fd68:6962:6e65:7400::2"
            ),
        )
        .ok();
    }

    /// Waits until the guest reaches its gateway.
    pub fn wait_served(&self, attach: &mut Proc) {
        wait_until("the guest has a network", SOON, || {
            assert!(attach.running(), "attach ended early:\n{}", attach.output());
            self.sh(5, "ping -c1 -W1 10.0.2.2").code == 0
        });
    }

    /// Where the file is, outside.
    pub fn url(&self, family: Family) -> String {
        format!("http://{}:{}/big", bracketed(family.remote()), PORTS[usize::from(family == Family::V6)])
    }

    /// Fetches and uploads over both families; what arrives is right.
    pub fn transfer(&self) {
        for family in Family::BOTH {
            let (url, big) = (self.url(family), self.lab.path("big"));
            let script =
                format!("set -o pipefail; curl -sSf --max-time 60 {url} | sha256sum; curl -sSf --max-time 60 -T {big} {url}");
            let done = self.sh(150, &script);
            assert_eq!(done.ok(), format!("{0}  -\n{0}", self.digest), "{family:?}: {done}");
        }
    }

    /// A download that goes on while `disturb` does something, several times; what arrives is right.
    pub fn undisturbed(&self, times: usize, mut disturb: impl FnMut(usize)) {
        let url = self.url(Family::V4);
        let fetch = format!("curl -sSf --limit-rate 4M --max-time 60 {url} | sha256sum; echo status ${{PIPESTATUS[0]}}");
        let mut fetching = self.spawn(&["bash", "-c", &fetch]);
        for n in 0..times {
            std::thread::sleep(Duration::from_millis(500));
            assert!(fetching.running(), "it was over before it was disturbed {n} times: {}", fetching.output());
            disturb(n);
        }
        fetching.wait(Duration::from_secs(60));
        assert_eq!(fetching.output(), format!("{}  -\nstatus 0\n", self.digest));
    }

    /// The same by sleep and upgrade of the network `vm`, in turn.
    pub fn undisturbed_by_sleep_and_upgrade(&self, times: usize) {
        let image = self.lab.path("vm.img");
        self.undisturbed(times, |n| {
            if n % 2 == 0 {
                self.lab.hibernet(30, &["checkpoint", "vm", &image]).ok();
                self.lab.hibernet(30, &["restore", &image]).ok();
            } else {
                self.lab.hibernet(30, &["upgrade", "vm"]).ok();
            }
        });
    }

    /// A published port: serves the file in the guest at `inside`, and fetches it from outside at `outside`.
    pub fn published(&self, outside: u16, inside: u16) {
        let dir = self.lab.dir().to_string_lossy().into_owned();
        let argv = self.lab.peer("http_store.py", &[&dir, "0.0.0.0", &inside.to_string()]);
        let _server = self.spawn(&argv.iter().map(String::as_str).collect::<Vec<_>>());
        wait_until("the server in the guest answers", SOON, || {
            let fetch = format!("curl -sS --max-time 20 http://10.99.0.2:{outside}/big | sha256sum");
            self.lab.sh(Place::Remote, 30, &fetch).stdout.starts_with(&self.digest)
        });
    }
}
