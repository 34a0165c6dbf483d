//! Joined sandboxes: several that one network worker serves, routed among each other, with real programs and kernels.

use hibernet_tests::lab::{Done, Family, Lab, Place, Sandbox, wait_until};
use serde_json::Value;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

/// Exit statuses of hibernet's own.
const USAGE: i32 = 2;
const NAME: i32 = 75;

fn pair<'a>(lab: &'a Lab, first: &[&str], second: &[&str]) -> (Sandbox<'a>, Sandbox<'a>) {
    let web = Sandbox::start(lab, &[&["--name", "web"], first].concat());
    let db = Sandbox::start(lab, &[&["--name", "db", "--join", "web"], second].concat());
    (web, db)
}

fn ping(s: &Sandbox<'_>, family: Family, to: &str) -> Done {
    s.run(15, &["ping", family.flag(), "-c", "2", "-i", "0.2", "-W", "3", to])
}

/// An HTTP server at port 8000 of both families that has a file `name`.
fn serve(s: &Sandbox<'_>, lab: &Lab) -> hibernet_tests::lab::Proc {
    let dir = lab.dir().to_string_lossy().into_owned();
    std::fs::write(lab.path("page"), "hello from the other side\n").expect("file");
    s.serve(8000, &["python3", "-m", "http.server", "--bind", "::", "--directory", &dir, "8000"])
}

fn curl(s: &Sandbox<'_>, family: Family, host: &str) -> Done {
    s.run(15, &["curl", family.flag(), "-sSf", "--max-time", "8", &format!("http://{host}:8000/page")])
}

fn list(lab: &Lab) -> Vec<Value> {
    let done = lab.hibernet(10, &["list", "--json"]);
    serde_json::from_str::<Value>(done.ok()).expect("JSON").as_array().expect("a list").clone()
}

fn names(lab: &Lab) -> Vec<String> {
    list(lab).iter().map(|e| e["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn they_reach_each_other_by_name_and_the_world_as_any_sandbox() {
    let Some(lab) = Lab::new(&["ping", "curl", "python3"]) else { return };
    let (web, db) = pair(&lab, &[], &[]);
    let _servers = [serve(&web, &lab), serve(&db, &lab)];
    let _world = lab.serve(Place::Remote, 8000, &["python3", "-m", "http.server", "--bind", "::", "8000"]);
    for family in Family::BOTH {
        for (from, to) in [(&web, "db"), (&db, "web"), (&db, "DB")] {
            ping(from, family, to).ok();
            assert_eq!(curl(from, family, to).ok(), "hello from the other side", "{family:?} to {to}");
        }
        ping(&db, family, family.remote()).ok();
        let world = hibernet_tests::lab::bracketed(family.remote());
        db.run(15, &["curl", "-sS", "-o", "/dev/null", "--max-time", "8", &format!("http://{world}:8000/")]).ok();
        let gateway = if family == Family::V4 { "10.0.3.2" } else { "fd68:6962:6e65:7401::2" };
        ping(&db, family, gateway).ok();
    }
    // Addresses have names too, without a resolver: programs ask for them.
    for (addr, name) in [("10.0.3.15", "db"), ("10.0.2.15", "web"), ("fd68:6962:6e65:7401::15", "db")] {
        let done = web.run(15, &["getent", "hosts", addr]);
        assert!(done.ok().ends_with(name), "{done}");
        assert!(done.took < Duration::from_secs(2), "not told at once: {done}");
    }
    // A name that is nobody's goes to the resolver, which the lab does not have; it must not be taken for a sandbox's.
    assert_ne!(db.run(15, &["getent", "hosts", "nobody"]).code, 0);
    let all = list(&lab);
    assert_eq!(names(&lab), ["db", "web"]);
    assert_eq!((all[0]["joined"].as_str(), all[0]["addresses"][0].as_str()), (Some("web"), Some("10.0.3.15")));
    assert_eq!(all[1]["joined"], Value::Null);
    // Whatever is asked of one is asked of the network that both share.
    for name in ["web", "db"] {
        lab.hibernet(10, &["rules", "save", name]).ok();
        lab.hibernet(10, &["stats", name]).ok();
        lab.hibernet(10, &["conntrack", name, "-L"]).ok();
        let there = lab.hibernet(10, &["exec", name, "--", "ip", "-4", "-o", "addr", "show", "eth0"]);
        assert!(there.ok().contains(if name == "web" { "10.0.2.15/24" } else { "10.0.3.15/24" }), "{there}");
    }
    let stats = lab.hibernet(10, &["drops", "web"]);
    for wrong in ["spoofed", "no_route", "link_"] {
        assert!(!stats.ok().contains(wrong), "{stats}");
    }
}

#[test]
fn rules_tell_them_apart_by_interface() {
    let Some(lab) = Lab::new(&["ping", "curl", "python3"]) else { return };
    let (web, db) = pair(&lab, &[], &[]);
    let _servers = [serve(&web, &lab), serve(&db, &lab)];
    for family in Family::BOTH {
        let (file, v6) = (lab.path("rules"), if family == Family::V4 { None } else { Some("--v6") });
        let refuse = if family == Family::V4 { "icmp-admin-prohibited" } else { "icmp6-adm-prohibited" };
        let text =
            format!("*filter\n-A FORWARD -i tap1 -o tap0 -m conntrack --ctstate NEW -j REJECT --reject-with {refuse}\nCOMMIT\n");
        std::fs::write(&file, text).expect("file");
        for f in ["", "--v6"] {
            // Both families have rules, so that neither is closed.
            let open = lab.path("open");
            std::fs::write(&open, "*filter\nCOMMIT\n").expect("file");
            let args = ["rules", "restore", "web", &open, f];
            lab.hibernet(10, &args[..if f.is_empty() { 4 } else { 5 }]).ok();
        }
        assert_eq!(curl(&db, family, "web").code, 0, "open yet");
        lab.hibernet(10, &["rules", "restore", "db", &file].into_iter().chain(v6).collect::<Vec<_>>()).ok();
        let refused = curl(&db, family, "web");
        assert_eq!(refused.code, 7, "{refused}");
        assert!(refused.took < Duration::from_secs(4), "not told at once: {refused}");
        assert_ne!(ping(&db, family, "web").code, 0);
        // The other direction is another matter, and so is the world.
        ping(&web, family, "db").ok();
        assert_eq!(curl(&web, family, "db").ok(), "hello from the other side");
        ping(&db, family, family.remote()).ok();
        let saved = lab.hibernet(10, &["rules", "save", "web", "-c"].into_iter().chain(v6).collect::<Vec<_>>());
        let line = saved.ok().lines().find(|l| l.contains("-i tap1 -o tap0")).expect("the rule").to_owned();
        assert!(!line.starts_with("[0:0]"), "it counts: {line}");
    }
}

/// Nobody can send what is another's.
#[test]
fn a_sandbox_cannot_pose_as_another() {
    let Some(lab) = Lab::new(&["ping"]) else { return };
    let (web, db) = pair(&lab, &[], &[]);
    db.sh(10, "ip addr add 10.0.2.15/32 dev lo && ip addr add 10.0.2.2/32 dev lo && ip addr add 192.0.2.9/32 dev lo").ok();
    for source in ["10.0.2.15", "192.0.2.9", "10.0.2.2"] {
        assert_ne!(db.run(10, &["ping", "-c", "1", "-W", "1", "-I", source, "10.0.3.2"]).code, 0, "{source}");
    }
    let drops = lab.hibernet(10, &["drops", "web"]);
    assert!(drops.ok().contains("spoofed_source"), "{drops}");
    ping(&web, Family::V6, "db").ok();
}

#[test]
fn one_goes_the_rest_stay() {
    let Some(lab) = Lab::new(&["ping"]) else { return };
    let (mut web, mut db) = pair(&lab, &[], &[]);
    let cache = Sandbox::start(&lab, &["--name", "cache", "--join", "db"]);
    for (from, to) in [(&web, "cache"), (&cache, "db"), (&db, "cache")] {
        ping(from, Family::V4, to).ok();
        ping(from, Family::V6, to).ok();
    }
    // In the middle.
    db.supervisor.signal("TERM");
    assert_eq!(db.supervisor.wait(SOON), 143);
    ping(&web, Family::V4, "cache").ok();
    assert_ne!(web.run(10, &["getent", "hosts", "db"]).code, 0, "its name is gone with it");
    wait_until("its address is nobody's", SOON, || web.run(10, &["ping", "-c", "1", "-W", "1", "10.0.3.15"]).code != 0);
    // The place is free again, and the newcomer is not taken for the one that was there.
    let again = Sandbox::start(&lab, &["--name", "db", "--join", "web"]);
    assert_eq!(list(&lab).iter().find(|e| e["name"] == "db").expect("listed")["addresses"][0], "10.0.3.15");
    ping(&again, Family::V6, "cache").ok();
    ping(&web, Family::V4, "db").ok();
    // The first.
    web.supervisor.signal("TERM");
    wait_until("only its network is left", SOON, || list(&lab).iter().any(|e| e["name"] == "web" && e["ended"] == true));
    assert!(web.supervisor.running());
    ping(&again, Family::V4, "cache").ok();
    ping(&cache, Family::V6, "db").ok();
    ping(&cache, Family::V4, Family::V4.remote()).ok();
    assert_ne!(cache.run(10, &["ping", "-c", "1", "-W", "1", "10.0.2.15"]).code, 0);
    let done = lab.hibernet(10, &["exec", "web", "--", "true"]);
    assert!(done.code != 0 && done.stderr.contains("has ended"), "{done}");
    // The last two, one after the other.
    drop(again);
    ping(&cache, Family::V4, "cache").ok();
    drop(cache);
    assert_eq!(web.supervisor.wait(SOON), 143, "{}", web.supervisor.output());
    wait_until("nothing is left", SOON, || lab.processes().is_empty());
    assert!(names(&lab).is_empty());
}

#[test]
fn whoever_is_killed_takes_nobody_along_but_those_that_live_of_it() {
    let Some(lab) = Lab::new(&["ping"]) else { return };
    let (mut web, mut db) = pair(&lab, &[], &[]);
    let mut cache = Sandbox::start(&lab, &["--name", "cache", "--join", "web"]);
    db.supervisor.signal("KILL");
    db.supervisor.wait(SOON);
    ping(&web, Family::V4, "cache").ok();
    wait_until("its name is gone", SOON, || web.run(10, &["getent", "hosts", "db"]).code != 0);
    // The one whose network it is.
    web.supervisor.signal("KILL");
    web.supervisor.wait(SOON);
    assert_eq!(cache.supervisor.wait(SOON), 76, "{}", cache.supervisor.output());
    assert!(cache.supervisor.output().contains("network"), "{}", cache.supervisor.output());
    wait_until("nothing is left", SOON, || lab.processes().is_empty());
}

#[test]
fn what_cannot_be_joined_is_refused() {
    let Some(lab) = Lab::new(&[]) else { return };
    let join = |options: &[&str]| lab.hibernet(20, &[&["run", "--join", "web"], options, &["--", "true"]].concat());
    let nobody = join(&[]);
    assert_eq!(nobody.code, NAME, "{nobody}");
    assert!(nobody.stderr.contains("no sandbox is named 'web'"), "{nobody}");
    let web = Sandbox::start(&lab, &["--name", "web"]);
    join(&[]).ok();
    for (options, word) in
        [(&["-p", "8080:80"][..], "--publish"), (&["--egress", "none"], "--egress"), (&["--gateway", "10.0.2.9"], "--address")]
    {
        let done = join(options);
        assert_eq!(done.code, USAGE, "{done}");
        assert!(done.stderr.contains(word), "{done}");
    }
    let taken = join(&["--address", "10.0.2.20/24"]);
    assert!(taken.code != 0 && taken.stderr.contains("is taken"), "{taken}");
    join(&["--address", "10.77.0.5/24", "--address6", "fd77::5/64"]).ok();
    assert_eq!(join(&["--name", "web"]).code, NAME);
    // Another user does not even find it.
    if lab.is_root() {
        let bin = lab.binary();
        let other =
            lab.run(Place::Host, 20, &["setpriv", "--reuid=65534", "--clear-groups", &bin, "run", "--join", "web", "--", "true"]);
        assert!(other.code != 0, "{other}");
        let socket = lab.sh(
            Place::Host,
            20,
            "setpriv --reuid=65534 --clear-groups python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"/run/hibernet/web.life\")'",
        );
        assert!(socket.stderr.contains("Permission denied"), "{socket}");
    }
    lab.hibernet(10, &["pause", "web"]).ok();
    let paused = join(&[]);
    assert!(paused.code != 0 && paused.stderr.contains("paused"), "{paused}");
    lab.hibernet(10, &["resume", "web"]).ok();
    join(&[]).ok();
    drop(web);
}

/// As many as there can be, and one more.
#[test]
fn there_is_an_end_to_it() {
    let Some(lab) = Lab::new(&["ping"]) else { return };
    let web = Sandbox::start(&lab, &["--name", "web"]);
    let others: Vec<Sandbox<'_>> =
        (1..64).map(|i| Sandbox::start(&lab, &["--name", &format!("n{i}"), "--join", "web"])).collect();
    let more = lab.hibernet(20, &["run", "--join", "web", "--", "true"]);
    assert!(more.code != 0 && more.stderr.contains("64"), "{more}");
    ping(&others[62], Family::V4, "n1").ok();
    ping(&others[0], Family::V6, "n63").ok();
    ping(&web, Family::V6, "n40").ok();
    lab.hibernet(10, &["list"]).ok();
    drop(others);
    lab.hibernet(20, &["run", "--join", "web", "--", "ping", "-c", "1", "-W", "3", "web"]).ok();
}

/// A network namespace that somebody else made: that of a process which waits in it.
fn elsewhere(lab: &Lab, name: &str) -> (hibernet_tests::lab::Proc, String) {
    let pid = lab.path(name);
    let script = format!("ip link set lo up; echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 300");
    let process = lab.spawn(Place::Host, &["unshare", "-n", "sh", "-c", &script]);
    wait_until("the namespace is there", SOON, || std::path::Path::new(&pid).exists());
    let number = std::fs::read_to_string(&pid).expect("file").trim().to_owned();
    (process, number)
}

#[test]
fn links_that_others_made_join_too() {
    let Some(lab) = Lab::new(&["ping", "nsenter", "unshare"]) else { return };
    let (_one, first) = elsewhere(&lab, "first");
    let (other, second) = elsewhere(&lab, "second");
    let mut web = lab.spawn_hibernet(&["attach", "--name", "web", "--netns", &first]);
    wait_until("it is served", SOON, || names(&lab) == ["web"] && lab.hibernet(10, &["stats", "web"]).code == 0);
    let join = |name: &str, how: &[&str]| lab.spawn_hibernet(&[&["attach", "--name", name, "--join", "web"], how].concat());
    let mut db = join("db", &["--netns", &second]);
    let tap = ["ip", "tuntap", "add", "mode", "tap", "name", "guest"];
    lab.run(Place::Host, 10, &tap).ok();
    let mut vm = join("vm", &["--tap", "guest"]);
    wait_until("they have joined", SOON, || {
        let all = list(&lab);
        let address = |i: usize| all[i]["addresses"][0].as_str().map(str::to_owned);
        all.len() == 3 && (address(0), address(1)) == (Some("10.0.3.15".into()), Some("10.0.4.15".into()))
    });
    let ping =
        |from: &str, to| lab.run(Place::Host, 15, &["nsenter", "-t", from, "-n", "ping", "-c", "2", "-i", "0.2", "-W", "3", to]);
    wait_until("the interface has its addresses", SOON, || ping(&second, "10.0.3.2").code == 0);
    ping(&second, "10.0.2.15").ok();
    ping(&first, "10.0.3.15").ok();
    ping(&first, "fd68:6962:6e65:7401::15").ok();
    std::fs::write(lab.path("rules"), "*filter\n-A FORWARD -i tap1 -o tap0 -j DROP\nCOMMIT\n").expect("file");
    lab.hibernet(10, &["rules", "restore", "db", &lab.path("rules")]).ok();
    assert_ne!(ping(&second, "10.0.2.15").code, 0);
    // Each leaves with what it serves, and the first with all.
    other.signal("KILL");
    assert_eq!(db.wait(SOON), 0, "{}", db.output());
    lab.run(Place::Host, 10, &["ip", "link", "del", "guest"]).ok();
    assert_eq!(vm.wait(SOON), 0, "{}", vm.output());
    wait_until("they have left", SOON, || names(&lab) == ["web"]);
    ping(&first, "10.0.2.2").ok();
    web.signal("TERM");
    assert_eq!(web.wait(SOON), 0, "{}", web.output());
    for how in [["--qemu", "/run/s"], ["--vhost-user", "/run/s"], ["--fd", "3"]] {
        assert_eq!(join("no", &how).wait(SOON), USAGE, "{how:?}");
    }
    assert_eq!(join("no", &["--netns", &first]).wait(SOON), NAME, "nobody of that name is there");
}

/// Bits a second that iperf3 moves from a sandbox to a server.
fn speed(s: &Sandbox<'_>, to: &str, options: &[&str]) -> f64 {
    let done = s.run(30, &[&["iperf3", "-c", to, "-p", "5201", "-J", "-t", "3", "--connect-timeout", "5000"], options].concat());
    let result: Value = serde_json::from_str(done.ok()).unwrap_or_else(|e| panic!("{e}: {done}"));
    result["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or_else(|| panic!("{result:#}"))
}

#[test]
fn iperf3_between_two_keeps_up_with_that_to_the_host() {
    let Some(lab) = Lab::new(&["iperf3"]) else { return };
    let (web, db) = pair(&lab, &[], &[]);
    let _ours = web.serve(5201, &["iperf3", "-s", "-p", "5201"]);
    let _hosts = lab.serve(Place::Remote, 5201, &["iperf3", "-s", "-p", "5201"]);
    for family in Family::BOTH {
        // Others may use the machine: the best of some pairs. Towards the host, and from it.
        let mut best = [0.0_f64; 2];
        for options in [&[][..], &["-R"], &[], &["-R"], &[], &["-R"]] {
            let between = speed(&db, "web", &[&[family.flag()], options].concat());
            let host = speed(&db, family.remote(), options);
            let ratio = between / host;
            eprintln!(
                "{family:?} {options:?}: between two {:.2} Gbit/s, to the host {:.2} Gbit/s: {ratio:.2}",
                between * 1e-9,
                host * 1e-9
            );
            let best = &mut best[options.len()];
            *best = best.max(ratio);
        }
        assert!(best.iter().all(|b| *b >= 0.8), "{family:?}: {best:?}");
    }
}
