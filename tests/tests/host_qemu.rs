//! `hibernet attach --qemu`: links over the stream socket of QEMU. A stand-in plays QEMU's side, with a namespace as the guest.

use hibernet_tests::lab::{GuestLab, Place, Proc, wait_until};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

/// Where the sockets are: in a lab, every path is short enough.
const SOCKET: &str = "/run/vm.sock";

/// The stand-in for QEMU.
fn stand_in(w: &GuestLab, how: &str) -> Proc {
    let argv = w.lab.peer("qemu.py", &[how, SOCKET, "eth0"]);
    w.monitor(&argv.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn bulk_data_both_ways_published_ports_and_rules() {
    for mtu in ["1500", "65520"] {
        let Some(w) = GuestLab::new() else { return };
        let rules = w.lab.path("rules");
        std::fs::write(&rules, "*filter\n-A FORWARD -p tcp --dport 8999 -j REJECT --reject-with tcp-reset\nCOMMIT\n")
            .expect("file");
        let mut attach =
            w.attach(&["--qemu", SOCKET, "--mtu", mtu, "-p", "7070:7000", "--rules", &rules, "--rules6", "/dev/null"]);
        let _qemu = stand_in(&w, "connect");
        w.configure(mtu.parse().expect("a number"));
        w.wait_served(&mut attach);
        w.transfer();
        w.published(7070, 7000);
        let refused = w.sh(10, "curl -sS --max-time 5 http://10.99.0.1:8999/");
        assert_eq!(refused.code, 7, "a reset, at once: {refused}");
        let all = (0..10).map(|_| "curl -sSf --max-time 60 http://10.99.0.1:8004/big | sha256sum &").collect::<String>();
        let done = w.sh(120, &format!("{all} wait"));
        assert_eq!(done.ok().lines().filter(|l| l.starts_with(&w.digest)).count(), 10, "{done}");
    }
}

#[test]
fn flows_outlive_the_connection() {
    let Some(w) = GuestLab::new() else { return };
    let log = w.lab.path("log");
    let mut attach = w.attach(&["--qemu", SOCKET, "--mtu", "1500", "--name", "vm", "--log-level", "info", "--log-file", &log]);
    let qemu = stand_in(&w, "connect");
    w.configure(1500);
    w.wait_served(&mut attach);
    let connected = || qemu.output().matches("connected\n").count() - qemu.output().matches("disconnected").count();
    let logged = |what: &str| std::fs::read_to_string(&log).unwrap_or_default().matches(what).count();
    assert_eq!(connected(), 1);
    // The connection ends, and the stand-in makes another.
    w.undisturbed(4, |n| {
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
    w.undisturbed_by_sleep_and_upgrade(4);
    assert_eq!(connected(), 6, "{}", qemu.output());
    // A guest that connects while the network sleeps is served when it wakes.
    let image = w.lab.path("vm.img");
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
    let Some(w) = GuestLab::new() else { return };
    let mut attach = w.attach(&["--qemu", SOCKET]);
    let qemu = stand_in(&w, "connect");
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
    wait_until("the guest's interface is gone", SOON, || w.sh(5, "ip link show eth0").code != 0);
    let _qemu = stand_in(&w, "connect");
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
    let Some(w) = GuestLab::new() else { return };
    let early = w.lab.hibernet(10, &["attach", "--qemu-connect", SOCKET]);
    assert!(early.code == 72 && early.stderr.contains("cannot connect to /run/vm.sock"), "{early}");
    let qemu = stand_in(&w, "listen");
    w.configure(1500);
    let mut attach = w.attach(&["--qemu-connect", SOCKET, "--mtu", "1500", "--name", "vm"]);
    w.wait_served(&mut attach);
    let image = w.lab.path("vm.img");
    w.undisturbed(2, |_| {
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
    let Some(w) = GuestLab::new() else { return };
    let (passt, pid) = (w.lab.path("passt"), w.lab.path("pid"));
    std::os::unix::fs::symlink(w.lab.binary(), &passt).expect("link");
    let options = ["--one-off", "--socket", SOCKET, "--pid", &pid, "--mac-addr", "52:54:00:12:34:56", "-t", "7070:7000", "-q"];
    let begun = w.lab.run(Place::Host, 20, &[&[passt.as_str()], &options[..]].concat());
    begun.ok();
    assert!(begun.stderr.contains(SOCKET), "{begun}");
    let number = std::fs::read_to_string(&pid).expect("the process id").trim().to_owned();
    let runs = || w.lab.sh(Place::Host, 5, &format!("kill -0 {number}")).code == 0;
    assert!(runs());
    let qemu = stand_in(&w, "connect");
    w.configure(65_520);
    wait_until("the guest has a network", SOON, || w.sh(5, "ping -c1 -W1 10.0.2.2").code == 0);
    w.transfer();
    drop(qemu);
    wait_until("it ends with the VM", SOON, || !runs());
    let refused = w.lab.run(Place::Host, 10, &[&passt, "--no-tcp"]);
    assert_eq!(refused.code, 2, "{refused}");
}
