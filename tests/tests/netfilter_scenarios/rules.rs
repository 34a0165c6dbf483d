//! Chains, matches and targets.

use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::netfilter::{Body, Quote, Scenario, Talk, elsewhere, node, router};
use hibernet_tests::wire::flags::{ACK, FIN, PSH, RST, SYN, URG};

use crate::{STATES, with_states};

/// Rules of the filter table, with names for the addresses.
fn filter(name: &str, v6: bool, rules: &str) -> Scenario {
    let text = rules
        .replace("{c}", &node(Client, v6).to_string())
        .replace("{s}", &node(Server, v6).to_string())
        .replace("{rc}", &router(Client, v6).to_string())
        .replace("{vip}", &elsewhere(1, v6).to_string())
        .replace("{icmp}", if v6 { "ipv6-icmp" } else { "icmp" });
    Scenario::new(name, v6, &format!("*filter\n{text}\nCOMMIT\n"))
}

/// A little of everything between the nodes, to the router, and from the server.
fn traffic(s: &mut Scenario) {
    for (i, dport) in [22, 53, 80, 443, 1000, 8080].into_iter().enumerate() {
        let mut t = Talk::new(s, Client, 40_000 + i as u16, dport);
        t.open(s);
        t.data(s, 0, 10);
        t.fin(s, 1);
        let u = s.across(Client, 5000 + i as u16, dport, Body::Udp(20));
        s.answer(u, Body::Udp(30));
        s.to(Client, 6000, router(Client, s.v6), dport, Body::Udp(5));
        s.to(Client, 6000, router(Client, s.v6), dport, s.syn(5));
    }
    let p = s.across(Client, 7, 0, s.ping(1));
    s.answer(p, s.pong(1));
    s.to(Client, 8, router(Client, s.v6), 0, s.ping(1));
    s.to(Client, 8, router(Server, s.v6), 0, s.ping(1));
    let u = s.across(Server, 5000, 53, Body::Udp(10));
    s.error(s.node(Client), u, s.port_unreachable(), None);
    let mut t = Talk::new(s, Server, 40_000, 80);
    t.open(s);
    s.send(Client, (s.node(Client), 0), (s.node(Server), 0), Body::Raw(50, vec![0; 20]));
}

fn chains(v6: bool) -> Vec<Scenario> {
    let texts = [
        (
            "policy-drop",
            ":FORWARD DROP [3:4]\n:INPUT DROP\n:OUTPUT ACCEPT [7:7]\n-A FORWARD -p tcp --dport 80 -j ACCEPT\n-A FORWARD -m state --state ESTABLISHED,RELATED -j ACCEPT\n-A INPUT -p udp --dport 53",
        ),
        ("policy-drop-output", ":OUTPUT DROP\n-A OUTPUT -p tcp -j ACCEPT"),
        ("return-underflow", ":FORWARD DROP\n-A FORWARD -p udp -j RETURN\n-A FORWARD -j ACCEPT"),
        (
            "jump-return",
            "-N A\n-N B\n-A FORWARD -p tcp -j A\n-A FORWARD -p udp -j B\n-A FORWARD -p {icmp} -j DROP\n-A A -p tcp --dport 80 -j RETURN\n-A A -p tcp --dport 22 -j B\n-A A -j DROP\n-A B --dst {s}\n-A B -s {c} -p tcp -j DROP",
        ),
        (
            "jump-twice",
            ":FORWARD DROP\n-N A\n-N B\n-A FORWARD -j A\n-A FORWARD -j A\n-A A -j B\n-A A -j B\n-A B -p tcp -m tcp --dport 80 -j ACCEPT\n-A B",
        ),
        (
            "goto",
            "-N A\n-N B\n-N C\n-A FORWARD -p tcp -g A\n-A FORWARD -j B\n-A FORWARD -p udp -j DROP\n-A A -p tcp --dport 80 -j RETURN\n-A A -p tcp --dport 22 -j DROP\n-A B -g C\n-A B -j DROP\n-A C -p {icmp} -j RETURN\n-A C -p udp --dport 53 -j ACCEPT",
        ),
        ("goto-policy", ":FORWARD DROP\n-N A\n-A FORWARD -p tcp -g A\n-A FORWARD -j ACCEPT\n-A A -p tcp --dport 80 -j ACCEPT"),
        (
            "deep",
            "-N A\n-N B\n-N C\n-N D\n-N E\n-A FORWARD -j A\n-A A -j B\n-A B -j C\n-A C -j D\n-A D -j E\n-A E -p udp -j RETURN\n-A E -p tcp --dport 443 -j DROP\n-A D\n-A C -p udp --dport 443 -j DROP\n-A A",
        ),
        ("counters", "[5:500] -A FORWARD -p tcp\n[7:700] -A FORWARD -p tcp -j ACCEPT\n-A FORWARD\n[1:1] -A INPUT -j ACCEPT"),
        (
            "addresses",
            "-A FORWARD -s {c}\n-A FORWARD ! -s {c}\n-A FORWARD -d {s}\n-A FORWARD ! -d {s} -j DROP\n-A INPUT -d {rc} -j ACCEPT\n-A INPUT -j DROP",
        ),
        (
            "interfaces",
            "-A FORWARD -i tap0 -o tap1\n-A FORWARD -i tap1 -o tap0\n-A FORWARD ! -i tap0\n-A FORWARD ! -o tap0\n-A FORWARD -i tap+\n-A FORWARD -i tap -j DROP\n-A FORWARD -o ta+\n-A FORWARD -i lo -j DROP\n-A INPUT -i tap0\n-A INPUT ! -i tap+ -j DROP\n-A OUTPUT -o tap0\n-A OUTPUT -o tap1\n-A FORWARD -o tap0 -p udp -j DROP",
        ),
        (
            "protocols",
            "-A FORWARD -p tcp\n-A FORWARD -p udp\n-A FORWARD ! -p tcp\n-A FORWARD -p 50\n-A FORWARD -p {icmp}\n-A FORWARD ! -p udp -m comment --comment \"all but \\\"udp\\\"\"\n-A OUTPUT -p {icmp}\n-A OUTPUT -p tcp -j DROP",
        ),
        ("drop-all", "-A INPUT -j DROP\n-A FORWARD -j DROP\n-A OUTPUT -j DROP"),
        (
            "stateful",
            ":FORWARD DROP\n:INPUT DROP\n-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n-A FORWARD -i tap0 -m conntrack --ctstate NEW -p tcp -m multiport --dports 80,443 -j ACCEPT\n-A FORWARD -i tap0 -m state --state NEW -p udp --dport 53 -j ACCEPT\n-A FORWARD -m conntrack ! --ctstate INVALID -j REJECT",
        ),
    ];
    let mut all: Vec<Scenario> = Vec::new();
    for (name, text) in texts {
        let mut s = filter(&format!("rules-{name}"), v6, text);
        traffic(&mut s);
        if name == "drop-all" {
            s.silent = true;
        }
        all.push(s);
    }
    all
}

fn matches(v6: bool) -> Vec<Scenario> {
    let mut all: Vec<Scenario> = Vec::new();
    let (net, range) = if v6 {
        ("fd68:6962:6e65:7400::/64", "fd68:6962:6e65:7400::10-fd68:6962:6e65:7400::15")
    } else {
        ("10.0.2.0/24", "10.0.2.10-10.0.2.15")
    };
    let texts = [
        ("ports", "-A FORWARD -p tcp --dport 80\n-A FORWARD -p tcp --dport 80:443\n-A FORWARD -p tcp ! --dport 80:443\n-A FORWARD -p tcp --sport 40000:\n-A FORWARD -p tcp --sport :40002\n-A FORWARD -p udp --dport 53\n-A FORWARD -p udp ! --sport 5000:5002 -j DROP\n-A INPUT -p udp --dport 80:1000 -j DROP\n-A OUTPUT -p tcp --sport 22 -j DROP".to_owned()),
        ("multiport", "-A FORWARD -p tcp -m multiport --dports 22,80,443:1000\n-A FORWARD -p tcp -m multiport --sports 40000:40002,22\n-A FORWARD -p tcp -m multiport --ports 80,8080\n-A FORWARD -p udp -m multiport ! --dports 53,80\n-A FORWARD -p udp -m multiport ! --ports 5000:5003 -j DROP\n-A INPUT -p tcp -m multiport --dports 0:65535 -j DROP".to_owned()),
        ("syn", "-A FORWARD -p tcp --syn\n-A FORWARD -p tcp ! --syn\n-A FORWARD -p tcp --tcp-flags ALL SYN,ACK\n-A FORWARD -p tcp --tcp-flags FIN,RST FIN\n-A FORWARD -p tcp ! --tcp-flags PSH,ACK PSH,ACK\n-A FORWARD -p tcp --tcp-flags ALL NONE -j DROP\n-A FORWARD -p tcp --tcp-option 2\n-A FORWARD -p tcp ! --tcp-option 2\n-A INPUT -p tcp --syn -j DROP".to_owned()),
        ("iprange", format!("-A FORWARD -m iprange --src-range {range}\n-A FORWARD -m iprange ! --src-range {range}\n-A FORWARD -m iprange --src-range {range} ! --dst-range {range}\n-A FORWARD -m iprange --dst-range {range} -p udp -j DROP")),
        ("net", format!("-A FORWARD -s {net}\n-A FORWARD -d {net}\n-A FORWARD ! -s {net} -p udp -j DROP\n-A INPUT -s {net} -d {net}\n-A INPUT ! -d {net} -j DROP")),
        ("mac", "-A FORWARD -m mac --mac-source 52:54:00:12:34:56\n-A FORWARD -m mac ! --mac-source 52:54:00:12:34:56\n-A INPUT -m mac --mac-source 52:54:00:12:34:57 -j DROP\n-A INPUT -m mac --mac-source 52:54:00:12:34:56\n-A FORWARD -m mac --mac-source 52:54:00:12:34:57 -p udp -j DROP".to_owned()),
        ("limit", "-A FORWARD -p tcp -m limit --limit 1/hour --limit-burst 7\n-A FORWARD -p udp -m limit --limit 2/day --limit-burst 3 -j DROP\n-A FORWARD -m limit --limit 1/minute\n-A INPUT -m limit --limit 3/hour --limit-burst 1 -j ACCEPT\n-A INPUT -p udp -j DROP".to_owned()),
        ("statistic", "-A FORWARD -m statistic --mode nth --every 3 --packet 0\n-A FORWARD -m statistic --mode nth --every 4 --packet 3 -j DROP\n-A FORWARD -m statistic --mode nth ! --every 2 --packet 1\n-A INPUT -m statistic --mode nth --every 2 --packet 0 -j DROP\n-A FORWARD -m statistic --mode random --probability 1.0\n-A FORWARD -m statistic --mode random ! --probability 1.0 -j DROP\n-A FORWARD -m statistic --mode random --probability 0 -j DROP".to_owned()),
        ("owner", "-A OUTPUT -m owner --uid-owner 0\n-A OUTPUT -m owner ! --uid-owner 0\n-A OUTPUT -m owner --gid-owner 0\n-A OUTPUT -p tcp -m owner --uid-owner 1-100 -j DROP".to_owned()),
        ("conntrack-fields", "-A FORWARD -m conntrack --ctproto 6\n-A FORWARD -m conntrack ! --ctproto 6\n-A FORWARD -m conntrack --ctorigsrc {c}\n-A FORWARD -m conntrack ! --ctorigdst {s}\n-A FORWARD -m conntrack --ctreplsrc {s} --ctrepldst {c}\n-A FORWARD -m conntrack --ctorigdstport 80:443\n-A FORWARD -m conntrack --ctorigsrcport 40000\n-A FORWARD -m conntrack ! --ctreplsrcport 80\n-A FORWARD -m conntrack --ctrepldstport 40000:40002 --ctdir REPLY\n-A FORWARD -m conntrack --ctstatus SEEN_REPLY,ASSURED\n-A FORWARD -m conntrack ! --ctstatus ASSURED\n-A FORWARD -m conntrack --ctstatus NONE\n-A FORWARD -m conntrack --ctstatus CONFIRMED --ctexpire 25:130\n-A FORWARD -m conntrack --ctstatus CONFIRMED ! --ctexpire 100:500000\n-A FORWARD -m conntrack --ctdir ORIGINAL --ctstate NEW,ESTABLISHED -p udp --dport 1000 -j DROP".to_owned()),
        ("addrtype", "-A FORWARD -m addrtype --dst-type LOCAL\n-A FORWARD -m addrtype --dst-type UNICAST\n-A FORWARD -m addrtype ! --src-type LOCAL\n-A FORWARD -m addrtype --src-type UNICAST --dst-type UNICAST\n-A INPUT -m addrtype --dst-type LOCAL\n-A INPUT -m addrtype --dst-type LOCAL --limit-iface-in\n-A INPUT -m addrtype ! --dst-type LOCAL --limit-iface-in -j DROP\n-A OUTPUT -m addrtype --src-type LOCAL\n-A OUTPUT -m addrtype --src-type LOCAL --limit-iface-out\n-A OUTPUT -m addrtype --dst-type UNICAST -p udp -j DROP".to_owned()),
        ("icmp-types", if v6 {
            "-A FORWARD -p ipv6-icmp -m icmp6 --icmpv6-type echo-request\n-A FORWARD -p ipv6-icmp -m icmp6 ! --icmpv6-type 128\n-A FORWARD -p ipv6-icmp -m icmp6 --icmpv6-type 1/4\n-A FORWARD -p ipv6-icmp -m icmp6 --icmpv6-type destination-unreachable -j DROP\n-A OUTPUT -p ipv6-icmp -m icmp6 --icmpv6-type port-unreachable -j DROP"
        } else {
            "-A FORWARD -p icmp -m icmp --icmp-type echo-request\n-A FORWARD -p icmp -m icmp ! --icmp-type 8\n-A FORWARD -p icmp -m icmp --icmp-type any\n-A FORWARD -p icmp -m icmp --icmp-type 3/3\n-A FORWARD -p icmp -m icmp --icmp-type destination-unreachable -j DROP\n-A OUTPUT -p icmp -m icmp --icmp-type port-unreachable -j DROP"
        }.to_owned()),
    ];
    for (name, text) in texts {
        let mut s = filter(&format!("match-{name}"), v6, &text);
        traffic(&mut s);
        all.push(s);
    }
    if !v6 {
        // Not a prefix.
        let mut s = filter(
            "match-mask",
            v6,
            "-A FORWARD -s 10.0.0.15/255.0.0.255\n-A FORWARD -d 0.0.3.0/0.0.255.0 -j DROP\n-A FORWARD ! -s 0.0.0.14/0.0.0.255",
        );
        traffic(&mut s);
        all.push(s);
        let mut s = filter("match-fragment", v6, "-A FORWARD -f -j DROP\n-A FORWARD ! -f\n-A FORWARD -m conntrack --ctstate NEW");
        traffic(&mut s);
        let u = s.across(Client, 9, 99, Body::Udp(600));
        s.ip(|ip| ip.pieces = Some(400));
        let _ = u;
        all.push(s);
    }

    let mut s = filter(
        "match-flags",
        v6,
        "-A FORWARD -p tcp --tcp-flags SYN,FIN SYN,FIN\n-A FORWARD -p tcp --tcp-flags ALL NONE\n-A FORWARD -p tcp --tcp-flags ALL FIN,PSH,URG\n-A FORWARD -p tcp --tcp-flags URG URG\n-A FORWARD -p tcp ! --tcp-flags ACK ACK -j DROP",
    );
    for flags in 0..64 {
        let body = s.tcp(flags, 5, 6, 3);
        s.across(Client, 4000, 80, body);
    }
    all.push(s);

    all
}

fn rejects(v6: bool) -> Vec<Scenario> {
    let kinds: &[&str] = if v6 {
        &[
            "icmp6-no-route",
            "icmp6-adm-prohibited",
            "icmp6-addr-unreachable",
            "icmp6-port-unreachable",
            "icmp6-policy-fail",
            "icmp6-reject-route",
            "tcp-reset",
        ]
    } else {
        &[
            "icmp-net-unreachable",
            "icmp-host-unreachable",
            "icmp-proto-unreachable",
            "icmp-port-unreachable",
            "icmp-net-prohibited",
            "icmp-host-prohibited",
            "icmp-admin-prohibited",
            "tcp-reset",
        ]
    };
    let mut all = Vec::new();
    for kind in kinds {
        let only = if *kind == "tcp-reset" { "-p tcp" } else { "" };
        let rules = format!(
            "*filter\n-A INPUT -i tap0 {only} -j REJECT --reject-with {kind}\n-A FORWARD -i tap0 {only} -j REJECT --reject-with {kind}\n-A OUTPUT -m conntrack --ctstate RELATED\n-A OUTPUT -m conntrack --ctstate NEW\n-A OUTPUT -m conntrack --ctstate ESTABLISHED\n-A OUTPUT -m conntrack --ctstate INVALID\n-A OUTPUT\nCOMMIT\n"
        );
        let mut s = Scenario::new(&format!("reject-{kind}"), v6, &rules);
        for flags in [SYN, ACK, PSH | ACK, FIN | ACK, RST, RST | ACK, SYN | ACK, FIN, 0] {
            let data = if flags & PSH != 0 { 40 } else { 0 };
            for dst in [node(Server, v6), router(Client, v6)] {
                let body = s.tcp(flags, 1000, 2000, data);
                s.to(Client, 4000 + u16::from(flags), dst, 80, body);
            }
        }
        s.across(Client, 4000, 80, Body::Broken(Box::new(s.syn(1)), 3));
        s.across(Client, 4000, 53, Body::Udp(20));
        s.across(Client, 4000, 53, Body::Udp(1400));
        s.across(Client, 4000, 53, Body::Broken(Box::new(Body::Udp(20)), 1));
        s.to(Client, 4000, router(Client, v6), 53, Body::Udp(20));
        let p = s.across(Client, 4, 0, s.ping(1));
        s.to(Client, 4, router(Client, v6), 0, s.ping(1));
        let (ty, code) = s.port_unreachable();
        s.to(Client, 0, node(Server, v6), 0, Body::Error { ty, code, rest: 0, quote: Quote::Sent(p), len: None });
        s.send(Client, (s.node(Client), 0), (s.node(Server), 0), Body::Raw(50, vec![0; 20]));
        s.across(Server, 4000, 53, Body::Udp(20));
        s.check();
        all.push(s);
    }

    let mut s = filter(
        "reject-established",
        v6,
        "-A FORWARD -p tcp --dport 80 -m conntrack --ctstate ESTABLISHED -m tcp --tcp-flags PSH PSH -j REJECT --reject-with tcp-reset\n-A FORWARD -p udp --sport 53 -j REJECT\n-A OUTPUT -m state --state ESTABLISHED,RELATED\n-A OUTPUT",
    );
    let mut t = Talk::new(&s, Client, 4000, 80);
    t.open(&mut s);
    t.data(&mut s, 0, 10);
    s.check();
    t.ack(&mut s, 1);
    let u = s.across(Client, 4000, 53, Body::Udp(20));
    s.answer(u, Body::Udp(20));
    all.push(s);

    let rules = format!(
        "*nat\n-A PREROUTING -d {} -j DNAT --to-destination {}\n-A POSTROUTING -o tap1 -j MASQUERADE\nCOMMIT\n*filter\n-A FORWARD -p tcp --dport 80 -j REJECT --reject-with tcp-reset\n-A FORWARD -p udp --dport 80 -j REJECT\n-A FORWARD -i tap1 -p udp -j REJECT\n-A OUTPUT -m state --state NEW\n-A OUTPUT -m state --state RELATED\nCOMMIT\n",
        elsewhere(1, v6),
        node(Server, v6)
    );
    let mut s = Scenario::new("reject-translated", v6, &rules);
    s.to(Client, 4000, elsewhere(1, v6), 80, s.syn(7));
    s.to(Client, 4000, elsewhere(1, v6), 80, Body::Udp(30));
    let u = s.to(Client, 4000, elsewhere(1, v6), 53, Body::Udp(30));
    s.answer(u, Body::Udp(30));
    let p = s.to(Client, 4, elsewhere(1, v6), 80, s.ping(1));
    s.answer(p, s.pong(1));
    all.push(s);
    all
}

fn targets(v6: bool) -> Vec<Scenario> {
    let mut all = Vec::new();
    let texts = [
        (
            "marks",
            "*mangle\n-A PREROUTING -i tap0 -j MARK --set-mark 0x10\n-A PREROUTING -p udp -j MARK --set-xmark 0x3/0xf\n-A FORWARD -p tcp -j MARK --or-mark 0x100\n-A FORWARD -m mark --mark 0x110 -j MARK --xor-mark 0xffff0000\n-A POSTROUTING -m mark --mark 0xffff0110\n-A POSTROUTING -m mark ! --mark 0x10/0xf0\n-A PREROUTING -p tcp -j MARK --and-mark 0xf0\n-A OUTPUT -m mark --mark 0\nCOMMIT\n*filter\n-A FORWARD -m mark --mark 0x13/0xff\n-A FORWARD -m mark --mark 0x3/0xf -p udp -j DROP\nCOMMIT\n",
        ),
        (
            "connmark",
            "*mangle\n-A PREROUTING -j CONNMARK --restore-mark\n-A PREROUTING -m mark --mark 0 -p tcp --dport 80 -j CONNMARK --set-mark 0x50\n-A PREROUTING -m connmark --mark 0x50\n-A FORWARD -p tcp --dport 443 -j MARK --set-mark 0x443\n-A FORWARD -p tcp --dport 443 -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xffff\n-A FORWARD -p udp -j CONNMARK --set-xmark 0xf00/0xff\n-A FORWARD -m connmark --mark 0x40/0xf0\n-A POSTROUTING -m connmark ! --mark 0\n-A PREROUTING -p udp -j CONNMARK --restore-mark --nfmask 0xf --ctmask 0xf00\n-A OUTPUT -j CONNMARK --restore-mark\n-A OUTPUT -m mark ! --mark 0\nCOMMIT\n",
        ),
        (
            "notrack",
            "*raw\n-A PREROUTING -p udp --dport 53 -j CT --notrack\n-A PREROUTING -p tcp --dport 443 -j NOTRACK\n-A OUTPUT -p tcp -j CT --notrack\nCOMMIT\n*filter\n-A FORWARD -m conntrack --ctstate UNTRACKED\n-A FORWARD -m conntrack --ctstate INVALID\n-A FORWARD -m conntrack --ctstate NEW\n-A FORWARD -m conntrack --ctstate ESTABLISHED\n-A FORWARD -m state --state UNTRACKED -p tcp -j DROP\n-A OUTPUT -m state --state UNTRACKED\nCOMMIT\n",
        ),
        (
            "zones",
            "*raw\n-A PREROUTING -i tap0 -p tcp -j CT --zone 7\n-A PREROUTING -i tap1 -p tcp -j CT --zone 7\n-A PREROUTING -i tap0 -p udp --dport 53 -j CT --zone 8\n-A PREROUTING -i tap0 -p udp --dport 80 -j CT --zone-orig 9\n-A PREROUTING -i tap0 -p udp --dport 443 -j CT --zone-reply 10\n-A PREROUTING -i tap1 -p udp --sport 443 -j CT --zone 10\nCOMMIT\n*filter\n-A FORWARD -m conntrack --ctstate NEW\n-A FORWARD -m conntrack --ctstate ESTABLISHED\n-A FORWARD -m conntrack --ctstate INVALID\nCOMMIT\n",
        ),
        (
            "log",
            "*filter\n-A FORWARD -p tcp --syn -j LOG --log-prefix \"new: \" --log-level 4 --log-tcp-sequence --log-tcp-options --log-ip-options\n-A FORWARD -m conntrack --ctstate INVALID -j LOG --log-level debug --log-macdecode\n-A OUTPUT -j LOG --log-uid\n-A FORWARD -p udp -j DROP\nCOMMIT\n",
        ),
        (
            "tables",
            "*raw\n-A PREROUTING -p tcp --dport 22 -j DROP\n-A OUTPUT -p tcp --sport 53 -j DROP\nCOMMIT\n*mangle\n-A PREROUTING -p tcp --dport 53 -j DROP\n-A INPUT -p udp --dport 22 -j DROP\n-A FORWARD -p tcp --dport 80 -j DROP\n-A OUTPUT -p tcp --sport 80 -j DROP\n-A POSTROUTING -p tcp --dport 443 -j DROP\nCOMMIT\n*nat\n-A PREROUTING -p tcp -j ACCEPT\n-A POSTROUTING\n-A INPUT\n-A OUTPUT\nCOMMIT\n*security\n-A FORWARD -p tcp --dport 1000 -j DROP\n-A INPUT -p udp --dport 80 -j DROP\n-A OUTPUT -p tcp --sport 443 -j DROP\nCOMMIT\n*filter\n-A FORWARD -m conntrack --ctstate NEW\nCOMMIT\n",
        ),
        ("untracked-all", "*filter\n-A FORWARD -p tcp --dport 22 -j DROP\n-A INPUT\n-A OUTPUT\n-A FORWARD\nCOMMIT\n"),
    ];
    for (name, text) in texts {
        let mut s = Scenario::new(&format!("target-{name}"), v6, text);
        traffic(&mut s);
        s.check();
        traffic(&mut s);
        all.push(s);
    }

    let rules =
        format!("*nat\n-A PREROUTING -d {} -p tcp -j DNAT --to-destination {}\nCOMMIT\n", elsewhere(1, v6), node(Server, v6));
    let mut s =
        Scenario::new("target-drop-after-nat", v6, &format!("{rules}*filter\n-A FORWARD -p tcp --dport 80 -j DROP\nCOMMIT\n"));
    let syn = s.to(Client, 4000, elsewhere(1, v6), 80, s.syn(1));
    s.check();
    s.again(syn, s.syn(1));
    let mut t = Talk::to(&s, Client, 4000, elsewhere(1, v6), 81);
    t.open(&mut s);
    all.push(s);

    let mut s = Scenario::new(
        "target-zone-nat",
        v6,
        &with_states(&format!(
            "*raw\n-A PREROUTING -i tap0 -j CT --zone 3\n-A PREROUTING -i tap1 -j CT --zone 3\nCOMMIT\n{rules}"
        )),
    );
    let mut t = Talk::to(&s, Client, 4000, elsewhere(1, v6), 80);
    t.open(&mut s);
    t.data(&mut s, 1, 10);
    let mut t = Talk::new(&s, Client, 4000, 80);
    t.open(&mut s);
    all.push(s);

    let mut s = Scenario::new("urgent", v6, STATES);
    for flags in [SYN | URG, ACK | URG, FIN | ACK | URG, RST | URG, URG] {
        let body = s.tcp(flags, 1000, 1, 0);
        s.across(Client, 4000 + u16::from(flags), 80, body);
    }
    all.push(s);
    all
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        all.extend(chains(v6));
        all.extend(matches(v6));
        all.extend(rejects(v6));
        all.extend(targets(v6));
    }
    all
}
