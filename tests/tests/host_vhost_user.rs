//! `hibernet attach --vhost-user`. A stand-in plays the virtual machine's monitor, with a namespace as the guest.

use hibernet_tests::lab::{Family, GuestLab, Place, Proc, wait_until};
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);
const SOCKET: &str = "/run/vm.sock";
const FRONT_END: &str = env!("CARGO_BIN_EXE_front_end");

#[test]
fn bulk_data_both_ways_published_ports_and_rules() {
    for (mtu, guest, queues) in [
        ("1500", "buffer=1536", "1"),
        ("65520", "buffer=4096", "1"),
        ("1500", "features=0x140000001", "1"),
        ("1500", "pairs=3", "4"),
    ] {
        let Some(w) = GuestLab::new() else { return };
        let rules = w.lab.path("rules");
        std::fs::write(&rules, "*filter\n-A FORWARD -p tcp --dport 8999 -j REJECT --reject-with tcp-reset\nCOMMIT\n")
            .expect("file");
        let mut attach = w.attach(&[
            "--vhost-user",
            SOCKET,
            "--queues",
            queues,
            "--mtu",
            mtu,
            "-p",
            "7070:7000",
            "--rules",
            &rules,
            "--rules6",
            "/dev/null",
        ]);
        let _monitor = w.monitor(&[FRONT_END, SOCKET, "eth0", guest]);
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
fn flows_outlive_sleep_and_upgrade() {
    flows_outlive_sleep_and_upgrade_with(1);
}

#[test]
fn flows_over_several_queues_outlive_sleep_and_upgrade() {
    flows_outlive_sleep_and_upgrade_with(4);
}

fn flows_outlive_sleep_and_upgrade_with(pairs: usize) {
    let Some(w) = GuestLab::new() else { return };
    let log = w.lab.path("log");
    let queues = pairs.to_string();
    let options =
        ["--vhost-user", SOCKET, "--queues", &queues, "--mtu", "1500", "--name", "vm", "--log-level", "info", "--log-file", &log];
    let mut attach = w.attach(&options);
    let _monitor = w.monitor(&[FRONT_END, SOCKET, "eth0", &format!("pairs={pairs}")]);
    w.configure(1500);
    w.wait_served(&mut attach);
    w.undisturbed_by_sleep_and_upgrade(4);
    w.transfer();
    let told = std::fs::read_to_string(&log).expect("log");
    assert!(told.contains("the link has a peer") && !told.contains("trouble"), "{told}");
    attach.signal("TERM");
    assert_eq!(attach.wait(SOON), 0, "{}", attach.output());
    assert!(w.lab.sh(Place::Host, 5, &format!("test -e {SOCKET}")).code != 0, "the socket's file is left");
}

/// The monitor is killed, and the next one is served.
fn begins_anew(w: &GuestLab, monitor: Proc, attach: &mut Proc) {
    drop(monitor);
    wait_until("the guest's interface is gone", SOON, || w.sh(5, "ip link show eth0").code != 0);
    let _monitor = w.monitor(&[FRONT_END, SOCKET, "eth0"]);
    w.configure(65_520);
    w.wait_served(attach);
    w.transfer();
}

#[test]
fn either_side_is_killed_and_begins_anew() {
    let Some(w) = GuestLab::new() else { return };
    let mut attach = w.attach(&["--vhost-user", SOCKET]);
    let monitor = w.monitor(&[FRONT_END, SOCKET, "eth0"]);
    w.configure(65_520);
    w.wait_served(&mut attach);
    attach.signal("KILL");
    attach.wait(SOON);
    let mut attach = w.attach(&["--vhost-user", SOCKET]);
    w.wait_served(&mut attach);
    w.transfer();
    begins_anew(&w, monitor, &mut attach);
}

/// A monitor that shortens the file behind its guest's memory loses its connection, and we live.
#[test]
fn a_monitor_takes_memory_away() {
    let Some(w) = GuestLab::new() else { return };
    let log = w.lab.path("log");
    let mut attach = w.attach(&["--vhost-user", SOCKET, "-p", "7070:7000", "--log-level", "info", "--log-file", &log]);
    let monitor = w.monitor(&[FRONT_END, SOCKET, "eth0"]);
    w.configure(65_520);
    w.wait_served(&mut attach);
    // It could look at its memory before we do, and end by that.
    monitor.signal("STOP");
    let open = std::fs::read_dir(format!("/proc/{}/fd", monitor.pid())).expect("its descriptors");
    let is_memory = |fd: &PathBuf| std::fs::read_link(fd).is_ok_and(|to| to.to_string_lossy().contains("memfd:guest"));
    let memory = open.map(|fd| fd.expect("a descriptor").path()).find(is_memory).expect("the guest's memory");
    File::options().write(true).truncate(true).open(memory).expect("shortened");
    wait_until("the loss is found", SOON, || {
        w.lab.sh(Place::Remote, 5, "curl -sS --max-time 1 http://10.99.0.2:7070/");
        std::fs::read_to_string(&log).expect("log").contains("became shorter")
    });
    begins_anew(&w, monitor, &mut attach);
}

/// Buffers are few here: were one lost with each back end that is killed in the middle of its work, none would be left; that none comes back twice is seen by
/// the stand-in, which would end.
#[test]
fn a_back_end_that_is_killed_takes_no_buffer_along() {
    let Some(w) = GuestLab::new() else { return };
    let options = ["--vhost-user", SOCKET, "--queues", "2", "--mtu", "1500"];
    let mut attach = w.attach(&options);
    let mut monitor = w.monitor(&[FRONT_END, SOCKET, "eth0", "pairs=2", "size=32", "buffer=4096", "inflight=1"]);
    w.configure(1500);
    for _ in 0..20 {
        w.wait_served(&mut attach);
        let url = w.url(Family::V4);
        let big = w.lab.path("big");
        let load = w.spawn(&[
            "bash",
            "-c",
            &format!("curl -s --max-time 10 {url} >/dev/null & curl -s --max-time 10 -T {big} {url} & wait"),
        ]);
        // It is in the middle of that when it is killed.
        w.sh(5, "ping -f -c 200 -w 1 10.0.2.2");
        attach.signal("KILL");
        attach.wait(SOON);
        load.signal("TERM");
        attach = w.attach(&options);
        assert!(monitor.running(), "{}", monitor.output());
    }
    w.wait_served(&mut attach);
    w.transfer();
}

/// A monitor that listens: it is connected to whenever it is there, whoever begins, and whichever side goes.
#[test]
fn the_monitor_listens() {
    let Some(w) = GuestLab::new() else { return };
    let nowhere = w.lab.hibernet(10, &["attach", "--vhost-user-connect", "/nowhere/vm.sock"]);
    assert!(nowhere.code == 72 && nowhere.stderr.contains("cannot connect to /nowhere/vm.sock"), "{nowhere}");
    let listening = [FRONT_END, SOCKET, "eth0", "listen=1"];
    let options = ["--vhost-user-connect", SOCKET, "--mtu", "1500", "--name", "vm", "-p", "7070:7000"];
    let mut attach = w.attach(&options);
    wait_until("it says that it waits", SOON, || attach.output().contains("nobody is reached at /run/vm.sock"));
    let monitor = w.monitor(&listening);
    w.configure(1500);
    w.wait_served(&mut attach);
    w.transfer();
    w.published(7070, 7000);
    w.undisturbed_by_sleep_and_upgrade(4);
    drop(monitor);
    wait_until("the guest's interface is gone", SOON, || w.sh(5, "ip link show eth0").code != 0);
    let _monitor = w.monitor(&listening);
    w.configure(1500);
    w.wait_served(&mut attach);
    w.transfer();
    attach.signal("KILL");
    attach.wait(SOON);
    let mut attach = w.attach(&options);
    w.wait_served(&mut attach);
    w.transfer();
    attach.signal("TERM");
    assert_eq!(attach.wait(SOON), 0, "{}", attach.output());
    assert_eq!(w.lab.sh(Place::Host, 5, &format!("test -S {SOCKET}")).code, 0, "the monitor's socket is not ours to remove");
}

/// As libvirt starts passt for a vhost-user interface.
#[test]
fn in_the_place_of_passt() {
    let Some(w) = GuestLab::new() else { return };
    let pid = w.lab.path("pid");
    let options = [
        "--vhost-user",
        "--one-off",
        "--socket",
        SOCKET,
        "--pid",
        &pid,
        "--mac-addr",
        "52:54:00:12:34:56",
        "-t",
        "7070:7000",
        "-q",
    ];
    w.lab.hibernet(20, &[&["passt"], &options[..]].concat()).ok();
    let number = std::fs::read_to_string(&pid).expect("the process id").trim().to_owned();
    let runs = || w.lab.sh(Place::Host, 5, &format!("kill -0 {number}")).code == 0;
    let monitor = w.monitor(&[FRONT_END, SOCKET, "eth0"]);
    w.configure(65_520);
    wait_until("the guest has a network", SOON, || w.sh(5, "ping -c1 -W1 10.0.2.2").code == 0);
    w.transfer();
    w.published(7070, 7000);
    assert!(runs());
    drop(monitor);
    wait_until("it ends with the VM", SOON, || !runs());
}
