//! Sockets that listen, or are bound, at a path.

use super::failure::{Failure, Status};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen as begin, socket_with};
use rustix::process::umask;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Who connects while somebody else is served waits; more than so many are refused by the kernel.
const BACKLOG: i32 = 4;

/// The file of a socket, removed when this is dropped, unless another has taken its place.
#[derive(Debug)]
pub(crate) struct SocketPath {
    path: PathBuf,
    file: (u64, u64),
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn new(kind: SocketType) -> Result<OwnedFd, rustix::io::Errno> {
    socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

pub(super) fn stream_socket() -> Result<OwnedFd, rustix::io::Errno> {
    new(SocketType::STREAM)
}

/// Makes a stream socket that listens at `path`, for this user alone. A socket that nobody listens at any more gives way.
///
/// # Errors
///
/// [`Status::Link`] if something is there, or the path is no good.
pub(crate) fn listen(path: &Path) -> Result<(OwnedFd, SocketPath), Failure> {
    let bound = bound(path, SocketType::STREAM)?;
    let fail = |e: rustix::io::Errno| Failure::os(Status::Link, format_args!("cannot listen at {}", path.display()), e);
    begin(&bound.0, BACKLOG).map_err(fail)?;
    Ok(bound)
}

/// Makes a datagram socket that is bound to `path`, otherwise as [`listen`].
///
/// # Errors
///
/// As [`listen`].
pub(crate) fn datagrams(path: &Path) -> Result<(OwnedFd, SocketPath), Failure> {
    bound(path, SocketType::DGRAM)
}

fn bound(path: &Path, kind: SocketType) -> Result<(OwnedFd, SocketPath), Failure> {
    let fail = |e: std::io::Error| Failure::os(Status::Link, format_args!("cannot listen at {}", path.display()), e);
    // The supervisor's directory may change with its namespaces; what is removed in the end is what was made.
    let path_absolute = std::path::absolute(path).map_err(fail)?;
    let address = SocketAddrUnix::new(path).map_err(|e| fail(e.into()))?;
    let socket = new(kind).map_err(|e| fail(e.into()))?;
    make_way(path, &address)?;
    // No other thread runs, so that nobody else's files get this mode.
    let before = umask(Mode::from_bits_retain(0o177));
    let bound = bind(&socket, &address);
    umask(before);
    bound.map_err(|e| fail(e.into()))?;
    let made = std::fs::symlink_metadata(path).map_err(fail)?;
    Ok((socket, SocketPath { path: path_absolute, file: (made.dev(), made.ino()) }))
}

/// Connects to a stream socket at `path`.
///
/// # Errors
///
/// [`Status::Link`] if nobody listens there.
pub(crate) fn connect_to(path: &Path) -> Result<OwnedFd, Failure> {
    let fail = |e: rustix::io::Errno| Failure::os(Status::Link, format_args!("cannot connect to {}", path.display()), e);
    let address = SocketAddrUnix::new(path).map_err(fail)?;
    let socket = stream_socket().map_err(fail)?;
    connect(&socket, &address).map_err(fail)?;
    Ok(socket)
}

/// Removes what is left of a listener that has ended.
fn make_way(path: &Path, address: &SocketAddrUnix) -> Result<(), Failure> {
    let taken = |why: &str| Err(Failure::new(Status::Link, format!("cannot listen at {}: {why}", path.display())));
    let found = match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return taken(&e.to_string()),
        Ok(m) => m.file_type(),
    };
    if !found.is_socket() {
        let what = if found.is_dir() { "that is a directory" } else { "a file is there that is no socket" };
        return taken(what);
    }
    let probe = match stream_socket() {
        Ok(s) => s,
        Err(e) => return taken(&e.to_string()),
    };
    match connect(&probe, address) {
        Err(rustix::io::Errno::CONNREFUSED) => {
            std::fs::remove_file(path).or_else(|e| taken(&format!("the socket that was left there cannot be removed: {e}")))
        }
        Err(rustix::io::Errno::NOENT) => Ok(()),
        // Whoever listens there finds a client that has gone.
        _ => taken("somebody listens there already"),
    }
}
