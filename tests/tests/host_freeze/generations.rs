//! Which image belongs to which sockets: living networks, images that are too old, clones, other sandboxes. Tiers: *hold*, and *reset* for whatever
//! has no socket any more.

use crate::kit::*;
use hibernet_tests::lab::{Done, Family, Lab, Place, Proc, Sandbox, bracketed, wait_until};
use std::time::Duration;

/// A sandbox with a connection in each family of which each end says how it ends.
struct Held {
    servers: Vec<Proc>,
    clients: Vec<Proc>,
}

impl Held {
    fn new(lab: &Lab, s: &Sandbox<'_>) -> Held {
        let mut held = Held { servers: Vec::new(), clients: Vec::new() };
        for family in Family::BOTH {
            held.servers.push(lab.spawn(Place::Remote, &strings(&lab.peer("hold.py", &["serve", family.remote(), "444"]))));
            let server = held.servers.last().expect("just put");
            wait_until("the server is ready", SOON, || server.output().contains("ready"));
            held.clients.push(s.spawn(&strings(&lab.peer("hold.py", &[family.remote(), "444"]))));
            let client = held.clients.last().expect("just put");
            wait_until("it is connected", SOON, || client.output().contains("connected"));
        }
        held
    }

    /// Every connection is open at both ends.
    fn alive(&mut self) {
        for c in &mut self.clients {
            assert!(c.running(), "{}", c.output());
            assert_eq!(c.output().lines().count(), 1, "{}", c.output());
        }
        for s in &self.servers {
            assert_eq!(s.output().lines().count(), 2, "{}", s.output());
        }
    }

    /// The guest is told at once, with a reset, and the peer hears of it too.
    fn reset(&self) {
        wait_until("the guest gets resets", Duration::from_secs(2), || {
            self.clients.iter().all(|c| c.output().lines().count() > 1)
        });
        for c in &self.clients {
            assert_eq!(c.output().lines().last(), Some("ECONNRESET"));
        }
        wait_until("peers hear of it", SOON, || self.servers.iter().all(|c| c.output().lines().count() > 2));
    }
}

fn all_stale(report: &serde_json::Value, count: usize) {
    assert_eq!(outcomes(report), [0, count, 0], "{report:#}");
    for f in report["flows"].as_array().expect("flows") {
        assert!(f["why"].as_str().is_some_and(|w| w.contains("stale generation")), "{f}");
    }
}

/// Tier *reset* in the images, since the sockets go on; nobody notices anything.
#[test]
fn ten_checkpoints_of_a_living_network() {
    let Some(lab) = Lab::new(&[]) else { return };
    let s = Sandbox::start(&lab, &["--name", NAME, "-p", "7100-7101:7100"]);
    let pace = ["chunk=1000", "every=50"];
    let mut all = Vec::new();
    for family in Family::BOTH {
        let p = 7100 + family as u16;
        all.push(Streams::open(&s, &lab, family, Way::Out(p - 100), 50, &pace, &pace));
        all.push(Streams::open(&s, &lab, family, Way::In(p, p), 50, &pace, &pace));
    }
    let worker = s.worker();
    let (image, mut frozen) = (lab.path("image"), Vec::new());
    let mut generations = Vec::new();
    for _ in 0..10 {
        let done = lab.hibernet(30, &["checkpoint", NAME, &image, "--live", "--leave-running", "--json"]);
        let report = json(&done);
        frozen.push(frozen_us(&report));
        generations.push(report["generation"].as_str().expect("a generation").to_owned());
        let contents = json(&lab.hibernet(10, &["inspect", &image, "--json"]));
        assert_eq!((&contents["generation"], &contents["went_on"]), (&report["generation"], &true.into()));
        assert_eq!(contents["flows"], 200);
        all.iter().for_each(|s| s.wait_moved(1));
    }
    generations.dedup();
    assert_eq!(generations.len(), 10);
    assert_eq!((s.worker(), state(&lab).as_str()), (worker, "running"));
    eprintln!("live, 200 connections: frozen for {frozen:?} us");
    all.into_iter().for_each(Streams::end);
}

#[test]
fn nothing_was_tracked_yet() {
    let Some(lab) = Lab::new(&[]) else { return };
    let s = Sandbox::start(&lab, &["--name", NAME]);
    let image = lab.path("image");
    let live = lab.path("live");
    json(&lab.hibernet(30, &["checkpoint", NAME, &live, "--live", "--leave-running", "--json"]));
    let frozen = sleep(&s, &lab, &image, &["--require", "all"]);
    assert_eq!((frozen["connections"].as_u64(), frozen["flows"].as_array().map(Vec::len)), (Some(0), Some(0)));
    wake(&lab, &image, &[]);
    for family in Family::BOTH {
        let total = ["total=100000"];
        let streams = Streams::open(&s, &lab, family, Way::Out(7000 + family as u16), 5, &total, &total);
        assert_eq!(streams.finish(), [500_000; 2]);
    }
}

/// Restored again, from an older image, from that of a network that went on, or with the token of another freeze.
#[test]
fn images_that_do_not_match_the_sockets() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let s = Sandbox::start(&lab, &["--name", NAME]);
    let [first, second, third, went_on] = ["first", "second", "third", "went-on"].map(|n| lab.path(n));
    let mut held = Held::new(&lab, &s);
    let restore = |args: &[&str]| lab.hibernet(30, &[&["restore"], args].concat());

    // A second time: it is awake, and stays so.
    let report = sleep(&s, &lab, &first, &[]);
    let token = report["generation"].as_str().expect("a generation").to_owned();
    all_resumed(&wake(&lab, &first, &[]).0, 2);
    let again = restore(&[&first]);
    assert!(again.code == 79 && again.stderr.contains("not asleep"), "{again}");
    held.alive();

    // The token of another freeze: it sleeps on, and wakes with the right one.
    let now = sleep(&s, &lab, &second, &[]);
    let wrong = restore(&[&second, "--token", &token]);
    assert!(wrong.code == 80 && wrong.stderr.contains("sleeps on") && wrong.stderr.contains(&token), "{wrong}");
    assert_eq!(state(&lab), "asleep");
    all_resumed(&wake(&lab, &second, &["--token", now["generation"].as_str().expect("a generation")]).0, 2);
    held.alive();

    // An older image: everything is reset, and it is said of each flow.
    sleep(&s, &lab, &third, &[]);
    all_stale(&wake(&lab, &first, &[]).0, 2);
    held.reset();

    // The image of a network that went on; in words this time.
    drop(held);
    let mut held = Held::new(&lab, &s);
    json(&lab.hibernet(30, &["checkpoint", NAME, &went_on, "--leave-running", "--json"]));
    held.alive();
    sleep(&s, &lab, &third, &[]);
    let done = restore(&[&went_on]);
    let lines: Vec<_> = done.ok().lines().filter(|l| l.starts_with("reset ") && l.contains("stale generation")).collect();
    assert_eq!(lines.len(), 2, "{done}");
    assert!(done.stdout.contains("0 resumed, 2 reset, 0 skipped"), "{done}");
    held.reset();

    // And it serves new connections as if nothing had been.
    for family in Family::BOTH {
        Streams::open(&s, &lab, family, Way::Out(7000 + family as u16), 1, &["total=1000"], &["total=1000"]).finish();
    }
}

/// `--no-hold`: tier *reset* for all.
#[test]
fn sockets_that_were_not_held() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let s = Sandbox::start(&lab, &["--name", NAME, "-p", "7100-7101:7100"]);
    let (held, image) = (Held::new(&lab, &s), lab.path("image"));
    let frozen = sleep(&s, &lab, &image, &["--no-hold"]);
    assert!(frozen["flows"].as_array().expect("flows").iter().all(|f| f["tier"] == "reset"), "{frozen:#}");
    wait_until("peers hear of it", SOON, || held.servers.iter().all(|c| c.output().lines().count() > 2));
    let (report, _) = wake(&lab, &image, &[]);
    assert_eq!(outcomes(&report), [0, 2, 0], "{report:#}");
    held.reset();
    for family in Family::BOTH {
        let p = 7100 + family as u16;
        Streams::open(&s, &lab, family, Way::In(p, p), 5, &["total=1000"], &["total=1000"]).finish();
    }
}

/// What `rules save` prints but for comments and counters.
fn rules_of(done: &Done) -> String {
    let bare = |l: &str| if l.starts_with(':') { l.split(" [").next().unwrap_or(l).to_owned() } else { l.to_owned() };
    done.ok().lines().filter(|l| !l.starts_with('#')).map(bare).collect::<Vec<_>>().join("\n")
}

/// An image with 40 flows, rules and published ports, of a network that sleeps on.
fn image_of_many<'a>(lab: &'a Lab, image: &str) -> (Sandbox<'a>, String) {
    let rules = lab.path("rules");
    let text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
                -A FORWARD -p tcp -m multiport --dports 7000,7001,7100 -j ACCEPT\nCOMMIT\n\
                *nat\n-A POSTROUTING -o host0 -j MASQUERADE\nCOMMIT\n";
    std::fs::write(&rules, text).expect("file");
    let s = Sandbox::start(lab, &["--name", NAME, "--rules", &rules, "--no-ipv6", "-p", "7100:7100"]);
    let pace = ["chunk=1000", "every=20"];
    let out = Streams::open(&s, lab, Family::V4, Way::Out(7000), 20, &pace, &pace);
    let inn = Streams::open(&s, lab, Family::V4, Way::In(7100, 7100), 20, &pace, &pace);
    out.wait_moved(1);
    inn.wait_moved(1);
    let saved = rules_of(&lab.hibernet(10, &["rules", "save", NAME]));
    sleep(&s, lab, image, &[]);
    (s, saved)
}

/// Twenty times the same image side by side, while the sandbox that it is of sleeps.
#[test]
fn twenty_clones() {
    let Some(lab) = Lab::new(&["python3", "nc"]) else { return };
    let image = lab.path("image");
    let (_s, _) = image_of_many(&lab, &image);
    let script = lab.peer("echo.py", &["tcp", "0.0.0.0", "7100"]);
    let ports: Vec<u16> = (7201..=7220).collect();
    let clones: Vec<_> = ports
        .iter()
        .map(|p| {
            let (name, publish) = (format!("clone{p}"), format!("{p}:7100"));
            let head = ["restore", &image, "--flows", "clone", "--name", &name, "-p", &publish, "--json", "--"];
            lab.spawn_hibernet(&[&head[..], &strings(&script)].concat())
        })
        .collect();
    for (p, clone) in ports.iter().zip(&clones) {
        let name = format!("clone{p}");
        wait_until("the clone serves", SOON, || clone.output().contains("ready"));
        // It is a whole network: reached through its own port, and it reaches what the rules allow.
        let done = lab.sh(Place::Remote, 10, &format!("printf request | nc -N -w 5 {} {p}", Family::V4.host()));
        assert!(done.ok().ends_with(" request") && done.stdout.starts_with("7100 10.99.0.1 "), "{done}");
        let rules = rules_of(&lab.hibernet(10, &["rules", "save", &name]));
        let ours = |l: &&str| !l.contains("HIBERNET-PUBLISH");
        assert!(rules.lines().any(|l| l.contains("7000,7001,7100")), "{rules}");
        assert!(rules.lines().filter(|l| !ours(l)).any(|l| l.contains(&format!("--dport {p} "))), "{rules}");
        let output = clone.output();
        assert_eq!(output.matches("\"outcome\": \"reset\"").count(), 40, "{output}");
        assert_eq!(output.matches("others go on from the same image").count(), 40, "{output}");
    }
    let list = json(&lab.hibernet(10, &["list", "--json"]));
    assert_eq!(list.as_array().map(Vec::len), Some(21));
}

/// Into a new sandbox: flows are reset at once, as the link shows; rules, NAT and published ports are there. Then the sleeper itself wakes.
#[test]
fn into_a_new_sandbox() {
    let Some(lab) = Lab::new(&["python3", "nc", "tcpdump"]) else { return };
    let image = lab.path("image");
    let (_s, rules) = image_of_many(&lab, &image);
    let pcap = lab.path("pcap");
    let script = lab.peer("echo.py", &["tcp", "0.0.0.0", "7100"]);
    let head = ["restore", &image, "--name", "other", "--pcap", &pcap, "-p", "7300:7100", "--"];
    let other = lab.spawn_hibernet(&[&head[..], &strings(&script)].concat());
    wait_until("it serves", SOON, || other.output().contains("ready"));
    let output = other.output();
    assert_eq!(output.lines().filter(|l| l.contains("reset ") && l.contains("its socket is gone")).count(), 40, "{output}");
    assert!(output.contains("0 resumed, 40 reset, 0 skipped"), "{output}");
    let now = rules_of(&lab.hibernet(10, &["rules", "save", "other"]));
    assert_eq!(
        now,
        rules.replace("--dport 7100 -j DNAT --to-destination 10.0.2.15", "--dport 7300 -j DNAT --to-destination 10.0.2.15:7100"),
        "{now}"
    );
    let done = lab.sh(Place::Remote, 10, &format!("printf request | nc -N -w 5 {} 7300", bracketed(Family::V4.host())));
    assert!(done.ok().ends_with(" request"), "{done}");
    let resets = || lab.run(Place::Host, 10, &["tcpdump", "-nr", &pcap, "tcp[tcpflags] & tcp-rst != 0 and dst 10.0.2.15"]).stdout;
    wait_until("every flow was reset", Duration::from_secs(5), || resets().lines().count() >= 40);
    drop(other);
    // The sockets of the sleeper were nobody's business.
    all_resumed(&wake(&lab, &image, &[]).0, 40);
}
