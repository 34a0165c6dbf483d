//! What supervisor and worker say to each other, and how a worker gets what it works with.

use super::JoinedLink;
use crate::checkpoint::Held;
use crate::checkpoint::news::Watched;
use crate::checkpoint::report::{FlowTier, FreezeReport, ThawReport};
use crate::control::protocol::Recheck;
use crate::control::rules;
use crate::link::{Connection, Direction};
use crate::sandbox::failure::{Failure, Status};
use crate::sandbox::guest::LinkEnd;
use crate::sandbox::host::HostFds;
use crate::sandbox::plan::{LogPlan, Plan};
use crate::sys::tun::Offloads;
use crate::worker::{Mode, Prepare, RestorePolicy, RulesSetup};
use hibernet_netstack::config::GuestNet;
use hibernet_netstack::edge::SockId;
use hibernet_netstack::ipset::Sets;
use hibernet_netstack::iptables::text::{self, PrintOptions, RestoreOptions};
use hibernet_netstack::iptables::{Family, Ruleset};
use hibernet_netstack::{Config, Time};
use hibernet_snapshot::GenerationId;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::time::Duration;

/// From the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// Ids are mapped: become the worker's program.
    Mapped,
    /// What to be, with the descriptors that [`Start::roles`] names; answered by [`FromWorker::Standing`].
    Start(Box<Start>),
    /// Begin with nothing; answered by [`FromWorker::Ready`].
    Serve,
    /// Go on from the image in the first descriptor that comes along, with what is held in the others; answered by [`FromWorker::Thawed`] and
    /// [`FromWorker::Ready`].
    GoOn(Box<GoOn>),
    /// Stand still; answered by [`FromWorker::Paused`].
    Pause,
    /// Go on; answered by [`FromWorker::Resumed`].
    Resume,
    /// Which tier each flow would take; answered by [`FromWorker::Tiers`].
    Tiers(Mode),
    /// Freeze, and write the image into the descriptor that comes along; [`FromWorker::Prepared`] or [`FromWorker::NotPrepared`], then
    /// [`FromWorker::Progress`] until [`FromWorker::Written`].
    Prepare(Prepare),
    /// Say [`FromWorker::Idle`] once, when nothing has moved for so long; or do not any more.
    Idle(Option<Duration>),
    /// Give copies of all host sockets; answered by [`FromWorker::Handed`] or [`FromWorker::NotHanded`].
    Hand,
    /// Frozen, end.
    End,
    /// Serve one more guest, at the link that comes along; answered by [`FromWorker::Joined`] or [`FromWorker::NotJoined`].
    Join(Box<Join>),
    /// Serve the guest at the link of this number no longer.
    Leave(u8),
    /// Of a machine that moves: freeze, and write the image into its pipe; a connection to a helper may come along. Answered by
    /// [`FromWorker::Moving`] or [`FromWorker::Stays`].
    Save(Prepare),
    /// Of a machine that comes: read its image; a connection to a helper may come along. Answered likewise.
    Load,
    /// Of a machine that is to move: it cannot.
    NoTransfer,
    /// Sockets of published ports, TCP's and then UDP's, by their index in the configuration; those that cannot be had are missing.
    Ports(Vec<usize>, Vec<usize>),
    /// Go on as if nothing had happened; answered by [`FromWorker::Aborted`], behind which nothing more comes of it.
    Abort,
}

/// From the worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromWorker {
    /// Confined, and waits to be told how to begin.
    Standing,
    /// About to read the first frame.
    Ready,
    /// It stands still.
    Paused,
    /// It goes on.
    Resumed,
    /// Which tier each flow would take.
    Tiers(Vec<FlowTier>),
    /// It is frozen, unless it is to go on.
    Prepared(Box<FreezeReport>),
    /// It cannot be frozen, or enough of its flows would not survive, and goes on.
    NotPrepared {
        /// Why.
        why: String,
        /// Because of what was required.
        require: bool,
    },
    /// So many bytes of the image, of so many, are written.
    Progress(u64, u64),
    /// All is written, or why not.
    Written(Result<u64, String>),
    /// Copies of its sockets come along, in this order; and what they are.
    Handed(Box<Handed>, Vec<Watched>),
    /// They cannot be given, and why.
    NotHanded(String),
    /// Nothing is under way, and nothing has moved for so long.
    Idle(Duration),
    /// It goes on.
    Aborted,
    /// The machine behind the link is to move; answered by [`ToWorker::Save`], [`ToWorker::Load`], or [`ToWorker::NoTransfer`].
    Transfer(Direction),
    /// The machine is on its way: its network is saved, and stands still unless it comes back ([`FromWorker::Here`], [`FromWorker::Stays`]); or it was read,
    /// and waits for it.
    Moving(Option<Box<FreezeReport>>),
    /// Sockets of the ports that this configuration publishes are wanted, UDP's too or not; answered by [`ToWorker::Ports`].
    Ports(Box<Config>, bool),
    /// Nothing comes, or came, of a move, and why; all is as it was.
    Stays(String),
    /// A machine has come with its network, or has come back: what became of its flows, and the configuration now in force.
    Here(Box<ThawReport>, Box<Config>),
    /// The guest is served, at the link of this number.
    Joined(u8),
    /// It cannot be, and why.
    NotJoined(String),
    /// It goes on where another one stood; said before [`FromWorker::Ready`].
    Thawed(Box<ThawReport>),
    /// It cannot work, and is about to end.
    Failed(Failure),
}

impl FromWorker {
    /// Whether this is about a virtual machine that moves.
    pub(crate) fn is_about_a_move(&self) -> bool {
        use FromWorker::{Here, Moving, Ports, Stays, Transfer};
        matches!(self, Transfer(_) | Moving(_) | Ports(..) | Stays(_) | Here(..))
    }
}

/// Which descriptors come along, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handed {
    generation: Option<[u8; 16]>,
    sockets: Vec<u32>,
    listeners: Vec<usize>,
    raw4: bool,
    raw6: bool,
    /// Number of the link, what it had received, and what it had begun to send.
    links: Vec<(u8, Vec<u8>, Vec<u8>)>,
}

impl Handed {
    /// What there is, and its descriptors.
    pub(crate) fn of(held: &Held) -> (Handed, Vec<BorrowedFd<'_>>) {
        let handed = Handed {
            generation: held.generation.map(|g| g.0),
            sockets: held.sockets.iter().map(|(id, _)| id.0).collect(),
            listeners: held.tcp_listeners.iter().map(|(i, _)| *i).collect(),
            raw4: held.raw_icmp4.is_some(),
            raw6: held.raw_icmp6.is_some(),
            links: held.links.iter().map(|(n, c)| (*n, c.received.clone(), c.unsent.clone())).collect(),
        };
        let sockets = held.sockets.iter().map(|(_, fd)| fd);
        let listeners = held.tcp_listeners.iter().map(|(_, fd)| fd);
        let raw = [&held.raw_icmp4, &held.raw_icmp6].into_iter().flatten();
        let links = held.links.iter().map(|(_, c)| &c.fd);
        (handed, sockets.chain(listeners).chain(raw).chain(links).map(AsFd::as_fd).collect())
    }

    /// From the descriptors that came along.
    pub(crate) fn take(self, fds: Vec<OwnedFd>) -> Result<Held, Failure> {
        let few = usize::from(self.raw4) + usize::from(self.raw6) + self.links.len();
        let expected = self.sockets.len() + self.listeners.len() + few;
        if expected != fds.len() {
            return Err(wrong("descriptors are missing"));
        }
        let mut fds = fds.into_iter();
        Ok(Held {
            generation: self.generation.map(GenerationId),
            sockets: self.sockets.into_iter().map(SockId).zip(&mut fds).collect(),
            tcp_listeners: self.listeners.into_iter().zip(&mut fds).collect(),
            raw_icmp4: if self.raw4 { fds.next() } else { None },
            raw_icmp6: if self.raw6 { fds.next() } else { None },
            links: self
                .links
                .into_iter()
                .zip(fds)
                .map(|((n, received, unsent), fd)| (n, Connection { fd, received, unsent }))
                .collect(),
        })
    }
}

/// How to go on from an image.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GoOn {
    /// What is held for it.
    pub(crate) handed: Handed,
    /// What becomes of flows.
    pub(crate) policy: RestorePolicy,
    /// The last descriptor is a connection to who switches the repair mode of sockets.
    pub(crate) helper: bool,
}

/// A guest to be served beside others.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Join {
    pub(crate) name: String,
    pub(crate) net: GuestNet,
    pub(crate) end: LinkEnd,
    /// For a TAP: what its kernel agreed to. A confined worker cannot ask.
    pub(crate) offloads: Offloads,
}

/// What a worker is to be. Its program may be another version than the supervisor's.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    config: Config,
    rules4: Option<String>,
    rules6: Option<String>,
    #[serde(default)]
    sets: Option<String>,
    recheck: Recheck,
    #[serde(default)]
    require: u8,
    log_level: String,
    log_json: bool,
    /// Under which name others find the first guest.
    name: String,
    link: LinkEnd,
    /// Guests that joined it: the numbers of their links, and those.
    joined: Vec<(u8, LinkEnd)>,
    users: Vec<u32>,
    capture_goes_on: bool,
    /// Threads that serve the first guest's link; 0 and 1 are one.
    #[serde(default)]
    workers: u32,
    roles: Vec<Role>,
}

/// What a descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    Link,
    /// One more socket of the link.
    Queue,
    /// Of a guest that joined, by its place in [`Start::joined`].
    Joined(usize),
    Resolvers,
    Stop,
    Control,
    /// Of a published port, by its index in the configuration.
    Tcp(usize),
    Udp(usize),
    RawIcmp4,
    RawIcmp6,
    AddressWatch,
    Pcap,
    Log,
}

/// Everything that a worker's process works with.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) rules: RulesSetup,
    /// Flows that must come along when a virtual machine moves, in percent.
    pub(crate) require: u8,
    pub(crate) log: LogPlan,
    pub(crate) name: String,
    pub(crate) end: LinkEnd,
    /// Who may ask at the control socket, by ids as the worker knows them.
    pub(crate) users: Vec<u32>,
    /// None if the first guest has left those that joined it.
    pub(crate) link: Option<OwnedFd>,
    /// More sockets of the same link.
    pub(crate) queues: Vec<OwnedFd>,
    pub(crate) joined: Vec<JoinedLink>,
    pub(crate) resolvers: OwnedFd,
    pub(crate) stop: OwnedFd,
    pub(crate) control: Option<OwnedFd>,
    pub(crate) host: HostFds,
    /// The capture file was begun by another worker.
    pub(crate) capture_goes_on: bool,
    /// Threads that serve the link.
    pub(crate) workers: u32,
}

fn wrong(what: impl std::fmt::Display) -> Failure {
    Failure::new(Status::Internal, format!("the network worker cannot be started: {what}"))
}

impl Parts {
    /// The parts that a plan asks for, once their descriptors are there.
    pub(super) fn new(plan: &Plan, users: Vec<u32>, given: super::Given, resolvers: OwnedFd, stop: OwnedFd) -> Parts {
        let super::Given { name, end, link, queues, joined, host, control, capture_goes_on } = given;
        let (config, rules, log) = (plan.config.clone(), plan.rules.clone(), plan.log.clone());
        let (require, workers) = (plan.carry.require, plan.guest.workers);
        Parts {
            config,
            rules,
            require,
            log,
            name,
            end,
            users,
            link,
            queues,
            joined,
            resolvers,
            stop,
            control,
            host,
            capture_goes_on,
            workers,
        }
    }

    /// As a message, with its descriptors.
    pub(super) fn into_message(self) -> (ToWorker, Vec<OwnedFd>) {
        let mut all = vec![(Role::Resolvers, self.resolvers), (Role::Stop, self.stop)];
        all.extend(self.link.map(|fd| (Role::Link, fd)));
        all.extend(self.queues.into_iter().map(|fd| (Role::Queue, fd)));
        let mut joined = Vec::with_capacity(self.joined.len());
        for (i, JoinedLink { number, end, fd }) in self.joined.into_iter().enumerate() {
            joined.push((number, end));
            all.push((Role::Joined(i), fd));
        }
        all.extend(self.control.map(|fd| (Role::Control, fd)));
        all.extend(self.host.tcp.into_iter().map(|(i, fd)| (Role::Tcp(i), fd)));
        all.extend(self.host.udp.into_iter().map(|(i, fd)| (Role::Udp(i), fd)));
        all.extend(self.host.raw_icmp4.map(|fd| (Role::RawIcmp4, fd)));
        all.extend(self.host.raw_icmp6.map(|fd| (Role::RawIcmp6, fd)));
        all.extend(self.host.address_watch.map(|fd| (Role::AddressWatch, fd)));
        all.extend(self.host.pcap.map(|f| (Role::Pcap, f.into())));
        all.extend(self.host.log.map(|f| (Role::Log, f.into())));
        let (roles, fds) = all.into_iter().unzip();
        let rules = |r: Option<Ruleset>| r.map(|r| text::print(&r, PrintOptions { counters: true, date: None }));
        let start = Start {
            config: self.config,
            rules4: rules(self.rules.v4),
            rules6: rules(self.rules.v6),
            // Time-outs begin when the worker has read them.
            sets: self.rules.sets.map(|s| s.print(Time::ZERO)),
            recheck: self.rules.recheck,
            require: self.require,
            log_level: self.log.level.as_str().to_owned(),
            log_json: self.log.json,
            name: self.name,
            link: self.end,
            joined,
            users: self.users,
            capture_goes_on: self.capture_goes_on,
            workers: self.workers,
            roles,
        };
        (ToWorker::Start(Box::new(start)), fds)
    }

    /// From a message and its descriptors.
    pub(super) fn from_message(start: Start, fds: Vec<OwnedFd>) -> Result<Parts, Failure> {
        if start.roles.len() != fds.len() {
            return Err(wrong("descriptors are missing"));
        }
        let (mut link, mut resolvers, mut stop, mut control) = (None, None, None, None);
        let mut host = HostFds::default();
        let mut ends: Vec<Option<(u8, LinkEnd)>> = start.joined.into_iter().map(Some).collect();
        let (mut queues, mut joined) = (Vec::new(), Vec::new());
        for (role, fd) in start.roles.into_iter().zip(fds) {
            match role {
                Role::Link => link = Some(fd),
                Role::Queue => queues.push(fd),
                Role::Joined(i) => {
                    let end = ends.get_mut(i).and_then(Option::take);
                    let (number, end) = end.ok_or_else(|| wrong("there is a link of nobody's"))?;
                    joined.push(JoinedLink { number, end, fd });
                }
                Role::Resolvers => resolvers = Some(fd),
                Role::Stop => stop = Some(fd),
                Role::Control => control = Some(fd),
                Role::Tcp(i) => host.tcp.push((i, fd)),
                Role::Udp(i) => host.udp.push((i, fd)),
                Role::RawIcmp4 => host.raw_icmp4 = Some(fd),
                Role::RawIcmp6 => host.raw_icmp6 = Some(fd),
                Role::AddressWatch => host.address_watch = Some(fd),
                Role::Pcap => host.pcap = Some(File::from(fd)),
                Role::Log => host.log = Some(File::from(fd)),
            }
        }
        let (Some(resolvers), Some(stop)) = (resolvers, stop) else {
            return Err(wrong("descriptors are missing"));
        };
        let rules = |family: Family, text: Option<String>| {
            let read = |text: String| {
                rules::restore(&Ruleset::new(family), &text, RestoreOptions { counters: true, noflush: false })
                    .map_err(|p| wrong(format_args!("its rules cannot be read: {}", p.message)))
            };
            text.map(read).transpose()
        };
        let sets = start.sets.map(|text| {
            let read = rules::read_sets(&Sets::default(), &text, Time::ZERO);
            read.map_err(|p| wrong(format_args!("its sets cannot be read: {}", p.message)))
        });
        Ok(Parts {
            rules: RulesSetup {
                sets: sets.transpose()?,
                v4: rules(Family::V4, start.rules4)?,
                v6: rules(Family::V6, start.rules6)?,
                recheck: start.recheck,
            },
            require: start.require,
            config: start.config,
            log: LogPlan {
                level: slog::Level::from_str(&start.log_level).map_err(|()| wrong("no such log level"))?,
                json: start.log_json,
                file: None,
            },
            name: start.name,
            end: start.link,
            users: start.users,
            link,
            queues,
            joined,
            resolvers,
            stop,
            control,
            host,
            capture_goes_on: start.capture_goes_on,
            workers: start.workers,
        })
    }
}
