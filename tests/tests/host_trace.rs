//! `hibernet trace`: why packets took their path, of a running sandbox with real programs.

use hibernet_tests::lab::{Done, Lab, Proc, Sandbox};
use serde_json::Value;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(25);

fn rules(lab: &Lab, text: &str) {
    let file = lab.path("rules");
    std::fs::write(&file, text).expect("file");
    lab.hibernet(10, &["rules", "restore", "web", &file]).ok();
}

fn trace(lab: &Lab, options: &[&str]) -> Proc {
    lab.spawn_hibernet(&[&["trace", "web", "--timeout", "20"], options].concat())
}

/// Pings until the trace has seen enough; what it has shown.
fn seen(mut trace: Proc, from: &Sandbox<'_>, to: &str) -> String {
    let end = std::time::Instant::now() + SOON;
    while trace.running() && std::time::Instant::now() < end {
        from.run(5, &["ping", "-c", "1", "-W", "1", to]);
    }
    assert_eq!(trace.wait(SOON), 0, "{}", trace.output());
    trace.output()
}

/// The lines stand in this order.
#[track_caller]
fn in_order(text: &str, lines: &[&str]) {
    let mut rest = text;
    for line in lines {
        let at = rest.find(line).unwrap_or_else(|| panic!("{line:?} is not (there) in\n{text}"));
        rest = &rest[at + line.len()..];
    }
}

#[test]
fn a_filter_shows_the_way_of_packets() {
    let Some(lab) = Lab::new(&["ping"]) else { return };
    let web = Sandbox::start(&lab, &["--name", "web"]);
    let db = Sandbox::start(&lab, &["--name", "db", "--join", "web"]);
    rules(
        &lab,
        "*filter\n:FORWARD ACCEPT\n:OWN -\n-A FORWARD -p udp -j ACCEPT\n-A FORWARD -i tap1 -o tap0 -j OWN\n\
         -A OWN -p tcp -j ACCEPT\n-A OWN -m conntrack --ctstate NEW -j DROP\nCOMMIT\n",
    );
    let refused = seen(trace(&lab, &["-p", "icmp", "-i", "tap1", "-n", "1"]), &db, "10.0.2.15");
    let way = [
        "IN=tap1 OUT=",
        "SRC=10.0.3.15 DST=10.0.2.15",
        "    routed to tap0\n",
        "-A FORWARD -i tap1 -o tap0 -j OWN\n",
        "    filter OWN 2: -A OWN -m conntrack --ctstate NEW -j DROP\n",
        "    dropped: rule\n",
    ];
    in_order(&refused, &way);
    assert!(!refused.contains("-p udp"), "a rule that it does not fit:\n{refused}");
    let passed = seen(trace(&lab, &["-s", "10.0.2.0/24", "-d", "10.0.3.15", "-n", "1"]), &web, "10.0.3.15");
    in_order(&passed, &["IN=tap0", "routed to tap1", "filter FORWARD policy: -P FORWARD ACCEPT", "    passed\n"]);
    let local = seen(trace(&lab, &["-d", "10.0.3.2", "-n", "1"]), &db, "10.0.3.2");
    in_order(&local, &["IN=tap1", "routed to the gateway itself", "filter INPUT policy: -P INPUT ACCEPT", "    passed\n"]);
    // By where it leaves, as JSON.
    let json = seen(trace(&lab, &["-p", "icmp", "-o", "tap0", "-n", "2", "--json"]), &db, "10.0.2.15");
    for line in json.lines() {
        let packet: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let steps = packet["steps"].as_array().expect("steps");
        assert!(steps.iter().any(|s| s["step"] == "route" && s["to"] == "tap0"), "{line}");
        assert_eq!(steps.last().expect("a step")["step"], "end", "{line}");
    }
    assert_eq!(json.lines().count(), 2, "{json}");
}

#[test]
fn trace_rules_show_theirs_and_only_one_traces() {
    let Some(lab) = Lab::new(&["ping"]) else { return };
    let web = Sandbox::start(&lab, &["--name", "web"]);
    rules(&lab, "*raw\n-A PREROUTING -p icmp -j TRACE\nCOMMIT\n");
    let shown = seen(trace(&lab, &["-n", "1"]), &web, "10.0.2.2");
    in_order(&shown, &["raw PREROUTING policy: -P PREROUTING ACCEPT", "routed to the gateway itself", "    passed\n"]);
    rules(&lab, "*filter\nCOMMIT\n");
    let none: Done = lab.hibernet(10, &["trace", "web", "--timeout", "1"]);
    assert_eq!(none.ok(), "");
    let mut first = trace(&lab, &["--all"]);
    let busy = |lab: &Lab| lab.hibernet(10, &["trace", "web", "--all", "--timeout", "0"]);
    hibernet_tests::lab::wait_until("it traces", SOON, || {
        web.run(5, &["ping", "-c", "1", "10.0.2.2"]).ok();
        first.output().contains("IN=tap0")
    });
    let second = busy(&lab);
    assert!(second.code != 0 && second.stderr.contains("somebody else traces"), "{second}");
    // Who is killed does not trace any more.
    first.signal("KILL");
    first.wait(SOON);
    hibernet_tests::lab::wait_until("the first is forgotten", SOON, || busy(&lab).code == 0);
    for (options, word) in
        [(&["-i", "eth7"][..], "eth7"), (&["-p", "nonsense"], "nonsense"), (&["-s", "10.0.0.0/99"], "10.0.0.0/99")]
    {
        let done = lab.hibernet(10, &[&["trace", "web", "--timeout", "1"], options].concat());
        assert!(done.code != 0 && done.stderr.contains(word), "{done}");
    }
    web.run(5, &["ping", "-c", "1", "10.0.2.2"]).ok();
}

/// However much passes, what is shown and held is bounded.
#[test]
fn a_flood_is_traced_in_part() {
    let Some(lab) = Lab::new(&["ping"]) else { return };
    let web = Sandbox::start(&lab, &["--name", "web"]);
    let mut all = trace(&lab, &["--all", "-n", "150"]);
    let flood = web.run(20, &["ping", "-q", "-f", "-c", "20000", "10.0.2.2"]);
    assert!(flood.ok().contains("20000 received"), "{flood}");
    let _more = web.spawn(&["ping", "-q", "-i", "0.01", "-c", "2000", "10.0.2.2"]);
    assert_eq!(all.wait(SOON), 0);
    let shown = all.output();
    assert!(shown.contains("came too fast"), "{}", &shown[shown.len().saturating_sub(300)..]);
}
