//! A TAP whose descriptor a VMM holds, as Firecracker does; we have the side of the network interface, with a packet socket.

use crate::exercise::Bench;
use crate::frames::{self, TCP, pattern};
use crate::tap::{OPTIONS, create};
use crate::{in_namespace, ns};
use hibernet::link::socket::SocketLink;
use hibernet::link::vnet;
use hibernet::sys::{packet, tun};
use hibernet_netstack::edge::{Gso, GsoKind, RxChecksum};
use hibernet_netstack::wire::Mac;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;

const GUEST: Mac = Mac([0x06, 0, 0, 0, 0, 1]);
const MSS: u16 = 1400;

/// The VMM's side and ours. `offloads`: whether the VMM's guest negotiated them.
fn pair(offloads: bool) -> Option<(File, Bench)> {
    let tap = create(&OPTIONS)?;
    if ns::has_ipv6() {
        ns::sysctl("ipv6/conf/tap0/disable_ipv6", "1");
    }
    if !offloads {
        tun::set_offload(tap.fd.as_fd(), 0).unwrap();
    }
    ns::ip("link set tap0 up");
    let link = SocketLink::packet(packet::open("tap0").unwrap(), None).unwrap();
    Some((File::from(tap.fd), Bench::new(Box::new(link), GUEST)))
}

fn tcp_head(flags: u8) -> Vec<u8> {
    let mut h = [80u16.to_be_bytes(), 5000u16.to_be_bytes()].concat();
    h.extend([0, 0, 0, 1, 0, 0, 0, 2, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    h
}

/// What the VMM reads: virtio-net header and frame.
fn read(vmm: &mut File) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut buf = vec![0; 70_000];
    match vmm.read(&mut buf) {
        Ok(n) => Some((buf[..vnet::LEN].to_vec(), buf[vnet::LEN..n].to_vec())),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => None,
        Err(e) => panic!("{e}"),
    }
}

in_namespace! {
    fn super_segments_reach_a_guest_that_takes_them() {
        let Some((mut vmm, mut b)) = pair(true) else { return };
        for v6 in [false, true] {
            let data = pattern(0, 60_000);
            b.send(v6, TCP, &tcp_head(0x18), &data, Some(MSS), true).unwrap();
            let (header, frame) = read(&mut vmm).expect("the super-segment");
            let kind = if v6 { GsoKind::Tcp6 } else { GsoKind::Tcp4 };
            let known = vnet::decode(header[..].try_into().unwrap(), frame.len()).unwrap();
            assert_eq!(known, (RxChecksum::Trusted, Some(Gso { kind, size: MSS })));
            assert_eq!(&frames::parse(&frame).unwrap().l4[20..], &data[..]);
            assert!(read(&mut vmm).is_none());
        }
    }

    fn the_kernel_cuts_and_sums_for_a_guest_that_takes_none() {
        let Some((mut vmm, mut b)) = pair(false) else { return };
        for v6 in [false, true] {
            let data = pattern(0, 60_000);
            b.send(v6, TCP, &tcp_head(0x18), &data, Some(MSS), true).unwrap();
            let (mut got, mut count) = (Vec::new(), 0);
            while let Some((header, frame)) = read(&mut vmm) {
                let known = vnet::decode(header[..].try_into().unwrap(), frame.len()).unwrap();
                assert_eq!(known.1, None, "a super-segment");
                assert_eq!(header[0] & 1, 0, "a partial checksum");
                assert!(frame.len() <= 1514);
                let ip = frames::parse(&frame).unwrap();
                assert!(ip.checksum_is_right(), "segment {count}");
                let seq = u32::from_be_bytes(ip.l4[4..8].try_into().unwrap());
                assert_eq!(seq as usize, 1 + got.len());
                got.extend_from_slice(&ip.l4[20..]);
                count += 1;
            }
            assert_eq!((got == data, count), (true, 60_000usize.div_ceil(MSS.into())));
        }
    }

    fn frames_of_the_guest_arrive_as_it_made_them() {
        let Some((mut vmm, mut b)) = pair(false) else { return };
        let (guest, gateway) = crate::exercise::addresses(false);
        for (len, gso_size, partial) in [(1000, 0, false), (1000, 0, true), (50_000, MSS, true)] {
            let data = pattern(3, len);
            let mut frame = frames::headers(frames::OURS, guest, gateway, TCP, 20 + len);
            frame[6..12].copy_from_slice(&GUEST.0);
            let mut l4 = tcp_head(0x18);
            let pseudo = frames::pseudo(guest, gateway, TCP, 20 + len);
            let sum = if partial { pseudo } else { !frames::sum(&[&l4, &data, &pseudo.to_be_bytes()]) };
            l4[16..18].copy_from_slice(&sum.to_be_bytes());
            frame.extend(l4);
            frame.extend(&data);
            let mut header = vec![u8::from(partial), u8::from(gso_size > 0)];
            let words = if partial { [54, gso_size, 34, 16] } else { [0; 4] };
            header.extend(words.map(u16::to_ne_bytes).concat());
            vmm.write_all(&[header, frame.clone()].concat()).unwrap();
            let (f, _) = b.next(|ip| ip.proto == TCP).expect("the segment");
            assert_eq!(f.bytes, frame);
            assert_eq!(f.gso, (gso_size > 0).then_some(Gso { kind: GsoKind::Tcp4, size: gso_size }));
            assert_eq!(f.checksum, if partial { RxChecksum::Trusted } else { RxChecksum::Unverified });
        }
    }

    fn a_guest_that_does_not_read_does_not_stop_us() {
        let Some((mut vmm, mut b)) = pair(true) else { return };
        for _ in 0..3000 {
            b.send(false, 17, &[0, 7, 0, 7, 0, 108, 0, 0], &[0; 100], None, true).unwrap();
        }
        let waiting = std::iter::from_fn(|| read(&mut vmm)).count();
        assert!((1..3000).contains(&waiting), "{waiting} frames wait: the interface's queue is bounded");
        b.send(false, 17, &[0, 7, 0, 7, 0, 108, 0, 0], &[0; 100], None, true).unwrap();
        assert!(read(&mut vmm).is_some());
    }

    fn the_end_of_the_vmm_is_the_end_of_the_link() {
        let Some((vmm, mut b)) = pair(true) else { return };
        drop(vmm);
        assert!(b.wait(std::time::Duration::from_secs(5)));
        assert!(matches!(b.receive(), Err(hibernet::link::LinkError::Closed)));
    }
}
