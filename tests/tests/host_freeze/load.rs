//! Tier *hold*: connections that move verified data both ways, under rules and NAT, through sleep and wake.

use crate::kit::*;
use hibernet_tests::lab::{Family, Lab, Place, Sandbox, bracketed};

/// Nothing but what is named passes; what the guest opens to port 7070 goes to the host's own loopback, by way of REDIRECT.
fn rules(family: Family) -> String {
    let (remote, icmp) = if family == Family::V4 { (family.remote(), "icmp") } else { (family.remote(), "icmpv6") };
    format!(
        "*nat\n-A PREROUTING -i tap0 -p tcp --dport 7070 -j REDIRECT --to-ports 7071\n-A POSTROUTING -o host0 -j MASQUERADE\nCOMMIT\n\
         *filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n\
         -A INPUT -p {icmp} -j ACCEPT\n-A FORWARD -p {icmp} -j ACCEPT\n\
         -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
         -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
         -A INPUT -p tcp --dport 7071 -m conntrack --ctstate NEW -j ACCEPT\n\
         -A FORWARD -d {remote} -p tcp --dport 7000 -m conntrack --ctstate NEW -j ACCEPT\n\
         -A FORWARD -p tcp --dport 7100 -m conntrack --ctstate NEW,DNAT -j ACCEPT\n\
         -A FORWARD -m conntrack --ctstate NEW -j REJECT\nCOMMIT\n"
    )
}

/// Rules of the running sandbox with their counters: text without counters, and packets of each rule or chain.
fn counted(text: &str) -> (String, Vec<u64>) {
    let mut counts = Vec::new();
    let lines = text.lines().filter(|l| !l.starts_with('#')).map(|l| {
        let (open, close) = (l.find('['), l.find(']'));
        let (Some(open), Some(close), true) = (open, close, l.starts_with(['[', ':'])) else { return l.to_owned() };
        counts.extend(l[open + 1..close].split(':').map(|n| n.parse::<u64>().expect("a counter")));
        format!("{}{}", &l[..open], &l[close + 1..])
    });
    (lines.collect::<Vec<_>>().join("\n"), counts)
}

fn saved(lab: &Lab, family: Family) -> (String, Vec<u64>) {
    let v6: &[&str] = if family == Family::V4 { &[] } else { &["--v6"] };
    counted(lab.hibernet(20, &[&["rules", "save", NAME, "-c"], v6].concat()).ok())
}

/// TCP connections as `conntrack -L` prints them, without what moves by itself.
fn tracked(text: &str) -> Vec<String> {
    let still = |l: &str| l.split_whitespace().filter(|w| w.parse::<u64>().is_err()).collect::<Vec<_>>().join(" ");
    let mut all: Vec<_> = text.lines().filter(|l| l.starts_with("tcp")).map(still).collect();
    all.sort();
    all
}

/// `count` connections, half of them opened by the guest, half through a published port, and one through REDIRECT, `cycles` times put to sleep.
fn under_load(family: Family, count: u32, cycles: u32, pace: &[&str]) {
    let Some(lab) = Lab::new(&[]) else { return };
    let file = lab.path("rules");
    std::fs::write(&file, rules(family)).expect("file");
    let rules_option = if family == Family::V4 { "--rules" } else { "--rules6" };
    let options = ["--name", NAME, rules_option, &file, "-p", "7100:7100", "--map-host-loopback", family.gateway()];
    let s = Sandbox::start(&lab, &options);
    let half = (count / 2).max(1);
    let out = Streams::open(&s, &lab, family, Way::Out(7000), half, pace, pace);
    let inn = Streams::open(&s, &lab, family, Way::In(7100, 7100), half, pace, pace);
    let stop = Streams::stop_file(&lab);
    let stop_option = format!("stop={stop}");
    let paced = [&[stop_option.as_str()], pace].concat();
    let program = env!("CARGO_BIN_EXE_streams");
    let server = lab.serve(Place::Host, 7071, &[&[program, "serve", family.loopback(), "7071"], &paced[..]].concat());
    let client = s.spawn(&[&[program, "connect", family.remote(), "7070"], &paced[..]].concat());
    let redirected = Streams::of(client, server, stop);
    redirected.wait_up(1);
    let all = [&out, &inn, &redirected];
    let image = lab.path("image");
    for cycle in 0..cycles {
        for s in all {
            s.wait_moved(1);
        }
        let before = saved(&lab, family);
        let connections = tracked(lab.hibernet(20, &["conntrack", NAME, "-L", "-p", "tcp"]).ok());
        assert_eq!(connections.len(), 2 * half as usize + 1, "{}", connections.join("\n"));
        let frozen = sleep(&s, &lab, &image, &[]);
        let tiers = frozen["flows"].as_array().expect("flows");
        assert!(tiers.iter().all(|f| f["tier"] == "hold"), "{frozen:#}");
        let of_image = lab.hibernet(20, &["inspect", &image, "--rules"]);
        let asleep = tracked(lab.hibernet(20, &["inspect", &image, "--conntrack"]).ok());
        let (report, took) = wake(&lab, &image, &[]);
        all_resumed(&report, 2 * half as usize + 1);
        let after = saved(&lab, family);
        eprintln!(
            "hold, {family:?}, {} connections, cycle {cycle}: frozen for {} us, thawed in {} us, restore took {took:?}",
            2 * half + 1,
            frozen_us(&frozen),
            report["took_ns"].as_u64().expect("a time") / 1000,
        );
        assert_eq!(before.0, after.0);
        assert!(before.1.iter().zip(&after.1).all(|(b, a)| b <= a), "counters went back: {:?} {:?}", before.1, after.1);
        assert!(before.1.iter().sum::<u64>() > 0);
        assert!(of_image.ok().contains(before.0.lines().find(|l| l.contains("REJECT")).expect("a rule")), "{of_image}");
        assert_eq!(connections, asleep);
        assert_eq!(connections, tracked(lab.hibernet(20, &["conntrack", NAME, "-L", "-p", "tcp"]).ok()));
        // What the rules forbid is forbidden still; nothing of it is an empty address.
        let to = format!("/dev/tcp/{}/7001", family.remote());
        let refused = s.sh(10, &format!("exec 3<>{to}"));
        assert!(refused.code != 0 && refused.stderr.contains("refused"), "{} {refused}", bracketed(family.remote()));
    }
    for s in all {
        s.wait_moved(1);
    }
    let moved: Vec<_> = [out, inn, redirected].map(Streams::finish).into();
    assert!(moved.iter().flatten().all(|n| *n > 0), "{moved:?}");
    eprintln!("hold, {family:?}, {} connections: bytes of clients and servers {moved:?}", 2 * half + 1);
}

#[test]
fn one_connection_v4() {
    under_load(Family::V4, 1, 3, &["chunk=400000", "every=20"]);
}

#[test]
fn one_connection_v6() {
    under_load(Family::V6, 1, 3, &["chunk=400000", "every=20"]);
}

#[test]
fn a_hundred_connections_v4() {
    under_load(Family::V4, 100, 3, &["chunk=4000", "every=20"]);
}

#[test]
fn a_hundred_connections_v6() {
    under_load(Family::V6, 100, 3, &["chunk=4000", "every=20"]);
}

#[test]
fn five_thousand_connections_v4() {
    under_load(Family::V4, 5000, 2, &["chunk=300", "every=500"]);
}

#[test]
fn five_thousand_connections_v6() {
    under_load(Family::V6, 5000, 1, &["chunk=300", "every=500"]);
}
