//! Rules: the recipe of the README with real programs, and rules and connections of a running sandbox, through the commands.

use hibernet_tests::lab::{DNS4, DNS6, Done, Family, Lab, Place, Proc, Sandbox, bracketed, wait_until};
use std::time::Duration;

/// The sample files that the README shows.
fn sample(name: &str) -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/rules/").to_owned() + name
}

/// The service that the samples allow.
fn service(family: Family) -> &'static str {
    if family == Family::V4 { "192.0.2.10" } else { "2001:db8::10" }
}

fn dns(family: Family) -> &'static str {
    if family == Family::V4 { DNS4 } else { DNS6 }
}

fn v6_flag(family: Family) -> &'static [&'static str] {
    if family == Family::V4 { &[] } else { &["--v6"] }
}

fn strings(argv: &[String]) -> Vec<&str> {
    argv.iter().map(String::as_str).collect()
}

/// What the guest hears of a refusal, as Linux turns it into an error.
fn prohibited(family: Family) -> &'static str {
    if family == Family::V4 { "EHOSTUNREACH" } else { "EACCES" }
}

struct World {
    lab: Lab,
    /// Where connections of [`World::hold`] end, by family.
    ends: Vec<Proc>,
    _servers: Vec<Proc>,
}

impl World {
    /// The allowed service at port 443, the same at a forbidden port and address, and a resolver that knows `service.test`.
    fn new(programs: &[&str]) -> Option<World> {
        let lab = Lab::new(&[&["python3", "dnsmasq", "dig", "curl"], programs].concat())?;
        let addresses = "ip addr add 192.0.2.10/32 dev lo; ip -6 addr add 2001:db8::10/128 dev lo";
        lab.sh(Place::Remote, 5, addresses).ok();
        let (mut servers, mut ends) = (Vec::new(), Vec::new());
        for family in Family::BOTH {
            for port in [443, 8443] {
                let server = lab.peer("http_store.py", &[".", service(family), &port.to_string()]);
                servers.push(lab.spawn(Place::Remote, &strings(&server)));
                let url = format!("http://{}:{port}/", bracketed(service(family)));
                wait_until("the server answers", Duration::from_secs(20), || {
                    lab.run(Place::Remote, 5, &["curl", "-s", "-o", "/dev/null", &url]).code == 0
                });
            }
            let hold = lab.spawn(Place::Remote, &strings(&lab.peer("hold.py", &["serve", service(family), "444"])));
            wait_until("the server is ready", Duration::from_secs(20), || hold.output().contains("ready"));
            ends.push(hold);
        }
        let conf = lab.path("dnsmasq");
        let names = "address=/service.test/192.0.2.10\naddress=/service.test/2001:db8::10\n";
        let listen = "port=53\nno-hosts\nno-resolv\nno-daemon\nuser=root\nbind-interfaces\nlisten-address=10.99.0.1\n";
        std::fs::write(&conf, format!("{listen}{names}")).expect("configuration");
        let mut resolver = lab.spawn(Place::Remote, &["dnsmasq", "-C", &conf, "--pid-file="]);
        lab.wait_bound(Place::Remote, 53, &mut resolver);
        servers.push(resolver);
        Some(World { lab, ends, _servers: servers })
    }

    /// A file of rules.
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.lab.path(name);
        std::fs::write(&path, text).expect("a file of rules");
        path
    }

    fn probe(&self, sandbox: &Sandbox<'_>, proto: &str, addr: &str, port: u16) -> (String, u64) {
        let done = sandbox.run(20, &strings(&self.lab.peer("probe.py", &[proto, addr, &port.to_string()])));
        let (result, ms) = done.ok().split_once(' ').expect("two words");
        (result.to_owned(), ms.parse().expect("a number"))
    }

    /// A connection of the guest's that stays.
    fn hold(&self, sandbox: &Sandbox<'_>, addr: &str) -> Proc {
        let mut client = sandbox.spawn(&strings(&self.lab.peer("hold.py", &[addr, "444"])));
        wait_until("it is connected", Duration::from_secs(20), || {
            let out = client.output();
            assert!(client.running() || out.contains("connected"), "{out}");
            out.contains("connected")
        });
        client
    }

    fn ask(&self, args: &[&str]) -> Done {
        self.lab.hibernet(20, args)
    }

    /// Packets that met the rules of a chain which contain some text.
    fn count(&self, name: &str, family: Family, rule: &str) -> u64 {
        let done = self.ask(&[&["rules", "save", name, "-c"], v6_flag(family)].concat());
        let packets = |l: &str| l.strip_prefix('[')?.split_once(':')?.0.parse::<u64>().ok();
        let found: Vec<u64> = done.ok().lines().filter(|l| l.contains(rule)).filter_map(packets).collect();
        assert!(!found.is_empty(), "no rule has {rule}: {done}");
        found.iter().sum()
    }
}

/// Waits until a program has said how its connection ended.
fn end_of(p: &Proc) -> String {
    wait_until("the connection ends", Duration::from_secs(10), || p.output().lines().count() > 1);
    p.output().lines().nth(1).unwrap_or_default().trim().to_owned()
}

#[test]
fn an_agent_reaches_what_the_recipe_allows_and_nothing_else() {
    let Some(w) = World::new(&["ping"]) else { return };
    let (rules4, rules6, log) = (sample("agent4.rules"), sample("agent6.rules"), w.lab.path("log"));
    let options = ["--name", "agent", "--rules", &rules4, "--rules6", &rules6, "--log-level", "info", "--log-file", &log];
    let sandbox = Sandbox::start(&w.lab, &options);
    for family in Family::BOTH {
        let curl =
            |url: &str| sandbox.run(20, &["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-v", "--max-time", "10", url]);
        let host = bracketed(service(family));
        // DNS over UDP and TCP, and the one service, by address.
        for transport in ["+notcp", "+tcp"] {
            let server = format!("@{}", dns(family));
            let dig = sandbox.run(20, &["dig", "+time=3", "+tries=2", &server, transport, "+short", "service.test", "A"]);
            assert_eq!(dig.ok(), "192.0.2.10", "{family:?} {transport}");
        }
        assert_eq!(curl(&format!("http://{host}:443/")).ok(), "200");
        assert!(w.count("agent", family, "--dport 443 -j ACCEPT") == 1, "one connection was new");

        // Everything else is refused at once, with the right error: another port, another host, the gateway, UDP, ping.
        let before = w.count("agent", family, "-A REFUSE -j REJECT");
        let done = curl(&format!("http://{host}:8443/"));
        let words = if family == Family::V4 { "No route to host" } else { "Permission denied" };
        assert!(done.code == 7 && done.took < Duration::from_secs(2) && done.stderr.contains(words), "{done}");
        let cases = [
            ("tcp", service(family), 8443),
            ("tcp", family.remote(), 443),
            ("udp", service(family), 443),
            ("udp", family.remote(), 53),
            ("tcp", family.gateway(), 80),
            ("udp", family.gateway(), 9),
        ];
        for (proto, addr, port) in cases {
            let (result, ms) = w.probe(&sandbox, proto, addr, port);
            assert!(result == prohibited(family) && ms < 1000, "{proto} to {addr} port {port}: {result} after {ms} ms");
        }
        let ping = sandbox.run(20, &["ping", family.flag(), "-c", "1", "-W", "2", family.remote()]);
        assert!(ping.stdout.contains("filtered") || ping.stdout.contains("rohibited"), "{ping}");
        assert!(w.count("agent", family, "-A REFUSE -j REJECT") >= before + 8, "each was counted");
        assert_eq!(w.count("agent", family, "--dport 443 -j ACCEPT"), 1);

        // And told: the way, who, where to.
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let line = |parts: &[&str]| text.lines().any(|l| parts.iter().all(|p| l.contains(p)));
        let to = |addr: &str| format!("DST={} ", long(addr));
        assert!(line(&["refused: IN=tap0 OUT=host0 ", &to(service(family)), "PROTO=TCP", "DPT=8443"]), "{text}");
        assert!(line(&["refused: IN=tap0 OUT= ", &to(family.gateway()), "PROTO=TCP", "DPT=80"]), "{text}");
    }
    let drops = w.ask(&["drops", "agent"]);
    assert!(drops.ok().lines().any(|l| l.trim_end().ends_with("rejected")), "{drops}");
}

/// An address as LOG writes it: IPv6 in full.
fn long(addr: &str) -> String {
    match addr.parse().expect("an address") {
        std::net::IpAddr::V4(a) => a.to_string(),
        std::net::IpAddr::V6(a) => a.segments().map(|s| format!("{s:04x}")).join(":"),
    }
}

#[test]
fn rules_are_replaced_while_traffic_runs() {
    let Some(w) = World::new(&[]) else { return };
    let (rules4, rules6) = (sample("agent4.rules"), sample("agent6.rules"));
    let sandbox = Sandbox::start(&w.lab, &["--name", "agent", "--rules", &rules4, "--rules6", &rules6]);
    for family in Family::BOTH {
        let flag = v6_flag(family);
        let file = if family == Family::V4 { &rules4 } else { &rules6 };
        let same = w.ask(&[&["rules", "diff", "agent", file], flag].concat());
        assert_eq!((same.code, same.stdout.as_str()), (0, ""), "{same}");
        // Port 444 instead of 443.
        let text = std::fs::read_to_string(file).expect("the sample").replace("--dport 443", "--dport 444");
        let other = w.file("other.rules", &text);
        let differs = w.ask(&[&["rules", "diff", "agent", &other], flag].concat());
        assert_eq!(differs.code, 1, "{differs}");
        assert!(differs.stdout.contains("--dport 443") && differs.stdout.contains("--dport 444"), "{differs}");

        assert_eq!(w.probe(&sandbox, "tcp", service(family), 444).0, prohibited(family));
        let test = w.ask(&[&["rules", "restore", "agent", "--test", &other], flag].concat());
        assert_eq!(test.code, 0, "{test}");
        assert_eq!(w.probe(&sandbox, "tcp", service(family), 444).0, prohibited(family), "a test changes nothing");
        w.ask(&[&["rules", "restore", "agent", &other], flag].concat()).ok();
        let saved = w.ask(&[&["rules", "save", "agent", "-t", "filter"], flag].concat());
        assert!(saved.ok().starts_with("*filter\n") && saved.stdout.contains("--dport 444 -j ACCEPT"), "{saved}");
        assert_eq!(w.probe(&sandbox, "tcp", service(family), 443).0, prohibited(family));

        // A connection under the rules of its time goes on, unless it is asked for that it does not.
        let held = w.hold(&sandbox, service(family));
        w.ask(&[&["rules", "restore", "agent", file], flag].concat()).ok();
        assert_eq!(w.probe(&sandbox, "tcp", service(family), 444).0, prohibited(family));
        assert_eq!(held.output().trim(), "connected");
        let none = text.replace("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n", "");
        let none = w.file("none.rules", &none.replace("--dport 444", "--dport 445"));
        let cut = w.ask(&[&["rules", "restore", "agent", "--recheck", "cut", &none], flag].concat());
        assert_eq!(cut.code, 0, "{cut}");
        assert_eq!(end_of(&held), "ECONNRESET");
        assert!(cut.stderr.contains("1 flows are forbidden now"), "{cut}");

        // A file with a mistake changes nothing, and says where it is.
        let before = w.ask(&[&["rules", "save", "agent"], flag].concat()).stdout;
        let bad = w.file("bad.rules", "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp --dport 99999 -j ACCEPT\nCOMMIT\n");
        let done = w.ask(&[&["rules", "restore", "agent", &bad], flag].concat());
        assert_eq!(done.code, 2, "{done}");
        assert!(done.stderr.contains("bad.rules:3:25: ") && done.stderr.contains("99999"), "{done}");
        assert_eq!(w.ask(&[&["rules", "save", "agent"], flag].concat()).stdout, before);

        // Added to what is there.
        w.ask(&[&["rules", "restore", "agent", file], flag].concat()).ok();
        let text = "*filter\n-I FORWARD 1 -p tcp -m tcp --dport 444 -j ACCEPT\nCOMMIT\n";
        let add = w.file("add.rules", text);
        w.ask(&[&["rules", "restore", "agent", "--noflush", &add], flag].concat()).ok();
        assert_eq!(w.probe(&sandbox, "tcp", service(family), 444).0, "ok");
    }
}

#[test]
fn a_bad_file_starts_nothing() {
    let Some(lab) = Lab::new(&[]) else { return };
    let started = lab.path("started");
    let run = |name: &str, text: &str, options: &[&str]| {
        let path = lab.path(name);
        std::fs::write(&path, text).expect("a file of rules");
        let args = [&["run", "--rules", path.as_str()], options, &["--", "touch", started.as_str()]].concat();
        let done = lab.hibernet(20, &args);
        assert!(!std::fs::exists(&started).unwrap_or(true), "the command was started: {done}");
        done
    };
    let done = run("a.rules", "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m sett --match-set a src -j DROP\nCOMMIT\n", &[]);
    assert!(done.code == 78 && done.stderr.contains("a.rules:3:13: ") && done.stderr.contains("sett"), "{done}");
    // It can be read, but leads in a circle.
    let circle = "*filter\n:A - [0:0]\n:B - [0:0]\n-A FORWARD -j A\n-A A -j B\n-A B -j A\nCOMMIT\n";
    let done = run("b.rules", circle, &[]);
    assert!(done.code == 78 && done.stderr.contains("b.rules"), "{done}");
    let check = lab.hibernet(20, &["rules", "check", &lab.path("b.rules")]);
    assert!(check.code == 1 && check.stdout.is_empty() && !check.stderr.is_empty(), "{check}");
    let check = lab.hibernet(20, &["rules", "check", &lab.path("a.rules")]);
    assert!(check.code == 2 && check.stdout.is_empty() && check.stderr.contains("a.rules:3:13"), "{check}");
    let done = run("c.rules", "*filter\nCOMMIT\n", &["--no-ipv4"]);
    assert!(done.code == 2 && done.stderr.contains("--rules"), "{done}");
    let bin = lab.binary();
    let piped = [bin.as_str(), "run", "--no-ipv6", "--rules", "-", "--", "true"];
    lab.run_with(Place::Host, 20, &piped, b"*filter\nCOMMIT\n").ok();
    let done = lab.run_with(Place::Host, 20, &piped, b"*filter\nCOMIT\n");
    assert!(done.code == 78 && done.stderr.contains("standard input:2:1: "), "{done}");
    let done = lab.hibernet(20, &["run", "--rules", "-", "--rules6", "-", "--", "true"]);
    assert!(done.code == 2 && done.stderr.contains("both"), "{done}");
    let missing = lab.hibernet(20, &["run", "--rules", "/nonexistent", "--", "true"]);
    assert!(missing.code == 77 && missing.stderr.contains("/nonexistent"), "{missing}");
}

/// The canonical form of the samples is what the real `iptables-save` prints of them.
#[test]
fn the_samples_mean_the_same_to_the_kernel() {
    let Some(lab) = Lab::new(&["iptables-legacy-restore", "ip6tables-legacy-restore"]) else { return };
    for (family, name, tool) in
        [(Family::V4, "agent4.rules", "iptables-legacy"), (Family::V6, "agent6.rules", "ip6tables-legacy")]
    {
        let checked = lab.hibernet(20, &[&["rules", "check", &sample(name)], v6_flag(family)].concat());
        let script = format!("{tool}-restore <{} && {tool}-save", sample(name));
        let kernel = lab.sh(Place::Remote, 20, &script);
        let rules = |text: &str| text.lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(rules(checked.ok()), rules(kernel.ok()));
    }
}

/// What is listed is what the real program lists, but for addresses, ports, times.
#[test]
fn connections_are_listed_deleted_and_flushed() {
    let Some(w) = World::new(&["conntrack", "iptables-legacy", "ip6tables-legacy"]) else { return };
    let (rules4, rules6) = (sample("agent4.rules"), sample("agent6.rules"));
    let allow = |path: &str| std::fs::read_to_string(path).expect("the sample").replace("--dport 443", "--dport 444");
    let (rules4, rules6) = (w.file("r4", &allow(&rules4)), w.file("r6", &allow(&rules6)));
    let sandbox = Sandbox::start(&w.lab, &["--name", "agent", "--rules", &rules4, "--rules6", &rules6]);
    // The remote end's kernel tracks the very same connections.
    for tool in ["iptables-legacy", "ip6tables-legacy"] {
        w.lab.run(Place::Remote, 5, &[tool, "-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT"]).ok();
    }
    let shape = |line: &str| {
        let word = |w: &str| match w.split_once('=') {
            Some((key, _)) => format!("{key}="),
            None if w.parse::<u64>().is_ok_and(|n| n > 1000) => "TIME".to_owned(),
            None => w.to_owned(),
        };
        line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
    };
    for family in Family::BOTH {
        let held = w.hold(&sandbox, service(family));
        let name = if family == Family::V4 { "ipv4" } else { "ipv6" };
        let filter = ["-f", name, "-p", "tcp", "--dport", "444"];
        for form in [&[][..], &["-o", "extended"]] {
            let ours = w.ask(&[&["conntrack", "agent", "-L"], form, &filter].concat());
            let kernels = w.lab.run(Place::Remote, 5, &[&["conntrack", "-L"], form, &filter].concat());
            let line = |d: &Done| d.ok().lines().find(|l| l.contains("dport=444")).map(shape).expect("the connection");
            assert_eq!(line(&ours), line(&kernels), "{ours}{kernels}");
            assert!(ours.stdout.contains(&format!("src={} dst={} ", family.guest(), service(family))), "{ours}");
            assert!(ours.stdout.contains("ESTABLISHED") && ours.stdout.contains("[ASSURED]"), "{ours}");
        }
        let json: String = w.ask(&[&["conntrack", "agent", "--json"], &filter[..]].concat()).ok().to_owned();
        assert!(json.starts_with('[') && json.contains(service(family)), "{json}");

        // Deleted, it is reset on both sides; a filter that does not fit deletes nothing.
        let other = w.ask(&["conntrack", "agent", "-D", "-f", name, "-p", "tcp", "--dport", "445"]);
        assert!(other.code == 1 && other.stderr.contains("0 flow entries have been deleted"), "{other}");
        assert_eq!(held.output().trim(), "connected");
        let deleted = w.ask(&[&["conntrack", "agent", "-D"], &filter[..]].concat());
        assert!(deleted.ok().contains("dport=444") && deleted.stderr.contains("1 flow entries have been deleted"), "{deleted}");
        assert_eq!(end_of(&held), "ECONNRESET");
        wait_until("the server sees it end", Duration::from_secs(10), || {
            w.ends[family as usize].output().lines().eq(["ready", "opened", "ECONNRESET"])
        });
        let left = w.ask(&[&["conntrack", "agent", "-L"], &filter[..]].concat());
        assert!(!left.stdout.contains("ESTABLISHED"), "{left}");
    }
    let held: Vec<Proc> = Family::BOTH.iter().map(|f| w.hold(&sandbox, service(*f))).collect();
    let count: u64 = w.ask(&["conntrack", "agent", "-C"]).ok().parse().expect("a number");
    assert!(count >= 2, "{count}");
    w.ask(&["conntrack", "agent", "-F"]).ok();
    assert_eq!(w.ask(&["conntrack", "agent", "-C"]).ok(), "0");
    for h in &held {
        assert_eq!(end_of(h), "ECONNRESET");
    }
    let bad = w.ask(&["conntrack", "agent", "-L", "--dport", "x"]);
    assert!(bad.code == 2 && bad.stderr.contains("--dport"), "{bad}");
}

#[test]
fn a_family_without_rules_is_dropped_if_the_other_has_some() {
    let Some(w) = World::new(&[]) else { return };
    let rules = sample("agent4.rules");
    let mut sandbox = Sandbox::start(&w.lab, &["--name", "agent", "--rules", &rules]);
    assert_eq!(w.probe(&sandbox, "tcp", service(Family::V4), 443).0, "ok");
    assert_eq!(w.probe(&sandbox, "tcp", service(Family::V6), 443).0, "silence");
    let notice = sandbox.supervisor.output();
    assert!(notice.contains("IPv6") && notice.contains("--rules6") && notice.contains("--no-ipv6"), "{notice}");
    let drops = w.ask(&["drops", "agent"]);
    assert!(drops.ok().contains("no_rules"), "{drops}");
    assert!(sandbox.supervisor.running());
}

/// Published ports and the safe reach are rules that one can see, beside those of the file.
#[test]
fn what_hibernet_adds_can_be_seen() {
    let Some(w) = World::new(&[]) else { return };
    let _sandbox = Sandbox::start(&w.lab, &["--name", "agent", "-p", "8080:80"]);
    for family in Family::BOTH {
        let nat = w.ask(&[&["rules", "save", "agent", "-t", "nat"], v6_flag(family)].concat());
        let to = format!("--to-destination {}:80", bracketed(family.guest()));
        assert!(nat.ok().lines().any(|l| l.contains("--dport 8080") && l.contains("-j DNAT") && l.contains(&to)), "{nat}");
        let filter = w.ask(&[&["rules", "save", "agent", "-t", "filter"], v6_flag(family)].concat());
        let metadata = if family == Family::V4 { "169.254.0.0/16" } else { "fe80::/10" };
        assert!(filter.ok().lines().any(|l| l.contains(metadata) && l.contains("-j REJECT")), "{filter}");
    }
}

/// What becomes of live flows can be said once and for all; and rules for one family close the other, with a notice.
#[test]
fn rules_for_a_sandbox_that_had_none() {
    let Some(w) = World::new(&[]) else { return };
    let sandbox = Sandbox::start(&w.lab, &["--name", "open", "--recheck", "cut"]);
    let held: Vec<Proc> = Family::BOTH.iter().map(|f| w.hold(&sandbox, service(*f))).collect();
    let done = w.ask(&["rules", "restore", "open", &sample("agent4.rules")]);
    assert!(done.code == 0 && done.stderr.contains("IPv6 has no rules"), "{done}");
    assert_eq!(end_of(&held[0]), "ECONNRESET");
    assert_eq!(w.probe(&sandbox, "tcp", service(Family::V4), 443).0, "ok");
    assert_eq!(w.probe(&sandbox, "tcp", service(Family::V6), 443).0, "silence");
    let done = w.ask(&["rules", "restore", "open", "--v6", &sample("agent6.rules")]);
    assert!(done.code == 0 && !done.stderr.contains("notice"), "{done}");
    assert_eq!(end_of(&held[1]), "ECONNRESET");
    assert_eq!(w.probe(&sandbox, "tcp", service(Family::V6), 443).0, "ok");
}

/// Tens of thousands of connections are listed and deleted in pieces, between which packets are served.
#[test]
fn a_long_listing_holds_no_packet_up() {
    let Some(w) = World::new(&["ping"]) else { return };
    let all = w.file("all", "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n");
    let sandbox = Sandbox::start(&w.lab, &["--name", "many", "--rules", &all, "--no-ipv6"]);
    let count = || w.ask(&["conntrack", "many", "-C"]).ok().parse::<usize>().expect("a number");
    // No flow belongs to a datagram for a port of the gateway's that serves nothing, but a connection does.
    // An echo now and then, so that no more is on its way than the link holds.
    let flood = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
p = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
p.connect(('10.0.2.2', 0))
p.settimeout(10)
for port in range(2000, 42000):
    s.sendto(b'x', ('10.0.2.2', port))
    if port % 100 == 0:
        p.send(bytes([8, 0, 0xf7, 0xff]) + bytes(4))
        while p.recv(2000)[20] != 0:
            pass";
    sandbox.run(60, &["python3", "-c", flood]).ok();
    let n = count();
    assert!(n > 30_000, "{n}");
    let ping = sandbox.spawn(&["ping", "-q", "-i", "0.002", "-w", "60", "10.0.2.2"]);
    let before = waited(sandbox.worker()) + waited(ping.pid());
    let list = w.ask(&["conntrack", "many", "-L", "-p", "udp"]);
    let listed = list.ok().lines().filter(|l| l.starts_with("udp ") && l.contains("dst=10.0.2.2 ")).count();
    assert!(listed > 30_000, "{listed} of {n}");
    let flush = w.ask(&["conntrack", "many", "-F"]);
    assert_eq!(flush.code, 0, "{flush}");
    assert!(count() < 100, "{flush}");
    // On a busy machine packets wait as well.
    let waited = waited(sandbox.worker()) + waited(ping.pid()) - before;
    ping.signal("INT");
    wait_until("ping has summed up", Duration::from_secs(5), || ping.output().contains("rtt "));
    let out = ping.output();
    let number = |before: &str, after: &str| {
        let text = out.split(after).next()?.rsplit(before).next()?;
        text.trim().parse::<u64>().ok()
    };
    let (sent, received) = (number("\n", " packets transmitted"), number(", ", " received"));
    // The end comes while some are on their way.
    let flying = out.split("pipe ").nth(1).map_or(1, |n| n.trim().parse().expect("a number"));
    assert!(sent.expect("sent") - received.expect("received") <= flying, "{out}");
    let longest = out.lines().find_map(|l| l.strip_prefix("rtt ")?.split('/').nth(5)?.parse::<f64>().ok()).expect("times");
    assert!(longest < 200.0 + waited, "{waited} ms without a processor\n{out}");
}

/// Milliseconds for which a process was ready and had no processor, as far as the kernel says.
fn waited(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1e6
}
