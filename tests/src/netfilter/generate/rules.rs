//! Random rules, biased to what the packets look like.

use super::{DPORTS, SPORTS, UNTRACKED};
use crate::SplitMix;
use crate::netfilter::{Side, beyond, elsewhere, node, router, second};
use core::fmt::Write;
use core::net::IpAddr;

/// A hook's chain: which tests its place forbids.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    PreRouting,
    Input,
    Forward,
    Output,
    PostRouting,
    /// A user's chain, called from several.
    User,
}

pub(super) struct Writer<'a> {
    pub(super) r: &'a mut SplitMix,
    pub(super) v6: bool,
    pub(super) has_sets: bool,
    /// What names of tables that rules share end in.
    pub(super) names: u64,
    /// Packets of SCTP are not tracked, so there are some.
    sctp: bool,
    out: String,
}

/// A ruleset as text for iptables-restore.
pub(super) fn rules(r: &mut SplitMix, v6: bool) -> String {
    let (has_sets, sctp, names) = (r.chance(15), r.chance(8), r.u64());
    let mut w = Writer { r, v6, has_sets, names, sctp, out: String::new() };
    if has_sets {
        w.out = w.sets();
    }
    if sctp || w.r.chance(35) {
        w.table("raw", &[Place::PreRouting, Place::Output]);
    }
    if w.r.chance(45) {
        w.table("mangle", &[Place::PreRouting, Place::Input, Place::Forward, Place::Output, Place::PostRouting]);
    }
    if w.r.chance(65) {
        w.table("nat", &[Place::PreRouting, Place::Input, Place::Output, Place::PostRouting]);
    }
    if w.r.chance(95) {
        w.table("filter", &[Place::Input, Place::Forward, Place::Output]);
    }
    if w.r.chance(15) {
        w.table("security", &[Place::Input, Place::Forward, Place::Output]);
    }
    w.out
}

/// Name of a built-in chain.
fn name(place: Place) -> &'static str {
    match place {
        Place::PreRouting => "PREROUTING",
        Place::Input => "INPUT",
        Place::Forward => "FORWARD",
        Place::Output => "OUTPUT",
        Place::PostRouting => "POSTROUTING",
        Place::User => "USER",
    }
}

impl Writer<'_> {
    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.r.below(of.len() as u64) as usize]
    }

    pub(super) fn not(&mut self, percent: u64) -> &'static str {
        if self.r.chance(percent) { "! " } else { "" }
    }

    fn table(&mut self, table: &str, places: &[Place]) {
        writeln!(self.out, "*{table}").ok();
        for place in places {
            let strict = if table == "filter" { 12 } else { 2 };
            let policy = if table != "nat" && self.r.chance(strict) { "DROP" } else { "ACCEPT" };
            let counters = if self.r.chance(20) { "[11:1100]" } else { "[0:0]" };
            writeln!(self.out, ":{} {policy} {counters}", name(*place)).ok();
        }
        // Chains of the nat table belong to one hook, as their targets do: those of even number to PREROUTING.
        let users = self.r.below(5) as usize;
        for i in 0..users {
            writeln!(self.out, ":U{i} - [0:0]").ok();
        }
        if table == "raw" && self.sctp {
            writeln!(self.out, "{UNTRACKED}").ok();
        }
        for i in (0..users).rev() {
            let n = self.r.below(4);
            for _ in 0..n {
                let nat = if i % 2 == 0 { Place::PreRouting } else { Place::PostRouting };
                self.rule(table, &format!("U{i}"), Place::User, nat, i + 1, users);
            }
        }
        for place in places {
            let n = self.r.below(if table == "filter" { 7 } else { 4 });
            for _ in 0..n {
                self.rule(table, name(*place), *place, *place, 0, users);
            }
        }
        self.out += "COMMIT\n";
    }

    /// A rule of a chain; jumps go to chains `from..users`.
    fn rule(&mut self, table: &str, chain: &str, place: Place, nat: Place, from: usize, users: usize) {
        let counters = if self.r.chance(10) { "[3:333] " } else { "" };
        let mut line = format!("{counters}-A {chain}");
        let mut tests = 0;
        for (dir, percent) in [("-s", 18), ("-d", 22)] {
            if self.r.chance(percent) {
                let not = self.not(25);
                let a = self.address();
                write!(line, " {not}{dir} {a}").ok();
                tests += 1;
            }
        }
        if !matches!(place, Place::Output | Place::PostRouting) && self.r.chance(18) {
            let (not, i) = (self.not(20), self.pick(&["tap0", "tap1", "tap+", "t+", "eth0"]));
            write!(line, " {not}-i {i}").ok();
            tests += 1;
        }
        if !matches!(place, Place::PreRouting | Place::Input) && self.r.chance(18) {
            let (not, o) = (self.not(20), self.pick(&["tap0", "tap1", "tap+", "lo"]));
            write!(line, " {not}-o {o}").ok();
            tests += 1;
        }
        let proto = if self.r.chance(50) {
            let not = self.not(10);
            let other = self.pick(&["50", "50", if self.v6 { "mh" } else { "ah" }, "ipcomp", "sctp"]);
            let p = self.pick(&["tcp", "tcp", "tcp", "udp", "udp", "udp", "icmp", "icmp", other]);
            let text = if p == "icmp" && self.v6 { "ipv6-icmp" } else { p };
            write!(line, " {not}-p {text}").ok();
            tests += 1;
            if not.is_empty() { p } else { "" }
        } else {
            ""
        };
        let matches = self.pick(&[0, 0, 1, 1, 1, 2]);
        for _ in 0..matches {
            if let Some(m) = self.matching(table, proto, place) {
                line += &m;
                tests += 1;
            }
        }
        let target = self.target(table, chain, place, nat, proto, from, users, tests);
        // Over IPv6 the kernel tells a node to redirect what goes back where it came from, and that cannot be switched off.
        let node = |side| node(side, true).to_string();
        match (self.v6 && place != Place::Output && target.contains("DNAT"), line.contains(" -i ")) {
            (true, true) => line += " -j ACCEPT",
            (true, false) if target.contains(&node(Side::Server)) => line += &format!(" -i tap0{target}"),
            (true, false) if target.contains(&node(Side::Client)) => line += &format!(" -i tap1{target}"),
            _ => line += &target,
        }
        self.out += &line;
        self.out.push('\n');
    }

    fn address(&mut self) -> String {
        let v6 = self.v6;
        let a: IpAddr = match self.r.below(8) {
            0 | 1 => node(Side::Client, v6),
            2 | 3 => node(Side::Server, v6),
            4 => router(Side::Client, v6),
            5 => router(Side::Server, v6),
            6 => second(v6),
            _ => elsewhere(1, v6),
        };
        match self.r.below(8) {
            0 => format!("{a}/{}", if v6 { 64 } else { 24 }),
            1 => format!("{a}/{}", self.r.below(if v6 { 129 } else { 33 })),
            _ => a.to_string(),
        }
    }

    fn port(&mut self, source: bool) -> u16 {
        let all: &[u16] = if source { &SPORTS } else { &DPORTS };
        self.pick(all)
    }

    fn range(&mut self, source: bool) -> String {
        let p = self.port(source);
        match self.r.below(6) {
            0 => format!("{p}:{}", p.saturating_add(self.r.below(500) as u16)),
            1 => format!(":{p}"),
            2 => format!("{p}:"),
            _ => p.to_string(),
        }
    }

    fn matching(&mut self, table: &str, proto: &str, place: Place) -> Option<String> {
        let early = matches!(place, Place::PreRouting | Place::Input | Place::Forward);
        let late = matches!(place, Place::Output | Place::PostRouting);
        if self.r.chance(30) {
            return Some(self.packet(proto, place));
        }
        let not = self.not(25);
        Some(match self.r.below(14) {
            0 | 1 if matches!(proto, "tcp" | "udp") => {
                let source = self.r.chance(30);
                let range = self.range(source);
                format!(" -m {proto} {not}--{} {range}", if source { "sport" } else { "dport" })
            }
            2 if proto == "tcp" => match self.r.below(4) {
                0 => format!(" -m tcp {not}--syn"),
                _ => {
                    let flags = ["SYN", "ACK", "FIN", "RST", "PSH", "SYN,ACK", "FIN,ACK", "ALL", "NONE"];
                    // iptables-save prints no mask of none, though it means that nothing matches.
                    let (mask, set) = (self.pick(&flags[..8]), self.pick(&flags));
                    format!(" -m tcp {not}--tcp-flags {mask} {set}")
                }
            },
            2 | 3 if proto == "icmp" => {
                let (name, option, types): (_, _, &[&str]) = if self.v6 {
                    ("icmp6", "icmpv6-type", &["128", "129", "1", "1/4", "3", "2"])
                } else {
                    ("icmp", "icmp-type", &["8", "0", "3", "3/3", "11", "any"])
                };
                let ty = self.pick(types);
                format!(" -m {name} {not}--{option} {ty}")
            }
            3 if matches!(proto, "tcp" | "udp") => {
                let which = self.pick(&["sports", "dports", "ports"]);
                let a = self.port(which == "sports");
                let b = self.port(which == "sports");
                format!(" -m multiport {not}--{which} {a},{b}:{}", b.saturating_add(100))
            }
            // Before tracking, a CT rule makes a packet look like one of a connection, to the rest of the table.
            4..=7 | 9 if table == "raw" => return None,
            4..=6 => {
                let states = ["NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED", "NEW,INVALID", "ESTABLISHED,RELATED"];
                let state = self.pick(&states);
                if self.r.chance(40) {
                    format!(" -m state {not}--state {state}")
                } else {
                    format!(" -m conntrack {not}--ctstate {state}")
                }
            }
            7 => {
                let mut m = String::from(" -m conntrack");
                let (c, s) = (node(Side::Client, self.v6), node(Side::Server, self.v6));
                match self.r.below(9) {
                    0 => write!(m, " {not}--ctstate {}", self.pick(&["SNAT", "DNAT", "NEW,DNAT", "SNAT,INVALID"])),
                    1 => write!(m, " {not}--ctorigsrc {c}"),
                    2 => write!(m, " {not}--ctreplsrc {s}"),
                    3 => write!(m, " {not}--ctorigdstport {}", self.port(false)),
                    4 if matches!(proto, "tcp" | "udp") => write!(m, " {not}--ctreplsrcport {}:{}", 80, 8080),
                    5 => write!(m, " {not}--ctstatus {}", self.pick(&["NONE", "SEEN_REPLY", "ASSURED", "CONFIRMED"])),
                    6 => write!(m, " --ctdir {}", self.pick(&["ORIGINAL", "REPLY"])),
                    // (Before that, the kernel compares a span of time with its clock.)
                    7 => write!(
                        m,
                        " --ctstatus CONFIRMED {not}--ctexpire {}",
                        self.pick(&["0:20", "20:45", "45:90", "90:200", "200:1000", "20:500000"])
                    ),
                    _ => write!(m, " {not}--ctproto {}", self.pick(&["6", "17", "50"])),
                }
                .ok();
                m
            }
            8 => format!(" -m mark {not}--mark {}", self.pick(&["0x0", "0x1", "0x10", "0x1/0x1", "0x0/0xf", "0x10/0xf0"])),
            9 => format!(" -m connmark {not}--mark {}", self.pick(&["0x0", "0x1", "0x0/0xf", "0x20/0xf0"])),
            10 => {
                let kind = self.pick(&["LOCAL", "UNICAST", "LOCAL,UNICAST", "MULTICAST"]);
                let which = self.pick(&["src", "dst"]);
                let limit = match self.r.below(6) {
                    0 if matches!(place, Place::PreRouting | Place::Input) => " --limit-iface-in",
                    0 if late => " --limit-iface-out",
                    _ => "",
                };
                format!(" -m addrtype {not}--{which}-type {kind}{limit}")
            }
            11 => match self.r.below(3) {
                0 => {
                    let burst = self.r.range(1, 9);
                    format!(" -m limit --limit 1/hour --limit-burst {burst}")
                }
                _ => {
                    let every = self.r.range(1, 5);
                    let packet = self.r.below(every);
                    format!(" -m statistic --mode nth {not}--every {every} --packet {packet}")
                }
            },
            12 if early => {
                let mac = self.pick(&["52:54:00:12:34:56", "52:54:00:12:34:57"]);
                format!(" -m mac {not}--mac-source {mac}")
            }
            12 if late => format!(" -m owner {not}{}", self.pick(&["--uid-owner 0", "--gid-owner 0", "--uid-owner 5-10"])),
            13 => {
                let which = self.pick(&["src", "dst"]);
                let range = if self.v6 {
                    self.pick(&[
                        "fd68:6962:6e65:7400::10-fd68:6962:6e65:7400::20",
                        "fd68:6962:6e65:7401::2-fd68:6962:6e65:7401::15",
                    ])
                } else {
                    self.pick(&["10.0.2.10-10.0.2.20", "10.0.3.2-10.0.3.15"])
                };
                format!(" -m iprange {not}--{which}-range {range}")
            }
            _ => return self.remembering(table, place),
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn target(
        &mut self,
        table: &str,
        chain: &str,
        place: Place,
        nat: Place,
        proto: &str,
        from: usize,
        users: usize,
        tests: u32,
    ) -> String {
        // A jump; in the nat table to a chain of the same hook only.
        if self.r.chance(22) {
            // REJECT in OUTPUT is between the router and itself: OUTPUT leads to chains without it only.
            let own = place == Place::Output || chain.ends_with(['1', '3']);
            let fits = |i: &usize| match table {
                "nat" => i.is_multiple_of(2) == (nat == Place::PreRouting),
                "filter" => !own || !i.is_multiple_of(2),
                "raw" => place != Place::Output,
                _ => true,
            };
            let may: Vec<usize> = (from..users).filter(fits).collect();
            let jump = table != "nat" || matches!(nat, Place::PreRouting | Place::PostRouting);
            if !may.is_empty() && jump {
                let to = self.pick(&may);
                let how = if self.r.chance(20) { "-g" } else { "-j" };
                return format!(" {how} U{to}");
            }
        }
        if self.r.chance(18) {
            return String::new();
        }
        if self.r.chance(20)
            && table != "nat"
            && let Some(target) = self.change_set()
        {
            return target;
        }
        if place == Place::User && self.r.chance(15) {
            return " -j RETURN".into();
        }
        match table {
            // Answers of the router to what is not tracked pass CT rules in OUTPUT by; ours do not.
            "raw" if place == Place::Output => " -j ACCEPT".into(),
            "raw" => match self.r.below(6) {
                0 => " -j CT --notrack".into(),
                1 => format!(" -j CT --zone {}", self.r.below(3)),
                // (Zones of one direction are compared in a scenario: the kernel lets them overlap, our table does not.)
                3 if tests > 2 => " -j DROP".into(),
                4 => " -j ACCEPT".into(),
                _ => String::new(),
            },
            // Of an IPv6 packet for itself, whose header rules changed, the kernel finds the checksum wrong (UDP, long).
            "mangle" if self.r.chance(35) && !(self.v6 && matches!(place, Place::PreRouting | Place::Input | Place::User)) => {
                self.change(proto, place)
            }
            "mangle" => match self.r.below(8) {
                0 | 1 => format!(" -j MARK --set-xmark {}", self.pick(&["0x1/0xffffffff", "0x10/0xf0", "0x1/0x0", "0x0/0xff"])),
                2 => format!(" -j CONNMARK --set-xmark {}", self.pick(&["0x1/0xffffffff", "0x20/0xf0", "0x2/0x0"])),
                3 => " -j CONNMARK --save-mark".into(),
                4 => " -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff".into(),
                5 if tests > 2 => " -j DROP".into(),
                _ => " -j ACCEPT".into(),
            },
            "nat" => self.translation(nat, proto),
            _ => match self.r.below(10) {
                0 | 1 if tests > 1 => " -j DROP".into(),
                2 | 3 if tests > 1 && table == "filter" && place != Place::Output && !chain.ends_with(['1', '3']) => {
                    self.reject(proto)
                }
                4 if self.r.chance(20) => " -j NFLOG --nflog-prefix \"some\" --nflog-group 7".into(),
                4 if self.r.chance(30) => " -j LOG --log-prefix \"some: \"".into(),
                5 => " -m comment --comment \"a comment\" -j ACCEPT".into(),
                _ => " -j ACCEPT".into(),
            },
        }
    }

    fn reject(&mut self, proto: &str) -> String {
        if proto == "tcp" && self.r.chance(60) {
            return " -j REJECT --reject-with tcp-reset".into();
        }
        let kind = if self.v6 {
            self.pick(&["icmp6-no-route", "icmp6-adm-prohibited", "icmp6-addr-unreachable", "icmp6-port-unreachable"])
        } else {
            self.pick(&["icmp-net-unreachable", "icmp-host-unreachable", "icmp-port-unreachable", "icmp-admin-prohibited"])
        };
        format!(" -j REJECT --reject-with {kind}")
    }

    fn colon(&self, a: IpAddr, ports: &str) -> String {
        if self.v6 { format!("[{a}]:{ports}") } else { format!("{a}:{ports}") }
    }

    fn translation(&mut self, nat: Place, proto: &str) -> String {
        let ported = matches!(proto, "tcp" | "udp");
        let extra = self.pick(&["", "", "", "", " --random", " --persistent"]);
        let v6 = self.v6;
        match nat {
            Place::PreRouting | Place::Output => {
                let to = if self.r.chance(80) { node(Side::Server, v6) } else { node(Side::Client, v6) };
                match self.r.below(6) {
                    0 if ported && nat == Place::PreRouting => {
                        let ports = self.pick(&["8080", "9000-9009"]);
                        format!(" -j REDIRECT --to-ports {ports}")
                    }
                    1 if ported => {
                        let ports = self.pick(&["80", "8080", "8000-8010"]);
                        format!(" -j DNAT --to-destination {}{extra}", self.colon(to, ports))
                    }
                    2 if ported => " -j DNAT --to-destination :8081".into(),
                    3 => " -j ACCEPT".into(),
                    // The router's own answers stay where they go.
                    _ if nat == Place::Output => " -j ACCEPT".into(),
                    _ => format!(" -j DNAT --to-destination {to}{extra}"),
                }
            }
            Place::PostRouting => match self.r.below(6) {
                0 => format!(" -j MASQUERADE{}", if extra == " --persistent" { "" } else { extra }),
                1 if ported => format!(" -j MASQUERADE --to-ports {}", self.pick(&["2000-2100", "1500", "300-350"])),
                2 => {
                    // (Errors to there would be redirected, see above.)
                    let far = if v6 { router(Side::Server, v6) } else { beyond(Side::Client, v6) };
                    let to = self.pick(&[router(Side::Server, v6), router(Side::Client, v6), far]);
                    format!(" -j SNAT --to-source {to}{extra}")
                }
                3 if ported => {
                    let to = router(Side::Server, v6);
                    format!(" -j SNAT --to-source {}{extra}", self.colon(to, "3000-3100"))
                }
                4 => " -j ACCEPT".into(),
                _ => format!(" -j MASQUERADE{}", self.pick(&["", " --random", " --random-fully"])),
            },
            _ => " -j ACCEPT".into(),
        }
    }
}
