//! A test runs itself again in a new user and network namespace, so that it needs no privilege and touches nothing of the machine.

pub use crate::support::skip;
use std::process::{Command, Stdio};

/// Set in the process that is in the namespace.
const INSIDE: &str = "HIBERNET_LINK_TEST";

/// Defines tests that run in a namespace.
#[macro_export]
macro_rules! in_namespace {
    ($($(#[$meta:meta])* fn $name:ident() $body:block)*) => {$(
        #[test]
        $(#[$meta])*
        fn $name() {
            $crate::ns::run(concat!(module_path!(), "::", stringify!($name)), || $body);
        }
    )*};
}

/// Runs `body` in a namespace.
pub fn run(path: &str, body: impl FnOnce()) {
    let name = path.split_once("::").map_or(path, |(_, name)| name);
    if std::env::var(INSIDE).as_deref() == Ok(name) {
        return body();
    }
    for probe in ["unshare -Urn true", "ip -V"] {
        let mut words = probe.split(' ');
        let status = Command::new(words.next().unwrap()).args(words).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !status.is_ok_and(|s| s.success()) {
            return skip(name, &format!("`{probe}` does not work here"));
        }
    }
    let out = Command::new("unshare")
        .arg("-Urn")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, name)
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    print!("{text}");
    assert!(out.status.success(), "the test failed in its namespace");
    assert!(text.contains("1 passed"), "the test did not run in its namespace");
}

/// Runs `ip` with the words of `args`.
pub fn ip(args: &str) {
    let out = Command::new("ip").args(args.split_whitespace()).output().unwrap();
    assert!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Sets one of the namespace's settings below /proc/sys/net.
pub fn sysctl(path: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap_or_else(|e| panic!("{path}: {e}"));
}

/// Whether the kernel has IPv6.
pub fn has_ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}
