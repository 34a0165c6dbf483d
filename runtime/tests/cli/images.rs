//! Mistakes around images: one line that says what is wrong and what to do, an exit status, and nothing has happened.

use crate::control::Detached;
use crate::kit::{finish, hibernet, listed, sandboxes_work};
use hibernet_snapshot::{GenerationId, ImageBuilder, SectionFlags, SectionKind, SectionState};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::ControlFlow;
use std::path::PathBuf;
use vmm_sys_util::tempdir::TempDir;

const USAGE: i32 = 2;
const REQUIRE: i32 = 3;
const INTERNAL: i32 = 70;
const NAMESPACES: i32 = 71;
const NAME: i32 = 75;
const FILE: i32 = 77;
const STATE: i32 = 79;
const IMAGE: i32 = 80;

/// A directory for images.
struct Files(TempDir);

impl Files {
    fn new() -> Files {
        Files(TempDir::new_with_prefix("/tmp/hibernet-images-test").unwrap())
    }

    fn path(&self, name: &str) -> String {
        let path: PathBuf = self.0.as_path().join(name);
        path.to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }
}

/// Fails with a status, and words on standard error; in one line, unless the option parser speaks.
#[track_caller]
fn fails(args: &[&str], status: i32, words: &[&str]) {
    let (code, out, err) = finish(&mut hibernet(args));
    assert_eq!((code, out.as_str()), (status, ""), "{args:?}: {err}");
    for word in words {
        assert!(err.contains(word), "{args:?}: {word:?} is not said: {err}");
    }
    assert!(status == USAGE || err.lines().count() == 1, "{args:?}: {err}");
}

#[track_caller]
fn works(args: &[&str]) -> String {
    let (code, out, err) = finish(&mut hibernet(args));
    assert_eq!(code, 0, "{args:?}: {err}");
    out
}

/// An image, written by a network that goes on.
fn image_of(sandbox: &Detached, files: &Files) -> Vec<u8> {
    let path = files.path("living");
    works(&["checkpoint", &sandbox.name, &path, "--leave-running"]);
    std::fs::read(path).unwrap()
}

#[test]
fn files_that_are_no_images() {
    if !sandboxes_work("files that are no images") {
        return;
    }
    let files = Files::new();
    let sandbox = Detached::start("imaged", &[], &["sleep", "1000"]);
    let good = image_of(&sandbox, &files);
    let mut flipped = good.clone();
    let middle = good.len() / 2;
    flipped[middle] ^= 4;
    let mut newer = good.clone();
    newer[8] = 2;
    let cases = [
        (files.path("missing"), FILE, "No such file"),
        (files.path(""), FILE, "directory"),
        (files.write("text", b"*filter\nCOMMIT\n".repeat(10).as_slice()), IMAGE, "no hibernet image"),
        (files.write("empty", b""), IMAGE, "truncated"),
        (files.write("short", &good[..good.len() - 1]), IMAGE, "truncated"),
        (files.write("long", &[&good[..], b"x"].concat()), IMAGE, ""),
        (files.write("flipped", &flipped), IMAGE, "damaged"),
        (files.write("newer", &newer), IMAGE, "version of hibernet"),
    ];
    for (path, status, says) in &cases {
        for command in ["inspect", "restore"] {
            fails(&[command, path], *status, &[path.as_str(), says]);
        }
        fails(&["restore", path, "--", "true"], *status, &[path.as_str(), says]);
    }
    assert_eq!(listed(&sandbox.name).unwrap()["state"], "running");
}

/// An image for an older hibernet is of its level, and this one reads it; what it could not say is refused, and the network goes on.
#[test]
fn images_for_an_older_hibernet() {
    if !sandboxes_work("images for an older hibernet") {
        return;
    }
    let files = Files::new();
    let sandbox = Detached::start("older", &[], &["sleep", "1000"]);
    let (name, path) = (sandbox.name.as_str(), files.path("image"));
    let level = || {
        let inventory: serde_json::Value = serde_json::from_str(&works(&["inspect", &path, "--json"])).unwrap();
        let links = inventory["sections"].as_array().unwrap().iter().find(|s| s["name"] == "links").unwrap();
        (inventory["level"].as_u64().unwrap(), links["version"].as_u64().unwrap())
    };
    works(&["checkpoint", name, &path, "--leave-running"]);
    assert_eq!(level(), (2, 2));
    works(&["checkpoint", name, &path, "--leave-running", "--compat", "2"]);
    assert_eq!(level(), (2, 2));
    works(&["checkpoint", name, &path, "--compat", "1"]);
    assert_eq!(level(), (1, 1));
    assert!(works(&["inspect", &path]).contains("level 1,"));
    works(&["restore", &path]);
    let rules = files.write("rules", b"*filter\n-A FORWARD -p tcp -m connlimit --connlimit-above 3 -j DROP\nCOMMIT\n");
    works(&["rules", "restore", name, &rules]);
    for how in ["--leave-running", "--hold"] {
        fails(&["checkpoint", name, &path, how, "--compat", "1", "--json"], REQUIRE, &["level 1", "rules", "-m connlimit"]);
        assert_eq!(listed(name).unwrap()["state"], "running");
    }
    assert_eq!(level(), (1, 1), "the image that was there still is");
    for wrong in ["0", "3", "0.1"] {
        fails(&["checkpoint", name, &path, "--compat", wrong], USAGE, &["--compat"]);
    }
}

/// A section that no version has had yet.
#[derive(serde::Serialize, serde::Deserialize)]
struct Unheard(u32);

impl SectionState for Unheard {
    const KIND: SectionKind = SectionKind(60_000);
    const VERSION: u16 = 7;
}

#[test]
fn an_image_with_unknown_parts_still_has_an_inventory() {
    let mut bytes = Vec::new();
    let mut image = ImageBuilder::new(GenerationId([5; 16]), 0, 0);
    image.state(SectionFlags::REQUIRED, 1, &Unheard(1)).unwrap();
    image.write_to(&mut bytes, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let files = Files::new();
    let path = files.write("unheard", &bytes);
    let (code, out, err) = finish(&mut hibernet(&["inspect", &path]));
    assert_eq!(code, IMAGE, "{err}");
    assert!(out.contains(&"05".repeat(16)) && out.contains("version 7"), "{out}");
    assert!(err.contains("of a version that is not known"), "{err}");
    let (code, out, _) = finish(&mut hibernet(&["inspect", &path, "--json"]));
    let inventory: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(code == IMAGE && inventory["sections"][0]["kind"] == 60_000, "{inventory}");
    fails(&["restore", &path], IMAGE, &["60000", "version of hibernet that wrote it"]);
}

#[test]
fn options_that_would_have_no_effect() {
    for (options, word) in [
        (&["--mtu", "1500"][..], "--mtu"),
        (&["-p", "8080:80"], "--publish"),
        (&["--pcap", "x"], "--pcap"),
        (&["--detach"], "--detach"),
    ] {
        fails(&[&["restore", "x"], options].concat(), USAGE, &[word, "behind `--`"]);
    }
    for options in
        [&["--egress", "none"][..], &["--address", "10.1.2.3/24"], &["--no-ipv6"], &["--map-host-loopback", "10.0.2.2"]]
    {
        fails(&[&["restore", "x"], options].concat(), USAGE, &[options[0], "the image says it"]);
        fails(&[&["restore", "x"], options, &["--", "true"]].concat(), USAGE, &[options[0]]);
    }
    for command in [&["restore", "x"][..], &["checkpoint", "x", "y"]] {
        fails(&[command, &["--lock", "none"]].concat(), USAGE, &["--repair"]);
        fails(&[command, &["--repair-helper", "z"]].concat(), USAGE, &["--repair"]);
        fails(&[command, &["--repair", "--lock", "some"]].concat(), USAGE, &["auto, nft or none"]);
    }
    fails(&["restore", "x", "--token", "123"], USAGE, &["32 hexadecimal digits"]);
    fails(&["restore", "x", "--flows", "all"], USAGE, &["resume, reset, clone"]);
    fails(&["checkpoint", "x"], USAGE, &["FILE"]);
    fails(&["checkpoint", "x", "y", "--require", "half"], USAGE, &["90%"]);
    fails(&["checkpoint", "x", "y", "--hold", "--no-hold"], USAGE, &["cannot be used with"]);
    fails(&["checkpoint", "x", "y", "--leave-running", "--repair"], USAGE, &["cannot be used with"]);
}

#[test]
fn sandboxes_in_another_state() {
    if !sandboxes_work("sandboxes in another state") {
        return;
    }
    let files = Files::new();
    let image = files.path("image");
    for command in
        [&["checkpoint", "no-such-sandbox", &image][..], &["upgrade", "no-such-sandbox"], &["resume", "no-such-sandbox"]]
    {
        fails(command, NAME, &["hibernet list"]);
    }
    assert!(std::fs::read_dir(files.0.as_path()).unwrap().next().is_none());
    let sandbox = Detached::start("states", &[], &["sleep", "1000"]);
    let name = sandbox.name.as_str();
    fails(&["checkpoint", name, "/no/such/directory/image"], FILE, &["/no/such/directory"]);
    fails(&["checkpoint", name, "/dev/null"], FILE, &["/dev/null"]);
    works(&["checkpoint", name, &image, "--leave-running"]);
    fails(&["restore", &image], STATE, &[name, "running", "not asleep", "-- COMMAND"]);
    works(&["pause", name]);
    fails(&["restore", &image], STATE, &["paused"]);
    works(&["resume", name]);

    works(&["checkpoint", name, &image]);
    let other = files.path("other");
    for command in [&["checkpoint", name, &other][..], &["pause", name], &["resume", name], &["upgrade", name]] {
        fails(command, STATE, &[name, "asleep", "hibernet restore"]);
    }
    for command in [&["stats", name][..], &["drops", name], &["rules", "save", name], &["conntrack", name, "-L"]] {
        fails(command, STATE, &[name, "asleep", "hibernet inspect"]);
    }
    assert!(!std::fs::exists(&other).unwrap());
    // The command lives, and so can others beside it.
    assert_eq!(works(&["exec", name, "--", "echo", "here"]), "here\n");
    fails(&["restore", &image, "--name", "no-such-sandbox"], NAME, &["no-such-sandbox", "-- COMMAND"]);
    fails(&["restore", &image, "--rules", &files.path("missing")], FILE, &["missing"]);
    fails(&["restore", &image, "--repair", "--repair-helper", &files.path("missing")], NAMESPACES, &["--repair", "missing"]);
    assert_eq!(listed(name).unwrap()["state"], "asleep");
    works(&["restore", &image]);
}

#[test]
fn tokens() {
    if !sandboxes_work("tokens") {
        return;
    }
    let files = Files::new();
    let image = files.path("image");
    let sandbox = Detached::start("tokens", &[], &["sleep", "1000"]);
    let report: serde_json::Value = serde_json::from_str(&works(&["checkpoint", &sandbox.name, &image, "--json"])).unwrap();
    let right = report["generation"].as_str().unwrap();
    let wrong = "00112233445566778899aabbccddeeff";
    fails(&["restore", &image, "--token", wrong], IMAGE, &[right, wrong, "sleeps on"]);
    fails(&["restore", &image, "--token", wrong, "--", "true"], IMAGE, &[right, wrong]);
    assert_eq!(listed(&sandbox.name).unwrap()["state"], "asleep");
    assert!(works(&["restore", &image, "--token", right]).contains("goes on"));
}

#[test]
fn what_is_required_is_not_there() {
    if !sandboxes_work("what is required") {
        return;
    }
    let host = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let files = Files::new();
    let image = files.path("image");
    let connect = format!("exec 3<>/dev/tcp/10.0.2.2/{}; sleep 1000", host.local_addr().unwrap().port());
    let sandbox = Detached::start("require", &["--map-host-loopback", "10.0.2.2"], &["bash", "-c", &connect]);
    let _connection = host.accept().unwrap();
    let name = sandbox.name.as_str();
    for options in [&["--leave-running", "--require", "all"][..], &["--no-hold", "--require", "1%"]] {
        let (code, out, err) = finish(hibernet(&["checkpoint", name, &image]).args(options));
        assert!(code == REQUIRE && out.is_empty() && err.contains("only 0 of 1 flows would survive"), "{code} {out} {err}");
        assert!(!std::fs::exists(&image).unwrap());
        assert_eq!(listed(name).unwrap()["state"], "running");
    }
    works(&["checkpoint", name, &image, "--require", "all"]);
    assert!(works(&["restore", &image]).contains("1 resumed"));
}

#[test]
fn programs_that_cannot_take_over() {
    if !sandboxes_work("programs that cannot take over") {
        return;
    }
    let sandbox = Detached::start("upgrades", &[], &["sleep", "1000"]);
    let name = sandbox.name.as_str();
    fails(&["upgrade", name, "--binary", "/no/such/program"], FILE, &["/no/such/program"]);
    fails(&["upgrade", name, "--binary", "/bin/true"], INTERNAL, &["nothing has changed", "is /bin/true a hibernet"]);
    fails(&["upgrade", name, "--binary", "/etc/passwd"], INTERNAL, &["cannot execute", "is /etc/passwd a hibernet"]);
    works(&["upgrade", name]);
    assert_eq!(listed(name).unwrap()["state"], "running");
}
