//! The guest: smoltcp's stack behind a device of two queues.

use crate::net::Frame;
use crate::plan::Plan;
use core::net::IpAddr;
use core::num::NonZeroUsize;
use hibernet_netstack::Time;
use hibernet_netstack::edge::{Gso, GsoKind};
use hibernet_netstack::tuple::Endpoint;
use hibernet_tests::wire::{GUEST_MAC, ethertype};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpEndpoint};
use std::collections::VecDeque;

/// Largest super-segment's payload. Over IPv4 only: over IPv6 smoltcp 0.14 drops what it had cut out for the device, so
/// there [`coalesce`] makes them.
const TSO_MAX: usize = 60_000;

/// The device.
pub struct Queues {
    pub rx: VecDeque<Vec<u8>>,
    pub tx: VecDeque<Frame>,
    mtu: usize,
    tso: bool,
}

pub struct Rx(Vec<u8>);
pub struct Tx<'a>(&'a mut VecDeque<Frame>, PacketMeta);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; len];
        let result = f(&mut bytes);
        let v4 = bytes[12..14] == ethertype::IPV4.to_be_bytes();
        let kind = if v4 { GsoKind::Tcp4 } else { GsoKind::Tcp6 };
        let gso = self.1.segmentation_offload_size.map(|size| Gso { kind, size: size.get() });
        self.0.push_back(Frame { bytes, gso });
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.1 = meta;
    }
}

impl Device for Queues {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.rx.pop_front()?), Tx(&mut self.tx, PacketMeta::default())))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx, PacketMeta::default()))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut c = DeviceCapabilities::default();
        c.medium = Medium::Ethernet;
        c.max_transmission_unit = self.mtu + 14;
        if self.tso {
            c.checksum.tcp = Checksum::Rx;
            c.segmentation.tcpv4 = NonZeroUsize::new(TSO_MAX);
        }
        c
    }
}

/// Makes super-segments of TCP segments over IPv6 that follow each other, as a sender with segmentation offload would have
/// sent them.
fn coalesce(tx: &mut VecDeque<Frame>) {
    const HEAD: usize = 14 + 40 + 20;
    const FLAGS: usize = 14 + 40 + 13;
    let plain = |f: &Frame| {
        let b = &f.bytes;
        b.len() > HEAD && b[12..14] == ethertype::IPV6.to_be_bytes() && b[20] == 6 && b[66] == 0x50 && b[FLAGS] & !0x09 == 0x10
    };
    let seq = |f: &Frame| u32::from_be_bytes(f.bytes[58..62].try_into().expect("4 bytes"));
    let mut out: VecDeque<Frame> = VecDeque::new();
    for f in tx.drain(..) {
        if let Some(last) = out.back_mut() {
            let len = last.bytes.len() - HEAD.min(last.bytes.len());
            let size = last.gso.map_or(len, |g| usize::from(g.size));
            let follows = plain(last)
                && plain(&f)
                && last.bytes[22..58] == f.bytes[22..58]
                && last.bytes[62..66] == f.bytes[62..66]
                && last.bytes[FLAGS + 1..FLAGS + 3] == f.bytes[FLAGS + 1..FLAGS + 3]
                && last.bytes[FLAGS] & 1 == 0
                && seq(&f) == seq(last).wrapping_add(len as u32)
                && len % size == 0
                && f.bytes.len() - HEAD <= size
                && len + f.bytes.len() < TSO_MAX;
            if follows {
                last.bytes.extend_from_slice(&f.bytes[HEAD..]);
                last.bytes[FLAGS] |= f.bytes[FLAGS];
                let payload = (last.bytes.len() - 54) as u16;
                last.bytes[18..20].copy_from_slice(&payload.to_be_bytes());
                last.gso = Some(Gso { kind: GsoKind::Tcp6, size: size as u16 });
                continue;
            }
        }
        out.push_back(f);
    }
    *tx = out;
}

/// The guest's kernel.
pub struct Guest {
    pub device: Queues,
    pub iface: Interface,
    pub sockets: SocketSet<'static>,
    pub addrs: (IpAddr, IpAddr),
    pub offload: bool,
}

pub fn instant(t: Time) -> Instant {
    Instant::from_micros((t.as_nanos() / 1000) as i64)
}

pub fn endpoint(e: Endpoint) -> IpEndpoint {
    IpEndpoint::new(e.addr.into(), e.port)
}

impl Guest {
    pub fn new(plan: &Plan, now: Time, seed: u64) -> Guest {
        let mtu = usize::from(plan.link.mtu);
        let mut device = Queues { rx: VecDeque::new(), tx: VecDeque::new(), mtu, tso: plan.link.tso.into() };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC)));
        config.random_seed = seed;
        let mut iface = Interface::new(config, &mut device, instant(now));
        let (v4, v6) = (plan.config.v4.unwrap(), plan.config.v6.unwrap());
        iface.update_ip_addrs(|a| {
            a.push(IpCidr::new(v4.guest.into(), v4.prefix)).unwrap();
            a.push(IpCidr::new(v6.guest.into(), v6.prefix)).unwrap();
        });
        iface.routes_mut().add_default_ipv4_route(v4.gateway).unwrap();
        iface.routes_mut().add_default_ipv6_route(v6.gateway).unwrap();
        let addrs = (v4.guest.into(), v6.guest.into());
        Guest { device, iface, sockets: SocketSet::new(Vec::new()), addrs, offload: plan.link.tso.into() }
    }

    pub fn poll(&mut self, now: Time) {
        self.iface.poll(instant(now), &mut self.device, &mut self.sockets);
        if self.offload {
            coalesce(&mut self.device.tx);
        }
    }

    /// When it wants to be polled next, on or after `now`.
    pub fn poll_at(&mut self, now: Time) -> Option<Time> {
        let at = self.iface.poll_at(instant(now), &self.sockets)?;
        Some(Time::from_nanos(at.total_micros().max(0) as u64 * 1000).max(now))
    }

    /// The guest's address of the family of `like`.
    pub fn addr(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.addrs.0 } else { self.addrs.1 }
    }
}
