//! What all parts of the stack share: configuration, links, neighbours, hooks, counters, and the way out.

mod addrs;
mod bare;
mod forward;
mod host;
mod icmp_error;
mod limiter;
mod neighbours;
mod netfilter;
mod own_rules;
mod reject;
mod rules;
mod send;
mod state;
mod via;

pub(crate) use addrs::Addrs;
pub(crate) use bare::Bare;
pub(crate) use limiter::RateLimit;
pub(crate) use netfilter::Netfilter;
pub use netfilter::Traced;
pub(crate) use send::Outgoing;
pub(crate) use state::LinksStateV1;
pub use state::{FamilyState, LinksState, RulesState};
pub(crate) use via::Attach;
pub use via::Via;

use crate::config::{Behind, Config, LinkNet, V4Config, V6Config};
use crate::edge::{LinkId, LinkInfo, TxError};
use crate::rng::Rng;
use crate::stats::Stats;
use crate::time::Time;
use crate::timers::Timers;
use crate::verdict::DropReason;
use crate::workers::Place;
use core::net::IpAddr;
use core::time::Duration;
use neighbours::Neighbours;

/// Longest head of a frame that the stack builds: Ethernet, IP, and a whole small message.
const SCRATCH: usize = 2048;

/// State shared by the router's parts.
#[derive(Debug)]
pub struct Router {
    pub(crate) cfg: Config,
    /// A change of them, of `cfg`'s addresses or of `host_addrs` changes what rules say: see [`Router::forget_verdicts`].
    pub(crate) links: Vec<Link>,
    pub(crate) netfilter: Netfilter,
    pub(crate) stats: Stats,
    pub(crate) timers: Timers,
    pub(crate) rng: Rng,
    /// Addresses of the host's own interfaces, loopback excluded, in ascending order. Kept true by the caller.
    pub(crate) host_addrs: Vec<IpAddr>,
    /// Stack time of the call in progress.
    pub(crate) now: Time,
    /// Time since 1970 at stack time zero, as the wall clock has it; `None` before the caller said so.
    pub(crate) wall: Option<Duration>,
    /// When data or connections moved last.
    pub(crate) moved: Time,
    pub(crate) icmp_limit: RateLimit,
    /// Among the workers that serve the network.
    pub(crate) place: Place,
    ident: u32,
    scratch: Box<[u8; SCRATCH]>,
    /// Transport header of a packet of ours as translated; kept for its memory.
    rewritten: Vec<u8>,
}

/// A guest link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) info: LinkInfo,
    pub(crate) behind: Behind,
    /// Name under which others find the guest; empty for none.
    pub(crate) name: String,
    pub(crate) neighbours: Neighbours,
    /// Limits how often we ask for a guest's MAC address that is not known.
    pub(crate) ask_limit: RateLimit,
}

impl Link {
    fn new(info: LinkInfo, behind: Behind, name: String) -> Self {
        Link { info, behind, name, neighbours: Neighbours::new(info.guest_mac), ask_limit: RateLimit::neighbour() }
    }

    /// The same link as another worker sees it at first.
    fn beside(&self) -> Link {
        let mut link = Link::new(self.info, self.behind, self.name.clone());
        // As many as there are fit.
        let _ = link.neighbours.restore(self.neighbours.entries().to_vec(), self.neighbours.last());
        link
    }

    /// MAC address of a guest address, if it is known.
    pub(crate) fn mac_of(&self, addr: IpAddr) -> Option<crate::wire::Mac> {
        match self.behind {
            // Many stations: each has its own.
            Behind::Net(_) => self.neighbours.learned(addr).or(self.info.guest_mac),
            _ => self.neighbours.lookup(addr),
        }
    }

    /// The network of many stations behind it.
    pub(crate) fn net(&self) -> Option<LinkNet> {
        if let Behind::Net(net) = self.behind { Some(net) } else { None }
    }

    /// IPv4 of the one guest behind it.
    pub(crate) fn v4(&self, cfg: &Config) -> Option<V4Config> {
        match self.behind {
            Behind::Configured => cfg.v4,
            Behind::Guest(g) => g.v4,
            Behind::Net(_) | Behind::Nobody => None,
        }
    }

    /// IPv6 of the one guest behind it.
    pub(crate) fn v6(&self, cfg: &Config) -> Option<V6Config> {
        match self.behind {
            Behind::Configured => cfg.v6,
            Behind::Guest(g) => g.v6,
            Behind::Net(_) | Behind::Nobody => None,
        }
    }
}

impl Router {
    /// Without rules, our own included.
    pub(crate) fn new(cfg: Config, mut rng: Rng) -> Self {
        let ident = rng.u32();
        let netfilter = Netfilter::new(&cfg, &mut rng);
        Router {
            cfg,
            links: Vec::new(),
            netfilter,
            stats: Stats::default(),
            timers: Timers::default(),
            rng,
            host_addrs: Vec::new(),
            now: Time::ZERO,
            wall: None,
            moved: Time::ZERO,
            icmp_limit: RateLimit::icmp(),
            place: Place::default(),
            ident,
            scratch: Box::new([0; SCRATCH]),
            rewritten: Vec::new(),
        }
    }

    /// Who has which address.
    pub(crate) fn addrs(&self) -> Addrs<'_> {
        Addrs { cfg: &self.cfg, links: &self.links, host: &self.host_addrs }
    }

    /// See [`Addrs::route`].
    pub(crate) fn route(&self, dst: IpAddr) -> Option<LinkId> {
        self.addrs().route(dst)
    }

    /// See [`Addrs::is_guest`].
    pub(crate) fn is_guest(&self, a: IpAddr) -> bool {
        self.addrs().is_guest(a)
    }

    /// See [`Addrs::is_ours`].
    pub(crate) fn is_ours(&self, a: IpAddr) -> bool {
        self.addrs().is_ours(a)
    }

    /// See [`Addrs::is_local`].
    pub(crate) fn is_local(&self, a: IpAddr) -> bool {
        self.addrs().is_local(a)
    }

    /// Our link-local address, from our MAC address.
    pub(crate) fn link_local(&self) -> core::net::Ipv6Addr {
        self.addrs().link_local()
    }

    /// Counts a drop.
    pub(crate) fn drop(&mut self, why: DropReason) -> DropReason {
        self.stats.drop(why);
        why
    }
}

impl Router {
    /// A link under the first free number.
    pub(crate) fn add_link(&mut self, info: LinkInfo, behind: Behind, name: String) -> LinkId {
        let link = Link::new(info, behind, name);
        let free = self.links.iter().position(|l| l.behind == Behind::Nobody);
        let at = free.unwrap_or(self.links.len());
        match free {
            Some(at) => self.links[at] = link,
            None => self.links.push(link),
        }
        self.forget_verdicts();
        LinkId(at as u8)
    }

    /// Nobody is behind a link any more.
    pub(crate) fn remove_link(&mut self, link: LinkId) {
        if let Some(l) = self.links.get_mut(usize::from(link.0)) {
            *l = Link::new(LinkInfo { guest_mac: None, ..l.info }, Behind::Nobody, String::new());
        }
        self.forget_verdicts();
    }

    /// Has the links that the leader has. Who is behind those that stay is known already.
    pub(crate) fn follow_links(&mut self, leader: &Router) {
        self.links.truncate(leader.links.len());
        for (i, theirs) in leader.links.iter().enumerate() {
            match self.links.get_mut(i) {
                Some(mine) if mine.behind == theirs.behind => {
                    mine.info = theirs.info;
                    mine.name.clone_from(&theirs.name);
                }
                Some(mine) => *mine = theirs.beside(),
                None => self.links.push(theirs.beside()),
            }
        }
    }

    /// IPv4 of the guest behind a link.
    pub(crate) fn v4_on(&self, link: LinkId) -> Option<V4Config> {
        self.links.get(usize::from(link.0)).and_then(|l| l.v4(&self.cfg))
    }

    /// IPv6 of the guest behind a link.
    pub(crate) fn v6_on(&self, link: LinkId) -> Option<V6Config> {
        self.links.get(usize::from(link.0)).and_then(|l| l.v6(&self.cfg))
    }

    /// The guest's addresses behind the link of this name; the case of the name does not matter.
    pub(crate) fn named(&self, name: &[u8]) -> Option<(Option<V4Config>, Option<V6Config>)> {
        let found = |l: &&Link| !l.name.is_empty() && l.name.as_bytes().eq_ignore_ascii_case(name);
        self.links.iter().find(found).map(|l| (l.v4(&self.cfg), l.v6(&self.cfg)))
    }

    /// The name of the guest that has an address, if it has one.
    pub(crate) fn name_of(&self, addr: IpAddr) -> Option<&str> {
        let has = |l: &&Link| match addr {
            IpAddr::V4(a) => l.v4(&self.cfg).is_some_and(|c| c.guest == a),
            IpAddr::V6(a) => l.v6(&self.cfg).is_some_and(|c| c.guest == a),
        };
        self.links.iter().find(has).map(|l| l.name.as_str()).filter(|n| !n.is_empty())
    }

    /// Refuses sources that cannot be, or that are not behind the link.
    pub(crate) fn check_source(&self, link: LinkId, ip: &crate::wire::ip::Header) -> Result<(), DropReason> {
        let martian = match ip.src {
            IpAddr::V4(a) => a.is_multicast() || a.is_broadcast() || a.is_loopback(),
            IpAddr::V6(a) => a.is_multicast() || a.is_loopback(),
        };
        if martian {
            return Err(DropReason::MartianSource);
        }
        // The unspecified address is that of a guest that asks for one; only services on our own addresses hear it.
        if ip.src.is_unspecified() && self.is_local(ip.dst) || self.addrs().is_behind(link, ip.src) {
            return Ok(());
        }
        Err(DropReason::SpoofedSource)
    }

    /// Whether an address is the one at which DNS is served.
    pub(crate) fn is_dns(&self, a: IpAddr) -> bool {
        self.addrs().is_dns(a)
    }

    /// Notes where a guest address is.
    pub(crate) fn learn(&mut self, link: LinkId, addr: IpAddr, mac: crate::wire::Mac) {
        if !addr.is_unspecified() {
            self.links[usize::from(link.0)].neighbours.learn(addr, mac);
        }
    }
}

impl From<TxError> for DropReason {
    fn from(e: TxError) -> Self {
        match e {
            TxError::Full => DropReason::LinkFull,
            TxError::Down => DropReason::LinkDown,
            TxError::TooBig => DropReason::TooBig,
        }
    }
}
