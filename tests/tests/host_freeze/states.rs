//! Tiers *hold* and, where it says so, *repair*: flows in every state that a freeze may find them in, and what happens while the network sleeps.

use crate::kit::*;
use hibernet_tests::lab::{Family, Lab, Place, Proc, Sandbox, wait_until};
use std::time::{Duration, Instant};

fn touch(path: &str) {
    std::fs::write(path, "").expect("file");
}

/// Waits until a sender is stuck: it has not sent anything for a while.
fn wait_stuck(p: &Proc) -> u64 {
    let mut last = (at(p, "sent"), Instant::now());
    wait_until("the sender cannot go on", Duration::from_secs(30), || {
        let sent = at(p, "sent");
        if sent != last.0 {
            last = (sent, Instant::now());
        }
        sent > 0 && last.1.elapsed() > Duration::from_millis(700)
    });
    last.0
}

fn port(n: u16, family: Family) -> u16 {
    n + u16::from(family == Family::V6)
}

/// One end is done, the other goes on: before the freeze, and with the end coming while the network sleeps.
#[test]
fn half_closed_both_ways() {
    Tier::BOTH.into_iter().for_each(half_closed_both_ways_in);
}

fn half_closed_both_ways_in(tier: Tier) {
    let Some(lab) = Lab::new(&[]) else { return };
    let s = Sandbox::start(&lab, &["--name", NAME, "-p", "7100-7107:7100"]);
    let pace = ["chunk=5000", "every=10"];
    let later = lab.path("later");
    let write = format!("write={later}");
    let ended: &[&str] = &["total=1000"];
    let ends_asleep: &[&str] = &["total=100000", &write];
    let mut all = Vec::new();
    for family in Family::BOTH {
        for (n, short) in [ended, ends_asleep].into_iter().enumerate() {
            let n = 2 * n as u16;
            for way in [Way::Out(port(7000 + n, family)), Way::In(port(7100 + n, family), port(7100 + n, family))] {
                all.push((Streams::open(&s, &lab, family, way, 1, short, &pace), true, n == 0));
            }
            for way in [Way::Out(port(7004 + n, family)), Way::In(port(7104 + n, family), port(7104 + n, family))] {
                all.push((Streams::open(&s, &lab, family, way, 1, &pace, short), false, n == 0));
            }
        }
    }
    for (streams, client, before) in &all {
        let receiver = if *client { &streams.server } else { &streams.client };
        wait_until("what is sent before is there", SOON, || !before || at(receiver, "received") == 1000);
    }
    let stages = |report: &serde_json::Value, stage: &str| {
        report["flows"].as_array().expect("flows").iter().filter(|f| f["stage"] == stage).count()
    };
    let image = lab.path("image");
    let frozen = sleep(&s, &lab, &image, tier.options());
    let counts = ["closed by the guest", "closed by the peer", "established"].map(|stage| stages(&frozen, stage));
    assert_eq!(counts, [4, 4, 8], "{frozen:#}");
    touch(&later);
    for (streams, client, before) in &all {
        let sender = if *client { &streams.client } else { &streams.server };
        // Nobody takes it where no socket stands: what fits into the sender's waits there.
        let enough = |sent| if tier == Tier::Hold { sent == 100_000 } else { sent > 0 };
        wait_until("the rest is sent", SOON, || *before || enough(at(sender, "sent")));
    }
    let (report, _) = wake(&lab, &image, tier.options());
    all_resumed(&report, 16);
    for (streams, client, before) in all {
        let (talker, listener) = if client { (&streams.server, &streams.client) } else { (&streams.client, &streams.server) };
        let had = at(listener, "received");
        wait_until("the open half goes on", SOON, || at(listener, "received") > had);
        let total = if before { 1000 } else { 100_000 };
        wait_until("the closed half is whole", SOON, || at(talker, "received") == total);
        let sent = streams.finish();
        assert_eq!(sent[usize::from(!client)], total);
    }
}

/// Both kernels are full of data that nobody reads.
#[test]
fn unsent_and_unacknowledged_data_both_ways() {
    Tier::BOTH.into_iter().for_each(unsent_and_unacknowledged_data_both_ways_in);
}

fn unsent_and_unacknowledged_data_both_ways_in(tier: Tier) {
    let Some(lab) = Lab::new(&[]) else { return };
    let s = Sandbox::start(&lab, &["--name", NAME, "-p", "7100-7103:7100"]);
    let image = lab.path("image");
    let read = lab.path("read");
    let slow = format!("read={read}");
    let mut all = Vec::new();
    for family in Family::BOTH {
        for (n, client, server) in [(0, &[][..], &[slow.as_str()][..]), (2, &[slow.as_str()], &[])] {
            for way in [Way::Out(port(7000 + n, family)), Way::In(port(7100 + n, family), port(7100 + n, family))] {
                let quiet = ["total=0"];
                let (c, v) =
                    if n == 0 { (client, [server, &quiet].concat()) } else { (&[client, &quiet].concat()[..], server.to_vec()) };
                all.push((Streams::open(&s, &lab, family, way, 1, c, &v), n == 0));
            }
        }
    }
    for (streams, client) in &all {
        wait_stuck(if *client { &streams.client } else { &streams.server });
    }
    sleep(&s, &lab, &image, tier.options());
    all_resumed(&wake(&lab, &image, tier.options()).0, 8);
    // Once more while it drains.
    touch(&read);
    for (streams, client) in &all {
        let receiver = if *client { &streams.server } else { &streams.client };
        wait_until("it drains", SOON, || at(receiver, "received") > 0);
    }
    sleep(&s, &lab, &image, tier.options());
    all_resumed(&wake(&lab, &image, tier.options()).0, 8);
    for (streams, client) in all {
        let sent = streams.finish();
        assert!(sent[usize::from(!client)] > 100_000, "{sent:?}");
    }
}

/// Both ends send until they cannot go on; after the thaw everything moves within a second. HIBERNET_SLEEP_SECONDS: for how long it sleeps.
#[test]
fn held_while_both_ends_send() {
    let Some(lab) = Lab::new(&[]) else { return };
    let seconds = std::env::var("HIBERNET_SLEEP_SECONDS").ok().map_or(10, |s| s.parse().expect("a number"));
    let s = Sandbox::start(&lab, &["--name", NAME, "-p", "7100-7101:7100"]);
    let image = lab.path("image");
    let mut all = Vec::new();
    // Slowly at first, so that nothing waits when it falls asleep; then as fast as they can.
    let pace = ["chunk=20000", "every=10"];
    for family in Family::BOTH {
        for way in [Way::Out(port(7000, family)), Way::In(port(7100, family), port(7100, family))] {
            all.push(Streams::open(&s, &lab, family, way, 1, &pace, &pace));
        }
    }
    all.iter().for_each(|s| s.wait_moved(1000));
    let begin = Instant::now();
    let frozen = sleep(&s, &lab, &image, &[]);
    let received: Vec<_> = all.iter().map(|s| [at(&s.client, "received"), at(&s.server, "received")]).collect();
    let stuck: Vec<_> = all.iter().map(|s| [wait_stuck(&s.client), wait_stuck(&s.server)]).collect();
    while begin.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let woken = Instant::now();
    let (report, took) = wake(&lab, &image, &[]);
    all_resumed(&report, all.len());
    wait_until("data move on every connection, both ways", Duration::from_secs(30), || {
        all.iter().zip(&received).all(|(s, r)| at(&s.client, "received") > r[0] && at(&s.server, "received") > r[1])
    });
    let first = woken.elapsed();
    // And what each end itself sends now moves too.
    wait_until("every end sends on", Duration::from_secs(30), || {
        all.iter().zip(&stuck).all(|(s, n)| at(&s.client, "sent") > n[0] && at(&s.server, "sent") > n[1])
    });
    let all_on = woken.elapsed();
    eprintln!(
        "hold, asleep for {:?}: frozen for {} us, restore took {took:?}, bytes on every connection after {first:?}, every end sends on \
         after {all_on:?}; stuck at {stuck:?}",
        begin.elapsed(),
        frozen_us(&frozen)
    );
    assert!(first < Duration::from_secs(1) && all_on < Duration::from_secs(5), "{first:?} {all_on:?}");
    all.into_iter().for_each(Streams::end);
}

/// A server that cannot be reached yet: its address comes while the network sleeps, or when it is awake again.
#[test]
fn connects_in_progress() {
    let Some(lab) = Lab::new(&[]) else { return };
    let s = Sandbox::start(&lab, &["--name", NAME]);
    let image = lab.path("image");
    let addresses = ["10.99.0.50", "fd99::50", "10.99.0.51", "fd99::51"];
    unanswered(&lab, &addresses);
    let program = env!("CARGO_BIN_EXE_streams");
    let all: Vec<_> = addresses
        .iter()
        .zip(7000..)
        .map(|(a, port)| {
            let stop = Streams::stop_file(&lab);
            let (option, any) = (format!("stop={stop}"), if a.contains(':') { "::" } else { "0.0.0.0" });
            let server = lab.serve(Place::Remote, port, &[program, "serve", any, &port.to_string(), &option]);
            let client = s.spawn(&[program, "connect", a, &port.to_string(), &option, "chunk=1000", "every=10"]);
            Streams::of(client, server, stop)
        })
        .collect();
    let tiers = || json(&lab.hibernet(10, &["checkpoint", NAME, "--dry-run", "--json"]));
    let connecting =
        |v: &serde_json::Value| v["flows"].as_array().expect("flows").iter().filter(|f| f["stage"] == "connecting").count();
    wait_until("four connects are in progress", SOON, || connecting(&tiers()) == 4);
    let frozen = sleep(&s, &lab, &image, &[]);
    assert_eq!(connecting(&frozen), 4, "{frozen:#}");
    addresses[..2].iter().for_each(|a| answered_for(&lab, a));
    let accepted = || lab.run(Place::Remote, 5, &["cat", "/proc/net/tcp", "/proc/net/tcp6"]).stdout;
    wait_until("two are open while the network sleeps", SOON, || {
        let table = accepted();
        [7000, 7001].iter().all(|p: &u16| table.lines().any(|l| l.contains(&format!(":{p:04X} ")) && l.contains(" 01 ")))
    });
    let (report, _) = wake(&lab, &image, &[]);
    all_resumed(&report, 4);
    all[..2].iter().for_each(|s| s.wait_up(1));
    addresses[2..].iter().for_each(|a| answered_for(&lab, a));
    all[2..].iter().for_each(|s| s.wait_up(1));
    all.iter().for_each(|s| s.wait_moved(1));
    all.into_iter().for_each(Streams::end);
}

/// Nobody answers for an address, yet packets for it are sent to *remote*.
fn unanswered(lab: &Lab, addresses: &[&str]) {
    let mac = lab.sh(Place::Remote, 5, "ip -o link show re0 | sed 's/.*link.ether //; s/ .*//'").ok().to_owned();
    let neighbours: Vec<_> = addresses.iter().map(|a| format!("ip neigh add {a} lladdr {mac} dev up0 nud permanent")).collect();
    lab.sh(Place::Host, 5, &neighbours.join(" && ")).ok();
}

/// From now on it is *remote*'s.
fn answered_for(lab: &Lab, address: &str) {
    let prefix = if address.contains(':') { "64 dev re0 nodad" } else { "24 dev re0" };
    lab.sh(Place::Remote, 5, &format!("ip addr add {address}/{prefix}")).ok();
}

/// A connect whose socket is not kept begins anew; the guest notices nothing.
#[test]
fn connects_in_progress_repaired() {
    let Some(lab) = Lab::new(&[]) else { return };
    let s = Sandbox::start(&lab, &["--name", NAME]);
    let image = lab.path("image");
    let addresses = ["10.99.0.50", "fd99::50"];
    unanswered(&lab, &addresses);
    let stop = Streams::stop_file(&lab);
    let option = format!("stop={stop}");
    let program = env!("CARGO_BIN_EXE_streams");
    let all: Vec<_> = addresses
        .iter()
        .zip([("0.0.0.0", "7000"), ("::", "7001")])
        .map(|(a, (any, port))| {
            let server = lab.serve(Place::Remote, port.parse().expect("a port"), &[program, "serve", any, port, &option]);
            Streams::of(s.spawn(&[program, "connect", a, port, &option, "chunk=1000", "every=10"]), server, stop.clone())
        })
        .collect();
    let connecting =
        |v: &serde_json::Value| v["flows"].as_array().expect("flows").iter().filter(|f| f["stage"] == "connecting").count();
    let tiers = || json(&lab.hibernet(10, &["checkpoint", NAME, "--dry-run", "--repair", "--json"]));
    wait_until("two connects are in progress", SOON, || connecting(&tiers()) == 2);
    assert_eq!(connecting(&sleep(&s, &lab, &image, Tier::Repair.options())), 2);
    all_resumed(&wake(&lab, &image, Tier::Repair.options()).0, 2);
    addresses.iter().for_each(|a| answered_for(&lab, a));
    all.iter().for_each(|s| s.wait_up(1));
    all.iter().for_each(|s| s.wait_moved(1));
    std::fs::write(&stop, "").expect("file");
    all.into_iter().for_each(Streams::end);
}

/// UDP both ways and ping go on with the sockets that they had, and nothing of a short sleep is lost; or with others at the same ports, and what came
/// meanwhile is lost like anything on the way: no peer is told that nobody is there.
#[test]
fn datagrams_and_pings() {
    Tier::BOTH.into_iter().for_each(datagrams_and_pings_in);
}

fn datagrams_and_pings_in(tier: Tier) {
    let Some(lab) = Lab::new(&["python3", "ping"]) else { return };
    let s = Sandbox::start(&lab, &["--name", NAME, "-p", "9000-9001:9000/udp"]);
    let (image, stop) = (lab.path("image"), lab.path("stop"));
    let mut servers = Vec::new();
    let mut pulses = Vec::new();
    let mut pings = Vec::new();
    for family in Family::BOTH {
        let (out, inn) = (port(8000, family), port(9000, family));
        let echo = |p: u16| lab.peer("echo.py", &["udp", family.any(), &p.to_string()]);
        servers.push(lab.spawn(Place::Remote, &strings(&echo(out))));
        servers.push(s.spawn(&strings(&echo(inn))));
        for server in &servers {
            wait_until("the server is ready", SOON, || server.output().contains("ready"));
        }
        let argv = |addr: &str, p: u16| lab.peer("pulse.py", &[addr, &p.to_string(), &stop]);
        pulses.push(s.spawn(&strings(&argv(family.remote(), out))));
        pulses.push(lab.spawn(Place::Remote, &strings(&argv(family.host(), inn))));
        pings.push(s.spawn(&["ping", family.flag(), "-i", "0.1", "-c", "40", "-W", "5", family.remote()]));
    }
    let answered = |more: u64| {
        let from: Vec<_> = pulses.iter().map(|p| at(p, "got")).collect();
        wait_until("datagrams are answered", SOON, || pulses.iter().zip(&from).all(|(p, n)| at(p, "got") >= n + more));
    };
    for _ in 0..2 {
        answered(10);
        sleep(&s, &lab, &image, tier.options());
        let from: Vec<_> = pulses.iter().map(|p| at(p, "sent")).collect();
        wait_until("datagrams wait", SOON, || pulses.iter().zip(&from).all(|(p, n)| at(p, "sent") >= n + 20));
        let (report, _) = wake(&lab, &image, tier.options());
        all_resumed(&report, 6);
        answered(30);
    }
    for ping in &mut pings {
        let code = ping.wait(Duration::from_secs(20));
        let output = ping.output();
        let whole = tier == Tier::Repair || output.contains(" 0% packet loss");
        assert!(code == 0 && whole && !output.contains("DUP!"), "{output}");
    }
    touch(&stop);
    for pulse in &mut pulses {
        assert_eq!(pulse.wait(SOON), 0, "{}", pulse.output());
        let n = numbers(&pulse.output(), "done").expect("the end");
        assert_eq!(n["ports"], 1, "{n:?}");
        assert!(n["sent"] == n["got"] || tier == Tier::Repair, "{n:?}");
    }
}

/// Clients connect to a published port while the network sleeps: into its queue, where they send; or unanswered, until it is awake.
#[test]
fn clients_wait_at_published_ports() {
    Tier::BOTH.into_iter().for_each(clients_wait_at_published_ports_in);
}

fn clients_wait_at_published_ports_in(tier: Tier) {
    let Some(lab) = Lab::new(&[]) else { return };
    let s = Sandbox::start(&lab, &["--name", NAME, "-p", "7100-7101:7100"]);
    let image = lab.path("image");
    let program = env!("CARGO_BIN_EXE_streams");
    let stop = Streams::stop_file(&lab);
    let option = format!("stop={stop}");
    let servers = Family::BOTH.map(|family| {
        let p = port(7100, family);
        s.serve(p, &[program, "serve", family.any(), &p.to_string(), "conns=50", &option])
    });
    sleep(&s, &lab, &image, tier.options());
    let all: Vec<_> = Family::BOTH
        .iter()
        .zip(servers)
        .map(|(family, server)| {
            let p = port(7100, *family).to_string();
            let argv = [program, "connect", family.host(), &p, "conns=50", &option, "chunk=2000", "every=10"];
            let client = lab.spawn(Place::Remote, &argv);
            match tier {
                Tier::Hold => wait_until("clients are connected and send", SOON, || {
                    at(&client, "up") == 50 && at(&client, "sent") > 100_000
                }),
                // They are opened one after the other.
                Tier::Repair => wait_until("the first waits", SOON, || {
                    let table = lab.run(Place::Remote, 5, &["cat", "/proc/net/tcp", "/proc/net/tcp6"]).stdout;
                    let to = format!(":{:04X} 02 ", port(7100, *family));
                    table.lines().any(|l| l.contains(&to))
                }),
            }
            Streams::of(client, server, stop.clone())
        })
        .collect();
    wake(&lab, &image, tier.options());
    for streams in &all {
        streams.wait_up(50);
        streams.wait_moved(1);
    }
    // The next ones find the port open as ever.
    all.into_iter().for_each(Streams::end);
    for family in Family::BOTH {
        let p = port(7100, family);
        Streams::open(&s, &lab, family, Way::In(p, p), 1, &["total=1000"], &["total=1000"]).finish();
    }
}

/// Urgent data before the freeze and while the network sleeps.
#[test]
fn urgent_data() {
    Tier::BOTH.into_iter().for_each(urgent_data_in);
}

fn urgent_data_in(tier: Tier) {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let s = Sandbox::start(&lab, &["--name", NAME]);
    let (image, go) = (lab.path("image"), lab.path("go"));
    let mut all = Vec::new();
    for family in Family::BOTH {
        for (n, serve, client) in [(0, "serve-receive", "send"), (2, "serve-send", "receive")] {
            let p = port(7000 + n, family).to_string();
            let server = lab.serve(
                Place::Remote,
                port(7000 + n, family),
                &strings(&lab.peer("urgent.py", &[serve, family.any(), &p, &go])),
            );
            let client_proc = s.spawn(&strings(&lab.peer("urgent.py", &[client, family.remote(), &p, &go])));
            let (sender, receiver) = if client == "send" { (client_proc, server) } else { (server, client_proc) };
            all.push((sender, receiver));
        }
    }
    for (sender, _) in &all {
        wait_until("half is sent", SOON, || sender.output().contains("half"));
    }
    sleep(&s, &lab, &image, tier.options());
    touch(&go);
    let (report, _) = wake(&lab, &image, tier.options());
    all_resumed(&report, 4);
    for (mut sender, mut receiver) in all {
        receiver.wait(Duration::from_secs(40));
        sender.wait(Duration::from_secs(40));
        assert_eq!(receiver.output().trim(), "right");
    }
}
