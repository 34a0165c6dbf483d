//! What a sandbox is to be, once the options have been understood and checked.

use super::carry::Carry;
use crate::worker::RulesSetup;
use hibernet_netstack::config::Config;
use std::path::PathBuf;

/// Everything that does not depend on where the guest comes from.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The stack's configuration.
    pub config: Config,
    /// The rules that are in force from the first packet on.
    pub rules: RulesSetup,
    /// The guest's side of the link.
    pub guest: Guest,
    /// The host's resolvers are those of its /etc/resolv.conf, whose changes are to be followed.
    pub follow_resolver: bool,
    /// Where to write what passes over the link.
    pub pcap: Option<PathBuf>,
    /// What to log and where.
    pub log: LogPlan,
    /// The sandbox's name, if it was given one.
    pub name: Option<String>,
    /// Run in the background.
    pub detach: bool,
    /// How host sockets come along when a virtual machine moves.
    pub carry: Carry,
}

/// The guest's side of the link.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Name of the interface.
    pub ifname: String,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Addresses and routes are left to a client inside.
    pub dhcp: bool,
    /// Kind of link.
    pub link: LinkChoice,
    /// Whether packet sockets get a ring.
    pub ring: RingChoice,
    /// Packet sockets among which what comes is divided, or pairs of queues of a vhost-user device; from 1 to 16.
    pub queues: u32,
    /// Threads that serve the link together, each a queue of it, at least one.
    pub workers: u32,
}

impl Guest {
    /// Descriptors of the link: a queue for every worker at least.
    pub fn descriptors(&self) -> u32 {
        self.queues.max(self.workers).max(1)
    }
}

/// Whether a packet socket gets a ring of memory that it shares with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingChoice {
    /// If the kernel gives one, where frames are short enough for it to pay.
    Auto,
    /// It must.
    On,
    /// It does not.
    Off,
}

/// Kinds of links that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkChoice {
    /// A TAP if one can be had, else a packet socket.
    Any,
    /// A TAP.
    Tap,
    /// A veth pair with a packet socket at the far end.
    Packet,
}

/// Logging.
#[derive(Clone, Debug)]
pub struct LogPlan {
    /// Least level that is logged.
    pub level: slog::Level,
    /// One JSON object per line instead of text.
    pub json: bool,
    /// File to append to; standard error if none.
    pub file: Option<PathBuf>,
}
