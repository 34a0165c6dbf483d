//! `--workers`: several threads serve one link, each with flows of its own, and nobody can tell but by the clock.

use hibernet_tests::lab::{Family, Lab, Place, Proc, Sandbox, wait_until};
use serde_json::Value;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

fn strings(argv: &[String]) -> Vec<&str> {
    argv.iter().map(String::as_str).collect()
}

/// A sandbox named `w` with this many workers, and what else is asked for.
fn sandbox<'a>(lab: &'a Lab, workers: &str, options: &[&str]) -> Sandbox<'a> {
    Sandbox::start(lab, &[&["--name", "w", "--workers", workers], options].concat())
}

fn stats(lab: &Lab) -> Value {
    serde_json::from_str(lab.hibernet(10, &["stats", "w", "--json"]).ok()).expect("JSON")
}

/// How many flows of a kind each worker carries.
fn carried(lab: &Lab, kind: &str) -> Vec<u64> {
    stats(lab)["workers"].as_array().expect("workers").iter().map(|w| w[kind].as_u64().expect("a number")).collect()
}

/// Connections that stay, from the guest to a server in *remote*.
struct Held {
    guest: Proc,
    _server: Proc,
}

impl Held {
    fn open(lab: &Lab, s: &Sandbox<'_>, port: u16, count: usize) -> Held {
        let (name, text, fifo) = (count.to_string(), port.to_string(), |end: &str| lab.path(&format!("{end}-{port}")));
        for end in ["guest", "server"] {
            lab.run(Place::Host, 5, &["mkfifo", &fifo(end)]).ok();
        }
        let server = lab.serve(Place::Remote, port, &strings(&lab.peer("held.py", &["server", &text, &fifo("server")])));
        let guest = lab.peer("held.py", &["client", Family::V4.remote(), &text, &name, &fifo("guest")]);
        let guest = s.spawn(&strings(&guest));
        wait_until("all are connected", SOON, || guest.output().contains(&format!("open {count}\n")));
        Held { guest, _server: server }
    }

    fn resets(&self) -> usize {
        self.guest.output().lines().filter(|l| l.ends_with("reset")).count()
    }
}

#[test]
fn flows_are_spread_and_all_is_counted() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let s = sandbox(&lab, "4", &[]);
    let held = Held::open(&lab, &s, 7000, 200);
    let tcp = carried(&lab, "tcp");
    eprintln!("connections of each worker: {tcp:?}");
    assert_eq!((tcp.len(), tcp.iter().sum::<u64>()), (4, 200), "{tcp:?}");
    assert!(tcp.iter().all(|n| *n >= 10), "some workers have none: {tcp:?}");
    let all = stats(&lab);
    assert_eq!((&all["flows"]["tcp"], &all["stack"]["tcp_out"]), (&200.into(), &200.into()), "{all}");
    assert_eq!(all["open_sockets"], 200, "{all}");
    assert_eq!(all["drops"]["worker_busy"], 0, "{all}");
    // Those of all are found, and end, wherever they are.
    let listed = lab.hibernet(10, &["conntrack", "w", "-L", "-p", "tcp"]);
    assert_eq!(listed.ok().lines().filter(|l| l.contains("dport=7000")).count(), 200, "{listed}");
    lab.hibernet(10, &["conntrack", "w", "-D", "-p", "tcp"]).ok();
    wait_until("all hear of the end", SOON, || held.resets() == 200);
    assert_eq!(carried(&lab, "tcp"), [0; 4]);
}

#[test]
fn rules_hold_for_the_flows_of_all() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let log = lab.path("log");
    let s = sandbox(&lab, "3", &["--log-level", "info", "--log-file", &log]);
    let restore = |text: &str, options: &[&str]| {
        let file = lab.path("rules");
        std::fs::write(&file, text).expect("file");
        lab.hibernet(10, &[&["rules", "restore", "w"], options, &[&file]].concat()).ok();
    };
    let counting = "*filter\n-A FORWARD -p tcp --dport 7000 -m conntrack --ctstate NEW -j LOG --log-prefix \"new \"\n\
                    -A FORWARD -p tcp --dport 7000 -m conntrack --ctstate NEW\nCOMMIT\n";
    restore(counting, &[]);
    let held = Held::open(&lab, &s, 7000, 50);
    let saved = lab.hibernet(10, &["rules", "save", "w", "-c"]);
    let count =
        |line: &str| saved.ok().lines().find(|l| l.ends_with(line)).unwrap_or_else(|| panic!("no {line}: {saved}")).to_owned();
    let new = count("-A FORWARD -p tcp -m tcp --dport 7000 -m conntrack --ctstate NEW");
    assert!(new.starts_with("[50:"), "{new}");
    wait_until("all are logged", SOON, || {
        std::fs::read_to_string(&log).expect("log").matches("new IN=tap0 OUT=host0").count() == 50
    });
    // They are cut when they are forbidden, also those of other workers.
    restore("*filter\n-A FORWARD -p tcp -j REJECT\nCOMMIT\n", &["--recheck", "cut"]);
    wait_until("all are cut", SOON, || held.resets() == 50);
    let refused = s.sh(10, &format!("exec 3<>/dev/tcp/{}/7000", Family::V4.remote()));
    assert!(refused.code != 0 && refused.stderr.contains("refused"), "{refused}");
    // A limit is one for all: ten at once, then one an hour.
    restore(
        "*filter\n-A FORWARD -p tcp -m limit --limit 1/hour --limit-burst 10 -j ACCEPT\n-A FORWARD -p tcp -j REJECT\nCOMMIT\n",
        &[],
    );
    let tries =
        format!("for i in $(seq 40); do (exec 3<>/dev/tcp/{}/7000) 2>/dev/null || echo refused; done", Family::V4.remote());
    // A connection takes three packets at least.
    let refused = s.sh(60, &tries).ok().lines().count();
    assert!((37..40).contains(&refused), "{refused} of 40 were refused");
}

#[test]
fn what_comes_from_outside_and_services_work_as_ever() {
    let Some(lab) = Lab::new(&["python3", "nc", "ping"]) else { return };
    let s = sandbox(&lab, "3", &["-p", "7070:7000", "-p", "7171:7100/udp"]);
    for family in Family::BOTH {
        s.run(10, &["ping", "-c", "3", "-i", "0.2", family.gateway()]).ok();
        s.run(10, &["ping", "-c", "3", "-i", "0.2", family.remote()]).ok();
        let server = s.serve(7000, &strings(&lab.peer("echo.py", &["tcp", family.any(), "7000"])));
        for _ in 0..20 {
            let asked = format!("printf hello | nc -N -w 5 {} 7070", family.host());
            assert!(lab.sh(Place::Remote, 10, &asked).ok().ends_with("hello"));
        }
        drop(server);
        // Datagrams out, each from another port.
        let text = "7300";
        let mut peer = lab.spawn(Place::Remote, &strings(&lab.peer("echo.py", &["udp", family.any(), text])));
        lab.wait_bound(Place::Remote, 7300, &mut peer);
        for _ in 0..20 {
            let asked = format!("printf hello | nc -u -w 2 -W 1 {} {text}", family.remote());
            assert!(s.sh(10, &asked).ok().ends_with("hello"));
        }
    }
    let udp = carried(&lab, "udp");
    assert_eq!(udp.len(), 3);
    assert!(udp.iter().filter(|n| **n > 0).count() > 1, "datagrams stay with one worker: {udp:?}");
    lab.hibernet(10, &["pause", "w"]).ok();
    let mut waits = s.spawn(&["ping", "-c", "1", "-W", "20", Family::V4.remote()]);
    lab.hibernet(10, &["resume", "w"]).ok();
    assert_eq!(waits.wait(SOON), 0, "{}", waits.output());
}

#[test]
fn mistakes_are_said() {
    let Some(lab) = Lab::new(&[]) else { return };
    for (args, word) in [
        (&["run", "--workers", "0", "--", "true"][..], "--workers"),
        (&["run", "--workers", "17", "--", "true"], "--workers"),
        (&["run", "--workers", "2", "--pcap", "x", "--", "true"], "--pcap"),
        (&["run", "--workers", "2", "--join", "w", "--", "true"], "joins"),
        (&["attach", "--workers", "2", "--qemu", "sock"], "has no queue for each"),
        (&["attach", "--workers", "2", "--join", "w", "--packet", "x"], "one"),
    ] {
        let done = lab.hibernet(10, args);
        assert!(done.code == 2 && done.stderr.contains(word), "{args:?}: {done}");
    }
    let _s = sandbox(&lab, "2", &[]);
    let joins = lab.hibernet(20, &["run", "--join", "w", "--", "true"]);
    assert!(joins.code != 0 && joins.stderr.contains("several workers"), "{joins}");
    // A TAP that somebody else made for one.
    lab.sh(Place::Host, 5, "ip tuntap add dev one mode tap vnet_hdr && ip tuntap add dev many mode tap vnet_hdr multi_queue")
        .ok();
    let one = lab.hibernet(10, &["attach", "--tap", "one", "--workers", "2"]);
    assert!(one.code == 72 && one.stderr.contains("multi_queue"), "{one}");
    let mut many = lab.spawn_hibernet(&["attach", "--tap", "many", "--workers", "2", "--name", "many"]);
    wait_until("it is served", SOON, || {
        assert!(many.running(), "{}", many.output());
        lab.hibernet(5, &["stats", "many"]).code == 0
    });
    many.signal("TERM");
    assert_eq!(many.wait(SOON), 0, "{}", many.output());
}
