//! The purity of `netstack` and `snapshot` is held by lints and crate boundaries. Here it is proved that they hold:
//! every entry of clippy.toml fires on a sample, `unsafe` is forbidden where it must be, and nothing that does
//! input, output, threads or entropy is among the dependencies.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PURE: [&str; 2] = ["netstack", "snapshot"];

/// A violation of every entry of clippy.toml.
const SAMPLES: &[(&str, &str)] = &[
    ("std::time::Instant::now", "let _ = std::time::Instant::now();"),
    ("std::time::SystemTime::now", "let _ = std::time::SystemTime::now();"),
    ("std::thread::spawn", "drop(std::thread::spawn(|| ()));"),
    ("std::thread::scope", "std::thread::scope(|_| ());"),
    ("std::thread::sleep", "std::thread::sleep(core::time::Duration::ZERO);"),
    ("std::env::var", "let _ = std::env::var(\"HOME\");"),
    ("std::env::var_os", "let _ = std::env::var_os(\"HOME\");"),
    ("std::env::vars", "let _ = std::env::vars();"),
    ("std::env::args", "let _ = std::env::args();"),
    ("std::fs::File::open", "let _ = std::fs::File::open(\"/\");"),
    ("std::fs::File::create", "let _ = std::fs::File::create(\"/\");"),
    ("std::fs::read", "let _ = std::fs::read(\"/\");"),
    ("std::fs::read_to_string", "let _ = std::fs::read_to_string(\"/\");"),
    ("std::fs::write", "let _ = std::fs::write(\"/\", b\"\");"),
    ("std::io::stdin", "let _ = std::io::stdin();"),
    ("std::io::stdout", "let _ = std::io::stdout();"),
    ("std::io::stderr", "let _ = std::io::stderr();"),
    ("std::process::exit", "std::process::exit(1);"),
    ("std::process::id", "let _ = std::process::id();"),
    ("std::collections::HashMap::new", "let _ = std::collections::HashMap::<u8, u8>::new();"),
    ("std::collections::HashSet::new", "let _ = std::collections::HashSet::<u8>::new();"),
    ("std::time::Instant", "let _: Option<std::time::Instant> = None;"),
    ("std::time::SystemTime", "let _: Option<std::time::SystemTime> = None;"),
    ("std::collections::hash_map::RandomState", "let _: Option<std::collections::hash_map::RandomState> = None;"),
    ("std::net::TcpStream", "let _: Option<std::net::TcpStream> = None;"),
    ("std::net::TcpListener", "let _: Option<std::net::TcpListener> = None;"),
    ("std::net::UdpSocket", "let _: Option<std::net::UdpSocket> = None;"),
    ("std::os::unix::net::UnixStream", "let _: Option<std::os::unix::net::UnixStream> = None;"),
    ("std::os::unix::net::UnixDatagram", "let _: Option<std::os::unix::net::UnixDatagram> = None;"),
    ("std::os::fd::OwnedFd", "let _: Option<std::os::fd::OwnedFd> = None;"),
    ("std::os::fd::BorrowedFd", "let _: Option<std::os::fd::BorrowedFd<'static>> = None;"),
    ("std::os::fd::RawFd", "let _: Option<std::os::fd::RawFd> = None;"),
    ("std::fs::File", "let _: Option<std::fs::File> = None;"),
    ("std::fs::OpenOptions", "let _: Option<std::fs::OpenOptions> = None;"),
    ("std::thread::Builder", "let _: Option<std::thread::Builder> = None;"),
    ("std::thread::JoinHandle", "let _: Option<std::thread::JoinHandle<()>> = None;"),
    ("std::process::Command", "let _: Option<std::process::Command> = None;"),
];

/// Crates with which a pure crate could reach descriptors, clocks, threads or entropy.
const FORBIDDEN: &[&str] = &[
    "async-io",
    "async-std",
    "chrono",
    "crossbeam-channel",
    "event-manager",
    "getrandom",
    "hibernet",
    "libc",
    "linux-raw-sys",
    "log",
    "mio",
    "nix",
    "parking_lot",
    "polling",
    "rand",
    "rayon",
    "rustix",
    "slog",
    "smol",
    "socket2",
    "time",
    "tokio",
    "vmm-sys-util",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

fn cargo(dir: &Path, args: &[&str]) -> (bool, String, String) {
    let out = Command::new(env!("CARGO")).args(args).current_dir(dir).output().expect("cargo runs");
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into(), String::from_utf8_lossy(&out.stderr).into())
}

/// The paths that a clippy.toml disallows.
fn disallowed(krate: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(krate).join("clippy.toml")).expect("clippy.toml");
    text.lines().filter_map(|l| l.split_once("path = \"")?.1.split_once('"')).map(|(p, _)| p.to_owned()).collect()
}

#[test]
fn every_disallowed_thing_is_refused() {
    let sampled: BTreeSet<String> = SAMPLES.iter().map(|(p, _)| (*p).to_owned()).collect();
    for krate in PURE {
        assert_eq!(disallowed(krate), sampled, "{krate}/clippy.toml and the samples differ");
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("impure-{krate}"));
        fs::create_dir_all(dir.join("src")).expect("temporary directory");
        fs::copy(root().join(krate).join("clippy.toml"), dir.join("clippy.toml")).expect("clippy.toml");
        let manifest = "[package]\nname = \"impure\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n";
        fs::write(dir.join("Cargo.toml"), manifest).expect("manifest");
        let functions: String =
            SAMPLES.iter().enumerate().map(|(n, (_, code))| format!("pub fn f{n}() {{ {code} }}\n")).collect();
        fs::write(dir.join("src/lib.rs"), functions).expect("source");

        let (ok, stdout, stderr) = cargo(
            &dir,
            &["clippy", "--quiet", "--offline", "--message-format=json", "--target-dir", "target", "--", "-D", "warnings"],
        );
        assert!(!ok, "clippy found nothing to refuse in {krate}'s sample");
        let mut fired: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for message in stdout.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()) {
            let message = &message["message"];
            if message["code"]["code"].as_str().is_some_and(|c| c.starts_with("clippy::disallowed_")) {
                let line = message["spans"][0]["line_start"].as_u64().expect("a line");
                fired.entry(line).or_default().push(message["message"].as_str().unwrap_or_default().to_owned());
            }
        }
        for (n, (path, code)) in SAMPLES.iter().enumerate() {
            let said = fired.get(&(n as u64 + 1)).cloned().unwrap_or_default();
            let named = said.iter().any(|m| m.contains(&format!("`{path}`")));
            assert!(named, "{krate}: `{code}` is not refused for {path}: {said:?}\n{stderr}");
        }
    }
}

#[test]
fn a_sample_without_violations_passes() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pure");
    fs::create_dir_all(dir.join("src")).expect("temporary directory");
    fs::copy(root().join("netstack/clippy.toml"), dir.join("clippy.toml")).expect("clippy.toml");
    fs::write(dir.join("Cargo.toml"), "[package]\nname = \"pure\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n")
        .expect("manifest");
    fs::write(dir.join("src/lib.rs"), "pub fn f(now: u64) -> u64 {\n    now + 1\n}\n").expect("source");
    let (ok, _, stderr) = cargo(&dir, &["clippy", "--quiet", "--offline", "--target-dir", "target", "--", "-D", "warnings"]);
    assert!(ok, "{stderr}");
}

#[test]
fn pure_crates_forbid_unsafe_code() {
    for krate in PURE {
        let lib = fs::read_to_string(root().join(krate).join("src/lib.rs")).expect("lib.rs");
        assert!(lib.lines().any(|l| l == "#![forbid(unsafe_code)]"), "{krate}/src/lib.rs does not forbid unsafe code");
    }
}

#[test]
fn unsafe_code_is_only_in_runtime_sys() {
    fn walk(dir: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).expect("directory") {
            let path = entry.expect("entry").path();
            if path.ends_with("runtime/src/sys") {
                continue;
            }
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("source");
                for (n, line) in text.lines().enumerate() {
                    let code = line.split("//").next().unwrap_or_default();
                    if ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait"].iter().any(|u| code.contains(u))
                    {
                        found.push(format!("{}:{}: {}", path.display(), n + 1, line.trim()));
                    }
                }
            }
        }
    }
    let mut found = Vec::new();
    for dir in ["netstack/src", "snapshot/src", "runtime/src"] {
        walk(&root().join(dir), &mut found);
    }
    assert!(found.is_empty(), "unsafe code outside of runtime/src/sys:\n{}", found.join("\n"));
}

#[test]
fn pure_crates_have_no_impure_dependency() {
    let (ok, stdout, stderr) = cargo(
        &root(),
        &["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", "x86_64-unknown-linux-gnu"],
    );
    assert!(ok, "{stderr}");
    let metadata: Value = serde_json::from_str(&stdout).expect("cargo metadata");
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let names: BTreeMap<String, String> = list(&metadata["packages"])
        .iter()
        .map(|p| (p["id"].as_str().unwrap_or_default().to_owned(), p["name"].as_str().unwrap_or_default().to_owned()))
        .collect();
    let needs: BTreeMap<String, Vec<String>> = list(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| {
            let normal = list(&node["deps"])
                .iter()
                .filter(|d| list(&d["dep_kinds"]).iter().any(|k| k["kind"].is_null()))
                .map(|d| d["pkg"].as_str().unwrap_or_default().to_owned())
                .collect();
            (node["id"].as_str().unwrap_or_default().to_owned(), normal)
        })
        .collect();
    let impure = |krate: &str| {
        let id = names.iter().find(|(_, name)| *name == krate).expect("a member of the workspace").0;
        let (mut seen, mut todo) = (BTreeSet::new(), vec![id.clone()]);
        while let Some(id) = todo.pop() {
            if seen.insert(id.clone()) {
                todo.extend(needs[&id].iter().cloned());
            }
        }
        seen.iter().map(|id| names[id].clone()).filter(|n| FORBIDDEN.contains(&n.as_str())).collect::<BTreeSet<_>>()
    };
    for krate in ["netstack", "hibernet-snapshot"] {
        assert_eq!(impure(krate), BTreeSet::new(), "{krate} depends on what can reach the outside");
    }
    // The check itself works: the crate that owns the descriptors does depend on such crates.
    assert!(impure("hibernet").contains("libc"));
}
