//! `hibernet attach --qemu-dgram`: links whose frames are datagrams of a Unix socket. A stand-in plays the virtual machine's monitor, with a namespace as the guest.

use hibernet_tests::lab::{GuestLab, Place, Proc, wait_until};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);
/// Ours, and the monitor's.
const SOCKET: &str = "/run/vm.sock";
const THEIRS: &str = "/run/monitor.sock";

fn monitor(w: &GuestLab, how: &str, local: &str) -> Proc {
    let argv = w.lab.peer("dgram.py", &[how, local, SOCKET, "eth0"]);
    let mut monitor = w.monitor(&argv.iter().map(String::as_str).collect::<Vec<_>>());
    wait_until("the monitor is ready", SOON, || {
        assert!(monitor.running(), "{}", monitor.output());
        monitor.output().contains("ready")
    });
    monitor
}

fn end(w: &GuestLab, monitor: Proc) {
    drop(monitor);
    wait_until("the guest's interface is gone", SOON, || w.sh(5, "ip link show eth0").code != 0);
}

/// A counter of the link.
fn counter(w: &GuestLab, name: &str) -> u64 {
    let stats = w.lab.hibernet(10, &["stats", "vm", "--json"]);
    let value: serde_json::Value = serde_json::from_str(stats.ok()).expect("JSON");
    value["links"][0][name].as_u64().unwrap_or_else(|| panic!("no {name}: {value}"))
}

#[test]
fn bulk_data_both_ways_and_published_ports() {
    for (how, mtu, remote) in [("qemu", 1500, ""), ("qemu", 65_520, ",remote=/run/monitor.sock"), ("krun", 1500, "")] {
        let Some(w) = GuestLab::new() else { return };
        let (socket, size) = (format!("{SOCKET}{remote}"), mtu.to_string());
        let mut attach = w.attach(&["--qemu-dgram", &socket, "--mtu", &size, "-p", "7070:7000", "--name", "vm"]);
        let _monitor = monitor(&w, how, THEIRS);
        w.configure(mtu);
        w.wait_served(&mut attach);
        w.transfer();
        w.published(7070, 7000);
        assert_eq!(counter(&w, "rx_too_short"), 0, "a greeting is no frame");
        attach.signal("TERM");
        assert_eq!(attach.wait(SOON), 0, "{}", attach.output());
        assert!(w.lab.sh(Place::Host, 5, &format!("test -e {SOCKET}")).code != 0, "the socket's file is left");
    }
}

#[test]
fn either_side_is_killed_and_begins_anew() {
    let Some(w) = GuestLab::new() else { return };
    let options = ["--qemu-dgram", SOCKET, "--name", "vm", "--log-level", "info", "--log-file"];
    let log = w.lab.path("log");
    let mut attach = w.attach(&[&options[..], &[&log]].concat());
    // As QEMU the next one has the same path, as libkrun another one.
    for (how, paths) in [("qemu", [THEIRS, THEIRS]), ("krun", ["/run/krun-1.sock", "/run/krun-2.sock"])] {
        let first = monitor(&w, how, paths[0]);
        w.configure(1500);
        w.wait_served(&mut attach);
        w.transfer();
        let left = || std::fs::read_to_string(&log).map_or(0, |l| l.matches("has left").count());
        let before = left();
        end(&w, first);
        wait_until("that it has gone is known", SOON, || left() > before);
        let second = monitor(&w, how, paths[1]);
        w.configure(1500);
        w.wait_served(&mut attach);
        w.transfer();
        if how == "qemu" {
            attach.signal("KILL");
            attach.wait(SOON);
            // Its file is left, and gives way.
            attach = w.attach(&[&options[..], &[&log]].concat());
            w.wait_served(&mut attach);
            w.transfer();
        }
        end(&w, second);
    }
    let told = std::fs::read_to_string(&log).expect("log");
    assert!(told.matches("the link has a peer").count() >= 5, "{told}");
}

#[test]
fn flows_outlive_sleep_and_upgrade() {
    let Some(w) = GuestLab::new() else { return };
    let mut attach = w.attach(&["--qemu-dgram", SOCKET, "--mtu", "1500", "--name", "vm"]);
    let first = monitor(&w, "qemu", THEIRS);
    w.configure(1500);
    w.wait_served(&mut attach);
    w.undisturbed_by_sleep_and_upgrade(4);
    // A monitor that begins anew while the network sleeps is found when it wakes.
    let image = w.lab.path("vm.img");
    w.lab.hibernet(30, &["checkpoint", "vm", &image]).ok();
    end(&w, first);
    let _second = monitor(&w, "qemu", THEIRS);
    w.configure(1500);
    w.lab.hibernet(30, &["restore", &image]).ok();
    w.wait_served(&mut attach);
    w.transfer();
}

#[test]
fn a_guest_that_is_stopped_takes_no_more_than_its_share() {
    let Some(w) = GuestLab::new() else { return };
    let mut attach = w.attach(&["--qemu-dgram", SOCKET, "--mtu", "1500", "--name", "vm"]);
    let monitor = monitor(&w, "krun", THEIRS);
    w.configure(1500);
    w.wait_served(&mut attach);
    // It does not read while a download runs: what it was sent waits, and comes when it goes on.
    let lost = || counter(&w, "tx_down") + counter(&w, "tx_errors");
    // What was sent when it was not there yet.
    let before = lost();
    w.undisturbed(2, |_| {
        monitor.signal("STOP");
        std::thread::sleep(Duration::from_millis(700));
        monitor.signal("CONT");
    });
    assert_eq!(lost(), before);
}

#[test]
fn mistakes_are_said() {
    let Some(w) = GuestLab::new() else { return };
    let refused = |socket: &str, why: &str| {
        let done = w.lab.hibernet(10, &["attach", "--qemu-dgram", socket]);
        assert!(done.code != 0 && done.stderr.contains(why), "{socket}: {done}");
    };
    refused("", "a path is missing");
    refused("/run/x,remote=", "a path is missing");
    refused("/nosuch/vm.sock", "cannot listen at /nosuch/vm.sock");
    refused(&format!("/run/{}", "x".repeat(200)), "cannot listen at");
    let mut attach = w.attach(&["--qemu-dgram", SOCKET, "--name", "vm"]);
    wait_until("it is there", SOON, || w.lab.sh(Place::Host, 5, &format!("test -S {SOCKET}")).code == 0);
    refused(SOCKET, "somebody listens there already");
    // Nobody can answer a socket without a name, or one whose path means something elsewhere only.
    let script = "
import os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect('/run/vm.sock'); s.send(bytes(60))
os.chdir('/run')
r = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
r.bind('relative.sock'); r.connect('/run/vm.sock'); r.send(bytes(60))";
    w.lab.run(Place::Host, 10, &["python3", "-c", script]).ok();
    wait_until("it is said", SOON, || attach.output().contains("cannot be answered: it is bound to no path"));
    let _monitor = monitor(&w, "qemu", THEIRS);
    w.configure(1500);
    w.wait_served(&mut attach);
}
