//! The sections of a stack's state, the records of tracked connections, and a whole image of them.
//!
//! The canonical values stand beside the golden files as text (`NAME.vVERSION.json`): what the file of that version is read as today. They were
//! taken from a [lively](hibernet_tests::lively) stack once, and what the stack does since changes nothing of them.

use crate::{Format, directory, state};
use hibernet_netstack::conntrack::image::{Family, Head, record_size};
use hibernet_netstack::conntrack::{Conn, ConnId};
use hibernet_netstack::image::kind;
use hibernet_netstack::ipset::{Sets, SetsState};
use hibernet_netstack::iptables::{ConnlimitState, HashlimitState, RecentState};
use hibernet_netstack::state::{Randomness, StackState};
use hibernet_netstack::stats::StatsState;
use hibernet_netstack::{Stack, Time};
use hibernet_snapshot::{Image, SectionState};
use hibernet_tests::{World, image, lively};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::fs;

/// Number of the newest golden image: raised when the level of images is, and when there are more counters.
const IMAGE: u16 = 3;

fn writes() -> bool {
    std::env::var_os("HIBERNET_GOLDEN").is_some_and(|v| v == "write")
}

/// The canonical text of this name; made, if it is to be.
fn text(name: &str, make: impl FnOnce() -> String) -> String {
    let path = directory().join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| {
        assert!(writes(), "{name}: {e}; if its version is new, HIBERNET_GOLDEN=write makes it");
        let text = make();
        fs::write(&path, &text).expect("written");
        text
    })
}

fn value<T: Serialize + DeserializeOwned>(name: &str, version: u16, of: &dyn Fn() -> T) -> T {
    let json = text(&format!("{name}.v{version}.json"), || serde_json::to_string_pretty(&of()).expect("a value") + "\n");
    serde_json::from_str(&json).unwrap_or_else(|e| panic!("{name}.v{version}.json: {e}"))
}

fn section<T>(name: &'static str, of: impl Fn(StackState) -> T + 'static) -> Format
where
    T: SectionState + Serialize + DeserializeOwned + PartialEq + Debug,
{
    let make = move || of(lively().stack.save());
    Format { texts: true, ..state(name, move |version| value(name, version, &make)) }
}

pub fn formats() -> Vec<Format> {
    vec![
        section("config", |s| s.config),
        section("links", |s| s.links),
        section("rules", |s| s.rules),
        Format { texts: true, ..state("sets", |version| value("sets", version, &sets)) },
        Format { texts: true, ..state("recent", |version| value("recent", version, &recent)) },
        Format { texts: true, ..state("hashlimit", |version| value("hashlimit", version, &hashlimit)) },
        Format { texts: true, ..state("connlimit", |version| value("connlimit", version, &connlimit)) },
        section("gateway", |s| s.gateway),
        section("tcp", |s| s.tcp),
        section("udp", |s| s.udp),
        section("icmp", |s| s.icmp),
        section("stats", |s| s.stats),
        Format { texts: true, ..state("conntrack", |version| value("conntrack", version, &|| head(&lively()))) },
        whole(),
    ]
}

/// A set of every kind.
fn sets() -> SetsState {
    let text = "create a hash:ip timeout 60 counters comment\nadd a 192.0.2.1 packets 5 bytes 6 comment \"a b\"\n\
                create b hash:net family inet6 initval 0x5\nadd b fd00::/8\nadd b fd01::/16 nomatch\n\
                create c hash:ip,port\nadd c 192.0.2.1,udp:53\ncreate d hash:net,port\nadd d 192.0.2.0/24,80\n\
                create e bitmap:port range 1-1000\nadd e 80\ncreate l list:set timeout 9\nadd l a\n";
    Sets::default().restore(text, Time::ZERO).expect("sets").save(Time::ZERO)
}

/// A table with addresses of both families.
fn recent() -> RecentState {
    serde_json::from_str(
        r#"{"tables":[["ssh",{"mask":[255,255,255,255,0,0,0,0,0,0,0,0,0,0,0,0],"stamps":32,"entries":[
        {"addr":[192,0,2,1,0,0,0,0,0,0,0,0,0,0,0,0],"v6":false,"ttl":64,"stamps":[5000000000,6000000000],"index":2},
        {"addr":[253,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],"v6":true,"ttl":0,"stamps":[7000000000],"index":1}]}]]}"#,
    )
    .expect("a state")
}

/// A table of each family: one of tokens, and one of rates of bytes.
fn hashlimit() -> HashlimitState {
    let addr = |first: [u8; 4]| {
        let mut all = [0; 16];
        all[..4].copy_from_slice(&first);
        all
    };
    let rule = |name: &str, mode: u8, bytes: bool, prefix: u8, interval: Option<u32>| {
        serde_json::json!({"above": bytes, "bytes": bytes, "avg": 1000, "burst": 5, "mode": mode, "name": name, "src_prefix": prefix,
            "dst_prefix": prefix, "size": 16, "max": 100, "expire": 10000, "gc_interval": 1000, "interval": interval})
    };
    let bucket =
        |src: [u8; 4], dport: u16| serde_json::json!({"src": addr(src), "dst": addr([0; 4]), "sport": 0, "dport": dport});
    let entry = |n: u64| serde_json::json!({"since": n, "expires": n + 2500, "credit": 7 * n, "cap": 9 * n, "above": n > 50});
    let tables = serde_json::json!({"tables": [
        {"v6": false, "rule": rule("a", 6, false, 24, None),
         "entries": [[bucket([192, 0, 2, 0], 80), entry(3)], [bucket([192, 0, 2, 0], 81), entry(4)]]},
        {"v6": true, "rule": rule("b", 4, true, 16, Some(3)), "entries": [[bucket([0xfd, 1, 0, 0], 0), entry(100)]]},
    ]});
    serde_json::from_value(tables).expect("a state")
}

/// Two rules of IPv4, one of IPv6.
fn connlimit() -> ConnlimitState {
    let tuple = |src: u32, sport: u16, v6: bool| {
        let words = if v6 { [0xfd00_0000, 0, 0, src] } else { [0, 0, 0xffff, src] };
        serde_json::json!({"src": words, "dst": words, "sport": sport, "dport": 80, "zone": 0, "proto": 6, "v6": v6})
    };
    let group = |addr: [u8; 4], tuples: Vec<serde_json::Value>| {
        let mut key = [0; 16];
        key[..4].copy_from_slice(&addr);
        serde_json::json!([[key, 0], tuples])
    };
    let rule = |prefix: u8, groups: Vec<serde_json::Value>| serde_json::json!({"prefix": prefix, "dest": prefix == 32, "groups": groups});
    let v4 = vec![
        rule(24, vec![group([192, 0, 2, 0], vec![tuple(0xc000_0201, 1, false), tuple(0xc000_0202, 2, false)])]),
        rule(32, Vec::new()),
    ];
    let v6 = vec![rule(16, vec![group([0xfd, 0, 0, 0], vec![tuple(1, 5, true)])])];
    serde_json::from_value(serde_json::json!({"families": [v4, v6]})).expect("a state")
}

fn head(w: &World) -> Head {
    w.stack.conntrack().save().head().clone()
}

fn whole() -> Format {
    let name = format!("stack.v{IMAGE}.bin");
    let golden = fs::read(directory().join(&name));
    let bytes = golden.unwrap_or_else(|_| {
        let w = lively();
        image::save(&w.stack, w.now())
    });
    let again = restored(&bytes).map(|(stack, now)| image::save(&stack, now));
    Format {
        name: "stack".into(),
        versions: 1..=IMAGE,
        // What is read is written again as it was.
        bytes: again.unwrap_or_default(),
        read: Box::new(|version, bytes| {
            let (stack, _) = restored(bytes)?;
            let expected = text(&format!("stack.v{version}.json"), || connections(&stack));
            if connections(&stack) == expected { Ok(()) } else { Err("other connections".into()) }
        }),
        write: Box::new(|number| {
            let old = fs::read(directory().join(format!("stack.v{number}.bin"))).map_err(|e| e.to_string())?;
            let (stack, now) = restored(&old)?;
            let level = parse(&old)?.inventory().level(&image::known()).ok_or("it is of no known level")?;
            let again = image::write_at(level, now, &stack.save(), &stack.conntrack().save()).map_err(|e| e.to_string())?;
            same_sections(&parse(&old)?, &parse(&again)?)?;
            Ok(old)
        }),
        texts: true,
    }
}

fn parse(bytes: &[u8]) -> Result<Image<'_>, String> {
    Image::parse(bytes, &image::known()).map_err(|e| e.to_string())
}

/// Whether two images have the same sections, byte for byte; but statistics may have counters that are new, at zero.
fn same_sections(old: &Image<'_>, new: &Image<'_>) -> Result<(), String> {
    let of = |image: &Image<'_>| -> Result<Vec<_>, String> {
        let section = |s: hibernet_snapshot::SectionRef<'_>| {
            let bytes = s.chunks().map(|c| (0..c.len()).map(|n| c.chunk(n).map(<[u8]>::to_vec)).collect::<Result<Vec<_>, _>>());
            let body = bytes.unwrap_or_else(|_| s.body().map(|b| vec![b.to_vec()])).map_err(|e| e.to_string())?;
            Ok((s.entry().kind, s.entry().version, body))
        };
        image.sections().map(section).collect()
    };
    let (old_ones, new_ones) = (of(old)?, of(new)?);
    let kinds = |all: &[(_, u16, _)]| all.iter().map(|(kind, version, _)| (*kind, *version)).collect::<Vec<_>>();
    if kinds(&old_ones) != kinds(&new_ones) {
        return Err(format!("other sections: {:?}, not {:?}", kinds(&new_ones), kinds(&old_ones)));
    }
    for ((kind, _, a), (.., b)) in old_ones.iter().zip(&new_ones).filter(|(a, b)| a != b) {
        let counters = |image: &Image<'_>| -> Result<Vec<(String, u64)>, String> {
            let state: StatsState = image.state().map_err(|e| e.to_string())?;
            let json = serde_json::to_value(&state).map_err(|e| e.to_string())?;
            serde_json::from_value(json["counters"].clone()).map_err(|e| e.to_string())
        };
        let known = counters(old)?;
        let added = |(name, n): &&(String, u64)| *n == 0 && known.iter().all(|(k, _)| k != name);
        let rest: Vec<_> = counters(new)?.iter().filter(|c| !added(c)).cloned().collect();
        if *kind != kind::STATS || rest != known {
            return Err(format!("section {kind} has {b:x?}, not {a:x?}"));
        }
    }
    Ok(())
}

fn restored(bytes: &[u8]) -> Result<(Stack, Time), String> {
    let parsed = parse(bytes)?;
    parsed.check().map_err(|e| e.to_string())?;
    let now = Time::from_nanos(parsed.inventory().header.stack_time);
    Ok((image::restore(bytes, Randomness::Replay([1; 16], 0), &[])?, now))
}

/// What the records of connections are read as.
fn connections(stack: &Stack) -> String {
    let table = stack.conntrack();
    let records = table.save();
    let lines = [Family::V4, Family::V6].into_iter().flat_map(|family| {
        let bytes = records.records(family).to_vec();
        bytes.chunks(record_size(family)).map(|r| line(stack, r)).collect::<Vec<_>>()
    });
    format!("[\n{}\n]\n", lines.collect::<Vec<_>>().join(",\n"))
}

fn line(stack: &Stack, record: &[u8]) -> String {
    let number = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().expect("4 bytes"));
    let id = ConnId { index: number(0), generation: number(4) };
    let conn: Conn = stack.conntrack().get(id).expect("it was just saved");
    serde_json::to_string(&format!("{id:?} {conn:?}")).expect("text")
}

/// A stack of the golden image has what the tests of formats are to see.
#[test]
fn the_lively_stack_has_something_of_everything() {
    let w = lively();
    let counts = w.stack.flow_counts();
    assert!(counts.0 >= 14 && counts.1 >= 7 && counts.2 >= 4, "{counts:?}");
    let head = head(&w);
    assert!(head.v4 >= 14 && head.v6 >= 12, "{head:?}");
    let json = serde_json::to_string(&w.stack.save()).expect("a value");
    for missing in ["\"queue\":[]", "\"pieces\":[]"] {
        assert!(json.matches("\"hold\":{").count() > json.matches(missing).count(), "nothing but {missing}");
    }
    assert_eq!(w.stack.service_sockets().count(), 3, "two queries and a published port");
}
