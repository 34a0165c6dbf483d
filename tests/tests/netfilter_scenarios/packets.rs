//! Matches that look at the packet alone, and targets that change it.

use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::netfilter::{Body, Scenario, Talk, Tcp, elsewhere, node, router};
use hibernet_tests::wire::flags::{ACK, PSH, SYN};
use std::time::{SystemTime, UNIX_EPOCH};

/// Flags of ECN.
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// Rules that count what some tests say.
fn counting<T: AsRef<str>>(table: &str, chain: &str, tests: &[T]) -> String {
    let rules: String = tests.iter().map(|t| format!("-A {chain} {}\n", t.as_ref())).collect();
    format!("*{table}\n{rules}COMMIT\n")
}

/// Packets with every field that is tested. (The router's answers are rate-limited.)
fn various(s: &mut Scenario, to_router: bool) {
    for (n, (ttl, tos)) in
        [(64, 0), (1, 0x10), (2, 0x2e << 2), (3, 1), (128, 2), (200, 3), (255, 0xff), (64, 0x28)].into_iter().enumerate()
    {
        let port = 4000 + n as u16;
        for body in [
            Body::Udp(n * 37),
            s.ping(n as u16),
            s.syn(n as u32),
            s.tcp(ACK | PSH | [0, ECE, CWR, ECE | CWR][n % 4], 1, 1, n * 100),
        ] {
            s.across(Client, port, 80, body.clone());
            s.ip(|ip| (ip.ttl, ip.tos) = (ttl, tos));
            if to_router {
                s.to(Client, port, router(Client, s.v6), 80, body);
                s.ip(|ip| (ip.ttl, ip.tos) = (ttl, tos));
            }
        }
    }
}

/// SYNs with all kinds of options; at odd places only if asked for: where the kernel changes those, the checksum becomes wrong.
fn syns(s: &mut Scenario, odd: bool) {
    let all: [&[u8]; 10] = [
        &[],
        &[2, 4, 5, 180],
        &[2, 4, 0x23, 0x28],
        &[1, 2, 4, 5, 180, 1, 1, 1],
        &[2, 4, 2, 0, 1, 3, 3, 7],
        &[3, 3, 7, 2, 4, 9, 9, 0],
        &[0, 2, 4, 9, 9, 0, 0, 0],
        &[8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1],
        &[2, 4, 0, 1],
        &[3, 0, 2, 4, 9, 9, 1, 1],
    ];
    let at_odd_place = |o: &[u8]| o.windows(2).position(|w| w == [2, 4]).is_some_and(|at| at % 2 == 1);
    for (n, options) in all.into_iter().enumerate().filter(|(_, o)| odd || !at_odd_place(o)) {
        for (m, (flags, data)) in [(SYN, 0), (SYN | ACK, 0), (SYN, 10)].into_iter().enumerate() {
            let body = Body::Tcp(Tcp { seq: 7, flags, window: 1000, options: options.to_vec(), data, ..Tcp::default() });
            s.across(Client, 4000 + (n * 4 + m) as u16, 80, body.clone());
            s.across(Client, 4000 + (n * 4 + m) as u16, 443, Body::Broken(Box::new(body), 5));
        }
    }
}

fn fields(v6: bool) -> Vec<Scenario> {
    let hop = if v6 { "hl" } else { "ttl" };
    let tests: Vec<String> = [
        format!("-m {hop} --{hop}-eq 63"),
        format!("-m {hop} ! --{hop}-eq 63"),
        format!("-m {hop} --{hop}-lt 3"),
        format!("-m {hop} --{hop}-gt 127"),
    ]
    .into_iter()
    .chain(
        [
            "-m length --length 28:100",
            "-m length ! --length :99",
            "-m length --length 100:1",
            "-m length ! --length 100:1",
            "-m length --length 300:",
            "-m tos --tos 0x10",
            "-m tos ! --tos 0x0/0xfc",
            "-m tos --tos 0x3/0x1",
            "-m tos --tos Normal-Service",
            "-m dscp --dscp-class EF",
            "-m dscp ! --dscp 0",
            "-m dscp --dscp-class AF11",
            "-m ecn --ecn-ip-ect 0",
            "-m ecn --ecn-ip-ect 1",
            "-m ecn ! --ecn-ip-ect 2",
            "-m ecn --ecn-ip-ect 3",
            "-p tcp -m ecn --ecn-tcp-ece",
            "-p tcp -m ecn ! --ecn-tcp-ece",
            "-p tcp -m ecn --ecn-tcp-cwr ! --ecn-tcp-ece",
            "-p tcp -m ecn --ecn-tcp-cwr --ecn-ip-ect 0",
            "-m pkttype --pkt-type unicast",
            "-m pkttype ! --pkt-type unicast",
            "-m pkttype --pkt-type multicast",
        ]
        .map(String::from),
    )
    .collect();
    let mut all = Vec::new();
    for chain in ["FORWARD", "INPUT", "OUTPUT"] {
        let mut s = Scenario::new(&format!("fields-{chain}"), v6, &counting("filter", chain, &tests));
        various(&mut s, true);
        all.push(s);
    }
    let tests = [
        "-p tcp -m tcpmss --mss 1460",
        "-p tcp -m tcpmss ! --mss 1460",
        "-p tcp -m tcpmss --mss 1:1000",
        "-p tcp -m tcpmss ! --mss 1000:",
        "-p tcp -m tcpmss --mss 2313",
    ];
    let mut s = Scenario::new("tcpmss", v6, &counting("filter", "FORWARD", &tests));
    syns(&mut s, true);
    all.push(s);

    // A test that drops what is malformed does so, whatever those behind it say.
    let header = |flags| vec![1, 44, 0, 53, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, flags, 0, 9, 0, 0, 0, 0];
    for rule in ["-m tcpmss --mss 1000:2000", "-m tcp --tcp-option 2", "-m multiport --dports 53"] {
        let rules = format!("*filter\n-A INPUT -p tcp {rule} -m state --state ESTABLISHED -j ACCEPT\n-A INPUT\nCOMMIT\n");
        let mut s = Scenario::new(&format!("behind {rule}"), v6, &rules);
        for (port, flags) in [(300, SYN), (301, ACK), (302, 0x11)] {
            s.to(Client, port, router(Client, v6), 53, Body::Raw(6, header(flags)));
        }
        s.across(Client, 400, 80, Body::Udp(5));
        all.push(s);
    }

    let ah =
        if v6 { "" } else { "-A FORWARD -p ah -m ah --ahspi 5\n-A FORWARD -p ah -m ah ! --ahspi 1:4\n-A FORWARD -p ah -m ah\n" };
    let rules = format!(
        "*filter\n{ah}-A FORWARD -p esp -m esp --espspi 1:5\n-A FORWARD -p esp -m esp ! --espspi 5\n-A FORWARD -p esp -m esp\n-A FORWARD -p 108 -m ipcomp --ipcompspi 5\n-A FORWARD -p 108 -m ipcomp ! --ipcompspi 0:9\nCOMMIT\n"
    );
    let mut s = Scenario::new("indices", v6, &rules);
    for protocol in [50, 51, 108] {
        for spi in [0u32, 4, 5, 6, 0x5_0000, u32::MAX] {
            // Of AH over IPv6 the kernel makes an extension header.
            if v6 && protocol == 51 {
                continue;
            }
            let mut b = vec![59, 1, 0, 5];
            if protocol == 50 {
                b.clear();
            }
            b.extend(spi.to_be_bytes());
            b.extend([0; 8]);
            s.send(Client, (s.node(Client), 0), (s.node(Server), 0), Body::Raw(protocol, b.clone()));
            b.truncate(3);
            s.send(Client, (s.node(Client), 0), (s.node(Server), 0), Body::Raw(protocol, b));
        }
    }
    all.push(s);
    all
}

fn contents(v6: bool) -> Vec<Scenario> {
    let ip = if v6 { 40 } else { 20 };
    let tests: Vec<String> = [
        "--string 6789ab --algo bm".to_owned(),
        "! --string 6789ab --algo kmp".to_owned(),
        "--string 6789AB --algo bm --icase".to_owned(),
        "--string 6789AB --algo bm".to_owned(),
        "--hex-string \"|30 31 32|3\" --algo kmp".to_owned(),
        format!("--string 0123 --algo bm --from {}", ip + 8),
        format!("--string 0123 --algo bm --from {}", ip + 9),
        format!("--string 0123 --algo bm --to {}", ip + 12),
        format!("--string 0123 --algo bm --to {}", ip + 11),
        format!("--string 0123 --algo kmp --from {} --to {}", ip + 24, ip + 28),
        format!("--string 0123 --algo kmp --from {} --to {}", ip + 24, ip + 27),
        "--string cdef0123 --algo kmp --from 250 --to 300".to_owned(),
        "--string cdef0123 --algo kmp --from 600".to_owned(),
        "--string f --algo bm --from 1000".to_owned(),
        "--string aabaab --algo kmp".to_owned(),
    ]
    .into_iter()
    .map(|t| format!("-p udp -m string {t}"))
    .collect();
    let mut all = Vec::new();
    for chain in ["PREROUTING", "FORWARD", "POSTROUTING"] {
        let mut s = Scenario::new(&format!("string-{chain}"), v6, &counting("mangle", chain, &tests));
        for n in [0, 3, 4, 10, 16, 17, 20, 40, 100, 200, 230, 240, 256, 300, 600, 700, 1000, 1300] {
            s.across(Client, 4000, 53, Body::Udp(n));
        }
        all.push(s);
    }

    let mut tests: Vec<String> =
        ["0&0xf0000000=0x40000000", "0=0:0xffffffff", "0xffff=0", "8>>24=63", "8>>24=64", "4&0xffff=0:100"]
            .into_iter()
            .map(String::from)
            .collect();
    if v6 {
        tests.extend(
            ["40>>16=5000:5010", "40&0xffff=53,80", "4>>16&0xffff=50:200&&6&0xff=17", "40@0=1", "24&0xffff=1", "7>>24=63"]
                .map(String::from),
        );
        // Bits of the checksum.
        tests.extend((0..16).map(|bit| format!("44>>{bit}&1=1")));
        tests.push("1000=0x38396162".to_owned());
    } else {
        tests.extend(
            [
                "0>>22&0x3C@0>>16=5000:5010",
                "0>>22&0x3C@0&0xffff=53,80",
                "0&0xffff=50:200&&6&0xff=17",
                "12=0x0a00020f",
                "16=0x0a00030f",
                "4>>16=3:5",
                "0>>22&0x3C@8=0x30313233",
                "0>>22&0x3C@1000>>16<<8&0xffffff=1:9999999",
                "0<<4<<4=1:99999999",
            ]
            .map(String::from),
        );
        tests.extend((0..16).map(|bit| format!("8>>{bit}&1=1")));
        tests.extend((0..16).map(|bit| format!("0>>22&0x3C@4>>{bit}&1=1")));
        tests.push("980=0x38396162".to_owned());
    }
    let tests: Vec<String> =
        tests.iter().flat_map(|t| [format!("-p udp -m u32 --u32 \"{t}\""), format!("-p udp -m u32 ! --u32 \"{t}\"")]).collect();
    for chain in ["PREROUTING", "FORWARD", "POSTROUTING"] {
        // Translated on the way: the bytes are those of then.
        let vip = elsewhere(1, v6);
        let nat = format!("*nat\n-A PREROUTING -d {vip} -j DNAT --to-destination {}\nCOMMIT\n", node(Server, v6));
        let mut s = Scenario::new(&format!("u32-{chain}"), v6, &(nat + &counting("mangle", chain, &tests)));
        for n in [0, 1, 5, 12, 40, 100, 220, 960, 968, 1000, 1200] {
            s.across(Client, 5000, 53, Body::Udp(n));
            s.to(Client, 5000, vip, 53, Body::Udp(n));
            s.across(Client, 5001, 80, Body::Broken(Box::new(Body::Udp(n)), 9));
        }
        all.push(s);
    }
    all
}

/// Chunks of an SCTP packet: type, flags, length of the value.
fn sctp(chunks: &[(u8, u8, usize)]) -> Body {
    let mut b = [&5000u16.to_be_bytes()[..], &80u16.to_be_bytes(), &[0; 8]].concat();
    for (ty, flags, len) in chunks {
        b.extend([*ty, *flags]);
        b.extend((*len as u16 + 4).to_be_bytes());
        b.resize((b.len() + len).next_multiple_of(4), 0);
    }
    Body::Raw(132, b)
}

fn chunks(v6: bool) -> Scenario {
    let lists = ["DATA", "DATA,SACK", "INIT", "DATA:Be", "DATA:E,ABORT:t", "ALL", "NONE", "DATA,SACK,HEARTBEAT,ABORT,I_DATA"];
    let how = |list: &&str| ["any", "all", "only"].map(|how| format!("-p sctp -m sctp --chunk-types {how} {list}"));
    let mut tests: Vec<String> = lists.iter().flat_map(how).collect();
    tests.extend(
        ["--sport 5000", "! --sport 5000", "--dport 80:90", "--dport 81:90", "--sport 5000 ! --chunk-types any DATA"]
            .map(|t| format!("-p sctp -m sctp {t}")),
    );
    let rules = format!("*raw\n-A PREROUTING -j CT --notrack\nCOMMIT\n{}", counting("filter", "FORWARD", &tests));
    let mut s = Scenario::new("sctp", v6, &rules);
    let many = [(0, 3, 250), (3, 0, 250), (0, 1, 250), (6, 0, 30)];
    for chunks in [
        &[(0, 0, 3)][..],
        &[(0, 2, 1), (3, 0, 2)],
        &[(0, 3, 5), (1, 0, 0)],
        &[(1, 0, 16)],
        &[(6, 1, 0)],
        &[(64, 3, 4), (4, 0, 0)],
        &many,
    ] {
        s.send(Client, (s.node(Client), 0), (s.node(Server), 0), sctp(chunks));
    }
    // Of length 0, cut off, none at all.
    let Body::Raw(_, mut b) = sctp(&[(0, 0, 0), (3, 0, 0)]) else { return s };
    b[14..16].fill(0);
    s.send(Client, (s.node(Client), 0), (s.node(Server), 0), Body::Raw(132, b.clone()));
    s.send(Client, (s.node(Client), 0), (s.node(Server), 0), Body::Raw(132, b[..12].to_vec()));
    s.send(Client, (s.node(Client), 0), (s.node(Server), 0), Body::Raw(132, b[..8].to_vec()));
    s
}

fn hours(v6: bool) -> Scenario {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let time = |s: u64| format!("{:02}:{:02}:{:02}", s / 3600 % 24, s / 60 % 60, s % 60);
    let (before, after, later) = (time(now - 7200), time(now + 7200), time(now + 9000));
    let days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    let mut tests: Vec<String> = days.iter().map(|d| format!("--weekdays {d}")).collect();
    tests.extend((1..=31).map(|d| format!("--monthdays {d}")));
    tests.extend([
        format!("--timestart {before} --timestop {after}"),
        format!("--timestart {after} --timestop {later}"),
        format!("--timestart {after} --timestop {before}"),
        format!("! --weekdays {}", days[((now / 86400 + 3) % 7) as usize]),
        "--datestart 2020 --datestop 2037".to_owned(),
        "--datestart 2037".to_owned(),
        "--datestop 2020-02-29T12".to_owned(),
    ]);
    let contiguous =
        if before > after { format!("--timestart {before} --timestop {after} --contiguous") } else { "--utc".to_owned() };
    tests.extend(days.iter().map(|d| format!("{contiguous} --weekdays {d}")));
    let tests: Vec<String> = tests.iter().map(|t| format!("-m time {t}")).collect();
    let mut s = Scenario::new("time", v6, &counting("filter", "FORWARD", &tests));
    s.across(Client, 4000, 53, Body::Udp(4));
    s
}

fn reverse_path(v6: bool) -> Scenario {
    let tests = ["", "--invert", "--loose", "--loose --invert", "--accept-local", "--validmark --invert"]
        .map(|t| format!("-m rpfilter {t}"));
    let mut s = Scenario::new("rpfilter", v6, &counting("raw", "PREROUTING", &tests));
    various(&mut s, false);
    s.across(Server, 4000, 53, Body::Udp(4));
    s
}

fn headers() -> Vec<Scenario> {
    let tests = [
        "-m hbh",
        "-m hbh --hbh-len 8",
        "-m hbh ! --hbh-len 8",
        "-m hbh --hbh-opts 1:4",
        "-m hbh --hbh-opts 1",
        "-m hbh --hbh-opts 1:3",
        "-m dst",
        "-m dst --dst-len 16",
        "-m dst --dst-opts 0,0,1:2,1",
        "-m dst --dst-opts 30:4,0",
        "-m dst ! --dst-len 16 --dst-opts 30",
        "-m rt",
        "-m rt --rt-type 2",
        "-m rt ! --rt-type 2",
        "-m rt --rt-segsleft 0 --rt-len 8",
        "-m rt --rt-segsleft 1:",
        "-m rt --rt-type 0 --rt-0-res",
        "-m rt --rt-type 0 --rt-0-addrs 2001:db8::5",
        "-m rt --rt-type 0 --rt-0-addrs 2001:db8::6 --rt-0-not-strict",
        "-m frag",
        "-m ipv6header --header hop-by-hop,protocol",
        "-m ipv6header --header hop-by-hop --soft",
        "-m ipv6header ! --header hop-by-hop --soft",
        "-m ipv6header --header ipv6-opts,ipv6-route --soft",
        "-m ipv6header --header protocol",
        "-m ipv6header ! --header protocol",
        "-m ipv6header --header esp",
        "-m eui64",
        "-p mh -m mh",
        "-p mh -m mh --mh-type 5",
        "-p mh -m mh ! --mh-type 0:4",
    ];
    let mut s = Scenario::v6("extension-headers", &counting("filter", "FORWARD", &tests));
    let route = [
        vec![0, 2, 0, 0, 0, 0, 0, 0],
        "2001:db8::5".parse::<core::net::Ipv6Addr>().map(|a| a.octets().to_vec()).unwrap_or_default(),
    ]
    .concat();
    let all: [Vec<(u8, Vec<u8>)>; 8] = [
        vec![],
        vec![(0, vec![0, 0, 1, 4, 0, 0, 0, 0])],
        vec![(60, vec![0, 0, 0, 0, 1, 2, 0, 0])],
        vec![(60, vec![0, 1, 30, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0])],
        vec![(0, vec![0, 0, 1, 4, 0, 0, 0, 0]), (60, vec![0, 0, 1, 4, 0, 0, 0, 0])],
        vec![(43, vec![0, 0, 2, 0, 0, 0, 0, 0])],
        vec![(43, route)],
        vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0]), (43, vec![0, 0, 253, 0, 1, 0, 0, 0])],
    ];
    for extensions in all {
        for body in [Body::Udp(20), s.syn(1), Body::Raw(50, vec![0; 20])] {
            s.across(Client, 4000, 53, body);
            s.ip(|ip| ip.extensions = extensions.clone());
        }
    }
    for ty in [0, 4, 5, 9] {
        s.send(
            Client,
            (s.node(Client), 0),
            (s.node(Server), 0),
            Body::Raw(135, vec![59, 1, ty, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        );
    }
    vec![s]
}

fn changes(v6: bool) -> Vec<Scenario> {
    let (target, hop) = if v6 { ("HL", "hl") } else { ("TTL", "ttl") };
    let texts = [
        (
            "hops",
            format!(
                "-A PREROUTING -p udp --dport 53 -j {target} --{hop}-set 1\n-A PREROUTING -p udp --dport 80 -j {target} --{hop}-inc 5\n-A FORWARD -p tcp -j {target} --{hop}-dec 3\n-A FORWARD -m {hop} --{hop}-eq 60\n-A POSTROUTING -p udp --dport 443 -j {target} --{hop}-set 200\n-A POSTROUTING -p tcp --dport 443 -j {target} --{hop}-dec 255\n-A INPUT -j {target} --{hop}-inc 255\n-A OUTPUT -j {target} --{hop}-set 77"
            ),
        ),
        (
            "tos",
            "-A PREROUTING -p udp -j TOS --set-tos 0x10/0xfc\n-A PREROUTING -p tcp --dport 80 -j DSCP --set-dscp-class EF\n-A FORWARD -m tos --tos 0x10/0xfc\n-A FORWARD -m dscp --dscp-class EF\n-A POSTROUTING -p tcp --dport 443 -j TOS --or-tos 0xff\n-A POSTROUTING -p udp --dport 80 -j TOS --xor-tos 0x55\n-A POSTROUTING -p udp --dport 22 -j TOS --and-tos 0x0f\n-A INPUT -j DSCP --set-dscp 5\n-A OUTPUT -j TOS --set-tos 0x8/0x3f".to_owned(),
        ),
        ("checksum", "-A POSTROUTING -j CHECKSUM --checksum-fill\n-A OUTPUT -p tcp -j CHECKSUM --checksum-fill".to_owned()),
    ];
    let mut all = Vec::new();
    for (name, rules) in texts {
        let mut s = Scenario::new(&format!("change-{name}"), v6, &format!("*mangle\n{rules}\nCOMMIT\n"));
        for (i, dport) in [22, 53, 80, 443].into_iter().enumerate() {
            let mut t = Talk::new(&s, Client, 40_000 + i as u16, dport);
            t.open(&mut s);
            t.data(&mut s, 0, 10);
            let u = s.across(Client, 5000, dport, Body::Udp(20));
            s.answer(u, Body::Udp(30));
            s.error(s.node(Server), u, s.port_unreachable(), None);
            s.across(Client, 5001, dport, Body::Broken(Box::new(Body::Udp(21)), 3));
            s.to(Client, 6000, router(Client, v6), dport, Body::Udp(5));
            s.to(Client, 6000, router(Client, v6), dport, s.syn(5));
        }
        let p = s.across(Client, 7, 0, s.ping(1));
        s.answer(p, s.pong(1));
        s.to(Client, 8, router(Client, v6), 0, s.ping(1));
        various(&mut s, false);
        all.push(s);
    }

    for (name, rules) in [
        (
            "set",
            "-A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1000\n-A POSTROUTING -p tcp -m tcpmss --mss 1000\n-A POSTROUTING -p tcp -m tcpmss --mss 536\n-A POSTROUTING -m length --length 44",
        ),
        ("clamp", "-A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"),
        (
            "twice",
            "-A PREROUTING -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 500\n-A FORWARD -p tcp --syn -j TCPMSS --set-mss 300\n-A POSTROUTING -p tcp --syn -m u32 --u32 \"0>>22&0x3C@20=0x0204012c\"",
        ),
        ("zero", "-A POSTROUTING -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 0"),
    ] {
        let mut s = Scenario::new(&format!("mss-{name}"), v6, &format!("*mangle\n{rules}\nCOMMIT\n"));
        syns(&mut s, false);
        let mut t = Talk::new(&s, Client, 40_000, 80);
        t.open(&mut s);
        t.data(&mut s, 1, 10);
        all.push(s);
    }
    let vip = elsewhere(1, v6);
    let rules = format!(
        "*nat\n-A PREROUTING -d {vip} -j DNAT --to-destination {}\n-A POSTROUTING -o tap1 -j MASQUERADE\nCOMMIT\n*mangle\n-A FORWARD -p tcp --syn -j TCPMSS --set-mss 1000\n-A FORWARD -j TOS --set-tos 0x10\nCOMMIT\n",
        node(Server, v6)
    );
    let mut s = Scenario::new("mss-translated", v6, &rules);
    for (n, options) in [&[][..], &[2, 4, 5, 180], &[1, 1, 2, 4, 5, 180, 1, 1]].into_iter().enumerate() {
        s.to(
            Client,
            4000 + n as u16,
            vip,
            80,
            Body::Tcp(Tcp { seq: 7, flags: SYN, window: 1000, options: options.to_vec(), ..Tcp::default() }),
        );
    }
    all.push(s);

    let rules = "*raw\n-A PREROUTING -p udp -j TRACE\n-A OUTPUT -j TRACE\nCOMMIT\n*filter\n-N A\n-A FORWARD -j A\n-A FORWARD -p tcp -j NFLOG --nflog-prefix \"a b\" --nflog-group 3\n-A A -p udp --dport 80 -j DROP\n-A A -p udp -j RETURN\nCOMMIT\n";
    let mut s = Scenario::new("trace-nflog", v6, rules);
    various(&mut s, false);
    all.push(s);
    all
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut all = headers();
    for v6 in [false, true] {
        all.extend(fields(v6));
        all.extend(contents(v6));
        all.extend([chunks(v6), hours(v6), reverse_path(v6)]);
        all.extend(changes(v6));
    }
    all
}
