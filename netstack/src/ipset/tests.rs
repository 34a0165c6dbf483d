//! Sets as text and as packets meet them.

use super::text::SetFault;
use super::*;
use crate::conntrack::Track;
use crate::iptables::{Family, SetDirs};
use crate::packet::L4;
use crate::skb::{Altered, Cast, Skb};
use crate::wire::icmp;
use core::net::IpAddr;
use core::time::Duration;

const SRC: SetDirs = SetDirs { count: 1, src: 1 };
const DST: SetDirs = SetDirs { count: 1, src: 0 };
const SRC_DST: SetDirs = SetDirs { count: 2, src: 1 };

fn sets(text: &str) -> Sets {
    Sets::default().restore(text, Time::ZERO).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn refused(text: &str) -> (u32, u32, SetFault) {
    let e = Sets::default().restore(text, Time::ZERO).expect_err(text);
    (e.line, e.column, e.what)
}

fn packet<'a>(src: &str, dst: &str, protocol: u8, ports: (u16, u16)) -> Skb<'a> {
    let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    let header = |ty| icmp::Header { ty, code: 0, checksum: 0, rest: 0 };
    let l4 = if protocol == 1 { L4::Icmp(header(8)) } else { L4::Other };
    Skb {
        input: None,
        output: None,
        src_mac: None,
        src,
        dst,
        protocol,
        sport: ports.0,
        dport: ports.1,
        l4,
        l4_bytes: &[],
        l4_len: 0,
        len: 100,
        tos: 0,
        hop_limit: 64,
        mark: 0,
        zones: [0; 2],
        track: Track::None,
        quoted: None,
        owner: None,
        cast: Cast::Unicast,
        body: crate::edge::Payload::EMPTY,
        ip_bytes: &[],
        traced: false,
        altered: Altered::default(),
    }
}

fn from(src: &str) -> Skb<'static> {
    let dst = if src.contains(':') { "fd00::99" } else { "192.0.2.99" };
    packet(src, dst, 6, (1000, 80))
}

fn asked(dirs: SetDirs) -> Asked {
    Asked { dirs, return_nomatch: false, no_counters: false, no_subcounters: false, packets: None, bytes: None }
}

fn has(sets: &Sets, set: &str, skb: &Skb<'_>, dirs: SetDirs, now: Time) -> bool {
    sets.get(set).unwrap().has(skb, &asked(dirs), now)
}

fn add(sets: &Sets, set: &str, skb: &Skb<'_>, now: Time) -> bool {
    sets.get(set).unwrap().add(skb, &Change { dirs: SRC, exist: false, timeout: None }, now).is_ok()
}

/// What `ipset save -s` 7.17 prints, but for `initval`, which differs from set to set.
const SAVED: &str = "\
create a hash:ip family inet hashsize 1024 maxelem 65536 netmask 24 bucketsize 12
add a 10.0.0.0
add a 10.0.1.0
create a6 hash:ip family inet6 hashsize 128 maxelem 10 timeout 60 counters comment bucketsize 12
add a6 fd00::1 timeout 60 packets 5 bytes 6 comment \"a \\b\"
add a6 fd00::2 timeout 0 packets 0 bytes 0
create b hash:net family inet hashsize 1024 maxelem 65536 timeout 0 counters comment forceadd bucketsize 12 initval 0x00000001
add b 1.2.3.4 timeout 0 packets 0 bytes 0
add b 10.0.0.0/8 timeout 0 packets 0 bytes 0
add b 10.1.0.0/16 timeout 77 nomatch packets 0 bytes 0 comment \"x y\"
create c hash:ip,port family inet hashsize 1024 maxelem 65536 bucketsize 12
add c 1.1.1.2,icmp:host-unreachable
add c 1.1.1.2,icmp:echo-request
add c 1.1.1.2,icmp:250/7
add c 1.1.1.2,tcp:20
add c 1.1.1.2,gre:0
add c 1.1.1.2,99:0
add c 1.1.1.2,sctp:99
create c6 hash:ip,port family inet6 hashsize 1024 maxelem 65536 bucketsize 12
add c6 fd00::1,ipv6-icmp:neighbour-solicitation
create d hash:net,port family inet hashsize 1024 maxelem 65536 bucketsize 12
add d 10.0.0.0/24,tcp:80 nomatch
create e bitmap:port range 1-1000 timeout 5 comment
add e 80 timeout 5 comment \"foo\"
add e 443 timeout 5
create l list:set size 8 timeout 100 counters comment
add l a timeout 100 packets 0 bytes 0
add l c timeout 100 packets 0 bytes 0
";

#[test]
fn what_was_saved_is_printed_as_it_was() {
    let read = sets(SAVED);
    assert_eq!(read.print(Time::ZERO), SAVED);
    let again = sets(&read.print(Time::ZERO));
    assert_eq!(again.save(Time::ZERO), read.save(Time::ZERO));
}

#[test]
fn short_forms_ranges_and_old_names_mean_what_they_mean_to_ipset() {
    let text = "N a iphash\nA a 1.1.1.1-1.1.1.3\na a 2.2.2.0/30\n-N n nethash\nadd n 1.0.0.3-1.0.0.17\nadd n 9.9.9.9/8\n\
                create p hash:ip,port\nadd p 1.1.1.1,http\nadd p 1.1.1.0/31,udp:5-6\n# a comment\n\ncreate m bitmap:port range 9-5\n\
                create x hash:ip -exist\ncreate x hash:ip -exist\nadd -exist x 10.1\nCOMMIT\n";
    let text = text.replace("\nA a", "\n-A a").replacen("N a", "-N a", 1);
    let printed = sets(&text).print(Time::ZERO);
    let elements: Vec<_> = printed.lines().filter_map(|l| l.strip_prefix("add ")).collect();
    assert_eq!(
        elements,
        [
            "a 1.1.1.1",
            "a 1.1.1.2",
            "a 1.1.1.3",
            "a 2.2.2.0",
            "a 2.2.2.1",
            "a 2.2.2.2",
            "a 2.2.2.3",
            "n 1.0.0.3",
            "n 1.0.0.4/30",
            "n 1.0.0.8/29",
            "n 1.0.0.16/31",
            "n 9.0.0.0/8",
            "p 1.1.1.0,udp:5",
            "p 1.1.1.0,udp:6",
            "p 1.1.1.1,tcp:80",
            "p 1.1.1.1,udp:5",
            "p 1.1.1.1,udp:6",
            "x 10.0.0.1",
        ]
    );
    assert!(printed.contains("create m bitmap:port range 5-9\n"), "{printed}");
}

#[test]
fn what_cannot_be_is_refused_at_its_place() {
    let made = "create a hash:ip\ncreate n hash:net\ncreate c hash:ip,port\ncreate l list:set\ncreate s hash:ip maxelem 2\n";
    let on = |line: &str| {
        let (at, column, what) = refused(&format!("{made}{line}\n"));
        assert_eq!(at, 6, "{line}");
        (column, what)
    };
    assert_eq!(on("foo"), (1, SetFault::Command));
    assert_eq!(on("create a hash:ip"), (8, SetFault::SetExists));
    assert_eq!(on("create x hash:mac"), (10, SetFault::Type));
    assert_eq!(on("create x hash:ip maxelem 1048577").0, 26);
    assert_eq!(on("create x hash:ip timeout 2147484").0, 26);
    assert_eq!(on("create x hash:ip timeout 5 timeout 6"), (28, SetFault::Repeated));
    assert_eq!(on("create x hash:ip netmask 33").0, 26);
    assert_eq!(on("create x hash:net netmask 24"), (19, SetFault::Option));
    assert!(matches!(on("create x hash:ip skbinfo"), (18, SetFault::Unsupported(_))));
    assert!(matches!(on("create x bitmap:port"), (_, SetFault::Missing(_))));
    assert_eq!(on("create nam01234567890123456789012345678 hash:ip"), (8, SetFault::Name));
    assert_eq!(on("add nix 1.1.1.1"), (5, SetFault::NoSet));
    for bad in ["0.0.0.0", "1.1.1.256", "1.1.1.1/33", "1.1.1.1/0", "fd00::1", "host.example", "1.1.1.1-x"] {
        let (column, what) = on(&format!("add a {bad}"));
        assert!(column >= 7 && matches!(what, SetFault::Value(_)), "{bad}: {what:?}");
    }
    assert!(matches!(on("add n 0.0.0.0-255.255.255.255"), (7, SetFault::Value(_))));
    assert!(matches!(on("add c 1.1.1.1"), (7, SetFault::Missing(_))));
    assert!(matches!(on("add c 1.1.1.1,foo:5"), (15, SetFault::Value(_))));
    assert!(matches!(on("add c 1.1.1.1,gre:5"), (19, SetFault::Value(_))));
    assert!(matches!(on("add c 1.1.1.1,icmp:foo"), (20, SetFault::Value(_))));
    assert_eq!(on("add a 1.1.1.1 timeout 5"), (15, SetFault::Without("timeout")));
    assert_eq!(on("add a 1.1.1.1 comment x"), (15, SetFault::Without("comment")));
    assert_eq!(on("add a 1.1.1.1 nomatch"), (15, SetFault::Option));
    assert_eq!(on("add a 1.1.1.1 comment \"x"), (23, SetFault::OpenQuote));
    assert_eq!(on("add l nix"), (7, SetFault::NoSet));
    assert_eq!(on("add l l"), (7, SetFault::ListInList));
    assert_eq!(on("add s 1.1.1.1-1.1.1.9"), (7, SetFault::Refused(Refused::Full)));
    assert_eq!(on("add c 1.0.0.0/8,tcp:0-65535"), (7, SetFault::Refused(Refused::Full)));
    assert_eq!(refused("create a hash:ip\nadd a 1.1.1.1\nadd a 1.1.1.1\n"), (3, 7, SetFault::Refused(Refused::Exists)));
    let steps = format!("create a hash:ip maxelem 1048576\n{}", "add -exist a 1.0.0.0/12\n".repeat(5));
    assert_eq!(refused(&steps), (6, 14, SetFault::TooMany));
}

#[test]
fn packets_are_found_by_the_parts_that_the_rule_names() {
    let sets = sets(SAVED);
    let now = Time::ZERO;
    assert!(has(&sets, "a", &from("10.0.0.77"), SRC, now), "netmask 24");
    assert!(!has(&sets, "a", &from("10.0.0.77"), DST, now));
    assert!(!has(&sets, "a", &from("fd00::1"), SRC, now), "of the other family");
    assert!(has(&sets, "a6", &from("fd00::1"), SRC, now));
    assert!(has(&sets, "c", &packet("1.1.1.2", "9.9.9.9", 6, (1, 20)), SRC_DST, now));
    assert!(!has(&sets, "c", &packet("1.1.1.2", "9.9.9.9", 6, (20, 1)), SRC_DST, now));
    assert!(!has(&sets, "c", &packet("1.1.1.2", "9.9.9.9", 17, (1, 20)), SRC_DST, now));
    assert!(!has(&sets, "c", &packet("1.1.1.2", "9.9.9.9", 6, (1, 20)), SRC, now), "a set of two parts, asked about one");
    assert!(has(&sets, "c", &packet("1.1.1.2", "9.9.9.9", 1, (0, 0)), SRC_DST, now), "an echo request");
    assert!(has(&sets, "c", &packet("1.1.1.2", "9.9.9.9", 47, (0, 0)), SRC_DST, now));
    assert!(has(&sets, "e", &packet("1.1.1.2", "9.9.9.9", 17, (1, 443)), DST, now));
    assert!(!has(&sets, "e", &packet("1.1.1.2", "9.9.9.9", 47, (1, 443)), DST, now));
    assert!(has(&sets, "l", &from("10.0.1.1"), SRC, now));
    assert!(has(&sets, "l", &packet("1.1.1.2", "9.9.9.9", 6, (1, 20)), SRC_DST, now));
}

#[test]
fn exceptions_are_no_elements_but_when_they_are_asked_for() {
    let sets = sets(SAVED);
    let find = |src: &str, return_nomatch| {
        let asked = Asked { return_nomatch, ..asked(SRC) };
        sets.get("b").unwrap().has(&from(src), &asked, Time::ZERO)
    };
    let seen = |src| (find(src, false), find(src, true));
    assert_eq!(seen("10.2.0.1"), (true, false));
    assert_eq!(seen("10.1.0.1"), (false, true), "the longest prefix decides");
    assert_eq!(seen("11.0.0.1"), (false, false));
}

#[test]
fn counters_count_before_they_are_compared() {
    let sets = sets("create a hash:ip counters\nadd a 1.1.1.1\ncreate l list:set counters\nadd l a\n");
    let set = sets.get("a").unwrap();
    let more = Asked { packets: Some(CounterTest::Greater(1)), ..asked(SRC) };
    assert!(!set.has(&from("1.1.1.1"), &more, Time::ZERO));
    assert!(set.has(&from("1.1.1.1"), &more, Time::ZERO));
    let quiet = Asked { no_counters: true, bytes: Some(CounterTest::Equal(200)), ..asked(SRC) };
    assert!(set.has(&from("1.1.1.1"), &quiet, Time::ZERO) && set.has(&from("1.1.1.1"), &quiet, Time::ZERO));
    let list = sets.get("l").unwrap();
    list.has(&from("1.1.1.1"), &Asked { no_subcounters: true, ..asked(SRC) }, Time::ZERO);
    let printed = sets.print(Time::ZERO);
    assert!(
        printed.contains("add a 1.1.1.1 packets 2 bytes 200\n") && printed.contains("add l a packets 1 bytes 100\n"),
        "{printed}"
    );
}

#[test]
fn elements_end_with_their_time() {
    let sets = sets("create a hash:ip timeout 10 maxelem 2\nadd a 1.1.1.1\nadd a 1.1.1.2 timeout 0\n");
    let at = |s: u64| Time::ZERO + Duration::from_secs(s);
    assert!(has(&sets, "a", &from("1.1.1.1"), SRC, at(9)));
    assert!(!add(&sets, "a", &from("1.1.1.3"), at(9)), "full");
    assert!(!has(&sets, "a", &from("1.1.1.1"), SRC, at(10)));
    assert!(add(&sets, "a", &from("1.1.1.3"), at(10)), "one has made room");
    assert!(has(&sets, "a", &from("1.1.1.2"), SRC, at(1 << 30)));
    assert_eq!(sets.print(at(15)).lines().skip(1).collect::<Vec<_>>(), ["add a 1.1.1.2 timeout 0", "add a 1.1.1.3 timeout 5"]);
    assert!(sets.get("a").unwrap().del(&from("1.1.1.2"), SRC, at(16)));
    assert!(!sets.get("a").unwrap().del(&from("1.1.1.2"), SRC, at(16)));
}

#[test]
fn what_rules_add_counts_begins_anew_and_pushes_others_out_only_if_it_may() {
    let sets =
        sets("create a hash:ip timeout 10 counters\ncreate f hash:ip maxelem 1 forceadd\ncreate n hash:net\nadd n 9.9.0.0/16\n");
    let set = sets.get("a").unwrap();
    assert!(add(&sets, "a", &from("1.1.1.1"), Time::ZERO) && !add(&sets, "a", &from("1.1.1.1"), Time::ZERO));
    let again = Change { dirs: SRC, exist: true, timeout: Some(60) };
    set.has(&from("1.1.1.1"), &asked(SRC), Time::ZERO);
    set.add(&from("1.1.1.1"), &again, Time::ZERO).unwrap();
    assert!(sets.print(Time::ZERO).contains("add a 1.1.1.1 timeout 60 packets 1 bytes 100\n"));
    assert!(add(&sets, "f", &from("1.1.1.1"), Time::ZERO) && add(&sets, "f", &from("1.1.1.2"), Time::ZERO));
    assert!(!has(&sets, "f", &from("1.1.1.1"), SRC, Time::ZERO) && has(&sets, "f", &from("1.1.1.2"), SRC, Time::ZERO));
    assert!(add(&sets, "n", &from("1.1.1.1"), Time::ZERO));
    assert!(sets.print(Time::ZERO).contains("add n 1.1.0.0/16\n"), "of the longest prefix that there is");
}

#[test]
fn a_set_is_constant_as_long_as_only_the_operator_changes_it() {
    let sets = sets("create a hash:ip\ncreate t hash:ip timeout 5\ncreate c hash:ip counters\ncreate l list:set\nadd l a\n");
    let constant = |name| sets.get(name).unwrap().is_constant();
    assert_eq!(["a", "t", "c", "l"].map(constant), [true, false, false, true]);
    sets.get("l").unwrap().rules_change_it();
    assert_eq!(["a", "l"].map(constant), [false, false]);
}

#[test]
fn sets_are_saved_and_what_cannot_be_is_refused() {
    let saved = sets(SAVED).save(Time::ZERO);
    let loaded = Sets::load(saved.clone(), rng::Key(5, 6)).unwrap();
    assert_eq!((loaded.print(Time::ZERO), loaded.save(Time::ZERO)), (SAVED.to_owned(), saved.clone()));
    let later = Time::ZERO + Duration::from_millis(5_500);
    assert!(!loaded.print(later).contains("add e "), "they go on to age");
    let json = serde_json::to_string(&saved).unwrap();
    let forged = |a: &str, b: &str| {
        assert!(json.contains(a), "{a} in {json}");
        Sets::load(serde_json::from_str(&json.replacen(a, b, 1)).unwrap(), rng::Key(0, 0)).map(|_| ())
    };
    for (a, b) in [
        ("\"name\":\"a6\"", "\"name\":\"a\""),
        ("\"name\":\"a6\"", "\"name\":\"\""),
        ("\"maxelem\":10,", "\"maxelem\":1,"),
        ("\"maxelem\":10,", "\"maxelem\":4294967295,"),
        ("\"netmask\":24", "\"netmask\":0"),
        ("\"netmask\":24", "\"netmask\":129"),
        ("\"prefix\":24", "\"prefix\":200"),
        ("\"nomatch\":false", "\"nomatch\":true"),
        ("[[0,{", "[[7,{"),
        ("[[0,{", "[[99,{"),
    ] {
        assert!(forged(a, b).is_err(), "{a} -> {b}");
    }
}

#[test]
fn families_are_those_of_hashes() {
    let sets = sets(SAVED);
    let takes = |name: &str| [Family::V4, Family::V6].map(|f| sets.get(name).unwrap().head().takes(f));
    assert_eq!(["a", "a6", "e", "l"].map(takes), [[true, false], [false, true], [true, true], [true, true]]);
}
