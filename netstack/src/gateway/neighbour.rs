//! Asking for the guest's MAC address, and making ours known.

use super::{icmpv6, ndp};
use crate::edge::{Edge, LinkId};
use crate::router::Router;
use crate::wire::arp::{Operation, Packet};
use crate::wire::ndp as wire;
use crate::wire::{EtherType, Mac};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

impl Router {
    /// Asks the link who has a guest's address. The answer, like every packet of the guest, will be learned from.
    pub(crate) fn ask_neighbour<E: Edge>(&mut self, edge: &mut E, link: LinkId, addr: IpAddr) {
        if !self.links[usize::from(link.0)].ask_limit.take(self.now) {
            return;
        }
        match addr {
            IpAddr::V4(addr) => {
                if let Some(IpAddr::V4(ours)) = self.addrs().gateway_on(link, false) {
                    arp_request(self, edge, link, ours, addr);
                }
            }
            IpAddr::V6(addr) => solicit(self, edge, link, addr),
        }
    }
}

/// Tells the link our addresses (RFC 5227 section 3, RFC 4861 section 7.2.6), so that a guest that was moved here, or thawed,
/// need not ask, and so that the network in between learns where we are.
pub(super) fn announce<E: Edge>(r: &mut Router, link: LinkId, edge: &mut E) {
    if let Some(net) = r.links[usize::from(link.0)].net() {
        if let Some((ours, _)) = net.v4 {
            arp_request(r, edge, link, ours, ours);
        }
        for addr in net.v6.map(|(ours, _)| [r.link_local(), ours]).into_iter().flatten() {
            ndp::advertise(r, edge, link, wire::multicast_mac(wire::ALL_NODES), addr, wire::ALL_NODES, wire::OVERRIDE);
        }
        return;
    }
    if let Some(cfg) = r.v4_on(link) {
        arp_request(r, edge, link, cfg.gateway, cfg.gateway);
        if cfg.dns != cfg.gateway {
            arp_request(r, edge, link, cfg.dns, cfg.dns);
        }
    }
    if let Some(cfg) = r.v6_on(link) {
        let local = r.link_local();
        let dns = (cfg.dns != cfg.gateway).then_some(cfg.dns);
        for addr in [local, cfg.gateway].into_iter().chain(dns) {
            ndp::advertise(r, edge, link, wire::multicast_mac(wire::ALL_NODES), addr, wire::ALL_NODES, wire::OVERRIDE);
        }
    }
}

fn arp_request<E: Edge>(r: &mut Router, edge: &mut E, link: LinkId, sender: Ipv4Addr, target: Ipv4Addr) {
    let request =
        Packet { operation: Operation::Request, sender_mac: r.cfg.gateway_mac, sender, target_mac: Mac([0; 6]), target };
    r.send_raw(edge, link, Mac::BROADCAST, EtherType::Arp, &request.emit());
}

fn solicit<E: Edge>(r: &mut Router, edge: &mut E, link: LinkId, target: Ipv6Addr) {
    let group = wire::solicited_node(target);
    let mut message = [0; ndp::NEIGHBOR_LEN];
    ndp::put_message(&mut message, crate::wire::icmp::v6::NEIGHBOR_SOLICIT, 0, |w| {
        wire::put_neighbor(w, true, target, r.cfg.gateway_mac);
    });
    // A drop is counted by the router; there is nothing else to do about it.
    let _ = r.send_on(edge, link, wire::multicast_mac(group), &icmpv6(r.link_local(), group, ndp::HOP_LIMIT, &message));
}
