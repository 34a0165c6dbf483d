//! Options that `run` and `attach` share, and what they amount to.

pub use super::choices::{EgressArg, LevelArg, LinkArg, RingArg};
use super::rules::Source;
use super::values::{self, Prefixed};
use crate::control::protocol::{Recheck, RulesOf};
use crate::sandbox::carry::Carry;
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::plan::{Guest, LinkChoice, LogPlan, Plan};
use crate::sandbox::resolv::{self, HostResolver};
use crate::sandbox::target::Target;
use crate::worker::RulesSetup;
use clap::Args;
use hibernet_netstack::config::{AllowHost, Config, Egress, Publish, Reach, V4Config, V6Config};
use hibernet_netstack::conntrack::config::{CtConfig, SettingError};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// Largest packet, unless told otherwise.
const DEFAULT_MTU: u16 = 65520;
/// Name of the interface, likewise.
const DEFAULT_IFNAME: &str = "eth0";

/// The network that the sandbox gets.
#[derive(Args, Clone, Debug)]
pub struct NetOptions {
    /// Publish a host port (or range) as a port of the guest: `[ADDR:]HOST[-LAST]:GUEST[/tcp|/udp]`; an IPv6 ADDR in brackets
    #[arg(short, long, value_name = "SPEC", value_parser = values::publish, help_heading = "Ports and reach")]
    pub publish: Vec<Publish>,

    /// Address in the guest's world that stands for the host's loopback (repeatable)
    #[arg(long, value_name = "ADDR", help_heading = "Ports and reach")]
    pub map_host_loopback: Vec<IpAddr>,

    /// Let the guest reach the host's own addresses, or one of them, or one port there (repeatable)
    #[arg(long, value_name = "ADDR[:PORT]", num_args = 0..=1, default_missing_value = "", value_parser = values::allow_host, help_heading = "Ports and reach")]
    pub allow_host: Vec<AllowHost>,

    /// Let the guest reach link-local and cloud-metadata addresses
    #[arg(long, help_heading = "Ports and reach")]
    pub allow_metadata: bool,

    /// Where the guest may connect to: open (all but the host and its link), public (no private ranges), none
    #[arg(long, value_name = "POLICY", default_value = "open", help_heading = "Ports and reach")]
    pub egress: EgressArg,

    /// IPv4 rules, in the form of `iptables-save`, in force from the first packet on; `-` reads standard input
    #[arg(long, value_name = "FILE", help_heading = "Rules")]
    pub rules: Option<PathBuf>,

    /// IPv6 rules, in the form of `ip6tables-save`. If only one family has rules, the other is dropped
    #[arg(long, value_name = "FILE", help_heading = "Rules")]
    pub rules6: Option<PathBuf>,

    /// Sets that rules name (`-m set`, `-j SET`), in the form of `ipset save`; `-` reads standard input
    #[arg(long, value_name = "FILE", help_heading = "Rules")]
    pub ipset: Option<PathBuf>,

    /// What becomes of live flows when `rules restore` replaces rules and does not say: keep (new rules judge later packets) or cut (judge each, reset those forbidden now)
    #[arg(long, value_name = "HOW", default_value = "keep", help_heading = "Rules")]
    pub recheck: Recheck,

    /// Set one of connection tracking's settings, named as Linux names them: `net.netfilter.nf_conntrack_max=10000`, `nf_conntrack_udp_timeout=60` (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::sysctl, help_heading = "Rules")]
    pub sysctl: Vec<(String, u64)>,

    /// The guest's IPv4 address [default: 10.0.2.15/24]
    #[arg(long, value_name = "ADDR/PREFIX", value_parser = values::prefixed4, help_heading = "Addresses")]
    pub address: Option<Prefixed<Ipv4Addr>>,

    /// The guest's IPv6 address [default: fd68:6962:6e65:7400::15/64]
    #[arg(long, value_name = "ADDR/PREFIX", value_parser = values::prefixed6, help_heading = "Addresses")]
    pub address6: Option<Prefixed<Ipv6Addr>>,

    /// The guest's IPv4 router [default: the network's second address]
    #[arg(long, value_name = "ADDR", help_heading = "Addresses")]
    pub gateway: Option<Ipv4Addr>,

    /// The guest's IPv6 router [default: the network's second address]
    #[arg(long, value_name = "ADDR", help_heading = "Addresses")]
    pub gateway6: Option<Ipv6Addr>,

    /// Address at which the guest finds DNS; one per family [default: the network's third address]
    #[arg(long, value_name = "ADDR", help_heading = "Addresses")]
    pub dns: Vec<IpAddr>,

    /// Resolver of the host to which DNS goes, instead of those in /etc/resolv.conf (repeatable)
    #[arg(long, value_name = "ADDR", help_heading = "Addresses")]
    pub resolver: Vec<IpAddr>,

    /// No IPv4
    #[arg(long, conflicts_with_all = ["address", "gateway", "no_ipv6"], help_heading = "Addresses")]
    pub no_ipv4: bool,

    /// No IPv6
    #[arg(long, conflicts_with_all = ["address6", "gateway6"], help_heading = "Addresses")]
    pub no_ipv6: bool,

    /// Leave addresses and routes to a DHCP client or router advertisements inside
    #[arg(long, help_heading = "Addresses")]
    pub dhcp: bool,

    /// Largest IP packet on the link, in bytes
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MTU, value_parser = clap::value_parser!(u16).range(1280..=65520), help_heading = "Link")]
    pub mtu: u16,

    /// Name of the interface in the sandbox
    #[arg(long, value_name = "NAME", default_value = DEFAULT_IFNAME, value_parser = values::interface, help_heading = "Link")]
    pub ifname: String,

    /// Kind of link [default: tap where /dev/net/tun can be opened, else packet]
    #[arg(long, value_name = "KIND", help_heading = "Link")]
    pub link: Option<LinkArg>,

    /// Receive from a packet socket through memory shared with the kernel: auto (where the kernel can and it pays), on, off
    #[arg(long, value_name = "WHEN", default_value = "auto", help_heading = "Link")]
    pub ring: RingArg,

    /// With --packet: so many packet sockets, among which the kernel divides what comes by flows. With --vhost-user: so many pairs of queues (`queues=` of QEMU).
    /// At least as many as there are workers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16), help_heading = "Link")]
    pub queues: u32,

    /// Serve the link with so many threads, each of which has a queue of it (of a TAP, --packet, or --vhost-user) and flows of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16), help_heading = "Link")]
    pub workers: u32,

    /// Write every packet of the link to FILE, for Wireshark or tcpdump
    #[arg(long, value_name = "FILE", help_heading = "Link")]
    pub pcap: Option<PathBuf>,

    /// Name of the sandbox, for `list`, `exec` and `stats` [default: made up]
    #[arg(long, value_name = "NAME", value_parser = values::name, help_heading = "Running")]
    pub name: Option<String>,

    /// Go to the background when the network is up; print the name
    #[arg(long, help_heading = "Running")]
    pub detach: bool,

    /// What to log
    #[arg(long, value_name = "LEVEL", default_value = "warning", help_heading = "Running")]
    pub log_level: LevelArg,

    /// Log in JSON, one object per line
    #[arg(long, help_heading = "Running")]
    pub log_json: bool,

    /// Log to FILE (appended) instead of standard error
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    pub log_file: Option<PathBuf>,
}

pub(super) fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Status::Usage, message)
}

impl NetOptions {
    /// Checks the options against each other and against this host, and works out everything that they leave open.
    ///
    /// # Errors
    ///
    /// [`Status::Usage`] with the options that do not go together.
    pub fn plan(&self) -> Result<Plan, Failure> {
        if self.dns.iter().filter(|a| a.is_ipv4()).count() > 1 || self.dns.iter().filter(|a| a.is_ipv6()).count() > 1 {
            return Err(usage("--dns: at most one address of each family"));
        }
        let v4 = if self.no_ipv4 { None } else { Some(self.v4()?) };
        // A kernel without IPv6 has no such directory; there everything is as with --no-ipv6, unless IPv6 was asked for.
        let has_v6 = Path::new("/proc/sys/net/ipv6").exists();
        let v6 = match (self.no_ipv6, has_v6) {
            (true, _) => None,
            (false, true) => Some(self.v6()?),
            (false, false) if self.address6.is_some() || self.no_ipv4 => {
                return Err(usage("--address6: this kernel has no IPv6"));
            }
            (false, false) => None,
        };
        for a in &self.dns {
            if a.is_ipv4() && v4.is_none() || a.is_ipv6() && v6.is_none() {
                return Err(usage(format!("--dns {a}: its family is switched off")));
            }
        }
        for &a in &self.map_host_loopback {
            self.check_loopback(a, v4, v6)?;
        }
        for p in &self.publish {
            if p.addr.is_some_and(|a| a.is_ipv4() && v4.is_none() || a.is_ipv6() && v6.is_none()) {
                return Err(usage(format!("--publish {}: the address's family is switched off", values::publish_text(p))));
            }
        }
        check_overlap(&self.publish)?;
        let host = resolv::read_host();
        let egress = match self.egress {
            EgressArg::Open => Egress::Open,
            EgressArg::Public => Egress::Public,
            EgressArg::None => Egress::None,
        };
        let HostResolver { servers, search } = host;
        let follow_resolver = self.resolver.is_empty();
        let config = Config {
            v4,
            v6,
            resolvers: if follow_resolver { servers } else { self.resolver.clone() },
            search,
            reach: Reach {
                egress,
                map_host_loopback: self.map_host_loopback.clone(),
                allow_host: self.allow_host.clone(),
                allow_metadata: self.allow_metadata,
            },
            hostname: self.name.clone().unwrap_or_default(),
            publish: self.publish.clone(),
            conntrack: self.conntrack()?,
            ..Config::default()
        };
        Ok(Plan {
            rules: self.rules(config.v4.is_some(), config.v6.is_some())?,
            config,
            guest: Guest {
                ifname: self.ifname.clone(),
                mtu: self.mtu,
                dhcp: self.dhcp,
                link: self.link.map_or(LinkChoice::Any, LinkChoice::from),
                ring: self.ring.into(),
                queues: self.queues,
                workers: self.workers,
            },
            follow_resolver,
            pcap: self.pcap.clone(),
            log: LogPlan { level: self.log_level.into(), json: self.log_json, file: self.log_file.clone() },
            name: self.name.clone(),
            detach: self.detach,
            carry: Carry::default(),
        })
    }

    /// Several queues are those of a packet link that is attached to, or of a vhost-user device; several workers have those, or a TAP's.
    ///
    /// # Errors
    ///
    /// [`Status::Usage`] if they were asked for and this is neither.
    pub(super) fn check_queues(&self, target: Option<&Target>) -> Result<(), Failure> {
        use Target::{Namespace, Packet, Process, Tap, VhostUser, VhostUserConnect};
        let queued = matches!(target, Some(Packet(_) | VhostUser { .. } | VhostUserConnect(_)));
        let divided = queued || matches!(target, None | Some(Tap(_) | Process(_) | Namespace(_)));
        if self.queues > 1 && !queued {
            return Err(usage("--queues needs --packet, --vhost-user or --vhost-user-connect"));
        }
        if self.workers > 1 && !divided {
            return Err(usage(
                "--workers: this link has no queue for each (others have: run, --packet, --tap, --netns, --vhost-user)",
            ));
        }
        if self.workers > 1 && self.pcap.is_some() {
            return Err(usage("--workers and --pcap do not go together: a capture is of one queue"));
        }
        Ok(())
    }

    /// The first option that was given of those about which an image has its own word.
    pub(super) fn given_of_the_network(&self) -> Option<&'static str> {
        first(&[
            (!self.map_host_loopback.is_empty(), "--map-host-loopback"),
            (!self.allow_host.is_empty(), "--allow-host"),
            (self.allow_metadata, "--allow-metadata"),
            (self.egress != EgressArg::Open, "--egress"),
            (!self.sysctl.is_empty(), "--sysctl"),
            (self.address.is_some(), "--address"),
            (self.address6.is_some(), "--address6"),
            (self.gateway.is_some(), "--gateway"),
            (self.gateway6.is_some(), "--gateway6"),
            (!self.dns.is_empty(), "--dns"),
            (self.no_ipv4, "--no-ipv4"),
            (self.no_ipv6, "--no-ipv6"),
        ])
    }

    /// The first option that was given of those that only a new sandbox can follow.
    pub(super) fn given_of_a_new_sandbox(&self) -> Option<&'static str> {
        first(&[
            (!self.publish.is_empty(), "--publish"),
            (!self.resolver.is_empty(), "--resolver"),
            (self.dhcp, "--dhcp"),
            (self.mtu != DEFAULT_MTU, "--mtu"),
            (self.ifname != DEFAULT_IFNAME, "--ifname"),
            (self.link.is_some(), "--link"),
            (self.ring != RingArg::Auto, "--ring"),
            (self.queues != 1, "--queues"),
            (self.workers != 1, "--workers"),
            (self.pcap.is_some(), "--pcap"),
            (self.detach, "--detach"),
            (self.log_level != LevelArg::Warning, "--log-level"),
            (self.log_json, "--log-json"),
            (self.log_file.is_some(), "--log-file"),
        ])
    }

    /// The settings of connection tracking.
    fn conntrack(&self) -> Result<CtConfig, Failure> {
        let mut settings = CtConfig::default();
        for (name, value) in &self.sysctl {
            settings.set(name, *value).map_err(|e| match e {
                SettingError::Unknown(_) => usage(format!("--sysctl: {e}; there are: {}", CtConfig::NAMES.join(", "))),
                e => usage(format!("--sysctl: {e}")),
            })?;
        }
        Ok(settings)
    }

    /// Reads the rules, and says what follows from it if they are those of one family.
    fn rules(&self, v4: bool, v6: bool) -> Result<RulesSetup, Failure> {
        let files = [&self.rules, &self.rules6, &self.ipset];
        if files.into_iter().filter(|f| f.as_deref() == Some(Path::new("-"))).count() > 1 {
            return Err(usage("two of --rules, --rules6 and --ipset cannot both be read from standard input"));
        }
        let sets = self.ipset.as_deref().map(|path| {
            let source = Source::read(Some(path))?;
            source.sets().map_err(|p| Failure::new(Status::Rules, source.describe(&p)))
        });
        let sets = sets.transpose()?;
        let read = |path: Option<&Path>, option: &str, family: RulesOf, on: bool| {
            let Some(path) = path else { return Ok(None) };
            if !on {
                return Err(usage(format!("{option} {}: its family is switched off", path.display())));
            }
            let source = Source::read(Some(path))?;
            let rules = source.rules(family, sets.as_ref()).map_err(|p| Failure::new(Status::Rules, source.describe(&p)))?;
            Ok(Some(rules))
        };
        let rules4 = read(self.rules.as_deref(), "--rules", RulesOf::V4, v4)?;
        let rules6 = read(self.rules6.as_deref(), "--rules6", RulesOf::V6, v6)?;
        let dropped = |family, option, off| {
            complain(format_args!(
                "notice: {family} has no rules and is dropped; give it some with {option}, or switch it off with {off}"
            ));
        };
        match (&rules4, &rules6) {
            (Some(_), None) if v6 => dropped("IPv6", "--rules6", "--no-ipv6"),
            (None, Some(_)) if v4 => dropped("IPv4", "--rules", "--no-ipv4"),
            _ => {}
        }
        Ok(RulesSetup { sets, v4: rules4, v6: rules6, recheck: self.recheck })
    }

    fn v4(&self) -> Result<V4Config, Failure> {
        let default = Prefixed { address: Ipv4Addr::new(10, 0, 2, 15), prefix: 24 };
        let Prefixed { address: guest, prefix } = self.address.unwrap_or(default);
        let host = u32::MAX >> prefix;
        let net = guest.to_bits() & !host;
        let free = |wish: u32, not: &[Ipv4Addr]| {
            (wish..host).chain(1..wish).map(|h| Ipv4Addr::from_bits(net | h)).find(|a| *a != guest && !not.contains(a))
        };
        let none =
            || usage(format!("--address {guest}/{prefix}: the network has no room for gateway and DNS; use a shorter prefix"));
        if guest.to_bits() & host == 0 || guest.to_bits() & host == host {
            return Err(usage(format!("--address {guest}/{prefix}: that is the network's own or its broadcast address")));
        }
        if guest.is_loopback() || guest.is_multicast() || guest.is_link_local() || guest.to_bits() >> 24 == 0 {
            return Err(usage(format!("--address {guest}: a guest cannot have an address of that kind")));
        }
        let wanted = self.dns.iter().find_map(|a| match a {
            IpAddr::V4(a) => Some(*a),
            IpAddr::V6(_) => None,
        });
        let taken: Vec<Ipv4Addr> = wanted.into_iter().collect();
        let gateway = match self.gateway {
            Some(g) => g,
            None => free(2.min(host - 1), &taken).ok_or_else(none)?,
        };
        if gateway.to_bits() & !host != net || gateway.to_bits() & host == 0 || gateway.to_bits() & host == host {
            return Err(usage(format!(
                "--gateway {gateway}: not a host address of the guest's network {}/{prefix}",
                Ipv4Addr::from_bits(net)
            )));
        }
        // A network of four addresses has room for guest and gateway only: then the gateway serves DNS too.
        let dns = wanted.or_else(|| free(3.min(host - 1), &[gateway])).unwrap_or(gateway);
        distinct(guest.into(), gateway.into(), dns.into())?;
        Ok(V4Config { guest, prefix, gateway, dns })
    }

    fn v6(&self) -> Result<V6Config, Failure> {
        let Some(default) = Config::default().v6 else { return Err(usage("--address6 is missing")) };
        let Prefixed { address: guest, prefix } =
            self.address6.unwrap_or(Prefixed { address: default.guest, prefix: default.prefix });
        let host = u128::MAX >> prefix;
        let net = guest.to_bits() & !host;
        if guest.to_bits() & host == 0 {
            return Err(usage(format!("--address6 {guest}/{prefix}: that is the routers' anycast address")));
        }
        if guest.is_loopback()
            || guest.is_multicast()
            || guest.is_unspecified()
            || guest.is_unicast_link_local()
            || guest.to_ipv4_mapped().is_some()
        {
            return Err(usage(format!("--address6 {guest}: a guest cannot have an address of that kind")));
        }
        let wanted = self.dns.iter().find_map(|a| match a {
            IpAddr::V6(a) => Some(*a),
            IpAddr::V4(_) => None,
        });
        let free = |wish: u128, not: Option<Ipv6Addr>| {
            (0..4).map(|i| Ipv6Addr::from_bits(net | (((wish + i) & host).max(1)))).find(|a| *a != guest && Some(*a) != not)
        };
        let gateway = self.gateway6.or_else(|| free(2, wanted)).ok_or_else(|| usage("--gateway6 is missing"))?;
        if gateway.to_bits() & !host != net || gateway.to_bits() & host == 0 {
            return Err(usage(format!(
                "--gateway6 {gateway}: not a host address of the guest's network {}/{prefix}",
                Ipv6Addr::from_bits(net)
            )));
        }
        let dns = wanted.or_else(|| free(3, Some(gateway))).unwrap_or(gateway);
        distinct(guest.into(), gateway.into(), dns.into())?;
        Ok(V6Config { guest, prefix, gateway, dns })
    }

    fn check_loopback(&self, a: IpAddr, v4: Option<V4Config>, v6: Option<V6Config>) -> Result<(), Failure> {
        let off = if a.is_ipv4() { v4.is_none() } else { v6.is_none() };
        if off {
            return Err(usage(format!("--map-host-loopback {a}: its family is switched off")));
        }
        if a.is_unspecified() || a.is_multicast() || a.is_loopback() {
            return Err(usage(format!(
                "--map-host-loopback {a}: choose an address that is not special in the guest, such as one of its network"
            )));
        }
        let (guest, dns) = match a {
            IpAddr::V4(_) => (v4.map(|c| IpAddr::V4(c.guest)), v4.map(|c| IpAddr::V4(c.dns))),
            IpAddr::V6(_) => (v6.map(|c| IpAddr::V6(c.guest)), v6.map(|c| IpAddr::V6(c.dns))),
        };
        if Some(a) == guest || Some(a) == dns {
            return Err(usage(format!("--map-host-loopback {a}: that address is taken by the guest or its DNS")));
        }
        Ok(())
    }
}

/// The first name whose condition holds.
pub(super) fn first(all: &[(bool, &'static str)]) -> Option<&'static str> {
    all.iter().find(|(given, _)| *given).map(|(_, name)| *name)
}

fn distinct(guest: IpAddr, gateway: IpAddr, dns: IpAddr) -> Result<(), Failure> {
    if guest == gateway {
        return Err(usage(format!("guest and gateway cannot both be {guest}")));
    }
    if guest == dns {
        return Err(usage(format!("guest and DNS cannot both be {guest}")));
    }
    Ok(())
}

/// Refuses two published ranges that would listen at the same place.
fn check_overlap(publish: &[Publish]) -> Result<(), Failure> {
    for (i, a) in publish.iter().enumerate() {
        for b in &publish[..i] {
            let same_addr = a.addr == b.addr || a.addr.is_none() || b.addr.is_none();
            if a.proto == b.proto && same_addr && a.host_ports.0 <= b.host_ports.1 && b.host_ports.0 <= a.host_ports.1 {
                return Err(usage(format!(
                    "--publish {} and {} want the same host port",
                    values::publish_text(b),
                    values::publish_text(a)
                )));
            }
        }
    }
    Ok(())
}
