//! Mounts: a resolv.conf for the sandbox, and an empty root for the worker. Nothing is written to any file system that
//! outlives the namespace.

use super::failure::{Failure, Status};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, mount_change, move_mount, open_tree, unmount,
};
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Keeps mounts made from here on out of the namespace that this one was copied from.
pub(crate) fn keep_private() -> Result<(), Failure> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .map_err(|e| Failure::os(Status::Namespaces, "cannot separate the sandbox's mounts", e))
}

/// A file system in memory that is mounted nowhere yet.
fn tmpfs(options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&fs, *key, *value)?;
    }
    fsconfig_create(&fs)?;
    Ok(fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// The text of a resolv.conf.
pub(crate) fn resolv_conf(servers: &[IpAddr], search: &[String]) -> String {
    let mut text = String::from("# by hibernet; the host's resolvers are behind this address\n");
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    for s in servers {
        let _ = writeln!(text, "nameserver {s}");
    }
    text
}

/// Puts a file with this text in the place of /etc/resolv.conf, for this mount namespace only.
///
/// # Errors
///
/// Also if there is no /etc/resolv.conf to stand in for: nothing may be written to the host's file system.
pub(crate) fn replace_resolv_conf(text: &str) -> Result<(), Failure> {
    let fail = |e: io::Error| Failure::os(Status::Namespaces, "cannot give the sandbox an /etc/resolv.conf", e);
    // Where it is a symbolic link, what it leads to is covered: the link itself cannot be a mount point.
    let target: PathBuf = match std::fs::canonicalize("/etc/resolv.conf") {
        Ok(p) => p,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Failure::new(
                Status::Namespaces,
                "cannot give the sandbox an /etc/resolv.conf: the host has none to stand in for (a dangling link counts as none); \
                 create an empty one, or say --no-resolv-conf",
            ));
        }
        Err(e) => return Err(fail(e)),
    };
    let fs = tmpfs(&[("size", "64k"), ("mode", "0755")], MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID);
    match fs {
        Ok(fs) => detached_file(&fs, text, &target).map_err(fail),
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => mounted_file(text, &target).map_err(fail),
        Err(e) => Err(fail(e)),
    }
}

fn write_file(dir: impl std::os::fd::AsFd, text: &str) -> io::Result<()> {
    let file = openat(dir, "resolv.conf", OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&file, rest)?..];
    }
    Ok(())
}

/// With the mount calls of Linux 5.2: the file system never appears anywhere but as that one file.
fn detached_file(fs: &OwnedFd, text: &str, target: &std::path::Path) -> io::Result<()> {
    write_file(fs, text)?;
    let file = open_tree(fs, "resolv.conf", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    let file = match file {
        // Cloning from a detached tree is allowed since Linux 6.15 only.
        Err(Errno::INVAL) => return mounted_file(text, target),
        other => other?,
    };
    Ok(move_mount(&file, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// With the older calls: a file system is mounted on a directory that always exists, the file bound from it, and the
/// directory uncovered again.
fn mounted_file(text: &str, target: &std::path::Path) -> io::Result<()> {
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    mount("tmpfs", "/proc", "tmpfs", flags, Some(c"size=64k,mode=0755"))?;
    let bound = openat(CWD, "/proc", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|dir| write_file(&dir, text))
        .and_then(|()| Ok(rustix::mount::mount_bind("/proc/resolv.conf", target)?));
    let uncovered = unmount("/proc", UnmountFlags::DETACH);
    bound.and(Ok(uncovered?))
}

/// Makes an empty, read-only file system the root and the working directory, and lets go of every other mount.
pub(crate) fn empty_root() -> Result<(), Failure> {
    let fail =
        |what: &'static str| move |e: Errno| Failure::os(Status::Internal, format_args!("cannot confine the worker: {what}"), e);
    keep_private()?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = match tmpfs(&[("size", "4k"), ("mode", "0555")], attributes) {
        Ok(fs) => {
            move_mount(&fs, "", CWD, "/proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(fail("empty root"))?;
            fs
        }
        Err(_) => {
            let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
            mount("tmpfs", "/proc", "tmpfs", flags, Some(c"size=4k,mode=0555")).map_err(fail("empty root"))?;
            openat(CWD, "/proc", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(fail("empty root"))?
        }
    };
    rustix::process::fchdir(&root).map_err(fail("empty root"))?;
    match rustix::process::pivot_root(".", ".") {
        // Both roots are on one point now; the old one is on top of the new one's working directory.
        Ok(()) => unmount(".", UnmountFlags::DETACH).map_err(fail("old root"))?,
        // The initial ramdisk's root cannot be pivoted away from. Without capabilities and descriptors of directories,
        // which follow, there is no way back out of this either.
        Err(Errno::INVAL) => rustix::process::chroot(".").map_err(fail("empty root"))?,
        Err(e) => return Err(fail("empty root")(e)),
    }
    rustix::process::chdir("/").map_err(fail("empty root"))
}
