//! The services on the stack's own addresses, through the stack's front door.

mod arp;
mod dhcp;
mod dns;
mod echo;
mod ndp;

use core::net::{IpAddr, Ipv6Addr};
use hibernet_netstack::Config;
use hibernet_tests::World;
use hibernet_tests::wire::{self, Frame, GUEST_MAC, Ip};

/// What all stations hear.
const BROADCAST_MAC: [u8; 6] = [0xff; 6];

fn world() -> World {
    World::new(config())
}

fn config() -> Config {
    Config { search: vec!["example.org".into()], hostname: "box".into(), ..Config::default() }
}

/// An address of the guest's IPv6 prefix with this last word.
fn in_prefix(last: u16) -> Ipv6Addr {
    let mut s = config().v6.unwrap().guest.segments();
    s[7] = last;
    s.into()
}

/// The gateway's link-local address, made from its MAC address 52:55:0a:00:02:02 by hand.
fn gateway_link_local() -> Ipv6Addr {
    "fe80::5055:aff:fe00:202".parse().unwrap()
}

/// The guest's link-local address.
fn guest_link_local() -> Ipv6Addr {
    "fe80::5054:ff:fe12:3456".parse().unwrap()
}

/// A datagram of the guest's.
fn send_udp(w: &mut World, src: IpAddr, dst: IpAddr, src_port: u16, dst_port: u16, data: &[u8]) {
    let datagram = wire::udp(src, dst, src_port, dst_port, data);
    w.inject_ip(&Ip::new(src, dst), 17, &datagram);
}

/// As [`send_udp`], in a broadcast or multicast frame.
fn send_udp_to_all(w: &mut World, src: IpAddr, dst: IpAddr, src_port: u16, dst_port: u16, data: &[u8]) {
    let datagram = wire::udp(src, dst, src_port, dst_port, data);
    w.inject(&Ip::new(src, dst).frame(BROADCAST_MAC, GUEST_MAC, 17, &datagram));
}

/// The next frame for the guest, taken apart.
fn next_frame(w: &mut World) -> Option<Frame> {
    w.take(|f| Some(f.clone()))
}
