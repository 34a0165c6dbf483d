//! `hibernet doctor`: what this machine allows, one line per need, each with its fix.

use super::{print, print_json};
use crate::checkpoint::lock::LockError;
use crate::checkpoint::probe as probe_sockets;
use crate::checkpoint::repair::RepairError;
use crate::sandbox::failure::Failure;
use crate::sandbox::guest;
use crate::sandbox::plan::{Guest, LinkChoice, RingChoice};
use crate::sandbox::probe::{self, Attempt, Trial};
use crate::sys::socket;
use serde::Serialize;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::AsFd;

/// How a need is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Met {
    Ok,
    Degraded,
    Missing,
}

#[derive(Serialize)]
struct Need {
    need: &'static str,
    state: Met,
    /// `run` cannot work without it.
    required: bool,
    about: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<&'static str>,
}

fn ok(need: &'static str, about: impl Into<String>) -> Need {
    Need { need, state: Met::Ok, required: false, about: about.into(), fix: None }
}

fn degraded(need: &'static str, about: impl Into<String>, fix: &'static str) -> Need {
    Need { need, state: Met::Degraded, required: false, about: about.into(), fix: Some(fix) }
}

fn missing(need: &'static str, about: impl Into<String>, fix: &'static str) -> Need {
    Need { need, state: Met::Missing, required: true, about: about.into(), fix: Some(fix) }
}

/// Exit status: 0 if `run` can work.
pub(super) fn doctor(json: bool) -> Result<u8, Failure> {
    let mut needs = namespaces_and_links();
    needs.push(confinement());
    needs.push(pings());
    needs.extend([peek(libc::AF_INET, "peek offset, IPv4"), peek(libc::AF_INET6, "peek offset, IPv6")]);
    needs.push(ipv6());
    needs.push(files());
    needs.extend([repair(), packet_lock()]);
    let bad = needs.iter().any(|n| n.required && n.state == Met::Missing);
    if json {
        print_json(&needs)?;
    } else {
        let mut out = String::new();
        for n in &needs {
            let state = match n.state {
                Met::Ok => "ok",
                Met::Degraded => "degraded",
                Met::Missing => "missing",
            };
            let fix = n.fix.map_or_else(String::new, |f| format!("; to mend: {f}"));
            let _ = writeln!(out, "{state:9} {:20} {}{fix}", n.need, n.about);
        }
        let verdict = if bad { "`hibernet run` cannot work here" } else { "`hibernet run` works here" };
        let _ = writeln!(out, "{verdict}");
        print(&out)?;
    }
    Ok(u8::from(bad))
}

/// Tries the real thing: both kinds of links, each in namespaces that vanish with the process that makes them.
fn namespaces_and_links() -> Vec<Need> {
    const USERNS: &str = "sysctl user.max_user_namespaces (and kernel.unprivileged_userns_clone, or AppArmor's restriction), the container's seccomp profile, or run as root";
    let guest =
        |link| Guest { ifname: "eth0".into(), mtu: 65520, dhcp: false, link, ring: RingChoice::Off, queues: 1, workers: 1 };
    let tap = probe::in_namespaces(|| {
        let opened = guest::make_namespace(&guest(LinkChoice::Tap))?;
        Ok(crate::sys::tun::adopt(opened.fd, 65520).map_or((false, false), |t| (t.offloads.tso, t.offloads.uso)))
    });
    let packet = probe::in_namespaces(|| guest::make_namespace(&guest(LinkChoice::Packet)).map(|_| (true, true)));
    let mut needs = Vec::new();
    let none = match (&tap, &packet) {
        (Trial::NoNamespaces(e), _) | (_, Trial::NoNamespaces(e)) => Some(e.message.clone()),
        _ => None,
    };
    if let Some(e) = none {
        needs.push(missing("namespaces", e, USERNS));
        return needs;
    }
    needs.push(ok("namespaces", "user, mount and network namespaces can be made"));
    let packet_works = matches!(packet, Trial::Works(_));
    const TUN: &str = "load the tun module, or give this user access to /dev/net/tun (chmod 0666, or a udev rule)";
    match &tap {
        Trial::Works((true, true)) => needs.push(ok("TAP", "with checksum, TCP and UDP segmentation offload")),
        Trial::Works((true, false)) => needs.push(degraded("TAP", "without UDP segmentation offload", "Linux 6.2 or newer")),
        Trial::Works((false, _)) => needs.push(degraded("TAP", "without segmentation offload", "a kernel with TUN offloads")),
        Trial::Fails(e) | Trial::NoNamespaces(e) if packet_works => {
            needs.push(degraded("TAP", format!("{}; a packet link is used instead", e.message), TUN))
        }
        Trial::Fails(e) | Trial::NoNamespaces(e) => needs.push(missing("TAP", e.message.clone(), TUN)),
    }
    match &packet {
        Trial::Works(_) => needs.push(ok("packet link", "veth pair and packet socket")),
        Trial::Fails(e) | Trial::NoNamespaces(e) => {
            needs.push(degraded("packet link", e.message.clone(), "load the veth and af_packet modules"))
        }
    }
    needs
}

fn confinement() -> Need {
    const CONFINEMENT: &str = "a kernel with CONFIG_SECCOMP_FILTER, and a container that allows filters";
    match probe::confined(|| Ok(())) {
        Ok(Attempt::Done) => ok("confinement", "system call filter, empty file system, no capabilities"),
        Ok(_) => missing("confinement", "a confined process did not survive", CONFINEMENT),
        Err(e) => missing("confinement", e.message, CONFINEMENT),
    }
}

fn pings() -> Need {
    const FIX: &str = "sysctl net.ipv4.ping_group_range=\"0 2147483647\"";
    if socket::socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP).is_ok() {
        return ok("ping sockets", "the guest can ping");
    }
    if socket::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).is_ok() {
        return ok("ping sockets", "closed to this user, but raw sockets serve: the guest can ping");
    }
    degraded("ping sockets", "closed to this user: the guest cannot ping the outside", FIX)
}

fn peek(family: libc::c_int, need: &'static str) -> Need {
    let works = socket::socket(family, libc::SOCK_STREAM, 0)
        .and_then(|s| socket::set_option(s.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0));
    match works {
        Ok(()) => ok(need, "data in flight is read once"),
        Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            degraded(need, "the host lacks the family", "enable it, or use --no-ipv6")
        }
        Err(_) => degraded(need, "downloads cost more CPU", "Linux 6.9 or newer (IPv6: 6.11)"),
    }
}

fn ipv6() -> Need {
    if !fs::exists("/proc/sys/net/ipv6").unwrap_or(false) {
        return degraded("IPv6", "this kernel has none; the guest gets IPv4 only", "boot without ipv6.disable=1");
    }
    ok("IPv6", "available")
}

fn repair() -> Need {
    const FIX: &str = "run as root, or have root start `hibernet repair-helper`";
    match probe_sockets::can_repair() {
        Ok(()) => ok("TCP repair", "TCP connections can go into an image"),
        Err(RepairError::NotPermitted(_)) => {
            degraded("TCP repair", "not permitted: TCP connections survive only while they are held", FIX)
        }
        Err(e) => degraded("TCP repair", e.to_string(), "a kernel with CONFIG_CHECKPOINT_RESTORE"),
    }
}

fn packet_lock() -> Need {
    match probe_sockets::can_lock() {
        Ok(()) => ok("packet lock", "peers do not notice while a connection is in an image only"),
        Err(LockError::NotPermitted) => {
            degraded("packet lock", "not permitted", "run as root, or have root start `hibernet repair-helper`")
        }
        Err(e) => degraded("packet lock", e.to_string(), "load the module nf_tables"),
    }
}

fn files() -> Need {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let hard = limit.maximum.map_or_else(|| "unlimited".into(), |n| n.to_string());
    if limit.maximum.is_some_and(|n| n < 4096) {
        return degraded(
            "open files",
            format!("at most {hard}: about as many connections"),
            "raise the hard limit (ulimit -Hn, limits.conf)",
        );
    }
    ok("open files", format!("at most {hard}"))
}
