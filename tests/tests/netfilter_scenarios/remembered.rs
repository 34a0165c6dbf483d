//! Rules that remember packets: sets, addresses seen lately.

use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::netfilter::{Body, Scenario, Talk, elsewhere, node};

/// Sets and rules of the filter table, with names for the addresses.
pub fn scenario(name: &str, v6: bool, sets: &str, rules: &str) -> Scenario {
    let text = format!("{sets}\n*filter\n{rules}\nCOMMIT\n")
        .replace("{c}", &node(Client, v6).to_string())
        .replace("{s}", &node(Server, v6).to_string())
        .replace("{x}", &elsewhere(1, v6).to_string())
        .replace("{net}", if v6 { "64" } else { "24" })
        .replace("{full}", if v6 { "128" } else { "32" })
        .replace("{icmp}", if v6 { "icmpv6" } else { "icmp" })
        .replace("{family}", if v6 { "family inet6" } else { "" });
    Scenario::new(name, v6, &text)
}

/// Datagrams, an echo and a connection, from both sides and from elsewhere.
pub fn traffic(s: &mut Scenario) {
    for (i, dport) in [53, 80, 443].into_iter().enumerate() {
        let u = s.across(Client, 5000 + i as u16, dport, Body::Udp(20));
        s.answer(u, Body::Udp(30));
        s.across(Client, 5000 + i as u16, dport, Body::Udp(40));
        s.across(Server, 6000 + i as u16, dport, Body::Udp(10));
    }
    let p = s.across(Client, 7, 0, s.ping(1));
    s.answer(p, s.pong(1));
    let mut t = Talk::new(s, Client, 40_000, 80);
    t.open(s);
    t.data(s, 0, 10);
    t.fin(s, 1);
}

fn sets(v6: bool) -> Vec<Scenario> {
    let cases = [
        (
            "set-ip",
            "create a hash:ip {family}\nadd a {c}",
            "-A FORWARD -m set --match-set a src\n-A FORWARD -m set --match-set a dst\n-A FORWARD -m set ! --match-set a src\n-A FORWARD -m set --match-set a src,dst -p udp",
        ),
        (
            "set-net",
            "create a hash:net {family}\nadd a {c}/{net}\nadd a {c} nomatch\nadd a {s}",
            "-A FORWARD -m set --match-set a src\n-A FORWARD -m set --match-set a src --return-nomatch\n-A FORWARD -m set ! --match-set a src --return-nomatch\n-A FORWARD -m set --match-set a dst -j DROP",
        ),
        (
            "set-ip-port",
            "create a hash:ip,port {family}\nadd a {s},udp:53\nadd a {s},tcp:80\nadd a {s},{icmp}:echo-request",
            "-A FORWARD -m set --match-set a dst,dst\n-A FORWARD -m set --match-set a src,src\n-A FORWARD -m set --match-set a dst\n-A FORWARD -m set ! --match-set a dst\n-A FORWARD -m set --match-set a dst,src",
        ),
        (
            "set-net-port",
            "create a hash:net,port {family}\nadd a {s}/{net},udp:53\nadd a {s},80 nomatch",
            "-A FORWARD -m set --match-set a dst,dst\n-A FORWARD -m set --match-set a dst,dst --return-nomatch",
        ),
        (
            "set-port",
            "create a bitmap:port range 0-1000\nadd a 53\nadd a 443",
            "-A FORWARD -m set --match-set a dst\n-A FORWARD -m set --match-set a src\n-A FORWARD -m set ! --match-set a dst",
        ),
        (
            "set-list",
            "create a hash:ip {family}\nadd a {c}\ncreate b hash:ip,port {family}\nadd b {s},udp:53\ncreate l list:set counters\nadd l a\nadd l b",
            "-A FORWARD -m set --match-set l src\n-A FORWARD -m set --match-set l dst,dst\n-A FORWARD -m set --match-set l src --packets-gt 3",
        ),
        (
            "set-counters",
            "create a hash:ip {family} counters\nadd a {c}",
            "-A FORWARD -m set --match-set a src --packets-gt 2\n-A FORWARD -m set --match-set a src ! --update-counters --bytes-gt 200\n-A FORWARD -m set --match-set a src ! --packets-eq 4\n-A FORWARD -m set --match-set a src --packets-lt 6",
        ),
        ("set-without-counters", "create a hash:ip {family}\nadd a {c}", "-A FORWARD -m set --match-set a src --packets-gt 200"),
        (
            "set-add",
            "create a hash:ip {family}\ncreate p hash:ip,port {family}",
            "-A FORWARD -m set --match-set a src\n-A FORWARD -p udp -j SET --add-set a src\n-A FORWARD -m set --match-set p src,dst -j DROP\n-A FORWARD -p udp --dport 80 -j SET --add-set p src,dst\n-A FORWARD -p tcp -j SET --del-set a src",
        ),
        (
            "set-add-counters",
            "create a hash:ip {family} counters\ncreate l list:set\nadd l a",
            "-A FORWARD -m set --match-set a src --packets-gt 1\n-A FORWARD -m set --match-set a src --bytes-lt 100\n-A FORWARD -p udp --dport 80 -j SET --add-set a src --exist\n-A FORWARD -j SET --add-set l src\n-A FORWARD -p tcp -j SET --del-set l src",
        ),
        (
            "set-add-net",
            "create a hash:net {family}\nadd a {x}/{net}",
            "-A FORWARD -m set --match-set a src\n-A FORWARD -m set --match-set a dst\n-A FORWARD -j SET --add-set a src\n-A FORWARD -p tcp -j SET --del-set a src",
        ),
        (
            "set-full",
            "create a hash:ip {family} maxelem 1",
            "-A FORWARD -j SET --add-set a src\n-A FORWARD -m set --match-set a src\n-A FORWARD -m set --match-set a dst",
        ),
        (
            "set-netmask",
            "create a hash:ip {family} netmask {net}\nadd a {c}",
            "-A FORWARD -m set --match-set a src\n-A FORWARD -m set --match-set a dst",
        ),
    ];
    cases
        .into_iter()
        .map(|(name, sets, rules)| {
            let mut s = scenario(name, v6, sets, rules);
            traffic(&mut s);
            s
        })
        .collect()
}

/// Time-outs are whole seconds; packets are sent half a second from where it matters.
fn timeouts(v6: bool) -> Scenario {
    let mut s = scenario(
        "set-timeout",
        v6,
        "create a hash:ip {family} timeout 1\ncreate b hash:ip {family} timeout 0",
        "-A FORWARD -m set --match-set a src\n-A FORWARD -m set --match-set b src\n-A FORWARD -p udp --dport 80 -j SET --add-set a src\n\
         -A FORWARD -p udp --dport 81 -j SET --add-set a src --exist --timeout 2\n-A FORWARD -p udp --dport 82 -j SET --add-set b src --timeout 1",
    );
    s.across(Client, 5000, 80, Body::Udp(20));
    s.across(Client, 5000, 82, Body::Udp(20));
    s.wait(500);
    s.across(Client, 5000, 80, Body::Udp(20));
    s.wait(1_000);
    s.across(Client, 5000, 53, Body::Udp(20));
    s.across(Client, 5000, 81, Body::Udp(20));
    s.wait(1_500);
    s.across(Client, 5000, 53, Body::Udp(20));
    s.wait(1_000);
    s.across(Client, 5000, 53, Body::Udp(20));
    s
}

fn recent(v6: bool) -> Vec<Scenario> {
    let cases = [
        (
            "recent-set-rcheck",
            "-A FORWARD -m recent --rcheck --name a\n-A FORWARD -m recent --rcheck --name a --rdest\n-A FORWARD -m recent ! --rcheck --name a\n-A FORWARD -p udp --dport 80 -m recent --set --name a",
        ),
        (
            "recent-update",
            "-A FORWARD -m recent --update --name b --hitcount 3 -j DROP\n-A FORWARD -m recent --set --name b --rsource",
        ),
        (
            "recent-remove",
            "-A FORWARD -p udp -m recent --set --name c\n-A FORWARD -p tcp -m recent --remove --name c\n-A FORWARD -m recent ! --remove --name c\n-A FORWARD -m recent --rcheck --name c",
        ),
        (
            "recent-mask",
            "-A FORWARD -m recent --set --name d --mask {mask}\n-A FORWARD -m recent --rcheck --name d --rdest --mask {mask}\n-A FORWARD -m recent --rcheck --name d --hitcount 5",
        ),
        (
            "recent-rttl",
            "-A FORWARD -m recent --set --name e\n-A INPUT -m recent --rcheck --name e --rttl\n-A FORWARD -m recent --rcheck --name e --rttl",
        ),
        (
            "recent-hits",
            "-A FORWARD -m recent --set --name f\n-A FORWARD -m recent --rcheck --name f --hitcount 4\n-A FORWARD -m recent --update --name f --hitcount 40\n-A FORWARD -m recent ! --update --name f --hitcount 9",
        ),
    ];
    cases
        .into_iter()
        .map(|(name, rules)| {
            let rules = rules.replace("{mask}", if v6 { "ffff:ffff:ffff:ffff::" } else { "255.255.0.0" });
            let mut s = scenario(name, v6, "", &rules);
            traffic(&mut s);
            s
        })
        .collect()
}

fn recent_seconds(v6: bool) -> Scenario {
    let mut s = scenario(
        "recent-seconds",
        v6,
        "",
        "-A FORWARD -m recent --rcheck --name g --seconds 1\n-A FORWARD -m recent --rcheck --name g --seconds 2 --hitcount 2\n\
         -A FORWARD -p udp --dport 80 -m recent --set --name g\n-A FORWARD -p udp --dport 81 -m recent --rcheck --name g --seconds 1 --reap",
    );
    for (dport, after) in [(80, 400), (80, 500), (53, 1_000), (81, 100), (53, 0)] {
        s.across(Client, 5000, dport, Body::Udp(20));
        s.wait(after);
    }
    s
}

pub fn all() -> Vec<Scenario> {
    let of = |v6| [sets(v6), vec![timeouts(v6)], recent(v6), vec![recent_seconds(v6)]].concat();
    [of(false), of(true)].concat()
}
