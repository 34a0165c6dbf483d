//! The behaviours of gVisor's iptables tests, on rules as text, for both families. What needs a whole stack (sockets, loopback,
//! original destinations) is tested there.

use crate::kit::*;
use hibernet_netstack::DropReason;
use hibernet_netstack::conntrack::{Conn, CtTuple, Proto, Status, Track};
use hibernet_netstack::edge::LinkId;
use hibernet_netstack::iptables::text::parse;
use hibernet_netstack::iptables::{Family::*, Hook::*, TableName::*, *};
use hibernet_netstack::skb::{Owner, Skb};
use hibernet_netstack::time::Time;
use std::sync::{Arc, Mutex};

/// `{peer}` and `{me}` stand for the addresses of a packet's sender and receiver, `{other}` for another one.
fn text(v6: bool, rules: &str) -> Result<Ruleset, String> {
    let (peer, me, other) = if v6 { ("fd00::1", "fd00::2", "fd00::3") } else { ("10.0.0.1", "10.0.0.2", "10.0.0.3") };
    let rules = rules.replace("{peer}", peer).replace("{me}", me).replace("{other}", other);
    parse(if v6 { V6 } else { V4 }, &rules).map_err(|e| e.to_string())
}

/// Rules of one table.
fn table(v6: bool, name: &str, lines: &[&str]) -> Bench {
    let all = format!("*{name}\n{}\nCOMMIT\n", lines.join("\n"));
    Bench::new(&text(v6, &all).unwrap_or_else(|e| panic!("{e} in\n{all}")))
}

/// Makes a packet, of IPv6 or not.
type Make = fn(bool) -> Skb<'static>;

/// Packets and whether each passes a hook of filter.
fn filter(hook: Hook, lines: &[&str], packets: &[(Make, bool)]) {
    for v6 in [false, true] {
        let mut b = table(v6, "filter", lines);
        for (i, (make, passes)) in packets.iter().enumerate() {
            let mut skb = make(v6);
            match hook {
                Output => skb.output = Some(Iface::Link(LinkId(0))),
                _ => skb.input = Some(Iface::Link(LinkId(0))),
            }
            let o = b.run(Filter, hook, &mut skb);
            assert_eq!(o == Outcome::Accept, *passes, "packet {i}, IPv6 {v6}: {o:?} by\n{}", lines.join("\n"));
        }
    }
}

/// What is refused at one step or the other: when it is read, or when it is compiled.
fn refused(lines: &[&str]) -> bool {
    let all = format!("*filter\n{}\nCOMMIT\n", lines.join("\n"));
    let refused = |v6| text(v6, &all).map_or(true, |r| Program::compile(&r).is_err());
    assert_eq!(refused(false), refused(true));
    refused(false)
}

fn udp80(v6: bool) -> Skb<'static> {
    udp(v6, 5000, 80)
}

fn udp81(v6: bool) -> Skb<'static> {
    udp(v6, 5000, 81)
}

fn tcp80(v6: bool) -> Skb<'static> {
    tcp(v6, 5000, 80, 2)
}

fn tcp81(v6: bool) -> Skb<'static> {
    tcp(v6, 5000, 81, 2)
}

fn tcp_from_80(v6: bool) -> Skb<'static> {
    tcp(v6, 80, 5000, 2)
}

fn ping(v6: bool) -> Skb<'static> {
    icmp(v6, if v6 { 128 } else { 8 }, 0)
}

#[test]
fn filter_input_drop_udp_only_udp_and_ports() {
    filter(Input, &["-A INPUT -p udp -j DROP"], &[(udp80, false), (udp81, false), (tcp80, true), (ping, true)]);
    filter(Input, &["-A INPUT -p udp -m udp --dport 80 -j DROP"], &[(udp80, false), (udp81, true), (tcp80, true)]);
    filter(Input, &["-A INPUT -p tcp -m tcp --dport 80 -j DROP"], &[(tcp80, false), (tcp81, true), (udp80, true)]);
    filter(Input, &["-A INPUT -p tcp -m tcp --sport 80 -j DROP"], &[(tcp_from_80, false), (tcp80, true)]);
    filter(Input, &["-A INPUT -j DROP"], &[(udp80, false), (tcp80, false), (ping, false)]);
}

#[test]
fn filter_input_multi_udp_rules_come_back_as_they_were() {
    let lines =
        ["-A INPUT -p udp -m udp --dport 80 -j DROP", "-A INPUT -p udp -m udp --dport 81 -j ACCEPT", "-A INPUT -p udp -j DROP"];
    filter(Input, &lines, &[(udp80, false), (udp81, true), (|v6| udp(v6, 1, 82), false)]);
    for v6 in [false, true] {
        let b = table(v6, "filter", &lines);
        let given = text(v6, &format!("*filter\n{}\nCOMMIT\n", lines.join("\n"))).unwrap();
        assert_eq!(b.program.ruleset([&b.counters]), given);
    }
}

#[test]
fn filter_input_require_protocol() {
    assert!(refused(&["-A INPUT -m udp --dport 80 -j DROP"]));
    assert!(refused(&["-A INPUT -m tcp --dport 80 -j DROP"]));
    assert!(refused(&["-A INPUT -m multiport --dports 80 -j DROP"]));
}

#[test]
fn filter_input_default_policies_and_return_underflow() {
    filter(Input, &[":INPUT ACCEPT [0:0]"], &[(udp80, true)]);
    filter(Input, &[":INPUT DROP [0:0]"], &[(udp80, false)]);
    filter(
        Input,
        &[":INPUT ACCEPT [0:0]", "-A INPUT -p tcp -m tcp --dport 80 -j RETURN", "-A INPUT -j DROP"],
        &[(tcp80, true), (tcp81, false)],
    );
    filter(
        Input,
        &[":INPUT DROP [0:0]", "-A INPUT -p tcp -m tcp --dport 80 -j RETURN", "-A INPUT -j ACCEPT"],
        &[(tcp80, false), (tcp81, true)],
    );
}

#[test]
fn filter_input_user_chains_and_jumps() {
    filter(Input, &[":foochain - [0:0]"], &[(udp80, true)]);
    // JumpBasic, JumpReturn, JumpReturnDrop, JumpTwice.
    filter(
        Input,
        &[":foochain - [0:0]", "-A INPUT -j foochain", "-A foochain -p udp -j ACCEPT", "-A INPUT -j DROP"],
        &[(udp80, true), (tcp80, false)],
    );
    let returns = [
        ":foochain - [0:0]",
        ":INPUT ACCEPT [0:0]",
        "-A INPUT -p tcp -m tcp --dport 80 -j foochain",
        "-A foochain -j RETURN",
        "-A foochain -j DROP",
    ];
    filter(Input, &returns, &[(tcp80, true)]);
    let drops =
        [":foochain - [0:0]", "-A INPUT -p tcp -m tcp --dport 80 -j foochain", "-A INPUT -j DROP", "-A foochain -j RETURN"];
    filter(Input, &drops, &[(tcp80, false)]);
    let twice = [
        ":foochain - [0:0]",
        "-A INPUT -p udp -j foochain",
        "-A INPUT -p udp -j foochain",
        "-A foochain -j RETURN",
        "-A INPUT -p udp -j DROP",
    ];
    filter(Input, &twice, &[(udp80, false), (tcp80, true)]);
    assert!(refused(&["-A INPUT -j INPUT"]) && refused(&["-A INPUT -j OUTPUT"]), "JumpBuiltin");
}

#[test]
fn filter_input_addresses() {
    filter(Input, &["-A INPUT -d {me} -j ACCEPT", "-A INPUT -j DROP"], &[(udp80, true)]);
    filter(Input, &["-A INPUT -d {other} -j ACCEPT", "-A INPUT -j DROP"], &[(udp80, false)]);
    filter(Input, &["-A INPUT ! -d {other} -j ACCEPT", "-A INPUT -j DROP"], &[(udp80, true)]);
    filter(Input, &["-A INPUT ! -d {me} -j DROP"], &[(udp80, true)]);
    filter(Input, &["-A INPUT -s {peer} -j DROP"], &[(udp80, false)]);
    filter(Input, &["-A INPUT -s {other} -j DROP"], &[(udp80, true)]);
    filter(Input, &["-A INPUT ! -s {other} -j DROP"], &[(udp80, false)]);
    filter(Input, &["-A INPUT ! -s {peer} -j DROP"], &[(udp80, true)]);
}

#[test]
fn filter_interfaces() {
    for (hook, name, o) in [(Input, "INPUT", "-i"), (Output, "OUTPUT", "-o")] {
        let one = |test: &str, passes: bool| filter(hook, &[&format!("-A {name} {test} -j DROP")], &[(udp80, passes)]);
        one(&format!("{o} tap0"), false);
        one(&format!("{o} _INVALID_"), true);
        one(&format!("{o} t+"), false);
        one(&format!("{o} e+"), true);
        one(&format!("! {o} tap0"), true);
        one(&format!("! {o} _INVALID_"), false);
        one(&format!("! {o} t+"), true);
        let accept = format!("-A {name} {o} tap0 -j ACCEPT");
        filter(hook, &[&accept, &format!("-A {name} -j DROP")], &[(udp80, true)]);
    }
}

#[test]
fn filter_inverted_ports_and_multiport() {
    let dport = ["-A INPUT -p tcp -m tcp ! --dport 80 -j ACCEPT", "-A INPUT -j DROP"];
    filter(Input, &dport, &[(tcp80, false), (tcp81, true)]);
    filter(Input, &["-A INPUT -p tcp -m tcp ! --dport 80 -j DROP"], &[(tcp80, true), (tcp81, false)]);
    filter(
        Output,
        &["-A OUTPUT -p tcp -m tcp ! --sport 80 -j ACCEPT", "-A OUTPUT -j DROP"],
        &[(tcp_from_80, false), (tcp80, true)],
    );
    filter(Output, &["-A OUTPUT -p tcp -m tcp ! --sport 80 -j DROP"], &[(tcp_from_80, true), (tcp80, false)]);
    filter(Input, &["-A INPUT -p udp -m multiport --sports 0:65535 -j DROP"], &[(udp80, false), (tcp80, true)]);
    filter(Input, &["-A INPUT -p tcp -m multiport ! --dports 80 -j DROP"], &[(tcp80, true), (tcp81, false)]);
    filter(
        Output,
        &["-A OUTPUT -p tcp -m multiport ! --sports 80,90:95 -j ACCEPT", "-A OUTPUT -j DROP"],
        &[(tcp_from_80, false), (tcp80, true)],
    );
    filter(Output, &["-A OUTPUT -p tcp -m multiport --sports 80,90:95 -j DROP"], &[(tcp_from_80, false), (tcp80, true)]);
    filter(
        Output,
        &["-A OUTPUT -p tcp -m multiport ! --ports 80 -j ACCEPT", "-A OUTPUT -j DROP"],
        &[(tcp_from_80, false), (tcp80, false), (tcp81, true)],
    );
}

#[test]
fn filter_reject() {
    for v6 in [false, true] {
        let port = if v6 { RejectWith::Icmp6(4) } else { RejectWith::Icmp(3) };
        let mut b = table(
            v6,
            "filter",
            &["-A INPUT -p udp -j REJECT", "-A INPUT -p tcp -m tcp --dport 80 -j REJECT --reject-with tcp-reset"],
        );
        assert_eq!(b.run(Filter, Input, &mut udp80(v6)), Outcome::Reject(port), "RejectDefault");
        assert_eq!(b.run(Filter, Input, &mut ping(v6)), Outcome::Accept, "RejectDefaultUnmatched");
        assert_eq!(b.run(Filter, Input, &mut tcp80(v6)), Outcome::Reject(RejectWith::TcpReset));
        assert_eq!(b.run(Filter, Input, &mut tcp81(v6)), Outcome::Accept, "RejectTCPResetUnmatched");
    }
    let kinds = [
        (false, "icmp-net-unreachable", RejectWith::Icmp(0)),
        (false, "icmp-host-unreachable", RejectWith::Icmp(1)),
        (false, "icmp-port-unreachable", RejectWith::Icmp(3)),
        (false, "icmp-net-prohibited", RejectWith::Icmp(9)),
        (false, "icmp-host-prohibited", RejectWith::Icmp(10)),
        (false, "icmp-admin-prohibited", RejectWith::Icmp(13)),
        (true, "icmp6-no-route", RejectWith::Icmp6(0)),
        (true, "icmp6-adm-prohibited", RejectWith::Icmp6(1)),
        (true, "icmp6-addr-unreachable", RejectWith::Icmp6(3)),
        (true, "icmp6-port-unreachable", RejectWith::Icmp6(4)),
    ];
    for (v6, name, with) in kinds {
        let mut b = table(v6, "filter", &[&format!("-A FORWARD -j REJECT --reject-with {name}")]);
        assert_eq!(b.run(Filter, Forward, &mut udp80(v6)), Outcome::Reject(with), "{name}");
    }
}

#[test]
fn filter_output_ports_and_addresses() {
    filter(Output, &["-A OUTPUT -p tcp -m tcp --dport 80 -j DROP"], &[(tcp80, false), (tcp81, true)]);
    filter(Output, &["-A OUTPUT -p tcp -m tcp --sport 80 -j DROP"], &[(tcp_from_80, false), (tcp80, true)]);
    filter(Output, &["-A OUTPUT -d {me} -j ACCEPT", "-A OUTPUT -j DROP"], &[(udp80, true)]);
    filter(Output, &["-A OUTPUT ! -d {other} -j ACCEPT", "-A OUTPUT -j DROP"], &[(udp80, true)]);
    filter(Output, &["-A OUTPUT ! -d {me} -j ACCEPT", "-A OUTPUT -j DROP"], &[(udp80, false)]);
}

#[test]
fn filter_output_owner() {
    fn root(v6: bool) -> Skb<'static> {
        Skb { owner: Some(Owner { uid: 0, gid: 0 }), ..tcp80(v6) }
    }
    fn user(v6: bool) -> Skb<'static> {
        Skb { owner: Some(Owner { uid: 1000, gid: 1000 }), ..tcp80(v6) }
    }
    fn root_udp(v6: bool) -> Skb<'static> {
        Skb { owner: Some(Owner { uid: 0, gid: 0 }), ..udp80(v6) }
    }
    let rest = "-A OUTPUT -j DROP";
    filter(
        Output,
        &["-A OUTPUT -p tcp -m owner --uid-owner 0 -j ACCEPT", rest],
        &[(root, true), (user, false), (root_udp, false)],
    );
    filter(Output, &["-A OUTPUT -p tcp -m owner --uid-owner 0 -j DROP"], &[(root, false), (user, true)]);
    filter(Output, &["-A OUTPUT -p udp -m owner --uid-owner 0 -j DROP"], &[(root_udp, false), (root, true)]);
    filter(Output, &["-A OUTPUT -p tcp -m owner --gid-owner 0 -j ACCEPT", rest], &[(root, true), (user, false)]);
    filter(Output, &["-A OUTPUT -p tcp -m owner --gid-owner 0 -j DROP"], &[(root, false), (user, true)]);
    filter(Output, &["-A OUTPUT -p tcp -m owner ! --uid-owner 0 -j DROP"], &[(root, true), (user, false)]);
    filter(Output, &["-A OUTPUT -p tcp -m owner ! --gid-owner 0 -j DROP"], &[(root, true), (user, false)]);
    filter(Output, &["-A OUTPUT -p tcp -m owner ! --uid-owner 0 ! --gid-owner 0 -j DROP"], &[(root, true), (user, false)]);
    // OwnerNilAccept: a segment of nobody's (a reset) is no owner's; OwnerFail: an owner must be named.
    filter(Output, &["-A OUTPUT -p tcp -m owner --uid-owner 0 -j DROP"], &[(tcp80, true)]);
    assert!(refused(&["-A OUTPUT -p tcp -m owner -j DROP"]));
    assert!(refused(&["-A INPUT -p tcp -m owner --uid-owner 0 -j DROP"]));
}

/// A new connection's packet.
fn new(mut skb: Skb<'static>) -> Skb<'static> {
    let orig = CtTuple {
        src: skb.src.into(),
        dst: skb.dst.into(),
        sport: skb.sport,
        dport: skb.dport,
        zone: 0,
        proto: skb.protocol,
        v6: skb.is_v6(),
    };
    let reply = CtTuple { src: orig.dst, dst: orig.src, sport: orig.dport, dport: orig.sport, ..orig };
    let conn = Conn {
        tuples: [orig, reply],
        status: Status::default(),
        mark: 0,
        expires: Time::NEVER,
        proto: Proto::Generic,
        flow: None,
    };
    skb.track = Track::Fresh { conn, related: false, len: 0 };
    skb.input = Some(Iface::Link(LinkId(0)));
    skb.output = Some(Iface::Host0);
    skb
}

/// Where the replies of a new connection come from and go to, after a hook of nat.
fn replies(v6: bool, hook: Hook, line: &str, skb: Skb<'static>) -> ((String, u16), (String, u16)) {
    let mut b = table(v6, "nat", &[line]);
    let mut skb = new(skb);
    assert_eq!(b.run(Nat, hook, &mut skb), Outcome::Accept);
    let Track::Fresh { conn, .. } = skb.track else { unreachable!() };
    let r = conn.tuples[1];
    ((r.src_ip().to_string(), r.sport), (r.dst_ip().to_string(), r.dport))
}

#[test]
fn nat_redirect_dnat_and_snat() {
    for v6 in [false, true] {
        let (peer, me, other) = if v6 { ("fd00::1", "fd00::2", "fd00::3") } else { ("10.0.0.1", "10.0.0.2", "10.0.0.3") };
        let lo = if v6 { "::1" } else { "127.0.0.1" };
        let at = |a: &str, p| (a.to_owned(), p);
        let same = (at(me, 80), at(peer, 5000));
        for (hook, name, to) in [(PreRouting, "PREROUTING", me), (Output, "OUTPUT", lo)] {
            let r = |line: &str, skb| replies(v6, hook, &line.replace("HOOK", name), skb);
            assert_eq!(r("-A HOOK -p udp -j REDIRECT --to-ports 99", udp80(v6)).0, at(to, 99), "RedirectUDPPort");
            assert_eq!(r("-A HOOK -p tcp -j REDIRECT --to-ports 99", tcp80(v6)).0, at(to, 99), "RedirectTCPPort");
            assert_eq!(r("-A HOOK -p tcp -j REDIRECT --to-ports 99", udp80(v6)), same);
            assert_eq!(r("-A HOOK -p tcp -d {me} -j REDIRECT --to-ports 99", tcp80(v6)).0, at(to, 99), "RedirectIP");
            assert_eq!(r("-A HOOK -p tcp -d {other} -j REDIRECT --to-ports 99", tcp80(v6)), same, "DontRedirectIP");
            assert_eq!(r("-A HOOK -p tcp ! -d {other} -j REDIRECT --to-ports 99", tcp80(v6)).0, at(to, 99), "RedirectInvert");
            assert_eq!(r("-A HOOK -p udp -j ACCEPT", udp80(v6)), same, "AcceptAll");
            let bracket = if v6 { "[{other}]" } else { "{other}" };
            assert_eq!(r(&format!("-A HOOK -p tcp -j DNAT --to-destination {bracket}:99"), tcp80(v6)).0, at(other, 99), "DNAT");
            assert_eq!(r("-A HOOK -p tcp -j DNAT --to-destination {other}", tcp80(v6)).0, at(other, 80), "DNATAddrOnly");
            assert_eq!(r("-A HOOK -p tcp -j DNAT --to-destination :99", tcp80(v6)).0, at(me, 99), "DNATPortOnly");
        }
        let post = |line: &str, skb| replies(v6, PostRouting, line, skb);
        assert_eq!(post("-A POSTROUTING -p udp -j SNAT --to-source {other}", udp80(v6)).1, at(other, 5000), "SNATUDP");
        let port = if v6 { "[{other}]:99" } else { "{other}:99" };
        assert_eq!(post(&format!("-A POSTROUTING -p tcp -j SNAT --to-source {port}"), tcp80(v6)).1, at(other, 99), "SNATTCP");
        // Rules of one hook say nothing to packets at another.
        let mut b = table(v6, "nat", &["-A PREROUTING -p tcp -j REDIRECT --to-ports 99"]);
        let mut skb = new(tcp80(v6));
        assert_eq!(b.run(Nat, Output, &mut skb), Outcome::Accept);
        assert_eq!(skb.track, new(tcp80(v6)).track, "PreRedirectTCPOutgoing");
    }
    let redirect = "*nat\n-A PREROUTING -j REDIRECT --to-ports 99\nCOMMIT\n";
    assert!(text(false, redirect).map_or(true, |r| Program::compile(&r).is_err()), "RedirectRequiresProtocol");
}

#[test]
fn mark_matching_check_output() {
    for v6 in [false, true] {
        let lines = ["-A OUTPUT -m mark --mark 0x1/0xf -j DROP", "-A OUTPUT -m mark ! --mark 0x0 -j ACCEPT", "-A OUTPUT -j DROP"];
        let mut b = table(v6, "filter", &lines);
        for (mark, passes) in [(0, false), (1, false), (0x31, false), (2, true), (0x30, true)] {
            let o = b.run(Filter, Output, &mut Skb { mark, ..udp80(v6) });
            assert_eq!(o == Outcome::Accept, passes, "mark {mark:#x}");
        }
    }
}

/// Row 28: what asks for connections finds none while nothing was ever tracked.
#[test]
fn rules_that_ask_for_connections_run_on_a_table_that_was_never_used() {
    for v6 in [false, true] {
        let lines = [
            "-A INPUT -m conntrack --ctstate ESTABLISHED -j DROP",
            "-A INPUT -m connmark --mark 0x1 -j DROP",
            "-A INPUT -m conntrack --ctproto 6 -j DROP",
        ];
        let mut b = table(v6, "filter", &lines);
        assert_eq!(b.run(Filter, Input, &mut tcp80(v6)), Outcome::Accept);
        assert!(b.ct.is_empty());
    }
}

/// Row 29: a packet that is rejected is answered through the same rules, while others replace them.
#[test]
#[allow(clippy::disallowed_methods, reason = "threads of a test")]
fn rejects_go_on_while_tables_are_replaced() {
    const ROUNDS: usize = 2_000;
    let compile = |line: &str| Arc::new(Program::compile(&text(false, &format!("*filter\n{line}\nCOMMIT\n")).unwrap()).unwrap());
    let versions = [compile("-A INPUT -p udp -j REJECT"), compile("-A INPUT -p udp -j DROP")];
    let current = Mutex::new(Arc::clone(&versions[0]));
    let ct = hibernet_netstack::conntrack::Conntrack::new(Default::default(), hibernet_netstack::rng::Key(1, 2));
    std::thread::scope(|s| {
        s.spawn(|| {
            for v in versions.iter().cycle().take(ROUNDS) {
                *current.lock().unwrap() = Arc::clone(v);
            }
        });
        for _ in 0..2 {
            s.spawn(|| {
                let mut rng = hibernet_netstack::rng::Rng::new([1; 16]);
                let mut log = Lines::default();
                for _ in 0..ROUNDS {
                    let program = Arc::clone(&current.lock().unwrap());
                    let mut counters = CounterSet::new(&program);
                    let mut env = Env {
                        now: Time::ZERO,
                        rng: &mut rng,
                        ct: &ct,
                        addrs: &Addrs,
                        counters: &mut counters,
                        log: &mut log,
                        raw: RawHeaders::default(),
                        bulk: &NoBulk,
                        wall: None,
                    };
                    match program.run(Filter, Input, &mut udp80(false), &mut env) {
                        Outcome::Reject(_) => {
                            let answer = program.run(Filter, Output, &mut icmp(false, 3, 3), &mut env);
                            assert_eq!(answer, Outcome::Accept);
                        }
                        other => assert_eq!(other, Outcome::Drop(DropReason::Rule)),
                    }
                }
            });
        }
    });
}

/// What rules share, workers share: together they take no more than there is.
#[test]
#[allow(clippy::disallowed_methods, reason = "threads of a test")]
fn workers_share_limits_and_counters_of_nth() {
    let lines = "*filter\n-A INPUT -m limit --limit 1/hour --limit-burst 30 -j DROP\n-A INPUT -m statistic --mode nth --every 4 --packet 0 -j DROP\nCOMMIT\n";
    let program = Program::compile(&text(false, lines).unwrap()).unwrap();
    let ct = hibernet_netstack::conntrack::Conntrack::new(Default::default(), hibernet_netstack::rng::Key(1, 2));
    let worker = || {
        let mut rng = hibernet_netstack::rng::Rng::new([1; 16]);
        let mut log = Lines::default();
        let mut counters = CounterSet::new(&program);
        let mut env = Env {
            now: Time::ZERO,
            rng: &mut rng,
            ct: &ct,
            addrs: &Addrs,
            counters: &mut counters,
            log: &mut log,
            raw: RawHeaders::default(),
            bulk: &NoBulk,
            wall: None,
        };
        for _ in 0..10_000 {
            program.run(Filter, Input, &mut udp80(false), &mut env);
        }
        counters
    };
    let counters = std::thread::scope(|s| {
        let workers = [s.spawn(worker), s.spawn(worker), s.spawn(worker)];
        workers.map(|w| w.join().unwrap())
    });
    let rules = program.ruleset(&counters);
    let counted: Vec<_> = rules.tables[0].chains[0].rules.iter().map(|r| r.counters.packets).collect();
    assert_eq!(counted, [30, (30_000_u64 - 30).div_ceil(4)]);
}

/// The recipe for an agent: nothing but DNS and one host.
#[test]
fn default_deny_egress_allows_dns_and_one_host() {
    let lines = [
        ":FORWARD DROP [0:0]",
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -p udp -m udp --dport 53 -j ACCEPT",
        "-A FORWARD -d {me} -p tcp -m tcp --dport 80 -m conntrack --ctstate NEW -j ACCEPT",
        "-A FORWARD -m limit --limit 2/sec -j LOG --log-prefix \"denied: \"",
    ];
    for v6 in [false, true] {
        let mut b = table(v6, "filter", &lines);
        for (skb, passes) in
            [(udp(v6, 999, 53), true), (udp80(v6), false), (tcp80(v6), true), (tcp81(v6), false), (ping(v6), false)]
        {
            assert_eq!(b.run(Filter, Forward, &mut new(skb)) == Outcome::Accept, passes);
        }
        assert_eq!(b.run(Filter, Forward, &mut tcp80(v6)), Outcome::Drop(DropReason::Policy), "INVALID is not NEW");
        assert_eq!(b.counts("FORWARD"), [0, 1, 1, 4, 4]);
        assert!(b.log.0.len() == 4 && b.log.0[0].starts_with("denied: IN=tap0 OUT=host0 MAC= SRC="), "{:?}", b.log.0);
    }
}
