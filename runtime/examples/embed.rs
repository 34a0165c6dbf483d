//! A program that embeds the network worker: it owns the event loop, runs the worker beside a subscriber of its own, and plays
//! the guest at the other end of a channel link: it asks for the gateway's MAC address, pings it, and prints what comes back.

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use hibernet::link::channel::{ChannelEnd, channel};
use hibernet::worker::{Finished, Worker, WorkerSetup};
use hibernet_netstack::Config;
use hibernet_netstack::config::V4Config;
use hibernet_netstack::edge::{LinkInfo, RxChecksum, Tso};
use hibernet_netstack::wire::{EtherType, Mac, checksum, ethernet, icmp, ipv4};
use std::error::Error;
use std::net::Ipv4Addr;
use std::time::Duration;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

const GUEST_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x15]);

/// The embedder's own business: a timer that ticks.
struct Ticker {
    timer: TimerFd,
    ticks: u64,
}

impl MutEventSubscriber for Ticker {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        self.ticks += self.timer.wait().unwrap_or(0);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(e) = ops.add(Events::new(&self.timer, EventSet::IN)) {
            eprintln!("no ticks: {e}");
        }
    }
}

/// All that the embedder's loop serves. A type of its own gives access to each of them between two turns.
enum Subscriber {
    Network(Box<Worker>),
    Ticker(Ticker),
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match self {
            Subscriber::Network(w) => w.process(events, ops),
            Subscriber::Ticker(t) => t.process(events, ops),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        match self {
            Subscriber::Network(w) => w.init(ops),
            Subscriber::Ticker(t) => t.init(ops),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let config = Config::default();
    let v4 = config.v4.ok_or("this example speaks IPv4")?;
    let gateway_mac = config.gateway_mac;
    let info =
        LinkInfo { mtu: 1500, checksum: false, tso: Tso::None, uso: false, guest_mac: Some(GUEST_MAC), in_flight: u32::MAX };
    let (link, guest) = channel(info, 64)?;
    let worker = Worker::new(WorkerSetup::new(config, vec![Box::new(link)], slog::Logger::root(slog::Discard, slog::o!())))?;

    let mut events = EventManager::new()?;
    let network = events.add_subscriber(Subscriber::Network(Box::new(worker)));
    let mut timer = TimerFd::new()?;
    timer.reset(Duration::from_millis(10), Some(Duration::from_millis(10)))?;
    let ticker = events.add_subscriber(Subscriber::Ticker(Ticker { timer, ticks: 0 }));

    inject(&guest, arp_request(v4.guest, v4.gateway))?;
    inject(&guest, ping(&v4, gateway_mac))?;
    let mut echoed = false;
    while !echoed {
        events.run()?;
        while let Some(frame) = guest.take() {
            println!("to the guest: {}", describe(&frame.bytes));
            echoed |= is_echo_reply(&frame.bytes);
        }
    }
    // The guest goes away; the worker notices and finishes, the embedder's loop would go on.
    drop(guest);
    let mut finished = None;
    while finished.is_none() {
        events.run()?;
        if let Subscriber::Network(w) = events.subscriber_mut(network)? {
            finished = w.finished();
        }
    }
    events.remove_subscriber(network)?;
    if let Subscriber::Ticker(t) = events.subscriber_mut(ticker)? {
        println!("worker finished: {finished:?}; meanwhile {} ticks", t.ticks);
    }
    if finished == Some(Finished::LinksGone) { Ok(()) } else { Err("the worker ended for another reason".into()) }
}

fn inject(guest: &ChannelEnd, frame: Vec<u8>) -> Result<(), Box<dyn Error>> {
    Ok(guest.inject(frame, RxChecksum::Unverified, None)?)
}

fn arp_request(from: Ipv4Addr, whose: Ipv4Addr) -> Vec<u8> {
    let mut f = vec![0; ethernet::HEADER_LEN];
    ethernet::Header { dst: Mac::BROADCAST, src: GUEST_MAC, ethertype: EtherType::Arp }.emit(&mut f);
    // Ethernet, IPv4, lengths of their addresses, request.
    f.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    f.extend(GUEST_MAC.0);
    f.extend(from.octets());
    f.extend([0; 6]);
    f.extend(whose.octets());
    f
}

fn ping(v4: &V4Config, gateway: Mac) -> Vec<u8> {
    let data = b"hello, gateway";
    let ip_at = ethernet::HEADER_LEN;
    let icmp_at = ip_at + ipv4::HEADER_LEN;
    let mut f = vec![0; icmp_at + icmp::HEADER_LEN];
    f.extend(data);
    ethernet::Header { dst: gateway, src: GUEST_MAC, ethertype: EtherType::Ipv4 }.emit(&mut f);
    ipv4::Header {
        header_len: ipv4::HEADER_LEN as u8,
        tos: 0,
        total_len: (ipv4::HEADER_LEN + icmp::HEADER_LEN + data.len()) as u16,
        ident: 1,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 64,
        protocol: 1,
        src: v4.guest,
        dst: v4.gateway,
    }
    .emit(&mut f[ip_at..]);
    let echo = icmp::Header { ty: icmp::v4::ECHO_REQUEST, code: 0, checksum: 0, rest: 7 << 16 | 1 };
    echo.emit(&mut f[icmp_at..]);
    let checksum = checksum::of(&f[icmp_at..]);
    icmp::Header { checksum, ..echo }.emit(&mut f[icmp_at..]);
    f
}

fn is_echo_reply(frame: &[u8]) -> bool {
    let ip = ethernet::HEADER_LEN;
    frame.get(12..14) == Some(&[8, 0]) && frame.get(ip + 9) == Some(&1) && frame.get(ip + ipv4::HEADER_LEN) == Some(&0)
}

fn describe(frame: &[u8]) -> String {
    let kind = match frame.get(12..14) {
        Some([8, 0]) if is_echo_reply(frame) => "ICMP echo reply",
        Some([8, 0]) => "IPv4",
        Some([8, 6]) if frame.get(20..22) == Some(&[0, 2]) => "ARP reply",
        Some([8, 6]) => "ARP",
        Some([0x86, 0xdd]) => "IPv6",
        _ => "something else",
    };
    format!("{kind}, {} bytes", frame.len())
}
