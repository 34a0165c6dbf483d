//! Tiers *hold* and *repair*: connections that move verified data both ways, under rules and NAT, through sleep and wake.

use crate::kit::*;
use hibernet_tests::lab::{Family, Lab, Place, Sandbox};

/// Nothing but what is named passes; what the guest opens to port 7070 goes to the host's own loopback, by way of REDIRECT.
fn rules(family: Family) -> String {
    let (remote, icmp) = (family.remote(), if family == Family::V4 { "icmp" } else { "icmpv6" });
    format!(
        "*nat\n-A PREROUTING -i tap0 -p tcp --dport 7070 -j REDIRECT --to-ports 7071\n-A POSTROUTING -o host0 -j MASQUERADE\nCOMMIT\n\
         *filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n\
         -A INPUT -p {icmp} -j ACCEPT\n-A FORWARD -p {icmp} -j ACCEPT\n\
         -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
         -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
         -A INPUT -p tcp --dport 7071 -m conntrack --ctstate NEW -j ACCEPT\n\
         -A FORWARD -d {remote} -p tcp --dport 7000:7001 -m conntrack --ctstate NEW -j ACCEPT\n\
         -A FORWARD -p tcp --dport 7100:7101 -m conntrack --ctstate NEW,DNAT -j ACCEPT\n\
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

/// Connections of one family: opened by the guest, through a published port, and through REDIRECT.
fn streams(s: &Sandbox<'_>, lab: &Lab, family: Family, count: u32, pace: &[&str]) -> [Streams; 3] {
    let at = if family == Family::V4 { 0 } else { 1 };
    let half = (count / 2).max(1);
    let out = Streams::open(s, lab, family, Way::Out(7000 + at), half, pace, pace);
    let inn = Streams::open(s, lab, family, Way::In(7100 + at, 7100 + at), half, pace, pace);
    let stop = Streams::stop_file(lab);
    let stop_option = format!("stop={stop}");
    let paced = [&[stop_option.as_str()], pace].concat();
    let program = env!("CARGO_BIN_EXE_streams");
    let server = lab.serve(Place::Host, 7071, &[&[program, "serve", family.loopback(), "7071"], &paced[..]].concat());
    let client = s.spawn(&[&[program, "connect", family.remote(), "7070"], &paced[..]].concat());
    let redirected = Streams::of(client, server, stop);
    redirected.wait_up(1);
    [out, inn, redirected]
}

/// `count` connections of each family, put to sleep so many times.
fn under_load(tier: Tier, count: u32, cycles: u32, pace: &[&str], more: &[&str]) {
    let Some(lab) = Lab::new(&[]) else { return };
    let files = Family::BOTH.map(|f| {
        let file = lab.path(&format!("rules-{f:?}"));
        std::fs::write(&file, rules(f)).expect("file");
        file
    });
    let mut options = vec!["--name", NAME, "--rules", &files[0], "--rules6", &files[1], "-p", "7100-7101:7100"];
    options.extend(["--map-host-loopback", Family::V4.gateway(), "--map-host-loopback", Family::V6.gateway()]);
    options.extend(more);
    let s = Sandbox::start(&lab, &options);
    let all: Vec<_> = Family::BOTH.iter().flat_map(|f| streams(&s, &lab, *f, count, pace)).collect();
    let flows = 2 * (2 * (count as usize / 2).max(1) + 1);
    let image = lab.path("image");
    let moved = || all.iter().for_each(|s| s.wait_moved(1));
    for cycle in 0..cycles {
        moved();
        let before = Family::BOTH.map(|f| saved(&lab, f));
        let connections = tracked(lab.hibernet(20, &["conntrack", NAME, "-L", "-p", "tcp"]).ok());
        assert_eq!(connections.len(), flows, "{}", connections.join("\n"));
        let frozen = sleep(&s, &lab, &image, tier.options());
        let tiers = frozen["flows"].as_array().expect("flows");
        assert!(tiers.iter().all(|f| f["tier"] == tier.name()), "{frozen:#}");
        let of_image = lab.hibernet(20, &["inspect", &image, "--rules"]);
        let asleep = tracked(lab.hibernet(20, &["inspect", &image, "--conntrack"]).ok());
        let (report, took) = wake(&lab, &image, tier.options());
        all_resumed(&report, flows);
        let after = Family::BOTH.map(|f| saved(&lab, f));
        let size = std::fs::metadata(&image).expect("the image").len();
        eprintln!(
            "{}, {flows} connections, cycle {cycle}: frozen for {} us, thawed in {} us, restore took {took:?}, {size} bytes",
            tier.name(),
            frozen_us(&frozen),
            report["took_ns"].as_u64().expect("a time") / 1000,
        );
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before.0, after.0);
            assert!(before.1.iter().zip(&after.1).all(|(b, a)| b <= a), "counters went back: {:?} {:?}", before.1, after.1);
            assert!(before.1.iter().sum::<u64>() > 0);
            assert!(of_image.ok().contains(before.0.lines().find(|l| l.contains("-j REJECT")).expect("a rule")), "{of_image}");
        }
        assert_eq!(connections, asleep);
        assert_eq!(connections, tracked(lab.hibernet(20, &["conntrack", NAME, "-L", "-p", "tcp"]).ok()));
        for family in Family::BOTH {
            let refused = s.sh(10, &format!("exec 3<>/dev/tcp/{}/7005", family.remote()));
            assert!(refused.code != 0 && refused.stderr.contains("refused"), "what was forbidden is forbidden: {refused}");
        }
    }
    moved();
    let moved: Vec<_> = all.into_iter().map(Streams::finish).collect();
    eprintln!("{}, {flows} connections: bytes of clients and servers {moved:?}", tier.name());
}

#[test]
fn one_connection() {
    for tier in Tier::BOTH {
        under_load(tier, 1, 3, &["chunk=400000", "every=20"], &[]);
    }
}

#[test]
fn a_hundred_connections() {
    for tier in Tier::BOTH {
        under_load(tier, 100, 3, &["chunk=4000", "every=20"], &[]);
    }
}

#[test]
fn a_hundred_connections_of_three_workers() {
    for tier in Tier::BOTH {
        under_load(tier, 100, 3, &["chunk=4000", "every=20"], &["--workers", "3"]);
    }
}

#[test]
fn five_thousand_connections_held() {
    under_load(Tier::Hold, 2500, 2, &["chunk=300", "every=500"], &[]);
}

#[test]
fn five_thousand_connections_repaired() {
    under_load(Tier::Repair, 2500, 2, &["chunk=300", "every=500"], &[]);
}
