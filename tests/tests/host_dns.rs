//! DNS in a sandbox: lookups over UDP and TCP, large answers, the host's resolver as it changes.

use hibernet_tests::lab::{DNS4, DNS6, Lab, Place, Proc, Sandbox, wait_until};
use std::time::Duration;

/// A resolver that knows some names; `address` is what it says about host.test.
fn resolver(lab: &Lab, place: Place, listen: &[&str], address: &str) -> Proc {
    let mut conf = String::from("port=53\nno-hosts\nno-resolv\nno-daemon\nuser=root\nbind-interfaces\nedns-packet-max=4096\n");
    for l in listen {
        conf.push_str(&format!("listen-address={l}\n"));
    }
    conf.push_str(&format!("address=/host.test/{address}\naddress=/host.test/fd99::77\n"));
    // About 12 KiB of answer.
    for n in 0..60 {
        conf.push_str(&format!("txt-record=big.test,{n:03}{}\n", "x".repeat(200)));
    }
    let path = lab.path(&format!("dnsmasq-{}", address.replace('.', "-")));
    std::fs::write(&path, conf).expect("configuration");
    let mut server = lab.spawn(place, &["dnsmasq", "-C", &path, "--pid-file="]);
    lab.wait_bound(place, 53, &mut server);
    server
}

fn dig(sandbox: &Sandbox<'_>, args: &str) -> String {
    sandbox.sh(20, &format!("dig +time=3 +tries=2 {args}")).ok().to_owned()
}

#[test]
fn lookups_over_udp_and_tcp() {
    let Some(lab) = Lab::new(&["dnsmasq", "dig", "getent"]) else { return };
    let _server = resolver(&lab, Place::Remote, &["10.99.0.1", "fd99::1"], "10.99.0.77");
    for upstream in ["10.99.0.1", "fd99::1"] {
        lab.sh(Place::Host, 5, &format!("echo nameserver {upstream} >/etc/resolv.conf")).ok();
        let sandbox = Sandbox::start(&lab, &[]);
        for server in [DNS4, DNS6] {
            for transport in ["+notcp", "+tcp"] {
                assert_eq!(dig(&sandbox, &format!("@{server} {transport} +short host.test A")), "10.99.0.77");
                assert_eq!(dig(&sandbox, &format!("@{server} {transport} +short host.test AAAA")), "fd99::77");
                assert!(
                    dig(&sandbox, &format!("@{server} {transport} nothing.test")).contains("REFUSED"),
                    "the resolver's own answer"
                );
            }
            // Too large for UDP: dig asks again over TCP by itself.
            assert_eq!(dig(&sandbox, &format!("@{server} +short +bufsize=1232 big.test TXT")).lines().count(), 60);
            assert!(
                dig(&sandbox, &format!("@{server} +ignore +bufsize=512 big.test TXT")).contains(" tc "),
                "truncation is passed on"
            );
            // Several questions over one connection.
            assert_eq!(dig(&sandbox, &format!("@{server} +tcp +keepopen +short host.test A host.test AAAA")).lines().count(), 2);
        }
        // As programs do, through resolv.conf.
        let done = sandbox.run(20, &["getent", "ahosts", "host.test"]);
        assert!(done.ok().contains("10.99.0.77") && done.ok().contains("fd99::77"), "{done}");
    }
}

#[test]
fn a_resolver_on_the_hosts_loopback_is_used() {
    let Some(lab) = Lab::new(&["dnsmasq", "dig"]) else { return };
    // As systemd-resolved does it.
    let _server = resolver(&lab, Place::Host, &["127.0.0.53"], "10.99.0.53");
    lab.sh(Place::Host, 5, "echo nameserver 127.0.0.53 >/etc/resolv.conf").ok();
    let sandbox = Sandbox::start(&lab, &[]);
    for transport in ["+notcp", "+tcp"] {
        assert_eq!(dig(&sandbox, &format!("@{DNS4} {transport} +short host.test A")), "10.99.0.53");
    }
}

#[test]
fn changes_of_the_hosts_resolver_are_followed() {
    let Some(lab) = Lab::new(&["dnsmasq", "dig"]) else { return };
    lab.sh(Place::Remote, 5, "ip addr add 10.99.0.11/24 dev re0; ip addr add 10.99.0.12/24 dev re0").ok();
    let _first = resolver(&lab, Place::Remote, &["10.99.0.1"], "192.0.2.1");
    let _second = resolver(&lab, Place::Remote, &["10.99.0.11"], "192.0.2.2");
    let _third = resolver(&lab, Place::Remote, &["10.99.0.12"], "192.0.2.3");
    let sandbox = Sandbox::start(&lab, &[]);
    let ask = || sandbox.sh(20, &format!("dig +time=1 +tries=1 @{DNS4} +short host.test A")).stdout.trim().to_owned();
    assert_eq!(ask(), "192.0.2.1");
    // Written in place.
    lab.sh(Place::Host, 5, "echo nameserver 10.99.0.11 >/etc/resolv.conf").ok();
    wait_until("the second resolver is asked", Duration::from_secs(5), || ask() == "192.0.2.2");
    // Replaced by rename, as most tools do.
    lab.sh(Place::Host, 5, "echo nameserver 10.99.0.12 >/etc/new && mv /etc/new /etc/resolv.conf").ok();
    wait_until("the third resolver is asked", Duration::from_secs(5), || ask() == "192.0.2.3");
    // And over TCP.
    assert_eq!(dig(&sandbox, &format!("@{DNS4} +tcp +short host.test A")), "192.0.2.3");
}

#[test]
fn a_dead_resolver_is_passed_over() {
    let Some(lab) = Lab::new(&["dnsmasq", "dig"]) else { return };
    let _server = resolver(&lab, Place::Remote, &["10.99.0.1"], "192.0.2.1");
    // The first refuses, the second is silent (nothing answers for that address).
    lab.sh(Place::Host, 5, "printf 'nameserver 127.0.0.9\\nnameserver 10.99.0.1\\n' >/etc/resolv.conf").ok();
    let sandbox = Sandbox::start(&lab, &[]);
    let done = sandbox.sh(20, &format!("dig +time=8 +tries=1 @{DNS4} +short host.test A"));
    assert_eq!(done.ok(), "192.0.2.1", "{done}");
    assert!(done.took < Duration::from_secs(4), "{done}");
}
