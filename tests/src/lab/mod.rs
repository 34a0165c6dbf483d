//! Host-level suites: real programs, real kernels, network namespaces of our own.
//!
//! A [`Lab`] is a small world in namespaces: a namespace *remote* with servers, joined by a veth pair with a namespace
//! *host*, in which hibernet runs. As root no user namespace is needed; anyone else gets one. Everything in a lab lives in
//! a PID namespace whose first process ends when the test's end of a pipe is closed, so nothing survives a test, however
//! it ends. The machine's own network is never touched.

mod guest;
mod net;
mod proc;
mod sandbox;
mod stand_in;

pub use guest::{Guest, guest_files, moving_qemu};
pub use net::{Lab, Place};
pub use proc::{Done, Proc};
pub use sandbox::Sandbox;
pub use stand_in::GuestLab;

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Address of the namespace *remote*, and that of *host*, IPv4.
pub const REMOTE4: &str = "10.99.0.1";
/// See [`REMOTE4`].
pub const HOST4: &str = "10.99.0.2";
/// Address of the namespace *remote*, and that of *host*, IPv6.
pub const REMOTE6: &str = "fd99::1";
/// See [`REMOTE6`].
pub const HOST6: &str = "fd99::2";
/// The sandbox's addresses unless told otherwise.
pub const GUEST4: &str = "10.0.2.15";
/// See [`GUEST4`].
pub const GUEST6: &str = "fd68:6962:6e65:7400::15";
/// The gateway's addresses.
pub const GATEWAY4: &str = "10.0.2.2";
/// See [`GATEWAY4`].
pub const GATEWAY6: &str = "fd68:6962:6e65:7400::2";
/// The addresses at which DNS is served to the sandbox.
pub const DNS4: &str = "10.0.2.3";
/// See [`DNS4`].
pub const DNS6: &str = "fd68:6962:6e65:7400::3";

/// IP version of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// Address of the namespace *remote*.
    pub fn remote(self) -> &'static str {
        if self == Family::V4 { REMOTE4 } else { REMOTE6 }
    }

    /// Address of the namespace *host*.
    pub fn host(self) -> &'static str {
        if self == Family::V4 { HOST4 } else { HOST6 }
    }

    /// Address of the sandbox.
    pub fn guest(self) -> &'static str {
        if self == Family::V4 { GUEST4 } else { GUEST6 }
    }

    /// Address of the sandbox's gateway.
    pub fn gateway(self) -> &'static str {
        if self == Family::V4 { GATEWAY4 } else { GATEWAY6 }
    }

    /// The loopback address.
    pub fn loopback(self) -> &'static str {
        if self == Family::V4 { "127.0.0.1" } else { "::1" }
    }

    /// The unspecified address.
    pub fn any(self) -> &'static str {
        if self == Family::V4 { "0.0.0.0" } else { "::" }
    }

    /// `-4` or `-6`, as many programs want it.
    pub fn flag(self) -> &'static str {
        if self == Family::V4 { "-4" } else { "-6" }
    }
}

/// An address as it stands in a URL or before a port.
pub fn bracketed(addr: &str) -> String {
    if addr.contains(':') { format!("[{addr}]") } else { addr.to_owned() }
}

/// Says that something was not tested and why. Where nothing may be left out (HIBERNET_REQUIRE_ALL=1) the test fails.
pub fn skip(why: &str) {
    let line = tell("SKIPPED", why);
    assert!(std::env::var("HIBERNET_REQUIRE_ALL").as_deref() != Ok("1"), "{line}");
}

/// As [`skip`], for want of a network beyond this machine: that is no failure anywhere.
pub fn skip_offline(why: &str) {
    tell("NOT TESTED", why);
}

fn tell(what: &str, why: &str) -> String {
    let line = format!("{what}: {}: {why}", std::thread::current().name().unwrap_or("a test"));
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("HIBERNET_SKIP_LOG") {
        let log = std::fs::OpenOptions::new().append(true).create(true).open(path);
        if let Ok(mut f) = log {
            writeln!(f, "{line}").ok();
        }
    }
    line
}

/// Where a program is, looked for in PATH and where servers are kept.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    // The system's own first: what is found must be there for other users too.
    let dirs = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin", "/usr/local/sbin"];
    dirs.into_iter().chain(path.split(':')).map(|d| PathBuf::from(d).join(name)).find(|p| p.is_file())
}

/// Waits until a condition holds, and panics after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < end, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
