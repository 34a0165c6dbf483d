//! What a worker is made of.

use super::ControlSocket;
use crate::control::protocol::Recheck;
use crate::link::Link;
use crate::sock::Sockets;
use hibernet_netstack::edge::LinkId;
use hibernet_netstack::ipset::Sets;
use hibernet_netstack::iptables::{RuleError, Ruleset};
use hibernet_netstack::{Config, Stack};
use std::io;
use std::os::fd::OwnedFd;

/// Everything that a [`Worker`](super::Worker) works with. It opens nothing itself but the sockets of flows, so that it can run
/// without privileges and file system.
pub struct WorkerSetup {
    /// What the stack is told.
    pub config: Config,
    /// The rules that are in force from the first frame on.
    pub rules: RulesSetup,
    /// Under which name others find the guest of the first link, over DNS; empty for none.
    pub name: String,
    /// The guest's links; they become link 0, 1, and so on.
    pub links: Vec<Box<dyn Link>>,
    /// More queues of the first link, each served by another worker: a thread with host sockets of its own ([`MOST_WORKERS`](super::MOST_WORKERS) with
    /// the first). Then there is one link only, and no other can come.
    pub queues: Vec<Box<dyn Link>>,
    /// For [`Worker::restore`](super::Worker::restore): links of the image by their numbers, where those are not the first ones
    /// ([`Worker::add_link`](super::Worker::add_link)).
    pub joined: Vec<(LinkId, Box<dyn Link>)>,
    /// Listening TCP sockets of published ports: the index in `config.publish`, and the socket. Any mode; they are made non-blocking.
    pub tcp_listeners: Vec<(usize, OwnedFd)>,
    /// Bound UDP sockets of published ports: the index in `config.publish`, and the socket.
    pub udp_listeners: Vec<(usize, OwnedFd)>,
    /// A raw ICMP socket, for pings where ping sockets are switched off (`net.ipv4.ping_group_range`).
    pub raw_icmp4: Option<OwnedFd>,
    /// A raw ICMPv6 socket, as `raw_icmp4`.
    pub raw_icmp6: Option<OwnedFd>,
    /// A route socket from [`open_address_watch`](crate::sys::netlink::open_address_watch), in the network namespace of the host
    /// sockets. `None`: the worker opens one itself, in [`Worker::new`](super::Worker::new).
    pub address_watch: Option<OwnedFd>,
    /// A stream (pipe or Unix socket) on which the host's resolvers come as [`resolver_update`] writes them, whenever they change.
    pub resolver_updates: Option<OwnedFd>,
    /// Where requests come.
    pub control: Option<ControlSocket>,
    /// The worker finishes when this becomes readable (an eventfd, or a pipe whose other end is closed).
    pub stop: Option<OwnedFd>,
    /// Where to log.
    pub log: slog::Logger,
}

impl WorkerSetup {
    /// Links and nothing else: no rules, listeners, requests, or updates from elsewhere. An embedder adds what it has.
    pub fn new(config: Config, links: Vec<Box<dyn Link>>, log: slog::Logger) -> WorkerSetup {
        WorkerSetup {
            config,
            rules: RulesSetup::default(),
            name: String::new(),
            links,
            queues: Vec::new(),
            joined: Vec::new(),
            tcp_listeners: Vec::new(),
            udp_listeners: Vec::new(),
            raw_icmp4: None,
            raw_icmp6: None,
            address_watch: None,
            resolver_updates: None,
            control: None,
            stop: None,
            log,
        }
    }
}

/// Rules that are given at the start. If one family has some and the other has none, the other is dropped.
#[derive(Clone, Debug, Default)]
pub struct RulesSetup {
    /// For IPv4.
    pub v4: Option<Ruleset>,
    /// For IPv6.
    pub v6: Option<Ruleset>,
    /// Sets that they name, their time-outs counted from the start of stack time; of a network that goes on from an image, in place of the image's.
    pub sets: Option<Sets>,
    /// What becomes of live flows when they are replaced, unless the request says.
    pub recheck: Recheck,
}

/// Why a worker cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No memory map, epoll or timer descriptor, or no entropy.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The rules make no sense.
    #[error("rules: {0}")]
    Rules(#[from] RuleError),
    /// More links than a stack can number.
    #[error("{0} links, but a stack has at most {max}", max = super::MAX_LINKS)]
    TooManyLinks(usize),
    /// More queues than there can be workers.
    #[error("{0} queues with a worker each, but a network has at most {max} workers", max = super::MOST_WORKERS)]
    TooManyQueues(usize),
    /// Several workers serve one link, and there is to be another.
    #[error("a network with several workers has one link, and others cannot join it")]
    OneLink,
    /// A listener belongs to no published port.
    #[error("a listener for published port {index}, but there are only {count}")]
    NoSuchPublish {
        /// Its index.
        index: usize,
        /// Number of entries in `config.publish`.
        count: usize,
    },
}

impl WorkerError {
    pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> WorkerError {
        move |source| WorkerError::System { what, source }
    }
}

/// Has a published UDP port served. A stack that was restored knows the port, and has no socket for it if one is given.
pub(super) fn listen_udp(stack: &mut Stack, sockets: &mut Sockets, fd: OwnedFd) -> Result<(), WorkerError> {
    let (id, local) = sockets.udp_listener(fd).map_err(WorkerError::system("prepare a published UDP port"))?;
    let known = stack.udp_listeners().find(|(_, sock, at)| *at == local && sockets.token(*sock).is_none());
    let token = match known {
        Some((token, ..)) => {
            stack.set_udp_listener(token, id);
            token
        }
        None => stack.udp_listening(id, local),
    };
    sockets.listen(id, token).map_err(WorkerError::system("watch a published UDP port"))
}

/// An update for [`WorkerSetup::resolver_updates`]: one address per line, ended by an empty line.
pub fn resolver_update(resolvers: &[std::net::IpAddr]) -> String {
    let mut text = String::new();
    for r in resolvers {
        text.push_str(&r.to_string());
        text.push('\n');
    }
    text.push('\n');
    text
}
