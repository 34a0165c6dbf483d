//! The safe reach, against a kernel that would let everything through.

use hibernet_tests::lab::{Family, HOST4, HOST6, Lab, Place, Proc, Sandbox, bracketed, wait_until};
use std::time::Duration;

fn strings(argv: &[String]) -> Vec<&str> {
    argv.iter().map(String::as_str).collect()
}

/// Servers on every address of the host and of the world outside, TCP and UDP, port 7000.
fn servers(lab: &Lab) -> Vec<Proc> {
    let mut all = Vec::new();
    for place in [Place::Host, Place::Remote] {
        for family in Family::BOTH {
            for proto in ["tcp", "udp"] {
                let server = lab.spawn(place, &strings(&lab.peer("echo.py", &[proto, family.any(), "7000"])));
                wait_until("the server is ready", Duration::from_secs(20), || server.output().contains("ready"));
                all.push(server);
            }
        }
    }
    // Addresses that would answer if packets for them got out.
    lab.sh(
        Place::Remote,
        5,
        "ip addr add 169.254.169.254/32 dev lo; ip addr add 169.254.9.9/32 dev lo; ip addr add 10.77.0.1/32 dev lo
         ip addr add 192.168.77.1/32 dev lo; ip addr add 172.16.77.1/32 dev lo; ip addr add 100.64.7.7/32 dev lo
         ip addr add 198.51.100.77/32 dev lo; ip -6 addr add 2001:db8:77::1/128 dev lo; ip -6 addr add fd00:ec2::254/128 dev lo",
    )
    .ok();
    lab.sh(Place::Host, 5, "ip route add 169.254.0.0/16 via 10.99.0.1; ip addr add 10.99.0.3/24 dev up0").ok();
    all
}

fn probe(sandbox: &Sandbox<'_>, lab: &Lab, proto: &str, addr: &str) -> (String, u64) {
    let done = sandbox.run(20, &strings(&lab.peer("probe.py", &[proto, addr, "7000"])));
    let (result, ms) = done.ok().split_once(' ').expect("two words");
    (result.to_owned(), ms.parse().expect("a number"))
}

/// The guest is told at once that an address is prohibited, over TCP, UDP and ICMP.
#[track_caller]
fn prohibited(sandbox: &Sandbox<'_>, lab: &Lab, addr: &str) {
    let family = if addr.contains(':') { Family::V6 } else { Family::V4 };
    // As Linux turns "administratively prohibited" into an error.
    let want = if family == Family::V4 { "EHOSTUNREACH" } else { "EACCES" };
    for proto in ["tcp", "udp"] {
        let (result, ms) = probe(sandbox, lab, proto, addr);
        assert!(result == want && ms < 500, "{proto} to {addr}: {result} after {ms} ms");
    }
    let done = sandbox.run(20, &["ping", family.flag(), "-c", "1", "-W", "2", addr]);
    assert!(done.stdout.contains("filtered") || done.stdout.contains("rohibited"), "ping {addr}: {done}");
}

#[track_caller]
fn reached(sandbox: &Sandbox<'_>, lab: &Lab, addr: &str) {
    for proto in ["tcp", "udp"] {
        let (result, _) = if proto == "tcp" { probe(sandbox, lab, proto, addr) } else { udp_answer(sandbox, addr) };
        assert_eq!(result, "ok", "{proto} to {addr}");
    }
}

fn udp_answer(sandbox: &Sandbox<'_>, addr: &str) -> (String, u64) {
    let done = sandbox.sh(10, &format!("printf hello | socat -t 1 -T 1 - UDP:{}:7000", bracketed(addr)));
    (if done.stdout.ends_with("hello") { "ok".into() } else { done.to_string() }, 0)
}

#[test]
fn the_host_and_metadata_are_out_of_reach_by_default() {
    let Some(lab) = Lab::new(&["python3", "ping", "socat", "ip"]) else { return };
    let _servers = servers(&lab);
    let sandbox = Sandbox::start(&lab, &[]);
    for addr in ["10.99.0.1", "fd99::1", "10.77.0.1", "192.168.77.1", "172.16.77.1", "198.51.100.77", "2001:db8:77::1"] {
        reached(&sandbox, &lab, addr);
    }
    for addr in [
        HOST4,
        "10.99.0.3",
        "169.254.169.254",
        "169.254.9.9",
        HOST6,
        "fd00:ec2::254",
        // The host's and the metadata service's IPv4 addresses in IPv6: NAT64, 6to4, compatible.
        "64:ff9b::a63:2",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::7f00:1",
        "2002:a63:2::1",
        "2002:a9fe:a9fe::1",
        "::a63:2",
    ] {
        prohibited(&sandbox, &lab, addr);
    }
    // An address that the host gets later.
    reached(&sandbox, &lab, "198.51.100.77");
    lab.sh(Place::Host, 5, "ip addr add 198.51.100.77/32 dev lo; ip -6 addr add 2001:db8:77::1/128 dev lo").ok();
    wait_until("the host's new address is out of reach", Duration::from_secs(5), || {
        probe(&sandbox, &lab, "tcp", "198.51.100.77").0 == "EHOSTUNREACH"
    });
    prohibited(&sandbox, &lab, "198.51.100.77");
    prohibited(&sandbox, &lab, "2001:db8:77::1");
}

#[test]
fn special_addresses_of_the_guests_making_get_nowhere() {
    let Some(lab) = Lab::new(&["python3", "ip"]) else { return };
    let _servers = servers(&lab);
    let sandbox = Sandbox::start(&lab, &[]);
    // The guest is root in its namespace and can route anything to us. Loopback, this-network, multicast, reserved,
    // broadcast, mapped addresses: nothing may come back but an error or silence.
    // Some of this the guest's own kernel refuses, with or without us.
    let _ = sandbox.sh(
        5,
        "ip route add 0.0.0.0/8 via 10.0.2.2; ip route add 240.0.0.0/4 via 10.0.2.2
         echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet; ip addr del 127.0.0.1/8 dev lo
         ip route add 127.0.0.0/8 via 10.0.2.2 dev eth0; ip -6 route add ::ffff:0:0/96 via fd68:6962:6e65:7400::2",
    );
    for addr in ["127.0.0.1", "127.0.0.53", "0.0.0.1", "240.0.0.1", "::ffff:10.99.0.2"] {
        for proto in ["tcp", "udp"] {
            let (result, _) = probe(&sandbox, &lab, proto, addr);
            assert_ne!(result, "ok", "{proto} to {addr}");
        }
    }
    // Nor is there anything of the host's at the gateway's addresses.
    for family in Family::BOTH {
        let (result, ms) = probe(&sandbox, &lab, "tcp", family.gateway());
        assert!(result == "ECONNREFUSED" && ms < 500, "{result} after {ms} ms");
    }
}

#[test]
fn a_source_that_is_not_the_guests_is_dropped() {
    let Some(lab) = Lab::new(&["python3", "ip", "socat"]) else { return };
    let _servers = servers(&lab);
    let sandbox = Sandbox::start(&lab, &[]);
    sandbox.sh(5, "ip addr add 10.0.2.99/24 dev eth0; ip addr add 192.0.2.9/32 dev eth0; ip -6 addr add 2001:db8:9::9/128 dev eth0 nodad").ok();
    for (from, to) in [("10.0.2.99", "10.99.0.1"), ("192.0.2.9", "10.99.0.1"), ("[2001:db8:9::9]", "[fd99::1]")] {
        let done = sandbox.sh(10, &format!("printf hello | socat -t 1 -T 1 - UDP:{to}:7000,bind={from}"));
        assert_eq!(done.stdout, "", "{from}: {done}");
    }
    reached(&sandbox, &lab, "10.99.0.1");
}

#[test]
fn options_open_the_reach_no_wider_than_they_say() {
    let Some(lab) = Lab::new(&["python3", "ping", "socat", "ip"]) else { return };
    let _servers = servers(&lab);

    let sandbox = Sandbox::start(&lab, &["--allow-metadata"]);
    reached(&sandbox, &lab, "169.254.169.254");
    reached(&sandbox, &lab, "fd00:ec2::254");
    prohibited(&sandbox, &lab, HOST4);
    drop(sandbox);

    let sandbox = Sandbox::start(&lab, &["--allow-host"]);
    for addr in [HOST4, HOST6, "10.99.0.3"] {
        reached(&sandbox, &lab, addr);
    }
    prohibited(&sandbox, &lab, "169.254.169.254");
    drop(sandbox);

    let sandbox = Sandbox::start(&lab, &[&format!("--allow-host={HOST4}"), &format!("--allow-host=[{HOST6}]:7000")]);
    reached(&sandbox, &lab, HOST4);
    reached(&sandbox, &lab, HOST6);
    prohibited(&sandbox, &lab, "10.99.0.3");
    drop(sandbox);

    let sandbox = Sandbox::start(&lab, &[&format!("--allow-host={HOST4}:7001")]);
    assert_eq!(probe(&sandbox, &lab, "tcp", HOST4).0, "EHOSTUNREACH", "only port 7001 is open");
    drop(sandbox);

    let sandbox = Sandbox::start(&lab, &["--map-host-loopback", "10.0.2.100", "--map-host-loopback", "fd68:6962:6e65:7400::100"]);
    reached(&sandbox, &lab, "10.0.2.100");
    reached(&sandbox, &lab, "fd68:6962:6e65:7400::100");
    prohibited(&sandbox, &lab, HOST4);
    drop(sandbox);

    let sandbox = Sandbox::start(&lab, &["--egress", "public"]);
    reached(&sandbox, &lab, "198.51.100.77");
    reached(&sandbox, &lab, "2001:db8:77::1");
    for addr in ["10.99.0.1", "10.77.0.1", "192.168.77.1", "172.16.77.1", "100.64.7.7", "fd99::1"] {
        prohibited(&sandbox, &lab, addr);
    }
    drop(sandbox);

    let sandbox = Sandbox::start(&lab, &["--egress", "none"]);
    for addr in ["198.51.100.77", "10.99.0.1", "2001:db8:77::1", "fd99::1"] {
        prohibited(&sandbox, &lab, addr);
    }
}
