//! A DHCPv6 server (RFC 8415) with one lease: the guest's configured address.
//!
//! As with IPv4 there is nothing to remember: whoever asks is the guest. Prefixes and temporary addresses are not given.

use super::ndp::prefix_of;
use crate::config::{Config, V6Config};
use crate::edge::{Edge, Payload};
use crate::packet::Packet;
use crate::router::{Attach, Outgoing, Router};
use crate::tuple::{Endpoint, Tuple, proto};
use crate::verdict::DropReason;
use crate::wire::dhcp6::{self as wire, Ia, Kind, Request, Status, option};
use crate::wire::{Writer, dns, udp};
use core::net::IpAddr;

pub(super) use wire::SERVER_PORT as PORT;

/// Preferred and valid lifetime of the address in seconds: a day.
const LIFETIME: u32 = 86_400;
/// Longest request.
const MAX_REQUEST: usize = 1500;
/// Longest reply, as UDP payload: what fits into the least MTU of IPv6.
const MAX_REPLY: usize = 1280 - 48;
/// Identity associations of one message that are answered.
const MAX_ASSOCIATIONS: usize = 8;
/// Wrong addresses of one association that are taken back.
const MAX_STALE: usize = 8;

/// Whether a packet to the server port is for this server.
pub(super) fn listens(r: &Router, dst: IpAddr) -> bool {
    dst.is_ipv6() && (dst == wire::ALL_SERVERS || r.is_ours(dst))
}

/// A datagram to the server port.
pub(super) fn input<E: Edge>(r: &mut Router, p: &Packet<'_>, payload: Payload, edge: &mut E) -> Result<(), DropReason> {
    let cfg = r.v6_on(p.link).ok_or(DropReason::FamilyDisabled)?;
    if p.ip.src.is_unspecified() {
        return Err(DropReason::MartianSource);
    }
    let mut buf = [0; MAX_REQUEST];
    if payload.len() > buf.len() {
        return Err(DropReason::BadDhcp);
    }
    let n = edge.read(payload, &mut buf);
    let q = Request::parse(&buf[..n]).map_err(|_| DropReason::BadDhcp)?;
    let Some(answer) = decide(r, &cfg, &q, p.ip.dst != wire::ALL_SERVERS)? else { return Ok(()) };
    let mut message = [0; udp::HEADER_LEN + MAX_REPLY];
    let n = reply(&r.cfg, &cfg, &q, answer, &mut message);
    udp::Header { src_port: PORT, dst_port: wire::CLIENT_PORT, len: n as u16, checksum: 0 }.emit(&mut message);
    let out = Outgoing {
        input: None,
        tuple: Tuple {
            src: Endpoint::new(r.link_local().into(), PORT),
            dst: Endpoint::new(p.ip.src, wire::CLIENT_PORT),
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
    if r.send_on(edge, p.link, p.src_mac, &out).is_ok() && answer == Answer::Addresses {
        r.stats.dhcp_acks += 1;
    }
    Ok(())
}

/// What to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The addresses that the client could have.
    Advertise,
    /// The addresses that it has.
    Addresses,
    /// Name servers and the like only.
    Information,
    /// Just this.
    Status(Status),
}

/// Validates a message as RFC 8415 section 16 wants, and decides as section 18.3 does.
fn decide(r: &Router, cfg: &V6Config, q: &Request<'_>, unicast: bool) -> Result<Option<Answer>, DropReason> {
    let ours = wire::duid(r.cfg.gateway_mac);
    let named = match q.kind {
        Kind::Request | Kind::Renew | Kind::Release | Kind::Decline => Some(true),
        Kind::Solicit | Kind::Confirm | Kind::Rebind => Some(false),
        Kind::Inform => None,
        Kind::Advertise | Kind::Reply => return Err(DropReason::BadDhcp),
    };
    if named.is_some_and(|n| n != q.server_id.is_some()) || (q.client_id.is_none() && named.is_some()) {
        return Err(DropReason::BadDhcp);
    }
    // Other servers' business.
    if q.server_id.is_some_and(|id| id != ours) {
        return Ok(None);
    }
    if unicast {
        return if named == Some(true) { Ok(Some(Answer::Status(Status::UseMulticast))) } else { Err(DropReason::BadDhcp) };
    }
    let answer = match q.kind {
        Kind::Solicit if q.rapid_commit => Answer::Addresses,
        Kind::Solicit => Answer::Advertise,
        Kind::Confirm => {
            let mut addresses = q.associations().flat_map(|ia| ia.addresses()).peekable();
            // Nothing to confirm: silence.
            if addresses.peek().is_none() {
                return Ok(None);
            }
            let right = addresses.all(|a| prefix_of(a, cfg.prefix) == prefix_of(cfg.guest, cfg.prefix));
            Answer::Status(if right { Status::Success } else { Status::NotOnLink })
        }
        // The one address there is stays the guest's, whatever it thinks of it.
        Kind::Release | Kind::Decline => Answer::Status(Status::Success),
        Kind::Inform if q.associations().next().is_some() => return Err(DropReason::BadDhcp),
        Kind::Inform => Answer::Information,
        _ => Answer::Addresses,
    };
    Ok(Some(answer))
}

/// Builds an answer behind room for a UDP header. Returns the length of both.
fn reply(cfg: &Config, v6: &V6Config, q: &Request<'_>, answer: Answer, out: &mut [u8]) -> usize {
    let mut w = Writer::new(&mut out[udp::HEADER_LEN..]);
    let kind = if answer == Answer::Advertise { Kind::Advertise } else { Kind::Reply };
    q.put_reply(&mut w, kind, cfg.gateway_mac);
    if let Answer::Status(status) = answer {
        wire::put_status(&mut w, status);
        return udp::HEADER_LEN + w.len();
    }
    if answer == Answer::Advertise {
        // The highest: the client need not wait for other servers.
        wire::put_option(&mut w, option::PREFERENCE, &[255]);
    }
    if q.kind == Kind::Solicit && answer == Answer::Addresses {
        wire::put_option(&mut w, option::RAPID_COMMIT, &[]);
    }
    if answer != Answer::Information {
        let mut given = false;
        for ia in q.associations().take(MAX_ASSOCIATIONS) {
            put_association(v6, q.kind, &ia, &mut given, &mut w);
        }
    }
    wire::put_option(&mut w, option::DNS, &v6.dns.octets());
    put_fqdn(cfg, q, &mut w);
    put_search(&cfg.search, &mut w);
    udp::HEADER_LEN + w.len()
}

/// Answers an identity association. The first one of the right kind gets the address.
fn put_association(v6: &V6Config, asked: Kind, ia: &Ia<'_>, given: &mut bool, w: &mut Writer<'_>) {
    let on_link = |a| prefix_of(a, v6.prefix) == prefix_of(v6.guest, v6.prefix);
    let refused = match ia.kind {
        option::IA_PD => Some(Status::NoPrefixAvail),
        option::IA_NA if !*given => (asked == Kind::Request && !ia.addresses().all(on_link)).then_some(Status::NotOnLink),
        _ => Some(Status::NoAddrsAvail),
    };
    wire::put_nested(w, ia.kind, |w| {
        w.put32(ia.id);
        if ia.kind != option::IA_TA {
            // When to renew and to rebind: section 21.4 recommends a half and four fifths.
            let times = if refused.is_none() { [LIFETIME / 2, LIFETIME / 5 * 4] } else { [0, 0] };
            w.put32(times[0]);
            w.put32(times[1]);
        }
        match refused {
            Some(status) => wire::put_status(w, status),
            None => {
                *given = true;
                wire::put_address(w, v6.guest, LIFETIME);
                if matches!(asked, Kind::Renew | Kind::Rebind) {
                    // What the client holds wrongly it is to drop at once.
                    ia.addresses().filter(|a| *a != v6.guest).take(MAX_STALE).for_each(|a| wire::put_address(w, a, 0));
                }
            }
        }
    });
}

/// The client's name as it sent it, else the configured one, if it wants to know. We update no DNS, and say so: RFC 4704
/// sections 4.1 and 6.
fn put_fqdn(cfg: &Config, q: &Request<'_>, w: &mut Writer<'_>) {
    const S: u8 = 1;
    const O: u8 = 2;
    const N: u8 = 4;
    let (flags, name) = q.fqdn.and_then(|v| v.split_first()).unwrap_or((&0, &[]));
    let mut value = [0; 1 + dns::MAX_NAME];
    value[0] = N | if flags & S != 0 { O } else { 0 };
    let mut v = Writer::new(&mut value[1..]);
    if !name.is_empty() {
        v.put(name);
    } else if (q.fqdn.is_some() || q.wants_fqdn) && dns::put_name(&cfg.hostname, &mut v) && !cfg.hostname.contains('.') {
        // A partial name has no root label.
        v.truncate(v.len() - 1);
    }
    let n = v.len();
    if n > 0 {
        wire::put_option(w, option::FQDN, &value[..1 + n]);
    }
}

/// As many names of the search list as fit.
fn put_search(search: &[String], w: &mut Writer<'_>) {
    let mut list = [0; MAX_REPLY];
    let room = w.room().saturating_sub(4).min(list.len());
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
    use crate::rng::Rng;
    use core::net::Ipv6Addr;
    use proptest::prelude::*;

    const OURS: [u8; 10] = wire::duid(Config::GATEWAY_MAC);

    fn router() -> Router {
        let cfg = Config { hostname: "box".into(), search: vec!["example.org".into()], ..Config::default() };
        Router::new(cfg, Rng::new([0; 16]))
    }

    fn guest() -> Ipv6Addr {
        Config::default().v6.unwrap().guest
    }

    fn neighbour(last: u16) -> Ipv6Addr {
        let mut s = guest().segments();
        s[7] = last;
        s.into()
    }

    /// A message with a client identifier, perhaps a server's, and associations of a kind with addresses.
    fn message(kind: Kind, server: Option<&[u8]>, ias: &[(u16, &[Ipv6Addr])], more: &[(u16, &[u8])]) -> Vec<u8> {
        let mut b = vec![0; 1400];
        let mut w = Writer::new(&mut b);
        w.put(&[kind as u8, 1, 2, 3]);
        wire::put_option(&mut w, option::CLIENT_ID, &[0, 3, 0, 1, 9]);
        if let Some(id) = server {
            wire::put_option(&mut w, option::SERVER_ID, id);
        }
        for (i, (code, addresses)) in ias.iter().enumerate() {
            wire::put_nested(&mut w, *code, |w| {
                w.put32(i as u32 + 1);
                w.zeros(if *code == option::IA_TA { 0 } else { 8 });
                addresses.iter().for_each(|a| wire::put_address(w, *a, 60));
            });
        }
        for (code, value) in more {
            wire::put_option(&mut w, *code, value);
        }
        let n = w.len();
        b.truncate(n);
        b
    }

    fn decided(b: &[u8], unicast: bool) -> Result<Option<Answer>, DropReason> {
        let r = router();
        decide(&r, &r.cfg.v6.unwrap(), &Request::parse(b).unwrap(), unicast)
    }

    /// Options of the reply to a message, in order.
    fn replied(b: &[u8]) -> (u8, Vec<(u16, Vec<u8>)>) {
        let r = router();
        let v6 = r.cfg.v6.unwrap();
        let q = Request::parse(b).unwrap();
        let answer = decide(&r, &v6, &q, false).unwrap().unwrap();
        let mut out = [0; udp::HEADER_LEN + MAX_REPLY];
        let n = reply(&r.cfg, &v6, &q, answer, &mut out);
        let m = &out[udp::HEADER_LEN..n];
        assert_eq!(m[1..4], [1, 2, 3]);
        (m[0], split(&m[4..]))
    }

    fn split(mut b: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let mut all = Vec::new();
        while !b.is_empty() {
            let n = usize::from(u16::from_be_bytes([b[2], b[3]]));
            all.push((u16::from_be_bytes([b[0], b[1]]), b[4..4 + n].to_vec()));
            b = &b[4 + n..];
        }
        all
    }

    fn get(options: &[(u16, Vec<u8>)], code: u16) -> Option<&[u8]> {
        options.iter().find(|(c, _)| *c == code).map(|(_, v)| v.as_slice())
    }

    /// Addresses of a replied association with their valid lifetimes, and its status.
    fn association(v: &[u8], kind: u16) -> (Vec<(Ipv6Addr, u32)>, Option<u16>) {
        let inner = split(&v[if kind == option::IA_TA { 4 } else { 12 }..]);
        let addresses = inner.iter().filter(|(c, _)| *c == option::IA_ADDR).map(|(_, v)| {
            let addr = <[u8; 16]>::try_from(&v[..16]).unwrap();
            (addr.into(), u32::from_be_bytes(v[20..24].try_into().unwrap()))
        });
        (addresses.collect(), get(&inner, option::STATUS).map(|s| u16::from_be_bytes([s[0], s[1]])))
    }

    #[test]
    fn a_solicit_is_answered_with_the_address_and_the_rest() {
        let (kind, o) = replied(&message(Kind::Solicit, None, &[(option::IA_NA, &[])], &[]));
        assert_eq!(kind, Kind::Advertise as u8);
        assert_eq!(get(&o, option::CLIENT_ID), Some(&[0, 3, 0, 1, 9][..]));
        assert_eq!(get(&o, option::SERVER_ID), Some(&OURS[..]));
        assert_eq!(get(&o, option::PREFERENCE), Some(&[255][..]));
        assert_eq!(association(get(&o, option::IA_NA).unwrap(), option::IA_NA), (vec![(guest(), LIFETIME)], None));
        assert_eq!(get(&o, option::IA_NA).unwrap()[..12], [0, 0, 0, 1, 0, 0, 0xa8, 0xc0, 0, 1, 0x0e, 0]);
        assert_eq!(get(&o, option::DNS), Some(&router().cfg.v6.unwrap().dns.octets()[..]));
        assert_eq!(get(&o, option::SEARCH), Some(&b"\x07example\x03org\0"[..]));
        assert_eq!(get(&o, option::RAPID_COMMIT), None);
        let (kind, o) = replied(&message(Kind::Solicit, None, &[(option::IA_NA, &[])], &[(option::RAPID_COMMIT, &[])]));
        assert_eq!((kind, get(&o, option::RAPID_COMMIT)), (Kind::Reply as u8, Some(&[][..])));
    }

    #[test]
    fn only_one_association_gets_the_address() {
        let ias: &[(u16, &[Ipv6Addr])] =
            &[(option::IA_PD, &[]), (option::IA_TA, &[]), (option::IA_NA, &[]), (option::IA_NA, &[])];
        let (_, o) = replied(&message(Kind::Solicit, None, ias, &[]));
        let got: Vec<_> = o
            .iter()
            .filter(|(c, _)| matches!(*c, option::IA_NA | option::IA_TA | option::IA_PD))
            .map(|(c, v)| association(v, *c))
            .collect();
        assert_eq!(got, [(vec![], Some(6)), (vec![], Some(2)), (vec![(guest(), LIFETIME)], None), (vec![], Some(2))]);
    }

    #[test]
    fn addresses_of_another_link_are_refused_or_taken_back() {
        let foreign: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let ia = |b: &[u8]| association(get(&replied(b).1, option::IA_NA).unwrap(), option::IA_NA);
        assert_eq!(ia(&message(Kind::Request, Some(&OURS), &[(option::IA_NA, &[foreign])], &[])), (vec![], Some(4)));
        let here = (vec![(guest(), LIFETIME)], None);
        assert_eq!(ia(&message(Kind::Request, Some(&OURS), &[(option::IA_NA, &[neighbour(0x99)])], &[])), here);
        let taken_back = (vec![(guest(), LIFETIME), (foreign, 0)], None);
        assert_eq!(ia(&message(Kind::Renew, Some(&OURS), &[(option::IA_NA, &[guest(), foreign])], &[])), taken_back);
        assert_eq!(ia(&message(Kind::Rebind, None, &[(option::IA_NA, &[foreign])], &[])), taken_back);
    }

    #[test]
    fn a_confirm_is_judged_by_the_prefix() {
        let foreign: Ipv6Addr = "2001:db8::1".parse().unwrap();
        for (addresses, expected) in [
            (&[guest()][..], Some(Answer::Status(Status::Success))),
            (&[guest(), neighbour(0x99)], Some(Answer::Status(Status::Success))),
            (&[guest(), foreign], Some(Answer::Status(Status::NotOnLink))),
            (&[], None),
        ] {
            assert_eq!(decided(&message(Kind::Confirm, None, &[(option::IA_NA, addresses)], &[]), false), Ok(expected));
        }
    }

    #[test]
    fn messages_are_validated_by_their_identifiers() {
        use Kind::*;
        for kind in [Request, Renew, Release, Decline] {
            assert_eq!(decided(&message(kind, None, &[], &[]), false), Err(DropReason::BadDhcp), "{kind:?}");
            assert_eq!(decided(&message(kind, Some(&[0, 3, 0, 1, 1]), &[], &[]), false), Ok(None), "{kind:?}");
            let answer = Ok(Some(Answer::Status(Status::UseMulticast)));
            assert_eq!(decided(&message(kind, Some(&OURS), &[], &[]), true), answer, "{kind:?}");
        }
        for kind in [Solicit, Confirm, Rebind] {
            assert_eq!(decided(&message(kind, Some(&OURS), &[], &[]), false), Err(DropReason::BadDhcp), "{kind:?}");
            assert_eq!(decided(&message(kind, None, &[], &[]), true), Err(DropReason::BadDhcp), "{kind:?}");
        }
        for kind in [Advertise, Reply] {
            assert_eq!(decided(&message(kind, Some(&OURS), &[], &[]), false), Err(DropReason::BadDhcp), "{kind:?}");
        }
        for kind in [Release, Decline] {
            assert_eq!(decided(&message(kind, Some(&OURS), &[], &[]), false), Ok(Some(Answer::Status(Status::Success))));
        }
        assert_eq!(decided(&message(Inform, None, &[(option::IA_NA, &[])], &[]), false), Err(DropReason::BadDhcp));
        // No client identifier: only an information request may do without.
        assert_eq!(decided(&[Inform as u8, 1, 2, 3], false), Ok(Some(Answer::Information)));
        assert_eq!(decided(&[Solicit as u8, 1, 2, 3], false), Err(DropReason::BadDhcp));
    }

    #[test]
    fn an_information_request_gets_no_address() {
        let (kind, o) = replied(&message(Kind::Inform, None, &[], &[]));
        assert_eq!(kind, Kind::Reply as u8);
        assert!(get(&o, option::DNS).is_some() && get(&o, option::IA_NA).is_none() && get(&o, option::FQDN).is_none());
    }

    #[test]
    fn the_name_is_the_clients_else_the_configured_one() {
        let fqdn =
            |more: &[(u16, &[u8])]| get(&replied(&message(Kind::Inform, None, &[], more)).1, option::FQDN).map(<[u8]>::to_vec);
        assert_eq!(fqdn(&[(option::FQDN, b"\x01\x03abc\x03org\0")]), Some(b"\x06\x03abc\x03org\0".to_vec()));
        assert_eq!(fqdn(&[(option::FQDN, b"\x00")]), Some(b"\x04\x03box".to_vec()));
        assert_eq!(fqdn(&[(option::REQUESTED, &[0, 39])]), Some(b"\x04\x03box".to_vec()));
        assert_eq!(fqdn(&[(option::REQUESTED, &[0, 23])]), None);
    }

    proptest! {
        #[test]
        fn replies_are_whole_whatever_is_asked(
            kind in prop::sample::select(vec![Kind::Solicit, Kind::Rebind]),
            ias in prop::collection::vec((prop::sample::select(vec![3u16, 4, 25]), prop::collection::vec(any::<u128>(), 0..6)), 0..12),
            name in prop::collection::vec(any::<u8>(), 1..300),
        ) {
            let ias: Vec<(u16, Vec<Ipv6Addr>)> =
                ias.into_iter().map(|(k, a)| (k, a.into_iter().map(Ipv6Addr::from_bits).collect())).collect();
            let ias: Vec<(u16, &[Ipv6Addr])> = ias.iter().map(|(k, a)| (*k, a.as_slice())).collect();
            let b = message(kind, None, &ias, &[(option::FQDN, &name)]);
            if let Ok(q) = Request::parse(&b) {
                let r = router();
                let v6 = r.cfg.v6.unwrap();
                if let Ok(Some(answer)) = decide(&r, &v6, &q, false) {
                    let mut out = [0; udp::HEADER_LEN + MAX_REPLY];
                    let n = reply(&r.cfg, &v6, &q, answer, &mut out);
                    prop_assert!(Request::parse(&out[udp::HEADER_LEN..n]).is_ok());
                }
            }
        }
    }
}
