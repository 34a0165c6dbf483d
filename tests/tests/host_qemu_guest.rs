//! A stock Debian kernel in QEMU, over the stream socket, over datagrams and over vhost-user. Few boots, many checks in each: where there is no KVM that can run it, it is emulated.

use hibernet_tests::lab::{DNS4, Family, GUEST4, Guest, Lab, Place, Proc, bracketed, moving_qemu, skip, wait_until};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

/// How QEMU and hibernet are linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Stream,
    Datagrams,
    VhostUser,
    /// QEMU listens.
    VhostUserConnect,
}

struct World {
    how: How,
    lab: Lab,
    _servers: Vec<Proc>,
    digest: String,
}

impl World {
    fn new(how: How) -> Option<World> {
        let lab = Lab::new(&["qemu-system-x86_64", "busybox", "curl", "python3"])?;
        let make = lab.peer("stream.py", &[&lab.path("big"), "10000000"]);
        let digest = lab.run(Place::Remote, 60, &make.iter().map(String::as_str).collect::<Vec<_>>()).ok().to_owned();
        let dir = lab.dir().to_string_lossy().into_owned();
        let serve = |(f, port)| lab.serve_peer(Place::Remote, "http_store.py", &[&dir], f, port);
        let servers = Family::BOTH.into_iter().zip([8004, 8006]).map(serve).collect();
        Some(World { how, lab, _servers: servers, digest })
    }

    fn attach(&self, socket: &str, mtu: &str, rules: &str) -> Proc {
        let rules = ["-p", "7070:7000", "--rules", rules, "--rules6", "/dev/null"];
        let link = match self.how {
            How::Stream => "--qemu",
            How::Datagrams => "--qemu-dgram",
            How::VhostUser => "--vhost-user",
            How::VhostUserConnect => "--vhost-user-connect",
        };
        self.lab.spawn_hibernet(&[&["attach", "--name", "vm", link, socket, "--mtu", mtu], &rules[..]].concat())
    }

    /// Major and minor version of the QEMU that is here.
    fn qemu_version(&self) -> (u32, u32) {
        let version = self.lab.run(Place::Host, 10, &["qemu-system-x86_64", "--version"]).ok().to_owned();
        let number = version.split("version ").nth(1).expect("a version");
        let mut parts = number.split('.').map_while(|n| n.parse::<u32>().ok());
        (parts.next().expect("a number"), parts.next().unwrap_or(0))
    }

    /// What has this QEMU connect again: for a stream nothing before 8.0.
    fn reconnect(&self) -> &'static str {
        match self.qemu_version() {
            // Without connections there is nothing to be done.
            _ if self.how == How::Datagrams => "itself",
            _ if self.how == How::VhostUserConnect => ",server=on",
            (..=7, _) if self.how == How::Stream => "",
            (..=8, _) | (9, 0 | 1) => ",reconnect=1",
            _ => ",reconnect-ms=100",
        }
    }

    fn boot(&self, socket: &str) -> Option<Guest> {
        let device = ["-device", "virtio-net-pci,netdev=n,host_mtu=65520"];
        if self.how == How::Stream {
            let netdev = format!("stream,id=n,server=off,addr.type=unix,addr.path={socket}{}", self.reconnect());
            return Guest::boot(&self.lab, &[&["-netdev", &netdev], &device[..]].concat());
        }
        if self.how == How::Datagrams {
            let (local, remote) =
                (format!("local.type=unix,local.path={socket}.q"), format!("remote.type=unix,remote.path={socket}"));
            return Guest::boot(&self.lab, &[&["-netdev", &format!("dgram,id=n,{local},{remote}")], &device[..]].concat());
        }
        let socket = format!("socket,id=c,path={socket}{}", self.reconnect());
        let memory = ["-object", "memory-backend-memfd,id=m,size=256M,share=on", "-machine", "memory-backend=m"];
        let link = ["-chardev", &socket, "-netdev", "vhost-user,id=n,chardev=c"];
        // QEMU 7 without KVM crashes when a vhost-user device has interrupt vectors of its own.
        let device =
            if self.qemu_version().0 < 8 { ["-device", "virtio-net-pci,netdev=n,host_mtu=65520,vectors=0"] } else { device };
        Guest::boot(&self.lab, &[&memory[..], &link[..], &device[..]].concat())
    }
}

/// Asks for a lease until there is one, and waits for what the router advertises.
fn configure(guest: &mut Guest, mtu: &str) {
    guest.ok(5, "ip addr flush dev eth0; ip link set eth0 down; ip link set eth0 up");
    let said = guest.ok(60, "udhcpc -i eth0 -f -q -n -t 10 -T 2 -O mtu -s /dhcp");
    let lease = format!("leased {GUEST4}/24 router 10.0.2.2 dns {DNS4} mtu {mtu}");
    assert!(said.contains(&lease), "{said}");
    let end = Instant::now() + SOON;
    loop {
        let state = guest.ok(5, "ip -6 -o addr show dev eth0 scope global; ip -6 route");
        if state.contains("fd68:6962:6e65:7400:") && !state.contains("tentative") && state.contains("default via fe80::") {
            break;
        }
        assert!(Instant::now() < end, "no address or no route: {state}");
    }
    assert_eq!(guest.ok(5, "cat /proc/sys/net/ipv6/conf/eth0/mtu").trim(), mtu);
}

fn transfer(guest: &mut Guest, digest: &str) {
    for (family, port) in Family::BOTH.into_iter().zip([8004, 8006]) {
        let url = format!("http://{}:{port}/big", bracketed(family.remote()));
        guest.ok(60, &format!("curl -sSf --max-time 50 -o /tmp/big {url}"));
        assert!(guest.ok(20, "sha256sum /tmp/big").starts_with(digest), "what {family:?} brought is not what was sent");
        assert_eq!(
            guest.ok(60, &format!("curl -sSf --max-time 50 -T /tmp/big {url}")).trim(),
            digest,
            "{family:?}, to the server"
        );
    }
}

#[test]
fn a_stock_guest_has_the_network_and_both_sides_may_begin_anew() {
    from_boot_to_end(How::Stream);
}

#[test]
fn a_stock_guest_has_the_network_over_datagrams_and_both_sides_may_begin_anew() {
    from_boot_to_end(How::Datagrams);
}

#[test]
fn a_stock_guest_has_the_network_over_vhost_user_and_both_sides_may_begin_anew() {
    from_boot_to_end(How::VhostUser);
}

#[test]
fn a_stock_guest_has_the_network_over_vhost_user_where_its_monitor_listens() {
    from_boot_to_end(How::VhostUserConnect);
}

fn from_boot_to_end(how: How) {
    let Some(w) = World::new(how) else { return };
    if how == How::Datagrams && w.qemu_version() < (7, 2) {
        return skip("QEMU has -netdev dgram since 7.2");
    }
    let socket = w.lab.path("vm.sock");
    let rules = w.lab.path("rules");
    std::fs::write(&rules, "*filter\n-A FORWARD -p tcp --dport 8999 -j REJECT --reject-with tcp-reset\nCOMMIT\n").expect("file");
    let mut attach = w.attach(&socket, "65520", &rules);
    let Some(mut guest) = w.boot(&socket) else { return };
    configure(&mut guest, "65520");
    guest.ok(10, "ping -c 3 -W 5 10.99.0.1 && ping -c 3 -W 5 fd99::1");
    transfer(&mut guest, &w.digest);
    // A published port, and a rule.
    guest.ok(5, "httpd -p 7000 -h /tmp");
    let fetched = w.lab.sh(Place::Remote, 60, "curl -sSf --max-time 50 http://10.99.0.2:7070/big | sha256sum");
    assert!(fetched.ok().starts_with(&w.digest), "{fetched}");
    assert_eq!(guest.sh(10, "curl -sS --max-time 8 http://10.99.0.1:8999/").0, 7, "refused at once");
    // Several at a time.
    let many = "for n in 1 2 3 4 5 6 7 8; do curl -sSf --max-time 50 http://10.99.0.1:8004/big | sha256sum & done; wait";
    let sums = guest.ok(120, many);
    assert_eq!(sums.lines().filter(|l| l.starts_with(&w.digest)).count(), 8, "{sums}");

    // Sleep, wake and upgrade, in the middle of a download.
    let image = w.lab.path("vm.img");
    guest.ok(5, "(curl -sS --limit-rate 2M --max-time 60 -o /tmp/slow http://10.99.0.1:8004/big; echo $? >/tmp/slow.status) >/dev/null 2>&1 &");
    w.lab.hibernet(30, &["checkpoint", "vm", &image]).ok();
    w.lab.hibernet(30, &["restore", &image]).ok();
    w.lab.hibernet(30, &["upgrade", "vm"]).ok();
    let said = guest.ok(90, "while [ ! -e /tmp/slow.status ]; do sleep 1; done; cat /tmp/slow.status; sha256sum /tmp/slow");
    assert!(said.starts_with(&format!("0\n{}", w.digest)), "{said}");

    // QEMU is killed, and another takes its place.
    guest.qemu.signal("KILL");
    guest.qemu.wait(SOON);
    let Some(mut guest) = w.boot(&socket) else { return };
    configure(&mut guest, "65520");
    guest.ok(10, "ping -c 3 -W 5 10.99.0.1 && ping -c 3 -W 5 fd99::1");

    // hibernet is killed, and another takes its place; where the monitor does not know it, with another MTU.
    attach.signal("KILL");
    attach.wait(SOON);
    let mtu = if !matches!(how, How::VhostUser | How::VhostUserConnect) { "1500" } else { "65520" };
    let mut attach = w.attach(&socket, mtu, &rules);
    if w.reconnect().is_empty() {
        guest.qemu.signal("KILL");
        guest.qemu.wait(SOON);
        guest = w.boot(&socket).expect("it did before");
    } else {
        wait_until("the guest is served again", SOON, || guest.sh(10, "ping -c 1 -W 1 10.0.2.2").0 == 0);
    }
    configure(&mut guest, mtu);
    transfer(&mut guest, &w.digest);
    assert!(attach.running(), "{}", attach.output());
    attach.signal("TERM");
    assert_eq!(attach.wait(SOON), 0, "{}", attach.output());
}

#[test]
fn a_stock_guest_uses_several_queues() {
    a_stock_guest_uses_several_queues_of("1");
}

#[test]
fn a_stock_guest_uses_several_queues_of_several_workers() {
    a_stock_guest_uses_several_queues_of("2");
}

/// A guest of two processors uses two pairs of queues, fewer, and both again.
fn a_stock_guest_uses_several_queues_of(workers: &str) {
    let Some(w) = World::new(How::VhostUser) else { return };
    if w.lab.sh(Place::Host, 5, "command -v ethtool").code != 0 {
        return skip("ethtool is not installed");
    }
    // The packaged one may crash when the device has interrupt vectors of its own.
    let Some(qemu) = moving_qemu(&w.lab) else { return };
    let socket = w.lab.path("vm.sock");
    let options = ["attach", "--name", "vm", "--vhost-user", &socket, "--queues", "4", "--workers", workers, "-p", "7070:7000"];
    let mut attach = w.lab.spawn_hibernet(&options);
    let chardev = format!("socket,id=c,path={socket},reconnect-ms=100");
    let network = [
        ["-object", "memory-backend-memfd,id=m,size=256M,share=on"],
        ["-machine", "memory-backend=m"],
        ["-smp", "2"],
        ["-chardev", &chardev],
        ["-netdev", "vhost-user,id=n,chardev=c,queues=2"],
        ["-device", "virtio-net-pci,netdev=n,mq=on,vectors=6,host_mtu=65520"],
    ];
    let Some(mut guest) = Guest::boot_in(&qemu, &w.lab, &network.concat()) else { return };
    configure(&mut guest, "65520");
    let channels = |guest: &mut Guest| {
        let said = guest.ok(10, "ethtool -l eth0");
        let numbers: Vec<u32> = said.lines().filter_map(|l| l.strip_prefix("Combined:")?.trim().parse().ok()).collect();
        <[u32; 2]>::try_from(numbers).unwrap_or_else(|_| panic!("{said}"))
    };
    assert_eq!(channels(&mut guest), [2, 2], "most, and now");
    let many = "for n in 1 2 3 4 5 6 7 8; do curl -sSf --max-time 50 http://10.99.0.1:8004/big | sha256sum & done; wait";
    let check = |guest: &mut Guest| {
        transfer(guest, &w.digest);
        let sums = guest.ok(120, many);
        assert_eq!(sums.lines().filter(|l| l.starts_with(&w.digest)).count(), 8, "{sums}");
    };
    check(&mut guest);
    let said = guest.ok(10, "ethtool -S eth0");
    for counter in ["rx_queue_1_packets", "tx_queue_1_packets", "rx_queue_0_packets", "tx_queue_0_packets"] {
        let line = said.lines().find_map(|l| l.trim().strip_prefix(counter)?.strip_prefix(':')?.trim().parse::<u64>().ok());
        assert!(line.is_some_and(|n| n > 20), "{counter}: {said}");
    }
    guest.ok(10, "ethtool -L eth0 combined 1");
    check(&mut guest);
    guest.ok(10, "ethtool -L eth0 combined 2");
    let image = w.lab.path("vm.img");
    guest.ok(5, "(curl -sS --limit-rate 2M --max-time 60 -o /tmp/slow http://10.99.0.1:8004/big; echo $? >/tmp/slow.status) >/dev/null 2>&1 &");
    w.lab.hibernet(30, &["checkpoint", "vm", &image]).ok();
    w.lab.hibernet(30, &["restore", &image]).ok();
    w.lab.hibernet(30, &["upgrade", "vm"]).ok();
    let said = guest.ok(90, "while [ ! -e /tmp/slow.status ]; do sleep 1; done; cat /tmp/slow.status; sha256sum /tmp/slow");
    assert!(said.starts_with(&format!("0\n{}", w.digest)), "{said}");
    attach.signal("KILL");
    attach.wait(SOON);
    let mut attach = w.lab.spawn_hibernet(&options);
    wait_until("the guest is served again", SOON, || guest.sh(10, "ping -c 1 -W 1 10.0.2.2").0 == 0);
    check(&mut guest);
    assert_eq!(channels(&mut guest), [2, 2]);
    assert!(attach.running(), "{}", attach.output());
}
