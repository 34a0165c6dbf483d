//! Several packet sockets among which the kernel divides what comes.

use crate::exercise::{self, Bench, PATIENCE};
use crate::packet::{interfaces, wait_for_carrier};
use crate::{frames, in_namespace, ns};
use hibernet::link::queues::QueuesLink;
use hibernet::link::socket::SocketLink;
use hibernet::sys::interface::Interfaces;
use hibernet::sys::mmsg;
use hibernet::sys::packet::{self, PacketOptions, PacketSocket};
use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The sockets of a group, each as one of its own.
fn apart(mut group: PacketSocket) -> Vec<PacketSocket> {
    let queues = std::mem::take(&mut group.queues);
    let (name, mtu, mac, receive_buffer, ring) = (group.name.clone(), group.mtu, group.mac, group.receive_buffer, group.ring);
    let one = |fd| PacketSocket { fd, name: name.clone(), mtu, mac, receive_buffer, ring, queues: Vec::new() };
    queues.into_iter().map(one).chain([group]).collect()
}

fn open(device: &str, queues: u32, ring: u32) -> Vec<SocketLink> {
    let group = packet::open_with(device, PacketOptions { ring, queues }).unwrap();
    assert_eq!(group.queues.len() as u32 + 1, queues);
    apart(group).into_iter().map(|s| SocketLink::packet(s, None).unwrap()).collect()
}

fn readers(device: &str, queues: u32, ring: u32) -> Vec<Bench> {
    let mac = Interfaces::current().unwrap().mac("g0").unwrap().unwrap();
    open(device, queues, ring).into_iter().map(|l| Bench::new(Box::new(l), mac)).collect()
}

/// A datagram: flow, number.
type Id = (u16, u32);

fn id(ip: &frames::Ip) -> Id {
    (u16::from_be_bytes([ip.l4[0], ip.l4[1]]), u32::from_be_bytes(ip.l4[8..12].try_into().unwrap()))
}

/// What came to each reader, once so many datagrams have come in all.
fn collect(readers: &mut [Bench], count: usize) -> Vec<Vec<Id>> {
    let mut got: Vec<Vec<Id>> = readers.iter().map(|_| Vec::new()).collect();
    let end = Instant::now() + PATIENCE;
    while got.iter().map(Vec::len).sum::<usize>() < count {
        assert!(Instant::now() < end, "{} of {count} datagrams came", got.iter().map(Vec::len).sum::<usize>());
        for (b, got) in readers.iter_mut().zip(&mut got) {
            if b.wait(Duration::from_millis(1)) {
                b.receive().unwrap();
            }
            got.extend(b.take().iter().filter_map(|f| frames::parse(&f.bytes)).filter(|ip| ip.proto == 17).map(|ip| id(&ip)));
        }
    }
    got
}

/// Sends `each` datagrams of every one of `flows` flows, interleaved, some so long that they are cut. Which they are.
fn send(flows: usize, each: u32, lens: &[usize], v6: bool) -> BTreeSet<Id> {
    let (guest, gateway) = exercise::addresses(v6);
    let sockets: Vec<UdpSocket> = (0..flows).map(|_| UdpSocket::bind(SocketAddr::new(guest, 0)).unwrap()).collect();
    let mut all = BTreeSet::new();
    for n in 0..each {
        for (i, s) in sockets.iter().enumerate() {
            let mut data = vec![0; lens[(n as usize + i) % lens.len()]];
            data[..4].copy_from_slice(&n.to_be_bytes());
            s.send_to(&data, SocketAddr::new(gateway, 7)).unwrap();
            all.insert((s.local_addr().unwrap().port(), n));
        }
    }
    all
}

/// Every datagram once, and those of a flow at one reader in their order.
fn every_flow_has_one_reader(queues: u32, ring: u32, lens: &[usize], v6: bool) {
    let mut readers = readers("h0", queues, ring);
    let (flows, each) = (64, 8);
    let sent = send(flows, each, lens, v6);
    let got = collect(&mut readers, sent.len());
    let once: BTreeSet<Id> = got.iter().flatten().copied().collect();
    assert_eq!((once == sent, got.iter().map(Vec::len).sum::<usize>()), (true, sent.len()));
    let mut at: BTreeMap<u16, BTreeSet<usize>> = BTreeMap::new();
    for (reader, got) in got.iter().enumerate() {
        assert!(!got.is_empty(), "nothing came to reader {reader} of {queues}");
        let mut last = BTreeMap::new();
        for (flow, n) in got {
            at.entry(*flow).or_default().insert(reader);
            assert!(last.insert(*flow, *n).is_none_or(|before| before < *n), "flow {flow}: {n} is late");
        }
    }
    assert!(at.values().all(|readers| readers.len() == 1), "{at:?}");
}

/// A frame as another program of the namespace sends it on an interface.
fn send_from_beside(device: &str) {
    let (gateway, guest): (IpAddr, IpAddr) = ("10.0.2.2".parse().unwrap(), "10.0.2.15".parse().unwrap());
    let data = [&[0, 9, 0, 9, 0, 12, 0, 0][..], &[0; 4]].concat();
    let mut frame = frames::headers(hibernet_netstack::wire::Mac([2, 0, 0, 0, 0, 9]), gateway, guest, 17, data.len());
    frame.extend(data);
    let other = packet::open(device).unwrap();
    let message = [IoSlice::new(&[0; 10]), IoSlice::new(&frame)];
    assert_eq!(mmsg::send(other.fd.as_fd(), &[message]).unwrap(), 1);
}

in_namespace! {
    fn two_and_four_sockets_keep_every_flow_at_one_reader() {
        interfaces(1500);
        for queues in [2, 4] {
            for ring in [0, 512] {
                every_flow_has_one_reader(queues, ring, &[10, 1400], false);
                every_flow_has_one_reader(queues, ring, &[10, 1400], true);
            }
        }
    }

    fn fragments_come_to_the_reader_of_their_flow_in_one_piece() {
        interfaces(1500);
        for ring in [0, 512] {
            every_flow_has_one_reader(4, ring, &[10, 4000, 20_000], false);
        }
    }

    fn as_one_link_they_carry_everything() {
        interfaces(1500);
        let mac = Interfaces::current().unwrap().mac("g0").unwrap().unwrap();
        for ring in [0, 1024] {
            let mut group = open("h0", 3, ring);
            let first = group.remove(0);
            let mut b = Bench::new(Box::new(QueuesLink::new(first, group).unwrap()), mac);
            exercise::everything(&mut b);
        }
    }

    fn as_one_link_they_are_one_link() {
        interfaces(1500);
        let mac = Interfaces::current().unwrap().mac("g0").unwrap().unwrap();
        let mut group = open("h0", 4, 32);
        let first = group.remove(0);
        let mut readers = [Bench::new(Box::new(QueuesLink::new(first, group).unwrap()), mac)];
        let sent = send(64, 8, &[10], false);
        // More than the rings hold: what is missing is counted.
        let all = |b: &mut Bench| {
            b.receive().unwrap();
            b.take().iter().filter_map(|f| frames::parse(&f.bytes)).filter(|ip| ip.proto == 17).count() as u64
        };
        let mut came = 0;
        while came + readers[0].link.stats().rx_overrun < sent.len() as u64 {
            assert!(readers[0].wait(PATIENCE), "{came} came");
            came += all(&mut readers[0]);
        }
        assert!(readers[0].link.stats().rx_overrun > 0 && came >= 4);
        // A flow of each reader is heard of, though no other has anything.
        let sent = send(32, 1, &[10], false);
        assert_eq!(collect(&mut readers, sent.len())[0].iter().copied().collect::<BTreeSet<_>>(), sent);
        ns::ip("link del h0");
        assert!(readers[0].wait(PATIENCE));
        assert!((0..8).any(|_| readers[0].receive().is_err()), "the end is told");
    }

    fn two_instances_do_not_share_what_comes() {
        interfaces(1500);
        ns::ip("link add g1 type veth peer name h1");
        ns::ip("addr add 10.0.3.15/24 dev g1");
        if ns::has_ipv6() {
            ns::sysctl("ipv6/conf/h1/disable_ipv6", "1");
            ns::sysctl("ipv6/conf/g1/disable_ipv6", "1");
        }
        ns::ip(&format!("neigh add 10.0.3.2 lladdr {} dev g1", frames::OURS));
        ns::ip("link set h1 up");
        ns::ip("link set g1 up");
        wait_for_carrier("g1");
        // At interfaces of their own they see their own; at the same interface each sees all.
        let (mut first, mut second, mut same) = (readers("h0", 2, 0), readers("h1", 2, 64), readers("h0", 4, 0));
        let on_h1 = UdpSocket::bind("10.0.3.15:0").unwrap();
        for n in 0..40u32 {
            on_h1.send_to(&n.to_be_bytes(), "10.0.3.2:7").unwrap();
        }
        let on_h0 = send(32, 2, &[10], false);
        for group in [&mut first, &mut same] {
            let got: Vec<Id> = collect(group, on_h0.len()).concat();
            assert_eq!((got.len(), got.iter().copied().collect::<BTreeSet<_>>()), (on_h0.len(), on_h0.clone()));
        }
        let port = on_h1.local_addr().unwrap().port();
        let mut got = collect(&mut second, 40).concat();
        got.sort_unstable();
        assert_eq!(got, (0..40).map(|n| (port, n)).collect::<Vec<_>>());
    }

    fn what_leaves_by_the_interface_does_not_come() {
        interfaces(1500);
        let mut group = readers("h0", 2, 0);
        let mut alone = readers("h0", 1, 0);
        send_from_beside("h0");
        let sent = send(32, 1, &[10], false);
        for readers in [&mut group, &mut alone] {
            let got: BTreeSet<Id> = collect(readers, sent.len()).concat().into_iter().collect();
            assert_eq!(got, sent);
        }
    }
}
