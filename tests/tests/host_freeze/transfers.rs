//! Tier *hold*: downloads, uploads and benchmarks of real programs, through sleep and wake and through `upgrade` (tier *handover*).

use crate::kit::*;
use hibernet_tests::lab::{Family, Lab, Place, Sandbox, bracketed, wait_until};
use std::time::{Duration, Instant};

/// Bytes that came in from the guest and went out to it.
fn link_bytes(lab: &Lab) -> u64 {
    let stats = lab.hibernet(10, &["stats", NAME]);
    let number = |name: &str| stats.ok().lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok());
    number("links.0.rx_bytes").unwrap_or(0) + number("links.0.tx_bytes").unwrap_or(0)
}

/// A transfer of HIBERNET_TRANSFER_MIB (256) at such a rate that three cycles fall into it.
fn curl(family: Family, upload: bool) {
    let Some(lab) = Lab::new(&["curl", "python3", "sha256sum"]) else { return };
    let mib = std::env::var("HIBERNET_TRANSFER_MIB").ok().map_or(256, |s| s.parse::<u64>().expect("a number"));
    let bytes = mib << 20;
    let path = lab.path("big");
    let digest = lab.run(Place::Remote, 120, &strings(&lab.peer("stream.py", &[&path, &bytes.to_string()]))).ok().to_owned();
    let dir = lab.dir().to_string_lossy().into_owned();
    let _server = lab.serve_peer(Place::Remote, "http_store.py", &[&dir], family, 8000);
    let url = format!("http://{}:8000/big", bracketed(family.remote()));
    let s = Sandbox::start(&lab, &["--name", NAME]);
    let (got, image) = (lab.path("got"), lab.path("image"));
    let way = if upload { ["-T", &path] } else { ["-o", &got] };
    let mut argv = vec!["curl", "-sSf", "--limit-rate", "80M", &url];
    argv.extend(way);
    let begin = Instant::now();
    let mut client = s.spawn(&argv);
    let mut frozen = Vec::new();
    for cycle in 1..=3 {
        // The worker counts anew after each wake.
        let share = bytes / 5;
        wait_until("a fifth more has moved", Duration::from_secs(60), || link_bytes(&lab) > share);
        assert!(client.running(), "it is over before cycle {cycle}: {}", client.output());
        frozen.push(frozen_us(&sleep(&s, &lab, &image, &[])));
        let (report, _) = wake(&lab, &image, &[]);
        all_resumed(&report, 1);
    }
    assert_eq!(client.wait(Duration::from_secs(120)), 0, "{}", client.output());
    let hash = if upload { client.output() } else { lab.run(Place::Host, 60, &["sha256sum", &got]).ok().to_owned() };
    assert_eq!(hash.split_whitespace().next(), Some(digest.as_str()));
    eprintln!(
        "hold, {family:?}, upload={upload}: {mib} MiB with three sleeps in {:?}; frozen for {frozen:?} us",
        begin.elapsed()
    );
}

#[test]
fn curl_downloads_through_three_sleeps() {
    curl(Family::V4, false);
    curl(Family::V6, false);
}

#[test]
fn curl_uploads_through_three_sleeps() {
    curl(Family::V4, true);
    curl(Family::V6, true);
}

/// Ways and numbers of flows in which iperf3 is used.
const IPERF3: [(Family, &[&str]); 6] = [
    (Family::V4, &[]),
    (Family::V4, &["-R"]),
    (Family::V6, &[]),
    (Family::V6, &["-R"]),
    (Family::V6, &["--bidir"]),
    (Family::V6, &["-P", "16"]),
];

/// Runs iperf3 both ways, and does something in the middle of each run. A connection that is lost is an error of iperf3's.
fn iperf3(lab: &Lab, s: &Sandbox<'_>, mut in_between: impl FnMut(&str)) {
    let _server = lab.serve(Place::Remote, 5201, &["iperf3", "-s", "-p", "5201", "--forceflush"]);
    for (family, options) in IPERF3 {
        let argv = [&["iperf3", "-c", family.remote(), "-p", "5201", "-J", "-t", "2"], options].concat();
        let before = link_bytes(lab);
        let mut client = s.spawn(&argv);
        wait_until("iperf3 moves data", SOON, || link_bytes(lab) > before + 15_000_000);
        in_between(&format!("iperf3 {family:?} {options:?}"));
        assert_eq!(client.wait(Duration::from_secs(30)), 0, "{}", client.output());
        let result: serde_json::Value =
            serde_json::from_str(&client.output()).unwrap_or_else(|e| panic!("{e}: {}", client.output()));
        assert!(result.get("error").is_none(), "{result:#}");
        let received = result["end"]["sum_received"]["bytes"].as_f64().unwrap_or(0.0);
        eprintln!("{family:?} {options:?}: {:.2} Gbit/s", received * 4e-9);
        assert!(received > 4e6, "{result:#}");
    }
}

/// Another worker takes over under load; every byte of other connections is checked meanwhile.
#[test]
fn upgrade_under_iperf3() {
    let Some(lab) = Lab::new(&["iperf3"]) else { return };
    let s = Sandbox::start(&lab, &["--name", NAME, "-p", "7100-7101:7100"]);
    let pace = ["chunk=500", "every=50"];
    let streams = Family::BOTH.map(|f| {
        let port = if f == Family::V4 { 0 } else { 1 };
        let out = Streams::open(&s, &lab, f, Way::Out(7000 + port), 10, &pace, &pace);
        [out, Streams::open(&s, &lab, f, Way::In(7100 + port, 7100 + port), 10, &pace, &pace)]
    });
    iperf3(&lab, &s, |what| {
        let worker = s.worker();
        let done = json(&lab.hibernet(30, &["upgrade", NAME, "--json"]));
        all_resumed(&done["thawed"], 42);
        assert_ne!(s.worker(), worker, "another process serves");
        wait_until("the old worker has ended", SOON, || !std::path::Path::new(&format!("/proc/{worker}")).exists());
        let us = |v: &serde_json::Value| v.as_u64().expect("a time") / 1000;
        eprintln!(
            "handover, {what}: nothing served for {} us, thawed in {} us",
            us(&done["gap_ns"]),
            us(&done["thawed"]["took_ns"])
        );
        streams.iter().flatten().for_each(|s| s.wait_moved(1));
    });
    assert_eq!(state(&lab), "running");
    streams.into_iter().flatten().for_each(Streams::end);
}

/// The migration suite of passt, on one host: iperf3 in every way, asleep in the middle.
#[test]
fn iperf3_sleeps_and_goes_on() {
    let Some(lab) = Lab::new(&["iperf3"]) else { return };
    let s = Sandbox::start(&lab, &["--name", NAME]);
    let image = lab.path("image");
    iperf3(&lab, &s, |what| {
        let frozen = sleep(&s, &lab, &image, &[]);
        let (report, took) = wake(&lab, &image, &[]);
        all_resumed(&report, 2);
        eprintln!("hold, {what}: frozen for {} us, restore took {took:?}", frozen_us(&frozen));
    });
}
