//! What all parts of the stack share: configuration, links, neighbours, hooks, counters, and the way out.

mod icmp_error;
mod limiter;
mod neighbours;
mod send;

pub(crate) use limiter::RateLimit;
pub(crate) use send::Outgoing;

use crate::config::Config;
use crate::edge::{LinkId, LinkInfo, TxError};
use crate::iptables::{Hook, HookPacket, Tables};
use crate::rng::Rng;
use crate::stats::Stats;
use crate::time::Time;
use crate::timers::Timers;
use crate::verdict::{DropReason, Verdict};
use core::net::IpAddr;
use neighbours::Neighbours;

/// Longest head of a frame that the stack builds: Ethernet, IP, and a whole small message.
const SCRATCH: usize = 2048;

/// State shared by the router's parts.
#[derive(Debug)]
pub struct Router {
    pub(crate) cfg: Config,
    pub(crate) links: Vec<Link>,
    pub(crate) tables: Tables,
    pub(crate) stats: Stats,
    pub(crate) timers: Timers,
    pub(crate) rng: Rng,
    /// Addresses of the host's own interfaces, loopback excluded, in ascending order. Kept true by the caller.
    pub(crate) host_addrs: Vec<IpAddr>,
    /// Stack time of the call in progress.
    pub(crate) now: Time,
    pub(crate) icmp_limit: RateLimit,
    ident: u32,
    scratch: Box<[u8; SCRATCH]>,
}

/// A guest link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) info: LinkInfo,
    pub(crate) neighbours: Neighbours,
    /// Limits how often we ask for a guest's MAC address that is not known.
    pub(crate) ask_limit: RateLimit,
}

impl Router {
    pub(crate) fn new(cfg: Config, mut rng: Rng) -> Self {
        let ident = rng.u32();
        Router {
            cfg,
            links: Vec::new(),
            tables: Tables::default(),
            stats: Stats::default(),
            timers: Timers::default(),
            rng,
            host_addrs: Vec::new(),
            now: Time::ZERO,
            icmp_limit: RateLimit::icmp(),
            ident,
            scratch: Box::new([0; SCRATCH]),
        }
    }

    /// Link behind which a guest address is. (All guests share the first link for now.)
    pub(crate) fn route(&self, dst: IpAddr) -> Option<LinkId> {
        self.is_guest(dst).then_some(LinkId(0)).filter(|l| usize::from(l.0) < self.links.len())
    }

    /// Whether an address belongs to the guest: its configured ones, and over IPv6 any of its prefix that is not
    /// ours (a guest may make its own by SLAAC) and any link-local one.
    pub(crate) fn is_guest(&self, a: IpAddr) -> bool {
        if self.is_ours(a) {
            return false;
        }
        match a {
            IpAddr::V4(a) => self.cfg.v4.is_some_and(|c| c.guest == a),
            IpAddr::V6(a) => self.cfg.v6.is_some_and(|c| {
                let shift = 128 - u32::from(c.prefix.min(128));
                let same = (a.to_bits() ^ c.guest.to_bits()).checked_shr(shift).unwrap_or(0) == 0;
                c.guest == a || same || a.is_unicast_link_local()
            }),
        }
    }

    /// Whether an address is one of the stack's own.
    pub(crate) fn is_ours(&self, a: IpAddr) -> bool {
        match a {
            IpAddr::V4(a) => self.cfg.v4.is_some_and(|c| a == c.gateway || a == c.dns),
            IpAddr::V6(a) => self.cfg.v6.is_some_and(|c| a == c.gateway || a == c.dns) || a == self.link_local(),
        }
    }

    /// Our link-local address, from our MAC address.
    pub(crate) fn link_local(&self) -> core::net::Ipv6Addr {
        let mut b = [0; 16];
        b[0] = 0xfe;
        b[1] = 0x80;
        b[8..].copy_from_slice(&self.cfg.gateway_mac.eui64());
        b.into()
    }

    /// Asks the tables. A drop is not counted here.
    pub(crate) fn check(&mut self, hook: Hook, packet: &HookPacket) -> Result<(), DropReason> {
        match self.tables.check(hook, packet) {
            Verdict::Accept => Ok(()),
            Verdict::Drop(why) => Err(why),
        }
    }

    /// Counts a drop.
    pub(crate) fn drop(&mut self, why: DropReason) -> DropReason {
        self.stats.drop(why);
        why
    }
}

impl Router {
    pub(crate) fn add_link(&mut self, info: LinkInfo) -> LinkId {
        self.links.push(Link { info, neighbours: Neighbours::new(info.guest_mac), ask_limit: RateLimit::neighbour() });
        LinkId((self.links.len() - 1) as u8)
    }

    /// Refuses sources that cannot be, or that are not the guest's.
    pub(crate) fn check_source(&self, ip: &crate::wire::ip::Header) -> Result<(), DropReason> {
        let martian = match ip.src {
            IpAddr::V4(a) => a.is_multicast() || a.is_broadcast() || a.is_loopback(),
            IpAddr::V6(a) => a.is_multicast() || a.is_loopback(),
        };
        if martian {
            return Err(DropReason::MartianSource);
        }
        // The unspecified address is that of a guest that asks for one; only services on our own addresses hear it.
        if ip.src.is_unspecified() && self.is_local(ip.dst) || self.is_guest(ip.src) {
            return Ok(());
        }
        Err(DropReason::SpoofedSource)
    }

    /// Whether a packet for `a` is for the router itself.
    pub(crate) fn is_local(&self, a: IpAddr) -> bool {
        if self.is_ours(a) {
            return true;
        }
        match a {
            IpAddr::V4(a) => {
                a.is_broadcast()
                    || a.is_multicast()
                    || self.cfg.v4.is_some_and(|c| {
                        let host = u32::MAX.checked_shr(c.prefix.into()).unwrap_or(0);
                        c.prefix < 31 && a.to_bits() == (c.guest.to_bits() | host)
                    })
            }
            IpAddr::V6(a) => a.is_multicast(),
        }
    }

    /// Whether an address is the one at which DNS is served.
    pub(crate) fn is_dns(&self, a: IpAddr) -> bool {
        match a {
            IpAddr::V4(a) => self.cfg.v4.is_some_and(|c| c.dns == a),
            IpAddr::V6(a) => self.cfg.v6.is_some_and(|c| c.dns == a),
        }
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
