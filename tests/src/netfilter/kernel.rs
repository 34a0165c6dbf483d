//! The router as Linux has it.

use super::sockets::Sockets;
use super::{ROUTER_MAC, Router, Side, beyond, node, router, rules, second};
use crate::lab::{Lab, Place, wait_until};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

/// What is to be installed.
const PROGRAMS: [&str; 9] = [
    "iptables-legacy",
    "iptables-legacy-restore",
    "ip6tables-legacy-restore",
    "conntrack",
    "ipset",
    "ethtool",
    "nft",
    "python3",
    "ip",
];

/// Settings of connection tracking as a fresh network namespace has them; some machines change them for new ones.
pub(super) const SYSCTLS: [(&str, u32); 25] = [
    ("checksum", 1),
    ("tcp_loose", 1),
    ("tcp_be_liberal", 0),
    ("tcp_ignore_invalid_rst", 0),
    ("tcp_max_retrans", 3),
    ("acct", 0),
    ("timestamp", 0),
    ("log_invalid", 0),
    ("generic_timeout", 600),
    ("icmp_timeout", 30),
    ("icmpv6_timeout", 30),
    ("udp_timeout", 30),
    ("udp_timeout_stream", 120),
    ("gre_timeout", 30),
    ("gre_timeout_stream", 180),
    ("tcp_timeout_syn_sent", 120),
    ("tcp_timeout_syn_recv", 60),
    ("tcp_timeout_established", 432_000),
    ("tcp_timeout_fin_wait", 120),
    ("tcp_timeout_close_wait", 60),
    ("tcp_timeout_last_ack", 30),
    ("tcp_timeout_time_wait", 120),
    ("tcp_timeout_close", 10),
    ("tcp_timeout_unacknowledged", 300),
    ("tcp_timeout_max_retrans", 300),
];

/// Three namespaces and the sockets in them. Stays on the thread that made it, which stays on one CPU.
#[derive(Debug)]
pub struct Kernel {
    sockets: Sockets,
    shell: Shell,
    v6: bool,
    /// Settings that differ from [`SYSCTLS`].
    changed: Vec<&'static str>,
    begin: Instant,
    _lab: Lab,
}

impl Kernel {
    /// Makes the namespaces. `None` if this machine cannot have them; then that was said. The calling thread is bound to CPU
    /// number `cpu` of those it may use.
    pub fn new(cpu: usize) -> Option<Kernel> {
        let lab = Lab::with_set_up(&set_up(), &PROGRAMS)?;
        bind(cpu);
        let sockets = Sockets::open(&lab);
        let shell = Shell::start(&lab);
        let mut kernel = Kernel { sockets, shell, v6: false, changed: Vec::new(), begin: Instant::now(), _lab: lab };
        for (name, value) in SYSCTLS {
            kernel.sysctl(name, value);
        }
        kernel.quiet();
        Some(kernel)
    }

    /// Waits until the router has reported its IPv6 groups on both sides, which it does a while after a link is up: rules
    /// count those packets too.
    fn quiet(&mut self) {
        let count = "awk '/OutMLDv2Reports/ { print $2 }' /proc/net/dev_snmp6/tap0 /proc/net/dev_snmp6/tap1";
        let mut last = (String::new(), Instant::now());
        wait_until("both links are up and quiet", Duration::from_secs(20), || {
            let now = self.shell.ok(count);
            if now != last.0 {
                last = (now, Instant::now());
            }
            last.0.split_whitespace().all(|n| n != "0") && last.1.elapsed() > Duration::from_millis(1200)
        });
    }

    fn sysctl(&mut self, name: &str, value: u32) {
        self.shell.ok(&format!("echo {value} >/proc/sys/net/netfilter/nf_conntrack_{name}"));
    }

    /// Loads rules as [`Router::load`] does, and says what the kernel's own program says about them if it refuses.
    pub fn try_load(&mut self, v6: bool, rules: &str) -> Result<(), String> {
        self.v6 = v6;
        let program = if v6 { "ip6tables-legacy-restore" } else { "iptables-legacy-restore" };
        let sets = rules::sets(rules);
        let shares = !sets.is_empty() || rules.contains("-m recent") || rules.contains("-m hashlimit");
        if shares {
            // What rules share by name does not go as long as rules name it.
            let none = rules::whole("");
            let flush =
                ["iptables", "ip6tables"].map(|p| format!("{p}-legacy-restore <<'END-OF-RULES'\n{none}END-OF-RULES\n")).concat();
            self.shell.ok(&flush);
        }
        if rules.contains("clamp-mss") {
            // What errors of earlier cases said of paths.
            self.shell.ok("ip route flush cache; ip -6 route flush cache");
        }
        if !sets.is_empty() {
            self.shell.ok(&format!("ipset flush; ipset destroy; ipset restore <<'END-OF-SETS'\n{sets}END-OF-SETS"));
        }
        let script = format!("conntrack -F 2>&1; {program} -c <<'END-OF-RULES' 2>&1\n{}END-OF-RULES", rules::whole(rules));
        let (text, code) = self.shell.run(&script);
        self.begin = Instant::now();
        if code == 0 { Ok(()) } else { Err(text) }
    }

    /// What `conntrack -S` counts, summed over the CPUs.
    pub fn statistic(&mut self, name: &str) -> u64 {
        let text = self.shell.ok("conntrack -S");
        let key = format!("{name}=");
        text.split_whitespace().filter_map(|w| w.strip_prefix(&key)?.parse::<u64>().ok()).sum()
    }
}

impl Router for Kernel {
    fn load(&mut self, v6: bool, rules: &str, settings: &[(&'static str, u32)]) {
        for name in std::mem::take(&mut self.changed) {
            let (_, value) = SYSCTLS.iter().find(|(n, _)| *n == name).expect("a known setting");
            self.sysctl(name, *value);
        }
        for &(name, value) in settings {
            self.sysctl(name, value);
            self.changed.push(name);
        }
        // Such a rule switches it on, and nothing off again.
        if rules.contains("connbytes") && !self.changed.contains(&"acct") {
            self.changed.push("acct");
        }
        self.try_load(v6, rules).unwrap_or_else(|why| panic!("the kernel refuses the rules: {why}\n{rules}"));
    }

    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    fn pass(&mut self, until: Duration) {
        std::thread::sleep(until.saturating_sub(self.begin.elapsed()));
    }

    fn exchange(&mut self, side: Side, frame: &[u8]) -> Vec<(Side, Vec<u8>)> {
        self.sockets.exchange(side, frame)
    }

    fn rules(&mut self) -> String {
        self.shell.ok(if self.v6 { "ip6tables-legacy-save -c" } else { "iptables-legacy-save -c" })
    }

    fn connections(&mut self) -> String {
        self.shell.ok(if self.v6 { "conntrack -L -o extended -f ipv6" } else { "conntrack -L -o extended -f ipv4" })
    }
}

/// Keeps the thread on one CPU.
fn bind(n: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let all = sched_getaffinity(None).expect("own CPUs");
    let cpus: Vec<_> = (0..CpuSet::MAX_CPU).filter(|c| all.is_set(*c)).collect();
    let mut one = CpuSet::new();
    one.set(cpus[n % cpus.len()]);
    sched_setaffinity(None, &one).expect("one CPU of those we have");
}

fn mac(b: [u8; 6]) -> String {
    b.map(|b| format!("{b:02x}")).join(":")
}

/// Script that makes the namespaces: the router's is the one in which it runs.
fn set_up() -> String {
    let mut s = String::from(
        r"
put() { echo $1 >/proc/sys/net/$2; }
put 1 ipv6/conf/default/disable_ipv6
ip netns add c
ip netns add s
for ns in c s; do nsenter --net=/run/netns/$ns bash -c 'echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6'; done
put 0 ipv6/conf/default/disable_ipv6
put 0 ipv6/conf/default/accept_dad
put 0 ipv6/conf/default/accept_ra
put 1 ipv6/conf/default/mldv1_unsolicited_report_interval
put 1 ipv6/conf/default/mldv2_unsolicited_report_interval
put 1 ipv4/conf/all/forwarding
put 1 ipv4/conf/default/forwarding
put 1 ipv6/conf/all/forwarding
put 1 ipv6/conf/default/forwarding
put 0 ipv4/conf/all/rp_filter
put 0 ipv4/conf/default/rp_filter
put 0 ipv4/conf/all/send_redirects
put 0 ipv4/conf/default/send_redirects
put 0 ipv4/icmp_ratelimit
put 0 ipv4/icmp_ratemask
put 0 ipv6/icmp/ratelimit
put '' ipv6/icmp/ratemask
put 0 ipv4/icmp_echo_ignore_broadcasts
put 0 ipv6/auto_flowlabels
ip link set lo up
",
    );
    // Connections are tracked whether or not a rule asks for it, as we do once there are rules.
    s += "nft add table inet hold\n";
    s += "nft add chain inet hold tracked '{ type filter hook forward priority 10000; }'\n";
    s += "nft add rule inet hold tracked ct state invalid counter\n";
    for (side, ns) in Side::BOTH.into_iter().zip(["c", "s"]) {
        let tap = format!("tap{}", side.index());
        let (ours, theirs) = (mac(ROUTER_MAC), mac(side.mac()));
        writeln!(s, "ip link add {tap} address {ours} type veth peer name {ns}0 address {theirs} netns {ns}").ok();
        writeln!(s, "ip -n {ns} link set {ns}0 arp off up").ok();
        for device in [format!("ethtool -K {tap}"), format!("nsenter --net=/run/netns/{ns} ethtool -K {ns}0")] {
            writeln!(s, "{device} rx off tx off sg off tso off gso off gro off >/dev/null 2>&1").ok();
        }
        for v6 in [false, true] {
            let len = if v6 { "64 nodad" } else { "24" };
            // The kernel prefers the IPv4 address that it got first, and the IPv6 one that it got last.
            let mut own = vec![router(side, v6)];
            if side == Side::Client {
                own.push(second(v6));
            }
            if v6 {
                own.reverse();
            }
            for a in own {
                writeln!(s, "ip addr add {a}/{len} dev {tap}").ok();
            }
        }
        writeln!(s, "ip link set {tap} up").ok();
        for a in [false, true].into_iter().flat_map(|v6| [node(side, v6), beyond(side, v6)]) {
            writeln!(s, "ip neigh replace {a} lladdr {theirs} dev {tap} nud permanent").ok();
        }
    }
    s
}

/// A shell in the router's namespace that is told one thing after the other.
#[derive(Debug)]
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn start(lab: &Lab) -> Shell {
        let mut command = lab.command(Place::Host, &["bash"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("a shell");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Shell { child, input, output }
    }

    /// Runs a command; its output and exit status.
    fn run(&mut self, command: &str) -> (String, i32) {
        self.input.write_all(format!("{command}\nprintf '\\0%d\\0' $?\n").as_bytes()).expect("the shell runs");
        let mut text = Vec::new();
        self.output.read_until(0, &mut text).expect("the shell answers");
        assert_eq!(text.pop(), Some(0), "the shell ended after {command:?}");
        let mut code = Vec::new();
        self.output.read_until(0, &mut code).expect("the shell answers");
        code.pop();
        let code = String::from_utf8_lossy(&code).parse().expect("an exit status");
        (String::from_utf8_lossy(&text).into_owned(), code)
    }

    #[track_caller]
    fn ok(&mut self, command: &str) -> String {
        let (text, code) = self.run(command);
        assert_eq!(code, 0, "`{command}` failed: {text}");
        text
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
