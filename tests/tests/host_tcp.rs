//! TCP out of a sandbox, with real programs and kernels.

use hibernet_tests::lab::{Family, Lab, Place, Proc, Sandbox, bracketed, wait_until};
use std::time::Duration;

const GIB: u64 = 1 << 30;

fn strings(argv: &[String]) -> Vec<&str> {
    argv.iter().map(String::as_str).collect()
}

/// Makes a file that the stream script writes; its path and SHA-256.
fn big_file(lab: &Lab, bytes: u64) -> (String, String) {
    let path = lab.path("big");
    let argv = lab.peer("stream.py", &[&path, &bytes.to_string()]);
    let digest = lab.run(Place::Remote, 120, &strings(&argv)).ok().to_owned();
    (path, digest)
}

/// curl fetches and uploads `bytes` through a sandbox with these options.
fn curl_both_ways(family: Family, bytes: u64, options: &[&str]) {
    let Some(lab) = Lab::new(&["curl", "python3", "sha256sum"]) else { return };
    let (path, digest) = big_file(&lab, bytes);
    let dir = lab.dir().to_string_lossy().into_owned();
    let _server = lab.serve_peer(Place::Remote, "http_store.py", &[&dir], family, 8000);
    let url = format!("http://{}:8000/big", bracketed(family.remote()));
    let down = lab.in_sandbox(120, options, &format!("set -o pipefail; curl -sSf {url} | sha256sum"));
    assert_eq!(down.ok(), format!("{digest}  -"), "download: {down}");
    eprintln!("{family:?} {options:?}: {bytes} bytes down in {:?}", down.took);
    let up = lab.in_sandbox(120, options, &format!("curl -sSf -T {path} {url}"));
    assert_eq!(up.ok(), digest, "upload: {up}");
    eprintln!("{family:?} {options:?}: {bytes} bytes up in {:?}", up.took);
}

#[test]
fn curl_of_a_gib_each_way_v4() {
    curl_both_ways(Family::V4, GIB, &[]);
}

#[test]
fn curl_of_a_gib_each_way_v6() {
    curl_both_ways(Family::V6, GIB, &[]);
}

#[test]
fn curl_at_mtu_1500_and_over_the_other_link() {
    curl_both_ways(Family::V4, 200 << 20, &["--mtu", "1500"]);
    curl_both_ways(Family::V6, 200 << 20, &["--mtu", "1500"]);
    curl_both_ways(Family::V4, 200 << 20, &["--link", "packet"]);
    curl_both_ways(Family::V6, 200 << 20, &["--link", "packet", "--mtu", "1500"]);
}

/// A host whose receive buffers hold less than what may stay in them for a while: slow, but nothing stops for ever.
#[test]
fn a_small_receive_buffer_stops_nothing() {
    let Some(lab) = Lab::new(&["curl", "python3", "sha256sum"]) else { return };
    lab.sh(Place::Host, 5, "echo 4096 8192 8192 >/proc/sys/net/ipv4/tcp_rmem").ok();
    let (_, digest) = big_file(&lab, 40_000);
    let dir = lab.dir().to_string_lossy().into_owned();
    for family in Family::BOTH {
        let port = if family == Family::V4 { 8004 } else { 8006 };
        let _server = lab.serve_peer(Place::Remote, "http_store.py", &[&dir], family, port);
        let url = format!("http://{}:{port}/big", bracketed(family.remote()));
        let down = lab.in_sandbox(30, &[], &format!("set -o pipefail; curl -sSf {url} | sha256sum"));
        assert_eq!(down.ok(), format!("{digest}  -"), "{family:?}: {down}");
    }
}

/// A host whose receive buffers cannot grow: a few bytes left in one would hold all of its memory, and its window closed. Several
/// downloads at a time, so that acknowledgements and the sockets' events come in every order.
#[test]
fn a_receive_buffer_that_cannot_grow_stops_no_download() {
    let Some(lab) = Lab::new(&["curl", "python3", "sha256sum"]) else { return };
    lab.sh(Place::Host, 5, "echo 4096 131072 131072 >/proc/sys/net/ipv4/tcp_rmem").ok();
    let (_, digest) = big_file(&lab, 100 << 20);
    let dir = lab.dir().to_string_lossy().into_owned();
    let _server = lab.serve_peer(Place::Remote, "http_store.py", &[&dir], Family::V4, 8000);
    let url = format!("http://{}:8000/big", Family::V4.remote());
    let script = format!("for i in {{1..8}}; do curl -sSf {url} | sha256sum & done; wait");
    for options in [&[][..], &["--link", "packet"]] {
        let down = lab.in_sandbox(120, options, &script);
        assert_eq!(down.ok().matches(&digest).count(), 8, "{options:?}: {down}");
        eprintln!("{options:?}: 800 MiB down in {:?}", down.took);
    }
}

/// RESULT and milliseconds of a probe from a sandbox.
fn probe(sandbox: &Sandbox<'_>, lab: &Lab, proto: &str, addr: &str, port: u16) -> (String, u64) {
    let argv = lab.peer("probe.py", &[proto, addr, &port.to_string()]);
    let done = sandbox.run(20, &strings(&argv));
    let (result, ms) = done.ok().split_once(' ').expect("two words");
    (result.to_owned(), ms.parse().expect("a number"))
}

/// As [`probe`], a few times: RESULT, the same each time, and the least milliseconds, since others may use the machine.
fn quickest_probe(sandbox: &Sandbox<'_>, lab: &Lab, proto: &str, addr: &str, port: u16) -> (String, u64) {
    let (result, mut least) = probe(sandbox, lab, proto, addr, port);
    for _ in 0..2 {
        let (again, ms) = probe(sandbox, lab, proto, addr, port);
        assert_eq!(again, result, "{proto} {addr} {port}");
        least = least.min(ms);
    }
    (result, least)
}

#[test]
fn a_closed_port_is_refused_at_once() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let sandbox = Sandbox::start(&lab, &[]);
    for family in Family::BOTH {
        for proto in ["tcp", "udp"] {
            let (result, ms) = quickest_probe(&sandbox, &lab, proto, family.remote(), 9);
            assert!(result == "ECONNREFUSED" && ms < 100, "{family:?} {proto}: {result} after {ms} ms");
        }
    }
}

#[test]
fn an_unreachable_host_is_reported() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let sandbox = Sandbox::start(&lab, &[]);
    // Without a route the host says so at once.
    lab.sh(Place::Host, 5, "ip route add unreachable 192.0.2.0/24; ip -6 route add unreachable 2001:db8:dead::/48").ok();
    for (addr, want) in [("192.0.2.1", "EHOSTUNREACH"), ("2001:db8:dead::1", "EHOSTUNREACH")] {
        let (result, ms) = quickest_probe(&sandbox, &lab, "tcp", addr, 80);
        assert!((result == want || result == "ENETUNREACH") && ms < 100, "{addr}: {result} after {ms} ms");
    }
}

fn many_connections(family: Family) {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let _server = lab.serve_peer(Place::Remote, "many.py", &["server"], family, 7000);
    let sandbox = Sandbox::start(&lab, &[]);
    let before = sandbox.resident_kib();
    let argv = lab.peer("many.py", &["client", family.remote(), "7000", "5000"]);
    let client = sandbox.spawn(&strings(&argv));
    let mut client: Proc = client;
    let mut peak = 0;
    while client.running() {
        peak = peak.max(sandbox.resident_kib());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(client.wait(Duration::from_secs(1)), 0, "{}", client.output());
    assert_eq!(client.output().trim(), "10000");
    let per_flow = (peak.saturating_sub(before)) * 1024 / 5000;
    eprintln!("{family:?}: {before} KiB resident before, {peak} KiB with 5,000 connections: {per_flow} bytes each");
    assert!(per_flow < 4096, "{per_flow} bytes of our memory per idle flow");
}

#[test]
fn five_thousand_connections_at_once_v4() {
    many_connections(Family::V4);
}

#[test]
fn five_thousand_connections_at_once_v6() {
    many_connections(Family::V6);
}

/// A receiver that reads nothing while its sender has 100 MiB for it. `out`: the guest sends.
fn slow_reader(family: Family, out: bool) {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let total = (100 << 20).to_string();
    lab.peer("stream.py", &[]);
    let go = lab.path("go");
    let sandbox = Sandbox::start(&lab, &[]);
    let before = sandbox.resident_kib();
    let (serve, client): (Vec<&str>, Vec<&str>) = if out {
        (vec!["serve-receive", family.any(), "7000", &total, &go], vec!["send", family.remote(), "7000", &total])
    } else {
        (vec!["serve-send", family.any(), "7000", &total], vec!["receive", family.remote(), "7000", &total, &go])
    };
    let mut server = lab.serve(Place::Remote, 7000, &strings(&lab.peer("slow.py", &serve)));
    let mut client = sandbox.spawn(&strings(&lab.peer("slow.py", &client)));
    {
        let sender = if out { &client } else { &server };
        wait_until("the sender cannot go on", Duration::from_secs(30), || sender.output().lines().count() >= 2);
    }
    let grown = sandbox.resident_kib().saturating_sub(before);
    std::fs::write(&go, "").expect("file");
    server.wait(Duration::from_secs(60));
    client.wait(Duration::from_secs(60));
    let received = if out { server.output() } else { client.output() };
    let want = lab.sh(
        Place::Host,
        60,
        &format!("cd {} && python3 -c 'import stream; print({total}, stream.digest({total}))'", lab.dir().display()),
    );
    assert_eq!(received.lines().last(), Some(want.ok()), "{received}");
    eprintln!("{family:?} out={out}: our memory grew by {grown} KiB");
    assert!(grown < 4096, "our memory grew by {grown} KiB while a reader did not read");
}

#[test]
fn a_slow_reader_does_not_grow_our_memory() {
    for family in Family::BOTH {
        for out in [true, false] {
            slow_reader(family, out);
        }
    }
}

#[test]
fn urgent_data_arrives_once() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let sandbox = Sandbox::start(&lab, &[]);
    for (n, family) in Family::BOTH.into_iter().enumerate() {
        for (m, (serve, client)) in [("serve-receive", "send"), ("serve-send", "receive")].into_iter().enumerate() {
            let port = 7000 + (2 * n + m) as u16;
            let mut server = lab.serve_peer(Place::Remote, "urgent.py", &[serve], family, port);
            let mut client_proc = sandbox.spawn(&strings(&lab.peer("urgent.py", &[client, family.remote(), &port.to_string()])));
            client_proc.wait(Duration::from_secs(30));
            server.wait(Duration::from_secs(30));
            let got = if client == "receive" { client_proc.output() } else { server.output() };
            assert_eq!(got.trim(), "right", "{family:?} {client}");
        }
    }
}

#[test]
fn a_half_closed_connection_still_answers() {
    let Some(lab) = Lab::new(&["python3", "nc"]) else { return };
    for family in Family::BOTH {
        let _server = lab.serve_peer(Place::Remote, "echo.py", &["tcp"], family, 7000);
        // The server answers only after the client's FIN.
        let done = lab.in_sandbox(30, &[], &format!("printf request | nc -N -w 10 {} 7000", family.remote()));
        assert!(done.ok().ends_with(" request"), "{done}");
    }
}

#[test]
fn iperf3_tcp_and_udp_both_ways() {
    let Some(lab) = Lab::new(&["iperf3", "python3"]) else { return };
    for family in Family::BOTH {
        let _server = lab.serve(Place::Remote, 5201, &["iperf3", "-s", "-p", "5201", "--forceflush"]);
        let sandbox = Sandbox::start(&lab, &[]);
        for (options, datagrams) in [
            (&["-t", "2"][..], false),
            (&["-t", "2", "-R"], false),
            (&["-t", "2", "-P", "8"], false),
            (&["-t", "2", "-u", "-b", "100M", "-l", "1400"], true),
            (&["-t", "2", "-u", "-b", "100M", "-l", "1400", "-R"], true),
            (&["-t", "2", "-u", "-b", "50M", "-l", "9000"], true),
            (&["-t", "2", "-u", "-b", "50M", "-l", "9000", "-R"], true),
        ] {
            let mut argv = vec!["iperf3", "-c", family.remote(), "-p", "5201", "-J", "--connect-timeout", "5000"];
            argv.extend_from_slice(options);
            let done = sandbox.run(30, &argv);
            done.ok();
            let json: serde_json::Value = serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done}"));
            let end = &json["end"];
            let bytes = end[if datagrams { "sum" } else { "sum_received" }]["bytes"].as_f64().unwrap_or(0.0);
            let lost = end["sum"]["lost_percent"].as_f64().unwrap_or(0.0);
            eprintln!("{family:?} {options:?}: {:.2} Gbit/s, {lost:.2} % lost", bytes * 8.0 / 2e9);
            assert!(bytes > 5e6, "{options:?}: only {bytes} bytes: {done}");
            assert!(!datagrams || lost < 5.0, "{options:?}: {lost} % lost");
        }
    }
}
