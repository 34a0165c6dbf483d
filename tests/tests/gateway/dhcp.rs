//! DHCP and DHCPv6.

use crate::{BROADCAST_MAC, config, gateway_link_local, guest_link_local, in_prefix, send_udp, send_udp_to_all, world};
use core::net::{IpAddr, Ipv4Addr};
use hibernet_netstack::edge::LinkInfo;
use hibernet_netstack::{Config, DropReason};
use hibernet_tests::World;
use hibernet_tests::wire::{GUEST_MAC, L4, Net};
use std::collections::BTreeMap;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// A DHCP client's message.
fn request(client: Ipv4Addr, flags: u16, options: &[u8]) -> Vec<u8> {
    let mut b = vec![1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 0];
    b.extend(flags.to_be_bytes());
    b.extend(client.octets());
    b.extend([0; 12]);
    b.extend(GUEST_MAC);
    b.extend([0; 10 + 64 + 128]);
    b.extend([99, 130, 83, 99]);
    b.extend(options);
    b.push(255);
    b
}

/// A reply: where it went, the address in it, and its options.
#[derive(Debug)]
struct Reply {
    mac: [u8; 6],
    to: IpAddr,
    yours: Ipv4Addr,
    options: BTreeMap<u8, Vec<u8>>,
}

fn take4(w: &mut World) -> Option<Reply> {
    let gateway: IpAddr = w.stack.config().v4.unwrap().gateway.into();
    w.take(|f| match &f.net {
        Net::Ip { src, dst, l4: L4::Udp { src_port: 67, dst_port: 68, data }, .. } => {
            assert_eq!(*src, gateway);
            assert_eq!((&data[..3], &data[4..8], &data[28..34]), (&[2, 1, 6][..], &[0xde, 0xad, 0xbe, 0xef][..], &GUEST_MAC[..]));
            assert!(data.len() >= 300 && data[236..240] == [99, 130, 83, 99]);
            let (mut options, mut rest) = (BTreeMap::<u8, Vec<u8>>::new(), &data[240..]);
            while rest[0] != 255 {
                let n = usize::from(rest[1]);
                options.entry(rest[0]).or_default().extend(&rest[2..2 + n]);
                rest = &rest[2 + n..];
            }
            let yours = Ipv4Addr::new(data[16], data[17], data[18], data[19]);
            Some(Reply { mac: f.dst_mac, to: *dst, yours, options })
        }
        _ => None,
    })
}

/// Sends a request to all, from `src`.
fn ask4(w: &mut World, src: Ipv4Addr, message: &[u8]) -> Option<Reply> {
    send_udp_to_all(w, src.into(), Ipv4Addr::BROADCAST.into(), 68, 67, message);
    let reply = take4(w);
    assert!(w.inbox.is_empty());
    reply
}

/// A world that knows nothing of its guest.
fn strange_world() -> World {
    World::with_link(config(), LinkInfo { guest_mac: None, ..World::plain_link() })
}

#[test]
fn a_guest_gets_its_lease_in_four_messages() {
    let mut w = strange_world();
    let offer = ask4(&mut w, NOBODY, &request(NOBODY, 0, &[53, 1, 1, 57, 2, 5, 0xdc])).unwrap();
    assert_eq!((offer.mac, offer.to, offer.yours, &offer.options[&53][..]), (GUEST_MAC, GUEST.into(), GUEST, &[2][..]));
    let options = [53, 1, 3, 50, 4, 10, 0, 2, 15, 54, 4, 10, 0, 2, 2];
    let ack = ask4(&mut w, NOBODY, &request(NOBODY, 0, &options)).unwrap();
    assert_eq!((ack.yours, &ack.options[&53][..]), (GUEST, &[5][..]));
    for (code, value) in [
        (1, &[255, 255, 255, 0][..]),
        (3, &[10, 0, 2, 2]),
        (6, &[10, 0, 2, 3]),
        (12, b"box"),
        (26, &[5, 0xdc]),
        (51, &[0, 1, 0x51, 0x80]),
        (54, &[10, 0, 2, 2]),
        (119, b"\x07example\x03org\0"),
    ] {
        assert_eq!((&offer.options[&code][..], &ack.options[&code][..]), (value, value), "option {code}");
    }
    // Renewing: from the address, to the server.
    send_udp(&mut w, GUEST.into(), "10.0.2.2".parse().unwrap(), 68, 67, &request(GUEST, 0, &[53, 1, 3]));
    let ack = take4(&mut w).unwrap();
    assert_eq!((ack.to, &ack.options[&53][..]), (GUEST.into(), &[5][..]));
    // Rebinding: to all.
    assert_eq!(ask4(&mut w, GUEST, &request(GUEST, 0, &[53, 1, 3])).unwrap().options[&53], [5]);
    assert_eq!((w.stack.stats().dhcp_acks, w.dropped_total()), (3, 0));
    assert_eq!(w.stack.next_deadline(), None);
}

#[test]
fn a_client_that_cannot_hear_unicast_is_broadcast_to() {
    let mut w = world();
    let offer = ask4(&mut w, NOBODY, &request(NOBODY, 0x8000, &[53, 1, 1])).unwrap();
    assert_eq!((offer.mac, offer.to), (BROADCAST_MAC, Ipv4Addr::BROADCAST.into()));
}

#[test]
fn wrong_addresses_are_refused() {
    let mut w = world();
    let other = Ipv4Addr::new(192, 168, 7, 7);
    for (what, src, message) in [
        ("init-reboot", NOBODY, request(NOBODY, 0, &[53, 1, 3, 50, 4, 192, 168, 7, 7])),
        ("selecting", NOBODY, request(NOBODY, 0, &[53, 1, 3, 50, 4, 192, 168, 7, 7, 54, 4, 10, 0, 2, 2])),
        ("rebinding", other, request(other, 0, &[53, 1, 3])),
    ] {
        let nak = ask4(&mut w, src, &message).unwrap();
        assert_eq!((nak.mac, nak.to, nak.yours), (BROADCAST_MAC, Ipv4Addr::BROADCAST.into(), NOBODY), "{what}");
        assert_eq!(nak.options.keys().copied().collect::<Vec<_>>(), [53, 54], "{what}");
        assert_eq!(nak.options[&53], [6], "{what}");
    }
    assert_eq!(w.stack.stats().dhcp_acks, 0);
    // That a rebinding client's source is foreign opens nothing else.
    send_udp_to_all(&mut w, other.into(), Ipv4Addr::BROADCAST.into(), 68, 69, b"x");
    send_udp(&mut w, other.into(), "10.0.2.2".parse().unwrap(), 68, 67, &request(other, 0, &[53, 1, 3]));
    assert_eq!((w.dropped(DropReason::SpoofedSource), w.inbox.len()), (2, 0));
}

#[test]
fn what_needs_no_answer_gets_none() {
    let mut w = world();
    for (what, options) in [
        ("another server chosen", &[53, 1, 3, 50, 4, 10, 0, 2, 15, 54, 4, 10, 0, 2, 9][..]),
        ("decline", &[53, 1, 4, 50, 4, 10, 0, 2, 15, 54, 4, 10, 0, 2, 2]),
        ("release", &[53, 1, 7, 54, 4, 10, 0, 2, 2]),
    ] {
        assert!(ask4(&mut w, NOBODY, &request(NOBODY, 0, options)).is_none(), "{what}");
    }
    assert_eq!(w.dropped_total(), 0);
}

#[test]
fn information_is_given_without_a_lease() {
    let mut w = world();
    let ack = ask4(&mut w, GUEST, &request(GUEST, 0, &[53, 1, 8])).unwrap();
    assert_eq!((ack.to, ack.yours, &ack.options[&53][..]), (GUEST.into(), NOBODY, &[5][..]));
    assert!(ack.options.contains_key(&6) && !ack.options.contains_key(&51));
}

#[test]
fn a_client_in_a_hurry_gets_its_lease_in_two_messages() {
    let mut w = world();
    let ack = ask4(&mut w, NOBODY, &request(NOBODY, 0, &[53, 1, 1, 80, 0])).unwrap();
    assert_eq!((ack.yours, &ack.options[&53][..], &ack.options[&80][..]), (GUEST, &[5][..], &[][..]));
}

#[test]
fn bad_dhcp_messages_are_counted() {
    let mut w = world();
    let mut relayed = request(NOBODY, 0, &[53, 1, 1]);
    relayed[24] = 10;
    for (n, bad) in [
        b"".to_vec(),
        request(NOBODY, 0, &[53, 1, 1])[..239].to_vec(),
        request(NOBODY, 0, &[]),
        request(NOBODY, 0, &[53, 1, 2]),
        request(NOBODY, 0, &[53, 1, 3]),
        request(NOBODY, 0, &[53, 9, 1]),
        relayed,
    ]
    .into_iter()
    .enumerate()
    {
        assert!(ask4(&mut w, NOBODY, &bad).is_none());
        assert_eq!(w.dropped(DropReason::BadDhcp), n as u64 + 1, "{bad:02x?}");
    }
}

#[test]
fn a_short_reply_fits_a_client_that_names_no_size() {
    let search = (0..60).map(|i| format!("domain-{i}.example.org")).collect();
    let mut w = World::new(Config { search, ..config() });
    for (options, max) in [(&[53, 1, 1][..], 576), (&[53, 1, 1, 57, 2, 0, 1], 576), (&[53, 1, 1, 57, 2, 255, 255], 1500)] {
        send_udp_to_all(&mut w, NOBODY.into(), Ipv4Addr::BROADCAST.into(), 68, 67, &request(NOBODY, 0, options));
        let len = w.inbox[0].1.len() - 14;
        assert!(len <= max && len > max - 40, "{len} of {max}");
        assert!(take4(&mut w).unwrap().options[&119].ends_with(b"\x07example\x03org\0"));
    }
}

const DUID: [u8; 10] = [0, 3, 0, 1, 0x52, 0x55, 0x0a, 0, 2, 2];

/// A DHCPv6 client's message with its identifier, and options.
fn request6(kind: u8, options: &[(u16, &[u8])]) -> Vec<u8> {
    let mut b = vec![kind, 1, 2, 3, 0, 1, 0, 4, 0, 3, 0, 1];
    for (code, value) in options {
        b.extend(code.to_be_bytes());
        b.extend((value.len() as u16).to_be_bytes());
        b.extend(*value);
    }
    b
}

/// An identity association of identifier 5 that holds an address.
fn association(address: Option<core::net::Ipv6Addr>) -> Vec<u8> {
    let mut b = vec![0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0];
    if let Some(a) = address {
        b.extend([0, 5, 0, 24]);
        b.extend(a.octets());
        b.extend([0; 8]);
    }
    b
}

/// Sends a message to all servers; type and options of the reply.
fn ask6(w: &mut World, message: &[u8]) -> Option<(u8, BTreeMap<u16, Vec<u8>>)> {
    let (src, dst) = (IpAddr::V6(guest_link_local()), "ff02::1:2".parse().unwrap());
    send_udp_to_all(w, src, dst, 546, 547, message);
    take6(w)
}

fn take6(w: &mut World) -> Option<(u8, BTreeMap<u16, Vec<u8>>)> {
    w.take(|f| match &f.net {
        Net::Ip { src, dst, l4: L4::Udp { src_port: 547, dst_port: 546, data }, .. } => {
            assert_eq!((f.dst_mac, *src, *dst), (GUEST_MAC, gateway_link_local().into(), guest_link_local().into()));
            assert_eq!(data[1..4], [1, 2, 3]);
            let (mut options, mut rest) = (BTreeMap::new(), &data[4..]);
            while !rest.is_empty() {
                let n = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
                options.insert(u16::from_be_bytes([rest[0], rest[1]]), rest[4..4 + n].to_vec());
                rest = &rest[4 + n..];
            }
            Some((data[0], options))
        }
        _ => None,
    })
}

#[test]
fn a_guest_gets_its_address_from_dhcpv6() {
    let mut w = strange_world();
    let mut lease = association(Some(config().v6.unwrap().guest));
    lease[4..12].copy_from_slice(&[0, 0, 0xa8, 0xc0, 0, 1, 0x0e, 0]);
    let n = lease.len();
    lease[n - 8..].copy_from_slice(&[0, 1, 0x51, 0x80, 0, 1, 0x51, 0x80]);
    let (kind, o) = ask6(&mut w, &request6(1, &[(3, &association(None)), (6, &[0, 23, 0, 24])])).unwrap();
    assert_eq!((kind, &o[&3], &o[&2][..], &o[&1][..]), (2, &lease, &DUID[..], &[0, 3, 0, 1][..]));
    let with_server: &[(u16, &[u8])] = &[(2, &DUID), (3, &lease)];
    for kind in [3, 5] {
        let (told, o) = ask6(&mut w, &request6(kind, with_server)).unwrap();
        assert_eq!((told, &o[&3]), (7, &lease), "message {kind}");
        assert_eq!(o[&23], config().v6.unwrap().dns.octets());
        assert_eq!(o[&24], b"\x07example\x03org\0");
    }
    let (told, o) = ask6(&mut w, &request6(6, &[(3, &lease)])).unwrap();
    assert_eq!((told, &o[&3]), (7, &lease), "rebind");
    let (told, o) = ask6(&mut w, &request6(1, &[(3, &association(None)), (14, &[])])).unwrap();
    assert_eq!((told, &o[&3], &o[&14][..]), (7, &lease, &[][..]), "rapid commit");
    assert_eq!((w.stack.stats().dhcp_acks, w.dropped_total()), (4, 0));
    for kind in [8, 9] {
        let (told, o) = ask6(&mut w, &request6(kind, with_server)).unwrap();
        assert_eq!((told, &o[&13][..]), (7, &[0, 0][..]), "message {kind}");
    }
    let (told, o) = ask6(&mut w, &request6(11, &[])).unwrap();
    assert!(told == 7 && o.contains_key(&23) && !o.contains_key(&3));
    assert_eq!(w.stack.next_deadline(), None);
}

#[test]
fn addresses_of_another_link_are_told_apart() {
    let mut w = world();
    let foreign = association(Some("2001:db8::1".parse().unwrap()));
    let (_, o) = ask6(&mut w, &request6(4, &[(3, &foreign)])).unwrap();
    assert_eq!(o[&13], [0, 4]);
    let (_, o) = ask6(&mut w, &request6(4, &[(3, &association(Some(in_prefix(0x15))))])).unwrap();
    assert_eq!(o[&13], [0, 0]);
    let (_, o) = ask6(&mut w, &request6(3, &[(2, &DUID), (3, &foreign)])).unwrap();
    assert_eq!(o[&3], [&association(None)[..], &[0, 13, 0, 2, 0, 4]].concat());
}

#[test]
fn messages_to_us_alone_and_to_other_servers() {
    let mut w = world();
    let message = request6(5, &[(2, &DUID), (3, &association(None))]);
    send_udp(&mut w, guest_link_local().into(), gateway_link_local().into(), 546, 547, &message);
    assert_eq!(take6(&mut w).unwrap().1[&13], [0, 5]);
    send_udp(&mut w, guest_link_local().into(), gateway_link_local().into(), 546, 547, &request6(1, &[]));
    assert_eq!((take6(&mut w), w.dropped(DropReason::BadDhcp)), (None, 1));
    assert_eq!(ask6(&mut w, &request6(5, &[(2, &[0, 3, 0, 1, 9])])), None);
    assert_eq!(w.dropped(DropReason::BadDhcp), 1);
    // Nobody asks; somebody asks another group.
    let solicit = request6(1, &[(3, &association(None))]);
    send_udp_to_all(&mut w, "::".parse().unwrap(), "ff02::1:2".parse().unwrap(), 546, 547, &solicit);
    send_udp_to_all(&mut w, guest_link_local().into(), "ff02::1:3".parse().unwrap(), 546, 547, &solicit);
    assert_eq!((w.dropped(DropReason::MartianSource), w.dropped(DropReason::NoService), w.inbox.len()), (1, 1, 0));
    for bad in [&b""[..], &[1, 2, 3], &[12, 0, 0, 0], &[1, 1, 2, 3, 0, 1, 0, 9, 0]] {
        let before = w.dropped(DropReason::BadDhcp);
        assert_eq!((ask6(&mut w, bad), w.dropped(DropReason::BadDhcp)), (None, before + 1), "{bad:?}");
    }
}
