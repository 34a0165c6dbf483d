//! A hidden command for the test suite: what becomes of an attempt by a process that is confined as a worker is.

use super::print;
use crate::sandbox::failure::Failure;
use crate::sandbox::probe::{self, Attempt};
use crate::sys::{process, socket};
use clap::ValueEnum;
use std::io;

/// What is attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum What {
    Nothing,
    Open,
    Exec,
    Thread,
    Fork,
    Unshare,
    Kill,
    UnixSocket,
    RawSocket,
    PacketSocket,
    NetlinkSocket,
    TcpSocket,
    PingSocket,
}

pub(super) fn attempt(what: What) -> Result<u8, Failure> {
    let outcome = probe::confined(|| make(what))?;
    print(&match outcome {
        Attempt::Done => "done\n".to_owned(),
        Attempt::Refused(e) => format!("refused {e}\n"),
        Attempt::Killed(s) => format!("killed {s}\n"),
    })
}

fn make(what: What) -> io::Result<()> {
    let open = |family, ty, protocol| socket::socket(family, ty, protocol).map(drop);
    match what {
        What::Nothing => Ok(()),
        What::Open => std::fs::File::open("/").map(drop),
        What::Exec => Err(process::exec(&["/bin/true"])),
        What::Thread => {
            let done = std::thread::Builder::new().spawn(|| 1)?.join();
            done.map(drop).map_err(|_| io::ErrorKind::Other.into())
        }
        What::Fork => std::process::Command::new("/bin/true").spawn().map(drop),
        What::Unshare => process::unshare(libc::CLONE_NEWNET),
        What::Kill => process::kill(rustix::process::getpid(), 0),
        What::UnixSocket => open(libc::AF_UNIX, libc::SOCK_STREAM, 0),
        What::RawSocket => open(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        What::PacketSocket => open(libc::AF_PACKET, libc::SOCK_DGRAM, 0),
        What::NetlinkSocket => open(libc::AF_NETLINK, libc::SOCK_DGRAM, libc::NETLINK_ROUTE),
        What::TcpSocket => open(libc::AF_INET6, libc::SOCK_STREAM, 0),
        What::PingSocket => match open(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP) {
            // Whether the host has ping sockets for this user is another matter.
            Err(e) if e.raw_os_error() == Some(libc::EACCES) => Ok(()),
            other => other,
        },
    }
}
