//! A link that takes no more for a while.

use crate::guest::setup;
use event_manager::{EventManager, SubscriberOps};
use hibernet::link::socket::SocketLink;
use hibernet::worker::Worker;
use hibernet_netstack::Config;
use std::os::unix::net::UnixDatagram;

/// The guest's question who has the gateway's address.
fn arp_request(config: &Config) -> [u8; 42] {
    let v4 = config.v4.unwrap();
    let mut f = [0; 42];
    f[..6].fill(0xff);
    f[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0x15]);
    // EtherType ARP; Ethernet, IPv4, lengths, request.
    f[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    f[22..28].copy_from_slice(&[2, 0, 0, 0, 0, 0x15]);
    f[28..32].copy_from_slice(&v4.guest.octets());
    f[38..42].copy_from_slice(&v4.gateway.octets());
    f
}

/// What the socket does not take goes when it can, without anything else happening; then the worker sleeps.
#[test]
fn frames_that_wait_are_sent_when_there_is_room() {
    let (ours, guest) = UnixDatagram::pair().unwrap();
    guest.set_nonblocking(true).unwrap();
    let mut s = setup(Config::default());
    let request = arp_request(&s.config);
    s.links.push(Box::new(SocketLink::messages(ours.into(), 1500, None).unwrap()));
    let mut manager = EventManager::new().unwrap();
    let id = manager.add_subscriber(Worker::new(s).unwrap());
    let link = |manager: &mut EventManager<Worker>, name: &str| {
        manager.subscriber_mut(id).unwrap().report()["links"][0][name].as_u64().unwrap()
    };
    // The guest asks and does not listen, until answers are thrown away.
    while link(&mut manager, "tx_full") == 0 {
        guest.send(&request).unwrap();
        manager.run_with_timeout(0).unwrap();
    }
    assert_eq!(manager.run_with_timeout(50).unwrap(), 0, "it spins while there is no room");
    let (sent, mut arrived) = (link(&mut manager, "tx_frames"), 0);
    while guest.recv(&mut [0; 1500]).is_ok() {
        arrived += 1;
    }
    assert_eq!(arrived, sent);
    while manager.run_with_timeout(50).unwrap() > 0 {}
    let waited = link(&mut manager, "tx_frames") - sent;
    assert!(waited > 0, "nothing waited");
    while guest.recv(&mut [0; 1500]).is_ok() {
        arrived += 1;
    }
    assert_eq!(arrived, sent + waited);
    assert_eq!(manager.run_with_timeout(50).unwrap(), 0);
}
