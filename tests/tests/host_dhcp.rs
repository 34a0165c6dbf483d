//! Real DHCP clients and the kernel's own autoconfiguration against the gateway.

use hibernet_tests::lab::{DNS4, DNS6, GATEWAY4, GUEST4, GUEST6, Lab, Place, Sandbox, wait_until};
use std::time::Duration;

/// A sandbox that configures itself, with a search list on the host.
fn unconfigured(lab: &Lab) -> Sandbox<'_> {
    lab.sh(Place::Host, 5, "printf 'nameserver 10.99.0.1\\nsearch one.test two.test\\n' >/etc/resolv.conf").ok();
    let sandbox = Sandbox::start(lab, &["--dhcp", "--name", "client-7"]);
    sandbox.sh(5, "ip link set lo up; ip link set eth0 up").ok();
    assert!(!sandbox.sh(5, "ip -4 -o addr show eth0").ok().contains(GUEST4), "--dhcp leaves the address to the client");
    sandbox
}

/// dhclient with a script that only prints what it was told.
fn dhclient(lab: &Lab, sandbox: &Sandbox<'_>, options: &str) -> String {
    let (conf, script, out) = (lab.path("dhclient.conf"), lab.path("dhclient-script"), lab.path("told"));
    std::fs::remove_file(&out).ok();
    std::fs::write(
        &conf,
        "timeout 10;\nrequest subnet-mask, broadcast-address, routers, domain-name, domain-name-servers, domain-search, host-name, \
         interface-mtu, dhcp6.name-servers, dhcp6.domain-search;\n",
    )
    .expect("file");
    std::fs::write(&script, format!("#!/bin/bash\nenv | grep -E '^(reason|new_)' >>{out}\nexit 0\n")).expect("file");
    let run = format!(
        "chmod 755 {script}; dhclient {options} -1 -v -cf {conf} -sf {script} -lf {w}/leases -pf {w}/pid eth0; kill $(cat {w}/pid)",
        w = lab.dir().display()
    );
    sandbox.sh(40, &run);
    std::fs::read_to_string(&out).unwrap_or_default()
}

#[test]
fn dhclient_gets_the_lease() {
    let Some(lab) = Lab::new(&["dhclient", "ip"]) else { return };
    let sandbox = unconfigured(&lab);
    let told = dhclient(&lab, &sandbox, "-4");
    for want in [
        "reason=BOUND".to_owned(),
        format!("new_ip_address={GUEST4}"),
        "new_subnet_mask=255.255.255.0".into(),
        format!("new_routers={GATEWAY4}"),
        format!("new_domain_name_servers={DNS4}"),
        "new_interface_mtu=65520".into(),
        "new_domain_search=one.test. two.test.".into(),
        "new_host_name=client-7".into(),
    ] {
        assert!(told.lines().any(|l| l == want), "{want} is missing in:\n{told}");
    }
}

#[test]
fn busyboxs_client_configures_itself_and_has_the_network() {
    let Some(lab) = Lab::new(&["busybox", "ip", "ping"]) else { return };
    let sandbox = unconfigured(&lab);
    let script = lab.path("udhcpc.script");
    std::fs::write(
        &script,
        "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr add $ip/$mask dev $interface\nip route add default via $router\n\
         ip link set $interface mtu $mtu\necho dns=$dns mtu=$mtu search=$search\n",
    )
    .expect("file");
    let run = format!("chmod 755 {script}; busybox udhcpc -i eth0 -f -q -n -t 5 -T 1 -O search -O mtu -s {script}");
    let done = sandbox.sh(30, &run);
    assert!(done.ok().contains(&format!("dns={DNS4} mtu=65520 search=one.test two.test")), "{done}");
    assert!(sandbox.sh(5, "ip -4 -o addr").ok().contains(&format!("{GUEST4}/24")));
    sandbox.run(10, &["ping", "-c", "1", "-W", "3", "10.99.0.1"]).ok();
}

#[test]
fn dhclient_gets_the_lease_over_ipv6() {
    let Some(lab) = Lab::new(&["dhclient", "ip"]) else { return };
    let sandbox = unconfigured(&lab);
    // A client needs its link-local address to speak from.
    wait_until("the link-local address can be used", Duration::from_secs(10), || {
        let addr = sandbox.sh(5, "ip -6 -o addr show dev eth0 scope link").stdout;
        addr.contains("fe80") && !addr.contains("tentative")
    });
    let told = dhclient(&lab, &sandbox, "-6");
    for want in [
        "reason=BOUND6".to_owned(),
        format!("new_ip6_address={GUEST6}"),
        format!("new_dhcp6_name_servers={DNS6}"),
        "new_dhcp6_domain_search=one.test. two.test.".into(),
    ] {
        assert!(told.lines().any(|l| l == want), "{want} is missing in:\n{told}");
    }
}

#[test]
fn the_kernel_configures_ipv6_from_router_advertisements() {
    let Some(lab) = Lab::new(&["ip", "ping"]) else { return };
    let sandbox = unconfigured(&lab);
    sandbox.sh(5, "ip link set eth0 down; echo 2 >/proc/sys/net/ipv6/conf/eth0/accept_ra; ip link set eth0 up");
    wait_until("address and route are there", Duration::from_secs(15), || {
        let state = sandbox.sh(5, "ip -6 -o addr show dev eth0 scope global; ip -6 route").stdout;
        state.contains("inet6 fd68:6962:6e65:7400:")
            && !state.contains("tentative")
            && state.lines().any(|l| l.starts_with("default via fe80::") && l.contains("proto ra"))
    });
    let mtu = sandbox.sh(5, "cat /proc/sys/net/ipv6/conf/eth0/mtu");
    assert_eq!(mtu.ok(), "65520");
    sandbox.run(10, &["ping", "-6", "-c", "1", "-W", "3", "fd99::1"]).ok();
}
