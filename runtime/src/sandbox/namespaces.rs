//! User and network namespaces: making them, mapping ids, entering those of others.

use super::failure::{Failure, Status};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// What to tell a person whose machine refuses namespaces.
pub(crate) fn refused(what: &str, e: io::Error) -> Failure {
    let hint = match e.raw_os_error() {
        Some(libc::ENOSPC) => "too many namespaces: raise the sysctls user.max_user_namespaces and user.max_net_namespaces",
        Some(libc::EPERM | libc::EACCES) => {
            if sysctl_is("kernel/unprivileged_userns_clone", "0") {
                "user namespaces are switched off: set the sysctl kernel.unprivileged_userns_clone=1, or run as root"
            } else if sysctl_is("kernel/apparmor_restrict_unprivileged_userns", "1") {
                "AppArmor forbids user namespaces: set the sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root"
            } else {
                "not permitted here: allow user namespaces (sysctl user.max_user_namespaces, the container's seccomp profile), or run as root"
            }
        }
        Some(libc::EINVAL | libc::ENOSYS) => "this kernel has no user namespaces (CONFIG_USER_NS)",
        _ => return Failure::os(Status::Namespaces, what, e),
    };
    Failure::new(Status::Namespaces, format!("{what}: {hint}"))
}

fn sysctl_is(path: &str, value: &str) -> bool {
    fs::read_to_string(Path::new("/proc/sys").join(path)).is_ok_and(|s| s.trim() == value)
}

/// Writes the id maps of the user namespace that the child `pid` made. With the rights to (real root) every id that is
/// mapped here keeps its number, so that servers can change users; else our own ids become root.
pub(crate) fn write_id_maps(pid: Pid) -> Result<(), Failure> {
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    let put = |file: &str, text: &str| fs::write(format!("{proc}/{file}"), text);
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if uid == 0 && identity("/proc/self/uid_map").and_then(|m| put("uid_map", &m)).is_ok() {
        return identity("/proc/self/gid_map")
            .and_then(|m| put("gid_map", &m))
            .map_err(|e| refused("cannot map group ids into the sandbox", e));
    }
    put("uid_map", &format!("0 {uid} 1\n"))
        .and_then(|()| put("setgroups", "deny"))
        .and_then(|()| put("gid_map", &format!("0 {gid} 1\n")))
        .map_err(|e| refused("cannot map user ids into the sandbox", e))
}

/// A map that gives every id that our own namespace knows the same number inside.
fn identity(map: &str) -> io::Result<String> {
    let mut out = String::new();
    for line in fs::read_to_string(map)?.lines() {
        let mut words = line.split_ascii_whitespace();
        if let (Some(inside), Some(_), Some(count)) = (words.next(), words.next(), words.next()) {
            let _ = writeln!(out, "{inside} {inside} {count}");
        }
    }
    Ok(out)
}

/// Opens a namespace of the calling process: `net`, `user`, `mnt`.
pub(crate) fn own(kind: &str) -> Result<OwnedFd, Failure> {
    open_namespace(Path::new(&format!("/proc/self/ns/{kind}")))
}

/// Opens a namespace's file.
pub(crate) fn open_namespace(path: &Path) -> Result<OwnedFd, Failure> {
    open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Failure::os(Status::Namespaces, format_args!("cannot open the namespace {}", path.display()), e))
}

/// Kinds of namespaces that can be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    User,
    Net,
    Mount,
}

/// Enters a namespace.
pub(crate) fn enter(ns: impl AsFd, kind: Kind) -> io::Result<()> {
    let kind = match kind {
        Kind::User => LinkNameSpaceType::User,
        Kind::Net => LinkNameSpaceType::Network,
        Kind::Mount => LinkNameSpaceType::Mount,
    };
    Ok(move_into_link_name_space(ns.as_fd(), Some(kind))?)
}

/// What identifies a namespace while it lives.
pub(crate) fn identity_of(ns: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(ns)?.st_ino)
}
