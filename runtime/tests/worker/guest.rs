//! A guest at the other end of a channel link (smoltcp), and the worker that serves it, on one thread.

use event_manager::{EventManager, SubscriberId, SubscriberOps};
use hibernet::link::Link;
use hibernet::link::channel::{ChannelEnd, channel};
use hibernet::worker::{Finished, Worker, WorkerSetup};
use hibernet_netstack::Config;
use hibernet_netstack::edge::{LinkInfo, RxChecksum, Tso};
use hibernet_netstack::wire::Mac;
use smoltcp::iface::{Interface, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant as GuestTime;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(20);

const MAC: Mac = Mac([2, 0, 0, 0, 0, 0x15]);

/// A setup without anything but links.
pub fn setup(config: Config) -> WorkerSetup {
    WorkerSetup::new(config, Vec::new(), slog::Logger::root(slog::Discard, slog::o!()))
}

/// A configuration in which the gateway's addresses stand for the host's loopback.
pub fn loopback_config() -> Config {
    let mut config = Config::default();
    let (v4, v6) = (config.v4.unwrap(), config.v6.unwrap());
    config.reach.map_host_loopback = vec![v4.gateway.into(), v6.gateway.into()];
    config
}

struct Nic(ChannelEnd);

struct Rx(Vec<u8>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Tx<'a>(&'a ChannelEnd);

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut b = vec![0; len];
        let r = f(&mut b);
        // A full or closed link loses frames, as a wire does.
        let _ = self.0.inject(b, RxChecksum::Unverified, None);
        r
    }
}

impl Device for Nic {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: GuestTime) -> Option<(Rx, Tx<'_>)> {
        self.0.take().map(|f| (Rx(f.bytes), Tx(&self.0)))
    }

    fn transmit(&mut self, _: GuestTime) -> Option<Tx<'_>> {
        Some(Tx(&self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut c = DeviceCapabilities::default();
        c.medium = Medium::Ethernet;
        c.max_transmission_unit = 1514;
        c.checksum.tcp = Checksum::Both;
        c
    }
}

/// A link, and the guest's end of it.
fn link() -> (Box<dyn Link>, ChannelEnd) {
    let info = LinkInfo { mtu: 1500, checksum: false, tso: Tso::None, uso: false, guest_mac: Some(MAC), in_flight: u32::MAX };
    let (link, end) = channel(info, 1024).unwrap();
    (Box::new(link), end)
}

/// A worker and its guest.
pub struct Pair {
    pub manager: EventManager<Worker>,
    pub id: SubscriberId,
    nic: Nic,
    pub iface: Interface,
    pub sockets: SocketSet<'static>,
    start: Instant,
}

impl Pair {
    /// Adds a link with a guest to the setup and starts the worker.
    pub fn new(mut setup: WorkerSetup) -> Pair {
        let (v4, v6) = (setup.config.v4.unwrap(), setup.config.v6.unwrap());
        let (link, end) = link();
        setup.links.push(link);
        let mut manager = EventManager::new().unwrap();
        let id = manager.add_subscriber(Worker::new(setup).unwrap());
        let mut nic = Nic(end);
        let hardware = HardwareAddress::Ethernet(EthernetAddress(MAC.0));
        let mut iface = Interface::new(smoltcp::iface::Config::new(hardware), &mut nic, GuestTime::ZERO);
        iface.update_ip_addrs(|a| {
            a.push(IpCidr::new(IpAddress::Ipv4(v4.guest), v4.prefix)).unwrap();
            a.push(IpCidr::new(IpAddress::Ipv6(v6.guest), v6.prefix)).unwrap();
        });
        iface.routes_mut().add_default_ipv4_route(v4.gateway).unwrap();
        iface.routes_mut().add_default_ipv6_route(v6.gateway).unwrap();
        Pair { manager, id, nic, iface, sockets: SocketSet::new(Vec::new()), start: Instant::now() }
    }

    /// Lets worker and guest go on until `done`.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Interface, &mut SocketSet<'static>) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = GuestTime::from_micros(self.start.elapsed().as_micros() as i64);
            self.iface.poll(now, &mut self.nic, &mut self.sockets);
            if done(&mut self.iface, &mut self.sockets) {
                return;
            }
            assert!(Instant::now() < end, "in vain: {what}; {}", self.worker().report());
            self.manager.run_with_timeout(1).unwrap();
        }
    }

    /// Plugs the guest into a new link, for another worker.
    pub fn plug(&mut self) -> Box<dyn Link> {
        let (link, end) = link();
        self.nic = Nic(end);
        link
    }

    /// Lets the worker go on until it is so.
    pub fn until_worker(&mut self, what: &str, is: impl Fn(&Worker) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is(self.worker()) {
            assert!(Instant::now() < end, "in vain: {what}");
            self.manager.run_with_timeout(100).unwrap();
        }
    }

    /// Lets the worker go on until it has no event for this time.
    pub fn quiet(&mut self, time: Duration) -> bool {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if self.manager.run_with_timeout(time.as_millis() as i32).unwrap() == 0 {
                return true;
            }
        }
        false
    }

    pub fn worker(&mut self) -> &mut Worker {
        self.manager.subscriber_mut(self.id).unwrap()
    }

    /// Runs the worker until it has finished.
    pub fn finish(&mut self) -> Finished {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(why) = self.worker().finished() {
                return why;
            }
            assert!(Instant::now() < end);
            self.manager.run_with_timeout(100).unwrap();
        }
    }

    /// The guest goes.
    pub fn unplug(self) -> (EventManager<Worker>, SubscriberId) {
        (self.manager, self.id)
    }

    /// Addresses of the gateway.
    pub fn gateways(&mut self) -> [IpAddr; 2] {
        let c = self.worker().stack().config();
        [c.v4.unwrap().gateway.into(), c.v6.unwrap().gateway.into()]
    }
}
