//! The packet lock: while no socket stands for a connection, its packets are dropped, so that the kernel does not tell the peer that nobody
//! is there. The peer takes it for loss and tries again.
//!
//! A lock is a table of nf_tables with sets of what is locked. The elements have a time-out, so that a crash unlocks by itself; what
//! is left of the table then is removed by whoever locks next. It belongs to a network namespace, that of the calling thread.

mod nft;
mod table;

use super::image::HostAddr;
use crate::sys::socket;
use nft::{Batch, Nft};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Duration;
use table::{Set, add_elements, make_table, message};

/// How long a lock lasts if nobody removes or renews it.
pub const TIME_OUT: Duration = Duration::from_secs(60);
/// What the names of all locks' tables begin with.
pub const PREFIX: &str = "hibernet_lock_";
/// Elements in a batch, so that it fits into a socket's buffer.
const ELEMENTS: usize = 1000;

const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;
const ICMP: u8 = libc::IPPROTO_ICMP as u8;
const ICMPV6: u8 = libc::IPPROTO_ICMPV6 as u8;

/// What a socket receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Locked {
    /// IP protocol: TCP, UDP, ICMP or ICMPv6.
    pub protocol: u8,
    /// Our address; unspecified for all of them.
    pub local: IpAddr,
    /// Our port, or the identifier of echo requests.
    pub port: u16,
    /// The peer and its port. `None` for a listener, a published UDP port, and echo requests.
    pub peer: Option<(IpAddr, u16)>,
}

impl Locked {
    /// From addresses as a socket has them.
    pub fn new(protocol: u8, local: HostAddr, peer: Option<HostAddr>) -> Self {
        // The identifier of an echo is enough, and a ping socket does not say whom it asks.
        let peer = peer.filter(|_| !matches!(protocol, ICMP | ICMPV6)).map(|p| (p.ip.to_canonical(), p.port));
        Locked { protocol, local: local.ip.to_canonical(), port: local.port, peer }
    }

    /// What this socket receives.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let (_, protocol) = socket::kind(fd)?;
        let protocol = u8::try_from(protocol).map_err(|_| io::ErrorKind::InvalidInput)?;
        let local = socket::local_addr(fd)?.into();
        let peer: Option<SocketAddr> = match socket::peer_addr(fd) {
            Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => None,
            r => Some(r?),
        };
        Ok(Locked::new(protocol, local, peer.map(HostAddr::from)))
    }

    /// The set that it stands in, and its key there.
    fn element(&self) -> (Set, Vec<u8>) {
        // Each part begins at a multiple of four bytes.
        let mut key = Vec::with_capacity(44);
        let mut word = |bytes: &[u8]| {
            key.extend(bytes);
            key.resize(key.len().next_multiple_of(4), 0);
        };
        let octets = |a: IpAddr| match a {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        word(&[self.protocol]);
        let is_v4 = self.local.is_ipv4();
        let set = match self.peer {
            Some((peer, port)) => {
                word(&octets(self.local));
                word(&self.port.to_be_bytes());
                word(&octets(peer));
                word(&port.to_be_bytes());
                if is_v4 { Set::Flows4 } else { Set::Flows6 }
            }
            None if self.local.is_unspecified() => {
                word(&self.port.to_be_bytes());
                // The kernel gives an IPv6 socket IPv4's packets too, unless it was told not to.
                if is_v4 { Set::Ports4 } else { Set::Ports }
            }
            None => {
                word(&octets(self.local));
                word(&self.port.to_be_bytes());
                if is_v4 { Set::Addresses4 } else { Set::Addresses6 }
            }
        };
        (set, key)
    }
}

/// How a lock is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockMode {
    /// If it can be had.
    #[default]
    Auto,
    /// It must be had.
    Nft,
    /// No lock: a peer that sends meanwhile is told that nobody is there.
    None,
}

impl std::str::FromStr for LockMode {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(LockMode::Auto),
            "nft" => Ok(LockMode::Nft),
            "none" => Ok(LockMode::None),
            _ => Err("auto, nft or none".to_owned()),
        }
    }
}

/// Why packets cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// No capability.
    #[error(
        "packets cannot be locked: not permitted; it needs CAP_NET_ADMIN in the network namespace of the sockets (or --lock none, \
         with which peers that send meanwhile lose their connections)"
    )]
    NotPermitted,
    /// No nf_tables.
    #[error("packets cannot be locked: this kernel has no nf_tables ({0}); load the module nf_tables, or use --lock none")]
    Unsupported(io::Error),
    /// Something else.
    #[error("packets cannot be locked: {0}")]
    Os(io::Error),
}

impl From<io::Error> for LockError {
    fn from(e: io::Error) -> Self {
        match e.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => LockError::NotPermitted,
            Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::ENOENT | libc::EAFNOSUPPORT) => LockError::Unsupported(e),
            _ => LockError::Os(e),
        }
    }
}

/// A lock. It outlives its value, and the process: only [`Lock::remove`], [`remove`] and time end it.
#[derive(Debug)]
pub struct Lock {
    name: String,
    locked: BTreeSet<Locked>,
    time_out: Duration,
    /// How often it was renewed.
    turn: u32,
}

/// Locks as `mode` says. `Ok(Err(_))` is why there is no lock although that is no failure.
pub fn acquire(
    mode: LockMode,
    id: &str,
    locked: impl IntoIterator<Item = Locked>,
    time_out: Duration,
) -> Result<Result<Lock, Option<LockError>>, LockError> {
    match mode {
        LockMode::None => Ok(Err(None)),
        LockMode::Auto => Ok(Lock::new(id, locked, time_out).map_err(Some)),
        LockMode::Nft => Lock::new(id, locked, time_out).map(Ok),
    }
}

impl Lock {
    /// Locks. `id` names the lock, so that another process can remove it: letters, digits and underlines.
    pub fn new(id: &str, locked: impl IntoIterator<Item = Locked>, time_out: Duration) -> Result<Lock, LockError> {
        if id.is_empty() || id.len() > 128 || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(LockError::Os(io::ErrorKind::InvalidInput.into()));
        }
        let lock = Lock { name: format!("{PREFIX}{id}"), locked: locked.into_iter().collect(), time_out, turn: 0 };
        let mut nft = Nft::open()?;
        sweep(&mut nft)?;
        lock.write(&mut nft)?;
        Ok(lock)
    }

    /// Starts the time-out again. `false` if there is nothing to renew: somebody has unlocked, or the time was up.
    pub fn renew(&mut self) -> Result<bool, LockError> {
        let mut nft = Nft::open()?;
        let old = self.table();
        if !nft.tables()?.contains(&old) {
            return Ok(false);
        }
        self.turn += 1;
        // Packets are locked at every moment.
        self.write(&mut nft)?;
        let was_there = delete(&mut nft, &old)?;
        if !was_there {
            // Somebody unlocked meanwhile.
            delete(&mut nft, &self.table())?;
        }
        Ok(was_there)
    }

    /// Unlocks.
    pub fn remove(self) -> Result<(), LockError> {
        delete(&mut Nft::open()?, &self.table())?;
        Ok(())
    }

    fn table(&self) -> String {
        format!("{}__{}", self.name, self.turn)
    }

    fn write(&self, nft: &mut Nft) -> io::Result<()> {
        let table = self.table();
        let mut elements: Vec<(Set, Vec<u8>)> = self.locked.iter().map(Locked::element).collect();
        elements.sort_by_key(|(set, _)| *set as u8);
        let mut batch = Batch::new();
        make_table(&mut batch, &table, self.time_out);
        let mut chunks = elements.chunks(ELEMENTS);
        add_elements(&mut batch, &table, chunks.next().unwrap_or_default());
        nft.commit(batch)?;
        for chunk in chunks {
            let mut batch = Batch::new();
            add_elements(&mut batch, &table, chunk);
            if let Err(e) = nft.commit(batch) {
                // Half a lock is worse than none: nobody would know of it.
                let _ = delete(nft, &table);
                return Err(e);
            }
        }
        Ok(())
    }
}

/// Removes the lock of this name, whoever made it; whether there was one.
pub fn remove(id: &str) -> Result<bool, LockError> {
    let mut nft = Nft::open()?;
    let begin = format!("{PREFIX}{id}__");
    let mut found = false;
    for table in nft.tables()?.iter().filter(|t| t.strip_prefix(&begin).is_some_and(|turn| turn.parse::<u32>().is_ok())) {
        found |= delete(&mut nft, table)?;
    }
    Ok(found)
}

/// How many locks there are in the network namespace.
pub fn count() -> Result<usize, LockError> {
    Ok(Nft::open()?.tables()?.iter().filter(|t| t.starts_with(PREFIX)).count())
}

/// Whether packets could be locked here.
pub fn can_lock() -> Result<(), LockError> {
    let lock = Lock::new(&format!("trial_{}", std::process::id()), [], Duration::from_secs(1))?;
    lock.remove()
}

/// Removes the tables of locks whose time was up.
fn sweep(nft: &mut Nft) -> io::Result<()> {
    for table in nft.tables()?.into_iter().filter(|t| t.starts_with(PREFIX)) {
        // The table may go while we look at it.
        let is_alive = Set::ALL.iter().any(|set| nft.has_elements(&table, set.name()).unwrap_or(true));
        if !is_alive {
            delete(nft, &table)?;
        }
    }
    Ok(())
}

/// Deletes a table; whether there was one.
fn delete(nft: &mut Nft, table: &str) -> io::Result<bool> {
    let mut batch = Batch::new();
    batch.request(message::DEL_TABLE, 0).name(1, table);
    match nft.commit(batch) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        r => r.map(|()| true),
    }
}
