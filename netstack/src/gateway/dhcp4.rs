//! A DHCP server (RFC 2131) with one lease: the guest's configured address.
//!
//! There is nothing to remember: whoever asks on the link is the guest, under whatever identifier (a boot loader and
//! the system that it starts have different ones), and the address is always the same.

use crate::config::{Config, V4Config};
use crate::edge::{Edge, Payload};
use crate::packet::Packet;
use crate::router::{Attach, Outgoing, Router};
use crate::tuple::{Endpoint, Tuple, proto};
use crate::verdict::DropReason;
use crate::wire::dhcp4::{self as wire, Kind, Request, option};
use crate::wire::{Mac, Writer, dns, udp};
use core::net::Ipv4Addr;

pub(super) use wire::SERVER_PORT as PORT;

/// Lease time in seconds: a day.
const LEASE: u32 = 86_400;
/// Longest request.
const MAX_REQUEST: usize = 1500;
/// Longest reply, as UDP payload: a full Ethernet frame.
const MAX_REPLY: usize = 1472;
/// Size of a packet that every host must take (RFC 791), and RFC 2131 section 2 every DHCP client.
const MIN_PACKET: u16 = 576;
/// Length of IP and UDP headers.
const HEADERS: usize = 28;

/// A datagram to the server port.
pub(super) fn input<E: Edge>(r: &mut Router, p: &Packet<'_>, payload: Payload, edge: &mut E) -> Result<(), DropReason> {
    let cfg = r.v4_on(p.link).ok_or(DropReason::FamilyDisabled)?;
    let mut buf = [0; MAX_REQUEST];
    if payload.len() > buf.len() {
        return Err(DropReason::BadDhcp);
    }
    let n = edge.read(payload, &mut buf);
    let q = Request::parse(&buf[..n]).map_err(|_| DropReason::BadDhcp)?;
    // A relay would be another network's; there is none behind the link.
    if !q.relay.is_unspecified() {
        return Err(DropReason::BadDhcp);
    }
    // Other servers' business.
    if q.server.is_some_and(|s| !r.is_ours(s.into())) {
        return Ok(());
    }
    let Some(kind) = decide(&cfg, &q)? else { return Ok(()) };
    let mtu = r.links[usize::from(p.link.0)].info.mtu;
    let max = q.max_size.unwrap_or(MIN_PACKET).max(MIN_PACKET).min(mtu.max(MIN_PACKET));
    let mut message = [0; udp::HEADER_LEN + MAX_REPLY];
    let max = usize::from(max) - HEADERS + udp::HEADER_LEN;
    let room = message.len().min(max);
    let n = reply(&r.cfg, &cfg, mtu, &q, kind, &mut message[..room]);
    let (to, mac) = destination(&q, kind, cfg.guest);
    udp::Header { src_port: PORT, dst_port: wire::CLIENT_PORT, len: n as u16, checksum: 0 }.emit(&mut message);
    let out = Outgoing {
        input: None,
        tuple: Tuple {
            src: Endpoint::new(cfg.gateway.into(), PORT),
            dst: Endpoint::new(to.into(), wire::CLIENT_PORT),
            proto: proto::UDP,
        },
        hop_limit: super::HOP_LIMIT,
        tos: 0,
        dont_fragment: false,
        l4: &message[..n],
        body: Payload::EMPTY,
        keep_body: false,
        gso: None,
        attach: Attach::LookUp,
    };
    // A drop is counted by the router; the guest asks again.
    if r.send_on(edge, p.link, mac, &out).is_ok() && kind == Kind::Ack {
        r.stats.dhcp_acks += 1;
    }
    Ok(())
}

/// What to answer, if anything.
fn decide(cfg: &V4Config, q: &Request<'_>) -> Result<Option<Kind>, DropReason> {
    match q.kind {
        Kind::Discover if q.rapid_commit => Ok(Some(Kind::Ack)),
        Kind::Discover => Ok(Some(Kind::Offer)),
        Kind::Request => {
            // RFC 2131 section 4.3.2: selecting and init-reboot name the address in an option, renewing and rebinding
            // clients have it.
            let has = Some(q.client).filter(|a| !a.is_unspecified());
            let wanted = q.requested.or(has).ok_or(DropReason::BadDhcp)?;
            let right = wanted == cfg.guest && has.is_none_or(|a| a == cfg.guest);
            Ok(Some(if right { Kind::Ack } else { Kind::Nak }))
        }
        Kind::Inform if q.client == cfg.guest => Ok(Some(Kind::Ack)),
        Kind::Inform => Err(DropReason::SpoofedSource),
        // The one address there is stays the guest's, whatever it thinks of it.
        Kind::Decline | Kind::Release => Ok(None),
        Kind::Offer | Kind::Ack | Kind::Nak => Err(DropReason::BadDhcp),
    }
}

/// RFC 2131 section 4.1: where a reply goes.
fn destination(q: &Request<'_>, kind: Kind, yours: Ipv4Addr) -> (Ipv4Addr, Mac) {
    if kind == Kind::Nak {
        (Ipv4Addr::BROADCAST, Mac::BROADCAST)
    } else if !q.client.is_unspecified() {
        (q.client, q.mac)
    } else if q.flags & wire::BROADCAST != 0 {
        (Ipv4Addr::BROADCAST, Mac::BROADCAST)
    } else {
        (yours, q.mac)
    }
}

/// Builds a reply behind room for a UDP header. Returns the length of both.
fn reply(cfg: &Config, v4: &V4Config, mtu: u16, q: &Request<'_>, kind: Kind, out: &mut [u8]) -> usize {
    let mut w = Writer::new(&mut out[udp::HEADER_LEN..]);
    // RFC 2131 table 3: who only informs himself gets no address, and no lease.
    let leases = q.kind != Kind::Inform && kind != Kind::Nak;
    q.put_reply(&mut w, kind, if leases { v4.guest } else { Ipv4Addr::UNSPECIFIED });
    let server = q.server.unwrap_or(v4.gateway);
    wire::put_option(&mut w, option::SERVER, &server.octets());
    // RFC 6842; RFC 3046 section 2.2.
    for (code, echo) in [(option::CLIENT_ID, q.client_id), (option::RELAY, q.relay_info)] {
        if let Some(value) = echo {
            wire::put_option(&mut w, code, value);
        }
    }
    if kind != Kind::Nak {
        if leases {
            wire::put_option(&mut w, option::LEASE, &LEASE.to_be_bytes());
            if q.kind == Kind::Discover && q.rapid_commit {
                wire::put_option(&mut w, option::RAPID_COMMIT, &[]);
            }
        }
        put_network(cfg, v4, mtu, &mut w);
        if let Some(fqdn) = q.fqdn {
            put_fqdn(fqdn, &mut w);
        }
        put_search(&cfg.search, &mut w);
    }
    wire::put_end(&mut w);
    udp::HEADER_LEN + w.len()
}

fn put_network(cfg: &Config, v4: &V4Config, mtu: u16, w: &mut Writer<'_>) {
    let mask = !u32::MAX.checked_shr(v4.prefix.into()).unwrap_or(0);
    wire::put_option(w, option::MASK, &mask.to_be_bytes());
    if (v4.gateway.to_bits() ^ v4.guest.to_bits()) & mask != 0 {
        // The router is outside of the subnet: a route to it, and the default one through it.
        let [a, b, c, d] = v4.gateway.octets();
        wire::put_option(w, option::ROUTES, &[32, a, b, c, d, 0, 0, 0, 0, 0, a, b, c, d]);
    }
    wire::put_option(w, option::ROUTER, &v4.gateway.octets());
    wire::put_option(w, option::DNS, &v4.dns.octets());
    wire::put_option(w, option::MTU, &mtu.to_be_bytes());
    if (1..=255).contains(&cfg.hostname.len()) {
        wire::put_option(w, option::HOSTNAME, cfg.hostname.as_bytes());
    }
}

/// The client's name as it sent it; we update no DNS, and say so: RFC 4702 sections 2.1 and 4.
fn put_fqdn(asked: &[u8], w: &mut Writer<'_>) {
    const S: u8 = 1;
    const O: u8 = 2;
    const E: u8 = 4;
    const N: u8 = 8;
    let mut value = [255; 255];
    let Some((flags, name)) = asked.split_first().zip(asked.get(3..)).map(|((f, _), n)| (*f, n)) else { return };
    value[0] = flags & E | N | if flags & S != 0 { O } else { 0 };
    if let Some(to) = value.get_mut(3..3 + name.len()) {
        to.copy_from_slice(name);
        wire::put_option(w, option::FQDN, &value[..3 + name.len()]);
    }
}

/// The first name of the search list as the domain, and as many names of the list as fit.
fn put_search(search: &[String], w: &mut Writer<'_>) {
    let mut list = [0; MAX_REPLY];
    if let Some(first) = search.first().filter(|s| dns::put_name(s, &mut Writer::new(&mut list))) {
        wire::put_option(w, option::DOMAIN, first.as_bytes());
    }
    // Type and length of each part into which the list may have to be split, and the end mark.
    let room = w.room().saturating_sub(2 * (w.room() / 255 + 1) + 1).min(list.len());
    let mut names = Writer::new(&mut list[..room]);
    for name in search {
        dns::put_name(name, &mut names);
    }
    if !names.is_empty() {
        wire::put_option(w, option::SEARCH, names.written());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(kind: Kind) -> Request<'static> {
        Request {
            kind,
            xid: 7,
            flags: 0,
            client: Ipv4Addr::UNSPECIFIED,
            relay: Ipv4Addr::UNSPECIFIED,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            requested: None,
            server: None,
            max_size: None,
            client_id: None,
            fqdn: None,
            relay_info: None,
            rapid_commit: false,
        }
    }

    fn config() -> (Config, V4Config) {
        let cfg = Config { hostname: "box".into(), search: vec!["example.org".into()], ..Config::default() };
        let v4 = cfg.v4.unwrap();
        (cfg, v4)
    }

    /// Options of a reply, split ones joined.
    fn options(b: &[u8]) -> std::collections::BTreeMap<u8, Vec<u8>> {
        let mut b = &b[udp::HEADER_LEN + wire::FIXED_LEN..];
        let mut all = std::collections::BTreeMap::<u8, Vec<u8>>::new();
        while b[0] != 255 {
            let n = usize::from(b[1]);
            all.entry(b[0]).or_default().extend(&b[2..2 + n]);
            b = &b[2 + n..];
        }
        all
    }

    fn replied(cfg: &Config, q: &Request<'_>, kind: Kind, room: usize) -> Vec<u8> {
        let mut out = vec![0; room];
        let n = reply(cfg, &cfg.v4.unwrap(), 65_520, q, kind, &mut out);
        out.truncate(n);
        out
    }

    #[test]
    fn a_request_in_any_state_is_acknowledged_only_for_the_guests_address() {
        let (_, v4) = config();
        let other = Ipv4Addr::new(10, 0, 2, 99);
        for (requested, client, expected) in [
            (Some(v4.guest), Ipv4Addr::UNSPECIFIED, Some(Kind::Ack)),
            (Some(other), Ipv4Addr::UNSPECIFIED, Some(Kind::Nak)),
            (None, v4.guest, Some(Kind::Ack)),
            (None, other, Some(Kind::Nak)),
            (Some(v4.guest), other, Some(Kind::Nak)),
            (None, Ipv4Addr::UNSPECIFIED, None),
        ] {
            let q = Request { requested, client, ..request(Kind::Request) };
            assert_eq!(decide(&v4, &q).ok().flatten(), expected, "{requested:?} {client}");
        }
    }

    #[test]
    fn an_offer_has_everything_a_guest_needs() {
        let (cfg, v4) = config();
        let b = replied(&cfg, &request(Kind::Discover), Kind::Offer, udp::HEADER_LEN + MAX_REPLY);
        assert_eq!(&b[udp::HEADER_LEN + 16..][..4], &v4.guest.octets());
        let o = options(&b);
        for (code, value) in [
            (option::TYPE, &[2][..]),
            (option::SERVER, &[10, 0, 2, 2]),
            (option::MASK, &[255, 255, 255, 0]),
            (option::ROUTER, &[10, 0, 2, 2]),
            (option::DNS, &[10, 0, 2, 3]),
            (option::MTU, &[0xff, 0xf0]),
            (option::LEASE, &[0, 1, 0x51, 0x80]),
            (option::HOSTNAME, b"box"),
            (option::SEARCH, b"\x07example\x03org\0"),
            (option::DOMAIN, b"example.org"),
        ] {
            assert_eq!(o.get(&code).map(Vec::as_slice), Some(value), "option {code}");
        }
        assert!(!o.contains_key(&option::ROUTES));
    }

    #[test]
    fn a_router_outside_of_the_subnet_comes_with_a_route_to_it() {
        let (mut cfg, _) = config();
        cfg.v4.as_mut().unwrap().prefix = 32;
        let o = options(&replied(&cfg, &request(Kind::Discover), Kind::Offer, udp::HEADER_LEN + MAX_REPLY));
        assert_eq!(o[&option::MASK], [255; 4]);
        assert_eq!(o[&option::ROUTES], [32, 10, 0, 2, 2, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    }

    #[test]
    fn a_refusal_and_an_information_carry_no_lease() {
        let (cfg, v4) = config();
        let nak = replied(&cfg, &Request { client: v4.guest, ..request(Kind::Request) }, Kind::Nak, 1400);
        assert_eq!(options(&nak).keys().copied().collect::<Vec<_>>(), [option::TYPE, option::SERVER]);
        assert_eq!(nak[udp::HEADER_LEN + 12..][..8], [0; 8]);
        let ack = replied(&cfg, &Request { client: v4.guest, ..request(Kind::Inform) }, Kind::Ack, 1400);
        assert!(!options(&ack).contains_key(&option::LEASE) && options(&ack).contains_key(&option::DNS));
        assert_eq!(ack[udp::HEADER_LEN + 16..][..4], [0; 4]);
    }

    #[test]
    fn what_the_client_sent_about_itself_is_repeated() {
        let (cfg, _) = config();
        let q = Request {
            client_id: Some(&[1, 2]),
            relay_info: Some(&[1, 1, 9]),
            fqdn: Some(b"\x05\0\0\x03abc\0"),
            ..request(Kind::Request)
        };
        let o = options(&replied(&cfg, &q, Kind::Ack, 1400));
        assert_eq!((&o[&option::CLIENT_ID][..], &o[&option::RELAY][..]), (&[1, 2][..], &[1, 1, 9][..]));
        assert_eq!(o[&option::FQDN], b"\x0e\xff\xff\x03abc\0");
    }

    #[test]
    fn replies_go_where_the_client_can_hear_them() {
        let (_, v4) = config();
        let q = request(Kind::Discover);
        let everyone = (Ipv4Addr::BROADCAST, Mac::BROADCAST);
        assert_eq!(destination(&q, Kind::Offer, v4.guest), (v4.guest, q.mac));
        assert_eq!(destination(&Request { flags: wire::BROADCAST, ..q }, Kind::Offer, v4.guest), everyone);
        let bound = Request { client: v4.guest, flags: wire::BROADCAST, ..q };
        assert_eq!(destination(&bound, Kind::Ack, v4.guest), (v4.guest, q.mac));
        assert_eq!(destination(&bound, Kind::Nak, v4.guest), everyone);
    }

    #[test]
    fn in_any_room_the_options_end_and_the_search_list_is_of_whole_names() {
        let (mut cfg, _) = config();
        cfg.search = (0..80).map(|i| format!("domain-{i}.example.org")).collect();
        for room in udp::HEADER_LEN + wire::MIN_LEN..udp::HEADER_LEN + MAX_REPLY {
            let b = replied(&cfg, &request(Kind::Discover), Kind::Offer, room);
            assert!(b.len() <= room);
            let o = options(&b);
            assert_eq!(o[&option::DNS].len(), 4);
            assert!(o.get(&option::SEARCH).is_none_or(|s| s.ends_with(b"\x07example\x03org\0")));
        }
        let o = options(&replied(&cfg, &request(Kind::Discover), Kind::Offer, udp::HEADER_LEN + MAX_REPLY));
        assert!(o[&option::SEARCH].len() > 900);
    }
}
