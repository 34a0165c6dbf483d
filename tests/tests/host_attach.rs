//! `hibernet attach`: links and namespaces that somebody else made.

use hibernet_tests::lab::{Family, Lab, Place, Proc, bracketed, skip, wait_until};
use std::time::{Duration, Instant};

fn strings(argv: &[String]) -> Vec<&str> {
    argv.iter().map(String::as_str).collect()
}

/// A lab with a namespace *guest* that has no network yet, a web server outside, and a TAP driver if `tap`.
fn lab(tap: bool) -> Option<(Lab, Vec<Proc>, String)> {
    let lab = Lab::new(&["ip", "curl", "python3", "sha256sum"])?;
    if tap && std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_err() {
        skip("/dev/net/tun cannot be opened");
        return None;
    }
    lab.sh(Place::Host, 5, "ip netns add guest && ip -n guest link set lo up").ok();
    let file = lab.path("big");
    let digest = lab.run(Place::Remote, 60, &strings(&lab.peer("stream.py", &[&file, "50000000"]))).ok().to_owned();
    let dir = lab.dir().to_string_lossy().into_owned();
    let servers = Family::BOTH
        .into_iter()
        .zip([8004, 8006])
        .map(|(family, port)| lab.serve_peer(Place::Remote, "http_store.py", &[&dir], family, port))
        .collect();
    Some((lab, servers, digest))
}

fn url(family: Family) -> String {
    format!("http://{}:{}/big", bracketed(family.remote()), if family == Family::V4 { 8004 } else { 8006 })
}

/// Fetches and uploads from the namespace *guest*.
fn transfer(lab: &Lab, digest: &str) {
    for family in Family::BOTH {
        let url = url(family);
        let script = format!(
            "set -o pipefail; exec nsenter --net=/run/netns/guest bash -c 'curl -sSf --max-time 30 {url} | sha256sum; curl -sSf --max-time 30 -T big {url}'"
        );
        let done = lab.sh(Place::Host, 90, &script);
        assert_eq!(done.ok(), format!("{digest}  -\n{digest}"), "{family:?}: {done}");
    }
}

/// Moves an interface into the namespace *guest* and configures it, as its kernel's administrator would.
fn configure(lab: &Lab, ifname: &str) {
    lab.sh(
        Place::Host,
        10,
        &format!(
            "set -e; ip link set {ifname} netns guest; ip -n guest link set {ifname} mtu 1500 up
             ip -n guest addr add 10.0.2.15/24 dev {ifname}; ip -n guest addr add fd68:6962:6e65:7400::15/64 dev {ifname} nodad
             ip -n guest route add default via 10.0.2.2; ip -n guest -6 route add default via fd68:6962:6e65:7400::2"
        ),
    )
    .ok();
}

/// Waits until the guest reaches its gateway.
fn wait_served(lab: &Lab, attach: &mut Proc) {
    wait_until("the guest has a network", Duration::from_secs(20), || {
        assert!(attach.running(), "attach ended early:\n{}", attach.output());
        lab.sh(Place::Host, 5, "nsenter --net=/run/netns/guest ping -c1 -W1 10.0.2.2").code == 0
    });
}

#[test]
fn a_namespace_by_path_until_it_is_deleted() {
    let Some((lab, _servers, digest)) = lab(false) else { return };
    let mut attach = lab.spawn_hibernet(&["attach", "--netns", "/run/netns/guest", "-p", "8080:80"]);
    wait_served(&lab, &mut attach);
    transfer(&lab, &digest);
    lab.sh(Place::Host, 5, "ip netns del guest").ok();
    assert_eq!(attach.wait(Duration::from_secs(10)), 0, "{}", attach.output());
    assert!(!lab.processes().iter().any(|p| p.contains("hibernet")), "{:?}", lab.processes());
}

#[test]
fn a_namespace_by_process_until_it_ends() {
    let Some((lab, _servers, digest)) = lab(false) else { return };
    let sleeper = lab.spawn(Place::Host, &["nsenter", "--net=/run/netns/guest", "bash", "-c", "echo $$; exec sleep 1000"]);
    wait_until("the process runs", Duration::from_secs(5), || !sleeper.output().is_empty());
    let mut attach = lab.spawn_hibernet(&["attach", "--netns", sleeper.output().trim()]);
    wait_served(&lab, &mut attach);
    transfer(&lab, &digest);
    drop(sleeper);
    assert_eq!(attach.wait(Duration::from_secs(10)), 0, "{}", attach.output());
}

#[test]
fn a_tap_by_name() {
    let Some((lab, _servers, digest)) = lab(true) else { return };
    lab.sh(Place::Host, 5, "ip tuntap add dev tap7 mode tap && ip link set tap7 up").ok();
    let mut attach = lab.spawn_hibernet(&["attach", "--tap", "tap7"]);
    // The interface can be moved once its descriptor is held.
    wait_until("the TAP is taken", Duration::from_secs(10), || {
        assert!(attach.running(), "{}", attach.output());
        lab.sh(Place::Host, 5, "ip link show tap7").stdout.contains("LOWER_UP")
    });
    configure(&lab, "tap7");
    wait_served(&lab, &mut attach);
    transfer(&lab, &digest);
    lab.sh(Place::Host, 5, "ip -n guest link del tap7").ok();
    assert_eq!(attach.wait(Duration::from_secs(10)), 0, "{}", attach.output());
}

#[test]
fn an_inherited_tap() {
    let Some((lab, _servers, digest)) = lab(true) else { return };
    let bin = lab.binary();
    let argv = lab.peer("vmm.py", &["--exec", "tap8", &bin, "attach", "--fd", "{fd}"]);
    let mut attach = lab.spawn(Place::Host, &strings(&argv));
    wait_until("the TAP is there", Duration::from_secs(10), || lab.sh(Place::Host, 5, "ip link show tap8").code == 0);
    configure(&lab, "tap8");
    wait_served(&lab, &mut attach);
    transfer(&lab, &digest);
}

#[test]
fn an_inherited_socket_of_messages() {
    let Some((lab, _servers, digest)) = lab(true) else { return };
    // As distributions set it; ten messages are few.
    lab.sh(Place::Host, 5, "echo 512 >/proc/sys/net/unix/max_dgram_qlen").ok();
    let bin = lab.binary();
    let argv = lab.peer("vmm.py", &["--socket", "inner", &bin, "attach", "--fd", "{fd}", "--mtu", "1500"]);
    let mut vmm = lab.spawn(Place::Host, &strings(&argv));
    wait_until("the VMM is ready", Duration::from_secs(10), || vmm.output().contains("ready"));
    configure(&lab, "inner");
    wait_served(&lab, &mut vmm);
    transfer(&lab, &digest);
}

/// A VM whose VMM holds the TAP; hibernet has the interface's side.
fn vm(lab: &Lab, options: &[&str]) -> (Proc, Proc) {
    lab.sh(Place::Host, 5, "ip tuntap add dev vmtap mode tap vnet_hdr && ip link set vmtap up").ok();
    let vmm = lab.spawn(Place::Host, &strings(&lab.peer("vmm.py", &["vmtap", "inner"])));
    wait_until("the VMM is ready", Duration::from_secs(10), || vmm.output().contains("ready"));
    configure(lab, "inner");
    let mut args = vec!["attach", "--packet", "vmtap"];
    args.extend_from_slice(options);
    let mut attach = lab.spawn_hibernet(&args);
    wait_served(lab, &mut attach);
    (vmm, attach)
}

#[test]
fn the_interface_side_of_a_vmms_tap() {
    let Some((lab, _servers, digest)) = lab(true) else { return };
    let (vmm, mut attach) = vm(&lab, &["-p", "7070:7000"]);
    transfer(&lab, &digest);
    let _server = lab.spawn(
        Place::Host,
        &[&["nsenter", "--net=/run/netns/guest"][..], &strings(&lab.peer("echo.py", &["tcp", "0.0.0.0", "7000"]))].concat(),
    );
    wait_until("the guest's server answers", Duration::from_secs(20), || {
        lab.sh(Place::Remote, 10, "printf hello | nc -N -w 3 10.99.0.2 7070").stdout.ends_with("hello")
    });
    // The VM ends, its TAP goes.
    drop(vmm);
    lab.sh(Place::Host, 5, "ip link del vmtap").ok();
    assert_eq!(attach.wait(Duration::from_secs(10)), 0, "{}", attach.output());
}

#[test]
fn rings_and_queues_live_through_sleep_and_upgrade() {
    let all: [&[&str]; 5] = [
        &["--ring", "on", "--queues", "4"],
        &["--ring", "on"],
        &["--ring", "off", "--queues", "2"],
        &["--ring", "on", "--workers", "2"],
        &["--ring", "off", "--workers", "2", "--queues", "4"],
    ];
    for options in all {
        let Some((lab, _servers, digest)) = lab(true) else { return };
        let (_vmm, mut attach) = vm(&lab, &[options, &["--name", "vm"]].concat());
        transfer(&lab, &digest);
        let script = format!(
            "nsenter --net=/run/netns/guest bash -c 'curl -sSf --limit-rate 10M {u} | sha256sum & curl -sSf --limit-rate 10M -T big {u} & wait'",
            u = url(Family::V4)
        );
        let before = link_bytes(&lab, "vm");
        let mut under_way = lab.spawn(Place::Host, &["bash", "-c", &script]);
        wait_until("much is under way", Duration::from_secs(30), || link_bytes(&lab, "vm") > before + 5_000_000);
        let image = lab.path("vm.img");
        for n in 0..3 {
            lab.hibernet(30, &["checkpoint", "vm", &image]).ok();
            lab.hibernet(30, &["restore", &image]).ok();
            lab.hibernet(30, &["upgrade", "vm"]).ok();
            assert!(n > 0 || under_way.running(), "it was over before: {}", under_way.output());
        }
        assert_eq!(under_way.wait(Duration::from_secs(60)), 0, "{}", under_way.output());
        assert_eq!(under_way.output().matches(&digest).count(), 2, "{options:?}: {}", under_way.output());
        lab.sh(Place::Host, 5, "ip link del vmtap").ok();
        assert_eq!(attach.wait(Duration::from_secs(10)), 0, "{}", attach.output());
    }
}

/// Bytes that have passed a sandbox's link, both ways.
fn link_bytes(lab: &Lab, name: &str) -> u64 {
    let stats = lab.hibernet(10, &["stats", name]);
    let counters = ["links.0.rx_bytes ", "links.0.tx_bytes "];
    stats.ok().lines().filter_map(|l| counters.iter().find_map(|c| l.strip_prefix(c)?.parse::<u64>().ok())).sum()
}

/// How long a transfer may make no progress after a pause of 6 s: the time-outs of TCP have doubled to less than 13 s.
const STANDSTILL: Duration = Duration::from_secs(30);
/// Progress, and not acknowledgements of probes.
const PROGRESS: u64 = 100_000;

#[test]
fn a_paused_vm_loses_nothing() {
    let Some((lab, _servers, digest)) = lab(true) else { return };
    let (vmm, _attach) = vm(&lab, &["--name", "vm"]);
    // Slow enough to be caught in the middle. (The pause of minutes is in the simulation, in virtual time.)
    for family in Family::BOTH {
        let script = format!(
            "nsenter --net=/run/netns/guest bash -c 'curl -sSf --limit-rate 10M {u} | sha256sum & curl -sSf --limit-rate 10M -T big {u} & wait'",
            u = url(family)
        );
        let before = link_bytes(&lab, "vm");
        let transfer = lab.spawn(Place::Host, &["bash", "-c", &script]);
        let mut transfer: Proc = transfer;
        wait_until("much is under way", Duration::from_secs(30), || link_bytes(&lab, "vm") > before + 20_000_000);
        vmm.signal("STOP");
        std::thread::sleep(Duration::from_secs(6));
        assert!(transfer.running(), "it ended before the pause was over:\n{}", transfer.output());
        vmm.signal("CONT");
        let (mut moved, mut at) = (link_bytes(&lab, "vm"), Instant::now());
        while transfer.running() {
            let bytes = link_bytes(&lab, "vm");
            if bytes > moved + PROGRESS {
                (moved, at) = (bytes, Instant::now());
            }
            if at.elapsed() > STANDSTILL {
                let state = "ss -tnmi; nsenter --net=/run/netns/guest ss -tnmi; nsenter --net=/run/netns/guest ip neigh";
                panic!("{family:?}: it hangs: {}\n{}", lab.hibernet(5, &["stats", "vm"]), lab.sh(Place::Host, 5, state));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(transfer.wait(Duration::from_secs(1)), 0, "{}", transfer.output());
        assert_eq!(transfer.output().matches(&digest).count(), 2, "{family:?}: {}", transfer.output());
    }
}

#[test]
fn mistakes_of_attach_are_said() {
    let Some((lab, _servers, _)) = lab(false) else { return };
    for (args, code, word) in [
        (&["attach", "--netns", "/run/netns/nowhere"][..], 71, "nowhere"),
        (&["attach", "--netns", "/etc/passwd"], 71, "passwd"),
        (&["attach", "--netns", "999999"], 71, "999999"),
        (&["attach", "--packet", "nolink"], 72, "nolink"),
        (&["attach", "--fd", "77"], 72, "77"),
        (&["attach"], 2, "--netns"),
        (&["attach", "--tap", "a", "--packet", "b"], 2, "--packet"),
        (&["attach", "--tap", "a", "--queues", "2"], 2, "--queues needs --packet"),
        (&["attach", "--packet", "a", "--queues", "0"], 2, "--queues"),
    ] {
        let done = lab.hibernet(10, args);
        assert_eq!(done.code, code, "{done}");
        assert!(done.stderr.contains(word), "{word:?} is not said: {done}");
    }
}
