//! Small worlds, in which something may be done at every boundary.

use crate::plan::{FloodPlan, Plan, TcpPlan};
use core::fmt::Write;
use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::config::Publish;
use hibernet_netstack::iptables::Family;
use hibernet_netstack::tuple::{Endpoint, proto};
use hibernet_tests::SplitMix;

/// Most bytes of a stream.
const MOST: u64 = 8_000;

impl Plan {
    /// The small world of a seed: less of everything than [`Plan::new`] has, and rules of all kinds, a flood, clients of a published
    /// UDP port, queries for names.
    pub fn small(seed: u64) -> Plan {
        let mut plan = Plan::new(seed);
        let mut rng = SplitMix::new(!seed ^ 0x736d_616c_6c20);
        plan.tcp.truncate(2);
        for t in &mut plan.tcp {
            (t.up, t.down) = (t.up.min(rng.range(0, MOST)), t.down.min(rng.range(0, MOST)));
            // So many pieces would make many boundaries that are all alike.
            (t.max_write, t.max_peek) = (t.max_write.max(2000), t.max_peek.max(2000));
        }
        plan.udp.truncate(1);
        plan.udp.iter_mut().for_each(|u| (u.count, u.size) = (u.count.min(8), u.size.min(1000)));
        plan.config.conntrack.max = 1024;
        if rng.chance(40) {
            plan.flood(&mut rng);
        }
        plan.rules.clear();
        match rng.below(4) {
            0 => {}
            1 => plan.rules.push((Family::V4, rules(&mut plan.tcp, Family::V4, &mut rng))),
            _ => {
                for family in [Family::V4, Family::V6] {
                    plan.rules.push((family, rules(&mut plan.tcp, family, &mut rng)));
                }
            }
        }
        // The other family is closed.
        if let [(Family::V4, _)] = plan.rules[..] {
            plan.tcp.retain(|t| t.remote.addr.is_ipv4());
            plan.udp.retain(|u| u.remote.addr.is_ipv4());
        }
        plan
    }

    fn flood(&mut self, rng: &mut SplitMix) {
        let resolver: IpAddr = [9, 9, 9, 9].into();
        self.config.resolvers = vec![resolver];
        self.config.publish.push(Publish { proto: proto::UDP, addr: None, host_ports: (9000, 9000), guest_port: 5500 });
        self.flood = FloodPlan {
            frames: rng.range(5, 30),
            pace: Duration::from_millis(rng.range(1, 20)),
            clients: rng.below(10),
            resolver: Some(resolver),
        };
        // Tables so small that they are full.
        if rng.chance(50) {
            self.config.conntrack.max = 32;
            self.config.limits.udp_flows = 16;
            self.config.limits.icmp_flows = 4;
            self.config.limits.dns_queries = 4;
            self.udp.clear();
            // A client that comes while the table is full is sent away.
            self.tcp.retain(|t| !t.inbound);
        }
    }
}

/// Rules of one family: translation of all kinds, matches that remember, and losses.
fn rules(tcp: &mut [TcpPlan], family: Family, rng: &mut SplitMix) -> String {
    let v4 = family == Family::V4;
    let (host, ping) = if v4 { ("198.18.0.1", "icmp") } else { ("[fd99::1]", "ipv6-icmp") };
    let mut text = "*nat\n".to_owned();
    for t in tcp.iter_mut().filter(|t| !t.inbound && t.remote.addr.is_ipv4() == v4) {
        if rng.chance(40) {
            let addr: IpAddr = if v4 { [203, 0, 115, 1].into() } else { [0x2600, 0x1f, 0, 0, 0, 0, 2, 1].into() };
            t.seen = Endpoint::new(addr, t.guest_port);
            let to = if v4 {
                format!("{}:{}", t.remote.addr, t.remote.port)
            } else {
                format!("[{}]:{}", t.remote.addr, t.remote.port)
            };
            let _ =
                writeln!(text, "-A PREROUTING -i tap0 -d {addr} -p tcp --dport {} -j DNAT --to-destination {to}", t.seen.port);
        }
    }
    // Some of what the flood asks elsewhere comes to our own service.
    let asked = if v4 { "203.0.114.0/24" } else { "2600:1f::1:0/112" };
    let _ = writeln!(text, "-A PREROUTING -i tap0 -d {asked} -p udp --dport 100:400 -j REDIRECT --to-ports 53");
    let _ = match rng.below(4) {
        0 => writeln!(text, "-A POSTROUTING -o host0 -p tcp -j SNAT --to-source {host}:30000-30100"),
        1 => writeln!(
            text,
            "-A POSTROUTING -o host0 -p tcp -j SNAT --to-source {host}:30000-32000 --random\n-A POSTROUTING -o host0 -j MASQUERADE"
        ),
        2 => writeln!(text, "-A POSTROUTING -o host0 -j MASQUERADE --random"),
        _ => Ok(()),
    };
    text += "COMMIT\n*filter\n:FORWARD DROP [0:0]\n:seen - [0:0]\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\n";
    // Not the first segment: a client whose connection the rules do not let in is sent away at once.
    if rng.chance(40) {
        let p = rng.range(1, 3);
        let _ = writeln!(text, "-A FORWARD -p tcp ! --syn -m statistic --mode random --probability 0.0{p} -j DROP");
    }
    if rng.chance(40) {
        let n = rng.range(20, 60);
        let _ = writeln!(text, "-A FORWARD -p tcp ! --syn -m statistic --mode nth --every {n} --packet 3 -j DROP");
    }
    let _ = writeln!(text, "-A FORWARD -m limit --limit {}/sec --limit-burst 5 -j seen", rng.range(1, 50));
    let _ = writeln!(text, "-A FORWARD -p {ping} -m conntrack --ctstate NEW -m limit --limit 2/sec --limit-burst 3 -j ACCEPT");
    let _ = writeln!(text, "-A FORWARD -p {ping} -m conntrack --ctstate NEW -j REJECT");
    text += "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -A FORWARD -i tap0 -m conntrack --ctstate NEW -j ACCEPT\n\
        -A FORWARD -i host0 -m conntrack --ctstate DNAT -j ACCEPT\n\
        -A seen -p tcp -m statistic --mode nth --every 5 --packet 0 -j RETURN\nCOMMIT\n";
    text
}
