//! ARP, RFC 826: for our own addresses, and for all others of the subnet (RFC 1027), which are reached through us.

use crate::config::V4Config;
use crate::edge::{Edge, LinkId};
use crate::router::Router;
use crate::verdict::DropReason;
use crate::wire::EtherType;
use crate::wire::arp::{Operation, Packet};
use core::net::Ipv4Addr;

/// An ARP packet of the guest.
pub(super) fn input<E: Edge>(r: &mut Router, link: LinkId, b: &[u8], edge: &mut E) -> Result<(), DropReason> {
    let p = Packet::parse(b)?;
    let net = r.links[usize::from(link.0)].net();
    if !p.sender_mac.is_unicast() {
        return Err(DropReason::Malformed);
    }
    if r.is_ours(p.sender.into()) {
        return Err(DropReason::SpoofedSource);
    }
    if r.addrs().is_behind(link, p.sender.into()) {
        r.learn(link, p.sender.into(), p.sender_mac);
    }
    if p.operation == Operation::Reply || p.sender == p.target {
        return Ok(());
    }
    match net {
        // Others on the link answer for themselves.
        Some(net) if net.ours(false) != Some(p.target.into()) => return Ok(()),
        Some(_) => {}
        None => {
            let cfg = r.v4_on(link).ok_or(DropReason::FamilyDisabled)?;
            if !answers_for(&cfg, p.target) {
                // The guest's own address is asked for where it looks for duplicates (RFC 5227): silence is the answer.
                return if p.target == cfg.guest { Ok(()) } else { Err(DropReason::NoRoute) };
            }
        }
    }
    let reply = Packet {
        operation: Operation::Reply,
        sender_mac: r.cfg.gateway_mac,
        sender: p.target,
        target_mac: p.sender_mac,
        target: p.sender,
    };
    r.send_raw(edge, link, p.sender_mac, EtherType::Arp, &reply.emit());
    Ok(())
}

/// Whether we answer for an address: ours, or a host's of the subnet that is not the guest.
fn answers_for(cfg: &V4Config, a: Ipv4Addr) -> bool {
    if a == cfg.gateway || a == cfg.dns {
        return true;
    }
    let host = u32::MAX.checked_shr(cfg.prefix.into()).unwrap_or(0);
    let number = a.to_bits() & host;
    // All-zeros and all-ones name the subnet, except in point-to-point links (RFC 3021).
    let is_host = cfg.prefix >= 31 || (number != 0 && number != host);
    a != cfg.guest && is_host && (a.to_bits() ^ cfg.guest.to_bits()) & !host == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_hosts_of_the_subnet_but_the_guest_are_answered_for() {
        let mut cfg = crate::Config::default().v4.unwrap();
        let answered = |cfg: &V4Config, last: u8| answers_for(cfg, Ipv4Addr::new(10, 0, 2, last));
        for (last, expected) in [(0, false), (1, true), (2, true), (3, true), (14, true), (15, false), (254, true), (255, false)]
        {
            assert_eq!(answered(&cfg, last), expected, "10.0.2.{last}");
        }
        assert!(!answers_for(&cfg, Ipv4Addr::new(10, 0, 3, 1)));
        cfg.prefix = 32;
        assert!(answered(&cfg, 2) && !answered(&cfg, 1) && !answered(&cfg, 15));
        cfg.prefix = 31;
        assert!(answered(&cfg, 14) && !answered(&cfg, 16));
        cfg.prefix = 0;
        assert!(answers_for(&cfg, Ipv4Addr::new(8, 8, 8, 8)) && !answers_for(&cfg, Ipv4Addr::BROADCAST));
    }
}
