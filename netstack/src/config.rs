//! What a stack is told when it is made.

use crate::conntrack::CtConfig;
use crate::tuple::Endpoint;
use crate::wire::Mac;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use serde::{Deserialize, Serialize};

/// IPv4 on the guest links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct V4Config {
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// Length of the link's prefix, 0-32.
    pub prefix: u8,
    /// Our address: the guest's router.
    pub gateway: Ipv4Addr,
    /// Our address at which DNS is served.
    pub dns: Ipv4Addr,
}

/// IPv6 on the guest links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct V6Config {
    /// The guest's address.
    pub guest: Ipv6Addr,
    /// Length of the link's prefix, 0-128.
    pub prefix: u8,
    /// Our global address.
    pub gateway: Ipv6Addr,
    /// Our address at which DNS is served.
    pub dns: Ipv6Addr,
}

/// A guest link's own network, for links that do not share that of the configuration. Everything in its prefixes but our
/// address is taken as being behind the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkNet {
    /// Our IPv4 address on the link and the length of its prefix.
    pub v4: Option<(Ipv4Addr, u8)>,
    /// Our IPv6 address on the link and the length of its prefix.
    pub v6: Option<(Ipv6Addr, u8)>,
}

/// A guest's addresses, and ours towards it, where they are not those of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNet {
    /// IPv4; `None` if it has none.
    pub v4: Option<V4Config>,
    /// IPv6; `None` if it has none.
    pub v6: Option<V6Config>,
}

/// What is behind a guest link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Behind {
    /// The guest of the configuration.
    #[default]
    Configured,
    /// A network of many stations.
    Net(LinkNet),
    /// A guest with addresses of its own.
    Guest(GuestNet),
    /// Nobody any more: the link was removed, and its number is free.
    Nobody,
}

/// A range of host ports that leads to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// IP protocol number: TCP or UDP.
    pub proto: u8,
    /// Address to listen at; `None` for all of both families.
    pub addr: Option<IpAddr>,
    /// First and last host port.
    pub host_ports: (u16, u16),
    /// Guest port of the first host port; the others follow.
    pub guest_port: u16,
}

/// Which destinations outside the guest may reach by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Egress {
    /// Everything but the host itself, link-local and metadata addresses.
    #[default]
    Open,
    /// As [`Egress::Open`], and no private ranges.
    Public,
    /// Nothing.
    None,
}

/// The safe reach: what the guest may talk to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// General rule.
    pub egress: Egress,
    /// Addresses in the guest's world that stand for the host's loopback of their family.
    pub map_host_loopback: Vec<IpAddr>,
    /// Openings to the host's own addresses.
    pub allow_host: Vec<AllowHost>,
    /// Link-local and cloud-metadata addresses may be reached.
    pub allow_metadata: bool,
}

/// An opening in the safe reach towards the host's own (non-loopback) addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllowHost {
    /// All of them, all ports.
    Any,
    /// One address, all ports.
    Addr(IpAddr),
    /// One address and port.
    Port(Endpoint),
}

/// Bounds on what a guest can make us hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// TCP flows.
    pub tcp_flows: u32,
    /// TCP flows that are not established yet.
    pub tcp_half_open: u32,
    /// UDP flows.
    pub udp_flows: u32,
    /// ICMP echo flows.
    pub icmp_flows: u32,
    /// Bytes held for one TCP flow towards the host, in order.
    pub tcp_hold: u32,
    /// Bytes held for one TCP flow out of order.
    pub tcp_out_of_order: u32,
    /// Bytes held for all TCP flows together.
    pub tcp_hold_total: u64,
    /// Datagrams under reassembly.
    pub reassembly: u32,
    /// Bytes of fragments held.
    pub reassembly_bytes: u32,
    /// DNS queries in flight.
    pub dns_queries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            tcp_flows: 131_072,
            tcp_half_open: 4096,
            udp_flows: 16_384,
            icmp_flows: 1024,
            tcp_hold: 512 << 10,
            tcp_out_of_order: 256 << 10,
            tcp_hold_total: 64 << 20,
            reassembly: 256,
            reassembly_bytes: 1 << 20,
            dns_queries: 512,
        }
    }
}

/// Configuration of a stack with one network behind its links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// IPv4; `None` switches it off.
    pub v4: Option<V4Config>,
    /// IPv6; `None` switches it off.
    pub v6: Option<V6Config>,
    /// Our MAC address on the links. The same in every run, so that a thawed guest's neighbour cache stays true.
    pub gateway_mac: Mac,
    /// Resolvers of the host to which DNS goes, in order of preference.
    pub resolvers: Vec<IpAddr>,
    /// Domain search list given to the guest.
    pub search: Vec<String>,
    /// Host name offered by DHCP; empty for none.
    pub hostname: String,
    /// The safe reach.
    pub reach: Reach,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// Bounds.
    pub limits: Limits,
    /// Connection tracking.
    pub conntrack: CtConfig,
}

impl Config {
    /// The MAC address that the gateway has unless told otherwise: locally administered.
    pub const GATEWAY_MAC: Mac = Mac([0x52, 0x55, 0x0a, 0x00, 0x02, 0x02]);
}

impl Default for Config {
    fn default() -> Self {
        Config {
            v4: Some(V4Config {
                guest: Ipv4Addr::new(10, 0, 2, 15),
                prefix: 24,
                gateway: Ipv4Addr::new(10, 0, 2, 2),
                dns: Ipv4Addr::new(10, 0, 2, 3),
            }),
            v6: Some(V6Config {
                guest: Ipv6Addr::new(0xfd68, 0x6962, 0x6e65, 0x7400, 0, 0, 0, 0x15),
                prefix: 64,
                gateway: Ipv6Addr::new(0xfd68, 0x6962, 0x6e65, 0x7400, 0, 0, 0, 2),
                dns: Ipv6Addr::new(0xfd68, 0x6962, 0x6e65, 0x7400, 0, 0, 0, 3),
            }),
            gateway_mac: Config::GATEWAY_MAC,
            resolvers: Vec::new(),
            search: Vec::new(),
            hostname: String::new(),
            reach: Reach::default(),
            publish: Vec::new(),
            limits: Limits::default(),
            conntrack: CtConfig::default(),
        }
    }
}
