//! ping and traceroute out of a sandbox.

use hibernet_tests::lab::{Family, HOST4, Lab, Place, Sandbox, skip};

/// Adds a network behind *remote*: 10.98.0.2 and fd98::2, one more hop away.
fn add_far(lab: &Lab) {
    lab.sh(
        Place::Host,
        10,
        "set -e
         ip netns add far
         ip -n remote link add fa0 type veth peer name re0 netns far
         ip -n remote addr add 10.98.0.1/24 dev fa0; ip -n remote addr add fd98::1/64 dev fa0 nodad
         ip -n remote link set fa0 up
         ip -n far addr add 10.98.0.2/24 dev re0; ip -n far addr add fd98::2/64 dev re0 nodad
         ip -n far link set re0 up; ip -n far link set lo up
         ip -n far route add default via 10.98.0.1; ip -n far -6 route add default via fd98::1
         nsenter --net=/run/netns/remote sh -c '
           echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
           for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done
           echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit'
         nsenter --net=/run/netns/far sh -c 'echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit'",
    )
    .ok();
}

fn far(family: Family) -> &'static str {
    if family == Family::V4 { "10.98.0.2" } else { "fd98::2" }
}

#[test]
fn ping_reaches_gateway_and_world() {
    let Some(lab) = Lab::new(&["ping"]) else { return };
    let sandbox = Sandbox::start(&lab, &[]);
    for family in Family::BOTH {
        for to in [family.gateway(), family.remote()] {
            // Small, one frame of the uplink's MTU, and fragments outside.
            for size in ["0", "56", "1400", "8000", "20000"] {
                // The first packet that is too long for the path finds out how long one may be, as behind any router.
                sandbox.run(30, &["ping", family.flag(), "-c", "1", "-W", "1", "-s", size, to]);
                let done = sandbox.run(30, &["ping", family.flag(), "-c", "5", "-i", "0.02", "-W", "3", "-s", size, to]);
                assert!(done.ok().contains(" 0% packet loss"), "{done}");
                assert!(!done.stdout.contains("DUP!"), "{done}");
            }
        }
    }
}

#[test]
fn pings_of_several_programs_do_not_mix() {
    let Some(lab) = Lab::new(&["ping"]) else { return };
    let sandbox = Sandbox::start(&lab, &[]);
    let script = format!("for i in 1 2 3 4 5 6 7 8; do ping -q -c 10 -i 0.02 -W 3 -p $i$i {} & done; wait", Family::V4.remote());
    let done = sandbox.sh(30, &script);
    assert_eq!(done.ok().matches("10 packets transmitted, 10 received, 0% packet loss").count(), 8, "{done}");
}

#[test]
fn ping_without_ping_sockets_works_or_is_refused() {
    let Some(lab) = Lab::new(&["ping"]) else { return };
    if !lab.is_root() {
        skip("ping sockets cannot be switched off again in a user namespace with one group");
        return;
    }
    lab.sh(Place::Host, 5, "echo '1 0' >/proc/sys/net/ipv4/ping_group_range").ok();
    let sandbox = Sandbox::start(&lab, &[]);
    for family in Family::BOTH {
        let done = sandbox.run(30, &["ping", family.flag(), "-c", "2", "-i", "0.1", "-W", "3", family.remote()]);
        let refused = done.stdout.contains("filtered") || done.stdout.contains("prohibited");
        assert!(done.code == 0 || refused, "neither an answer nor a reason: {done}");
        // The gateway answers itself.
        sandbox.run(30, &["ping", family.flag(), "-c", "2", "-i", "0.1", "-W", "3", family.gateway()]).ok();
    }
}

#[test]
fn traceroute_shows_every_hop() {
    let Some(lab) = Lab::new(&["traceroute", "ip"]) else { return };
    add_far(&lab);
    let sandbox = Sandbox::start(&lab, &[]);
    for family in Family::BOTH {
        for method in ["-U", "-I"] {
            let argv = ["traceroute", family.flag(), "-n", "-q", "2", "-w", "3", "-m", "6", method, "-p", "33434", far(family)];
            let argv: Vec<&str> = if method == "-I" {
                argv.iter().copied().filter(|a| !["-p", "33434"].contains(a)).collect()
            } else {
                argv.to_vec()
            };
            let done = sandbox.run(60, &argv);
            let hops: Vec<_> = done.ok().lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)).collect();
            assert_eq!(hops, [family.gateway(), family.remote(), far(family)], "{method}: {done}");
        }
    }
}

#[test]
fn errors_of_the_path_reach_the_guest() {
    let Some(lab) = Lab::new(&["ping", "ip"]) else { return };
    add_far(&lab);
    lab.sh(Place::Remote, 5, "ip route add unreachable 192.0.2.0/24; ip -6 route add unreachable 2001:db8:1::/48").ok();
    let sandbox = Sandbox::start(&lab, &[]);
    for (family, to) in [(Family::V4, "192.0.2.9"), (Family::V6, "2001:db8:1::9")] {
        let done = sandbox.run(20, &["ping", family.flag(), "-c", "1", "-W", "3", to]);
        assert!(done.stdout.contains("nreachable") || done.stdout.contains("No route"), "{done}");
    }
    assert!(
        !sandbox.run(20, &["ping", "-c", "1", "-W", "2", HOST4]).stdout.contains(" 0% packet loss"),
        "the host is not to be reached"
    );
}
